"""The tokens of a video as a box of frames, rows and columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """Size of a video in tokens; flat indices run over (frame, row, column), the column fastest.

    Where text shares the sequence (CogVideoX), text comes first and the video's tokens are always the last
    `tokens` of it.
    """

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of video tokens, N = T H W."""
        return self.frames * self.height * self.width

    def places(self, device: torch.device | str = "cpu") -> Tensor:
        """(frame, row, column) of every token, (N, 3) int64, in flat order."""
        axes = [torch.arange(n, device=device) for n in self]
        return torch.cartesian_prod(*axes)  # N 3
