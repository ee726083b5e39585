"""Noise levels and timesteps: how noisy the latents are at every step of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    """What the walk and its callers know of any schedule; a solver knows its own kind in full."""

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The timestep that the model is told at each step of the run."""


@dataclass(frozen=True, eq=False)
class CogVideoXSchedule:
    """The noise levels a CogVideoX was trained on, and the timesteps at which one run visits them.

    `alphas_cumprod[t]` is the share of signal variance at training timestep t: about 1 at t = 0, exactly 0 at
    last. Its entries are 0-dim float64 tensors: precise, yet they do not promote the latents they multiply.
    """

    alphas_cumprod: Tensor  # (train_steps,) float64, falling
    timesteps: tuple[int, ...]  # falling; the timestep the model is told at each step
    steps: int  # as asked for; `timesteps` may hold a stray one more

    def previous(self, t: int) -> int:
        """The timestep a step from t arrives at; negative means clean latents.

        It is t - train_steps // steps: not the next list entry where steps does not divide train_steps.
        """
        return t - len(self.alphas_cumprod) // self.steps

    def alpha_before(self, t: int) -> Tensor:
        """The signal share that a step from t arrives at: 1 for clean latents."""
        previous = self.previous(t)
        return self.alphas_cumprod[previous] if previous >= 0 else self.alphas_cumprod.new_ones(())


def cogvideox_schedule(
    steps: int,
    snr_shift: float = 1.0,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    train_steps: int = 1000,
) -> CogVideoXSchedule:
    """The schedule of a run of `steps` steps, agreeing with diffusers' two CogVideoX schedulers.

    A number of steps that divides 1000 is best. Many others (6, 7, 11, 13, ...) end at `alphas_cumprod[0]`,
    a hair before clean latents, as they do in diffusers.
    """
    check_steps(steps, train_steps)
    alphas_cumprod = cogvideox_alphas_cumprod(snr_shift, beta_start, beta_end, train_steps)
    return CogVideoXSchedule(alphas_cumprod, trailing_timesteps(steps, train_steps), steps)


def check_steps(steps: int, train_steps: int) -> None:
    """Raise ValueError for a number of steps that no run can have."""
    if not 1 <= steps <= train_steps:
        raise ValueError(f"A run cannot have {steps} steps. Choose 1 to {train_steps}; 50 is usual.")


def cogvideox_alphas_cumprod(
    snr_shift: float = 1.0, beta_start: float = 0.00085, beta_end: float = 0.012, train_steps: int = 1000
) -> Tensor:
    """The share of signal variance at every training timestep, (train_steps,) float64.

    A scaled-linear table of betas, its signal-to-noise ratio divided by `snr_shift` (3 in CogVideoX-2B, 1 in
    the 5B models), then stretched so that the last timestep is pure noise (Lin et al., arXiv 2305.08891,
    algorithm 1; CogVideoX stretches after the shift).
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, train_steps, dtype=torch.float64) ** 2
    alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    alphas_cumprod = alphas_cumprod / (snr_shift + (1 - snr_shift) * alphas_cumprod)

    roots = alphas_cumprod.sqrt()
    first, last = roots[0], roots[-1]
    roots = (roots - last) * (first / (first - last))
    return roots**2


def trailing_timesteps(steps: int, train_steps: int = 1000) -> tuple[int, ...]:
    """Timesteps in equal strides down from train_steps - 1; for 50 steps 999, 979, ..., 19.

    diffusers rounds numpy.arange(1000, 0, -1000 / steps). Halves are common (48 steps), so the arithmetic is
    arange's to the last bit: its length comes from the stride, its values from the difference of its first
    two entries. For 62 numbers of steps (61, 103, 121, ...) it overshoots to a stray -1, at which diffusers
    takes the finished latents for pure noise; a run refuses those.
    """
    stride = train_steps / steps
    drop = train_steps - (train_steps - stride)
    return tuple(round(train_steps - i * drop) - 1 for i in range(math.ceil(train_steps / stride)))
