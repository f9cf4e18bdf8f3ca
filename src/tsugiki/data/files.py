"""Files that are either whole or not there: written under another name in the same folder, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tsugiki.errors import StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT}


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a file whole or not at all; text is written as UTF-8 with "\\n" line ends. An old file stays until then.

    Raises:
        StoreError: the disk is full, or the folder can't be written. Nothing is left behind.
    """
    path = Path(path)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_file_mode(path))
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _store_error(error, path) from error
    finally:
        # After success the temporary name is gone already; after anything else, Ctrl-C included, it has to go.
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, replaces: Collection[str] | None = None) -> Iterator[Path]:
    """Yield an empty folder beside `path`; when the block ends well it becomes `path`, and an old `path` goes.

    Args:
        path: the folder.
        replaces: names in an old `path` that go with it, all others stay; None = all go.

    Raises:
        StoreError: the disk is full, or the place can't be written. Nothing is left behind, an old folder is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:80]}.", suffix=".part", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
    except OSError as error:
        raise _store_error(error, path) from error
    try:
        try:
            yield temporary
        except Exception as error:
            if disk_is_full(error) and not isinstance(error, StoreError):
                raise _store_error(error, path) from error
            raise
        try:
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            _swap(temporary, path, replaces)
            _sync_folder(path.parent)
        except OSError as error:
            raise _store_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hold(file: IO[Any], *, found: str, expected: str, fix: str, where: str) -> None:
    """Lock an open file for this process until it is closed; a killed process leaves no lock behind.

    Raises:
        StoreError: another process holds it; in the words given.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # a system without it
        pass
    except OSError as error:
        raise StoreError(found, expected=expected, fix=fix, where=where) from error


def disk_is_full(error: BaseException) -> bool:
    """Whether an error of any library comes from a full disk (safetensors tells it in its text only)."""
    return (isinstance(error, OSError) and error.errno in _FULL) or "No space left on device" in str(error)


def _store_error(error: BaseException, path: Path) -> StoreError:
    if disk_is_full(error):
        return StoreError(
            "the disk is full while writing; nothing was changed",
            expected="room for the whole file",
            fix="Free some space or choose another folder, then run the same again.",
            where=str(path),
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StoreError(
        f"can't be written ({reason})",
        expected="a place that this user may write to",
        fix="Choose another path or change its permissions.",
        where=str(path),
    )


def _swap(new: Path, path: Path, replaces: Collection[str] | None) -> None:
    if not path.exists() and not path.is_symlink():
        new.replace(path)
        return
    # A folder with content can't be replaced in one step: the old one is set aside, and comes back if the rename fails.
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name[:80]}.", suffix=".old", dir=path.parent))
    old = aside / "old"
    try:
        path.replace(old)
        try:
            new.replace(path)
        except OSError:
            old.replace(path)
            raise
        for other in old.iterdir() if replaces is not None and old.is_dir() and not old.is_symlink() else ():
            if other.name not in (replaces or ()) and not (path / other.name).exists():
                other.replace(path / other.name)
    except OSError:
        with suppress(OSError):
            aside.rmdir()  # only if it is empty: what could not be brought back stays in it
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system lets a folder be synced
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _file_mode(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return 0o666 & ~_umask()
