"""The Wan denoiser against diffusers' own, to the bit: pytest tests/test_wan.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
from diffusers import WanTransformer3DModel as Transformer
from torch import Tensor

from bachvid.models.layouts import SAME, WAN_DIFFUSERS
from bachvid.models.wan import CHECKPOINTS, ISLANDS, Wan, WanConfig
from bachvid.models.weights import Weights, load

VARIANTS: dict[str, dict[str, Any]] = {
    "A": {},
    "B": {"num_attention_heads": 4, "attention_head_dim": 24, "freq_dim": 32, "ffn_dim": 80, "text_dim": 24},
    "B odd split": {"attention_head_dim": 12},
    "C": {"cross_attn_norm": False},
    "E": {"patch_size": (2, 2, 2)},
}
CASES = [
    *[("A", shape) for shape in [(3, 6, 10), (1, 4, 4), (2, 8, 6), (3, 7, 9)]],
    ("B", (3, 6, 10)),
    ("B odd split", (2, 4, 4)),
    ("C", (3, 6, 10)),
    ("E", (4, 6, 10)),
]


class Inputs(NamedTuple):
    latents: Tensor
    t: Tensor
    text: Tensor


def theirs(variant: str) -> Transformer:
    return tiny.wan_transformer(**VARIANTS[variant])


def ours(model: Transformer) -> Wan:
    """Our model with the parameters of diffusers', every one of which must have its place."""
    built = Wan(WanConfig.from_dict(dict(model.config)))
    state = model.state_dict()
    places = {name: WAN_DIFFUSERS.source(name).name for name in built.state_dict()}
    assert sorted(places.values()) == sorted(state)
    built.load_state_dict({name: state[place] for name, place in places.items()})
    return built.eval()


def inputs(model: Transformer, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(sum(shape))
    latents = torch.randn(2, model.config.in_channels, *shape, generator=generator)
    text = torch.randn(2, 5, model.config.text_dim, generator=generator)
    return Inputs(latents.to(dtype), torch.tensor([999, 321]), text.to(dtype))


def their_prediction(model: Transformer, given: Inputs) -> Tensor:
    return model(given.latents, given.t, given.text, return_dict=False)[0]


# Parity


@pytest.mark.parametrize(("variant", "shape"), CASES)
@torch.no_grad()
def test_prediction_is_that_of_diffusers(variant: str, shape: tuple[int, int, int]) -> None:
    model = theirs(variant)
    given = inputs(model, shape)
    expected, got = their_prediction(model, given), ours(model)(*given)
    frames, height, width = shape
    assert got.shape == (2, 4, frames, height // 2 * 2, width // 2 * 2)
    assert (got - expected).abs().max() == 0.0
    assert expected.std() > 0.1, "a prediction near zero would show nothing"


@torch.no_grad()
def test_every_token_may_have_its_own_timestep() -> None:
    model = theirs("A")
    latents, _, text = inputs(model, (3, 6, 10))
    t = torch.randint(1000, (2, 3 * 3 * 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(model)(latents, t, text), their_prediction(model, Inputs(latents, t, text)))
    alike = torch.tensor([999, 321])
    spread = alike[:, None].expand(2, 45)
    assert (ours(model)(latents, spread, text) - ours(model)(latents, alike, text)).abs().max() <= 1e-5


@torch.no_grad()
def test_text_that_is_zero_still_counts() -> None:
    """Prompts are padded with zeros, which become constant vectors that are attended to."""
    model = theirs("A")
    latents, t, text = inputs(model, (3, 6, 10))
    text[:, 3:] = 0
    padded = Inputs(latents, t, text)
    assert torch.equal(ours(model)(*padded), their_prediction(model, padded))
    assert (ours(model)(*padded) - ours(model)(latents, t, text[:, :3])).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["A", "C", "E"])
@torch.no_grad()
def test_every_parameter_and_input_counts(variant: str) -> None:
    """What the parity above rests on: nothing is without effect, so nothing can be misplaced unseen."""
    model = ours(theirs(variant))
    latents, t, text = inputs(theirs(variant), (2, 6, 10))
    expected = model(latents, t, text)
    assert not torch.equal(model(latents, t - 1, text), expected)
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter.copy_(parameter.roll(1, -1))
        assert not torch.equal(model(latents, t, text), expected), name
        parameter.copy_(kept)
    assert torch.equal(model(latents, t, text), expected)


# Less than float32


@torch.no_grad()
def test_islands_are_those_of_diffusers(tmp_path: Path) -> None:
    """Loaded in bfloat16, both keep the same parts in float32 and predict the same."""
    model = theirs("A")
    model.save_pretrained(tmp_path)
    for (
        name,
        parameter,
    ) in model.named_parameters():  # what from_pretrained does where accelerate is installed
        if not set(name.split(".")) & set(Transformer._keep_in_fp32_modules):
            parameter.data = parameter.to(torch.bfloat16)
    built = stored(tmp_path, "diffusers")
    for name, parameter in built.named_parameters():
        assert parameter.dtype == model.get_parameter(WAN_DIFFUSERS.source(name).name).dtype, name
    given = inputs(model, (3, 6, 10), torch.bfloat16)
    assert torch.equal(built(*given), their_prediction(model, given))
    cast_later = their_prediction(theirs("A").to(torch.bfloat16), given)
    assert not torch.equal(built(*given), cast_later), "islands that change nothing would show nothing"


@torch.no_grad()
def test_islands_of_the_original_keep_more_in_float32(tmp_path: Path) -> None:
    theirs("A").save_pretrained(tmp_path)
    few, many = stored(tmp_path, "diffusers"), stored(tmp_path, "original")
    given = inputs(theirs("A"), (3, 6, 10), torch.bfloat16)
    exact = ours(theirs("A"))(*[part.float() if part.is_floating_point() else part for part in given])
    assert many(*given).dtype is torch.float32 and few(*given).dtype is torch.bfloat16
    assert (many(*given) - exact).square().mean() < (few(*given) - exact).square().mean()
    whole = Wan(many.config, ISLANDS["original"])
    whole.load_state_dict(ours(theirs("A")).state_dict())
    given = inputs(theirs("A"), (3, 6, 10))
    assert torch.equal(whole(*given), ours(theirs("A"))(*given)), "in float32 there is nothing to keep"


def stored(folder: Path, islands: str) -> Wan:
    """The transformer that diffusers saved, in bfloat16 but for the islands."""
    weights, kept = Weights(folder), ISLANDS[islands]
    config = WanConfig.from_dict(dict(theirs("A").config))
    return load(lambda: Wan(config, kept), weights, WAN_DIFFUSERS, torch.bfloat16, wide=kept.parts)


# Full size


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [("wan2.1-t2v-1.3b", 825, 1_418_996_800), ("wan2.1-t2v-14b", 1095, 14_288_491_584)],
)
def test_published_models_have_their_names_and_sizes(name: str, tensors: int, parameters: int) -> None:
    config = CHECKPOINTS[name]
    with torch.device("meta"):
        model, reference = Wan(config), Transformer.from_config(config.to_dict())
    ours = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert len(ours) == tensors
    assert sum(shape.numel() for shape in ours.values()) == parameters
    expected = {name: parameter.shape for name, parameter in reference.named_parameters()}
    assert {WAN_DIFFUSERS.source(name).name: shape for name, shape in ours.items()} == expected
    assert {SAME.source(name).name for name in ours} == {tiny.wan_original_name(name) for name in expected}


# What does not fit


def test_more_positions_than_the_model_has_are_refused() -> None:
    model = theirs("A")
    with pytest.raises(ValueError, match=r"\(1, 2, 33\) tokens is longer than the 32 positions"):
        ours(model)(*inputs(model, (1, 4, 66)))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("image_dim", 8), ("added_kv_proj_dim", 8), ("qk_norm", None), ("eps", 1e-5), ("out_channels", 8)],
)
def test_what_is_not_built_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        WanConfig.from_dict({**theirs("A").config, setting: value})


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_config_comes_back_as_it_was(variant: str) -> None:
    config = WanConfig.from_dict(dict(theirs(variant).config))
    again = Transformer.from_config(config.to_dict())
    assert WanConfig.from_dict(dict(again.config)) == config


# The named stages


@torch.no_grad()
def test_the_stages_are_the_forward() -> None:
    model = ours(theirs("A"))
    given = inputs(theirs("A"), (2, 6, 10))
    stream = model.begin(*given)
    for block in model.blocks:
        stream = block(stream)
    assert torch.equal(model.finish(stream), model(*given))
