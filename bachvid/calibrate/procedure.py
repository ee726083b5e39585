"""A calibration in the paper's order: masks, matches, vital layers, and whether these act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bachvid.calibrate.analysis import Analysis
from bachvid.calibrate.choose import Evidence, choose_masks, choose_vital, rank_matches, settle_matches
from bachvid.calibrate.profile import MatchScores
from bachvid.calibrate.select import Layers, Selection
from bachvid.console import Console
from bachvid.method.recipe import ANALYSED, PRESETS, Recipe

CHECKED = 4  # groups that the closing check makes again


@dataclass(frozen=True)
class Rules:
    """How layers are chosen; see `select` and `choose`."""

    masks: str  # one of MASK_RULES
    ratio: float  # of the best layer's IoU
    most: int  # mask layers
    matches: str  # one of MATCH_RULES
    match_count: int | None  # as many as mask layers
    vital: str  # one of VITAL_RULES
    vital_count: int | None  # the paper's share of all layers


@dataclass(frozen=True)
class Found:
    """What a calibration found: the recipe, the three choices, and the figures they stand on."""

    recipe: Recipe
    selections: Mapping[str, Selection]
    figures: Mapping[str, Mapping[str, Any]]


def calibrate(analysis: Analysis, console: Console, rules: Rules, left_out: int) -> Found:
    """Layers and steps for the checkpoint; `left_out` videos are made without each of its layers."""
    studio, total = analysis.studio, len(analysis.stories)
    with console.stage("observe"):
        for _ in console.follow(analysis.observe(), total, "groups"):
            pass
    with console.stage("read"):
        for _ in console.follow(analysis.learn(), total, "truth"):
            pass
    evidence = Evidence.of(analysis)
    mask, mask_figure = choose_masks(evidence, rules.masks, rules.ratio, rules.most)
    match, match_figure = rank_matches(evidence, rules.match_count or len(mask.layers), rules.matches)
    with console.stage("fuse"):
        fused = list(console.follow(analysis.fuse(match.layers), total, "matches"))
    match, match_figure = settle_matches(evidence, match, match_figure, MatchScores.joined(fused))
    assert mask.tau is not None and match.tau is not None
    match_figure["by_movement"] = analysis.by_movement(match.layers, match.tau)
    kv, vital_figure = vital_layers(analysis, console, rules, left_out)
    recipe = replace(
        studio.recipe,
        mask_layers=mask.layers,
        tau_mask=mask.tau,
        match_layers=match.layers,
        tau_match=match.tau,
        kv_layers=kv.layers,
        mask_level=mask.timestep,
        match_level=match.timestep,
    )
    with console.stage("check"):
        acts = closing_check(analysis, console, recipe)
    figures = {"mask": mask_figure, "match": match_figure, "vital": vital_figure, "acts": acts}
    told = {name: figure for name, figure in figures.items() if figure}
    return Found(recipe, {"mask": mask, "match": match, "kv": kv}, told)


def vital_layers(
    analysis: Analysis, console: Console, rules: Rules, left_out: int
) -> tuple[Selection, dict[str, Any]]:
    """The layers that lend, by what videos lose without each, and its figure; all, if nobody judges."""
    layers = len(analysis.studio.model.blocks)
    if analysis.judge is None:
        return Selection("all layers: nobody says how good videos look", {}, tuple(range(1, layers + 1))), {}
    with console.stage("leave out"):
        pieces = left_out * (layers + 1)
        for _ in console.follow(analysis.leave_out(left_out), pieces, "videos without a layer"):
            pass
    quality, likeness = (analysis.without(score, left_out) for score in ("quality", "likeness"))
    count = rules.vital_count or papers_share(analysis.studio.recipe, layers)
    return choose_vital(quality, likeness, analysis.judge.about, rules.vital, count, analysis.seed)


def papers_share(recipe: Recipe, layers: int) -> int:
    """How many vital layers the paper's would be in a model of this depth."""
    family = "cogvideox" if recipe.mask_kind == "joint" else "wan"
    preset, depth = ANALYSED[family]
    return max(1, round(len(PRESETS[preset].kv_layers) * layers / depth))


def closing_check(analysis: Analysis, console: Console, recipe: Recipe) -> dict[str, Any]:
    """How far injection at the chosen layers moves videos from their vanilla twins, and at as many others."""
    groups = range(min(CHECKED, len(analysis.stories)))
    sets = {"chosen": recipe.kv_layers, "others": others(recipe, len(analysis.studio.model.blocks))}
    pieces = [(name, group) for name, layers in sets.items() if layers for group in groups]
    moved: dict[str, list[float]] = {name: [] for name in sets}

    def work() -> Any:
        for name, group in pieces:
            moved[name].append(analysis.change(replace(recipe, kv_layers=sets[name]), group))
            yield name

    for _ in console.follow(work(), len(pieces), "check"):
        pass
    return {
        name: {"layers": list(sets[name]), "change": float(np.mean(values)), "interval": interval(values)}
        for name, values in moved.items()
        if values
    }


def others(recipe: Recipe, layers: int) -> Layers:
    """As many layers that do not lend, spread over the depth; all there are, if they are fewer."""
    idle = [n for n in range(1, layers + 1) if n not in recipe.kv_layers]
    count = min(len(idle), len(recipe.kv_layers))
    return tuple(idle[round(n)] for n in np.linspace(0, len(idle) - 1, count)) if count else ()


def interval(values: list[float]) -> list[float]:
    """The 95 % interval of a mean, by resampling."""
    draws = np.random.default_rng(0).choice(values, (1000, len(values))).mean(1)
    return np.percentile(draws, (2.5, 97.5)).tolist()
