"""Every number of the method in one place, frozen and printable."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bachvid.method.mask import Keys, Split
from bachvid.models.attention import Site

Mode = Literal["both", "fg", "bg", "off"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Recipe:
    """Which layers, which steps, and what the paper leaves open. Layers count from 1, steps from 0."""

    steps: int  # the schedule's length that the step numbers below refer to; see `at`
    mask_kind: Literal["joint", "cross"]  # where text and video meet: "joint" (CogVideoX) or "cross" (Wan)
    mask_layers: tuple[int, ...]  # Eq. 4
    tau_mask: int
    token_kind: Literal["joint", "self"]  # where video tokens meet each other: "joint" or "self"
    match_layers: tuple[int, ...]  # Eq. 7
    tau_match: int
    kv_layers: tuple[int, ...]  # the vital layers, Eq. 9

    mode: Mode = "both"  # inject foreground and background, one of them, or nothing
    branches: Literal["cond", "both"] = "cond"  # of guidance; the paper's cache holds one branch
    inject_steps: tuple[int, int] | None = None  # first and last step with injection; None: all
    bg_inject_steps: tuple[int, int] | None = None  # with that of the background; None: the same
    strength: float = 1.0  # of borrowed keys beside own ones in the softmax of Eq. 14; at 0 none counts
    bg_strength: float | None = None  # of those of the background among them; None: the same
    mask_softmax: Keys = "all"  # the keys that the softmax of Eq. 1 runs over where masks are read
    mask_split: Split = "compare"  # how Eq. 3 tells foreground from the rest: see `mask.foreground`
    margin: int = 0  # tokens around either foreground that are not borrowed as background
    normalize: bool = True  # cosine in every layer before the sum; off: Eq. 7 as printed
    window: Literal["all", "frame"] = "all"  # match among all identity tokens, or in the same latent frame
    min_similarity: float | None = None  # mean cosine below which a token borrows nothing (CharaConsist)
    require_identity_foreground: bool = False  # matched outside the identity's mask: borrow nothing
    smooth: bool = False  # erode 3x3, dilate 5x5 in every frame (CharaConsist)
    refresh: bool = False  # recompute a frame video's mask and matches in the main run, up to tau
    shared_noise: bool = True  # every video of a group starts from the same noise
    character_first: bool = False  # "character background action" (appendix C)
    words: Literal["all", "nouns"] = "all"  # of each part of the prompt that its span covers (appendix B.1)
    guidance: float = 6.0  # the scale that the numbers above were found with
    mask_level: float | None = None  # the noise at tau_mask, as the timestep that the model is told there
    match_level: float | None = None  # and at tau_match
    least_share: float = 0.005  # masks with less foreground, or more than the next, are not believed
    most_share: float = 0.95

    @property
    def mask_sites(self) -> tuple[Site, ...]:
        return tuple(Site(self.mask_kind, layer) for layer in self.mask_layers)

    @property
    def match_sites(self) -> tuple[Site, ...]:
        return tuple(Site(self.token_kind, layer) for layer in self.match_layers)

    @property
    def kv_sites(self) -> tuple[Site, ...]:
        return tuple(Site(self.token_kind, layer) for layer in self.kv_layers)

    @property
    def strengths(self) -> tuple[float, float]:
        """Of borrowed keys of the foreground, and of the background."""
        return self.strength, self.strength if self.bg_strength is None else self.bg_strength

    @property
    def inject_windows(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last step with injection of the foreground, and of the background."""
        fg = self.inject_steps or (0, self.steps - 1)
        return fg, self.bg_inject_steps or fg

    def at(self, timesteps: Sequence[float]) -> Recipe:
        """The same recipe for another schedule, given what the model is told at its steps.

        A tau with a known noise level moves to the step nearest to that; other step numbers keep their share
        of the way.
        """
        steps = len(timesteps)

        def scaled(step: int, level: float | None = None) -> int:
            if level is not None:
                return min(range(steps), key=lambda n: abs(timesteps[n] - level))
            return min(round(step * steps / self.steps), steps - 1)

        def moved(window: tuple[int, int] | None) -> tuple[int, int] | None:
            if not window or steps == self.steps:
                return window
            first, over = scaled(window[0]), round((window[1] + 1) * steps / self.steps)
            return first, max(first, over - 1)  # what counts is where it begins and where it is over

        return replace(
            self,
            steps=steps,
            tau_mask=scaled(self.tau_mask, self.mask_level),
            tau_match=scaled(self.tau_match, self.match_level),
            inject_steps=moved(self.inject_steps),
            bg_inject_steps=moved(self.bg_inject_steps),
        )

    def scaled_to(self, layers: int, depth: int) -> Recipe:
        """The same recipe for a model nobody has analysed, its layers scaled from `depth` to `layers`."""

        def scaled(numbers: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(sorted({max(1, round(n * layers / depth)) for n in numbers}))

        return replace(
            self,
            mask_layers=scaled(self.mask_layers),
            match_layers=scaled(self.match_layers),
            kv_layers=scaled(self.kv_layers),
        )

    def mode_at(self, step: int) -> Mode:
        """What frame videos borrow at this step."""
        fg, bg = (first <= step <= last for first, last in self.inject_windows)
        fg, bg = fg and self.mode in ("both", "fg"), bg and self.mode in ("both", "bg")
        if fg and bg:
            return "both"
        return "fg" if fg else "bg" if bg else "off"

    def injects_at(self, step: int) -> bool:
        """Whether frame videos borrow anything at this step."""
        return self.mode_at(step) != "off"

    def seeds(self, first: int, videos: int) -> list[int]:
        """The noise of each of a group's videos: one for all, or `first` and those that follow it."""
        return [first + (0 if self.shared_noise else n) for n in range(videos)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote; an unknown or missing name raises ValueError."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"unknown name {unknown[0]!r} in a recipe; known are: {', '.join(sorted(known))}"
            )
        kinds = get_type_hints(cls)
        for name, value in values.items():
            if not _fits(value, kinds[name]):
                raise ValueError(f"{name} is {value!r} instead of {_wanted(kinds[name])}")
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            recipe = cls(**lists)
        except TypeError as error:
            raise ValueError(f"incomplete recipe: {error}") from error
        if not max(recipe.tau_mask, recipe.tau_match) < recipe.steps:
            raise ValueError(f"tau_mask and tau_match must be steps before {recipe.steps}, which steps is")
        if min(recipe.strengths) < 0:
            raise ValueError("strength and bg_strength must not be less than 0")
        return recipe


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value out of a file is of the kind that a field is declared to be."""
    options = get_args(kind)
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind is bool or kind is NoneType:
        return isinstance(value, kind)
    if kind is int:
        return whole
    if kind is float:
        return whole or (isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value))
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in options
    if get_origin(kind) is UnionType:
        return any(_fits(value, option) for option in options)
    if not isinstance(value, list | tuple) or not all(_fits(each, int) for each in value):
        return False
    if options[1] is int:  # first and last step
        return len(value) == 2 and value[0] <= value[1]
    return min(value, default=0) >= 1 and len(set(value)) == len(value)  # layers


def _wanted(kind: Any) -> str:
    """What `_fits` accepts, in words."""
    known = {bool: "true or false", int: "a whole number of 0 or more", float: "a number", NoneType: "null"}
    options = get_args(kind)
    if kind in known:
        return known[kind]
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, options))
    if get_origin(kind) is UnionType:
        return " or ".join(map(_wanted, options))
    return "a first and a last step" if options[1] is int else "a list of layers, which count from 1"


PRESETS: Mapping[str, Recipe] = {
    # Table 4's best row: tau 5 for masks and matches. Section 3.3 names 10 for matches.
    "paper-cogvideox-5b": Recipe(
        steps=50,
        mask_kind="joint",
        mask_layers=tuple(range(6, 21)),
        tau_mask=5,
        token_kind="joint",
        match_layers=tuple(range(2, 17)),
        tau_match=5,
        kv_layers=(1, 2, 12, 13, 14, 15, 16, 18, 20, 21, 22, 24, 30, 35, 42),
        normalize=False,
    ),
    "paper-wan-14b": Recipe(
        steps=50,
        mask_kind="cross",
        mask_layers=tuple(range(3, 11)),
        tau_mask=9,
        token_kind="self",
        match_layers=tuple(range(2, 8)),
        tau_match=9,
        kv_layers=(1, 2, 17, 22, 24, 29, 33, 34, 35, 39, 40),
        normalize=False,
        words="nouns",
        guidance=5.0,
    ),
}
ANALYSED = {"cogvideox": ("paper-cogvideox-5b", 42), "wan": ("paper-wan-14b", 40)}  # preset and its layers


def own_recipe(folder: Path, family: str, layers: int) -> Recipe:
    """The `preset.json` beside a checkpoint's weights, or the paper's numbers for the nearest model."""
    if (preset := folder / "preset.json").is_file():
        return load_preset(preset)
    name, depth = ANALYSED[family]
    return PRESETS[name].scaled_to(layers, depth)


def load_preset(path: Path) -> Recipe:
    """The recipe in a `preset.json`, as it lies beside weights; a broken file raises ValueError naming it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        return Recipe.from_dict(values)
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is not a recipe ({error}). Name another with --preset.") from error
