"""Runs: the ways in which the frame videos of a group can come about, the method's and its controls'."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bachvid.evaluate.agreement import Watched
from bachvid.evaluate.alone import Alone
from bachvid.evaluate.metrics import mean, nearest_partner
from bachvid.evaluate.scene import Alter, Make, Scene, Shown, Start
from bachvid.method.frame import FrameVideo
from bachvid.method.match import places
from bachvid.method.recipe import Recipe
from bachvid.pictures.frames import to_frames
from bachvid.stage.render import clip_phases, render
from bachvid.stage.world import share_hidden


@dataclass(frozen=True)
class Run:
    """One row of a table: what makes the frame videos, what it is, and which row it is held against."""

    name: str
    about: str
    make: Make
    against: str = "vanilla_shared"


def vanilla(start: Start) -> Make:
    """The model alone."""

    def make(scene: Scene) -> Shown:
        videos = scene.twins(start)
        facts = {
            "seconds": mean(video.cost.seconds for video in videos),
            "pre_run_seconds": 0.0,
            "cpu_gb": max(video.cost.cpu_gb for video in videos),
            "gpu_gb": max(video.cost.gpu_gb for video in videos),
            "cache_gb": 0.0,
        }
        return Shown([video.watched for video in videos], facts)

    return make


@dataclass(frozen=True)
class Method:
    """The method by a recipe; where `alter` decides what is borrowed, there is no refresh on the way."""

    recipe: Recipe
    start: Start = "shared"
    alter: Alter | None = None

    def __call__(self, scene: Scene) -> Shown:
        recipe = replace(self.recipe, refresh=False) if self.alter else self.recipe
        return scene.film(recipe, self.start, self.alter)


def random_layers(recipe: Recipe, layers: int) -> Make:
    """The method with as many vital layers drawn from all `layers`, anew for every group."""
    return lambda scene: scene.film(draw_layers(recipe, layers, scene.rng("layers")))


def draw_layers(recipe: Recipe, layers: int, rng: random.Random) -> Recipe:
    """The recipe with as many vital layers at random, of 1 to `layers`."""
    drawn = rng.sample(range(1, layers + 1), len(recipe.kv_layers))
    return replace(recipe, kv_layers=tuple(sorted(drawn)))


def mislead(scene: Scene, frames: Sequence[FrameVideo], twins: Sequence[Alone]) -> None:
    """Exchange the partners of all tokens for others of the identity's foreground, at random."""
    generator = torch.Generator().manual_seed(scene.noise[0])
    for frame in frames:
        matched, there = frame.places.matched, frame.identity.mask.nonzero()[:, 0]
        if len(matched):
            order = there[torch.randperm(len(there), generator=generator).to(there.device)]
            turns = torch.arange(len(matched), device=there.device) % len(order)
            frame.places = replace(frame.places, partners=order[turns])


def tell_truth(scene: Scene, frames: Sequence[FrameVideo], twins: Sequence[Alone]) -> None:
    """Put the readers' masks and partners of the twins where the pre-run's were.

    A token of the puppet borrows from the one that shows its place best; if the identity never shows that
    place, it borrows nothing.
    """
    identity = scene.identity
    for frame, twin in zip(frames, twins, strict=True):
        device = frame.mask.device
        partner = nearest_partner(twin.uv, identity.uv)
        matched = (twin.mask & (partner >= 0)).nonzero()[:, 0]
        masks = twin.mask.to(device), identity.mask.to(device)
        true = places(*masks, None, frame.grid, frame.recipe)
        frame.places = replace(true, matched=matched.to(device), partners=partner[matched].to(device))
        frame.note = None  # whatever the pre-run left out, the truth has it


def oracle(seen_through_vae: bool) -> Make:
    """The renderer in the model's place: every hidden attribute that of the first clip, actions as asked."""

    def make(scene: Scene) -> Shown:
        frames, height, width = scene.identity.watched.frames.shape[:3]
        clips = share_hidden(scene.clips)
        video = render(clips, clip_phases(len(clips), frames), height, width).video
        if seen_through_vae:
            video = scene.studio.seen_through(video)
        watched = [Watched.of(to_frames(each)) for each in video]
        return Shown(watched[1:], sets=[watched])

    return make


def copy(scene: Scene) -> Shown:
    """The identity again and again."""
    return Shown([scene.identity.watched] * (len(scene.clips) - 1))


def shuffled(make: Make) -> Make:
    """The frame videos of another run, each beside the identity of another group: what agrees by chance."""

    def made(scene: Scene) -> Shown:
        frames = make(scene).frames
        return Shown(frames, sets=[[scene.stranger, frame] for frame in frames])

    return made
