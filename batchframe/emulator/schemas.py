"""A JSON schema and a text -> a value that fits: what the echo answers where a form is asked for.

The value is a function of both, so that a wrong join of rows cannot pass a test. The keywords are
those that strict schemas may have (OpenAI, Structured Outputs guide, 2026-08).
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["fitting"]

#: Texts of each format.
_FORMATS = {
    "date-time": "2026-01-31T12:30:00Z",
    "date": "2026-01-31",
    "time": "12:30:00Z",
    "duration": "P1D",
    "email": "somebody@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
#: How often a reference may lead back to itself before what it names is left out.
_DEPTH = 2


def fitting(schema: Mapping[str, Any], text: str) -> Any:
    """A value that fits the schema.

    Texts are `text` where the schema leaves them free, and numbers its length where it allows that.
    Patterns are not looked at.
    """
    return _value(schema, schema, text, ())


def _value(
    schema: Mapping[str, Any], root: Mapping[str, Any], text: str, seen: tuple[str, ...]
) -> Any:
    """A value for a part of the schema; `seen` are the references on the way to it."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][len(text) % len(schema["enum"])]
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _value(_resolved(reference, root), root, text, (*seen, reference))
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            options = sorted(schema[word], key=lambda option: option.get("type") == "null")
            return _value(options[-1 if _is_deep(seen) else 0], root, text, seen)
    match _kind(schema):
        case "object":
            properties = schema.get("properties", {})
            return {name: _value(part, root, text, seen) for name, part in properties.items()}
        case "array":
            wanted = 0 if _is_deep(seen) else min(1, schema.get("maxItems", 1))
            n_items = max(wanted, schema.get("minItems", 0))
            return [_value(schema.get("items", {}), root, text, seen) for _ in range(n_items)]
        case kind:
            return _scalar(kind, schema, text)


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "null")
    if isinstance(kind, list):
        return next((name for name in kind if name != "null"), "null")
    return str(kind)


def _is_deep(seen: tuple[str, ...]) -> bool:
    return any(seen.count(reference) >= _DEPTH for reference in seen)


def _scalar(kind: str, schema: Mapping[str, Any], text: str) -> Any:
    match kind:
        case "string":
            return _FORMATS.get(schema.get("format", ""), text)
        case "integer":
            return int(_number(schema, len(text), 1))
        case "number":
            return _number(schema, len(text) + 0.5, 0.5)
        case "boolean":
            return len(text) % 2 == 0
        case _:
            return None


def _number(schema: Mapping[str, Any], wanted: float, step: float) -> float:
    """The number nearest to `wanted` that the schema allows."""
    low = max(
        schema.get("minimum", -float("inf")), schema.get("exclusiveMinimum", -float("inf")) + step
    )
    high = min(
        schema.get("maximum", float("inf")), schema.get("exclusiveMaximum", float("inf")) - step
    )
    number: float = max(low, min(high, wanted))
    multiple: float | None = schema.get("multipleOf")
    if not multiple:
        return number
    below: float = number // multiple * multiple
    return below if below >= low else below + multiple


def _resolved(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    place = root
    for key in reference.removeprefix("#").strip("/").split("/"):
        place = place.get(key.replace("~1", "/").replace("~0", "~"), {}) if key else place
    return place
