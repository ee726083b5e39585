"""`bachvid calibrate`: which layers and steps of a checkpoint the method should use; writes its preset.

Everything is kept piece by piece in --out, so that a calibration which was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from bachvid.calibrate.analysis import Analysis
from bachvid.calibrate.choose import MASK_RULES, MATCH_RULES, MOST_LAYERS, VITAL_RULES
from bachvid.calibrate.estimate import estimate
from bachvid.calibrate.procedure import CHECKED, Rules, calibrate
from bachvid.calibrate.provide import add_arguments as add_truth
from bachvid.calibrate.provide import find_truth, has_judge
from bachvid.calibrate.record import write_record
from bachvid.calibrate.select import least_prompts
from bachvid.calibrate.truth import Judge, Truth
from bachvid.console import Console
from bachvid.errors import StoryError, UsageError, check_writable
from bachvid.evaluate.ledger import Ledger
from bachvid.evaluate.studio import Studio, is_of_stage, timesteps_of
from bachvid.method.identity import fingerprint
from bachvid.method.mask import Split
from bachvid.method.prompts import write_prompts
from bachvid.method.recipe import own_recipe
from bachvid.method.spans import Parts
from bachvid.models.checkpoint import open_checkpoint
from bachvid.settings import DTYPES, best_device, best_dtype, usable_device
from bachvid.stage.captions import caption
from bachvid.stage.world import sample_group
from bachvid.story import find_model, of_each, read_stories

# What a plan assumes: about what an H100 makes of a large model in bf16, and two CPU cores of a small one.
TFLOPS = {"cuda": 400.0, "cpu": 0.03}
# What is seen of videos depends on these of the recipe.
WATCHED = ["steps", "guidance", "words", "shared_noise", "mask_softmax", "token_kind", "normalize", "window"]
# What a calibration cannot do with less of: matches need two videos.
LEAST = {"groups": 1, "prompts": 2, "steps": 1, "most_layers": 1, "match_layers": 1, "vital_layers": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a calibration."""
    flag = parser.add_argument
    flag("model", metavar="NAME|FOLDER")
    flag("--out", type=Path, metavar="FOLDER", help="of the analysis: calibrations/NAME")
    flag(
        "--preset",
        type=Path,
        metavar="FILE",
        help="where to write the recipe: preset.json beside the weights, if there is none yet",
    )
    flag(
        "--stories",
        type=Path,
        metavar="FILE",
        help="background#character#action lines; shipped models invent some",
    )
    flag("--groups", type=int, default=16, metavar="N", help="groups of videos: 16")
    flag("--prompts", type=int, default=2, metavar="N", help="videos in an invented group: 2")
    flag("--left-out", type=int, default=16, metavar="N", help="videos made without each layer: 16")
    flag("--steps", type=int, metavar="N", help="denoising steps; the preset's")
    flag("--seed", type=int, default=0, help="of the groups and their noise: 0")
    flag("--masks", choices=MASK_RULES, default="ratio", help="the rule for mask layers, the paper's: ratio")
    flag("--mask-split", choices=get_args(Split), help="how a mask is told from the rest; the preset's")
    flag("--ratio", type=float, default=0.7, help="of the best IoU, that mask layers reach: 0.7")
    flag("--most-layers", type=int, default=MOST_LAYERS, metavar="N", help=f"for masks: {MOST_LAYERS}")
    flag("--match-rule", choices=MATCH_RULES, default="calm", help="for match layers, the paper's: calm")
    flag("--match-layers", type=int, metavar="N", help="how many; as many as mask layers")
    flag(
        "--vital", choices=VITAL_RULES, default="outliers", help="which layers lend keys and values: outliers"
    )
    flag("--vital-layers", type=int, metavar="N", help="for --vital top; the paper's share, 15 of 42")
    add_truth(parser)
    flag("--dtype", choices=DTYPES, help="of the denoiser")
    flag("--vae-tiling", action="store_true", help="decode in tiles: less memory, slightly other pixels")
    flag("--device", help="cpu, cuda, cuda:1 or mps (default: the fastest there is)")
    flag("--plan", action="store_true", help="only say what it will cost")
    assumed = ", ".join(f"{value:g} on {device}" for device, value in TFLOPS.items())
    flag("--tflops", type=float, metavar="X", help=f"that the device makes, for the plan: {assumed}")


def main(args: argparse.Namespace) -> int:
    """Say what it costs, observe, choose, check, and write down what was found."""
    check(args)
    console, folder = Console(), find_model(args.model)
    checkpoint, stories = open_checkpoint(folder), find_groups(args, folder)
    recipe = own_recipe(folder, checkpoint.family, checkpoint.config.layers)
    device = usable_device(args.device) or best_device()
    dtype = DTYPES[args.dtype] if args.dtype else best_dtype(device, checkpoint)
    recipe = recipe.at(timesteps_of(checkpoint, args.steps or recipe.steps))
    recipe = replace(recipe, mask_split=args.mask_split or recipe.mask_split)
    encoder = checkpoint.text_encoder()
    of_each(stories, lambda videos: write_prompts(encoder, videos, recipe))  # before any weight is read
    left_out = min(args.left_out, len(stories)) if has_judge(args, is_of_stage(folder)) else 0
    cost = estimate(checkpoint, recipe.steps, len(stories), len(stories[0]), left_out, CHECKED, dtype)
    console.say(
        f"{folder.name}: {cost.sentence((args.tflops or TFLOPS.get(device.type, TFLOPS['cpu'])) * 1e12)}"
    )
    if args.vital == "outliers" and 0 < left_out < (least := least_prompts(checkpoint.config.layers)):
        console.say(
            f"By {left_out} videos no layer can be told from chance as vital: those whose loss costs most "
            f"will lend. {least} would do: --groups {least} --left-out {least}."
        )
    if args.vae_tiling:
        checkpoint.check_tiling()
    if args.plan:
        return 0
    preset, out = preset_file(args, folder), args.out or Path("calibrations") / folder.name
    check_writable(out, "--out", folder=True)
    with console.stage("load"):
        truth, judge = find_truth(args, is_of_stage(folder), device, console.say)
        studio = Studio.open(checkpoint, recipe, device, dtype, tiling=args.vae_tiling)
        analysis = begin(studio, truth, judge, stories, args.seed, out, folder, checkpoint.format.fps)
    console.say(f"held against {truth.about}")
    rules = Rules(
        masks=args.masks,
        ratio=args.ratio,
        most=args.most_layers,
        matches=args.match_rule,
        match_count=args.match_layers,
        vital=args.vital,
        vital_count=args.vital_layers,
    )
    found = calibrate(analysis, console, rules, left_out)
    with console.stage("pictures"):
        page = write_record(analysis, found, preset)
    for name, selection in found.selections.items():
        console.say(f"{name} {selection.sentence}")
    console.say(console.summary())
    console.say(f"Look at {page}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for numbers that nothing can be found by."""
    for name, least in LEAST.items():
        if (given := getattr(args, name)) is not None and given < least:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} {given} is too few for a calibration. Raise it to {least} or more.")
    if args.tflops is not None and not 0 < args.tflops < math.inf:
        raise UsageError(
            f"--tflops {args.tflops:g} does no work. Give what the device makes: a number above 0."
        )
    if not 0 < args.ratio <= 1:
        raise UsageError(f"--ratio {args.ratio:g} is no share of the best IoU. Give one above 0, up to 1.")
    if args.left_out < 1 and args.vital != "all":
        raise UsageError(
            f"--left-out {args.left_out} makes no video without a layer, and by those the vital layers are "
            "found. Raise it to 1 or more, or let all layers lend: --vital all."
        )


def preset_file(args: argparse.Namespace, folder: Path) -> Path:
    """Where to write the recipe; UsageError if that cannot be, or would replace what nobody named."""
    preset: Path = args.preset or folder / "preset.json"
    if args.preset is None and preset.exists():
        raise UsageError(
            f"{folder.name} has a preset.json already, beside its weights: {preset}. "
            "Name where to write the new one, or that very file to replace it: --preset FILE."
        )
    check_writable(preset, "--preset")
    return preset


def begin(
    studio: Studio,
    truth: Truth,
    judge: Judge | None,
    stories: Sequence[Sequence[Parts]],
    seed: int,
    out: Path,
    model: Path,
    fps: int,
) -> Analysis:
    """The analysis in `out`, gone on with if it is of the same videos; UsageError if it is of others."""
    recipe = studio.recipe
    settings = {
        "model": model.name,
        "weights": fingerprint(studio.parts),
        "dtypes": sorted({str(each.dtype) for each in studio.parts.parameters()}),
        "seed": seed,
        "videos": {name: getattr(recipe, name) for name in WATCHED},
        "truth": truth.about,
        "judge": judge.about if judge else "nobody",
        "stories": [[parts.prompt(recipe.character_first) for parts in story] for story in stories],
    }
    out.mkdir(parents=True, exist_ok=True)
    fix = f"Choose another --out, or delete the whole folder {out}: all in it was made with those settings."
    ledger = Ledger(out / "without.jsonl", settings, fix)
    return Analysis(studio, truth, judge, stories, seed, out, ledger, fps)


def find_groups(args: argparse.Namespace, folder: Path) -> list[list[Parts]]:
    """The videos of every group, from a file or, for a model trained on the stage, invented."""
    if args.stories:
        groups = [story.videos for story in read_stories(args.stories)][: args.groups]
        for number, videos in enumerate(groups, start=1):
            if len(videos) < 2:
                raise StoryError(
                    f"Group {number} has a single video, and matches need two. Write a second line for it.",
                    args.stories,
                )
        return groups
    if not is_of_stage(folder):
        raise UsageError(
            f"No stories were given for {folder.name}. Name a file of them, background#character#action "
            "lines: --stories."
        )
    rng = random.Random(f"calibrate {args.seed}")
    invented = (sample_group(rng, args.prompts, held_out=False) for _ in range(args.groups))
    return [[caption(clip) for clip in group] for group in invented]
