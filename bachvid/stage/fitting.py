"""Explaining pixels with the renderer: puppets painted into windows on a video, and moved until they fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.stage.actions import Pose, pose
from bachvid.stage.body import MATERIALS, side_by_side
from bachvid.stage.painting import paint_puppets
from bachvid.stage.world import ASPECT, Clip

FAR = 60.0  # RGB distance of 255 beyond which a pixel is simply something else
_EVIDENCE = 4000.0  # squared distance between two answers, all pixels together, that outweighs chance
_LEAD = 0.1  # of that distance, by which the nearer answer must be nearer
_MARGIN = 3  # pixels kept round a silhouette
_RIDGE = 2000.0  # squared grey levels that a parameter must explain per step before it moves


class View(NamedTuple):
    """Windows on some frames of a video, all of one size: what is there, and what the empty stage looks like
    there.

    `blur` is the standard deviation in pixels of what a decoder lost. `pictures` and `plate` (F, 3, h, w) of
    255; `x` (1, F, 1, w) and `y` (1, F, h, 1) are pixel centres in heights of the whole picture, which is
    `height` pixels high.
    """

    pictures: Tensor
    plate: Tensor
    x: Tensor
    y: Tensor
    height: int
    blur: float = 0.0


def look(video: Tensor, mask: Tensor, plate: Tensor) -> View:
    """The view of a video (F, 3, H, W) of 255 round its silhouettes (F, H, W), before a plate (3, H, W)."""
    height, width = mask.shape[1:]
    rows, columns = mask.any(2), mask.any(1)
    top, bottom = _ends(rows)
    left, right = _ends(columns)
    tall = min(height, int((bottom - top).max()) + 1 + 2 * _MARGIN)
    wide = min(width, int((right - left).max()) + 1 + 2 * _MARGIN)
    row = _centred(top, bottom, tall, height)  # (F, h)
    column = _centred(left, right, wide, width)  # (F, w)
    frame = torch.arange(len(video))[:, None, None]
    cut = (frame, slice(None), row[:, :, None], column[:, None, :])
    x = (column + 0.5) / height - ASPECT / 2
    y = 1 - (row + 0.5) / height
    plates = plate.expand_as(video)
    return View(
        pictures=video[cut].movedim(-1, 1),
        plate=plates[cut].movedim(-1, 1),
        x=x[None, :, None, :],
        y=y[None, :, :, None],
        height=height,
    )


def _ends(touched: Tensor) -> tuple[Tensor, Tensor]:
    """First and last true index of each row of (F, n)."""
    number = torch.arange(touched.shape[1])
    first = torch.where(touched, number, touched.shape[1]).amin(1)
    return first, torch.where(touched, number, -1).amax(1)


def _centred(first: Tensor, last: Tensor, size: int, limit: int) -> Tensor:
    """Runs (F, size) of indices below `limit`, centred between first and last."""
    start = ((first + last - size + 1) / 2).round().long().clamp(0, limit - size)
    return start[:, None] + torch.arange(size)


def stand(clips: Sequence[Clip], spots: Tensor) -> Pose:
    """The clips' poses at the spots (B, F, 4)."""
    x, y, scale, moment = spots.unbind(-1)
    return dataclasses.replace(pose(list(clips), moment), x=x, y=y, scale=scale)


def show(view: View, clips: list[Clip], spots: Tensor) -> Tensor:
    """What the view would show (K, F, 3, h, w) of 255 if the puppets were at spots (K, F, 4).

    K is a multiple of the clips, which come again and again.
    """
    many = clips * (len(spots) // len(clips))
    plate = view.plate.expand(len(many), -1, -1, -1, -1)
    canvas = plate.clone()
    paint_puppets(canvas, side_by_side(many), stand(many, spots), view.x, view.y, view.height)
    return _softened(canvas, plate, view.blur)


def shares_of(clips: Sequence[Clip], now: Pose, view: View) -> Tensor:
    """The share of each of MATERIALS, and last the bare stage, in each pixel, (B, F, M + 1, h, w)."""
    frames, _, tall, wide = view.pictures.shape
    bare = torch.zeros(len(clips), frames, len(MATERIALS) + 1, tall, wide)
    bare[:, :, -1] = 1
    canvas = bare.clone()
    ones = torch.eye(len(MATERIALS) + 1).tolist()
    unit = {material: tuple(one) for material, one in zip(MATERIALS, ones, strict=False)}
    paint_puppets(canvas, side_by_side(clips, lambda _: unit), now, view.x, view.y, view.height)
    return _softened(canvas, bare, view.blur)


def _softened(canvas: Tensor, behind: Tensor, blur: float) -> Tensor:
    """The canvas (B, F, C, h, w) with what was painted on `behind` blurred; `behind` stays as it is."""
    if blur == 0:
        return canvas
    reach = int(3 * blur) + 1
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / blur) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    painted = (canvas - behind).flatten(0, 2).unsqueeze(1)  # (B * F * C, 1, h, w)
    painted = F.conv2d(painted, kernel, padding=(0, reach))
    painted = F.conv2d(painted, kernel.mT, padding=(reach, 0))
    return behind + painted.view(canvas.shape)


def unmix(shares: Tensor, view: View, guess: Tensor) -> Tensor:
    """The colours (B, M, 3) of 255 with which the shares come nearest to the view, by least squares.

    A material that covers less than a pixel or so stays near `guess` (3,).
    """
    parts = shares[:, :, :-1].transpose(1, 2).flatten(2)  # (B, M, F * h * w)
    target = view.pictures - shares[:, :, -1:] * view.plate  # (B, F, 3, h, w)
    target = target.transpose(1, 2).flatten(2)  # (B, 3, F * h * w)
    few = 0.3 * torch.eye(parts.shape[1])
    known = parts @ target.mT + few.sum(1, keepdim=True) * guess
    return torch.linalg.solve(parts @ parts.mT + few, known)


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Squared colour distance over dimension -3, at most that of something else; squares forgive noise."""
    return (first - second).square().sum(-3).clamp_max(FAR**2)


def nearest(view: View, answers: Sequence[Any], shown: Tensor) -> tuple[int, Any]:
    """Which of the pictures (B, F, 3, h, w) is nearest to the view, and its answer.

    The answer is None where the pixels that tell it from another are few or undecided.
    """
    costs = distance(shown, view.pictures).sum((1, 2, 3))
    best = int(costs.argmin())
    apart = distance(shown, shown[best])  # (B, F, h, w)
    others = torch.tensor([answer != answers[best] for answer in answers])
    evidence = apart.sum((1, 2, 3))
    leads = (costs - costs[best]) > _LEAD * evidence
    return best, answers[best] if bool((leads & (evidence > _EVIDENCE))[others].all()) else None


def settle(
    paint: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: Tensor,
    pictures: Tensor,
    rounds: int,
    reach: float,
) -> Tensor:
    """Parameters (B, F, P) near `start` with which `paint` comes nearest to `pictures` (F, 3, h, w), frame by
    frame.

    Gauss-Newton with differences of size `steps` (P,), a parameter of step 0 staying as it is; `paint` maps
    (K, F, P) to pictures (K, F, 3, h, w) for K any multiple of B. No parameter ends more than `reach` steps
    from its start.
    """
    now = start
    moving = torch.diag(steps)[steps > 0]  # (Q, P)
    count = len(moving)
    for _ in range(rounds):
        shown = paint(torch.cat([now, *(now + step for step in moving)])).unflatten(0, (count + 1, -1))
        off = pictures - shown[0]  # (B, F, 3, h, w)
        trust = (FAR / off.norm(dim=2, keepdim=True).clamp_min(1)).clamp_max(1)
        slopes = ((shown[1:] - shown[0]) * trust).flatten(3)  # (P, B, F, n)
        normal = torch.einsum("pbfn,qbfn->bfpq", slopes, slopes) + _RIDGE * torch.eye(count)
        pull = torch.einsum("pbfn,bfn->bfp", slopes, (off * trust).flatten(2))
        move = torch.linalg.solve(normal, pull).clamp(-3, 3)
        now = torch.minimum(torch.maximum(now + move @ moving, start - reach * steps), start + reach * steps)
    return now
