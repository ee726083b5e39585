"""A video made without the method, with all of its way and what its pixels say."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bachvid.evaluate.agreement import Watched
from bachvid.evaluate.cost import Meter
from bachvid.evaluate.metrics import token_uv
from bachvid.evaluate.studio import Studio
from bachvid.method.denoiser import Denoiser, Prompt, Take
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
