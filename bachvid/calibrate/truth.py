"""What an analysis is held against: where the character is, which places agree, how good videos are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bachvid.calibrate.observe import Observed
from bachvid.evaluate.metrics import token_uv, true_partners
from bachvid.method.spans import Parts
from bachvid.models.grid import Grid
from bachvid.pictures.frames import Frames
from bachvid.stage.readers import Reading, read
from bachvid.stage.watch import token_masks


@dataclass(frozen=True, eq=False)
class Seen:
    """What is true of one finished video."""

    mask: Tensor  # F H W bool, where the character is; empty if none was found
    clues: Any  # whatever its truth needs to find partners


class Video(NamedTuple):
    """A finished vanilla video."""

    name: str
    frames: Frames  # F H W 3
    parts: Parts  # what it was to show


@dataclass(frozen=True, eq=False)
class SeenGroup:
    """A group of vanilla videos, the identity first: what was observed as they came about, and themselves."""

    observed: Observed
    videos: Iterator[Video]


class Known(NamedTuple):
    """What is true of a group's videos, in tokens."""

    masks: Tensor  # V N bool: they show the character
    partners: Tensor  # V-1 N T int64: see `Eyes.partners`


class Truth(Protocol):
    """Says what is true of finished videos; `about` names its models, for the record."""

    about: str

    def of(self, group: SeenGroup, grid: Grid) -> Known: ...


class Eyes(ABC):
    """A truth that is seen in finished videos, one by one."""

    @abstractmethod
    def see(self, name: str, frames: Frames, parts: Parts) -> Seen:
        """What is true of the video of this name (F, H, W, 3), which was to show these parts."""

    @abstractmethod
    def partners(self, frame: Seen, identity: Seen, grid: Grid) -> Tensor:
        """The identity's token that shows the same place of the character, for each token of a frame video.

        One in every latent frame, (N, T) int64; -1 where there is none or nobody knows.
        """

    def of(self, group: SeenGroup, grid: Grid) -> Known:
        seen = [self.see(*video) for video in group.videos]
        masks = torch.stack([seen_tokens(each, grid) for each in seen])
        return Known(masks, torch.stack([self.partners(frame, seen[0], grid) for frame in seen[1:]]))


class Judged(NamedTuple):
    """What a judge makes of one finished video."""

    quality: float  # how good it looks, whatever it shows (Eq. 9); more is better
    shows: Any  # what a judge compares


class Judge(Protocol):
    """Scores finished videos; `about` names its models, for the record."""

    about: str

    def judge(self, frames: Frames) -> Judged: ...

    def likeness(self, video: Judged, other: Judged) -> float:
        """How much of what one video shows the other shows too, at most 1 (Eq. 15)."""


class StageTruth(Eyes):
    """Truth on the stage world, by its exact readers."""

    about = "the stage's readers"

    def see(self, name: str, frames: Frames, parts: Parts) -> Seen:
        reading = read(frames)
        return Seen(reading.mask, reading.uv)

    def partners(self, frame: Seen, identity: Seen, grid: Grid) -> Tensor:
        here, there = (token_uv(seen.mask, seen.clues, grid) for seen in (frame, identity))
        return true_partners(here, there, grid)


class StageJudge:
    """Scores on the stage world: pixels in a colour of the world, and the share of what is read alike."""

    about = "the stage's readers"

    def judge(self, frames: Frames) -> Judged:
        reading = read(frames)
        return Judged(1 - reading.off_palette, state(reading))

    def likeness(self, video: Judged, other: Judged) -> float:
        both = zip(video.shows, other.shows, strict=True)
        known = [ours == theirs for ours, theirs in both if ours is not None]
        return sum(known) / len(known) if known else float("nan")


def state(reading: Reading) -> list[Any]:
    """All that is read of a video, one value after another; None is not known."""
    puppet = [*reading.stated.values(), *reading.hidden.values(), *reading.badge]
    return [*puppet, *reading.cells, reading.landmark_slot, reading.action.verb, reading.action.where]


def seen_tokens(seen: Seen, grid: Grid) -> Tensor:
    """The mask of a video (N,) bool in tokens: those that the character fills at least by half."""
    return (
        token_masks(seen.mask[None].float(), grid)[0] if seen.mask.any() else torch.zeros(grid.tokens).bool()
    )
