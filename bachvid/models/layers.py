"""The small parts that denoisers are made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_features(t: Tensor, width: int) -> Tensor:
    """Sinusoids (B, width) of the timesteps t (B,), cosines first, float32 whatever the model's dtype.

    Agrees with diffusers' `Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)`.
    """
    half = width // 2
    powers = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * powers.exp()[None, :]  # B half
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class FeedForward(nn.Module):
    """Linear up, tanh-GELU, linear down, token by token."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))  # B L C
