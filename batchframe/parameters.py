"""What a call says by keywords -> values that fit, or a ParameterError before anything is sent."""

import copy
import json
import math
import re
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchframe.errors import ParameterError

if TYPE_CHECKING:
    from batchframe.core.spec import Spec
    from batchframe.core.structure import Structure

__all__ = [
    "HOME",
    "SHORTEST_POLL",
    "Column",
    "body_params",
    "check_client",
    "check_values",
    "checkpoint_path",
    "closest",
    "col",
    "extra_fields",
    "own_fields",
    "response_format",
    "sent_structure",
]

#: The shortest time between two looks at a batch, in seconds, and the longest: its window.
SHORTEST_POLL, _LONGEST_POLL = 0.01, 86_400
#: Dimensions that a vector may have: far beyond any model's (OpenAI's have 3,072, 2026-08).
_LONGEST_VECTOR = 65_536
#: Directory under the working directory in which checkpoints are found by their spec.
HOME = ".batchframe"
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


def checkpoint_path(checkpoint: str | Path | None, spec: "Spec") -> Path:
    """The directory that was named, or the one that is found by the spec."""
    return Path(checkpoint or Path(HOME, spec.fingerprint)).expanduser()


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
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seconds(value: object, least: float = 0, most: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _are_prices(value: object) -> bool:
    from batchframe.core.prices import Rates

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


#: Body fields that a call cannot set, and why.
_REFUSED = {
    "messages": "the messages are made of prompt_col and system",
    "input": "it is made of the frame's columns",
    "encoding_format": "vectors come back as 32-bit floats",
    "background": "a batch runs in the background anyway",
    "stream": "the Batch API cannot stream",
    "stream_options": "the Batch API cannot stream",
}


def _refused(endpoint: str) -> dict[str, str]:
    from batchframe.core.spec import COMPLETIONS

    # Elsewhere `prompt` is another thing, or none.
    more = {"prompt": _REFUSED["input"]} if endpoint == COMPLETIONS else {}
    return _REFUSED | more


def body_params(
    params: Mapping[str, Any], endpoint: str, *, function: str, keywords: Collection[str]
) -> dict[str, Any]:
    """The body fields beside model and messages that all rows share, as JSON values.

    Args:
        params: What the call was given beside its own keywords; those that stand in columns are
            checked by their names only.
        endpoint: Where the bodies go.
        function: The called function's name, for messages.
        keywords: Its own keywords, which a misspelt one may have meant.

    Raises:
        ParameterError: the API knows no such field, it cannot be set, or JSON cannot hold it.
    """
    from batchframe.client import PARAMETERS
    from batchframe.core.spec import json_value

    refused = _refused(endpoint)
    known = PARAMETERS[endpoint] - refused.keys()
    for name in params:
        if name in refused:
            raise ParameterError(f"{name}= cannot be set: {refused[name]}.")
        if name not in known:
            near = closest(name, {*keywords, *known})
            meant = f" Did you mean {near!r}?" if near else ""
            raise ParameterError(
                f"{function}() and {endpoint} know no keyword {name!r}.{meant} Nothing was sent."
            )
    if isinstance(params.get("n"), Column):
        raise ParameterError("n= cannot stand in a column: each row has one completion.")
    return {
        name: json_value(value, name)
        for name, value in params.items()
        if not isinstance(value, Column)
    }


#: Body fields that we read again, as the form and the limit of an answer: by no other endpoint's
#: name may they come in.
_READ_AGAIN = frozenset(
    {"response_format", "text", "max_completion_tokens", "max_output_tokens", "max_tokens"}
)


def extra_fields(extra_body: object, endpoint: str) -> dict[str, Any]:
    """The body fields that a provider knows and the SDK does not, as JSON values.

    The SDK lays its own `extra_body` over all else, without a word; here a field that has a keyword
    is refused, so that each has one place and none goes around a check.

    Args:
        extra_body: What the call was given; None is no field.
        endpoint: Where the bodies go.

    Raises:
        ParameterError: it is no mapping, a field has a keyword or is written by us, or JSON cannot
            hold it.
    """
    from batchframe.client import PARAMETERS
    from batchframe.core.spec import json_value

    if extra_body is None:
        return {}
    if not isinstance(extra_body, Mapping):
        raise ParameterError(
            f"extra_body={extra_body!r:.60} must be a dict of body fields, or None."
        )
    fields: dict[str, Any] = json_value(extra_body, "extra_body")
    refused = _refused(endpoint)
    for name in fields:
        if name in refused:
            raise ParameterError(f"extra_body.{name} cannot be set: {refused[name]}.")
        if name in PARAMETERS[endpoint]:
            raise ParameterError(
                f"extra_body.{name} is a field with a keyword: pass {name}=, which is checked. "
                "Nothing was sent."
            )
        if name in _READ_AGAIN:
            raise ParameterError(f"extra_body.{name} is no field of {endpoint}. Nothing was sent.")
    return fields


def response_format(value: object, endpoint: str) -> "tuple[dict[str, Any], Structure | None]":
    """A response format -> body fields, and what answers look like.

    Args:
        value: A pydantic model, a JSON schema of an object, or the API's own form: `{"type":
            "json_schema", ...}`, `{"type": "json_object"}` or `{"type": "text"}`. None sets none.
        endpoint: Where the bodies go: each has its own place for it.

    Returns:
        The body's field, if any; and the structure, None for text.

    Raises:
        ParameterError: it is none of these, or a schema that cannot be read.
    """
    if value is None:
        return {}, None
    from batchframe.core.spec import COMPLETIONS, RESPONSES

    if endpoint == COMPLETIONS:
        raise ParameterError(f"response_format= has no place in {endpoint}: it answers with text.")
    form, structure = _read_format(value)
    if endpoint == RESPONSES:
        # The same, with the schema's fields one level up.
        flat = {"type": form["type"], **form.get("json_schema", {})}
        return {"text": {"format": flat}}, structure
    return {"response_format": form}, structure


def sent_structure(body: Mapping[str, Any]) -> "Structure | None":
    """What answers look like by the fields of a body that was sent; None for text."""
    text = body.get("text")
    form = text.get("format") if isinstance(text, Mapping) else body.get("response_format")
    if not isinstance(form, Mapping) or form.get("type") in {None, "text"}:
        return None
    if form["type"] == "json_schema" and "json_schema" not in form:  # that of responses
        form = {"type": "json_schema", "json_schema": dict(form)}
    return _read_format(form)[1]


def _read_format(value: object) -> "tuple[dict[str, Any], Structure | None]":
    """A response format in the form of chat completions, and what answers look like."""
    from pydantic import BaseModel

    if isinstance(value, type) and issubclass(value, BaseModel):
        return _of_model(value)
    if not isinstance(value, Mapping):
        raise ParameterError(
            f"response_format={value!r:.60} must be a pydantic model, a JSON schema, or "
            "{'type': 'json_object'}."
        )
    from batchframe.core.spec import json_value
    from batchframe.core.structure import Structure

    plain = json_value(value, "response_format")
    match plain:
        case {"type": "text"}:
            return plain, None
        case {"type": "json_object"}:
            return plain, Structure(type=None, read=_json_object)
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return plain, _of_schema(schema)
        case {"properties": dict()} | {"$ref": str()} | {"type": "object"}:
            schema = _strict(plain)
            named = {"name": "answer", "schema": schema, "strict": True}
            form = {"type": "json_schema", "json_schema": named}
            return form, _of_schema(schema)
        case _:
            raise ParameterError(
                f"response_format={value!r:.60} is neither a JSON schema of an object nor one of "
                "the API's forms: {'type': 'json_object'}, {'type': 'json_schema', 'json_schema': "
                "{'name': ..., 'schema': {...}}}."
            )


def _of_model(model: Any) -> "tuple[dict[str, Any], Structure]":
    from openai.lib._parsing._completions import type_to_response_format_param
    from pydantic import ValidationError
    from pydantic.errors import PydanticUserError

    from batchframe.core.spec import json_value
    from batchframe.core.structure import Structure, struct_type

    try:
        form: Any = type_to_response_format_param(model)
    except (PydanticUserError, TypeError, ValueError) as error:
        raise ParameterError(f"response_format={model.__name__} has no schema: {error}") from None

    def read(text: str) -> Any:
        try:
            return model.model_validate_json(text).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None

    field = json_value(form, "response_format")
    schema = field["json_schema"]["schema"]
    return field, Structure(type=struct_type(schema), read=read)


def _of_schema(schema: Mapping[str, Any]) -> "Structure":
    import jsonschema_rs

    from batchframe.core.structure import Structure, struct_type

    def refuse(address: str) -> Any:  # a schema is data: nothing that it names is fetched
        raise ValueError(f"{address} is not part of the schema")

    try:
        validator = jsonschema_rs.validator_for(dict(schema), retriever=refuse)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        reason = str(error).partition("\n")[0]
        raise ParameterError(f"response_format has a schema that is none: {reason}.") from None

    def read(text: str) -> Any:
        value = json.loads(text)
        error = next(iter(validator.iter_errors(value)), None)
        if error is not None:
            place = ".".join(map(str, error.instance_path))
            raise ValueError(f"{place}: {error.message}" if place else error.message)
        return value

    return Structure(type=struct_type(schema), read=read)


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema by the SDK's rules for strict ones: all fields required, and no others."""
    from openai.lib._pydantic import _ensure_strict_json_schema

    copied = copy.deepcopy(schema)
    return _ensure_strict_json_schema(copied, path=(), root=copied)


def _json_object(text: str) -> Any:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was asked for, and this is {text!r:.40}")  # noqa: TRY004
    return value
