"""What a call says by keywords -> values that fit, or a ParameterError before anything is sent."""

import math
import re
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchframe.errors import ParameterError

if TYPE_CHECKING:
    pass

__all__ = [
    "SHORTEST_POLL",
    "Column",
    "check_client",
    "check_values",
    "closest",
    "col",
    "own_fields",
]

#: The shortest time between two looks at a batch, in seconds, and the longest: its window.
SHORTEST_POLL, _LONGEST_POLL = 0.01, 86_400
#: Dimensions that a vector may have: far beyond any model's (OpenAI's have 3,072, 2026-08).
_LONGEST_VECTOR = 65_536
#: The endpoints that answer prompts with text.
_ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/completions")
#: How alike two names must be for one to be proposed for the other, from 0 to 1.
_ALIKE = 0.6


@dataclass(frozen=True, slots=True)
class Column:
    """A column that holds each row's own value of a body field; made by `col`."""

    #: Its label.
    label: Hashable


def col(label: Hashable) -> Column:
    """A parameter that each row has its own value of: `max_completion_tokens=bf.col("n_max")`.

    Args:
        label: The column with the values: numbers, text, truth values, or lists of them. Where it
            is null the row's request leaves the parameter out. `model=bf.col(...)` takes text, and
            no nulls; the rows of each model go in batches of their own.

    Returns:
        The value for the keyword.

    Example:
        >>> import batchframe as bf, polars as pl
        >>> df = pl.DataFrame({"id": [1, 2], "prompt": ["one two", "one two"], "n": [4, None]})
        >>> with bf.emulator.LocalServer() as server:
        ...     out = df.openai_batch.complete(
        ...         "prompt",
        ...         "id",
        ...         model="gpt-4o-mini",
        ...         max_completion_tokens=bf.col("n"),
        ...         client=server.client(),
        ...         progress=False,
        ...     )
        >>> out["completion_status"].to_list()
        ['ok', 'ok']
    """
    return Column(label)


def own_fields(params: Mapping[str, Any], model: object = None) -> dict[str, Column]:
    """The fields whose values stand in columns, by their names; the model's among them."""
    return {
        name: value
        for name, value in {"model": model, **params}.items()
        if isinstance(value, Column)
    }


def closest(name: str, known: Collection[str]) -> str | None:
    """The known name that is most like `name`, or None."""
    near = get_close_matches(name, sorted(known), n=1, cutoff=_ALIKE)
    return near[0] if near else None


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_word(value: object) -> bool:
    return _is_text(value) and bool(str(value).strip())


def _is_path(value: object) -> bool:
    if not isinstance(value, str | Path) or not _is_word(str(value)) or "\0" in str(value):
        return False
    try:
        Path(value).expanduser()
    except RuntimeError:  # a home directory that is not known
        return False
    return True


def _is_count(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


def _is_seconds(value: object, least: float = 0, most: float = math.inf) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and least <= float(value) <= most


def _are_prices(value: object) -> bool:
    from batchframe.core.rates import Rates

    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(rates, Rates) for name, rates in value.items()
    )


def _is_dialect(value: object) -> bool:
    from batchframe.core.dialects import Dialect

    return value is None or isinstance(value, str | Dialect)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


#: What each keyword's value must be, in code and in words.
_VALUES: dict[str, tuple[Callable[[object], bool], str]] = {
    "batch_cooldown": (_is_seconds, "must be seconds from 0 upwards"),
    "batch_size": (
        lambda value: _is_count(value) and 1 <= value <= 50_000,  # type: ignore[operator]
        "must be a whole number from 1 to 50,000, as many requests as a batch can hold",
    ),
    "max_retry": (_is_count, "must be a whole number from 0 upwards"),
    "req_cooldown": (
        lambda value: _is_seconds(value, 0, _LONGEST_POLL),
        f"must be seconds from 0 to {_LONGEST_POLL:,}",
    ),
    "model": (_is_word, "must name a model, for example model='gpt-4o-mini'"),
    "system": (
        lambda value: value is None or _is_text(value),
        "must be text, without half characters (lone surrogates), or None",
    ),
    "dimensions": (
        lambda value: (
            value is None or (_is_count(value) and 1 <= value <= _LONGEST_VECTOR)  # type: ignore[operator]
        ),
        f"must be a whole number from 1 to {_LONGEST_VECTOR:,}, or None",
    ),
    "endpoint": (
        lambda value: isinstance(value, str) and value in _ENDPOINTS,
        f"must be one of {', '.join(map(repr, _ENDPOINTS))}",
    ),
    "template": (
        lambda value: value is None or _is_text(value),
        "must be text with column names in braces, without half characters, or None",
    ),
    "nulls": (
        lambda value: isinstance(value, str) and value in {"skip", "raise"},
        "must be 'skip' or 'raise'",
    ),
    "on_error": (
        lambda value: isinstance(value, str) and value in {"null", "raise"},
        "must be 'null' or 'raise'",
    ),
    "max_error_ratio": (
        lambda value: value is None or _is_seconds(value, 0, 1),
        "must be a part of the rows, from 0 to 1, or None",
    ),
    "output": (_is_word, "must be a word that names columns"),
    "checkpoint": (
        lambda value: value is None or _is_path(value),
        "must be the path of a directory, where ~ is a known home directory, or None",
    ),
    "target": (_is_path, "must be the path of a file"),
    "max_retries": (_is_count, "must be a whole number from 0 upwards"),
    "dedupe": (_is_flag, "must be True or False"),
    "digits": (
        lambda value: _is_count(value) and value <= 12,  # type: ignore[operator]
        "must be a whole number from 0 to 12",
    ),
    "max_cost_usd": (
        lambda value: (
            value is None or (_is_seconds(value) and 0 < value < math.inf)  # type: ignore[operator]
        ),
        "must be US dollars above 0, or None",
    ),
    "prices": (
        lambda value: value is None or _are_prices(value),
        "must be a dict of bf.Rates(input=..., output=...) by the names of models, or None",
    ),
    "dialect": (
        _is_dialect,  # that there is one of that name is seen where it is chosen
        "must be the name of a service, such as 'azure', a bf.Dialect, or None",
    ),
    "retry_failed": (_is_flag, "must be True or False"),
    "completion_window": (
        lambda value: isinstance(value, str) and re.fullmatch(r"\d+[hd]", value) is not None,
        "must be a window such as '24h'",
    ),
    "poll_interval": (
        lambda value: value is None or _is_seconds(value, SHORTEST_POLL, _LONGEST_POLL),
        f"must be seconds from {SHORTEST_POLL} to {_LONGEST_POLL:,}, or None",
    ),
    "timeout": (
        lambda value: value is None or _is_seconds(value),
        "must be seconds from 0 upwards, or None",
    ),
    "on_unknown": (
        lambda value: isinstance(value, str) and value in {"resend", "raise"},
        "must be 'resend' or 'raise'",
    ),
    "delete_remote": (_is_flag, "must be True or False"),
    "progress": (_is_flag, "must be True or False"),
    "details": (_is_flag, "must be True or False"),
}


def check_values(*, limits: object = None, **values: object) -> None:
    """Raise ParameterError for the first of the named values that does not fit."""
    from batchframe.core.shards import Limits

    for name, value in values.items():
        fits, words = _VALUES[name]
        if not fits(value):
            raise ParameterError(f"{name}={value!r:.60} {words}.")
    if limits is not None and not isinstance(limits, Limits):
        raise ParameterError(f"limits must be bf.Limits(...), not {type(limits).__name__}.")


def check_client(client: object) -> None:
    """Raise ParameterError unless it is None or a client of the SDK that waits."""
    if client is None:
        return
    import openai

    if isinstance(client, openai.AsyncOpenAI):
        raise ParameterError(
            f"client is an {type(client).__name__}, and this call waits: pass an openai.OpenAI or "
            "AzureOpenAI client."
        )
    if not isinstance(client, openai.OpenAI):
        # Its type only: it may well be the key.
        raise ParameterError(
            f"client must be an openai.OpenAI client, not {type(client).__name__}. An API key "
            "goes into OpenAI(api_key=...)."
        )
