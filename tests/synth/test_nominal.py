from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tsugiki.errors import DataError, ImageError
from tsugiki.synth.backgrounds import listed
from tsugiki.synth.nominal import Nominal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        place = tmp_path / "inner" if i % 2 else tmp_path
        Image.fromarray(rng.integers(0, 256, (64, 80), dtype=np.uint8)).save(place / f"{i}.png")
    return tmp_path


def test_no_photograph_is_in_both_splits(folder: Path) -> None:
    train, test = (Nominal.of(split, folder, 0.3) for split in ("train", "test"))
    assert (len(train.names), len(test.names)) == (7, 3)
    assert not set(train.names) & set(test.names)
    assert all((folder / name).is_file() for name in train.names + test.names)
    # A copy under another name is in the same split.
    shutil.copy(folder / test.names[0], folder / "copy.png")
    assert "copy.png" in Nominal.of("test", folder, 0.3).names
    assert "copy.png" not in Nominal.of("train", folder, 0.3).names


def test_either_split_has_one(folder: Path) -> None:
    assert len(Nominal.of("test", folder, 0.001).names) == len(Nominal.of("train", folder, 0.999).names) == 1


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    for share in (0, 1, -1):
        with pytest.raises(DataError, match="test_share"):
            Nominal.of("train", folder, share)
    with pytest.raises(DataError, match="no such folder"):
        Nominal.of("train", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture in it"):
        Nominal.of("train", tmp_path / "empty")
    for name in ("a.png", "b.png"):
        Image.new("L", (64, 64)).save(tmp_path / "empty" / name)
    with pytest.raises(DataError, match="1 different photographs; expected two or more"):
        Nominal.of("train", tmp_path / "empty")
    for size in ((63, 90), (300, 90)):
        Image.new("L", size).save(folder / "wrong.png")
        with pytest.raises(DataError, match=rf"wrong\.png: {size[0]}x{size[1]} pixels; expected at least 64"):
            Nominal.of("train", folder)
    (folder / "wrong.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"wrong\.png"):
        Nominal.of("train", folder)


@pytest.mark.assets("fabric")
def test_the_asset() -> None:
    for split in ("train", "test"):
        nominal = Nominal.of(split)
        assert nominal.names == listed()[split]
        assert (nominal.folder / nominal.names[0]).is_file()
        assert "MIT" in nominal.attribution
