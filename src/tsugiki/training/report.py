"""What a run tells while it goes: a line of JSON a step, a bar or plain lines, TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tsugiki.data.files import atomic_write
from tsugiki.errors import StoreError

if TYPE_CHECKING:
    from tsugiki.vision.cache import FillProgress

PLAIN_SECONDS = 10.0


class Log:
    """`log.jsonl` of a run: stage, step, loss, lr, seconds, tokens; one line for each optimiser step.

    Lines after the checkpoint that a run continues from are cut off, so that every step stands there once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """All whole lines."""
        if not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and "step" in row:
                    yield row

    def cut(self, stage: int, step: int) -> None:
        """Keep what is at or before a step of a stage; `stage` -1 keeps nothing."""
        if not self.path.exists():
            return
        rows = [row for row in self.rows() if (row["stage"], row["step"]) <= (stage, step)]
        atomic_write(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            StoreError: the disk is full.
        """
        try:
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            self._file = None
            raise self._error(error) from error

    def sync(self) -> None:
        """Everything so far is on the disk.

        Raises:
            StoreError: the disk is full.
        """
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise self._error(error) from error

    def _error(self, error: OSError) -> StoreError:
        return StoreError(
            f"can't be written ({error.strerror})",
            expected="room on the disk",
            fix="Free some space, then run the same again: it continues from the last checkpoint.",
            where=str(self.path),
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Board:
    """TensorBoard curves under `<run>/tensorboard`; nothing where it is not installed."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display:
    """Progress of one stage: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, console: Console, title: str, *, quiet: bool) -> None:
        self.console, self.title, self.quiet = console, title, quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._printed = -PLAIN_SECONDS
        self._loss: float | None = None

    def start(self) -> None:
        if self.quiet or not self.console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[text]}"),
        )
        self._bar = Progress(*columns, console=self.console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(self.title, total=1.0, text="")

    def show(self, *, step: int, loss: float, seconds: float, progress: float) -> None:
        """Show a step; `progress` 0 to 1, `loss` is smoothed over about ten steps."""
        if self.quiet:
            return
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        left = seconds * (1.0 - progress) / progress if progress > 0 else 0.0
        text = f"step {step}  loss {self._loss:.3f}  {clock(seconds)} gone, {clock(left)} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=min(progress, 1.0), text=text)
        elif seconds - self._printed >= PLAIN_SECONDS or progress >= 1.0:
            self.console.print(f"{self.title}: {progress:4.0%}  {text}", highlight=False)
            self._printed = seconds

    def encoding(self, pictures: int, size: int) -> Callable[[FillProgress], None] | None:
        """What the cache calls while it encodes; says how much there is to do, and how long it takes."""
        if self.quiet:
            return None
        last = [0.0]

        def told(state: FillProgress) -> None:
            if state.encoded and (time.monotonic() - last[0] >= PLAIN_SECONDS or state.done == state.total):
                last[0] = time.monotonic()
                speed = f"{state.images_per_second:.0f} a second, {clock(state.seconds_left)} left"
                self.say(f"{self.title}: {state.done} of {state.total} pictures encoded, {speed}")

        self.say(f"{self.title}: {pictures} pictures in the data, at most {size / 1e6:.0f} MB of features on disk")
        return told

    def say(self, text: Any) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
