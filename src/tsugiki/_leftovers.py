"""Files and folders under temporary names: which of them somebody is still writing, and which a killed writer left.

A writer locks what it writes (flock). The system drops the lock with the process, so neither a clock that jumps nor a
slow writer matters. Where a file system has no such locks, or other machines don't see them, the age alone decides.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def being_written(path: Path) -> Iterator[None]:
    """Lock a file or folder that is there, for the block; it may be renamed or deleted meanwhile."""
    handle = _lock(path)
    try:
        yield
    finally:
        _close(handle)


def sweep(paths: Iterable[Path], *, older: float = 0.0) -> None:
    """Delete what nobody is writing.

    Args:
        older: seconds since the last change. 0 only where no other machine can be writing.
    """
    for left in paths:
        with suppress(OSError):  # another process may have deleted it, or holds it
            if older and time.time() - left.stat().st_mtime < older:
                continue
            handle = _lock(left)
            try:
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()
            finally:
                _close(handle)


def _lock(path: Path) -> int | None:
    """The open file that holds the lock; None where there are no locks.

    Raises:
        BlockingIOError: somebody else has it.
    """
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system without them, or not for folders
        os.close(handle)
        return None
    return handle


def _close(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
