"""What clients and tests ask of the local server: files, batches, calls and the bill.

No HTTP here: an answer is a record, and a refusal is a `Refusal`. Whatever is asked is answered
after the timeline has settled, so that it is true of the moment.
"""

import secrets
import shutil
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from batchframe.clock import Clock
from batchframe.core.dialects import OPENAI

from .archive import Archive, new_file_id
from .dialects import Manners
from .faults import Script
from .models import Model
from .rates import MAX_CREATES_PER_HOUR, MAX_UPLOADS_PER_MINUTE, Rate
from .records import TERMINAL, Batch, Billed, Birth, Call, File, Refusal, Usage
from .requests import BatchOrder, check_upload
from .timeline import Pace, Timeline
from .uploads import Uploads
from .upstream import Upstream
from .webhooks import Courier, Webhook

__all__ = ["Policy", "Store", "no_file"]

#: Calls that are remembered one by one.
_LOGGED_CALLS = 1_000

_Record = TypeVar("_Record", File, Batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is refused at once, because it is too much."""

    #: Size that the input file of a batch may have, in bytes.
    max_file_bytes: int = OPENAI.max_bytes
    max_creates_per_hour: int = MAX_CREATES_PER_HOUR
    max_uploads_per_minute: int = MAX_UPLOADS_PER_MINUTE
    #: Whether a batch that does not fit into the queue is refused when it is created, and not
    #: only while it is validated.
    refuse_at_create: bool = False


class Store:
    """Files and batches in a directory. Thread-safe; one store at a time per directory."""

    def __init__(
        self,
        directory: Path,
        *,
        model: Model | Upstream,
        clock: Clock,
        pace: Pace,
        manners: Manners,
        policy: Policy,
        script: Script,
        webhook: Webhook | None = None,
    ) -> None:
        #: What the service takes.
        self.dialect = manners.dialect
        self._clock = clock
        self._policy = policy
        self._archive = Archive(directory, announces=webhook is not None)
        self._changed = self._archive.changed
        self._timeline = Timeline(
            self._archive,
            model=model,
            clock=clock,
            pace=pace,
            manners=manners,
            reshape=script.reshape,
        )
        #: The uploads that come in parts.
        self.uploads = Uploads(self._archive, clock, policy.max_file_bytes)
        created = (batch.created_at for batch in self._archive.batches.values())
        self._creates = Rate(
            "batch creations per hour", policy.max_creates_per_hour, 3_600, created
        )
        self._uploads_rate = Rate("uploads per min", policy.max_uploads_per_minute, 60)
        self._log: deque[Call] = deque(maxlen=_LOGGED_CALLS)
        self._courier: Courier | None = None
        if webhook is not None:
            self._courier = Courier(webhook, self._archive, self._timeline.settle, script)

    def close(self) -> None:
        """Stop after the rows and the webhook under way. The directory can be opened again."""
        if self._courier is not None:
            self._courier.close()
        self._timeline.close()
        self._archive.close()

    # --- files

    def create_file(
        self,
        content: BinaryIO,
        *,
        filename: str,
        purpose: str,
        expires_after: int | None,
        birth: Birth,
    ) -> File:
        """Keep an upload that lasts so many seconds, or refuse it."""
        with self._changed:
            self._uploads_rate.take(self._clock.now())
        file_id = new_file_id()
        arriving = self._archive.contents / f"{file_id}.part"
        try:
            with arriving.open("wb") as kept:
                shutil.copyfileobj(content, kept, 1 << 20)
            check_upload(arriving, filename, purpose, self._policy.max_file_bytes)
        except BaseException:
            arriving.unlink(missing_ok=True)
            raise
        with self._changed:
            with self._archive.transaction():
                file = self._archive.keep_file(
                    arriving, file_id, filename, purpose, expires_after, self._clock.now()
                )
                self._archive.save(_born(file, birth))
            return file

    def file(self, file_id: str) -> File:
        """The file, if there is one."""
        with self._changed:
            now = self._timeline.settle()
            file = self._archive.files.get(file_id)
            if file is None or file.created_at > now:
                raise no_file(file_id)
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

    def create_batch(self, order: BatchOrder, birth: Birth) -> Batch:
        """Accept an order. Whether its file can be executed is found out while `validating`."""
        with self._changed:
            now = self._timeline.settle()
            if self._policy.refuse_at_create:
                self._timeline.check_queue(order.input_file_id, order.endpoint)
            self._creates.take(now)
            batch = Batch(
                id=f"batch_{secrets.token_hex(16)}",
                endpoint=order.endpoint,
                input_file_id=order.input_file_id,
                completion_window=order.completion_window,
                metadata=order.metadata,
                output_expires_after=order.output_expires_after,
                created_at=now,
                listed_at=now,
                rows_before_expiry=birth.rows_before_expiry,
            )
            self._archive.save(_born(batch, birth))
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

    def log(self, call: Call) -> None:
        """Remember a call that was answered, for as long as the server runs."""
        self._log.append(call)

    def logged(self) -> list[Call]:
        """The last calls, oldest first."""
        return list(self._log)

    def calls(self) -> dict[str, int]:
        """How many calls of each operation arrived."""
        with self._changed:
            return dict(self._archive.calls)

    def executions(self) -> dict[str, int]:
        """How many billed executions each custom_id had, over all batches."""
        with self._changed:
            self._timeline.settle()
            executed: Counter[str] = Counter()
            for batch in self._archive.batches.values():
                executed.update(self._timeline.billed(batch))
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


def _born(record: _Record, birth: Birth) -> _Record:
    """The record as it is kept; who created it is told that it is there."""
    return replace(
        record,
        created_at=record.created_at + birth.found_after,
        listed_at=record.listed_at + birth.listed_after,
    )


def no_file(file_id: str) -> Refusal:
    """Refuse what asks for a file that is not there."""
    return Refusal(404, f"No such File object: {file_id}", param="id")


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
