"""What a run says while it works: a live line on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Console:
    """Times the stages of a run and shows how far each has come."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.live = sys.stderr.isatty()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what happens inside; a stage entered again goes on counting."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def follow(self, steps: Iterable[T], total: int, what: str) -> Iterator[T]:
        """The steps, shown as they pass."""
        if self.live:
            bar = tqdm(steps, what, total, unit="step", leave=False, dynamic_ncols=True)
            yield from bar
            return
        shown = started = time.perf_counter()
        for n, step in enumerate(steps, start=1):
            yield step
            now = time.perf_counter()
            if now - shown >= 10 and n < total:
                left = (now - started) / n * (total - n)
                print(f"{what}: step {n}/{total}, about {left:.0f} s left", file=sys.stderr, flush=True)
                shown = now

    def say(self, text: str) -> None:
        """A line that stays; where nobody reads it any more, the work goes on without."""
        try:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def summary(self) -> str:
        """Seconds by stage and the peak memory of this process, in one line."""
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        peak = peak_memory() / 1e9
        return f"{stages}; peak memory {peak:.2f} GB" if peak else stages


def peak_memory() -> int:
    """Bytes this process has held at most; 0 where the system does not tell, as on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
