"""A demo bank on disk: labelled pictures with one feature vector each, of one vision tower; exact search by cosine.

    bank.sqlite          the one truth, the entries: picture, label, source, time, withdrawn or not, note, vector
    index.safetensors    all vectors in one piece, to start fast; made again from the entries where it is damaged or old
    pictures/            copies of the pictures, named by their content

An entry exists from the commit of one SQLite transaction: a process that is killed before leaves the bank as it was.
Every search first asks SQLite, in microseconds, whether another process has changed the bank; so a withdrawal holds at
once everywhere. Shapes: n entries, d width of a vector, k neighbours.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from tsugiki.data._bank_entries import COLUMNS, Added, Entry, Neighbour, NewEntry, conflict, entry_of, no_answer
from tsugiki.data._bank_file import BUILD, FILE, TABLES, VERSION, connect, has_tables, refuse, transaction, wrapped
from tsugiki.data._bank_index import Vectors, unit
from tsugiki.errors import DataError, InputError, StoreError

__all__ = ["Added", "Bank", "Entry", "Neighbour", "NewEntry"]


class Bank:
    """An open bank; safe for several threads and several processes. Make one with `create` or `open`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self._db, self._lock = folder, connection, RLock()
        self._meta = dict(self._db.execute("SELECT key, value FROM meta"))
        self._seen: tuple[int, int] | None = None  # SQLite's counters of changes by others and by this process
        self._vectors: Vectors | None = None

    # -- opening -------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, folder: str | Path, *, tower: str, fingerprint: str, width: int, answers: Sequence[str] = ()
    ) -> Bank:
        """A new bank without entries.

        Args:
            tower, fingerprint: name of the vision tower, and what tells it from others of that name.
            width: d.
            answers: the labels that entries may have.

        Raises:
            StoreError: there is a bank already, or the folder can't be written.
        """
        folder = Path(folder)
        meta = {"version": str(VERSION), "bank": uuid.uuid4().hex, "revision": "0"}
        meta |= {"tower": tower, "fingerprint": fingerprint, "width": str(width)}
        with wrapped(folder):
            folder.mkdir(parents=True, exist_ok=True)
            connection = connect(folder / FILE)
            with transaction(connection):
                if has_tables(connection):
                    raise StoreError(
                        "a bank is there already", expected="a new folder", fix="Add to it instead.", where=str(folder)
                    )
                # One transaction: a process that is killed here leaves an empty file, in which the next one begins.
                for statement in filter(str.strip, TABLES.split(";\n")):
                    connection.execute(statement)
                connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                connection.executemany("INSERT INTO answers VALUES (?)", [(a,) for a in dict.fromkeys(answers)])
        return cls(folder, connection)

    @classmethod
    def open(cls, folder: str | Path, *, fingerprint: str | None = None, tower: str = "") -> Bank:
        """A bank that is there.

        Args:
            fingerprint, tower: of the tower whose features it shall be searched with; None = not looked at.

        Raises:
            StoreError: no bank there, a damaged one, or one of a newer version.
            BaseMismatchError: a bank of another tower.
        """
        folder = Path(folder)
        if not (folder / FILE).is_file():
            found = "no bank in it" if folder.is_dir() else "the folder does not exist"
            raise StoreError(found, expected="a bank", fix=BUILD, where=str(folder))
        with wrapped(folder):
            connection = connect(folder / FILE)
            try:
                if not has_tables(connection):
                    raise StoreError("no bank in it", expected="a bank", fix=BUILD, where=str(folder))
                bank = cls(folder, connection)
                refuse(bank._meta, fingerprint, tower, where=str(folder))
            except BaseException:
                connection.close()
                raise
        return bank

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what is in it -------------------------------------------------------------------------------------------------

    @property
    def tower(self) -> str:
        return str(self._meta["tower"])

    @property
    def fingerprint(self) -> str:
        return str(self._meta["fingerprint"])

    @property
    def width(self) -> int:
        return int(self._meta["width"])

    @property
    def answers(self) -> tuple[str, ...]:
        """The labels that entries may have, sorted."""
        return tuple(row[0] for row in self._read("SELECT label FROM answers ORDER BY label"))

    @property
    def state(self) -> str:
        """Changes with every change of the bank: what was answered with it can be told from what is now."""
        ((revision,),) = self._read("SELECT value FROM meta WHERE key = 'revision'")
        return f"{self._meta['bank'][:12]}.{revision}"

    def __len__(self) -> int:
        """Entries in use."""
        ((count,),) = self._read("SELECT COUNT(*) FROM entries WHERE withdrawn IS NULL")
        return int(count)

    def counts(self) -> dict[str, int]:
        """Entries in use by label, sorted."""
        query = "SELECT label, COUNT(*) FROM entries WHERE withdrawn IS NULL GROUP BY label ORDER BY label"
        return dict(self._read(query))

    def entries(self, ids: Sequence[int] | None = None) -> list[Entry]:
        """Entries in order of their ids, or those of `ids` in their order; withdrawn ones too.

        Raises:
            DataError: an id that is not in the bank.
        """
        if ids is None:
            return [entry_of(row) for row in self._read(f"SELECT {COLUMNS} FROM entries ORDER BY id")]
        found = []
        for i in ids:
            rows = self._read(f"SELECT {COLUMNS} FROM entries WHERE id = ?", (int(i),))
            if not rows:
                raise DataError(
                    f"no entry {i}", expected="the id of an entry", fix="Look it up.", where=str(self.folder)
                )
            found.append(entry_of(rows[0]))
        return found

    def picture(self, entry: Entry) -> Path | None:
        """Where an entry's picture is; None where there is none (any more)."""
        path = self.folder / entry.image  # an absolute path stays itself
        return path if entry.image and path.is_file() else None

    # -- changing it ---------------------------------------------------------------------------------------------------

    def add(self, new: Sequence[NewEntry], *, extend: bool = False) -> Added:
        """Add entries, all or none; a picture that is there with the same label is left as it is.

        Args:
            extend: labels that are no answer yet become one.

        Raises:
            DataError: a label that is no answer, or a picture that has another label.
            InputError: vectors of another width, or that are zero or not finite.
            StoreError: the disk is full, or another process adds for longer than a minute.
        """
        vectors = [self._checked(e) for e in new]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        ids: list[int] = []
        known: list[int] = []
        with self._lock, wrapped(self.folder), transaction(self._db):
            if extend:
                self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?)", [(e.label,) for e in new])
            answers = set(self.answers)
            for e, vector in zip(new, vectors, strict=True):
                if e.label not in answers:
                    raise no_answer(e, sorted(answers))
                query = "SELECT id, label FROM entries WHERE picture = ? AND withdrawn IS NULL"
                if rows := self._db.execute(query, (e.picture,)).fetchall():
                    if rows[0][1] != e.label:
                        raise conflict(e, *rows[0])
                    known.append(rows[0][0])
                    continue
                values = (e.picture, e.label, e.source, e.image, e.note, now, vector.tobytes())
                names = "picture, label, source, image, note, added, vector"
                cursor = self._db.execute(f"INSERT INTO entries ({names}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
                ids.append(int(cursor.lastrowid or 0))
            self._count_up(bool(ids))
        return Added(ids=tuple(ids), known=tuple(known))

    def withdraw(self, ids: Sequence[int], note: str = "") -> int:
        """Take entries out of use, all or none; they stay in the bank as withdrawn. How many were in use.

        Raises:
            DataError: an id that is not in the bank.
            StoreError: as `add`.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock, wrapped(self.folder), transaction(self._db):
            used = [e.id for e in self.entries(ids) if e.withdrawn is None]
            change = "UPDATE entries SET withdrawn = ?, note = CASE WHEN ? = '' THEN note ELSE ? END WHERE id = ?"
            self._db.executemany(change, [(now, note, note, i) for i in used])
            self._count_up(bool(used))
        return len(used)

    # -- searching -----------------------------------------------------------------------------------------------------

    def search(
        self,
        vector: npt.NDArray[Any],
        k: int,
        *,
        labels: Sequence[str] | None = None,
        without: Sequence[str] = (),
    ) -> list[Neighbour]:
        """The k entries in use that are nearest by cosine, nearest first, the older one of equals; fewer where there
        are no more.

        Args:
            vector: [d].
            labels: only entries with one of these.
            without: pictures that are left out, as the query's own.

        Raises:
            DataError: an empty bank.
            InputError: k < 1, or a vector of another width, zero or not finite.
        """
        if k < 1:
            raise InputError(f"k={k}", expected="at least 1")
        query = unit(vector, self.width)
        with self._lock:
            vectors = self._current()
            if not vectors.in_use:
                raise DataError(
                    "the bank is empty", expected="entries", fix="Add some: `tsugiki bank add`.", where=str(self.folder)
                )
            found: list[Neighbour] = []
            for i, cosine in vectors.nearest(query, k + len(without), labels):
                entry = self.entries([i])[0]
                # Asked again for each: another process may have withdrawn it in this moment.
                if entry.withdrawn is None and entry.picture not in without and len(found) < k:
                    found.append(Neighbour(entry=entry, distance=1.0 - cosine))
            return found

    def _current(self) -> Vectors:
        """The vectors as they are now: loaded at first, then brought up to date where anything has changed."""
        counters = self._read("PRAGMA data_version")[0][0], self._db.total_changes
        if self._vectors is None or counters != self._seen:
            if self._vectors is None:
                self._vectors = Vectors(self.width)
                self._vectors.load(self.folder, self._meta["bank"], self._read)
            self._vectors.update(self._read)
            self._vectors.save(self.folder, self._meta["bank"])
            self._seen = counters
        return self._vectors

    def _checked(self, new: NewEntry) -> npt.NDArray[np.float16]:
        if not new.picture or not new.label:
            raise InputError(
                f"picture {new.picture!r}, label {new.label!r}", expected="both", where=new.source or "bank"
            )
        return unit(new.vector, self.width, where=new.source).astype(np.float16)

    def _count_up(self, changed: bool) -> None:
        if changed:
            self._db.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'revision'")

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, wrapped(self.folder):
            return self._db.execute(query, values).fetchall()
