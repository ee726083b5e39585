"""Classifier-free guidance: how far each prediction is pushed from the negative prompt towards the prompt.

Ho and Salimans, arXiv 2207.12598. The two predictions come from two calls of the model, one per branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

Guidance = Callable[[float, float, int], float]  # (scale, t, steps) -> the scale at timestep t


def combine(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """The guided prediction, in the dtype of the two given ones.

    CogVideoX's pipelines widen both to float32 before they come here; Wan's leave them in the model's dtype.
    """
    return uncond + scale * (cond - uncond)


def static(scale: float, t: float, steps: int) -> float:
    """The same scale at every step."""
    return scale


def dynamic(scale: float, t: float, steps: int) -> float:
    """A scale between 1 and 1 + `scale`, as CogVideoX's authors sample with DPM-Solver++.

    The formula subtracts a timestep (0..999) from a number of steps (50), so the scale does not rise over the
    run but oscillates. The authors kept it so (CogVideo issues 267 and 337, diffusers issue 9641), and videos
    are made with it. At t = 999 of 50 steps the fifth power is -2.5 million: this needs double precision.
    """
    return 1 + scale * ((1 - math.cos(math.pi * ((steps - t) / steps) ** 5.0)) / 2)
