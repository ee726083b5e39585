"""A video made without the method, and what any recipe's pre-run would have seen on its way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torch import Tensor

from bachvid.evaluate.agreement import Watched
from bachvid.evaluate.cost import Meter
from bachvid.evaluate.metrics import token_uv
from bachvid.evaluate.studio import Studio
from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.look import Look
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted, believable, look_at
from bachvid.sampling.loop import denoise
from bachvid.stage.watch import token_masks


@dataclass(frozen=True, eq=False)
class Alone:
    """A finished video that knows all of its way, and what its pixels say."""

    take: Take
    trajectory: list[Tensor]  # its latents before every step and after the last
    clock: list[float]  # seconds from its start until each of them was there
    cost: Meter  # of the whole video, its pixels included
    watched: Watched
    mask: Tensor  # N bool: tokens that the puppet fills at least by half, over all frames they stand for
    uv: Tensor  # N 2: body coordinates of these, NaN for all others

    @classmethod
    def made(cls, studio: Studio, denoiser: Denoiser, prompt: Prompt, seed: int) -> Alone:
        """The video of a prompt from the noise of a seed, without the method."""
        with Meter() as cost:
            take = denoiser.start(prompt, seed)
            trajectory, clock = [take.latents], [0.0]
            for _ in denoise(denoiser.vanilla, [take], denoiser.sampler):
                trajectory.append(take.latents)
                clock.append(cost.so_far())
            frames = studio.develop(take.latents)
        watched, grid = Watched.of(frames), studio.grid()
        mask, uv = watched.reading.mask, watched.reading.uv
        shown = token_masks(mask[None].float(), grid)[0]
        return cls(take, trajectory, clock, cost, watched, shown, token_uv(mask, uv, grid))


def pre_run(denoiser: Denoiser, recipe: Recipe, video: Alone) -> Scouted:
    """What the pre-run of this recipe finds out about a video, read from its kept way; nothing is denoised.

    It is what `scout` returns for the same prompt and noise, but that the video is already at its end. As
    there, a mask that cannot be believed is read again one step later, and the features with it.
    """

    @cache
    def look(step: int) -> Look:
        return look_at(denoiser, recipe, video.take.prompt, video.trajectory[step], step)

    tau, patience = recipe.tau_mask, min(2 * recipe.tau_mask, denoiser.steps - 1)
    tries = range(tau, patience + 1)
    step = next((step for step in tries if believable(look(step).mask(), recipe)), patience)
    features_at = max(step, recipe.tau_match) if step > tau else recipe.tau_match
    mask = look(step).mask()
    return Scouted(
        take=video.take,
        tau=max(step, features_at),
        trajectory=video.trajectory,
        mask=mask,
        believed=believable(mask, recipe),
        features=look(features_at).features(),
        features_at=features_at,
    )
