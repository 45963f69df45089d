"""What a run waits for, and what may be done next.

A `Submission` says how a run's shards are sent, a `Job` is one shard that runs wait for. Pure
choices follow: which jobs may take their next step now, which of them take it together, and in
whose turn.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from batchframe.checkpoint import Checkpoint
from batchframe.client import Provider
from batchframe.clock import Clock
from batchframe.core.batches import (
    Collected,
    Dropped,
    Ended,
    Live,
    Planned,
    State,
    Unsent,
    Uploaded,
)
from batchframe.core.queues import Queue, queue_of
from batchframe.core.rates import Prices
from batchframe.core.retries import poll_delay
from batchframe.core.schedule import Load, admit
from batchframe.core.shards import Limits

__all__ = [
    "Job",
    "Submission",
    "in_turn",
    "is_in_queue",
    "is_too_large",
    "startable",
    "waits_for_its_hour",
]

#: Live batches of a call from which on they are looked at by a listing, and not one by one.
_MANY_LIVE = 5
#: A queue of which nothing is known.
_UNKNOWN = Queue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """How a run's shards are sent: what does not change their bytes."""

    provider: Provider
    limits: Limits
    #: The batch's completion window, in the provider's words.
    completion_window: str
    #: Seconds between looks at a batch, or None to adapt.
    poll_interval: float | None
    #: Ask a person, by an error, where a batch's create got no answer and no batch is found.
    ask_if_unknown: bool = False
    #: Delete our files at the provider once their results are in the checkpoint.
    delete_remote: bool = False
    #: Rates that hold instead of the published ones.
    prices: Prices | None = None


@dataclass(slots=True, eq=False)
class Job:
    """One shard under way. Changed under the engine's lock only."""

    checkpoint: Checkpoint
    number: int
    #: The limits of the run that watched it first.
    limits: Limits
    #: Who waits for it, and how each of them would send it; the newest comes last.
    watchers: dict[Hashable, Submission] = field(default_factory=dict)
    #: A step is being performed.
    busy: bool = False
    #: How the last step that began is performed, by whose client.
    used: Submission | None = None
    #: When the next step is due, on the clock's monotonic scale.
    due: float = 0.0
    #: Failed tries of the present step.
    tries: int = 0
    #: When the present state was first seen here, on the monotonic scale.
    since: float | None = None
    #: Fruitless, complete searches for the batch so far, and when the first one ended.
    searches: int = 0
    searched_since: float | None = None
    #: Until when the service asked, at its create, for no further one; on the monotonic scale.
    create_due: float = 0.0
    #: How often the queue was full for its batch, in all and while none of ours was live in it.
    turned_away: int = 0
    turned_away_alone: int = 0
    #: What the provider said when the queue was full, until that is learned from.
    refusals: list[str] = field(default_factory=list)
    #: Uploaded files that the provider did not know afterwards.
    lost_files: int = 0
    #: When its batch was first seen to have ended and to name no result file.
    nameless_since: float | None = None
    #: A listing says that its batch ended: the batch itself is asked, before that is believed.
    is_doubtful: bool = False
    #: Its batch is too far down the listings: it is asked by itself, at its own pace.
    is_unlisted: bool = False
    #: Tokens of its answered prompts, as they were guessed and as they were.
    usage: tuple[int, int] = (0, 0)
    #: What the next step waits for, for people; "" while all goes well.
    note: str = ""
    #: What ended the work on this shard for now.
    error: BaseException | None = None
    #: What it weighs in its queue.
    load: Load = field(init=False)

    def __post_init__(self) -> None:
        checkpoint = self.checkpoint
        self.load = Load(
            queue=queue_of(checkpoint.spec.account, checkpoint.model_of(self.number)),
            n_tokens=checkpoint.shards[self.number].frozen.n_tokens,
            limits=self.limits,
            owner=next(iter(self.watchers)),
        )

    @property
    def submission(self) -> Submission | None:
        """How it is sent: as its newest watcher says, whose client is the least likely closed.

        None when nobody watches any more.
        """
        return next(reversed(self.watchers.values()), None)

    @property
    def is_cancelled(self) -> bool:
        """True while nothing of the shard is to be sent, as far as that is known here."""
        checkpoint = self.checkpoint
        return checkpoint.was_cancelled or self.number in checkpoint.cancelled_shards

    @property
    def poll_intervals(self) -> frozenset[float | None]:
        """What its watchers ask for, in seconds between looks at its batch; None adapts."""
        return frozenset(how.poll_interval for how in list(self.watchers.values()))

    @property
    def state(self) -> State:
        """Where the shard stands."""
        return self.checkpoint.shards[self.number].state

    @property
    def is_settled(self) -> bool:
        """True when there is nothing more to wait for."""
        return self.error is not None or isinstance(self.state, Collected | Dropped)

    @property
    def n_requests(self) -> int:
        """How many requests the shard holds."""
        return self.checkpoint.shards[self.number].frozen.n_requests

    def age(self, clock: Clock) -> float:
        """Seconds for which its present state was seen here."""
        now = clock.monotonic()
        if self.since is None:
            self.since = now
        return now - self.since

    def poll_delay(self, age: float, *, is_listed: bool = False) -> float:
        """Seconds until the next look at its batch, live for `age`: for who looks most often."""
        delays = (poll_delay(age, how, is_listed=is_listed) for how in self.poll_intervals)
        return min(delays, default=0.0)


def is_too_large(job: Job, queue: Queue) -> bool:
    """True for a shard that was not sent and that its queue would never take as it is."""
    room = queue.room(job.limits.max_enqueued_tokens)
    return (
        isinstance(job.state, Planned)
        and queue.limit is not None
        and room is not None
        and job.load.n_tokens > room
        and job.n_requests > 1
    )


def is_in_queue(job: Job) -> bool:
    """True for a shard that is in its provider's queue, or on its way there."""
    if isinstance(job.state, Planned):
        return job.busy
    return not isinstance(job.state, Ended | Collected | Dropped)


def startable(
    jobs: list[Job], now: float, queues: Mapping[tuple[str, ...], Queue]
) -> list[list[Job]]:
    """The jobs whose next step is due and whose queue has room; those of one step together."""
    under_way, waiting, due = [], [], []
    for job in jobs:
        if isinstance(job.state, Unsent) and not job.busy and job.is_cancelled:
            continue
        if job.busy or not isinstance(job.state, Planned):
            under_way.append(job)
        elif is_too_large(job, queues.get(job.load.queue, _UNKNOWN)):
            due.append(job)
        else:
            waiting.append(job)
    live = [job.load for job in under_way if not isinstance(job.state, Ended)]
    admitted = admit([job.load for job in waiting], live, queues)
    candidates = [*under_way, *due, *(waiting[index] for index in admitted)]
    due = [job for job in candidates if not job.busy and job.due <= now]
    return _grouped(due, under_way)


def _grouped(due: list[Job], under_way: list[Job]) -> list[list[Job]]:
    """The jobs one by one; but live ones of one client and pace together with all others, if many.

    They are listed when half of them are due: one that was just created, and is due most often,
    does not have all others listed each time. Where somebody chose the pace they are listed when
    one is due: from then on they are due together.
    """
    to_look_at = [job for job in due if _is_running(job)]
    if not to_look_at:
        return [[job] for job in due]
    live: dict[Hashable, list[Job]] = {}
    for job in under_way:
        if not job.busy and _is_running(job) and (submission := job.submission):
            live.setdefault((id(submission.provider), job.poll_intervals), []).append(job)
    many = [group for group in live.values() if len(group) >= _MANY_LIVE]
    together = {id(job) for group in many for job in group}
    asked = {id(job) for job in to_look_at}
    return [
        *([job] for job in due if id(job) not in together),
        *(
            group
            for group in many
            if (n_due := sum(id(job) in asked for job in group))
            and (2 * n_due >= len(group) or group[0].poll_intervals != {None})
        ),
    ]


def waits_for_its_hour(job: Job) -> bool:
    return isinstance(job.state, Uploaded) and not job.tries


def _is_running(job: Job) -> bool:
    return isinstance(job.state, Live) and not (job.is_doubtful or job.is_unlisted)


def in_turn(groups: list[list[Job]], jobs: list[Job]) -> Iterator[list[Job]]:
    """The groups in their order, but those first whose owner has the fewest steps under way."""
    busy = Counter(job.load.owner for job in jobs if job.busy)
    left = list(groups)
    while left:
        group = min(left, key=lambda one: busy[one[0].load.owner])
        left.remove(group)
        busy[group[0].load.owner] += 1
        yield group
