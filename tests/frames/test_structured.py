"""Answers of a declared structure: typed columns, whatever comes back."""

import datetime as dt
import enum
import json
from typing import Literal

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel, Field, field_serializer, field_validator

import batchframe as bf
from batchframe.emulator import LocalServer


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Author(BaseModel):
    name: str
    born: dt.date | None


class Review(BaseModel):
    title: str
    stars: int = Field(ge=1, le=5)
    score: float | None
    mood: Mood
    kind: Literal["book", "film"]
    seen: dt.datetime
    is_long: bool
    authors: list[Author]
    extra: dict[str, int] | None
    either: int | str


GOOD = {
    "title": "Moby\u2028Dick",
    "stars": 5,
    "score": 1,
    "mood": "good",
    "kind": "book",
    "seen": "2026-01-02T03:04:05Z",
    "is_long": True,
    "authors": [{"name": "Herman", "born": "1819-08-01"}, {"name": "?", "born": None}],
    "extra": {"pages": 635},
    "either": "x",
}
OTHER = GOOD | {
    "stars": 1,
    "score": None,
    "mood": "bad",
    "seen": "2026-01-02T04:04:05.5+01:00",
    "is_long": False,
    "authors": [],
    "extra": None,
    "either": 7,
}
TYPE = pa.struct(
    [
        ("title", pa.string()),
        ("stars", pa.int64()),
        ("score", pa.float64()),
        ("mood", pa.string()),
        ("kind", pa.string()),
        ("seen", pa.timestamp("us", "UTC")),
        ("is_long", pa.bool_()),
        ("authors", pa.list_(pa.struct([("name", pa.string()), ("born", pa.date32())]))),
        ("extra", pa.string()),
        ("either", pa.string()),
    ]
)


@pytest.fixture(scope="module")
def mirror():
    """A server whose model answers with the prompt itself."""

    def answer(body):
        text = body["messages"][-1]["content"]
        reason = "length" if text == '{"cut' else "stop"
        message = {"role": "assistant", "content": text}
        if text == "no":
            message = {"role": "assistant", "content": None, "refusal": "I will not."}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        choices = [{"index": 0, "message": message, "finish_reason": reason}]
        return 200, {"model": body["model"], "choices": choices, "usage": usage}

    with LocalServer(answer, stage_seconds=0) as running:
        yield running.client()


def asked(*answers):
    texts = [
        answer if isinstance(answer, str) or answer is None else json.dumps(answer)
        for answer in answers
    ]
    return {"id": list(range(len(texts))), "prompt": texts}


def sent_format(client):
    batch = client.batches.list(limit=1).data[0]
    line = client.files.content(batch.input_file_id).text.split("\n")[0]
    return json.loads(line)["body"]["response_format"]


def test_polars_has_a_struct_of_the_declared_schema(complete, mirror):
    out = complete(pl.DataFrame(asked(GOOD, OTHER)), response_format=Review, client=mirror)

    assert (
        out["completion"].to_arrow().type
        == pl.Series([], dtype=out["completion"].dtype).to_arrow().type
    )
    first, second = out["completion"].to_list()
    seen = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    born = dt.date(1819, 8, 1)
    assert first == GOOD | {
        "score": 1.0,
        "seen": seen,
        "authors": [{"name": "Herman", "born": born}, {"name": "?", "born": None}],
        "extra": '{"pages": 635}',
        "either": '"x"',
    }
    assert second == OTHER | {
        "seen": seen.replace(microsecond=500_000),
        "extra": None,
        "either": "7",
    }
    assert out["completion_text"].to_list() == [json.dumps(GOOD), json.dumps(OTHER)]
    assert out["completion_status"].to_list() == ["ok", "ok"]


def test_pandas_has_one_column_for_each_field(complete, mirror):
    out = complete(pd.DataFrame(asked(GOOD, OTHER)), response_format=Review, client=mirror)

    assert out["completion"].tolist() == [json.dumps(GOOD), json.dumps(OTHER)]
    fields = [f"completion_{name}" for name in Review.model_fields]
    assert out.columns.tolist()[-len(fields) :] == fields
    assert [str(dtype) for dtype in out[fields].dtypes] == [
        "str",
        "Int64",
        "Float64",
        "str",
        "str",
        "datetime64[us, UTC]",
        "boolean",
        "str",
        "str",
        "str",
    ]
    assert out["completion_stars"].tolist() == [5, 1]
    assert out["completion_score"].isna().tolist() == [False, True]
    assert json.loads(out["completion_authors"][0])[0] == {"name": "Herman", "born": "1819-08-01"}
    assert out["completion_authors"][1] == "[]"


def test_the_columns_have_their_types_without_a_single_answer(frames, complete, mirror, tmp_path):
    empty = frames.make({"id": [1, 2], "prompt": ["not json", '{"cut']})
    filled = frames.make(asked(GOOD, OTHER))
    without = complete(empty, response_format=Review, client=mirror)
    full = complete(filled, response_format=Review, client=mirror)

    assert frames.types(without) == frames.types(full)
    for frame in (without, full):
        back = frames.through_parquet(frame, tmp_path / "out.parquet")
        frames.assert_frame_equal(back, frame)
    assert frames.values(without, "completion_status") == ["invalid", "truncated"]


def test_pyarrow_has_the_struct_as_well(complete, mirror):
    out = complete(pa.table(asked(GOOD, None)), response_format=Review, client=mirror)
    assert out["completion"].type == TYPE
    assert out["completion"].to_pylist()[1] is None


def test_answers_that_do_not_fit_are_invalid_and_keep_their_text(frames, complete, mirror):
    texts = [
        json.dumps(GOOD),
        json.dumps(GOOD | {"stars": 6}),
        json.dumps({"title": "only"}),
        "not json",
        '{"cut',
        "no",
        None,
        json.dumps(GOOD | {"mood": "so-so"}),
    ]
    frame = frames.make({"id": range(len(texts)), "prompt": texts})
    out = complete(frame, response_format=Review, client=mirror)

    assert frames.values(out, "completion_status") == [
        "ok",
        "invalid",
        "invalid",
        "invalid",
        "truncated",
        "refused",
        "skipped",
        "invalid",
    ]
    errors = frames.values(out, "completion_error")
    assert errors[0] is None
    assert errors[1].startswith("invalid: stars: Input should be less than or equal to 5")
    assert errors[2].startswith("invalid: stars: Field required")
    assert errors[3].startswith("invalid: Invalid JSON")
    assert errors[7].startswith("invalid: mood: ")
    column = "completion_text" if isinstance(out, pl.DataFrame) else "completion"
    assert frames.values(out, column) == [None if text in {"no", None} else text for text in texts]
    costs = frames.values(out, "completion_cost_usd")
    assert costs[1] == costs[0] > 0


SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "when": {"type": ["string", "null"], "format": "date"},
        "tag": {"enum": ["a", "b", None]},
        "tree": {"$ref": "#/$defs/node"},
    },
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "number"}, "next": {"$ref": "#/$defs/node"}},
        }
    },
}


def test_a_json_schema_is_made_strict_and_checked(frames, complete, mirror):
    good = {"n": 1, "when": None, "tag": "a", "tree": {"v": 2, "next": {"v": 3, "next": None}}}
    answers = asked(
        good | {"tree": {"v": 2, "next": good["tree"]["next"]}}, {"n": "x"}, {"n": 2**70}
    )
    schema = json.loads(json.dumps(SCHEMA))
    schema["$defs"]["node"]["properties"]["next"] = {
        "anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]
    }
    out = complete(frames.make(answers), response_format=schema, client=mirror)

    sent = sent_format(mirror)
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["strict"] is True
    assert sent["json_schema"]["schema"]["required"] == ["n", "when", "tag", "tree"]
    assert sent["json_schema"]["schema"]["additionalProperties"] is False
    assert frames.values(out, "completion_status") == ["ok", "invalid", "invalid"]
    assert "required property" in frames.values(out, "completion_error")[2]


def test_the_form_of_the_api_is_sent_as_it_is(frames, complete, mirror):
    form = {
        "type": "json_schema",
        "json_schema": {
            "name": "mine",
            "schema": {"type": "object", "properties": {"n": {"type": "integer"}}},
        },
    }
    out = complete(
        frames.make(asked({"n": 1}, {}, {"n": 2**63}, {"n": 1.0})),
        response_format=form,
        client=mirror,
    )

    assert sent_format(mirror) == form
    assert frames.values(out, "completion_status") == ["ok", "ok", "invalid", "ok"]
    assert "more than 64 bits" in frames.values(out, "completion_error")[2]


def test_a_json_object_stays_text(frames, complete, mirror):
    out = complete(
        frames.make(asked({"a": 1}, "[1]", "x")),
        response_format={"type": "json_object"},
        client=mirror,
    )

    assert sent_format(mirror) == {"type": "json_object"}
    assert frames.values(out, "completion") == ['{"a": 1}', "[1]", "x"]
    assert frames.values(out, "completion_status") == ["ok", "invalid", "invalid"]
    assert list(out.columns)[:4] == ["id", "prompt", "completion", "completion_status"]


def test_a_second_call_reads_the_checkpoint(frames, complete, mirror):
    frame = frames.make(asked(GOOD, "not json"))
    first = complete(frame, response_format=Review, client=mirror)
    n_batches = len(mirror.batches.list(limit=100).data)
    frames.assert_frame_equal(complete(frame, response_format=Review, client=mirror), first)
    assert len(mirror.batches.list(limit=100).data) == n_batches


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("json", "must be a pydantic model"),
        (Review(**GOOD), "must be a pydantic model"),
        ({"type": "json"}, "is neither"),
        ({"type": "array", "items": {"type": "integer"}}, "is neither"),
        ({"type": "object", "properties": {"a": {"type": "obj"}}}, "a schema that is none"),
        ({"type": "object", "properties": {}}, "whose root is an object with properties"),
        (
            {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/x"}}},
            "response_format",
        ),
        ({"type": "object", "properties": {"a": {1, 2}}}, "JSON cannot hold"),
    ],
)
def test_what_is_no_response_format_is_refused(frames, complete, calls, checkpoint, value, words):
    with pytest.raises(bf.ParameterError) as caught:
        complete(frames.make(asked(GOOD)), response_format=value)
    assert words in str(caught.value)
    assert calls() == {}
    assert not checkpoint.exists()


def test_a_field_named_like_a_column_of_ours_is_refused_in_pandas(complete, calls, mirror):
    class Order(BaseModel):
        status: str

    with pytest.raises(bf.ColumnError, match=r"field 'status' .* column 'completion_status'"):
        complete(pd.DataFrame(asked({"status": "x"})), response_format=Order)
    assert calls() == {}
    out = complete(pl.DataFrame(asked({"status": "x"})), response_format=Order, client=mirror)
    assert out["completion"].to_list() == [{"status": "x"}]


def test_columns_in_the_way_of_the_fields_are_named(complete, calls):
    frame = pd.DataFrame(asked(GOOD)).assign(completion_stars=1)
    with pytest.raises(bf.ColumnError, match="'completion_stars' already"):
        complete(frame, response_format=Review)
    assert calls() == {}


def test_what_arrow_cannot_hold_and_what_a_validator_raises_cost_their_own_row_only(
    frames, complete, mirror
):
    class Odd(BaseModel):
        word: str
        n: int

        @field_validator("n")
        @classmethod
        def known(cls, n: int) -> int:
            return {1: 1, 2: 2}[n]  # a KeyError, which pydantic does not catch

        @field_serializer("word")
        def serialized(self, word: str) -> object:
            return 7 if word == "seven" else word

    answers = [{"word": "a", "n": 1}, {"word": "a", "n": 3}, {"word": "seven", "n": 2}]
    out = complete(frames.make(asked(*answers)), response_format=Odd, client=mirror)
    assert frames.values(out, "completion_status") == ["ok", "invalid", "invalid"]


def test_half_a_character_in_a_field_is_invalid(frames, complete, mirror):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    texts = ['{"a": "whole"}', '{"a": "\\ud83d"}']
    out = complete(frames.make(asked(*texts)), response_format=schema, client=mirror)
    assert frames.values(out, "completion_status") == ["ok", "invalid"]


def test_text_beside_a_format_is_a_dict(frames, complete, calls):
    options = {"endpoint": "/v1/responses", "response_format": Review, "text": "low"}
    with pytest.raises(bf.ParameterError, match="text='low' must be a dict"):
        complete(frames.make(asked(GOOD)), **options)
    assert calls() == {}
