"""The CogVideoX denoiser: text and video attend jointly, in one sequence, in every layer.

Agrees with diffusers' `CogVideoXTransformer3DModel`, bit for bit in float32 on CPU. Latents are (B, T, C,
H, W).
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
from bachvid.models.layers import FeedForward, timestep_features
from bachvid.models.rope import resized_positions, rotary_table, sincos_table


@dataclass(frozen=True)
class CogVideoXConfig:
    """Every number that tells one CogVideoX from another; samples are in latent pixels and video frames."""

    layers: int
    heads: int
    head_width: int
    channels: int
    patch: int
    patch_frames: int | None  # None: a patch is one frame deep (2B, 5B)
    text_width: int
    text_length: int
    time_width: int
    rotary: bool  # otherwise sin-cos positions are added to the tokens (2B)
    sample_height: int
    sample_width: int
    sample_frames: int
    temporal_compression: int
    spatial_scale: float
    temporal_scale: float

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CogVideoXConfig:
        """The numbers in diffusers' `transformer/config.json`; an absent one is the 2B's, as there.

        ValueError names what is not supported.
        """
        values = {**CHECKPOINTS["cogvideox-2b"].to_dict(), "out_channels": None, **values}
        for key, known in FIXED.items():
            if values[key] != known:
                raise ValueError(
                    f"{key}={values[key]!r} is not supported; a CogVideoX here has {key}={known!r}"
                )
        if values["out_channels"] not in (None, values["in_channels"]):
            raise ValueError(
                "in_channels and out_channels differ; only text-to-video checkpoints are supported"
            )
        numbers: dict[str, Any] = {ours: values[theirs] for ours, theirs in FIELDS.items()}
        return cls(**numbers)

    def to_dict(self) -> dict[str, Any]:
        """These numbers as diffusers' `transformer/config.json` holds them."""
        named = {theirs: getattr(self, ours) for ours, theirs in FIELDS.items()}
        return {"_class_name": "CogVideoXTransformer3DModel", **named, "out_channels": self.channels, **FIXED}


FIELDS = {
    "layers": "num_layers",
    "heads": "num_attention_heads",
    "head_width": "attention_head_dim",
    "channels": "in_channels",
    "patch": "patch_size",
    "patch_frames": "patch_size_t",
    "text_width": "text_embed_dim",
    "text_length": "max_text_seq_length",
    "time_width": "time_embed_dim",
    "rotary": "use_rotary_positional_embeddings",
    "sample_height": "sample_height",
    "sample_width": "sample_width",
    "sample_frames": "sample_frames",
    "temporal_compression": "temporal_compression_ratio",
    "spatial_scale": "spatial_interpolation_scale",
    "temporal_scale": "temporal_interpolation_scale",
}
FIXED = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_elementwise_affine": True,
    "norm_eps": 1e-5,
    "ofs_embed_dim": None,
    "timestep_activation_fn": "silu",
    "use_learned_positional_embeddings": False,
}


_2B = CogVideoXConfig(
    layers=30, heads=30, head_width=64, channels=16, patch=2, patch_frames=None, text_width=4096,
    text_length=226, time_width=512, rotary=False, sample_height=60, sample_width=90, sample_frames=49,
    temporal_compression=4, spatial_scale=1.875, temporal_scale=1.0,
)  # fmt: skip
_5B = replace(_2B, layers=42, heads=48, rotary=True)
CHECKPOINTS: Mapping[str, CogVideoXConfig] = {
    "cogvideox-2b": _2B,
    "cogvideox-5b": _5B,
    "cogvideox1.5-5b": replace(_5B, patch_frames=2, sample_height=300, sample_width=300, sample_frames=81),
}


@dataclass(frozen=True)
class Stream:
    """One row on its way through the blocks."""

    text: Tensor  # B L C
    video: Tensor  # B N C
    time: Tensor  # B time_width
    freqs: Tensor | None  # L+N D/2 2
    grid: Grid


class CogVideoX(nn.Module):
    """Predicts v from noisy latents, a timestep and encoded text; `sites` lists where a method may stand."""

    def __init__(self, config: CogVideoXConfig) -> None:
        super().__init__()
        self.config = config
        self.sites = tuple(Site("joint", layer) for layer in range(1, config.layers + 1))
        width, time_width, patch = config.width, config.time_width, config.patch
        pixels = config.channels * patch * patch * (config.patch_frames or 1)
        if config.patch_frames is None:
            self.patch_embed: nn.Module = nn.Conv2d(config.channels, width, patch, stride=patch)
        else:
            self.patch_embed = nn.Linear(pixels, width)
        self.text_embed = nn.Linear(config.text_width, width)
        self.time_embed = nn.Sequential(
            nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width)
        )
        self.blocks = nn.ModuleList(Block(config, site) for site in self.sites)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.head_norm = HeadNorm(width, time_width)
        self.head = nn.Linear(width, pixels)

    def forward(
        self, latents: Tensor, t: Tensor, text: Tensor, attend_at: Mapping[Site, Attend] = NOWHERE
    ) -> Tensor:
        """v prediction, shaped as latents (B, T, C, H, W), for timesteps t (B,) and text (B, L, text_width).

        Rows and columns that do not fill a patch are dropped; frames that do not, and an unknown site,
        raise ValueError.
        """
        reject_unknown(attend_at, self.sites)
        stream = self.begin(latents, t, text)
        for block in self.blocks:
            stream = block(stream, attend_at)
        return self.finish(stream)

    def begin(self, latents: Tensor, t: Tensor, text: Tensor) -> Stream:
        """The stream before the first block."""
        grid = self.grid(latents)
        time = self.time_embed(timestep_features(t, self.config.width).to(latents.dtype))
        text, video = self.text_embed(text), self._patches(latents, grid)  # B L C, B N C
        freqs = None
        if self.config.rotary:
            freqs = self.freqs(grid, text.shape[1], latents.device)  # L+N D/2 2
        else:
            places = self._added_positions(grid, text)  # L+N C
            text, video = text + places[: text.shape[1]], video + places[text.shape[1] :]
        return Stream(text, video, time, freqs, grid)

    def finish(self, stream: Stream) -> Tensor:
        """The v prediction, from the stream after the last block."""
        x = self.head_norm(self.norm(stream.video), stream.time)  # B N C
        return self._unpatch(self.head(x), stream.grid)

    def grid(self, latents: Tensor) -> Grid:
        """The box of tokens that these latents (B, T, C, H, W) become."""
        deep, p = self.config.patch_frames or 1, self.config.patch
        frames, height, width = latents.shape[1], latents.shape[3], latents.shape[4]
        if frames % deep:
            raise ValueError(
                f"{frames} latent frames do not fill patches of {deep}; use a multiple of {deep}"
            )
        return Grid(frames // deep, height // p, width // p)

    def freqs(self, grid: Grid, lead: int, device: torch.device) -> Tensor:
        """Rotary table (lead + N, D/2, 2): fitted to the trained grid (5B), or plain indices (1.5)."""
        config, size = self.config, (grid.height, grid.width)
        base = (config.sample_height // config.patch, config.sample_width // config.patch)
        if config.patch_frames is None:
            rows, columns = resized_positions(size, base)
        elif grid.height > base[0] or grid.width > base[1]:
            raise ValueError(
                f"{size} tokens are more than this checkpoint's positions {base}; use a smaller size"
            )
        else:
            rows, columns = (torch.arange(n, dtype=torch.float32) for n in size)
        frames = torch.arange(grid.frames, dtype=torch.float32)
        eighth = config.head_width // 8
        widths = (2 * eighth, 3 * eighth, 3 * eighth)
        return rotary_table((frames, rows, columns), widths, lead, device)

    def _added_positions(self, grid: Grid, text: Tensor) -> Tensor:
        config = self.config
        if text.shape[1] != config.text_length:
            raise ValueError(
                f"text has {text.shape[1]} tokens; this checkpoint's positions need {config.text_length}"
            )
        scales = (config.temporal_scale, config.spatial_scale)
        return sincos_table(grid, config.width, scales, lead=text.shape[1], like=text)

    def _patches(self, latents: Tensor, grid: Grid) -> Tensor:
        p, deep = self.config.patch, self.config.patch_frames
        if deep is None:
            x = self.patch_embed(latents.flatten(0, 1))  # BT C h w
            return x.flatten(2).transpose(1, 2).reshape(latents.shape[0], grid.tokens, -1)
        x = latents[..., : grid.height * p, : grid.width * p]
        x = x.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(1, (-1, deep))
        x = x.permute(0, 1, 4, 6, 3, 2, 5, 7)  # B t h w C pt p p
        return self.patch_embed(x.flatten(4).flatten(1, 3))  # B N C

    def _unpatch(self, x: Tensor, grid: Grid) -> Tensor:
        p, deep = self.config.patch, self.config.patch_frames or 1
        x = x.reshape(x.shape[0], *grid, -1, deep, p, p)  # B t h w C pt p p
        x = x.permute(0, 1, 5, 4, 2, 6, 3, 7)  # B t pt C h p w p
        return x.flatten(6, 7).flatten(4, 5).flatten(1, 2)  # B T C H W


class Block(nn.Module):
    """Joint attention, then a feed-forward, each normalised, shifted, scaled and gated by the timestep."""

    def __init__(self, config: CogVideoXConfig, site: Site) -> None:
        super().__init__()
        self.site = site
        self.attention_norm = ModulatedNorm(config.width, config.time_width)
        self.attention = Attention(config.width, config.heads)
        self.feed_forward_norm = ModulatedNorm(config.width, config.time_width)
        self.feed_forward = FeedForward(config.width, 4 * config.width)

    def forward(self, stream: Stream, attend_at: Mapping[Site, Attend] = NOWHERE) -> Stream:
        x, gates = self.attention_norm(stream)  # B L+N C
        out = self.attention(x, stream.freqs, attend_at.get(self.site, attend))
        stream = _add(stream, out, gates)
        x, gates = self.feed_forward_norm(stream)  # B L+N C
        return _add(stream, self.feed_forward(x), gates)


class Attention(nn.Module):
    """Project to heads, attend, merge the heads; what attends is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.norm_q = nn.LayerNorm(width // heads, eps=1e-6)
        self.norm_k = nn.LayerNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, freqs: Tensor | None, attend: Attend) -> Tensor:
        q, k, v = self.project(x)  # B H L+N D
        return self.merge(attend(q, k, v, freqs))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (y(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q, self.k, self.v))
        return self.norm_q(q), self.norm_k(k), v

    def merge(self, x: Tensor) -> Tensor:
        return self.out(x.transpose(1, 2).flatten(2))  # B L+N C


class ModulatedNorm(nn.Module):
    """One layer norm for text and video, shifted and scaled apart; also returns both gates."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(time_width, 6 * width)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, stream: Stream) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        numbers = self.modulation(F.silu(stream.time))[:, None].chunk(6, dim=-1)  # B 1 C each
        shift, scale, gate, text_shift, text_scale, text_gate = numbers
        video = self.norm(stream.video) * (1 + scale) + shift
        text = self.norm(stream.text) * (1 + text_scale) + text_shift
        return torch.cat((text, video), dim=1), (text_gate, gate)  # B L+N C


class HeadNorm(nn.Module):
    """The last norm, shifted and scaled by the timestep."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(time_width, 2 * width)
        self.norm = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(time))[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift


def _add(stream: Stream, out: Tensor, gates: tuple[Tensor, Tensor]) -> Stream:
    """The stream with a gated branch (B, L+N, C) added to its text and its video."""
    lead = stream.text.shape[1]
    text = stream.text + gates[0] * out[:, :lead]
    return replace(stream, text=text, video=stream.video + gates[1] * out[:, lead:])
