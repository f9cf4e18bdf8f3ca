"""The cache: bit-equal to live pictures, keyed by content, evicted by use, and unhurt by damage and by other
processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tsugiki._leftovers import being_written
from tsugiki.data.images import open_image
from tsugiki.errors import ImageError, InputError, StoreError, UnsupportedError
from tsugiki.testing import TinyTower, tiny_images
from tsugiki.vision import _entries as module
from tsugiki.vision._workers import ahead
from tsugiki.vision.cache import FeatureCache, FillProgress
from tsugiki.vision.frontend import FrontEnd
from tsugiki.vision.tower import build_tower


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for i, picture in enumerate(tiny_images(10)):
        picture.save(path := tmp_path / f"{i}.png")
        paths.append(path)
    return paths


def _entries(cache: FeatureCache) -> list[Path]:
    return sorted(cache.folder.glob("??/*"))


def test_cached_is_bit_equal_to_live(tmp_path: Path, pictures: list[Path]) -> None:
    frontend = FrontEnd.build(TinyTower(), 16, 0.1)
    cache = FeatureCache(frontend, tmp_path / "cache")
    live = frontend.encode(torch.stack([frontend.transform(open_image(p)) for p in pictures]))
    assert cache.fill(pictures[3:8]) == 5  # another order and other company
    first, second = cache.get(pictures), cache.get(list(reversed(pictures))).flip(0)
    assert first.dtype == torch.float16
    assert torch.equal(first, live) and torch.equal(second, live)
    assert torch.equal(FeatureCache(frontend, tmp_path / "cache")(pictures[2]), live[2])
    tokens = [frontend(features=first).tokens, frontend(pixel_values=_pixels(frontend, pictures)).tokens]
    assert torch.equal(tokens[0], tokens[1])


def _pixels(frontend: FrontEnd, pictures: list[Path]) -> torch.Tensor:
    return torch.stack([frontend.transform(open_image(p)) for p in pictures])


def test_two_batch_sizes_stay_within_an_fp16_step(tmp_path: Path, pictures: list[Path]) -> None:
    results = []
    for batch in (1, 4):
        frontend = FrontEnd.build(TinyTower(), 16, encode_batch=batch)
        results.append(FeatureCache(frontend, tmp_path / str(batch)).get(pictures).view(torch.int16).int())
    assert (results[0] - results[1]).abs().max() <= 1


def test_equal_content_is_one_entry(tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "copy.png").write_bytes(pictures[0].read_bytes())
    cache = FeatureCache(build_tower(TinyTower()), tmp_path / "cache")
    features = cache.get([pictures[0], tmp_path / "copy.png", str(pictures[0]), pictures[0].read_bytes()])
    assert len(_entries(cache)) == 1 and all(torch.equal(features[0], f) for f in features)


def test_a_file_that_changes_is_encoded_again(tmp_path: Path, pictures: list[Path]) -> None:
    cache = FeatureCache(build_tower(TinyTower()), tmp_path / "cache")
    before = cache(pictures[0])
    pictures[0].write_bytes(pictures[1].read_bytes())
    assert not torch.equal(cache(pictures[0]), before) and torch.equal(cache(pictures[0]), cache(pictures[1]))


def test_towers_and_sizes_do_not_mix(tmp_path: Path, pictures: list[Path]) -> None:
    towers = [TinyTower(), TinyTower(seed=1), TinyTower(input_size=64)]
    caches = [FeatureCache(build_tower(t), tmp_path / "cache") for t in towers]
    features = [c(pictures[0]) for c in caches]
    assert len(_entries(caches[0])) == 3 and not torch.equal(features[0], features[1])


def test_estimate_is_what_it_takes(tmp_path: Path, pictures: list[Path]) -> None:
    cache = FeatureCache(build_tower(TinyTower(grid=(8, 8), width=64)), tmp_path / "cache", variants=1)
    cache.fill(pictures)
    assert 0.9 < cache.size() / cache.estimate(len(pictures)) <= 1


def test_progress_and_going_on(tmp_path: Path, pictures: list[Path]) -> None:
    cache = FeatureCache(build_tower(TinyTower()), tmp_path / "cache")
    cache.fill(pictures[:3])
    seen: list[FillProgress] = []
    assert cache.fill(pictures, seen.append) == 7
    assert [p.done for p in seen] == [7, 10] and seen[-1].total == 10 and seen[-1].encoded == 7
    assert seen[-1].images_per_second > 0 and seen[-1].seconds_left == 0
    assert cache.fill(pictures, seen.append) == 0 and seen[-1].done == 10


def test_variants_are_entries_of_their_own(tmp_path: Path, pictures: list[Path]) -> None:
    tower = build_tower(TinyTower())
    cache = FeatureCache(tower, tmp_path / "cache", variants=2)
    assert cache.fill(pictures) == 30
    first, second = cache.get(pictures, variant=1), cache.get(pictures, variant=2)
    assert not torch.equal(first, second) and not torch.equal(first, cache.get(pictures))
    live = tower.encode(torch.stack([tower.transform(open_image(p), 2) for p in pictures]))
    assert torch.equal(second, live)
    with pytest.raises(InputError, match="0 to 2"):
        cache.get(pictures, variant=3)


def test_least_recently_used_go_first(tmp_path: Path, pictures: list[Path]) -> None:
    tower = build_tower(TinyTower())
    cache = FeatureCache(tower, tmp_path / "cache")
    cache.get(pictures[:1])
    size = cache.size()
    cache = FeatureCache(tower, tmp_path / "cache", limit_bytes=5 * size)
    for picture in pictures[:5]:
        cache.get([picture])
    cache = FeatureCache(tower, tmp_path / "cache", limit_bytes=5 * size)  # order of use survives the process
    cache.get([pictures[0]])
    cache.get([pictures[5]])
    assert cache.size() <= 5 * size
    there = [cache.entries.path(cache.key(p)).exists() for p in pictures[:6]]
    assert there == [True, False, False, True, True, True]
    assert cache.get(pictures).shape[0] == 10 and cache.size() <= 5 * size


def test_a_limit_below_one_entry_still_answers(tmp_path: Path, pictures: list[Path]) -> None:
    cache = FeatureCache(build_tower(TinyTower()), tmp_path / "cache", limit_bytes=10)
    assert torch.equal(cache.get(pictures[:3]), cache.get(pictures[:3]))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damage_is_found_and_mended(tmp_path: Path, pictures: list[Path], damage: str) -> None:
    cache = FeatureCache(build_tower(TinyTower()), tmp_path / "cache")
    before = cache(pictures[0])
    (entry,) = _entries(cache)
    raw = bytearray(entry.read_bytes())
    if damage == "flip":
        raw[-7] ^= 4
    entry.write_bytes({"cut": raw[:-30], "flip": raw, "empty": b"", "other": b"\x00" * 2000}[damage])
    assert torch.equal(cache(pictures[0]), before)
    assert torch.equal(FeatureCache(cache.tower, cache.folder)(pictures[0]), before)


def test_many_at_once(tmp_path: Path, pictures: list[Path]) -> None:
    tower = build_tower(TinyTower())
    expected = FeatureCache(tower, tmp_path / "alone").get(pictures)
    limit = 5 * FeatureCache(tower, tmp_path / "alone").estimate(1)

    def work(_: int) -> torch.Tensor:
        return FeatureCache(tower, tmp_path / "cache", limit_bytes=limit).get(pictures)

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(result, expected) for result in pool.map(work, range(8)))
    assert not list((tmp_path / "cache").glob("??/*.part"))


def test_remains_of_a_killed_writer_go(tmp_path: Path, pictures: list[Path]) -> None:
    cache = FeatureCache(build_tower(TinyTower()), tmp_path / "cache")
    cache(pictures[0])
    part = _entries(cache)[0].with_name("abc.part")
    part.write_bytes(b"half")
    assert cache.size() > 0 and part.exists()  # may still be written
    os.utime(part, (time.time() - 7200, time.time() - 7200))
    cache.size()
    assert not part.exists()


def test_a_full_disk_is_one_line_and_loses_nothing(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(build_tower(TinyTower()), tmp_path / "cache")
    cache(pictures[0])

    def full(self: Path, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "replace", full)
        with pytest.raises(StoreError, match="disk is full"):
            cache(pictures[1])
    assert len(_entries(cache)) == 1
    cache(pictures[1])


def test_a_folder_that_is_a_file(tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        FeatureCache(build_tower(TinyTower()), tmp_path / "cache").get(pictures)


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png"):
        FeatureCache(build_tower(TinyTower()), tmp_path / "cache").get([tmp_path / "gone.png"])


def test_no_pictures(tmp_path: Path) -> None:
    assert FeatureCache(build_tower(TinyTower()), tmp_path / "cache").get([]).shape == (0, 16, 24)


def test_a_tower_that_trains_has_no_cache(tmp_path: Path) -> None:
    frontend = FrontEnd.build(TinyTower(), 16, train_tower=True)
    with pytest.raises(UnsupportedError, match="trains"):
        FeatureCache(frontend, tmp_path)
    with pytest.raises(InputError):
        FeatureCache(build_tower(TinyTower()), tmp_path, limit_bytes=-1)


def test_clear(tmp_path: Path, pictures: list[Path]) -> None:
    cache = FeatureCache(build_tower(TinyTower()), tmp_path / "cache")
    cache.fill(pictures)
    cache.clear()
    assert cache.size() == 0


@pytest.mark.assets("efficientnet-lite0", "efficientnet-lite-code")
def test_real_tower_is_bit_equal_too(tmp_path: Path, pictures: list[Path]) -> None:
    frontend = FrontEnd.build("efficientnet-lite0", 32, 0.1)
    cache = FeatureCache(frontend, tmp_path / "cache")
    cache.fill(pictures[:5])
    live = frontend.encode(_pixels(frontend, list(reversed(pictures)))).flip(0)
    assert torch.equal(cache.get(pictures), live)


SHARING = """
import random, sys
from pathlib import Path
import torch
from tsugiki.testing import TinyTower
from tsugiki.vision.cache import FeatureCache
from tsugiki.vision.tower import build_tower
folder, pictures, seed = Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.png")), int(sys.argv[3])
tower = build_tower(TinyTower())
live = {p: FeatureCache(tower, folder / f"own {seed}")(p) for p in pictures}
cache = FeatureCache(tower, folder / "shared", limit_bytes=3 * 1100)
rng = random.Random(seed)
for _ in range(60):
    some = rng.sample(pictures, 3)
    assert all(torch.equal(f, live[p]) for f, p in zip(cache.get(some), some))
    assert cache.size() <= 4 * 1100
print("equal")
"""


def test_two_processes_share_a_folder(tmp_path: Path, pictures: list[Path]) -> None:
    """While both evict what the other one reads."""
    command = [sys.executable, "-c", SHARING, str(tmp_path / "cache"), str(pictures[0].parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([*command, seed], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for seed in "12"
    ]
    ended = [process.communicate(timeout=200) for process in running]
    assert [out for out, _ in ended] == ["equal\n"] * 2, [err for _, err in ended]
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_what_is_being_written_stays_after_a_jump_of_the_clock(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(build_tower(TinyTower()), tmp_path / "cache")
    cache(pictures[0])
    part = _entries(cache)[0].with_name("abc.part")
    part.touch()
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 86_400)
    with being_written(part):
        assert cache.size() > 0 and part.exists()
    cache.size()
    assert not part.exists()


def test_decoding_runs_ahead_of_the_tower(tmp_path: Path, pictures: list[Path]) -> None:
    """In order, one batch ahead at most; an error is raised where its batch comes."""
    asked: list[int] = []

    def work(item: int) -> int:
        asked.append(item)
        if item == 7:
            raise ValueError("seven")
        return item * item

    found = ahead(work, [[0, 1], [2], [3, 4], [5, 6, 7], [8]])
    assert next(found) == ([0, 1], [0, 1])
    assert set(asked) <= {0, 1, 2}
    assert [squares for _, squares in (next(found), next(found))] == [[4], [9, 16]]
    with pytest.raises(ValueError, match="seven"):
        next(found)
    assert 8 not in asked or asked.index(8) > asked.index(5)
