"""What stands behind the signatures: a frame in, its rows answered, the same frame out.

    frame --labels checked, columns read--> Rows --run--> results --columns--> the same frame

All functions that take a frame go this way; they differ in what a row asks and in what its answer
becomes, which a `Call` says.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from batchframe.frames.adapters import Adapter, adapter_of, values_of
from batchframe.frames.questions import Call
from batchframe.frames.sending import read_checkpoint
from batchframe.frames.settings import Columns
from batchframe.parameters import Column, check_client, check_values

if TYPE_CHECKING:
    import openai
    import pyarrow as pa

    from batchframe.checkpoint import Checkpoint
    from batchframe.core.dialects import Dialect
    from batchframe.core.estimates import Estimate
    from batchframe.core.rates import Prices
    from batchframe.core.requests import Rows
    from batchframe.core.shards import Limits
    from batchframe.core.spec import Spec
    from batchframe.frames.usage import Usage

__all__ = ["Asked", "answered", "asked", "estimated", "rows_of_table", "usage_in_frame"]


class Asked(NamedTuple):
    """What the rows of a frame ask, and what makes the frame that comes back."""

    rows: "Rows"
    #: Results, where each row has its own, and the status of rows without one -> the frame.
    finish: Callable[["pa.Table", "pa.Int64Array", str | None], Any]


def asked(
    frame: Any, call: Call, id_col: Hashable | None, columns: Columns, *, is_kept: bool = False
) -> Asked:
    """Read a frame; an error, before anything is sent, if the call does not fit it.

    Args:
        frame: The user's.
        call: What its rows ask.
        id_col: The label of the ids, or None.
        columns: What the call says of new columns and rows; at its end, `finish` raises what it
            says of rows without an answer.
        is_kept: The user goes on with the frame before it is finished, and may change it.
    """
    import pyarrow as pa

    from batchframe.core.columns import result_columns
    from batchframe.core.results import RESULT_SCHEMA
    from batchframe.frames import inputs
    from batchframe.frames.failures import Failures

    adapter = adapter_of(frame)
    columns_of = functools.partial(
        result_columns, output=columns.output, details=columns.details, form=call.form
    )
    _check_labels(adapter, frame, call, id_col)
    empty = columns_of(RESULT_SCHEMA.empty_table(), pa.array([], pa.int64()), skipped=None)
    inputs.check_free(adapter.new_labels(empty), adapter.labels(frame), columns.output)
    rows = _rows(adapter, frame, call, id_col, nulls=columns.nulls)
    like, is_null = call.question.columns[0][0], rows.prompts.is_null()
    kept = adapter.snapshot(frame) if is_kept else frame
    ids = None if id_col is None else rows.ids

    def finish(results: "pa.Table", positions: "pa.Int64Array", unanswered: str | None) -> Any:
        made = columns_of(results, positions, skipped=is_null, unanswered=unanswered)
        failures = Failures(columns)
        if failures.matter and unanswered is not None:  # the call is at its end
            failures.look(made, ids, results, positions)
            failures.check()
        return adapter.attach(kept, made, like=like)

    return Asked(rows, finish)


def answered(
    frame: Any,
    call: Call,
    id_col: Hashable | None,
    columns: Columns,
    answer: Callable[["Rows"], "tuple[pa.Table, pa.Int64Array, str | None]"],
) -> Any:
    """The frame with the answers to its rows.

    Args:
        frame: As for `asked`.
        call: As for `asked`.
        id_col: As for `asked`.
        columns: As for `asked`.
        answer: What rows ask -> results, where each row has its own, and the status of rows without
            one.
    """
    import pyarrow as pa

    from batchframe.core.results import RESULT_SCHEMA

    rows, finish = asked(frame, call, id_col, columns)
    if not rows.n_asked:
        return finish(RESULT_SCHEMA.empty_table(), pa.nulls(len(rows), pa.int64()), None)
    return finish(*answer(rows))


def rows_of_table(table: "pa.Table", call: Call, id_col: Hashable | None, *, nulls: str) -> "Rows":
    """What the rows of a pyarrow Table ask, whichever frame the call was made for."""
    from batchframe.frames import arrow

    return _rows(cast("Adapter", arrow), table, call, id_col, nulls=nulls)


def _check_labels(adapter: Adapter, frame: Any, call: Call, id_col: Hashable | None) -> None:
    from batchframe.frames import inputs

    labels, index = adapter.labels(frame), adapter.index_names(frame)
    own = ((column.label, name) for name, column in call.own.items())
    for label, role in (*call.question.columns, *own):
        inputs.check_label(label, role, labels, index)
    if id_col is not None:
        inputs.check_label(id_col, "id_col", labels, index)


def _rows(
    adapter: Adapter, frame: Any, call: Call, id_col: Hashable | None, *, nulls: str
) -> "Rows":
    """What the frame's rows ask."""
    from batchframe.core.requests import Rows
    from batchframe.frames import inputs

    prompts = call.question.read(adapter, frame)
    if nulls == "raise":
        asked = [label for label, role in call.question.columns if role != "images"]
        inputs.check_nulls(prompts, asked)
    own = _own_of_rows(adapter, frame, call.own, prompts)
    ids = (
        inputs.numbers(prompts, *own.values())
        if id_col is None
        else inputs.ids(adapter.column(frame, id_col), id_col)
    )
    return Rows(ids=ids, prompts=prompts, **own)


def estimated(
    frame: Any,
    call: Call,
    id_col: Hashable | None,
    *,
    checkpoint: str | Path | None,
    dedupe: bool,
    retry_failed: bool,
    nulls: str,
    prices: "Prices | None",
    limits: "Limits | None",
    completion_window: str,
    client: "openai.OpenAI | None",
    dialect: "str | Dialect | None",
) -> "Estimate":
    """What the call would send and cost; nothing is sent and nothing is written."""
    from batchframe.accounts import account_of
    from batchframe.clock import SystemClock
    from batchframe.core.dialects import hours_of
    from batchframe.core.shards import fitting
    from batchframe.core.spec import Spec
    from batchframe.plans import estimate_rows

    check_client(client)
    check_values(
        checkpoint=checkpoint,
        dedupe=dedupe,
        retry_failed=retry_failed,
        nulls=nulls,
        prices=prices,
        limits=limits,
        completion_window=completion_window,
        dialect=dialect,
    )
    account, spoken = account_of(client, dialect)
    spec = Spec(account=account, **call.spec)
    spoken.check(endpoint=spec.endpoint, window=completion_window)
    fitted = fitting(limits, spoken, spec.endpoint)
    adapter = adapter_of(frame)
    _check_labels(adapter, frame, call, id_col)
    rows = _rows(adapter, frame, call, id_col, nulls=nulls)
    there = _found(checkpoint, spec)
    return estimate_rows(
        rows,
        spec if there is None else there.spec,
        there,
        limits=fitted,
        window_hours=hours_of(completion_window),
        dedupe=dedupe,
        retry_failed=retry_failed,
        prices=prices,
        dialect=spoken,
        now=SystemClock().now(),
    )


def _found(checkpoint: str | Path | None, spec: "Spec") -> "Checkpoint | None":
    """The checkpoint of the call, as it is on the disk; None where there is none yet."""
    from batchframe.checkpoint import checkpoint_path
    from batchframe.layout import SPEC

    path = checkpoint_path(checkpoint, spec)
    if not (path / SPEC).exists():
        return None
    there = read_checkpoint(path)
    there.check_spec(spec)
    return there


def _own_of_rows(
    adapter: Adapter, frame: Any, own: Mapping[str, Column], prompts: "pa.Array"
) -> dict[str, Any]:
    """Models and fields of `Rows`, out of their columns."""
    from batchframe.frames import inputs

    found: dict[str, Any] = {}
    fields = {name: column.label for name, column in own.items() if name != "model"}
    if "model" in own:
        label = own["model"].label
        found["models"] = inputs.models(adapter.column(frame, label), label, prompts)
    if fields:
        columns = {
            name: (label, values_of(adapter, frame, label)) for name, label in fields.items()
        }
        found["fields"] = inputs.own_fields(columns, prompts)
    return found


def usage_in_frame(
    frame: Any, *, output: str, model: str | None, prices: "Prices | None", digits: int
) -> "Usage":
    """What the rows of a frame that came back have used."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from batchframe.clock import SystemClock
    from batchframe.core.prices import cost_usd, usage_table
    from batchframe.core.rates import OPENAI_LIST
    from batchframe.core.usage import ROUNDING, added_up, used
    from batchframe.frames import inputs
    from batchframe.frames.usage import Usage

    adapter = adapter_of(frame)
    labels, index = adapter.labels(frame), adapter.index_names(frame)
    suffixes = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "cost_usd")
    for suffix in suffixes:
        inputs.check_label(f"{output}_{suffix}", "output", labels, index)
    found = {suffix: adapter.column(frame, f"{output}_{suffix}") for suffix in suffixes}
    named = f"{output}_model"
    models = (
        adapter.column(frame, named)
        if named in labels
        else pa.nulls(len(found["cost_usd"]), pa.string())
    )
    table = usage_table(found["input_tokens"], found["output_tokens"], models)
    for suffix, column in found.items():
        place = table.schema.get_field_index(suffix)
        field = table.schema.field(place)
        table = table.set_column(place, field, column.cast(field.type))
    # Rows that did not run used nothing; of those whose cost is null, nobody knows.
    idle = pc.and_(pc.is_null(table["input_tokens"]), pc.equal(table["cost_usd"], 0.0))
    table = table.filter(pc.invert(pc.fill_null(idle, fill_value=False)))
    known: dict[str, Any] = {
        "model": model or "",
        "at": datetime.fromtimestamp(SystemClock().now(), UTC),
    }
    # A frame does not say who answered: the list is that of OpenAI where the costs are by it.
    listed = pc.divide(cost_usd(table, **known), table["cost_usd"])
    is_listed = pc.less(pc.abs(pc.subtract(listed, 1.0)), ROUNDING)
    is_free = pc.equal(table["cost_usd"], 0.0)
    is_openai = pc.fill_null(pc.or_kleene(is_free, is_listed), fill_value=False)
    parts = [
        used(table.filter(is_openai), prices=prices, price_list=OPENAI_LIST, **known),
        used(table.filter(pc.invert(is_openai)), prices=prices, price_list=None, **known),
    ]
    return Usage(table=added_up(parts), digits=digits)
