"""A JSON schema -> the Arrow type that answers have, and answers' texts -> values of that type.

The type follows from the schema alone, never from the answers: a column without a single fitting
answer has it as well. What Arrow has no type for (several types in one field, objects with free
keys, recursion) becomes JSON text, so that nothing that was answered is lost.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from batchframe.errors import ParameterError

__all__ = ["Structure", "read_texts", "struct_type"]

#: Marks a text field that holds the JSON of whatever stood there.
_AS_JSON = {"json": "yes"}
#: What a JSON schema calls its types, where Arrow has one for them.
_SCALARS = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
#: Texts of a format that Arrow has a type for.
_FORMATS = {"date": pa.date32(), "date-time": pa.timestamp("us", "UTC")}
_INT64 = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What the answers of a call look like."""

    #: The type of each answer; None where all that is known is that it is a JSON object.
    type: pa.StructType | None
    #: A text -> its JSON value; raises ValueError with the reason if it does not fit.
    read: Callable[[str], Any]


def struct_type(schema: Mapping[str, Any]) -> pa.StructType:
    """The Arrow type of a JSON schema whose root is an object.

    Raises ParameterError if the root is anything else: a row's answer has fields.
    """
    field = _field("", schema, schema, ())
    if not pa.types.is_struct(field.type):
        raise ParameterError(
            "response_format needs a schema whose root is an object with properties; for a list, "
            "give the object one property that holds it."
        )
    return field.type


def _field(
    name: str, schema: Mapping[str, Any], root: Mapping[str, Any], seen: tuple[str, ...]
) -> pa.Field:
    """One property -> the field that holds it; `seen` are the references on the way to it."""
    as_json = pa.field(name, pa.string(), metadata=_AS_JSON)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        if reference in seen:
            return as_json
        return _field(name, _resolved(reference, root), root, (*seen, reference))
    kinds = schema.get("type")
    if isinstance(kinds, list):  # ["string", "null"]
        rest = [kind for kind in kinds if kind != "null"]
        return _field(name, {**schema, "type": rest[0]}, root, seen) if len(rest) == 1 else as_json
    for word in ("anyOf", "oneOf", "allOf"):
        options = [option for option in schema.get(word, ()) if option.get("type") != "null"]
        if options:
            return _field(name, options[0], root, seen) if len(options) == 1 else as_json
    match kinds:
        case "object" if schema.get("properties"):
            fields = [_field(key, value, root, seen) for key, value in schema["properties"].items()]
            return pa.field(name, pa.struct(fields))
        case "array" if isinstance(schema.get("items"), Mapping):
            return pa.field(name, pa.list_(_field("item", schema["items"], root, seen)))
        case "string" if schema.get("format") in _FORMATS:
            return pa.field(name, _FORMATS[schema["format"]])
        case str() if kinds in _SCALARS:
            return pa.field(name, _SCALARS[kinds])
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    is_text = values and all(isinstance(value, str | None) for value in values)
    return pa.field(name, pa.string()) if is_text else as_json


def _resolved(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    place: Any = root
    for key in reference.removeprefix("#").strip("/").split("/"):
        if key:
            place = place.get(key.replace("~1", "/").replace("~0", "~"), {})
    return place if isinstance(place, Mapping) else {}


def read_texts(
    texts: Iterable[str | None], structure: Structure
) -> tuple[pa.StructArray | None, list[str | None]]:
    """Answers -> their values and, for each that does not fit, the reason; one entry per text.

    The values are null for null texts and for those that do not fit; None if they have no type.
    """
    values: list[Any] = []
    reasons: list[str | None] = []
    field = None if structure.type is None else pa.field("", structure.type)
    for text in texts:
        value = reason = None
        if text is not None:
            try:
                value = structure.read(text)
                if field is not None:
                    value = _fitted(value, field)
            except Exception as error:  # noqa: BLE001 - a model's own validators may raise anything
                value, reason = None, str(error) or type(error).__name__
        values.append(value)
        reasons.append(reason)
    if field is None:
        return None, reasons
    try:
        return pa.array(values, field.type), reasons
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        # What Arrow cannot hold costs its own row only: half a character, a model's own serializer.
        for row, value in enumerate(values):
            reason = _misfit(value, field.type)
            if reason is not None:
                values[row], reasons[row] = None, reason
        return pa.array(values, field.type), reasons


def _misfit(value: Any, kind: pa.DataType) -> str | None:
    """Why Arrow cannot hold a value, or None."""
    try:
        pa.scalar(value, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        return str(error)
    return None


def _fitted(value: Any, field: pa.Field) -> Any:
    """A JSON value as Arrow takes it; raises ValueError where Arrow cannot hold it."""
    if value is None:
        return None
    if field.metadata:
        return json.dumps(value, ensure_ascii=False)
    kind = field.type
    if pa.types.is_struct(kind):
        return {part.name: _fitted(value.get(part.name), part) for part in kind}
    if pa.types.is_list(kind):
        return [_fitted(item, kind.value_field) for item in value]
    if pa.types.is_date(kind):
        return date.fromisoformat(value)
    if pa.types.is_timestamp(kind):
        instant = datetime.fromisoformat(value)
        # Without a zone it is taken for UTC, as RFC 3339 has none without one.
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant
    if pa.types.is_integer(kind):
        number = int(value)  # 1.0 is an integer to a JSON schema
        if not -_INT64 <= number < _INT64:
            message = f"{field.name}: {number} has more than 64 bits"
            raise ValueError(message)
        return number
    return float(value) if pa.types.is_floating(kind) else value
