"""What the local server keeps: records in memory and in SQLite, contents as files beside it.

Every change of a record is written through, so that a server opened on the same directory goes on
where the last one was, also after a kill: what memory says is in the database before anybody sees
it. Callers hold `changed` while they read or write.
"""

import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .records import TERMINAL, Batch, Delivery, File, Part, Upload

__all__ = ["Archive", "new_file_id"]

_Record = TypeVar("_Record", File, Batch, Upload, Part, Delivery)


#: Seconds that a server waits for the one before it on its directory to end.
_TIMEOUT_SECONDS = 1.0


def new_file_id() -> str:
    """Make an id for a file."""
    return f"file-{secrets.token_hex(12)}"


class Archive:
    """One directory with its records and contents, which nobody else may read.

    With `announces`, each batch that ends leaves a `Delivery`, in the transaction of its end.

    Raises OSError where another archive has the directory, or its records cannot be read.
    """

    def __init__(self, directory: Path, *, announces: bool = False) -> None:
        #: Where the contents of files are, each under its id.
        self.contents = directory / "files"
        #: Where the rows of batches are, see `Work`.
        self.work = directory / "work"
        #: Where the parts of uploads are, each under its id.
        self.parts_folder = directory / "parts"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.contents, self.work, self.parts_folder):
            folder.mkdir(exist_ok=True)
        self._announces = announces
        #: Held while anything is read or written; notified when a record changed.
        self.changed = threading.Condition(threading.RLock())
        self._database = _open_database(directory / "store.sqlite")
        #: What memory held before the changes of the transaction; None outside of one.
        self._before: list[tuple[dict[str, Any], str, Any]] | None = None
        #: Records by id, in the order in which they came.
        self.files = _load(self._database, "files", File)
        self.batches = _load(self._database, "batches", Batch)
        self.uploads = _load(self._database, "uploads", Upload)
        self.parts = _load(self._database, "parts", Part)
        self.deliveries = _load(self._database, "deliveries", Delivery)
        #: Calls that arrived, by operation.
        self.calls = Counter(dict(self._database.execute("SELECT operation, n FROM calls")))
        self._sweep()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def live_batches(self) -> list[Batch]:
        """Return the batches that time can still change."""
        return [batch for batch in self.batches.values() if batch.status not in TERMINAL]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Save all the records that are saved inside, or none of them."""
        if self._before is not None:
            yield
            return
        self._database.execute("BEGIN")
        self._before = []
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite ends it by itself after some errors
                self._database.execute("ROLLBACK")
            for records, record_id, record in reversed(self._before):
                if record is None:
                    records.pop(record_id)
                else:
                    records[record_id] = record
            raise
        finally:
            self._before = None

    def save(self, record: File | Batch | Upload | Part | Delivery) -> None:
        """Keep a new or changed record."""
        match record:
            case File():
                self._write("files", self.files, record)
            case Upload():
                self._write("uploads", self.uploads, record)
            case Part():
                self._write("parts", self.parts, record)
            case Delivery():
                self._write("deliveries", self.deliveries, record)
            case Batch():
                with self.transaction():
                    self._write("batches", self.batches, record)
                    self._announce(record)
        self.changed.notify_all()

    def _write(self, table: str, records: dict[str, _Record], record: _Record) -> None:
        self._database.execute(
            f"INSERT INTO {table} VALUES (?, ?)"  # noqa: S608 - a word of this module
            " ON CONFLICT (id) DO UPDATE SET record = excluded.record",
            (record.id, msgspec.json.encode(record)),
        )
        if self._before is not None:
            self._before.append((records, record.id, records.get(record.id)))
        records[record.id] = record

    def _announce(self, batch: Batch) -> None:
        if not self._announces or batch.status not in TERMINAL:
            return
        delivery_id = f"wh_{blake2b(batch.id.encode(), digest_size=16).hexdigest()}"
        if delivery_id not in self.deliveries:
            stamps = (batch.completed_at, batch.failed_at, batch.expired_at, batch.cancelled_at)
            ended_at = max(at for at in stamps if at is not None)
            self.save(
                Delivery(
                    id=delivery_id,
                    batch_id=batch.id,
                    status=batch.status,
                    created_at=ended_at,
                    next_at=ended_at,
                )
            )

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
        # First the record: what a kill leaves of the bytes is swept away at the next start.
        self._database.execute("DELETE FROM files WHERE id = ?", (file.id,))
        del self.files[file.id]
        (self.contents / file.id).unlink(missing_ok=True)

    def remove_part(self, part: Part) -> None:
        """Remove a part and its bytes."""
        self._database.execute("DELETE FROM parts WHERE id = ?", (part.id,))
        del self.parts[part.id]
        (self.parts_folder / part.id).unlink(missing_ok=True)

    def count_call(self, operation: str) -> None:
        """Remember that a call of the operation arrived."""
        n = self.calls[operation] + 1
        self._database.execute("REPLACE INTO calls VALUES (?, ?)", (operation, n))
        self.calls[operation] = n

    def _sweep(self) -> None:
        # What a killed process left: contents without a record, rows of a batch that ended,
        # parts of an upload that ended.
        for path in self.contents.iterdir():
            if path.name not in self.files:
                path.unlink()
        for part in list(self.parts.values()):
            if self.uploads[part.upload_id].status != "pending":
                self.remove_part(part)
        for path in self.parts_folder.iterdir():
            if path.name not in self.parts:
                path.unlink()
        for batch in self.batches.values():
            if batch.status in TERMINAL:
                (self.work / f"{batch.id}.input").unlink(missing_ok=True)
                (self.work / f"{batch.id}.results").unlink(missing_ok=True)


def _open_database(path: Path) -> sqlite3.Connection:
    # Each statement is its own transaction; the store's lock keeps the threads apart.
    database = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=_TIMEOUT_SECONDS
    )
    try:
        _set_up(database)
    except sqlite3.Error as error:
        database.close()
        if "locked" in str(error):
            raise OSError(f"another server uses the directory {path.parent}") from error
        raise OSError(f"{path} cannot be used: {error}") from error
    return database


def _set_up(database: sqlite3.Connection) -> None:
    # Held as long as the connection is: two servers would execute the same rows.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("PRAGMA journal_mode = WAL")
    # A killed process loses nothing; only a power cut could, and this is a test server.
    database.execute("PRAGMA synchronous = NORMAL")
    for table in ("files", "batches", "uploads", "parts", "deliveries"):
        database.execute(f"CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY, record BLOB)")
    database.execute("CREATE TABLE IF NOT EXISTS calls (operation TEXT PRIMARY KEY, n INTEGER)")
    database.execute("BEGIN IMMEDIATE")
    database.execute("COMMIT")


def _load(database: sqlite3.Connection, table: str, kind: type[_Record]) -> dict[str, _Record]:
    rows = database.execute(
        f"SELECT id, record FROM {table} ORDER BY rowid"  # noqa: S608 - a word of this module
    )
    return {record_id: msgspec.json.decode(record, type=kind) for record_id, record in rows}
