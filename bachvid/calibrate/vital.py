"""Vital layers: what becomes of a video when one block is left out (Section 3.4, Eq. 9 and 15)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bachvid.evaluate.studio import Studio
from bachvid.method.denoiser import Denoiser, Prompt
from bachvid.models.grid import Grid
from bachvid.models.parts import Model
from bachvid.sampling.loop import denoise


class Without:
    """A model with some of its blocks left out, of the same weights; those that stay keep their sites."""

    def __init__(self, model: Model, layers: Sequence[int]) -> None:
        self.model = model
        self.sites = tuple(site for site in model.sites if site.layer not in layers)
        self.blocks = nn.ModuleList(b for n, b in enumerate(model.blocks, start=1) if n not in layers)

    def begin(self, latents: Tensor, t: Tensor, text: Tensor) -> Any:
        return self.model.begin(latents, t, text)

    def finish(self, stream: Any) -> Tensor:
        return self.model.finish(stream)

    def grid(self, latents: Tensor) -> Grid:
        return self.model.grid(latents)


def without(denoiser: Denoiser, *layers: int) -> Denoiser:
    """The same denoiser with these layers left out, in both branches of guidance."""
    return replace(denoiser, model=Without(denoiser.model, layers), _openings={})


def made_without(studio: Studio, prompt: Prompt, seed: int, *layers: int) -> Tensor:
    """The final latents of the vanilla video with these layers left out; NaN if it cannot do without them."""
    denoiser = without(studio.denoiser(), *layers)
    take = denoiser.start(prompt, seed)
    try:
        for _ in denoise(denoiser.vanilla, [take], denoiser.sampler):
            pass
    except FloatingPointError:
        return torch.full_like(take.latents, torch.nan)
    return take.latents


def change(ours: Sequence[Tensor], vanilla: Sequence[Tensor]) -> list[float]:
    """How far each video is from its vanilla twin: the norm of the difference, over that of the twin."""
    pairs = zip(ours, vanilla, strict=True)
    return [((a - b).float().norm() / b.float().norm()).item() for a, b in pairs]
