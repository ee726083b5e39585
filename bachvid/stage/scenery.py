"""What stands behind the puppet: the things of each place, the landmarks, the sky and the front of the stage.

Everything is a table of painted shapes in heights of the picture, x from the middle of its slot, y up from
the horizon (the landmark and the horizon's things), from the sky's own line, or from the bottom edge (the
front).
"""

from __future__ import annotations

from bachvid.stage.palette import CLOUDS, GROUNDS, RGB, SKIES, SUN, cool, mix, shift
from bachvid.stage.shapes import Paint, box, disc, taper
from bachvid.stage.world import Clip

SKY_LINE = 0.85
FRONT_LINE = 0.035

_WHITE: RGB = (214, 246, 252)
_AQUA: RGB = (0, 186, 176)
_DEEP: RGB = (8, 66, 122)
_GLASS: RGB = (190, 244, 206)


def sky_things(clip: Clip) -> list[list[Paint]]:
    """The paints of each sky slot: none, a cloud, or the sun."""
    cloud = CLOUDS[clip.sky]
    pale = mix(cloud, _WHITE, 0.35)
    states: tuple[list[Paint], ...] = (
        [],
        [
            Paint(box(0.0, -0.02, 0.11, 0.022, 0.022), cloud),
            Paint(disc(-0.035, 0.0, 0.035), cloud),
            Paint(disc(0.03, 0.008, 0.045), pale),
        ],
        [Paint(disc(0.0, 0.0, 0.068), mix(SUN, SKIES[clip.sky], 0.55)), Paint(disc(0.0, 0.0, 0.052), SUN)],
    )
    return [_tinted(states[state], clip) for state in clip.sky_slots]


def horizon_things(clip: Clip) -> list[list[Paint]]:
    """The paints of each horizon slot: none, the place's first or second thing, or the landmark."""
    things: tuple[list[Paint], ...] = ([], *_THINGS[clip.place], _LANDMARKS[clip.landmark])
    slots = zip(clip.layout, clip.sizes, strict=True)
    return [_tinted([Paint(s.scaled(size), c) for s, c in things[state]], clip) for state, size in slots]


def front_things(clip: Clip) -> list[list[Paint]]:
    """The paints of each slot at the front edge of the stage."""
    return [_tinted(_FRONTS[clip.place] if state else [], clip) for state in clip.front]


def sky_colours(clip: Clip) -> tuple[RGB, RGB]:
    """The sky's colour at the top and just above the horizon."""
    sky = SKIES[clip.sky]
    return _tint(sky, clip), _tint(mix(sky, _WHITE, 0.28), clip)


def ground_colours(clip: Clip) -> tuple[RGB, RGB]:
    """The ground's colour at the horizon and at the front edge."""
    ground = GROUNDS[clip.place]
    return _tint(mix(ground, _WHITE, 0.16), clip), _tint(mix(ground, (0, 40, 50), 0.16), clip)


def _tinted(paints: list[Paint], clip: Clip) -> list[Paint]:
    return [Paint(shape, _tint(colour, clip)) for shape, colour in paints]


def _tint(colour: RGB, clip: Clip) -> RGB:
    return cool(shift(colour, clip.stage_tint))


_PINE: RGB = (14, 82, 70)
_LEAF: RGB = (70, 158, 84)
_TRUNK: RGB = (22, 62, 60)
_WALL: RGB = (176, 226, 214)
_ROOF: RGB = (24, 86, 128)
_BARN: RGB = (62, 132, 160)
_ROCK: RGB = (40, 92, 104)
_HILL: RGB = (66, 142, 92)
_HULL: RGB = (10, 60, 92)
_STEEL: RGB = (64, 112, 140)
_SLATE: RGB = (34, 82, 118)

_THINGS: dict[str, tuple[list[Paint], list[Paint]]] = {
    "forest": (
        [
            Paint(box(0.0, 0.015, 0.016, 0.03), _TRUNK),
            Paint(taper(0.0, 0.03, 0.17, 0.09, 0.02), _PINE),
            Paint(taper(0.0, 0.12, 0.28, 0.066, 0.0), mix(_PINE, _LEAF, 0.25)),
        ],
        [
            Paint(taper(0.0, -0.01, 0.08, 0.02, 0.015), _TRUNK),
            Paint(disc(0.0, 0.115, 0.075), _LEAF),
            Paint(disc(-0.022, 0.135, 0.038), mix(_LEAF, _GLASS, 0.35)),
        ],
    ),
    "village": (
        [
            Paint(box(0.0, 0.06, 0.072, 0.07), _WALL),
            Paint(taper(0.0, 0.12, 0.225, 0.1, 0.0), _ROOF),
            Paint(box(-0.03, 0.025, 0.018, 0.04), _DEEP),
            Paint(box(0.03, 0.075, 0.02, 0.022), _DEEP),
        ],
        [
            Paint(box(0.0, 0.03, 0.098, 0.04), _BARN),
            Paint(taper(0.0, 0.068, 0.115, 0.108, 0.07), mix(_PINE, _LEAF, 0.5)),
            Paint(box(0.0, 0.022, 0.026, 0.034), _WALL),
        ],
    ),
    "valley": (
        [
            Paint(taper(0.0, -0.01, 0.29, 0.112, 0.0), _ROCK),
            Paint(taper(0.0, 0.185, 0.29, 0.04, 0.0), _WHITE),
            Paint(taper(0.035, -0.01, 0.12, 0.06, 0.0), mix(_ROCK, _DEEP, 0.4)),
        ],
        [
            Paint(box(0.0, 0.025, 0.108, 0.05, 0.048), _HILL),
            Paint(box(-0.03, 0.045, 0.04, 0.02, 0.02), mix(_HILL, _GLASS, 0.3)),
        ],
    ),
    "harbour": (
        [
            Paint(taper(0.0, 0.03, 0.25, 0.008, 0.006), _HULL),
            Paint(taper(0.038, 0.055, 0.24, 0.06, 0.0, lean=-0.2), _WHITE),
            Paint(taper(-0.03, 0.055, 0.19, 0.034, 0.0, lean=0.18), _ROOF),
            Paint(taper(0.0, -0.005, 0.035, 0.06, 0.1), _HULL),
        ],
        [
            Paint(box(0.045, 0.09, 0.02, 0.05), _AQUA),
            Paint(box(-0.02, 0.06, 0.06, 0.03, 0.008), _WALL),
            Paint(taper(0.0, -0.005, 0.04, 0.085, 0.108), _STEEL),
        ],
    ),
    "city": (
        [
            Paint(box(0.0, 0.13, 0.066, 0.14), _SLATE),
            Paint(box(-0.028, 0.15, 0.016, 0.1), _GLASS),
            Paint(box(0.028, 0.15, 0.016, 0.1), _GLASS),
            Paint(box(0.0, 0.15, 0.06, 0.014), _SLATE),
        ],
        [
            Paint(box(0.0, 0.05, 0.105, 0.06), _STEEL),
            Paint(box(0.0, 0.083, 0.085, 0.013), _GLASS),
            Paint(box(0.0, 0.035, 0.085, 0.013), _GLASS),
        ],
    ),
}

_LANDMARKS: dict[str, list[Paint]] = {
    "tower": [
        Paint(taper(0.0, -0.01, 0.22, 0.055, 0.045), _WHITE),
        Paint(box(0.0, 0.225, 0.066, 0.025), _AQUA),
        Paint(taper(0.0, 0.25, 0.34, 0.06, 0.0), _DEEP),
        Paint(box(0.0, 0.15, 0.014, 0.03, 0.012), _DEEP),
        Paint(box(0.0, 0.025, 0.022, 0.035, 0.014), _AQUA),
    ],
    "windmill": [
        Paint(taper(0.0, -0.01, 0.17, 0.07, 0.042), _WHITE),
        Paint(box(0.0, 0.03, 0.022, 0.04, 0.018), _AQUA),
        Paint(disc(0.0, 0.175, 0.044), _DEEP),
        Paint(taper(0.0, 0.105, 0.265, 0.02, 0.02, lean=1.0), _AQUA),
        Paint(taper(0.0, 0.105, 0.265, 0.02, 0.02, lean=-1.0), _AQUA),
        Paint(disc(0.0, 0.185, 0.018), _WHITE),
    ],
    "tent": [
        Paint(taper(0.0, -0.01, 0.09, 0.1, 0.1), _WHITE),
        Paint(box(-0.06, 0.04, 0.018, 0.05), _AQUA),
        Paint(box(0.06, 0.04, 0.018, 0.05), _AQUA),
        Paint(taper(0.0, 0.085, 0.2, 0.116, 0.0), _AQUA),
        Paint(taper(0.0, 0.085, 0.2, 0.042, 0.0), _WHITE),
        Paint(taper(0.0, -0.01, 0.07, 0.03, 0.0), _DEEP),
        Paint(taper(0.022, 0.2, 0.24, 0.024, 0.024), _DEEP),
    ],
    "gate": [
        Paint(box(-0.07, 0.09, 0.022, 0.1), _AQUA),
        Paint(box(0.07, 0.09, 0.022, 0.1), _AQUA),
        Paint(box(0.0, 0.165, 0.1, 0.015), _DEEP),
        Paint(taper(0.0, 0.2, 0.235, 0.1, 0.116), _AQUA),
        Paint(box(0.0, 0.242, 0.116, 0.012), _DEEP),
    ],
    "balloon": [
        Paint(taper(0.0, 0.13, 0.2, 0.016, 0.062), _DEEP),
        Paint(disc(0.0, 0.245, 0.095), _AQUA),
        Paint(box(0.0, 0.245, 0.034, 0.094, 0.034), _WHITE),
        Paint(box(0.0, 0.245, 0.094, 0.014), _DEEP),
        Paint(box(0.0, 0.115, 0.03, 0.025, 0.008), _DEEP),
    ],
}

_FRONTS: dict[str, list[Paint]] = {
    "forest": [
        Paint(disc(-0.03, 0.0, 0.045), _LEAF),
        Paint(disc(0.035, -0.01, 0.055), mix(_LEAF, _GLASS, 0.35)),
    ],
    "village": [
        Paint(taper(-0.025, -0.04, 0.045, 0.032, 0.0, lean=-0.5), _PINE),
        Paint(taper(0.025, -0.04, 0.055, 0.032, 0.0, lean=0.4), _PINE),
    ],
    "valley": [
        Paint(box(0.0, -0.01, 0.07, 0.034, 0.03), _STEEL),
        Paint(box(-0.018, 0.006, 0.03, 0.012, 0.012), mix(_STEEL, _WHITE, 0.5)),
    ],
    "harbour": [
        Paint(box(-0.03, 0.014, 0.075, 0.011, 0.011), mix(_WHITE, GROUNDS["harbour"], 0.3)),
        Paint(box(0.05, -0.014, 0.06, 0.011, 0.011), mix(_WHITE, GROUNDS["harbour"], 0.3)),
    ],
    "city": [
        Paint(box(0.0, -0.005, 0.1, 0.016, 0.0), _GLASS),
        Paint(box(0.0, -0.005, 0.03, 0.016, 0.0), _SLATE),
    ],
}
