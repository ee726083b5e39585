"""Seconds and memory of walks that take their steps in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from bachvid.evaluate.cost import GB, now


class Took(NamedTuple):
    """Seconds, of some steps or rounds, and the peak of the accelerator's memory in one, in GB of 10^9."""

    seconds: list[float]
    gpu_gb: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Numbers for JSON."""
        low, high = min(self.seconds), max(self.seconds)
        return {"median_s": self.median, "min_s": low, "max_s": high, "peak_gpu_gb": self.gpu_gb}


def in_turns(walks: Mapping[str, Iterator[Any]], device: torch.device) -> dict[str, Took]:
    """What the steps of each walk took; machines slow down and speed up, so they take turns.

    The first step warms up: it only tells the peak of memory.
    """
    peaks = {name: peak_of(partial(next, walk), device) for name, walk in walks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in walks}
    going = dict(walks)
    while going:
        for name, walk in list(going.items()):
            began = now(device)
            if next(walk, DONE) is DONE:
                del going[name]
            else:
                seconds[name].append(now(device) - began)
    return {name: Took(seconds[name], peaks[name]) for name in walks}


DONE = object()


def rounds(work: Callable[[], Any], count: int, device: torch.device) -> Took:
    """What a piece of work took, `count` times; once before that it warms up."""
    peak, seconds = peak_of(work, device), []
    for _ in range(count):
        began = now(device)
        work()
        seconds.append(now(device) - began)
    return Took(seconds, peak)


def peak_of(work: Callable[[], Any], device: torch.device) -> float:
    """The most memory that tensors took on an accelerator of CUDA while the work was done, in GB; else 0."""
    if device.type != "cuda":
        work()
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) / GB
