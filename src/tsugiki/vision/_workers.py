"""Work on lists in forked processes of one thread each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

import torch

from tsugiki.errors import UnsupportedError
from tsugiki.vision.tower import Tower

_WORK: Callable[[Any], int] | None = None  # set before the fork: what children inherit need not be pickled


def each_done(work: Callable[[Any], int], parts: Sequence[Any], workers: int, towers: Sequence[Tower]) -> Iterator[int]:
    """`work` of every part, in any order with workers.

    Raises:
        UnsupportedError: workers for towers on a GPU, or on a system that can't fork.
    """
    if workers < 1:
        yield from map(work, parts)
        return
    if "fork" not in multiprocessing.get_all_start_methods() or any(t.device.type != "cpu" for t in towers):
        raise UnsupportedError(
            f"workers={workers} here", expected="towers on a CPU, and a system that can fork", fix="Set workers to 0."
        )
    global _WORK
    _WORK = work
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), torch.set_num_threads, (1,))
    try:
        for done in as_completed([pool.submit(_do, part) for part in parts]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        _WORK = None


def _do(part: Any) -> int:
    assert _WORK is not None
    return _WORK(part)
