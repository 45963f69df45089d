"""Which shards may be live now, and when the next may be created.

A waiting shard goes when its account has a free place for a batch and, where the queue's size is
known, room for its tokens. A shard that alone exceeds the queue goes when nothing else is live:
the estimate is cautious, and only the provider knows. Of several runs with shards for one queue,
the one with the least in it is next: a small run does not wait for a large one to end.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from batchframe.core.batches import BatchSeen, Collected, Creating, Ended, Live, State
from batchframe.core.queues import Queue
from batchframe.core.shards import Limits

__all__ = ["Load", "admit", "creates_of", "until_create"]

_HOUR_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one shard weighs in its queue."""

    #: Who pays, and for which model: each such pair has a queue of its own.
    queue: tuple[str, ...]
    #: Estimated prompt tokens.
    n_tokens: int
    #: The limits that the shard's run was given.
    limits: Limits
    #: Whose shard it is.
    owner: Hashable = None


_UNKNOWN = Queue()


def until_create(creates: Sequence[float], now: float, per_hour: int) -> float:
    """Seconds until the account may create another batch, so that no hour has more than `per_hour`.

    `creates` are the times of earlier ones, in order, on the scale of `now`.
    """
    if len(creates) < per_hour:
        return 0.0
    return max(0.0, creates[-per_hour] + _HOUR_SECONDS - now)


def creates_of(states: Iterable[State], now: float) -> list[float]:
    """How many seconds ago batches of shards were created, where that was within the last hour.

    `now` is in seconds since the epoch. The service is taken to have our clock.
    """
    ages = []
    for state in states:
        match state:
            case Creating(since=at) | Live(batch=BatchSeen(created_at=at)):
                ages.append(now - at)
            case Ended(batch=BatchSeen(created_at=at)) | Collected(batch=BatchSeen(created_at=at)):
                ages.append(now - at)
            case _:
                pass
    return [max(age, 0.0) for age in ages if age < _HOUR_SECONDS]


def admit(
    waiting: Sequence[Load],
    live: Iterable[Load],
    queues: Mapping[tuple[str, ...], Queue] = MappingProxyType({}),
) -> list[int]:
    """The indices of the waiting shards that may go now, in the order in which they go.

    In each queue the next shard is the first one of the owner with the fewest tokens in it. One
    that does not fit holds back all others of its queue, so that a large one is not overtaken for
    ever. `queues` is what is known of them beside the users' own limits.
    """
    batches: dict[tuple[str, ...], int] = {}
    tokens: dict[tuple[str, ...], int] = {}
    # Tokens of each owner, and its shards that wait.
    shares: dict[tuple[str, ...], dict[Hashable, int]] = {}
    lines: dict[tuple[str, ...], dict[Hashable, deque[int]]] = {}
    for index, load in enumerate(waiting):
        lines.setdefault(load.queue, {}).setdefault(load.owner, deque()).append(index)

    def take(load: Load) -> None:
        batches[load.queue] = batches.get(load.queue, 0) + 1
        tokens[load.queue] = tokens.get(load.queue, 0) + load.n_tokens
        share = shares.setdefault(load.queue, {})
        share[load.owner] = share.get(load.owner, 0) + load.n_tokens

    for load in live:
        take(load)
    admitted: list[int] = []
    for queue, owners in lines.items():
        while owners:
            share = shares.get(queue, {})
            owner = min(owners, key=lambda one: (share.get(one, 0), owners[one][0]))
            load = waiting[owners[owner][0]]
            n_batches = batches.get(queue, 0)
            room = queues.get(queue, _UNKNOWN).room(load.limits.max_enqueued_tokens)
            if n_batches >= load.limits.max_live_batches or not (
                room is None or n_batches == 0 or tokens[queue] + load.n_tokens <= room
            ):
                break
            admitted.append(owners[owner].popleft())
            take(load)
            if not owners[owner]:
                del owners[owner]
    return admitted
