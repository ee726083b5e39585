"""Which tokens show the character: foreground masks from attention to the prompt (Eq. 2-4)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bachvid.models.attention import attend_with_lse
from bachvid.models.grid import Grid

Keys = Literal["all", "text"]
Split = Literal["compare", "otsu"]


class Spans(NamedTuple):
    """Indices of the prompt's tokens that name the background and the character, int64."""

    background: Tensor
    character: Tensor

    def to(self, device: torch.device | str) -> Spans:
        """The same spans on another device."""
        return Spans(*(span.to(device) for span in self))


def span_scores(q: Tensor, k: Tensor, spans: Spans, tokens: int, over: Keys = "all") -> Tensor:
    """Mean attention of each video token to the background's and the character's words, (2, N) float32.

    q (1 H Lq D) and k (1 H Lk D) are the encoded ones that attention uses; the video's queries are the last
    `tokens`, text keys come first. The softmax runs `over` all keys or the text's, its text columns come from
    the log-sum-exp, and heads are averaged: Eq. 2 and the means inside Eq. 3, without a matrix of N x N.
    """
    lead = q.shape[2] - tokens
    q = q[:, :, lead:]
    seen = k[:, :, :lead] if over == "text" and lead else k  # where only the video asks, all keys are text
    _, lse = attend_with_lse(q, seen, seen)  # 1 H N
    scores = []
    for span in spans:
        words = k[:, :, span].float().transpose(-1, -2)  # 1 H D words
        logits = q.float() @ words * q.shape[-1] ** -0.5  # 1 H N words
        weights = logits.sub_(lse[..., None]).exp_()  # in place: they are large, gigabytes for a long part
        scores.append(weights.mean(dim=(0, 1, 3)))  # N
    return torch.stack(scores)


def foreground(scores: Tensor, split: Split = "compare") -> Tensor:
    """The mask (..., N) bool from scores (2, ..., N) of one layer (Eq. 3) or summed over layers (Eq. 4).

    The equations "compare" what a token gives to the two parts of the prompt. By "otsu" it is compared with
    what all tokens give, so that a part which draws more attention everywhere has no advantage, and the
    foreground begins where the video's tokens are best told apart.
    """
    if split == "compare":
        background, character = scores
        return background <= character
    background, character = scores / scores.mean(-1, keepdim=True)
    return upper_class(character - background)


def upper_class(values: Tensor) -> Tensor:
    """Which of the values (..., N) lie in the upper of the two classes that vary least within (Otsu 1979)."""
    ordered, n = values.sort(-1).values, values.shape[-1]
    count = torch.arange(1, n + 1, device=values.device)  # of the lower class
    short = ordered.mean(-1, keepdim=True) * count - ordered.cumsum(-1)  # what it lacks to the mean of all
    between = short.square() / (count * (n - count)).clamp(min=1)
    return values > ordered.gather(-1, between.argmax(-1, keepdim=True))


def smooth(mask: Tensor, grid: Grid) -> Tensor:
    """The mask (N,) with specks removed and the rest grown: per frame, eroded by 3x3, then dilated by 5x5."""
    eroded = ~grow(~mask, grid, 1)
    return grow(eroded, grid, 2)


def grow(mask: Tensor, grid: Grid, reach: int) -> Tensor:
    """The mask (N,) and, in the same frame, everything at most `reach` tokens beside it."""
    frames = mask.view(grid.frames, 1, grid.height, grid.width).float()
    return F.max_pool2d(frames, 2 * reach + 1, stride=1, padding=reach).flatten() > 0
