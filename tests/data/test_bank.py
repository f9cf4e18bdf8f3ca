"""The demo bank on disk: exact search, one truth for several processes, and nothing lost or half-written by a kill."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data import _bank_child
from tests.data._bank_child import WIDTH, entry

from tsugiki.data import _bank_index
from tsugiki.data._bank_index import Vectors
from tsugiki.data.bank import Bank, NewEntry
from tsugiki.errors import BaseMismatchError, DataError, InputError, StoreError

FACTS = {"tower": "tiny", "fingerprint": "f" * 64, "width": WIDTH}


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    with Bank.create(tmp_path / "銀行", answers=["a", "b"], **FACTS) as made:  # type: ignore[arg-type]
        made.add([entry("first")])
        yield made


def child(*arguments: object) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parents[2]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, _bank_child.__file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# -- search ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 999), st.sets(st.integers(0, 29)), st.booleans())
def test_the_search_is_exact(n: int, k: int, seed: int, gone: set[int], some: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, (n, 3)).astype(np.float16)  # sums of eighths are exact, and many are equal
    query = rng.integers(-3, 4, 3).astype(np.float32) / 8
    labels = [f"l{rng.integers(3)}" for _ in range(n)]
    stored = [(i + 1, label, row.tobytes()) for i, (label, row) in enumerate(zip(labels, rows, strict=True))]
    vectors = Vectors(3)
    vectors.update(lambda q, _: [(i + 1,) for i in gone if i < n] if "withdrawn" in q else stored)
    allowed = {"l0", "l2"} if some else set(labels)
    expected = []
    for i in range(n):
        if i not in gone and labels[i] in allowed:
            product = 0.0
            for a, b in zip(rows[i], query, strict=True):
                product += float(a) * float(b)
            expected.append((-product, i + 1))
    found = vectors.nearest(query, k, sorted(allowed) if some else None)
    assert [(-product, i) for i, product in found] == sorted(expected)[:k]


def test_the_older_of_equals_comes_first_and_the_querys_own_picture_not_at_all(bank: Bank) -> None:
    bank.add([NewEntry(picture=name, label="a", vector=np.array([1.0, 0, 0, 0])) for name in ("p", "q", "r")])
    found = bank.search(np.array([5.0, 0, 0, 0]), 2, without=["p"])
    assert [n.entry.picture for n in found] == ["q", "r"] and found[0].distance == pytest.approx(0, abs=1e-6)
    assert [n.entry.label for n in bank.search(np.ones(4), 9, labels=["b"])] == ["b"]
    assert bank.search(np.ones(4), 9, labels=["no such"]) == []


def test_fewer_than_asked_for(bank: Bank) -> None:
    assert len(bank.search(np.ones(WIDTH), 50)) == 1


# -- entries -----------------------------------------------------------------------------------------------------------


def test_a_picture_is_there_once_and_comes_back_after_a_withdrawal(bank: Bank) -> None:
    again = bank.add([entry("first"), entry("second")])
    assert again.known == (1,) and len(again.ids) == 1 and len(bank) == 2
    state = bank.state
    assert bank.withdraw([1], "wrong") == 1 and bank.withdraw([1]) == 0
    assert bank.entries([1])[0].withdrawn and bank.entries([1])[0].note == "wrong" and bank.state != state
    assert len(bank.add([entry("first")]).ids) == 1 and bank.counts() == {"a": 1, "b": 1}


def test_a_wrong_entry_adds_nothing(bank: Bank) -> None:
    wrong = NewEntry(picture="x", label="A", vector=np.ones(WIDTH), source="写真.png")
    with pytest.raises(
        DataError, match=r"写真.png: the label 'A' is not in the answer set; expected one of \['a', 'b'"
    ):
        bank.add([entry("second"), wrong])
    other = NewEntry(picture="first", label="a", vector=np.ones(WIDTH))
    with pytest.raises(DataError, match="in the bank as 'b' .entry 1., and here as 'a'"):
        bank.add([entry("second"), other])
    for vector in (np.ones(WIDTH + 1), np.zeros(WIDTH), np.full(WIDTH, np.nan)):
        with pytest.raises(InputError, match=rf"expected \[{WIDTH}\], finite and not zero"):
            bank.add([entry("second"), NewEntry(picture="y", label="a", vector=vector)])
    with pytest.raises(InputError, match="expected both"):
        bank.add([NewEntry(picture="", label="a", vector=np.ones(WIDTH))])
    assert len(bank) == 1 and bank.answers == ("a", "b")
    with pytest.raises(DataError, match="no entry 7"):
        bank.withdraw([1, 7])
    assert len(bank) == 1
    bank.add([NewEntry(picture="x", label="傷", vector=np.ones(WIDTH))], extend=True)
    assert bank.answers == ("a", "b", "傷")


def test_an_empty_bank_is_refused(bank: Bank) -> None:
    bank.withdraw([1])
    with pytest.raises(DataError, match="the bank is empty"):
        bank.search(np.ones(WIDTH), 1)
    with pytest.raises(InputError, match="k=0"):
        bank.search(np.ones(WIDTH), 0)


def test_another_tower_is_refused_by_both_names(bank: Bank) -> None:
    with pytest.raises(BaseMismatchError, match=r"tower tiny \(ffff.*the model's tower large \(eeee"):
        Bank.open(bank.folder, fingerprint="e" * 64, tower="large")
    Bank.open(bank.folder, fingerprint="f" * 64, tower="tiny").close()


def test_what_is_no_bank(bank: Bank, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a bank is there already"):
        Bank.create(bank.folder, **FACTS)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="the folder does not exist"):
        Bank.open(tmp_path / "none")
    (tmp_path / "bank.sqlite").touch()  # what a process leaves that is killed while it makes one
    with pytest.raises(StoreError, match="no bank in it"):
        Bank.open(tmp_path)
    Bank.create(tmp_path, **FACTS).close()  # type: ignore[arg-type]
    (tmp_path / "bank.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Bank.open(tmp_path)
    with sqlite3.connect(bank.folder / "bank.sqlite") as raw:
        raw.execute("UPDATE meta SET value = '99' WHERE key = 'version'")
    with pytest.raises(StoreError, match="version 99"):
        Bank.open(bank.folder)


# -- the index file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "other bank", "gone"])
def test_a_damaged_index_is_made_again(
    bank: Bank, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bank.add([entry(f"e{i}") for i in range(20)])
    before = [(n.entry.id, n.distance) for n in bank.search(np.ones(WIDTH), 30)]
    file = bank.folder / _bank_index.FILE
    raw = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(raw[:-7])
    elif damage == "flip":
        raw[-3] ^= 1
        file.write_bytes(raw)
    elif damage == "text":
        file.write_text("nothing")
    elif damage == "other bank":
        with Bank.create(tmp_path / "other", answers=["a", "b"], **FACTS) as other:  # type: ignore[arg-type]
            other.add([entry(f"x{i}") for i in range(21)])
            other.search(np.ones(WIDTH), 1)
        file.write_bytes((tmp_path / "other" / _bank_index.FILE).read_bytes())
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING, "tsugiki"), Bank.open(bank.folder) as opened:
        assert [(n.entry.id, n.distance) for n in opened.search(np.ones(WIDTH), 30)] == before
    assert ("made again" in caplog.text) == (damage != "gone")
    caplog.clear()
    with Bank.open(bank.folder) as opened:
        assert len(opened.search(np.ones(WIDTH), 30)) == 21
    assert not caplog.text


def test_the_index_file_is_used_and_brought_up_to_date(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bank_index, "TAIL", 5)
    sizes = []
    for i in range(12):
        bank.add([entry(f"e{i}")])
        assert len(bank.search(np.ones(WIDTH), 99)) == i + 2
        sizes.append((bank.folder / _bank_index.FILE).stat().st_size)
    assert len(set(sizes)) == 3  # written at the first search and after every fifth entry
    with Bank.open(bank.folder) as opened:
        assert opened.search(np.ones(WIDTH), 99) == bank.search(np.ones(WIDTH), 99)


# -- several processes -------------------------------------------------------------------------------------------------


def test_changes_hold_at_once_for_another_open_bank(bank: Bank) -> None:
    with Bank.open(bank.folder) as other:
        assert len(other.search(np.ones(WIDTH), 9)) == 1
        (new,) = bank.add([entry("second")]).ids
        assert len(other.search(np.ones(WIDTH), 9)) == 2
        bank.withdraw([1])
        assert [n.entry.id for n in other.search(np.ones(WIDTH), 9)] == [new]
        other.withdraw([new])
        with pytest.raises(DataError, match="empty"):
            bank.search(np.ones(WIDTH), 9)


def test_two_processes_add_at_once(bank: Bank) -> None:
    children = [child("add", bank.folder, name, 20) for name in ("left", "right")]
    for process in children:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    names = [e.picture for e in bank.entries()]
    wanted = {f"{n}{i}" for n in ("left", "right", "shared") for i in range(20)} | {"first"}
    assert len(names) == len(set(names)) and set(names) == wanted
    assert {n.entry.picture for n in bank.search(np.ones(WIDTH), 99)} == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are tried in forked processes")
@pytest.mark.parametrize("way", [pytest.param("lines", marks=pytest.mark.slow), "random"])
def test_a_kill_anywhere_leaves_a_whole_bank(bank: Bank, way: str) -> None:
    process = child(way, bank.folder)
    said, wrong = process.communicate(timeout=240)
    assert process.returncode == 0, wrong
    assert int(said) > 50
    assert bank.search(np.ones(WIDTH), 1)
