"""What the tests of the demo bank run in processes of their own.

python _bank_child.py lines FOLDER    kill an adding process before each of its lines, and look at the bank
python _bank_child.py random FOLDER   the same at random times
python _bank_child.py add FOLDER NAME N   add N entries one by one
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from tsugiki.data import _bank_file, bank
from tsugiki.data.bank import Bank, NewEntry

WIDTH = 4
OURS = ("bank.py", "_bank_file.py", "_bank_index.py", "_bank_entries.py", "files.py")


def entry(name: str) -> NewEntry:
    vector = np.random.default_rng(list(name.encode())).standard_normal(WIDTH)
    return NewEntry(picture=name, label="ab"[len(name) % 2], vector=vector, source=name)


def work(folder: Path, number: int) -> None:
    """Two entries in one transaction, a withdrawal, and a search, which also writes the index file."""
    with Bank.open(folder) as opened:
        found = opened.add([entry(f"n{number}"), entry(f"m{number}")])
        opened.withdraw(found.ids[:1])
        opened.search(np.ones(WIDTH), 3)


def look(folder: Path) -> tuple[int, int]:
    """Entries in all and in use; the bank is whole, and its index says what the entries say."""
    with Bank.open(folder) as opened:
        entries = opened.entries()
        names = [e.picture for e in entries]
        assert len(names) == len(set(names)), names
        pairs = {n[1:] for n in names if n != "first"}
        assert len(names) == 1 + 2 * len(pairs), names  # both of a transaction, or none
        used = {e.id for e in entries if e.withdrawn is None}
        found = opened.search(np.ones(WIDTH), len(entries))
        assert {n.entry.id for n in found} == used and len(opened) == len(used)
        for n in found:
            vector = entry(n.entry.picture).vector
            cosine = float(vector.sum() / np.linalg.norm(vector) / 2)
            assert abs(1 - n.distance - cosine) < 1e-2
        return len(entries), len(used)


def killed_at(folder: Path, number: int, line: int) -> bool:
    """Whether the child was killed before its `line`-th line of the bank's code; False where it had fewer."""
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal count
            if Path(frame.f_code.co_filename).name not in OURS:
                return None
            if event == "line":
                count += 1
                if count == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        work(folder, number)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def lines(folder: Path) -> None:
    """Each time on a copy of the same bank, with and without an index file."""
    line, states = 1, []
    copy = folder.with_name("copy")
    killed = True
    while killed:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        if line % 2:
            with Bank.open(copy) as opened:
                opened.search(np.ones(WIDTH), 1)
        killed = killed_at(copy, 1, line)
        states.append(look(copy))
        assert look(copy) == states[-1]
        line += 1
    assert sorted(set(states)) == [(1, 1), (3, 2), (3, 3)], states  # before, after the withdrawal, between the two
    print(line)


def at_random(folder: Path) -> None:
    rng = random.Random(0)
    before = look(folder)
    for round_ in range(12):
        child = os.fork()
        if child == 0:
            for i in range(10_000):
                work(folder, 10_000 * (round_ + 1) + i)
            os._exit(0)
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        after = look(folder)
        assert after[0] >= before[0]
        before = after
    print(before[0])


def without_syncs() -> None:
    """A kill loses nothing that was written: only a power cut would. Waiting for the disk would take minutes."""

    def connect(path: Path) -> Any:
        connection = _bank_file.connect(path)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    bank.connect = connect
    os.fsync = lambda _: None  # type: ignore[assignment]


if __name__ == "__main__":
    without_syncs()
    place = Path(sys.argv[2])
    if sys.argv[1] == "lines":
        lines(place)
    elif sys.argv[1] == "random":
        at_random(place)
    else:
        with Bank.open(place) as opened:
            for number in range(int(sys.argv[4])):
                opened.add([entry(f"{sys.argv[3]}{number}")])
                opened.add([entry(f"shared{number}")])
