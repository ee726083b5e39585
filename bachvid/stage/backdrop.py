"""The empty stage, painted once per clip: sky, ground, the things in their slots, the curtain."""

from __future__ import annotations

import torch
from torch import Tensor

from bachvid.stage import scenery
from bachvid.stage.palette import CURTAIN, CURTAIN_FOLD, RGB
from bachvid.stage.shapes import NOTHING, Paint, coverage, extent, numbers_of
from bachvid.stage.world import ASPECT, FRONT_SLOTS, HORIZON_SLOTS, SKY_SLOTS, Clip

SLOTS_WIDTH = 1.41  # the slots share what the drapes leave free
_SCALLOPS = 12


def paint_stage(clips: list[Clip], height: int, width: int, device: torch.device) -> Tensor:
    """Empty stages (B, 3, H, W) of 255."""
    x = ((torch.arange(width, device=device) + 0.5) / height - ASPECT / 2).view(1, 1, width)
    y = (1 - (torch.arange(height, device=device) + 0.5) / height).view(1, height, 1)
    pixel = torch.tensor(1 / height, device=device)
    horizon = torch.tensor([clip.horizon for clip in clips], device=device).view(-1, 1, 1)
    above = y - horizon
    sky = _gradient([scenery.sky_colours(clip) for clip in clips], ((1 - y) / (1 - horizon)).clamp(0, 1))
    ground = _gradient([scenery.ground_colours(clip) for clip in clips], (-above / horizon).clamp(0, 1))
    canvas = sky.repeat(1, 1, 1, width)
    _paint_slots(
        canvas, [scenery.sky_things(clip) for clip in clips], x, y - scenery.SKY_LINE, SKY_SLOTS, pixel
    )
    canvas.lerp_(ground, (0.5 - above / pixel).clamp(0, 1).unsqueeze(1))
    _paint_slots(canvas, [scenery.horizon_things(clip) for clip in clips], x, above, HORIZON_SLOTS, pixel)
    front = y - scenery.FRONT_LINE
    _paint_slots(canvas, [scenery.front_things(clip) for clip in clips], x, front, FRONT_SLOTS, pixel)
    _hang_curtain(canvas, x, y, pixel)
    return canvas


def _gradient(ends: list[tuple[RGB, RGB]], share: Tensor) -> Tensor:
    """Colours (B, 3, H, 1) going from the first end to the second by `share` (B, H, 1)."""
    first, second = torch.tensor(ends, dtype=torch.float32, device=share.device)[..., None, None].unbind(1)
    return torch.lerp(first, second, share.unsqueeze(1))


def _paint_slots(
    canvas: Tensor, things: list[list[list[Paint]]], x: Tensor, y: Tensor, slots: int, pixel: Tensor
) -> None:
    """Paints all slots' things into canvas (B, 3, H, W) at once: a column takes its own slot's numbers."""
    slot = ((x / SLOTS_WIDTH + 0.5) * slots).floor().long().clamp(0, slots - 1)  # (1, 1, W)
    local = x - ((slot + 0.5) / slots - 0.5) * SLOTS_WIDTH
    flat = [paints for clip in things for paints in clip]
    depths = range(max(len(paints) for paints in flat))
    nothing = Paint(NOTHING, (0, 255, 0))
    layers = [[paints[depth] if depth < len(paints) else nothing for paints in flat] for depth in depths]
    if not layers:
        return
    for layer, numbers, colours in zip(layers, *numbers_of(layers, canvas.device), strict=True):
        numbers, colours = (
            t.unflatten(0, (-1, slots))[:, slot[0, 0]] for t in (numbers, colours)
        )  # (B, W, 7 and 3)
        rows = _rows(layer, y, pixel)
        share = coverage(local, y[:, rows], numbers.unsqueeze(1), pixel)  # (B, rows, W)
        canvas[:, :, rows].lerp_(colours.transpose(1, 2).unsqueeze(2), share.unsqueeze(1))


def _rows(layer: list[Paint], y: Tensor, pixel: Tensor) -> slice:
    """The rows of y (1 or B, H, 1) that a shape of the layer can touch; off the CPU asking costs more."""
    if y.device.type != "cpu":
        return slice(None)
    _, _, low, high = extent(paint.shape for paint in layer)
    touched = ((y > low - pixel) & (y < high + pixel)).any(2).any(0).nonzero()
    return slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0)


def _hang_curtain(canvas: Tensor, x: Tensor, y: Tensor, pixel: Tensor) -> None:
    """The scalloped valance along the top and the drapes at both sides, the same in every clip."""
    fold = 0.5 + 0.5 * torch.cos(x * (2 * torch.pi * _SCALLOPS / ASPECT))
    cloth = _gradient([(CURTAIN, CURTAIN_FOLD)], fold.transpose(1, 2)).transpose(2, 3)  # (1, 3, 1, W)
    hem = 0.955 - 0.022 * (x * (torch.pi * _SCALLOPS / ASPECT)).cos().abs()
    drape = 0.715 - 0.2 * (y - 0.55).clamp_min(0) ** 2
    share = torch.maximum((y - hem) / pixel, (x.abs() - drape) / pixel).add(0.5).clamp(0, 1)
    canvas.lerp_(cloth.expand_as(canvas), share.unsqueeze(1).expand_as(canvas))
