"""Rows that were not sent yet -> what they will take, in tokens and dollars: always a range.

Tokens of prompts are known best from the usage of rows of the same checkpoint; else they are
counted in a sample of rows, by the model's own vocabulary, and scaled by bytes; else they are
bounded by their bytes. Tokens of answers are bounded by what the rows allow, and expected as in the
rows that were answered.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.prices import cost_usd, standard_usd, usage_table
from batchframe.core.rates import Prices
from batchframe.core.requests import Rows, row_keys
from batchframe.core.spec import COMPLETIONS, EMBEDDINGS, MODERATIONS, Spec
from batchframe.core.texts import dollars
from batchframe.core.tokens import counter, vocabulary_of

__all__ = [
    "FEWEST_BYTES",
    "Estimate",
    "Known",
    "Range",
    "Takes",
    "answer_limit",
    "counted_ratio",
    "price_takes",
    "takes",
]

#: Rows that are counted by a vocabulary.
_SAMPLE_ROWS = 1_000
#: Bytes per token, from texts full of ids to scripts of two bytes a letter (o200k_base over random
#: UUIDs 1.7, English 4.8, Russian 5.7, Hindi and Thai up to 7; measured 2026-11).
FEWEST_BYTES, _MOST_BYTES = 1.5, 8.0
#: How far the other two ways may be off, as a part of the number of tokens.
_DOUBT = 0.1
#: How far the mean of further answers may be from that of the answers so far.
_DOUBT_OF_ANSWERS = 0.25
#: Tokens that the chat format adds to each message and to each prompt (OpenAI cookbook, "How to
#: count tokens with tiktoken", 2026-08).
_PER_MESSAGE, _PER_PROMPT = 4, 3
#: Tokens of an answer of /v1/completions that sets no limit (OpenAI API reference, 2026-08).
_LEGACY_LIMIT = 16
#: What limits the tokens of an answer, by the names of all endpoints.
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
#: Fields of a body that the model reads beside the prompt.
_READ_BESIDE = ("tools", "response_format", "text", "functions")
#: Steps of the golden ratio visit rows evenly, and in no rhythm that a frame could have.
_GOLDEN = (math.sqrt(5) - 1) / 2


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
    #: Rows to be sent whose request equals an earlier row's: `dedupe=True` sends it once.
    n_duplicates: int
    #: Dollars that `dedupe=True` would save, or None where the price is unknown.
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

    def _rows(self) -> list[tuple[str, str, str]]:
        bounded = self.output_tokens.high is not None
        saved = "" if self.duplicates_usd is None else f" and save {_dollars(self.duplicates_usd)}"
        return [
            ("rows", f"{self.n_rows:,}", ""),
            ("  paid already", f"{self.n_paid:,}", ""),
            ("  under way", f"{self.n_under_way:,}", ""),
            ("  without prompt", f"{self.n_skipped:,}", ""),
            (
                "  duplicates",
                f"{self.n_duplicates:,}",
                f"dedupe=True would leave them out{saved}" if self.n_duplicates else "",
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
    low, high, counted = _input(rows, guessed, spec, known)
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


def answer_limit(fields: Mapping[str, Any], endpoint: str) -> int | None:
    """The most tokens that an answer may have, reasoning included, by the fields of its body.

    0 where answers have no tokens, None where nothing limits them.
    """
    if endpoint in {EMBEDDINGS, MODERATIONS}:
        return 0
    default = _LEGACY_LIMIT if endpoint == COMPLETIONS else None
    return next((fields[name] for name in _LIMITS if isinstance(fields.get(name), int)), default)


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


def _input(
    rows: Rows, guessed: pa.Int64Array, spec: Spec, known: Known
) -> tuple[pa.Int64Array, pa.Int64Array, str]:
    """The least and the most tokens of each row's prompt, and how they were counted."""
    if known.input_ratio is not None:
        mean = pc.multiply(guessed.cast(pa.float64()), known.input_ratio)
        low, high = pc.multiply(mean, 1 - _DOUBT), pc.multiply(mean, 1 + _DOUBT)
        return _down(low), _up(high), "as the rows so far had"
    sample = _sample(rows, spec)
    beside = _beside(spec)
    vocabulary = _vocabulary(rows, spec)
    if vocabulary is not None:
        name, count = vocabulary
        mean = _counted(rows, sample, spec, count)
        low = pc.multiply(mean, 1 - _DOUBT)
        schema = count(beside.others) if beside.others else 0
        high = pc.multiply(pc.add(mean, schema), 1 + _DOUBT)
        words = f"{len(sample):,} {'row' if len(sample) == 1 else 'rows'} counted by {name}"
    else:
        text = sum(len(one.text.encode()) for one in sample) / max(
            1, sum(one.n_bytes for one in sample)
        )
        text_bytes = pc.multiply(pc.binary_length(rows.prompts).cast(pa.float64()), text)
        fixed = _per_row(sample, spec)
        system, others = len(beside.system.encode()), len(beside.others.encode())
        low = pc.add(pc.divide(text_bytes, _MOST_BYTES), fixed + system / _MOST_BYTES)
        more = fixed + (system + others) / FEWEST_BYTES
        high = pc.add(pc.divide(text_bytes, FEWEST_BYTES), more)
        words = "bounded by bytes"
    if any(one.n_images for one in sample):
        words += ", images not counted"
    return _down(low), _up(high), words


def _vocabulary(rows: Rows, spec: Spec) -> tuple[str, Callable[[str], int]] | None:
    """The vocabulary of all rows' models and what counts by it, where there is one at hand."""
    models = {spec.model} if rows.models is None else set(rows.models.unique().to_pylist())
    names = {vocabulary_of(model or "") for model in models}
    name = names.pop() if len(names) == 1 else None
    count = counter(name) if name is not None else None
    return None if name is None or count is None else (name, count)


def _counted(
    rows: Rows, sample: Sequence["_Sampled"], spec: Spec, count: Callable[[str], int]
) -> pa.DoubleArray:
    """Tokens of each row's messages, by those of a sample of the rows."""
    n_tokens = sum(count(one.text) for one in sample)
    if any(one.n_images for one in sample):
        per_row = pa.repeat(n_tokens / len(sample), len(rows))
    else:
        n_bytes = pc.binary_length(rows.prompts).cast(pa.float64())
        per_row = pc.multiply(n_bytes, n_tokens / max(1, sum(one.n_bytes for one in sample)))
    fixed = _per_row(sample, spec) + (count(spec.system) if spec.system else 0)
    return pc.add(per_row, fixed)


def counted_ratio(rows: Rows, spec: Spec) -> float | None:
    """Tokens that the models' vocabulary counts in prompts, for each that is guessed from bytes.

    In a sample of the rows. None where no vocabulary is at hand, or where the model reads more than
    messages of text.

    Args:
        rows: What they ask, with a prompt each.
        spec: What they share.
    """
    vocabulary = _vocabulary(rows, spec)
    rows = rows.take(_sample_places(len(rows)))
    sample = _sample(rows, spec)
    if (
        vocabulary is None
        or not sample
        or _beside(spec).others
        or any(one.n_images for one in sample)
    ):
        return None
    _, count = vocabulary
    guessed = pc.sum(row_keys(rows, spec).n_tokens).as_py()
    return float(pc.sum(_counted(rows, sample, spec, count)).as_py() / guessed)


def _down(values: pa.DoubleArray) -> pa.Int64Array:
    return pc.floor(values).cast(pa.int64())


def _up(values: pa.DoubleArray) -> pa.Int64Array:
    return pc.ceil(values).cast(pa.int64())


@dataclass(frozen=True, slots=True)
class _Sampled:
    """What the model reads of one prompt."""

    text: str
    n_messages: int
    n_images: int
    #: Size of the prompt as it stands among the rows.
    n_bytes: int


def _sample(rows: Rows, spec: Spec) -> list[_Sampled]:
    n_messages = 0 if spec.endpoint in {EMBEDDINGS, MODERATIONS, COMPLETIONS} else 1
    return [
        _Sampled(prompt, n_messages, 0, len(prompt.encode()))
        if isinstance(prompt, str)
        else _read(prompt)
        for prompt in rows.prompts.take(_sample_places(len(rows))).to_pylist()
    ]


def _sample_places(n: int) -> pa.Int64Array:
    """Places of a sample among n, in order."""
    places = range(n)
    if n > _SAMPLE_ROWS:
        places = sorted({int((place * _GOLDEN) % 1.0 * n) for place in range(_SAMPLE_ROWS)})  # type: ignore[assignment]
    return pa.array(places, pa.int64())


def _read(prompt: bytes) -> _Sampled:
    messages = msgspec.json.decode(prompt)
    texts, n_images = [], 0
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else [{"text": content}]:
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif isinstance(part, Mapping) and "image" in str(part.get("type")):
                n_images += 1
    return _Sampled("\n".join(texts), len(messages), n_images, len(prompt))


def _per_row(sample: Iterable[_Sampled], spec: Spec) -> float:
    """Tokens that the form of a chat adds to each row, in the mean."""
    counts = [one.n_messages for one in sample]
    if not any(counts):
        return 0.0
    n_messages = sum(counts) / len(counts) + (spec.system is not None)
    return _PER_PROMPT + _PER_MESSAGE * n_messages


@dataclass(frozen=True, slots=True)
class _Beside:
    """What the model reads beside each prompt: the system message; schemas and tools."""

    system: str
    others: str


def _beside(spec: Spec) -> _Beside:
    others = [spec.params[name] for name in _READ_BESIDE if name in spec.params]
    text = "".join(msgspec.json.encode(other).decode() for other in others)
    return _Beside(spec.system or "", text)
