"""What clients and tests ask of the local server: files, batches, calls and the bill.

No HTTP here: an answer is a record, and a refusal is a `Refusal`. Whatever is asked is answered
after the timeline has settled, so that it is true of the moment.
"""

import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from batchframe.clock import Clock

from .archive import Archive, new_file_id
from .dialects import Manners
from .models import Model
from .records import TERMINAL, Batch, Billed, File, Refusal, Usage
from .requests import BatchOrder, check_upload
from .timeline import Pace, Timeline

__all__ = ["Store"]

#: Retention of batch inputs and outputs (OpenAI API spec, 2026-08: 30 days).
_RETENTION_SECONDS = 2_592_000

_Record = TypeVar("_Record", File, Batch)


class Store:
    """Files and batches in a directory. Thread-safe; one store at a time per directory."""

    def __init__(
        self,
        directory: Path,
        *,
        model: Model,
        clock: Clock,
        pace: Pace,
        max_file_bytes: int,
        manners: Manners,
        reshape: Callable[[str, Path], None],
    ) -> None:
        #: What the service takes.
        self.dialect = manners.dialect
        self._clock = clock
        self._max_file_bytes = max_file_bytes
        self._archive = Archive(directory)
        self._changed = self._archive.changed
        self._timeline = Timeline(
            self._archive, model=model, clock=clock, pace=pace, manners=manners, reshape=reshape
        )

    def close(self) -> None:
        """Stop after the rows that are under way. The directory can be opened again."""
        self._timeline.close()
        self._archive.close()

    # --- files

    def create_file(
        self, content: BinaryIO, *, filename: str, purpose: str, expires_after: int | None = None
    ) -> File:
        """Keep an upload, or refuse it."""
        file_id = new_file_id()
        arriving = self._archive.contents / f"{file_id}.part"
        try:
            with arriving.open("wb") as kept:
                shutil.copyfileobj(content, kept, 1 << 20)
            check_upload(arriving, filename, purpose, self._max_file_bytes)
        except BaseException:
            arriving.unlink(missing_ok=True)
            raise
        if expires_after is None and purpose == "batch":
            expires_after = _RETENTION_SECONDS
        with self._changed:
            return self._archive.keep_file(
                arriving, file_id, filename, purpose, expires_after, self._clock.now()
            )

    def file(self, file_id: str) -> File:
        """The file, if there is one."""
        with self._changed:
            now = self._timeline.settle()
            file = self._archive.files.get(file_id)
            if file is None or file.created_at > now:
                raise Refusal(404, f"No such File object: {file_id}", param="id")
            return file

    def files(
        self, *, after: str | None, limit: int, purpose: str | None = None, ascending: bool = False
    ) -> tuple[list[File], bool]:
        """A page of files, newest first unless `ascending`, and whether there are more."""
        with self._changed:
            now = self._timeline.settle()
            seen = [
                f for f in self._archive.files.values() if purpose is None or f.purpose == purpose
            ]
            return _page(seen, now, after=after, limit=limit, ascending=ascending)

    def open_content(self, file_id: str) -> Path:
        """Where the bytes of the file are."""
        return self._archive.contents / self.file(file_id).id

    def delete_file(self, file_id: str) -> None:
        """Remove the file and its bytes. Batches that have started keep their copy."""
        with self._changed:
            self._archive.remove_file(self.file(file_id))

    # --- batches

    def create_batch(self, order: BatchOrder) -> Batch:
        """Accept an order. Whether its file can be executed is found out while `validating`."""
        with self._changed:
            now = self._timeline.settle()
            batch = Batch(
                id=f"batch_{secrets.token_hex(16)}",
                endpoint=order.endpoint,
                input_file_id=order.input_file_id,
                completion_window=order.completion_window,
                metadata=order.metadata,
                output_expires_after=order.output_expires_after or _RETENTION_SECONDS,
                created_at=now,
                listed_at=now,
            )
            self._archive.save(batch)
            return batch

    def batch(self, batch_id: str) -> Batch:
        """The batch, if there is one."""
        with self._changed:
            now = self._timeline.settle()
            batch = self._archive.batches.get(batch_id)
            if batch is None or batch.created_at > now:
                raise Refusal(404, f"No batch found with id '{batch_id}'.", param="batch_id")
            return self._timeline.with_progress(batch)

    def batches(self, *, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """A page of batches, newest first, and whether there are more."""
        with self._changed:
            now = self._timeline.settle()
            page, more = _page(self._archive.batches.values(), now, after=after, limit=limit)
            return [self._timeline.with_progress(batch) for batch in page], more

    def cancel(self, batch_id: str) -> Batch:
        """Begin to cancel. Rows already executed are kept; to cancel again changes nothing."""
        with self._changed:
            batch = self.batch(batch_id)
            if batch.status in TERMINAL - {"cancelled"}:
                message = f"Cannot cancel a batch with status '{batch.status}'."
                raise Refusal(409, message)
            if batch.status not in {"cancelling", "cancelled"}:
                batch = replace(batch, status="cancelling", cancelling_at=self._clock.now())
                self._archive.save(batch)
            return batch

    # --- what tests ask

    def count_call(self, operation: str) -> None:
        """Remember that a call of the operation arrived."""
        with self._changed:
            self._archive.count_call(operation)

    def calls(self) -> dict[str, int]:
        """How many calls of each operation arrived."""
        with self._changed:
            return dict(self._archive.calls)

    def executions(self) -> dict[str, int]:
        """How many billed executions each custom_id had, over all batches."""
        with self._changed:
            self._timeline.settle()
            executed: Counter[str] = Counter()
            for batch_id in self._archive.batches:
                executed.update(self._timeline.billed(batch_id))
            return dict(executed)

    def billed(self) -> Billed:
        """The bill so far."""
        with self._changed:
            self._timeline.settle()
            batches = [
                self._timeline.with_progress(batch) for batch in self._archive.batches.values()
            ]
            usage = sum((batch.usage for batch in batches), Usage())
            return Billed(
                sum(batch.completed for batch in batches),
                usage.input_tokens,
                usage.cached_tokens,
                usage.output_tokens,
            )

    def postpone(self, record_id: str, seconds: float, *, only_listing: bool = False) -> None:
        """Let a new file or batch come into being, or only into lists, so much later."""
        with self._changed:
            found = self._archive.files.get(record_id) or self._archive.batches[record_id]
            later = replace(found, listed_at=found.listed_at + seconds)
            if not only_listing:
                later = replace(later, created_at=found.created_at + seconds)
            self._archive.save(later)


def _page(
    records: Iterable[_Record],
    now: float,
    *,
    after: str | None,
    limit: int,
    ascending: bool = False,
) -> tuple[list[_Record], bool]:
    listed = sorted((r for r in records if r.listed_at <= now), key=lambda r: r.created_at)
    if not ascending:
        listed.reverse()
    start = 0
    if after is not None:
        ids = [record.id for record in listed]
        if after not in ids:
            raise Refusal(404, f"No object found with id '{after}'.", param="after")
        start = ids.index(after) + 1
    return listed[start : start + limit], len(listed) > start + limit
