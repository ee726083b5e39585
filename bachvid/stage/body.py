"""The paper puppet: every part as it is drawn in the rest puppet's own coordinates.

Body coordinates are heights of the picture at scale 1, x from the middle, y up from the soles, with the arms stretched
out sideways so that no two parts share a place. Pose and proportions only bend the way from the picture to these
coordinates (`actions.py`), so the same spot of the same part has the same (u, v) in every picture.
"""

from __future__ import annotations

from typing import NamedTuple

from bachvid.stage.palette import BADGE, BADGE_RIM, BODIES, CLOTHES, CREAM, INK, RGB, mix, shift, warm
from bachvid.stage.shapes import NOTHING, Shape, box, disc, taper
from bachvid.stage.world import Clip

PARTS = ("torso", "head", "left_arm", "right_arm", "left_leg", "right_leg")
HIP = 0.17
NECK = 0.365
SHOULDER = (0.105, 0.322)
BADGE_MIDDLE = (0.0, 0.25)
BADGE_CELL = 0.072
BADGE_BORDER = 0.011
BUILD_WIDTH = {"slim": 0.9, "plump": 1.14}
LEG_LENGTH = {"short": 0.85, "long": 1.25}


class Stroke(NamedTuple):
    """One painted shape of a part; `twice` paints its mirror image too."""

    part: str
    shape: Shape
    colour: RGB
    twice: bool = False


def strokes(clip: Clip) -> list[Stroke]:
    """The puppet from back to front; every clip has the same strokes in the same order, an absent one is `NOTHING`."""
    cloth = CLOTHES[clip.accessory_colour]
    wears = {name: clip.accessory == name for name in ("hat", "scarf", "cape", "skirt")}
    back = [
        Stroke("torso", taper(0.0, 0.055, 0.345, 0.2, 0.12, 0.012) if wears["cape"] else NOTHING, cloth),
        *_ears(clip),
    ]
    front = [
        Stroke("torso", taper(0.0, 0.112, 0.152, 0.142, 0.106, 0.012) if wears["skirt"] else NOTHING, cloth),
        *_arms(clip),
        *_face(clip),
        Stroke("torso", box(0.0, 0.36, 0.108, 0.03, 0.028) if wears["scarf"] else NOTHING, cloth),
        Stroke("torso", taper(0.1, 0.24, 0.35, 0.016, 0.016, 0.012, -0.12) if wears["scarf"] else NOTHING, cloth),
        Stroke("head", box(0.0, 0.552, 0.1, 0.016, 0.012) if wears["hat"] else NOTHING, cloth),
        Stroke("head", taper(0.0, 0.555, 0.63, 0.05, 0.042, 0.012) if wears["hat"] else NOTHING, cloth),
    ]
    every = back + _legs(clip) + _trunk(clip) + front
    return [stroke._replace(colour=warm(shift(stroke.colour, clip.puppet_tint))) for stroke in every]


def _legs(clip: Clip) -> list[Stroke]:
    trousers = CLOTHES[clip.trousers]
    found = []
    for part, side in (("left_leg", -1), ("right_leg", 1)):
        found.append(Stroke(part, taper(side * 0.056, 0.04, 0.19, 0.03, 0.036, 0.01), trousers))
        found.append(Stroke(part, box(side * 0.068, 0.022, 0.052, 0.024, 0.02), mix(BODIES[clip.colour], INK, 0.45)))
    return found


def _trunk(clip: Clip) -> list[Stroke]:
    """The torso with trousers' top, belly pattern and badge."""
    body = BODIES[clip.colour]
    patch = box(0.0, 0.255, 0.118, 0.118, 0.09) if clip.belly == "patch" else NOTHING
    brace = box(0.099, 0.243, 0.013, 0.095, 0.004) if clip.belly == "braces" else NOTHING
    rim = box(*BADGE_MIDDLE, BADGE_CELL + BADGE_BORDER, BADGE_CELL + BADGE_BORDER, 0.006)
    cells = []
    for cell, colour in enumerate(clip.badge):
        x = BADGE_MIDDLE[0] + (cell % 2 - 0.5) * BADGE_CELL
        y = BADGE_MIDDLE[1] - (cell // 2 - 0.5) * BADGE_CELL
        cells.append(Stroke("torso", box(x, y, BADGE_CELL / 2, BADGE_CELL / 2), BADGE[colour]))
    return [
        Stroke("torso", taper(0.0, 0.185, 0.33, 0.075, 0.058, 0.048), body),
        Stroke("torso", box(0.0, 0.14, 0.115, 0.03, 0.02), CLOTHES[clip.trousers]),
        Stroke("torso", patch, mix(body, CREAM, 0.72)),
        Stroke("torso", brace, INK, twice=True),
        Stroke("torso", rim, BADGE_RIM),
        *cells,
    ]


def _arms(clip: Clip) -> list[Stroke]:
    sleeve = mix(BODIES[clip.colour], INK, 0.14)
    hand = mix(BODIES[clip.colour], CREAM, 0.5)
    found = []
    for part, side in (("left_arm", -1), ("right_arm", 1)):
        found.append(Stroke(part, box(side * 0.185, SHOULDER[1], 0.09, 0.033, 0.033), sleeve))
        found.append(Stroke(part, disc(side * 0.265, SHOULDER[1], 0.037), hand))
    return found


class _Head(NamedTuple):
    """The shapes that make a kind: ears and their insides are painted on both sides."""

    skull: Shape
    ear: Shape
    inner: Shape
    antenna: Shape
    muzzle: Shape
    nose: Shape
    snout: Shape = NOTHING


_HEADS = {
    "rabbit": _Head(
        skull=box(0.0, 0.455, 0.098, 0.094, 0.09),
        ear=taper(0.052, 0.53, 0.635, 0.008, 0.012, 0.024, 0.22),
        inner=taper(0.055, 0.55, 0.625, 0.002, 0.004, 0.012, 0.22),
        antenna=NOTHING,
        muzzle=disc(0.0, 0.42, 0.036),
        nose=box(0.0, 0.438, 0.016, 0.011, 0.008),
    ),
    "bear": _Head(
        skull=box(0.0, 0.455, 0.116, 0.096, 0.092),
        ear=disc(0.09, 0.535, 0.042),
        inner=disc(0.09, 0.535, 0.022),
        antenna=NOTHING,
        muzzle=box(0.0, 0.418, 0.056, 0.038, 0.036),
        nose=box(0.0, 0.434, 0.024, 0.015, 0.012),
    ),
    "fox": _Head(
        skull=taper(0.0, 0.4, 0.505, 0.012, 0.096, 0.03),
        ear=taper(0.084, 0.5, 0.622, 0.046, 0.0, 0.004, 0.18),
        inner=taper(0.086, 0.52, 0.59, 0.024, 0.0, 0.0, 0.18),
        antenna=NOTHING,
        muzzle=taper(0.0, 0.372, 0.435, 0.014, 0.042, 0.006),
        nose=disc(0.0, 0.386, 0.019),
    ),
    "robot": _Head(
        skull=box(0.0, 0.455, 0.108, 0.09, 0.016),
        ear=box(0.116, 0.455, 0.022, 0.034, 0.006),
        inner=NOTHING,
        antenna=taper(0.0, 0.54, 0.6, 0.01, 0.01),
        muzzle=box(0.0, 0.41, 0.06, 0.022, 0.004),
        nose=box(0.0, 0.41, 0.048, 0.007),
    ),
    "elephant": _Head(
        skull=box(0.0, 0.46, 0.09, 0.092, 0.086),
        ear=taper(0.138, 0.44, 0.5, 0.012, 0.022, 0.058),
        inner=taper(0.142, 0.445, 0.495, 0.008, 0.014, 0.034),
        antenna=NOTHING,
        muzzle=NOTHING,
        nose=NOTHING,
        snout=taper(0.0, 0.352, 0.445, 0.004, 0.012, 0.022),
    ),
}


def _ears(clip: Clip) -> list[Stroke]:
    body, head = BODIES[clip.colour], _HEADS[clip.kind]
    knob = disc(0.0, 0.612, 0.026) if clip.kind == "robot" else NOTHING
    return [
        Stroke("head", head.ear, mix(body, INK, 0.12), twice=True),
        Stroke("head", head.inner, mix(body, CREAM, 0.6), twice=True),
        Stroke("head", head.antenna, INK),
        Stroke("head", knob, mix(body, CREAM, 0.6)),
    ]


def _face(clip: Clip) -> list[Stroke]:
    body, head = BODIES[clip.colour], _HEADS[clip.kind]
    mask = box(0.0, 0.478, 0.085, 0.03, 0.024) if clip.eyes == "mask" else NOTHING
    white = disc(0.042, 0.48, 0.034) if clip.eyes == "wide" else NOTHING
    pupil = disc(0.042, 0.478, 0.014 if clip.eyes == "mask" else 0.018)
    return [
        Stroke("head", head.skull, body),
        Stroke("head", head.snout, mix(body, CREAM, 0.38)),
        Stroke("head", head.muzzle, mix(body, CREAM, 0.72)),
        Stroke("head", head.nose, INK),
        Stroke("head", mask, INK),
        Stroke("head", white, CREAM, twice=True),
        Stroke("head", pupil, CREAM if clip.eyes == "mask" else INK, twice=True),
    ]
