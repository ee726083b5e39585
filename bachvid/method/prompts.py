"""Prompts as the method wants them: encoded, with the tokens of their parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bachvid.method.denoiser import Prompt
from bachvid.method.recipe import Recipe
from bachvid.method.spans import Parts, find_spans
from bachvid.method.words import Words
from bachvid.models.text import TextEncoder


def encode_prompts(
    encoder: TextEncoder,
    videos: Sequence[Parts],
    recipe: Recipe,
    words_of: Callable[[Parts], Words | None] | None = None,
) -> list[Prompt]:
    """The cleaned and encoded prompts of these videos; all are checked before any is encoded.

    `words_of` names the words of a video that decide its mask, by default those the recipe asks for.
    ValueError as of `find_spans` and `choose_words`.
    """
    first, spans = recipe.character_first, []
    videos = [parts.each(encoder.clean) for parts in videos]
    for video in videos:
        words = words_of(video) if words_of else video.words(recipe.words)
        offsets = encoder.tokenizer.encode(video.prompt(first)).offsets
        spans.append(find_spans(offsets, video.ranges(first), encoder.length - 1, video.places(words, first)))
    texts = [encoder.encode(video.prompt(first)) for video in videos]
    return [Prompt(text, found.to(text.device)) for text, found in zip(texts, spans, strict=True)]
