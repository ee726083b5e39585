"""Training of the stage world's video autoencoder: pictures in, the same pictures out, through few numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from bachvid.models.cogvideox_vae import CogVideoXVAE, CogVideoXVAEConfig
from bachvid.stage.render import clip_phases, render
from bachvid.stage.training import Muon, Pace, Team
from bachvid.stage.world import Clip, sample_clip


@dataclass(frozen=True)
class VAERecipe:
    """What the autoencoder is and how it learns; lengths are in pixels, batches those of one process."""

    config: CogVideoXVAEConfig
    height: int
    width: int
    frames: int
    crop: int  # side of the squares that most of the training sees
    clips: int  # in a batch; the numbers of pixels in all kinds of batches are about equal
    rate: float = 2e-3
    whole_from: float = 0.75  # share of the budget after which whole frames are shown: norm statistics depend on the crop
    image_share: float = 0.15  # of the batches: single frames, which a denoiser trains on too
    mse: float = 2.0  # weights beside the mean absolute error
    edges: float = 0.5
    kl: float = 1e-4
    pace: Pace = Pace()


class VAETask:
    """The loop's view of the autoencoder."""

    name = "vae"

    def __init__(self, recipe: VAERecipe, seed: int, team: Team, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.recipe, self.seed, self.team, self.device = recipe, seed, team, device
        self.model = CogVideoXVAE(recipe.config).to(device)
        self.pace = recipe.pace
        kernels = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim == 1]
        self.optimizers: Sequence[Optimizer] = (
            Muon(kernels, recipe.rate),
            AdamW(others, recipe.rate, weight_decay=0.0),
        )

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        seed = self.team.seed(self.seed, step)
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        video = self._batch(rng, progress)  # B 3 F H W
        mean, logvar = self.model.encode(video)
        noise = torch.randn(mean.shape, generator=generator).to(self.device)
        out = self.model.decode(mean + (0.5 * logvar).exp() * noise)
        absolute, squared, edges = (out - video).abs().mean(), F.mse_loss(out, video), edge_loss(out, video)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = absolute + self.recipe.mse * squared + self.recipe.edges * edges + self.recipe.kl * kl
        facts = {"psnr": psnr(squared), "kl": kl.item(), "frames": video.shape[2], "width": video.shape[4]}
        return loss, facts

    def inspect(self, model: nn.Module, clips: int = 16) -> dict[str, Any]:
        """PSNR in dB on held-out clips and on single frames of them, and the spread of the latents."""
        assert isinstance(model, CogVideoXVAE)
        rng = random.Random(0)
        sample = [sample_clip(rng, held_out=True) for _ in range(clips)]
        errors: dict[str, list[Tensor]] = {"psnr": [], "psnr_image": []}
        means = []
        for pair in (sample[i : i + 2] for i in range(0, clips, 2)):
            video = stage_video(pair, self.recipe, self.recipe.frames, self.device)
            for name, pictures in (("psnr", video), ("psnr_image", video[:, :, :1])):
                mean, _ = model.encode(pictures)
                out = model.decode(mean).clamp(-1, 1)
                errors[name] += list((out - pictures).square().flatten(1).mean(1))
            means.append(model.encode(video)[0])
        found = {name: round(sum(map(psnr, each)) / clips, 2) for name, each in errors.items()}
        return {**found, "latent_std": round(torch.cat(means).std().item(), 4)}

    def _batch(self, rng: random.Random, progress: float) -> Tensor:
        recipe = self.recipe
        frames = 1 if rng.random() < recipe.image_share else recipe.frames
        size = (recipe.height, recipe.width) if progress > recipe.whole_from else (recipe.crop, recipe.crop)
        pixels = recipe.clips * recipe.frames * recipe.crop**2
        count = max(2, round(pixels / (frames * size[0] * size[1])))
        video = stage_video([sample_clip(rng) for _ in range(count)], recipe, frames, self.device, rng)
        top, left = rng.randint(0, recipe.height - size[0]), rng.randint(0, recipe.width - size[1])
        return video[..., top : top + size[0], left : left + size[1]].contiguous()


def stage_video(
    clips: list[Clip], recipe: VAERecipe, frames: int, device: torch.device, rng: random.Random | None = None
) -> Tensor:
    """The clips' pictures (B, 3, F, H, W); a single frame is a random moment of its clip where `rng` is given."""
    phases = clip_phases(len(clips), frames)
    if frames == 1 and rng is not None:
        phases = torch.tensor([[rng.random()] for _ in clips])
    return render(clips, phases, recipe.height, recipe.width, device=device).video


def edge_loss(out: Tensor, video: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels, down and across."""
    error = out - video
    return (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2


def psnr(squared: Tensor) -> float:
    """dB of a mean squared error of pictures in [-1, 1]."""
    return (10 * torch.log10(4 / squared.detach().clamp(min=1e-10))).item()


def with_scale(recipe: VAERecipe, latent_std: float) -> CogVideoXVAEConfig:
    """The autoencoder's config with a scaling factor that brings its latents to a spread of 1."""
    return replace(recipe.config, scaling_factor=round(1 / latent_std, 5))
