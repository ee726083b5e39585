"""The seconds of everything that a run is made of, and what whole groups come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from bachvid.bench.clock import Took, in_turns, rounds
from bachvid.bench.rival import follow
from bachvid.bench.subject import Subject
from bachvid.method.frame import FrameVideo
from bachvid.method.group import MainRun
from bachvid.method.match import Features, match
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted, features_of, look_at
from bachvid.sampling.loop import denoise

WAYS = ("lockstep", "replay", "cache")
VIDEOS = (2, 5)  # in the groups whose cost is worked out
EQUAL = (("lockstep", "replay"), ("lockstep", "cache"), ("vanilla", "diffusers"))  # ways to one video


@dataclass(frozen=True)
class Found:
    """How long everything took, and the frame video as each way made it."""

    took: Mapping[str, Took]
    latents: Mapping[str, Tensor]


def measure(subject: Subject, share: float, pipeline: Any = None) -> Found:
    """Every way of sharing, in turns with the frame video made alone; a look; matching; another pipeline.

    The character covers `share` of every frame.
    """
    denoiser, device, steps = subject.denoiser, subject.device, subject.denoiser.steps
    took: dict[str, Took] = {}
    latents: dict[str, Tensor] = {}
    identity, frame = (subject.scouted(n, share) for n in range(2))
    for way in WAYS:
        if way != "replay":  # which goes by the trajectory that lockstep leaves behind
            identity = anew(subject, identity)
        video, alone = frame_video(subject, identity, frame), anew(subject, frame).take
        walk = denoise(denoiser.vanilla, [alone], denoiser.sampler)
        shared = main_run(subject, identity, video, way == "cache")
        took |= in_turns({f"vanilla, beside {way}": walk, way: shared}, device)
        latents |= {"vanilla": alone.latents, way: video.take.latents}
    took["look"] = rounds(partial(read, subject, frame), steps, device)
    here, there = (features_of(denoiser, subject.timed_recipe, video) for video in (frame, identity))
    matching = partial(match, here, there, subject.grid, subject.recipe)
    took["match"] = rounds(matching, steps, device)
    if pipeline is not None:
        took["diffusers"], latents["diffusers"] = follow(pipeline, subject, anew(subject, frame).take)
    return Found(took, latents)


def anew(subject: Subject, seen: Scouted) -> Scouted:
    """The same video before its first step."""
    take = subject.denoiser.start(seen.take.prompt, seen.take.seed)
    return replace(seen, take=take, trajectory=[take.latents])


def frame_video(subject: Subject, identity: Scouted, frame: Scouted) -> FrameVideo:
    """The frame video before its first step, as after a pre-run."""
    return FrameVideo(subject.denoiser, subject.timed_recipe, frame, identity)


def main_run(subject: Subject, identity: Scouted, video: FrameVideo, keep_cache: bool) -> Iterator[None]:
    """The steps of the frame video; what the identity does before them is part of the first."""
    run = MainRun(subject.denoiser, subject.timed_recipe, identity, [video], keep_cache)
    for progress in run.run():
        if progress.phase == "main run":
            yield


def read(subject: Subject, video: Scouted) -> tuple[Tensor, Features]:
    """Mask and features of a video before its first step."""
    look = look_at(subject.denoiser, subject.recipe, video.take.prompt, video.trajectory[0], 0)
    return look.mask(), look.features()


def results(found: Found, recipe: Recipe) -> dict[str, Any]:
    """All that was found, and what groups of `VIDEOS` videos cost in a run of the recipe's length."""
    groups = {str(videos): cost_of(videos, found.took, recipe) for videos in VIDEOS}
    pairs = [pair for pair in EQUAL if set(pair) <= set(found.latents)]
    return {
        "took": {name: took.to_dict() for name, took in found.took.items()},
        "groups": groups,
        "differences": {" and ".join(pair): apart(*(found.latents[way] for way in pair)) for pair in pairs},
    }


def cost_of(videos: int, took: Mapping[str, Took], recipe: Recipe) -> dict[str, float]:
    """Seconds of a group's denoising without the method and in lockstep with it, worked out from its parts.

    In lockstep the identity goes its way once, and looks once. Each frame video goes through the pre-run
    alone, is looked at and matched, and begins again: while the identity's latents are known already, it only
    accompanies them, which replay has shown the price of.
    """
    alone, beside = took["vanilla, beside lockstep"].median, took["lockstep"].median
    look, matching = took["look"].median, took["match"].median
    tau, borrowing = max(recipe.tau_mask, recipe.tau_match), sum(map(recipe.injects_at, range(recipe.steps)))
    frame = beside - alone  # what one more frame video adds to a step
    company = max(0.0, took["replay"].median - frame)
    identity = recipe.steps * alone + look + tau * company
    each = tau * alone + look + matching + borrowing * frame + (recipe.steps - borrowing) * alone
    group, vanilla = identity + (videos - 1) * each, videos * recipe.steps * alone
    return {"vanilla_s": vanilla, "group_s": group, "ratio": group / vanilla}


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two videos' latents, as a share of their spread."""
    return ((one.float() - other.float()).abs().max() / one.float().std()).item()
