"""Rows that were not sent yet -> what they will take, in tokens and dollars: always a range.

Tokens of prompts are those of `core/prompt_tokens`. Tokens of answers are bounded by what the rows
allow, and expected as in the rows that were answered.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.bounds import answer_limit
from batchframe.core.prices import cost_usd, standard_usd, usage_table
from batchframe.core.prompt_tokens import prompt_tokens
from batchframe.core.rates import Prices
from batchframe.core.requests import Rows
from batchframe.core.spec import EMBEDDINGS, MODERATIONS, Spec
from batchframe.core.texts import dollars

__all__ = [
    "Estimate",
    "Known",
    "Range",
    "Takes",
    "price_takes",
    "takes",
]

#: How far the mean of further answers may be from that of the answers so far.
_DOUBT_OF_ANSWERS = 0.25


@dataclass(frozen=True, slots=True)
class Range:
    """From a number to a number; None where there is no upper bound."""

    #: The least.
    low: float
    #: The most, or None.
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the results of a checkpoint teach about further rows."""

    #: Tokens of prompts, for each token that was guessed from bytes; None without results.
    input_ratio: float | None = None
    #: Mean tokens of an answer; None without results.
    output_mean: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """Tokens that rows will take: int64, one entry per row."""

    input_low: pa.Int64Array
    input_high: pa.Int64Array
    output_low: pa.Int64Array
    #: None where a row sets no limit.
    output_high: pa.Int64Array | None
    #: How the prompts were counted, in words.
    counted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a call would send and cost; `print` it, or show it in a notebook."""

    #: The model, or None where rows name their own.
    model: str | None
    #: Rows of the frame.
    n_rows: int
    #: Rows whose result is in the checkpoint: nothing is paid for them again.
    n_paid: int
    #: Rows whose batch is at the provider.
    n_under_way: int
    #: Rows without a prompt.
    n_skipped: int
    #: Rows without an answer whose request equals an earlier row's: `dedupe=True` sends it once.
    n_duplicates: int
    #: Dollars that `dedupe=True` saves, or would save, or None where the price is unknown.
    duplicates_usd: Range | None
    #: Requests to be sent.
    n_requests: int
    #: Batches that they make.
    n_shards: int
    #: Size of the input files, in bytes.
    n_bytes: int
    #: Tokens of the prompts to be sent.
    input_tokens: Range
    #: How they were counted.
    counted: str
    #: Tokens of the answers; no upper bound where a row sets no limit.
    output_tokens: Range
    #: Dollars at the batch rate, or None where the price is unknown.
    cost_usd: Range | None
    #: Dollars for the same outside of batches, or None where the price is unknown.
    standard_usd: Range | None
    #: How often the queue is filled, one after the other, under the limits that are known.
    n_waves: int
    #: The most hours that all of it may take, by the completion window.
    hours: float

    def __repr__(self) -> str:
        """A table for a terminal."""
        rows = self._rows()
        name, value = (max(len(row[place]) for row in rows) for place in (0, 1))
        lines = (f"{n:<{name}}  {v:>{value}}  {note}".rstrip() for n, v, note in rows)
        return "\n".join([f"Estimate for {self.model or 'the models of the rows'}", *lines])

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        cells = "".join(
            f"<tr><td style='text-align:left;white-space:pre'>{escape(name)}</td>"
            f"<td>{escape(value)}</td><td style='text-align:left'>{escape(note)}</td></tr>"
            for name, value, note in self._rows()
        )
        title = escape(f"Estimate for {self.model or 'the models of the rows'}")
        # Between two dollar signs notebooks see a formula, if they are not told.
        ignored = "tex2jax_ignore mathjax_ignore"
        return f"<table class='{ignored}'><caption>{title}</caption>{cells}</table>"

    def _standard(self) -> str:
        if self.standard_usd is None:
            return "no price is known: prices= gives one"
        return f"{_dollars(self.standard_usd)} without batches"

    def _dedupe(self) -> str:
        # Where all rows are paid, sent or without a prompt, the call itself does not dedupe.
        apart = self.n_paid + self.n_under_way + self.n_skipped + self.n_requests
        does, saves = ("would leave", "save") if apart == self.n_rows else ("leaves", "saves")
        saved = f" and {saves} {_dollars(self.duplicates_usd)}" if self.duplicates_usd else ""
        return f"dedupe=True {does} them out{saved}"

    def _rows(self) -> list[tuple[str, str, str]]:
        bounded = self.output_tokens.high is not None
        return [
            ("rows", f"{self.n_rows:,}", ""),
            ("  paid already", f"{self.n_paid:,}", ""),
            ("  under way", f"{self.n_under_way:,}", ""),
            ("  without prompt", f"{self.n_skipped:,}", ""),
            (
                "  duplicates",
                f"{self.n_duplicates:,}",
                self._dedupe() if self.n_duplicates else "",
            ),
            (
                "requests",
                f"{self.n_requests:,}",
                f"in {_batches(self.n_shards)}, {self.n_bytes / 1e6:,.2f} MB",
            ),
            ("input tokens", _tokens(self.input_tokens), self.counted),
            (
                "output tokens",
                _tokens(self.output_tokens),
                "" if bounded else "no limit is set: max_completion_tokens= sets one",
            ),
            ("cost", _dollars(self.cost_usd), self._standard()),
            (
                "time",
                f"up to {self.hours:,.0f} hours",
                "" if self.n_waves <= 1 else f"the queue is filled {self.n_waves:,} times",
            ),
        ]


def _batches(n: int) -> str:
    return "1 batch" if n == 1 else f"{n:,} batches"


def _tokens(range_: Range) -> str:
    if range_.high is None:
        return f"{range_.low:,.0f} or more"
    return f"{range_.low:,.0f} to {range_.high:,.0f}" if range_.high else "0"


def _dollars(range_: Range | None) -> str:
    if range_ is None:
        return "unknown"
    low = dollars(range_.low)
    if range_.high is None:
        return f"{low} or more"
    high = dollars(range_.high)
    return low if low == high else f"{low} to {high}"


def takes(rows: Rows, guessed: pa.Int64Array, spec: Spec, known: Known) -> Takes:
    """What rows will take.

    Args:
        rows: What they ask; none without a prompt.
        guessed: Tokens of each row's request as they are guessed from its bytes.
        spec: What all rows share.
        known: What earlier results taught.
    """
    low, high, counted = prompt_tokens(rows, guessed, spec, known.input_ratio)
    if spec.endpoint in {EMBEDDINGS, MODERATIONS}:
        none = pa.repeat(pa.scalar(0, pa.int64()), len(rows))
        return Takes(
            input_low=low, input_high=high, output_low=none, output_high=none, counted=counted
        )
    least, most = 1.0, math.inf
    if known.output_mean is not None:
        least = known.output_mean * (1 - _DOUBT_OF_ANSWERS)
        most = known.output_mean * (1 + _DOUBT_OF_ANSWERS)
    lows, highs = _answers(rows, spec, least, most)
    return Takes(
        input_low=low, input_high=high, output_low=lows, output_high=highs, counted=counted
    )


def _answers(
    rows: Rows, spec: Spec, least: float, most: float
) -> tuple[pa.Int64Array, pa.Int64Array | None]:
    """The least and the most tokens of each row's answer; None where a row has no limit."""

    def bound(fields: Mapping[str, Any]) -> float:
        limit = answer_limit(fields, spec.endpoint)
        return most if limit is None else min(limit, most)

    if rows.fields is None:
        same = bound(spec.params)
        low = pa.repeat(pa.scalar(math.floor(min(least, same)), pa.int64()), len(rows))
        if math.isinf(same):
            return low, None
        return low, pa.repeat(pa.scalar(math.ceil(same), pa.int64()), len(rows))
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    bounds = [
        bound({**spec.params, **(decode(own) if own else {})}) for own in rows.fields.to_pylist()
    ]
    low = pa.array([math.floor(min(least, one)) for one in bounds], pa.int64())
    if not all(map(math.isfinite, bounds)):
        return low, None
    return low, pa.array([math.ceil(one) for one in bounds], pa.int64())


def price_takes(
    takes: Takes,
    rows: Rows,
    spec: Spec,
    *,
    at: datetime,
    prices: Prices | None,
    price_list: str | None,
) -> tuple[Range | None, Range | None]:
    """Dollars in a batch, and outside of batches; None where a price is unknown."""
    models = pa.nulls(len(rows), pa.string()) if rows.models is None else rows.models

    def total(price: Callable[[pa.Table], pa.Array], *, most: bool) -> float | None:
        table = usage_table(
            takes.input_high if most else takes.input_low,
            takes.output_high if most else takes.output_low,
            models,
        )
        cost = price(table)
        return None if cost.null_count else float(pc.sum(cost).as_py() or 0.0)

    def range_(price: Callable[[pa.Table], pa.Array]) -> Range | None:
        low = total(price, most=False)
        if low is None:
            return None
        return Range(low, None if takes.output_high is None else total(price, most=True))

    model = spec.model or ""
    named: dict[str, Any] = {"model": model, "at": at, "price_list": price_list}
    return (
        range_(lambda table: cost_usd(table, prices=prices, **named)),
        range_(lambda table: standard_usd(table, **named)),
    )
