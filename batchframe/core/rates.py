"""A model's name and a day -> its rates: dollars per million tokens of each kind.

Each service has a price list of its own (`Dialect.price_list`), and none stands in for another: a
model of the same name costs another sum elsewhere.

The rates are genai-prices' data, read without its calculator, which charges the standard price
wherever it finds no batch price. `_batch_rates` states our rules instead, with their sources.
Rates are exact decimals; None stands where they are unknown, and they are 0 only where it is known
that nothing is billed.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, TypeAlias

from batchframe.errors import ParameterError

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

__all__ = [
    "KINDS",
    "OPENAI_LIST",
    "Prices",
    "Rates",
    "RatesOf",
    "rate_at",
    "rates_for",
    "standard_rates",
]

#: The list of OpenAI, as genai-prices names it.
OPENAI_LIST = "openai"
#: The lists on which a batch costs half the standard rate wherever no batch rate is published.
_HALF_PRICE = frozenset({OPENAI_LIST})
#: The kinds of tokens that are billed. Input is what was neither read from nor written to a cache.
KINDS = ("input", "cached", "cache_write", "output")

#: Names of models that are billed for more than tokens of text, which usage alone does not tell
#: apart: spoken tokens at another rate, each search besides (OpenAI, pricing, 2026-08).
_BILLED_BESIDE = re.compile("audio|-search-")
#: Dollars per million tokens, each from a number of input tokens on; the first is from 0 on.
_Steps: TypeAlias = tuple[tuple[int, Decimal], ...]
_FREE: _Steps = ((0, Decimal(0)),)
#: The rates of each kind of tokens.
_ByKind: TypeAlias = dict[str, _Steps]
#: A model's name -> its rates, or None where they are unknown.
RatesOf: TypeAlias = Callable[[str], _ByKind | None]


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
    def _by_kind(self) -> _ByKind:
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


def rates_for(model: str, at: datetime, prices: Prices | None, price_list: str | None) -> RatesOf:
    """The rates in a batch of whichever model answered.

    Args:
        model: The requested model.
        at: When the batch was created.
        prices: Rates that hold instead of the published ones, by the name of either model.
        price_list: Whose published rates hold; None: nobody's, so that all others are unknown.
    """
    own = prices or {}

    def rates(name: str) -> _ByKind | None:
        mine = own.get(name) or own.get(model)
        return mine._by_kind if mine is not None else _batch_rates(name, at, price_list)  # noqa: SLF001

    return rates


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
        return dict.fromkeys(KINDS, _FREE)
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


def standard_rates(name: str, at: datetime, price_list: str | None) -> _ByKind | None:
    """The published rates outside of batches; None where they are unknown."""
    model = _find(name, price_list)
    if model is None:
        return None
    if model.id == "moderation":
        return dict.fromkeys(KINDS, _FREE)
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
    if price_list is None or _BILLED_BESIDE.search(name):
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


def rate_at(steps: _Steps, n_input: int) -> Decimal:
    """The rate that holds for a prompt of so many tokens."""
    return next(rate for start, rate in reversed(steps) if start <= n_input)
