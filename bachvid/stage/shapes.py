"""The one shape everything on the stage is cut from: a rounded, possibly leaning trapezoid with soft edges.

Seven numbers give discs, capsules, boxes, triangles, roofs and ears, so a whole batch of different pictures
is the same short list of tensor operations with different numbers in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Shape(NamedTuple):
    """A trapezoid round (x, y), y upwards: half its height, half its widths at bottom and top, all grown by
    `round`,
    pushed sideways by `lean` per unit of height."""

    x: float
    y: float
    half_height: float
    bottom: float
    top: float
    round: float
    lean: float = 0.0

    def scaled(self, factor: float) -> Shape:
        """The shape scaled about the origin."""
        x, y, half_height, bottom, top, rounding = (number * factor for number in self[:6])
        return Shape(x, y, half_height, bottom, top, rounding, self.lean)


class Paint(NamedTuple):
    """A shape and its colour, red, green and blue of 255."""

    shape: Shape
    colour: tuple[float, float, float]


NOTHING = Shape(0.0, 0.0, 0.0, 0.0, 0.0, -9.0)  # so far inside out that it covers no pixel


def disc(x: float, y: float, radius: float) -> Shape:
    """A disc."""
    return Shape(x, y, 0.0, 0.0, 0.0, radius)


def box(x: float, y: float, half_width: float, half_height: float, round: float = 0.0) -> Shape:
    """An upright rectangle of that outer size, its corners rounded inwards."""
    return Shape(x, y, half_height - round, half_width - round, half_width - round, round)


def taper(
    x: float, low: float, high: float, bottom: float, top: float, round: float = 0.0, lean: float = 0.0
) -> Shape:
    """A trapezoid from `low` to `high` with those half widths, grown by `round` on all sides."""
    return Shape(x, (low + high) / 2, (high - low) / 2, bottom, top, round, lean)


def extent(shapes: Iterable[Shape]) -> tuple[float, float, float, float]:
    """The box (left, right, low, high) that holds all the shapes; left > right when there is none."""
    left, right, low, high = [9.0], [-9.0], [9.0], [-9.0]
    for shape in shapes:
        if shape != NOTHING:
            tall = shape.half_height + shape.round
            wide = max(shape.bottom, shape.top) + shape.round + abs(shape.lean) * tall
            left.append(shape.x - wide)
            right.append(shape.x + wide)
            low.append(shape.y - tall)
            high.append(shape.y + tall)
    return min(left), max(right), min(low), max(high)


class Coloured(Protocol):
    """Anything with a shape and the numbers it is painted with."""

    @property
    def shape(self) -> Shape:
        """Where it is."""

    @property
    def colour(self) -> tuple[float, ...]:
        """What it looks like: red, green and blue, or any other channels."""


def numbers_of(layers: Sequence[Sequence[Coloured]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The shapes' numbers (layers, N, 7) and colours (layers, N, C) of equally long layers."""
    flat = [[(*paint.shape, *paint.colour) for paint in layer] for layer in layers]
    packed = torch.tensor(flat, dtype=torch.float32, device=device)
    return packed[..., :7], packed[..., 7:]


def coverage(x: Tensor, y: Tensor, numbers: Tensor, pixel: Tensor) -> Tensor:
    """The share of each pixel that a shape covers, in [0, 1], by its signed distance and an edge one pixel
    wide.

    `x` and `y` are pixel centres; `numbers` holds the seven of `Shape` in its last dimension, the others
    broadcast against `x`; `pixel` is the size of a pixel in the same units.
    """
    cx, cy, half_height, bottom, top, rounding, lean = numbers.unbind(-1)
    slope = (top - bottom) / (2 * half_height).clamp_min(1e-6)
    upright = (
        1 + (slope.abs() + lean.abs()) ** 2
    ).rsqrt()  # turns horizontal distance into distance to the side
    up = y - cy
    beside = (x - cx - lean * up).abs_()
    beside = beside.sub_((bottom + top) / 2 + slope * up).mul_(upright)
    above = up.abs() - half_height
    inside = torch.maximum(beside, above).clamp_max_(0)
    distance = beside.clamp_min_(0).square_().add_(above.clamp_min_(0).square_()).sqrt_().add_(inside)
    return distance.sub_(rounding).div_(pixel).neg_().add_(0.5).clamp_(0, 1)
