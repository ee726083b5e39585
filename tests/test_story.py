"""Story files: CharaConsist's lines, and what is said about a line that does not fit.

pytest tests/test_story.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bachvid.errors import StoryError
from bachvid.folder import slug
from bachvid.story import Story, read_stories


def test_a_blank_line_starts_a_group(tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text(
        "\n a  sea#a fox#runs\na sea#a fox#sleeps \n\n\na wood#an owl#flies\n", encoding="utf-8-sig"
    )
    assert read_stories(file) == [
        Story("a sea", "a fox", ("runs", "sleeps")),
        Story("a wood", "an owl", ("flies",)),
    ]


@pytest.mark.parametrize(
    ("text", "sentence", "line"),
    [
        ("a sea#a fox", "needs three parts", 1),
        ("a sea#a fox#runs\na sea##sleeps", "The character is empty", 2),
        ("a sea#a fox#runs\na lake#a fox#sleeps", "differ from the line above", 2),
        ("\n \n", "The story is empty", None),
    ],
)
def test_a_line_that_does_not_fit_is_named(
    tmp_path: Path, text: str, sentence: str, line: int | None
) -> None:
    file = tmp_path / "story.txt"
    file.write_text(text)
    with pytest.raises(StoryError, match=sentence) as caught:
        read_stories(file)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Opens the window!", "opens-the-window"),
        ("../../etc/passwd\t*:", "etc-passwd"),
        ("猫", "video"),
        ("a" * 99, "video"),
    ],
)
def test_names_from_prompts_are_safe_as_files(text: str, name: str) -> None:
    assert slug(text) == name
