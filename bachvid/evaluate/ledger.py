"""Results on disk, piece by piece, so that a long measurement goes on where it was stopped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bachvid.errors import UsageError


class Ledger:
    """A file of JSON lines: the settings of a measurement, then one line for every piece that is done.

    Several processes may add to one file: every line is one write to its end, and brings the line break
    before it, so that a line which a crash cut short stays alone and counts for nothing.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], fix: str = "Delete it, or choose another --out."
    ) -> None:
        """Opens the file, or begins it; UsageError if it holds results of other settings.

        `fix` is what to do then: it must name all that was kept beside the file and would be used again.
        """
        self.path, self.settings, self.fix = path, settings, fix
        self._begin(settings)
        known = self._lines()[0]
        for name in (*known, *settings):
            if known.get(name) != settings.get(name):
                raise UsageError(
                    f"{path} holds results of another {name} "
                    f"({known.get(name)!s:.60}, not {settings.get(name)!s:.60}). {self.fix}"
                )

    def _begin(self, settings: Mapping[str, Any]) -> None:
        """Makes the file with its first line, unless it is there; a link appears whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        draft.write_text(json.dumps(settings), encoding="utf-8")
        try:
            os.link(draft, self.path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()

    def done(self) -> dict[str, dict[str, float]]:
        """What was measured of each piece that is done, by its name; null is NaN."""
        lines = self._lines()[1:]
        return {
            line["of"]: {k: math.nan if v is None else v for k, v in line["measured"].items()}
            for line in lines
        }

    def add(self, of: str, measured: Mapping[str, float]) -> None:
        """Write down what was measured of a piece."""
        values = {name: None if math.isnan(value) else value for name, value in measured.items()}
        line = "\n" + json.dumps({"of": of, "measured": values}, allow_nan=False)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_text(encoding="utf-8").split("\n"):
            try:
                found.append(json.loads(line))
            except ValueError:  # cut short
                continue
        if not found:
            raise UsageError(f"{self.path} holds no results. {self.fix}")
        return found
