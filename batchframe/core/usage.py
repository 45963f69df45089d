"""Results -> a table of tokens and dollars by model and category, and what does not add up.

All tries count: what a row was billed for twice stands here twice, as on the provider's bill.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.batches import Usage as Tokens
from batchframe.core.prices import kinds_usd, standard_usd
from batchframe.core.rates import OPENAI_LIST, Prices

__all__ = [
    "CATEGORIES",
    "ROUNDING",
    "TOTAL",
    "Difference",
    "added_up",
    "prompt_and_completion_usd",
    "used",
]

_USED = pa.schema(
    [
        ("model", pa.string()),
        ("category", pa.string()),
        ("tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("requests", pa.int64()),
        ("standard_usd", pa.float64()),
    ]
)
#: The categories of a model, in order, and whether each is a part of one before.
CATEGORIES = {
    "prompt": False,
    "cached": True,
    "cache writes": True,
    "completion": False,
    "reasoning": True,
}
#: How far sums of dollars may be from each other by rounding alone, as a part of them.
ROUNDING = 1e-9
#: The category of all of them together.
TOTAL = "total"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A batch whose rows do not add up to what the provider says of the whole."""

    batch_id: str
    #: The sums over its rows.
    rows: Tokens
    #: What the batch itself says.
    batch: Tokens


def used(
    table: pa.Table,
    *,
    model: str,
    at: datetime,
    prices: Prices | None,
    price_list: str | None = OPENAI_LIST,
) -> pa.Table:
    """What the results of one batch used, with a row for each model and category.

    Args:
        table: Rows of RESULT_SCHEMA, with costs.
        model: The requested model, for rows that do not say which model answered.
        at: When the batch was created.
        prices: Rates that hold instead of the published ones.
        price_list: Whose published rates hold; None: nobody's.
    """
    names = pc.fill_null(table["model"], model)
    # Where nobody knew the whole, what it would have been is not known better.
    is_known = pc.is_valid(table["cost_usd"].combine_chunks())
    standard = _where(is_known, standard_usd(table, model=model, at=at, price_list=price_list))
    kinds = _adding_up(
        kinds_usd(table, model=model, at=at, prices=prices, price_list=price_list),
        table["cost_usd"].combine_chunks(),
    )
    n_output = table["output_tokens"].combine_chunks().cast(pa.float64())
    thinking = pc.fill_null(table["reasoning_tokens"].combine_chunks(), 0).cast(pa.float64())
    share = pc.if_else(pc.greater(n_output, 0.0), pc.divide(thinking, n_output), 0.0)
    prompt, completion = _prompt_and_completion(kinds)
    by_category = {
        "prompt": ("input_tokens", prompt),
        "cached": ("cached_tokens", kinds["cached"]),
        "cache writes": ("cache_write_tokens", kinds["cache_write"]),
        "completion": ("output_tokens", completion),
        "reasoning": (
            "reasoning_tokens",
            pc.if_else(pc.equal(thinking, 0.0), 0.0, pc.multiply(completion, share)),
        ),
    }
    no_count, no_cost = pa.nulls(len(table), pa.int64()), pa.nulls(len(table), pa.float64())
    one = pc.if_else(_ran(table), 1, 0).cast(pa.int64())
    parts = [
        pa.table(
            [names, pa.repeat(category, len(table)), _counts(table, name), cost, no_count, no_cost],
            schema=_USED,
        )
        for category, (name, cost) in by_category.items()
    ]
    total = pc.add(_counts(table, "input_tokens"), _counts(table, "output_tokens"))
    whole = [names, pa.repeat(TOTAL, len(table)), total, table["cost_usd"], one, standard]
    parts.append(pa.table(whole, schema=_USED))
    return _grouped(pa.concat_tables(parts))


def prompt_and_completion_usd(
    table: pa.Table, *, model: str, at: datetime, price_list: str | None = OPENAI_LIST
) -> tuple[pa.DoubleArray, pa.DoubleArray]:
    """What each result's prompt and its completion cost, in US dollars, in the rows' order."""
    return _prompt_and_completion(kinds_usd(table, model=model, at=at, price_list=price_list))


def _prompt_and_completion(
    kinds: Mapping[str, pa.DoubleArray],
) -> tuple[pa.DoubleArray, pa.DoubleArray]:
    return pc.add(pc.add(kinds["input"], kinds["cached"]), kinds["cache_write"]), kinds["output"]


def added_up(parts: Sequence[pa.Table]) -> pa.Table:
    """The usage of all batches together, by model and category, the models sorted by name."""
    table = _grouped(pa.concat_tables(parts)) if parts else _USED.empty_table()
    place = pc.index_in(table["category"], value_set=pa.array([*CATEGORIES, TOTAL]))
    table = table.append_column("place", place)
    table = table.sort_by([("model", "ascending"), ("place", "ascending")]).drop_columns("place")
    # Of what was never reported there is nothing to say.
    rare = pa.array([name for name, is_part in CATEGORIES.items() if is_part])
    is_idle = pc.and_(pc.is_in(table["category"], value_set=rare), pc.equal(table["tokens"], 0))
    return table.filter(pc.invert(is_idle))


def _adding_up(
    kinds: Mapping[str, pa.DoubleArray], whole: pa.DoubleArray
) -> dict[str, pa.DoubleArray]:
    """The parts where they are those of the whole; else other rates held, and they are unknown.

    Of what cost nothing, as an answer that was paid with another row, the parts did not either.
    """
    is_free = pc.equal(whole, 0.0)
    total, *others = kinds.values()
    for other in others:
        total = pc.add(total, other)
    is_far = pc.greater(pc.abs(pc.subtract(total, whole)), pc.multiply(whole, ROUNDING))
    is_it = pc.fill_null(pc.invert(is_far), fill_value=False)
    return {kind: pc.if_else(is_free, 0.0, _where(is_it, cost)) for kind, cost in kinds.items()}


def _where(is_known: pa.BooleanArray, dollars: pa.DoubleArray) -> pa.DoubleArray:
    return pc.if_else(is_known, dollars, pa.scalar(None, pa.float64()))


def _grouped(table: pa.Table) -> pa.Table:
    # A sum of dollars is unknown if a part of it is.
    exact = pc.ScalarAggregateOptions(skip_nulls=False, min_count=0)
    grouped = table.group_by(["model", "category"], use_threads=False).aggregate(
        [
            ("tokens", "sum"),
            ("cost_usd", "sum", exact),
            ("requests", "sum"),
            ("standard_usd", "sum", exact),
        ]
    )
    names = [name.removesuffix("_sum") for name in grouped.column_names]
    return grouped.rename_columns(names).select(_USED.names).cast(_USED)


def _counts(table: pa.Table, name: str) -> pa.Int64Array:
    return pc.fill_null(table[name].combine_chunks(), 0)


def _ran(table: pa.Table) -> pa.BooleanArray:
    """The requests that tell of any token: the others did not run, or nobody knows."""
    return pc.or_(pc.is_valid(table["input_tokens"]), pc.is_valid(table["output_tokens"]))
