"""How far the readers can be trusted: clips of known truth, worn as a model wears them, and read."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.pictures.frames import to_frames
from bachvid.stage.readers import Reading, read
from bachvid.stage.render import Render, clip_phases, render
from bachvid.stage.world import LOCATED_VERBS, Clip, sample_clip

TOKEN_ROWS = 8  # rows of tokens in every stage picture, whatever its size
_BATCH = 4


@dataclass(frozen=True)
class Calibration:
    """Shares right among what was read, by truth; a reader is admitted by `admitted` (spec: IoU 0.95, uv 0.2
    tokens).

    `mask_iou` of token masks and `uv_error` in tokens are means over clips; `attributes` (stated and hidden),
    `badge`, `cells` and `action` (with its side where it has one) are shares in [0, 1]; `unread` is the share
    of attributes, badge cells and actions that were left open, `unread_cells` that of the stage's cells.
    """

    name: str
    clips: int
    mask_iou: float
    uv_error: float
    attributes: float
    badge: float
    action: float
    cells: float
    unread: float
    unread_cells: float

    @property
    def admitted(self) -> bool:
        """Whether the readers are as exact as measurements on such clips need them."""
        exact = min(self.attributes, self.badge, self.cells) >= 0.99 and self.action == 1.0
        return exact and self.mask_iou >= 0.95 and self.uv_error <= 0.2


def calibrate_readers(
    name: str, spoil: Callable[[Tensor], Tensor], clips: int, height: int = 64, frames: int = 5, seed: int = 0
) -> Calibration:
    """How well `clips` random clips are read after `spoil`, which maps videos (B, 3, F, H, W) in [-1, 1] to
    worse ones.

    A VAE's round trip is a `spoil`; `blurred_and_noisy` makes others. Clips are of held-out combinations.
    """
    rng = random.Random(seed)
    tally = _Tally()
    for start in range(0, clips, _BATCH):
        few = [sample_clip(rng, held_out=True) for _ in range(min(_BATCH, clips - start))]
        truth = render(few, clip_phases(len(few), frames), height, height * 3 // 2)
        for row, (clip, video) in enumerate(zip(few, spoil(truth.video), strict=True)):
            tally.add(clip, truth, row, read(to_frames(video)))
    return tally.calibration(name, clips)


def blurred_and_noisy(blur: float, noise: float, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """A `spoil` with a Gaussian blur of `blur` pixels at a height of 64, more in larger pictures, and then
    white noise.

    `noise` is the standard deviation of 255. Both may be 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def spoil(video: Tensor) -> Tensor:
        frames = video.transpose(1, 2).flatten(0, 1)  # (B * F, 3, H, W)
        sigma = blur * frames.shape[-2] / 64
        reach = int(3 * sigma) + 1
        steps = torch.arange(-reach, reach + 1)
        kernel = torch.exp(-0.5 * (steps / max(sigma, 1e-3)) ** 2)
        kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
        frames = F.pad(frames, (reach,) * 4, mode="replicate")
        frames = F.conv2d(F.conv2d(frames, kernel, groups=3), kernel.mT, groups=3)
        worse = frames + torch.randn(frames.shape, generator=generator) * noise / 127.5
        return worse.unflatten(0, (len(video), -1)).transpose(1, 2)

    return spoil


class _Tally:
    """Counts of right, wrong and open answers, and the two errors, clip by clip."""

    def __init__(self) -> None:
        self.answers: dict[str, list[bool | None]] = {
            "attributes": [],
            "badge": [],
            "action": [],
            "cells": [],
        }
        self.ious: list[float] = []
        self.errors: list[float] = []

    def add(self, clip: Clip, truth: Render, row: int, reading: Reading) -> None:
        for name, found in (reading.stated | reading.hidden).items():
            self._answer("attributes", found, getattr(clip, name))
        for found_cell, cell in zip(reading.badge, clip.badge, strict=True):
            self._answer("badge", found_cell, cell)
        states = (*clip.layout, *clip.sky_slots, *clip.front)
        for found_state, state in zip(reading.cells, states, strict=True):
            self._answer("cells", found_state, state)
        sided = clip.verb in (*LOCATED_VERBS, "walks")
        done = (reading.action.verb, reading.action.where if sided else None)
        open_ = done[0] is None or (sided and done[1] is None)
        self._answer("action", None if open_ else done, (clip.verb, clip.where if sided else None))
        mask, uv = truth.mask[row], truth.uv[row]
        self.ious.append(_token_iou(reading.mask, mask))
        both = reading.mask & mask
        off = (reading.uv - uv)[both].norm(dim=-1).mean() * clip.scale * TOKEN_ROWS
        self.errors.append(float(off))

    def _answer(self, name: str, found: object, true: object) -> None:
        self.answers[name].append(None if found is None else found == true)

    def calibration(self, name: str, clips: int) -> Calibration:
        shares = {}
        for question, answers in self.answers.items():
            given = [answer for answer in answers if answer is not None]
            shares[question] = sum(given) / len(given) if given else float("nan")
        asked = [a for question in ("attributes", "badge", "action") for a in self.answers[question]]
        cells = self.answers["cells"]
        return Calibration(
            name=name,
            clips=clips,
            mask_iou=float(np.mean(self.ious)),
            uv_error=float(np.mean(self.errors)),
            **shares,
            unread=asked.count(None) / len(asked),
            unread_cells=cells.count(None) / len(cells),
        )


def _token_iou(first: Tensor, second: Tensor) -> float:
    """IoU of two masks (F, H, W) in tokens, of whose pixels half or more are in the mask."""
    size = first.shape[1] // TOKEN_ROWS
    a, b = (F.avg_pool2d(mask.float(), size) >= 0.5 for mask in (first, second))
    return float((a & b).sum() / (a | b).sum().clamp_min(1))
