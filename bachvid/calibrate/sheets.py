"""Figures 6, 7 and 8 of the paper for any checkpoint: what single layers see, and what they are there for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bachvid.pictures.frames import Frames
from bachvid.pictures.overlays import over_pixels, show_mask, show_matches
from bachvid.pictures.sheets import Line, sheet

HEIGHT = 144  # of a cell


def mask_grid(
    frames: Frames,
    truth: Tensor,
    masks_of: Mapping[str, Tensor],
    steps: Sequence[int],
    frame: int | None = None,
) -> Frames:
    """Figure 6: the foreground of one frame by the truth, then by each row of `masks_of`, at these steps.

    Frames (F, H, W, 3); `truth` (T, h, w) bool in tokens or (F, H, W) in pixels. A row's name, such as
    "layer 1" or "all layers", leads to its masks (len(steps), T, h, w). `frame` is the middle one by default.
    """
    n = len(frames) // 2 if frame is None else frame

    def shown(mask: Tensor) -> Frames:
        t = latent_frame(len(mask), len(frames), n)
        return show_mask(frames[n : n + 1], mask[t : t + 1])[0]

    rows = [Line("truth", [shown(truth)] * len(steps))]
    rows += [Line(name, [shown(mask) for mask in masks]) for name, masks in masks_of.items()]
    return sheet(rows, headings(steps), HEIGHT)


def match_grid(
    identity: Frames,
    frames: Frames,
    identity_mask: Tensor,
    mask: Tensor,
    partners_of: Mapping[str, Tensor],
    steps: Sequence[int],
    truth: Tensor | None = None,
    frame: int | None = None,
) -> Frames:
    """Figure 7: one frame of the identity, then of the frame video as each row of `partners_of` matches it.

    Matched places wear one colour (see `show_matches`). Videos (F, H, W, 3), masks (T, h, w) bool. A row's
    name leads to its partners (len(steps), T h w), indices of the identity's tokens; `truth` (T h w, T) is
    what `Truth.partners` knows. `frame` is the middle one by default.
    """
    n = len(frames) // 2 if frame is None else frame
    t = latent_frame(len(mask), len(frames), n)
    own = torch.arange(mask.numel()).reshape(len(mask), -1)  # T hw, every token itself

    def shown(video: Frames, where: Tensor, partner: Tensor) -> Frames:
        """The frame with the tokens in `where` (hw,) painted by their partners (hw,)."""
        painted = where.reshape(1, *mask.shape[1:])
        return show_matches(identity[:1], video[n : n + 1], identity_mask, painted, partner)[1][0]

    here = mask[t].flatten().cpu()
    rows = [Line("identity", [shown(identity, identity_mask[t], own[t])] * len(steps))]
    if truth is not None:
        true = truth[own[t], t].cpu()  # hw
        rows.append(Line("truth", [shown(frames, here & (true >= 0), true.clamp(min=0))] * len(steps)))
    for name, partners in partners_of.items():
        rows.append(Line(name, [shown(frames, here, partner[own[t]]) for partner in partners]))
    return sheet(rows, headings(steps), HEIGHT)


def skip_sheet(
    full: Frames, without: Mapping[int, Frames], vital: Collection[int] = (), moments: int = 4
) -> Frames:
    """Figure 8: a video Z and what becomes of it without one layer, Z^-l, a row each, at equal distances.

    All videos have the shape (F, H, W, 3). The layers in `vital` are called so.
    """
    picks = sorted({round(n) for n in np.linspace(0, len(full) - 1, moments)})
    rows = [Line("whole model", [full[n] for n in picks])]
    for layer, frames in without.items():
        label = f"without layer {layer}" + ("\nvital" if layer in vital else "")
        rows.append(Line(label, [frames[n] for n in picks]))
    return sheet(rows, [f"frame {n}" for n in picks], HEIGHT)


def latent_frame(count: int, frames: int, frame: int) -> int:
    """Which of `count` latent frames covers this one of the frames, as all overlays have it."""
    pixels = np.empty((frames, 1, 1, 3), np.uint8)
    return int(over_pixels(np.arange(count)[:, None, None], pixels)[frame, 0, 0])


def headings(steps: Sequence[int]) -> list[str]:
    """What stands above the columns."""
    return [f"step {step}" for step in steps]
