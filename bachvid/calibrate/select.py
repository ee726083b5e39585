"""From profiles to a choice: which layers, which step, and how sure (Section 3.2-3.4, appendix B)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bachvid.calibrate.profile import Array
from bachvid.evaluate.figures import known_mean

RESAMPLES = 500
SURE = (0.2, 0.8)  # a layer that resamples pick less or more often than this is no borderline case
NEAR_BEST = 0.95  # the share of a curve's maximum at which its rise counts as over
NEAR_LEAST, TRIFLE = 1.05, 0.01  # how far over the least an error still counts as low: see `first_low`
CALM = 1.5  # times its least, the error of the best layer may be at steps that count as calm
GAIN = 0.01  # what a layer must add to the best score of a set to be worth having
DEVIATIONS, CHANCE = 3.0, 0.01  # what makes a layer stand out: see `outliers`
FLIPS = 10_000  # of the signs of what prompts lost
Layers = tuple[int, ...]  # counted from 1
Draws = NDArray[np.int64]  # indices of videos or pairs, one row for each time they are drawn


@dataclass(frozen=True)
class Selection:
    """One set of layers, the step to read them at, and what resampling the videos says of both."""

    rule: str
    parameters: dict[str, float]
    layers: Layers
    tau: int | None = None
    timestep: float | None = None  # the noise level at tau, as the model is told it
    bootstrap: dict[int, float] = field(default_factory=dict)  # layer -> share of resamples that pick it
    tau_interval: tuple[int, int] | None = None  # 90 %
    warnings: tuple[str, ...] = ()

    @property
    def borderline(self) -> Layers:
        """Layers that another draw of videos may well pick or drop."""
        return tuple(layer for layer, share in self.bootstrap.items() if SURE[0] <= share <= SURE[1])

    @property
    def sentence(self) -> str:
        """The choice for people, with its warnings."""
        layers = " ".join(map(str, self.layers))
        step = "" if self.tau is None else f", read at step {self.tau}"
        unsure = f" (borderline: {' '.join(map(str, self.borderline))})" if self.borderline else ""
        return "\n  ".join([f"layers {layers}{step}{unsure}", *self.warnings])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `selection.json`, with the layers from 1 and from 0."""
        values = {**vars(self), "layers_0based": [layer - 1 for layer in self.layers]}
        return {
            **values,
            "borderline": self.borderline,
            "bootstrap": {str(k): v for k, v in self.bootstrap.items()},
        }


def mask_layers(iou: Array, floor: float, ratio: float, most: int) -> Layers:
    """The layers whose IoU, averaged over videos and steps, reaches `ratio` of the best; at most `most`.

    `iou` (V, S, L). A layer no better than `floor`, what a mask of everything reaches, is never chosen.
    """
    profile = known_mean(iou, (0, 1))  # L
    good = [n for n in np.argsort(-profile, kind="stable") if profile[n] >= ratio * np.nanmax(profile)]
    return ordered(n for n in good[:most] if profile[n] > floor)


def grow(
    joined: Callable[[Collection[Layers]], Mapping[Layers, Array]], draws: Draws, layers: int, most: int
) -> list[Layers]:
    """For every draw the fewest layers that together score within `GAIN` of the best, joined one by one.

    `joined` gives for sets of layers the scores (V, S, L) of what each does with one layer more, of which the
    best step counts; the layer that joins is always the one with which they score highest. They are joined up
    to `most`, since a third may gain where a second did not. All draws grow at once, so that scores are asked
    for once a round.
    """
    paths: list[list[tuple[float, Layers]]] = [[] for _ in draws]
    chosen: list[Layers] = [() for _ in draws]
    for _ in range(min(most, layers)):
        scores = joined({*chosen})
        for n, draw in enumerate(draws):
            best = np.nanmax(known_mean(scores[chosen[n]][draw], 0), 0)  # L
            best[[layer - 1 for layer in chosen[n]]] = -np.inf
            chosen[n] = tuple(sorted((*chosen[n], int(np.argmax(best)) + 1)))
            paths[n].append((float(best.max()), chosen[n]))
    return [_fewest(path) for path in paths]


def _fewest(path: Sequence[tuple[float, Layers]]) -> Layers:
    """The first layers of a path whose score is within `GAIN` of its best."""
    best = max(score for score, _ in path)
    return next(layers for score, layers in path if score >= best - GAIN)


def match_layers(mse: Array, ceiling: float, count: int, window: tuple[int, int]) -> Layers:
    """The `count` layers of the lowest error, averaged over pairs and the steps of the window.

    `mse` (P, S, L). A layer no better than `ceiling`, what no movement at all reaches, is never chosen.
    """
    profile = known_mean(mse[:, window[0] : window[1] + 1], (0, 1))  # L
    best = np.argsort(profile, kind="stable")[:count]
    return ordered(n for n in best if profile[n] < ceiling)


def surest_layers(hits: Array, floor: float, count: int) -> Layers:
    """The `count` layers whose matches hit most often, averaged over pairs and steps.

    `hits` (P, S, L) are shares of matches. A layer no better than `floor`, what no movement at all reaches,
    is never chosen.
    """
    profile = known_mean(hits, (0, 1))  # L
    best = np.argsort(-profile, kind="stable")[:count]
    return ordered(n for n in best if profile[n] > floor)


def calm_window(mse: Array) -> tuple[int, int]:
    """First and last step at which the best layer's error is within `CALM` times its least (appendix B)."""
    curves = known_mean(mse, 0)  # S L
    best = curves[:, np.nanargmin(known_mean(curves, 0))]
    calm = np.flatnonzero(best <= CALM * np.nanmin(best))
    return int(calm[0]), int(calm[-1])


def first_high(curve: Array) -> int:
    """The first step at which a curve (S,) reaches `NEAR_BEST` of its maximum."""
    return int(np.flatnonzero(curve >= NEAR_BEST * np.nanmax(curve))[0])


def first_low(curve: Array, ceiling: float) -> int:
    """The first step at which an error (S,) is within `NEAR_LEAST` of its minimum, or above it by a trifle.

    That is `TRIFLE` of the `ceiling`, the error of no movement at all. Where the least error is small beside
    it, `NEAR_LEAST` alone, the paper's, would part steps by what chance has put between them.
    """
    least = np.nanmin(curve)
    return int(np.flatnonzero(curve <= max(NEAR_LEAST * least, least + TRIFLE * ceiling))[0])


def outliers(drops: Array, seed: int = 0) -> Layers:
    """The layers whose removal lowers a score clearly more than removing layers does (Eq. 9 or 15).

    `drops` (P, L) is the full video's score less that of the video without the layer, prompt by prompt. A
    layer counts if its mean drop is over `DEVIATIONS` robust standard deviations of all, and no chance:
    `CHANCE` by the signs, one-sided and Holm-adjusted.
    """
    means = known_mean(drops, 0)
    spread = 1.4826 * np.nanmedian(np.abs(means - np.nanmedian(means)))
    likely = holm(sign_flips(drops, seed)) < CHANCE
    return ordered(np.flatnonzero((means > DEVIATIONS * spread) & likely))


def least_prompts(layers: int) -> int:
    """How many prompts `outliers` needs in a model of this depth: by fewer coins all may fall one way."""
    return next(n for n in count(1) if layers * (1 + FLIPS / 2**n) / (FLIPS + 1) < CHANCE)


def sign_flips(drops: Array, seed: int, draws: int = FLIPS) -> Array:
    """The chance (L,) that a mean this high comes from drops (P, L) whose signs are thrown by a coin."""
    coins = np.random.default_rng(seed).choice((-1.0, 1.0), size=(draws, len(drops)))
    thrown = coins @ np.nan_to_num(drops) / len(drops)  # draws L
    return (1 + (thrown >= np.nan_to_num(drops).mean(0) - 1e-12).sum(0)) / (draws + 1)


def holm(p: Array) -> Array:
    """P-values (L,) adjusted by Holm's rule for being asked all at once."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = steps.clip(max=1)
    return adjusted


def stability(
    choose: Callable[[Draws], list[Layers]], values: Array, layers: int, seed: int, draws: int = RESAMPLES
) -> dict[int, float]:
    """How often each of `layers` layers is chosen from resampled rows of `values`, by their indices."""
    picks = choose(resamples(values, seed)[:draws])
    return {layer: sum(layer in pick for pick in picks) / len(picks) for layer in range(1, layers + 1)}


def tau_interval(find: Callable[[Array], int], curves: Array, seed: int) -> tuple[int, int]:
    """The 90 % interval of the step that `find` sees in the mean of resampled curves (V, S)."""
    steps = [find(known_mean(curves[draw], 0)) for draw in resamples(curves, seed)]
    low, high = np.percentile(steps, (5, 95))
    return round(low), round(high)


def everything(values: Array) -> Draws:
    """The one draw that is all rows of `values`, each once."""
    return np.arange(len(values))[None]


def resamples(values: Array, seed: int) -> Draws:
    """Draws (RESAMPLES, K) with replacement of the K rows of `values` in which anything is known.

    A video without truth is a row of NaN: a draw of nothing else would tell nothing.
    """
    known = np.flatnonzero(~np.isnan(values).reshape(len(values), -1).all(1))
    return np.random.default_rng(seed).choice(known, size=(RESAMPLES, len(known)))


def ordered(indices: Any) -> Layers:
    """Layers counted from 1 and in order, for indices from 0."""
    return tuple(sorted(int(n) + 1 for n in indices))


def overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """The Jaccard overlap of two sets of layers."""
    either = {*first, *second}
    return len({*first} & {*second}) / len(either) if either else 1.0
