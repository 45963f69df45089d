"""A checkpoint -> what became of all of its run, for a report and for tables.

Nothing is sent, locked or written. Of what all of it is made, `core/histories` and `core/reasons`
say; here the files are read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint
from batchframe.core.histories import ShardHistory, histories, table_of_batches
from batchframe.core.rates import Prices
from batchframe.core.reasons import FOR_REASONS, Failure, by_reason, not_ok
from batchframe.core.spec import Spec
from batchframe.core.standing import Standing
from batchframe.core.statuses import Status
from batchframe.core.texts import printable
from batchframe.core.usage import TOTAL, Difference
from batchframe.plans import usage_in
from batchframe.run_status import RunStatus, status_at
from batchframe.sums import Sums

__all__ = ["Overview", "batches_of", "overview_of"]

#: Reasons that a report shows.
_SHOWN_REASONS = 20
#: Characters that a report shows of a setting's name, and of its value.
_NAME_CHARS, _SETTING_CHARS = 60, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All of a run, for a report. No prompt and no answer is in it."""

    #: Where it stands.
    status: RunStatus
    #: When this was put together, UTC.
    at: datetime
    #: The shards, in the order in which they were made.
    shards: tuple[ShardHistory, ...]
    #: Why rows are not ok, the most frequent reasons first.
    failures: tuple[Failure, ...]
    #: Rows that are not ok for further reasons.
    n_more_failures: int
    #: Tokens and dollars by model and category: a table as `bf.usage` has it.
    usage: pa.Table
    #: Batches that the provider counts otherwise.
    differences: tuple[Difference, ...]
    #: What all requests share, by name: texts, long ones shortened.
    settings: Mapping[str, str]

    @property
    def saved_usd(self) -> float | None:
        """What the same would cost more outside of batches, or None where a price is unknown."""
        totals = self.usage.filter(pc.equal(self.usage["category"], TOTAL))
        saved = pc.subtract(totals["standard_usd"], totals["cost_usd"])
        return None if saved.null_count else float(pc.sum(saved).as_py() or 0.0)


def overview_of(
    checkpoint: Checkpoint,
    *,
    now: float,
    prices: Prices | None = None,
    sums: Sums | None = None,
) -> Overview:
    """All of a run, for a report.

    Args:
        checkpoint: Opened for work or for reading; other threads may be at work on it.
        now: The present, in seconds since the epoch.
        prices: What the user pays, instead of the prices that the results have.
        sums: What earlier looks added up; whoever looks again and again passes the same.

    Raises:
        CheckpointCorruptError: the log or a shard's parquet is damaged.
    """
    standings = (sums or Sums()).standings(checkpoint, prices)
    usage, differences = usage_in(checkpoint, prices)
    failures = _failures(checkpoint, standings)
    return Overview(
        status=status_at(now, standings, path=checkpoint.path, spec=checkpoint.spec),
        at=datetime.fromtimestamp(now, UTC),
        shards=histories(standings, checkpoint.history()),
        failures=failures[:_SHOWN_REASONS],
        n_more_failures=sum(failure.n_rows for failure in failures[_SHOWN_REASONS:]),
        usage=usage,
        differences=differences,
        settings=_settings(checkpoint.spec),
    )


def batches_of(
    checkpoint: Checkpoint, *, prices: Prices | None = None, sums: Sums | None = None
) -> pa.Table:
    """The batches of a run and their times: one row for each shard, in the order they were made.

    Args:
        checkpoint: As for `overview_of`.
        prices: As for `overview_of`.
        sums: As for `overview_of`.

    Raises:
        CheckpointCorruptError: the log or a shard's parquet is damaged.
    """
    standings = (sums or Sums()).standings(checkpoint, prices)
    return table_of_batches(histories(standings, checkpoint.history()))


def _failures(checkpoint: Checkpoint, standings: Sequence[Standing]) -> tuple[Failure, ...]:
    """Why rows are not ok, each where its last result is; those that are tried again are not."""
    parts = []
    later: list[pa.FixedSizeBinaryArray] = []
    for one in reversed(standings):
        if one.results is not None and set(one.results.rows) != {str(Status.OK)}:
            parts.append(not_ok(checkpoint.results_of(one.number, FOR_REASONS), later))
        if len(one.again.keys):
            later.append(one.again.keys)
    # In the order of the shards: the ids that are shown are the first ones.
    return by_reason(pa.concat_tables(reversed(parts))) if parts else ()


def _settings(spec: Spec) -> dict[str, str]:
    """What all requests share, as a person reads it."""
    values = {
        "model": spec.model or "of each row",
        "endpoint": spec.endpoint,
        **({} if spec.system is None else {"system": spec.system}),
        **spec.params,
    }
    return {
        printable(name, _NAME_CHARS): printable(
            value if isinstance(value, str) else msgspec.json.encode(value).decode(),
            _SETTING_CHARS,
        )
        for name, value in values.items()
    }
