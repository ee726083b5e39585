"""Prompts to numbers: tokens that know which characters they stand for, and the T5 encoder that reads them.

The tokenizer is a folder's own sentencepiece model, read directly; T5 itself comes from transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from bachvid.models.layouts import T5_ENCODER, T5_ENCODER_SECOND_NAME
from bachvid.models.weights import Weights, WeightsError, load, read_config, save, write_json

if TYPE_CHECKING:
    from transformers import T5EncoderModel

PAD, EOS = 0, 1
SPACE = "▁"  # how sentencepiece writes a space, and the start of every word


class Tokens(NamedTuple):
    """A text in tokens, without end mark or padding; `ids[i]` stands for the characters `offsets[i]`."""

    ids: list[int]
    offsets: list[tuple[int, int]]  # start, end


class Tokenizer:
    """Sentencepiece tokens of a text; the ids are those of transformers' `T5Tokenizer` for the same folder.

    One exception: a special token spelt out, such as `</s>`, is plain text where there is a `spiece.model`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        backend = _from_tokenizer_json if file.suffix == ".json" else _from_sentencepiece
        try:
            self._backend = backend(file)
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


def _from_sentencepiece(file: Path) -> _Backend:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(file))

    def pieces(text: str) -> Iterator[_Piece]:
        found = processor.encode(text, return_type="offset_mapping")
        for number, piece, span in zip(found["ids"], found["pieces"], found["offsets"], strict=True):
            yield _Piece(number, piece, *span)

    marks = processor.pad_id(), processor.eos_id()
    return _Backend(pieces, processor.normalize, marks, processor.vocab_size())


def _from_tokenizer_json(file: Path) -> _Backend:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(file))
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
    """Tokenizer and T5 as one: a prompt in, `length` encoded tokens out."""

    def __init__(self, tokenizer: Tokenizer, model: T5EncoderModel, length: int) -> None:
        self.tokenizer, self.model, self.length = tokenizer, model, length

    @classmethod
    def from_folder(
        cls,
        root: Path | str,
        length: int = 226,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> TextEncoder:
        """The encoder in `tokenizer/` and `text_encoder/` of a checkpoint, or in one folder that holds both.

        Nothing is fetched, and loading is strict: WeightsError names what is missing or damaged.
        """
        root = Path(root)
        whole = not (root / "text_encoder").is_dir()
        tokenizer = Tokenizer.from_folder(root if whole else root / "tokenizer")
        model = load_t5(root if whole else root / "text_encoder", dtype, device)
        if tokenizer.size > model.config.vocab_size:
            raise WeightsError(
                f"{tokenizer.file} has {tokenizer.size} tokens, the text encoder beside it knows "
                f"{model.config.vocab_size}; take both from one model"
            )
        return cls(tokenizer, model, length)

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Encoded prompt (1, length, C), padding included and attended to: CogVideoX has no mask.

        Agrees with `encode_prompt` of diffusers' `CogVideoXPipeline`. ValueError for too long a prompt.
        """
        ids = self.tokenizer.padded(self.tokenizer.encode(prompt).ids, self.length)
        out = self.model(input_ids=torch.tensor([ids], device=self.model.device)).last_hidden_state
        return out.to(self.model.dtype)  # 1 L C

    def save(self, root: Path | str) -> None:
        """Write `tokenizer/` and `text_encoder/` as transformers and diffusers read them."""
        file, root = self.tokenizer.file, Path(root)
        (root / "tokenizer").mkdir(parents=True, exist_ok=True)
        (root / "tokenizer" / file.name).write_bytes(file.read_bytes())
        settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": self.length}
        write_json(settings, root / "tokenizer" / "tokenizer_config.json")
        save(dict(self.model.named_parameters()), root / "text_encoder" / "model.safetensors")
        self.model.config.save_pretrained(root / "text_encoder")


def load_t5(folder: Path, dtype: torch.dtype, device: torch.device | str) -> T5EncoderModel:
    """transformers' T5 encoder with the weights in a folder; in float16 its `wo` stays float32, as there."""
    from transformers import T5Config, T5EncoderModel  # takes seconds, which `--help` need not

    settings = read_config(folder / "config.json", "model_type", "t5")
    weights = Weights(folder)
    layout = T5_ENCODER if "shared.weight" in weights.shapes else T5_ENCODER_SECOND_NAME
    wide = ("wo",) if dtype is torch.float16 else ()
    model = load(lambda: T5EncoderModel(T5Config.from_dict(settings)), weights, layout, dtype, device, wide)
    if not model.shared.weight.any():
        raise WeightsError(f"the token embeddings in {folder} are all zero; fetch the text encoder again")
    return model
