"""Truth where nobody else is asked: what a model's layers and its later steps agree in.

It is no truth but self-consistency, so scores by it are flattering: they tell layers apart, and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bachvid.calibrate.truth import Known, SeenGroup
from bachvid.method.mask import foreground
from bachvid.models.grid import Grid

AGREED = 0.5  # the share of layers and steps that must put a partner where most do, give or take a token


class Consensus:
    """Masks and partners of the second half of the walk, all layers together; no other model is needed."""

    about = "the model's own consensus (self-consistency)"

    def of(self, group: SeenGroup, grid: Grid) -> Known:
        late = group.observed.partner.shape[1] // 2
        masks = agreed_masks(group.observed.scores[:, late:])
        votes = group.observed.partner[:, late:].long().flatten(1, 2)  # V-1 votes N
        pairs = [
            agreed_partners(each, mask, masks[0], grid) for each, mask in zip(votes, masks[1:], strict=True)
        ]
        return Known(masks, torch.stack(pairs))


def agreed_masks(scores: Tensor) -> Tensor:
    """The masks (V, N) of scores (V, S, L, 2, N), where every layer of every step counts as much."""
    scores = scores.float()
    relative = scores / scores.mean(-1, keepdim=True)
    return foreground(relative.mean((1, 2)).movedim(1, 0), "otsu")


def agreed_partners(votes: Tensor, shown: Tensor, shown_there: Tensor, grid: Grid) -> Tensor:
    """The partner of each token in its own latent frame by votes (K, N), as (N, T) int64; -1 is unknown.

    It is the median place of all votes, and known where enough are near it and both masks show it.
    """
    places = grid.places()
    voted = places.short()[votes]  # K N 3, of which there may be a hundred million
    median = voted.median(dim=0).values  # N 3
    near = (voted - median).square().sum(-1) <= 1
    partner = (median.long() * torch.tensor([grid.height * grid.width, grid.width, 1])).sum(-1)  # N
    known = shown & shown_there[partner] & (near.float().mean(0) >= AGREED)
    frame = torch.arange(grid.frames) == places[:, :1]  # N T
    return torch.where(frame & known[:, None], partner[:, None], -1)
