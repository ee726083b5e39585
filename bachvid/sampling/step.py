"""CogVideoX's solver steps, as pure functions: from the latents at one noise level to those at the next.

Every function here takes what the solver remembers (`past`, None at the start) and returns what it will need.
`prediction` is v, as CogVideoX predicts it: sqrt(alpha) * noise - sqrt(1 - alpha) * clean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from bachvid.sampling.schedule import CogVideoXSchedule

# (latents, prediction, schedule, step, past, generator) -> (latents, past). The schedule and the past are Any
# because each solver has its own kind.
Step = Callable[[Tensor, Tensor, Any, int, Any, Generator], tuple[Tensor, Any]]


def ddim(
    latents: Tensor,
    prediction: Tensor,
    schedule: CogVideoXSchedule,
    step: int,
    past: None,
    generator: Generator,
) -> tuple[Tensor, None]:
    """The next latents, in the dtype of the given ones, by the deterministic DDIM update.

    Song et al., arXiv 2010.02502, equation 12 with sigma = 0; agrees with CogVideoXDDIMScheduler.
    """
    t = schedule.timesteps[step]
    alpha, alpha_next = schedule.alphas_cumprod[t], schedule.alpha_before(t)
    clean = estimate_clean(latents, prediction, alpha)

    keep = ((1 - alpha_next) / (1 - alpha)) ** 0.5
    renew = alpha_next**0.5 - alpha**0.5 * keep
    return (keep * latents + renew * clean).to(latents.dtype), None


def dpm_sde_2m(
    latents: Tensor,
    prediction: Tensor,
    schedule: CogVideoXSchedule,
    step: int,
    past: Tensor | None,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """The next latents, in the dtype of the given ones, by the second-order stochastic DPM-Solver++ update.

    Lu et al., arXiv 2211.01095, SDE-DPM-Solver++(2M); agrees with CogVideoXDPMScheduler. `past` is the clean
    estimate of the step before. The first step and one that ends at clean latents are of first order.
    """
    t = schedule.timesteps[step]
    alpha, alpha_next = schedule.alphas_cumprod[t], schedule.alpha_before(t)
    clean = estimate_clean(latents, prediction, alpha)

    # The log-SNR is infinite at either end of the schedule. What is made of it comes out finite there only
    # because of the order of the factors: do not simplify.
    log_snr = _half_log_snr(alpha)
    h = _half_log_snr(alpha_next) - log_snr
    keep = ((1 - alpha_next) / (1 - alpha)) ** 0.5 * (-h).exp()
    renew = (-2 * h).expm1() * alpha_next**0.5
    stir = (1 - alpha_next) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5

    target = clean
    if past is not None and schedule.previous(t) >= 0:
        ratio = (log_snr - _half_log_snr(schedule.alphas_cumprod[schedule.timesteps[step - 1]])) / h
        target = (1 + 1 / (2 * ratio)) * clean - 1 / (2 * ratio) * past
        # diffusers also takes the first-order step, noise and all, and throws it away: its draw must be made.
        noise(latents.shape, generator, latents.dtype, latents.device)

    fresh = noise(latents.shape, generator, latents.dtype, latents.device)
    return (keep * latents - renew * target + stir * fresh).to(latents.dtype), clean


def estimate_clean(latents: Tensor, prediction: Tensor, alpha: Tensor) -> Tensor:
    """The clean latents that a v-prediction implies, in the wider of the two dtypes."""
    return alpha**0.5 * latents - (1 - alpha) ** 0.5 * prediction


def noise(
    shape: tuple[int, ...], generator: Generator, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Standard normal values, drawn where the generator lives and moved afterwards, as diffusers does.

    A CPU generator therefore gives the same video on every machine.
    """
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device).to(device)


def _half_log_snr(alpha: Tensor) -> Tensor:
    """lambda = log(sqrt(alpha) / sqrt(1 - alpha)): -inf for pure noise, +inf for clean latents."""
    return ((alpha / (1 - alpha)) ** 0.5).log()
