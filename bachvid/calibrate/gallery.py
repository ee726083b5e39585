"""The pictures of an analysis: what single layers see, and what is lost without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
from torch import Tensor

from bachvid.calibrate.analysis import Analysis, ObservedGroup
from bachvid.calibrate.procedure import Found
from bachvid.calibrate.profile import same_place_scores
from bachvid.calibrate.select import Layers, Selection
from bachvid.calibrate.sheets import mask_grid, match_grid, skip_sheet
from bachvid.method.mask import Split, foreground
from bachvid.pictures.frames import Frames

COLUMNS = 5  # steps shown


def make_gallery(analysis: Analysis, found: Found) -> Mapping[str, Frames]:
    """Figures 6, 7 and 8, by the names of their files, as far as there is something to show.

    Masks and matches are those of the group whose character moved most.
    """
    number, group = most_moved(analysis)
    identity, frames = analysis.video(number, 0), analysis.video(number, 1)
    grid, split = tuple(analysis.studio.grid()), analysis.studio.recipe.mask_split
    there, here = (mask.view(grid) for mask in group.masks[:2])
    mask, match, kv = (found.selections[name] for name in ("mask", "match", "kv"))
    pictures = {
        "mask_grid": mask_grid(frames, here, mask_rows(group, mask, grid, split), steps_of(group, mask)),
    }
    if analysis.judge is not None:
        without = analysis.videos_without(0)
        pictures["skip_sheet"] = skip_sheet(analysis.video(0, 0), without, kv.layers)
    if there.any() and here.any():
        rows = match_rows(group, match, analysis.fused_partners(number, match.layers))
        steps, truth = steps_of(group, match), group.partners[0]
        pictures["match_grid"] = match_grid(identity, frames, there, here, rows, steps, truth)
    return pictures


def most_moved(analysis: Analysis) -> tuple[int, ObservedGroup]:
    """The group in whose first pair the same places are farthest apart, and its number."""
    grid = analysis.studio.grid()
    moved = [same_place_scores(group.partners[:1], grid).mse[0] for group in analysis.groups()]
    number = int(np.argmax(np.nan_to_num(moved)))
    return number, next(islice(analysis.groups(), number, None))


def mask_rows(
    group: ObservedGroup, selection: Selection, grid: Sequence[int], split: Split
) -> dict[str, Tensor]:
    """Masks (steps, T, h, w) of the frame video by some single layers, by all, and by the chosen ones."""
    scores = group.observed.scores[1, steps_of(group, selection)].float()  # S L 2 N
    rows = {f"layer {n}": scores[:, n - 1] for n in single_layers(selection, scores.shape[1])}
    rows["all layers"] = scores.sum(1)
    rows["chosen"] = scores[:, [n - 1 for n in selection.layers]].sum(1)
    return {name: foreground(row.movedim(1, 0), split).view(-1, *grid) for name, row in rows.items()}


def match_rows(group: ObservedGroup, selection: Selection, fused: Tensor) -> dict[str, Tensor]:
    """Partners (steps, N) of the first frame video by some single layers, and by the chosen (1, S, N)."""
    steps, partner = steps_of(group, selection), group.observed.partner[0]
    layers = single_layers(selection, partner.shape[1])
    rows = {f"layer {n}": partner[steps, n - 1].long() for n in layers}
    return {**rows, "chosen": fused[0, steps].long()}


def steps_of(group: ObservedGroup, selection: Selection) -> list[int]:
    """Steps at equal distances, tau among them."""
    last = group.observed.scores.shape[1] - 1
    even = {round(n) for n in np.linspace(0, last, COLUMNS - 1)}
    return sorted(even | {selection.tau or 0})


def single_layers(selection: Selection, layers: int) -> Layers:
    """The first layer, the last, and between them one that was chosen."""
    middle = selection.layers[len(selection.layers) // 2]
    return tuple(sorted({1, middle, layers}))
