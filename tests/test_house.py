"""The rules of the house: where imports point, how long code is, what importing does, what no text names."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bachvid"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FUNCTION_LINES, FILE_LINES, COLUMNS = 50, 350, 110


class Arrows(NamedTuple):
    ours: str  # the parts of the package that a part may import
    outside: str | None = None  # and the libraries; None: all that pyproject.toml declares


ARROWS = {
    # A fork can take `models` or `sampling` alone.
    # ftfy, which repairs prompts, is used where somebody installed it, as diffusers does.
    "models": Arrows("", "torch einops safetensors transformers sentencepiece tokenizers ftfy"),
    "sampling": Arrows("", "torch"),
    "method": Arrows("models sampling", "torch safetensors einops"),
    # Pictures show tensors, arrays, numbers and text, which they are handed: they look nothing up.
    "pictures": Arrows("", "torch einops numpy av"),
    # Above. `errors` knows which exceptions the parts below raise.
    "errors": Arrows("models"),
    "console": Arrows(""),
    "story": Arrows("errors method"),
    "nouns": Arrows("errors method"),
    "settings": Arrows("errors models sampling method"),
    "folder": Arrows("errors models method pictures"),
    "album": Arrows("folder pictures"),
    "stage": Arrows("models sampling method pictures errors story"),
    "evaluate": Arrows("models sampling method pictures errors story stage"),
    "bench": Arrows("models sampling method pictures errors story settings evaluate"),
    "calibrate": Arrows(
        "models sampling method pictures errors story settings console stage evaluate bachvid"
    ),
    "run": Arrows(
        "models sampling method pictures evaluate errors story settings console folder album nouns"
    ),
    "__main__": Arrows("errors bachvid"),  # and every command, which it loads by name
    "bachvid": Arrows("", ""),  # bachvid/__init__.py
}

# Written in pieces, so that this file does not name them either.
HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("download.pytorch", "org"))]
MACHINE_PATHS = [f"/{folder}/" for folder in ("root", "work", "opt/pypi", "opt/wheels")]


def test_imports_point_one_way() -> None:
    problems = []
    for path in SOURCES:
        part = part_of(module_name(path))
        if part not in ARROWS:
            problems.append(f"{place(path)}: new part `{part}`; say in ARROWS what it may import")
            continue
        for line, name in imports(path):
            if name.split(".")[0] == "bachvid":
                allowed = part_of(name) in {part, *ARROWS[part].ours.split()}
            else:
                allowed = may_use(part, name.split(".")[0])
            if not allowed:
                problems.append(f"{place(path)}:{line}: `{part}` may not import {name}")
    assert not problems, "\n".join(problems)


def test_modules_are_loaded_by_name_only_for_commands() -> None:
    # An import that the test above cannot see. `__main__` has one: a command is loaded when it is called.
    by_name = [path for path in SOURCES if re.search(r"\b(import_module|__import__)\(", path.read_text())]
    assert by_name == [PACKAGE / "__main__.py"]


def test_functions_files_and_lines_are_short() -> None:
    problems = [over for path in SOURCES for over in (*long_files(path), *long_functions(path))]
    problems += [over for path in SOURCES + TESTS for over in long_lines(path)]
    assert not problems, "\n".join(problems)


def test_importing_has_no_effect(tmp_path: Path) -> None:
    modules = [module_name(path) for path in SOURCES]
    report = json.loads(in_fresh_python(tmp_path, str(ROOT / "tests" / "probe_imports.py"), *modules))
    assert list(report) == modules
    problems = [f"importing {module}: {effect}" for module in modules for effect in report[module]]
    assert not problems, "\n".join(problems)
    assert not list(tmp_path.iterdir())


def test_asking_for_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    source = "import sys, bachvid.__main__ as b; b.build_parser(); sys.exit('torch' in sys.modules)"
    in_fresh_python(tmp_path, "-c", source)


def test_no_text_names_a_machine_or_where_packages_come_from() -> None:
    paths = [rf"(?<![\w.]){path}" for path in MACHINE_PATHS]
    forbidden = re.compile("|".join([*map(re.escape, HOSTS), *paths]))
    problems = [
        f"{place(path)}:{number}: {match.group()}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := forbidden.search(line))
    ]
    assert not problems, "\n".join(problems)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import in a file, those inside functions and for types only included."""
    package = (
        module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    )
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def part_of(name: str) -> str:
    """The folder or module under the package that a dotted name is of, or `bachvid`, the package itself."""
    part = "".join(name.split(".")[1:2])
    exists = part and ((PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file())
    return part if exists else "bachvid"


def may_use(part: str, library: str) -> bool:
    if library in sys.stdlib_module_names:
        return True
    outside = ARROWS[part].outside
    return library in requirements() and (outside is None or library in outside.split())


def requirements() -> set[str]:
    """What the requirements in pyproject.toml, those of the users' extras included, are imported as."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + extras["plots"] + extras["prompts"] + extras["bench"]
    return {re.split(r"[^\w-]", line)[0] for line in lines}


def long_files(path: Path) -> Iterator[str]:
    count = len(path.read_text().splitlines())
    if count > FILE_LINES:
        yield f"{place(path)}: {count} lines, at most {FILE_LINES}"


def long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = (node.end_lineno or node.lineno) - node.lineno + 1
            if count > FUNCTION_LINES:
                yield f"{place(path)}:{node.lineno}: {count} lines in {node.name}, at most {FUNCTION_LINES}"


def long_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if len(line) > COLUMNS:
            yield f"{place(path)}:{number}: {len(line)} columns, at most {COLUMNS}"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the repository; what .gitignore leaves out is left out."""
    ignored = [".git", *(line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split())]
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not any(fnmatch(name, pattern) for pattern in ignored)]
        for path in (Path(folder, name) for name in files):
            if b"\0" not in (content := path.read_bytes()):
                yield path, content.decode(errors="replace")


def in_fresh_python(folder: Path, *args: str) -> str:
    """What `python args` prints, run in an empty folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-B", *args], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
