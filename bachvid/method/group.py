"""One identity video and its frame videos: the algorithm of Section 3.5, from the pre-run to the last step.

group = Group(denoiser, recipe, prompts, seeds)
for progress in group.run():
    print(progress)
latents = [video.latents for video in group.takes]         # the identity first
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bachvid.method.attends import Lent, Record
from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.frame import FrameVideo
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted, scout
from bachvid.method.together import Pass, forward
from bachvid.models.attention import Site
from bachvid.sampling.loop import denoise


class Progress(NamedTuple):
    """One step taken: in which phase, by which video (None: by all of them), and its index."""

    phase: str  # "pre-run", "identity" or "main run"
    video: int | None
    step: int


Cache = dict[
    tuple[int, Site], Lent
]  # what the identity lends, for every step and vital layer, in host memory


class Group:
    """Makes an identity video and frame videos that share its character and its place.

    `prompts` and `seeds` name the identity first. With `identity`, the videos join a world that an earlier
    run made (replay): its trajectory is known to the end, and all prompts are frame videos. With
    `keep_cache`, the identity is finished first and its keys and values wait in host memory, as in the
    paper; otherwise all videos walk in lockstep and nothing is kept. Both give the same videos.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        recipe: Recipe,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        identity: Scouted | None = None,
        keep_cache: bool = False,
    ) -> None:
        if keep_cache and recipe.branches == "both":
            raise ValueError("the cache holds the conditional branch only; use lockstep, or branches=cond")
        self.denoiser = denoiser
        self.recipe = recipe.at(denoiser.steps)
        self.starts = list(zip(prompts, seeds, strict=True))
        self.joins = identity is not None
        self.identity = identity
        self.cache: Cache | None = {} if keep_cache else None
        self.frames: list[FrameVideo] = []

    @property
    def takes(self) -> list[Take]:
        """The videos made here: the identity first, unless it was given."""
        frames = [frame.take for frame in self.frames]
        return frames if self.joins else [self._identity().take, *frames]

    @property
    def total_steps(self) -> int:
        """How many steps `run` takes if every mask can be believed at once."""
        recipe = self.recipe
        remembered = self.denoiser.steps if self.cache is not None else 0
        return len(self.starts) * max(recipe.tau_mask, recipe.tau_match) + remembered + self.denoiser.steps

    def run(self) -> Iterator[Progress]:
        """Makes the videos, yielding after every step; when it ends, `takes` hold the final latents."""
        for n, (prompt, seed) in enumerate(self.starts):
            seen = yield from self._pre_run(n, prompt, seed)
            if self.identity is None:
                self.identity = seen
            else:
                self.frames.append(FrameVideo(self.denoiser, self.recipe, seen, self.identity))
        if self.cache is not None:
            yield from self._remember(self.cache)
        yield from self._main_run()

    def _pre_run(self, n: int, prompt: Prompt, seed: int) -> Generator[Progress, None, Scouted]:
        steps = scout(self.denoiser, self.recipe, prompt, seed)
        while True:
            try:
                yield Progress("pre-run", n, next(steps))
            except StopIteration as end:
                return end.value

    def _main_run(self) -> Iterator[Progress]:
        """Every frame video from its first step; the identity from where its pre-run stopped."""
        identity, frames = self._identity(), [frame.take for frame in self.frames]
        known = self._known_steps()
        for step in denoise(self._predict, frames, self.denoiser.sampler, range(known)):
            yield Progress("main run", None, step)
        rows = [identity.take, *frames]
        for step in denoise(self._predict, rows, self.denoiser.sampler, range(known, self.denoiser.steps)):
            identity.trajectory.append(identity.take.latents)
            yield Progress("main run", None, step)

    def _known_steps(self) -> int:
        """The steps before which the identity's latents are known and need no sampling."""
        identity = self._identity()
        return self.denoiser.steps if self.joins or self.cache else identity.tau

    def _predict(self, takes: Sequence[Take], step: int) -> list[Tensor]:
        """Guided predictions of the takes; frame videos borrow."""
        if not self.recipe.injects_at(step):
            return self.denoiser.vanilla(takes, step)
        conditional = self._branch(takes, step, None)
        for frame in self.frames:
            frame.learn(step)
        unconditional = None
        if self.recipe.branches == "both" and self.denoiser.guided:
            unconditional = self._branch(takes, step, self.denoiser.negative)
        return self.denoiser.guide(takes, step, conditional, unconditional)

    def _branch(self, takes: Sequence[Take], step: int, negative: Tensor | None) -> list[Tensor | None]:
        """Predictions of one branch, block by block, the identity going first through each."""
        passes, lend = [], self._from_cache(step)
        if self.cache is None:
            record = Record()  # holds one layer at a time: every block overwrites it
            lend = dict.fromkeys(self.recipe.kv_sites, record.lend)
            passes.append(self._identity_pass(step, dict.fromkeys(lend, record), negative))
        for frame in self.frames:
            attend_at = frame.attend_at(step, lend, watch=negative is None)
            text = frame.take.prompt.text if negative is None else negative
            passes.append(Pass(frame.take.latents, text, attend_at))
        predictions = forward(self.denoiser.model, self.denoiser.timestep(step), passes)
        return predictions[len(predictions) - len(takes) :]

    def _identity_pass(self, step: int, records: Mapping[Site, Record], negative: Tensor | None) -> Pass:
        """The identity's way through the network; where its latents are known, no further than needed."""
        identity = self._identity()
        text = identity.take.prompt.text if negative is None else negative
        known = step < self._known_steps()
        latents = identity.trajectory[step] if known else identity.take.latents
        return Pass(latents, text, records, until=max(self.recipe.kv_layers) if known else None)

    def _from_cache(self, step: int) -> dict[Site, Callable[[], Lent]]:
        device = self.denoiser.negative.device
        cached = {site: (self.cache or {}).get((step, site)) for site in self.recipe.kv_sites}
        return {
            site: lambda lent=lent: Lent(*(x.to(device) for x in lent))  # type: ignore[misc]
            for site, lent in cached.items()
            if lent is not None
        }

    @torch.no_grad()
    def _remember(self, cache: Cache) -> Iterator[Progress]:
        """Finishes the identity alone and keeps what it can lend at every step and vital layer."""
        identity, denoiser = self._identity(), self.denoiser

        def predict(takes: Sequence[Take], step: int) -> list[Tensor]:
            records = {site: Record() for site in self.recipe.kv_sites}
            latents = identity.trajectory[step]
            walker = Pass(latents, identity.take.prompt.text, records)
            conditional = forward(denoiser.model, denoiser.timestep(step), [walker])
            for site, record in records.items():
                cache[step, site] = Lent(*(x.cpu() for x in record.lend()))
            return denoiser.guide(takes, step, conditional) if takes else []

        for step in range(identity.tau):
            predict([], step)
        for step in denoise(predict, [identity.take], denoiser.sampler, range(identity.tau, denoiser.steps)):
            identity.trajectory.append(identity.take.latents)
            yield Progress("identity", 0, step)

    def _identity(self) -> Scouted:
        assert self.identity is not None, "the pre-run comes first"
        return self.identity


def vanilla(
    denoiser: Denoiser, prompts: Sequence[Prompt], seeds: Sequence[int]
) -> Iterator[tuple[Progress, Take]]:
    """Each video on its own, without the method: every step taken, and the take that took it."""
    for n, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        take = denoiser.start(prompt, seed)
        for step in denoise(denoiser.vanilla, [take], denoiser.sampler):
            yield Progress("vanilla", n, step), take
