"""What an evaluation leaves behind: tables on the screen, a file of JSON, and one of Markdown beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bachvid.evaluate.compare import CORRECTED, ByRun, Comparison, where_all_succeeded
from bachvid.evaluate.figures import ENDPOINT, Interval, Measured
from bachvid.evaluate.plans import Plan
from bachvid.evaluate.runs import Run
from bachvid.evaluate.table import SIGN, Rows, aligned, figure_rows, markdown
from bachvid.pictures.files import write_bytes, write_json

Cell = Callable[[Interval, "Column", bool], str]  # a value in words; whether it is a difference
Section = tuple[str, Rows]  # a title and a table


class Column(NamedTuple):
    """A measure and how it is shown."""

    measure: str
    head: str
    scale: float = 100  # shares are shown in %
    digits: int = 1


AGREEMENT = (
    Column("psnr_bg", "PSNR-BG dB", 1, 2),
    Column("cells", "cells %"),
    Column("psnr_fg", "PSNR-FG dB", 1, 2),
    Column("attributes", "attributes %"),
    Column("badge", "badge %"),
)
PRICE = (
    Column("action", "action %"),
    Column("stated", "stated %"),
    Column("off_palette", "off palette %", 100, 2),
    Column("smoothness", "smoothness %", 100, 2),
    Column("motion", "motion %", 100, 2),
    Column("jitter", "jitter %", 100, 2),
    Column("copied", "copied %"),
    Column("success", "success %"),
)
MAKING = (
    Column("mask_iou", "mask IoU", 1, 3),
    Column("pck1", "PCK@1", 1, 3),
    Column("seconds", "s a video", 1, 2),
    Column("pre_run_seconds", "of it pre-run", 1, 2),
    Column("cpu_gb", "CPU GB", 1, 2),
    Column("gpu_gb", "GPU GB", 1, 2),
    Column("cache_gb", "paper's cache GB", 1, 3),
)
NOTES = """\
Means over groups with 95 % bootstrap intervals; differences are paired, group by group. Agreement is over all
pairs of a group's videos. PSNR-BG is of what both show of the stage, PSNR-FG of the puppets in body
coordinates; cells are what is read alike where both show it, attributes and badge what is nearest to the same
thing, and beyond chance is what is left of that where unrelated groups count as none. Off palette: pixels in
no colour of the world. Smoothness: frames foretold by blending their neighbours; motion: the distance of
neighbouring frames; jitter: the second difference of the puppet's place, of the picture's height. Copied:
overlap of the puppets in two videos. Success: frame videos with a puppet in every frame, made without leaving
anything out. Mask IoU and PCK@1 are of what is borrowed. Seconds are of one frame video (pre-run, main run,
decoding; neither loading nor text), memory is the peak of the process and what the accelerator's allocator
reserved, and the cache is what the paper's way would keep.
"""


def report(
    plan: Plan, runs: Sequence[Run], groups: Sequence[Measured], settings: Mapping[str, Any], out: Path
) -> None:
    """Print the plan's figures with their bars and the runs beside each other, and write them."""
    seed, family, title = settings["seed"], settings["family"], title_of(groups, settings)
    found = Comparison.of(runs, groups, seed, plan.figures)
    common = where_all_succeeded(runs, groups)
    among = Comparison.of(runs, common, seed) if common else None
    print(title)
    for head, rows in sections(plan, found, among, family, briefly):
        print(f"\n{head}\n{aligned(rows)}")
    tables = [
        f"### {head}\n\n{markdown(rows)}\n" for head, rows in sections(plan, found, among, family, fully)
    ]
    about = [
        f"* {run.name}: {run.about}" + f" (held against {run.against})" * (run.name in found.differences)
        for run in runs
    ]
    text = [f"## {plan.title}\n", f"{title}\n", *tables, "### Runs\n", *about, "", NOTES]
    write(out, values_of(plan, runs, found, among, settings), "\n".join(text))


def values_of(
    plan: Plan,
    runs: Sequence[Run],
    found: Comparison,
    common: Comparison | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the tables show and are made of, for JSON."""
    family = settings["family"]
    return {
        **{name: settings[name] for name in ("what", "model", "prompts", "seed")},
        "groups": found.groups,
        "figures": as_json(found.figures),
        "bars": {figure.name: [SIGN[figure.better], finite(figure.bar(family))] for figure in plan.figures},
        "about": {run.name: run.about for run in runs},
        "against": {run.name: run.against for run in runs if run.name in found.differences},
        "runs": by_run(found.runs),
        "differences": by_run(found.differences),
        "beyond_chance": by_run(found.corrected),
        "endpoint": as_json(found.endpoint),
        "model_alone": by_run(found.model),
        "where_all_succeeded": {
            "groups": common.groups if common else 0,
            "runs": by_run(common.runs) if common else {},
        },
        "settings": settings,
    }


def sections(
    plan: Plan, found: Comparison, common: Comparison | None, family: str, cell: Cell
) -> Iterator[Section]:
    """The tables of a comparison, one after another."""
    if plan.figures:
        yield "What it should reach", figure_rows(found.figures, family, plan.figures)
    yield "What the videos of a group agree in", run_rows(found.runs, AGREEMENT, cell)
    yield "The same, paired difference", run_rows(found.differences, AGREEMENT, cell, signed=True)
    yield "What it must not cost", run_rows(found.runs, PRICE, cell)
    yield "The same, paired difference", run_rows(found.differences, PRICE, cell, signed=True)
    yield "Making", run_rows(found.runs, MAKING, cell)
    if found.corrected:
        columns = [Column(measure, f"{measure} %") for measure in CORRECTED]
        yield "Agreement beyond chance", run_rows(found.corrected, columns, cell)
        yield "Endpoint, fixed in advance", figure_rows(found.endpoint, family, ENDPOINT)
    if common and common.groups < found.groups:
        title = f"Where every run succeeded: {common.groups} of {found.groups} groups"
        yield title, run_rows(common.runs, AGREEMENT, cell)


def run_rows(found: ByRun, columns: Sequence[Column], cell: Cell, signed: bool = False) -> Rows:
    """One row for every run, one column for every measure."""
    nothing = Interval(math.nan, math.nan, math.nan)
    rows = [
        (name, *(cell(measured.get(column.measure, nothing), column, signed) for column in columns))
        for name, measured in found.items()
    ]
    return [("", *(column.head for column in columns)), *rows]


def briefly(found: Interval, column: Column, signed: bool) -> str:
    """A mean and half of its interval's width."""
    if not math.isfinite(found.mean):
        return "-"
    sign, digits = "+" if signed else "", column.digits
    half = (found.high - found.low) / 2 * column.scale
    return f"{found.mean * column.scale:{sign}.{digits}f} ±{half:.{digits}f}"


def fully(found: Interval, column: Column, signed: bool) -> str:
    """A mean and its interval."""
    if not math.isfinite(found.mean):
        return "-"
    sign = "+" if signed else ""
    mean, low, high = (f"{value * column.scale:{sign}.{column.digits}f}" for value in found)
    return f"{mean} ({low} .. {high})"


def title_of(groups: Sequence[Measured], settings: Mapping[str, Any]) -> str:
    """What was evaluated, by which recipe."""
    recipe = settings["recipe"]
    what = f"{settings['model']}, {len(groups)} groups of {settings['prompts']}, seed {settings['seed']}"
    taus = f"tau {recipe['tau_mask']} (mask) and {recipe['tau_match']} (match) of {recipe['steps']} steps"
    layers = (f"{kind} {' '.join(map(str, recipe[f'{kind}_layers']))}" for kind in ("mask", "match", "kv"))
    return f"{what}; {taus}; layers {', '.join(layers)}"


def write(out: Path, values: Mapping[str, Any], text: str) -> None:
    """Both files, each whole or not at all."""
    write_bytes(out.with_suffix(".md"), text.encode())
    write_json(out, values)


def by_run(found: ByRun) -> dict[str, dict[str, dict[str, float | None]]]:
    """Intervals by run and measure, for JSON."""
    return {run: as_json(measured) for run, measured in found.items()}


def as_json(found: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Intervals for JSON, which has no NaN: null instead."""
    return {
        name: {end: finite(value) for end, value in each._asdict().items()} for name, each in found.items()
    }


def finite(value: float) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None
