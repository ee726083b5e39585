"""Which words stand for the place and for the character, where a whole part would not do (appendix B.1).

Attention to a whole sentence ends in its "the", "with" and full stops; Wan's masks need the nouns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Range = tuple[int, int]  # characters: first, one past the last
Ask = Callable[[str], Sequence[str]]  # a text -> its nouns
Marks = tuple[Sequence[str], Sequence[str]]  # what is marked in the background, and in the character
Source = Literal["marked", "listed", "model", "content"]


@dataclass(frozen=True)
class Words:
    """The words that decide the masks, and how they were found: see `choose_words`."""

    source: Source
    background: tuple[str, ...]
    character: tuple[str, ...]


def unmarked(text: str) -> tuple[str, tuple[str, ...]]:
    """A text without its [square brackets], and what stood in them."""
    return MARK.sub(r"\1", text), tuple(MARK.findall(text))


def choose_words(
    background: str,
    character: str,
    *,
    marked: Marks = ((), ()),
    listed: Sequence[str] = (),
    ask: Ask | None = None,
) -> Words:
    """The nouns of both parts, by the first source that is given: marked, listed, asked for, content words.

    ValueError if that source names no word of a part.
    """
    texts = (background, character)
    if any(marked):
        return _found("marked", texts, marked)
    if listed:
        return _found("listed", texts, (listed, listed))
    if ask:
        return _found("model", texts, (ask(background), ask(character)))
    return _found("content", texts, (content_words(background), content_words(character)))


def content_words(text: str) -> list[str]:
    """The words of a text but for English function words, in their order, each once."""
    words = re.findall(r"(?<!\w)[^\W\d_](?:[\w'’-]*\w)?", text)
    return list(dict.fromkeys(word for word in words if word.lower() not in FUNCTION_WORDS))


def occurrences(text: str, phrases: Sequence[str], in_words: bool = False) -> Iterator[Range]:
    """Where the phrases stand in a text, whatever their case, as whole words where words have spaces.

    With `in_words` a phrase that is nowhere a whole word is also found inside of words, as in [fisher]man.
    """
    for phrase in filter(None, map(str.strip, phrases)):
        before = rf"(?<!{LETTER})" if re.match(LETTER, phrase[0]) else ""
        after = rf"(?!{LETTER})" if re.match(LETTER, phrase[-1]) else ""
        anywhere = re.escape(phrase)
        places = [found.span() for found in re.finditer(f"{before}{anywhere}{after}", text, re.IGNORECASE)]
        if in_words and not places:
            places = [found.span() for found in re.finditer(anywhere, text, re.IGNORECASE)]
        yield from places


def _found(source: Source, texts: tuple[str, str], phrases: tuple[Sequence[str], Sequence[str]]) -> Words:
    chosen = {}
    for name, text, some in zip(("background", "character"), texts, phrases, strict=True):
        chosen[name] = tuple(p for p in some if list(occurrences(text, [p], in_words=source == "marked")))
        if not chosen[name]:
            raise ValueError(
                f"The {name} {text!r} has no noun to look for ({source} words). {WAYS_OUT[source]}"
            )
    return Words(source, chosen["background"], chosen["character"])


MARK = re.compile(r"\[([^\[\]]+)\]")
LETTER = r"[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"  # of a script that has spaces between words
MARK_BOTH = "Mark one in both parts: an old [fisherman] in a [harbour]."
WAYS_OUT = {
    "marked": "Mark one there too, as in the other part: an old [fisherman].",
    "listed": "Add one to --nouns.",
    "model": MARK_BOTH,
    "content": MARK_BOTH,
}
FUNCTION_WORDS = frozenset(
    word
    for line in (
        "a an the this that these those some any no every each either neither both all half such another",
        "other",
        "i you he she it we they me him her us them my your his its our their mine yours hers ours theirs",
        "who whom whose which what where when why how there here",
        "am is are was were be been being do does did done have has had having",
        "will would shall should can could may might must",
        "and or but nor so yet if then than as because while although though unless until since",
        "of in on at by to from with without within into onto over under above below between among through",
        "across along around about against behind before after beside besides near off out up down for",
        "during",
        "toward towards",
        "not only just very too also quite rather more most less least much many few several own same",
        "one two three",
    )
    for word in line.split()
)
