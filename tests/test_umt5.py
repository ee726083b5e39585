"""UMT5 and T5 against a literal oracle, and Wan's prompts against diffusers: pytest tests/test_umt5.py"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import WanPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import T5Tokenizer, UMT5EncoderModel

from bachvid.models import text as texts
from bachvid.models.text import KNOWN_ANSWERS, Tokenizer, WanTextEncoder, check_arithmetic
from bachvid.models.weights import WeightsError

EPS = 1e-6


def bucket(distance: int) -> int:
    """The number of a relative position (key minus query): 32 in all, exact when near, logarithmic to 128."""
    sign, far = (16 if distance > 0 else 0), abs(distance)
    if far < 8:
        return sign + far
    return sign + min(15, 8 + int(math.log(far / 8) / math.log(128 / 8) * 8))


def oracle(state: dict[str, Tensor], ids: list[int], real: list[int], heads: int) -> Tensor:
    """The encoder written out for one row, from the weights alone: (L, C) float64."""
    state = {name: tensor.double() for name, tensor in state.items()}
    x = state["shared.weight"][ids]  # L C
    length, tables = len(ids), []

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight

    for n in range(layers_of(state)):
        at, then = (f"encoder.block.{n}.layer.{part}." for part in (0, 1))
        y = norm(x, state[at + "layer_norm.weight"])
        q, k, v = (
            (y @ state[f"{at}SelfAttention.{name}.weight"].T).view(length, heads, -1).transpose(0, 1)
            for name in "qkv"
        )  # H L D
        own = state.get(at + "SelfAttention.relative_attention_bias.weight")
        tables.append(own if own is not None else tables[-1])  # 32 H
        bias = torch.stack(
            [torch.stack([tables[-1][bucket(j - i)] for j in range(length)]) for i in range(length)]
        )
        scores = q @ k.mT + bias.permute(2, 0, 1)  # H L L, not divided by the root of the width
        scores[:, :, [not here for here in real]] = -math.inf
        y = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + y @ state[at + "SelfAttention.o.weight"].T
        y = norm(x, state[then + "layer_norm.weight"])
        gate, up = (y @ state[f"{then}DenseReluDense.wi_{i}.weight"].T for i in (0, 1))
        y = torch.nn.functional.gelu(gate, approximate="tanh") * up
        x = x + y @ state[then + "DenseReluDense.wo.weight"].T
    return norm(x, state["encoder.final_layer_norm.weight"])


def layers_of(state: dict[str, Tensor]) -> int:
    return sum(name.endswith("SelfAttention.q.weight") for name in state)


@pytest.mark.parametrize("length", [9, 200])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["t5", "umt5"])
@torch.no_grad()
def test_transformers_computes_what_the_papers_say(kind: str, masked: bool, length: int) -> None:
    model = tiny.t5() if kind == "t5" else tiny.umt5()
    ids = torch.randint(2, 100, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    real = [1] * (length - 3) + [0 if masked else 1] * 3
    out = model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([real])).last_hidden_state[0]
    expected = oracle(model.state_dict(), ids, real, heads=4)
    assert (out - expected)[: length - 3].abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["t5", "umt5"])
@torch.no_grad()
def test_the_known_answers_are_the_oracles(kind: str) -> None:
    sizes = {"vocab_size": 6, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 2, "num_heads": 2}
    model: Any = texts._build({"model_type": kind, "feed_forward_proj": "gated-gelu", **sizes})
    for number, parameter in enumerate(model.parameters(), start=1):
        parameter.copy_(torch.sin(number * torch.arange(1.0, parameter.numel() + 1)).view_as(parameter))
    found = oracle(model.state_dict(), [5, 2, 3, 1, 0], [1, 1, 1, 1, 0], heads=2)[0]
    assert found.tolist() == pytest.approx(KNOWN_ANSWERS[kind], abs=1e-4)


def test_a_transformers_that_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_arithmetic("umt5")
    check_arithmetic.cache_clear()
    monkeypatch.setitem(KNOWN_ANSWERS, "umt5", KNOWN_ANSWERS["t5"])
    with pytest.raises(WeightsError, match=r"transformers .* computes umt5 wrongly"):
        check_arithmetic("umt5")
    check_arithmetic.cache_clear()


# Wan's prompts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder as diffusers saves it, with a tokenizer that transformers reads rightly."""
    root = tmp_path_factory.mktemp("umt5")
    tiny.train_tokenizer(root / "tokenizer")
    tiny.umt5().save_pretrained(root / "text_encoder")
    return root


@pytest.mark.parametrize(
    "prompt",
    ["a red fox in a small kitchen", "", "  a fox &amp;amp; a dog,\n\t calm&nbsp;day ", "fish &amp; chips"],
)
def test_embeddings_are_those_of_the_diffusers_pipeline(root: Path, prompt: str) -> None:
    model = UMT5EncoderModel.from_pretrained(root / "text_encoder")
    pipeline: Any = WanPipeline(
        tokenizer=T5Tokenizer.from_pretrained(root / "tokenizer", extra_ids=0),
        text_encoder=model, transformer=None, vae=None, scheduler=None,
    )  # fmt: skip
    with torch.no_grad():
        expected = pipeline._get_t5_prompt_embeds(prompt, max_sequence_length=60)
    encoder = WanTextEncoder.from_folder(root, 60)
    got = encoder.encode(encoder.clean(prompt))
    assert got.shape == (1, 60, 32)
    assert torch.equal(got, expected)
    assert not got[:, -20:].any() and got[:, 0].any()


@given(text=st.text("abc &;\n\t\u3000", max_size=20) | st.sampled_from(["&amp;lt;b&amp;gt;", "&lt;", "a  b"]))
def test_cleaning_a_clean_text_changes_nothing_but_escapes(text: str) -> None:
    encoder = WanTextEncoder.__new__(WanTextEncoder)
    clean = encoder.clean(text)
    assert clean == clean.strip() and "  " not in clean and "\n" not in clean
    if "&" not in clean:
        assert encoder.clean(clean) == clean


def test_unknown_characters_fall_back_to_bytes(tmp_path: Path) -> None:
    """As UMT5's own tokenizer has them do, and transformers 5 does not."""
    tiny.train_tokenizer(tmp_path, byte_fallback=True, vocab_size=341, unk_id=3, bos_id=2)
    tokens = Tokenizer.from_folder(tmp_path).encode("a 日 fox")
    pieces = [number for number, (start, end) in zip(*tokens, strict=True) if (start, end) == (2, 3)]
    assert len(pieces) >= 3, "three bytes of UTF-8, each of them one token of that character"
    assert 3 not in tokens.ids, "nothing is unknown"
    assert tokens.offsets[-1] == (4, 7)
