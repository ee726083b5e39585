"""Training of the stage world's video autoencoder: pictures through few numbers into the same pictures."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from bachvid.models.cogvideox_vae import CogVideoXVAEConfig
from bachvid.models.wan_vae import WanVAEConfig
from bachvid.stage.family import family_of
from bachvid.stage.muon import Muon
from bachvid.stage.render import Render, clip_phases, render
from bachvid.stage.training import PACE, Facts, Pace, Team
from bachvid.stage.world import Clip, sample_clip

SPREAD = ("latent_std", "channel_means", "channel_stds")  # what an inspection says of the latents


@dataclass(frozen=True)
class VAERecipe:
    """What the autoencoder is and how it learns; lengths are in pixels, batches those of one process."""

    config: CogVideoXVAEConfig | WanVAEConfig
    height: int
    width: int
    frames: int
    images: int  # in a batch of single frames
    clips: int  # in a batch of clips
    rate: float = 2e-3
    images_only: float = 0.2  # share of the budget before the first clip
    image_share: float = 0.1  # of the batches after that
    mse: float = 2.0  # weights beside the mean absolute error
    edges: float = 0.5
    focus: float = 4.0  # how much more an error in the puppet weighs
    kl: float = 1e-4
    pace: Pace = PACE


class VAETask:
    """The loop's view of the autoencoder.

    Once a denoiser has begun to learn the latents, `spread` is what was measured of them: they stay as they
    are, and only the decoder learns.
    """

    name = "vae"

    def __init__(
        self,
        recipe: VAERecipe,
        seed: int,
        team: Team,
        device: torch.device,
        spread: Mapping[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.seed, self.team, self.device = recipe, seed, team, device
        self.family = family_of(recipe.config)
        self.model = self.family.vae(recipe.config).to(device)
        self.spread = spread
        self.counts: dict[str, int] = {}
        kernels = [p for p in self.model.parameters() if is_kernel(p)]
        others = [p for p in self.model.parameters() if not is_kernel(p)]
        self.optimizers: Sequence[Optimizer] = (
            Muon(kernels, recipe.rate),
            AdamW(others, recipe.rate, weight_decay=0.0),
        )

    def begin(self, averaged: nn.Module) -> None:
        if self.spread is not None:
            layers = zip(
                self.family.latent_layers(self.model), self.family.latent_layers(averaged), strict=True
            )
            for layer, settled in layers:
                layer.load_state_dict(settled.state_dict())
                layer.requires_grad_(False)

    def loss(self, step: int, progress: float) -> tuple[Tensor, Facts]:
        seed = self.team.seed(self.seed, step)
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        shown = self._batch(rng, progress)
        video = shown.video  # B 3 F H W
        mean, logvar = self.model.encode(video)
        noise = torch.randn(mean.shape, generator=generator).to(self.device)
        out = self.model.decode(mean + (0.5 * logvar).exp() * noise)
        error, weight = out - video, 1 + (self.recipe.focus - 1) * shown.coverage.unsqueeze(1)
        absolute, squared = (weight * error.abs()).mean(), (weight * error.square()).mean()
        kl, edges = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean(), edge_loss(error)
        loss = absolute + self.recipe.mse * squared + self.recipe.edges * edges + self.recipe.kl * kl
        return loss, {"psnr": psnr(error.square().mean()), "kl": kl.detach(), "frames": video.shape[2]}

    def inspect(self, model: Any, clips: int = 16) -> dict[str, Any]:
        """PSNR in dB on held-out clips, single frames of them and their puppets; the latents' spread."""
        rng = random.Random(0)
        sample = [sample_clip(rng, held_out=True) for _ in range(clips)]
        errors: dict[str, list[Tensor]] = {"psnr": [], "psnr_image": [], "psnr_puppet": []}
        means = []
        for pair in (sample[i : i + 2] for i in range(0, clips, 2)):
            shown = stage_clips(pair, self.recipe, self.recipe.frames, self.device)
            mean, clip = reconstruction_errors(model, shown.video)
            _, image = reconstruction_errors(model, shown.video[:, :, :1])
            puppet = shown.mask.unsqueeze(1).expand_as(clip)
            errors["psnr"] += list(clip.flatten(1).mean(1))
            errors["psnr_image"] += list(image.flatten(1).mean(1))
            errors["psnr_puppet"] += [each[there].mean() for each, there in zip(clip, puppet, strict=True)]
            means.append(mean)
        found = {
            name: round(sum(psnr(one).item() for one in each) / clips, 2) for name, each in errors.items()
        }
        return {**found, **(self.spread or spread_of(torch.cat(means)))}

    def _batch(self, rng: random.Random, progress: float) -> Render:
        """Whole frames always: norms take their statistics from all they see, and a crop's are others."""
        recipe = self.recipe
        if progress < recipe.images_only or rng.random() < recipe.image_share:
            frames, count = 1, recipe.images
        else:
            frames, count = recipe.frames, recipe.clips
        return stage_clips([sample_clip(rng) for _ in range(count)], recipe, frames, self.device, rng)


def spread_of(latents: Tensor) -> dict[str, Any]:
    """What brings latents (B C F h w) to a spread of 1, all together or channel by channel."""
    latents = latents.transpose(0, 1).flatten(1)  # C, everything else
    numbers = latents.std(), latents.mean(1), latents.std(1)
    return {name: np.round(n.tolist(), 4).tolist() for name, n in zip(SPREAD, numbers, strict=True)}


def is_kernel(parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix or a convolution's kernel, and not one number for each channel."""
    return parameter.ndim > 1 and parameter[0].numel() > 1


def stage_clips(
    clips: list[Clip], recipe: VAERecipe, frames: int, device: torch.device, rng: random.Random | None = None
) -> Render:
    """The clips' pictures; with an `rng`, a single frame is a random moment of its clip."""
    phases = clip_phases(len(clips), frames)
    if frames == 1 and rng is not None:
        phases = torch.tensor([[rng.random()] for _ in clips])
    return render(clips, phases, recipe.height, recipe.width, device=device)


def reconstruction_errors(model: Any, video: Tensor) -> tuple[Tensor, Tensor]:
    """The latents of videos, and the squared errors of what is decoded from them."""
    mean, _ = model.encode(video)
    return mean, (model.decode(mean).clamp(-1, 1) - video).square()


def edge_loss(error: Tensor) -> Tensor:
    """Mean absolute difference of the errors of neighbouring pixels, down and across."""
    return (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2


def psnr(squared: Tensor) -> Tensor:
    """dB of a mean squared error of pictures in [-1, 1]."""
    return 10 * torch.log10(4 / squared.detach().clamp(min=1e-10))
