"""Imports point one way, from a room to the rooms below it, also those inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tsugiki

ROOT = Path(tsugiki.__file__).parent
LEVELS = [
    {"_wheels", "_gguf", "_leftovers", "types", "errors", "extras", "assets"},
    {"data"},
    {"synth"},
    {"vision"},
    {"decoder"},
    {"grafts"},
    {
        "branches",
        "model",
        "processor",
        "store",
        "starter",
        "build",
        "card",
        "chat",
        "configuration",
        "generation",
        "identity",
    },  # fmt: skip
    {"evals"},
    {"mixing"},
    {"training"},
    {"studies"},
    {"cli", "testing", ""},  # "" is the package itself, with the names that users see
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
FILES = [file for file in sorted(ROOT.rglob("*.py")) if file != ROOT / "__init__.py"]


def rooms_of(file: Path) -> Iterator[tuple[int, str]]:
    """Line and first name below `tsugiki` of everything that a file imports from the package."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno}: imports are absolute"
            module = node.module or ""
            names = [f"tsugiki.{alias.name}" for alias in node.names] if module == "tsugiki" else [module]
        for name in names:
            if name == "tsugiki" or name.startswith("tsugiki."):
                yield node.lineno, name.partition(".")[2].split(".")[0]


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_a_file_imports_its_own_room_and_those_below(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0].removesuffix(".py")
    assert room in LEVEL, f"{room} has no place in the order"
    for line, other in rooms_of(file):
        assert other in LEVEL, f"{file.name}:{line} imports tsugiki.{other}, which has no place in the order"
        assert LEVEL[other] <= LEVEL[room], f"{file.name}:{line}: {room} imports {other}, which stands above it"


def test_every_level_is_there() -> None:
    missing = {room for room in LEVEL if room and not (ROOT / room).is_dir() and not (ROOT / f"{room}.py").is_file()}
    assert not missing
