"""How the identity's keys and values reach the frame videos: two sources of the same tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from bachvid.method.attends import Lend, Lent, Record
from bachvid.method.denoiser import Denoiser, Take
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted
from bachvid.method.together import Pass, forward
from bachvid.models.attention import Site, attend, rotate
from bachvid.sampling.loop import denoise


class Alongside:
    """The identity goes through every block just before the frame videos and lends what it holds there.

    This is lockstep, and replay where the latents are known from an earlier run. Nothing is kept across
    layers or steps: one record stands at all vital layers, and every block overwrites it.
    """

    def __init__(self, identity: Scouted, recipe: Recipe) -> None:
        self.identity = identity
        self.sites = recipe.kv_sites

    def at(self, step: int, negative: Tensor | None) -> tuple[list[Pass], Lend]:
        """The pass that goes first, for the prompt or the negative one, and what can be borrowed after it.

        Where the identity's next latents are known already, it goes no further than the last vital layer.
        """
        record, trajectory = Record(), self.identity.trajectory
        text = self.identity.take.prompt.text if negative is None else negative
        known = step + 1 < len(trajectory)
        last = max(site.layer for site in self.sites) if known else None
        first = Pass(trajectory[step], text, dict.fromkeys(self.sites, record), until=last)
        return [first], dict.fromkeys(self.sites, record.lend)


def check_cached(recipe: Recipe) -> None:
    """Raise ValueError if a cache does not hold what this recipe borrows."""
    if recipe.branches == "both":
        raise ValueError("the cache holds the conditional branch only; use lockstep, or branches=cond")


class Cache:
    """The identity is finished first; what it lends at every step and vital layer waits in host memory.

    This is the paper's way, kept to compare with: 164 GB for CogVideoX-5B. It holds the conditional branch.
    """

    def __init__(self, identity: Scouted, recipe: Recipe) -> None:
        check_cached(recipe)
        self.identity = identity
        self.recipe = recipe
        self.kept: dict[tuple[int, Site], tuple[Tensor, Tensor]] = {}  # keys, not yet rotated, and values
        self.freqs: Tensor | None = None

    def fill(self, denoiser: Denoiser) -> Iterator[int]:
        """Finishes the identity alone, yielding every step taken."""
        trajectory = self.identity.trajectory
        reached = len(trajectory) - 1
        for step in filter(self.recipe.injects_at, range(reached)):
            self._keep(denoiser, step)

        def predict(takes: Sequence[Take], step: int) -> list[Tensor]:
            return denoiser.guide(takes, step, self._keep(denoiser, step))

        for step in denoise(predict, [self.identity.take], denoiser.sampler, range(reached, denoiser.steps)):
            trajectory.append(self.identity.take.latents)
            yield step

    def at(self, step: int, negative: Tensor | None) -> tuple[list[Pass], Lend]:
        """No pass, and what was kept of this step's conditional branch."""
        return [], {site: partial(self._lend, step, site) for site in self.recipe.kv_sites}

    @torch.no_grad()
    def _keep(self, denoiser: Denoiser, step: int) -> list[Tensor]:
        sites = self.recipe.kv_sites if self.recipe.injects_at(step) else ()
        latents, text = self.identity.trajectory[step], self.identity.take.prompt.text
        keepers = {site: partial(self._attend, step, site) for site in sites}
        return forward(denoiser.model, denoiser.timestep(step), [Pass(latents, text, keepers)])

    def _attend(self, step: int, site: Site, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor | None) -> Tensor:
        """Attends plainly; keys and values leave the device at once."""
        self.kept[step, site], self.freqs = (k.cpu(), v.cpu()), freqs
        return attend(q, k, v, freqs)

    def _lend(self, step: int, site: Site) -> Lent:
        k, v = (x.to(self.identity.take.latents.device) for x in self.kept[step, site])
        return Lent(k, rotate(k, self.freqs), v)
