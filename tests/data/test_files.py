from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from tsugiki.data import files
from tsugiki.errors import StoreError


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a" / "結果.json"
    files.atomic_write(target, "一\n")
    files.atomic_write(target, b"two")
    assert target.read_bytes() == b"two"
    assert [p.name for p in target.parent.iterdir()] == ["結果.json"]


def test_write_keeps_the_mode_of_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    files.atomic_write(target, "1")
    target.chmod(0o640)
    files.atomic_write(target, "2")
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    files.atomic_write(target, "old")
    monkeypatch.setattr(os, "fsync", _full_disk)
    with pytest.raises(StoreError, match="the disk is full") as caught:
        files.atomic_write(target, "new")
    assert "\n" not in str(caught.value)
    assert str(target) in str(caught.value)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_place_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"):
        files.atomic_write(tmp_path / "file" / "below", "x")


def test_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "graft"
    with files.atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["graft"]


def test_folder_replaces_an_old_one(tmp_path: Path) -> None:
    target = tmp_path / "graft"
    for text in ("old", "new"):
        with files.atomic_folder(target) as folder:
            (folder / text).write_text(text)
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["graft"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("io: No space left on device (os error 28)")],
)
def test_folder_on_a_full_disk(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "graft"
    with files.atomic_folder(target) as folder:
        (folder / "x").write_text("old")
    with pytest.raises(StoreError, match="the disk is full"), files.atomic_folder(target) as folder:
        (folder / "x").write_text("half")
        raise error
    assert (target / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["graft"]


def test_folder_passes_other_errors_on(tmp_path: Path) -> None:
    with pytest.raises(KeyError), files.atomic_folder(tmp_path / "graft"):
        raise KeyError("x")
    assert list(tmp_path.iterdir()) == []


def test_folder_survives_a_failing_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "graft"
    with files.atomic_folder(target) as folder:
        (folder / "x").write_text("old")
    original = Path.replace

    def failing(self: Path, other: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError(errno.EIO, "broken")
        return original(self, other)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(StoreError, match="broken"), files.atomic_folder(target) as folder:
        (folder / "x").write_text("new")
    assert (target / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["graft"]


@pytest.mark.parametrize("exchange", [True, False])
def test_folder_keeps_what_it_does_not_replace(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    target = tmp_path / "graft"
    (target / "写真" / "deep").mkdir(parents=True)
    (target / "写真" / "deep" / "1.txt").write_text("picture")
    (target / "notes.txt").write_text("mine")
    (target / "link").symlink_to("notes.txt")
    (target / "weights").write_text("old")
    with files.atomic_folder(target, replaces=("weights", "card")) as folder:
        (folder / "weights").write_text("new")
    assert sorted(p.name for p in target.iterdir()) == ["link", "notes.txt", "weights", "写真"]
    assert (target / "weights").read_text() == "new" and (target / "link").read_text() == "mine"
    assert (target / "link").is_symlink() and (target / "写真" / "deep" / "1.txt").read_text() == "picture"
    assert [p.name for p in tmp_path.iterdir()] == ["graft"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("exchange", [True, False])
def test_a_writer_killed_between_two_names_loses_nothing(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder, with what is not replaced in it, is there at once, or as soon as somebody writes."""
    target = tmp_path / "graft"
    target.mkdir()
    (target / "weights").write_text("old")
    (target / "notes.txt").write_text("mine")
    if not (number := os.fork()):

        def killed(*_: object) -> bool:
            if exchange:
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        def renamed(self: Path, to: Path) -> None:
            os.rename(self, to)  # noqa: PTH104 - Path.replace is what is replaced here
            os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(files, "_exchange", killed)
        if not exchange:
            monkeypatch.setattr(Path, "replace", renamed)
        with files.atomic_folder(target, replaces=("weights",)) as folder:
            (folder / "weights").write_text("new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGKILL
    assert target.exists() == exchange
    with pytest.raises(KeyError), files.atomic_folder(target, replaces=("weights",)):
        raise KeyError
    assert {p.name: p.read_text() for p in target.iterdir()} == {"weights": "old", "notes.txt": "mine"}


def test_a_temporary_folder_is_gone_in_the_end_and_nobody_elses(tmp_path: Path) -> None:
    left = tmp_path / "run" / ".shown.left.part"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    with pytest.raises(KeyError), files.temporary_folder(tmp_path / "run", "shown") as one:
        assert not left.exists()
        os.utime(one, (0, 0))
        with files.temporary_folder(tmp_path / "run", "shown") as other:
            (other / "x").write_text("1")
            assert one.is_dir() and one != other
        assert one.is_dir() and not other.exists()
        raise KeyError
    assert not [*(tmp_path / "run").iterdir()]
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't be written"), files.temporary_folder(tmp_path / "file", "shown"):
        raise AssertionError("not reached")


def test_sweep(tmp_path: Path) -> None:
    for name in (".a.x.part", ".b.x.part", ".a.old.part", "a.part"):
        (tmp_path / name).write_text("")
    (tmp_path / ".a.y.old").mkdir()
    (tmp_path / ".a.y.old" / "inside").write_text("")
    files.sweep(tmp_path, older=3600)
    assert len(list(tmp_path.iterdir())) == 5
    files.sweep(tmp_path, ".a.*")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".b.x.part", "a.part"]
    files.sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.part"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "a").startswith("ba7816bf8f01cfea")
