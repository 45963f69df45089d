"""Usage -> cost: one number of dollars per result, at the rates of `core/rates`.

Rates are looked up once per model, and chosen per row, because OpenAI charges all tokens of a long
prompt more.

The invariant: a cost is null where the price or the usage is unknown. It is 0.0 only where it is
known that nothing is billed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.rates import (
    KINDS,
    OPENAI_LIST,
    Prices,
    RatesOf,
    rate_at,
    rates_for,
    standard_rates,
)
from batchframe.core.results import RESULT_SCHEMA
from batchframe.core.statuses import MAYBE_BILLED, Status

__all__ = [
    "OWN_PRICES",
    "PRICE_SOURCE",
    "cost_usd",
    "kinds_usd",
    "priced",
    "repriced",
    "standard_usd",
    "unpriced_models",
    "usage_table",
]

#: Where the rates come from, for the person who checks a bill.
PRICE_SOURCE = f"genai-prices {version('genai-prices')}"
#: The same, where the call brought the rates.
OWN_PRICES = "prices="
#: A day after all that are published.
_EVER = datetime(9999, 12, 31, tzinfo=UTC)


def cost_usd(
    table: pa.Table,
    *,
    model: str,
    at: datetime,
    prices: Prices | None = None,
    price_list: str | None = OPENAI_LIST,
) -> pa.DoubleArray:
    """What each result costs, in US dollars.

    A row that did not run costs 0.0: expired, cancelled, or failed with an error of the provider.
    A missing one may have been billed, and so may one that failed as `unreadable_line`,
    `empty_content` or `content_filter`: without usage their cost is null. So is the cost of every
    row that a model of unknown price answered, or for which the service ran a tool: it bills such
    calls besides.

    Args:
        table: Rows of RESULT_SCHEMA.
        model: The requested model, for rows that do not say which model answered.
        at: When the batch was created.
        prices: Rates that hold instead of the published ones.
        price_list: Whose published rates hold; None: nobody's, so that all are unknown.

    Returns:
        One entry per row, in order.
    """
    return _sum(table, _millionths(table, model, rates_for(model, at, prices, price_list)))


def standard_usd(
    table: pa.Table, *, model: str, at: datetime, price_list: str | None = OPENAI_LIST
) -> pa.DoubleArray:
    """What each result would have cost outside of batches, at the published standard rates.

    Args:
        table: Rows of RESULT_SCHEMA.
        model: The requested model, for rows that do not say which model answered.
        at: When the batch was created.
        price_list: As for `cost_usd`.

    Returns:
        One entry per row, in order; null where the model's price is unknown.
    """
    return _sum(table, _millionths(table, model, lambda name: standard_rates(name, at, price_list)))


def kinds_usd(
    table: pa.Table,
    *,
    model: str,
    at: datetime,
    prices: Prices | None = None,
    price_list: str | None = OPENAI_LIST,
) -> dict[str, pa.DoubleArray]:
    """What each kind of tokens of each result costs, in US dollars: the parts of `cost_usd`.

    The kinds are "cached", "cache_write", "input", which is neither of them, and "output".
    """
    dollars = _millionths(table, model, rates_for(model, at, prices, price_list))
    return {kind: pc.divide(cost, 1e6) for kind, cost in dollars.items()}


def priced(
    table: pa.Table,
    *,
    model: str,
    at: datetime,
    prices: Prices | None = None,
    price_list: str | None = OPENAI_LIST,
) -> pa.Table:
    """The results with their costs, and where the rates come from.

    Args:
        table: Rows of RESULT_SCHEMA.
        model: The requested model, for rows that do not say which model answered.
        at: When the batch was created.
        prices: Rates that hold instead of the published ones.
        price_list: As for `cost_usd`.

    Returns:
        The same rows, with `cost_usd` and `price_source`.
    """
    models = _models(table, model)
    own = prices or {}
    names = models.dictionary.to_pylist()
    is_own = [name in own or model in own for name in names]
    known = [rates_for(model, at, prices, price_list)(name) is not None for name in names]
    sources = [
        OWN_PRICES if mine else PRICE_SOURCE if found else None
        for mine, found in zip(is_own, known, strict=True)
    ]
    source = pa.array(sources, pa.string()).take(models.indices)
    cost = cost_usd(table, model=model, at=at, prices=prices, price_list=price_list)
    return _with(_with(table, "cost_usd", cost), "price_source", source)


def repriced(table: pa.Table, *, model: str, prices: Prices) -> pa.Table:
    """The results, with the user's own rates where `prices` has any for them.

    Args:
        table: Rows of RESULT_SCHEMA, with costs.
        model: The requested model, for rows that do not say which model answered.
        prices: The rates.
    """
    # No published rate is taken here.
    new = priced(table, model=model, at=_EVER, prices=prices, price_list=None)
    is_own = pc.fill_null(pc.equal(new["price_source"], OWN_PRICES), fill_value=False)
    for name in ("cost_usd", "price_source"):
        table = _with(table, name, pc.if_else(is_own, new[name], table[name]))
    return table


def usage_table(inputs: Any, outputs: Any, models: Any) -> pa.Table:
    """Results that took so many tokens, as far as the rules of prices look at them.

    Args:
        inputs: Tokens of each prompt: integers, or an array of them.
        outputs: Tokens of each answer, likewise.
        models: Who answered: texts, or null for the model that was asked for.
    """
    n = len(inputs)
    nothing = {field.name: pa.nulls(n, field.type) for field in RESULT_SCHEMA}
    columns = nothing | {
        "status": pa.repeat(pa.scalar(str(Status.OK)), n),
        "input_tokens": pa.array(inputs, pa.int64()),
        "output_tokens": pa.array(outputs, pa.int64()),
        "model": pa.array(models, pa.string()),
    }
    return pa.table(columns)


def _with(table: pa.Table, name: str, column: "pa.Array | pa.ChunkedArray") -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), column)


def _sum(table: pa.Table, dollars: Mapping[str, pa.DoubleArray]) -> pa.DoubleArray:
    total, *others = (dollars[kind] for kind in KINDS)
    for other in others:
        total = pc.add(total, other)
    n_calls = pc.fill_null(table["tool_calls"].combine_chunks(), 0)
    nobody_knows = pa.scalar(None, pa.float64())
    return pc.if_else(pc.greater(n_calls, 0), nobody_knows, pc.divide(total, 1e6))


def _millionths(table: pa.Table, model: str, rates_of: RatesOf) -> dict[str, pa.DoubleArray]:
    """The cost of each kind of tokens, one entry per row, in millionths of a dollar."""
    models = _models(table, model)
    rates = [rates_of(name) for name in models.dictionary.to_pylist()]
    n_input = table["input_tokens"].combine_chunks()

    # A rate is known by model and band: the bands are cut wherever a rate of any model steps.
    bands = sorted({0, *(start for r in rates if r for steps in r.values() for start, _ in steps)})
    place = pc.multiply(models.indices.cast(pa.int64()), len(bands))
    for start in bands[1:]:
        in_band = pc.fill_null(pc.greater_equal(n_input, start), fill_value=False)
        place = pc.add(place, in_band.cast(pa.int64()))

    cached = pc.fill_null(table["cached_tokens"].combine_chunks(), 0)
    written = pc.fill_null(table["cache_write_tokens"].combine_chunks(), 0)
    tokens = {
        "input": pc.max_element_wise(
            pc.subtract(pc.subtract(n_input, cached), written), 0, skip_nulls=False
        ),
        "cached": cached,
        "cache_write": written,
        "output": table["output_tokens"].combine_chunks(),
    }
    free = _not_billed(table)
    dollars = {}
    for kind in KINDS:
        rate = pa.array(
            [float(rate_at(r[kind], band)) if r else None for r in rates for band in bands],
            pa.float64(),
        ).take(place)
        # What costs nothing need not be known: an embedding has no output tokens to report.
        cost = pc.multiply(pc.cast(tokens[kind], pa.float64(), safe=False), rate)
        dollars[kind] = pc.if_else(pc.or_kleene(free, pc.equal(rate, 0.0)), 0.0, cost)
    return dollars


def unpriced_models(
    table: pa.Table,
    model: str | None,
    prices: Prices | None = None,
    price_list: str | None = OPENAI_LIST,
) -> list[str]:
    """The models that answered and whose batch price is unknown: sorted, each once.

    Args:
        table: Rows of RESULT_SCHEMA.
        model: The requested model, for rows that do not say which model answered; None where each
            row named its own: then those rows are left out.
        prices: The user's own rates.
        price_list: As for `cost_usd`.
    """
    used = table.filter(pc.invert(_without_usage(table)))
    if model is None:
        used, model = used.filter(pc.is_valid(used["model"])), ""
    names = _models(used, model).dictionary.to_pylist()
    # Any day will do: it decides what a known price is, not whether there is one.
    rates_of = rates_for(model, _EVER, prices, price_list)
    return sorted(name for name in names if rates_of(name) is None)


def _models(table: pa.Table, model: str) -> pa.DictionaryArray:
    return pc.fill_null(table["model"].combine_chunks(), model).dictionary_encode()


def _without_usage(table: pa.Table) -> pa.BooleanArray:
    return pc.and_(
        pc.is_null(table["input_tokens"].combine_chunks()),
        pc.is_null(table["output_tokens"].combine_chunks()),
    )


def _not_billed(table: pa.Table) -> pa.BooleanArray:
    # "You will be charged for tokens consumed from any completed requests" (OpenAI, Batch guide,
    # 2026-08): what did not complete is free.
    status = table["status"].combine_chunks()
    code = pc.fill_null(table["error_code"].combine_chunks(), "")
    not_run = pc.is_in(status, pa.array([Status.FAILED, Status.EXPIRED, Status.CANCELLED]))
    known = pc.invert(pc.is_in(code, pa.array(MAYBE_BILLED)))
    return pc.and_(_without_usage(table), pc.and_(not_run, known))


# --- The rules ------------------------------------------------------------------------------------
