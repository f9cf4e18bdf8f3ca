from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tsugiki.errors import ImageError, UnknownNameError
from tsugiki.synth.backgrounds import KINDS, PALETTES, PATTERNS, Backgrounds, listed
from tsugiki.synth.layout import _ink
from tsugiki.synth.pictograms import COLOURS


def test_training_and_test_share_no_colour_pattern_or_photograph() -> None:
    train, test = (np.array(PALETTES[split]) for split in ("train", "test"))
    assert np.linalg.norm(train[:, None] - test[None], axis=-1).min() > 12
    assert not set(PATTERNS["train"]) & set(PATTERNS["test"])
    lists = listed()
    assert (len(set(lists["train"])), len(set(lists["test"]))) == (100, 50)
    assert not set(lists["train"]) & set(lists["test"])
    assert all(name.startswith("nominal/textile_") for names in lists.values() for name in names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [64, 224])
def test_backgrounds_have_the_size_and_come_from_the_seed(kind: str, size: int, photographs: list[Path]) -> None:
    made = [Backgrounds("train", size, photographs).make(kind, np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4)]
    assert all(picture.size == (size, size) and picture.mode == "RGB" for picture in made)
    assert made[0].tobytes() == made[1].tobytes()
    assert len({picture.tobytes() for picture in made}) > 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_pattern_is_a_pattern(split: str) -> None:
    for pattern in PATTERNS[split]:
        for seed in range(5):
            mask = pattern(100, np.random.default_rng(seed))
            assert mask.shape == (100, 100)
            assert mask.dtype == np.float32
            assert mask.min() >= 0
            assert mask.max() <= 1
            assert mask.std() > 0.05


@pytest.mark.parametrize("split", ["train", "test"])
def test_some_colours_show_on_every_plain_background(split: str) -> None:
    for behind in PALETTES[split]:
        for rendering in ("outline", "recoloured"):
            rng = np.random.default_rng(0)
            found = {_ink(rendering, behind, rng, hue=True) for _ in range(200)}
            assert found <= set(COLOURS)
            assert len(found) >= 2, (behind, rendering)


def test_unknown_kind_and_broken_photograph(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="texture"):
        Backgrounds("train", 64).make("textures", np.random.default_rng(0))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        Backgrounds("train", 64, [broken]).make("photo", np.random.default_rng(0))
