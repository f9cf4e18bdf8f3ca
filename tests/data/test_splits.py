from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from tsugiki.data.splits import by_meta, check_disjoint, near_duplicate_groups, split
from tsugiki.errors import DataError
from tsugiki.types import ImageSource, Message, Sample


def _noise(seed: int, size: int = 64) -> Image.Image:
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return rough.resize((size, size), Image.Resampling.BICUBIC)


def _sample(id: str, *images: ImageSource, label: str = "ok", **more: str) -> Sample:
    messages = (Message.of("user", "q", images), Message.of("assistant", label))
    return Sample(id=id, messages=messages, options=("ok", "ng"), meta=more, where=f"d.jsonl:{id}")


def _jpeg(image: Image.Image, quality: int = 70) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_near_duplicates_are_found() -> None:
    first, second = _noise(1), _noise(2)
    pictures: list[ImageSource] = [
        first,
        second,
        _jpeg(first),
        first.resize((96, 96), Image.Resampling.BICUBIC),
        ImageEnhance.Brightness(first).enhance(1.06),
        second.resize((40, 40), Image.Resampling.BICUBIC),
        *(_noise(seed) for seed in range(3, 30)),
    ]
    groups = near_duplicate_groups(pictures)
    assert groups[:2] == [[0, 2, 3, 4], [1, 5]]
    assert groups[2:] == [[i] for i in range(6, 33)]
    assert near_duplicate_groups([]) == []


def test_plain_and_nearly_plain_pictures() -> None:
    def dot(x: int, colour: str) -> Image.Image:
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((x, 20, x + 12, 32), fill=colour)
        return image

    white, red = Image.new("RGB", (64, 64), "white"), Image.new("RGB", (64, 64), "red")
    pictures = [white, white.resize((50, 50)), red, dot(10, "red"), dot(40, "red"), dot(10, "blue")]
    assert near_duplicate_groups(pictures) == [[0, 1], [2], [3], [4], [5]]


def test_textures_of_one_kind_are_not_duplicates() -> None:
    """Photographs of one fabric look alike when small, and still are different photographs."""
    rng = np.random.default_rng(0)
    fabric = [Image.fromarray(rng.integers(90, 160, (64, 64), dtype=np.uint8)) for _ in range(20)]
    assert len(near_duplicate_groups(fabric)) == 20


@pytest.mark.parametrize("seed", range(4))
def test_a_split_is_stratified_and_leaks_nothing(seed: int) -> None:
    samples = []
    for i in range(60):
        picture = _noise(i)
        label = "ng" if i % 3 == 0 else "ok"
        samples.append(_sample(f"{i}", picture, label=label))
        if i < 10:
            samples.append(_sample(f"{i} again", picture, label=label))
            samples.append(_sample(f"{i} small", picture.resize((48, 48), Image.Resampling.BICUBIC), label=label))
    fractions = {"train": 0.7, "val": 0.1, "test": 0.2}
    parts = split(samples, fractions, seed)
    assert sorted(s.id for p in parts.values() for s in p) == sorted(s.id for s in samples)
    check_disjoint(parts)
    home = {s.id: name for name, p in parts.items() for s in p}
    for i in range(10):
        assert home[f"{i}"] == home[f"{i} again"] == home[f"{i} small"]
    assert len(parts.groups) == 10 and all(len(g) == 3 for g in parts.groups)
    for name, fraction in fractions.items():
        assert abs(parts.sizes[name] - fraction * 80) <= 3
        shares = Counter(s.messages[-1] for s in parts[name])
        assert abs(shares[Message.of("assistant", "ng")] - fraction * 28) <= 3
    text = str(parts)
    assert f"train {len(parts['train'])}" in text and "30 samples in 10 groups" in text


def test_splits_are_seeded() -> None:
    samples = [_sample(str(i), _noise(i)) for i in range(20)]
    fractions = {"a": 0.5, "b": 0.5}
    assert split(samples, fractions, 1).parts == split(samples, fractions, 1).parts
    assert split(samples, fractions, 1).parts != split(samples, fractions, 2).parts


def test_no_split_stays_empty() -> None:
    same, other = _noise(0), _noise(1)
    samples = [_sample(str(i), same) for i in range(20)] + [_sample("x", other)]
    assert split(samples, {"train": 0.5, "test": 0.5}).sizes == {"train": 20, "test": 1}


def test_samples_without_pictures_are_split_too() -> None:
    samples = [_sample(str(i)) for i in range(10)]
    assert split(samples, {"train": 0.8, "test": 0.2}).sizes == {"train": 8, "test": 2}


def test_near_none_keeps_only_equal_pixels_together() -> None:
    first = _noise(1)
    samples = [_sample("a", first), _sample("b", _jpeg(first)), _sample("c", first.copy())]
    assert split(samples, {"train": 0.5, "test": 0.5}, near=None).groups == (("a", "c"),)
    with pytest.raises(DataError, match="3 samples in 1 groups of like pictures, for 2 splits"):
        split(samples, {"train": 0.5, "test": 0.5})


@pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}])
def test_wrong_fractions(fractions: dict[str, float]) -> None:
    with pytest.raises(DataError, match="positive numbers that add up to 1"):
        split([_sample("a", _noise(1))], fractions)


def test_equal_pixels_across_splits_are_an_error(tmp_path: Path) -> None:
    picture = _noise(5)
    picture.save(tmp_path / "訓練.png")
    picture.save(tmp_path / "test.bmp")
    parts = {
        "train": [_sample("1", tmp_path / "訓練.png"), _sample("2", tmp_path / "訓練.png")],
        "test": [_sample("3", _noise(6)), _sample("4", tmp_path / "test.bmp")],
    }
    with pytest.raises(DataError) as error:
        check_disjoint(parts)
    text = str(error.value)
    assert "訓練.png" in text and "test.bmp" in text and "d.jsonl:4" in text and "\n" not in text
    check_disjoint({"train": parts["train"], "test": parts["test"][:1]})


def test_splits_that_a_file_names() -> None:
    samples = [_sample("1", _noise(1), split="train"), _sample("2", _noise(2), split="test")]
    assert {k: [s.id for s in v] for k, v in by_meta(samples).items()} == {"train": ["1"], "test": ["2"]}
    with pytest.raises(DataError, match="d.jsonl:3: sample '3' names no split"):
        by_meta([*samples, _sample("3")])
    with pytest.raises(DataError, match="same pixels"):
        by_meta([*samples, _sample("3", _noise(1), split="test")])
