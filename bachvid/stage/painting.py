"""The puppet painted stroke by stroke in any number of channels: colours, or shares of materials."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bachvid.stage.actions import Pose, into_body
from bachvid.stage.body import PARTS, Stroke
from bachvid.stage.shapes import coverage, extent, numbers_of

Layers = list[tuple[Stroke, ...]]

_STEP = 3  # pixels between the samples that say where a stroke can lie


class Painted(NamedTuple):
    """What painted puppets leave behind: how bare each pixel is (B, F, h, w), and uv (B, F, 2, h, w)."""

    bare: Tensor
    uv: Tensor


def paint_puppets(canvas: Tensor, layers: Layers, now: Pose, x: Tensor, y: Tensor, height: int) -> Painted:
    """Paints the puppets into canvas (B, F, C, h, w) in place, and says where.

    `layers` are the clips' strokes side by side, from back to front, with colours of C numbers; `x` (B, F, 1,
    w) and `y` (B, F, h, 1) are the canvas's pixel centres in heights of a picture `height` pixels high. A
    pixel's uv is that of the topmost stroke that covers a good part of it, else of the torso's plane.
    """
    shape = (*canvas.shape[:2], *canvas.shape[3:])
    parts = into_body(now, x, y)
    places = torch.stack([torch.stack([c.expand(shape) for c in parts[part]], 2) for part in PARTS])
    pixel = (1 / (height * now.scale * now.width.sqrt()))[..., None, None]
    uv = places[PARTS.index("torso")].clone()
    bare = torch.ones(shape, device=canvas.device)
    regions = _regions(layers, places, now, height)
    for layer, region, *packed in zip(layers, regions, *numbers_of(layers, canvas.device), strict=True):
        numbers, colours = packed
        place = places[(PARTS.index(layer[0].part), ..., *region)]
        across, up = place.unbind(2)
        across = across.abs() if layer[0].twice else across
        share = coverage(across, up, numbers[:, None, None, None], pixel)
        canvas[(..., *region)].lerp_(colours[:, None, :, None, None], share.unsqueeze(2))
        bare[(..., *region)].mul_(1 - share)
        owned = (share > 0.29).unsqueeze(
            2
        )  # of two shapes that half cover a pixel together, one covers this much
        uv[(..., *region)] = torch.where(owned, place, uv[(..., *region)])
    return Painted(bare, uv)


def _regions(layers: Layers, places: Tensor, now: Pose, height: int) -> list[tuple[slice, slice]]:
    """The rows and columns of the canvas that each layer's shapes can touch, from a coarse grid of `places`.

    Most strokes are small, so a CPU paints several times faster this way; elsewhere asking costs more than
    painting.
    """
    if places.device.type != "cpu":
        return [(slice(None), slice(None))] * len(layers)
    boxes = torch.tensor([extent(stroke.shape for stroke in layer) for layer in layers])
    left, right, low, high = boxes.view(-1, 4, 1, 1, 1, 1).unbind(1)
    twice = torch.tensor([layer[0].twice for layer in layers]).view(-1, 1, 1, 1, 1)
    coarse = places[[PARTS.index(layer[0].part) for layer in layers]][..., ::_STEP, ::_STEP]
    across, up = coarse.unbind(3)  # each (layers, B, F, h, w)
    across = torch.where(twice, across.abs(), across)
    margin = (_STEP + 1) / (height * now.scale * now.width)[..., None, None]  # (B, F, 1, 1)
    near = (across > left - margin) & (across < right + margin) & (up > low - margin) & (up < high + margin)
    near = near.flatten(1, 2).any(1)  # (layers, h, w)
    return [(_span(rows), _span(columns)) for rows, columns in zip(near.any(2), near.any(1), strict=True)]


def _span(touched: Tensor) -> slice:
    """The fine indices round the coarse ones that are touched."""
    at = touched.nonzero().flatten().tolist() or [0]
    return slice(max(0, (at[0] - 1) * _STEP), (at[-1] + 1) * _STEP + 1)
