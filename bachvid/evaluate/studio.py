"""A model that makes the videos an evaluation compares: each alone, and together in several ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from bachvid.method.denoiser import Denoiser, Prompt, Take
from bachvid.method.frame import FrameVideo
from bachvid.method.group import MainRun
from bachvid.method.prompts import encode_prompts, write_prompts
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted, look_at, read_on
from bachvid.method.spans import Parts
from bachvid.models.checkpoint import Checkpoint
from bachvid.models.grid import Grid
from bachvid.models.parts import VAE, Model
from bachvid.models.text import TextEncoder
from bachvid.pictures.frames import Frames, to_frames
from bachvid.sampling.sampler import Sampler, read_sampler


@dataclass(frozen=True, eq=False)
class Studio:
    """A loaded checkpoint at its native size, and the recipe that it is evaluated with."""

    model: Model
    vae: VAE
    encoder: TextEncoder
    negative: Tensor  # the encoded prompt of nothing
    sampler: Sampler
    recipe: Recipe  # for the sampler's number of steps
    shape: tuple[int, ...]  # of one video's latents
    wide: Literal["predictions", "latents"]  # as in `Denoiser`
    shown: Callable[[Tensor], Tensor]  # the latents of a video that become its frames
    tiling: bool = False  # whether videos are developed in tiles

    @classmethod
    def open(
        cls,
        checkpoint: Checkpoint,
        recipe: Recipe,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        *,
        tiling: bool = False,
    ) -> Studio:
        """Load its parts; the autoencoder in float32, the others in `dtype`."""
        own, encoder = checkpoint.format, checkpoint.text_encoder(dtype, device)
        return cls(
            model=checkpoint.transformer(dtype, device),
            vae=checkpoint.vae(torch.float32, device),
            encoder=encoder,
            negative=encoder.encode(""),
            sampler=read_sampler(checkpoint.scheduler, recipe.steps),
            recipe=recipe,
            shape=checkpoint.latent_shape(own.size, own.frames),
            wide=checkpoint.wide,
            shown=partial(checkpoint.shown, frames=own.frames),
            tiling=tiling,
        )

    @property
    def parts(self) -> nn.Module:
        """Everything that has weights."""
        return nn.ModuleList([self.model, self.vae, self.encoder.model])  # type: ignore[list-item]

    def denoiser(self) -> Denoiser:
        """A denoiser for the videos of one group: it remembers some of what they share."""
        scale = self.recipe.guidance
        return Denoiser(self.model, self.sampler, self.negative, self.shape, scale, wide=self.wide)

    def prompts(self, videos: Sequence[Parts]) -> list[Prompt]:
        """Encoded prompts with their spans."""
        return encode_prompts(self.encoder, write_prompts(self.encoder, videos, self.recipe))

    def grid(self) -> Grid:
        """The tokens of a video."""
        return self.model.grid(torch.empty(self.shape, device="meta"))

    def scores(self, denoiser: Denoiser, prompt: Prompt, trajectory: Sequence[Tensor]) -> Tensor:
        """What the mask of a video is decided by at `tau_mask`, (2, N): see `mask.foreground`."""
        step = self.recipe.tau_mask
        look = look_at(denoiser, self.recipe, prompt, trajectory[step], step)
        return torch.stack([mass.scores for mass in look.masses.values()]).sum(0)

    @torch.no_grad()
    def seen_through(self, video: Tensor) -> Tensor:
        """Videos (B, 3, F, H, W) in [-1, 1] as the autoencoder shows them."""
        latents = (self.vae.to_latents(each[None].to(self.negative.device)) for each in video)
        return torch.cat([self.vae.to_video(each) for each in latents]).cpu()

    @torch.no_grad()
    def develop(self, latents: Tensor) -> Frames:
        """The pixels of a video's latents; what is not a number is black, which no puppet is."""
        video = self.vae.to_video(self.shown(latents).float(), tiling=self.tiling)
        return to_frames(video[0].nan_to_num(nan=-1.0))


def is_of_stage(model: Path) -> bool:
    """Whether a model was trained here, so that its videos can be read exactly."""
    return (model / "training.json").is_file()


def timesteps_of(checkpoint: Checkpoint, steps: int) -> Sequence[float]:
    """What the model is told at the steps of its schedule of this length."""
    return read_sampler(checkpoint.scheduler, steps).schedule.timesteps


def pre_run(denoiser: Denoiser, recipe: Recipe, take: Take, trajectory: Sequence[Tensor]) -> Scouted:
    """What the pre-run of this recipe finds out about a video whose way is known; nothing is denoised.

    It is what `scout` returns for the same prompt and noise, but that the trajectory goes on to the end.
    """
    reading = read_on(denoiser, recipe, take, list(trajectory), walk=iter(()))
    try:
        next(reading)
    except StopIteration as end:
        return end.value
    raise AssertionError("a trajectory that is known to its end needs no step")


def together(
    denoiser: Denoiser,
    recipe: Recipe,
    identity: Scouted,
    others: Sequence[Scouted],
    change: Callable[[Sequence[FrameVideo]], None] | None = None,
) -> list[FrameVideo]:
    """The videos that `others` are without the method, made again with it; each starts from its own noise.

    `change` may alter the frame videos before their first step. Videos whose numbers overflow are NaN.
    """
    frames = [FrameVideo(denoiser, recipe, each, identity) for each in others]
    if change is not None:
        change(frames)
    try:
        for _ in MainRun(denoiser, recipe, identity, frames).run():
            pass
    except FloatingPointError:  # these videos are lost; the evaluation goes on
        for frame in frames:
            frame.take.latents = torch.full_like(frame.take.latents, torch.nan)
    return frames
