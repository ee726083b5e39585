"""The figures of the stage and their bars, with intervals over groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Measured = Mapping[str, float]  # of one group, such as {"ours_shared.psnr_bg": 28.3, "mask.iou": 0.74}
Means = Mapping[
    str, Any
]  # of many groups, by the same names: numbers, or an array with one for every resample

RESAMPLES = 1000
NO_BAR = -math.inf  # where only the gain counts
LEAST_OFF_PALETTE = 1e-3  # a vanilla video cleaner than one pixel in a thousand counts as that


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


class Bars(NamedTuple):
    """What a figure should reach, by the family of the model."""

    cogvideox: float
    wan: float


@dataclass(frozen=True)
class Figure:
    """One row of the table: a number made of means over groups, and what it should reach."""

    name: str
    of: Callable[[Means], Any]
    better: Literal["higher", "lower"]
    bars: Bars

    def bar(self, family: str) -> float:
        """What it should reach for the shipped model of a family."""
        return getattr(self.bars, family)

    def missing(self, found: Interval, family: str) -> float:
        """What the worse end of the interval lacks; 0 or less if even that reaches the bar."""
        bar = self.bar(family)
        lack = bar - found.low if self.better == "higher" else found.high - bar
        return round(lack, 9)  # a mean of ninety-fives may be less than 0.95 by the last bit


def gain(run: str, over: str, what: str) -> Callable[[Means], Any]:
    """How much more of `what` one run has than another."""
    return lambda m: m[f"{run}.{what}"] - m[f"{over}.{what}"]


def share_of_way(run: str, start: str, what: str) -> Callable[[Means], Any]:
    """How far a run gets from where another stands to 1, the agreement of perfect consistency."""
    return lambda m: share(m[f"{run}.{what}"] - m[f"{start}.{what}"], 1 - m[f"{start}.{what}"])


def share(part: Any, whole: Any) -> Any:
    """A part of a whole, of one mean or of many resampled ones; of nothing it is NaN."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.not_equal(whole, 0))


# `vanilla_shared` is what `ours_shared` is held against: the same prompts and the same noise.
FIGURES = (
    Figure("action_vanilla", lambda m: m["vanilla.action"], "higher", Bars(0.95, 0.90)),
    Figure("stated_vanilla", lambda m: m["vanilla.stated"], "higher", Bars(0.90, 0.85)),
    Figure("mask_iou", lambda m: m["mask.iou"], "higher", Bars(0.70, 0.55)),
    Figure("match_pck1", lambda m: m["match.pck1"], "higher", Bars(0.90, 0.85)),
    Figure(
        "match_mse_ratio",
        lambda m: share(m["match.mse"], m["match.mse_same_place"]),
        "lower",
        Bars(1 / 5, 1 / 3),
    ),
    Figure("psnr_bg_shared", lambda m: m["ours_shared.psnr_bg"], "higher", Bars(28.0, NO_BAR)),
    Figure("psnr_bg_gain_shared", gain("ours_shared", "vanilla_shared", "psnr_bg"), "higher", Bars(5.0, 4.5)),
    Figure("psnr_bg_gain_own", gain("ours_own", "vanilla_own", "psnr_bg"), "higher", Bars(5.0, 4.0)),
    Figure("psnr_fg_gain_shared", gain("ours_shared", "vanilla_shared", "psnr_fg"), "higher", Bars(3.5, 3.0)),
    Figure("psnr_fg_gain_own", gain("ours_own", "vanilla_own", "psnr_fg"), "higher", Bars(3.5, 2.5)),
    Figure(
        "hidden_share", share_of_way("ours_shared", "vanilla_shared", "hidden"), "higher", Bars(0.6, 0.45)
    ),
    Figure("cells_share", share_of_way("ours_shared", "vanilla_shared", "cells"), "higher", Bars(0.75, 0.6)),
    Figure(
        "action_drop",
        lambda m: -100 * gain("ours_shared", "vanilla_shared", "action")(m),
        "lower",
        Bars(2.0, 2.0),
    ),
    Figure("lost", lambda m: m["ours_shared.lost"] + m["ours_own.lost"], "lower", Bars(0.0, 0.0)),
    Figure(
        "fg_gain_over_bg_only", gain("ours_shared", "only_background", "psnr_fg"), "higher", Bars(2.5, 1.5)
    ),
    Figure(
        "fg_gain_over_random_match", gain("ours_shared", "random_match", "psnr_fg"), "higher", Bars(3.0, 1.5)
    ),
    Figure(
        "offpalette_ratio",
        lambda m: _ratio(m["ours_shared.off_palette"], m["vanilla_shared.off_palette"]) - 1,
        "lower",
        Bars(0.10, 0.10),
    ),
    Figure("seconds_per_video", lambda m: m["vanilla.seconds"], "lower", Bars(8.0, 8.0)),
)
# The question fixed in advance: more agreement, and neither text nor picture paid for it.
ENDPOINT = (
    Figure("badge_gain", gain("ours_shared", "vanilla_shared", "badge"), "higher", Bars(0.001, 0.001)),
    Figure("cells_gain", gain("ours_shared", "vanilla_shared", "cells"), "higher", Bars(0.001, 0.001)),
    *(figure for figure in FIGURES if figure.name in ("action_drop", "offpalette_ratio")),
)


def figures_of(
    groups: Sequence[Measured], seed: int, figures: Sequence[Figure] = FIGURES
) -> dict[str, Interval]:
    """Figures over these groups, by name."""
    means, resampled = bootstrap(groups, seed)
    return {figure.name: _interval(figure.of(means), figure.of(resampled)) for figure in figures}


def everything_of(groups: Sequence[Measured], seed: int) -> dict[str, Interval]:
    """Everything that was measured, as it is, over these groups."""
    means, resampled = bootstrap(groups, seed)
    return {name: _interval(means[name], resampled[name]) for name in means}


def bootstrap(groups: Sequence[Measured], seed: int) -> tuple[Means, Means]:
    """Means over the groups, and arrays (RESAMPLES,) of means over groups drawn with replacement.

    All names see the same draws, so differences are paired. Groups that lack a value (NaN) are left out of
    its mean.
    """
    draws = np.random.default_rng(seed).integers(len(groups), size=(RESAMPLES, len(groups)))
    values = {name: np.array([group[name] for group in groups], dtype=float) for name in groups[0]}
    means = {name: float(known_mean(column)) for name, column in values.items()}
    return means, {name: known_mean(column[draws]) for name, column in values.items()}


def known_mean(values: NDArray[np.float64], axis: int | tuple[int, ...] = -1) -> NDArray[np.float64]:
    """The mean of what is not NaN; NaN where nothing is."""
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=axis) / (~np.isnan(values)).sum(axis=axis)


def _interval(mean: float, resampled: NDArray[np.float64]) -> Interval:
    known = resampled[np.isfinite(resampled)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
    return Interval(float(mean), float(low), float(high))


def _ratio(ours: Any, vanilla: Any) -> Any:
    return np.maximum(ours, LEAST_OFF_PALETTE) / np.maximum(vanilla, LEAST_OFF_PALETTE)
