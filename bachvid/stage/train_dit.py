"""Training of the stage world's denoiser on encoded clips and single frames with captions.

Errors weigh as much as they show: by the decoder's answer to them, and more in the puppet.
Pictures teach text, layout and shapes at a fraction of a clip's cost, so they come first and stay to the end.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from bachvid.models.checkpoint import open_checkpoint
from bachvid.models.cogvideox import CogVideoXConfig
from bachvid.models.text import TextEncoder
from bachvid.models.wan import WanConfig
from bachvid.stage.arithmetic import EXACT, Arithmetic
from bachvid.stage.captions import caption
from bachvid.stage.family import AnyVAE, Family, family_of
from bachvid.stage.inherit import inherit
from bachvid.stage.muon import Muon
from bachvid.stage.render import Render, clip_phases, render
from bachvid.stage.sight import sight
from bachvid.stage.training import PACE, Facts, Pace, Team
from bachvid.stage.watch import attention_finds_puppet, caption_spans, sides_told
from bachvid.stage.world import Clip, sample_clip, walking
from bachvid.story import find_model

_DRAWS = 32  # of clips among which a verb is looked for: it is one of eight
_AHEAD = 16  # batches whose fresh entries are encoded at once


@dataclass(frozen=True)
class Diet:
    """One kind of material, as one process gets it."""

    frames: int  # of an entry: 1 for images
    batch: int
    first: int  # entries encoded before the first batch
    fresh: int  # entries more for every later one; none is ever dropped


@dataclass(frozen=True)
class DiTRecipe:
    """What the denoiser is and how it learns."""

    config: CogVideoXConfig | WanConfig
    height: int  # pixels
    width: int
    images: Diet
    clips: Diet
    rate: float = 2e-3
    images_only: float = 0.65  # share of the budget before the first batch of clips
    image_share: float = 0.5  # of the batches after that
    least_seen: float = 0.1  # of the average: what an error weighs at least that one hardly sees
    focus: float = 4.0  # how much more an error in the puppet weighs
    settled: float = 0.85  # share of the noise below which it does: above, nobody knows yet where it will be
    led: float = 0.5  # share of the clips of which one frame is shown clearer, for the others to follow
    slow_verbs: Mapping[str, float] = field(default_factory=dict)  # what share is drawn for each, beside all
    lean: float = 0.6  # below 1, noisier lessons are the more frequent ones: there forms arise
    begins_as: str | None = None  # the model under weights/ whose blocks it takes over
    caption_dropout: float = 0.1
    pace: Pace = PACE


@dataclass(frozen=True)
class Frozen:
    """The trained parts that a denoiser learns upon."""

    vae: AnyVAE
    text: TextEncoder


class Pool:
    """Encoded clips on disk, float16, with their puppet's mask as one more channel.

    Entry i is made once, from seed i, and may be drawn many times.
    """

    def __init__(self, file: Path, recipe: DiTRecipe, diet: Diet, frozen: Frozen, seed: str) -> None:
        self.recipe, self.frames, self.vae, self.seed = recipe, diet.frames, frozen.vae, seed
        self.channels = family_of(recipe.config).channels
        self.device = next(frozen.vae.parameters()).device
        shape = (1_000_000, *self._encode(range(1)).shape[1:])  # sparse: only what is written takes room
        self._stored = np.memmap(file, np.float16, "r+" if file.exists() else "w+", shape=shape)
        self._ready = 0

    def grow(self, size: int, batch: int) -> None:
        """Make what is missing of the first `size` entries, `batch` at a time; kept between runs."""
        while self._ready < size and self._stored[self._ready].any():  # not a hole in the file
            self._ready += 1
        while self._ready < size:
            some = range(self._ready, self._ready + batch)
            self._stored[some.start : some.stop] = self._encode(some).cpu().half().numpy()
            self._ready = some.stop

    def clip(self, entry: int) -> Clip:
        """The clip that an entry shows."""
        return clip_of(f"{self.seed} {entry}")

    def draw(self, entries: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents (B, ...) and, with one channel, masks of 0 and 1 that fit, float32, where the VAE is."""
        stored = torch.from_numpy(self._stored[list(entries)])
        if self.device.type == "cuda":
            stored = stored.pin_memory()  # what is copied from there does not wait for the GPU
        stored = stored.to(self.device, non_blocking=True).float()
        latents, mask = stored.tensor_split([-1], dim=self.channels)
        return latents, mask

    @torch.no_grad()
    def _encode(self, entries: Sequence[int]) -> Tensor:
        phases = clip_phases(len(entries), self.recipe.clips.frames)
        if self.frames == 1:  # a random one of the clip's
            chances = (random.Random(f"{self.seed} {entry} moment") for entry in entries)
            frames = [chance.randrange(self.recipe.clips.frames) for chance in chances]
            phases = phases.gather(1, torch.tensor(frames)[:, None])
        clips = [self.clip(entry) for entry in entries]
        shown = render(clips, phases, self.recipe.height, self.recipe.width, self.device)
        latents = self.vae.to_latents(shown.video).movedim(self.channels, 1)  # B C T h w
        mask = F.adaptive_max_pool3d(shown.mask[:, None].to(latents), latents.shape[2:])  # B 1 T h w
        return torch.cat((latents, mask), dim=1).movedim(1, self.channels)


class DiTTask:
    """The loop's view of the denoiser."""

    name = "dit"

    def __init__(
        self,
        recipe: DiTRecipe,
        frozen: Frozen,
        pools: Path,
        seed: int,
        team: Team,
        device: torch.device,
        arithmetic: Arithmetic = EXACT,
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.frozen, self.seed, self.team, self.device = recipe, frozen, seed, team, device
        self.family: Family = family_of(recipe.config)
        self.model = self.family.dit(recipe.config)
        if recipe.begins_as is not None:
            inherit(self.model, open_checkpoint(find_model(recipe.begins_as)).transformer())
        self.model.to(device)
        self.predict, self.compiled = arithmetic.forward(self.model, device), arithmetic.compiled
        self.optimizers = split_optimizers(self.model, recipe.rate, arithmetic.dtype)
        pools = pools / fingerprint(frozen.vae.encoder)
        pools.mkdir(parents=True, exist_ok=True)
        self.diets = {"images": recipe.images, "clips": recipe.clips}
        self.counts = dict.fromkeys(self.diets, 0)  # batches drawn so far
        self.pools = {
            kind: Pool(pools / f"{kind}-{team.rank}.f16", recipe, diet, frozen, f"{seed} {kind} {team.rank}")
            for kind, diet in self.diets.items()
        }
        self.empty = frozen.text.encode("")  # 1 L C
        clips = [sample_clip(random.Random(f"sight {n}")) for n in range(8)]
        pictures = render(clips, torch.linspace(0, 1, 8)[:, None], recipe.height, recipe.width, device=device)
        self.sight = sight(frozen.vae, pictures.video, self.family.channels, recipe.least_seen)  # C C

    def begin(self, averaged: nn.Module) -> None:
        """Encode what the first batches draw from and, where that is asked for, compile for both kinds."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        for kind, diet in self.diets.items():
            self._grow(kind)
            if self.compiled:
                drawn, text = self.pools[kind].draw([0] * diet.batch), self.empty.repeat(diet.batch, 1, 1)
                self._errors(kind, *drawn, text, generator)[0].backward()
        self.model.zero_grad(set_to_none=True)

    def loss(self, step: int, progress: float) -> tuple[Tensor, Facts]:
        seed = self.team.seed(self.seed, step)
        rng, generator = random.Random(seed), torch.Generator(self.device).manual_seed(seed)
        kind = self._kind(step, progress)
        return self._errors(kind, *self._batch(kind, rng), generator)

    def _errors(
        self, kind: str, latents: Tensor, mask: Tensor, text: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Facts]:
        """The loss of a batch at random levels of noise, and the plain mean of its squared errors."""
        share = levels(len(latents), self.recipe.lean, generator)
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        noisy, t, answer = self.family.lesson(latents, noise, share)
        clearer = share * torch.rand(share.shape, generator=generator, device=self.device).square()
        clear = self.family.lesson(latents, noise, clearer).noisy
        channels, frames = self.family.channels, self.diets[kind].frames
        leads = leaders(len(latents), frames, self.recipe.led, generator)  # B F
        leads = leads.view(-1, 1, frames, 1, 1).movedim(1, channels)
        error = (self.predict(torch.where(leads, clear, noisy), t, text) - answer).masked_fill(leads, 0)
        seen = (error.movedim(channels, -1) @ self.sight.mT).movedim(-1, channels)
        settled = (share < self.recipe.settled).to(mask).view(-1, *[1] * (mask.ndim - 1))
        weight = 1 + (self.recipe.focus - 1) * settled * mask
        return (seen.square() * weight).mean(), {kind: error.detach().square().mean()}

    def inspect(self, model: Any) -> dict[str, Any]:
        """Loss on held-out clips in four ranges of noise, and how well the model follows its words."""
        rng, generator = random.Random(0), torch.Generator().manual_seed(0)
        clips = [sample_clip(rng, held_out=True) for _ in range(8)]
        pictures, latents = self._rendered(clips)
        captions = [caption(clip) for clip in clips]
        text = self.frozen.text.encode(*(each.prompt() for each in captions))
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        found: dict[str, Any] = {}
        for start in range(0, 1000, 250):
            share = (start + torch.arange(0, 250, 250 / len(clips), device=self.device)) / 1000
            noisy, t, answer = self.family.lesson(latents, noise, share)
            found[f"loss_{start}"] = round(F.mse_loss(model(noisy, t, text), answer).item(), 4)
        shown = self.family.lesson(latents, noise, torch.full((len(clips),), 0.7, device=self.device))
        spans = [caption_spans(each, self.frozen.text.tokenizer) for each in captions]
        sites = [site for site in model.sites if site.kind == self.family.reads_text]
        attention = attention_finds_puppet(model, sites, shown, text, spans, pictures.mask.float())
        return {**found, **attention, "sides": self._sides(model, clips)}

    def _sides(self, model: Any, clips: Sequence[Clip]) -> float:
        """How often walks are told from their mirror images where noise leaves little but their words."""
        sides = ("left", "right") * (len(clips) // 2)
        walks, mirrored = (
            [walking(clip, side) for clip, side in zip(clips, where, strict=True)]
            for where in (sides, sides[::-1])
        )
        _, latents = self._rendered(walks)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).to(self.device)
        shown = self.family.lesson(latents, noise, torch.full((len(walks),), 0.95, device=self.device))
        told, untold = (
            self.frozen.text.encode(*(caption(clip).prompt() for clip in each)) for each in (walks, mirrored)
        )
        return sides_told(model, shown, told, untold)

    def _rendered(self, clips: Sequence[Clip]) -> tuple[Render, Tensor]:
        """Whole clips of a lesson's size, and their latents."""
        phases = clip_phases(len(clips), self.recipe.clips.frames)
        pictures = render(clips, phases, self.recipe.height, self.recipe.width, self.device)
        return pictures, self.frozen.vae.to_latents(pictures.video)

    def _kind(self, step: int, progress: float) -> str:
        lot = random.Random(f"{self.seed} {step} kind").random()  # not by process: they wait for each other
        return "images" if progress < self.recipe.images_only or lot < self.recipe.image_share else "clips"

    def _batch(self, kind: str, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
        pool, size = self.pools[kind], self._grow(kind)
        self.counts[kind] += 1
        entries = [self._entry(pool, size, rng) for _ in range(self.diets[kind].batch)]
        captions = [caption(pool.clip(entry), rng) for entry in entries]
        prompts = [each.prompt(character_first=rng.random() < 0.5) for each in captions]
        dropped = torch.tensor([rng.random() < self.recipe.caption_dropout for _ in prompts])
        latents, mask = pool.draw(entries)
        text = self.frozen.text.encode(*prompts)  # B L C
        return latents, mask, torch.where(dropped.to(self.device).view(-1, 1, 1), self.empty, text)

    def _grow(self, kind: str) -> int:
        """How many entries the next batch may draw from; they are there."""
        diet = self.diets[kind]
        size = diet.first + self.counts[kind] * diet.fresh
        self.pools[kind].grow(size, batch=_AHEAD * diet.fresh)
        return size

    def _entry(self, pool: Pool, size: int, rng: random.Random) -> int:
        """One of the first `size` entries, of a slow verb when the lot says so and a few draws find it."""
        slow = self.recipe.slow_verbs
        (verb,) = rng.choices([*slow, None], [*slow.values(), 1 - sum(slow.values())])
        if verb is None:
            return rng.randrange(size)
        draws = [rng.randrange(size) for _ in range(_DRAWS)]
        return next((entry for entry in draws if pool.clip(entry).verb == verb), draws[-1])


@cache
def clip_of(seed: str) -> Clip:
    """The clip of a seed, which is often asked for."""
    return sample_clip(random.Random(seed))


def levels(count: int, lean: float, generator: torch.Generator) -> Tensor:
    """How noisy each of a batch is, in [0, 1): evenly spread numbers to the power of `lean`."""
    where = generator.device
    start = torch.rand(1, generator=generator, device=where)
    evenly = (start + torch.arange(count, device=where) / count) % 1
    return evenly**lean


def leaders(clips: int, frames: int, share: float, generator: torch.Generator) -> Tensor:
    """The frame (B, F) that leads each clip, bool; only a `share` of the clips has one, and no picture.

    Frames that are all as noisy tell each other little, so a model is slow to learn to look there.
    """
    where = generator.device
    led = (torch.rand(clips, generator=generator, device=where) < share) & (frames > 1)
    first = torch.randint(frames, (clips,), generator=generator, device=where)
    return F.one_hot(first, frames).bool() & led[:, None]


def fingerprint(model: nn.Module) -> str:
    """A short name of these very weights."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def split_optimizers(model: nn.Module, rate: float, dtype: torch.dtype) -> Sequence[Optimizer]:
    """Muon for the blocks' attention and feed-forward matrices, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = name.startswith("blocks.") and parameter.ndim == 2 and "modulation" not in name
        (matrices if inner else others).append(parameter)
    return Muon(matrices, rate, dtype=dtype), AdamW(others, rate, betas=(0.9, 0.99), weight_decay=0.0)
