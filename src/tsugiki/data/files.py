"""Files that are either whole or not there: written under another name in the same folder, then renamed."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tsugiki import _leftovers
from tsugiki._leftovers import being_written
from tsugiki.errors import StoreError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DAY = 86_400.0
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2


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
        with os.fdopen(handle, "wb") as file, being_written(temporary):
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
        _bring_back(path)
        sweep(path.parent, f".{glob.escape(path.name[:80])}.*", older=_DAY)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:80]}.", suffix=".part", dir=path.parent))
        temporary.chmod(0o777 & ~_umask())
    except OSError as error:
        raise _store_error(error, path) from error
    try:
        with being_written(temporary):
            try:
                yield temporary
            except Exception as error:
                if _refused(error, temporary):
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


@contextmanager
def temporary_folder(parent: str | Path, name: str) -> Iterator[Path]:
    """Yield an empty folder in `parent` that goes when the block ends; every call has its own.

    Args:
        name: in that of the folder; what processes that were killed a day ago left under it goes, too.

    Raises:
        StoreError: the disk is full, or the place can't be written.
    """
    parent = Path(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent, f".{glob.escape(name)}.*", older=_DAY)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=parent))
    except OSError as error:
        raise _store_error(error, parent) from error
    try:
        with being_written(temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: Path, names: str = ".*", *, older: float = 0.0) -> None:
    """Delete what killed writers left under temporary names in a folder; what somebody is writing stays.

    Args:
        names: a pattern that tells whose; the temporary ending is added.
        older: seconds since the last change. 0 only where no other machine can be writing.
    """
    _leftovers.sweep((*folder.glob(f"{names}.part"), *folder.glob(f"{names}.old")), older=older)


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


def _refused(error: Exception, folder: Path) -> bool:
    """Whether the disk did not take what was written into a folder."""
    if isinstance(error, StoreError):
        return False
    # A refused `write` names no file.
    inside = isinstance(error, OSError) and error.errno and str(error.filename or folder).startswith(str(folder))
    return bool(inside) or disk_is_full(error) or "Error while serializing" in str(error)  # safetensors


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
    if path.is_dir() and not path.is_symlink() and replaces is not None:
        for other in path.iterdir():  # linked, not moved: a process that is killed here has changed nothing
            if other.name not in replaces and not (new / other.name).exists():
                _link(other, new / other.name)
    if _exchange(new, path):
        return  # what was there has the temporary name now, under which the caller deletes it
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
    except OSError:
        with suppress(OSError):
            aside.rmdir()  # only if it is empty: what could not be brought back stays in it
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system can't."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _bring_back(path: Path) -> None:
    """A folder that a killed process had set aside, where names can't be swapped in one step."""
    if not path.exists() and not path.is_symlink():
        for old in path.parent.glob(f".{glob.escape(path.name[:80])}.*.old/old"):
            old.replace(path)
            return


def _link(file: Path, to: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        shutil.copytree(file, to, symlinks=True, copy_function=_link_file)
    else:
        _link_file(file, to)


def _link_file(file: str | Path, to: str | Path) -> None:
    try:
        os.link(file, to, follow_symlinks=False)
    except OSError:  # not every file system has hard links
        shutil.copy2(file, to, follow_symlinks=False)


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
