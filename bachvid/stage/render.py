"""Pictures of clips with their exact truth: batched signed distances in torch, the same on a CPU and a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bachvid.stage.actions import Pose, into_body, pose
from bachvid.stage.backdrop import paint_stage
from bachvid.stage.body import PARTS, Stroke, strokes
from bachvid.stage.shapes import NOTHING, Paint, coverage, extent, numbers_of
from bachvid.stage.world import ASPECT, Clip

_CPU_CHUNK = 4  # clips whose tensors stay in a core's cache
_STEP = 3  # pixels between the samples that say where a stroke can lie


@dataclass(frozen=True)
class Render:
    """A batch of clips: `video` (B, 3, F, H, W) in [-1, 1], `coverage` (B, F, H, W) of the puppet in [0, 1], `mask` where
    it is at least one half, and `uv` (B, F, H, W, 2), body coordinates inside the mask and 0 outside."""

    video: Tensor
    coverage: Tensor
    mask: Tensor
    uv: Tensor


def clip_phases(batch: int, frames: int) -> Tensor:
    """Phases (batch, frames) from the start of the action to its end; a single frame shows its start."""
    return torch.linspace(0, 1, frames).expand(batch, frames)


def render(
    clips: Sequence[Clip], phases: Tensor, height: int, width: int, device: torch.device | str = "cpu"
) -> Render:
    """The clips at `phases` (B, F), each in [0, 1] = where in its action the frame stands.

    Raises ValueError when the picture is not 3 wide to 2 high or the phases do not fit the clips.
    """
    _check_size(height, width)
    if phases.dim() != 2 or phases.shape[0] != len(clips):
        raise ValueError(f"{len(clips)} clips need phases ({len(clips)}, frames), not {tuple(phases.shape)}")
    phases = phases.to(device, torch.float32)
    chunk = _CPU_CHUNK if phases.device.type == "cpu" else len(clips)
    starts = range(0, len(clips), chunk)
    parts = [_render(list(clips[i : i + chunk]), phases[i : i + chunk], height, width) for i in starts]
    return Render(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def render_stage(clips: Sequence[Clip], height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """The empty stages (B, 3, H, W) in [-1, 1] of the clips, without their puppets."""
    _check_size(height, width)
    return paint_stage(list(clips), height, width, torch.device(device)) / 127.5 - 1


def _check_size(height: int, width: int) -> None:
    if abs(width - ASPECT * height) > 1e-6:
        raise ValueError(f"a stage is 3 wide to 2 high, not {width}x{height}: ask for {height * 3 // 2}x{height}")


def _render(clips: list[Clip], phases: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    stage = paint_stage(clips, height, width, phases.device)  # (B, 3, H, W) of 255
    now = pose(clips, phases)
    at, x, y = _windows(clips, now, height, width)  # at: (B, F, h * w) positions in the picture
    window = (y.shape[2], x.shape[3])
    frames = at.shape[1]
    video = stage.flatten(2).unsqueeze(1).repeat(1, frames, 1, 1)  # (B, F, 3, H * W)
    truth = torch.zeros_like(video)  # coverage, u, v
    spread = at.unsqueeze(2).expand(-1, -1, 3, -1)  # (B, F, 3, h * w)
    canvas = video.gather(3, spread).unflatten(3, window)
    bare, uv = _paint_puppet(canvas, clips, now, x, y, height)
    video.scatter_(3, spread, canvas.flatten(3))
    truth.scatter_(3, spread, torch.cat([1 - bare.unsqueeze(2), uv], 2).flatten(3))
    whole, u, v = truth.unflatten(3, (height, width)).unbind(2)  # each (B, F, H, W)
    mask = whole >= 0.5
    pictures = video.div_(127.5).sub_(1).unflatten(3, (height, width)).transpose(1, 2)
    return pictures, whole, mask, torch.stack([u, v], -1) * mask.unsqueeze(-1)


def _windows(clips: list[Clip], now: Pose, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Equal windows round the puppets: flat positions (B, F, h * w), x (B, F, 1, w) and y (B, F, h, 1) in heights."""
    reach = max(clip.scale * (0.46 if clip.verb == "bows" else 0.33) for clip in clips)
    tall = max(clip.scale for clip in clips) * 0.74
    columns = min(width, int(2 * reach * height) + 3)
    rows = min(height, int(tall * height) + 4)
    left = ((now.x + ASPECT / 2) * height - columns / 2).round().clamp(0, width - columns)  # (B, F)
    top = ((1 - now.y) * height + 3 - rows).round().clamp(0, height - rows)
    column = left.long().unsqueeze(-1) + torch.arange(columns, device=left.device)  # (B, F, w)
    row = top.long().unsqueeze(-1) + torch.arange(rows, device=top.device)  # (B, F, h)
    at = (row.unsqueeze(-1) * width + column.unsqueeze(-2)).flatten(2)
    x, y = (column + 0.5) / height - ASPECT / 2, 1 - (row + 0.5) / height
    return at, x.unsqueeze(-2), y.unsqueeze(-1)


def _paint_puppet(
    canvas: Tensor, clips: list[Clip], now: Pose, x: Tensor, y: Tensor, height: int
) -> tuple[Tensor, Tensor]:
    """Paints into canvas (B, F, 3, h, w); returns how bare each pixel stays (B, F, h, w) and uv (B, F, 2, h, w)."""
    shape = (*canvas.shape[:2], *canvas.shape[3:])
    parts = into_body(now, x, y)
    places = torch.stack([torch.stack([c.expand(shape) for c in parts[part]], 2) for part in PARTS])
    pixel = (1 / (height * now.scale * now.width.sqrt()))[..., None, None]
    uv = places[PARTS.index("torso")].clone()
    bare = torch.ones(shape, device=canvas.device)
    layers = _layers(clips)
    regions = _regions(layers, places, now, height)
    paints = [[Paint(stroke.shape, stroke.colour) for stroke in layer] for layer in layers]
    for layer, region, *packed in zip(layers, regions, *numbers_of(paints, canvas.device), strict=True):
        numbers, colours = packed
        place = places[(PARTS.index(layer[0].part), ..., *region)]
        across, up = place.unbind(2)
        across = across.abs() if layer[0].twice else across
        share = coverage(across, up, numbers[:, None, None, None], pixel)
        canvas[(..., *region)].lerp_(colours[:, None, :, None, None], share.unsqueeze(2))
        bare[(..., *region)].mul_(1 - share)
        owned = (share > 0.29).unsqueeze(2)  # of two shapes that half cover a pixel together, one covers this much
        uv[(..., *region)] = torch.where(owned, place, uv[(..., *region)])
    return bare, uv


def _layers(clips: list[Clip]) -> list[tuple[Stroke, ...]]:
    """The clips' strokes side by side, from back to front, without those that no clip has."""
    layers = zip(*(strokes(clip) for clip in clips), strict=True)
    return [layer for layer in layers if any(stroke.shape != NOTHING for stroke in layer)]


def _regions(
    layers: list[tuple[Stroke, ...]], places: Tensor, now: Pose, height: int
) -> list[tuple[slice, slice]]:
    """The rows and columns of the window that each layer's shapes can touch, from a coarse grid of `places`.

    Most strokes are small, so a CPU paints several times faster this way; elsewhere asking costs more than painting.
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
