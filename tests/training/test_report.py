"""What a run tells: the log, the bar, TensorBoard."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tsugiki.errors import StoreError
from tsugiki.training.report import Board, Display, Log, clock


def row(step: int, stage: int = 0) -> dict[str, Any]:
    return {"stage": stage, "step": step, "loss": step / 3}


def test_log_is_cut_at_the_checkpoint_and_survives_a_torn_line(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    assert list(log.rows()) == []
    for stage, step in ((0, 1), (0, 2), (1, 1), (1, 2)):
        log.add(row(step, stage))
    log.sync()
    log.close()
    with log.path.open("a") as file:
        file.write('{"stage": 1, "st')
    assert len(list(log.rows())) == 4
    log.cut(1, 1)
    assert [(r["stage"], r["step"]) for r in log.rows()] == [(0, 1), (0, 2), (1, 1)]
    assert list(log.rows())[0]["loss"] == 1 / 3  # bit for bit
    log.add(row(2, 1))
    assert json.loads(log.path.read_text().splitlines()[-1])["step"] == 2
    log.close()
    log.cut(-1, 0)
    assert log.path.read_text() == ""


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    log._file = Full()
    with pytest.raises(StoreError, match="No space left.*continues from the last checkpoint"):
        log.add(row(1))


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03"), (-5, "0:00")])
def test_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def told(terminal: bool, quiet: bool = False) -> str:
    stream = io.StringIO()
    display = Display(Console(file=stream, force_terminal=terminal, width=100), "scenes", quiet=quiet)
    display.start()
    for step in range(1, 5):
        display.show(step=step, loss=2.0, seconds=step * 4.0, progress=step / 4)
    display.say("done")
    display.stop()
    return stream.getvalue()


def test_display_on_a_terminal_and_in_a_file() -> None:
    assert "step 4" in told(terminal=True)
    lines = told(terminal=False).splitlines()
    assert lines[0] == "scenes:  25%  step 1  loss 2.000  0:04 gone, 0:12 left"
    assert [line.split()[3] for line in lines[:-1]] == ["1", "4"]  # every ten seconds, and the last
    assert told(terminal=True, quiet=True) == ""


def test_encoding_says_how_much_and_how_long() -> None:
    from tsugiki.vision.cache import FillProgress

    stream = io.StringIO()
    display = Display(Console(file=stream, width=100), "scenes", quiet=False)
    report = display.encoding(40, 5_000_000)
    assert report is not None
    report(FillProgress(40, 40, 40, 20.0, 0.0))
    said = stream.getvalue()
    assert "40 pictures" in said and "5 MB" in said and "20 a second" in said
    assert Display(Console(file=stream), "x", quiet=True).encoding(1, 1) is None


def test_tensorboard_is_written_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path / "a", 0)
    board.add(1, {"loss": 1.0})
    board.close()
    assert list((tmp_path / "a").glob("events*"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    board = Board(tmp_path / "b", 0)
    board.add(1, {"loss": 1.0})
    board.close()
    assert not (tmp_path / "b").exists()
