"""What is being written stays whatever the clock says; what a killed writer left goes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from tsugiki import _leftovers
from tsugiki._leftovers import being_written, sweep
from tsugiki._wheels import staging
from tsugiki.data.files import atomic_folder

TEN_DAYS = 864_000.0


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps forward."""
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + TEN_DAYS)


def test_what_somebody_writes_stays(tmp_path: Path, later: None) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    with being_written(folder), being_written(file):
        for older in (0.0, 60.0):
            sweep([folder, file, tmp_path / "gone"], older=older)
            assert folder.exists() and file.exists()
    sweep([folder, file], older=TEN_DAYS + 60)
    assert folder.exists() and file.exists()
    sweep([folder, file], older=60)
    assert not folder.exists() and not file.exists()


def test_a_lock_goes_with_the_name_and_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with being_written(tmp_path / "a"):
        (tmp_path / "a").rename(tmp_path / "b")
        sweep([tmp_path / "b"])
        assert (tmp_path / "b").exists()
    ready, told = os.pipe()
    if not (child := os.fork()):
        with being_written(tmp_path / "b"):
            os.write(told, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    sweep([tmp_path / "b"])
    assert (tmp_path / "b").exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    sweep([tmp_path / "b"])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP])
def test_without_locks_the_age_decides(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none, or none for folders."""

    def none(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / "a").mkdir()
    handles = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    with being_written(tmp_path / "a"):
        sweep([tmp_path / "a"], older=60)
        assert (tmp_path / "a").exists()
        os.utime(tmp_path / "a", (0, 0))
        sweep([tmp_path / "a"], older=60)
        assert not (tmp_path / "a").exists()
    if handles:
        assert len(list(Path("/proc/self/fd").iterdir())) == handles


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").touch()
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "broken").symlink_to("nothing")
    sweep([tmp_path / "link", tmp_path / "broken"])
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept" / "x").exists()


def test_a_writer_survives_another_one_after_a_jump_of_the_clock(tmp_path: Path, later: None) -> None:
    with atomic_folder(tmp_path / "graft") as slow:
        (slow / "weights").write_text("slow")
        os.utime(slow, (0, 0))
        with atomic_folder(tmp_path / "graft") as fast:
            (fast / "weights").write_text("fast")
        assert (slow / "weights").exists()
    assert (tmp_path / "graft" / "weights").read_text() == "slow"
    assert [p.name for p in tmp_path.iterdir()] == ["graft"]
    with staging(tmp_path / "asset", need=1) as slow:
        os.utime(slow, (0, 0))
        with staging(tmp_path / "asset", need=1):
            assert slow.exists()
    (tmp_path / ".tmp-killed").mkdir()
    with staging(tmp_path / "asset", need=1):
        assert not (tmp_path / ".tmp-killed").exists()


def test_nothing_is_kept_open(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    handle = _leftovers._lock(tmp_path / "a")
    assert handle is not None
    with pytest.raises(BlockingIOError):
        _leftovers._lock(tmp_path / "a")
    os.close(handle)
    with being_written(tmp_path / "a"), pytest.raises(BlockingIOError), being_written(tmp_path / "a"):
        pass
