"""The parts that the Wan autoencoder is built of; x is (B, C, T, H, W) everywhere.

Parts stand in a `Chain` or an `nn.Sequential` at the places that they have in the original release, for the
places are in the names of its parameters: `residual.6.weight`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from bachvid.models.causal import CausalConv3d, History, frame_by_frame


class Chain(nn.Sequential):
    """Parts one after another; those that look back at earlier frames are handed the history."""

    def forward(self, x: Tensor, history: History) -> Tensor:  # type: ignore[override]
        for part in self:
            x = part(x, history) if isinstance(part, LOOKS_BACK) else part(x)
        return x


class Residual(nn.Module):
    """Two causal convolutions beside a shortcut."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.residual = Chain(
            RMSNorm(before, axes=3),
            nn.SiLU(),
            CausalConv3d(before, width, (3, 3, 3)),
            RMSNorm(width, axes=3),
            nn.SiLU(),
            nn.Identity(),  # a dropout of nothing in the release
            CausalConv3d(width, width, (3, 3, 3)),
        )
        self.shortcut: nn.Module = nn.Identity() if before == width else nn.Conv3d(before, width, 1)

    def forward(self, x: Tensor, history: History) -> Tensor:
        return self.residual(x, history) + self.shortcut(x)  # B width T H W


class RMSNorm(nn.Module):
    """Every position's channels with a mean square of 1, times a learned gain; `axes` follow the channels."""

    def __init__(self, width: int, axes: int) -> None:
        super().__init__()
        self.scale = width**0.5
        self.gamma = nn.Parameter(torch.ones(width, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        precise = x.to(
            torch.promote_types(x.dtype, torch.float32)
        )  # a sum of squares is too much for bfloat16
        return F.normalize(precise, dim=1).to(x.dtype) * self.scale * self.gamma


class Attention(nn.Module):
    """Every frame attends to itself, with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, axes=2)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # In this order: a sum lies in memory as its first part does, and a norm's rounding follows memory.
        return frame_by_frame(self._attend, x) + x  # B C T H W

    def _attend(self, frames: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(frames)).flatten(2)  # N 3*C H*W; a frame is N C H W
        qkv = qkv.transpose(1, 2).contiguous()  # kernels want a position's channels side by side
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)  # N 1 H*W C each
        out = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)  # N C H*W
        return self.proj(out.unflatten(2, frames.shape[2:]))  # N C H W


class Downsample(nn.Module):
    """Half as high and wide; with `time`, pairs of frames become one, but the video's first stays alone."""

    def __init__(self, width: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)),  # at the right and the bottom
            nn.Conv2d(width, width, 3, stride=2),
        )
        self.time_conv = CausalConv3d(width, width, (3, 1, 1), stride=2) if time else None

    def forward(self, x: Tensor, history: History) -> Tensor:
        x = frame_by_frame(self.resample, x)  # B C T H/2 W/2
        if self.time_conv is None:
            return x
        if self.time_conv not in history:  # x is the video's first frame
            history.keep(self.time_conv, x)
            return x
        return self.time_conv(x, history)  # B C T/2 H/2 W/2


class Upsample(nn.Module):
    """Twice as high and wide, half the channels; with `time`, two frames of each, but the video's first."""

    def __init__(self, width: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"),
            nn.Conv2d(width, width // 2, 3, padding=1),
        )
        self.time_conv = CausalConv3d(width, 2 * width, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, history: History) -> Tensor:
        if self.time_conv is not None:
            x = self._in_two(self.time_conv, x, history)  # B C 2*T H W
        return frame_by_frame(self.resample, x)  # B C/2 2*T 2*H 2*W

    def _in_two(self, time_conv: CausalConv3d, x: Tensor, history: History) -> Tensor:
        if time_conv not in history:  # x is the video's first frame; the next ones will not know it here
            history.begin(time_conv, x)
            return x
        return rearrange(time_conv(x, history), "b (two c) t h w -> b c (t two) h w", two=2)


LOOKS_BACK = (CausalConv3d, Residual, Downsample, Upsample)
