"""Training of the stage world's tokenizer and text encoder.

The encoder learns to fill in masked words and is then frozen for good. Trained together with a denoiser, or not trained at
all, it gives videos as good, but the attention to its tokens no longer tells foreground from background.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceTrainer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from bachvid.models.text import EOS, PAD, Tokenizer
from bachvid.stage.captions import all_words, caption, corpus
from bachvid.stage.training import Pace, Team
from bachvid.stage.world import Clip, sample_clip

UNKNOWN = 2  # sentencepiece's id for what it cannot spell; also stands where a word is masked
SPELLING = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"-()"  # a word outside the grammar is spelled, not lost


@dataclass(frozen=True)
class TextRecipe:
    """What the text encoder is and how it learns."""

    length: int  # tokens of a padded prompt
    width: int = 128
    heads: int = 4
    layers: int = 2
    inner: int = 320
    batch: int = 48
    rate: float = 2e-3
    chosen: tuple[float, float] = (0.15, 0.3)  # share of a prompt's tokens to guess, drawn per batch
    masked: float = 0.7  # of those, the rest is half exchanged for another word and half left as it is
    pace: Pace = Pace()


def make_tokenizer(folder: Path, length: int, seed: int) -> Tokenizer:
    """The world's tokenizer, written into `folder` in the files transformers' `T5Tokenizer` reads: a word is a token.

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
    split = [word for word in all_words() if len(tokenizer.encode(word).ids) != 1]
    assert not split, f"words of more than one token: {split}"
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {**marks, "extra_ids": 0, "model_max_length": length, "tokenizer_class": "T5Tokenizer"}
    (folder / "special_tokens_map.json").write_text(json.dumps(marks, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    rebuilt = T5Tokenizer.from_pretrained(str(folder))
    rebuilt.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Number of ids of a tokenizer made by `make_tokenizer`."""
    return len(T5Tokenizer.from_pretrained(str(tokenizer.file.parent)))


def make_encoder(recipe: TextRecipe, vocabulary: int) -> T5EncoderModel:
    """An untrained T5 encoder."""
    config = T5Config(
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
    return T5EncoderModel(config)


def encode_batch(encoder: T5EncoderModel, tokenizer: Tokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """Encoded prompts (B, length, width); padding is seen like any other token, as CogVideoX does."""
    rows = [tokenizer.padded(tokenizer.encode(prompt).ids, length) for prompt in prompts]
    ids = torch.tensor(rows, device=encoder.device)  # B L
    return encoder(input_ids=ids).last_hidden_state


class GuessWords(nn.Module):
    """The encoder with a head that names the word at each place; the head is dropped after training."""

    def __init__(self, encoder: T5EncoderModel, vocabulary: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.d_model, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids=ids).last_hidden_state)  # B L vocabulary


class TextTask:
    """The loop's view of the text encoder."""

    name = "text"

    def __init__(
        self, recipe: TextRecipe, tokenizer: Tokenizer, seed: int, team: Team, device: torch.device
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.tokenizer, self.seed, self.team, self.device = recipe, tokenizer, seed, team, device
        self.vocabulary = vocabulary_size(tokenizer)
        self.model = GuessWords(make_encoder(recipe, self.vocabulary), self.vocabulary).to(device)
        self.pace = recipe.pace
        self.optimizers: Sequence[Optimizer] = (
            AdamW(self.model.parameters(), recipe.rate, weight_decay=0.01),
        )

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        seed = self.team.seed(self.seed, step)
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        prompts = corpus(rng, self.recipe.batch)
        rows = [self.tokenizer.padded(self.tokenizer.encode(p).ids, self.recipe.length) for p in prompts]
        ids = torch.tensor(rows)  # B L
        share = rng.uniform(*self.recipe.chosen)
        chosen = (torch.rand(ids.shape, generator=generator) < share) & (ids != PAD)
        shown = self._disguise(ids, chosen, generator)
        guessed = self.model(shown.to(self.device))[chosen.to(self.device)]
        truth = ids[chosen].to(self.device)
        right = (guessed.argmax(-1) == truth).float().mean().item()
        return F.cross_entropy(guessed, truth), {"right": right, "chosen": share}

    def inspect(self, model: nn.Module) -> dict[str, Any]:
        """What linear probes read from the encoder's outputs, each a share in [0, 1]."""
        assert isinstance(model, GuessWords)
        return probe(model.encoder, self.tokenizer, self.recipe.length)

    def _disguise(self, ids: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
        lot = torch.rand(ids.shape, generator=generator)
        others = torch.randint(UNKNOWN + 1, self.vocabulary, ids.shape, generator=generator)
        exchanged = self.recipe.masked + (1 - self.recipe.masked) / 2
        shown = torch.where(chosen & (lot < exchanged), others, ids)
        return torch.where(chosen & (lot < self.recipe.masked), UNKNOWN, shown)


@torch.no_grad()
def probe(encoder: T5EncoderModel, tokenizer: Tokenizer, length: int, captions: int = 600) -> dict[str, float]:
    """How well linear probes, fitted on half of some captions, read the other half.

    `word`: which word a token is; `colour`: which colour the caption gives to a noun; `which`: the how-manieth it is of several
    equal words. An encoder fit for a denoiser has 0.99, 0.9 and 0.99.
    """
    rng = random.Random(0)
    clips = [sample_clip(rng) for _ in range(captions)]
    prompts = [caption(clip, rng).prompt(character_first=rng.random() < 0.5) for clip in clips]
    features = torch.cat([encode_batch(encoder, tokenizer, p, length) for p in _slices(prompts, 100)]).cpu()
    examples: dict[str, list[tuple[int, int, str]]] = {"word": [], "colour": [], "which": []}
    for row, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
        tokens = tokenizer.encode(prompt)
        words = [prompt[start:end].lower() for start, end in tokens.offsets]
        colours = noun_colours(clip)
        for place, word in enumerate(words):
            examples["word"].append((row, place, word))
            if word in colours:
                examples["colour"].append((row, place, colours[word]))
            if words.count(word) > 1:
                examples["which"].append((row, place, str(words[:place].count(word))))
    return {name: round(_probe(features, found, captions // 2), 4) for name, found in examples.items()}


def noun_colours(clip: Clip) -> dict[str, str]:
    """The nouns that a caption of the clip gives a colour to."""
    return {"sky": clip.sky, clip.kind: clip.colour, clip.accessory: clip.accessory_colour}


def _probe(features: Tensor, examples: Sequence[tuple[int, int, str]], first_test_row: int) -> float:
    """Share right, on the later rows, of a least-squares classifier fitted on the earlier rows of features (B, L, C)."""
    names = sorted({label for _, _, label in examples})
    rows, places = (torch.tensor([e[i] for e in examples]) for i in (0, 1))
    labels = torch.tensor([names.index(label) for _, _, label in examples])
    x = F.pad(features[rows, places].double(), (0, 1), value=1.0)  # N C+1
    test = rows >= first_test_row
    gram = x[~test].mT @ x[~test]
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, x[~test].mT @ F.one_hot(labels[~test], len(names)).double())
    return ((x[test] @ weights).argmax(-1) == labels[test]).double().mean().item()


def _slices(items: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))
