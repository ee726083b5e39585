"""How well masks and matches hit the truth, at every layer of every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bachvid.evaluate.metrics import match_errors
from bachvid.method.mask import foreground
from bachvid.models.grid import Grid

Array = NDArray[np.float64]  # NaN where nothing could be measured


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


def mask_ious(scores: Tensor, truth: Tensor) -> Array:
    """IoU (V, S, L) of the masks of single layers (Eq. 3), scores (V, S, L, 2, N), with the truth (V, N)."""
    masks = foreground(scores.movedim(-2, 0))  # V S L N
    return _ious(masks, truth[:, None, None])


def fused_ious(scores: Tensor, truth: Tensor, layers: tuple[int, ...]) -> Array:
    """IoU (V, S) of the masks that these layers make together (Eq. 4), counted from 1."""
    chosen = scores[:, :, [layer - 1 for layer in layers]].float().sum(2)  # V S 2 N
    return _ious(foreground(chosen.movedim(-2, 0)), truth[:, None])


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
