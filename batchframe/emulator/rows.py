"""The rows of all live batches: which are due, which is next, and what is answered.

Those of an instant model are executed here, as of a time, whenever somebody looks. Those of a slow
one are taken one by one, by turns among the batches, and their answers kept in any order.
"""

import operator
from typing import Any

from batchframe.clock import Clock

from .answers import Answer, error_body
from .archive import Archive
from .models import Model
from .records import Batch
from .upstream import Upstream
from .work import Request, Work

__all__ = ["Rows", "answer_of"]

#: Rows of an instant model that are answered and flushed together.
_CHUNK = 1000


class Rows:
    """The work of an archive's live batches. Callers hold the archive's lock."""

    def __init__(
        self, archive: Archive, *, model: Model | Upstream, clock: Clock, row_seconds: float
    ) -> None:
        self._archive = archive
        self._model = model
        self._clock = clock
        #: From the execution of one row of a batch to that of the next.
        self._row_seconds = row_seconds
        self._works: dict[str, Work] = {}
        #: When the last row of a slow model was answered, by batch.
        self._answered_at: dict[str, float] = {}
        #: The number of the last turn that each batch had, of all turns so far.
        self._turns: dict[str, int] = {}
        self._n_turns = 0

    def close(self) -> None:
        """Close the files of all batches."""
        for work in self._works.values():
            work.close()

    def work(self, batch: Batch) -> Work:
        """The work of a batch that was validated."""
        if batch.id not in self._works:
            self._works[batch.id] = Work(self._archive.work, batch.id, batch.total)
        return self._works[batch.id]

    def discard(self, batch: Batch) -> None:
        """Forget the work of a batch that has ended."""
        self._works.pop(batch.id).discard()
        self._answered_at.pop(batch.id, None)
        self._turns.pop(batch.id, None)

    def end(self, batch: Batch) -> float:
        """When the last row is executed, of those that ever will be."""
        n_rows = _limit(batch)
        if not self._model.instant:
            if self.work(batch).done < n_rows:
                return float("inf")
            return self._answered_at.get(batch.id, 0.0)
        return _started(batch) + n_rows * self._row_seconds

    def execute(self, batch: Batch, at: float) -> None:
        """Let an instant model answer what is due at a time."""
        if isinstance(self._model, Upstream) or not self._model.instant:
            return
        work = self.work(batch)
        due = self._due(batch, at)
        while work.begun < due:
            try:
                requests = work.read(min(_CHUNK, due - work.begun))
                answers = [answer_of(self._model, r.body, batch.endpoint) for r in requests]
                work.append(requests, answers)
            except BaseException:
                # The rows were handed out: they are found again when the work is opened again.
                self._works.pop(batch.id).close()
                raise

    def take(self, at: float) -> tuple[Batch, Request] | None:
        """The next row that is due, of the batch with the fewest rows under way."""
        waiting = [
            batch
            for batch in self._archive.live_batches()
            if batch.status == "in_progress" and self.work(batch).begun < self._due(batch, at)
        ]
        if not waiting:
            return None
        batch = min(waiting, key=self._turn)
        self._n_turns += 1
        self._turns[batch.id] = self._n_turns
        (request,) = self.work(batch).read(1)
        return batch, request

    def keep(self, batch: Batch, request: Request, answer: Answer) -> None:
        """Record the answer of a row that was taken. Raises OSError if it cannot be written."""
        # The batch may have ended meanwhile: then nobody will see this row.
        if batch.id in self._works:
            self._works[batch.id].append([request], [answer])
            self._answered_at[batch.id] = self._clock.now()

    def _turn(self, batch: Batch) -> tuple[int, int]:
        work = self.work(batch)
        return work.begun - work.done, self._turns.get(batch.id, 0)

    def _due(self, batch: Batch, at: float) -> int:
        """How many rows the pace allows to be executed at a time."""
        n_rows = _limit(batch)
        if not self._row_seconds:
            return n_rows
        if at >= _started(batch) + n_rows * self._row_seconds:  # when such a batch ends, exactly
            return n_rows
        # The small part of a row is for times that are not exact in binary.
        return int((at - _started(batch)) / self._row_seconds + 1e-6)


def answer_of(model: Model, body: dict[str, Any], endpoint: str) -> Answer:
    """What the model answers, or 500 with the error that it raised, or that its answer is."""
    try:
        status, answer = model.answer(body, endpoint)
        return int(operator.index(status)), answer
    except Exception as error:  # noqa: BLE001 - a row that fails must not end the batch
        message = f"The model {model.name} raised {type(error).__name__}: {error}"
        return 500, error_body(message, "server_error", None)


def _limit(batch: Batch) -> int:
    """Rows that are executed before the batch ends."""
    limit = batch.rows_before_expiry
    return batch.total if limit is None else min(limit, batch.total - 1)


def _started(batch: Batch) -> float:
    if batch.in_progress_at is None:
        raise AssertionError("a row was asked for before its batch was in progress")
    return batch.in_progress_at
