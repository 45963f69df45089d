"""One call at work on a checkpoint.

The rows themselves are the plan: what the checkpoint has is taken, what is under way is waited
for, and only the rest becomes new shards. So the same call again resumes, and a grown, re-ordered
or edited frame pays only for what is new.

Rows are rendered once. Whatever is sent again, because it failed with an error that may pass, or
because its shard was given up before it was sent, is made from the lines of its last shard, as soon
as nothing else waits for a place: a further round does not wait for the slowest batch of the last.
So a checkpoint can be worked to its end without its frame, in another process.
"""

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.budget import Budget
from batchframe.checkpoint import Checkpoint
from batchframe.client import Unavailable, delete_quietly
from batchframe.collecting import repair
from batchframe.core.batches import (
    Collected,
    Dropped,
    Ended,
    Live,
    Planned,
    Sent,
    State,
    Unsent,
    Uploaded,
)
from batchframe.core.dialects import Dialect
from batchframe.core.estimates import counted_ratio
from batchframe.core.requests import (
    Requests,
    RowKeys,
    Rows,
    addressed,
    render_requests,
    row_keys,
)
from batchframe.core.results import Status
from batchframe.core.retries import hopeless, latest, unfinished
from batchframe.core.shards import Limits, cut_shards, within_queue
from batchframe.engine import Engine
from batchframe.errors import (
    CheckpointCorruptError,
    ProviderError,
    RunTimeoutError,
)
from batchframe.going_on import explain, how_to_resume, warn_of_deletion
from batchframe.jobs import Job, Submission
from batchframe.plans import (
    FOR_PLANS,
    check_types_of_ids,
    equal_keys,
    keys_of,
    settled_keys,
)
from batchframe.progress import Progress, Silence, Tally, progress_for
from batchframe.tolerance import Tolerance

__all__ = [
    "Left",
    "Options",
    "Rounds",
]

_log = logging.getLogger(__name__)

#: The columns of results that a run looks at as they come in.
_FOR_LOOKS = ("row_key", "status", "error_code", "error_message", "http_status", "cost_usd")
#: Seconds until a live batch is asked again to be cancelled, where the provider did not answer.
_CANCEL_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run works, beside what it sends."""

    #: Further rounds for rows that failed with an error that another try can help.
    max_retries: int = 3
    #: Try again also rows of earlier calls that failed for good, were cancelled or are missing.
    retry_failed: bool = False
    #: Seconds to wait, or None for as long as it takes.
    timeout: float | None = None
    #: Show progress bars.
    progress: bool = True
    #: Send equal bodies once.
    dedupe: bool = False
    #: The most that the rows may cost, in US dollars, earlier calls included; None for no limit.
    max_cost_usd: float | None = None
    #: The part of the rows that may end without an answer, earlier calls included; None for all.
    max_error_ratio: float | None = None


_NO_ROWS = Rows(ids=pa.array([], pa.int64()), prompts=pa.array([], pa.string()))


@dataclass(slots=True, eq=False)
class Rounds:
    """One call at work on its checkpoint; `work` does it all, in whichever thread calls it."""

    #: The rows, some at a time; None for what is left of a checkpoint.
    windows: Callable[[], Iterable[Rows]] | None
    #: Of all rows; None where they are not needed yet: to encode all rows only to name them takes
    #: as long as to send them, and a new checkpoint has nothing to compare them with.
    row_keys: RowKeys | None
    checkpoint: Checkpoint
    submission: Submission
    options: Options
    engine: Engine
    #: Rows that have a prompt.
    n_rows: int = 0
    progress: Progress = field(init=False)
    #: How the service speaks.
    dialect: Dialect = field(init=False)
    #: The rows that are looked at, and none between plans.
    rows: Rows = field(init=False)
    #: The keys of the rows' own requests, for each window that was planned.
    keys_of_windows: list[pa.FixedSizeBinaryArray] = field(default_factory=list)
    #: The key of each row's own request, once it is known.
    own_keys: pa.FixedSizeBinaryArray | None = field(init=False, default=None)
    #: The key of the request that answers each row, as the last plan has it.
    keys: pa.FixedSizeBinaryArray = field(init=False)
    #: What the rows have cost, and may cost.
    budget: Budget = field(init=False)
    #: How many of the rows ended without an answer, and may.
    tolerance: Tolerance = field(init=False)
    jobs: list[Job] = field(default_factory=list)
    #: Set when all that fits the limits is at the provider.
    submitted: threading.Event = field(default_factory=threading.Event)
    #: Set by whoever wants the work to stop here, and the batches to go on.
    left: threading.Event = field(default_factory=threading.Event)
    #: Rows that are to be frozen still, of those that are looked at; and whether there are more.
    _n_unfrozen: int = 0
    _has_windows: bool = True
    #: In which round of this call each shard is, from 0.
    _rounds: dict[int, int] = field(default_factory=dict)
    #: A row of this checkpoint was answered: the spec is one that the service takes.
    _is_proven: bool = False
    #: The shards whose results were looked at, and how many of their rows are sent again.
    _looked_at: dict[int, int] = field(default_factory=dict)
    #: The shards that an earlier call sent: what it met says nothing of what this one would meet.
    _sent_before: set[int] = field(default_factory=set)
    #: Frozen shards that the budget, or the tolerance of failures, has no room for yet.
    _held: list[int] = field(default_factory=list)
    #: Earlier calls had too many failures already.
    _was_exceeded: bool = False
    #: How many rows of each shard are in the windows that were planned.
    _n_seen: dict[int, int] = field(default_factory=dict)
    #: Keys of rows that are to be sent again, by the shard that has their lines.
    _again: dict[int, pa.FixedSizeBinaryArray] = field(default_factory=dict)
    #: The shards that were made by this call: each row is in one window, and so in none of them.
    _made: set[int] = field(default_factory=set)
    #: What has come back in this call has cost so much; None where a price is unknown.
    _cost_usd: float | None = 0.0
    #: The collected shards whose results were read for the plan, and what they say.
    _read: set[int] = field(default_factory=set)
    _known: pa.Table | None = None
    #: The keys of those results that stand.
    _settled: pa.FixedSizeBinaryArray | None = None
    #: The live batches that were asked to be cancelled; and when to ask again, where that failed.
    _cancelled: set[str] = field(default_factory=set)
    #: Unsent shards of a cancelled run, which are dropped when no other run watches them.
    _withdrawn: set[int] = field(default_factory=set)
    _next_cancel: float = 0.0

    def __post_init__(self) -> None:
        self.progress = progress_for(self.engine.clock) if self.options.progress else Silence()
        self.rows = _NO_ROWS
        self.keys = pa.array([], pa.binary(16))
        self.dialect = self.submission.provider.dialect
        self.budget = Budget(
            self.options.max_cost_usd,
            self.checkpoint,
            self.submission.prices,
            self.dialect.price_list,
            self.engine.clock,
        )
        self.tolerance = Tolerance(self.options.max_error_ratio, self.n_rows)

    def work(self) -> None:
        """Work to the end, whichever that is, and close the checkpoint. To be called once."""
        try:
            try:
                with self.progress:
                    self._drive()
            finally:
                # First of all, and also where a second Ctrl-C interrupts it: nothing more is sent.
                self.engine.release(self)
        except (RunTimeoutError, Left):
            raise
        except BaseException as error:
            # After the release, when it is known what goes on.
            explain(error, self.checkpoint)
            raise
        finally:
            self.checkpoint.close()

    def _drive(self) -> None:
        """Plan, and wait until nothing is left to send."""
        seconds = float("inf") if self.options.timeout is None else self.options.timeout
        started = self.engine.clock.monotonic()
        if self.windows is None:
            self._take_up_all()
        else:
            self.checkpoint.forget_cancel()
            self.checkpoint.set_limit("max_cost_usd", self.options.max_cost_usd)
            self.checkpoint.set_limit("max_error_ratio", self.options.max_error_ratio)
        for rows in self.windows() if self.windows is not None else ():
            self.rows = rows
            self.own_keys = None
            self._plan()
            if self.own_keys is not None:
                self.keys_of_windows.append(self.own_keys)
            # Given up before the next ones are read.
            self.rows = _NO_ROWS
            del rows
        self._has_windows = False
        seconds = max(0.0, started + seconds - self.engine.clock.monotonic())
        if not self.engine.wait(self.jobs, seconds=seconds, look=self._watch_over):
            self._leave()
            raise RunTimeoutError(
                f"The batches were not done after {self.options.timeout} seconds. "
                f"{how_to_resume(self.checkpoint)}"
            )

    def _take_up_all(self) -> None:
        """Wait for all shards of the checkpoint, and send again what may be."""
        checkpoint = self.checkpoint
        with checkpoint.planning:
            # First of all: what another run collects from now on is watched like what is live.
            states = {number: shard.state for number, shard in list(checkpoint.shards.items())}
            self._made.update(states)
            self.budget.resume()
            self._again.update(checkpoint.to_send_again())
            for number, state in states.items():
                if isinstance(state, Collected) and not self._is_proven:
                    status = checkpoint.results_of(number, ("status",))["status"]
                    self._is_proven = pc.any(pc.equal(status, Status.OK)).as_py() or False
                if isinstance(state, Unsent):
                    self._held.append(number)
                elif not isinstance(state, Collected | Dropped):
                    self._watch(number)
            if self.tolerance.ratio is not None:
                self._count_all([n for n, at in states.items() if isinstance(at, Collected)])

    def _count_all(self, collected: Sequence[int]) -> None:
        """Take note of all rows of the checkpoint, and of the results of collected shards."""
        checkpoint = self.checkpoint
        under_way = self._keys_in([*(job.number for job in self.jobs), *self._held])
        again = pa.concat_arrays([under_way, *self._again.values()])
        results = latest(checkpoint.results(FOR_PLANS, numbers=collected))
        all_keys = pa.concat_arrays([again, keys_of(results)])
        self.tolerance.n_rows = pc.count_distinct(all_keys).as_py()
        is_again = pc.is_in(keys_of(results), value_set=again)
        self.tolerance.count(results, pc.invert(is_again).cast(pa.int64()))
        self._was_exceeded = self.tolerance.is_exceeded()

    def _read_results(self) -> pa.FixedSizeBinaryArray:
        """The keys of results that stand, those of other runs included that came in meanwhile."""
        # Which shards these are is asked before they are read: the engine goes on, and a shard that
        # it collects now is watched like one that is under way.
        new = self._unread()
        if self._settled is not None and not new:
            return self._settled
        try:
            table = self.checkpoint.results(FOR_PLANS, numbers=new)
        except CheckpointCorruptError:
            repair(
                self.checkpoint,
                self.engine.clock,
                self.dialect.price_list,
                self.submission.prices,
            )
            new = self._unread()
            table = self.checkpoint.results(FOR_PLANS, numbers=new)
        self._known = table if self._known is None else pa.concat_tables([self._known, table])
        self._read.update(new)
        results = latest(self._known)
        self._is_proven = pc.any(pc.equal(results["status"], Status.OK)).as_py() or False
        self._settled = settled_keys(results, retry_failed=self.options.retry_failed)
        return self._settled

    def _unread(self) -> list[int]:
        return [n for n in self.checkpoint.collected() if n not in self._read | self._made]

    def _plan(self) -> None:
        """Watch the shards under way that hold our rows, and make shards of what is missing."""
        checkpoint = self.checkpoint
        with checkpoint.planning:
            if self._is_new():
                self._send_all()
                return
            rest, unsent = self._rest()
            self._count_settled()
            numbers = (job.number for job in self.jobs)
            warn_of_deletion(checkpoint, numbers, now=self.engine.clock.now())
            is_own = pc.equal(self.keys, self.own_keys)
            positions = _by_model(self.rows, pc.indices_nonzero(pc.and_(rest, is_own)))
            others = checkpoint.shards.keys() - self._made
            check_types_of_ids(self.rows, positions, checkpoint, others)
            if self.row_keys is not None:
                to_send = pc.indices_nonzero(pc.and_(unsent, is_own))
                self.budget.open(self.keys, self.rows.take(to_send), self.row_keys, to_send)
            self._freeze(positions)

    def _is_new(self) -> bool:
        """True where nothing can be known of the rows, and nothing is asked of all of them."""
        is_empty = self.checkpoint.shards.keys() <= self._made
        return is_empty and self.row_keys is None and not self.options.dedupe

    def _rest(self) -> tuple[pa.BooleanArray, pa.BooleanArray]:
        """Take up what there is; returns what `_take_up` does."""
        while True:
            rest, unsent = self._take_up(self._wanted())
            if not self.options.dedupe:
                return rest, unsent
            to_send = pc.and_(rest, pc.equal(self.keys, self.own_keys))
            answered = pc.is_in(self.keys.filter(rest), value_set=self.keys.filter(to_send))
            # An equal request that was given up since it was found answers nobody: look again.
            if pc.all(answered, min_count=0).as_py():
                return rest, unsent

    def _wanted(self) -> pa.BooleanArray:
        """The rows that have no result which stands; takes up what answers each row."""
        checkpoint = self.checkpoint
        if self.own_keys is None:
            named = self.row_keys or row_keys(self.rows, checkpoint.spec, self.dialect)
            self.own_keys = named.keys
            if self.options.dedupe:
                self.row_keys = named
        settled = self._read_results()
        self.keys = self.own_keys
        if self.row_keys is not None and self.options.dedupe:
            # What was read says by itself whether it answers; of what another run collects in this
            # moment, it is not known yet.
            under_way = [
                number
                for number, shard in list(checkpoint.shards.items())
                if number not in self._read
                and (self.engine.is_watched(checkpoint, number) or isinstance(shard.state, Sent))
            ]
            self.keys = equal_keys(self.row_keys, checkpoint, settled, under_way)
        is_settled = pc.is_in(self.keys, value_set=settled)
        return pc.and_(pc.is_valid(self.keys), pc.invert(is_settled))

    def _count_settled(self) -> None:
        """Take note of what the rows that are looked at came to in earlier calls."""
        if self.tolerance.ratio is not None and self._known is not None:
            results = latest(self._known)
            is_settled = pc.is_in(keys_of(results), value_set=self._settled)
            # What is under way again speaks for itself when it ends.
            jobs = (job.number for job in self.jobs if job.number not in self._looked_at)
            is_under_way = pc.is_in(keys_of(results), value_set=self._keys_in([*jobs, *self._held]))
            results = results.filter(pc.and_not(is_settled, is_under_way))
            self.tolerance.count(results, _n_answered(keys_of(results), self.keys))
            self._was_exceeded = self.tolerance.is_exceeded()

    def _take_up(self, wanted: pa.BooleanArray) -> tuple[pa.BooleanArray, pa.BooleanArray]:
        """Watch the shards under way that hold wanted rows.

        Returns the wanted rows that no shard holds, and those that no sent shard holds.
        """
        unsent = wanted
        for number, shard in list(self.checkpoint.shards.items()):
            if isinstance(shard.state, Dropped) or number in self._read | self._made:
                continue
            if self._n_seen.get(number) == shard.frozen.n_requests:
                continue  # all of its rows are in earlier windows
            if not pc.any(wanted, min_count=0).as_py():
                break
            ours = pc.is_in(self.keys, value_set=self.checkpoint.row_keys(number))
            if not self.options.dedupe:
                n_ours = pc.sum(ours).as_py() or 0
                self._n_seen[number] = self._n_seen.get(number, 0) + n_ours
            n_wanted = pc.count_distinct(self.keys.filter(pc.and_(ours, wanted))).as_py()
            if not n_wanted or not self._is_worth_it(number, n_wanted):
                continue
            wanted = pc.and_not(wanted, ours)
            if not isinstance(shard.state, Unsent):
                unsent = pc.and_not(unsent, ours)
                self._watch(number)
            elif number not in self._held and all(job.number != number for job in self.jobs):
                self._held.append(number)
        return wanted, unsent

    def _send_all(self) -> None:
        """Make shards of all rows, of which nothing is known yet, and learn their keys by it."""
        positions = _by_model(self.rows, pc.indices_nonzero(pc.is_valid(self.rows.prompts)))
        keys = self._freeze(positions)
        n = len(self.rows)
        if len(keys) < len(positions):  # cancelled
            self.own_keys = self.keys = row_keys(self.rows, self.checkpoint.spec).keys
            return
        self.own_keys = pc.scatter(keys, positions.cast(pa.int64()), max_index=n - 1)
        self.keys = self.own_keys

    def _freeze(self, positions: pa.Array) -> pa.FixedSizeBinaryArray:
        """Make shards of the rows at `positions`, and send them. Returns their keys, in order."""
        self._n_unfrozen = len(positions)
        self._look()
        chunks = render_requests(self.rows, positions, self.checkpoint.spec, self.dialect)
        spec = self.checkpoint.spec
        counts = {
            model: functools.partial(counted_ratio, rows, spec)
            for model, rows in self._rows_by_model()
        }
        keys = self._cut(chunks, self._limits(counts), round_=0)
        return pa.concat_arrays([pa.array([], pa.binary(16)), *keys])

    def _cut(
        self, chunks: Iterable[Requests], limits: Limits, *, round_: int
    ) -> list[pa.FixedSizeBinaryArray]:
        """Make shards of requests, and send them; fewer if the run is cancelled meanwhile.

        Returns the keys of each.
        """
        keys = []
        # Lines that were written before may have taken the service for another.
        url = self.dialect.url(self.checkpoint.spec.endpoint)
        with self.engine.freezing():
            for requests in cut_shards((addressed(chunk, url) for chunk in chunks), limits):
                if self.checkpoint.is_cancelled():
                    self._n_unfrozen = 0
                    break
                # A further try is written down all the same, so that the next run counts on.
                if self.left.is_set() and round_ == 0:
                    raise Left
                keys.append(pa.array(requests.row_keys, pa.binary(16)))
                self._n_unfrozen -= len(requests)
                number = self.checkpoint.freeze(requests, round_=round_)
                self._rounds[number] = round_
                self._made.add(number)
                self._held.append(number)
                self._look()
        return keys

    def _send_again(self) -> None:
        """Make shards of the rows that are to be sent again, out of the lines that they had."""
        checkpoint = self.checkpoint
        with checkpoint.planning:
            again, self._again = self._again, {}
            left = self._without_newer(again)
            by_round: dict[int, list[int]] = {}
            for number in sorted(left, key=checkpoint.model_of):
                if len(left[number]):
                    state = checkpoint.shards[number].state
                    round_ = self._rounds.get(number, 0) + isinstance(state, Collected)
                    by_round.setdefault(round_, []).append(number)
            for round_, numbers in by_round.items():
                lines = (checkpoint.lines(number, left[number]) for number in numbers)
                self._n_unfrozen = sum(len(left[number]) for number in numbers)
                # The queues were measured when the rows were there.
                models = dict.fromkeys(map(checkpoint.model_of, numbers), lambda: None)
                self._cut(lines, self._limits(models), round_=round_)

    def _without_newer(
        self, again: Mapping[int, pa.FixedSizeBinaryArray]
    ) -> dict[int, pa.FixedSizeBinaryArray]:
        """The keys that no later shard holds; those that hold some are waited for."""
        found = self.checkpoint.newer(again)
        for number, newer in found.items():
            # Whoever made it counts its rows' tries from where they stand here.
            round_ = self._rounds.get(number, 0)
            round_ += isinstance(self.checkpoint.shards[number].state, Collected)
            for there in newer.unique().drop_null().to_pylist():
                self._rounds.setdefault(there, round_)
                if not isinstance(self.checkpoint.shards[there].state, Unsent):
                    self._watch(there)
                elif there not in self._held:
                    self._held.append(there)
        return {number: keys.filter(found[number].is_null()) for number, keys in again.items()}

    def _limits(self, counts: Mapping[str, Callable[[], float | None]]) -> Limits:
        """The user's limits, and what was learned of the queues; `counts` as for `Engine.room`."""
        limits, account = self.submission.limits, self.checkpoint.spec.account
        rooms = [
            self.engine.room(account, model, limits.max_enqueued_tokens, count)
            for model, count in counts.items()
        ]
        return within_queue(limits, min((r for r in rooms if r is not None), default=None))

    def _rows_by_model(self) -> Iterator[tuple[str, Rows]]:
        """The rows that have a prompt, by the model that they ask."""
        asked = pc.is_valid(self.rows.prompts)
        models = self.rows.models
        if models is None:
            yield self.checkpoint.spec.model or "", self.rows.take(pc.indices_nonzero(asked))
            return
        for model in models.filter(asked).unique().to_pylist():
            of_model = pc.and_(asked, pc.equal(models, model))
            yield model, self.rows.take(pc.indices_nonzero(of_model))

    def _watch_over(self) -> None:
        """Look, and send again what is to be sent again."""
        if self.checkpoint.is_cancelled():
            self._cancel()
        self._take_note()
        if self.left.is_set() and not self._is_done():
            self._leave()
            if not self._is_done():
                raise Left
        if not self.submitted.is_set() and self.engine.is_waiting(self.jobs):
            self.submitted.set()

    def _take_note(self) -> None:
        """Take note of what came back, and send again what is to be sent again."""
        self._look()
        for job in [job for job in self.jobs if isinstance(job.state, Dropped)]:
            self.jobs.remove(job)
            self._lose(job.number)
        is_waiting = self._held or any(isinstance(job.state, Planned) for job in self.jobs)
        if self._again and (self.left.is_set() or not is_waiting):
            # Also where another process is to send it: so that it counts on from this round.
            self._send_again()

    def _is_done(self) -> bool:
        return not self._held and all(job.is_settled for job in self.jobs)

    def _leave(self) -> None:
        """Leave what there is to do to another process, which counts its tries on from here."""
        self.left.set()
        # A step that ends by this may bring results: they are taken note of as well.
        self.engine.release(self)
        self._take_note()

    def _cancel(self) -> None:
        """Send nothing more, and ask for live batches to be cancelled."""
        self._again.clear()
        unsent = [*self._held, *(job.number for job in self.jobs if isinstance(job.state, Unsent))]
        self._held.clear()
        for number in unsent:
            self.engine.withdraw(self, self.checkpoint, number)
        self._withdrawn.update(unsent)
        self.jobs[:] = [job for job in self.jobs if job.number not in self._withdrawn]
        self._drop_withdrawn()
        now = self.engine.clock.monotonic()
        if now < self._next_cancel:
            return
        for job in self.jobs:
            if isinstance(job.state, Live) and job.state.batch.batch_id not in self._cancelled:
                try:
                    self.submission.provider.cancel(job.state.batch.batch_id)
                except Unavailable:
                    self._next_cancel = now + _CANCEL_SECONDS
                    return
                except ProviderError as reason:  # it goes on, and is collected when it has ended
                    _log.warning("%s", reason)
                self._cancelled.add(job.state.batch.batch_id)

    def _drop_withdrawn(self) -> None:
        """Give up what was withdrawn and was not sent, once no other run watches it."""
        with self.checkpoint.planning:
            for number in sorted(self._withdrawn):
                state = self.checkpoint.shards[number].state
                if not isinstance(state, Unsent):  # sent in this moment, or given up by another
                    self._withdrawn.discard(number)
                    if not isinstance(state, Dropped):
                        self._watch(number)
                elif not self.engine.is_watched(self.checkpoint, number):
                    self.checkpoint.drop(number, is_unwanted=True)
                    if isinstance(state, Uploaded):
                        delete_quietly(self.submission.provider, state.file_id)

    def _lose(self, number: int) -> None:
        """Take note that a shard with rows of ours was dropped, before it was sent."""
        self._again[number] = self._ours(number, self.checkpoint.row_keys(number))

    def _keys_in(self, numbers: Iterable[int]) -> pa.FixedSizeBinaryArray:
        """The keys of all requests of these shards."""
        keys = [self.checkpoint.row_keys(number) for number in numbers]
        return pa.concat_arrays([pa.array([], pa.binary(16)), *keys])

    def _ours(self, number: int, keys: pa.FixedSizeBinaryArray) -> pa.FixedSizeBinaryArray:
        """Those of a shard's keys that name rows of this call."""
        if number in self._made or not len(keys):
            return keys
        ours = pa.chunked_array([self.keys, *self.keys_of_windows])
        # Those of a shard are few: all others are not made a set of for each shard.
        ours = ours.filter(pc.is_in(ours, value_set=keys)).combine_chunks()
        return keys.filter(pc.is_in(keys, value_set=ours))

    def _is_worth_it(self, number: int, n_wanted: int) -> bool:
        """False for a shard that was never sent and that is dropped.

        It holds rows that nobody wants, or lines that take the service for another.
        """
        shard = self.checkpoint.shards[number]
        state = shard.state
        if (
            not isinstance(state, Unsent)
            or (n_wanted == shard.frozen.n_requests and self._is_addressed(number))
            or self.engine.is_watched(self.checkpoint, number)
        ):
            return True
        self.checkpoint.drop(number, is_unwanted=True)
        if isinstance(state, Uploaded):
            delete_quietly(self.submission.provider, state.file_id)
        return False

    def _is_addressed(self, number: int) -> bool:
        """True for a shard whose lines call their endpoint what the service calls it."""
        url = self.dialect.url(self.checkpoint.spec.endpoint)
        return self.checkpoint.url_of(number) in {None, url}

    def _watch(self, number: int) -> None:
        if isinstance(self.checkpoint.shards[number].state, Sent):
            self._sent_before.add(number)
        # A shard under way counts on where it was made: a process that begins every ten minutes
        # must come to an end of rows that fail each time.
        self._rounds.setdefault(number, self.checkpoint.shards[number].frozen.round)
        self.budget.expect(number)
        job = self.engine.watch(self, self.checkpoint, number, self.submission)
        if job not in self.jobs:
            self.jobs.append(job)

    def _look(self) -> None:
        """Show where the run stands, send what the budget has room for, and stop in vain ones."""
        self.progress.show(self.tally())
        for job in self.jobs:
            if job.number not in self._looked_at and isinstance(job.state, Collected):
                self._look_at(job.number)
        # All rows are written down first: whoever takes up the run without its frame goes on.
        is_written = not self._n_unfrozen and not self._has_windows
        if self.tolerance.is_exceeded() and is_written:
            self._stop_if_more_is_to_be_sent()
        # Another run that plans may drop what nobody watches yet.
        with self.checkpoint.planning if self._held else nullcontext():
            while self._held and not self.left.is_set():
                number = self._held[0]
                if isinstance(self.checkpoint.shards[number].state, Dropped):
                    self._lose(self._held.pop(0))  # by a run that wants only some of its rows
                elif self._has_place() and self.budget.has_room(number, self.jobs):
                    self._watch(self._held.pop(0))
                else:
                    break
        if self.left.is_set():
            return
        is_idle = all(job.number in self._looked_at for job in self.jobs)
        if self._held and is_idle and is_written:
            raise self.budget.exceeded(self._held[0], self._n_unsent())

    def _has_place(self) -> bool:
        """False for a shard that waits until the results of one before it were looked at.

        The engine would send it as soon as that one ends, which may be one shard too many.
        """
        if self.tolerance.ratio is None:
            return True
        n_open = sum(job.number not in self._looked_at for job in self.jobs)
        is_first = n_open < self.submission.limits.max_live_batches
        return is_first and not self.tolerance.is_exceeded()

    def _look_at(self, number: int) -> None:
        """Take note of a shard's results, and of which of its rows are to be sent again."""
        self._looked_at[number] = 0
        results = self.checkpoint.results_of(number, _FOR_LOOKS)
        cost = pc.sum(results["cost_usd"], skip_nulls=False).as_py()
        known = self._cost_usd is not None and cost is not None
        self._cost_usd = self._cost_usd + cost if known else None
        self.budget.spend(number, results)
        if number not in self._sent_before:
            self._stop_if_hopeless(number, results)
        if self._has_rounds(number):
            again = self._ours(number, keys_of(results.filter(unfinished(results))))
            if len(again):
                self._looked_at[number] = len(again)
                self._again[number] = again
        if self.tolerance.ratio is not None:
            self._count(number, results)

    def _count(self, number: int, results: pa.Table) -> None:
        """Take note of a shard's results that are not tried again."""
        if number in self._again:
            is_again = pc.is_in(keys_of(results), value_set=self._again[number])
            results = results.filter(pc.invert(is_again))
        keys = keys_of(results)
        self.tolerance.count(
            results,
            _n_answered(keys, self.keys)
            if self.options.dedupe
            else pc.is_in(keys, value_set=self._ours(number, keys)).cast(pa.int64()),
        )

    def _has_rounds(self, number: int) -> bool:
        is_left = self._rounds.get(number, 0) < self.options.max_retries
        return is_left and not self.checkpoint.is_cancelled()

    def _stop_if_hopeless(self, number: int, results: pa.Table) -> None:
        reason = hopeless(results, proven=self._is_proven)
        if reason is None:
            self._is_proven = True
            return
        is_again = self._has_rounds(number) and pc.any(unfinished(results)).as_py()
        if self._n_unsent() or is_again:
            self.engine.release(self)  # what a step under way still sends is not called unsent
            unsent = self._n_unsent()
            rows = "1 row was" if unsent == 1 else f"{unsent} rows were"
            left = f"{rows} not sent, and cost nothing. " if unsent else ""
            reason = reason.rstrip(".")
            raise ProviderError(
                f"Rows failed, and others would too: {reason}. {left}Mend the cause and run the "
                "call again, with retry_failed=True for the rows that failed for good."
            )

    def _stop_if_more_is_to_be_sent(self) -> None:
        # Who was told before and calls again has what is live collected first: it is paid for.
        is_live = any(job.number not in self._looked_at for job in self.jobs)
        if (self._n_unsent() or self._again) and not (self._was_exceeded and is_live):
            self.engine.release(self)  # what a step under way still sends is not called unsent
            raise self.tolerance.exceeded(self._n_unsent() + sum(map(len, self._again.values())))

    def _n_held(self) -> int:
        return sum(self.checkpoint.shards[number].frozen.n_requests for number in list(self._held))

    def _n_unsent(self) -> int:
        waiting = (job for job in self.jobs if not isinstance(job.state, Sent))
        return self._n_unfrozen + self._n_held() + sum(job.n_requests for job in waiting)

    def tally(self) -> Tally:
        """Where the run stands; rows that are sent again count where they were sent last."""
        prepared = sent = done = 0
        jobs = list(self.jobs)
        for job in jobs:
            state = job.state
            n_requests = job.n_requests - self._looked_at.get(job.number, 0)
            prepared += n_requests
            sent += n_requests if isinstance(state, Live | Ended | Collected) else 0
            done += _n_done(state, n_requests)
        total = self._n_unfrozen + self._n_held() + prepared
        return Tally(
            total=total + sum(map(len, list(self._again.values()))),
            prepared=prepared,
            sent=sent,
            done=done,
            n_live=sum(isinstance(job.state, Live) for job in jobs),
            cost_usd=self._cost_usd,
            note=next((job.note for job in jobs if job.note), ""),
        )


class Left(BaseException):
    """The work was left to others: not an error, and nothing that an `except` may swallow."""


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


def _by_model(rows: Rows, positions: pa.Array) -> pa.Array:
    """The positions, those of one model after those of another, else in their order."""
    if rows.models is None:
        return positions
    codes = rows.models.take(positions).dictionary_encode().indices
    return positions.take(pc.array_sort_indices(codes))
