"""One group of the stage world: made alone, together, and with parts of the method taken away."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from bachvid.evaluate.agreement import Watched, agreement, rightness
from bachvid.evaluate.metrics import iou, match_errors, mean, token_uv, true_partners
from bachvid.evaluate.studio import Studio, together
from bachvid.method.denoiser import Denoiser, Prompt
from bachvid.method.frame import FrameVideo
from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted
from bachvid.method.spans import Parts
from bachvid.stage.captions import caption
from bachvid.stage.watch import auc, token_masks
from bachvid.stage.world import sample_group


@dataclass(frozen=True, eq=False)
class Alone:
    """A video made without the method, and what the pre-run saw in it."""

    seen: Scouted
    watched: Watched
    seconds: float  # until its pixels were there


def measure_group(studio: Studio, seed: int, number: int, prompts: int) -> dict[str, float]:
    """All that is measured of one group of held-out clips, by names such as "ours_shared.psnr_bg".

    Clips and noise follow from the seed and the group's number. The first prompt makes the identity, which
    is the same video in every run; the others make frame videos: alone and together, from the noise of the
    identity ("shared") and from noise of their own. Two more runs, with the shared noise, take a part of
    the method away.
    """
    rng = random.Random(f"{seed} {number}")
    clips = sample_group(rng, prompts)
    noise = rng.sample(range(2**31), prompts)
    denoiser, recipe = studio.denoiser(), studio.recipe
    texts = studio.prompts([Parts(*caption(clip)) for clip in clips])
    identity, *shared = [alone(studio, denoiser, text, noise[0]) for text in texts]
    own = [alone(studio, denoiser, *start) for start in zip(texts[1:], noise[1:], strict=True)]

    def made(
        recipe: Recipe, frames: Sequence[Alone], shuffle: torch.Generator | None = None
    ) -> list[Watched]:
        videos = together(denoiser, recipe, identity.seen, [frame.seen for frame in frames], shuffle)
        return [Watched.of(studio.develop(video.take.latents)) for video in videos]

    runs = {
        "vanilla_shared": [frame.watched for frame in shared],
        "vanilla_own": [frame.watched for frame in own],
        "ours_shared": made(recipe, shared),
        "ours_own": made(recipe, own),
        "only_background": made(replace(recipe, mode="bg"), shared),
        "random_match": made(replace(recipe, refresh=False), shared, torch.Generator().manual_seed(noise[0])),
    }
    measured: dict[str, float] = {}
    for name, frames in runs.items():
        found = agreement([identity.watched, *frames]) | rightness(frames, clips[1:])
        measured |= within(name, found)
    every = [identity, *shared, *own]
    right = rightness([video.watched for video in every], [*clips, *clips[1:]])
    measured |= within("vanilla", right | {"seconds": mean(video.seconds for video in every)})
    measured |= within("mask", mask_quality(studio, denoiser, every))
    return measured | within("match", match_quality(studio, denoiser, identity, [*shared, *own]))


def alone(studio: Studio, denoiser: Denoiser, prompt: Prompt, seed: int) -> Alone:
    """A video made without the method and watched."""
    started = time.perf_counter()
    seen = studio.alone(denoiser, prompt, seed)
    frames = studio.develop(seen.take.latents)
    seconds = time.perf_counter() - started
    return Alone(seen, Watched.of(frames), seconds)


def mask_quality(studio: Studio, denoiser: Denoiser, videos: Sequence[Alone]) -> dict[str, float]:
    """How the pre-run's masks (Eq. 4) lie on the puppets of the same videos: `iou`, and `auc` of the scores.

    A token is puppet where at least half of its pixels are, over all frames that it stands for.
    """
    ious, aucs = [], []
    for video in videos:
        truth = token_masks(video.watched.reading.mask[None].float(), studio.grid())[0]
        ious.append(iou(video.seen.mask.cpu(), truth))
        background, character = studio.scores(denoiser, video.seen).cpu()
        aucs.append(auc(character - background, truth) if truth.any() else float("nan"))
    return {"iou": mean(ious), "auc": mean(aucs)}


def match_quality(
    studio: Studio, denoiser: Denoiser, identity: Alone, frames: Sequence[Alone]
) -> dict[str, float]:
    """How near the partners found at tau (Eq. 8) are to the true ones, over the tokens that show the puppet.

    `pck1` is the share within one token, `mse` the mean squared distance in tokens, and `mse_same_place`
    that of taking every token's own place for its partner.
    """
    grid = studio.grid()
    found: dict[str, list[float]] = {"pck1": [], "mse": [], "mse_same_place": []}
    there = token_uv(identity.watched.reading.mask, identity.watched.reading.uv, grid)
    for frame in frames:
        here = token_uv(frame.watched.reading.mask, frame.watched.reading.uv, grid)
        matches = FrameVideo(denoiser, studio.recipe, frame.seen, identity.seen).matches
        truth = true_partners(here, there, grid)
        errors = match_errors(matches.partner.cpu(), truth, grid)
        same_place = match_errors(torch.arange(grid.tokens), truth, grid)
        found["pck1"].append((errors <= 1).double().mean().item())
        found["mse"].append(errors.mean().item())
        found["mse_same_place"].append(same_place.mean().item())
    return {name: mean(values) for name, values in found.items()}


def within(run: str, measured: Mapping[str, float]) -> dict[str, float]:
    """The same under the name of a run."""
    return {f"{run}.{name}": value for name, value in measured.items()}
