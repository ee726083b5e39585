"""One group of the stage world, from its clips to numbers.

A `Scene` is the group: its clips, its noise, and its videos made without the method. A run makes the frame
videos in its own way; most do so by `Scene.film`, each with a recipe of its own. `measure_group` goes through
the runs and reads from the pixels what every one of them came to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from bachvid.evaluate.agreement import Watched, agreement, guards, rightness
from bachvid.evaluate.alone import Alone
from bachvid.evaluate.cost import Meter, paper_cache_gb
from bachvid.evaluate.metrics import mean
from bachvid.evaluate.quality import borrowed, mask_quality, match_quality
from bachvid.evaluate.studio import Studio, pre_run, together
from bachvid.method.frame import FrameVideo
from bachvid.method.match import Places, match
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted
from bachvid.stage.captions import caption
from bachvid.stage.world import Clip, sample_group

Start = Literal["shared", "own"]  # the noise of the identity, or noise of every video's own
Alter = Callable[["Scene", Sequence[FrameVideo], Sequence[Alone]], None]  # of frame videos and their twins
Make = Callable[["Scene"], "Shown"]  # what a run is


def measure_group(
    studio: Studio, runs: Mapping[str, Make], seed: int, number: int, prompts: int
) -> dict[str, float]:
    """All that is measured of one group of held-out clips, by names such as "ours_shared.psnr_bg".

    Beside the runs, it is told of the videos made without the method how right they are ("vanilla"), how good
    their masks are ("mask", Eq. 4) and their matches with the identity ("match", Eq. 8).
    """
    scene = Scene(studio, seed, number, prompts)
    measured: dict[str, float] = {}
    for name, make in runs.items():
        measured |= within(name, read(scene, make(scene)))
    measured |= within("vanilla", read_vanilla(scene))
    measured |= within("mask", read_masks(scene))
    return measured | within("match", read_matches(scene))


@dataclass(frozen=True, eq=False)
class Shown:
    """Frame videos as a run made them."""

    frames: Sequence[Watched]
    facts: Mapping[str, float] = field(default_factory=dict)  # of their making, such as seconds
    whole: Sequence[bool] | None = None  # whether nothing was left out in making each; None: nothing was
    sets: Sequence[Sequence[Watched]] | None = None  # read together; None: the identity with all of them


class Scene:
    """A group of held-out clips with its videos, none made before a run asks for it, and none made twice.

    Clips and noise follow from the seed and the group's number. The first clip is the identity's, which is
    the same video in every run; the others are those of frame videos.
    """

    def __init__(self, studio: Studio, seed: int, number: int, prompts: int) -> None:
        self.studio, self.seed, self.number = studio, seed, number
        rng = self.rng()
        self.clips = sample_group(rng, prompts)
        self.noise = rng.sample(range(2**31), prompts)
        self.denoiser = studio.denoiser()
        self.texts = studio.prompts([caption(clip) for clip in self.clips])
        self.alone: dict[Alone, Clip] = {}  # the videos made without the method, and what each should show
        self.identity = self._make(0, self.noise[0])
        self._seen: dict[tuple[Alone, Recipe], tuple[Scouted, float]] = {}
        self._filmed: dict[tuple[Recipe, Start, Alter | None], Shown] = {}

    def rng(self, purpose: str = "") -> random.Random:
        """Chance that depends on the seed, the group and the purpose, not on what was drawn before."""
        return random.Random(f"{self.seed} {self.number} {purpose}".strip())

    @cached_property
    def shared(self) -> list[Alone]:
        """The frame videos without the method, from the noise of the identity."""
        return [self._make(n, self.noise[0]) for n in range(1, len(self.clips))]

    @cached_property
    def own(self) -> list[Alone]:
        """The same from noise of their own."""
        return [self._make(n, self.noise[n]) for n in range(1, len(self.clips))]

    @cached_property
    def stranger(self) -> Watched:
        """The identity of the next group."""
        return Scene(self.studio, self.seed, self.number + 1, len(self.clips)).identity.watched

    def twins(self, start: Start) -> list[Alone]:
        """What the frame videos are without the method."""
        return self.shared if start == "shared" else self.own

    def seen(self, video: Alone, recipe: Recipe) -> tuple[Scouted, float]:
        """What the pre-run of a recipe finds out about a video, and the seconds that it takes."""
        key = video, what_a_pre_run_knows(recipe)
        if key not in self._seen:
            with Meter() as cost:
                found = pre_run(self.denoiser, recipe, video.take, video.trajectory)
            self._seen[key] = found, video.clock[found.tau] + cost.seconds
        return self._seen[key]

    def film(self, recipe: Recipe, start: Start = "shared", alter: Alter | None = None) -> Shown:
        """The frame videos made by a recipe; `alter` may change what they borrow before they begin."""
        key = recipe, start, alter
        if key not in self._filmed:
            self._filmed[key] = self._film(*key)
        return self._filmed[key]

    def _film(self, recipe: Recipe, start: Start, alter: Alter | None) -> Shown:
        grid, identity, twins = self.studio.grid(), self.identity, self.twins(start)
        (there, _), *seen = [self.seen(video, recipe) for video in (identity, *twins)]
        places: list[Places] = []

        def prepare(frames: Sequence[FrameVideo]) -> None:
            if alter is not None:
                alter(self, frames, twins)
            places.extend(frame.places for frame in frames)

        with Meter() as cost:
            made = together(self.denoiser, recipe, there, [here for here, _ in seen], prepare)
            frames = [self.studio.develop(frame.take.latents) for frame in made]
        facts = averages([borrowed(p, twin, identity, grid) for p, twin in zip(places, twins, strict=True)])
        before = mean(seconds for _, seconds in seen)
        facts |= {
            "seconds": before + cost.seconds / len(made),
            "pre_run_seconds": before,
            "cpu_gb": cost.cpu_gb,
            "gpu_gb": cost.gpu_gb,
            "cache_gb": paper_cache_gb(recipe, there),
        }
        whole = [frame.note is None for frame in made]
        return Shown([Watched.of(each) for each in frames], facts, whole)

    def _make(self, n: int, seed: int) -> Alone:
        video = Alone.made(self.studio, self.denoiser, self.texts[n], seed)
        self.alone[video] = self.clips[n]
        return video


def what_a_pre_run_knows(recipe: Recipe) -> Recipe:
    """The recipe without what only a main run asks for: where two are alike, so are masks and features."""
    return replace(
        recipe,
        kv_layers=(),
        mode="both",
        branches="cond",
        inject_steps=None,
        bg_inject_steps=None,
        strength=1.0,
        bg_strength=None,
        margin=0,
        window="all",
        min_similarity=None,
        require_identity_foreground=False,
        refresh=False,
        shared_noise=True,
    )


def read(scene: Scene, shown: Shown) -> dict[str, float]:
    """What a run's videos agree in and show, and the facts of their making.

    `success` is the share of frame videos with a puppet in every frame, in whose making nothing was left out;
    `left_out` that of those in whose making something was.
    """
    sets = shown.sets or [[scene.identity.watched, *shown.frames]]
    whole = shown.whole or [True] * len(shown.frames)
    shares = {
        "success": mean(ok and not video.lost for ok, video in zip(whole, shown.frames, strict=True)),
        "left_out": mean(not ok for ok in whole),
    }
    agreed = averages([agreement(videos) | guards(videos) for videos in sets])
    return agreed | rightness(shown.frames, scene.clips[1:]) | shares | dict(shown.facts)


def read_vanilla(scene: Scene) -> dict[str, float]:
    """Whether the videos made without the method show what was asked for, and the seconds each took."""
    right = rightness([video.watched for video in scene.alone], list(scene.alone.values()))
    return right | {"seconds": mean(video.cost.seconds for video in scene.alone)}


def read_masks(scene: Scene) -> dict[str, float]:
    """How good the masks of the studio's recipe are (see `mask_quality`)."""
    studio, denoiser = scene.studio, scene.denoiser
    found = []
    for video in scene.alone:
        seen, _ = scene.seen(video, studio.recipe)
        scores = studio.scores(denoiser, video.take.prompt, video.trajectory)
        found.append(mask_quality(seen.mask, scores, video))
    return averages(found)


def read_matches(scene: Scene) -> dict[str, float]:
    """How good the matches with the identity are, by the studio's recipe (see `match_quality`)."""
    recipe, grid = scene.studio.recipe, scene.studio.grid()
    there, _ = scene.seen(scene.identity, recipe)
    found = []
    for video in scene.alone:
        if video is not scene.identity:
            here, _ = scene.seen(video, recipe)
            assert here.features is not None and there.features is not None
            partner = match(here.features, there.features, grid, recipe).partner
            found.append(match_quality(partner, video, scene.identity, grid))
    return averages(found)


def averages(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every value, by its name; what is not a number is left out."""
    return {name: mean(each[name] for each in measured) for name in measured[0]}


def within(run: str, measured: Mapping[str, float]) -> dict[str, float]:
    """The same under the name of a run."""
    return {f"{run}.{name}": value for name, value in measured.items()}
