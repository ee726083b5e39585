"""`bachvid evaluate`: how far a model and the method come on the stage, where truth is exact.

Results are kept group by group beside the output, so that an evaluation which was stopped goes on, and
several processes can share one: `--shard 1/2` and `--shard 2/2` with the same --out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bachvid.errors import UsageError
from bachvid.evaluate.figures import FIGURES, Interval, Measured, everything_of, figures_of
from bachvid.evaluate.ledger import Ledger
from bachvid.evaluate.stage import measure_group
from bachvid.evaluate.studio import Studio
from bachvid.evaluate.table import SIGN, table
from bachvid.method.identity import fingerprint
from bachvid.method.recipe import own_recipe
from bachvid.models.checkpoint import open_checkpoint
from bachvid.story import find_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of an evaluation."""
    flag = parser.add_argument
    flag("--stage", action="store_true", required=True, help="on the stage world, by its exact readers")
    flag("--model", default="tiny-cogvideox", metavar="NAME|FOLDER")
    flag("--groups", type=int, default=24, metavar="N", help="groups of videos: 24")
    flag("--prompts", type=int, default=3, metavar="N", help="videos in a group, the identity included: 3")
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
        help="figures; groups stand in FILE.groups.jsonl",
    )


def main(args: argparse.Namespace) -> int:
    """Measure the groups that are missing, then print the table and write the figures."""
    if args.groups < 1 or args.prompts < 2:
        raise UsageError(
            "An evaluation needs at least one group of two prompts. Raise --groups or --prompts."
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    folder = find_model(args.model)
    checkpoint = open_checkpoint(folder)
    recipe = own_recipe(folder, checkpoint.family, checkpoint.config.layers)
    recipe = recipe if args.steps is None else recipe.at(args.steps)
    studio = Studio.open(checkpoint, recipe, "cuda" if torch.cuda.is_available() else "cpu")
    settings = {
        "model": folder.name,
        "family": checkpoint.family,
        "weights": fingerprint(studio.parts),
        "seed": args.seed,
        "prompts": args.prompts,
        "recipe": json.loads(json.dumps(recipe.to_dict())),  # as it will be read back, with lists
    }
    ledger = Ledger(args.out.with_suffix(".groups.jsonl"), settings)
    measure_missing(studio, ledger, args)
    done = ledger.done()
    if missing := [n for n in range(args.groups) if str(n) not in done]:
        print(f"{len(missing)} of {args.groups} groups are still to be measured, by the other shards.")
        return 0
    report([done[str(n)] for n in range(args.groups)], settings, args.out)
    return 0


def shard(text: str) -> tuple[int, int]:
    """The numbers in "I/N"; argparse tells of what this rejects."""
    index, count = (int(number) for number in text.split("/"))
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 1/2")
    return index, count


def measure_missing(studio: Studio, ledger: Ledger, args: argparse.Namespace) -> None:
    """Measure this shard's groups that the ledger does not hold, and write each down at once."""
    index, count = args.shard
    done = ledger.done()
    for number in range(index - 1, args.groups, count):
        if str(number) not in done:
            started = time.perf_counter()
            ledger.add(str(number), measure_group(studio, args.seed, number, args.prompts))
            seconds = time.perf_counter() - started
            print(f"group {number + 1} of {args.groups}: {seconds:.1f} s", file=sys.stderr, flush=True)


def report(groups: Sequence[Measured], settings: Mapping[str, Any], out: Path) -> None:
    """Print the table, and write the figures and everything behind them."""
    seed, family = settings["seed"], settings["family"]
    figures = figures_of(groups, seed)
    print(f"{settings['model']}, {len(groups)} groups of {settings['prompts']}, seed {seed}")
    print(table(figures, family))
    values = {
        "model": settings["model"],
        "groups": len(groups),
        "seed": seed,
        "figures": {name: as_json(found) for name, found in figures.items()},
        "bars": {figure.name: [SIGN[figure.better], finite(figure.bar(family))] for figure in FIGURES},
        "settings": settings,
        "measured": {name: as_json(found) for name, found in everything_of(groups, seed).items()},
    }
    part = out.with_name(f".{out.name}.part")
    part.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(out)


def as_json(found: Interval) -> dict[str, float | None]:
    """An interval for JSON, which has no NaN: null instead."""
    return {name: finite(value) for name, value in found._asdict().items()}


def finite(value: float) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None
