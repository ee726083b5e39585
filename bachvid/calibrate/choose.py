"""The three choices, each with the numbers it stands on (what Figures 2, 3, 9-12 of the paper show)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bachvid.calibrate import select
from bachvid.calibrate.analysis import Analysis
from bachvid.calibrate.profile import (
    Array,
    MatchScores,
    mask_ious,
    match_scores,
    random_mse,
    same_place_scores,
)
from bachvid.calibrate.select import Draws, Layers, Selection
from bachvid.errors import UsageError
from bachvid.evaluate.figures import known_mean
from bachvid.models.grid import Grid

MOST_LAYERS = 15  # the paper's share of CogVideoX-5B, for masks and for matches
CLOSE = 0.1  # a choice this near to a trivial baseline is worth a warning


@dataclass(frozen=True, eq=False)
class Evidence:
    """How well single layers did on all videos V and pairs P, and what the steps mean."""

    iou: Array  # V S L
    matches: MatchScores  # each P S L
    still: MatchScores  # of no movement at all, each P
    share: float  # of tokens that show the character, which is the IoU of a mask of everything
    grid: Grid
    timesteps: Sequence[float]
    seed: int
    joined_ious: Callable[[Collection[Layers]], Mapping[Layers, Array]]  # see `Analysis`

    @classmethod
    def of(cls, analysis: Analysis) -> Evidence:
        """What an analysis has observed; one group is in memory at a time."""
        grid = analysis.studio.grid()
        ious, matches, still, shares = [], [], [], []
        for group in analysis.groups():
            ious.append(mask_ious(group.observed.scores, group.masks, analysis.studio.recipe.mask_split))
            matches.append(match_scores(group.observed.partner, group.partners, grid))
            still.append(same_place_scores(group.partners, grid))
            shares += [mask.float().mean().item() for mask in group.masks if mask.any()]
        if not shares or np.isnan(np.concatenate([each.mse for each in still])).all():
            raise UsageError(
                f"No character is found in the videos of {analysis.folder / 'videos'}, or no place of one is "
                "found again. Look at them: does the model show what the stories say?"
            )
        timesteps = analysis.studio.sampler.schedule.timesteps
        together = MatchScores.joined(matches), MatchScores.joined(still)
        share, joined = sum(shares) / len(shares), analysis.joined_ious
        return cls(np.concatenate(ious), *together, share, grid, timesteps, analysis.seed, joined)

    def fused_ious(self, layers: Layers) -> Array:
        """IoU (V, S) of the masks that these layers make together."""
        return self.joined_ious([layers])[layers][..., layers[0] - 1]

    def of_layers(self, better: str, values: Array, window: tuple[int, int]) -> dict[str, Any]:
        """The part of a figure that shows single layers, for values (V, S, L) and the steps averaged over."""
        shown = values[:, window[0] : window[1] + 1]
        draws = select.resamples(values, self.seed)
        profiles = np.array([known_mean(shown[draw], (0, 1)) for draw in draws])
        low, high = np.percentile(profiles, (2.5, 97.5), axis=0)
        return {
            "better": better,
            "layers": list(range(1, values.shape[-1] + 1)),
            "steps": list(range(values.shape[1])),
            "timesteps": [float(t) for t in self.timesteps],
            "values": known_mean(values, 0).tolist(),
            "by_step": known_mean(values, (0, 2)).tolist(),
            "by_layer": known_mean(shown, (0, 1)).tolist(),
            "by_layer_interval": np.stack([low, high], axis=1).tolist(),
            "window": list(window),
        }


MASK_RULES = {
    "ratio": "layers within a share of the best mean IoU",
    "fused": "the fewest layers whose masks together come near the best",
}


def choose_masks(
    evidence: Evidence, rule: str = "ratio", ratio: float = 0.7, most: int = MOST_LAYERS
) -> tuple[Selection, dict[str, Any]]:
    """The mask layers and tau (Section 3.2, appendix B.1), and what Figure 2 shows of them.

    `rule` is the paper's ("ratio") or ours ("fused"), of MASK_RULES.
    """
    iou, share = evidence.iou, evidence.share
    count = iou.shape[-1]

    def pick(draws: Draws) -> list[Layers]:
        if rule == "fused":
            return select.grow(evidence.joined_ious, draws, count, most)
        return [select.mask_layers(iou[draw], share, ratio, most) for draw in draws]

    (layers,) = pick(select.everything(iou))
    warnings = []
    if not layers:
        layers = (int(np.nanargmax(known_mean(iou, (0, 1)))) + 1,)
        warnings.append("No layer's mask is better than a mask of everything: do not trust this choice.")
    fused = evidence.fused_ious(layers)  # V S
    curve = known_mean(fused, 0)
    tau = select.first_high(curve)
    if np.nanmax(curve) < share + CLOSE:
        warnings.append(f"The masks beat a mask of everything by {np.nanmax(curve) - share:.2f} only.")
    figure = {
        "title": "Foreground masks",
        "what": "IoU",
        **evidence.of_layers("higher", iou, (0, iou.shape[1] - 1)),
        "chosen": list(layers),
        "subset_mean": known_mean(iou[..., [n - 1 for n in layers]], (0, 2)).tolist(),
        "fused": curve.tolist(),
        "tau": tau,
        "baselines": {"all foreground": share, "coin": share / (1 + share)},
    }
    return Selection(
        rule=f"{MASK_RULES[rule]}; first step near the best fused IoU",
        parameters={"ratio": ratio, "most": most, "share_of_maximum": select.NEAR_BEST},
        layers=layers,
        tau=tau,
        timestep=float(evidence.timesteps[tau]),
        bootstrap=select.stability(pick, iou, count, evidence.seed),
        tau_interval=select.tau_interval(select.first_high, fused, evidence.seed),
        warnings=tuple(warnings),
    ), figure


MATCH_RULES = {
    "calm": "layers of the lowest mean error while the best one's is low",
    "hits": "layers that hit most often over all steps",
}


def rank_matches(evidence: Evidence, count: int, rule: str = "calm") -> tuple[Selection, dict[str, Any]]:
    """The match layers, without tau, which needs them all together; and what Figure 3 shows of each.

    `rule` is the paper's ("calm") or ours ("hits"), of MATCH_RULES.
    """
    found, ceiling = evidence.matches, float(np.nanmean(evidence.still.mse))
    floor = float(np.nanmean(evidence.still.pck1))
    window = (0, found.mse.shape[1] - 1) if rule == "hits" else select.calm_window(found.mse)

    def pick(draws: Draws) -> list[Layers]:
        if rule == "hits":
            return [select.surest_layers(found.pck1[draw], floor, count) for draw in draws]
        return [select.match_layers(found.mse[draw], ceiling, count, window) for draw in draws]

    (layers,) = pick(select.everything(found.mse))
    warnings = []
    if not layers:
        layers = (int(np.nanargmin(known_mean(found.mse, (0, 1)))) + 1,)
        warnings.append("No layer's matches are better than no movement at all: do not trust this choice.")
    pck = evidence.of_layers("higher", found.pck1, window)
    figure = {
        "title": "Matches",
        "what": "MSE (tokens^2)",
        **evidence.of_layers("lower", found.mse, window),
        "chosen": list(layers),
        "subset_mean": known_mean(found.mse[..., [n - 1 for n in layers]], (0, 2)).tolist(),
        "baselines": {"random": random_mse(evidence.grid), "same place": ceiling},
        "pck": {
            **{name: pck[name] for name in ("values", "by_step", "by_layer")},
            "baselines": {"same place": floor},
        },
    }
    return Selection(
        rule=f"{MATCH_RULES[rule]}; first step near the lowest fused error",
        parameters={
            "count": count,
            "first_step": window[0],
            "last_step": window[1],
            "factor": select.NEAR_LEAST,
            "slack": select.TRIFLE,
        },
        layers=layers,
        bootstrap=select.stability(pick, found.mse, found.mse.shape[-1], evidence.seed),
        warnings=tuple(warnings),
    ), figure


def settle_matches(
    evidence: Evidence, ranked: Selection, figure: dict[str, Any], scores: MatchScores
) -> tuple[Selection, dict[str, Any]]:
    """The match layers with their tau, for the scores (P, S) of all chosen layers together."""
    curve = known_mean(scores.mse, 0)
    still, warnings = figure["baselines"]["same place"], list(ranked.warnings)
    find = partial(select.first_low, ceiling=still)
    tau = find(curve)
    if np.nanmin(curve) > (1 - CLOSE) * still:
        warnings.append("The matches are hardly better than no movement at all: position drives them.")
    more = {
        "fused": curve.tolist(),
        "tau": tau,
        "pck": {**figure["pck"], "fused": known_mean(scores.pck1, 0).tolist()},
    }
    settled = Selection(
        **{
            **vars(ranked),
            "tau": tau,
            "timestep": float(evidence.timesteps[tau]),
            "tau_interval": select.tau_interval(find, scores.mse, evidence.seed),
            "warnings": tuple(warnings),
        }
    )
    return settled, {**figure, **more}


VITAL_RULES = {
    "outliers": "layers whose loss costs clearly more quality than that of others",
    "top": "the layers whose loss costs most quality",
    "all": "all layers",
}


def choose_vital(
    quality: Array, likeness: Array, about: str, rule: str, count: int, seed: int
) -> tuple[Selection, dict[str, Any]]:
    """The vital layers (Eq. 9), and what Figures 9 and 12 show of them beside those of Eq. 15.

    Scores (P, L + 1) of videos whole and without each layer. `rule` is one of VITAL_RULES; `count` layers are
    taken by "top", and where none stands out. `about` names who gave the scores.
    """
    drops = {name: scores[:, :1] - scores[:, 1:] for name, scores in (("q", quality), ("l", likeness))}
    layers, warnings = _vital(drops["q"], rule, count, seed), []
    if not layers:
        layers = _vital(drops["q"], "top", count, seed)
        warnings.append(f"No layer stands out; the {count} whose loss costs most quality are taken.")
    alike = _vital(drops["l"], "outliers", count, seed) or _vital(drops["l"], "top", count, seed)
    costs = known_mean(drops["q"], 0)
    numbers = list(range(1, quality.shape[1]))
    figure = {
        "layers": numbers,
        "quality": {"about": about, **_scores(quality, seed), "chosen": list(layers)},
        "likeness": {"about": about, **_scores(likeness, seed), "chosen": list(alike)},
        "overlap": select.overlap(layers, alike),
        "content_only": [n for n in alike if costs[n - 1] <= np.median(costs)],
    }

    def pick(draws: Draws) -> list[Layers]:
        return [_vital(drops["q"][draw], rule, count, seed) for draw in draws]

    return Selection(
        rule=VITAL_RULES[rule],
        parameters={"count": count, "deviations": select.DEVIATIONS, "p": select.CHANCE},
        layers=layers,
        bootstrap=select.stability(pick, quality, len(numbers), seed, draws=100),  # each flips coins
        warnings=tuple(warnings),
    ), figure


def _vital(drops: Array, rule: str, count: int, seed: int) -> Layers:
    """The layers that a rule picks by what is lost without them, (P, L)."""
    if rule == "all":
        return select.ordered(range(drops.shape[1]))
    if rule == "top":
        return select.ordered(np.argsort(-known_mean(drops, 0), kind="stable")[:count])
    return select.outliers(drops, seed=seed)


def _scores(scores: Array, seed: int) -> dict[str, Any]:
    """Mean scores (P, L + 1), the whole video's first, with 95 % intervals of those without a layer."""
    whole, *without = known_mean(scores, 0).tolist()
    draws = np.array([known_mean(scores[draw, 1:], 0) for draw in select.resamples(scores, seed)])
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    return {"full": whole, "without": without, "interval": np.stack([low, high], axis=1).tolist()}
