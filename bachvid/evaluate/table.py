"""Tables for people, as aligned text and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bachvid.evaluate.figures import FIGURES, Figure, Interval

HEAD = ("figure", "mean", "95 % interval", "bar", "")
SIGN = {"higher": ">=", "lower": "<="}

Rows = Sequence[Sequence[str]]  # the head first


def aligned(rows: Rows) -> str:
    """A table of text, a line under its head."""
    widths = _widths(rows)
    lines = ["  ".join(_padded(cells, widths)).rstrip() for cells in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown(rows: Rows) -> str:
    """The same table in Markdown."""
    widths = [max(3, width) for width in _widths(rows)]
    lines = [f"| {' | '.join(_padded(cells, widths))} |" for cells in rows]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)


def figure_rows(
    found: Mapping[str, Interval], family: str, figures: Sequence[Figure] = FIGURES
) -> list[tuple[str, ...]]:
    """Every figure with its interval, its bar, and whether the interval's worse end clears it."""
    return [HEAD, *(row(figure, found[figure.name], family) for figure in figures)]


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


def _widths(rows: Rows) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _padded(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
