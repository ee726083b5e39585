"""The reader of the empty stage: place, sky, horizon and everything that stands in a slot, from pixels alone.

Slots are read by comparison with renders of what could stand there; only pixels that the puppet leaves free
and in which two answers differ count, and where too few of them are seen the answer is None.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.stage import scenery, world
from bachvid.stage.backdrop import SLOTS_WIDTH
from bachvid.stage.render import render_stage
from bachvid.stage.world import ASPECT, FRONT_SLOTS, HORIZON_SLOTS, LANDMARK, SKY_SLOTS, Clip

_FAR = 60.0  # RGB distance of 255 beyond which a pixel is simply something else
_APART = 25.0  # that from which on a pixel tells two answers apart
_ENOUGH = 14  # such pixels at a picture 64 high: fewer decide nothing


@dataclass(frozen=True)
class StageReading:
    """What stands on the stage; None where the pixels do not say.

    `clip` is the nearest stage the world can show, with a best guess wherever a field is None; `plate` (3, H,
    W) of 255 is the stage as seen, `seen` (H, W) where the puppet ever left it free.
    """

    place: str | None
    sky: str | None
    landmark: str | None
    landmark_slot: int | None
    horizon: float
    cells: tuple[int | None, ...]
    clip: Clip
    plate: Tensor
    seen: Tensor


def read_stage(video: Tensor, mask: Tensor) -> StageReading:
    """The stage of a video (F, 3, H, W) of 255 whose puppet is at `mask` (F, H, W)."""
    plate, seen = _plate(video, mask)
    clip, sky, place = _sky_and_ground(plate, seen)
    horizon, sizes, landmark = _horizon_slots(plate, seen, clip)
    names = [world.LANDMARKS[landmark[0]] if landmark else clip.landmark]
    layout = tuple(0 if state is None else min(state, LANDMARK) for state in horizon)
    clip = dataclasses.replace(clip, landmark=names[0], layout=layout, sizes=sizes)
    skies = _slots(plate, seen, _variants(clip, "sky_slots", 3), SKY_SLOTS, scenery.SKY_LINE - 0.1, 0.94)
    fronts = _slots(plate, seen, _variants(clip, "front", 2), FRONT_SLOTS, 0.0, 0.1)
    clip = dataclasses.replace(
        clip, sky_slots=tuple(s.state or 0 for s in skies), front=tuple(s.state or 0 for s in fronts)
    )
    return StageReading(
        place=place,
        sky=sky,
        landmark=names[0] if landmark else None,
        landmark_slot=landmark[1] if landmark else None,
        horizon=clip.horizon,
        cells=(*horizon, *(slot.state for slot in skies), *(slot.state for slot in fronts)),
        clip=clip,
        plate=torch.where(seen, plate, (render_stage([clip], *plate.shape[1:])[0] + 1) * 127.5),
        seen=seen,
    )


def _plate(video: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The median over time of what the puppet leaves free (3, H, W), and where it ever does (H, W)."""
    reach = 2 * max(1, round(video.shape[2] / 48)) + 1  # soft edges, and what a decoder smears beside them
    near = F.max_pool2d(mask.float().unsqueeze(1), reach, 1, reach // 2) > 0
    free = torch.where(near, torch.nan, video)
    plate = free.nanmedian(0).values
    seen = ~near.all(0)[0]
    return plate.nan_to_num(0.0), seen


def _sky_and_ground(plate: Tensor, seen: Tensor) -> tuple[Clip, str | None, str | None]:
    """A bare clip with the nearest sky, place, horizon and tint, and sky and place where they are clear."""
    height, width = plate.shape[1:]
    y = 1 - (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / height - ASPECT / 2
    free = seen & (x.abs() < 0.68)
    bare = _bare_clip()
    skies = [dataclasses.replace(bare, sky=sky) for sky in world.SKIES]
    above = free & ((y > 0.62) & (y < 0.92))[:, None]
    offs = [_off(plate, clip, above) for clip in skies]
    sky, sky_name = _nearest([float(off.norm(dim=0).median()) for off in offs], world.SKIES)
    tint = offs[world.SKIES.index(sky)].median(1).values
    shade = (float(tint[0]), float(tint[1]), float(tint[2]))
    bare = dataclasses.replace(bare, sky=sky, stage_tint=shade)
    middle = free & ((y > 0.14) & (y < 0.55))[:, None]
    best: dict[str, tuple[float, float]] = {}
    for place in world.PLACES:
        found = [dataclasses.replace(bare, place=place, horizon=horizon) for horizon in world.HORIZONS]
        costs = [float(_off(plate, clip, middle).norm(dim=0).clamp_max(_FAR).mean()) for clip in found]
        best[place] = min(zip(costs, world.HORIZONS, strict=True))
    place, place_name = _nearest([best[name][0] for name in world.PLACES], world.PLACES)
    return dataclasses.replace(bare, place=place, horizon=best[place][1]), sky_name, place_name


def _bare_clip() -> Clip:
    """A clip with nothing in any slot and no tint."""
    clip = world.sample_clip(random.Random(0))
    return dataclasses.replace(
        clip,
        layout=(0,) * HORIZON_SLOTS,
        sizes=(1.0,) * HORIZON_SLOTS,
        sky_slots=(0,) * SKY_SLOTS,
        front=(0,) * FRONT_SLOTS,
        stage_tint=(0.0, 0.0, 0.0),
        horizon=0.405,
    )


def _off(plate: Tensor, clip: Clip, where: Tensor) -> Tensor:
    """Plate minus the clip's bare sky and ground at the pixels `where`, (3, n)."""
    height = plate.shape[1]
    y = 1 - (torch.arange(height) + 0.5) / height
    top, low = torch.tensor(scenery.sky_colours(clip)).unsqueeze(-1)
    far, near = torch.tensor(scenery.ground_colours(clip)).unsqueeze(-1)
    sky = torch.lerp(top, low, ((1 - y) / (1 - clip.horizon)).clamp(0, 1))
    ground = torch.lerp(far, near, ((clip.horizon - y) / clip.horizon).clamp(0, 1))
    rows = torch.lerp(sky, ground, ((clip.horizon - y) * height + 0.5).clamp(0, 1))  # (3, H)
    return (plate - rows[:, :, None])[:, where]


def _nearest(costs: list[float], names: tuple[str, ...]) -> tuple[str, str | None]:
    """The name of the lowest cost, and again that name or, where it is not clearly the lowest, None."""
    order = sorted(range(len(names)), key=lambda index: costs[index])
    best, second = order[:2]
    clear = costs[best] < 40 and costs[second] - costs[best] > 6
    return names[best], names[best] if clear else None


def _horizon_slots(
    plate: Tensor, seen: Tensor, clip: Clip
) -> tuple[list[int | None], tuple[float, ...], tuple[int, int] | None]:
    """States and sizes of the horizon's slots, and (landmark, slot) of the one landmark if it is clear."""
    empty = dataclasses.replace(clip, layout=(0,) * HORIZON_SLOTS)
    variants = [(0, empty)]
    for size, (state, name) in itertools.product(world.SIZES, enumerate(("", "", *world.LANDMARKS), 1)):
        filled = dataclasses.replace(
            clip,
            layout=(min(state, LANDMARK),) * HORIZON_SLOTS,
            sizes=(size,) * HORIZON_SLOTS,
            landmark=name or clip.landmark,
        )
        variants.append((state, filled))
    top = min(0.84, clip.horizon + 0.37)
    found = _slots(plate, seen, variants, HORIZON_SLOTS, clip.horizon - 0.03, top)
    sizes = tuple(variants[slot.nearest][1].sizes[0] for slot in found)
    cells = [None if slot.state is None else min(slot.state, LANDMARK) for slot in found]
    states = torch.tensor([state for state, _ in variants])
    landmark = _landmark(torch.stack([slot.costs for slot in found]), states, _enough(plate) * _APART**2)
    if landmark:
        cells[landmark[1]] = LANDMARK
    return cells, sizes, landmark


def _landmark(costs: Tensor, states: Tensor, clearly: float) -> tuple[int, int] | None:
    """The landmark and its slot that explain all slots best, for a stage has exactly one.

    `costs` (S, V) are what a variant leaves unexplained in a slot, `states` (V,) what it shows. None where it
    explains less than `clearly` that nothing else would, or another landmark explains half as much.
    """
    least = torch.stack([costs[:, states == state].amin(1) for state in states.unique()], 1)
    rather = least[:, LANDMARK:] - least[:, :LANDMARK].amin(1, keepdim=True)  # (S, landmarks)
    lowest, slots = rather.min(0)
    (best, second), (name, _) = lowest.topk(2, largest=False)
    return (int(name), int(slots[name])) if best <= -clearly and second > best / 2 else None


def _variants(clip: Clip, field: str, states: int) -> list[tuple[int, Clip]]:
    """The clip with all slots of a field in each of their states."""
    slots = len(getattr(clip, field))
    changes: list[dict[str, Any]] = [{field: (state,) * slots} for state in range(states)]
    return [(state, dataclasses.replace(clip, **change)) for state, change in enumerate(changes)]


class _Slot(NamedTuple):
    """A slot's state, None where it is not clear, the number of its nearest variant, and the costs (V,) of
    all of them.
    """

    state: int | None
    nearest: int
    costs: Tensor


def _slots(
    plate: Tensor, seen: Tensor, variants: list[tuple[int, Clip]], slots: int, low: float, high: float
) -> list[_Slot]:
    """What stands in each slot between the heights `low` and `high`.

    A state is clear when enough seen pixels tell it from every other state, and most of them speak for it.
    """
    height, width = plate.shape[1:]
    renders = (render_stage([clip for _, clip in variants], height, width) + 1) * 127.5  # (V, 3, H, W)
    y = 1 - (torch.arange(height) + 0.5) / height
    x = (torch.arange(width) + 0.5) / height - ASPECT / 2
    slot = ((x / SLOTS_WIDTH + 0.5) * slots).floor()
    states = torch.tensor([state for state, _ in variants])
    found: list[_Slot] = []
    for number in range(slots):
        where = seen & ((slot == number) & (x.abs() < 0.7)) & ((y > low) & (y < high))[:, None]
        views = renders[:, :, where]  # (V, 3, n)
        costs = _distance(views, plate[:, where]).sum(1)  # (V,)
        best = int(costs.argmin())
        apart = _distance(views, views[best])  # (V, n)
        others = states != states[best]
        telling = (apart > _APART**2).sum(1)[others]
        lead = ((costs - costs[best]) / apart.sum(1).clamp_min(1))[others]
        clear = bool(((telling >= _enough(plate)) & (lead > 0.2)).all())
        found.append(_Slot(int(states[best]) if clear else None, best, costs))
    return found


def _enough(plate: Tensor) -> float:
    """How many pixels of a plate (3, H, W) decide something."""
    return _ENOUGH * (plate.shape[1] / 64) ** 2


def _distance(views: Tensor, plate: Tensor) -> Tensor:
    """Squared distance of colours (V, 3, n) to (3, n), at most that of something else."""
    return (views - plate).square().sum(1).clamp_max(_FAR**2)
