"""How well masks and matches hit the truth, at every layer of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bachvid.evaluate.metrics import match_errors, movements
from bachvid.method.mask import Split, foreground
from bachvid.models.grid import Grid

Array = NDArray[np.float64]  # NaN where nothing could be measured
STRATA = (0.0, 2.0, 5.0, math.inf)  # tokens that a place of the character has moved between two videos


class MatchScores(NamedTuple):
    """Of predicted partners against true ones, in tokens; each has one value per pair, step and layer."""

    mse: Array
    median: Array  # of squared distances
    pck1: Array  # share within one token
    pck2: Array
    points: Array  # tokens that have a true partner

    @classmethod
    def joined(cls, parts: Sequence[MatchScores]) -> MatchScores:
        """The scores of several groups of pairs, one after another."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def mask_ious(scores: Tensor, truth: Tensor, split: Split, joined: tuple[int, ...] = ()) -> Array:
    """IoU (V, S, L) of every layer's masks, scores (V, S, L, 2, N), with the truth (V, N).

    They are its own (Eq. 3), or those that it makes together with the layers it is `joined` to (Eq. 4).
    """
    base = scores[:, :, [layer - 1 for layer in joined]].float().sum(2)  # V S 2 N
    layers = range(1, scores.shape[2] + 1)
    sums = (base if layer in joined else base + scores[:, :, layer - 1] for layer in layers)
    return np.stack([_ious(foreground(each.movedim(-2, 0), split), truth[:, None]) for each in sums], -1)


def match_scores(partner: Tensor, truth: Tensor, grid: Grid) -> MatchScores:
    """Scores (P, ...) of partners (P, ..., N) of P pairs, for the true ones (P, N, T)."""
    shape = partner.shape[:-1]
    rows = [
        _score(match_errors(guess.long(), true, grid))
        for pair, true in zip(partner, truth, strict=True)
        for guess in pair.reshape(-1, partner.shape[-1])
    ]
    return MatchScores(*(np.array(column).reshape(shape) for column in zip(*rows, strict=True)))


def same_place_scores(truth: Tensor, grid: Grid) -> MatchScores:
    """Scores (P,) of taking every token's own place for its partner, for true partners (P, N, T)."""
    return match_scores(torch.arange(grid.tokens).expand(len(truth), -1), truth, grid)


def by_movement(partner: Tensor, truth: Tensor, grid: Grid) -> dict[str, list[Any]]:
    """How good partners (P, N) are where the character moved little, more and far, for true ones (P, N, T).

    Attention knows positions, so pairs in which nobody moves flatter every layer: far moves are the test.
    """
    pairs = list(zip(partner.long(), truth, strict=True))
    errors, moved = (
        torch.cat([measure(guess, true, grid) for guess, true in pairs])
        for measure in (match_errors, movements)
    )
    columns: dict[str, list[Any]] = {
        "tokens moved": [],
        "points": [],
        "mse": [],
        "pck1": [],
        "same place": [],
    }
    for least, most in pairwise(STRATA):
        within = (moved >= least**2) & (moved < most**2)
        mse, _, pck1, _, points = _score(errors[within])
        still = moved[within].mean().item() if points else np.nan
        name = f"{least:g} to {most:g}" if most < math.inf else f"{least:g} and more"
        for column, value in zip(columns.values(), (name, int(points), mse, pck1, still), strict=True):
            column.append(value)
    return columns


def random_mse(grid: Grid) -> float:
    """The expected squared distance of a partner chosen at random in the same frame."""
    return (grid.height**2 - 1) / 6 + (grid.width**2 - 1) / 6


def _ious(masks: Tensor, truth: Tensor) -> Array:
    """IoU over the last axis; NaN where the truth is empty: a video without a character says nothing."""
    both, either = (masks & truth).sum(-1), (masks | truth).sum(-1)
    known = truth.any(-1).expand(either.shape)
    return torch.where(known, both / either.clamp(min=1), torch.nan).double().numpy()


def _score(errors: Tensor) -> tuple[float, ...]:
    if not len(errors):
        return (np.nan, np.nan, np.nan, np.nan, 0.0)
    within = [(errors <= reach**2).double().mean().item() for reach in (1, 2)]
    return errors.mean().item(), errors.median().item(), *within, float(len(errors))
