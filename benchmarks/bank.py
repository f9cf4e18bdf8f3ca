"""A query of the demo bank: what exact search costs, by the ways there are, side by side.

    python benchmarks/bank.py                       # 100,000 entries of 1,280 numbers, 2 threads
    pip install faiss-cpu; python benchmarks/bank.py    # with FAISS beside them

Every way searches the same entries for the same queries, in turns. "whole query" is `Bank.search` of a bank on disk:
the question to SQLite whether anything has changed, the search, and the reading of the entries found.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import write

from tsugiki.data._bank_index import Vectors
from tsugiki.data.bank import Bank, NewEntry
from tsugiki.evals import stats

BATCH = 5000
K = 4


def filled(folder: Path, n: int, width: int) -> Bank:
    """A bank of random vectors, added in batches."""
    rng = np.random.default_rng(0)
    bank = Bank.create(folder, tower="random", fingerprint="random", width=width, answers=[f"c{i}" for i in range(100)])
    for start in range(0, n, BATCH):
        rows = rng.standard_normal((min(BATCH, n - start), width), dtype=np.float32)
        bank.add([NewEntry(picture=str(start + i), label=f"c{i % 100}", vector=row) for i, row in enumerate(rows)])
    return bank


def ways(vectors: Vectors) -> dict[str, Callable[[Any], Any]]:
    """Way -> function of a query [d] that gives the places of the K nearest."""
    rows = vectors.rows
    single, half = torch.from_numpy(rows), torch.from_numpy(rows).bfloat16()
    stored = rows.astype(np.float16)

    def best(scores: Any) -> Any:
        return np.argpartition(-scores, K)[:K]

    def in_blocks(query: Any) -> Any:
        parts = (stored[s : s + 4096].astype(np.float32) @ query for s in range(0, len(stored), 4096))
        return best(np.concatenate(list(parts)))

    found: dict[str, Callable[[Any], Any]] = {
        "NumPy, float32": lambda q: best(rows @ q),
        "NumPy, float16 in blocks": in_blocks,
        "torch, float32": lambda q: best((single @ torch.from_numpy(q)).numpy()),
        "torch, bfloat16 (not exact)": lambda q: best((half @ torch.from_numpy(q).bfloat16()).float().numpy()),
    }
    try:
        import faiss
    except ImportError:
        return found
    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows)
    packed = faiss.IndexScalarQuantizer(rows.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    packed.train(rows[:1000])
    packed.add(rows)
    found["FAISS, float32"] = lambda q: flat.search(q[None], K)[1][0]
    found["FAISS, float16"] = lambda q: packed.search(q[None], K)[1][0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--queries", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        bank = filled(Path(folder) / "bank", given.entries, given.width)
        adding = time.perf_counter() - started
        rng = np.random.default_rng(1)
        queries = rng.standard_normal((given.queries + 1, given.width)).astype(np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        bank.search(queries[0], K)
        bank.close()
        started = time.perf_counter()
        bank = Bank.open(Path(folder) / "bank")
        bank.search(queries[0], K)
        opening = time.perf_counter() - started
        all_ways = ways(bank._current())
        all_ways["whole query"] = lambda q: np.array([n.entry.id - 1 for n in bank.search(q, K)])
        times: dict[str, list[float]] = {name: [] for name in all_ways}
        for number, query in enumerate(queries):
            found = {}
            for name, way in all_ways.items():
                started = time.perf_counter()
                found[name] = set(way(query).tolist())
                if number:
                    times[name].append(time.perf_counter() - started)
            exact = found["NumPy, float32"]
            assert found["torch, float32"] == exact == found["whole query"], found
        bank.close()
    rows = []
    for name, seconds in times.items():
        ratio = stats.median_ratio(seconds, times["NumPy, float32"])
        milliseconds = 1000 * np.array(seconds)
        rows.append(
            {
                "way": name,
                "median ms": round(float(np.median(milliseconds)), 1),
                "fastest ms": round(float(milliseconds.min()), 1),
                "slowest ms": round(float(milliseconds.max()), 1),
                "times NumPy, float32": f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
            }
        )
    notes = [
        f"{given.entries:,} entries of {given.width:,} numbers, {given.queries} queries, the {K} nearest, in turns.",
        f"Adding all in batches of {BATCH:,} took {adding:.0f} s; opening the bank and a first query {opening:.1f} s.",
    ]
    write("bank", "Exact search in a demo bank", rows, notes)


if __name__ == "__main__":
    main()
