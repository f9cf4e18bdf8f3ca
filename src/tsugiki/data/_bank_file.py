"""The SQLite file of a demo bank: its tables, and how it is opened, changed and complained about."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tsugiki.data.files import disk_is_full
from tsugiki.errors import BaseMismatchError, StoreError

VERSION = 1
FILE = "bank.sqlite"
WAIT_SECONDS = 60.0
"""How long a process waits for another one that is adding."""
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE answers (label TEXT PRIMARY KEY);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, picture TEXT NOT NULL, label TEXT NOT NULL, source TEXT NOT NULL,
    image TEXT NOT NULL, note TEXT NOT NULL, added TEXT NOT NULL, withdrawn TEXT, vector BLOB NOT NULL);
CREATE UNIQUE INDEX present ON entries (picture) WHERE withdrawn IS NULL;
CREATE INDEX gone ON entries (id) WHERE withdrawn IS NOT NULL;
"""
BUILD = "Make one with `tsugiki bank build`."


def connect(path: Path) -> sqlite3.Connection:
    # Transactions are begun by hand: the lock has to be there before the first read. Threads take turns by a lock.
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def has_tables(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchall())


def refuse(meta: Mapping[str, str], fingerprint: str | None, tower: str, *, where: str) -> None:
    """Raises what `Bank.open` says of a bank that this version can't read, or this tower can't search."""
    lacking = {"version", "bank", "revision", "tower", "fingerprint", "width"} - meta.keys()
    if lacking or not (str(meta["version"]).isdecimal() and str(meta["width"]).isdecimal()):
        raise StoreError(
            f"a damaged bank ({min(lacking, default='version or width')})",
            expected="its version, tower and width",
            fix="Restore the folder from a copy.",
            where=where,
        )
    if int(meta["version"]) > VERSION:
        raise StoreError(
            f"a bank of version {meta['version']}",
            expected=f"at most {VERSION}",
            fix="Use a newer version of tsugiki.",
            where=where,
        )
    if fingerprint not in (None, meta["fingerprint"]):
        raise BaseMismatchError(
            f"a bank of the tower {meta['tower']} ({meta['fingerprint'][:12]})",
            expected=f"the model's tower {tower} ({str(fingerprint)[:12]})",
            fix="Build the bank again with this model.",
            where=where,
        )


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # on a full disk SQLite has done it
            connection.execute("ROLLBACK")
        raise


@contextmanager
def wrapped(folder: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        if isinstance(error, StoreError):
            raise
        text = str(error)
        full = disk_is_full(error) or "disk is full" in text
        fix = "Free some space." if full else "Wait for another process, or restore the folder from a copy."
        found = "the disk is full; nothing was changed" if full else f"the bank can't be used ({text})"
        raise StoreError(
            found, expected="a whole bank that this user may write to", fix=fix, where=str(folder)
        ) from error
