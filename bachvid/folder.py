"""The run folder: where every file of a run lies, and videos on their way into it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bachvid.errors import UsageError, check_writable
from bachvid.method.denoiser import Prompt
from bachvid.method.spans import Parts
from bachvid.models.weights import save
from bachvid.pictures.files import write_json
from bachvid.pictures.frames import Frames

CONFIG = "config.json"


@dataclass(eq=False)
class Made:
    """One video of a run, as far as it has come: latents first, then what the method saw, then pixels."""

    name: str  # its folder inside the run's, such as shots/01-waves
    parts: Parts
    latents: Tensor
    seed: int
    prompt: Prompt
    mask: Tensor | None = None  # T h w bool
    partner: Tensor | None = None  # N int64, the identity's token that each of its tokens matches
    note: str | None = None  # what was left out, in one sentence
    frames: Frames = field(default_factory=lambda: np.empty((0, 0, 0, 3), np.uint8), repr=False)  # F H W 3


@dataclass(frozen=True)
class RunFolder:
    """A folder that one run fills; every file in it appears whole or not at all."""

    path: Path

    @classmethod
    def choose(cls, out: Path | None, about: str) -> RunFolder:
        """The folder a run will fill: `out`, or one under `runs/` named after the story and the time.

        Nothing is made yet. UsageError if it holds files already or cannot be written.
        """
        path = out or Path("runs") / f"{slug(about)}-{time.strftime('%Y%m%d-%H%M%S')}"
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists already and is not empty. Name another folder with --out.")
        check_writable(path, "--out", folder=True)
        return cls(path)

    @classmethod
    def choose_all(cls, out: Path | None, abouts: Sequence[str]) -> list[RunFolder]:
        """One for each group, named after what it is about; of several, numbered ones in `out`."""
        if len(abouts) == 1:
            return [cls.choose(out, abouts[0])]
        base = out or cls.choose(None, abouts[0]).path
        return [cls.choose(base / f"{n:02}", about) for n, about in enumerate(abouts, start=1)]

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """While a run fills it, others keep out; a failure that leaves no video in it leaves nothing.

        UsageError if another run fills it, or has filled it since it was chosen.
        """
        new = [folder for folder in (self.path, *self.path.absolute().parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        claim = self.path / ".claimed"
        try:
            claim.touch(exist_ok=False)
        except FileExistsError as error:
            raise UsageError(f"{self.path} is another run's. Name another folder with --out.") from error
        try:
            if list(self.path.iterdir()) != [claim]:
                raise UsageError(f"{self.path} is another run's by now. Name another folder with --out.")
            yield
        finally:
            claim.unlink(missing_ok=True)
            with suppress(OSError):  # a folder that is not empty stays
                if [file.name for file in self.path.iterdir()] == [CONFIG]:
                    (self.path / CONFIG).unlink()
                for folder in new:
                    folder.rmdir()

    def __truediv__(self, name: str) -> Path:
        """The path of a file in here, its folder made if there is none."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_json(self, name: str, values: Any) -> None:
        """Write plain values, readable by people."""
        write_json(self.path / name, values)

    def write_latents(self, video: Made) -> None:
        """Write a video's final latents beside where its mp4 will stand."""
        path = self.path / video.name / "latents.safetensors"
        save({"latents": video.latents}, path, seed=str(video.seed))


def slug(text: str, longest: int = 40) -> str:
    """A short name for files made from any text: lower-case letters, digits and hyphens."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    name = ""
    for word in words:
        if len(name) + len(word) + 1 > longest:
            break
        name = f"{name}-{word}" if name else word
    return name or "video"


def manifest(videos: list[Made], seconds: dict[str, float]) -> dict[str, Any]:
    """What a run made, for `manifest.json`."""
    return {
        "torch": torch.__version__,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "videos": [
            {
                "folder": video.name,
                "prompt": video.prompt.wording,
                "tokens": {name: span.cpu().tolist() for name, span in video.prompt.spans._asdict().items()},
                "seed": video.seed,
                "frames": len(video.frames),
                "foreground": None if video.mask is None else round(video.mask.float().mean().item(), 4),
                "note": video.note,
            }
            for video in videos
        ],
    }
