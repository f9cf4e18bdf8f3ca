"""Damaged input ends in one line: a short form of benchmarks/fuzz.py, and what it has found."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tsugiki.data.bank import Bank
from tsugiki.data.convert import coco, voc
from tsugiki.data.images import image_size, open_image
from tsugiki.errors import ImageError, RecipeError, StoreError
from tsugiki.training import recipe

ROOT = Path(__file__).parents[2]


def test_nothing_escapes_and_nothing_changed_is_accepted() -> None:
    command = [sys.executable, "benchmarks/fuzz.py", "--inputs", "480"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    *_, every = json.loads(done.stdout.splitlines()[-1])
    assert every.pop("input") == "all" and every.pop("inputs") >= 480
    assert set(every.values()) == {0}, done.stderr[-2000:]


@pytest.mark.parametrize(
    "text",
    [
        "name: &a [*a]\nstages: []",
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "stages: " + "[" * 5000,
        "stages: 2001-99-99",
    ],
)
def test_a_recipe_that_is_endless(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError):
        recipe.load(tmp_path / "a.yaml")


def test_a_picture_whose_name_is_too_long(tmp_path: Path) -> None:
    name = "a" * 3000
    (tmp_path / "a.xml").write_text(f"<annotation><filename>{name}</filename></annotation>")
    with pytest.raises(ImageError, match="does not exist"):
        voc.convert(tmp_path)
    content = {"images": [{"id": 1, "file_name": name}], "categories": [], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ImageError, match="does not exist"):
        coco.convert(tmp_path / "a.json")


@pytest.mark.parametrize("raw", [b"\x89P", b"\xff\xd8", b"abc", b"\x00\x00\x01"])
def test_a_picture_of_a_few_bytes(raw: bytes) -> None:
    for read in (image_size, open_image):
        with pytest.raises(ImageError, match="not a picture"):
            read(raw)


@pytest.mark.parametrize("change", ["DELETE FROM meta WHERE key = 'version'", "UPDATE meta SET value = x'ff'"])
def test_a_bank_without_its_facts(tmp_path: Path, change: str) -> None:
    Bank.create(tmp_path / "bank", tower="t", fingerprint="f", width=4).close()
    with sqlite3.connect(tmp_path / "bank" / "bank.sqlite") as connection:
        connection.execute(change)
    with pytest.raises(StoreError):
        Bank.open(tmp_path / "bank")
