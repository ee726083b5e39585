"""The colours of the two worlds: every stage colour is cool, every puppet colour is warm, strictly.

A pixel belongs to the puppet exactly when red exceeds green. All stage colours keep R - G <= -25 (of 255) and
all puppet colours R - G >= +30, and mixing colours of one world cannot leave it, so blur, soft edges and a
VAE keep the sign and the foreground of any picture, generated ones too, is read by a rule.
"""

from __future__ import annotations

from collections.abc import Iterable

RGB = tuple[float, float, float]

STAGE_GAP = 25.0
PUPPET_GAP = 30.0
_SPARE = 6.0  # kept beyond the gap, so that rounding and a VAE's last grey level cannot cross it

SKIES: dict[str, RGB] = {
    "blue": (88, 166, 240),
    "navy": (30, 64, 132),
    "mint": (142, 226, 172),
    "silver": (204, 238, 246),
}
CLOUDS: dict[str, RGB] = {
    "blue": (206, 240, 252),
    "navy": (96, 140, 196),
    "mint": (206, 246, 226),
    "silver": (146, 190, 216),
}
GROUNDS: dict[str, RGB] = {
    "forest": (44, 112, 66),
    "village": (118, 188, 92),
    "valley": (62, 150, 126),
    "harbour": (28, 108, 168),
    "city": (104, 146, 164),
}
SUN: RGB = (220, 254, 150)
CURTAIN: RGB = (10, 62, 84)
CURTAIN_FOLD: RGB = (26, 100, 118)

BODIES: dict[str, RGB] = {
    "red": (214, 46, 46),
    "orange": (248, 142, 34),
    "pink": (253, 152, 182),
    "brown": (134, 78, 42),
    "lilac": (184, 124, 240),
}
CLOTHES: dict[str, RGB] = {
    "white": (255, 217, 196),
    "black": (66, 18, 34),
    "purple": (138, 34, 178),
    "yellow": (255, 207, 48),
}
BADGE: tuple[RGB, RGB, RGB] = ((255, 217, 190), (238, 52, 128), (62, 14, 28))
CREAM: RGB = (255, 217, 190)
INK: RGB = (58, 12, 26)


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """The colour `share` of the way from `first` to `second`, share in [0, 1]."""
    return _rgb(a + (b - a) * share for a, b in zip(first, second, strict=True))


def shift(colour: RGB, tint: RGB) -> RGB:
    """`colour` moved by `tint`, each channel clipped to 0..255."""
    return _rgb(min(255.0, max(0.0, c + t)) for c, t in zip(colour, tint, strict=True))


def cool(colour: RGB) -> RGB:
    """The nearest colour with less red that a stage may show: R - G <= -STAGE_GAP and a bit less."""
    red, green, blue = colour
    green = max(green, STAGE_GAP + _SPARE)
    return min(red, green - STAGE_GAP - _SPARE), green, blue


def warm(colour: RGB) -> RGB:
    """The nearest colour with less green that a puppet may show: R - G >= PUPPET_GAP and a bit more."""
    red, green, blue = colour
    red = max(red, PUPPET_GAP + _SPARE)
    return red, min(green, red - PUPPET_GAP - _SPARE), blue


def _rgb(channels: Iterable[float]) -> RGB:
    red, green, blue = channels
    return red, green, blue
