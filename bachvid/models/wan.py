"""The Wan2.1 denoiser: in every layer the video attends to itself, then to the text.

Agrees with diffusers' `WanTransformer3DModel`, bit for bit in float32 on CPU, and has the parameter names of
the original release. Latents are (B, C, T, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bachvid.models.attention import NOWHERE, Attend, Site, attend, reject_unknown
from bachvid.models.grid import Grid
from bachvid.models.layers import timestep_features
from bachvid.models.rope import rotary_table

EPS = 1e-6


@dataclass(frozen=True)
class WanConfig:
    """Every number that tells one Wan from another."""

    layers: int
    heads: int
    head_width: int
    inner: int  # channels inside a feed-forward
    channels: int
    patch: tuple[int, int, int]  # frames, rows, columns of latents in one token
    text_width: int
    time_features: int
    text_norm: bool  # whether the video is normalised before it attends to the text
    longest: int  # positions along an axis

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WanConfig:
        """The numbers in diffusers' `transformer/config.json`; an absent one is the 14B's, as there.

        ValueError names what is not supported.
        """
        values = {**CHECKPOINTS["wan2.1-t2v-14b"].to_dict(), "out_channels": None, **values}
        for key, known in FIXED.items():
            if values[key] != known:
                raise ValueError(
                    f"{key}={values[key]!r} is not supported; a text-to-video Wan has {key}={known!r}"
                )
        if values["out_channels"] not in (None, values["in_channels"]):
            raise ValueError(
                "in_channels and out_channels differ; only text-to-video checkpoints are supported"
            )
        numbers: dict[str, Any] = {ours: values[theirs] for ours, theirs in FIELDS.items()}
        return cls(**{**numbers, "patch": tuple(numbers["patch"])})

    def to_dict(self) -> dict[str, Any]:
        """These numbers as diffusers' `transformer/config.json` holds them."""
        named = {theirs: getattr(self, ours) for ours, theirs in FIELDS.items()}
        return {"_class_name": "WanTransformer3DModel", **named, "out_channels": self.channels, **FIXED}


FIELDS = {
    "layers": "num_layers",
    "heads": "num_attention_heads",
    "head_width": "attention_head_dim",
    "inner": "ffn_dim",
    "channels": "in_channels",
    "patch": "patch_size",
    "text_width": "text_dim",
    "time_features": "freq_dim",
    "text_norm": "cross_attn_norm",
    "longest": "rope_max_seq_len",
}
FIXED = {
    "added_kv_proj_dim": None,
    "eps": EPS,
    "image_dim": None,
    "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads",
}

_1_3B = WanConfig(
    layers=30, heads=12, head_width=128, inner=8960, channels=16, patch=(1, 2, 2), text_width=4096,
    time_features=256, text_norm=True, longest=1024,
)  # fmt: skip
CHECKPOINTS: Mapping[str, WanConfig] = {
    "wan2.1-t2v-1.3b": _1_3B,
    "wan2.1-t2v-14b": replace(_1_3B, layers=40, heads=40, inner=13824),
}


@dataclass(frozen=True)
class Islands:
    """What stays in float32 when a model is loaded in bfloat16 or float16."""

    parts: tuple[str, ...]  # of the names of parameters
    residual: bool  # also the sum that runs from block to block


ISLANDS: Mapping[str, Islands] = {
    "diffusers": Islands(("time_embedding", "modulation", "norm3"), residual=False),
    "original": Islands(("time_embedding", "time_projection", "modulation", "norm3", "head"), residual=True),
}


@dataclass(frozen=True)
class Stream:
    """One row on its way through the blocks; where timesteps differ from token to token, M is N, else 1."""

    video: Tensor  # B N C
    text: Tensor  # B L C
    time: Tensor  # B M C
    modulation: Tensor  # B M 6 C
    freqs: Tensor  # N D/2 2
    grid: Grid


class Wan(nn.Module):
    """Predicts the velocity from noisy latents, a timestep and encoded text.

    `sites` lists where a method may stand.
    """

    def __init__(self, config: WanConfig, islands: Islands = ISLANDS["diffusers"]) -> None:
        super().__init__()
        self.config, self.islands = config, islands
        layers = range(1, config.layers + 1)
        self.sites = tuple(Site(kind, layer) for layer in layers for kind in ("self", "cross"))
        width = config.width
        self.patch_embedding = nn.Conv3d(config.channels, width, config.patch, stride=config.patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_width, width), nn.GELU("tanh"), nn.Linear(width, width)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.time_features, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in layers)
        self.head = Head(config)

    def forward(
        self, latents: Tensor, t: Tensor, text: Tensor, attend_at: Mapping[Site, Attend] = NOWHERE
    ) -> Tensor:
        """Velocity, shaped as latents (B, C, T, H, W), for timesteps t (B,) and text (B, L, text_width).

        Timesteps may also differ from token to token, t (B, N). Frames, rows and columns that do not fill a
        patch are dropped; more positions than the model has, and an unknown site, raise ValueError.
        """
        reject_unknown(attend_at, self.sites)
        stream = self.begin(latents, t, text)
        for block in self.blocks:
            stream = block(stream, attend_at)
        return self.finish(stream)

    def begin(self, latents: Tensor, t: Tensor, text: Tensor) -> Stream:
        """The stream before the first block; latents, float32 in every run, take the text's dtype."""
        grid = self.grid(latents)
        video = self.patch_embedding(latents.to(text.dtype)).flatten(2).transpose(1, 2)  # B N C
        if self.islands.residual:
            video = video.float()
        time = self._time(t)  # B M C
        modulation = self.time_projection(time).unflatten(-1, (6, -1))  # B M 6 C
        return Stream(video, self.text_embedding(text), time, modulation, self.freqs(grid, t.device), grid)

    def finish(self, stream: Stream) -> Tensor:
        """The velocity, from the stream after the last block."""
        x = self.head(stream.video, stream.time)  # B N pixels
        x = x.unflatten(1, stream.grid).unflatten(-1, (*self.config.patch, -1))  # B t h w pt p p C
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # B C t pt h p w p
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)  # B C T H W

    def grid(self, latents: Tensor) -> Grid:
        """The box of tokens that these latents (B, C, T, H, W) become."""
        return Grid(
            *(size // patch for size, patch in zip(latents.shape[2:], self.config.patch, strict=True))
        )

    def freqs(self, grid: Grid, device: torch.device) -> Tensor:
        """Rotary table (N, D/2, 2): plain indices, with angles in float64."""
        if max(grid) > self.config.longest:
            raise ValueError(
                f"a video of {tuple(grid)} tokens is longer than the {self.config.longest} positions this "
                "checkpoint has along an axis; use fewer frames or a smaller size"
            )
        third = 2 * (self.config.head_width // 6)
        positions = [torch.arange(n, dtype=torch.float64) for n in grid]
        widths = (self.config.head_width - 2 * third, third, third)
        return rotary_table(positions, widths, device=device)

    def _time(self, t: Tensor) -> Tensor:
        """Embedded timesteps (B, M, C): each stage in the dtype of its weights."""
        wide, last = (next(part.parameters()).dtype for part in (self.time_embedding, self.time_projection))
        features = timestep_features(t.flatten(), self.config.time_features).to(wide)
        return self.time_embedding(features).unflatten(0, (len(t), -1)).to(last)


class Block(nn.Module):
    """The video attends to itself, then to the text, then a feed-forward; the timestep modulates 1 and 3."""

    def __init__(self, config: WanConfig, layer: int) -> None:
        super().__init__()
        width = config.width
        self.self_site, self.cross_site = Site("self", layer), Site("cross", layer)
        self.modulation = nn.Parameter(torch.randn(1, 6, width) / width**0.5)
        self.self_attn = Attention(width, config.heads)
        self.norm3 = Float32LayerNorm(width, eps=EPS) if config.text_norm else nn.Identity()
        self.cross_attn = Attention(width, config.heads)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.inner), nn.GELU("tanh"), nn.Linear(config.inner, width)
        )

    def forward(self, stream: Stream, attend_at: Mapping[Site, Attend] = NOWHERE) -> Stream:
        x, text = stream.video, stream.text  # B N C, B L C
        numbers = (self.modulation + stream.modulation.float()).unbind(-2)  # B M C each
        shift, scale, gate, inner_shift, inner_scale, inner_gate = numbers

        y = modulated(x, shift, scale).to(text.dtype)
        y = self.self_attn(y, y, stream.freqs, attend_at.get(self.self_site, attend))
        x = (x.float() + y * gate).to(x.dtype)

        y = self.norm3(x.float()).to(text.dtype)
        x = x + self.cross_attn(y, text, None, attend_at.get(self.cross_site, attend))

        y = modulated(x, inner_shift, inner_scale).to(text.dtype)
        x = (x.float() + self.ffn(y).float() * inner_gate).to(x.dtype)
        return replace(stream, video=x)


class Attention(nn.Module):
    """Project to heads, attend, merge the heads; what attends is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width, eps=EPS)  # over all heads at once
        self.norm_k = nn.RMSNorm(width, eps=EPS)

    def forward(self, x: Tensor, seen: Tensor, freqs: Tensor | None, attend: Attend) -> Tensor:
        q, k, v = self.project(x, seen)  # B H N D, B H L D
        return self.merge(attend(q, k, v, freqs))

    def project(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.norm_q(self.q(x)), self.norm_k(self.k(seen)), self.v(seen)  # B L C each
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return q, k, v

    def merge(self, x: Tensor) -> Tensor:
        return self.o(x.transpose(1, 2).flatten(2))  # B N C


class Head(nn.Module):
    """The last norm, shifted and scaled by the timestep, and the way back to the channels of a patch."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        frames, rows, columns = config.patch
        self.modulation = nn.Parameter(torch.randn(1, 2, config.width) / config.width**0.5)
        self.head = nn.Linear(config.width, frames * rows * columns * config.channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = (self.modulation + time[..., None, :]).unbind(-2)  # B M C each
        return self.head(modulated(x, shift, scale).to(self.head.weight.dtype))


class Float32LayerNorm(nn.LayerNorm):
    """A layer norm that computes in float32, and returns it, whatever the weights are held in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens x (B, N, C) normalised, scaled and shifted, in float32 whatever their dtype."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS) * (1 + scale) + shift
