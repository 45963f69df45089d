"""What the local server keeps: records in memory and in SQLite, contents as files beside it.

Every change of a record is written through, so that a server opened on the same directory goes on
where the last one was, also after a kill. Callers hold `changed` while they read or write.
"""

import secrets
import sqlite3
import threading
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import msgspec

from .records import TERMINAL, Batch, File

__all__ = ["Archive", "new_file_id"]

_Record = TypeVar("_Record", File, Batch)


def new_file_id() -> str:
    """Make an id for a file."""
    return f"file-{secrets.token_hex(12)}"


class Archive:
    """One directory with its records and contents. One archive at a time per directory."""

    def __init__(self, directory: Path) -> None:
        #: Where the contents of files are, each under its id.
        self.contents = directory / "files"
        #: Where the rows of batches are, see `Work`.
        self.work = directory / "work"
        self.contents.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)
        #: Held while anything is read or written; notified when a record changed.
        self.changed = threading.Condition(threading.RLock())
        self._database = _open_database(directory / "store.sqlite")
        #: Records by id, in the order in which they came.
        self.files = _load(self._database, "files", File)
        self.batches = _load(self._database, "batches", Batch)
        #: Calls that arrived, by operation.
        self.calls = Counter(dict(self._database.execute("SELECT operation, n FROM calls")))
        self._sweep()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def live_batches(self) -> list[Batch]:
        """Return the batches that time can still change."""
        return [batch for batch in self.batches.values() if batch.status not in TERMINAL]

    def transaction(self) -> AbstractContextManager[object]:
        """Save all the records that are saved inside, or none of them."""
        self._database.execute("BEGIN")
        return self._database

    def save(self, record: File | Batch) -> None:
        """Keep a new or changed record."""
        if isinstance(record, File):
            self.files[record.id] = record
            table = "files"
        else:
            self.batches[record.id] = record
            table = "batches"
        self._database.execute(
            f"INSERT INTO {table} VALUES (?, ?)"  # noqa: S608 - one of two words above
            " ON CONFLICT (id) DO UPDATE SET record = excluded.record",
            (record.id, msgspec.json.encode(record)),
        )
        self.changed.notify_all()

    def keep_file(
        self,
        path: Path,
        file_id: str,
        filename: str,
        purpose: str,
        lasts: int | None,
        created_at: float,
    ) -> File:
        """Make the content at `path` a file that lasts so many seconds."""
        path.replace(self.contents / file_id)
        file = File(
            id=file_id,
            filename=filename,
            purpose=purpose,
            n_bytes=(self.contents / file_id).stat().st_size,
            created_at=created_at,
            listed_at=created_at,
            expires_at=None if lasts is None else created_at + lasts,
        )
        self.save(file)
        return file

    def remove_file(self, file: File) -> None:
        """Remove a file and its bytes."""
        (self.contents / file.id).unlink(missing_ok=True)
        del self.files[file.id]
        self._database.execute("DELETE FROM files WHERE id = ?", (file.id,))

    def count_call(self, operation: str) -> None:
        """Remember that a call of the operation arrived."""
        self.calls[operation] += 1
        n = self.calls[operation]
        self._database.execute("REPLACE INTO calls VALUES (?, ?)", (operation, n))

    def _sweep(self) -> None:
        # What a killed process left: contents without a record, rows of a batch that ended.
        for path in self.contents.iterdir():
            if path.name not in self.files:
                path.unlink()
        for batch in self.batches.values():
            if batch.status in TERMINAL:
                (self.work / f"{batch.id}.input").unlink(missing_ok=True)
                (self.work / f"{batch.id}.results").unlink(missing_ok=True)


def _open_database(path: Path) -> sqlite3.Connection:
    # Each statement is its own transaction; the store's lock keeps the threads apart.
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    # A killed process loses nothing; only a power cut could, and this is a test server.
    database.execute("PRAGMA synchronous = NORMAL")
    for table in ("files", "batches"):
        database.execute(f"CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY, record BLOB)")
    database.execute("CREATE TABLE IF NOT EXISTS calls (operation TEXT PRIMARY KEY, n INTEGER)")
    return database


def _load(database: sqlite3.Connection, table: str, kind: type[_Record]) -> dict[str, _Record]:
    rows = database.execute(
        f"SELECT id, record FROM {table} ORDER BY rowid"  # noqa: S608 - a word of this module
    )
    return {record_id: msgspec.json.decode(record, type=kind) for record_id, record in rows}
