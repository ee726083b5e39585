"""The CogVideoX denoiser against diffusers' own, to the bit: pytest tests/test_cogvideox.py"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import tiny
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline
from diffusers import CogVideoXTransformer3DModel as Transformer
from torch import Tensor

from bachvid.models.cogvideox import CogVideoX, CogVideoXConfig
from bachvid.models.layouts import COGVIDEOX_DIFFUSERS
from bachvid.models.rope import resized_positions

BASE = {"attention_head_dim": 16, "text_embed_dim": 12, "max_text_seq_length": 7}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "A": ("2b", {}),
    "A2 narrow": ("2b", {"attention_head_dim": 8}),
    "A2 wide": ("2b", {"attention_head_dim": 24}),
    "B": ("5b", {}),
    "B2": ("5b", {"num_attention_heads": 3, "attention_head_dim": 32}),
    "C": ("1.5", {}),
}

# Latents (T, H, W); the trained grid is 3 x 5 tokens. 7 x 9 leaves a row and a column over.
SHAPES = [(3, 6, 10), (1, 6, 10), (5, 8, 4), (2, 4, 6), (3, 10, 14), (3, 7, 9)]
PORTRAIT_LANDSCAPE = [(1, 20, 4), (1, 4, 20)]
# Where a fitted length or a margin falls on a half: 4.5, 3.5 columns; 2.5, 1.5 rows; margins of 0.5 and 1.5.
TIES = [(1, 12, 18), (1, 12, 14), (1, 10, 20), (2, 6, 20), (1, 12, 10)]
CASES = [
    *[("A", shape) for shape in SHAPES],
    ("A2 narrow", (3, 6, 10)),
    ("A2 wide", (3, 6, 10)),
    *[("B", shape) for shape in SHAPES + PORTRAIT_LANDSCAPE + TIES],
    *[("B2", shape) for shape in [(3, 6, 10), (4, 10, 6)]],
    *[("C", shape) for shape in [(4, 6, 10), (2, 8, 4), (6, 20, 20)]],
]


class Inputs(NamedTuple):
    latents: Tensor
    t: Tensor
    text: Tensor


def theirs(variant: str, **settings: Any) -> Transformer:
    kind, changes = VARIANTS[variant]
    return tiny.transformer(kind, **{**BASE, **changes, **settings})


def ours(model: Transformer) -> CogVideoX:
    """Our model with the parameters of diffusers', every one of which must have its place."""
    built = CogVideoX(CogVideoXConfig.from_dict(dict(model.config)))
    state = model.state_dict()
    places = {name: COGVIDEOX_DIFFUSERS.source(name).name for name in built.state_dict()}
    assert sorted(places.values()) == sorted(state)
    built.load_state_dict({name: state[place] for name, place in places.items()})
    return built.to(model.dtype).eval()


def inputs(model: Transformer, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(sum(shape))
    frames, height, width = shape
    latents = torch.randn(2, frames, model.config.in_channels, height, width, generator=generator)
    text = torch.randn(2, 7, 12, generator=generator)
    return Inputs(latents.to(dtype), torch.tensor([999, 321]), text.to(dtype))


def their_prediction(model: Transformer, given: Inputs) -> Tensor:
    """Diffusers' prediction, with the positions that diffusers' pipeline makes for latents of this size."""
    pipeline: Any = CogVideoXPipeline(None, None, None, model, CogVideoXDPMScheduler())
    positions = None
    if model.config.use_rotary_positional_embeddings:
        frames, _, height, width = given.latents.shape[1:]
        rows, columns = (length * pipeline.vae_scale_factor_spatial for length in (height, width))
        positions = pipeline._prepare_rotary_positional_embeddings(rows, columns, frames, torch.device("cpu"))
    return model(given.latents, given.text, given.t, image_rotary_emb=positions, return_dict=False)[0]


# Parity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("variant", "shape"), CASES)
@torch.no_grad()
def test_prediction_is_that_of_diffusers(
    variant: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    model = theirs(variant).to(dtype)
    given = inputs(model, shape, dtype)
    expected, got = their_prediction(model, given), ours(model)(*given)
    frames, height, width = shape
    assert got.shape == (2, frames, 4, height // 2 * 2, width // 2 * 2)
    assert got.dtype == dtype
    assert (got - expected).abs().max() == 0.0
    assert expected.std() > 0.1, "a prediction near zero would show nothing"


@pytest.mark.parametrize("variant", ["A", "B", "C"])
@torch.no_grad()
def test_every_parameter_and_input_counts(variant: str) -> None:
    """What the parity above rests on: nothing is without effect, so nothing can be misplaced unseen."""
    model = ours(theirs(variant))
    latents, t, text = inputs(theirs(variant), (2, 6, 10))
    expected = model(latents, t, text)
    assert not torch.equal(model(latents, t - 1, text), expected)
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter.copy_(parameter.roll(1, 0))
        assert not torch.equal(model(latents, t, text), expected), name
        parameter.copy_(kept)
    assert torch.equal(model(latents, t, text), expected)


# Sizes that do not fit


def test_frames_must_fill_the_patches() -> None:
    model = theirs("C")
    with pytest.raises(ValueError, match="3 latent frames do not fill patches of 2"):
        ours(model)(*inputs(model, (3, 6, 10)))


def test_a_grid_beyond_the_table_is_refused() -> None:
    model = theirs("C")
    with pytest.raises(ValueError, match=r"\(11, 3\) tokens are more than .* \(10, 10\)"):
        ours(model)(*inputs(model, (4, 22, 6)))


def test_added_positions_need_their_text_length() -> None:
    model = theirs("A")
    given = inputs(model, (3, 6, 10))
    with pytest.raises(ValueError, match="text has 6 tokens; this checkpoint's positions need 7"):
        ours(model)(given.latents, given.t, given.text[:, :6])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_learned_positional_embeddings", True),
        ("ofs_embed_dim", 8),
        ("norm_eps", 1e-6),
        ("freq_shift", 1),
    ],
)
def test_what_is_not_built_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        CogVideoXConfig.from_dict({**theirs("B").config, setting: value})


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_comes_back_as_it_was(variant: str) -> None:
    config = CogVideoXConfig.from_dict(dict(theirs(variant).config))
    again = Transformer.from_config(config.to_dict())
    assert CogVideoXConfig.from_dict(dict(again.config)) == config


# Positions


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((30, 45), ((0, 0), (30, 45))),
        ((30, 52), ((2, 0), (28, 45))),
        ((45, 30), ((0, 12), (30, 32))),
        ((45, 80), ((2, 0), (27, 45))),
        ((48, 85), ((2, 0), (27, 45))),
        ((24, 24), ((0, 8), (30, 38))),
        ((15, 22), ((0, 0), (30, 44))),
    ],
)
def test_positions_of_the_5b_fit_the_trained_grid(
    size: tuple[int, int], crop: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    found = resized_positions(size, (30, 45))
    for positions, count, start, stop in zip(found, size, *crop, strict=True):
        last = stop * (count - 1) / count
        expected = [start + (last - start) * i / (count - 1) for i in range(count)]
        assert positions.dtype == torch.float32
        assert positions.tolist() == pytest.approx(expected, abs=1e-5)
    if size == (30, 45):
        assert all(torch.equal(p, torch.arange(n).float()) for p, n in zip(found, size, strict=True))


# The named stages


@pytest.mark.parametrize("variant", ["A", "B", "C"])
@torch.no_grad()
def test_the_stages_are_the_forward(variant: str) -> None:
    model = ours(theirs(variant))
    given = inputs(theirs(variant), (2, 6, 10))
    stream = model.begin(*given)
    for block in model.blocks:
        stream = block(stream)
    assert torch.equal(model.finish(stream), model(*given))
    assert stream.grid == model.grid(given.latents)
    assert stream.video.shape[1] == stream.grid.tokens


@pytest.mark.parametrize("skipped", [0, 1, 2])
@torch.no_grad()
def test_a_skipped_block_is_a_model_built_without_it(skipped: int) -> None:
    deep = theirs("B", num_layers=3)
    shallow = theirs("B", num_layers=2)
    missing = shallow.load_state_dict(deep.state_dict(), strict=False).missing_keys
    left = [block for n, block in enumerate(deep.transformer_blocks) if n != skipped]
    for block, state in zip(shallow.transformer_blocks, left, strict=True):
        block.load_state_dict(state.state_dict())
    assert not missing

    model, given = ours(deep), inputs(deep, (2, 6, 10))
    stream = model.begin(*given)
    for n, block in enumerate(model.blocks):
        stream = stream if n == skipped else block(stream)
    got = model.finish(stream)
    assert torch.equal(got, ours(shallow)(*given))
    assert torch.equal(got, their_prediction(shallow, given))
    assert not torch.equal(got, model(*given))
