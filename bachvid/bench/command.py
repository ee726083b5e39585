"""`bachvid bench`: what the method costs at a model's true size, on random weights, so nothing is downloaded.

An identity and a frame video take a few steps in each of the three ways, in turns with a video made without
the method; what whole groups cost is worked out from that.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bachvid.bench.measure import measure, results
from bachvid.bench.rival import pipeline_of
from bachvid.bench.subject import Subject, known_model, shortened
from bachvid.errors import UsageError, check_writable
from bachvid.evaluate.table import Rows, aligned
from bachvid.method.recipe import own_recipe
from bachvid.models import cogvideox, wan
from bachvid.pictures.files import write_json
from bachvid.settings import DTYPES, best_device, best_dtype, read_size, usable_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a benchmark."""
    flag = parser.add_argument
    names = ", ".join([*cogvideox.CHECKPOINTS, *wan.CHECKPOINTS])
    flag("model", metavar="MODEL", help=f"one of {names}; or a shipped model, or a checkpoint's folder")
    flag("--size", metavar="WxH", help="of the videos, in pixels; the model's own")
    flag("--frames", type=int, metavar="N", help="in a video; the model's own")
    flag("--layers", type=int, metavar="N", help="leave the model only so many, where all do not fit")
    flag("--steps", type=int, default=6, metavar="N", help="to take in each way, the first to warm up: 6")
    flag("--foreground", type=float, default=0.28, metavar="SHARE", help="of every frame: 0.28")
    flag("--dtype", choices=DTYPES, help="of the denoiser")
    flag("--device", help="cpu, cuda, cuda:1 or mps (default: the fastest there is)")
    flag("--beside-diffusers", action="store_true", help="also time diffusers' pipeline of the same weights")
    flag("--out", type=Path, metavar="FILE.json", help="where to write the results")


def main(args: argparse.Namespace) -> int:
    """Measure, print the tables, and write them."""
    if args.steps < 3:
        raise UsageError(f"--steps {args.steps} leaves nothing to take a median of. Use 3 or more.")
    if not 0 < args.foreground < 1:
        raise UsageError(f"--foreground {args.foreground:g} is no share of a frame. Use one like 0.28.")
    if args.out:
        check_writable(args.out, "--out")
    checkpoint = known_model(args.model)
    recipe = own_recipe(checkpoint.transformer_path.parent, checkpoint.family, checkpoint.config.layers)
    if args.layers is not None:
        checkpoint, recipe = shortened(checkpoint, recipe, args.layers)
    device = usable_device(args.device) or best_device()
    dtype = DTYPES.get(args.dtype) or best_dtype(device, checkpoint)
    shown = read_size(args.size), args.frames
    subject = Subject.build(checkpoint, recipe, *shown, args.steps, dtype, device)
    pipeline = pipeline_of(subject) if args.beside_diffusers else None
    values = {**about(subject, args), **results(measure(subject, args.foreground, pipeline), recipe)}
    print("\n\n".join(aligned(table) for table in tables(values)))
    if args.out:
        write_json(args.out, values)
    return 0


def about(subject: Subject, args: argparse.Namespace) -> dict[str, Any]:
    """What was measured, and where."""
    device, text = subject.device, subject.denoiser.negative
    return {
        "model": args.model,
        "layers": subject.checkpoint.config.layers,
        "size": list(subject.size),
        "frames": subject.frames,
        "tokens": subject.grid.tokens,
        "dtype": str(text.dtype).removeprefix("torch."),
        "foreground": args.foreground,
        "steps": args.steps,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
    }


def tables(values: Mapping[str, Any]) -> Iterator[Rows]:
    """The results for people: what a step takes, what a group would, and whether all ways end alike."""
    yield [
        ("", "median s", "fastest", "slowest", "peak GPU GB"),
        *(
            (
                name,
                *(f"{took[key]:.4f}" for key in ("median_s", "min_s", "max_s")),
                f"{took['peak_gpu_gb']:.2f}",
            )
            for name, took in values["took"].items()
        ),
    ]
    yield [
        ("videos in a group", "without, s", "with the method, s", "ratio"),
        *(
            (videos, f"{cost['vanilla_s']:.1f}", f"{cost['group_s']:.1f}", f"{cost['ratio']:.3f}")
            for videos, cost in values["groups"].items()
        ),
    ]
    yield [
        ("the same video", "largest difference, of its spread"),
        *((pair, f"{far:.2g}") for pair, far in values["differences"].items()),
    ]
