"""The solver steps of flow matching (Wan), as pure functions with the signature of those in `step.py`.

`prediction` is the velocity, noise - clean; so `latents - sigma * prediction` is the clean estimate. As in
diffusers, the product is taken in the prediction's dtype: a bfloat16 one is rounded before it meets float32
latents. A walk that begins in the middle, without a past, begins with a step of first order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from bachvid.sampling.flow_schedule import FlowSchedule
from bachvid.sampling.step import noise


class UniPCPast(NamedTuple):
    """Where a step of UniPC set out, and the clean estimates it went by."""

    latents: Tensor  # corrected
    clean: Tensor
    older: Tensor | None  # the clean estimate of the step before; None in the first step


def unipc(
    latents: Tensor,
    prediction: Tensor,
    schedule: FlowSchedule,
    step: int,
    past: UniPCPast | None,
    generator: Generator,
) -> tuple[Tensor, UniPCPast]:
    """The next latents, in the dtype of the given ones, by UniPC of second order.

    The prediction serves twice: first the step before is taken again, now with the clean estimate at its end,
    then the next one is taken from there. First and last step predict in first order. Zhao et al., arXiv
    2302.04867, for data prediction and their B(h) = e^h - 1; agrees with UniPCMultistepScheduler (bh2).
    """
    clean = latents - schedule.sigma(step) * prediction
    now = UniPCPast(latents, clean, None)
    if past is not None:
        now = UniPCPast(_corrected(schedule, step - 1, past, clean), clean, past.clean)
    return _predicted(schedule, step, now), now


def dpm_flow_2m(
    latents: Tensor,
    prediction: Tensor,
    schedule: FlowSchedule,
    step: int,
    past: Tensor | None,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """The next latents, in the wider dtype of latents and prediction, by second-order DPM-Solver++.

    Lu et al., arXiv 2211.01095, algorithm 2 (2M); agrees with DPMSolverMultistepScheduler (midpoint). `past`
    is the clean estimate of the step before. First and last step are of first order.
    """
    sigma, sigma_next = schedule.sigma(step), schedule.sigma(step + 1)
    clean = latents - sigma * prediction

    h = schedule.half_log_snr(step + 1) - schedule.half_log_snr(step)
    renew = (1 - sigma_next) * (1 - (-h).exp())  # not expm1, which rounds differently
    moved = sigma_next / sigma * latents.float() + renew * clean
    moved = moved + renew * _second_order(schedule, step, h, clean, past)
    return moved.to(clean.dtype), clean


def dpm_flow_sde_2m(
    latents: Tensor,
    prediction: Tensor,
    schedule: FlowSchedule,
    step: int,
    past: Tensor | None,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """The next latents, in the wider dtype of latents and prediction, by second-order SDE-DPM-Solver++.

    `dpm_flow_2m` with fresh noise for what each step forgets. Lu et al., arXiv 2211.01095, appendix; agrees
    with DPMSolverMultistepScheduler (sde-dpmsolver++, midpoint). The last step ends at clean latents.
    """
    sigma, sigma_next = schedule.sigma(step), schedule.sigma(step + 1)
    clean = latents - sigma * prediction

    h = schedule.half_log_snr(step + 1) - schedule.half_log_snr(step)
    renewed = 1 - (-2 * h).exp()
    renew = (1 - sigma_next) * renewed
    moved = (sigma_next / sigma * (-h).exp()) * latents.float() + renew * clean
    moved = moved + renew * _second_order(schedule, step, h, clean, past)
    fresh = noise(latents.shape, generator, torch.float32, latents.device)
    return (moved + sigma_next * renewed.sqrt() * fresh).to(clean.dtype), clean


def flow_euler(
    latents: Tensor,
    prediction: Tensor,
    schedule: FlowSchedule,
    step: int,
    past: None,
    generator: Generator,
) -> tuple[Tensor, None]:
    """The next latents, in the dtype of the prediction, by a straight step along the velocity.

    Agrees with FlowMatchEulerDiscreteScheduler, whose latents are no more precise than the model.
    """
    way = schedule.sigma(step + 1) - schedule.sigma(step)
    return (latents.float() + way * prediction).to(prediction.dtype), None


def _predicted(schedule: FlowSchedule, step: int, now: UniPCPast) -> Tensor:
    """UniP: the latents after `step`, from the clean estimates up to its beginning."""
    h, keep, renew = _first_order(schedule, step)
    latents = keep * now.latents - renew * now.clean
    if now.older is not None and step + 1 < schedule.steps:
        before = (now.older - now.clean) / _ratio(schedule, step, h)
        latents = latents - renew * (0.5 * before)
    return latents.to(now.latents.dtype)


def _corrected(schedule: FlowSchedule, step: int, past: UniPCPast, clean: Tensor) -> Tensor:
    """UniC: the latents after `step`, knowing the clean estimate that was then made there."""
    h, keep, renew = _first_order(schedule, step)
    latents = keep * past.latents - renew * past.clean
    after = clean - past.clean
    if past.older is None:
        return (latents - renew * (0.5 * after)).to(past.latents.dtype)
    ratio = _ratio(schedule, step, h)
    before = (past.older - past.clean) / ratio
    of_before, of_after = _corrector_weights(h, ratio).to(past.latents.dtype).tolist()
    return (latents - renew * (of_before * before + of_after * after)).to(past.latents.dtype)


def _first_order(schedule: FlowSchedule, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """How far `step` leads in half log-SNR, and the factors of latents and clean estimate in first order."""
    sigma, sigma_next = schedule.sigma(step), schedule.sigma(step + 1)
    h = schedule.half_log_snr(step + 1) - schedule.half_log_snr(step)
    return h, sigma_next / sigma, (1 - sigma_next) * torch.expm1(-h)


def _second_order(
    schedule: FlowSchedule, step: int, h: Tensor, clean: Tensor, past: Tensor | None
) -> Tensor | float:
    """What the second order adds to DPM-Solver++'s clean estimate; 0 without a past and in the last step."""
    if past is None or step + 1 == schedule.steps:
        return 0.0
    return 0.5 * (1 / _ratio(schedule, step, h) * (past - clean))


def _ratio(schedule: FlowSchedule, step: int, h: Tensor) -> Tensor:
    """How far back the step before set out, measured in steps of h; negative."""
    return (schedule.half_log_snr(step - 1) - schedule.half_log_snr(step)) / h


def _corrector_weights(h: Tensor, ratio: Tensor) -> Tensor:
    """The weights (2,) of UniC's two differences: exact where clean estimates are quadratic in log-SNR."""
    one = torch.ones_like(h)
    growth = torch.expm1(-h)
    second = growth / -h - 1  # -h phi_2(-h)
    third = second / -h - 0.5  # -h phi_3(-h)
    powers = torch.stack([torch.stack([one, one]), torch.stack([ratio, one])])
    return torch.linalg.solve(powers, torch.stack([second / growth, 2 * third / growth]))
