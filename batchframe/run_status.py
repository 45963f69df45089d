"""A checkpoint -> where its run stands now: a value, and its words for a terminal."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from batchframe.checkpoint import Checkpoint
from batchframe.core.batches import KEPT_DAYS, Collected, Dropped, Ended, Live
from batchframe.core.rates import Prices
from batchframe.core.spec import Spec
from batchframe.core.standing import (
    BATCH_WORDS,
    IN_PROGRESS,
    ROW_WORDS,
    WAITING,
    Standing,
    n_done,
    rows_of,
    seconds_left,
    word_of,
)
from batchframe.core.statuses import ANSWERED
from batchframe.core.texts import dollars, duration, printable
from batchframe.sums import Sums

__all__ = ["RunStatus", "status_at", "status_of", "time_left"]

#: Characters of a model's name in print.
_MODEL_CHARS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Where a run stands; `print` it.

    It tells of the checkpoint as it is known: one that was read from the disk knows of live
    batches as they were created, until somebody asks the provider and lets it `observe` them.
    """

    #: The checkpoint's directory.
    path: Path
    #: The model, or None where rows name their own.
    model: str | None
    #: Path of the API that the rows call.
    endpoint: str
    #: Rows that were prepared or sent, each counted once however often it was tried.
    n_rows: int
    #: Rows by where they stand: the words of results, "in progress" where the provider has the
    #: batch, "waiting" where nothing was sent; without zeros. Whether structured answers fit their
    #: schema is told where they are read: here they are "ok".
    rows: Mapping[str, int]
    #: Shards by where they stand: "waiting", "uploading" (also uploaded, and not created yet),
    #: "creating", the provider's word for a live batch, "ended" (not collected yet), "collected".
    batches: Mapping[str, int]
    #: Rows with a result, and those that the provider has done in batches that run or have ended.
    n_done: int
    #: What all rows that came back have cost, every try of them, in US dollars; None where a price
    #: is unknown.
    cost_usd: float | None
    #: Tokens of their prompts.
    input_tokens: int
    #: Tokens of their answers.
    output_tokens: int
    #: Seconds until the rows are done that are not, or None where nothing tells. The pace is that
    #: of the time since the oldest live batch was created: rows that were done in batches created
    #: since then, by seconds. It tells once a tenth of the work is done: those rows, and all that
    #: are not done; and nothing more is told once only the provider's own last steps are left. Rows
    #: that will fail and be tried again are not foreseen.
    eta_seconds: float | None
    #: Until when the provider keeps the results that are still there, UTC: 30 days after the oldest
    #: batch that is not collected was created. None where there is none.
    kept_until: datetime | None
    #: True when nothing waits and nothing is at the provider. Of rows that failed, some may be sent
    #: again by a call or a handle that is still at work.
    is_done: bool

    def __repr__(self) -> str:
        """A table for a terminal; a long name of a model is cut there."""
        lines = self._lines()
        name, value = (max(len(line[place]) for line in lines) for place in (0, 1))
        rows = (f"{n:<{name}}  {v:>{value}}  {note}".rstrip() for n, v, note in lines)
        return "\n".join([f"Run in {printable(str(self.path))}", *rows])

    @property
    def n_failures(self) -> int:
        """Rows that ended without an answer; one that was cut off has one."""
        others = {*ANSWERED, IN_PROGRESS, WAITING}
        return sum(n for word, n in self.rows.items() if word not in others)

    def _lines(self) -> list[tuple[str, str, str]]:
        part = f"{math.floor(100 * self.n_done / self.n_rows)} %" if self.n_rows else ""
        lines = [
            ("model", printable(self.model or "of each row", _MODEL_CHARS), self.endpoint),
            ("rows", f"{self.n_rows:,}", ""),
            *((f"  {word}", f"{n:,}", "") for word, n in self.rows.items()),
            ("batches", f"{sum(self.batches.values()):,}", ""),
            *((f"  {word}", f"{n:,}", "") for word, n in self.batches.items()),
            ("done", f"{self.n_done:,}", part),
            ("cost", "unknown" if self.cost_usd is None else dollars(self.cost_usd), "so far"),
            ("input tokens", f"{self.input_tokens:,}", ""),
            ("output tokens", f"{self.output_tokens:,}", ""),
        ]
        lines.append(("time left", *time_left(self)))
        if self.kept_until is not None:
            lines.append(
                ("results", f"{self.kept_until:%Y-%m-%d}", "the provider keeps them until then")
            )
        return lines


def time_left(status: RunStatus) -> tuple[str, str]:
    """The time that is left, in words, and how that is known or why it is not."""
    if status.is_done:
        return "none", "nothing waits, nothing is at the provider"
    if status.eta_seconds is not None:
        return duration(status.eta_seconds), "at the pace so far"
    if IN_PROGRESS not in status.rows:
        return "unknown", "nothing is at the provider"
    if status.n_done == status.n_rows:
        return "unknown", "all rows are done, the provider finishes the batch"
    return "unknown", "not enough is done to tell"


def status_of(
    checkpoint: Checkpoint,
    *,
    now: float,
    prices: Prices | None = None,
    sums: Sums | None = None,
) -> RunStatus:
    """Where a run stands. Nothing is sent, locked or written.

    Args:
        checkpoint: Opened for work or for reading; other threads may be at work on it.
        now: The present, in seconds since the epoch.
        prices: What the user pays, instead of the prices that the results have.
        sums: What earlier looks added up; whoever looks again and again passes the same.

    Raises:
        CheckpointCorruptError: a shard's parquet is damaged.
    """
    standings = (sums or Sums()).standings(checkpoint, prices)
    return status_at(now, standings, path=checkpoint.path, spec=checkpoint.spec)


def status_at(now: float, standings: Sequence[Standing], *, path: Path, spec: Spec) -> RunStatus:
    """Where the run of this spec in this directory stands, by its shards as they stood `now`."""
    rows: Counter[str] = Counter()
    for one in standings:
        rows.update(rows_of(one))
        rows.subtract(one.again.rows)
    batches = Counter(word_of(one.state) for one in standings)
    collected = [one.results for one in standings if one.results is not None]
    costs = [results.cost_usd for results in collected]
    there = [one.state.batch for one in standings if isinstance(one.state, Live | Ended)]
    dates = [batch.created_at for batch in there if batch.created_at]
    return RunStatus(
        path=path,
        model=spec.model,
        endpoint=spec.endpoint,
        n_rows=rows.total(),
        rows={word: rows[word] for word in ROW_WORDS if rows[word]},
        batches={word: batches[word] for word in BATCH_WORDS if batches[word]},
        n_done=sum(n_done(one) - sum(one.again.rows.values()) for one in standings),
        cost_usd=None if None in costs else sum(filter(None, costs), 0.0),
        input_tokens=sum(results.input_tokens for results in collected),
        output_tokens=sum(results.output_tokens for results in collected),
        eta_seconds=seconds_left(standings, now),
        kept_until=(
            datetime.fromtimestamp(min(dates), UTC) + timedelta(days=KEPT_DAYS) if dates else None
        ),
        is_done=all(isinstance(one.state, Collected | Dropped) for one in standings),
    )
