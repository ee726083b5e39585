"""`bachvid stage train`: trains a shipped model on the stage world, part by part, and writes its weights.

VAE and text encoder come first, in any order; the denoiser learns upon both. A run that was killed goes on
from its work folder, and so does a run that has ended, given a larger budget; `--begin-with weights/MODEL`
makes such a folder of a model that is shipped.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bachvid.errors import check_writable
from bachvid.stage.arithmetic import EXACT, Arithmetic
from bachvid.stage.export import export, load_frozen, the_tokenizer
from bachvid.stage.recipes import RECIPES, Recipe
from bachvid.stage.restore import restore
from bachvid.stage.train_dit import DiTTask
from bachvid.stage.train_text import TextTask
from bachvid.stage.train_vae import SPREAD, VAETask
from bachvid.stage.training import Budget, Task, Team, Work, train

PARTS = (VAETask.name, TextTask.name, DiTTask.name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("--model", choices=sorted(RECIPES), default="tiny-cogvideox")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of checkpoints, encoded clips and the log"
    )
    parser.add_argument(
        "--begin-with", type=Path, metavar="FOLDER", help="a trained model, for parts not yet in --work"
    )
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument(
        "--minutes", type=float, help="training time of each part in all, earlier runs counted in"
    )
    parser.add_argument(
        "--steps", type=int, help="steps in place of minutes: two such runs give equal weights"
    )
    parser.add_argument(
        "--more",
        type=float,
        metavar="MINUTES",
        help="so many minutes more, the rates falling to nothing: for weights that are trained",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--processes", type=int, help="that train together (default: one per CPU core, one on a GPU)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the denoiser: minutes first, then a third faster"
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="multiply matrices in bfloat16, for processors that can"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the weights (default: weights/MODEL, if none are there)"
    )


def main(args: argparse.Namespace) -> int:
    """Train what `args` names, then write the weights as far as all parts have some; 0 when done."""
    if sum(end is not None for end in (args.minutes, args.steps, args.more)) != 1:
        raise ValueError("a training needs one end: give --minutes, --steps or --more")
    for flag in ("minutes", "steps", "more"):
        if (end := getattr(args, flag)) is not None and not 0 < end < math.inf:
            raise ValueError(f"--{flag} {end:g} is no end of a training: give a number above 0")
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    size = args.processes or (1 if device == "cuda" else cores())
    if device == "cuda" and size > 1:
        raise ValueError("one process trains on one GPU; leave --processes out")
    out = args.out or Path("weights") / args.model
    if args.out is None and (out / "model_index.json").exists():
        raise ValueError(f"{out} holds a model: name where to write the new one, or that very folder: --out")
    check_writable(out, "--out", folder=True)
    check_writable(args.work, "--work", folder=True)
    recipe, work = RECIPES[args.model], Work(args.work)
    if args.begin_with is not None:
        restore(
            args.begin_with,
            work,
            lambda part: make_task(part, recipe, work, args.seed, Team(), torch.device("cpu")),
        )
    with tempfile.TemporaryDirectory() as meeting:
        team = (args, device, size, f"file://{meeting}/point")
        others = mp.spawn(run_others, team, nprocs=size - 1, join=False) if size > 1 else None
        run(*team, rank=0)
        if others is not None:
            others.join()
    parts = export(recipe, work, args.seed, out)
    print(f"{', '.join(parts)} written to {out}")
    return 0


def cores() -> int:
    """How many this process may use; of the whole machine where it cannot say, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_others(index: int, args: argparse.Namespace, device: str, size: int, meeting: str) -> None:
    """What the processes beside the leading one do; in every step they wait for it, so they end with it."""
    run(args, device, size, meeting, rank=index + 1)


def run(args: argparse.Namespace, device: str, size: int, meeting: str, rank: int) -> None:
    """Train the parts that `args` names, in their order, as one of `size` processes."""
    torch.set_flush_denormal(True)  # numbers near zero must not slow a CPU down a hundredfold
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU
    if size > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    team = Team(rank, size)
    recipe = RECIPES[args.model] if device == "cpu" else RECIPES[args.model].for_gpu()
    work, budget = Work(args.work), Budget(args.minutes, args.steps, args.more)
    arithmetic = Arithmetic(args.compile, args.bfloat16)
    for part in PARTS if args.part == "all" else (args.part,):
        task = make_task(part, recipe, work, args.seed, team, torch.device(device), arithmetic)
        train(task, budget, work, team)
    if size > 1:
        dist.destroy_process_group()


def make_task(
    part: str,
    recipe: Recipe,
    work: Work,
    seed: int,
    team: Team,
    device: torch.device,
    arithmetic: Arithmetic = EXACT,
) -> Task:
    """The training of one part; ValueError where a denoiser's foundations are not trained yet."""
    if part == VAETask.name:
        return VAETask(recipe.vae, seed, team, device, settled_spread(work))
    if part == TextTask.name:
        return TextTask(recipe.text, the_tokenizer(recipe, work, seed), seed, team, device)
    frozen = load_frozen(recipe, work, seed, device)
    return DiTTask(recipe.dit, frozen, work.folder / "pools", seed, team, device, arithmetic)


def settled_spread(work: Work) -> dict[str, Any] | None:
    """What was measured of the latents that a denoiser has begun to learn; None before there are both."""
    saved = work.load(VAETask.name) if work.load(DiTTask.name) else None
    return saved and {name: saved["state"]["inspections"][-1][name] for name in SPREAD}
