"""The figures as a table for people."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bachvid.evaluate.figures import FIGURES, Figure, Interval

HEAD = ("figure", "mean", "95 % interval", "bar", "")
SIGN = {"higher": ">=", "lower": "<="}


def table(found: Mapping[str, Interval], family: str) -> str:
    """Every figure with its interval, its bar, and whether the interval's worse end clears it."""
    rows = [HEAD, *(row(figure, found[figure.name], family) for figure in FIGURES)]
    widths = [max(len(cells[n]) for cells in rows) for n in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def row(figure: Figure, found: Interval, family: str) -> tuple[str, ...]:
    """A figure's line, in cells."""
    interval = f"{found.low:.3f} .. {found.high:.3f}"
    limit = figure.bar(family)
    bar = f"{SIGN[figure.better]} {limit:g}" if math.isfinite(limit) else "none"
    return figure.name, f"{found.mean:.3f}", interval, bar, verdict(figure, found, family)


def verdict(figure: Figure, found: Interval, family: str) -> str:
    """Whether a figure is where it should be, or how much it lacks."""
    missing = figure.missing(found, family)
    if missing != missing:
        return "not measured"
    if missing == -math.inf:
        return ""
    return "reached" if missing <= 0 else f"missed by {missing:.3g}"
