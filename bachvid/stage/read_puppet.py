"""The reader of the puppet: kind, clothes, proportions, badge, and where each spot of the body is in each
frame.

It explains the pixels with the renderer. Puppets of every kind, accessory and proportion are laid over the
first and the last frame, where every action stands upright; for each, the colours that fit best follow by
least squares, since a picture is a sum of the materials' shares times their colours. The best ones are moved
and grown until they fit; the one that is nearest is the answer, as far as the pixels really tell it from the
others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bachvid.stage import world
from bachvid.stage.body import CELLS, HIP, LEG_LENGTH, MATERIALS, dyes, strokes
from bachvid.stage.fitting import View, distance, look, nearest, settle, shares_of, show, stand, unmix
from bachvid.stage.palette import BADGE, BODIES, CLOTHES, RGB
from bachvid.stage.read_action import MAY_BE, acting, at_home, retrace
from bachvid.stage.render import render_pose
from bachvid.stage.shapes import extent
from bachvid.stage.silhouette import STILL, Action, Track
from bachvid.stage.world import Clip

_ANY: RGB = (190.0, 100.0, 110.0)  # a warm colour amid all others, for a material that is hardly seen
_BUILT = ("kind", "accessory", "build", "legs")  # what makes the silhouette, beside a waving arm
_NEARER = 0.8  # of the distance to another word's colour, within which a word's colour must be
_BLURS = (0.0, 0.5, 0.9, 1.3)  # of a picture 64 high, in pixels
_PROMISING = 4  # puppets of the rough look that are fitted closely
_ROUNDS = 4  # of holding the best against its neighbours; two or three are enough
_FEW = 3.0  # pixels at a picture 64 high: fewer decide nothing


@dataclass(frozen=True)
class PuppetReading:
    """What the puppet looks like and does, None where the pixels do not say.

    `clip` is the nearest puppet the world can show, with a best guess everywhere; `uv` (F, H, W, 2) are body
    coordinates by the poses in which it fits, `known` (F, H, W) where it covers the picture.
    """

    action: Action
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


def read_puppet(
    video: Tensor, mask: Tensor, track: Track, action: Action, stage: Clip, plate: Tensor
) -> PuppetReading:
    """The puppet of a video (F, 3, H, W) of 255 at `mask` (F, H, W), before the plate (3, H, W)."""
    ends = [0, len(video) - 1]
    view = look(video[ends], mask[ends], plate)
    clip, spots, built, view = _nearest_puppet(view, track, _guesses(stage, action))
    clip, _ = _details(view, clip, spots)
    whole = look(video, mask, plate)._replace(blur=view.blur)
    if action.verb in MAY_BE:
        clip, action = acting(whole, clip, spots[0], action)
    spots = retrace(whole, clip, spots[0], track)
    clip, details = _details(whole, clip, spots)
    if built["accessory"] is None:
        details["accessory_colour"] = None
    clip = at_home(clip, spots[0])
    shown = render_pose([clip], stand([clip], spots[None]), plate[None] / 127.5 - 1)
    return PuppetReading(action, **built, **details, clip=clip, uv=shown.uv[0], known=shown.mask[0])


def _guesses(stage: Clip, action: Action) -> list[Clip]:
    """Puppets of every kind, accessory and proportion, doing whatever the track leaves open."""
    plain = dataclasses.replace(
        stage,
        where=action.where or "middle",
        heading=action.heading or 1,
        eyes=world.EYES[0],
        belly=world.BELLIES[0],
        puppet_tint=(0.0, 0.0, 0.0),
    )
    verbs = (action.verb,) if action.verb and action.verb != STILL else MAY_BE[STILL]
    choices = itertools.product(verbs, world.KINDS, world.ACCESSORIES, world.BUILDS, world.LEGS)
    return [
        dataclasses.replace(plain, verb=verb, kind=kind, accessory=accessory, build=build, legs=legs)
        for verb, kind, accessory, build, legs in choices
    ]


# --- upright: which puppet, how big ------------------------------------------------------------------------


class _Fit(NamedTuple):
    """Puppets, their spots (B, F, 4) = x, y, scale and moment of the action, and what they leave
    unexplained (B,).
    """

    clips: list[Clip]
    spots: Tensor
    costs: Tensor


def _nearest_puppet(
    view: View, track: Track, guesses: list[Clip]
) -> tuple[Clip, Tensor, dict[str, Any], View]:
    """The puppet that explains the view best, its spots (2, 4), what of its build is clear, the view's blur.

    A rough look at the first frame alone finds where to start. From there on the puppet is held against all
    that differ from it in one thing, each fitted as closely, until none of them is nearer.
    """
    placed = [(clip, spots) for clip in guesses for spots in _places(clip, track)]
    clips, spots = [clip for clip, _ in placed], torch.stack([spots for _, spots in placed])
    first = view._replace(pictures=view.pictures[:1], plate=view.plate[:1], x=view.x[:, :1], y=view.y[:, :1])
    costs = torch.cat([_dress(first, *few).costs for few in _chunks(clips, spots[:, :1])])
    promising = costs.argsort()[:_PROMISING]
    fit = _closely(view, [clips[number] for number in promising.tolist()], spots[promising])
    for _ in range(_ROUNDS):
        best = int(fit.costs.argmin())
        clip, spots = fit.clips[best], fit.spots[best]
        view = _with_blur(view, clip, spots)
        clip, _ = _details(view, clip, spots)
        rivals = [clip, *_neighbours(clip, guesses)]
        fit = _closely(view, rivals, spots.expand(len(rivals), -1, -1))
        if int(fit.costs.argmin()) == 0:
            break
    best = int(fit.costs.argmin())
    shown = show(view, fit.clips, fit.spots)
    built = {name: nearest(view, [getattr(clip, name) for clip in fit.clips], shown)[1] for name in _BUILT}
    return fit.clips[best], fit.spots[best], built, view


def _closely(view: View, clips: list[Clip], spots: Tensor) -> _Fit:
    """The puppets moved and grown until they fit, in the colours that fit."""
    dressed = _dress(view, clips, spots).clips
    steps = torch.tensor([0.5 / view.height, 0.5 / view.height, 0.015, 0.0])
    spots = settle(lambda tries: show(view, dressed, tries), spots, steps, view.pictures, rounds=3, reach=8.0)
    spots[..., 2] = spots[..., 2].mean(1, keepdim=True)  # a puppet keeps its size
    final = _dress(view, dressed, spots)
    return _Fit(final.clips, spots, final.costs)


def _neighbours(clip: Clip, guesses: list[Clip]) -> list[Clip]:
    """The puppets among the guesses' that differ from the clip in one thing of its build."""
    found = []
    for name in ("verb", *_BUILT):
        answers = sorted({getattr(guess, name) for guess in guesses} - {getattr(clip, name)})
        changes: list[dict[str, Any]] = [{name: answer} for answer in answers]
        found += [dataclasses.replace(clip, **change) for change in changes]
    return found


def _with_blur(view: View, clip: Clip, spots: Tensor) -> View:
    """The view with the blur that leaves the least unexplained."""
    views = [view._replace(blur=blur * view.height / 64) for blur in _BLURS]
    return min(views, key=lambda blurred: float(_dress(blurred, [clip], spots[None]).costs))


def _chunks(clips: list[Clip], spots: Tensor, size: int = 16) -> Iterator[tuple[list[Clip], Tensor]]:
    for start in range(0, len(clips), size):
        yield clips[start : start + size], spots[start : start + size]


def _places(clip: Clip, track: Track) -> list[Tensor]:
    """Spots (2, 4) at which the puppet is as high as the silhouette in the first and last frame.

    A thin antenna may be lost with its knob or without, so a robot may end anywhere above its skull.
    """
    parts = strokes(clip)
    _, _, _, head = extent(stroke.shape for stroke in parts if stroke.part == "head")
    _, _, _, skull = extent(
        stroke.shape for stroke in parts if stroke.part == "head" and stroke.material == "body"
    )
    _, _, soles, _ = extent(stroke.shape for stroke in parts if stroke.part == "left_leg")
    leg = LEG_LENGTH[clip.legs]
    found = []
    tops = torch.linspace(skull, head, 4) if clip.kind == "robot" and clip.accessory != "hat" else [head]
    for top in tops:
        tall = top - HIP + (HIP - soles) * leg
        scale = (track.top - track.bottom) / tall  # (F,)
        spots = torch.stack([track.feet, track.bottom - soles * leg * scale, scale], 1)[[0, -1]]
        found.append(torch.cat([spots, torch.tensor([[0.0], [1.0]])], 1))
    return found


# --- colours ----------------------------------------------------------------------------------------------


class _Dressed(NamedTuple):
    """Puppets in the world's colours nearest to the view, and what remains unexplained (B,).

    `colours` (B, M, 3) are the exact colours of their materials, `pixels` (B, M) how many pixels show each.
    """

    clips: list[Clip]
    colours: Tensor
    pixels: Tensor
    costs: Tensor


def _dress(view: View, clips: list[Clip], spots: Tensor) -> _Dressed:
    shares = shares_of(clips, stand(clips, spots), view)
    colours = unmix(shares, view, torch.tensor(_ANY))
    dressed = [_in_colours(clip, found) for clip, found in zip(clips, colours, strict=True)]
    world_colours = torch.tensor([[dyed[material] for material in MATERIALS] for dyed in map(dyes, dressed)])
    shown = (
        torch.einsum("bfmhw,bmc->bfchw", shares[:, :, :-1], world_colours) + shares[:, :, -1:] * view.plate
    )
    costs = distance(shown, view.pictures).sum((1, 2, 3))
    return _Dressed(dressed, colours, shares[:, :, :-1].sum((1, 3, 4)), costs)


def _in_colours(clip: Clip, colours: Tensor) -> Clip:
    """The clip with the words whose colours are nearest to the materials' (M, 3)."""
    named = dict(zip(MATERIALS, colours, strict=True))
    return dataclasses.replace(
        clip,
        colour=_ranked(named["body"], BODIES)[0][1],
        accessory_colour=_ranked(named["cloth"], CLOTHES)[0][1],
        trousers=_ranked(named["trousers"], CLOTHES)[0][1],
        badge=tuple(_ranked(named[cell], dict(enumerate(BADGE)))[0][1] for cell in CELLS),
    )


def _clear_colours(colours: Tensor, pixels: Tensor, height: int) -> dict[str, Any]:
    """The words of the materials' colours (M, 3); None for few pixels (M,) or two words nearly as near."""

    def word(material: str, palette: Mapping[Any, RGB]) -> Any:
        number = MATERIALS.index(material)
        (first, name), (second, _) = _ranked(colours[number], palette)[:2]
        return name if first < _NEARER * second and pixels[number] >= _FEW * (height / 64) ** 2 else None

    return {
        "colour": word("body", BODIES),
        "accessory_colour": word("cloth", CLOTHES),
        "trousers": word("trousers", CLOTHES),
        "badge": tuple(word(cell, dict(enumerate(BADGE))) for cell in CELLS),
    }


def _ranked(colour: Tensor, palette: Mapping[Any, RGB]) -> list[tuple[float, Any]]:
    """Distances and words of a palette, the nearest first."""
    off = (colour - torch.tensor([*palette.values()])).norm(dim=-1).tolist()
    return sorted(zip(off, palette, strict=True), key=lambda pair: pair[0])


# --- details ----------------------------------------------------------------------------------------------


def _details(view: View, clip: Clip, spots: Tensor) -> tuple[Clip, dict[str, Any]]:
    """The clip with eyes, belly, colours and badge as seen at the spots (F, 4), and which of them are clear.

    Eyes and belly come first, since they cover some of the body's own colour.
    """
    clear: dict[str, Any] = {}
    for name, answers in (("eyes", world.EYES), ("belly", world.BELLIES)):
        changes: list[dict[str, Any]] = [{name: answer} for answer in answers]
        tries = [dataclasses.replace(clip, **change) for change in changes]
        shown = show(view, tries, spots.expand(len(tries), -1, -1))
        best, clear[name] = nearest(view, answers, shown)
        clip = tries[best]
    dressed = _dress(view, [clip], spots[None])
    clear |= _clear_colours(dressed.colours[0], dressed.pixels[0], view.height)
    return dressed.clips[0], clear
