"""The puppet's silhouette in a video, its track over the frames, and the action that the track shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.stage.actions import LOCATION_X
from bachvid.stage.world import ASPECT

_WARM = 3.0  # R - G of 255: clear of zero by a little, as a decoded stage wavers
_NO_PUPPET = 0.01  # of the picture: a smaller part is a speck and no puppet


STILL = "still"  # stands or waves: the arms tell which, and they are read with the puppet


class Action(NamedTuple):
    """What the puppet does; a field the track leaves open is None. `STILL` is a verb without a track of its
    own.

    `where` is the side of a located action or of a walk; `heading` (-1 or +1) the side a walk, leap or bow
    turns to.
    """

    verb: str | None
    where: str | None
    heading: int | None


def silhouette(video: Tensor) -> Tensor:
    """The largest 8-connected part (F, H, W) of the warm pixels of each frame (F, 3, H, W) of 255."""
    warm = (video[:, 0] - video[:, 1] > _WARM).unsqueeze(1)
    frames, _, height, width = warm.shape
    # every pixel takes the largest number among its connected neighbours until nothing changes
    names = torch.arange(1, height * width + 1, dtype=torch.float32, device=video.device).view(
        1, 1, height, width
    )
    names = names * warm
    while True:
        before = names
        for _ in range(8):
            names = F.max_pool2d(names, 3, 1, 1) * warm
        if torch.equal(names, before):
            break
    parts = names.long().flatten(1)  # (F, H * W), 0 outside
    sizes = torch.zeros(frames, height * width + 1, device=video.device)
    sizes.scatter_add_(1, parts, (parts > 0).float())
    size, largest = sizes.max(1)
    found = (parts == largest[:, None]) & (size[:, None] >= _NO_PUPPET * height * width)
    return found.unflatten(1, (height, width))


@dataclass(frozen=True)
class Track:
    """Where the silhouette is in each frame (F,), in heights of the picture, x from the middle, y up."""

    feet: Tensor
    head: Tensor
    bottom: Tensor
    top: Tensor
    width: Tensor  # mean width of its rows


def follow(mask: Tensor) -> Track | None:
    """The track of a mask (F, H, W); None when a frame has no puppet."""
    if not bool(mask.flatten(1).any(1).all()):
        return None
    height, width = mask.shape[1:]
    x = (torch.arange(width) + 0.5) / height - ASPECT / 2
    y = 1 - (torch.arange(height) + 0.5) / height
    rows = mask.any(2)
    top = torch.where(rows, y, -9.0).amax(1) + 0.5 / height
    bottom = torch.where(rows, y, 9.0).amin(1) - 0.5 / height
    up = (y - bottom[:, None]) / (top - bottom)[:, None]  # (F, H)
    feet = _mean_x(mask & (up < 0.12)[..., None], x)
    head = _mean_x(mask & (up > 0.65)[..., None], x)
    mean_width = mask.sum((1, 2)) / height**2 / (top - bottom)
    return Track(feet, head, bottom, top, mean_width)


def action_of(track: Track) -> Action:
    """The action a track shows; what lies between two readings stays None."""
    verb = _verb(track)
    turn = track.feet - track.feet[0] if verb in ("walks", "leaps") else track.head - track.feet
    turn = turn - turn[0]
    heading = 1 if float(turn[turn.abs().argmax()]) > 0 else -1
    return action_towards(verb, _location(float(track.feet.median())), heading)


def action_towards(verb: str | None, where: str | None, heading: int) -> Action:
    """The action of a verb at the side `where`, to the side `heading`, without what the verb has not."""
    if verb in ("walks", "leaps"):
        where = None if verb == "leaps" else "left" if heading < 0 else "right"
    return Action(verb, where, heading if verb in ("walks", "leaps", "bows") else None)


def _verb(track: Track) -> str | None:
    tall = float(track.top[0] - track.bottom[0])
    turned = _above(float(1 - track.width.min() / track.width[0]), 0.2, 0.35)
    travels = _above(abs(float(track.feet[-1] - track.feet[0])), 0.15, 0.35)
    hops = _above(float((track.bottom - track.bottom[0]).max()), 0.05, 0.09)
    if turned and travels is False:  # first: seen from its thin side the puppet may seem to hop
        return "spins"
    if travels is None or hops is None or (turned is None and not travels):
        return None
    if travels:
        return "leaps" if hops else "walks"
    if hops:
        return "jumps"
    tilt = ((track.head - track.feet) - (track.head[0] - track.feet[0])).abs().max()
    leans = _above(float(tilt) / tall, 0.07, 0.12)
    if leans:  # whatever it sinks by: a bow lowers the head as well
        return "bows"
    sinks = _above(float((track.top[0] - track.top).max()) / tall, 0.06, 0.11)
    if leans is None or sinks is None:
        return None
    return "crouches" if sinks else STILL


def _location(x: float) -> str | None:
    """The location whose middle is nearest; None half-way between two."""
    off = {name: abs(x - middle) for name, middle in LOCATION_X.items()}
    nearest, second = sorted(off, key=lambda name: off[name])[:2]
    return nearest if off[second] - off[nearest] > 0.03 else None


def _above(value: float, no: float, yes: float) -> bool | None:
    """Whether the value is above `yes` or below `no`; None between them."""
    return None if no < value < yes else value >= yes


def _mean_x(mask: Tensor, x: Tensor) -> Tensor:
    count = mask.sum((1, 2)).clamp_min(1)
    return (mask * x).sum((1, 2)) / count
