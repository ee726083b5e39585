"""Tokens, their characters, and T5, against transformers and diffusers: pytest tests/test_text.py"""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import CogVideoXPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from transformers import T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from bachvid.models.text import TextEncoder, Tokenizer
from bachvid.models.weights import WeightsError

PROMPT = "a red fox in a small kitchen stands facing the camera, calm."
# Words in and out of the vocabulary, accents, other scripts, signs that expand, all kinds of space.
ORDINARY = st.text("abcdefnostw ,.:;'é½…日本😀Å\t\n\u00a0\u3000\u200b", max_size=30)
ANYTHING = st.text(max_size=30) | st.text("do g\t\u200b\u3000\x01\u0301▁½…ﷺé\ufffd", max_size=12)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder as diffusers saves it, and `json/`, its tokenizer as transformers 5 saves it."""
    root = tmp_path_factory.mktemp("text")
    tiny.train_tokenizer(root / "tokenizer")
    T5Tokenizer.from_pretrained(root / "tokenizer", extra_ids=0).save_pretrained(root / "json")
    tiny.t5().save_pretrained(root / "text_encoder")
    return root


@pytest.fixture(scope="module")
def both(root: Path) -> list[Tokenizer]:
    """The same tokenizer, from a `spiece.model` and from a `tokenizer.json`."""
    return [Tokenizer.from_folder(root / folder) for folder in ("tokenizer", "json")]


@pytest.fixture(scope="module", params=[0, 1])
def tokenizer(request: pytest.FixtureRequest, both: list[Tokenizer]) -> Tokenizer:
    return both[request.param]


@pytest.fixture(scope="module")
def theirs(root: Path) -> T5Tokenizer:
    return T5Tokenizer.from_pretrained(root / "tokenizer", extra_ids=0)


@pytest.fixture(scope="module")
def model(root: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(root / "tokenizer" / "spiece.model"))


@settings(deadline=None)
@given(text=ORDINARY | st.sampled_from(tiny.SENTENCES))
def test_ids_are_those_of_transformers(tokenizer: Tokenizer, theirs: T5Tokenizer, text: str) -> None:
    assert tokenizer.ids(text) == tokenizer.encode(text).ids
    assert [*tokenizer.ids(text), 1] == theirs(text).input_ids


@settings(deadline=None)
@given(text=ORDINARY | st.sampled_from(tiny.SENTENCES))
def test_either_file_gives_the_same_tokens(both: list[Tokenizer], text: str) -> None:
    assert both[0].encode(text) == both[1].encode(text)


@settings(deadline=None)
@given(text=ANYTHING)
def test_a_tokens_characters_are_what_it_stands_for(both: list[Tokenizer], model: Any, text: str) -> None:
    """In order, inside the text, once normalised the tokens' own text; only space is left without one."""
    offsets = both[0].encode(text).offsets
    assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert all(one[0] <= two[0] for one, two in pairwise(offsets))
    pieces = model.encode(text, out_type=str)  # unlike the ids, these tell unknown characters apart
    spelt = [pair for pair in zip(offsets, pieces, strict=True) if pair[1] != "▁"]
    expands = any(len(plain(model, c)) > 1 for c in text)  # then several tokens share a character
    for (start, end), piece in spelt:
        assert start < end
        assert plain(model, text[start:end]) == plain(model, piece) or expands
    covered = {i for (start, end), _ in spelt for i in range(start, end)}
    assert not plain(model, "".join(c for i, c in enumerate(text) if i not in covered))


def plain(model: Any, text: str) -> str:
    return str(model.normalize(text)).replace("▁", "").replace(" ", "")


@pytest.mark.parametrize(
    "text, words",
    [
        ("the fox", ["the", "fox"]),
        ("  the \t fox\n", ["the", "fox"]),
        ("the\u3000fox\u200bthe", ["the", "fox", "the"]),  # an ideographic and a zero-width space
        ("a ﬁne dog", ["a", "ﬁne", "dog"]),  # a ligature, one character for two letters
        ("a cafe\u0301, a", ["a", "ca", "f", "e\u0301", ",", "a"]),  # two characters for one letter
        ("😀 the", ["", "😀", "the"]),  # outside the vocabulary, and outside 16 bits
        ("… the", ["", "…", "…", "…", "the"]),  # expands to three dots
        ("", []),
        (" \t ", []),
    ],
)
def test_offsets_cut_out_the_words(tokenizer: Tokenizer, text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in tokenizer.encode(text).offsets] == words


def test_padding_ends_the_text_and_cuts_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.padded([7, 8, 9], 6) == [7, 8, 9, 1, 0, 0]
    assert tokenizer.padded([7, 8, 9], 4) == [7, 8, 9, 1]
    with pytest.raises(ValueError, match="has 8 tokens, 1 over the limit; shorten it to 7"):
        tokenizer.padded([7] * 8, 8)


def test_limits_kept_in_a_tokenizer_json_are_lifted(root: Path, tmp_path: Path, theirs: T5Tokenizer) -> None:
    short = T5Tokenizer.from_pretrained(root / "tokenizer", extra_ids=0)
    short(PROMPT, padding="max_length", max_length=4, truncation=True)
    short.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 4
    assert [*Tokenizer.from_folder(tmp_path).encode(PROMPT).ids, 1] == theirs(PROMPT).input_ids


def test_what_is_no_tokenizer_of_a_t5_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no spiece\.model and no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    for name in ("spiece.model", "tokenizer.json"):
        (tmp_path / name).write_text("version https://git-lfs")
        with pytest.raises(WeightsError, match="is no tokenizer"):
            Tokenizer(tmp_path / name)
    tiny.train_tokenizer(tmp_path, pad_id=-1, unk_id=0, bos_id=1, eos_id=2)
    with pytest.raises(WeightsError, match=r"pad and end ids \(-1, 2\)"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [32, 200])  # 200: past the distance that T5 tells apart
def test_embeddings_are_those_of_the_diffusers_pipeline(root: Path, dtype: torch.dtype, length: int) -> None:
    pipe = CogVideoXPipeline(
        tokenizer=T5Tokenizer.from_pretrained(root / "tokenizer", extra_ids=0),
        text_encoder=T5EncoderModel.from_pretrained(root / "text_encoder", dtype=dtype),
        vae=None,
        transformer=None,
        scheduler=None,
    )
    encoder = TextEncoder.from_folder(root, length, dtype)
    with torch.no_grad():
        expected = pipe.encode_prompt(PROMPT, max_sequence_length=length, device=torch.device("cpu"))
    for prompt, theirs in zip((PROMPT, ""), expected, strict=True):
        ours = encoder.encode(prompt)
        assert ours.shape == (1, length, 32) and ours.dtype is dtype and not ours.requires_grad
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_too_long_a_prompt_is_refused(root: Path) -> None:
    encoder = TextEncoder.from_folder(root, 9)
    with pytest.raises(ValueError, match="over the limit; shorten it to 8"):
        encoder.encode(PROMPT)


def only_first_name(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "encoder.embed_tokens.weight"}


def only_second_name(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("shared", "encoder.embed_tokens"): tensor for name, tensor in tensors.items()}


def both_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"].clone()}


@pytest.mark.parametrize("stored", [only_first_name, only_second_name, both_names])
def test_embeddings_are_found_under_either_name(root: Path, tmp_path: Path, stored: Callable) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "text_encoder" / "model.safetensors"
    save_file(stored(only_first_name(load_file(file))), file)
    encoder = TextEncoder.from_folder(tmp_path, 32)
    assert torch.equal(encoder.encode(PROMPT), TextEncoder.from_folder(root, 32).encode(PROMPT))
    assert encoder.model.shared.weight is encoder.model.encoder.embed_tokens.weight


def test_a_whole_t5_in_one_folder_gives_its_encoder(root: Path, tmp_path: Path) -> None:
    whole = tiny.t5(T5ForConditionalGeneration)
    whole.save_pretrained(tmp_path)
    shutil.copy(root / "tokenizer" / "spiece.model", tmp_path)
    encoder = TextEncoder.from_folder(tmp_path, 32)
    ids = torch.tensor([encoder.tokenizer.padded(encoder.tokenizer.encode(PROMPT).ids, 32)])
    with torch.no_grad():
        assert torch.equal(encoder.encode(PROMPT), whole.encoder(ids).last_hidden_state)


def test_what_is_saved_is_what_transformers_loads(root: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.from_folder(root, 32)
    encoder.save(tmp_path)
    encoder.save(tmp_path)  # over itself, as a training that saves again does
    tokenizer = T5Tokenizer.from_pretrained(tmp_path / "tokenizer")
    model = T5EncoderModel.from_pretrained(tmp_path / "text_encoder").eval()
    ids = tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (1, 32) and len(tokenizer) == encoder.tokenizer.size
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, encoder.encode(PROMPT))
    assert torch.equal(TextEncoder.from_folder(tmp_path, 32).encode(PROMPT), encoder.encode(PROMPT))


def test_a_network_that_is_unloaded_frees_its_memory_and_comes_back(root: Path) -> None:
    encoder = TextEncoder.from_folder(root, 32)
    expected, network = encoder.encode(PROMPT), weakref.ref(encoder.model)
    encoder.unload()
    assert network() is None
    encoder.unload()  # twice is once
    assert torch.equal(encoder.encode(PROMPT), expected)


def zero_embeddings(part: Path) -> None:
    tensors = load_file(part / "model.safetensors")
    save_file({**tensors, "shared.weight": torch.zeros(100, 32)}, part / "model.safetensors")


def another_encoder(part: Path) -> None:
    settings = json.loads((part / "config.json").read_text())
    (part / "config.json").write_text(json.dumps({**settings, "model_type": "umt5"}))


def fewer_tokens(part: Path) -> None:
    settings = json.loads((part / "config.json").read_text())
    tensors = load_file(part / "model.safetensors")
    save_file({**tensors, "shared.weight": tensors["shared.weight"][:60].clone()}, part / "model.safetensors")
    (part / "config.json").write_text(json.dumps({**settings, "vocab_size": 60}))


@pytest.mark.parametrize(
    "damage, message",
    [
        (zero_embeddings, "embeddings in .*text_encoder are all zero"),
        (another_encoder, r"config\.json describes a umt5, not a t5"),
        (fewer_tokens, r"spiece\.model has 85 tokens, the text encoder beside it knows 60"),
        (lambda part: (part / "model.safetensors").unlink(), "text_encoder holds no .*fetch"),
    ],
)
def test_a_wrong_text_encoder_is_refused(root: Path, tmp_path: Path, damage: Callable, message: str) -> None:
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "text_encoder")
    with pytest.raises(WeightsError, match=message):
        encoder = TextEncoder.from_folder(tmp_path)
        assert damage is zero_embeddings and encoder.model  # the others are told before it is read
