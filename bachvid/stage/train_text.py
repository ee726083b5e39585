"""Training of the stage world's tokenizer and text encoder.

The encoder learns to fill in masked words and is then frozen for good. Trained together with a denoiser, or
not at all, it gives videos as good, but attention to its tokens does not tell foreground from background.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceTrainer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from bachvid.models.text import EOS, PAD, TEXT_ENCODERS, TextEncoder, Tokenizer
from bachvid.stage.captions import all_words, caption, corpus
from bachvid.stage.muon import Muon
from bachvid.stage.training import PACE, Facts, Pace, Team
from bachvid.stage.world import Clip, sample_clip

UNKNOWN = 2  # sentencepiece's id for what it cannot spell; also stands where a word is masked
SPELLING = (
    "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()"  # a word outside the grammar is spelled, not lost
)
Example = tuple[int, int, str]  # row, place, label
MATRICES = tuple(f".{name}.weight" for name in ("q", "k", "v", "o", "wi_0", "wi_1", "wo"))  # in a T5 block


@dataclass(frozen=True)
class TextRecipe:
    """What the text encoder is and how it learns."""

    length: int  # tokens of a padded prompt
    kind: str = "t5"  # or "umt5", which does not look at padding
    width: int = 128
    heads: int = 4
    layers: int = 2
    inner: int = 320
    batch: int = 48
    rate: float = 2e-3
    chosen: tuple[float, float] = (0.15, 0.3)  # share of a prompt's tokens to guess, drawn per batch
    masked: float = 0.7  # of those, the rest is half exchanged for another word and half left as it is
    pace: Pace = PACE


def make_tokenizer(folder: Path, length: int, seed: int) -> Tokenizer:
    """The world's tokenizer, written into `folder` as transformers' `T5Tokenizer` reads it: one token a word.

    Capital letters are folded. Ids 0, 1 and 2 are padding, end and unknown, as in every T5.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*all_words(), *corpus(random.Random(seed), 4000)]),
        model_writer=model,
        model_type="unigram",
        vocab_size=2000,  # more than there are pieces; the limit is soft
        hard_vocab_limit=False,
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNKNOWN,
        bos_id=-1,
        required_chars=SPELLING,
        normalization_rule_name="nmt_nfkc_cf",
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = Tokenizer(folder / "spiece.model")
    split = [word for word in all_words() if len(tokenizer.ids(word)) != 1]
    assert not split, f"words of more than one token: {split}"
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {**marks, "extra_ids": 0, "model_max_length": length, "tokenizer_class": "T5Tokenizer"}
    (folder / "special_tokens_map.json").write_text(json.dumps(marks, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    from transformers import T5Tokenizer

    rebuilt = T5Tokenizer.from_pretrained(str(folder))
    rebuilt.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def make_encoder(recipe: TextRecipe, vocabulary: int) -> Any:
    """An untrained T5 or UMT5 encoder."""
    import transformers

    kind = recipe.kind.upper()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=vocabulary,
        d_model=recipe.width,
        d_kv=recipe.width // recipe.heads,
        d_ff=recipe.inner,
        num_layers=recipe.layers,
        num_heads=recipe.heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=PAD,
        eos_token_id=EOS,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


class GuessWords(nn.Module):
    """The encoder with a head that names the word at each place; the head is dropped after training."""

    def __init__(self, encoder: Any, vocabulary: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.d_model, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        masks = {"attention_mask": (ids != PAD).long()} if self.encoder.config.model_type == "umt5" else {}
        return self.head(self.encoder(input_ids=ids, **masks).last_hidden_state)  # B L vocabulary


class TextTask:
    """The loop's view of the text encoder."""

    name = "text"

    def __init__(
        self, recipe: TextRecipe, tokenizer: Tokenizer, seed: int, team: Team, device: torch.device
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.tokenizer, self.seed, self.team, self.device = recipe, tokenizer, seed, team, device
        self.vocabulary = tokenizer.size
        self.model = GuessWords(make_encoder(recipe, self.vocabulary), self.vocabulary).to(device)
        self.counts: dict[str, int] = {}
        matrices = [p for name, p in self.model.named_parameters() if name.endswith(MATRICES)]
        others = [p for name, p in self.model.named_parameters() if not name.endswith(MATRICES)]
        self.optimizers: Sequence[Optimizer] = (
            Muon(matrices, recipe.rate),
            AdamW(others, recipe.rate, betas=(0.9, 0.99), weight_decay=0.0),
        )

    def begin(self, averaged: nn.Module) -> None:
        pass  # everything is built by now

    def loss(self, step: int, progress: float) -> tuple[Tensor, Facts]:
        seed = self.team.seed(self.seed, step)
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        prompts = corpus(rng, self.recipe.batch)
        rows = [self.tokenizer.padded(self.tokenizer.ids(p), self.recipe.length) for p in prompts]
        ids = torch.tensor(rows)  # B L
        share = rng.uniform(*self.recipe.chosen)
        chosen = (torch.rand(ids.shape, generator=generator) < share) & (ids != PAD)
        shown = self._disguise(ids, chosen, generator)
        guessed = self.model(shown.to(self.device))[chosen.to(self.device)]
        truth = ids[chosen].to(self.device)
        right = (guessed.argmax(-1) == truth).float().mean()
        return F.cross_entropy(guessed, truth), {"right": right, "chosen": share}

    def inspect(self, model: nn.Module) -> dict[str, Any]:
        """What linear probes read from the encoder's outputs, each a share in [0, 1]."""
        assert isinstance(model, GuessWords)
        reader = TEXT_ENCODERS[self.recipe.kind](self.tokenizer, lambda: model.encoder, self.recipe.length)
        return probe(reader)

    def _disguise(self, ids: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
        lot = torch.rand(ids.shape, generator=generator)
        others = torch.randint(UNKNOWN + 1, self.vocabulary, ids.shape, generator=generator)
        exchanged = self.recipe.masked + (1 - self.recipe.masked) / 2
        shown = torch.where(chosen & (lot < exchanged), others, ids)
        return torch.where(chosen & (lot < self.recipe.masked), UNKNOWN, shown)


@torch.no_grad()
def probe(encoder: TextEncoder, captions: int = 600) -> dict[str, float]:
    """How well linear probes, fitted on half of some captions, read the other half.

    `word`: which word a token is; `colour`: which colour the caption gives to a noun; `part`: whether a word
    stands in the background, the character or the action, with a probe for each word. An encoder that is fit
    for a denoiser has 0.99, 0.9 and 0.99.
    """
    rng = random.Random(0)
    clips = [sample_clip(rng) for _ in range(captions)]
    parts = [caption(clip, rng) for clip in clips]
    prompts = [each.prompt(character_first=rng.random() < 0.5) for each in parts]
    features = torch.cat([encoder.encode(*some) for some in _slices(prompts, 100)]).cpu()
    words: list[Example] = []
    colours: list[Example] = []
    places: dict[str, list[Example]] = {}
    for row, (clip, each, prompt) in enumerate(zip(clips, parts, prompts, strict=True)):
        named = noun_colours(clip)
        for place, (start, end) in enumerate(encoder.tokenizer.encode(prompt).offsets):
            word = prompt[start:end]
            words.append((row, place, word))
            if word in named:
                colours.append((row, place, named[word]))
            parts_of = vars(each).items()
            part = next(name for name, text in parts_of if 0 <= start - prompt.index(text) < len(text))
            places.setdefault(word, []).append((row, place, part))
    which = [(_probe(features, found, captions // 2), len(found)) for found in places.values()]
    return {
        "word": round(_probe(features, words, captions // 2), 4),
        "colour": round(_probe(features, colours, captions // 2), 4),
        "part": round(sum(share * count for share, count in which) / sum(count for _, count in which), 4),
    }


def noun_colours(clip: Clip) -> dict[str, str]:
    """The nouns that a caption of the clip gives a colour to."""
    return {"sky": clip.sky, clip.kind: clip.colour, clip.accessory: clip.accessory_colour}


def _probe(features: Tensor, examples: Sequence[Example], first_test_row: int) -> float:
    """Share right, on later rows of features (B, L, C), of least-squares classes fitted on earlier rows."""
    names = sorted({label for _, _, label in examples})
    rows, places = (torch.tensor([e[i] for e in examples]) for i in (0, 1))
    labels = torch.tensor([names.index(label) for _, _, label in examples])
    x = F.pad(features[rows, places].double(), (0, 1), value=1.0)  # N C+1
    test = rows >= first_test_row
    gram = x[~test].mT @ x[~test]
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, x[~test].mT @ F.one_hot(labels[~test], len(names)).double())
    right = (x[test] @ weights).argmax(-1) == labels[test]
    return right.double().mean().item() if len(right) else 1.0


def _slices(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))
