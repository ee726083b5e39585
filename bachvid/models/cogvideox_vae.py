"""The CogVideoX autoencoder: videos to latents and back, 4 times shorter and 8 times smaller each way.

Three things set it apart from an image autoencoder:
* Convolutions are causal in time: a frame never sees a later one, and the first frame is compressed alone.
* A long video passes in chunks. Convolutions know the frames before a chunk (`History`); group norms do not,
  their statistics are the chunk's own. So a chunk's length is a number of the model, not a memory setting.
* Every norm of the decoder is steered by the latents: they give a scale and a shift for every position.

Agrees with diffusers' `AutoencoderKLCogVideoX`, bit for bit in float32 on CPU, and has its parameter names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bachvid.models.causal import History, expect_channels
from bachvid.models.cogvideox_vae_layers import Conv, Downsample, Norms, Resnet, SpatialNorm, Upsample
from bachvid.models.tiling import Tiles, run_in_tiles

ENCODER_CHUNK = 8  # video frames; it was trained with these two, and others give worse results
DECODER_CHUNK = 2  # latent frames


@dataclass(frozen=True)
class CogVideoXVAEConfig:
    """Every number that tells one autoencoder from another, named as in diffusers' `vae/config.json`."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]  # pictures to latents; all blocks but the last halve height and width
    layers_per_block: int  # resnets in a block of the encoder; the decoder's have one more
    norm_num_groups: int
    temporal_compression_ratio: int
    sample_height: int  # pixels; a tile is half as high and half as wide
    sample_width: int
    scaling_factor: float  # brings latents to about unit variance, as the denoiser wants them

    @property
    def spatial_compression_ratio(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CogVideoXVAEConfig:
        """The numbers in a diffusers `vae/config.json`; an absent one is the 2B's, diffusers' default.

        ValueError names what this autoencoder does not have.
        """
        for key, known in FIXED.items():
            if values.get(key, known) != known:
                raise ValueError(
                    f"{key}={values[key]!r} is not supported; a CogVideoX autoencoder has {key}={known!r}"
                )
        found = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        config = replace(_2B, **found)
        return replace(config, block_out_channels=tuple(config.block_out_channels))  # a list in json

    def to_dict(self) -> dict[str, Any]:
        """These numbers as diffusers' `vae/config.json` holds them."""
        blocks = len(self.block_out_channels)
        return {
            "_class_name": "AutoencoderKLCogVideoX",
            "down_block_types": ["CogVideoXDownBlock3D"] * blocks,
            "up_block_types": ["CogVideoXUpBlock3D"] * blocks,
            **asdict(self),
            **FIXED,
        }


FIXED = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "norm_eps": 1e-6,
    "shift_factor": None,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}

_2B = CogVideoXVAEConfig(
    in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(128, 256, 256, 512),
    layers_per_block=3, norm_num_groups=32, temporal_compression_ratio=4, sample_height=480, sample_width=720,
    scaling_factor=1.15258426,
)  # fmt: skip
_5B = replace(_2B, scaling_factor=0.7)
CHECKPOINTS: Mapping[str, CogVideoXVAEConfig] = {
    "cogvideox-2b": _2B,
    "cogvideox-5b": _5B,
    "cogvideox1.5-5b": _5B,
}


class CogVideoXVAE(nn.Module):
    """Encodes videos and decodes latents; nothing of one call is left for the next.

    With `tiling`, pictures larger than half the sample size go tile by tile: less memory, and slightly other
    results, since a tile's norms see only the tile. With `slicing`, samples go one by one: less memory, same
    results.
    """

    def __init__(self, config: CogVideoXVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def to_latents(self, video: Tensor, *, tiling: bool = False, slicing: bool = False) -> Tensor:
        """The denoiser's latents (B, T, C, h, w) of a video (B, 3, F, H, W) in [-1, 1]: the mean, scaled."""
        mean, _ = self.encode(video, tiling=tiling, slicing=slicing)
        return mean.transpose(1, 2) * self.config.scaling_factor

    def to_video(self, latents: Tensor, *, tiling: bool = False, slicing: bool = False) -> Tensor:
        """The video (B, 3, F, H, W) of the denoiser's latents (B, T, C, h, w), in [-1, 1] but not clamped."""
        z = latents.transpose(1, 2) * (1 / self.config.scaling_factor)
        return self.decode(z, tiling=tiling, slicing=slicing)

    def encode(self, video: Tensor, *, tiling: bool = False, slicing: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, both (B, C, T, h, w) and unscaled, of a video (B, 3, F, H, W) in [-1, 1].

        T is F / 4 rounded up; it was trained on F = 4k + 1. ValueError if tiles do not fit together.
        """
        expect_channels("a video", video, self.config.in_channels)
        run = partial(_in_chunks, self.encoder, ENCODER_CHUNK)
        if tiling:
            run = partial(run_in_tiles, run, *tiles_of(self.config, encoding=True))
        moments = torch.cat([run(sample) for sample in video.split(1)]) if slicing else run(video)
        mean, logvar = moments.chunk(2, dim=1)  # B C T h w each
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z: Tensor, *, tiling: bool = False, slicing: bool = False) -> Tensor:
        """The video (B, 3, F, H, W) of unscaled latents (B, C, T, h, w), in [-1, 1] but not clamped.

        F is 4 T - 3 for an odd T and 4 T for an even one. ValueError if tiles do not fit together.
        """
        expect_channels("latents", z, self.config.latent_channels)
        run = partial(_in_chunks, self.decoder, DECODER_CHUNK)
        if tiling:
            run = partial(run_in_tiles, run, *tiles_of(self.config, encoding=False))
        return torch.cat([run(sample) for sample in z.split(1)]) if slicing else run(z)


class Encoder(nn.Module):
    """A chunk of video (B, 3, F, H, W) to mean and log-variance, together (B, 2 latent_channels, T, h, w)."""

    def __init__(self, config: CogVideoXVAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels
        norm = partial(nn.GroupNorm, config.norm_num_groups, eps=1e-6)
        self.conv_in = Conv(config.in_channels, channels[0])
        self.down_blocks = nn.ModuleList(DownBlock(config, i, norm) for i in range(len(channels)))
        self.mid_block = MidBlock(channels[-1], norm)
        self.norm_out = norm(channels[-1])
        self.conv_out = Conv(channels[-1], 2 * config.latent_channels)

    def forward(self, video: Tensor, history: History) -> Tensor:
        x = self.conv_in(video, history)  # B C F H W
        for block in self.down_blocks:
            x = block(x, history)
        x = self.mid_block(x, history)  # B C T h w
        x = F.silu(self.norm_out(x))
        return self.conv_out(x, history)  # B 2*latent_channels T h w


class Decoder(nn.Module):
    """A chunk of latents (B, latent_channels, T, h, w) to video (B, 3, F, H, W)."""

    def __init__(self, config: CogVideoXVAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        norm = partial(SpatialNorm, config.norm_num_groups, config.latent_channels)
        self.conv_in = Conv(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], norm)
        self.up_blocks = nn.ModuleList(UpBlock(config, i, norm) for i in range(len(channels)))
        self.norm_out = norm(channels[-1])
        self.conv_out = Conv(channels[-1], config.out_channels)

    def forward(self, z: Tensor, history: History) -> Tensor:
        x = self.conv_in(z, history)  # B C T h w
        x = self.mid_block(x, history, z)
        for block in self.up_blocks:
            x, z = block(x, history, z)  # z grows with x: always as many frames, as high and as wide
        x = F.silu(self.norm_out(x, z))  # B C F H W
        return self.conv_out(x, history)  # B 3 F H W


class DownBlock(nn.Module):
    """Resnets; then frames become smaller and fewer, as block `index` (from 0) does here."""

    def __init__(self, config: CogVideoXVAEConfig, index: int, norm: Norms) -> None:
        super().__init__()
        channels = config.block_out_channels
        before, width = channels[max(index - 1, 0)], channels[index]
        space, time = _resamples(config, index)
        self.resnets = _resnets(before, width, config.layers_per_block, norm)
        self.downsamplers = nn.ModuleList([Downsample(width, time)] if space else [])

    def forward(self, x: Tensor, history: History) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, history)
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


class MidBlock(nn.Module):
    """Two resnets at the size of the latents."""

    def __init__(self, width: int, norm: Norms) -> None:
        super().__init__()
        self.resnets = _resnets(width, width, 2, norm)

    def forward(self, x: Tensor, history: History, *z: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, history, *z)
        return x


class UpBlock(nn.Module):
    """Resnets; then frames become larger and more, as block `index` (from 0) does here, and so does z."""

    def __init__(self, config: CogVideoXVAEConfig, index: int, norm: Norms) -> None:
        super().__init__()
        channels = config.block_out_channels[::-1]
        before, width = channels[max(index - 1, 0)], channels[index]
        space, time = _resamples(config, index)
        self.resnets = _resnets(before, width, config.layers_per_block + 1, norm)
        self.upsamplers = nn.ModuleList([Upsample(width, time)] if space else [])

    def forward(self, x: Tensor, history: History, z: Tensor) -> tuple[Tensor, Tensor]:
        for resnet in self.resnets:
            x = resnet(x, history, z)
        for upsample in self.upsamplers:
            x, z = upsample(x, z)
        return x, z


def _resnets(before: int, width: int, count: int, norm: Norms) -> nn.ModuleList:
    return nn.ModuleList(Resnet(i, o, norm) for i, o in pairwise([before] + [width] * count))


def _resamples(config: CogVideoXVAEConfig, index: int) -> tuple[bool, bool]:
    """Whether a block of the encoder, or of the decoder, changes the size of frames, and their number."""
    last = len(config.block_out_channels) - 1
    return index < last, 2 ** (index + 1) <= config.temporal_compression_ratio


def _in_chunks(network: nn.Module, size: int, x: Tensor) -> Tensor:
    """`network` over chunks of `size` frames of x, the first taking the remainder: 13 = 3 + 2 + 2 + ..."""
    later = max(x.shape[2] // size, 1) - 1
    chunks = x.split([x.shape[2] - later * size] + [size] * later, dim=2)
    history = History("first frame")
    return torch.cat([network(chunk, history) for chunk in chunks], dim=2)


def tiles_of(config: CogVideoXVAEConfig, encoding: bool) -> tuple[Tiles, Tiles]:
    """How rows and columns are cut: into half the sample size, overlapping by a sixth and a fifth of it.

    ValueError where such tiles do not fit together.
    """
    ratio = config.spatial_compression_ratio

    def cut(pixels: int, overlap: float) -> Tiles:
        size, out = (pixels, pixels // ratio) if encoding else (pixels // ratio, pixels)
        fade = int(out * overlap)
        stride, keep = int(size * (1 - overlap)), out - fade
        if stride != keep * ratio if encoding else keep != stride * ratio:
            raise ValueError(
                f"tiles of {pixels} pixels, half of vae/config.json's sample size, do not fit together; "
                "turn tiling off"
            )
        return Tiles(size, stride, fade, keep)

    return cut(config.sample_height // 2, 1 / 6), cut(config.sample_width // 2, 1 / 5)
