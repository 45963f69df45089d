"""What time does to batches: their statuses, stamps, rows and result files.

The state is a function of the clock: `settle` applies every event that was due, in the order of
their times, as of those times and not as of the look. With an instant model that includes the
rows; the rows of a slow one are executed by a thread, whose progress is seen while it goes.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from batchframe.clock import Clock

from .archive import Archive, new_file_id
from .dialects import Manners
from .models import Model
from .records import TERMINAL, Batch, LineError, Refusal
from .rows import Rows
from .upstream import Upstream
from .validation import MAX_REQUESTS, check_input
from .window import Window
from .work import read_ledger

__all__ = ["Pace", "Timeline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast batches go, and how much of them."""

    #: Seconds that each of `validating`, `finalizing` and `cancelling` lasts, and `in_progress`
    #: at least; or what gives these seconds for a batch's id.
    stage_seconds: float | Callable[[str], float] = 0.05
    #: Seconds from the execution of one row of a batch to that of the next.
    row_seconds: float = 0.0
    #: Rows of a slow model that are under way together.
    concurrency: int = 2
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
        model: Model | Upstream,
        clock: Clock,
        pace: Pace,
        manners: Manners,
        reshape: Callable[[str, Path], None],
    ) -> None:
        self._archive = archive
        self._manners = manners
        self._clock = clock
        self._pace = pace
        self._reshape = reshape
        self._rows = Rows(archive, model=model, clock=clock, row_seconds=pace.row_seconds)
        self._window: Window | None = None
        if not model.instant:
            self._window = Window(
                self._rows, archive, self.settle, model, clock, concurrency=pace.concurrency
            )

    def close(self) -> None:
        """Stop; rows under way in this process are waited for. Not to be called with the lock."""
        if self._window is not None:
            self._window.close()
        self._rows.close()

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
            if batch.status == "in_progress":
                self._rows.execute(batch, now)
        for file in [f for f in self._archive.files.values() if (f.expires_at or now + 1) <= now]:
            self._archive.remove_file(file)
        return now

    def with_progress(self, batch: Batch) -> Batch:
        """Return the batch with the counts and the usage of its rows so far."""
        if batch.status in TERMINAL or batch.in_progress_at is None:
            return batch
        work = self._rows.work(batch)
        done, failed = work.done, work.failed
        return replace(batch, completed=done - failed, failed=failed, usage=work.usage)

    def check_queue(self, input_file_id: str, endpoint: str) -> None:
        """Refuse a create whose batch does not fit into the queue of its model now."""
        if input_file_id not in self._archive.files:
            return
        content = self._archive.contents / input_file_id
        checked = check_input(content, endpoint=endpoint, count_tokens=True)
        for error in self._over_token_limit(checked.model or "", checked.prompt_tokens):
            raise Refusal(400, error.message, code=error.code)

    def billed(self, batch: Batch) -> Iterator[str]:
        """Return the custom_id of each billed execution of the batch."""
        if batch.status in TERMINAL or batch.in_progress_at is None:
            return read_ledger(self._archive.work, batch.id)
        return self._rows.work(batch).billed()

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
                return min(latest, max(earliest, self._rows.end(batch)))
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
                self._rows.execute(batch, at)
                self._archive.save(replace(batch, status="finalizing", finalizing_at=at))
            case "finalizing":
                if self._rows.work(batch).done == batch.total:
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
        work = self._rows.work(batch)
        completed = work.done - work.failed
        batch = replace(batch, completed=completed, failed=work.failed, usage=work.usage)
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
        self._rows.discard(batch)


def _known(at: float | None) -> float:
    if at is None:
        raise AssertionError("a status was entered without its time")
    return at
