"""Which shards may be live now, and when the next may be created.

A waiting shard goes when its account has a free place for a batch and, where the queue's size is
known, room for its tokens. A shard that alone exceeds the queue goes when nothing else is live:
the estimate is cautious, and only the provider knows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from batchframe.core.queues import Queue
from batchframe.core.shards import Limits

__all__ = ["Load", "admit", "until_create"]

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


_UNKNOWN = Queue()


def until_create(creates: Sequence[float], now: float, per_hour: int) -> float:
    """Seconds until the account may create another batch, so that no hour has more than `per_hour`.

    `creates` are the times of earlier ones, in order, on the scale of `now`.
    """
    if len(creates) < per_hour:
        return 0.0
    return max(0.0, creates[-per_hour] + _HOUR_SECONDS - now)


def admit(
    waiting: Sequence[Load],
    live: Iterable[Load],
    queues: Mapping[tuple[str, ...], Queue] = MappingProxyType({}),
) -> list[int]:
    """The indices of the waiting shards that may go now, in their order.

    A shard that does not fit holds back those behind it in the same queue, so that a large one is
    not overtaken for ever. `queues` is what is known of them beside the users' own limits.
    """
    batches: dict[tuple[str, ...], int] = {}
    tokens: dict[tuple[str, ...], int] = {}
    for load in live:
        batches[load.queue] = batches.get(load.queue, 0) + 1
        tokens[load.queue] = tokens.get(load.queue, 0) + load.n_tokens
    admitted: list[int] = []
    blocked: set[tuple[str, ...]] = set()
    for index, load in enumerate(waiting):
        queue, limits = load.queue, load.limits
        n_batches, n_tokens = batches.get(queue, 0), tokens.get(queue, 0)
        room = queues.get(queue, _UNKNOWN).room(limits.max_enqueued_tokens)
        fits = n_batches < limits.max_live_batches and (
            room is None or n_batches == 0 or n_tokens + load.n_tokens <= room
        )
        if queue in blocked or not fits:
            blocked.add(queue)
            continue
        admitted.append(index)
        batches[queue] = n_batches + 1
        tokens[queue] = n_tokens + load.n_tokens
    return admitted
