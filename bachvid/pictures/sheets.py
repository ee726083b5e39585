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
    """A page of rows of cells `height` high: a picture (H, W, 3), or frames (F, H, W, 3) if its cells are videos.

    The first line of a row's label is set in ink, further lines fainter; `columns` are headings. All cells
    have one shape. As frames, written to an .mp4 or a moving .png, it compares videos playing in step.
    """
    shapes = {cell.shape for row in rows for cell in row.cells}
    if len(shapes) != 1:
        raise ValueError(f"A sheet needs cells of one shape, but it was given {sorted(shapes) or 'none'}.")
    type_size = max(height / 9, 14.0)
    cells = [[fit_height(cell, height) for cell in row.cells] for row in rows]
    width = cells[0][0].shape[-2]

    labels = [row.label.split("\n") for row in rows]
    indent = max(text_width(text, type_size) for label in labels for text in label)
    left = MARGIN + (indent + 2 * GAP if indent else 0)
    top = MARGIN + (round(type_size) + GAP if columns else 0)
    across = max(len(row) for row in cells)
    page = np.full(
        (
            top + len(rows) * (height + GAP) - GAP + MARGIN,
            left + across * (width + GAP) - GAP + MARGIN,
            3,
        ),
        PAPER,
        np.uint8,
    )
    for n, heading in enumerate(columns):
        text = shorten(heading, type_size, width)
        draw_text(page, text, left + n * (width + GAP), MARGIN, type_size, FAINT)
    for n, label in enumerate(labels):
        middle = top + n * (height + GAP) + height / 2
        for k, text in enumerate(label):
            y = round(middle + (k - len(label) / 2) * type_size * 1.15)
            draw_text(page, text, MARGIN, y, type_size, INK if k == 0 else FAINT)

    (*lead, _, _, _) = cells[0][0].shape
    page = np.broadcast_to(page, (*lead, *page.shape)).copy()
    for n, row in enumerate(cells):
        for k, cell in enumerate(row):
            y, x = top + n * (height + GAP), left + k * (width + GAP)
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
