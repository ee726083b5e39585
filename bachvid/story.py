"""Stories: what the videos of a group share, and what happens in each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bachvid.errors import StoryError, UsageError
from bachvid.method.spans import Parts
from bachvid.method.words import Marks, unmarked

FORM = "background#character#action"
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

Group = TypeVar("Group")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Story:
    """One group: a place, a character, and one action for each video, the identity's first."""

    background: str
    character: str
    actions: tuple[str, ...]
    marked: Marks = ((), ())  # the words that stood in [square brackets]: what masks are to look for

    @classmethod
    def of(cls, background: str, character: str, actions: Sequence[str]) -> Story:
        """The story of these texts, the brackets taken off the words that are marked."""
        plain, marks = zip(*map(unmarked, (background, character, *actions)), strict=True)
        return cls(plain[0], plain[1], plain[2:], (marks[0], marks[1]))

    def __post_init__(self) -> None:
        for text in (self.background, self.character, *self.actions):
            if not readable(text):
                raise UsageError(f"The story's {text!r} is no text in UTF-8. Write it anew, or in a file.")
        empty = [name for name in ("background", "character") if not getattr(self, name).strip()]
        empty += ["action" for action in self.actions if not action.strip()]
        if empty or not self.actions:
            raise UsageError(
                f"The story has an empty {(empty or ['list of actions'])[0]}. Describe it in words."
            )

    @property
    def videos(self) -> list[Parts]:
        """The prompt of every video in parts, the identity's first."""
        return [Parts(self.background, self.character, action) for action in self.actions]


def readable(text: str) -> bool:
    """Whether a text has an encoding; what a terminal of another one passes on has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_model(name: str) -> Path:
    """The folder of a model: the path itself if it is one, else the folder of that name under `weights/`."""
    for folder in (Path(name), Path("weights") / name, WEIGHTS / name):
        if folder.is_dir():
            return folder
    if Path(name).is_file():
        raise UsageError(
            f"{name} is one file. Name the folder that holds it with VAE, text encoder and tokenizer."
        )
    shipped = ", ".join(sorted(p.parent.name for p in WEIGHTS.glob("*/model_index.json")))
    raise UsageError(
        f"There is no model {name!r}. Name a folder with a checkpoint, or a shipped model: {shipped}."
    )


def find_stories(args: argparse.Namespace, model: Path) -> list[Story]:
    """The story that was asked for: by flags, in a file, or the one that lies beside a shipped model."""
    flags = {"--background": args.background, "--character": args.character, "--action": args.action}
    given = [name for name, value in flags.items() if value is not None]
    if args.story and given:
        raise UsageError(f"A story file and {given[0]} were both given. Use one or the other.")
    if given:
        if missing := [name for name in flags if name not in given]:
            raise UsageError(f"{missing[0]} is missing: a story needs {', '.join(flags)}.")
        return [Story.of(args.background, args.character, args.action)]
    if args.story:
        return read_stories(args.story)
    if (model / "story.txt").is_file():
        return read_stories(model / "story.txt")
    raise UsageError(f"No story was given for {model.name}. Name a story file, or use {', '.join(flags)}.")


def read_stories(path: Path) -> list[Story]:
    """The groups in a text file of `background#character#action` lines; a blank line starts a new group.

    This is CharaConsist's form. Lines of one group repeat its background and character. StoryError names
    file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(
            f"The story {path} cannot be read: {error.strerror}. Name a file of {FORM} lines."
        ) from error
    except UnicodeDecodeError as error:
        raise StoryError("The story is not UTF-8 text. Save it as UTF-8.", path) from error
    groups: list[list[Parts]] = [[]]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            groups.append([])
            continue
        parts = _read_line(line, path, number)
        if groups[-1] and _shared(parts) != _shared(groups[-1][0]):
            raise StoryError(
                "Background or character differ from the line above. Repeat them, or leave a blank line.",
                path,
                number,
            )
        groups[-1].append(parts)
    stories = [Story.of(*_shared(group[0]), [parts.action for parts in group]) for group in groups if group]
    if not stories:
        raise StoryError(f"The story is empty. Write one {FORM} line for each video.", path)
    return stories


def of_each(groups: Sequence[Group], find: Callable[[Group], Found]) -> list[Found]:
    """What `find` returns for every group; where it raises ValueError, UsageError tells for which."""
    found = []
    for number, group in enumerate(groups, start=1):
        try:
            found.append(find(group))
        except ValueError as error:
            raise UsageError(f"In group {number}: {error}" if len(groups) > 1 else str(error)) from error
    return found


def _read_line(line: str, path: Path, number: int) -> Parts:
    texts = [" ".join(text.split()) for text in line.split("#")]
    if len(texts) != 3:
        raise StoryError(f"A line needs three parts, {FORM}, and this one has {len(texts)}.", path, number)
    for name, text in zip(FORM.split("#"), texts, strict=True):
        if not text:
            raise StoryError(f"The {name} is empty. Describe it in words.", path, number)
    return Parts(*texts)


def _shared(parts: Parts) -> tuple[str, str]:
    return parts.background, parts.character
