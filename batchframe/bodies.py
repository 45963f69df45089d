"""What a call says of its bodies -> the fields that all rows share, as JSON, or a ParameterError.

Nothing goes into a body that nobody meant: a field is one that the SDK has for the endpoint, or one
that `extra_body` brings, which has no keyword. No field has two places.
"""

from collections.abc import Collection, Mapping
from typing import Any

from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.completion_create_params import CompletionCreateParamsBase as LegacyParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.moderation_create_params import ModerationCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from batchframe.core.spec import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    MODERATIONS,
    RESPONSES,
    json_value,
)
from batchframe.errors import ParameterError
from batchframe.parameters import Column, closest

__all__ = ["PARAMETERS", "body_params", "extra_fields"]

#: Body fields of each endpoint that the SDK knows.
PARAMETERS = {
    CHAT_COMPLETIONS: frozenset(CompletionCreateParamsBase.__annotations__),
    RESPONSES: frozenset(ResponseCreateParamsBase.__annotations__),
    EMBEDDINGS: frozenset(EmbeddingCreateParams.__annotations__),
    COMPLETIONS: frozenset(LegacyParams.__annotations__),
    MODERATIONS: frozenset(ModerationCreateParams.__annotations__),
}
#: Body fields that a call cannot set, and why.
_REFUSED = {
    "messages": "the messages are made of prompt_col and system",
    "input": "it is made of the frame's columns",
    "encoding_format": "vectors come back as 32-bit floats",
    "background": "a batch runs in the background anyway",
    "stream": "the Batch API cannot stream",
    "stream_options": "the Batch API cannot stream",
}
#: Body fields that no row has a value of its own of, and why.
_SHARED = {
    "n": "each row has one completion",
    "best_of": "what a row may cost is known by what all rows share",
}
#: Body fields that we read again, as the form and the limit of an answer: by no other endpoint's
#: name may they come in.
_READ_AGAIN = frozenset(
    {"response_format", "text", "max_completion_tokens", "max_output_tokens", "max_tokens"}
)


def _refused(endpoint: str) -> dict[str, str]:
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
    for name, why in _SHARED.items():
        if isinstance(params.get(name), Column):
            raise ParameterError(f"{name}= cannot stand in a column: {why}.")
    return {
        name: json_value(value, name)
        for name, value in params.items()
        if not isinstance(value, Column)
    }


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
