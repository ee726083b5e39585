"""Convolution that never looks into the future, and the history that lets a long video pass in chunks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class CausalConv3d(nn.Conv3d):
    """A 3D convolution whose frame t is made of frames up to t only; height and width keep their size."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        frames, height, width = kernel
        super().__init__(in_channels, out_channels, kernel, padding=(0, height // 2, width // 2))
        self.reach = frames - 1  # how many earlier frames a frame is made of

    def forward(self, x: Tensor, history: History) -> Tensor:  # type: ignore[override]
        x = history.extend(self, x)  # B C reach+T H W
        return super().forward(x)  # B out_channels T H W


class History:
    """The last frames every causal convolution was given, from one chunk of a video to the next.

    Whoever cuts a video into chunks makes one, hands it down with every chunk and drops it: a history belongs
    to one pass over one video, or over one tile of it, and nothing stays on the modules. `before` says what
    stands in front of the video: its first frame repeated (CogVideoX) or zeros (Wan).
    """

    def __init__(self, before: Literal["first frame", "zeros"]) -> None:
        self.before = before
        self._last: dict[CausalConv3d, Tensor] = {}

    def extend(self, conv: CausalConv3d, x: Tensor) -> Tensor:
        """The chunk x (B, C, T, H, W) behind the `conv.reach` frames before it; keeps its own last ones."""
        earlier = self._last[conv] if conv in self._last else self._opening(x, conv.reach)
        x = torch.cat((earlier, x), dim=2)
        # A copy, for a view would hold the whole chunk in memory.
        self._last[conv] = x[:, :, x.shape[2] - conv.reach :].clone()
        return x

    def _opening(self, x: Tensor, frames: int) -> Tensor:
        first = x[:, :, :1]
        frame = first if self.before == "first frame" else torch.zeros_like(first)
        return frame.expand(-1, -1, frames, -1, -1)
