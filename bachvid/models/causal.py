"""Convolution that never looks into the future, and the history that lets a long video pass in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

LARGEST = 2**30  # elements that one convolution is given at once, as in diffusers: 2 GiB of them in bfloat16


class CausalConv3d(nn.Conv3d):
    """A 3D convolution whose frame t is made of frames up to t only; height and width keep their size.

    With a `stride`, every so many frames become one, which is made of these and of earlier ones.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1
    ) -> None:
        frames, height, width = kernel
        padding = (0, height // 2, width // 2)
        super().__init__(in_channels, out_channels, kernel, stride=(stride, 1, 1), padding=padding)
        self.reach = frames - stride  # how many frames before a chunk its first result is made of

    def forward(self, x: Tensor, history: History) -> Tensor:  # type: ignore[override]
        x = history.extend(self, x)  # B C reach+T H W
        results = [super(CausalConv3d, self).forward(piece) for piece in self._pieces(x)]
        return results[0] if len(results) == 1 else torch.cat(results, dim=2)  # B out_channels T/stride H W

    def _pieces(self, x: Tensor) -> list[Tensor]:
        """x, or where it is too large for one convolution, what each few of its results are made of."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        results = (x.shape[2] - kernel) // stride + 1
        frames = LARGEST * x.shape[2] // x.numel()  # that are not too much
        most = max(1, (frames - kernel) // stride + 1)
        firsts = range(0, results, most)
        return [x[:, :, n * stride : (min(n + most, results) - 1) * stride + kernel] for n in firsts]


class History:
    """The last frames every causal convolution was given, from one chunk of a video to the next.

    Whoever cuts a video into chunks makes one, hands it down with every chunk and drops it: a history belongs
    to one pass over one video, or over one tile of it, and nothing stays on the modules. `before` says what
    stands in front of the video: its first frame repeated (CogVideoX) or zeros (Wan).
    """

    def __init__(self, before: Literal["first frame", "zeros"]) -> None:
        self.before = before
        self._last: dict[CausalConv3d, Tensor] = {}

    def __contains__(self, conv: CausalConv3d) -> bool:
        """Whether `conv` has a past: no longer does the video begin with the chunk under way."""
        return conv in self._last

    def extend(self, conv: CausalConv3d, x: Tensor) -> Tensor:
        """The chunk x (B, C, T, H, W) after the `conv.reach` frames before it; keeps its own last ones."""
        if conv not in self:
            self.begin(conv, x)
        x = torch.cat((self._last[conv], x), dim=2)
        self.keep(conv, x)
        return x

    def begin(self, conv: CausalConv3d, x: Tensor) -> None:
        """Make what stands in front of the video x the past of `conv`."""
        first = x[:, :, :1]
        frame = first if self.before == "first frame" else torch.zeros_like(first)
        self._last[conv] = frame.expand(-1, -1, conv.reach, -1, -1)

    def keep(self, conv: CausalConv3d, x: Tensor) -> None:
        """Make the last frames of x the past of `conv`."""
        # A copy, for a view would hold the whole chunk in memory.
        self._last[conv] = x[:, :, x.shape[2] - conv.reach :].clone()


def frame_by_frame(part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `part`, which knows pictures (N, C, H, W), makes of every frame of x (B, C, T, H, W)."""
    frames = x.transpose(1, 2)  # B T C H W
    return part(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


def expect_channels(what: str, x: Tensor, channels: int) -> None:
    """Raise ValueError unless x is (batch, channels, frames, height, width)."""
    if x.ndim != 5 or x.shape[1] != channels:
        raise ValueError(f"{what} must be (batch, {channels}, frames, height, width), not {tuple(x.shape)}")
