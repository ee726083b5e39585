"""Which words call which command, and what a command that fails leaves: an exit code and one sentence."""

from __future__ import annotations

import json
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bachvid import __version__
from bachvid.__main__ import main
from bachvid.errors import StoryError, UsageError, guarded
from bachvid.models.checkpoint import open_checkpoint
from bachvid.sampling.schedule import cogvideox_schedule


def exit_code(command: Callable[[], object], debug: bool = False) -> int:
    return guarded(lambda args: int(bool(command())), Namespace(debug=debug))


def refuse(error: Exception) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def interrupt() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


FAILURES = {
    "a flag": (refuse(UsageError("--steps must be 1 or more.")), 2, "--steps must be 1 or more."),
    "a story": (
        refuse(StoryError("Shot 2 has no action.", "a/story.yaml", 7)),
        2,
        "no action.  a/story.yaml:7",
    ),
    "a whole story": (refuse(StoryError("No shots.", "story.yaml")), 2, "No shots.  story.yaml"),
    "a value refused below": (lambda: cogvideox_schedule(0), 2, "Choose 1 to 1000"),
    "no weights": (lambda: open_checkpoint("no/such/folder"), 3, "no/such/folder"),
    "host memory": (lambda: torch.empty(2**46), 4, "out of memory; a smaller size"),
    "apple memory": (refuse(RuntimeError("MPS backend out of memory (MPS")), 4, "out of memory; a smaller"),
    "python memory": (lambda: bytearray(2**62), 4, "out of memory; a smaller size"),
    "a library's value error": (lambda: json.loads("{"), 1, "JSONDecodeError: Expecting"),
    "a bug": (lambda: {}["latents"], 1, "KeyError: 'latents' (--debug shows where)"),
    "Ctrl-C": (interrupt, 130, "interrupted."),
    "a scheduler": (terminate, 143, "told to end (SIGTERM)."),
}


@pytest.mark.parametrize(("command", "code", "sentence"), FAILURES.values(), ids=FAILURES)
def test_a_failure_becomes_a_code_and_a_sentence(
    command: Callable[[], object], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(command) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("bachvid: ") and sentence in said.err
    assert said.err.count("\n") == 1  # one sentence, no traceback


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: cogvideox_schedule(0), debug=True) == 2
    assert "schedule.py" in capsys.readouterr().err


def test_a_command_that_succeeds_keeps_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda args: 5, Namespace(debug=False)) == 5
    assert capsys.readouterr() == ("", "")


def test_outside_a_command_signals_are_whose_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(terminate) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    with ThreadPoolExecutor() as pool:  # where signals cannot be handled, a command runs all the same
        assert pool.submit(guarded, lambda args: 5, Namespace(debug=False)).result() == 5


def test_an_assertion_is_our_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(refuse(AssertionError())) == 1
    assert "AssertionError" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["walk"], ["stage"], ["stage", "walk"], ["run", "--no-such-flag"]])
def test_words_that_call_nothing_are_bad_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("usage: bachvid")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"bachvid {__version__}\n"


@pytest.mark.parametrize("command", [["run"], ["evaluate"], ["stage", "train"]])
def test_every_command_explains_itself(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: bachvid {' '.join(command)} ") and "--debug" in said


@pytest.mark.parametrize("ends", [[], ["--steps", "3", "--more", "1"], ["--minutes", "1", "--steps", "3"]])
def test_a_training_has_one_end(ends: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    assert main(["stage", "train", "--work", str(work), *ends]) == 2
    assert "give --minutes, --steps or --more" in capsys.readouterr().err and not work.exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--steps", "0"], "--steps 0 is no end"),
        (["--minutes", "-1"], "--minutes -1 is no end"),
        (["--more", "nan"], "--more nan is no end"),
        (["--steps", "1"], "weights/tiny-cogvideox holds a model"),  # the shipped one, and nobody named it
    ],
)
def test_no_training_without_end_and_none_over_shipped_weights(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    assert main(["stage", "train", "--work", str(work), *flags]) == 2
    assert sentence in capsys.readouterr().err and not work.exists()


def test_a_command_is_called_with_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "no-such-model"
    assert main(["run", "--model", str(model)]) == 2
    assert str(model) in capsys.readouterr().err
