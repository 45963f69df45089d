"""What a checkpoint says of rows: which are answered, which are under way, and what the rest takes.

Nothing is sent here. A run plans with it, and an estimate is a plan that is not carried out.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint
from batchframe.core.batches import Collected, Creating, Dropped, Ended, Live
from batchframe.core.bounds import answer_limit, beyond, media_beyond, most_read
from batchframe.core.dialects import Dialect, price_list_of
from batchframe.core.estimates import (
    Estimate,
    Known,
    Range,
    price_takes,
    takes,
)
from batchframe.core.prices import cost_usd, repriced, usage_table
from batchframe.core.rates import Prices
from batchframe.core.requests import (
    BYTES_PER_TOKEN,
    RowKeys,
    Rows,
    render_requests,
    row_keys,
    shared_keys,
)
from batchframe.core.results import COUNTS
from batchframe.core.retries import latest, unfinished
from batchframe.core.shards import Limits, cut_shards, within_queue
from batchframe.core.spec import Spec
from batchframe.core.usage import Difference, added_up, used
from batchframe.errors import CheckpointCorruptError, RowError

__all__ = [
    "FOR_PLANS",
    "FOR_USAGE",
    "check_types_of_ids",
    "equal_keys",
    "estimate_rows",
    "keys_of",
    "most_usd",
    "settled_keys",
    "usage_in",
]

#: The columns of results that a plan is made from.
FOR_PLANS = ("row_key", "status", "error_code", "http_status")
#: The columns of results that tell what they used and cost: never the answers.
FOR_USAGE = ("status", "error_code", *COUNTS, "tool_calls", "cost_usd", "price_source", "model")
#: Rows that a message names before it says "and more".
_SHOWN = 5
#: What tells requests that are there from new ones.
_KNOWN = pa.schema([("row_key", pa.binary(16)), ("body_digest", pa.binary(16))])
_SENT = Creating | Live | Ended


def keys_of(table: pa.Table) -> pa.FixedSizeBinaryArray:
    """The row keys of a table, as one array."""
    return table["row_key"].combine_chunks()


def settled_keys(results: pa.Table, *, retry_failed: bool) -> pa.FixedSizeBinaryArray:
    """The keys of results that are not tried again; `results` has the columns FOR_PLANS."""
    return keys_of(results.filter(pc.invert(unfinished(results, retry_failed=retry_failed))))


def equal_keys(
    keys: RowKeys,
    checkpoint: Checkpoint,
    settled: pa.FixedSizeBinaryArray,
    under_way: Collection[int] = (),
) -> pa.FixedSizeBinaryArray:
    """The key of the request that answers each row, where equal ones are sent once.

    Args:
        keys: All rows.
        checkpoint: What is known of others.
        settled: The keys of results that are not tried again.
        under_way: Shards that somebody is about to send, or whose results are not in `settled` yet.
    """
    known = []
    for number, shard in checkpoint.shards.items():
        if isinstance(shard.state, Dropped):
            continue
        requests = checkpoint.requests(number, ("row_key", "body_digest"))
        if not isinstance(shard.state, _SENT) and number not in under_way:
            # Of a shard that nobody sends, any row may still go into another.
            requests = requests.filter(pc.is_in(keys_of(requests), value_set=settled))
        known.append(requests)
    return shared_keys(keys, pa.concat_tables(known) if known else _KNOWN.empty_table())


def check_types_of_ids(
    rows: Rows, positions: pa.Array, checkpoint: Checkpoint, numbers: Collection[int]
) -> None:
    """Raise RowError if rows to be sent were sent before under ids of the other type.

    `numbers` are the shards that are looked at.
    """
    if not numbers:
        return
    new = rows.take(positions)
    other, has_other = _as_other_type(new.ids)
    chosen = pc.indices_nonzero(has_other)
    if not len(chosen):
        return
    others = new.take(chosen)
    ids = others.ids
    keys = row_keys(replace(others, ids=other.take(chosen)), checkpoint.spec).keys
    sent = [
        checkpoint.row_keys(number)
        for number in numbers
        if not isinstance(checkpoint.shards[number].state, Dropped)
    ]
    known = pa.chunked_array(sent, keys.type)
    found = pc.indices_nonzero(pc.is_in(keys, value_set=known))
    if len(found):
        shown = ", ".join(repr(ids[row].as_py()) for row in found[:_SHOWN].to_pylist())
        more = " and more" if len(found) > _SHOWN else ""
        raise RowError(
            f"{len(found)} {'row was' if len(found) == 1 else 'rows were'} sent before with "
            f"ids that were {_kind_of(other)}; now the ids are {_kind_of(ids)}: {shown}{more}. "
            "Nothing was sent, because they would be paid for again. Cast the ids back, or "
            "name another checkpoint=."
        )


def _kind_of(ids: pa.Array) -> str:
    return "integers" if pa.types.is_integer(ids.type) else "text"


def _as_other_type(ids: pa.Array) -> tuple[pa.Array, pa.BooleanArray]:
    """Integers as text, or text as integers; and which of them are written so."""
    text = pc.cast(ids, pa.string())
    if pa.types.is_integer(ids.type):
        return text, pc.is_valid(text)
    # Few enough digits for 64 bits.
    is_number = pc.match_substring_regex(text, r"^(0|-?[1-9][0-9]{0,17})$")
    return pc.cast(pc.if_else(is_number, text, "0"), pa.int64()), is_number


# --- What it takes --------------------------------------------------------------------------------


class _Body(msgspec.Struct):
    model: str = ""
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    max_tokens: Any = None
    best_of: Any = None
    tools: Any = None
    web_search_options: Any = None
    audio: Any = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()

    def limit(self, endpoint: str) -> int | None:
        """The most tokens of the answer; None where nothing bounds what the request costs."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        if beyond(fields, endpoint) or media_beyond(self.asked):
            return None
        return answer_limit(fields, endpoint)

    @property
    def asked(self) -> bytes:
        """The JSON of the messages."""
        return bytes(self.messages) or bytes(self.input)


class _Line(msgspec.Struct):
    body: _Body


_LINE = msgspec.json.Decoder(_Line)


def most_usd(
    checkpoint: Checkpoint,
    number: int,
    *,
    prices: Prices | None,
    price_list: str | None,
    now: float,
) -> pa.DoubleArray:
    """The most that each request of a shard can cost, in US dollars; infinity where nobody knows.

    Tokens of prompts are bounded by their bytes and images, those of answers by the limit of each
    request. Of a shard whose lines are gone, as it was sent, those that all rows share are known.
    """
    spec, model = checkpoint.spec, checkpoint.model_of(number)
    try:
        with checkpoint.input_file(number) as file:
            # Of one line after the other: they may hold images.
            found = [
                (most_read(len(line), body.asked), body.limit(spec.endpoint), body.model)
                for line in file
                for body in [_LINE.decode(line).body]
            ]
    except CheckpointCorruptError:
        guessed = checkpoint.requests(number, ("n_tokens",))["n_tokens"].to_pylist()
        is_bounded = beyond(spec.params, spec.endpoint) is None
        limit = answer_limit(spec.params, spec.endpoint) if is_bounded else None
        sizes = [n_tokens * BYTES_PER_TOKEN for n_tokens in guessed]
        limits, models = [limit] * len(sizes), [model] * len(sizes)
    else:
        sizes = [size for size, _, _ in found]
        limits = [limit for _, limit, _ in found]
        models = [model for _, _, model in found]
    inputs = [None if limit is None else size for size, limit in zip(sizes, limits, strict=True)]
    table = usage_table(inputs, limits, models)
    at = datetime.fromtimestamp(now, UTC)
    cost = cost_usd(table, model=model, at=at, prices=prices, price_list=price_list)
    return pc.fill_null(cost, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """Where the rows of a call stand, each as the number of rows, or their positions."""

    n_paid: int
    n_under_way: int
    #: Rows that a request is made for.
    new: pa.Array
    #: Rows without an answer that have the same body as an earlier one.
    duplicates: pa.Array
    known: Known


def estimate_rows(
    rows: Rows,
    spec: Spec,
    checkpoint: Checkpoint | None,
    *,
    limits: Limits,
    window_hours: float,
    dedupe: bool,
    retry_failed: bool,
    prices: Prices | None,
    dialect: Dialect,
    now: float,
) -> Estimate:
    """What a call would send and cost.

    Args:
        rows: What each row asks.
        spec: What they share.
        checkpoint: As it is on the disk, or None where there is none yet.
        limits: How shards are cut.
        window_hours: The completion window.
        dedupe: Equal bodies are sent once.
        retry_failed: Also rows whose failure was permanent, cancelled or missing.
        prices: Rates that hold instead of the published ones.
        dialect: How the service speaks.
        now: The present, in seconds since the epoch.
    """
    keys = row_keys(rows, spec, dialect)
    standing = _standing(keys, checkpoint, dedupe=dedupe, retry_failed=retry_failed)
    new = rows.take(standing.new)
    taken = takes(new, keys.n_tokens.take(standing.new), spec, standing.known)
    at = datetime.fromtimestamp(now, UTC)
    known: dict[str, Any] = {"at": at, "prices": prices, "price_list": dialect.price_list}
    cost, standard = price_takes(taken, new, spec, **known)
    twice = rows.take(standing.duplicates)
    saved, _ = price_takes(
        takes(twice, keys.n_tokens.take(standing.duplicates), spec, standing.known),
        twice,
        spec,
        **known,
    )
    sizes = [
        sum(shard.n_tokens)
        for shard in cut_shards(
            render_requests(rows, standing.new, spec, dialect),
            within_queue(limits, limits.max_enqueued_tokens),
        )
    ]
    room = limits.max_enqueued_tokens or math.inf
    n_waves = max(math.ceil(sum(sizes) / room), math.ceil(len(sizes) / limits.max_live_batches))
    return Estimate(
        model=spec.model,
        n_rows=len(rows),
        n_paid=standing.n_paid,
        n_under_way=standing.n_under_way,
        n_skipped=rows.prompts.null_count,
        n_duplicates=len(standing.duplicates),
        duplicates_usd=saved,
        n_requests=len(standing.new),
        n_shards=len(sizes),
        n_bytes=pc.sum(keys.line_bytes.take(standing.new)).as_py() or 0,
        input_tokens=_total(taken.input_low, taken.input_high),
        counted=taken.counted,
        output_tokens=_total(taken.output_low, taken.output_high),
        cost_usd=cost,
        standard_usd=standard,
        n_waves=n_waves,
        hours=n_waves * window_hours,
    )


def _total(low: pa.Array, high: pa.Array | None) -> Range:
    return Range(pc.sum(low).as_py() or 0, None if high is None else (pc.sum(high).as_py() or 0))


def _standing(
    keys: RowKeys, checkpoint: Checkpoint | None, *, dedupe: bool, retry_failed: bool
) -> _Standing:
    settled = pa.array([], pa.binary(16))
    sent = settled
    # The request that answers each row if equal ones are sent once.
    equal, known = shared_keys(keys, _KNOWN.empty_table()), Known()
    if checkpoint is not None:
        results = latest(checkpoint.results(FOR_PLANS))
        settled = settled_keys(results, retry_failed=retry_failed)
        under_way = [
            checkpoint.row_keys(number)
            for number, shard in checkpoint.shards.items()
            if isinstance(shard.state, _SENT)
        ]
        sent = pa.concat_arrays(under_way) if under_way else sent
        equal = equal_keys(keys, checkpoint, settled)
        known = _known(checkpoint)
    to_answer = equal if dedupe else keys.keys
    is_asked = pc.is_valid(to_answer)
    is_paid = pc.and_(is_asked, pc.is_in(to_answer, value_set=settled))
    is_sent = pc.and_(pc.and_not(is_asked, is_paid), pc.is_in(to_answer, value_set=sent))
    is_new = pc.and_not(pc.and_not(is_asked, is_paid), is_sent)
    is_own = pc.fill_null(pc.equal(to_answer, keys.keys), fill_value=False)
    new = pc.indices_nonzero(pc.and_(is_new, is_own))
    is_shared = pc.fill_null(pc.not_equal(equal, keys.keys), fill_value=False)
    return _Standing(
        n_paid=pc.sum(is_paid).as_py() or 0,
        n_under_way=pc.sum(is_sent).as_py() or 0,
        new=new,
        duplicates=pc.indices_nonzero(pc.and_(is_new, is_shared)),
        known=known,
    )


def _known(checkpoint: Checkpoint) -> Known:
    """What the usage of all tries in a checkpoint teaches."""
    n_input = n_guessed = n_output = n_answers = 0
    for number in checkpoint.collected():
        usage = checkpoint.results_of(number, ("input_tokens", "output_tokens"))
        guessed = checkpoint.requests(number, ("n_tokens",))["n_tokens"]
        has_usage = pc.and_(pc.is_valid(usage["input_tokens"]), pc.is_valid(usage["output_tokens"]))
        n_input += pc.sum(usage["input_tokens"].filter(has_usage)).as_py() or 0
        n_guessed += pc.sum(guessed.filter(has_usage)).as_py() or 0
        n_output += pc.sum(usage["output_tokens"].filter(has_usage)).as_py() or 0
        n_answers += pc.sum(has_usage).as_py() or 0
    if not n_answers:
        return Known()
    return Known(input_ratio=n_input / n_guessed, output_mean=n_output / n_answers)


def usage_in(
    checkpoint: Checkpoint, prices: Prices | None
) -> tuple[pa.Table, tuple[Difference, ...]]:
    """What all requests of a checkpoint used, as `added_up` has it; and what does not add up."""
    parts, differences = [], []
    price_list = price_list_of(checkpoint.spec.account.base_url)
    for number in checkpoint.collected():
        state = checkpoint.shards[number].state
        if not isinstance(state, Collected):
            continue
        model, batch = checkpoint.model_of(number), state.batch
        table = checkpoint.results_of(number, FOR_USAGE)
        if prices:
            table = repriced(table, model=model, prices=prices)
        at = datetime.fromtimestamp(batch.created_at, UTC)
        parts.append(used(table, model=model, at=at, prices=prices, price_list=price_list))
        if batch.usage is not None and batch.usage != state.results.usage:
            differences.append(
                Difference(batch_id=batch.batch_id, rows=state.results.usage, batch=batch.usage)
            )
    return added_up(parts), tuple(differences)
