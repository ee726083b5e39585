"""The parts that the CogVideoX autoencoder is built of; x is (B, C, T, H, W) everywhere."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bachvid.models.causal import CausalConv3d, History, frame_by_frame

Norms = Callable[[int], nn.Module]  # makes the norm for so many channels


class Resnet(nn.Module):
    """Two causal convolutions beside a shortcut. `z` is for the decoder's norms; the encoder's take none."""

    def __init__(self, before: int, width: int, norm: Norms) -> None:
        super().__init__()
        self.norm1 = norm(before)
        self.conv1 = Conv(before, width)
        self.norm2 = norm(width)
        self.conv2 = Conv(width, width)
        self.conv_shortcut: nn.Module = nn.Identity() if before == width else nn.Conv3d(before, width, 1)

    def forward(self, x: Tensor, history: History, *z: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x, *z)), history)
        h = self.conv2(F.silu(self.norm2(h, *z)), history)
        return h + self.conv_shortcut(x)  # B width T H W


class SpatialNorm(nn.Module):
    """Group norm, then a scale and a shift per position, read off the latents there (arXiv 2209.09002)."""

    def __init__(self, groups: int, latent_channels: int, width: int) -> None:
        super().__init__()
        self.norm_layer = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_y = nn.Sequential(OrderedDict(conv=nn.Conv3d(latent_channels, width, 1)))
        self.conv_b = nn.Sequential(OrderedDict(conv=nn.Conv3d(latent_channels, width, 1)))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.norm_layer(x) * self.conv_y(z) + self.conv_b(z)


class Downsample(nn.Module):
    """Half as high and wide; with `time`, pairs of frames are averaged, an odd first frame staying alone."""

    def __init__(self, width: int, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if self.time:
            first, pairs = _odd_frame(x)
            x = torch.cat((first, (pairs[:, :, 0::2] + pairs[:, :, 1::2]) / 2), dim=2)
        x = F.pad(x, (0, 1, 0, 1))  # zeros at the right and the bottom
        return frame_by_frame(self.conv, x)


class Upsample(nn.Module):
    """Twice as high and wide, x and z; with `time`, every frame comes twice, but an odd first frame once."""

    def __init__(self, width: int, time: bool) -> None:
        super().__init__()
        self.time = time
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return frame_by_frame(self.conv, self._repeat(x)), self._repeat(z)

    def _repeat(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0))
        if self.time:
            first, rest = _odd_frame(x)
            x = torch.cat((first, rest.repeat_interleave(2, dim=2)), dim=2)
        return x


class Conv(nn.Module):
    """A 3 x 3 x 3 causal convolution, one level deeper than it need be: checkpoints name it `.conv`."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(before, width, (3, 3, 3))

    def forward(self, x: Tensor, history: History) -> Tensor:
        return self.conv(x, history)


def _odd_frame(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first frame if there is an odd number, otherwise none; and the frames left, an even number."""
    odd = x.shape[2] % 2
    return x[:, :, :odd], x[:, :, odd:]
