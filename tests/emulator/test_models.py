import base64
import json
import struct
import sys

import jsonschema_rs
import openai.types.chat
import pytest

from batchframe.emulator import CallableModel, Echo, SmolLM2
from batchframe.emulator.models import resolve_model
from batchframe.emulator.tokens import count_tokens
from batchframe.errors import MissingDependencyError


def _body(*messages, **fields):
    return {"model": "gpt-4o-mini", "messages": list(messages), **fields}


def _user(content):
    return {"role": "user", "content": content}


def test_the_echo_answers_responses_as_well():
    status, answer = Echo().answer(
        {"model": "gpt-4o-mini", "input": "one two", "instructions": "Be brief."}, "/v1/responses"
    )

    assert status == 200
    assert (answer["object"], answer["status"]) == ("response", "completed")
    assert answer["output"][0]["content"][0]["text"] == "echo: one two"
    # 3 for the prompt; two messages of 4 and of 3 and 2 tokens; "echo", ":", "one" and "two".
    assert answer["usage"]["input_tokens"] == 3 + (4 + 3) + (4 + 2)
    assert answer["usage"]["output_tokens"] == 4

    _, cut = Echo().answer({"input": [_user("one two")], "max_output_tokens": 3}, "/v1/responses")
    assert cut["output"][0]["content"][0]["text"] == "echo: one "
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}

    assert Echo().answer({"prompt": "x"}, "/v1/images/generations")[0] == 404


def test_the_echo_flags_the_categories_that_a_text_names():
    _, answer = Echo().answer({"input": ["a walk", "hate/threatening"]}, "/v1/moderations")
    mild, harsh = answer["results"]
    assert mild["flagged"] is False
    assert harsh["flagged"] is True
    assert [name for name, flag in harsh["categories"].items() if flag] == [
        "hate",
        "hate/threatening",
    ]
    answer["model"] = "omni-moderation-latest"
    assert openai.types.ModerationCreateResponse.model_validate(answer).results[1].flagged
    assert Echo().answer({"input": []}, "/v1/moderations")[0] == 400


def test_the_echo_embeds_a_text_by_its_hash():
    _, one = Echo().answer({"input": ["a", "b"], "dimensions": 3}, "/v1/embeddings")
    _, same = Echo().answer({"input": "a", "dimensions": 3}, "/v1/embeddings")
    first, second = (item["embedding"] for item in one["data"])
    assert first == same["data"][0]["embedding"] != second
    assert sum(value**2 for value in first) == pytest.approx(1)
    assert one["usage"] == {"prompt_tokens": 2, "total_tokens": 2}

    asked = {"input": "a", "dimensions": 3, "encoding_format": "base64"}
    _, packed = Echo().answer(asked, "/v1/embeddings")
    assert struct.unpack("<3f", base64.b64decode(packed["data"][0]["embedding"])) == pytest.approx(
        first
    )
    assert len(Echo().answer({"input": "a"}, "/v1/embeddings")[1]["data"][0]["embedding"]) == 1536
    assert Echo().answer({"input": [1]}, "/v1/embeddings")[0] == 400


def test_echo_answers_with_the_last_user_message():
    system = {"role": "system", "content": "Be brief."}
    status, answer = Echo().answer(_body(system, _user("one"), _user("two")))
    completion = openai.types.chat.ChatCompletion.model_validate(answer, strict=True)

    assert status == 200
    assert completion.choices[0].message.content == "echo: two"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "gpt-4o-mini"


def test_echo_joins_the_text_of_parts():
    parts = [
        {"type": "text", "text": "a "},
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "text", "text": "b"},
    ]
    _, answer = Echo().answer(_body(_user(parts)))

    assert answer["choices"][0]["message"]["content"] == "echo: a b"


def test_echo_is_a_function_of_the_request():
    assert Echo().answer(_body(_user("one"))) == Echo().answer(_body(_user("one")))
    assert Echo().answer(_body(_user("one"))) != Echo().answer(_body(_user("two")))


def test_echo_counts_tokens():
    # echo : a long|er|... words of at most six letters are one token
    assert count_tokens("echo: a longer explanation") == 1 + 1 + 1 + 1 + 2
    _, answer = Echo().answer(_body(_user("a longer explanation")))

    assert answer["usage"]["prompt_tokens"] == 3 + 4 + 4
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["total_tokens"] == 17


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_echo_stops_at_the_limit_of_tokens(name):
    _, answer = Echo().answer(_body(_user("one two three"), **{name: 3}))

    assert answer["choices"][0]["message"]["content"] == "echo: one "
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


def test_echo_refuses_a_request_without_messages():
    status, answer = Echo().answer({"model": "gpt-4o-mini"})

    assert (status, answer["error"]["param"]) == (400, "messages")


def test_a_function_is_a_model():
    model = resolve_model(lambda body: (200, {"asked": body}))

    assert isinstance(model, CallableModel)
    assert model.answer({"a": 1}) == (200, {"asked": {"a": 1}})


def test_a_function_may_give_the_text_alone():
    model = resolve_model(lambda body: "a short answer")
    status, answer = model.answer(_body(_user("a longer explanation"), max_completion_tokens=2))

    assert (status, answer["model"]) == (200, "gpt-4o-mini")
    assert answer["choices"][0]["message"]["content"] == "a short "
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == 3 + 4 + 4
    assert answer["usage"]["completion_tokens"] == 2


def test_the_text_of_a_function_is_an_answer_of_every_endpoint_for_text():
    model = resolve_model(lambda body: "yes")
    _, response = model.answer({"model": "gpt-4o-mini", "input": "so?"}, "/v1/responses")
    _, completion = model.answer({"model": "gpt-4o-mini", "prompt": "so?"}, "/v1/completions")

    assert response["output"][0]["content"][0]["text"] == "yes"
    assert completion["choices"][0]["text"] == "yes"


def test_an_unknown_model_is_refused_by_name():
    with pytest.raises(ValueError, match="'ecko'"):
        resolve_model("ecko")


def test_a_missing_engine_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)

    with pytest.raises(MissingDependencyError, match=r"openai-batchframe\[demo\]"):
        SmolLM2()


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("xllamacpp")
    try:
        return SmolLM2()
    except MissingDependencyError:
        pytest.skip("the weights are not installed")


def test_smollm2_answers_with_real_usage(smollm2):
    status, answer = smollm2.answer(_body(_user("Say hi."), max_tokens=8, temperature=0))
    completion = openai.types.chat.ChatCompletion.model_validate(answer, strict=True)

    assert status == 200
    assert completion.choices[0].message.content
    assert completion.model == "gpt-4o-mini"
    assert 0 < completion.usage.completion_tokens <= 8
    assert completion.usage.prompt_tokens > 3


def test_smollm2_refuses_a_prompt_that_is_too_long(smollm2):
    status, answer = smollm2.answer(_body(_user("word " * 4000)))

    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_smollm2_refuses_parameters_that_do_not_fit(smollm2):
    assert smollm2.answer(_body(_user("hi"), temperature="hot"))[0] == 400
    assert smollm2.answer({"model": "x"})[0] == 400


def test_smollm2_is_quiet(smollm2, capfd):
    smollm2.answer(_body(_user("hi"), max_tokens=2))

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("field", ["tags", "at", "inner"])
def test_smollm2_keeps_to_a_schema(smollm2, field):
    point = {
        "type": "object",
        "properties": {"kind": {"const": "point"}, "is_here": {"type": "boolean"}},
        "required": ["kind", "is_here"],
        "additionalProperties": False,
    }
    fields = {
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 2},
        "at": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]},
        "inner": {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["n"],
            "additionalProperties": False,
        },
    }
    schema = {
        "$defs": {"point": point},
        "type": "object",
        "properties": {field: fields[field]},
        "required": [field],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    body = _body(_user("Describe it."), response_format=form, max_tokens=80, temperature=0)
    status, answer = smollm2.answer(body)

    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "stop"
    content = answer["choices"][0]["message"]["content"]
    jsonschema_rs.validator_for(schema).validate(json.loads(content))


def test_smollm2_embeds_what_is_alike_alike(smollm2):
    texts = ["a cat sat on the mat", "a kitten rests on a rug", "stock markets fell sharply"]
    status, answer = smollm2.answer({"model": "m", "input": texts}, "/v1/embeddings")
    cat, kitten, stocks = (item["embedding"] for item in answer["data"])

    def likeness(one, other):
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert (status, len(cat), likeness(cat, cat)) == (200, 576, pytest.approx(1))
    assert likeness(cat, kitten) > likeness(cat, stocks)
    assert 3 < answer["usage"]["prompt_tokens"] < 30

    asked = {"model": "m", "input": texts[0], "dimensions": 8, "encoding_format": "base64"}
    _, short = smollm2.answer(asked, "/v1/embeddings")
    vector = struct.unpack("<8f", base64.b64decode(short["data"][0]["embedding"]))
    assert likeness(vector, vector) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"input": "word " * 4000}, "context_length_exceeded"),
        ({"input": [1, 2]}, "invalid_value"),
        ({"input": "a", "dimensions": 577}, "invalid_value"),
        ({"input": ""}, None),
    ],
)
def test_smollm2_refuses_what_it_cannot_embed(smollm2, fields, code):
    status, answer = smollm2.answer({"model": "m", **fields}, "/v1/embeddings")

    assert (status, answer["error"]["code"]) == (400, code)
