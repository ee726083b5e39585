"""`bachvid <command>`: every command under one name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from bachvid import __doc__ as about
from bachvid import __version__
from bachvid.errors import Exit, guarded, sentence_of


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code (see `errors.Exit`) of the command in `argv`, by default the process's own arguments."""
    try:
        args = build_parser().parse_args(argv)  # imports the command, torch with it
    except KeyboardInterrupt as error:
        print(f"bachvid: {sentence_of(error, Exit.INTERRUPTED)}", file=sys.stderr)
        return Exit.INTERRUPTED
    return guarded(args.command, args)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; the function that carries the command out is left in `args.command`."""
    parser = argparse.ArgumentParser(prog="bachvid", description=str(about).partition("\n")[0])
    parser.add_argument("--version", action="version", version=f"bachvid {__version__}")
    commands = parser.add_subparsers(metavar="<command>", required=True, parser_class=Command)
    add(commands, "run", "make one group of videos", "bachvid.run")
    add(commands, "calibrate", "find the layers and steps of a checkpoint", "bachvid.calibrate.command")
    add(commands, "evaluate", "measure what runs came to", "bachvid.evaluate.command")
    add(commands, "bench", "measure what the method costs at true size", "bachvid.bench.command")

    stage = add(commands, "stage", "the small world that the shipped weights know")
    stages = stage.add_subparsers(metavar="<command>", required=True, parser_class=Command)
    add(stages, "train", "train the shipped weights", "bachvid.stage.train")
    return parser


def add(commands: Any, name: str, what: str, module: str | None = None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=what, allow_abbrev=False, module=module
    )
    return parser


class Command(argparse.ArgumentParser):
    """The parser of one command, which imports the command's module only when the user calls it.

    The module offers `add_arguments(parser)` and `main(args) -> exit code`.
    """

    def __init__(self, *args: Any, module: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.module = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.module is not None:
            command = import_module(self.module)
            command.add_arguments(self)
            self.add_argument("--debug", action="store_true", help="show the traceback if something fails")
            self.set_defaults(command=command.main)
            self.module = None  # its arguments are known from here on
        return super().parse_known_args(args, namespace)


if __name__ == "__main__":
    sys.exit(main())
