"""Many pictures or videos on one page, in labelled rows and columns: contact sheets, comparisons, strips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bachvid.pictures.frames import Frames, fit_height
from bachvid.pictures.lettering import draw_text, shorten, text_width

PAPER, INK, FAINT = (255, 255, 255), (32, 33, 42), (118, 120, 134)
MARGIN, GAP = 16, 8


class Line(NamedTuple):
    """One row of a sheet: a label, its lines separated by newlines, and pictures or videos of equal size."""

    label: str
    cells: Sequence[Frames]


def sheet(rows: Sequence[Line], columns: Sequence[str] = (), height: int = 192) -> Frames:
    """A page of rows, one picture (H, W, 3), or frames (F, H, W, 3) where the cells are videos.

    Cells are made `height` high and must have one shape. The first line of a row's label is set in ink, the
    others fainter; `columns` are headings. Written to an .mp4 or a moving .png, videos play in step.
    """
    shapes = {cell.shape for row in rows for cell in row.cells}
    if len(shapes) != 1:
        raise ValueError(f"A sheet needs cells of one shape, but it was given {sorted(shapes) or 'none'}.")
    cells = [[fit_height(cell, height) for cell in row.cells] for row in rows]
    width = next(cell.shape[-2] for row in cells for cell in row)

    size = max(height / 9, 14.0)  # of a line of text
    labels = [row.label.split("\n") for row in rows]
    indent = max(text_width(text, size) for label in labels for text in label)
    left = MARGIN + (indent + 2 * GAP if any(row.label for row in rows) else 0)
    top = MARGIN + (round(size) + GAP if columns else 0)
    xs = [left + n * (width + GAP) for n in range(max(len(row) for row in cells))]
    ys = [top + n * (height + GAP) for n in range(len(cells))]

    page = np.full((ys[-1] + height + MARGIN, xs[-1] + width + MARGIN, 3), PAPER, np.uint8)
    for x, heading in zip(xs, columns, strict=False):
        draw_text(page, shorten(heading, size, width), x, MARGIN, size, FAINT)
    for y, label in zip(ys, labels, strict=True):
        for n, text in enumerate(label):
            above = (n - len(label) / 2) * size * 1.15
            draw_text(page, text, MARGIN, round(y + height / 2 + above), size, FAINT if n else INK)

    page = np.broadcast_to(page, (*shapes.pop()[:-3], *page.shape)).copy()
    for y, row in zip(ys, cells, strict=True):
        for x, cell in zip(xs, row, strict=False):
            page[..., y : y + height, x : x + width, :] = cell
    return page


def contact_sheet(
    videos: Sequence[tuple[str, Frames]], fps: float, columns: int = 5, height: int = 192
) -> Frames:
    """Each video's frames at equal distances, first and last included, in a row under their times."""
    count = min(len(frames) for _, frames in videos)
    picks = sorted({round(n) for n in np.linspace(0, count - 1, columns)})
    rows = [Line(label, [frames[n] for n in picks]) for label, frames in videos]
    return sheet(rows, [f"{n / fps:.2g} s" for n in picks], height)
