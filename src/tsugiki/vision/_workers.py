"""Work on lists: in forked processes of one thread each, or in threads that are one list ahead."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import torch

from tsugiki.data.looks import THREADS
from tsugiki.errors import UnsupportedError
from tsugiki.vision.tower import Tower

T = TypeVar("T")
R = TypeVar("R")

_WORK: Callable[[Any], int] | None = None  # set before the fork: what children inherit need not be pickled


def each_done(work: Callable[[Any], int], parts: Sequence[Any], workers: int, towers: Sequence[Tower]) -> Iterator[int]:
    """`work` of every part, in any order, in processes.

    Raises:
        UnsupportedError: workers for towers on a GPU, or on a system that can't fork.
    """
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


def ahead(work: Callable[[T], R], parts: Sequence[Sequence[T]]) -> Iterator[tuple[Sequence[T], list[R]]]:
    """Each part and the results of its items, in order; while one is used, threads make the next."""
    pool = ThreadPoolExecutor(THREADS)
    begun: deque[tuple[Sequence[T], list[Future[R]]]] = deque()
    try:
        for part in parts:
            begun.append((part, [pool.submit(work, item) for item in part]))
            if len(begun) > 1:
                yield _finished(*begun.popleft())
        while begun:
            yield _finished(*begun.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(part: Sequence[T], futures: Sequence[Future[R]]) -> tuple[Sequence[T], list[R]]:
    return part, [future.result() for future in futures]


def _do(part: Any) -> int:
    assert _WORK is not None
    return _WORK(part)
