"""What a clip shows, read from its pixels and nothing else: mask, body coordinates, every stated and hidden
attribute.

Readers abstain (None) rather than guess. They never see a prompt, a seed or a latent, and they read rendered,
decoded and generated clips alike. How far to trust them is measured by `calibration.calibrate_readers`.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bachvid.stage import scenery, world
from bachvid.stage.body import dyes
from bachvid.stage.palette import CURTAIN, CURTAIN_FOLD, mix
from bachvid.stage.read_puppet import read_puppet
from bachvid.stage.read_stage import read_stage
from bachvid.stage.silhouette import Action, action_of, follow, silhouette
from bachvid.stage.world import ASPECT, BADGE_CELLS, Clip

_OFF = 40.0  # RGB distance of 255 from every colour of the world; a clip's own tint takes up to 17
_STATED_PUPPET = ("kind", "colour", "accessory", "accessory_colour")
ATTRIBUTES = ("build", "legs", "eyes", "trousers", "belly")  # of the puppet, that no caption states


@dataclass(frozen=True, eq=False)
class Reading:
    """One clip as read; a value that its pixels do not give is None.

    `mask` (F, H, W) bool, by the rule of the colours, its edge by the fitted puppet; `uv` (F, H, W, 2), body
    coordinates in heights of the picture at scale 1, 0 off the mask; `known` (F, H, W), where they come from
    the fitted puppet itself and not from the nearest spot of it; `stated` and `hidden` (the puppet's) by the
    names of `Clip`; `badge` the colours of its four cells; `cells` the states of the horizon's, the sky's and
    the front's slots; `landmark_slot` and `horizon` of the stage; `off_palette` the share of pixels in no
    colour of the world; `clip` the nearest clip of the world, best guesses included, if there is a puppet in
    every frame.
    """

    mask: Tensor
    uv: Tensor
    known: Tensor
    stated: dict[str, str | None]
    hidden: dict[str, str | None]
    badge: tuple[int | None, ...]
    cells: tuple[int | None, ...]
    landmark_slot: int | None
    horizon: float
    action: Action
    off_palette: float
    clip: Clip | None


def read(frames: NDArray[np.uint8]) -> Reading:
    """Everything that can be read from a clip's frames (F, H, W, 3) of 0..255, 3 wide to 2 high, 2 frames or
    more.

    Raises ValueError for any other array.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"a clip is uint8 (F, H, W, 3), not {frames.dtype} {frames.shape}: convert it first")
    if len(frames) < 2 or abs(frames.shape[2] - ASPECT * frames.shape[1]) > 1e-6:
        raise ValueError(f"a stage clip has 2 frames or more, 3 wide to 2 high, not {frames.shape[:3]}")
    video = torch.tensor(frames).permute(0, 3, 1, 2).float()  # (F, 3, H, W)
    with torch.no_grad():
        return _read(video)


def _read(video: Tensor) -> Reading:
    mask = silhouette(video)
    track = follow(mask)
    stage = read_stage(video, mask)
    stated: dict[str, str | None] = dict.fromkeys(world.STATED)
    hidden: dict[str, str | None] = dict.fromkeys(ATTRIBUTES)
    stated |= {"place": stage.place, "sky": stage.sky, "landmark": stage.landmark}
    nowhere = torch.zeros_like(mask)
    found = Reading(
        mask=mask,
        uv=torch.zeros(*mask.shape, 2),
        known=nowhere,
        stated=stated,
        hidden=hidden,
        badge=(None,) * BADGE_CELLS,
        cells=stage.cells,
        landmark_slot=stage.landmark_slot,
        horizon=stage.horizon,
        action=Action(None, None, None),
        off_palette=_off_palette(video),
        clip=None,
    )
    if track is None:
        return found
    puppet = read_puppet(video, mask, track, action_of(track), stage.clip, stage.plate)
    mask = _sharpened(mask, puppet.known)
    return dataclasses.replace(
        found,
        mask=mask,
        uv=_spread(puppet.uv, puppet.known & mask, mask),
        known=puppet.known & mask,
        stated=stated | {name: getattr(puppet, name) for name in _STATED_PUPPET},
        hidden={name: getattr(puppet, name) for name in ATTRIBUTES},
        badge=puppet.badge,
        action=puppet.action,
        clip=puppet.clip,
    )


def _sharpened(mask: Tensor, fitted: Tensor) -> Tensor:
    """The mask (F, H, W) with its edge, which blur moves, from the fitted puppet where they agree."""
    reach = 2 * round(mask.shape[1] / 32) + 1
    share = F.avg_pool2d(mask.float().unsqueeze(1), reach, 1, reach // 2, count_include_pad=False)[:, 0]
    edge = (share > 0) & (share < 1)
    agreement = (mask & fitted).sum((1, 2)) / (mask | fitted).sum((1, 2)).clamp_min(1)
    trusted = (agreement > 0.75)[:, None, None]
    return torch.where(edge & trusted, fitted, mask)


def _spread(uv: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """Body coordinates (F, H, W, 2) all over the mask: the unknown takes those of the nearest known."""
    values = (uv * known.unsqueeze(-1)).movedim(-1, 1)  # (F, 2, H, W)
    weight = known.float().unsqueeze(1)
    for _ in range(max(mask.shape[1:])):
        missing = mask.unsqueeze(1) & (weight == 0)
        near = F.avg_pool2d(weight, 3, 1, 1)
        if not bool((missing & (near > 0)).any()):
            break
        spread = F.avg_pool2d(values, 3, 1, 1) / near.clamp_min(1e-6)
        values = torch.where(missing & (near > 0), spread, values)
        weight = torch.where(missing & (near > 0), 1.0, weight)
    return values.movedim(1, -1) * mask.unsqueeze(-1)


def _off_palette(video: Tensor) -> float:
    """The share of the pixels (F, 3, H, W) of 255 that are in no colour of the world."""
    pixels = video.movedim(1, -1).reshape(-1, 3)
    return float((torch.cdist(pixels, _palette()).amin(1) > _OFF).float().mean())


@functools.cache
def _palette() -> Tensor:
    """Every colour of the world (K, 3) of 255, gradients in five steps."""
    plain = dataclasses.replace(
        world.sample_clip(random.Random(0)), stage_tint=(0, 0, 0), puppet_tint=(0, 0, 0)
    )
    colours = {CURTAIN, CURTAIN_FOLD, mix(CURTAIN, CURTAIN_FOLD, 0.5)}
    for number, place in enumerate(world.PLACES):
        for sky in world.SKIES:
            clip = dataclasses.replace(
                plain, place=place, sky=sky, landmark=world.LANDMARKS[number], layout=(1, 2, 3, 0, 0, 0),
                sky_slots=(1, 2, 0), front=(1, 0, 0, 0),
            )  # fmt: skip
            things = [*scenery.sky_things(clip), *scenery.horizon_things(clip), *scenery.front_things(clip)]
            colours |= {paint.colour for paints in things for paint in paints}
            for first, last in (scenery.sky_colours(clip), scenery.ground_colours(clip)):
                colours |= {mix(first, last, step / 4) for step in range(5)}
    for colour in world.COLOURS:
        for cloth in world.CLOTH_COLOURS:
            clip = dataclasses.replace(plain, colour=colour, accessory_colour=cloth, badge=(0, 1, 2, 0))
            colours |= set(dyes(clip).values())
    return torch.tensor(sorted(colours))
