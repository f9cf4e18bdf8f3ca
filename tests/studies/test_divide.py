"""The split: no class is asked that was not learned, like pictures keep together, too little is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.studies._pictures import folder, picture

from tsugiki.errors import DataError
from tsugiki.studies import _own
from tsugiki.studies._divide import alike, class_of, divide, nearness
from tsugiki.types import Sample


def read(root: Path) -> list[Sample]:
    return _own.read(root).samples


def test_every_sample_once_and_every_class_everywhere(tmp_path: Path) -> None:
    samples = read(folder(tmp_path, (20, 20, 10)))
    parts = divide(samples, seed=1)
    assert len(parts.train) + len(parts.test) == 50
    assert abs(len(parts.test) - 12.5) < 2 and abs(len(parts.hold) - 7.5) < 2
    assert {s.id for s in parts.train} | {s.id for s in parts.test} == {s.id for s in samples}
    assert not {s.id for s in parts.train} & {s.id for s in parts.test}
    for content in (parts.inner, parts.held, parts.test):
        assert {class_of(s) for s in content} == {"良品", "不良", "third"}
    assert len(parts.inner) + len(parts.held) == len(parts.train)
    assert divide(samples, seed=1) == parts != divide(samples, seed=2)
    assert parts.notes == ()


def test_a_class_of_one_picture_trains_and_is_told(tmp_path: Path) -> None:
    for seed in range(5):
        root = tmp_path / str(seed)
        parts = divide(read(folder(root, (9, 9, 1))), seed=seed)
        assert "third" in {class_of(s) for s in parts.inner}
        assert "third" not in {class_of(s) for s in [*parts.test, *parts.held]}
        assert any("Few pictures of: third 1." in note for note in parts.notes)
        assert any("Only 19 pictures" in note for note in parts.notes)
        assert any("Never tested" in note and "third" in note for note in parts.notes)


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    root = folder(tmp_path, (10, 10))
    for i in range(3):
        picture(0, i).point(lambda v: min(v + 3, 255)).save(root / "良品" / f"brighter {i}.png")
    picture(1, 99, 80).save(root / "不良" / "large.png")
    parts = divide(read(root))
    where = {s.id: name for name in ("train", "test") for s in getattr(parts, name)}
    for i in range(3):
        assert where[f"良品/写真 {i}.png"] == where[f"良品/brighter {i}.png"]
    assert any("6 samples in 3 groups" in note for note in parts.notes)
    assert any("2 sizes of pictures, from 40x40 to 80x80" in note for note in parts.notes)


def test_a_fixed_camera(tmp_path: Path) -> None:
    for label, name in enumerate(("ok", "scratch")):
        (tmp_path / name).mkdir()
        for i in range(8):
            same = picture(2, 0, 80).copy()
            same.putpixel((10 * label, 5 * i), (255, 255, 255))
            same.save(tmp_path / name / f"{i}.png")
    parts = divide(read(tmp_path))
    assert any("a fixed camera?" in note for note in parts.notes)
    assert {class_of(s) for s in parts.test} == {"ok", "scratch"}


def test_a_fixed_camera_before_two_things(tmp_path: Path) -> None:
    """Each class looks nearly the same, and no class is most of the pictures."""
    for label, name in enumerate(("ok", "scratch")):
        (tmp_path / name).mkdir()
        for i in range(6):
            picture(label, 0).point(lambda v, i=i: min(v + i, 255)).save(tmp_path / name / f"{i}.png")
    samples, notes = read(tmp_path), list[str]()
    assert nearness(samples) is None and len(set(alike(samples, notes).values())) == 12
    assert "a fixed camera?" in notes[0]
    parts = divide(samples)
    assert parts.near is None and {class_of(s) for s in parts.test} == {"ok", "scratch"}


def test_a_split_that_the_data_names(tmp_path: Path) -> None:
    folder(tmp_path / "train", (6, 6))
    for label, name in enumerate(("良品", "不良")):
        (tmp_path / "test" / name).mkdir(parents=True)
        picture(label, 100).save(tmp_path / "test" / name / "a.png")
    parts = divide(read(tmp_path))
    assert {s.meta["split"] for s in parts.train} == {"train"} and len(parts.test) == 2
    assert 0 < len(parts.hold) < 6
    (tmp_path / "val").mkdir()
    (tmp_path / "test" / "良品").rename(tmp_path / "val" / "良品")
    parts = divide(read(tmp_path))
    assert [s.meta["split"] for s in parts.held] == ["val"]
    assert [s.meta["split"] for s in parts.test] == ["test"]
    picture(0, 0).save(tmp_path / "test" / "不良" / "again.bmp")
    with pytest.raises(DataError, match="same pixels"):
        divide(read(tmp_path))


def test_too_little(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="7 different pictures; expected 8"):
        divide(read(folder(tmp_path / "few", (4, 3))))
    with pytest.raises(DataError, match="one class only, '良品'"):
        divide(read(folder(tmp_path / "one", (12,))))
    parts = divide(read(folder(tmp_path / "small", (5, 5))))
    assert parts.hold == () and parts.test
    for label, name in enumerate("ab"):
        (tmp_path / "copies" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 40), (90 * label, 0, 0)).save(tmp_path / "copies" / name / f"{i}.png")
    with pytest.raises(DataError):
        divide(read(tmp_path / "copies"))
