"""What the videos of a group agree in, and whether they show what was asked for, read from their pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from bachvid.evaluate.metrics import (
    iou,
    jitter,
    mean,
    motion,
    over_pairs,
    psnr_background,
    psnr_foreground,
    smoothness,
    textures,
)
from bachvid.pictures.frames import Frames
from bachvid.stage.readers import ATTRIBUTES, Reading, read
from bachvid.stage.world import LOCATED_VERBS, STATED, Clip

IN_WORDS = {
    "psnr_bg": "place (dB)",
    "cells": "layout",
    "psnr_fg": "character (dB)",
    "hidden": "unnamed details",
}


@dataclass(frozen=True, eq=False)
class Watched:
    """A video with all that can be read from its pixels."""

    frames: Frames
    reading: Reading
    textures: NDArray  # see `metrics.textures`

    @classmethod
    def of(cls, frames: Frames) -> Watched:
        reading = read(frames)
        return cls(frames, reading, textures(frames, reading.mask.numpy(), reading.uv.numpy()))

    @property
    def lost(self) -> bool:
        """Whether some frame has no puppet."""
        return self.reading.clip is None


def read_group(videos: Sequence[Frames], clips: Sequence[Clip] | None = None) -> dict[str, float]:
    """What the videos (F, H, W, 3) of a group agree in, from their pixels alone (see `agreement`).

    With the clips that were asked for, also whether actions and stated attributes are right (see
    `rightness`).
    """
    watched = [Watched.of(frames) for frames in videos]
    return agreement(watched) | (rightness(watched, clips) if clips else {})


def in_words(figures: Mapping[str, float]) -> str:
    """The main figures of a group for people; those of pairs that cannot be compared are left out."""
    known = {words: figures[name] for name, words in IN_WORDS.items() if not math.isnan(figures[name])}
    return ", ".join(f"{words} {value:.2f}" for words, value in known.items()) or "nothing could be read"


def agreement(videos: Sequence[Watched]) -> dict[str, float]:
    """What the videos of a group agree in, as means over all pairs; NaN where no pair can be compared.

    `psnr_bg` and `psnr_fg` in dB; of 0 to 1: `hidden` (the puppet's hidden attributes, its badge counting
    as one of them), `attributes` and `badge` (the two halves of it) and `cells` (of the stage, those seen
    in both). Hidden attributes and badges are compared as what they are nearest to, so that a copy agrees
    wholly, and one that is illegible no more than by chance. `lost` videos have no puppet
    and are in no pair. Over all videos: `unread`, the share of attributes and badge cells that the readers
    are not sure of, and `off_palette`, that of pixels.
    """
    whole = [video for video in videos if not video.lost]
    readings = [video.reading for video in whole]
    nearest = [reading.clip for reading in readings]
    return {
        "psnr_bg": over_pairs(_background, whole),
        "psnr_fg": over_pairs(lambda a, b: psnr_foreground(a.textures, b.textures), whole),
        "hidden": over_pairs(_hidden, nearest),
        "attributes": over_pairs(_attributes, nearest),
        "badge": over_pairs(_badge, nearest),
        "cells": over_pairs(_cells, readings),
        "lost": len(videos) - len(whole),
        "unread": mean(
            value is None for reading in readings for value in (*reading.hidden.values(), *reading.badge)
        ),
        "off_palette": mean(video.reading.off_palette for video in videos),
    }


def guards(videos: Sequence[Watched]) -> dict[str, float]:
    """What tells agreement from copying and from standing still.

    `copied` is the mean overlap (IoU) of the puppets' masks over all pairs that have some; as means over
    videos, `smoothness`, `motion` and `jitter` (see `metrics`).
    """
    masks = [video.reading.mask for video in videos if not video.lost]
    return {
        "copied": over_pairs(iou, masks),
        "smoothness": mean(smoothness(video.frames) for video in videos),
        "motion": mean(motion(video.frames) for video in videos),
        "jitter": mean(jitter(video.reading.mask.numpy()) for video in videos),
    }


def rightness(videos: Sequence[Watched], clips: Sequence[Clip]) -> dict[str, float]:
    """Shares of videos with the right `action` and of stated attributes that are right (`stated`).

    What cannot be read is wrong; `unread_stated` is the share of that.
    """
    pairs = [(video.reading, clip) for video, clip in zip(videos, clips, strict=True)]
    stated = [(reading.stated[name], getattr(clip, name)) for reading, clip in pairs for name in STATED]
    return {
        "action": mean(_acts_as_stated(reading, clip) for reading, clip in pairs),
        "stated": mean(found == asked for found, asked in stated),
        "unread_action": mean(reading.action.verb is None for reading, _ in pairs),
        "unread_stated": mean(found is None for found, _ in stated),
    }


def _acts_as_stated(reading: Reading, clip: Clip) -> bool:
    """Whether verb and, where the caption names one, location or direction are those of the clip."""
    located = clip.verb in LOCATED_VERBS or clip.verb == "walks"
    found = reading.action
    return found.verb == clip.verb and (not located or found.where == clip.where)


def _background(a: Watched, b: Watched) -> float:
    return psnr_background(a.frames, b.frames, a.reading.mask.numpy(), b.reading.mask.numpy())


def _hidden(a: Clip, b: Clip) -> float:
    count = len(ATTRIBUTES)
    return (_attributes(a, b) * count + _badge(a, b)) / (count + 1)


def _attributes(a: Clip, b: Clip) -> float:
    return mean(getattr(a, name) == getattr(b, name) for name in ATTRIBUTES)


def _badge(a: Clip, b: Clip) -> float:
    return mean(x == y for x, y in zip(a.badge, b.badge, strict=True))


def _cells(a: Reading, b: Reading) -> float:
    both = zip(a.cells, b.cells, strict=True)
    return mean(x == y for x, y in both if x is not None and y is not None)
