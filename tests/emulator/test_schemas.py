"""The echo answers in the form that is asked for."""

import json

import jsonschema_rs
import pytest

from batchframe.emulator import Echo

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "others": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name", "left", "others"],
        }
    },
}


def of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


@pytest.mark.parametrize(
    "schema",
    [
        of(
            a={"type": "string"}, b={"type": "integer"}, c={"type": "number"}, d={"type": "boolean"}
        ),
        of(a={"type": ["string", "null"]}, b={"type": "null"}, c={"const": 7}),
        of(a={"enum": ["x", "y", "z"]}, b={"type": "array", "items": {"type": "integer"}}),
        of(a={"type": "array", "items": {"type": "boolean"}, "minItems": 3}),
        of(a={"type": "array", "items": {"type": "boolean"}, "maxItems": 0}),
        of(a={"type": "integer", "minimum": 100}, b={"type": "integer", "exclusiveMaximum": 3}),
        of(a={"type": "number", "maximum": 1, "exclusiveMinimum": 0}),
        of(
            a={"type": "integer", "multipleOf": 7, "minimum": 8},
            b={"type": "integer", "multipleOf": 5},
        ),
        of(a=of(b=of(c={"type": "string", "format": "date-time"}))),
        of(a={"type": "string", "format": "uuid"}, b={"type": "string", "format": "email"}),
        TREE,
        of(a={"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}),
        of(a={"type": "array", "items": {"type": "integer"}, "minItems": 3, "uniqueItems": True}),
        of(a={"type": "string", "minLength": 5, "maxLength": 7}),
        of(a={"allOf": [of(b={"type": "string"}), of(c={"type": "integer"})]}),
        of(a={"anyOf": [{"required": ["b"]}], **of(b={"type": "string"})}),
        of(a={"oneOf": [of(kind={"const": "x"}), of(kind={"const": "y"})]}),
        of(a=True, b={"properties": {"c": {"type": "string"}}, "required": ["c"]}),
    ],
)
@pytest.mark.parametrize("text", ["", "a text", "x" * 40])
def test_an_answer_fits_its_schema(schema, text):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    messages = [{"role": "user", "content": text}]
    _, chat = Echo().answer({"model": "m", "messages": messages, "response_format": form})
    flat = {"type": "json_schema", "name": "n", "schema": schema}
    body = {"model": "m", "input": messages, "text": {"format": flat}}
    _, response = Echo().answer(body, "/v1/responses")

    content = chat["choices"][0]["message"]["content"]
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(content))
    assert response["output"][0]["content"][0]["text"] == content
    assert len(content) < 5000


def test_it_tells_rows_apart():
    schema = of(word={"type": "string"}, length={"type": "integer"})
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}

    def answer(text):
        messages = [{"role": "user", "content": text}]
        _, chat = Echo().answer({"messages": messages, "response_format": form})
        return json.loads(chat["choices"][0]["message"]["content"])

    assert answer("a") == {"word": "echo: a", "length": 7}
    assert answer("abc") == {"word": "echo: abc", "length": 9}


def test_any_object_will_do_where_no_schema_is_given():
    body = {
        "messages": [{"role": "user", "content": "a\n"}],
        "response_format": {"type": "json_object"},
    }
    _, chat = Echo().answer(body)
    assert json.loads(chat["choices"][0]["message"]["content"]) == {"echo": "a\n"}
