"""A checkpoint -> its shards as they stand now, each with the sums of its results.

Nothing is sent, locked or written. What a shard asks never changes, nor do the results of one that
is collected: so their parquet is read once, in the columns that are needed, and only the sums are
kept. A look that finds nothing new reads no file.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from batchframe.checkpoint import Checkpoint
from batchframe.core.batches import Collected, Dropped
from batchframe.core.prices import repriced
from batchframe.core.rates import Prices
from batchframe.core.standing import NOTHING_AGAIN, Again, ShardSums, Standing, again_in, sums_of
from batchframe.plans import FOR_USAGE

__all__ = ["Sums"]

#: Names one shard, whatever the checkpoint: its directory, its number, the hash of its input file.
_Key = tuple[Path, int, str]


@dataclass(slots=True)
class Sums:
    """What was added up of the shards of checkpoints, kept from one look to the next.

    Threads may share it: at worst two of them add up the same shard.
    """

    #: With the prices that were asked for.
    _results: dict[_Key, tuple[Prices | None, ShardSums]] = field(default_factory=dict)
    #: With how many of the earlier shards were looked at.
    _again: dict[_Key, tuple[int, Again]] = field(default_factory=dict)

    def standings(self, checkpoint: Checkpoint, prices: Prices | None) -> list[Standing]:
        """The shards in order. Others may be moving them: each state is read once.

        Args:
            checkpoint: Opened for work or for reading; other threads may be at work on it.
            prices: What the user pays, instead of the prices that the results have.

        Raises:
            CheckpointCorruptError: a shard's parquet is damaged.
        """
        found: list[Standing] = []
        before: list[pa.Table] = []
        for number, shard in sorted(list(checkpoint.shards.items())):  # noqa: C414 - a copy, first
            state, results, again = shard.state, None, NOTHING_AGAIN
            if not isinstance(state, Dropped):
                again = self._of_again(checkpoint, number, before)
            if isinstance(state, Collected):
                results = self._of_results(checkpoint, number, prices)
                if results.open.num_rows:
                    before.append(results.open)
            model = checkpoint.model_of(number)
            found.append(Standing(number, model, shard.frozen, state, results, again))
        return found

    def _of_results(self, checkpoint: Checkpoint, number: int, prices: Prices | None) -> ShardSums:
        key = _key(checkpoint, number)
        there = self._results.get(key)
        if there is None or there[0] != prices:
            table = checkpoint.results_of(number, ("row_key", *FOR_USAGE))
            if prices:
                table = repriced(table, model=checkpoint.model_of(number), prices=prices)
            there = self._results[key] = prices, sums_of(table)
        return there[1]

    def _of_again(self, checkpoint: Checkpoint, number: int, before: list[pa.Table]) -> Again:
        key = _key(checkpoint, number)
        there = self._again.get(key)
        if there is None or there[0] != len(before):
            again = again_in(checkpoint.row_keys(number), before) if before else NOTHING_AGAIN
            there = self._again[key] = len(before), again
        return there[1]


def _key(checkpoint: Checkpoint, number: int) -> _Key:
    return checkpoint.path, number, checkpoint.shards[number].frozen.sha256
