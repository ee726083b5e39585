"""The Wan autoencoder against diffusers', and what must hold without it.

pytest tests/test_wan_vae.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor, nn

from bachvid.models import wan_vae
from bachvid.models.causal import CausalConv3d, History
from bachvid.models.wan_layouts import wan_vae_diffusers
from bachvid.models.wan_vae import WAN_2_1, WanVAE, WanVAEConfig

A = replace(
    WAN_2_1, base_dim=8, z_dim=4, latents_mean=(0.1, -0.2, 0.3, -0.4), latents_std=(2.8, 1.5, 2.3, 1.1)
)
B = replace(A, base_dim=3, dim_mult=(1, 1, 1, 1), num_res_blocks=1)
SMALLER = replace(
    A, base_dim=4, dim_mult=(1, 2, 4), temperal_downsample=(True, True)
)  # 4 times smaller each way
SHORTER = replace(A, dim_mult=(1, 2, 4), temperal_downsample=(False, True))  # half the frames


@cache
def theirs(config: WanVAEConfig) -> AutoencoderKLWan:
    """diffusers' autoencoder; every parameter random, for the 1 of a fresh gamma would hide mistakes."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan.from_config(config.to_dict()).eval()
    for parameter in vae.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + 0.1
    return vae


@cache
def ours(config: WanVAEConfig) -> WanVAE:
    vae, state = WanVAE(config).eval(), theirs(config).state_dict()
    vae.load_state_dict({name: state[place] for name, place in places(vae).items()}, strict=True)
    return vae


def places(vae: WanVAE) -> dict[str, str]:
    """diffusers' name of each of our parameters."""
    layout = wan_vae_diffusers(len(vae.config.dim_mult), vae.config.num_res_blocks)
    return {name: layout.source(name).name for name in vae.state_dict()}


def latents(config: WanVAEConfig, frames: int, height: int = 4, width: int = 6, batch: int = 2) -> Tensor:
    seed = torch.Generator().manual_seed(frames)
    return torch.randn(batch, config.z_dim, frames, height, width, generator=seed)


def video(config: WanVAEConfig, frames: int, height: int = 4, width: int = 6, batch: int = 2) -> Tensor:
    """A video whose latents are as high and wide as said."""
    ratio, seed = config.spatial_compression_ratio, torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, height * ratio, width * ratio, generator=seed) * 2 - 1


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) and bool(a.isfinite().all())


# ---- the same as diffusers


@pytest.mark.parametrize(
    ("config", "frames", "height", "width"),
    [
        *((A, t, 4, 6) for t in (1, 2, 3, 4)),
        (A, 3, 5, 7),
        *((B, t, 4, 6) for t in (1, 3)),
        (SMALLER, 3, 4, 6),
        (SHORTER, 3, 4, 6),
    ],
)
@torch.no_grad()
def test_decode_is_diffusers(config: WanVAEConfig, frames: int, height: int, width: int) -> None:
    z = latents(config, frames, height, width)
    expected = theirs(config).decode(z).sample
    assert same_bits(ours(config).decode(z, chunk_frames=1).clamp(-1, 1), expected)
    assert expected.shape[2] == config.temporal_compression_ratio * (frames - 1) + 1
    assert (expected.abs() < 1).float().mean() > 0.5  # a clamp would hide mistakes


@pytest.mark.parametrize(
    ("config", "frames", "height", "width"),
    [
        *((A, f, 4, 6) for f in (1, 5, 8, 9, 13)),
        (A, 5, 5, 7),
        *((B, f, 4, 6) for f in (1, 9)),
        (SMALLER, 9, 4, 6),
    ],
)
@torch.no_grad()
def test_encode_is_diffusers(config: WanVAEConfig, frames: int, height: int, width: int) -> None:
    x = video(config, frames, height, width)
    mean, logvar = ours(config).encode(x, chunk_frames=1)
    expected = theirs(config).encode(x).latent_dist
    assert same_bits(mean, expected.mean)
    assert same_bits(logvar, expected.logvar)
    assert mean.shape[2:] == ((frames - 1) // 4 + 1, height, width)  # the last 3 of 8 frames are left out


@pytest.mark.parametrize(("height", "width", "frames"), [(8, 8, 1), (9, 13, 1), (17, 11, 1), (5, 10, 2)])
@torch.no_grad()
def test_tiles_are_diffusers(height: int, width: int, frames: int) -> None:
    z, x = latents(A, frames, height, width, batch=1), video(A, 4 * frames - 3, height, width, batch=1)
    with small_tiles():
        pictures, moments = theirs(A).decode(z).sample, theirs(A).encode(x).latent_dist
        decoded = ours(A).decode(z, chunk_frames=1, tiling=True).clamp(-1, 1)
        mean, logvar = ours(A).encode(x, chunk_frames=1, tiling=True)
    assert same_bits(decoded, pictures)
    assert same_bits(mean, moments.mean)
    assert same_bits(logvar, moments.logvar)
    one_tile = (height, width) == (8, 8)
    assert (
        same_bits(decoded, ours(A).decode(z, chunk_frames=1).clamp(-1, 1)) == one_tile
    )  # a tile sees only the tile


@torch.no_grad()
def test_bfloat16_is_diffusers_tiles_and_all() -> None:
    vae, reference = deepcopy(ours(B)).bfloat16(), deepcopy(theirs(B)).bfloat16()
    z = latents(B, 2, 9, 7, batch=1).bfloat16()
    with small_tiles(reference):
        assert same_bits(vae.decode(z, chunk_frames=1, tiling=True).clamp(-1, 1), reference.decode(z).sample)


def test_gradients_are_diffusers() -> None:
    vae, reference = deepcopy(ours(SMALLER)).double(), deepcopy(theirs(SMALLER)).double()
    x = video(SMALLER, 9).double()  # three chunks: gradients flow back through the history
    (vae.decode(vae.encode(x, chunk_frames=1)[0], chunk_frames=1).clamp(-1, 1) - x).square().mean().backward()
    (reference.decode(reference.encode(x).latent_dist.mean).sample - x).square().mean().backward()
    expected, there = dict(reference.named_parameters()), places(vae)
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected[there[name]].grad, rtol=1e-6, atol=1e-9)


def test_full_size_names_and_shapes_are_the_releases() -> None:
    with torch.device("meta"):
        vae = WanVAE(WAN_2_1)
        expected = AutoencoderKLWan.from_config({}).state_dict()
    state = vae.state_dict()
    assert {place: state[name].shape for name, place in places(vae).items()} == {
        place: tensor.shape for place, tensor in expected.items()
    }
    assert len(state) == len(expected) == 194
    assert sum(tensor.numel() for tensor in state.values()) == 126_892_531
    # What diffusers makes of the original release's names.
    renamed = convert_wan_vae_to_diffusers({name: name for name in state})
    assert {name: place for place, name in renamed.items()} == places(vae)


# ---- the config


@pytest.mark.parametrize("config", [A, B, SMALLER, SHORTER, WAN_2_1])
def test_config_goes_through_json_and_diffusers(config: WanVAEConfig) -> None:
    stored = json.loads(json.dumps(config.to_dict()))
    assert stored == config.to_dict()
    assert WanVAEConfig.from_dict(stored) == config
    with torch.device("meta"):
        diffusers_config = AutoencoderKLWan.from_config(stored).config
    assert WanVAEConfig.from_dict(diffusers_config) == config


def test_an_absent_number_is_diffusers_default() -> None:
    with torch.device("meta"):
        defaults = AutoencoderKLWan.from_config({}).config
    assert WanVAEConfig.from_dict({}) == WanVAEConfig.from_dict(defaults) == WAN_2_1
    assert (WAN_2_1.spatial_compression_ratio, WAN_2_1.temporal_compression_ratio) == (8, 4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("is_residual", True),
        ("patch_size", 2),
        ("decoder_base_dim", 256),
        ("attn_scales", [0.5]),
        ("dropout", 0.1),
        ("scale_factor_spatial", 16),
        ("scale_factor_temporal", 8),
        ("temperal_downsample", [True, True]),
        ("latents_mean", [0.0] * 4),
        ("latents_std", [1.0] * 48),
    ],
)
def test_a_config_of_another_network_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        WanVAEConfig.from_dict({key: value})


# ---- chunks and their history


@torch.no_grad()
def test_the_chunk_length_is_no_matter() -> None:
    vae, z, x = ours(SMALLER), latents(SMALLER, 6), video(SMALLER, 21)
    singly, means = vae.decode(z, chunk_frames=1), vae.encode(x, chunk_frames=1)[0]
    for frames in (2, 3, None):  # 1 + 2 + 2 + 1, 1 + 3 + 2, 1 + 5
        torch.testing.assert_close(vae.decode(z, chunk_frames=frames), singly, rtol=0, atol=1e-5)
        torch.testing.assert_close(vae.encode(x, chunk_frames=frames)[0], means, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "tiling", "expected"),
    [
        (60, 104, False, [1, 1, 1, 1]),
        (30, 104, False, [1, 2, 1]),
        (90, 160, False, [1, 1, 1, 1]),
        (4, 6, False, [1, 3]),
        (33, 24, True, [1, 3, 1, 3]),  # two tiles, which are small
    ],
)
def test_a_chunk_is_one_frame_at_480_by_832_and_more_where_pictures_are_smaller(
    height: int, width: int, tiling: bool, expected: list[int]
) -> None:
    decoded, encoded = [], []
    with torch.device("meta"):
        vae, z = WanVAE(B), torch.empty(1, 4, 4, height, width)
        x = torch.empty(1, 3, 13, 8 * height, 8 * width)
    vae.decoder.register_forward_pre_hook(lambda _, arguments: decoded.append(arguments[0].shape[2]))
    vae.encoder.register_forward_pre_hook(lambda _, arguments: encoded.append(arguments[0].shape[2]))
    vae.decode(z, tiling=tiling)
    vae.encode(x, tiling=tiling)
    assert decoded == expected
    assert max(encoded) == 4 * max(expected)


@torch.no_grad()
def test_the_past_matters_and_the_future_does_not() -> None:
    z = latents(A, 4)
    whole = ours(A).decode(z, chunk_frames=1)
    assert same_bits(whole[:, :, :5], ours(A).decode(z[:, :, :2], chunk_frames=1))
    alone = ours(A).decode(z[:, :, 2:], chunk_frames=1)
    assert (whole[:, :, 9:] - alone[:, :, 1:]).abs().max() > 0.1


@torch.no_grad()
def test_nothing_is_left_on_the_module() -> None:
    vae, z, x = ours(A), latents(A, 3), video(A, 9)
    before, attributes = vae.decode(z), {name: set(vars(part)) for name, part in vae.named_modules()}
    vae.decode(latents(A, 2))
    vae.encode(x)
    assert same_bits(vae.decode(z), before)
    assert {name: set(vars(part)) for name, part in vae.named_modules()} == attributes


@torch.no_grad()
def test_a_causal_convolution_with_a_stride_in_pieces_is_one_over_the_padded_whole() -> None:
    torch.manual_seed(0)
    conv, x = CausalConv3d(2, 3, (3, 1, 1), stride=2), torch.randn(1, 2, 10, 4, 5)
    history = History("zeros")
    pieces = torch.cat([conv(piece, history) for piece in x.split((2, 4, 4), dim=2)], dim=2)
    padded = torch.cat((torch.zeros_like(x[:, :, :1]), x), dim=2)
    whole = F.conv3d(padded, conv.weight, conv.bias, stride=(2, 1, 1))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)


# ---- slices, tiles, scales


@torch.no_grad()
def test_slicing_is_a_batch_of_one_at_a_time() -> None:
    vae, z, x = deepcopy(ours(B)), latents(B, 2, 9, 5), video(B, 5, 9, 5)
    batches = []
    for network in (vae.encoder, vae.decoder):
        network.register_forward_pre_hook(lambda _, arguments: batches.append(len(arguments[0])))
    with small_tiles():
        for tiling in (False, True):
            singly = [vae.decode(sample, tiling=tiling) for sample in z.split(1)]
            assert same_bits(vae.decode(z, tiling=tiling, slicing=True), torch.cat(singly))
            means, logvars = zip(*(vae.encode(sample, tiling=tiling) for sample in x.split(1)), strict=True)
            mean, logvar = vae.encode(x, tiling=tiling, slicing=True)
            assert same_bits(mean, torch.cat(means))
            assert same_bits(logvar, torch.cat(logvars))
    assert set(batches) == {1}


def test_gradients_pass_through_tiles() -> None:
    z = latents(B, 2, 9, 5, batch=1).requires_grad_()
    with small_tiles():
        ours(B).decode(z, tiling=True).square().mean().backward()
    assert z.grad is not None
    assert bool((z.grad != 0).all())


def test_what_is_brighter_than_white_still_learns() -> None:
    vae, z = deepcopy(ours(B)), latents(B, 2)
    nn.init.constant_(vae.decoder.head[2].bias, 9.0)
    out = vae.decode(z)
    assert bool((out > 1).all())
    out.mean().backward()
    assert bool((vae.decoder.head[2].bias.grad != 0).all())


@torch.no_grad()
def test_the_denoisers_latents_are_normalised() -> None:
    vae, x = ours(A), video(A, 9)
    normal = vae.to_latents(x)
    mean, _ = vae.encode(x)
    assert normal.shape == (2, 4, 3, 4, 6)
    # As the pipelines of diffusers compute it, both ways.
    middle = torch.tensor(A.latents_mean).view(1, 4, 1, 1, 1)
    scale = 1.0 / torch.tensor(A.latents_std).view(1, 4, 1, 1, 1)
    assert same_bits(normal, (mean - middle) * scale)
    assert same_bits(vae.to_video(normal), vae.decode(normal / scale + middle))


def test_frames_first_where_channels_are_due_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(batch, 4, frames, height, width\), not \(2, 3, 4, 4, 6\)"):
        ours(A).decode(latents(A, 3).transpose(1, 2))
    with pytest.raises(ValueError, match=r"\(batch, 3, frames"):
        ours(A).encode(video(A, 4).transpose(1, 2))


@contextmanager
def small_tiles(reference: AutoencoderKLWan | None = None) -> Iterator[None]:
    """Tiles of 8 x 8 latents, 6 apart, in ours and in diffusers'; it needs its tiling turned on as well."""
    reference = reference or theirs(A)
    reference.enable_tiling(64, 64, 48, 48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wan_vae, "TILE", 64)
        patch.setattr(wan_vae, "STRIDE", 48)
        yield
    reference.disable_tiling()
