from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tsugiki.synth.layout import Layout, Scene, Studio, compose
from tsugiki.synth.phrases.base import CELLS
from tsugiki.synth.pictograms import RENDERINGS, choose


def _layout(objects: tuple[int, int], size: int = 224) -> Layout:
    return Layout(
        size=size,
        pictograms=choose(30),
        objects=objects,
        renderings=dict.fromkeys(RENDERINGS, 1.0),
        backgrounds={"plain": 1.0},
    )


def _scenes(svg_folder: Path, objects: tuple[int, int], n: int = 25, size: int = 224, **needs: bool) -> list[Scene]:
    studio = Studio("train", size, svg_folder)
    return [compose(_layout(objects, size), studio, np.random.default_rng(seed), **needs) for seed in range(n)]


@pytest.mark.parametrize("objects", [(1, 1), (2, 3), (9, 9)])
def test_boxes_are_exact(svg_folder: Path, objects: tuple[int, int]) -> None:
    for scene in _scenes(svg_folder, objects):
        pixels = np.asarray(scene.image).astype(int)
        assert len({*map(tuple, pixels[[0, 0, -1, -1], [0, -1, 0, -1]])}) <= 2  # a corner may be covered
        plain = np.array(
            max(map(tuple, pixels[[0, 0, -1, -1], [0, -1, 0, -1]]), key=lambda c: (pixels == c).all(-1).sum())
        )
        changed = (pixels != plain).any(-1)
        inside = np.zeros_like(changed)
        for item in scene.objects:
            x1, y1, x2, y2 = (int(v) for v in (item.box.x1, item.box.y1, item.box.x2, item.box.y2))
            assert 0 <= x1 < x2 <= 224
            assert 0 <= y1 < y2 <= 224
            assert not inside[y1:y2, x1:x2].any(), "boxes overlap"
            inside[y1:y2, x1:x2] = True
            part = changed[y1:y2, x1:x2]
            assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
            assert item.fraction == pytest.approx((x2 - x1) * (y2 - y1) / 224**2)
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            assert CELLS.index(item.cell) == int(3 * y / 224) * 3 + int(3 * x / 224)
        assert not (changed & ~inside).any(), "something is drawn outside of the boxes"


def test_numbers_of_objects_and_all_cells_and_renderings_occur(svg_folder: Path) -> None:
    scenes = _scenes(svg_folder, (1, 4), n=150)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4}
    objects = [o for scene in scenes for o in scene.objects]
    assert {o.cell for o in objects} == set(CELLS)
    assert {o.rendering for o in objects} == set(RENDERINGS)
    for o in objects:
        assert (o.angle != 0) == (o.rendering == "rotated")
        assert (o.colour is not None) == (o.rendering in ("recoloured", "outline"))
    assert all(len({o.pictogram for o in scene.objects}) == len(scene.objects) for scene in scenes)
    assert all([o.box.x1 for o in scene.objects] == sorted(o.box.x1 for o in scene.objects) for scene in scenes)


def test_needs_are_met(svg_folder: Path) -> None:
    alone = repeated = 0
    for scene in _scenes(svg_folder, (1, 4), n=60, colour=True, single=True, repeats=True):
        names = [o.pictogram.code for o in scene.objects]
        assert any(o.hue and names.count(o.pictogram.code) == 1 for o in scene.objects)
        repeated += len(set(names)) < len(names)
    for scene in _scenes(svg_folder, (2, 2), n=40, repeats=True):
        alone += scene.objects[0].pictogram != scene.objects[1].pictogram
    assert 10 < repeated < 55
    assert 5 < alone < 30


def test_small_and_large_pictures(svg_folder: Path) -> None:
    for size in (64, 300):
        for scene in _scenes(svg_folder, (1, 3), n=8, size=size):
            assert scene.image.size == (size, size)
            assert all(o.box.x2 <= size and o.box.y2 <= size for o in scene.objects)
