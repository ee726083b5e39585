"""The reader of the puppet's movement: what it does, and where it is in each frame.

The track of a silhouette tells most actions. What it leaves open is told from the whole picture: the action
that explains all frames best, as far as they really tell it from the others.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from bachvid.stage import world
from bachvid.stage.actions import pose
from bachvid.stage.fitting import View, distance, nearest, settle, show
from bachvid.stage.render import clip_phases
from bachvid.stage.silhouette import STILL, Action, Track, action_towards
from bachvid.stage.world import Clip

MAY_BE = {  # where a track leaves the verb open; a hat's tip that pales away looks as if the puppet sank
    STILL: ("stands", "waves"),
    "crouches": ("stands", "waves", "crouches"),
    None: world.VERBS,
}


def acting(view: View, clip: Clip, first: Tensor, track: Action) -> tuple[Clip, Action]:
    """The clip doing what the whole view looks most like, from its spot (4,) in the first frame, and the
    action as far as it is clear, of those that the track leaves open; what the track says stays unless
    another is clear.
    """
    ways = itertools.product(MAY_BE[track.verb], (-1, 1))
    tries = [dataclasses.replace(clip, verb=verb, heading=heading) for verb, heading in ways]
    acted = torch.cat([_acted(each, first, len(view.pictures)) for each in tries])
    shown = show(view, tries, acted)
    best, verb = nearest(view, [each.verb for each in tries], shown)
    if verb is None and track.verb == clip.verb:
        return clip, track
    return tries[best], action_towards(verb, track.where, tries[best].heading)


def retrace(view: View, clip: Clip, first: Tensor, track: Track) -> Tensor:
    """The puppet's spots (F, 4) in every frame, from its spot (4,) in the first.

    Each frame starts at the moment of the action that its number says, where the action or where the track
    has the feet then, whichever looks more like it; place and moment are moved until the pictures agree.
    """
    acted = _acted(clip, first, len(view.pictures))[0]
    tracked = acted.clone()
    tracked[:, 0] = first[0] + track.feet - track.feet[0]
    tracked[:, 1] = first[1] + track.bottom - track.bottom[0]
    starts = torch.stack([acted, tracked])  # (2, F, 4)
    costs = distance(show(view, [clip], starts), view.pictures).sum((2, 3))  # (2, F)
    start = torch.where((costs[0] <= costs[1])[:, None], acted, tracked)
    steps = torch.tensor([0.5 / view.height, 0.5 / view.height, 0.0, 0.02])
    fit = settle(
        lambda tries: show(view, [clip], tries), start[None], steps, view.pictures, rounds=3, reach=8.0
    )
    return fit[0]


def at_home(clip: Clip, first: Tensor) -> Clip:
    """The clip with the scale and the jitter that bring it to its spot (4,) in the first frame."""
    x, y, scale, _ = first.tolist()
    home = pose([dataclasses.replace(clip, jitter=(0.0, 0.0))], torch.zeros(1, 1))
    return dataclasses.replace(clip, scale=scale, jitter=(x - float(home.x), y - float(home.y)))


def _acted(clip: Clip, first: Tensor, frames: int) -> Tensor:
    """The spots (1, F, 4) of the action that the clip begins at a spot (4,)."""
    phases = clip_phases(1, frames)
    now = pose([clip], phases)
    x, y, scale, _ = first
    size = scale.expand_as(phases)
    return torch.stack([x + now.x - now.x[:, :1], y + now.y - now.y[:, :1], size, phases], -1)
