"""Prompts as the method wants them: encoded, with the tokens of their parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bachvid.method.denoiser import Prompt
from bachvid.method.mask import Spans
from bachvid.method.recipe import Recipe
from bachvid.method.spans import Parts, find_spans
from bachvid.method.words import Words
from bachvid.models.text import TextEncoder


class Written(NamedTuple):
    """A prompt as the model's encoder will read it, and the tokens of its parts."""

    text: str
    spans: Spans


def write_prompts(
    encoder: TextEncoder,
    videos: Sequence[Parts],
    recipe: Recipe,
    words_of: Callable[[Parts], Words | None] | None = None,
) -> list[Written]:
    """The cleaned prompts of these videos, checked by the tokenizer alone: no weight is read.

    `words_of` names the words of a video that decide its mask, by default those the recipe asks for.
    ValueError as of `find_spans` and `choose_words`.
    """
    first, found = recipe.character_first, []
    for video in [parts.each(encoder.clean) for parts in videos]:
        words = words_of(video) if words_of else video.words(recipe.words)
        text = video.prompt(first)
        offsets = encoder.tokenizer.encode(text).offsets
        spans = find_spans(offsets, video.ranges(first), encoder.length - 1, video.places(words, first))
        found.append(Written(text, spans))
    return found


def encode_prompts(encoder: TextEncoder, written: Sequence[Written]) -> list[Prompt]:
    """The same prompts, encoded."""
    texts = [encoder.encode(prompt.text) for prompt in written]
    return [
        Prompt(text, prompt.spans.to(text.device), prompt.text)
        for text, prompt in zip(texts, written, strict=True)
    ]
