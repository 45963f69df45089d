"""Usage -> cost: one number of dollars per result, at the service's own rates for batches.

Each service has a price list of its own (`Dialect.price_list`), and none stands in for another: a
model of the same name costs another sum elsewhere.

The rates are genai-prices' data, read without its calculator, which charges the standard price
wherever it finds no batch price. `_batch_rates` states our rules instead, with their sources.
Rates are exact decimals, looked up once per model, and chosen per row, because OpenAI charges all
tokens of a long prompt more.

The invariant: a cost is null where the price or the usage is unknown. It is 0.0 only where it is
known that nothing is billed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.results import MAYBE_BILLED, RESULT_SCHEMA, Status
from batchframe.errors import ParameterError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

__all__ = [
    "OPENAI_LIST",
    "OWN_PRICES",
    "PRICE_SOURCE",
    "Prices",
    "Rates",
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
#: The list of OpenAI, as genai-prices names it.
OPENAI_LIST = "openai"
#: The lists on which a batch costs half the standard rate wherever no batch rate is published.
_HALF_PRICE = frozenset({OPENAI_LIST})
#: A day after all that are published.
_EVER = datetime(9999, 12, 31, tzinfo=UTC)

# Dollars per million tokens, each from a number of input tokens on; the first is from 0 on.
_Steps: TypeAlias = tuple[tuple[int, Decimal], ...]
_FREE: _Steps = ((0, Decimal(0)),)
# The rates of each kind of tokens.
_ByKind: TypeAlias = dict[str, _Steps]
# A model's name -> its rates, or None where they are unknown.
_Lookup: TypeAlias = Callable[[str], _ByKind | None]
# The kinds of tokens that are billed. Input is what was neither read from nor written to a cache.
_KINDS = ("input", "cached", "cache_write", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a model costs in a batch, in US dollars per million tokens: a contract, a provider.

    Raises ParameterError for what is no price.
    """

    #: Input tokens.
    input: float
    #: Output tokens, those of reasoning included.
    output: float = 0.0
    #: Input tokens that the provider had cached; None: as other input.
    cached: float | None = None
    #: Input tokens that went into the provider's cache; None: as other input.
    cache_write: float | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached", "cache_write"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_absent = value is None and name.startswith("cache")
            if not is_absent and not (is_number and 0 <= value < math.inf):
                raise ParameterError(
                    f"Rates({name}={value!r}) must be dollars per million tokens, from 0 upwards."
                )

    @property
    def _by_kind(self) -> "_ByKind":
        plain = Decimal(str(self.input))
        rates = {
            "input": plain,
            "cached": plain if self.cached is None else Decimal(str(self.cached)),
            "cache_write": plain if self.cache_write is None else Decimal(str(self.cache_write)),
            "output": Decimal(str(self.output)),
        }
        return {kind: ((0, rate),) for kind, rate in rates.items()}


#: The user's own rates, by the name of the model: as it was asked for, or as it answered.
Prices: TypeAlias = Mapping[str, Rates]


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
    A missing one may have been billed, and so may one that failed as `unreadable_line` or
    `empty_content`: without usage their cost is null. So is the cost of every row that a model of
    unknown price answered.

    Args:
        table: Rows of RESULT_SCHEMA.
        model: The requested model, for rows that do not say which model answered.
        at: When the batch was created.
        prices: Rates that hold instead of the published ones.
        price_list: Whose published rates hold; None: nobody's, so that all are unknown.

    Returns:
        One entry per row, in order.
    """
    return _sum(_millionths(table, model, _rates_for(model, at, prices, price_list)), _KINDS)


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
    return _sum(
        _millionths(table, model, lambda name: _standard_rates(name, at, price_list)), _KINDS
    )


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
    dollars = _millionths(table, model, _rates_for(model, at, prices, price_list))
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
    known = [_rates_for(model, at, prices, price_list)(name) is not None for name in names]
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


def _sum(dollars: Mapping[str, pa.DoubleArray], kinds: Sequence[str]) -> pa.DoubleArray:
    total, *others = (dollars[kind] for kind in kinds)
    for other in others:
        total = pc.add(total, other)
    return pc.divide(total, 1e6)


def _rates_for(
    model: str, at: datetime, prices: Prices | None, price_list: str | None
) -> "_Lookup":
    """The rates of whichever model answered, where `model` was asked for."""
    own = prices or {}

    def rates(name: str) -> "_ByKind | None":
        mine = own.get(name) or own.get(model)
        return mine._by_kind if mine is not None else _batch_rates(name, at, price_list)  # noqa: SLF001

    return rates


def _millionths(table: pa.Table, model: str, rates_of: "_Lookup") -> dict[str, pa.DoubleArray]:
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
    for kind in _KINDS:
        rate = pa.array(
            [float(_rate(r[kind], band)) if r else None for r in rates for band in bands],
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
    rates_of = _rates_for(model, _EVER, prices, price_list)
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


def _batch_rates(name: str, at: datetime, price_list: str | None) -> _ByKind | None:
    """The rates of each kind of tokens for batches created at `at`; None where they are unknown.

    1. The published batch rate holds (genai-prices' variants with `processing: batch`, verified
       against https://developers.openai.com/api/docs/pricing on 2026-10-14).
    2. Before the first day of a variant its rates hold as well, if the model's standard rates were
       the same as on that day.
    3. Otherwise a batch costs half the standard rate of the day ("50% cost discount compared to
       synchronous APIs", https://developers.openai.com/api/docs/guides/batch, 2026-08). This
       covers embeddings. That is OpenAI's own promise: of other lists only the published batch
       rates are taken. A fine-tuned model without a batch rate is left unknown: what the pricing
       page lists for one of them is not half.
    4. Cached input costs the published batch rate for cached input; where none is published (gpt-4,
       gpt-4.1 and o models) it costs what other input of a batch costs. genai-prices takes the
       standard cached rate there, which is equal or less; we rather state too much than too little.
       Cache writes follow the same rule.
    5. Moderation is free (https://developers.openai.com/api/docs/guides/moderation, 2026-08).
    """
    model = _find(name, price_list)
    if model is None:
        return None
    if model.id == "moderation":
        return dict.fromkeys(_KINDS, _FREE)
    standard = model.get_prices(at)
    if standard.input_mtok is None:
        return None  # billed by the second or by the picture

    batch = _published(model, at)
    if batch is not None:
        # What a variant leaves out is as in the standard price: gpt-3.5-turbo-1106 has no discount.
        plain = _steps(standard.input_mtok if batch.input_mtok is None else batch.input_mtok)
        output = _steps(standard.output_mtok if batch.output_mtok is None else batch.output_mtok)
        cached, written = _steps(batch.cache_read_mtok), _steps(batch.cache_write_mtok)
    elif price_list not in _HALF_PRICE or model.id.startswith("ft:"):
        return None
    else:
        plain, output = _half(_steps(standard.input_mtok)), _half(_steps(standard.output_mtok))
        cached, written = (), _half(_steps(standard.cache_write_mtok))
    return {
        "input": plain,
        "cached": cached or plain,
        "cache_write": written or plain,
        "output": output or _FREE,
    }


def _standard_rates(name: str, at: datetime, price_list: str | None) -> _ByKind | None:
    """The published rates outside of batches; None where they are unknown."""
    model = _find(name, price_list)
    if model is None:
        return None
    if model.id == "moderation":
        return dict.fromkeys(_KINDS, _FREE)
    standard = model.get_prices(at)
    if standard.input_mtok is None:
        return None
    plain = _steps(standard.input_mtok)
    return {
        "input": plain,
        "cached": _steps(standard.cache_read_mtok) or plain,
        "cache_write": _steps(standard.cache_write_mtok) or plain,
        "output": _steps(standard.output_mtok) or _FREE,
    }


def _find(name: str, price_list: str | None) -> "ModelInfo | None":
    if price_list is None:
        return None
    # Imported here because reading all prices takes 0.15 s.
    from genai_prices.data_snapshot import get_snapshot

    try:
        provider, model = get_snapshot().find_provider_model(name, None, price_list, None)
    except LookupError:
        return None
    return model if provider.id == price_list else None


def _published(model: "ModelInfo", at: datetime) -> "ModelPrice | None":
    from genai_prices.types import StartDateConstraint

    for variant in model.price_variants or ():
        if variant.when != {"processing": "batch"}:
            continue
        since = variant.constraint
        holds = since is None or since.active(at)
        same_standard = isinstance(since, StartDateConstraint) and (
            model.get_prices(datetime.combine(since.start_date, time(), UTC))
            == model.get_prices(at)
        )
        if holds or same_standard:
            return variant.prices
    return None


def _steps(price: "Decimal | TieredPrices | None") -> _Steps:
    if price is None:
        return ()
    if isinstance(price, Decimal):
        return ((0, price),)
    # A tier holds for more input tokens than its start.
    return ((0, price.base), *((tier.start + 1, tier.price) for tier in price.tiers))


def _half(steps: _Steps) -> _Steps:
    return tuple((start, rate / 2) for start, rate in steps)


def _rate(steps: _Steps, n_input: int) -> Decimal:
    return next(rate for start, rate in reversed(steps) if start <= n_input)
