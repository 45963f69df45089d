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
    The items of an array differ. Patterns are not looked at.
    """
    return _value(schema, schema, text, ())


def _value(schema: Any, root: Mapping[str, Any], text: str, seen: tuple[str, ...]) -> Any:
    """A value for a part of the schema; `seen` are the references on the way to it."""
    if not isinstance(schema, Mapping):  # true: anything will do
        return text
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][len(text) % len(schema["enum"])]
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _value(_resolved(reference, root), root, text, (*seen, reference))
    chosen = _chosen(schema, root, seen)
    if chosen is not schema:
        return _value(chosen, root, text, seen)
    match _kind(schema):
        case "object":
            properties = schema.get("properties", {})
            return {name: _value(part, root, text, seen) for name, part in properties.items()}
        case "array":
            return _items(schema, root, text, seen)
        case kind:
            return _scalar(kind, schema, text)


def _chosen(schema: Mapping[str, Any], root: Mapping[str, Any], seen: tuple[str, ...]) -> Any:
    """One schema in the place of the first combination of several; itself, if there is none."""
    if schema.get("allOf"):
        parts = [_followed(part, root) for part in schema["allOf"]]
        return _merged(_without(schema, "allOf"), *parts)
    for word in ("anyOf", "oneOf"):
        if schema.get(word):
            options = sorted(schema[word], key=_is_null)
            option = options[-1 if _is_deep(seen) else 0]
            rest = _without(schema, word)
            # Only what says something by itself is merged: a reference is to be seen as one.
            is_alone = rest.keys().isdisjoint({"type", "properties"})
            return option if is_alone else _merged(rest, _followed(option, root))
    return schema


def _items(
    schema: Mapping[str, Any], root: Mapping[str, Any], text: str, seen: tuple[str, ...]
) -> list[Any]:
    first = schema.get("prefixItems", [])
    wanted = 0 if _is_deep(seen) else min(1, schema.get("maxItems", 1))
    n_items = max(wanted, len(first), schema.get("minItems", 0))
    parts = [*first, *(schema.get("items", {}) for _ in range(len(first), n_items))]
    return [_value(part, root, text + "." * i, seen) for i, part in enumerate(parts)]


def _is_null(option: Any) -> bool:
    return isinstance(option, Mapping) and option.get("type") == "null"


def _without(schema: Mapping[str, Any], word: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != word}


def _followed(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference names."""
    reference = schema.get("$ref")
    return _resolved(reference, root) if isinstance(reference, str) else schema


def _merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """One schema in the place of several that hold together."""
    merged: dict[str, Any] = {}
    for part in parts:
        properties = {**merged.get("properties", {}), **part.get("properties", {})}
        merged |= part
        if properties:
            merged["properties"] = properties
    return merged


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type", "object" if "properties" in schema else "null")
    if isinstance(kind, list):
        return next((name for name in kind if name != "null"), "null")
    return str(kind)


def _is_deep(seen: tuple[str, ...]) -> bool:
    return any(seen.count(reference) >= _DEPTH for reference in seen)


def _scalar(kind: str, schema: Mapping[str, Any], text: str) -> Any:
    match kind:
        case "string":
            shown = _FORMATS.get(schema.get("format", ""), text)
            return shown.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength")]
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
