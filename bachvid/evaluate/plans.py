"""Plans: which runs are compared, for each question that an evaluation can answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bachvid.errors import UsageError
from bachvid.evaluate.figures import FIGURES, Figure
from bachvid.evaluate.runs import (
    Method,
    Run,
    copy,
    mislead,
    oracle,
    random_layers,
    shuffled,
    tell_truth,
    vanilla,
)
from bachvid.evaluate.scene import Start
from bachvid.method.recipe import Recipe

TAUS, PAPER_STEPS = (3, 5, 10, 15), 50  # Table 4
SIZES = {"small": 10 / 42, "paper": 15 / 42, "large": 20 / 42}  # Table 4: vital layers of the 42
OPTIONS: Mapping[str, tuple[Any, ...]] = {  # what the paper leaves open: a field of the recipe, its values
    "mask_softmax": ("all", "text"),
    "mask_split": ("compare", "otsu"),
    "normalize": (True, False),
    "window": ("all", "frame"),
    "min_similarity": (None, 0.5, 0.8),
    "require_identity_foreground": (False, True),
    "smooth": (False, True),
    "margin": (0, 1, 2),
    "strength": (0.5, 1.0, 2.0),
    "bg_strength": (None, 0.25, 0.5),
    "refresh": (False, True),
    "branches": ("cond", "both"),
}
WINDOWS = ((0, 1 / 3), (0, 2 / 3), (1 / 3, 1), (0, 1))  # of injection, from and to which share of the steps
DEPTHS = ((0, 1), (1 / 4, 1), (1 / 2, 1), (0, 3 / 4), (0, 1 / 2))  # where layers lend, as shares of all


@dataclass(frozen=True)
class Ranking:
    """The layers of a model, the most vital first, by what is lost in videos made without each."""

    quality: tuple[int, ...]  # Eq. 9
    likeness: tuple[int, ...]  # Eq. 15
    chosen: int  # how many the calibration chose by quality

    @classmethod
    def read(cls, folder: Path, layers: int) -> Ranking:
        """The one that a calibration left in its folder; UsageError if there is none, or of another model."""
        file = folder / "figures" / "vital.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            quality, likeness = (_ranked(found[score]["without"]) for score in ("quality", "likeness"))
            chosen = max(1, len(found["quality"]["chosen"]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UsageError(
                f"{file} holds no ranking of layers ({error}). Name a folder that bachvid calibrate wrote."
            ) from error
        if not len(quality) == len(likeness) == layers:
            raise UsageError(
                f"{file} ranks {len(quality)} layers, but the model has {layers}. "
                "Name the calibration of this model."
            )
        return cls(quality, likeness, chosen)


@dataclass(frozen=True)
class Subject:
    """What plans need to know of a model."""

    recipe: Recipe  # its own, for the schedule that it is evaluated with
    layers: int
    timesteps: Sequence[float]  # of that schedule
    paper_timesteps: Sequence[float]  # of its schedule of PAPER_STEPS
    ranking: Ranking | None  # of its layers, by a calibration

    @property
    def ranked(self) -> Ranking:
        assert self.ranking is not None, "the command asks for a calibration"
        return self.ranking


def bars(subject: Subject) -> list[Run]:
    """What the bars of the shipped models are about."""
    recipe = subject.recipe
    return [
        Run("vanilla_shared", "the model alone, all from the noise of the identity", vanilla("shared")),
        Run("vanilla_own", "the model alone, each from noise of its own", vanilla("own")),
        Run("ours_shared", "the method, all from the noise of the identity", Method(recipe)),
        Run("ours_own", "the method, each from noise of its own", Method(recipe, "own"), "vanilla_own"),
        Run("only_background", "only the background is borrowed", Method(replace(recipe, mode="bg"))),
        Run("random_match", "foreground is borrowed from tokens at random", Method(recipe, alter=mislead)),
    ]


def controls(subject: Subject) -> list[Run]:
    """Table 1 with every control that tells why the numbers are what they are."""
    recipe, layers = subject.recipe, subject.layers
    every_layer = replace(recipe, kv_layers=tuple(range(1, layers + 1)))
    return [
        *bars(subject),
        Run("only_foreground", "only the foreground is borrowed", Method(replace(recipe, mode="fg"))),
        Run("all_layers", "every layer borrows", Method(every_layer)),
        Run("random_layers", "as many layers at random borrow", random_layers(recipe, layers)),
        Run("truth", "by true masks and true matches", Method(recipe, alter=tell_truth)),
        Run("oracle", "the renderer in the model's place", oracle(seen_through_vae=False)),
        Run("oracle_decoded", "the same through the model's autoencoder", oracle(seen_through_vae=True)),
        Run("copy", "the identity again and again", copy),
        Run("shuffled", "ours_shared, each beside the identity of another group", shuffled(Method(recipe))),
    ]


def layers(subject: Subject) -> list[Run]:
    """Table 2: which layers should borrow. `ours_shared` is left out where it is `all`."""
    ranking, count = subject.ranked, subject.ranked.chosen
    alone, _, ours, *_ = bars(subject)
    known = [alone] if len(subject.recipe.kv_layers) == subject.layers else [alone, ours]
    by = {
        "by_quality": ranking.quality[:count],
        "by_likeness": ranking.likeness[:count],
        "all": ranking.quality,
    }
    runs = [
        Run(name, f"layers {_listed(chosen)} borrow", Method(lending(subject.recipe, chosen)))
        for name, chosen in by.items()
    ]
    drawn = random_layers(lending(subject.recipe, ranking.quality[:count]), subject.layers)
    return [*known, *runs, Run("random", f"{count} layers at random borrow", drawn)]


def grid(subject: Subject) -> list[Run]:
    """Table 4: when masks and matches are read, and how many layers borrow, the most vital first.

    Taus are those of the paper's 50 steps, taken as noise levels. Mask and match layers stay the model's own.
    """
    runs = [bars(subject)[0], bars(subject)[2]]
    for tau in TAUS:
        moved = looking(subject.recipe, subject.paper_timesteps[tau], subject.timesteps)
        noise = f"tau {moved.tau_mask} of {moved.steps}, as noisy as {tau} of {PAPER_STEPS}"
        for size, share in SIZES.items():
            chosen = subject.ranked.quality[: max(1, round(share * subject.layers))]
            about = f"{noise}; layers {_listed(chosen)} borrow"
            runs.append(Run(f"tau={tau} {size}", about, Method(lending(moved, chosen))))
    return runs


def options(subject: Subject) -> list[Run]:
    """What the paper leaves open, one thing changed at a time against the model's own recipe."""
    by_name = {run.name: run for run in bars(subject)}
    own = subject.recipe
    start: Start = "shared" if own.shared_noise else "own"
    other: Start = "own" if own.shared_noise else "shared"
    base = f"ours_{start}"
    runs, asked = [], [spelled_out(own)]
    values_of: dict[str, Sequence[Any]] = {
        **OPTIONS,
        "kv_layers": depths(subject.layers),
        "inject_steps": windows(own.steps),
        "bg_inject_steps": windows(own.steps),
    }
    for name, values in values_of.items():
        for value in values:
            changed = replace(own, **{name: value})
            if (plain := spelled_out(changed)) not in asked:
                asked.append(plain)
                about = f"{value} in place of {getattr(own, name)}"
                runs.append(Run(f"{name}={value}", about, Method(changed, start), base))
    return [
        by_name[f"vanilla_{start}"],
        by_name[base],
        *runs,
        replace(by_name[f"ours_{other}"], name=f"noise={other}", against=base),
    ]


def spelled_out(recipe: Recipe) -> Recipe:
    """The recipe with nothing left to be inferred: two ways to say the same become equal."""
    keys = "all" if recipe.mask_kind == "cross" else recipe.mask_softmax  # there all keys are text
    fg, bg = recipe.inject_windows
    plain = lending(recipe, recipe.kv_layers)  # in their order
    return replace(
        plain, bg_strength=recipe.strengths[1], inject_steps=fg, bg_inject_steps=bg, mask_softmax=keys
    )


def windows(steps: int) -> list[tuple[int, int] | None]:
    """First and last step of `WINDOWS` in a schedule, and None for what a recipe has without one."""
    bounds = [(round(first * steps), round(last * steps) - 1) for first, last in WINDOWS]
    return [None, *dict.fromkeys(window for window in bounds if window[0] <= window[1])]


def depths(layers: int) -> list[tuple[int, ...]]:
    """The layers of a model, from 1, that lie within `DEPTHS` of it."""
    bounds = [(round(first * layers), round(last * layers)) for first, last in DEPTHS]
    return list(dict.fromkeys(tuple(range(first + 1, last + 1)) for first, last in bounds if first < last))


@dataclass(frozen=True)
class Plan:
    """A question, the runs that answer it, and over how many groups of how many videos."""

    title: str
    runs: Callable[[Subject], list[Run]]
    groups: int = 100
    prompts: int = 5
    ranked: bool = False  # it needs a ranking of layers
    figures: Sequence[Figure] = ()  # that its runs answer, with bars


PLANS: Mapping[str, Plan] = {
    "bars": Plan("The method and its bars", bars, groups=24, prompts=3, figures=FIGURES),
    "controls": Plan("The method, its bars and its controls (as Table 1)", controls, figures=FIGURES),
    "layers": Plan("Which layers borrow (as Table 2)", layers, ranked=True),
    "grid": Plan("When the pre-run looks, and how many layers borrow (as Table 4)", grid, ranked=True),
    "options": Plan("What the paper leaves open, one thing at a time", options),
}


def lending(recipe: Recipe, chosen: Sequence[int]) -> Recipe:
    """The recipe with these vital layers."""
    return replace(recipe, kv_layers=tuple(sorted(chosen)))


def looking(recipe: Recipe, level: float, timesteps: Sequence[float]) -> Recipe:
    """The recipe whose pre-run looks at the step of a schedule that is nearest to a level of noise."""
    moved = replace(recipe, mask_level=level, match_level=level).at(timesteps)
    return replace(moved, mask_level=None, match_level=None)  # equal steps make equal recipes


def _ranked(without: Sequence[float | None]) -> tuple[int, ...]:
    """Layers, from 1, in the order of the scores without them; one that was not scored comes last."""
    scores = [math.inf if score is None else score for score in without]
    return tuple(sorted(range(1, len(scores) + 1), key=lambda layer: scores[layer - 1]))


def _listed(chosen: Sequence[int]) -> str:
    return " ".join(map(str, sorted(chosen)))
