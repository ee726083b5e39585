"""Noise levels and timesteps of flow matching (Wan): how much noise is mixed in at every step of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bachvid.sampling.schedule import check_steps

Level = TypeVar("Level", float, Tensor)


@dataclass(frozen=True, eq=False)
class FlowSchedule:
    """The noise levels that one run visits, and the timesteps the model is told there.

    Latents at level sigma are (1 - sigma) * clean + sigma * noise.
    """

    sigmas: Tensor  # (steps + 1,) float32, falling to exactly 0; step i leads from entry i to entry i + 1
    timesteps: tuple[float, ...]  # falling; whole numbers, but fractions under the rule "euler"

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def sigma(self, step: int) -> Tensor:
        """The level where `step` sets out, as a 0-dim float32 tensor: it does not promote what it multiplies.

        And it is a copy: beside latents on MPS, PyTorch 2.13 takes a view of any entry for the table's first
        (its issue 187117).
        """
        return self.sigmas[step].clone()

    def half_log_snr(self, step: int) -> Tensor:
        """lambda = log((1 - sigma) / sigma) where `step` sets out: -inf for pure noise, +inf for clean."""
        sigma = self.sigma(step)
        return (1 - sigma).log() - sigma.log()


def flow_schedule(
    steps: int, shift: float = 1.0, rule: str = "diffusers", train_steps: int = 1000
) -> FlowSchedule:
    """The schedule of a run of `steps` steps, its noise levels placed by one of `RULES`.

    A `shift` above 1 spends more of the steps on noisy latents: for Wan 3 at 480p, 5 at 720p. Where diffusers
    has the rule, levels and timesteps are its own to the last bit.
    """
    check_steps(steps, train_steps)
    if not shift > 0:
        raise ValueError(
            f"The shift of a flow schedule cannot be {shift}. It is positive; 3 and 5 are usual."
        )
    if rule not in RULES:
        raise ValueError(f"There is no sigma rule {rule!r}. Known: {', '.join(RULES)}.")
    return RULES[rule](steps, shift, train_steps)


def shifted(sigma: Level, shift: float) -> Level:
    """A noise level moved towards noise, 0 and 1 staying where they are (Esser et al., arXiv 2403.03206)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _diffusers(steps: int, shift: float, train_steps: int) -> FlowSchedule:
    """From a hair below 1, for a finite log-SNR, towards 1 / train_steps: diffusers' UniPC since 0.37."""
    first, *others = (shifted(s, shift) for s in _evenly(1, 1 / train_steps, steps + 1)[:-1])
    return _with_whole_timesteps([first - 1e-6, *others], train_steps)


def _original(steps: int, shift: float, train_steps: int) -> FlowSchedule:
    """From 1 - 1 / train_steps towards 0: UniPC in Wan's own code and in diffusers up to 0.36.

    DPMSolverMultistepScheduler has it still. Wan's code begins at a float32 0.999, 1.3e-8 away from this.
    """
    clean_shares = _evenly(1, 1 / train_steps, steps + 1)
    sigmas = [shifted(1 - share, shift) for share in reversed(clean_shares[1:])]
    return _with_whole_timesteps(sigmas, train_steps)


def _original_dpm(steps: int, shift: float, train_steps: int) -> FlowSchedule:
    """From exactly 1 towards 0, the first timestep being train_steps: DPM-Solver++ in Wan's own code."""
    return _with_whole_timesteps([shifted(s, shift) for s in _evenly(1, 0, steps + 1)[:-1]], train_steps)


def _euler(steps: int, shift: float, train_steps: int) -> FlowSchedule:
    """From 1 to a shifted 1 / train_steps, and all of it shifted again: FlowMatchEulerDiscreteScheduler."""
    ends = (torch.tensor(sigma, dtype=torch.float32) for sigma in (1, 1 / train_steps))
    first, last = (shifted(sigma, shift).item() * train_steps for sigma in ends)
    sigmas = _levels([shifted(t / train_steps, shift) for t in _evenly(first, last, steps)])
    return FlowSchedule(sigmas, tuple((sigmas[:-1] * train_steps).tolist()))


# Where the noise levels of a run lie. Checkpoints do not say: their authors' code and diffusers differ.
RULES: dict[str, Callable[[int, float, int], FlowSchedule]] = {
    "diffusers": _diffusers,
    "original": _original,
    "original-dpm++": _original_dpm,
    "euler": _euler,
}


def _with_whole_timesteps(sigmas: Sequence[float], train_steps: int) -> FlowSchedule:
    return FlowSchedule(_levels(sigmas), tuple(int(sigma * train_steps) for sigma in sigmas))


def _levels(sigmas: Sequence[float]) -> Tensor:
    return torch.tensor([*sigmas, 0], dtype=torch.float32)


def _evenly(first: float, last: float, count: int) -> list[float]:
    """`count` numbers in equal strides, to the last bit those of numpy.linspace."""
    if count == 1:
        return [first]
    stride = (last - first) / (count - 1)
    return [*(first + i * stride for i in range(count - 1)), last]
