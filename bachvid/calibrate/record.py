"""What a calibration leaves behind: the preset, the choice with its numbers, figures, and a page."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers

from bachvid import __version__
from bachvid.calibrate.analysis import Analysis
from bachvid.calibrate.gallery import make_gallery
from bachvid.calibrate.page import write_page
from bachvid.calibrate.plots import draw
from bachvid.calibrate.procedure import Found
from bachvid.errors import UsageError
from bachvid.pictures.files import write_image, write_json


def write_record(analysis: Analysis, found: Found, preset: Path) -> Path:
    """Writes the preset and everything behind it; the page that shows it all.

    Plots are drawn if matplotlib is there; without it the page has tables. All of it is in the analysis'
    folder, a copy of the preset too, before `preset` is written, which may lie where nobody can write.
    """
    folder = analysis.folder
    for name, figure in found.figures.items():
        write_json(folder / "figures" / f"{name}.json", figure)
    write_json(folder / "selection.json", {name: each.to_dict() for name, each in found.selections.items()})
    write_json(folder / "run.json", about(analysis))
    write_json(folder / "preset.json", found.recipe.to_dict())
    for name, picture in make_gallery(analysis, found).items():
        write_image(folder / "figures" / f"{name}.png", picture)
    with suppress(UsageError):  # no matplotlib
        draw(folder)
    page = write_page(folder)
    write_json(preset, found.recipe.to_dict())
    return page


def about(analysis: Analysis) -> dict[str, Any]:
    """What was analysed, and with what."""
    grid, schedule = analysis.studio.grid(), analysis.studio.sampler.schedule
    return {
        **analysis.ledger.settings,
        "grid": list(grid),
        "layers": len(analysis.studio.model.blocks),
        "timesteps": [float(t) for t in schedule.timesteps],
        "device": str(analysis.device),
        "versions": {
            "bachvid": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
