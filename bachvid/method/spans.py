"""A prompt and the tokens of its parts (Section 3.2: "[Background], [Character], [Action]")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from bachvid.method.mask import Spans
from bachvid.method.words import Ask, Marks, Range, Words, choose_words, occurrences


@dataclass(frozen=True)
class Parts:
    """What one video shows. The three parts, joined by single spaces, are its prompt."""

    background: str
    character: str
    action: str

    def each(self, change: Callable[[str], str]) -> Parts:
        """The parts, each changed."""
        return Parts(change(self.background), change(self.character), change(self.action))

    def prompt(self, character_first: bool = False) -> str:
        """The whole prompt, background first, or character first (the other template of appendix C)."""
        return " ".join(text for _, text in self._in_order(character_first))

    def ranges(self, character_first: bool = False) -> dict[str, Range]:
        """Where each part stands in the prompt, by name."""
        found, start = {}, 0
        for name, text in self._in_order(character_first):
            found[name] = (start, start + len(text))
            start += len(text) + 1
        return found

    def words(
        self, kind: str, marked: Marks = ((), ()), listed: Sequence[str] = (), ask: Ask | None = None
    ) -> Words | None:
        """The words that stand for the place and the character; None for "all", unless there is a source."""
        if kind == "all" and not (any(marked) or listed or ask):
            return None
        return choose_words(self.background, self.character, marked=marked, listed=listed, ask=ask)

    def places(self, words: Words | None, character_first: bool = False) -> dict[str, list[Range]]:
        """Where chosen words of the background and the character stand in the prompt, by part."""
        found: dict[str, list[Range]] = {}
        if words is None:
            return found
        for name, phrases in (("background", words.background), ("character", words.character)):
            start, _ = self.ranges(character_first)[name]
            places = occurrences(getattr(self, name), phrases, in_words=words.source == "marked")
            found[name] = [(start + first, start + last) for first, last in places]
        return found

    def _in_order(self, character_first: bool) -> list[tuple[str, str]]:
        shared = [("background", self.background), ("character", self.character)]
        return [*(reversed(shared) if character_first else shared), ("action", self.action)]


def find_spans(
    offsets: Sequence[Range],
    ranges: Mapping[str, Range],
    limit: int,
    only: Mapping[str, Sequence[Range]] = MappingProxyType({}),
) -> Spans:
    """Indices of the background's and the character's tokens (Eq. 2), for the tokens' character offsets.

    A token that straddles two parts belongs to the one that holds its first letter; a token without
    letters, the end mark and padding belong to none. A part in `only` (`Parts.places`) has the tokens alone
    that stand for any of those places. ValueError names a part without a token, and the part in which the
    prompt runs past `limit` tokens.
    """
    tokens = {name: _tokens_in(offsets, [whole]) for name, whole in ranges.items()}
    for name, found in tokens.items():
        if not found:
            raise ValueError(f"The {name} has no word the model can read. Describe the {name} in words.")
        if found[-1] >= limit:
            over = len(offsets) - limit
            raise ValueError(
                f"The prompt has {len(offsets)} tokens, {over} over the model's limit of {limit}. "
                f"It is reached in the {name}: shorten the {name}."
            )
    tokens |= {name: _tokens_of(offsets, places) for name, places in only.items()}
    return Spans(torch.tensor(tokens["background"]), torch.tensor(tokens["character"]))


def _tokens_in(offsets: Sequence[Range], places: Sequence[Range]) -> list[int]:
    """The numbers of the tokens whose first letter lies in one of the places."""
    return [
        index
        for index, (start, end) in enumerate(offsets)
        if start < end and any(first <= start < last for first, last in places)
    ]


def _tokens_of(offsets: Sequence[Range], places: Sequence[Range]) -> list[int]:
    """The numbers of the tokens that share a letter with one of the places."""
    return [
        index
        for index, (start, end) in enumerate(offsets)
        if any(max(start, first) < min(end, last) for first, last in places)
    ]
