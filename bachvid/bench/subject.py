"""What is measured: a published model at its true size, or one from a folder, with random weights and text.

A step takes as long with random numbers as with learnt ones, and the published models need not be there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bachvid.errors import UsageError
from bachvid.method.denoiser import Denoiser, Prompt
from bachvid.method.mask import Spans
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted
from bachvid.models import sat, wan_original
from bachvid.models.checkpoint import Checkpoint, open_checkpoint
from bachvid.models.cogvideox_checkpoint import CogVideoXCheckpoint
from bachvid.models.cogvideox_vae import CogVideoXVAEConfig
from bachvid.models.grid import Grid
from bachvid.models.wan import Wan
from bachvid.models.wan_checkpoint import WanCheckpoint
from bachvid.models.wan_vae import WanVAEConfig
from bachvid.models.weights import kept_dtype
from bachvid.sampling.sampler import read_sampler
from bachvid.settings import check_format
from bachvid.story import find_model

NOWHERE = Path("published", "nowhere")  # where the files would be of a model that is known by its numbers
SPREAD = 0.02  # of random weights: what passes through forty layers of them stays finite


def known_model(name: str) -> Checkpoint:
    """The published model of this name, without files; otherwise the checkpoint of this name or folder."""
    nowhere = (NOWHERE, NOWHERE, NOWHERE)
    if name in (known := CogVideoXCheckpoint.published):
        numbers = known[name], CogVideoXVAEConfig.from_dict({}), sat.scheduler_config(known[name])
        return CogVideoXCheckpoint("original", *numbers, *nowhere)
    if name in (others := WanCheckpoint.published):
        scheduler = dict(wan_original.SCHEDULER)
        del scheduler["sigma_rule"]  # diffusers has its own, and makes the same video then
        return WanCheckpoint("original", others[name], WanVAEConfig.from_dict({}), scheduler, *nowhere)
    return open_checkpoint(find_model(name))


def shortened(checkpoint: Checkpoint, recipe: Recipe, layers: int) -> tuple[Checkpoint, Recipe]:
    """The same model with only so many layers, for small machines; UsageError if it has fewer."""
    whole = checkpoint.config.layers
    if not 1 <= layers <= whole:
        raise UsageError(f"--layers {layers} does not fit: {checkpoint.name} has {whole}. Use 1 to {whole}.")
    config = replace(checkpoint.config, layers=layers)
    return replace(checkpoint, config=config), recipe.scaled_to(layers, whole)


@dataclass(frozen=True, eq=False)
class Subject:
    """A denoiser for a run of few steps, and the two videos that it makes."""

    checkpoint: Checkpoint
    size: tuple[int, int]  # width, height in pixels
    frames: int
    denoiser: Denoiser
    recipe: Recipe  # for a run of the usual length
    prompts: tuple[Prompt, Prompt]  # the identity's and the frame video's

    @classmethod
    def build(
        cls,
        checkpoint: Checkpoint,
        recipe: Recipe,
        size: tuple[int, int] | None,
        frames: int | None,
        steps: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Subject:
        """The model with random weights, for videos of its own size unless others are given.

        UsageError for videos that it cannot make.
        """
        own, config = checkpoint.format, checkpoint.config
        size, frames = own.size if size is None else size, own.frames if frames is None else frames
        check_format(size, frames, own)
        chance = torch.Generator(device).manual_seed(0)

        def text() -> Tensor:
            shape = (1, checkpoint.text_length, config.text_width)
            return torch.randn(shape, generator=chance, device=device).to(dtype)

        spans = Spans(*torch.arange(checkpoint.text_length // 2, device=device).chunk(2))
        denoiser = Denoiser(
            model=filled(checkpoint.outline(), dtype, device, chance),
            sampler=read_sampler(checkpoint.scheduler, steps),
            negative=text(),
            shape=checkpoint.latent_shape(size, frames),
            scale=recipe.guidance,
            wide=checkpoint.wide,
        )
        prompts = Prompt(text(), spans), Prompt(text(), spans)
        return cls(checkpoint, size, frames, denoiser, recipe, prompts)

    @property
    def timed_recipe(self) -> Recipe:
        """The recipe for the denoiser's few steps, all of which borrow."""
        always = replace(self.recipe, inject_steps=None, bg_inject_steps=None)
        return always.at(self.denoiser.sampler.schedule.timesteps)

    @property
    def grid(self) -> Grid:
        """The tokens of a video."""
        return self.denoiser.model.grid(torch.empty(self.denoiser.shape, device="meta"))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.denoiser.negative.device

    def scouted(self, n: int, share: float) -> Scouted:
        """Video n as if a pre-run had seen it: an ellipse of `share` of every frame, and random features."""
        take = self.denoiser.start(self.prompts[n], seed=n)
        mask, chance = ellipse(self.grid, share).to(self.device), torch.Generator(self.device).manual_seed(n)
        shape, dtype = (self.grid.tokens, self.checkpoint.config.width), self.denoiser.negative.dtype
        features = [
            torch.empty(shape, dtype=dtype, device=self.device).normal_(generator=chance)
            for _ in self.recipe.match_layers
        ]
        return Scouted(take, 0, [take.latents], mask, True, features)


def filled(model: Any, dtype: torch.dtype, device: torch.device, chance: torch.Generator) -> Any:
    """A model on meta with random weights on `device`; what its family keeps in float32 stays so."""
    wide = model.islands.parts if isinstance(model, Wan) else ()
    weights = {}
    for name, parameter in model.named_parameters():
        weight = torch.empty(parameter.shape, dtype=kept_dtype(name, dtype, wide), device=device)
        if parameter.ndim > 1:
            weights[name] = weight.normal_(std=SPREAD, generator=chance)
        else:
            weights[name] = weight.fill_("norm" in name and name.endswith("weight"))
    model.load_state_dict(weights, assign=True)
    assert isinstance(model, nn.Module)
    return model.eval().requires_grad_(False)


def ellipse(grid: Grid, share: float) -> Tensor:
    """A mask (N,) bool that is in every frame the same ellipse, `share` of its tokens."""
    down = torch.linspace(-1, 1, grid.height)[:, None].square()
    across = torch.linspace(-1, 1, grid.width)[None].square()
    far = (down + across).flatten()
    inside = far <= far.sort().values[max(1, math.floor(share * len(far))) - 1]
    return inside.repeat(grid.frames)
