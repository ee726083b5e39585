"""The pre-run: a video takes its first steps alone, until mask and features are read (Sections 3.2-3.3)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.look import Look
from bachvid.method.recipe import Recipe
from bachvid.method.together import Pass, forward
from bachvid.sampling.loop import denoise


@dataclass(eq=False)
class Scouted:
    """What the pre-run found out about a video, and where it stands."""

    take: Take  # stands before step `tau`
    tau: int  # where the pre-run ended: the later one of the recipe's two, or later still for the mask
    trajectory: list[Tensor]  # its latents before steps 0 .. tau
    mask: Tensor  # N bool
    believed: bool  # the mask holds neither almost nothing nor almost everything
    features: Tensor  # N layers C
    features_at: int  # the step they were read at


def scout(denoiser: Denoiser, recipe: Recipe, prompt: Prompt, seed: int) -> Generator[int, None, Scouted]:
    """Yields the index of every step taken and returns what was seen.

    The mask is read at `tau_mask`, the features at `tau_match`. A mask that cannot be believed is read
    again one step later, up to twice `tau_mask`, and the features with it: this never fails. The last step
    is only looked at, not taken.
    """
    take = denoiser.start(prompt, seed)
    walk = denoise(denoiser.vanilla, [take], denoiser.sampler)
    trajectory: list[Tensor] = []
    mask = features = None
    believed, patience = False, min(2 * recipe.tau_mask, denoiser.steps - 1)
    for step in range(denoiser.steps):
        trajectory.append(take.latents)
        wants_mask = recipe.tau_mask <= step <= patience and not believed
        wants_features = step == recipe.tau_match or (
            wants_mask and features is not None and mask is not None
        )
        if wants_mask or wants_features:
            look = look_at(denoiser, recipe, prompt, take.latents, step)
        if wants_features:
            features, features_at = look.features(), step
        if wants_mask:
            mask = look.mask()
            believed = believable(mask, recipe)
        if features is not None and mask is not None and (believed or step >= patience):
            return Scouted(take, step, trajectory, mask, believed, features, features_at)
        yield next(walk)
    raise AssertionError("tau lies behind the last step")


@torch.no_grad()
def look_at(denoiser: Denoiser, recipe: Recipe, prompt: Prompt, latents: Tensor, step: int) -> Look:
    """Mask and features of these latents: the conditional branch, no further than the last layer needed."""
    look = Look(recipe, prompt.spans, denoiser.model.grid(latents))
    walker = Pass(latents, prompt.text, look.over({}), until=look.last_layer())
    forward(denoiser.model, denoiser.timestep(step), [walker])
    return look


def believable(mask: Tensor, recipe: Recipe) -> bool:
    """Whether the share of foreground lies between the recipe's limits."""
    share = mask.sum().item() / len(mask)
    return recipe.least_share <= share <= recipe.most_share
