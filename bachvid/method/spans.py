"""A prompt and the tokens of its parts (Section 3.2: "[Background], [Character], [Action]")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bachvid.method.mask import Spans

Range = tuple[int, int]  # characters: first, one past the last


@dataclass(frozen=True)
class Parts:
    """What one video shows. The three parts, joined by single spaces, are its prompt."""

    background: str
    character: str
    action: str

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

    def _in_order(self, character_first: bool) -> list[tuple[str, str]]:
        shared = [("background", self.background), ("character", self.character)]
        return [*(reversed(shared) if character_first else shared), ("action", self.action)]


def find_spans(offsets: Sequence[Range], ranges: Mapping[str, Range], limit: int) -> Spans:
    """Indices of the background's and the character's tokens (Eq. 2), for the tokens' character offsets.

    A token that straddles two parts belongs to the one that holds its first letter; a token without
    letters, the end mark and padding belong to none. ValueError names a part without a token, and the part
    in which the prompt runs past `limit` tokens.
    """
    tokens: dict[str, list[int]] = {name: [] for name in ranges}
    for index, (start, end) in enumerate(offsets):
        for name, (first, last) in ranges.items():
            if first <= start < last and start < end:
                tokens[name].append(index)
    for name, found in tokens.items():
        if not found:
            raise ValueError(f"The {name} has no word the model can read. Describe the {name} in words.")
        if found[-1] >= limit:
            over = len(offsets) - limit
            raise ValueError(
                f"The prompt has {len(offsets)} tokens, {over} over the model's limit of {limit}. "
                f"It is reached in the {name}: shorten the {name}."
            )
    return Spans(torch.tensor(tokens["background"]), torch.tensor(tokens["character"]))
