"""The reader of the puppet: kind, clothes, proportions, badge, and where each spot of the body is in each frame.

It explains the pixels with the renderer. Puppets of every kind, accessory and proportion are laid over the first and
the last frame, where every action stands upright; for each, the colours that fit best follow by least squares, since a
picture is a sum of the materials' shares times their colours. The best ones are moved and grown until they fit; the
one that is nearest is the answer, as far as the pixels really tell it from the others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bachvid.stage import world
from bachvid.stage.actions import Pose, pose
from bachvid.stage.body import CELLS, HIP, LEG_LENGTH, MATERIALS, dyes, strokes
from bachvid.stage.fitting import View, distance, look, moved, picture_of, settle, shares_of, unmix
from bachvid.stage.palette import BADGE, BODIES, CLOTHES, RGB
from bachvid.stage.render import clip_phases, render_pose
from bachvid.stage.shapes import extent
from bachvid.stage.silhouette import Action, Track
from bachvid.stage.world import Clip

_KEPT = 6  # puppets that are fitted closely
_TELLING = 25.0**2  # squared distance at which a pixel tells two answers apart
_FEW = 3.0  # pixels at a picture 64 high: fewer decide nothing


@dataclass(frozen=True)
class PuppetReading:
    """What the puppet looks like, None where the pixels do not say.

    `clip` is the nearest puppet the world can show, with a best guess everywhere; `uv` (F, H, W, 2) are body
    coordinates by the poses in which it fits, `known` (F, H, W) where it covers the picture.
    """

    kind: str | None
    accessory: str | None
    build: str | None
    legs: str | None
    colour: str | None
    accessory_colour: str | None
    trousers: str | None
    badge: tuple[int | None, ...]
    eyes: str | None
    belly: str | None
    clip: Clip
    uv: Tensor
    known: Tensor


def read_puppet(video: Tensor, mask: Tensor, track: Track, action: Action, stage: Clip, plate: Tensor) -> PuppetReading:
    """The puppet of a video (F, 3, H, W) of 255 at `mask` (F, H, W) before `plate` (3, H, W), which `stage` explains."""
    ends = [0, len(video) - 1]
    view = look(video[ends], mask[ends], plate)
    clip, now, found = _upright(view, track, _guesses(stage, action))
    details, clip = _details(view, clip, now)
    uv, known = _follow(look(video, mask, plate), clip, now, track, plate)
    return PuppetReading(**found, **details, clip=clip, uv=uv, known=known)


def _guesses(stage: Clip, action: Action) -> list[Clip]:
    """Puppets of every kind, accessory and proportion, doing what the track says."""
    plain = dataclasses.replace(
        stage,
        verb=action.verb or "stands",
        where=action.where or "middle",
        heading=action.heading or 1,
        eyes=world.EYES[0],
        belly=world.BELLIES[0],
        puppet_tint=(0.0, 0.0, 0.0),
    )
    choices = itertools.product(world.KINDS, world.ACCESSORIES, world.BUILDS, world.LEGS)
    return [
        dataclasses.replace(plain, kind=kind, accessory=accessory, build=build, legs=legs)
        for kind, accessory, build, legs in choices
    ]


# --- upright: which puppet, how big, in which colours -----------------------------------------------------------------


def _upright(view: View, track: Track, guesses: list[Clip]) -> tuple[Clip, Pose, dict[str, object]]:
    """The puppet nearest to the view, its two poses, and its attributes as far as they are clear."""
    places = [_place(clip, track) for clip in guesses]
    _, costs = _dress(view, guesses, torch.stack(places))
    kept = costs.argsort()[:_KEPT].tolist()
    few = [guesses[index] for index in kept]
    few, _ = _dress(view, few, torch.stack([places[index] for index in kept]))
    start = torch.stack([places[index] for index in kept])
    pixel = 1 / view.height
    fit = settle(
        lambda p: picture_of(few * (len(p) // len(few)), _stand(few * (len(p) // len(few)), p), view),
        start,
        torch.tensor([pixel / 2, pixel / 2, 0.02]),
        view.pictures,
        rounds=3,
        reach=6,
    )
    fit[..., 2] = fit[..., 2].mean(1, keepdim=True)  # a puppet keeps its size
    few, costs = _dress(view, few, fit)
    best = int(costs.argmin())
    shown = picture_of(few, _stand(few, fit), view)
    clear = _clear(few, ("kind", "accessory", "build", "legs"), best, shown, view)
    colours = unmix(shares_of(few[best : best + 1], _stand(few[best : best + 1], fit[best : best + 1]), view), view, _GUESS)
    ...


