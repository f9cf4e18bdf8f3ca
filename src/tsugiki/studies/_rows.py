"""The file of answers: JSONL or CSV by its suffix, grown by whole rows, so that a killed run leaves a valid file.

A batch of rows is appended in one write and synced. What a crash left unfinished at the end is cut off when the run
goes on. CSV is UTF-8 with a byte order mark and rows ended by CR LF: spreadsheet programs, Excel among them, open it
with Japanese text intact by a double click; other readers take `encoding="utf-8-sig"`.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tsugiki.data.files import atomic_write, disk_is_full, hold
from tsugiki.errors import InputError, StoreError

Row = dict[str, Any]
FIELDS = (
    "id",
    "image",
    "answer",
    "probability",
    "probabilities",
    "boxes",
    "error",
    "question",
    "graft",
    "run",
    "picture",
)
NEIGHBOURS = "neighbours"
"""The field more that rows of a run with a demo bank have: [id, label, distance] of each entry."""
RESTART = "Choose another file, or start over with resume=False (--no-resume), which replaces it."
_BOM = b"\xef\xbb\xbf"


class OtherRun(ValueError):
    """A table of ours, of a run with other options or another use of a bank; its text says which."""


class Jsonl:
    """One JSON object a line."""

    head = b""
    begin = b'{"id": "'

    def __init__(self, options: Sequence[str] = (), neighbours: bool = False) -> None:
        self.fields = {*FIELDS, NEIGHBOURS} if neighbours else {*FIELDS}

    def encode(self, row: Row) -> bytes:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()

    def whole(self, raw: bytes) -> int:
        """Bytes up to the end of the last finished row."""
        return raw.rfind(b"\n") + 1

    def decode(self, raw: bytes) -> list[Row]:
        """Raises ValueError, KeyError or TypeError where the content is something else."""
        rows = [json.loads(line) for line in raw.decode().split("\n") if line]
        for row in rows:
            if not (isinstance(row, dict) and row.keys() >= {*FIELDS}):
                raise KeyError("other fields")
            if not self.fields <= row.keys():
                raise OtherRun("answers without a bank")
        return rows


class Csv:
    """A header, and one column for the probability of each option."""

    begin = _BOM + b"id,image,answer,"

    def __init__(self, options: Sequence[str], neighbours: bool = False) -> None:
        self.options = tuple(options)
        fields = (*FIELDS, NEIGHBOURS) if neighbours else FIELDS
        at = fields.index("probabilities")
        self.header = [*fields[:at], *(f"p({o})" for o in options), *fields[at + 1 :]]
        self.head = _BOM + self._line(self.header)
        self._fixed = [name for name in fields if name != "probabilities"]

    def encode(self, row: Row) -> bytes:
        plain = {k: "" if row[k] is None else row[k] for k in self._fixed}
        for name in {"boxes", NEIGHBOURS} & plain.keys():
            plain[name] = json.dumps(row[name], ensure_ascii=False) if row[name] else ""
        plain |= {f"p({o})": row["probabilities"].get(o, "") for o in self.options}
        return self._line([plain[name] for name in self.header])

    def whole(self, raw: bytes) -> int:
        """Bytes up to the end of the last finished row: the last line end that is not inside quotes."""
        end, at = 0, 0
        quotes = 0
        for line in raw.splitlines(keepends=True):
            at += len(line)
            quotes += line.count(b'"')
            if line.endswith(b"\n") and quotes % 2 == 0:
                end = at
        return end

    def decode(self, raw: bytes) -> list[Row]:
        """Raises ValueError, KeyError or TypeError where the content is something else."""
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""))
        names = list(reader.fieldnames or [])
        if names != self.header:
            fixed = [n for n in names if not n.startswith("p(")]
            if set(fixed) - {NEIGHBOURS} != set(self._fixed) - {NEIGHBOURS}:
                raise KeyError("columns")
            banked = "with" if NEIGHBOURS in fixed else "without"
            raise OtherRun("answers with other options" if fixed == self._fixed else f"answers {banked} a bank")
        return [self._row(row) for row in reader]

    def _row(self, row: Mapping[str, str]) -> Row:
        found: Row = {k: row[k] for k in self._fixed}
        found["probability"] = float(row["probability"]) if row["probability"] else None
        for name in {"boxes", NEIGHBOURS} & found.keys():
            found[name] = json.loads(row[name]) if row[name] else []
        found["probabilities"] = {o: float(row[f"p({o})"]) for o in self.options if row[f"p({o})"]}
        return found

    @staticmethod
    def _line(values: Iterable[Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\r\n").writerow(values)
        return text.getvalue().encode()


FORMATS: dict[str, Callable[[Sequence[str], bool], Jsonl | Csv]] = {".jsonl": Jsonl, ".csv": Csv}


class Rows:
    """The rows of one file.

    Args:
        path: ends in .jsonl or .csv.
        options: all options of the run, the columns of a CSV.
        neighbours: rows have the field of that name.

    Raises:
        InputError: another suffix.
    """

    def __init__(self, path: Path, options: Sequence[str], neighbours: bool = False) -> None:
        if path.suffix.lower() not in FORMATS:
            raise InputError(
                f"{path.name!r}", expected=f"a file ending in {' or '.join(FORMATS)}", fix="Rename it.", where="out"
            )
        self.path, self.format = path, FORMATS[path.suffix.lower()](options, neighbours)
        self._file: IO[bytes] | None = None

    def read(self) -> list[Row]:
        """Finished rows; an unfinished last one is left out. [] where there is no file.

        Raises:
            InputError: the file is something else, or its columns are those of other options.
        """
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"can't be read ({error.strerror})", expected="a file", where=str(self.path)) from error
        finished = raw[: self.format.whole(raw)]
        try:
            if not raw.startswith(self.format.begin[: len(raw)]):
                raise ValueError("another beginning")
            return self.format.decode(finished) if finished else []
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise InputError(
                f"it holds {error if isinstance(error, OtherRun) else 'something else than answers'}",
                expected="a new file, or that of a run with the same settings, unchanged",
                fix=RESTART,
                where=str(self.path),
            ) from error

    def start(self, rows: Iterable[Row]) -> None:
        """Write the file anew with these rows, in one step, and hold it for more.

        Raises:
            StoreError: the disk is full, the folder can't be written, or another process writes this file.
        """
        if self.path.is_file():
            with self.path.open("rb") as old:
                self._hold(old)
        atomic_write(self.path, self.format.head + b"".join(map(self.format.encode, rows)))
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._error(error) from error
        self._hold(self._file)

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows; they are on the disk when this returns.

        Raises:
            StoreError: the disk is full; the rows before are intact.
        """
        assert self._file is not None, "start comes first"
        raw = b"".join(map(self.format.encode, rows))
        before = self._file.seek(0, os.SEEK_END)
        try:
            while raw:
                raw = raw[self._file.write(raw) or 0 :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # no half row stays; one that does is cut off by the next run
                self._file.truncate(before)
            raise self._error(error) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _error(self, error: OSError) -> StoreError:
        found = "the disk is full" if disk_is_full(error) else f"can't be written ({error.strerror})"
        fix = "Make room, then run the same again: it goes on from the last answer."
        return StoreError(found, expected="room for the answers", fix=fix, where=str(self.path))

    def _hold(self, file: IO[bytes]) -> None:
        """One process at a time; a killed one leaves no lock behind."""
        hold(
            file,
            found="another process writes this file",
            expected="a file of its own for each run",
            fix="Wait for it, or choose another file.",
            where=str(self.path),
        )
