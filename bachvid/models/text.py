"""Prompts to numbers: tokens that know which characters they stand for, and the T5 or UMT5 that reads them.

The tokenizer is a folder's own sentencepiece model, read directly; the networks come from transformers.
"""

from __future__ import annotations

import gc
import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from bachvid.models.layouts import TOKENIZER, Layout, Rows, t5_encoder
from bachvid.models.weights import Weights, WeightsError, load, read_config, save, write_json

PAD, EOS = 0, 1
SPACE = "▁"  # how sentencepiece writes a space, and the start of every word


class Tokens(NamedTuple):
    """A text in tokens, without end mark or padding; `ids[i]` stands for the characters `offsets[i]`."""

    ids: list[int]
    offsets: list[tuple[int, int]]  # start, end


class Tokenizer:
    """Sentencepiece tokens of a text; the ids are those of transformers' `T5Tokenizer` for the same folder.

    One exception: a special token spelt out, such as `</s>`, is plain text where there is a `spiece.model`.
    The file is that, a `tokenizer.json`, or weights that carry the former's bytes (`layouts.TOKENIZER`).
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        backend, self.name = _from_sentencepiece, "spiece.model"
        if file.suffix == ".json":
            backend, self.name = _from_tokenizer_json, "tokenizer.json"
        try:
            self.content = file.read_bytes() if file.suffix in (".model", ".json") else _carried(file)
            self._backend = backend(self.content)
        except Exception as error:  # the libraries raise RuntimeError and Exception itself
            raise WeightsError(f"{file} is no tokenizer ({error}); fetch it again") from error
        if self._backend.marks != (PAD, EOS):
            raise WeightsError(
                f"{file} has pad and end ids {self._backend.marks}, a T5 has {PAD, EOS}; take its tokenizer"
            )

    @classmethod
    def from_folder(cls, path: Path | str) -> Tokenizer:
        """The tokenizer in a folder: its `spiece.model`, or else its `tokenizer.json`."""
        return cls(tokenizer_file(Path(path)))

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self._backend.size

    def encode(self, text: str) -> Tokens:
        """The tokens of `text`, in order, each with the characters it stands for.

        The space around a word belongs to no token, and a mark that only starts a word stands for nothing,
        (n, n). Tokens that one character expands to (the dots of `…`) all stand for it.
        """
        pieces = list(self._backend.pieces(text))
        nexts = [piece.start for piece in pieces[1:]] + [len(text)]
        offsets = [self._characters(text, piece, after) for piece, after in zip(pieces, nexts, strict=False)]
        return Tokens([piece.id for piece in pieces], offsets)

    def ids(self, text: str) -> list[int]:
        """The ids of `encode`, without what they stand for, which takes most of the time."""
        return [piece.id for piece in self._backend.pieces(text)]

    def padded(self, ids: list[int], length: int) -> list[int]:
        """`ids`, the end mark and padding, `length` in all; ValueError if they do not fit: nothing is cut."""
        over = len(ids) + 1 - length
        if over > 0:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, {over} over the limit; shorten it to {length - 1}"
            )
        return [*ids, EOS, *[PAD] * -over]

    def _characters(self, text: str, piece: _Piece, after: int) -> tuple[int, int]:
        start, mark = piece.start, piece.text == SPACE
        while start < (piece.end if mark else piece.end - 1) and self._is_space(text[start]):
            start += 1
        if mark:
            return start, start
        end = max(piece.end, after, start + 1)  # `after`: the tokenizers library forgets combining marks
        while end > start + 1 and self._is_space(text[end - 1]):
            end -= 1
        return start, end

    def _is_space(self, character: str) -> bool:
        """Whether a character is space, or nothing at all, to the tokenizer."""
        return not self._backend.normalize(character).strip(" " + SPACE)


def tokenizer_file(folder: Path) -> Path:
    """The file of a folder that holds its tokenizer."""
    for name in ("spiece.model", "tokenizer.json"):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder} has no spiece.model and no tokenizer.json; fetch the checkpoint again")


class _Piece(NamedTuple):
    id: int
    text: str
    start: int  # characters of the original text, often with the space before
    end: int


class _Backend(NamedTuple):
    pieces: Callable[[str], Iterable[_Piece]]
    normalize: Callable[[str], str]
    marks: tuple[int | None, int | None]  # pad, end
    size: int


def _carried(file: Path) -> bytes:
    """The `spiece.model` that weights carry."""
    return Weights(file).read(Rows(TOKENIZER)).numpy().tobytes()


def _from_sentencepiece(content: bytes) -> _Backend:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=content)

    def pieces(text: str) -> Iterator[_Piece]:
        found = processor.encode(text, return_type="offset_mapping")
        for number, piece, span in zip(found["ids"], found["pieces"], found["offsets"], strict=True):
            yield _Piece(number, piece, *span)

    marks = processor.pad_id(), processor.eos_id()
    return _Backend(pieces, processor.normalize, marks, processor.vocab_size())


def _from_tokenizer_json(content: bytes) -> _Backend:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    tokenizer.no_truncation()  # a file keeps the limit and padding of its last use
    tokenizer.no_padding()

    def pieces(text: str) -> Iterator[_Piece]:
        found = tokenizer.encode(text, add_special_tokens=False)
        for number, piece, span in zip(found.ids, found.tokens, found.offsets, strict=True):
            yield _Piece(number, piece, *span)

    def normalize(text: str) -> str:
        return tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text

    marks = tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("</s>")
    return _Backend(pieces, normalize, marks, tokenizer.get_vocab_size(with_added_tokens=False))


class TextEncoder:
    """Tokenizer and T5 as one, as CogVideoX has them: a prompt in, `length` encoded tokens out.

    `load` reads the T5, gigabytes of it, and is called when that is first needed: what is wrong with a prompt
    can be told before.
    """

    kind: ClassVar[str] = "t5"  # the `model_type` in its config.json

    def __init__(self, tokenizer: Tokenizer, load: Callable[[], Any], length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self._load = load

    @classmethod
    def from_folder(
        cls,
        root: Path | str,
        length: int = 226,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The encoder in `tokenizer/` and `text_encoder/` of a checkpoint, or in one folder that holds both.

        Nothing is fetched, and reading is strict: WeightsError names what is missing or damaged.
        """
        root = Path(root)
        whole = not (root / "text_encoder").is_dir()
        tokenizer = Tokenizer.from_folder(root if whole else root / "tokenizer")
        folder = root if whole else root / "text_encoder"
        settings, weights = read_config(folder / "config.json", "model_type", cls.kind), Weights(folder)
        return cls.stored(tokenizer, settings, weights, t5_encoder(weights.shapes), length, dtype, device)

    @classmethod
    def stored(
        cls,
        tokenizer: Tokenizer,
        settings: Mapping[str, Any],
        weights: Weights,
        layout: Layout,
        length: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Self:
        """The encoder whose `config.json` has these settings, in weights of that layout, with its tokenizer.

        WeightsError if they are of two models.
        """
        table = weights.shapes.get(layout.source("shared.weight").name)  # None: told when the T5 is read
        if table and tokenizer.size > table[0]:
            raise WeightsError(
                f"{tokenizer.file} has {tokenizer.size} tokens, the text encoder beside it knows "
                f"{table[0]}; take both from one model"
            )
        return cls(tokenizer, partial(load_encoder, settings, weights, layout, dtype, device), length)

    @cached_property
    def model(self) -> Any:
        """transformers' encoder, loaded; WeightsError as of `from_folder`."""
        return self._load()

    def unload(self) -> None:
        """Give back the network's memory, up to 11 GB; it is loaded again when it is needed."""
        self.__dict__.pop("model", None)
        gc.collect()  # transformers leaves it in a cycle

    def clean(self, text: str) -> str:
        """A prompt, or a part of one, as the model's authors pass it on: CogVideoX's unchanged."""
        return text

    @torch.no_grad()
    def encode(self, *prompts: str) -> Tensor:
        """Encoded prompts (B, length, C), padding included and attended to: CogVideoX has no mask.

        Agrees with `encode_prompt` of diffusers' `CogVideoXPipeline`. ValueError for too long a prompt.
        """
        return self._run(input_ids=self._ids(prompts))

    def _ids(self, prompts: Sequence[str]) -> Tensor:
        ids = [self.tokenizer.padded(self.tokenizer.ids(prompt), self.length) for prompt in prompts]
        return torch.tensor(ids, device=self.model.device)  # B L

    def _run(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).last_hidden_state.to(self.model.dtype)  # B L C

    def save(self, root: Path | str) -> None:
        """Write `tokenizer/` and `text_encoder/` as transformers and diffusers read them."""
        root = Path(root)
        (root / "tokenizer").mkdir(parents=True, exist_ok=True)
        (root / "tokenizer" / self.tokenizer.name).write_bytes(self.tokenizer.content)
        settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": self.length}
        write_json(root / "tokenizer" / "tokenizer_config.json", settings)
        save(dict(self.model.named_parameters()), root / "text_encoder" / "model.safetensors")
        self.model.config.save_pretrained(root / "text_encoder")


class WanTextEncoder(TextEncoder):
    """Tokenizer and UMT5 as one, as Wan has them."""

    kind = "umt5"

    def clean(self, text: str) -> str:
        """A prompt, or a part of one, without HTML escapes and with single spaces.

        Agrees with `prompt_clean` of diffusers' `WanPipeline`, which repairs broken encodings where ftfy is
        installed.
        """
        text = html.unescape(html.unescape(_repaired(text))).strip()
        return re.sub(r"\s+", " ", text).strip()

    @torch.no_grad()
    def encode(self, *prompts: str) -> Tensor:
        """Encoded prompts (B, length, C), already `clean`: padding is not attended to, and zero in the end.

        Agrees with `encode_prompt` of diffusers' `WanPipeline`. ValueError for too long a prompt.
        """
        ids = self._ids(prompts)
        real = ids != PAD  # B L
        out = self._run(input_ids=ids, attention_mask=real.long())
        return out.masked_fill(~real[..., None], 0.0)


TEXT_ENCODERS: Mapping[str, type[TextEncoder]] = {
    encoder.kind: encoder for encoder in (TextEncoder, WanTextEncoder)
}


def load_encoder(
    settings: Mapping[str, Any],
    weights: Weights,
    layout: Layout,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Any:
    """transformers' T5 or UMT5 encoder of a `config.json`; in float16 its `wo` stays float32, as there."""
    check_arithmetic(settings["model_type"])
    wide = ("wo",) if dtype is torch.float16 else ()
    model = load(lambda: _build(settings), weights, layout, dtype, device, wide)
    if not model.shared.weight.any():
        raise WeightsError(
            f"the token embeddings in {weights.path} are all zero; fetch the text encoder again"
        )
    return model


@cache
def check_arithmetic(kind: str) -> None:
    """Raise WeightsError if the installed transformers computes another "t5" or "umt5" than it should."""
    sizes = {"vocab_size": 6, "d_model": 4, "d_kv": 2, "d_ff": 4, "num_layers": 2, "num_heads": 2}
    model = _build({"model_type": kind, "feed_forward_proj": "gated-gelu", **sizes}).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters(), start=1):
            count = torch.arange(parameter.numel(), dtype=torch.float32)
            parameter.copy_(torch.sin(number * (count + 1)).view_as(parameter))
        ids, mask = torch.tensor([[5, 2, 3, 1, 0]]), torch.tensor([[1, 1, 1, 1, 0]])
        found = model(input_ids=ids, attention_mask=mask).last_hidden_state[0, 0]
    if not torch.allclose(found, torch.tensor(KNOWN_ANSWERS[kind]), atol=1e-4):
        import transformers

        raise WeightsError(
            f"transformers {transformers.__version__} computes {kind} wrongly; install transformers 5.23.0"
        )


KNOWN_ANSWERS = {  # the first token's; tests/test_umt5.py derives them without transformers
    "t5": (0.79947, 0.55877, -0.11767, -1.09264),
    "umt5": (-0.00005, 0.01801, 0.04554, -0.00527),
}


def _build(settings: Mapping[str, Any]) -> Any:
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel  # takes seconds

    if settings["model_type"] == "umt5":
        return UMT5EncoderModel(UMT5Config.from_dict(dict(settings)))
    return T5EncoderModel(T5Config.from_dict(dict(settings)))


def _repaired(text: str) -> str:
    try:
        import ftfy
    except ImportError:
        return text
    return ftfy.fix_text(text)
