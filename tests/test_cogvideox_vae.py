"""The CogVideoX autoencoder against diffusers', and what must hold without it.

pytest tests/test_cogvideox_vae.py
"""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bachvid.models import causal, cogvideox_vae
from bachvid.models.causal import CausalConv3d, History
from bachvid.models.cogvideox_vae import CHECKPOINTS, CogVideoXVAE, CogVideoXVAEConfig
from bachvid.models.tiling import run_in_tiles

A = CogVideoXVAEConfig(
    in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(4, 8, 8, 16), layers_per_block=1,
    norm_num_groups=4, temporal_compression_ratio=4, sample_height=32, sample_width=48, scaling_factor=0.7,
)  # fmt: skip
B = replace(A, block_out_channels=(8, 8, 8, 8), norm_num_groups=2, layers_per_block=2)
SMALLER = replace(A, block_out_channels=(4, 8, 16))  # 4 times smaller each way
SHORTER = replace(A, block_out_channels=(4, 8, 16), temporal_compression_ratio=2)
TILED = replace(A, sample_height=96, sample_width=80)  # tiles of 6 x 5 latents


@cache
def theirs(config: CogVideoXVAEConfig) -> Any:
    """diffusers' autoencoder; every parameter random, for the 0 and 1 of a fresh norm would hide mistakes."""
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX.from_config(config.to_dict()).eval()
    for parameter in vae.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + 0.1
    return vae


@cache
def ours(config: CogVideoXVAEConfig) -> CogVideoXVAE:
    vae = CogVideoXVAE(config).eval()
    vae.load_state_dict(theirs(config).state_dict(), strict=True)
    return vae


def latents(
    config: CogVideoXVAEConfig, frames: int, height: int = 4, width: int = 6, batch: int = 2
) -> Tensor:
    seed = torch.Generator().manual_seed(frames)
    return torch.randn(batch, config.latent_channels, frames, height, width, generator=seed)


def video(config: CogVideoXVAEConfig, frames: int, height: int = 4, width: int = 6, batch: int = 2) -> Tensor:
    """A video whose latents are as high and wide as said."""
    ratio, seed = config.spatial_compression_ratio, torch.Generator().manual_seed(frames)
    return torch.rand(batch, 3, frames, height * ratio, width * ratio, generator=seed) * 2 - 1


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) and bool(a.isfinite().all())


# ---- the same as diffusers


@pytest.mark.parametrize(
    ("config", "frames"),
    [
        *((A, t) for t in (1, 2, 3, 4, 5, 13)),
        (B, 3),
        (B, 5),
        *((SMALLER, t) for t in (1, 2, 3)),
        (SHORTER, 5),
    ],
)
@torch.no_grad()
def test_decode_is_diffusers(config: CogVideoXVAEConfig, frames: int) -> None:
    z = latents(config, frames)
    assert same_bits(ours(config).decode(z), theirs(config).decode(z).sample)


@pytest.mark.parametrize(
    ("config", "frames"),
    [
        *((A, f) for f in (1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 49)),
        (B, 9),
        (SMALLER, 9),
        (SMALLER, 17),
        (SHORTER, 9),
    ],
)
@torch.no_grad()
def test_encode_is_diffusers(config: CogVideoXVAEConfig, frames: int) -> None:
    x = video(config, frames)
    mean, logvar = ours(config).encode(x)
    expected = theirs(config).encode(x).latent_dist
    assert same_bits(mean, expected.mean)
    assert same_bits(logvar, expected.logvar)
    assert mean.shape[2] == -(-frames // config.temporal_compression_ratio)


@pytest.mark.parametrize(
    ("height", "width", "frames"),
    [(6, 5, 1), (11, 9, 1), (10, 8, 1), (12, 10, 1), (7, 13, 1), (16, 5, 1), (7, 6, 4)],
)
@torch.no_grad()
def test_tiles_are_diffusers(height: int, width: int, frames: int) -> None:
    vae = theirs(TILED)
    z = latents(TILED, frames, height, width, batch=1)
    x = video(TILED, 4 * frames + 1, height, width, batch=1)
    vae.enable_tiling()
    pictures, moments = vae.decode(z).sample, vae.encode(x).latent_dist
    vae.disable_tiling()
    decoded, (mean, logvar) = ours(TILED).decode(z, tiling=True), ours(TILED).encode(x, tiling=True)
    assert same_bits(decoded, pictures)
    assert same_bits(mean, moments.mean)
    assert same_bits(logvar, moments.logvar)
    one_tile = (height, width) == (6, 5)
    assert same_bits(decoded, ours(TILED).decode(z)) == one_tile  # a tile's norms see only the tile


@torch.no_grad()
def test_bfloat16_is_diffusers_tiles_and_all() -> None:
    vae, reference = deepcopy(ours(TILED)).bfloat16(), deepcopy(theirs(TILED)).bfloat16()
    reference.enable_tiling()
    z = latents(TILED, 1, 9, 7, batch=1).bfloat16()
    assert same_bits(vae.decode(z, tiling=True), reference.decode(z).sample)


def test_gradients_are_diffusers() -> None:
    vae, reference = deepcopy(ours(SMALLER)).double(), deepcopy(theirs(SMALLER)).double()
    x = video(SMALLER, 17).double()  # two chunks: gradients flow back through the history
    (vae.decode(vae.encode(x)[0]) - x).square().mean().backward()
    (reference.decode(reference.encode(x).latent_dist.mean).sample - x).square().mean().backward()
    expected = dict(reference.named_parameters())
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_full_size_names_and_shapes_are_diffusers(name: str) -> None:
    config = CHECKPOINTS[name]
    with torch.device("meta"):
        state = CogVideoXVAE(config).state_dict()
        expected = AutoencoderKLCogVideoX.from_config({}).state_dict()
    assert {key: tensor.shape for key, tensor in state.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }
    assert len(state) == 436
    assert sum(tensor.numel() for tensor in state.values()) == 215_583_907


# ---- the config


@pytest.mark.parametrize("config", [A, SMALLER, *CHECKPOINTS.values()])
def test_config_goes_through_json_and_diffusers(config: CogVideoXVAEConfig) -> None:
    stored = json.loads(json.dumps(config.to_dict()))
    assert CogVideoXVAEConfig.from_dict(stored) == config
    with torch.device("meta"):
        diffusers_config = AutoencoderKLCogVideoX.from_config(stored).config
    assert CogVideoXVAEConfig.from_dict(diffusers_config) == config


def test_an_absent_number_is_diffusers_default() -> None:
    with torch.device("meta"):
        defaults = AutoencoderKLCogVideoX.from_config({}).config
    assert (
        CogVideoXVAEConfig.from_dict({})
        == CogVideoXVAEConfig.from_dict(defaults)
        == CHECKPOINTS["cogvideox-2b"]
    )


@pytest.mark.parametrize(
    "key, value", [("use_quant_conv", True), ("latents_mean", [0.0] * 16), ("act_fn", "relu")]
)
def test_a_config_of_another_network_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        CogVideoXVAEConfig.from_dict({key: value})


# ---- chunks and their history


@torch.no_grad()
def test_the_past_matters_and_the_future_does_not() -> None:
    z = latents(A, 6)
    whole = ours(A).decode(z)
    assert same_bits(whole[:, :, :16], ours(A).decode(z[:, :, :4]))
    alone = ours(A).decode(z[:, :, 4:])
    assert (whole[:, :, 16:] - alone).abs().max() > 0.1 * whole.abs().max()


@torch.no_grad()
def test_the_chunk_length_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    z = latents(A, 13)
    right = ours(A).decode(z)
    monkeypatch.setattr(cogvideox_vae, "DECODER_CHUNK", 4)
    assert (ours(A).decode(z) - right).abs().max() > 0.01 * right.abs().max()


@torch.no_grad()
def test_nothing_is_left_on_the_module() -> None:
    vae, z, x = ours(A), latents(A, 5), video(A, 17)
    before, attributes = vae.decode(z), {name: set(vars(part)) for name, part in vae.named_modules()}
    vae.decode(latents(A, 3))
    vae.encode(x)
    assert same_bits(vae.decode(z), before)
    assert {name: set(vars(part)) for name, part in vae.named_modules()} == attributes


@pytest.mark.parametrize("before", ["first frame", "zeros"])
@torch.no_grad()
def test_a_causal_convolution_in_pieces_is_one_over_the_padded_whole(before: Any) -> None:
    torch.manual_seed(0)
    conv, x = CausalConv3d(2, 3, (3, 3, 3)), torch.randn(1, 2, 7, 4, 5)
    history = History(before)
    pieces = torch.cat([conv(piece, history) for piece in x.split((1, 1, 3, 2), dim=2)], dim=2)
    first = x[:, :, :1] if before == "first frame" else torch.zeros_like(x[:, :, :1])
    padded = torch.cat((first, first, x), dim=2)
    whole = F.conv3d(padded, conv.weight, conv.bias, padding=(0, 1, 1))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), 1), ((3, 1, 1), 2)])
@pytest.mark.parametrize("frames", [1, 3, 4, 5, 100])
@torch.no_grad()
def test_a_convolution_of_too_much_is_made_a_few_frames_at_a_time(
    monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, int, int], stride: int, frames: int
) -> None:
    torch.manual_seed(0)
    conv, x = CausalConv3d(2, 3, kernel, stride), torch.randn(1, 2, 8, 4, 5)
    whole = conv(x, History("zeros"))
    monkeypatch.setattr(causal, "LARGEST", frames * x[:, :, 0].numel())
    torch.testing.assert_close(conv(x, History("zeros")), whole, rtol=0, atol=1e-6)
    pieces = conv._pieces(torch.cat((x[:, :, : conv.reach], x), dim=2))
    assert max(piece.shape[2] for piece in pieces) <= max(3, frames)
    assert (len(pieces) == 1) == (frames == 100)


# ---- slices, tiles, scales


@torch.no_grad()
def test_slicing_is_a_batch_of_one_at_a_time() -> None:
    vae, z, x = deepcopy(ours(TILED)), latents(TILED, 3, 7, 5), video(TILED, 9, 7, 5)
    batches = []
    for network in (vae.encoder, vae.decoder):
        network.register_forward_pre_hook(lambda _, arguments: batches.append(len(arguments[0])))
    for tiling in (False, True):
        singly = [vae.decode(sample, tiling=tiling) for sample in z.split(1)]
        assert same_bits(vae.decode(z, tiling=tiling, slicing=True), torch.cat(singly))
        means, logvars = zip(*(vae.encode(sample, tiling=tiling) for sample in x.split(1)), strict=True)
        mean, logvar = vae.encode(x, tiling=tiling, slicing=True)
        assert same_bits(mean, torch.cat(means))
        assert same_bits(logvar, torch.cat(logvars))
    assert set(batches) == {1}


@settings(deadline=None, max_examples=30)
@example(60, 90)
@example(96, 170)
@given(st.integers(1, 110), st.integers(1, 180))
def test_published_tiles_lie_where_they_belong(height: int, width: int) -> None:
    """Through a network that only enlarges or only averages, tiles change nothing at all."""
    plane = torch.rand(1, 1, height, width)
    enlarge = partial(F.interpolate, scale_factor=8)
    shrink = partial(F.avg_pool2d, kernel_size=8)
    config = CHECKPOINTS["cogvideox-5b"]
    down, up = cogvideox_vae.tiles_of(config, encoding=True), cogvideox_vae.tiles_of(config, encoding=False)
    big = run_in_tiles(enlarge, *up, plane)
    torch.testing.assert_close(big, enlarge(plane), rtol=0, atol=1e-6)
    torch.testing.assert_close(run_in_tiles(shrink, *down, big), shrink(big), rtol=0, atol=1e-6)


def test_published_tiles_are_diffusers_numbers() -> None:
    config = CHECKPOINTS["cogvideox-2b"]
    assert cogvideox_vae.tiles_of(config, encoding=False) == ((30, 25, 40, 200), (45, 36, 72, 288))
    assert cogvideox_vae.tiles_of(config, encoding=True) == ((240, 200, 5, 25), (360, 288, 9, 36))


def test_gradients_pass_through_tiles() -> None:
    z = latents(TILED, 1, 7, 6, batch=1).requires_grad_()
    ours(TILED).decode(z, tiling=True).square().mean().backward()
    assert z.grad is not None
    assert bool((z.grad != 0).all())


def test_tiles_that_do_not_fit_are_refused() -> None:
    vae = ours(
        A
    )  # diffusers fails in encode here, and returns 70 x 110 pixels for 64 x 96 at twice this size
    with pytest.raises(ValueError, match="turn tiling off"):
        vae.encode(video(A, 1), tiling=True)
    with pytest.raises(ValueError, match="turn tiling off"):
        CogVideoXVAE(replace(A, sample_height=64, sample_width=96)).decode(latents(A, 1), tiling=True)


@torch.no_grad()
def test_the_denoisers_latents_are_scaled_and_frames_first() -> None:
    vae, x = ours(A), video(A, 9)
    scaled = vae.to_latents(x)
    mean, _ = vae.encode(x)
    assert scaled.shape == (2, 3, 4, 4, 6)
    assert same_bits(scaled, (mean * A.scaling_factor).transpose(1, 2))
    assert same_bits(vae.to_video(scaled), vae.decode(1 / A.scaling_factor * scaled.transpose(1, 2)))


def test_frames_first_where_channels_are_due_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(batch, 4, frames, height, width\), not \(2, 3, 4, 4, 6\)"):
        ours(A).decode(latents(A, 3).transpose(1, 2))
    with pytest.raises(ValueError, match=r"\(batch, 3, frames"):
        ours(A).encode(video(A, 4).transpose(1, 2))
