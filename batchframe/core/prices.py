"""Usage -> cost: one number of dollars per result, at the rates that OpenAI charges for batches.

The rates are genai-prices' data, read without its calculator, which charges the standard price
wherever it finds no batch price. `_batch_rates` states our rules instead, with their sources.
Rates are exact decimals, looked up once per model, and chosen per row, because OpenAI charges all
tokens of a long prompt more.

The invariant: a cost is null where the price or the usage is unknown. It is 0.0 only where it is
known that nothing is billed.
"""

from datetime import UTC, datetime, time
from decimal import Decimal
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.results import MAYBE_BILLED, Status

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

__all__ = ["PRICE_SOURCE", "cost_usd", "split_cost_usd", "unpriced_models"]

#: Where the rates come from, for the person who checks a bill.
PRICE_SOURCE = f"genai-prices {version('genai-prices')}"

# Dollars per million tokens, each from a number of input tokens on; the first is from 0 on.
_Steps: TypeAlias = tuple[tuple[int, Decimal], ...]
_FREE: _Steps = ((0, Decimal(0)),)
# The kinds of tokens that are billed. Input is what was neither read from nor written to a cache.
_KINDS = ("input", "cached", "cache_write", "output")


def cost_usd(table: pa.Table, *, model: str, at: datetime) -> pa.DoubleArray:
    """What each result costs, in US dollars.

    A row that did not run costs 0.0: expired, cancelled, or failed with an error of the provider.
    A missing one may have been billed, and so may one that failed as `unreadable_line` or
    `empty_content`: without usage their cost is null. So is the cost of every row that a model of
    unknown price answered.

    Args:
        table: Rows of RESULT_SCHEMA.
        model: The requested model, for rows that do not say which model answered.
        at: When the batch was created.

    Returns:
        One entry per row, in order.
    """
    dollars = _millionths(table, model=model, at=at)
    total = pa.repeat(0.0, len(table))
    for kind in _KINDS:
        total = pc.add(total, dollars[kind])
    return pc.divide(total, 1e6)


def split_cost_usd(
    table: pa.Table, *, model: str, at: datetime
) -> tuple[pa.DoubleArray, pa.DoubleArray]:
    """What each result's prompt and its completion cost, in US dollars: the parts of `cost_usd`.

    Args:
        table: Rows of RESULT_SCHEMA.
        model: The requested model, for rows that do not say which model answered.
        at: When the batch was created.

    Returns:
        Two arrays, each with one entry per row, in order.
    """
    dollars = _millionths(table, model=model, at=at)
    prompt = pc.add(pc.add(dollars["input"], dollars["cached"]), dollars["cache_write"])
    return pc.divide(prompt, 1e6), pc.divide(dollars["output"], 1e6)


def _millionths(table: pa.Table, *, model: str, at: datetime) -> dict[str, pa.DoubleArray]:
    """The cost of each kind of tokens, one entry per row, in millionths of a dollar."""
    models = _models(table, model)
    rates = [_batch_rates(name, at) for name in models.dictionary.to_pylist()]
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


def unpriced_models(table: pa.Table, model: str | None) -> list[str]:
    """The models that answered and whose batch price is unknown: sorted, each once.

    Args:
        table: Rows of RESULT_SCHEMA.
        model: The requested model, for rows that do not say which model answered; None where each
            row named its own: then those rows are left out.
    """
    used = table.filter(pc.invert(_without_usage(table)))
    if model is None:
        used, model = used.filter(pc.is_valid(used["model"])), ""
    names = _models(used, model).dictionary.to_pylist()
    # Any day will do: it decides what a known price is, not whether there is one.
    day = datetime(9999, 12, 31, tzinfo=UTC)
    return sorted(name for name in names if _batch_rates(name, day) is None)


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


def _batch_rates(name: str, at: datetime) -> dict[str, _Steps] | None:
    """The rates of each kind of tokens for batches created at `at`; None where they are unknown.

    1. The published batch rate holds (genai-prices' variants with `processing: batch`, verified
       against https://developers.openai.com/api/docs/pricing on 2026-10-14).
    2. Before the first day of a variant its rates hold as well, if the model's standard rates were
       the same as on that day.
    3. Otherwise a batch costs half the standard rate of the day ("50% cost discount compared to
       synchronous APIs", https://developers.openai.com/api/docs/guides/batch, 2026-08). This
       covers embeddings. A fine-tuned model without a batch rate is left unknown: what the pricing
       page lists for one of them is not half.
    4. Cached input costs the published batch rate for cached input; where none is published (gpt-4,
       gpt-4.1 and o models) it costs what other input of a batch costs. genai-prices takes the
       standard cached rate there, which is equal or less; we rather state too much than too little.
       Cache writes follow the same rule.
    5. Moderation is free (https://developers.openai.com/api/docs/guides/moderation, 2026-08).
    """
    model = _find(name)
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
    elif model.id.startswith("ft:"):
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


def _find(name: str) -> "ModelInfo | None":
    # Always among OpenAI's models: Azure's Global Batch has the same rates, but genai-prices' Azure
    # entries do not. Imported here because reading all prices takes 0.15 s.
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider_model(name, None, "openai", None)[1]
    except LookupError:
        return None


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
