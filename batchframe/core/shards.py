"""Encoded requests -> shards, within every limit at once.

A shard is a run of requests in the frame's order; cutting keeps every request once and in order.
The limits are the provider's, with their sources, and the smaller ones that serve better.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from batchframe.core.dialects import Dialect
from batchframe.core.requests import Requests
from batchframe.core.spec import EMBEDDINGS
from batchframe.errors import ParameterError

__all__ = [
    "MAX_CREATES_PER_HOUR",
    "Limits",
    "cut_shards",
    "fitting",
    "within_queue",
]

#: Batches that an account may create within an hour (OpenAI, Batch guide, 2026-08).
MAX_CREATES_PER_HOUR = 2_000

#: Into how many parts a queue is cut whose size is known: while one batch is made ready or
#: collected, the others keep the queue full; and what is left free because no further part fits is
#: at most a sixteenth.
_PARTS_OF_QUEUE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large shards may be and how many may be live at once.

    The defaults stay well under OpenAI's own limits: smaller files lose less when a download breaks
    and come back sooner. Where a service takes less than a default, the default is what it takes.
    Raises ParameterError for values that no service takes; `fitting` for those that one does not.
    """

    #: Requests in one shard, at most as many as the service takes: 50,000 at OpenAI.
    max_requests: int = 20_000
    #: Size of one shard's input file, in bytes, at most what the service takes: 209,715,200 at
    #: OpenAI.
    max_bytes: int = 90_000_000
    #: Prompt tokens that may be enqueued at once for the model, as your account's limits page
    #: states it; None where you do not know it: then it is learned from refusals.
    max_enqueued_tokens: int | None = None
    #: Batches of the account and model that a process may have live at once.
    max_live_batches: int = 64
    #: Batches of the account that may be created within any hour, at most 2,000: by this process,
    #: and by earlier ones of the checkpoints that it works on.
    max_creates_per_hour: int = 2_000
    #: How long to look for a batch whose creation got no answer before sending it again, in
    #: seconds. A request may land minutes after its reply was lost.
    reconcile_seconds: float = 600

    def __post_init__(self) -> None:
        for name, value, top in (
            ("max_requests", self.max_requests, None),
            ("max_bytes", self.max_bytes, None),
            ("max_enqueued_tokens", self.max_enqueued_tokens, None),
            ("max_live_batches", self.max_live_batches, None),
            ("max_creates_per_hour", self.max_creates_per_hour, MAX_CREATES_PER_HOUR),
        ):
            if value is None and name == "max_enqueued_tokens":
                continue
            if type(value) is not int:
                raise ParameterError(f"Limits({name}={value!r}) must be a whole number.")
            if not 1 <= value <= (top or value):
                until = f" to {top:,}" if top else " upwards"
                raise ParameterError(f"Limits({name}={value}) must be from 1{until}.")
        seconds = self.reconcile_seconds
        if type(seconds) not in {int, float} or not seconds >= 0:
            raise ParameterError(f"Limits(reconcile_seconds={seconds!r}) must be 0 or more.")


def fitting(limits: Limits | None, dialect: Dialect, endpoint: str) -> Limits:
    """The limits of a call, within those of the service: the defaults are lowered to them.

    Raises ParameterError where the call asks for more than the service takes.
    """
    limits = limits or Limits()
    most = {"max_requests": dialect.max_requests, "max_bytes": dialect.max_bytes}
    if endpoint == EMBEDDINGS:
        most["max_requests"] = min(dialect.max_requests, dialect.max_inputs)
    usual = {one.name: one.default for one in fields(Limits)}
    for name, top in most.items():
        value = getattr(limits, name)
        if value > top and value != usual[name]:
            raise ParameterError(
                f"Limits({name}={value}): {dialect} takes from 1 to {top:,}. Nothing was sent."
            )
    return replace(limits, **{name: min(getattr(limits, name), top) for name, top in most.items()})


def within_queue(limits: Limits, room: float | None) -> Limits:
    """The limits of shards for a queue that takes so many tokens; None: nothing is known of it."""
    if room is None:
        return limits
    return replace(limits, max_enqueued_tokens=max(1, int(room / _PARTS_OF_QUEUE)))


def cut_shards(
    chunks: Iterable[Requests],
    limits: Limits,
    by_model: Mapping[str | None, Limits] = MappingProxyType({}),
) -> Iterator[Requests]:
    """Cut requests into shards, as few as a single pass in order allows.

    Each shard holds at most `max_requests` requests, `max_bytes` bytes and, where that is given,
    `max_enqueued_tokens` estimated tokens, all for one model: a file may name only one, so requests
    for one model are expected next to each other. A request that alone exceeds the tokens goes by
    itself: the estimate is cautious, and the provider decides. One that alone exceeds the bytes is
    the caller's to refuse before anything is cut. `by_model` has the limits of models whose queues
    are known, each its own; `limits` holds for all others.
    """
    parts: list[Requests] = []
    n = n_bytes = n_tokens = 0
    for chunk in chunks:
        if n and chunk.model != parts[0].model:
            yield Requests.joined(parts)
            parts, n, n_bytes, n_tokens = [], 0, 0, 0
        own = by_model.get(chunk.model, limits)
        most_tokens = own.max_enqueued_tokens or math.inf
        size, tokens = sum(map(len, chunk.lines)), sum(chunk.n_tokens)
        if (
            n + len(chunk) <= own.max_requests
            and n_bytes + size <= own.max_bytes
            and n_tokens + tokens <= most_tokens
        ):  # all of it fits, and need not be looked at one by one
            parts.append(chunk)
            n, n_bytes, n_tokens = n + len(chunk), n_bytes + size, n_tokens + tokens
            continue
        start = 0
        for place, (line, tokens) in enumerate(zip(chunk.lines, chunk.n_tokens, strict=True)):
            if n and (
                n == own.max_requests
                or n_bytes + len(line) > own.max_bytes
                or n_tokens + tokens > most_tokens
            ):
                yield Requests.joined([*parts, chunk.part(start, place)])
                parts, start, n, n_bytes, n_tokens = [], place, 0, 0, 0
            n, n_bytes, n_tokens = n + 1, n_bytes + len(line), n_tokens + tokens
        parts.append(chunk.part(start, len(chunk)))
    if n:
        yield Requests.joined(parts)
