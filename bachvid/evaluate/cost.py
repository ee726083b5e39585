"""What making videos costs: seconds, the peaks of both memories, and what the paper's way would keep."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch

from bachvid.method.recipe import Recipe
from bachvid.method.scout import Scouted

GB = 1e9
PEAK_RESET = "5"  # what Linux wants to hear to begin a process's peak of memory anew


class Meter:
    """Measures what happens inside `with`, work on the accelerator included.

    `seconds`; `cpu_gb`, the peak of the process's resident memory, the loaded model included; `gpu_gb`, the
    peak that the allocator reserved, 0 without an accelerator. GB are 10^9 bytes. Meters do not nest: the
    inner one begins the peaks anew. Where a system cannot do that, the peak is that of the process so far.
    """

    seconds: float
    cpu_gb: float
    gpu_gb: float

    def __enter__(self) -> Self:
        _forget_peaks()
        self._started = now()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self.so_far()
        self.cpu_gb = _resident_peak() / GB
        self.gpu_gb = torch.cuda.max_memory_reserved() / GB if torch.cuda.is_available() else 0.0

    def so_far(self) -> float:
        """Seconds since it began."""
        return now() - self._started


def paper_cache_gb(recipe: Recipe, identity: Scouted) -> float:
    """The size of the paper's cache (Section 3.5), in GB: what the identity would leave in host memory.

    Keys and values of all video tokens at every step and vital layer, for the conditional branch, and the
    features of the match layers: 163 GB for CogVideoX-5B in bfloat16; the paper measured 172 with all that
    is around it.
    """
    assert identity.features is not None
    layer = identity.features[0].nbytes  # tokens x width
    return (recipe.steps * len(recipe.kv_layers) * 2 + len(recipe.match_layers)) * layer / GB


def now(device: torch.device | None = None) -> float:
    """Seconds, once all that was asked of an accelerator is done: of `device`, or of the current one."""
    if torch.accelerator.is_available() and (device is None or device.type != "cpu"):
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _forget_peaks() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # a peak begins at what is reserved, also by what ran before
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text(PEAK_RESET)


def _resident_peak() -> int:
    """Bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows does not tell
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
