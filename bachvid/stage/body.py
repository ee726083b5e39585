"""The paper puppet: every part as it is drawn in the rest puppet's own coordinates.

Body coordinates are heights of the picture at scale 1, x from the middle, y up from the soles, with the arms
stretched out sideways so that no two parts share a place. Pose and proportions only bend the way from the
picture to these coordinates (`actions.py`), so the same spot of the same part has the same (u, v) in every
picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bachvid.stage.palette import BADGE, BODIES, CLOTHES, CREAM, INK, RGB, mix, shift, warm
from bachvid.stage.shapes import NOTHING, Shape, box, disc, taper
from bachvid.stage.world import BADGE_CELLS, Clip

PARTS = ("torso", "head", "left_arm", "right_arm", "left_leg", "right_leg")
CELLS = tuple(f"cell {number}" for number in range(BADGE_CELLS))
MATERIALS = (
    *("body", "limb", "ear", "snout", "light", "ink", "band", "pupil", "trousers", "cloth"),
    *CELLS,
)
HIP = 0.17
SHOULDER = (0.105, 0.322)
BADGE_MIDDLE = (0.0, 0.25)
BADGE_CELL = 0.08
BUILD_WIDTH = {"slim": 0.86, "plump": 1.24}
LEG_LENGTH = {"short": 0.85, "long": 1.25}


class Stroke(NamedTuple):
    """One painted shape of a part; `twice` paints its mirror image too."""

    part: str
    shape: Shape
    material: str
    twice: bool = False
    colour: tuple[float, ...] = ()


def side_by_side(
    clips: Sequence[Clip], dye: Callable[[Clip], Mapping[str, tuple[float, ...]]] | None = None
) -> list[tuple[Stroke, ...]]:
    """The clips' strokes from back to front, each layer with one stroke of every clip; layers nobody has are
    left out.

    `dye` gives each material of a clip its numbers; left out, these are its colours (`dyes`).
    """
    dyed = []
    for clip in clips:
        numbers = (dye or dyes)(clip)
        dyed.append([stroke._replace(colour=numbers[stroke.material]) for stroke in strokes(clip)])
    layers = zip(*dyed, strict=True)
    return [layer for layer in layers if any(stroke.shape != NOTHING for stroke in layer)]


def dyes(clip: Clip) -> dict[str, RGB]:
    """The colour of each of the puppet's materials, 0..255, with the clip's own tint."""
    body = BODIES[clip.colour]
    plain = {
        "body": body,
        "limb": mix(body, INK, 0.14),
        "ear": mix(body, INK, 0.12),
        "snout": mix(body, CREAM, 0.38),
        "light": mix(body, CREAM, 0.72),
        "ink": INK,
        "band": INK if clip.eyes == "mask" else CREAM,
        "pupil": CREAM if clip.eyes == "mask" else INK,
        "trousers": CLOTHES[clip.trousers],
        "cloth": CLOTHES[clip.accessory_colour],
        **{cell: BADGE[colour] for cell, colour in zip(CELLS, clip.badge, strict=True)},
    }
    return {material: warm(shift(colour, clip.puppet_tint)) for material, colour in plain.items()}


def strokes(clip: Clip) -> list[Stroke]:
    """The puppet from back to front: the same strokes in every clip, an absent one is `NOTHING`."""
    return [
        Stroke("torso", _CAPE if clip.accessory == "cape" else NOTHING, "cloth"),
        *_ears(clip),
        *_LEGS,
        *_trunk(clip),
        Stroke("torso", _SKIRT if clip.accessory == "skirt" else NOTHING, "cloth"),
        *_ARMS,
        *_face(clip),
        *(Stroke("torso", part if clip.accessory == "scarf" else NOTHING, "cloth") for part in _SCARF),
        *(Stroke("head", part if clip.accessory == "hat" else NOTHING, "cloth") for part in _HAT),
    ]


_CAPE = taper(0.0, 0.055, 0.345, 0.2, 0.12, 0.012)
_SKIRT = taper(0.0, 0.112, 0.152, 0.142, 0.106, 0.012)
_SCARF = (box(0.0, 0.36, 0.108, 0.03, 0.028), taper(0.1, 0.24, 0.35, 0.016, 0.016, 0.012, -0.12))
_HAT = (box(0.0, 0.552, 0.1, 0.016, 0.012), taper(0.0, 0.555, 0.63, 0.05, 0.042, 0.012))
_LEGS = [
    Stroke("left_leg", taper(-0.058, 0.01, 0.19, 0.034, 0.036, 0.012), "limb"),
    Stroke("left_leg", taper(-0.058, 0.082, 0.19, 0.04, 0.038, 0.012), "trousers"),
    Stroke("right_leg", taper(0.058, 0.01, 0.19, 0.034, 0.036, 0.012), "limb"),
    Stroke("right_leg", taper(0.058, 0.082, 0.19, 0.04, 0.038, 0.012), "trousers"),
]
_ARMS = [
    Stroke("left_arm", box(-0.198, SHOULDER[1], 0.104, 0.036, 0.036), "limb"),
    Stroke("right_arm", box(0.198, SHOULDER[1], 0.104, 0.036, 0.036), "limb"),
]


def _trunk(clip: Clip) -> list[Stroke]:
    """The torso with trousers' top, belly pattern and badge."""
    patch = box(0.0, 0.255, 0.118, 0.118, 0.09) if clip.belly == "patch" else NOTHING
    brace = box(0.096, 0.243, 0.026, 0.095, 0.004) if clip.belly == "braces" else NOTHING
    middle_x, middle_y = BADGE_MIDDLE
    cells = []
    for number, material in enumerate(CELLS):
        x = middle_x + (number % 2 - 0.5) * BADGE_CELL
        y = middle_y - (number // 2 - 0.5) * BADGE_CELL
        cells.append(Stroke("torso", box(x, y, BADGE_CELL / 2, BADGE_CELL / 2), material))
    return [
        Stroke("torso", taper(0.0, 0.185, 0.33, 0.075, 0.058, 0.048), "body"),
        Stroke("torso", box(0.0, 0.14, 0.115, 0.03, 0.02), "trousers"),
        Stroke("torso", patch, "light"),
        Stroke("torso", brace, "ink", twice=True),
        *cells,
    ]


class _Head(NamedTuple):
    """The shapes that make a kind; an ear is painted on both sides."""

    skull: Shape
    ear: Shape
    snout: Shape = NOTHING
    antenna: Shape = NOTHING
    knob: Shape = NOTHING


_HEADS = {
    "rabbit": _Head(
        skull=box(0.0, 0.455, 0.098, 0.094, 0.09),
        ear=taper(0.052, 0.53, 0.635, 0.008, 0.012, 0.024, 0.22),
    ),
    "bear": _Head(
        skull=box(0.0, 0.455, 0.116, 0.096, 0.092),
        ear=disc(0.09, 0.535, 0.042),
    ),
    "fox": _Head(
        skull=taper(0.0, 0.4, 0.505, 0.012, 0.096, 0.03),
        ear=taper(0.084, 0.5, 0.622, 0.046, 0.0, 0.004, 0.18),
    ),
    "robot": _Head(
        skull=box(0.0, 0.455, 0.108, 0.09, 0.016),
        ear=box(0.116, 0.455, 0.022, 0.034, 0.006),
        antenna=taper(0.0, 0.54, 0.6, 0.016, 0.016),
        knob=disc(0.0, 0.61, 0.034),
    ),
    "elephant": _Head(
        skull=box(0.0, 0.46, 0.09, 0.092, 0.086),
        ear=taper(0.138, 0.44, 0.5, 0.012, 0.022, 0.058),
        snout=taper(0.0, 0.352, 0.445, 0.004, 0.012, 0.022),
    ),
}


def _ears(clip: Clip) -> list[Stroke]:
    head = _HEADS[clip.kind]
    return [
        Stroke("head", head.ear, "ear", twice=True),
        Stroke("head", head.antenna, "ink"),
        Stroke("head", head.knob, "light"),
    ]


def _face(clip: Clip) -> list[Stroke]:
    head = _HEADS[clip.kind]
    band = box(0.0, 0.478, 0.088, 0.038, 0.026) if clip.eyes != "dots" else NOTHING
    pupil = disc(0.044, 0.478, 0.022)
    return [
        Stroke("head", head.skull, "body"),
        Stroke("head", head.snout, "snout"),
        Stroke("head", band, "band"),
        Stroke("head", pupil, "pupil", twice=True),
    ]
