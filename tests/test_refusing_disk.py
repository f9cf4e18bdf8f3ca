"""A disk that is full, or a place that can't be written, at every moment of every writer: one error that says what to
do, and nothing half-written."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests._faults import Disk
from tests.studies._pictures import folder, picture
from tests.training import _tiny

import tsugiki
from tsugiki.data import schema
from tsugiki.data.bank import Bank, NewEntry
from tsugiki.data.files import atomic_write
from tsugiki.errors import StoreError, TsugikiError
from tsugiki.evals import results
from tsugiki.studies import bank as banks
from tsugiki.studies.label_next import label_next
from tsugiki.studies.predict import predict
from tsugiki.synth.runs import write_picture
from tsugiki.testing import TinyTower, tiny_images, tiny_model
from tsugiki.training import checkpoints
from tsugiki.training.checkpoints import Position
from tsugiki.types import Score
from tsugiki.vision.cache import FeatureCache
from tsugiki.vision.tower import build_tower

Write = Callable[[Path], Any]
REFUSALS = [errno.ENOSPC, errno.EROFS, errno.EACCES]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", str(tmp_path / "cache"))


def content(place: Path) -> dict[str, bytes]:
    """Every file below a folder, those under temporary names too."""
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def refused(write: Write, place: Path, whole: Path, number: int, patch: pytest.MonkeyPatch, step: int = 1) -> int:
    """`write(place)` with a disk that refuses from its first call on, from its second, ...; how many calls there were.

    Each time it is an error of ours in one line, and every file is as it was or as a writer that nothing disturbed
    leaves it.

    Args:
        whole: where such a writer has written.
        step: every so many calls are tried.
    """
    before, after = content(place), content(whole)
    for at in range(1, 10_000, step):
        disk = Disk(at, number)
        try:
            with patch.context() as patched:
                disk.install(patched)
                write(place)
        except TsugikiError as error:
            assert disk.refused and "\n" not in str(error) and error.fix, error
            assert isinstance(error, OSError), error
        found = content(place)
        assert all(found[name] in (before.get(name), after.get(name)) for name in found), (at, sorted(found))
        assert before.keys() <= found.keys()
        if not disk.refused:
            assert found == after
            return disk.calls
    raise AssertionError("no end")


def twin(tmp_path: Path, prepare: Write, write: Write) -> tuple[Path, Path]:
    """Two folders of equal content; the second one is written to."""
    for name in ("place", "whole"):
        (tmp_path / name).mkdir()
        prepare(tmp_path / name)
    write(tmp_path / "whole")
    return tmp_path / "place", tmp_path / "whole"


def save_checkpoint(place: Path, number: int) -> None:
    torch.manual_seed(number)
    weights = {"w": torch.full((3,), float(number))}
    where = Position(stage=0, step=number)
    checkpoints.save(place, where, weights=weights, optimizer={}, state={"seconds": 0.0}, keep=5)


SCORE = Score(task="t", metric="accuracy", value=0.5, stderr=0.1, n=9)
SAMPLES = _tiny.samples(2)
WRITERS: dict[str, tuple[Callable[[Any, Path], Any], Callable[[Any, Path], Any]]] = {
    # what is there before, what is written
    "file": (lambda _, p: atomic_write(p / "f", "old"), lambda _, p: atomic_write(p / "f", "new")),
    "graft": (lambda m, p: None, lambda m, p: m.save(p / "graft")),
    "graft over another": (
        lambda _, p: (tiny_model("lora").save(p / "graft"), (p / "graft" / "mine.txt").write_text("kept")),
        lambda m, p: m.save(p / "graft"),
    ),
    "checkpoint": (lambda _, p: save_checkpoint(p, 1), lambda _, p: save_checkpoint(p, 2)),
    "samples": (
        lambda _, p: schema.write(p / "s.jsonl", SAMPLES[:1]),
        lambda _, p: schema.write(p / "s.jsonl", SAMPLES),
    ),
    "scores": (lambda _, p: None, lambda m, p: results.write(p / "scores.json", [SCORE], m, data=[], settings={})),
    "picture": (lambda _, p: None, lambda _, p: write_picture(tiny_images(1)[0], p / "a.png")),
}


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", WRITERS)
def test_every_writer(name: str, number: int, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, write = ((lambda p, do=do: do(model, p)) for do in WRITERS[name])
    place, whole = twin(tmp_path, prepare, write)
    assert refused(write, place, whole, number, monkeypatch) >= 2


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_tower_outputs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, pictures = build_tower(TinyTower()), tiny_images(3)

    def write(place: Path) -> None:
        FeatureCache(tower, place).get(pictures)

    place, whole = twin(tmp_path, lambda p: FeatureCache(tower, p)(pictures[0]), write)
    assert refused(write, place, whole, number, monkeypatch) >= 4


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_answers(number: int, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were written stay; the file goes on from them."""
    photos = folder(tmp_path / "写真", (2, 1))

    def write(place: Path) -> None:
        predict(model, photos, out=place / "a.jsonl", options=["yes", "no"], batch_size=1)

    write(tmp_path / "whole")
    whole, at = (tmp_path / "whole" / "a.jsonl").read_bytes(), 0
    while True:
        at += 1
        disk, place = Disk(at, number), tmp_path / f"place {at}"
        try:
            with monkeypatch.context() as patched:
                disk.install(patched)
                write(place)
        except StoreError as error:
            assert error.fix
        found = content(place)
        assert set(found) <= {"a.jsonl"}
        assert all(raw == whole[: len(raw)] and raw[-1:] in (b"", b"\n") for raw in found.values())
        write(place)
        assert content(place) == {"a.jsonl": whole}
        if not disk.refused:
            break
    assert at > 6


def test_what_to_label_next(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, labelled = tmp_path / "pool", folder(tmp_path / "labelled", (4, 4))
    pool.mkdir()
    for i in range(3):
        picture(0, 50 + i).save(pool / f"{i}.png")

    def write(place: Path) -> None:
        label_next(model, pool, train=labelled, n=2, out=place)

    place, whole = twin(tmp_path, lambda _: None, write)  # tower outputs are in the cache from here on
    assert refused(write, place, whole, errno.ENOSPC, monkeypatch) >= 9


def test_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with an error of ours wherever the disk refuses, and goes on to the same weights when there is room."""

    def run(place: Path) -> dict[str, torch.Tensor]:
        built = _tiny.model()
        plan = _tiny.recipe(steps=3)
        tsugiki.train(
            built, plan, place / "run", data=_tiny.samples(8), features=_tiny.cache(built, tmp_path), progress=False
        )
        return _tiny.state(built)

    wanted = run(tmp_path / "whole")
    for at in (1, 9, 23, 41, 58):
        disk, place = Disk(at, errno.ENOSPC), tmp_path / f"place {at}"
        with monkeypatch.context() as patched:
            disk.install(patched)
            with pytest.raises(StoreError) as caught:
                run(place)
        assert caught.value.fix or caught.value.expected
        state = run(place)
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_a_bank(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own pages, and the pictures beside them."""
    photos = folder(tmp_path / "photos", (3, 2))
    for at in range(1, 100):
        disk, place = Disk(at, errno.ENOSPC), tmp_path / f"banks {at}" / "b"
        with monkeypatch.context() as patched:
            disk.install(patched)
            try:
                banks.build(model, photos, place)
            except StoreError as error:
                assert error.fix and not list(place.parent.glob("*"))
        if place.exists():  # where only the last sync was refused, too
            with banks.open_bank(model, place) as bank:
                assert len(bank) == 5
        if not disk.refused:
            break
    with banks.open_bank(model, place) as bank:
        assert len(bank) == 5
        real = bank._db.execute("PRAGMA page_count").fetchone()[0]
        bank._db.execute(f"PRAGMA max_page_count = {real}")
        new = [NewEntry(picture=f"{i}", label="良品", vector=np.ones(24), source="s" * 900) for i in range(20)]
        with pytest.raises(StoreError, match=r"the disk is full; nothing was changed.*Free some space"):
            bank.add(new)
        assert len(bank) == 5 and len(bank.search(np.ones(24), 20)) == 5
    with Bank.open(place) as bank:
        bank._db.execute("PRAGMA query_only = ON")  # what a file that may only be read says
        with pytest.raises(StoreError, match="can't be used"):
            bank.add(new[:1])
        assert len(bank) == 5
    with sqlite3.connect(place / "bank.sqlite") as whole:
        assert whole.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_is_only_kept_to_save_time_may_be_refused(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache folder that belongs to somebody else: hashes of the base are computed again each time."""
    from tsugiki import identity

    model.language_model.save_pretrained(tmp_path / "llm")
    (file,) = (tmp_path / "llm").glob("*.safetensors")
    wanted = identity._file_hashes(file, {})
    monkeypatch.setattr(identity, "CACHED_FROM", 0)
    with monkeypatch.context() as patched:
        Disk(1, errno.EROFS).install(patched)
        assert identity._file_hashes(file, {}) == wanted
    assert "hashes are not kept" in caplog.text and "Read-only file system" in caplog.text
    assert identity._file_hashes(file, {}) == wanted and json.loads(
        next((tmp_path / "cache").rglob("*.json")).read_text()
    )
