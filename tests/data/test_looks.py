"""A picture is decoded once for all that compares it, and again when its file changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tsugiki.data import looks, splits
from tsugiki.data.images import pixel_key
from tsugiki.data.looks import look, look_ahead
from tsugiki.errors import ImageError
from tsugiki.testing import tiny_images


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = []
    for i, image in enumerate(tiny_images(5)):
        found.append(tmp_path / f"写真{i}.png")
        image.save(found[-1])
    return found


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that is decoded, with nothing remembered before."""
    looks._known.clear()
    seen: list[Any] = []
    real = looks.open_image
    monkeypatch.setattr(looks, "open_image", lambda s, **options: (seen.append(s), real(s, **options))[1])
    return seen


def test_small_forms_are_those_of_loops(files: list[Path]) -> None:
    found = look(files[0])
    image = Image.open(files[0]).convert("RGB")
    assert found.key == pixel_key(files[0])
    light = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.float64)
    for row in range(8):
        for column in range(8):
            assert found.bits[8 * row + column] == (light[row, column] > light[row, column + 1] + 3)
    assert found.cells.shape == (768,) and abs(float(found.cells.mean())) < 1e-3
    assert float(np.linalg.norm(found.grey)) == pytest.approx(1, abs=1e-5)
    assert not look(Image.new("RGB", (40, 40), "red")).grey.any()


def test_a_file_is_decoded_once_until_it_changes(files: list[Path], decoded: list[Any]) -> None:
    splits.near_duplicate_groups(files)
    assert sorted(map(str, decoded)) == sorted(map(str, files))
    splits.near_duplicate_groups([*map(str, files)])
    assert len(decoded) == 5
    before = look(files[0]).key
    tiny_images(6)[5].save(files[0])
    os.utime(files[0], ns=(1, 1))
    assert look(files[0]).key != before and len(decoded) == 6


def test_looking_ahead_is_looking(files: list[Path], decoded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bad = files[0].with_name("bad.png")
    bad.write_bytes(b"no picture")
    look_ahead([*files, bad, files[0].with_name("gone.png"), b"bytes", "a\0b", "x" * 5000])
    assert sorted(map(str, decoded)) == sorted(map(str, files))
    ahead = [look(f) for f in files]
    assert len(decoded) == 5
    looks._known.clear()
    for one, file in zip(ahead, files, strict=True):
        now = look(file)
        assert now.key == one.key and all(
            np.array_equal(getattr(now, name), getattr(one, name)) for name in ("bits", "cells", "grey")
        )
    with pytest.raises(ImageError, match=r"own\.jsonl:3.*bad\.png"):
        look(bad, where="own.jsonl:3")
    looks._known.clear()
    decoded.clear()
    monkeypatch.setattr(looks, "SMALL", 10)  # large ones are left to the caller
    look_ahead(files)
    assert decoded == []


def test_the_oldest_are_forgotten(files: list[Path], decoded: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "REMEMBERED", 2)
    for file in files[:3]:
        look(file)
    look(files[1])
    assert len(decoded) == 3
    look(files[0])
    assert len(decoded) == 4 and len(looks._known) == 2
