"""What a scan has found so far, file by file, on disk: nothing is looked at twice."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from etils import epath

from data_pipelines.manifests import AnyPath, Entry, in_bucket
from quark_jax.errors import UserError

Version: TypeAlias = tuple[int, int] | None
"""(size in bytes, time of change) of a file; None if it is not there."""

_FORMAT = 1  # to be raised where a scan looks at more than those before
_COMMIT_SECONDS = 2.0  # of work that is lost if the process is killed
_TABLES = """
    CREATE TABLE IF NOT EXISTS files (
        key TEXT PRIMARY KEY, size INTEGER, changed INTEGER,
        seconds REAL, rate INTEGER, channels INTEGER, reason TEXT, run INTEGER
    ) WITHOUT ROWID;
    CREATE TEMP TABLE ids (id TEXT PRIMARY KEY, file TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Found:
    """What looking at a recording has shown.

    Attributes:
        seconds, rate, channels: as in `Entry`; None where the recording cannot be read.
        reason: why it cannot be used; empty if it can.
        lasting: False where the file could not be opened: another time it may.
    """

    seconds: float | None = None
    rate: int | None = None
    channels: int | None = None
    reason: str = ""
    lasting: bool = True


class Journal:
    """A database of (recording, size and time of change of its file) -> `Found`."""

    def __init__(self, connection: sqlite3.Connection):
        self._database = connection
        self._committed = time.monotonic()
        last = connection.execute("SELECT max(run) FROM files").fetchone()[0]
        self._run = (last or 0) + 1

    def recall(self, entry: Entry) -> tuple[Version, Found | None]:
        """The version of the file as it is, and what was found of the recording when it was the
        same; None if it is new or has changed."""
        version = _version(entry.path)
        row = self._database.execute(
            "SELECT size, changed, seconds, rate, channels, reason FROM files WHERE key = ?",
            (_key(entry),),
        ).fetchone()
        same = row is not None and version is not None and row[:2] == version
        return version, Found(*row[2:]) if same else None

    def keep(self, entry: Entry, version: Version, found: Found) -> None:
        """Also marks the recording as one of this run."""
        known = version if version and found.lasting else (None, None)  # None: look again
        about = found.seconds, found.rate, found.channels, found.reason
        row = (_key(entry), *known, *about, self._run)
        self._database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        if time.monotonic() - self._committed > _COMMIT_SECONDS:
            self._database.commit()
            self._committed = time.monotonic()

    def claim(self, entry: Entry) -> str | None:
        """The file that has the id of `entry` already in this run; None if it is free."""
        taken = self._database.execute("SELECT file FROM ids WHERE id = ?", (entry.id,)).fetchone()
        if taken is not None:
            return taken[0]
        self._database.execute("INSERT INTO ids VALUES (?, ?)", (entry.id, str(entry.path)))
        return None

    def forget_vanished(self) -> Iterator[str]:
        """The recordings of earlier runs that this run has not met; they are forgotten."""
        earlier = "FROM files WHERE run < ?"
        rows = self._database.execute(f"SELECT key {earlier} ORDER BY key", (self._run,))
        yield from (key for (key,) in rows)
        self._database.execute(f"DELETE {earlier}", (self._run,))


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal in the file `path`, made where there is none; for one process at a time.

    Raises:
        UserError: if it cannot be opened or written, is damaged, or another process has it.
    """
    connection = None
    made = not path.exists()
    try:
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA synchronous = OFF")  # outlives the process, not a power cut
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version != _FORMAT:
            connection.executescript(f"DROP TABLE IF EXISTS files; PRAGMA user_version={_FORMAT}")
        connection.executescript(_TABLES)
        connection.isolation_level = "IMMEDIATE"
        connection.execute("UPDATE files SET run = run WHERE key IS NULL")  # takes the lock
        yield Journal(connection)
    except sqlite3.Error as error:
        locked = "locked" in str(error)
        raise UserError(
            f"{path}: the journal of the scan cannot be used ({error}); "
            + ("another scan is at work here" if locked else "check its folder, or delete it")
        ) from error
    finally:
        if connection is not None:
            if connection.in_transaction:
                connection.commit()
            empty = made and _is_empty(connection)
            connection.close()
            if empty:
                path.unlink(missing_ok=True)


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM files LIMIT 1").fetchone() is None


def _key(entry: Entry) -> str:
    section = entry.start or entry.frames is not None
    return f"{entry.path}#{entry.start}:{entry.frames}" if section else str(entry.path)


def _version(path: AnyPath) -> Version:
    """S3 tells sizes alone."""
    try:
        if in_bucket(path):
            status = epath.Path(path).stat()
            return status.length, status.mtime
        status = os.stat(path)  # noqa: PTH116
        return status.st_size, status.st_mtime_ns
    except OSError:
        return None
