"""A response format -> the field of a body that asks for it, and what answers look like then.

What a checkpoint's bodies ask for is read again by the same rules, so that answers mean the same
without the call that sent them.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any

from openai.lib._parsing._completions import type_to_response_format_param
from openai.lib._pydantic import _ensure_strict_json_schema
from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticUserError

from batchframe.core.spec import COMPLETIONS, RESPONSES, json_value
from batchframe.core.structure import Structure, struct_type
from batchframe.errors import ParameterError

__all__ = ["response_format", "sent_structure"]


def response_format(value: object, endpoint: str) -> tuple[dict[str, Any], Structure | None]:
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
    if endpoint == COMPLETIONS:
        raise ParameterError(f"response_format= has no place in {endpoint}: it answers with text.")
    form, structure = _read_format(value)
    if endpoint == RESPONSES:
        # The same, with the schema's fields one level up.
        flat = {"type": form["type"], **form.get("json_schema", {})}
        return {"text": {"format": flat}}, structure
    return {"response_format": form}, structure


def sent_structure(body: Mapping[str, Any]) -> Structure | None:
    """What answers look like by the fields of a body that was sent; None for text."""
    text = body.get("text")
    form = text.get("format") if isinstance(text, Mapping) else body.get("response_format")
    if not isinstance(form, Mapping) or form.get("type") in {None, "text"}:
        return None
    if form["type"] == "json_schema" and "json_schema" not in form:  # that of responses
        form = {"type": "json_schema", "json_schema": dict(form)}
    return _read_format(form)[1]


def _read_format(value: object) -> tuple[dict[str, Any], Structure | None]:
    """A response format in the form of chat completions, and what answers look like."""
    if isinstance(value, type) and issubclass(value, BaseModel):
        return _of_model(value)
    if not isinstance(value, Mapping):
        raise ParameterError(
            f"response_format={value!r:.60} must be a pydantic model, a JSON schema, or "
            "{'type': 'json_object'}."
        )
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


def _of_model(model: Any) -> tuple[dict[str, Any], Structure]:
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


def _of_schema(schema: Mapping[str, Any]) -> Structure:
    import jsonschema_rs

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
    copied = copy.deepcopy(schema)
    return _ensure_strict_json_schema(copied, path=(), root=copied)


def _json_object(text: str) -> Any:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was asked for, and this is {text!r:.40}")  # noqa: TRY004
    return value
