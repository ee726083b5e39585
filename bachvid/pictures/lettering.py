"""Small text in pictures: our own letters, drawn from strokes, smooth at any size, without a font file."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

# Units: a capital is 6 high, a small letter 4, the baseline is 0.
ASCENT, DESCENT = 7.0, 2.4
GAP, SPACE = 1.5, 1.6  # between letters, and the width of a blank
PEN = 0.37  # half the width of a stroke
CURVE_POINTS = 6  # straight pieces of each bend

Coverage = NDArray[np.float32]


def draw_text(
    image: NDArray[np.uint8], text: str, x: int, y: int, height: float, colour: tuple[int, int, int]
) -> None:
    """Writes a line into `image` (H, W, 3), its box's upper left corner at (x, y); what sticks out is cut."""
    ink = line(text, height)[: max(image.shape[0] - y, 0), : max(image.shape[1] - x, 0), None]
    under = image[y : y + ink.shape[0], x : x + ink.shape[1]]
    under[:] = np.rint(under + ink * (np.array(colour, np.float32) - under)).astype(np.uint8)


def text_width(text: str, height: float) -> int:
    """Pixels a line of this height takes."""
    return int(np.ceil(starts(text)[-1] * unit(height)))


def shorten(text: str, height: float, width: int) -> str:
    """The text, or as much of its beginning as fits into `width` pixels, with an ellipsis."""
    if text_width(text, height) <= width:
        return text
    while text and text_width(f"{text}…", height) > width:
        text = text[:-1].rstrip()
    return f"{text}…"


@lru_cache(maxsize=256)
def line(text: str, height: float) -> Coverage:
    """How much ink lies on each pixel of a line of text, (height, width) in [0, 1]."""
    scale = unit(height)
    ink = np.zeros((round(height), text_width(text, height)), np.float32)
    y, x = (np.indices(ink.shape) + 0.5) / scale
    for letter, start in zip(text, starts(text)[:-1], strict=True):
        strokes = segments(letter)
        if strokes.size:
            reach = slice(max(int((start - 1) * scale), 0), int((start + width_of(letter) + 1) * scale) + 1)
            distance = distance_to(strokes, x[:, reach] - start, ASCENT - y[:, reach])
            ink[:, reach] = np.maximum(ink[:, reach], np.clip((PEN - distance) * scale + 0.5, 0, 1))
    return ink


def unit(height: float) -> float:
    """Pixels to a unit in a line of this height."""
    return height / (ASCENT + DESCENT)


def starts(text: str) -> NDArray:
    """Where each letter begins, and at last where the line ends, in units."""
    return np.cumsum([GAP / 2, *(width_of(letter) + GAP for letter in text)])


@cache
def width_of(letter: str) -> float:
    """Units from a letter's left edge to its right."""
    return SPACE if letter == " " else float(segments(letter)[..., 0].max())


def distance_to(strokes: NDArray, x: NDArray, y: NDArray) -> NDArray:
    """The distance of each point (H, W) to the nearest of the segments (S, 2, 2)."""
    point = np.stack([x, y], -1)[..., None, :]  # H W 1 2
    begin, along = strokes[:, 0], strokes[:, 1] - strokes[:, 0]  # S 2
    share = ((point - begin) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)  # H W S
    nearest = begin + np.clip(share, 0, 1)[..., None] * along  # H W S 2
    return np.hypot(*np.moveaxis(point - nearest, -1, 0)).min(-1)


@cache
def segments(letter: str) -> NDArray:
    """The straight pieces (S, 2, 2) of a letter: begin and end, each (x, y) in units."""
    if letter not in STROKES:
        letter = unicodedata.normalize("NFKD", letter)[0]  # an accented letter becomes a plain one
    pieces = []
    for stroke in STROKES.get(letter, UNKNOWN).split("/"):
        if points := [[float(n) for n in point.split(",")] for point in stroke.strip("~ ").split()]:
            path = bend(np.array(points)) if "~" in stroke else np.array(points)
            pieces.append(np.stack([path[:-1], path[1:]], 1))
    return np.concatenate(pieces) if pieces else np.empty((0, 2, 2))


def bend(points: NDArray) -> NDArray:
    """A quadratic spline from the first point to the last, drawn towards those between."""
    knots = [points[0], *(points[1:-2] + points[2:-1]) / 2, points[-1]]
    share = np.linspace(0, 1, CURVE_POINTS + 1)[:, None]
    pieces = [
        (1 - share) ** 2 * begin + 2 * share * (1 - share) * pull + share**2 * end
        for begin, pull, end in zip(knots[:-1], points[1:-1], knots[1:], strict=True)
    ]
    return np.concatenate(pieces)


UNKNOWN = "0,0 0,6 3,6 3,0 0,0"

# Each letter is a few strokes, separated by `/`, through points x,y. A stroke that begins with ~ is a spline.
STROKES = {
    " ": "",
    "!": "0,6 0,2 / 0,0 0,0",
    '"': "0,6 0,4.5 / 1.4,6 1.4,4.5",
    "#": "1.3,5.5 .7,.5 / 3.1,5.5 2.5,.5 / .2,4 3.8,4 / 0,2 3.6,2",
    "$": "~3.3,4.5 3.3,5.4 .2,5.4 .2,3.2 3.4,2.8 3.4,.6 0,.6 0,1.6 / 1.7,6.4 1.7,-.4",
    "%": "3.9,6 .5,0 / ~.9,6 0,6 0,3.7 1.8,3.7 1.8,6 .9,6 / ~3.5,2.3 2.6,2.3 2.6,0 4.4,0 4.4,2.3 3.5,2.3",
    "&": "~4,0 .6,4 .6,6 2.9,6 2.9,4 0,3 0,0 2.9,0 3.9,1.3 3.9,2.6",
    "'": "0,6 0,4.5",
    "(": "~1.2,6.6 0,5 0,.6 1.2,-1",
    ")": "~0,6.6 1.2,5 1.2,.6 0,-1",
    "*": "1.3,5.9 1.3,3.1 / .1,5.2 2.5,3.8 / .1,3.8 2.5,5.2",
    "+": "0,2.5 3,2.5 / 1.5,1 1.5,4",
    ",": ".4,.1 0,-1.1",
    "-": "0,2.3 1.9,2.3",
    ".": "0,0 0,0",
    "/": "0,-.6 2.4,6.4",
    "0": "~1.7,6 0,6 0,0 3.4,0 3.4,6 1.7,6",
    "1": ".5,4.7 2,6 2,0 / .5,0 3.4,0",
    "2": "~.1,4.5 .1,6 3.3,6 3.3,3.4 0,0 / 0,0 3.4,0",
    "3": "~.2,5 .2,6 3.2,6 3.2,3.2 1.4,3.2 / ~1.4,3.2 3.4,3.2 3.4,0 0,0 0,1.1",
    "4": "2.6,0 2.6,6 0,1.7 3.4,1.7",
    "5": "3.1,6 .4,6 .2,3.2 / ~.2,3.2 1,3.8 3.4,3.8 3.4,0 0,0 0,1",
    "6": "~2.9,6 0,5 0,2 0,0 3.4,0 3.4,3.7 0,3.7 0,1.9",
    "7": "0,6 3.4,6 1.2,0",
    "8": "~1.7,6 .2,6 .2,3.2 3.2,3.2 3.2,6 1.7,6 / ~1.7,3.2 0,3.2 0,0 3.4,0 3.4,3.2 1.7,3.2",
    "9": "~.5,0 3.4,1 3.4,4 3.4,6 0,6 0,2.3 3.4,2.3 3.4,4.1",
    ":": "0,.2 0,.2 / 0,3.6 0,3.6",
    ";": ".4,.1 0,-1.1 / .4,3.6 .4,3.6",
    "<": "2.8,4.3 0,2.5 2.8,.7",
    "=": "0,3.4 3,3.4 / 0,1.6 3,1.6",
    ">": "0,4.3 2.8,2.5 0,.7",
    "?": "~0,4.8 0,6 3,6 3,3.9 1.5,3.4 1.5,1.9 / 1.5,0 1.5,0",
    "@": "~3.7,2.6 3.7,4.2 1.5,4.2 1.5,1 3.7,1 3.7,2.6 / ~3.7,4 3.7,1.2 5.4,.6 5.4,6 0,6 0,-1 3,-1 4.4,-.6",
    "A": "0,0 2,6 4,0 / .7,2 3.3,2",
    "B": "0,6 0,0 / ~0,6 2,6 3.6,6 3.6,3.1 2,3.1 0,3.1 / ~0,3.1 2.2,3.1 4,3.1 4,0 2.2,0 0,0",
    "C": "~4,4.5 4,6 0,6 0,0 4,0 4,1.5",
    "D": "0,6 0,0 / ~0,6 2,6 4.2,6 4.2,0 2,0 0,0",
    "E": "3.4,6 0,6 0,0 3.4,0 / 0,3.1 3,3.1",
    "F": "3.4,6 0,6 0,0 / 0,3.1 3,3.1",
    "G": "~4,4.6 4,6 0,6 0,0 4,0 4,2.6 / 4,2.7 2.4,2.7",
    "H": "0,0 0,6 / 4,0 4,6 / 0,3.1 4,3.1",
    "I": "0,0 0,6",
    "J": "~2.6,6 2.6,3 2.6,0 0,0 0,1.5",
    "K": "0,0 0,6 / 3.8,6 0,2.4 / 1.4,3.7 4,0",
    "L": "0,6 0,0 3.2,0",
    "M": "0,0 0,6 2.4,1.6 4.8,6 4.8,0",
    "N": "0,0 0,6 4,0 4,6",
    "O": "~2.2,6 0,6 0,0 4.4,0 4.4,6 2.2,6",
    "P": "0,0 0,6 / ~0,6 2.1,6 3.8,6 3.8,2.7 2.1,2.7 0,2.7",
    "Q": "~2.2,6 0,6 0,0 4.4,0 4.4,6 2.2,6 / 2.8,1.5 4.4,-.4",
    "R": "0,0 0,6 / ~0,6 2.1,6 3.8,6 3.8,2.8 2.1,2.8 0,2.8 / 1.9,2.8 3.9,0",
    "S": "~3.7,4.8 3.7,6 .1,6 .1,3.3 3.8,2.9 3.8,0 0,0 0,1.4",
    "T": "0,6 4,6 / 2,6 2,0",
    "U": "~0,6 0,3 0,0 4,0 4,3 4,6",
    "V": "0,6 2.1,0 4.2,6",
    "W": "0,6 1.5,0 3,5 4.5,0 6,6",
    "X": "0,0 4,6 / 0,6 4,0",
    "Y": "0,6 2,2.8 4,6 / 2,2.8 2,0",
    "Z": "0,6 3.8,6 0,0 3.8,0",
    "[": "1.1,6.6 0,6.6 0,-1 1.1,-1",
    "\\": "0,6.4 2.4,-.6",
    "]": "0,6.6 1.1,6.6 1.1,-1 0,-1",
    "^": "0,4.2 1.3,6 2.6,4.2",
    "_": "0,-.8 3.4,-.8",
    "`": "0,6 .8,5",
    "a": "3,4 3,0 / ~3,2 3,4 0,4 0,0 3,0 3,2",
    "b": "0,6 0,0 / ~0,2 0,4 3,4 3,0 0,0 0,2",
    "c": "~2.9,3 2.9,4 0,4 0,0 2.9,0 2.9,1",
    "d": "3,6 3,0 / ~3,2 3,4 0,4 0,0 3,0 3,2",
    "e": "0,2.1 3,2.1 / ~3,2.1 3,4 0,4 0,0 2.9,0 2.9,.9",
    "f": "~2.2,6 .8,6 .8,4.5 .8,0 / 0,4 2,4",
    "g": "~3,2 3,4 0,4 0,0 3,0 3,2 / ~3,4 3,1 3,-1.9 .1,-1.9 .1,-1",
    "h": "0,6 0,0 / ~0,2.2 0,4 3,4 3,2 3,0",
    "i": "0,4 0,0 / 0,5.7 0,5.7",
    "j": "~1.1,4 1.1,1 1.1,-1.8 0,-1.8 / 1.1,5.7 1.1,5.7",
    "k": "0,6 0,0 / 2.7,4 0,1.5 / 1,2.4 2.9,0",
    "l": "~0,6 0,3 0,0 1,0",
    "m": "0,4 0,0 / ~0,2.4 0,4 2.3,4 2.3,2 2.3,0 / ~2.3,2.4 2.3,4 4.6,4 4.6,2 4.6,0",
    "n": "0,4 0,0 / ~0,2.2 0,4 3,4 3,2 3,0",
    "o": "~1.6,4 0,4 0,0 3.2,0 3.2,4 1.6,4",
    "p": "0,4 0,-1.8 / ~0,2 0,4 3,4 3,0 0,0 0,2",
    "q": "3,4 3,-1.8 / ~3,2 3,4 0,4 0,0 3,0 3,2",
    "r": "0,4 0,0 / ~0,2.2 0,4 2,4",
    "s": "~2.6,3.2 2.6,4 .1,4 .1,2.3 2.7,1.8 2.7,0 0,0 0,.8",
    "t": "~.9,5.4 .9,2 .9,0 2.2,0 / 0,4 2.1,4",
    "u": "~0,4 0,2 0,0 3,0 3,1.8 / 3,4 3,0",
    "v": "0,4 1.5,0 3,4",
    "w": "0,4 1.2,0 2.4,3.6 3.6,0 4.8,4",
    "x": "0,0 2.8,4 / 0,4 2.8,0",
    "y": "0,4 1.6,.1 / 3.1,4 .9,-1.8",
    "z": "0,4 2.7,4 0,0 2.7,0",
    "{": "~1.6,6.6 .7,6.6 .7,2.8 0,2.8 / ~0,2.8 .7,2.8 .7,-1 1.6,-1",
    "|": "0,6.6 0,-1",
    "}": "~0,6.6 .9,6.6 .9,2.8 1.6,2.8 / ~1.6,2.8 .9,2.8 .9,-1 0,-1",
    "~": "~0,2.2 .2,3.2 1.4,3 1.8,2 3,1.8 3.2,2.8",
    "°": "~.8,6.2 0,6.2 0,4.4 1.6,4.4 1.6,6.2 .8,6.2",
    "·": "0,2.5 0,2.5",
    "×": "0,1.2 2.6,3.8 / 0,3.8 2.6,1.2",
    "–": "0,2.3 3,2.3",
    "—": "0,2.3 5,2.3",
    "‘": "0,4.5 .3,6",
    "’": ".3,6 0,4.5",
    "“": "0,4.5 .3,6 / 1.4,4.5 1.7,6",
    "”": ".3,6 0,4.5 / 1.7,6 1.4,4.5",
    "…": "0,0 0,0 / 1.6,0 1.6,0 / 3.2,0 3.2,0",
    "→": "0,2.5 3.8,2.5 / 2.5,3.8 3.8,2.5 2.5,1.2",
}
