"""What came back of a call's rows, what that cost, and which of the rows are sent again.

Rows are sent again out of the lines of the shard that they were in last: because they failed with
an error that may pass, or because their shard was given up before it was sent.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint
from batchframe.core.batches import Collected, Ended, Live, State
from batchframe.core.retries import hopeless, is_proof, latest, unfinished
from batchframe.plans import FOR_PLANS, keys_of
from batchframe.progress import Tally
from batchframe.tolerance import Tolerance
from batchframe.watching import Watch

__all__ = ["Tries"]

#: The columns of results that a run looks at as they come in.
_FOR_LOOKS = ("row_key", "status", "error_code", "error_message", "http_status", "cost_usd")


@dataclass(slots=True)
class Tries:
    """The account of one call's rows: how far each is, in rounds, failures and dollars."""

    watch: Watch
    #: How many of the rows ended without an answer, and may.
    tolerance: Tolerance
    #: As `Options` has them.
    max_retries: int
    dedupe: bool
    #: The key of the request that answers each row, for each window that was planned.
    keys_of_windows: list[pa.FixedSizeBinaryArray] = field(default_factory=list)
    #: Keys of rows that are to be sent again, by the shard that has their lines.
    again: dict[int, pa.FixedSizeBinaryArray] = field(default_factory=dict)
    #: The shards whose results were looked at, and how many of their rows are sent again.
    looked_at: dict[int, int] = field(default_factory=dict)
    #: A row of this checkpoint was answered: the spec is one that the service takes.
    is_proven: bool = False
    #: Earlier calls had too many failures already.
    was_exceeded: bool = False
    #: What has come back in this call has cost so much; None where a price is unknown.
    _cost_usd: float | None = 0.0

    @property
    def keys(self) -> pa.FixedSizeBinaryArray:
        """Those of the window that was planned last."""
        return self.keys_of_windows[-1] if self.keys_of_windows else pa.array([], pa.binary(16))

    @property
    def _checkpoint(self) -> Checkpoint:
        return self.watch.checkpoint

    # What earlier calls left

    def resume(self, collected: Iterable[int]) -> None:
        """Take up what is left to be sent again of a checkpoint; `collected` are shards of it."""
        self.again.update(self._checkpoint.left_to_send())
        for number in collected:
            if self.is_proven:
                break
            self.is_proven = is_proof(self._checkpoint.results_of(number, ("status",)))

    def count_all(self, collected: Iterable[int]) -> None:
        """Take note of all rows of the checkpoint, and of the results of collected shards.

        To be called when what is under way is watched or held.
        """
        under_way = self.watch.keys_in(job.number for job in self.watch.jobs)
        again = pa.concat_arrays([under_way, *self.again.values()])
        results = latest(self._checkpoint.results(FOR_PLANS, numbers=collected))
        all_keys = pa.concat_arrays([again, keys_of(results)])
        self.tolerance.n_rows = pc.count_distinct(all_keys).as_py()
        is_again = pc.is_in(keys_of(results), value_set=again)
        self.tolerance.count(results, pc.invert(is_again).cast(pa.int64()))
        self.was_exceeded = self.tolerance.is_exceeded()

    def count_before(self, results: pa.Table) -> None:
        """Take note of what the rows that are looked at came to in earlier calls.

        `results` are those that stand. To be called when what is under way is watched or held.
        """
        # What is under way again speaks for itself when it ends.
        jobs = (job.number for job in self.watch.jobs if job.number not in self.looked_at)
        is_under_way = pc.is_in(keys_of(results), value_set=self.watch.keys_in(jobs))
        results = results.filter(pc.invert(is_under_way))
        self.tolerance.count(results, _n_answered(keys_of(results), self.keys))
        self.was_exceeded = self.tolerance.is_exceeded()

    # What comes back

    def look_at(self, number: int) -> pa.Table:
        """The results of a shard that was collected, and what they cost, taken note of."""
        self.looked_at[number] = 0
        results = self._checkpoint.results_of(number, _FOR_LOOKS)
        cost = pc.sum(results["cost_usd"], skip_nulls=False).as_py()
        known = self._cost_usd is not None and cost is not None
        self._cost_usd = self._cost_usd + cost if known else None
        self.watch.budget.spend(number, results)
        return results

    def in_vain(self, number: int, results: pa.Table) -> str | None:
        """Why these results say that to send more would be in vain, or None."""
        self.is_proven = self.is_proven or is_proof(results)
        if number in self.watch.sent_before:
            return None
        return hopeless(results, proven=self.is_proven)

    def has_unfinished(self, number: int, results: pa.Table) -> bool:
        """True if a row of the shard would be sent again."""
        return self._has_rounds(number) and bool(pc.any(unfinished(results)).as_py())

    def take_note(self, number: int, results: pa.Table) -> None:
        """Take note of which of a shard's rows are sent again, and what the others came to."""
        if self._has_rounds(number):
            again = self._ours(number, keys_of(results.filter(unfinished(results))))
            if len(again):
                self.looked_at[number] = len(again)
                self.again[number] = again
        if self.tolerance.ratio is not None:
            self._count(number, results)

    def lose(self, number: int) -> None:
        """Take note that a shard with rows of ours was dropped, before it was sent."""
        if number not in self.watch.cancelled:
            self.again[number] = self._ours(number, self._checkpoint.row_keys(number))

    def _has_rounds(self, number: int) -> bool:
        is_left = self.watch.rounds.get(number, 0) < self.max_retries
        is_cancelled = number in self.watch.cancelled or self._checkpoint.is_cancelled()
        return is_left and not is_cancelled

    def _ours(self, number: int, keys: pa.FixedSizeBinaryArray) -> pa.FixedSizeBinaryArray:
        """Those of a shard's keys that name rows of this call."""
        if number in self.watch.made or not len(keys):
            return keys
        ours = pa.chunked_array(self.keys_of_windows, pa.binary(16))
        # Those of a shard are few: all others are not made a set of for each shard.
        ours = ours.filter(pc.is_in(ours, value_set=keys)).combine_chunks()
        return keys.filter(pc.is_in(keys, value_set=ours))

    def _count(self, number: int, results: pa.Table) -> None:
        """Take note of a shard's results that are not tried again."""
        if number in self.again:
            is_again = pc.is_in(keys_of(results), value_set=self.again[number])
            results = results.filter(pc.invert(is_again))
        keys = keys_of(results)
        self.tolerance.count(
            results,
            _n_answered(keys, self.keys)
            if self.dedupe
            else pc.is_in(keys, value_set=self._ours(number, keys)).cast(pa.int64()),
        )

    # What is sent again

    def next_round(self) -> dict[int, dict[int, pa.FixedSizeBinaryArray]]:
        """By round, and by the shard that has their lines, the keys of rows to be sent again now.

        Of one model after those of another. What a later shard holds is waited for instead.
        """
        again, self.again = self.again, {}
        left = self._without_newer(again)
        by_round: dict[int, dict[int, pa.FixedSizeBinaryArray]] = {}
        for number in sorted(left, key=self._checkpoint.model_of):
            if len(left[number]):
                by_round.setdefault(self._round_after(number), {})[number] = left[number]
        return by_round

    def _without_newer(
        self, again: dict[int, pa.FixedSizeBinaryArray]
    ) -> dict[int, pa.FixedSizeBinaryArray]:
        """The keys that no later shard holds; those that hold some are waited for."""
        found = self._checkpoint.newer(again)
        for number, newer in found.items():
            # Whoever made it counts its rows' tries from where they stand here.
            round_ = self._round_after(number)
            for there in newer.unique().drop_null().to_pylist():
                self.watch.rounds.setdefault(there, round_)
                self.watch.take_up(there)
        return {number: keys.filter(found[number].is_null()) for number, keys in again.items()}

    def _round_after(self, number: int) -> int:
        """The round of rows that come out of a shard: that of one that was dropped is still due."""
        shard = self._checkpoint.shards[number]
        is_tried = isinstance(shard.state, Collected)
        return self.watch.rounds.get(number, 0 if is_tried else shard.frozen.round) + is_tried

    # Where it stands

    def n_open(self) -> int:
        """How many shards are watched whose results were not looked at."""
        return sum(job.number not in self.looked_at for job in self.watch.jobs)

    def tally(self, n_unfrozen: int) -> Tally:
        """Where the run stands; rows that are sent again count where they were sent last."""
        prepared = sent = done = 0
        jobs = list(self.watch.jobs)
        for job in jobs:
            state = job.state
            n_requests = job.n_requests - self.looked_at.get(job.number, 0)
            prepared += n_requests
            sent += n_requests if isinstance(state, Live | Ended | Collected) else 0
            done += _n_done(state, n_requests)
        total = n_unfrozen + self.watch.n_held() + prepared
        return Tally(
            total=total + sum(map(len, list(self.again.values()))),
            prepared=prepared,
            sent=sent,
            done=done,
            n_live=sum(isinstance(job.state, Live) for job in jobs),
            cost_usd=self._cost_usd,
            note=next((job.note for job in jobs if job.note), ""),
        )


def _n_answered(keys: pa.FixedSizeBinaryArray, rows: pa.FixedSizeBinaryArray) -> pa.Int64Array:
    """How many rows each of the keys answers, where `rows` has the key of each row's request."""
    counts = rows.drop_null().value_counts()
    places = pc.index_in(keys, value_set=counts.field("values"))
    return pc.fill_null(counts.field("counts").take(places), 0)


def _n_done(state: State, n_requests: int) -> int:
    match state:
        case Live(batch=batch):
            return min(batch.n_done, n_requests)
        case Ended() | Collected():
            return n_requests
        case _:
            return 0
