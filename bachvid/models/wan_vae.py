"""The Wan2.1 autoencoder: videos to latents and back, 4 times shorter and 8 times smaller each way.

Three things set it apart from CogVideoX's:
* The first frame is a chunk of its own: only later frames are compressed in time, and zeros stand before it.
* Norms look at one position's channels and nothing else. So a chunk's length is a memory setting, not a
  number of the model: beyond rounding, results do not depend on it.
* At the size of the latents, every frame attends to itself.

Agrees with diffusers' `AutoencoderKLWan`, bit for bit in float32 on CPU at one latent frame a chunk, and has
the parameter names of the original release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from bachvid.models.causal import CausalConv3d, History, expect_channels
from bachvid.models.tiling import Tiles, run_in_tiles
from bachvid.models.wan_vae_layers import Attention, Chain, Downsample, Residual, RMSNorm, Upsample

CHUNK_PIXELS = 480 * 832  # latent frames in a chunk, times the pixels of one picture
TILE, STRIDE = 256, 192  # pixels: how high and wide a tile is, and how far it is to the next


@dataclass(frozen=True)
class WanVAEConfig:
    """Every number that tells one autoencoder from another, named as in diffusers' `vae/config.json`."""

    in_channels: int
    out_channels: int
    z_dim: int  # channels of the latents
    base_dim: int
    dim_mult: tuple[int, ...]  # times base_dim: channels, pictures to latents; all blocks but the last halve
    num_res_blocks: int  # residuals in a block of the encoder; the decoder's have one more
    temperal_downsample: tuple[bool, ...]  # whether a block that halves height and width halves time as well
    latents_mean: tuple[float, ...]  # of each channel; with these two the denoiser's latents are about normal
    latents_std: tuple[float, ...]

    @property
    def spatial_compression_ratio(self) -> int:
        return 2 ** len(self.temperal_downsample)

    @property
    def temporal_compression_ratio(self) -> int:
        return 2 ** sum(self.temperal_downsample)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WanVAEConfig:
        """The numbers in a diffusers `vae/config.json`; an absent one is Wan2.1's, diffusers' default.

        ValueError names what this autoencoder does not have, or what does not fit together.
        """
        for key, known in FIXED.items():
            if values.get(key, known) != known:
                raise ValueError(
                    f"{key}={values[key]!r} is not supported; Wan2.1's autoencoder has {known!r}"
                )
        found = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        lists = {key: tuple(value) for key, value in found.items() if isinstance(value, list)}  # from json
        config = replace(WAN_2_1, **found | lists)
        _expect_fit(config, values)
        return config

    def to_dict(self) -> dict[str, Any]:
        """These numbers as diffusers' `vae/config.json` holds them."""
        lists = {key: list(value) for key, value in asdict(self).items() if isinstance(value, tuple)}
        return {"_class_name": "AutoencoderKLWan", **asdict(self), **lists, **_factors(self), **FIXED}


FIXED: Mapping[str, Any] = {
    "is_residual": False,  # this and the next two are how Wan2.2's 5B differs
    "patch_size": None,
    "decoder_base_dim": None,
    "attn_scales": [],
    "dropout": 0.0,
}


def _factors(config: WanVAEConfig) -> dict[str, int]:
    """Numbers that diffusers stores although they follow from others."""
    return {
        "scale_factor_spatial": config.spatial_compression_ratio,
        "scale_factor_temporal": config.temporal_compression_ratio,
    }


def _expect_fit(config: WanVAEConfig, values: Mapping[str, Any]) -> None:
    halvings, channels = len(config.dim_mult) - 1, config.z_dim
    lengths = {"temperal_downsample": halvings, "latents_mean": channels, "latents_std": channels}
    for key, length in lengths.items():
        if len(getattr(config, key)) != length:
            raise ValueError(f"{key} has {len(getattr(config, key))} values where {length} are needed")
    for key, factor in _factors(config).items():
        if values.get(key, factor) != factor:
            raise ValueError(f"{key}={values[key]!r} is not supported; the other numbers make it {factor}")


WAN_2_1 = WanVAEConfig(
    in_channels=3, out_channels=3, z_dim=16, base_dim=96, dim_mult=(1, 2, 4, 4), num_res_blocks=2,
    temperal_downsample=(False, True, True),
    latents_mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    latents_std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ),
)  # fmt: skip


class WanVAE(nn.Module):
    """Encodes videos and decodes latents; nothing of one call is left for the next.

    The first frame passes alone, then `chunk_frames` latent frames at a time: more need more memory and give
    the same result up to rounding. The default is one at 480 x 832 pixels, as in diffusers, and
    proportionally more for smaller pictures, which takes no more memory and is faster.

    With `tiling`, pictures larger than 256 pixels go tile by tile: less memory, and slightly other results,
    since a tile does not see what is around it. With `slicing`, samples go one by one: less memory, same
    results.
    """

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)  # after the encoder
        self.conv2 = nn.Conv3d(config.z_dim, config.z_dim, 1)  # before the decoder
        self.decoder = Decoder(config)

    def to_latents(self, video: Tensor, *, tiling: bool = False, slicing: bool = False) -> Tensor:
        """The denoiser's latents (B, C, T, h, w) of a video (B, 3, F, H, W) in [-1, 1]: normalised means."""
        z, _ = self.encode(video, tiling=tiling, slicing=slicing)
        mean, scale = self._normal(z)
        return (z - mean) * scale

    def to_video(self, latents: Tensor, *, tiling: bool = False, slicing: bool = False) -> Tensor:
        """The video (B, 3, F, H, W) of the denoiser's latents (B, C, T, h, w), in [-1, 1] but not clamped."""
        mean, scale = self._normal(latents)
        return self.decode(latents / scale + mean, tiling=tiling, slicing=slicing)

    def encode(
        self, video: Tensor, *, chunk_frames: int | None = None, tiling: bool = False, slicing: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (B, C, T, h, w) and not normalised, of a video (B, 3, F, H, W) in [-1, 1].

        F is 4 T - 3; up to three frames more are left out.
        """
        expect_channels("a video", video, self.config.in_channels)
        ratio = self.config.temporal_compression_ratio
        video = video[:, :, : (video.shape[2] - 1) // ratio * ratio + 1]

        def run(x: Tensor) -> Tensor:
            latent_frames = chunk_frames or _fitting(*x.shape[-2:])
            return self.conv1(_in_chunks(self.encoder, latent_frames * ratio, x))  # B 2*C T h w

        moments = _run(run, video, self._tiles(encoding=True) if tiling else None, slicing)
        mean, logvar = moments.chunk(2, dim=1)  # B C T h w each
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(
        self, z: Tensor, *, chunk_frames: int | None = None, tiling: bool = False, slicing: bool = False
    ) -> Tensor:
        """The video (B, 3, F, H, W) of latents (B, C, T, h, w) that are not normalised, F = 4 T - 3.

        In [-1, 1] but, other than in diffusers, not clamped: a clamp stops gradients.
        """
        expect_channels("latents", z, self.config.z_dim)
        ratio = self.config.spatial_compression_ratio

        def run(x: Tensor) -> Tensor:
            latent_frames = chunk_frames or _fitting(ratio * x.shape[-2], ratio * x.shape[-1])
            return _in_chunks(self.decoder, latent_frames, self.conv2(x))  # B 3 F H W

        return _run(run, z, self._tiles(encoding=False) if tiling else None, slicing)

    def _normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Each channel's mean and 1 / deviation, (C, 1, 1, 1); a reciprocal, for diffusers rounds it."""
        mean = z.new_tensor(self.config.latents_mean).view(-1, 1, 1, 1)
        return mean, 1 / z.new_tensor(self.config.latents_std).view(-1, 1, 1, 1)

    def _tiles(self, encoding: bool) -> Tiles:
        ratio, fade = self.config.spatial_compression_ratio, TILE - STRIDE
        if encoding:
            return Tiles(TILE, STRIDE, fade // ratio, STRIDE // ratio)
        return Tiles(TILE // ratio, STRIDE // ratio, fade, STRIDE)


class Encoder(nn.Module):
    """A chunk of video (B, 3, F, H, W) to moments (B, 2 z_dim, T, h, w)."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        before = config.base_dim
        self.conv1 = CausalConv3d(config.in_channels, before, (3, 3, 3))
        blocks: list[nn.Module] = []  # one flat list
        for multiple, time in zip(config.dim_mult, (*config.temperal_downsample, None), strict=True):
            width = multiple * config.base_dim
            blocks += _residuals(before, width, config.num_res_blocks)
            if time is not None:
                blocks += [Downsample(width, time)]
            before = width
        self.downsamples = Chain(*blocks)
        self.middle = _middle(before)
        self.head = _head(before, 2 * config.z_dim)

    def forward(self, video: Tensor, history: History) -> Tensor:
        x = self.conv1(video, history)  # B C F H W
        x = self.downsamples(x, history)  # B C T h w
        x = self.middle(x, history)
        return self.head(x, history)  # B 2*z_dim T h w


class Decoder(nn.Module):
    """A chunk of latents (B, z_dim, T, h, w) to video (B, 3, F, H, W)."""

    def __init__(self, config: WanVAEConfig) -> None:
        super().__init__()
        before = config.dim_mult[-1] * config.base_dim
        self.conv1 = CausalConv3d(config.z_dim, before, (3, 3, 3))
        self.middle = _middle(before)
        blocks: list[nn.Module] = []  # one flat list
        times = (*config.temperal_downsample[::-1], None)
        for multiple, time in zip(config.dim_mult[::-1], times, strict=True):
            width = multiple * config.base_dim
            blocks += _residuals(before, width, config.num_res_blocks + 1)
            before = width
            if time is not None:
                blocks += [Upsample(width, time)]
                before = width // 2
        self.upsamples = Chain(*blocks)
        self.head = _head(before, config.out_channels)

    def forward(self, z: Tensor, history: History) -> Tensor:
        x = self.conv1(z, history)  # B C T h w
        x = self.middle(x, history)
        x = self.upsamples(x, history)  # B C F H W
        return self.head(x, history)  # B 3 F H W


def _residuals(before: int, width: int, count: int) -> list[nn.Module]:
    return [Residual(before, width), *(Residual(width, width) for _ in range(count - 1))]


def _middle(width: int) -> Chain:
    return Chain(Residual(width, width), Attention(width), Residual(width, width))


def _head(before: int, width: int) -> Chain:
    return Chain(RMSNorm(before, axes=3), nn.SiLU(), CausalConv3d(before, width, (3, 3, 3)))


def _run(run: Callable[[Tensor], Tensor], x: Tensor, tiles: Tiles | None, slicing: bool) -> Tensor:
    """`run(x)`: whole or in tiles, the batch at once or one by one."""

    def run_batch(x: Tensor) -> Tensor:
        return run_in_tiles(run, tiles, tiles, x) if tiles else run(x)

    return torch.cat([run_batch(sample) for sample in x.split(1)]) if slicing else run_batch(x)


def _in_chunks(network: nn.Module, size: int, x: Tensor) -> Tensor:
    """`network` over the first frame of x, then over chunks of `size` frames."""
    chunks = [x[:, :, :1], *(x[:, :, start : start + size] for start in range(1, x.shape[2], size))]
    history = History("zeros")
    return torch.cat([network(chunk, history) for chunk in chunks], dim=2)


def _fitting(height: int, width: int) -> int:
    """How many latent frames make a chunk of pictures of this size."""
    return max(1, CHUNK_PIXELS // (height * width))
