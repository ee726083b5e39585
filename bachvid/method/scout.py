"""The pre-run: a video takes its first steps alone, until mask and features are read (Sections 3.2-3.3)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.look import Look
from bachvid.method.match import Features
from bachvid.method.recipe import Recipe
from bachvid.method.together import Pass, forward
from bachvid.sampling.loop import denoise


@dataclass(eq=False)
class Scouted:
    """What the pre-run found out about a video, and where it stands."""

    take: Take  # stands before step `tau`
    tau: int  # where the pre-run ended: the later of the recipe's two, or later still for the mask
    trajectory: list[Tensor]  # its latents before steps 0 .. tau
    mask: Tensor  # N bool
    believed: bool  # the mask holds neither almost nothing nor almost everything
    features: Features | None  # at tau_match; None: let go, for they are large (see `features_of`)


def scout(denoiser: Denoiser, recipe: Recipe, prompt: Prompt, seed: int) -> Generator[int, None, Scouted]:
    """Yields the index of every step taken and returns what was seen (see `read_on`)."""
    take = denoiser.start(prompt, seed)
    walk = denoise(denoiser.vanilla, [take], denoiser.sampler)
    return read_on(denoiser, recipe, take, [take.latents], walk)


def read_on(
    denoiser: Denoiser, recipe: Recipe, take: Take, trajectory: list[Tensor], walk: Iterator[int]
) -> Generator[int, None, Scouted]:
    """What is seen of a video whose trajectory is known so far; as far as need be, it walks on.

    The mask is read at `tau_mask`, the features at `tau_match`. A mask that cannot be believed is read again
    one step later, up to twice `tau_mask`; this never fails. The last step is only looked at, not taken.
    """

    def reach(step: int) -> Iterator[int]:
        while len(trajectory) <= step:
            yield next(walk)
            trajectory.append(take.latents)

    features = None
    for step in range(recipe.tau_mask, min(2 * recipe.tau_mask, denoiser.steps - 1) + 1):
        yield from reach(step)
        wanted = step == recipe.tau_match
        look = look_at(denoiser, recipe, take.prompt, trajectory[step], step, features=wanted)
        features = look.features() if wanted else features
        mask = look.mask()
        if believed := believable(mask, recipe):
            break
    yield from reach(recipe.tau_match)
    seen = Scouted(take, max(step, recipe.tau_match), trajectory, mask, believed, features)
    features_of(denoiser, recipe, seen)
    return seen


def features_of(denoiser: Denoiser, recipe: Recipe, video: Scouted) -> Features:
    """A video's features at `tau_match`, read from its trajectory unless it has them at hand."""
    if video.features is None:
        latents, step = video.trajectory[recipe.tau_match], recipe.tau_match
        video.features = look_at(denoiser, recipe, video.take.prompt, latents, step, masks=False).features()
    return video.features


@torch.no_grad()
def look_at(
    denoiser: Denoiser,
    recipe: Recipe,
    prompt: Prompt,
    latents: Tensor,
    step: int,
    *,
    masks: bool = True,
    features: bool = True,
) -> Look:
    """Mask and features of these latents: the conditional branch, no further than the last layer needed."""
    grid = denoiser.model.grid(latents)
    look = Look(recipe, prompt.spans, grid, masks=masks, features=features)
    walker = Pass(latents, prompt.text, look.attend_at, until=look.last_layer())
    forward(denoiser.model, denoiser.timestep(step), [walker])
    return look


def believable(mask: Tensor, recipe: Recipe) -> bool:
    """Whether the share of foreground lies between the recipe's limits."""
    share = mask.sum().item() / len(mask)
    return recipe.least_share <= share <= recipe.most_share
