"""Rows -> the tokens of their prompts, as far as they are known: from the least to the most.

They are known best from the usage of rows of the same checkpoint; else they are counted in a sample
of rows, by the model's own vocabulary, and scaled by bytes; else they are bounded by their bytes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.bounds import MEDIA
from batchframe.core.requests import Rows, row_keys
from batchframe.core.spec import COMPLETIONS, EMBEDDINGS, MODERATIONS, Spec
from batchframe.core.tokens import counter, vocabulary_of

__all__ = ["counted_ratio", "prompt_tokens"]

#: Rows that are counted by a vocabulary.
_SAMPLE_ROWS = 1_000
#: The most bytes per token (o200k_base over English 4.8, Russian 5.7, Hindi and Thai up to 7;
#: measured 2026-11). The fewest are 1, as in "1 2 3": no vocabulary of bytes has less.
_MOST_BYTES = 8.0
#: How far the other two ways may be off, as a part of the number of tokens.
_DOUBT = 0.1
#: Tokens that the chat format adds to each message and to each prompt (OpenAI cookbook, "How to
#: count tokens with tiktoken", 2026-08).
_PER_MESSAGE, _PER_PROMPT = 4, 3
#: Fields of a body that the model reads beside the prompt.
_READ_BESIDE = ("tools", "response_format", "text", "functions", "instructions", "suffix")
#: Steps of the golden ratio visit rows evenly, and in no rhythm that a frame could have.
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class _Sampled:
    """What the model reads of one prompt."""

    text: str
    n_messages: int
    #: What else it reads, in words.
    uncounted: frozenset[str]
    #: Size of the prompt as it stands among the rows.
    n_bytes: int


def prompt_tokens(
    rows: Rows, guessed: pa.Int64Array, spec: Spec, ratio: float | None
) -> tuple[pa.Int64Array, pa.Int64Array, str]:
    """The least and the most tokens of each row's prompt, and how they were counted, in words.

    Args:
        rows: What they ask; none without a prompt.
        guessed: Tokens of each row's request as they are guessed from its bytes.
        spec: What all rows share.
        ratio: Tokens of prompts that were answered, for each that was guessed; None: not known.
    """
    if ratio is not None:
        mean = pc.multiply(guessed.cast(pa.float64()), ratio)
        low, high = pc.multiply(mean, 1 - _DOUBT), pc.multiply(mean, 1 + _DOUBT)
        return _down(low), _up(high), "as the rows so far had"
    sample = _sample(rows, spec)
    vocabulary = _vocabulary(rows, spec)
    if vocabulary is not None:
        name, count = vocabulary
        mean = _counted(rows, sample, spec, count)
        low = pc.multiply(mean, 1 - _DOUBT)
        high = pc.multiply(pc.add(mean, _beside(rows, spec, count)), 1 + _DOUBT)
        words = f"{len(sample):,} {'row' if len(sample) == 1 else 'rows'} counted by {name}"
    else:
        text = sum(_n_bytes(one.text) for one in sample) / max(
            1, sum(one.n_bytes for one in sample)
        )
        text_bytes = pc.multiply(pc.binary_length(rows.prompts).cast(pa.float64()), text)
        fixed = _per_row(sample, spec)
        system = len((spec.system or "").encode())
        low = pc.add(pc.divide(text_bytes, _MOST_BYTES), fixed + system / _MOST_BYTES)
        high = pc.add(pc.add(text_bytes, fixed + system), _beside(rows, spec, _n_bytes))
        words = "bounded by bytes"
    uncounted = sorted(frozenset().union(*(one.uncounted for one in sample)))
    if uncounted:
        words += f", {' and '.join(uncounted)} not counted"
    return _down(low), _up(high), words


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
        or pc.any(pc.greater(_beside(rows, spec, _n_bytes), 0)).as_py()
        or any(one.uncounted for one in sample)
    ):
        return None
    _, count = vocabulary
    guessed = pc.sum(row_keys(rows, spec).n_tokens).as_py()
    return float(pc.sum(_counted(rows, sample, spec, count)).as_py() / guessed)


def _vocabulary(rows: Rows, spec: Spec) -> tuple[str, Callable[[str], int]] | None:
    """The vocabulary of all rows' models and what counts by it, where there is one at hand."""
    models = {spec.model} if rows.models is None else set(rows.models.unique().to_pylist())
    names = {vocabulary_of(model or "") for model in models}
    name = names.pop() if len(names) == 1 else None
    count = counter(name) if name is not None else None
    return None if name is None or count is None else (name, count)


def _counted(
    rows: Rows, sample: Sequence[_Sampled], spec: Spec, count: Callable[[str], int]
) -> pa.DoubleArray:
    """Tokens of each row's messages, by those of a sample of the rows."""
    n_tokens = sum(count(one.text) for one in sample)
    if any(one.uncounted for one in sample):
        per_row = pa.repeat(n_tokens / len(sample), len(rows))
    else:
        n_bytes = pc.binary_length(rows.prompts).cast(pa.float64())
        per_row = pc.multiply(n_bytes, n_tokens / max(1, sum(one.n_bytes for one in sample)))
    fixed = _per_row(sample, spec) + (count(spec.system) if spec.system else 0)
    return pc.add(per_row, fixed)


def _down(values: pa.DoubleArray) -> pa.Int64Array:
    return pc.floor(values).cast(pa.int64())


def _up(values: pa.DoubleArray) -> pa.Int64Array:
    return pc.ceil(values).cast(pa.int64())


def _sample(rows: Rows, spec: Spec) -> list[_Sampled]:
    n_messages = 0 if spec.endpoint in {EMBEDDINGS, MODERATIONS, COMPLETIONS} else 1
    return [
        _Sampled(prompt, n_messages, frozenset(), _n_bytes(prompt))
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
    texts, uncounted = [], set()
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else [{"text": content}]:
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif isinstance(part, Mapping) and part.get("type") in MEDIA:
                uncounted.add(MEDIA[part["type"]])
        # Names, and the calls that the model made.
        more = {name: value for name, value in message.items() if name not in {"role", "content"}}
        texts += [msgspec.json.encode(more).decode()] if more else []
    return _Sampled("\n".join(texts), len(messages), frozenset(uncounted), len(prompt))


def _per_row(sample: Iterable[_Sampled], spec: Spec) -> float:
    """Tokens that the form of a chat adds to each row, in the mean."""
    counts = [one.n_messages for one in sample]
    if not any(counts):
        return 0.0
    n_messages = sum(counts) / len(counts) + (spec.system is not None)
    return _PER_PROMPT + _PER_MESSAGE * n_messages


def _beside(rows: Rows, spec: Spec, count: Callable[[str], int]) -> pa.DoubleArray:
    """Tokens that the model reads in the fields of each row's body, by those of a sample."""
    shared = pa.repeat(float(count(_text_beside(spec.params))), len(rows))
    if rows.fields is None:
        return shared
    sample = rows.fields.take(_sample_places(len(rows))).drop_null().to_pylist()
    n_tokens = sum(count(_text_beside(msgspec.json.decode(fields))) for fields in sample)
    n_bytes = pc.fill_null(pc.binary_length(rows.fields), 0).cast(pa.float64())
    return pc.add(shared, pc.multiply(n_bytes, n_tokens / max(1, sum(map(len, sample)))))


def _text_beside(fields: Mapping[str, Any]) -> str:
    others = [fields[name] for name in _READ_BESIDE if name in fields]
    return "".join(msgspec.json.encode(other).decode() for other in others)


def _n_bytes(text: str) -> int:
    return len(text.encode())
