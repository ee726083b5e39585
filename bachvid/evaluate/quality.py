"""How good masks and matches are, held against what the readers say of the finished videos."""

from __future__ import annotations

import torch
from torch import Tensor

from bachvid.evaluate.alone import Alone
from bachvid.evaluate.metrics import iou, match_errors, true_partners
from bachvid.method.match import Places
from bachvid.models.grid import Grid
from bachvid.stage.watch import auc


def mask_quality(mask: Tensor, scores: Tensor, video: Alone) -> dict[str, float]:
    """How a mask (N,) lies on the puppet of its video: `iou`, and `auc` of the scores (2, N) behind it."""
    background, character = scores.cpu()
    known = bool(video.mask.any())
    return {
        "iou": iou(mask.cpu(), video.mask),
        "auc": auc(character - background, video.mask) if known else float("nan"),
    }


def match_quality(partner: Tensor, frame: Alone, identity: Alone, grid: Grid) -> dict[str, float]:
    """How near the partners (N,) of a frame video are to the true ones, over tokens that show the puppet.

    `pck1` is the share within one token, `mse` the mean squared distance in tokens, and `mse_same_place` that
    of taking every token's own place for its partner.
    """
    truth = true_partners(frame.uv, identity.uv, grid)
    errors = match_errors(partner.cpu(), truth, grid)
    same_place = match_errors(torch.arange(grid.tokens), truth, grid)
    return {
        "pck1": (errors <= 1).double().mean().item(),
        "mse": errors.mean().item(),
        "mse_same_place": same_place.mean().item(),
    }


def borrowed(places: Places, frame: Alone, identity: Alone, grid: Grid) -> dict[str, float]:
    """What a frame video borrows, held against the truth of its twin without the method.

    `mask_iou` of the tokens that count as puppet; `pck1`, over the tokens that borrow foreground, the share
    whose partner is within one token of a true one, NaN where nothing is borrowed.
    """
    foreground = torch.zeros(grid.tokens, dtype=torch.bool)
    foreground[places.foreground.cpu()] = True
    matched, partner = places.matched.cpu(), torch.zeros(grid.tokens, dtype=torch.int64)
    partner[matched] = places.partners.cpu()
    truth = torch.full((grid.tokens, grid.frames), -1)
    truth[matched] = true_partners(frame.uv, identity.uv, grid)[matched]
    errors = match_errors(partner, truth, grid)
    return {"mask_iou": iou(foreground, frame.mask), "pck1": (errors <= 1).double().mean().item()}
