"""Pictures of clips with their exact truth, batched signed distances in torch, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bachvid.stage.actions import Pose, pose
from bachvid.stage.backdrop import paint_stage
from bachvid.stage.body import side_by_side
from bachvid.stage.painting import paint_puppets
from bachvid.stage.world import ASPECT, Clip

_CPU_CHUNK = 4  # clips whose tensors stay in a core's cache


@dataclass(frozen=True)
class Render:
    """A batch of clips.

    `video` (B, 3, F, H, W) in [-1, 1]; `coverage` (B, F, H, W), the puppet's share of each pixel; `mask`
    where it is at least one half; `uv` (B, F, H, W, 2), body coordinates inside the mask and 0 outside.
    """

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
    done = []
    for start in range(0, len(clips), chunk):
        few = list(clips[start : start + chunk])
        stages = paint_stage(few, height, width, phases.device)
        done.append(_compose(few, pose(few, phases[start : start + chunk]), stages))
    return Render(*(torch.cat(tensors) for tensors in zip(*done, strict=True)))


def render_stage(
    clips: Sequence[Clip], height: int, width: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The empty stages (B, 3, H, W) in [-1, 1] of the clips, without their puppets."""
    _check_size(height, width)
    return paint_stage(list(clips), height, width, torch.device(device)) / 127.5 - 1


def render_pose(clips: Sequence[Clip], now: Pose, stages: Tensor) -> Render:
    """The clips' puppets in poses `now` (B, F) of the caller's before `stages` (B, 3, H, W) in [-1, 1]."""
    return Render(*_compose(list(clips), now, (stages + 1) * 127.5))


def _check_size(height: int, width: int) -> None:
    if abs(width - ASPECT * height) > 1e-6:
        fit = f"{height * 3 // 2}x{height}"
        raise ValueError(f"a stage is 3 wide to 2 high, not {width}x{height}: ask for {fit}")


def _compose(clips: list[Clip], now: Pose, stages: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Render`: puppets are painted in windows round them and laid back into the pictures."""
    height, width = stages.shape[2:]
    at, x, y = _windows(clips, now, height, width)  # at: (B, F, h * w) positions in the picture
    window = (y.shape[2], x.shape[3])
    video = stages.flatten(2).unsqueeze(1).repeat(1, at.shape[1], 1, 1)  # (B, F, 3, H * W)
    truth = torch.zeros_like(video)  # coverage, u, v
    spread = at.unsqueeze(2).expand(-1, -1, 3, -1)  # (B, F, 3, h * w)
    canvas = video.gather(3, spread).unflatten(3, window)
    bare, uv = paint_puppets(canvas, side_by_side(clips), now, x, y, height)
    video.scatter_(3, spread, canvas.flatten(3))
    truth.scatter_(3, spread, torch.cat([1 - bare.unsqueeze(2), uv], 2).flatten(3))
    coverage, u, v = truth.unflatten(3, (height, width)).unbind(2)  # each (B, F, H, W)
    mask = coverage >= 0.5
    pictures = video.div_(127.5).sub_(1).unflatten(3, (height, width)).transpose(1, 2)
    return pictures, coverage, mask, torch.stack([u, v], -1) * mask.unsqueeze(-1)


def _windows(clips: list[Clip], now: Pose, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Equal windows round the puppets: flat positions (B, F, h * w), x (B, F, 1, w) and y (B, F, h, 1)."""
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
