"""What README.md says is true: its commands are understood, its tree and its equations lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bachvid.__main__ import build_parser

ROOT = Path(__file__).resolve().parents[1]

BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A command in a block, perhaps behind a prompt, another command or variables; and one in a sentence.
COMMAND = re.compile(r"(?:^|&&|;)\s*(?:\$ )?(?:\w+=\S* )*(?:make|(?:\S*/)?(?:bachvid|python[\d.]*))(?: |$)")
IN_A_SENTENCE = re.compile(r"(?<!`)`((?:make |bachvid |python -m bachvid)[^`\n]*)`(?!`)")
EQUATIONS = re.compile(r"\b(?:Eqs?|Equations?)\b\.?((?:\s*(?:,|and|-|–|to)?\s*\(?\d+\)?)+)")
REFERENCE = re.compile(r"([\w/]+\.py):([\w.]+)")


@pytest.fixture(scope="module")
def readme() -> str:
    path = ROOT / "README.md"
    assert path.is_file(), "README.md is missing: its commands, tree and equations are to be held to the code"
    return path.read_text()


def test_every_command_is_understood(readme: str) -> None:
    quoted = list(commands(readme))
    assert any(words[0] == "make" for words in quoted), "README.md shows no `make` command"
    assert any(is_bachvid(words) for words in quoted), "README.md shows no `bachvid` command"
    problems = [f"`{shlex.join(words)}`: {why}" for words in quoted if (why := misunderstood(words))]
    assert not problems, "\n".join(problems)


def test_every_module_run_by_name_is_its_command(readme: str) -> None:
    # `python -m bachvid.run` and `bachvid run` are one program: they know the same flags.
    modules = {words[2] for words in commands(readme) if words[1:2] == ["-m"] and is_bachvid(words)}
    for module in sorted(modules - {"bachvid"}):
        directly = flags_of("-m", module)
        assert directly and directly == flags_of("-m", *module.split(".")), module


def test_every_equation_leads_to_code_that_names_it(readme: str) -> None:
    rows = [row for row in readme.splitlines() if row[:1] == "|" and REFERENCE.search(row) and equations(row)]
    assert rows, "README.md has no table with rows such as `| Eq. 4 | method/mask.py:foreground |`"
    problems = [problem for row in rows for problem in loose_ends(row)]
    assert not problems, "\n".join(problems)


def test_every_file_of_the_tree_exists(readme: str) -> None:
    is_tree = re.compile(r"^\W*bachvid/(\s|$)", re.MULTILINE)
    trees = [block for block in BLOCK.findall(readme) if is_tree.search(block)]
    assert trees, "README.md shows no tree of the repository, a code block with a line `bachvid/`"
    missing = [str(path.relative_to(ROOT)) for tree in trees for path in files_of(tree) if not path.exists()]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("part", ["method", "sampling"])
def test_the_tree_names_every_file_of_what_is_to_be_read(readme: str, part: str) -> None:
    there = {path.name for path in (ROOT / "bachvid" / part).glob("[a-z]*.py")}
    named = set(re.findall(r"\w+\.py", "".join(BLOCK.findall(readme))))
    assert not there - named, f"not in README.md's tree: {', '.join(sorted(there - named))}"


def commands(readme: str) -> Iterator[list[str]]:
    """Every `make`, `bachvid` and `python -m bachvid` command, as words, without prompt and variables."""
    lines = [line for block in BLOCK.findall(readme) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*filter(COMMAND.search, lines), *IN_A_SENTENCE.findall(BLOCK.sub("", readme))]:
        shell = shlex.shlex(line, posix=True, punctuation_chars=True)
        shell.whitespace_split = True
        words: list[str] = []
        for word in [*shell, ";"]:
            if not word or set(word) - set("&|;"):
                words.append(word)
                continue
            while words and (words[0] == "$" or re.fullmatch(r"\w+=.*", words[0])):
                words.pop(0)
            if words and (words[0] == "make" or is_bachvid(words)):
                yield words
            words = []


def flags_of(*program: str) -> set[str]:
    """The flags that `python program --help` lists; none where it fails."""
    command, wide = [sys.executable, *program, "--help"], {**os.environ, "COLUMNS": "9999"}
    shown = subprocess.run(command, cwd=ROOT, env=wide, capture_output=True, text=True).stdout
    return set(re.findall(r"--[\w-]+", shown))


def is_bachvid(words: list[str]) -> bool:
    if re.fullmatch(r"python[\d.]*", Path(words[0]).name):
        return words[1:2] == ["-m"] and "".join(words[2:3]).split(".")[0] == "bachvid"
    return Path(words[0]).name == "bachvid"


def misunderstood(words: list[str]) -> str:
    """Why a command would not start; empty if it would."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        wrong = [word for word in words[1:] if not re.search("^-|=", word) and word not in targets]
        return f"the Makefile has no {', '.join(wrong)}" if wrong else ""
    if words[1:2] == ["-m"]:
        words = [*words[2].split("."), *words[3:]]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            build_parser().parse_args(words[1:])
    except SystemExit as stop:  # --help and --version stop with 0
        return said.getvalue().strip().splitlines()[-1] if stop.code else ""
    return ""


def loose_ends(row: str) -> Iterator[str]:
    """What a row promises in vain: that its names exist, and that their docstrings name its equations."""
    left = equations(row)
    for file, name in REFERENCE.findall(row):
        docstring = docstring_of(ROOT / "bachvid" / file.removeprefix("bachvid/"), name)
        if docstring is None:
            yield f"{file} has no {name}, which README.md names: {row}"
        elif not equations(docstring) & equations(row):
            yield f"{file}: the docstring of {name} names no equation of {row}"
        left -= equations(docstring or "")
    if left:
        yield f"no docstring names Eq. {', '.join(map(str, sorted(left)))} of {row}"


def equations(text: str) -> set[int]:
    """The numbers in "Eq. 4", "Eq. 7-8", "Eqs. 2, 3 and 5"."""
    found: set[int] = set()
    for numbers in EQUATIONS.findall(text):
        for first, last in re.findall(r"(\d+)\)?(?:\s*(?:-|–|to)\s*\(?(\d+))?", numbers):
            found |= set(range(int(first), int(last or first) + 1))
    return found


def docstring_of(file: Path, name: str) -> str | None:
    """The docstring of a function, class or method, perhaps empty; None where there is no such thing."""
    node: ast.AST | None = ast.parse(file.read_text()) if file.is_file() else None
    for part in name.split("."):
        body = getattr(node, "body", [])
        node = next((child for child in body if getattr(child, "name", None) == part), None)
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return None
    return ast.get_docstring(node) or ""


def files_of(tree: str) -> Iterator[Path]:
    """The paths of a tree: a line holds one name or more, and two spaces before what it says about them."""
    folders: list[tuple[int, Path]] = []
    for line in filter(str.strip, tree.splitlines()):
        name_at = re.search(r"[\w.]", line)
        assert name_at, f"a line without a name: {line}"
        depth, names = name_at.start(), re.split(r"\s{2,}", line[name_at.start() :])[0].split()
        folders = [(at, folder) for at, folder in folders if at < depth]
        above = folders[-1][1] if folders else ROOT
        yield from (above / name for name in names)
        folders.append((depth, above / names[0]))
