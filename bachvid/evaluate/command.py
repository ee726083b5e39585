"""`bachvid evaluate`: how far a model and the method come on the stage, where truth is exact.

Results are kept group by group beside the output, so that an evaluation which was stopped goes on, and
several processes can share one: `--shard 1/2` and `--shard 2/2` with the same --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bachvid.errors import UsageError, check_writable
from bachvid.evaluate.ledger import Ledger
from bachvid.evaluate.plans import PAPER_STEPS, PLANS, Plan, Ranking, Subject
from bachvid.evaluate.report import report
from bachvid.evaluate.runs import Run
from bachvid.evaluate.scene import measure_group
from bachvid.evaluate.studio import Studio, is_of_stage, timesteps_of
from bachvid.method.identity import fingerprint
from bachvid.method.recipe import own_recipe
from bachvid.models.checkpoint import Checkpoint, open_checkpoint
from bachvid.stage.world import ACTIONS
from bachvid.story import find_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of an evaluation."""
    flag = parser.add_argument
    flag("--stage", action="store_true", required=True, help="on the stage world, by its exact readers")
    flag("--what", choices=tuple(PLANS), default="bars", help="which runs are compared: bars")
    flag("--model", default="tiny-cogvideox", metavar="NAME|FOLDER")
    flag("--calibration", type=Path, metavar="FOLDER", help="whose ranking `layers` and `grid` go by")
    flag("--groups", type=int, metavar="N", help="groups of videos: 24 for bars, otherwise 100")
    flag("--prompts", type=int, metavar="N", help="videos in a group, the identity included: 3 or 5")
    flag("--seed", type=int, default=0, help="of the groups and their noise: 0")
    flag("--steps", type=int, metavar="N", help="denoising steps; the preset's")
    flag(
        "--shard",
        type=shard,
        default=(1, 1),
        metavar="I/N",
        help="measure only every N-th group, from the I-th",
    )
    flag(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.json",
        help="results; FILE.md for people, groups stand in FILE.groups.jsonl",
    )


def main(args: argparse.Namespace) -> int:
    """Measure the groups that are missing, then print the tables and write them."""
    plan = PLANS[args.what]
    check(args, plan)
    groups, prompts = args.groups or plan.groups, args.prompts or plan.prompts
    folder = stage_model(args.model)
    checkpoint = open_checkpoint(folder)
    recipe = own_recipe(folder, checkpoint.family, checkpoint.config.layers)
    recipe = recipe.at(timesteps_of(checkpoint, args.steps or recipe.steps))
    studio = Studio.open(checkpoint, recipe, "cuda" if torch.cuda.is_available() else "cpu")
    subject = subject_of(checkpoint, studio, args.calibration if plan.ranked else None)
    settings = {
        "model": folder.name,
        "family": checkpoint.family,
        "weights": fingerprint(studio.parts),
        "seed": args.seed,
        "prompts": prompts,
        "recipe": recipe.to_dict(),
        "what": args.what,
        "ranking": asdict(subject.ranking) if subject.ranking else None,
    }
    settings = json.loads(json.dumps(settings))  # as it will be read back, with lists
    ledger, runs = Ledger(args.out.with_suffix(".groups.jsonl"), settings), plan.runs(subject)
    measure_missing(studio, runs, ledger, args.seed, range(groups), prompts, args.shard)
    done = ledger.done()
    if missing := [n for n in range(groups) if str(n) not in done]:
        print(f"{len(missing)} of {groups} groups are still to be measured, by the other shards.")
        return 0
    measured = [done[str(n)] for n in range(groups)]
    report(plan, runs, measured, settings, args.out)
    return 0


def check(args: argparse.Namespace, plan: Plan) -> None:
    """Raise UsageError for flags that do not go together."""
    enough = (args.groups is None or args.groups >= 1) and (args.prompts is None or args.prompts >= 2)
    if args.prompts is not None and args.prompts > len(ACTIONS):
        raise UsageError(f"--prompts {args.prompts} is too many: there are {len(ACTIONS)} actions. Lower it.")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} does not fit: 0 or more. Use 7.")
    if args.steps is not None and not 1 <= args.steps <= 1000:
        raise UsageError(f"--steps {args.steps} does not fit: 1 to 1000. Leave it out for the preset's.")
    if not enough:
        raise UsageError(
            "An evaluation needs at least one group of two prompts. Raise --groups or --prompts."
        )
    if args.out.suffix != ".json":
        raise UsageError(f"Results are JSON, which {args.out.name} does not end in. Name a file FILE.json.")
    check_writable(args.out, "--out")
    if plan.ranked and args.calibration is None:
        raise UsageError(
            f"--what {args.what} goes by a ranking of layers. Name the folder of one: --calibration FOLDER."
        )
    if args.calibration is not None and not plan.ranked:
        raise UsageError(f"--what {args.what} needs no ranking of layers. Leave out --calibration.")


def stage_model(name: str) -> Path:
    """The folder of a model that knows the stage; UsageError for any other, whose videos nobody can read."""
    folder = find_model(name)
    if not is_of_stage(folder):
        raise UsageError(
            f"{folder.name} was not trained on the stage, whose readers measure here: there is no "
            f"{folder / 'training.json'}. Name a model that was, such as --model tiny-cogvideox."
        )
    return folder


def subject_of(checkpoint: Checkpoint, studio: Studio, calibration: Path | None) -> Subject:
    """What plans need to know of a model."""
    layers = checkpoint.config.layers
    return Subject(
        recipe=studio.recipe,
        layers=layers,
        timesteps=studio.sampler.schedule.timesteps,
        paper_timesteps=timesteps_of(checkpoint, PAPER_STEPS),
        ranking=Ranking.read(calibration, layers) if calibration else None,
    )


def shard(text: str) -> tuple[int, int]:
    """The numbers in "I/N"; argparse tells of what this rejects."""
    index, count = (int(number) for number in text.split("/"))
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 1/2")
    return index, count


def measure_missing(
    studio: Studio,
    runs: Sequence[Run],
    ledger: Ledger,
    seed: int,
    groups: Sequence[int],
    prompts: int,
    shard: tuple[int, int],
) -> None:
    """Measure this shard's groups that the ledger does not hold, and write each down at once."""
    index, count = shard
    done, makes = ledger.done(), {run.name: run.make for run in runs}
    for number in groups[index - 1 :: count]:
        if str(number) not in done:
            started = time.perf_counter()
            ledger.add(str(number), measure_group(studio, makes, seed, number, prompts))
            seconds = time.perf_counter() - started
            print(f"group {number + 1} of {len(groups)}: {seconds:.1f} s", file=sys.stderr, flush=True)
