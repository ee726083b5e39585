"""The walk from noise to video. It knows solvers and rows, but no model, no prompt and no method:

    row = start((1, 13, 16, 60, 90), seed=42, dtype=torch.bfloat16)
    for step in denoise(predict, [row], sampler):
        print(step, row.latents.std())

What a run does differently at some steps (stop, keep the latents, inject), its caller does around the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor

from bachvid.sampling.sampler import Sampler
from bachvid.sampling.step import noise


@dataclass(eq=False)
class Row:
    """One video in the making: all that a solver needs to take its next step."""

    latents: Tensor
    generator: Generator
    past: Any = None  # what the solver remembers of its earlier steps


AnyRow = TypeVar("AnyRow", bound=Row)
Predict = Callable[[Sequence[AnyRow], int], Sequence[Tensor]]


@torch.no_grad()
def denoise(
    predict: Predict[AnyRow], rows: Sequence[AnyRow], sampler: Sampler, steps: Iterable[int] | None = None
) -> Iterator[int]:
    """The indices of `steps` (default: the whole schedule), each after every row has taken that step.

    `predict(rows, step)` returns the (guided) predictions of the rows, in their order. A caller who has seen
    enough just stops iterating; the rows can be walked on later with the steps that are left.
    """
    for step in range(len(sampler.schedule.timesteps)) if steps is None else steps:
        predictions = predict(rows, step)
        for row, prediction in zip(rows, predictions, strict=True):
            row.latents, row.past = sampler.step(
                row.latents, prediction, sampler.schedule, step, row.past, row.generator
            )
        yield step


def start(
    shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Row:
    """A row of pure noise, the one diffusers starts from with a CPU generator of this seed.

    The generator goes on to serve the solver. CogVideoX: shape (B, T, C, H, W), dtype of the encoded prompt.
    """
    generator = Generator("cpu").manual_seed(seed)
    return Row(noise(shape, generator, dtype, device), generator)
