from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from tsugiki.errors import DataError
from tsugiki.evals.tasks import grounding
from tsugiki.synth._shapes import NARROWEST
from tsugiki.synth.flaws import SEVERITIES, SIZES, TYPES, Damaged, damage

EVERY = list(itertools.product(TYPES, SEVERITIES, SIZES))


def photo(seed: int = 0, size: tuple[int, int] = (224, 200), mean: float = 128) -> Image.Image:
    """Grain as of fabric."""
    grain = np.random.default_rng(seed).normal(mean, 33, (size[1], size[0], 1)).clip(0, 255)
    return Image.fromarray(np.broadcast_to(grain, (size[1], size[0], 3)).astype(np.uint8))


def test_sizes_are_those_of_the_scores() -> None:
    assert dict(SIZES) == grounding.SIZES


@pytest.mark.parametrize("wanted", EVERY, ids="-".join)
def test_mask_box_size_and_severity_are_exact(wanted: tuple[str, str, str]) -> None:
    kind, severity, size = wanted
    for seed in range(3):
        before = photo(seed)
        damaged = damage(before, [wanted], np.random.default_rng(seed))
        (defect,) = damaged.objects
        old, new = np.asarray(before).astype(float), np.asarray(damaged.image).astype(float)
        assert defect.mask.dtype == bool
        assert (defect.mask == (old != new).any(-1)).all(), "the mask is what changed"
        rows, columns = np.nonzero(defect.mask)
        box = (defect.box.x1, defect.box.y1, defect.box.x2, defect.box.y2)
        assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= 224 and box[3] <= 200
        low, high = grounding.SIZES[size]
        assert low <= max(defect.box.width, defect.box.height) / 224 < high
        assert min(defect.box.width, defect.box.height) >= NARROWEST * 224
        total = 0.0
        for row, column in zip(rows, columns, strict=True):
            change = new[row, column] - old[row, column]
            total += abs(0.299 * change[0] + 0.587 * change[1] + 0.114 * change[2]) / 255
        assert defect.contrast == pytest.approx(total / len(rows), abs=1e-5)
        assert SEVERITIES[severity][0] <= defect.contrast <= SEVERITIES[severity][1]
        assert (defect.type, defect.severity, defect.size) == (kind, severity, size)


def test_severity_is_monotone_in_contrast() -> None:
    edges = [edge for name in ("low", "medium", "high") for edge in SEVERITIES[name]]
    assert edges == sorted(set(edges))


def test_defects_do_not_touch() -> None:
    for seed in range(20):
        wanted = [("hole", "low", "large"), ("scratch", "high", "small"), ("stain", "medium", "medium")]
        damaged = damage(photo(seed), wanted, np.random.default_rng(seed))
        assert sorted((d.type, d.severity, d.size) for d in damaged.objects) == sorted(wanted)
        assert [d.box.x1 for d in damaged.objects] == sorted(d.box.x1 for d in damaged.objects)
        changed = (np.asarray(damaged.image) != np.asarray(photo(seed))).any(-1)
        assert (sum(d.mask.astype(int) for d in damaged.objects) == changed).all()
        for one, other in itertools.combinations(damaged.objects, 2):
            a, b = one.box, other.box
            assert a.x2 < b.x1 or b.x2 < a.x1 or a.y2 < b.y1 or b.y2 < a.y1


@pytest.mark.parametrize("mean", [0, 60, 200, 255])
def test_dark_and_light_photographs(mean: float) -> None:
    for number, kind in enumerate(TYPES):
        damaged = damage(photo(1, mean=mean), [(kind, "high", "large")], np.random.default_rng(number))
        assert damaged.objects[0].contrast >= SEVERITIES["high"][0]


def test_a_matter_of_the_seed_and_the_photograph_stays() -> None:
    before = photo()
    pixels = before.tobytes()

    def made(seed: int) -> Damaged:
        return damage(before, [("hole", "high", "medium"), ("stain", "low", "large")], np.random.default_rng(seed))

    assert made(1).image.tobytes() == made(1).image.tobytes() != made(2).image.tobytes()
    assert before.tobytes() == pixels
    assert damage(before, [], np.random.default_rng(0)).image.tobytes() == pixels


def test_three_large_ones_find_room() -> None:
    for seed in range(10):
        wanted = [(kind, "low", "large") for kind in ("hole", "scratch", "stain")]
        assert len(damage(photo(seed, (96, 83)), wanted, np.random.default_rng(seed)).objects) == 3


def test_no_room() -> None:
    with pytest.raises(DataError, match="no place for a large hole on 224x20 pixels"):
        damage(photo(size=(224, 20)), [("hole", "low", "large")], np.random.default_rng(0))


def test_names() -> None:
    (defect,) = damage(photo(), [("missing thread", "high", "large")], np.random.default_rng(0)).objects
    assert (defect.name("en"), defect.name("ja")) == ("missing thread", "糸抜け")
