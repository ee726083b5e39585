"""What a command says when it fails, and the exit code it leaves: the one place that decides either."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from tempfile import TemporaryFile
from threading import current_thread, main_thread


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0  # everything asked for exists and was verified
    UNEXPECTED = 1
    USAGE = 2  # a wrong flag or story file; argparse leaves the same code
    WEIGHTS = 3  # missing or wrong
    MEMORY = 4  # of the accelerator or of the host
    INTERRUPTED = 130  # what a shell reports of a process that Ctrl-C ended
    TERMINATED = 143  # and of one that was told to end, as schedulers do before they kill


class Terminated(KeyboardInterrupt):
    """The process was told to end; what is half-written is cleared away, as at Ctrl-C."""


class UsageError(ValueError):
    """A mistake in what was asked for, told in one sentence: what, where, how to fix it."""


class StoryError(UsageError):
    """A mistake in a story file; its sentence ends in the file and, where there is one, the line."""

    def __init__(self, sentence: str, file: Path | str, line: int | None = None) -> None:
        self.file, self.line = Path(file), line
        super().__init__(f"{sentence}  {file}" if line is None else f"{sentence}  {file}:{line}")


def check_writable(path: Path, flag: str, folder: bool = False) -> None:
    """Raise UsageError, which names the flag, if no file can be written at `path`, or no folder filled there.

    Neither it nor the folders above it need exist yet, and none is made.
    """
    if path.is_dir() and not folder:
        raise UsageError(f"{path} is a folder. Name the file to write: {flag} FILE.")
    places = path.absolute().parents if not folder else (path, *path.absolute().parents)
    try:
        TemporaryFile(dir=next(place for place in places if place.exists())).close()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}). Choose another place with {flag}."
        ) from error


def guarded(command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """The exit code of `command(args)`.

    A failure becomes one sentence on stderr; its traceback is shown only where `args.debug` is set.
    """
    try:
        with told_to_end():
            return command(args)
    except (Exception, KeyboardInterrupt) as error:
        if args.debug:
            traceback.print_exc()
        code = exit_of(error)
        print(f"bachvid: {sentence_of(error, code)}", file=sys.stderr)
        return code


@contextmanager
def told_to_end() -> Iterator[None]:
    """While it lasts, SIGTERM raises Terminated in the main thread, the only one that hears signals."""

    def end(number: int, frame: object) -> None:
        raise Terminated

    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_of(error: BaseException) -> Exit:
    """The exit code that an exception stands for."""
    from bachvid.models.checkpoint import WeightsError  # not above: `bachvid --help` need not wait for torch

    if isinstance(error, Terminated):
        return Exit.TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if isinstance(error, WeightsError):
        return Exit.WEIGHTS
    if is_out_of_memory(error):
        return Exit.MEMORY
    if isinstance(error, UsageError) or (isinstance(error, ValueError) and raised_here(error)):
        return Exit.USAGE
    return Exit.UNEXPECTED


def sentence_of(error: BaseException, code: Exit) -> str:
    """What to tell the user of an exception that ends a command with `code`."""
    match code:
        case Exit.INTERRUPTED:
            return "interrupted."
        case Exit.TERMINATED:
            return "told to end (SIGTERM)."
        case Exit.MEMORY:
            less = "a smaller size or fewer frames need less, and --vae-tiling while decoding"
            return f"out of memory; {less} ({first_line(error)})."
        case Exit.UNEXPECTED:
            return f"{type(error).__name__}: {first_line(error)} (--debug shows where)"
        case _:
            return str(error)


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    # On the host and on MPS, torch has no class for it: their allocators raise a plain RuntimeError.
    signs = ("DefaultCPUAllocator", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def raised_here(error: BaseException) -> bool:
    """Whether our own code raised it: there a ValueError is a sentence for the user, in a library our bug."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals["__name__"]).startswith("bachvid.")


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
