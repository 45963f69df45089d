"""What becomes of the rows that a run looks at: answered, under way, or to be sent.

    rows, and what the checkpoint has --> Plan

A plan changes nothing; the run carries it out before it gives `Checkpoint.planning` free. It asks
which shards are collected before it reads their results: the engine goes on, and a shard that it
collects in between is watched like one that is under way.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint
from batchframe.collecting import repair
from batchframe.core.batches import Dropped, Sent, Unsent
from batchframe.core.requests import RowKeys, Rows, row_keys
from batchframe.core.results import RESULT_SCHEMA
from batchframe.core.retries import is_proof, latest
from batchframe.engine import Engine
from batchframe.errors import CheckpointCorruptError
from batchframe.jobs import Submission
from batchframe.plans import FOR_PLANS, equal_keys, keys_of, settled_keys

__all__ = ["Plan", "Planner", "by_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done about some rows."""

    #: The key of the request that answers each row; null where the row has no prompt.
    keys: pa.FixedSizeBinaryArray
    #: Shards that hold rows which are wanted, to be waited for.
    under_way: list[int]
    #: Shards that are to be dropped: they were never sent, nobody watches them, and they hold rows
    #: that nobody wants, or lines that take the service for another.
    unwanted: list[int]
    #: The positions of rows that go into new shards, those of one model together.
    to_freeze: pa.Array
    #: The positions of rows whose requests are in no shard that was sent.
    unsent: pa.Array


@dataclass(slots=True)
class Planner:
    """Plans one call's rows, some at a time, and remembers what was read for it."""

    checkpoint: Checkpoint
    submission: Submission
    engine: Engine
    #: As `Options` has them.
    retry_failed: bool
    dedupe: bool
    #: A row of this checkpoint was answered, as far as its results were read.
    is_proven: bool = False
    #: The collected shards whose results were read, and what they say.
    _read: set[int] = field(default_factory=set)
    _known: pa.Table = field(default_factory=lambda: RESULT_SCHEMA.empty_table().select(FOR_PLANS))
    #: The keys of those results that stand.
    _settled: pa.FixedSizeBinaryArray = field(default_factory=lambda: pa.array([], pa.binary(16)))
    #: How many rows of each shard are in the rows that were planned.
    _n_seen: dict[int, int] = field(default_factory=dict)

    def plan(self, rows: Rows, named: RowKeys | None, made: AbstractSet[int]) -> Plan:
        """What is to be done about these rows.

        Args:
            rows: What each asks; no row twice in one call.
            named: Their keys, where they are known.
            made: The shards that this call made, of other rows.
        """
        dialect = self.submission.provider.dialect
        named = named or row_keys(rows, self.checkpoint.spec, dialect)
        while True:
            self._read_results(made)
            keys = self._answering(named)
            is_settled = pc.is_in(keys, value_set=self._settled)
            wanted = pc.and_(pc.is_valid(keys), pc.invert(is_settled))
            under_way, unwanted, rest, unsent = self._shared_out(keys, wanted, made)
            is_own = pc.equal(keys, named.keys)
            if not self.dedupe:
                break
            answered = pc.is_in(keys.filter(rest), value_set=keys.filter(pc.and_(rest, is_own)))
            # An equal request that was given up since it was found answers nobody: look again.
            if pc.all(answered, min_count=0).as_py():
                break
        return Plan(
            keys=keys,
            under_way=under_way,
            unwanted=unwanted,
            to_freeze=by_model(rows, pc.indices_nonzero(pc.and_(rest, is_own))),
            unsent=pc.indices_nonzero(pc.and_(unsent, is_own)),
        )

    def standing(self) -> pa.Table:
        """The results that were read and are not tried again, with the columns FOR_PLANS."""
        results = latest(self._known)
        return results.filter(pc.is_in(keys_of(results), value_set=self._settled))

    def _read_results(self, made: AbstractSet[int]) -> None:
        """Read what stands, results of other runs included that came in meanwhile."""
        new = self._unread(made)
        if not new:
            return
        try:
            table = self.checkpoint.results(FOR_PLANS, numbers=new)
        except CheckpointCorruptError:
            repair(
                self.checkpoint,
                self.engine.clock,
                self.submission.provider.dialect.price_list,
                self.submission.prices,
            )
            new = self._unread(made)
            table = self.checkpoint.results(FOR_PLANS, numbers=new)
        self._known = pa.concat_tables([self._known, table])
        self._read.update(new)
        results = latest(self._known)
        self.is_proven = is_proof(results)
        self._settled = settled_keys(results, retry_failed=self.retry_failed)

    def _unread(self, made: AbstractSet[int]) -> list[int]:
        return [n for n in self.checkpoint.collected() if n not in self._read and n not in made]

    def _answering(self, named: RowKeys) -> pa.FixedSizeBinaryArray:
        """The key of the request that answers each row."""
        if not self.dedupe:
            return named.keys
        # What was read says by itself whether it answers; of what another run collects in this
        # moment, it is not known yet.
        under_way = [
            number
            for number, shard in list(self.checkpoint.shards.items())
            if number not in self._read
            and (self.engine.is_watched(self.checkpoint, number) or isinstance(shard.state, Sent))
        ]
        return equal_keys(named, self.checkpoint, self._settled, under_way)

    def _shared_out(
        self, keys: pa.FixedSizeBinaryArray, wanted: pa.BooleanArray, made: AbstractSet[int]
    ) -> tuple[list[int], list[int], pa.BooleanArray, pa.BooleanArray]:
        """Find the shards that hold wanted rows.

        Returns those to be waited for, those to be dropped, the wanted rows that no shard holds,
        and those that no sent shard holds.
        """
        under_way, unwanted = [], []
        rest = unsent = wanted
        for number, shard in list(self.checkpoint.shards.items()):
            if isinstance(shard.state, Dropped) or number in self._read or number in made:
                continue
            if self._n_seen.get(number) == shard.frozen.n_requests:
                continue  # all of its rows are in earlier windows
            if not pc.any(rest, min_count=0).as_py():
                break
            ours = pc.is_in(keys, value_set=self.checkpoint.row_keys(number))
            if not self.dedupe:
                n_ours = pc.sum(ours).as_py() or 0
                self._n_seen[number] = self._n_seen.get(number, 0) + n_ours
            n_wanted = pc.count_distinct(keys.filter(pc.and_(ours, rest))).as_py()
            if not n_wanted:
                continue
            if not self._is_worth_it(number, n_wanted):
                unwanted.append(number)
                continue
            under_way.append(number)
            rest = pc.and_not(rest, ours)
            if not isinstance(shard.state, Unsent):
                unsent = pc.and_not(unsent, ours)
        return under_way, unwanted, rest, unsent

    def _is_worth_it(self, number: int, n_wanted: int) -> bool:
        """False for a shard that is to be dropped."""
        shard = self.checkpoint.shards[number]
        return (
            not isinstance(shard.state, Unsent)
            or (n_wanted == shard.frozen.n_requests and self._is_addressed(number))
            or self.engine.is_watched(self.checkpoint, number)
        )

    def _is_addressed(self, number: int) -> bool:
        """True for a shard whose lines call their endpoint what the service calls it."""
        url = self.submission.provider.dialect.url(self.checkpoint.spec.endpoint)
        return self.checkpoint.url_of(number) in {None, url}


def by_model(rows: Rows, positions: pa.Array) -> pa.Array:
    """The positions, those of one model after those of another, else in their order."""
    if rows.models is None:
        return positions
    codes = rows.models.take(positions).dictionary_encode().indices
    return positions.take(pc.array_sort_indices(codes))
