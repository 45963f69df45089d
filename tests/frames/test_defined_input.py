"""Input that looks odd and has a defined result: nothing is guessed, nothing is altered."""

import datetime as dt
import enum

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import batchframe as bf

PROMPTS = {
    "white space": " \t ",
    "spaces around": "  hello\n",
    "carriage return": "one\rtwo",
    "carriage return and line feed": "one\r\ntwo\n\n",
    "Unicode line ends": "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029.",
    "NUL": "a\x00b",
    "control characters": "\x01\x07\x08\x1b\x7f",
    "emoji joined": "\U0001f469\u200d\U0001f467 \U0001f3f4\u200d\u2620\ufe0f e\u0301",
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd\u202c",
    "byte order mark": "\ufeffhello",
    "beyond Unicode's first plane": "\U0001d4b3\U00010348\U0001f004",
    "noncharacters": "\uffff\ufffe",
    "quotes and backslashes": "\"'`\\\\ \\n \\u0041 </script>",
    "braces and percent signs": '{prompt} {{x}} %s %(x)s ${y} {"role": "system"}',
    "a number": "007",
    "the word null": "null",
    "the word nan": "NaN",
    "a JSON line": '{"custom_id": "0", "body": {}}\n',
    "long": "word " * 50_000,
}


def test_prompts_arrive_and_come_back_exactly(frames, complete):
    out = complete(frames.make({"id": list(PROMPTS), "prompt": list(PROMPTS.values())}))

    assert dict(zip(PROMPTS, frames.values(out, "completion"), strict=True)) == {
        name: f"echo: {prompt}" for name, prompt in PROMPTS.items()
    }
    assert set(frames.values(out, "completion_status")) == {"ok"}


def test_system_messages_and_parameters_arrive_exactly(frames, server, complete, client):
    strange = "".join(PROMPTS.values())[:500]
    complete(frames.make({"id": [1], "prompt": ["hello"]}), system=strange, stop=["\u2028", "\x00"])
    newest = client.batches.list(limit=1).data[0]

    line = client.files.content(newest.input_file_id).response.json()

    assert line["body"] == {
        "model": "gpt-4o-mini",
        "stop": ["\u2028", "\x00"],
        "messages": [
            {"role": "system", "content": strange},
            {"role": "user", "content": "hello"},
        ],
    }


def test_null_and_empty_prompts_are_skipped_and_not_sent(frames, complete, paid):
    out = complete(frames.make({"id": [1, 2, 3, 4], "prompt": [None, "", " ", "hello"]}))

    assert frames.values(out, "completion_status") == ["skipped", "skipped", "ok", "ok"]
    assert frames.values(out, "completion") == [None, None, "echo:  ", "echo: hello"]
    assert paid() == 2


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT], ids=repr)
def test_whatever_pandas_takes_for_missing_is_skipped(complete, missing):
    prompts = pd.Series(["hello", missing], dtype=object)

    out = complete(pd.DataFrame({"id": [1, 2], "prompt": prompts}))

    assert out["completion_status"].tolist() == ["ok", "skipped"]


TEXTS = {
    "str": lambda values: pd.Series(values, dtype="str"),
    "object": lambda values: pd.Series(values, dtype=object),
    "string[python]": lambda values: pd.Series(values, dtype="string[python]"),
    "string[pyarrow]": lambda values: pd.Series(values, dtype="string[pyarrow]"),
    "category": lambda values: pd.Series(pd.Categorical(values)),
    "NumPy strings": lambda values: pd.Series([v and np.str_(v) for v in values], dtype=object),
    "a str enumeration": lambda values: pd.Series([v and Word(v) for v in values], dtype=object),
    "Arrow string": lambda values: arrow(values, pa.string()),
    "Arrow large_string": lambda values: arrow(values, pa.large_string()),
    "Arrow string_view": lambda values: arrow(values, pa.string_view()),
    "Arrow dictionary": lambda values: arrow(values, pa.dictionary(pa.int8(), pa.string())),
    "Arrow runs": lambda values: pd.Series(
        pc.run_end_encode(pa.array(values, pa.string())),
        dtype=pd.ArrowDtype(pa.run_end_encoded(pa.int32(), pa.string())),
    ),
    "Arrow in chunks": lambda values: pd.Series(
        pd.array(
            pa.chunked_array([[value] for value in values], pa.string()),
            dtype=pd.ArrowDtype(pa.string()),
        )
    ),
    "pl.String": pl.Series,
    "pl.Categorical": lambda values: pl.Series(values, dtype=pl.Categorical),
    "pl.Enum": lambda values: pl.Series(values, dtype=pl.Enum(["second", "first"])),
    "pl.String in chunks": lambda values: pl.concat(
        [pl.Series([v], dtype=pl.String) for v in values]
    ),
}


class Word(enum.StrEnum):
    first = "first"
    second = "second"


def arrow(values, kind):
    return pd.Series(pa.array(values, pa.string()).cast(kind), dtype=pd.ArrowDtype(kind))


def frame_of(column, **others):
    library = pl if isinstance(column, pl.Series) else pd
    return library.DataFrame({**others, "text": column})


@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS.keys())
def test_text_of_every_dtype_is_a_prompt(complete, make):
    out = complete(frame_of(make(["first", None, "second"]), id=[1, 2, 3]), "text")

    first, missing, second = out["completion"]
    assert (first, second) == ("echo: first", "echo: second")
    assert pd.isna(missing)


@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS.keys())
def test_text_of_every_dtype_is_an_id_and_the_same_one(complete, paid, make):
    prompts = ["one", "two"]
    complete(pd.DataFrame({"text": ["first", "second"], "prompt": prompts}), id_col="text")
    assert paid() == 2

    out = complete(frame_of(make(["first", "second"]), prompt=prompts), id_col="text")

    assert list(out["completion"]) == ["echo: one", "echo: two"]
    assert paid() == 2


TEXT_IDS = [
    "",
    " ",
    "007",
    "7",
    "../../x",
    "C:\\x",
    "\u00e9",
    "e\u0301",
    "a\nb",
    "a\x00b",
    "a\x00c",
    "\U0001f469\u200d\U0001f467",
    '{"a": "b"}',
    "null",
    "x" * 10_000,
    "x" * 9_999 + "y",
]


def test_texts_that_look_alike_are_different_ids(frames, complete, paid):
    prompts = [f"number {i}" for i in range(len(TEXT_IDS))]

    out = complete(frames.make({"id": TEXT_IDS, "prompt": prompts}))

    assert frames.values(out, "id") == TEXT_IDS
    assert frames.values(out, "completion") == [f"echo: {prompt}" for prompt in prompts]
    assert paid() == len(TEXT_IDS)


def test_ids_go_nowhere_but_into_the_checkpoint(frames, complete, client):
    complete(frames.make({"id": ["jane.doe@example.com"], "prompt": ["hello"]}))
    newest = client.batches.list(limit=1).data[0]

    sent = client.files.content(newest.input_file_id).content

    assert b"jane" not in sent
    assert "jane" not in newest.model_dump_json()


def test_equal_prompts_of_different_ids_are_different_requests(frames, complete, paid):
    out = complete(frames.make({"id": [1, 2], "prompt": ["same", "same"]}))

    assert frames.values(out, "completion") == ["echo: same", "echo: same"]
    assert paid() == 2


INTEGERS = [2**53, 2**53 + 1, 2**63 - 1, 0, -1, -(2**63)]


def test_integers_that_floats_cannot_tell_apart_are_different_ids(frames, complete, paid):
    prompts = [str(id_) for id_ in INTEGERS]

    out = complete(frames.make({"id": INTEGERS, "prompt": prompts}))

    assert frames.values(out, "id") == INTEGERS
    assert frames.values(out, "completion") == [f"echo: {prompt}" for prompt in prompts]
    assert paid() == len(INTEGERS)


@pytest.mark.parametrize(
    "ids",
    [
        pd.Series([2**64 - 1, 2**64 - 2], dtype="uint64"),
        pd.Series([2**64 - 1, 2**64 - 2], dtype="UInt64"),
        pd.Series([2**64 - 1, 2**64 - 2], dtype="uint64[pyarrow]"),
        pl.Series([2**64 - 1, 2**64 - 2], dtype=pl.UInt64),
    ],
    ids=lambda ids: f"{type(ids).__module__.split('.')[0]} {ids.dtype}",
)
def test_the_largest_unsigned_integers_are_ids(complete, checkpoint, ids):
    out = complete(frame_of(ids, prompt=["one", "two"]), id_col="text")

    assert list(out["completion"]) == ["echo: one", "echo: two"]
    assert stored_ids(checkpoint) == ["18446744073709551614", "18446744073709551615"]


def stored_ids(checkpoint):
    return sorted(pd.read_parquet(checkpoint / "results")["id"])


@pytest.mark.parametrize(
    "dtype", ["int8", "uint16", "int32", "Int64", "object", "category", "int64[pyarrow]"]
)
def test_integers_of_every_dtype_are_the_same_ids(complete, paid, dtype):
    complete(pl.DataFrame({"id": [1, 2], "prompt": ["one", "two"]}))
    frame = pd.DataFrame({"id": pd.Series([1, 2], dtype=dtype), "prompt": ["one", "two"]})

    assert complete(frame)["completion"].tolist() == ["echo: one", "echo: two"]
    assert paid() == 2


# --- Nothing to send ------------------------------------------------------------------------------

UNTYPED = {
    "pandas": pd.DataFrame({"id": [], "prompt": []}),
    "pandas objects": pd.DataFrame({"id": [], "prompt": []}, dtype=object),
    "Polars": pl.DataFrame({"id": [], "prompt": []}),
    "Polars dates": pl.DataFrame(schema={"id": pl.Date, "prompt": pl.Int64}),
}


@pytest.fixture
def without_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.mark.usefixtures("without_key")
@pytest.mark.parametrize("frame", UNTYPED.values(), ids=UNTYPED.keys())
def test_a_frame_without_rows_needs_neither_types_nor_key(complete, checkpoint, frame):
    out = complete(frame, client=None)

    assert len(out) == 0
    assert list(out.columns)[2:4] == ["completion", "completion_status"]
    assert list(out.dtypes)[:2] == list(frame.dtypes)
    assert not checkpoint.exists()


@pytest.mark.usefixtures("without_key")
def test_prompts_that_are_all_null_need_no_key(frames, complete, checkpoint):
    out = complete(frames.make({"id": [1, 2], "prompt": [None, ""]}), client=None)

    assert frames.values(out, "completion_status") == ["skipped", "skipped"]
    assert not checkpoint.exists()


@pytest.mark.usefixtures("without_key")
@pytest.mark.parametrize(
    "prompts",
    [
        pd.Series([None, None], dtype=object),
        pd.Series([np.nan, np.nan]),
        pd.Series([pd.NaT, pd.NaT]),
        pd.Series([None, None], dtype="category"),
        pd.Series([None, None], dtype=pd.ArrowDtype(pa.null())),
        pl.Series([None, None]),
        pl.Series([None, None], dtype=pl.Float64),
    ],
    ids=lambda prompts: f"{type(prompts).__module__.split('.')[0]} {prompts.dtype}",
)
def test_a_column_without_a_single_value_is_skipped_whatever_its_type(complete, prompts):
    out = complete(frame_of(prompts, id=[1, 2]), "text", client=None)

    assert list(out["completion_status"]) == ["skipped", "skipped"]


# --- Parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"seed": np.int64(7), "n": 1}, {"n": 1, "seed": 7}),
        ({"stop": ("a", "b")}, {"stop": ["a", "b"]}),
        ({"logit_bias": {"50256": -100}}, {"logit_bias": {"50256": -100}}),
        ({"user": None, "store": False}, {"store": False, "user": None}),
    ],
    ids=str,
)
def test_parameters_are_sent_as_json(complete, client, given, sent):
    complete(pd.DataFrame({"id": [1], "prompt": ["hello"]}), **given)
    newest = client.batches.list(limit=1).data[0]

    body = client.files.content(newest.input_file_id).response.json()["body"]

    assert {k: v for k, v in body.items() if k not in {"model", "messages"}} == sent


def test_zero_is_a_timeout_and_a_wait_that_ends_loses_nothing(frames, complete):
    frame = frames.make({"id": [1], "prompt": ["hello"]})
    with pytest.raises(bf.RunTimeoutError, match="same call again"):
        complete(frame, timeout=0)

    assert frames.values(complete(frame, timeout=3600.0), "completion") == ["echo: hello"]


def test_a_date_among_other_columns_is_none_of_our_business(frames, complete):
    when = [dt.date(2026, 1, 1)]

    out = complete(frames.make({"id": [1], "prompt": ["hello"], "when": when}))

    assert frames.values(out, "when") == when
