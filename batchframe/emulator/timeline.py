"""What time does to batches: their statuses, stamps, rows and result files.

The state is a function of the clock: `settle` applies every event that was due, in the order of
their times, as of those times and not as of the look. With an instant model that includes the
rows; the rows of a slow one are executed by a thread, whose progress is seen while it goes.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

from batchframe.clock import Clock

from .archive import Archive, new_file_id
from .dialects import Manners
from .models import Answer, Model, error_body
from .records import TERMINAL, Batch, LineError
from .validation import MAX_REQUESTS, check_input
from .work import Work, read_ledger

__all__ = ["Pace", "Timeline"]

#: Rows of an instant model that are answered and flushed together.
_CHUNK = 1000

#: Rows of a slow model that are under way together.
_CONCURRENCY = 2

#: Seconds of real time after which the thread looks again whether the clock made work due.
_TICK_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast batches go, and how much of them."""

    #: Seconds that each of `validating`, `finalizing` and `cancelling` lasts, and `in_progress`
    #: at least; or what gives these seconds for a batch's id.
    stage_seconds: float | Callable[[str], float] = 0.05
    #: Seconds from the execution of one row of a batch to that of the next.
    row_seconds: float = 0.0
    #: Requests that one batch may have.
    max_requests: int = MAX_REQUESTS
    #: Prompt tokens that may be queued per model: for all models, or for each; None is no limit.
    enqueued_token_limit: int | Mapping[str, int] | None = None


class Timeline:
    """The batches of an archive, moved on by a clock and a model. Callers hold its lock."""

    def __init__(
        self,
        archive: Archive,
        *,
        model: Model,
        clock: Clock,
        pace: Pace,
        manners: Manners,
        reshape: Callable[[str, Path], None],
    ) -> None:
        self._archive = archive
        self._manners = manners
        self._model = model
        self._clock = clock
        self._pace = pace
        self._reshape = reshape
        self._work: dict[str, Work] = {}
        #: When the last row of a slow model was answered, by batch.
        self._rows_done_at: dict[str, float] = {}
        self._closing = False
        self._worker: threading.Thread | None = None
        if not model.instant:
            self._worker = threading.Thread(target=self._run_slow_rows, name="emulator-rows")
            self._worker.start()

    def close(self) -> None:
        """Stop after the rows that are under way. Not to be called with the lock."""
        with self._archive.changed:
            self._closing = True
            self._archive.changed.notify_all()
        if self._worker is not None:
            self._worker.join()
        for work in self._work.values():
            work.close()

    def settle(self) -> float:
        """Apply what is due by now, and return the time that it is."""
        now = self._clock.now()
        while True:
            live = self._archive.live_batches()
            due = min(live, key=self._next_event, default=None)
            if due is None or (at := self._next_event(due)) > now:
                break
            self._apply(due, at)
        for batch in live:
            if batch.status == "in_progress" and self._model.instant:
                self._execute(batch, now)
        for file in [f for f in self._archive.files.values() if (f.expires_at or now + 1) <= now]:
            self._archive.remove_file(file)
        return now

    def with_progress(self, batch: Batch) -> Batch:
        """Return the batch with the counts and the usage of its rows so far."""
        if batch.status in TERMINAL and batch.id not in self._work:
            return batch
        if batch.in_progress_at is None:
            return batch
        work = self._open_work(batch)
        done, failed = work.done, work.failed
        return replace(batch, completed=done - failed, failed=failed, usage=work.usage)

    def billed(self, batch_id: str) -> list[str]:
        """Return the custom_id of each billed execution of the batch."""
        work = self._work.get(batch_id)
        return work.billed if work else read_ledger(self._archive.work, batch_id)

    def _next_event(self, batch: Batch) -> float:
        """When the batch leaves its status."""
        pace = self._pace.stage_seconds
        stage = pace(batch.id) if callable(pace) else pace
        match batch.status:
            case "validating":
                return batch.created_at + stage
            case "in_progress":
                earliest = _known(batch.in_progress_at) + stage
                latest = batch.expires_at if self._manners.dialect.expires else float("inf")
                return min(latest, max(earliest, self._rows_end(batch)))
            case "finalizing":
                return _known(batch.finalizing_at) + stage
            case "cancelling":
                return _known(batch.cancelling_at) + stage
            case "failed" | "completed" | "expired" | "cancelled":
                return float("inf")

    def _apply(self, batch: Batch, at: float) -> None:
        """Move the batch into its next status, as of the time `at`."""
        match batch.status:
            case "validating":
                self._archive.save(self._validated(batch, at))
            case "in_progress":
                if self._model.instant:
                    self._execute(batch, at)
                self._archive.save(replace(batch, status="finalizing", finalizing_at=at))
            case "finalizing":
                if self._open_work(batch).done == batch.total:
                    self._end(replace(batch, status="completed", completed_at=at), at)
                else:
                    self._end(replace(batch, status="expired", expired_at=at), at)
            case _:
                self._end(replace(batch, status="cancelled", cancelled_at=at), at)

    def _validated(self, batch: Batch, at: float) -> Batch:
        file = self._archive.files.get(batch.input_file_id)
        if file is None or file.created_at > at:
            message = (
                f"Cannot find file {batch.input_file_id}, or organization org-local does not have"
                " access to it."
            )
            errors: tuple[LineError, ...] = (LineError("invalid_request", message, "file_id"),)
            return replace(batch, status="failed", failed_at=at, errors=errors)
        content = self._archive.contents / file.id
        checked = check_input(
            content,
            endpoint=self._manners.dialect.url(batch.endpoint),
            max_requests=self._pace.max_requests,
            count_tokens=self._pace.enqueued_token_limit is not None,
        )
        model = checked.model or ""
        errors = checked.errors or self._over_token_limit(model, checked.prompt_tokens)
        if errors:
            return replace(batch, status="failed", failed_at=at, errors=errors)
        # A name of its own for the same bytes: the user may delete the file while the batch runs.
        copy = self._archive.work / f"{batch.id}.input"
        copy.unlink(missing_ok=True)
        os.link(content, copy)
        return replace(
            batch,
            status="in_progress",
            in_progress_at=at,
            model=model,
            total=checked.total,
            enqueued_tokens=checked.prompt_tokens,
        )

    def _over_token_limit(self, model: str, tokens: int) -> tuple[LineError, ...]:
        limit = self._pace.enqueued_token_limit
        if isinstance(limit, Mapping):
            limit = limit.get(model)
        if limit is None:
            return ()
        queued = sum(
            b.enqueued_tokens
            for b in self._archive.batches.values()
            if b.model == model and b.status not in TERMINAL
        )
        if queued + tokens <= limit:
            return ()
        # The text of the service (openai-python issue 2084, 2025).
        message = (
            f"Enqueued token limit reached for {model} in organization org-local. Limit:"
            f" {limit:,} enqueued tokens. Please try again once some in_progress batches have"
            " been completed."
        )
        return (LineError("token_limit_exceeded", message),)

    def _end(self, batch: Batch, at: float) -> None:
        """Make the result files of a batch whose last status is given, and keep the rest."""
        if batch.in_progress_at is None:  # cancelled before it was validated: nothing to show
            self._archive.save(batch)
            return
        work = self._open_work(batch)
        batch = self.with_progress(batch)
        made = {kind: self._archive.contents / f"{batch.id}.{kind}" for kind in ("output", "error")}
        work.finish(made["output"], made["error"], cancelled=batch.status == "cancelled")
        ids: dict[str, str | None] = {"output": None, "error": None}
        with self._archive.transaction():
            for kind, path in made.items():
                self._manners.reshape(kind, path)
                self._reshape(kind, path)
                if not path.stat().st_size and not self._manners.has_empty_files:
                    path.unlink()
                    continue
                file_id = ids[kind] = new_file_id()
                name = f"{batch.id}_{kind}.jsonl"
                lasts = batch.output_expires_after
                self._archive.keep_file(path, file_id, name, "batch_output", lasts, at)
            self._archive.save(
                replace(batch, output_file_id=ids["output"], error_file_id=ids["error"])
            )
        del self._work[batch.id]
        self._rows_done_at.pop(batch.id, None)
        work.discard()

    def _open_work(self, batch: Batch) -> Work:
        if batch.id not in self._work:
            self._work[batch.id] = Work(self._archive.work, batch.id, batch.total)
        return self._work[batch.id]

    def _rows_due(self, batch: Batch, at: float) -> int:
        """How many rows the pace allows to be executed at a time."""
        if not self._pace.row_seconds:
            return batch.total
        started = _known(batch.in_progress_at)
        if at >= started + batch.total * self._pace.row_seconds:  # when such a batch ends, exactly
            return batch.total
        # The small part of a row is for times that are not exact in binary.
        return int((at - started) / self._pace.row_seconds + 1e-6)

    def _rows_end(self, batch: Batch) -> float:
        """When all rows are executed."""
        if self._model.instant:
            return _known(batch.in_progress_at) + batch.total * self._pace.row_seconds
        if self._open_work(batch).done < batch.total:
            return float("inf")
        return self._rows_done_at.get(batch.id, 0.0)

    def _execute(self, batch: Batch, at: float) -> None:
        work = self._open_work(batch)
        due = self._rows_due(batch, at)
        while work.done < due:
            requests = work.read(min(_CHUNK, due - work.done))
            work.append(requests, [self._answer(r.body, batch.endpoint) for r in requests])

    def _answer(self, body: dict[str, Any], endpoint: str) -> Answer:
        try:
            return self._model.answer(body, endpoint)
        except Exception as error:  # noqa: BLE001 - a row that fails must not end the batch
            message = f"The model {self._model.name} raised {type(error).__name__}: {error}"
            return 500, error_body(message, "server_error", None)

    def _run_slow_rows(self) -> None:
        with ThreadPoolExecutor(_CONCURRENCY, "emulator-row") as pool:
            while True:
                with self._archive.changed:
                    if self._closing:
                        return
                    now = self.settle()
                    live = self._archive.live_batches()
                    batch = next((b for b in live if self._has_rows_due(b, now)), None)
                    if batch is None:
                        self._archive.changed.wait(_TICK_SECONDS if live else None)
                        continue
                    work = self._open_work(batch)
                    due = self._rows_due(batch, now) - work.done
                    requests = work.read(min(_CONCURRENCY, due))
                answers = list(
                    pool.map(self._answer, [r.body for r in requests], repeat(batch.endpoint))
                )
                with self._archive.changed:
                    # The batch may have ended meanwhile: then nobody will see these rows.
                    if self._work.get(batch.id) is work:
                        work.append(requests, answers)
                        self._rows_done_at[batch.id] = self._clock.now()

    def _has_rows_due(self, batch: Batch, now: float) -> bool:
        if batch.status != "in_progress":
            return False
        return self._open_work(batch).done < self._rows_due(batch, now)


def _known(at: float | None) -> float:
    if at is None:
        raise AssertionError("a status was entered without its time")
    return at
