"""Bad input is refused before any call and any file, by a message that shows the way out."""

import datetime as dt
import decimal
import functools

import numpy as np
import openai
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import batchframe as bf

GOOD = {"id": [1, 2], "prompt": ["one", "two"]}


@pytest.fixture
def refused(complete, calls, checkpoint, tmp_path, monkeypatch):
    """Make a call that is refused with nothing sent and nothing written; gives the message."""
    monkeypatch.chdir(tmp_path)

    def call(error, frame, /, *args, **kwargs):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(bf.BatchframeError) as caught:
            complete(frame, *args, **kwargs)
        assert calls() == {}
        assert not checkpoint.exists()
        assert sorted(tmp_path.rglob("*")) == before
        assert type(caught.value) is error
        return str(caught.value)

    return call


# --- Columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["promt", "Prompt", "prompts "])
def test_a_missing_column_is_named_with_the_closest_one(frames, refused, given):
    assert refused(bf.ColumnError, frames.make(GOOD), given) == (
        f"There is no column {given!r} for prompt_col. Did you mean 'prompt'? "
        "The columns are 'id', 'prompt'."
    )


def test_a_missing_id_column_is_named_with_the_columns_there_are(frames, refused):
    assert refused(bf.ColumnError, frames.make(GOOD), "prompt", "key") == (
        "There is no column 'key' for id_col. The columns are 'id', 'prompt'."
    )


def test_of_many_columns_the_message_names_twenty(frames, refused):
    frame = frames.make({f"c{i:02}": [i] for i in range(25)})

    message = refused(bf.ColumnError, frame)

    assert "'c19' and 5 more." in message
    assert "c20" not in message


def test_a_text_that_looks_like_an_integer_label_is_not_it(refused):
    frame = pd.DataFrame([["one", 1]])

    assert "no column '0' for prompt_col. Did you mean 0? The columns are 0, 1." in refused(
        bf.ColumnError, frame, "0", 1
    )


def test_a_name_of_the_index_is_told_apart_from_a_column(refused):
    message = refused(bf.ColumnError, pd.DataFrame(GOOD).set_index("id"))

    assert "no column 'id' for id_col. It names the index" in message
    assert "df.reset_index()" in message


@pytest.mark.parametrize(
    "label",
    [
        ["prompt"],
        {"prompt"},
        pd.Series(GOOD["prompt"]),
        pl.Series(GOOD["prompt"]),
        pl.col("prompt"),
    ],
    ids=lambda label: f"{type(label).__module__.split('.')[0]} {type(label).__name__}",
)
def test_columns_are_named_not_passed(frames, refused, label):
    kind = type(label).__name__

    for args, role in (((label, "id"), "prompt_col"), (("prompt", label), "id_col")):
        message = refused(bf.ParameterError, frames.make(GOOD), *args)
        assert message == f"{role} must be one column's name, not a {kind}."


@pytest.mark.parametrize("label", [0, ("prompt",), b"prompt"], ids=repr)
def test_other_labels_than_those_there_are_name_no_column(frames, refused, label):
    assert f"There is no column {label!r}" in refused(bf.ColumnError, frames.make(GOOD), label)


@pytest.mark.parametrize(("twice", "role"), [("prompt", "prompt_col"), ("id", "id_col")])
def test_a_label_of_two_columns_is_refused(refused, twice, role):
    frame = pd.DataFrame([[1, "one", "x"]], columns=["id", "prompt", twice])

    assert refused(bf.ColumnError, frame) == (
        f"2 columns are named {twice!r}; {role} must name one. Rename them first."
    )


def test_columns_in_levels_are_refused(refused):
    frame = pd.DataFrame(GOOD)
    frame.columns = pd.MultiIndex.from_tuples([("id", ""), ("prompt", "")])

    message = refused(bf.ColumnError, frame, ("prompt", ""), ("id", ""))

    assert "MultiIndex" in message
    assert "df.columns = ['_'.join(map(str, label)) for label in df.columns]" in message


@pytest.mark.parametrize("name", ["completion", "completion_status", "completion_cost_usd"])
def test_a_column_that_exists_is_not_replaced(frames, refused, name):
    assert refused(bf.ColumnError, frames.make(GOOD | {name: [1, 2]})) == (
        f"The frame has a column {name!r} already. Choose other names with output=, for example "
        "output='completion_2', or drop them first. Nothing was sent."
    )


def test_a_column_of_details_is_in_the_way_only_if_details_are_asked_for(frames, refused, complete):
    frame = frames.make(GOOD | {"completion_model": ["x", "y"]})

    assert "completion_model" in refused(bf.ColumnError, frame, details=True)
    assert frames.values(complete(frame), "completion_model") == ["x", "y"]


def test_the_same_call_on_its_own_result_is_refused(frames, refused, complete, tmp_path):
    out = complete(frames.make(GOOD), checkpoint=tmp_path / "other")
    with pytest.raises(bf.ColumnError, match="has columns 'completion', 'completion_status', "):
        complete(out, checkpoint=tmp_path / "other")


# --- Prompts --------------------------------------------------------------------------------------

NOT_TEXT = {
    "integers": ([7, 8], "int64", "7 in row 0, 8 in row 1"),
    "an integer behind a null": ([None, 8], None, "8.0 in row 1|8 in row 1"),
    "floats": ([1.5, 2.5], "double", "1.5 in row 0, 2.5 in row 1"),
    "truth values": ([True, False], "bool", "True in row 0, False in row 1"),
    "bytes": ([b"one", b"two"], "binary", "b'one' in row 0, b'two' in row 1"),
    "dates": ([dt.date(2026, 1, 2)] * 2, "date32", "datetime.date(2026, 1, 2) in row 0"),
    "times": ([dt.datetime(2026, 1, 2)] * 2, "timestamp", "datetime.datetime(2026, 1, 2, 0, 0)"),  # noqa: DTZ001
    "spans": ([dt.timedelta(1)] * 2, "duration", "in row 0"),
    "decimals": ([decimal.Decimal(1)] * 2, "decimal", "Decimal('1') in row 0"),
    "dicts": ([{"a": 1}, {"a": 2}], "struct<a: int64>", "{'a': 1} in row 0, {'a': 2} in row 1"),
}


@pytest.mark.parametrize(("prompts", "kind", "rows"), NOT_TEXT.values(), ids=NOT_TEXT.keys())
def test_prompts_that_are_no_text_are_refused(frames, refused, prompts, kind, rows):
    message = refused(bf.ColumnError, frames.make({"id": [1, 2], "prompt": prompts}))

    assert message.startswith("Column 'prompt' holds ")
    assert (kind or "") in message
    assert any(row in message for row in rows.split("|"))
    assert message.endswith(("in Polars.", "json.dumps."))


def test_bytes_are_to_be_decoded_never_cast(frames, refused):
    message = refused(bf.ColumnError, frames.make({"id": [1], "prompt": [b"one"]}))

    assert ".str.decode('utf-8') in pandas, .cast(pl.String) in Polars" in message
    assert "astype" not in message


def test_the_message_names_five_rows_at_most(frames, refused):
    message = refused(bf.ColumnError, frames.make({"id": range(9), "prompt": range(10, 19)}))

    assert "10 in row 0, 11 in row 1, 12 in row 2, 13 in row 3, 14 in row 4 and more." in message


def test_the_message_shows_the_beginning_of_a_long_value(frames, refused):
    message = refused(bf.ColumnError, frames.make({"id": [1], "prompt": [b"x" * 10_000]}))

    assert len(message) < 300


MIXED = [
    (["one", 2], "'one' in row 0, 2 in row 1"),
    ([None, 2, "one"], "2 in row 1, 'one' in row 2"),
    (["one", 2.5], "'one' in row 0, 2.5 in row 1"),
    (["one", True], "'one' in row 0, True in row 1"),
    ([Ellipsis], "Ellipsis in row 0"),
]
MIXED_OBJECTS = [
    (["one", ["two"]], "'one' in row 0, ['two'] in row 1"),
    (["one", {"a": 1}], "'one' in row 0, {'a': 1} in row 1"),
]


@pytest.mark.parametrize(
    ("prompts", "shown", "dtype"),
    [*((*case, "object") for case in MIXED), *((*case, "category") for case in MIXED)],
)
def test_text_among_other_values_is_refused(refused, prompts, shown, dtype):
    column = pd.Series(prompts, dtype=object).astype(dtype)
    frame = pd.DataFrame({"id": range(len(prompts)), "prompt": column})

    assert refused(bf.ColumnError, frame) == (
        f"Column 'prompt' of dtype {dtype} cannot be read as values of one type: {shown}. "
        "Cast it first: df['prompt'] = df['prompt'].astype(str)"
    )


@pytest.mark.parametrize(("prompts", "shown"), MIXED_OBJECTS)
def test_lists_and_objects_among_texts_are_not_to_be_printed(refused, prompts, shown):
    assert refused(bf.ColumnError, pd.DataFrame({"id": [1, 2], "prompt": prompts})) == (
        f"Column 'prompt' of dtype object cannot be read as values of one type: {shown}. "
        "Make texts, or lists of chat messages, of all of them first."
    )


def test_a_chat_message_without_its_list_is_to_be_put_into_one(frames, refused, complete):
    message = {"role": "user", "content": "one"}
    assert refused(bf.ColumnError, frames.make({"id": [1], "prompt": [message]})).endswith(
        "Make a list of chat messages of each first: [{'role': ..., 'content': ...}]."
    )
    out = complete(frames.make({"id": [1], "prompt": [[message]]}))
    assert frames.values(out, "completion") == ["echo: one"]


def test_the_way_out_of_mixed_prompts_leads_out(refused, complete):
    df = pd.DataFrame({"id": [1, 2], "prompt": ["one", 2]})
    refused(bf.ColumnError, df)

    df["prompt"] = df["prompt"].astype(str)

    assert complete(df)["completion"].tolist() == ["echo: one", "echo: 2"]


NO_TEXT = [
    pd.Series(pd.arrays.SparseArray([1, 0])),
    pd.Series(pd.period_range("2026", periods=2, freq="M")),
    pd.Series(pd.interval_range(0, 2)),
    pd.Series(pd.Categorical([1.5, 2.5])),
    pd.Series([1 + 2j, 3j]),
]


@pytest.mark.parametrize("column", NO_TEXT, ids=lambda column: str(column.dtype))
@pytest.mark.parametrize("role", ["prompt", "id"])
def test_pandas_dtypes_without_text_are_refused(refused, column, role):
    message = refused(bf.ColumnError, pd.DataFrame(GOOD | {role: column}))

    assert message.startswith(f"Column '{role}' ")
    assert "Cast it first" in message


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([object(), {1}], dtype=pl.Object),
        pl.Series([2**100, 1], dtype=pl.Int128),
        pl.Series([1, 2], dtype=pl.Duration),
        pl.Series([None, b"x"], dtype=pl.Binary),
        pl.Series([float("nan"), None], dtype=pl.Float64),
    ],
    ids=lambda column: str(column.dtype),
)
def test_polars_dtypes_without_text_are_refused(refused, column):
    message = refused(bf.ColumnError, pl.DataFrame(GOOD).with_columns(prompt=column))

    assert message.startswith("Column 'prompt' holds ")
    assert "it first" in message


@pytest.mark.parametrize("dtype", ["object", "string[python]"])
@pytest.mark.parametrize("role", ["prompt", "id"])
def test_half_a_character_is_refused_and_the_way_out_leads_out(refused, complete, dtype, role):
    texts = pd.Series(["fine", "half \ud83d"], dtype=object)
    df = pd.DataFrame(GOOD | {role: texts.astype(dtype)})

    message = refused(bf.RowError, df)
    way_out = message.partition("Replace it first: ")[2]
    assert message.startswith(f"Column '{role}' has half a character (a lone surrogate) in row 1,")
    assert way_out.startswith(f"df['{role}'] = df['{role}']")

    df[role] = eval(way_out.partition(" = ")[2], {"df": df})  # noqa: S307 - the text is ours

    assert df[role].tolist() == ["fine", "half ?"]
    assert complete(df)["completion_status"].tolist() == ["ok", "ok"]


def test_half_a_character_in_a_template_is_refused(refused):
    texts = pd.Series(["fine", None, "half \ud83d"], dtype=object)
    df = pd.DataFrame({"id": [1, 2, 3], "word": texts})

    assert refused(bf.RowError, df, None, template="A {word}") == (
        "Column 'word' of the template has half a character (a lone surrogate) in row 2, which "
        "cannot be sent: 'half \\ud83d'. Nothing was sent. Replace it first."
    )


def test_a_row_larger_than_a_file_is_refused(frames, refused):
    frame = frames.make({"id": ["a", "b"], "prompt": ["short", "x" * 5000]})

    message = refused(bf.RowError, frame, limits=bf.Limits(max_bytes=1000))

    assert "row 1, id 'b'" in message
    assert "1,000 bytes" in message
    assert "Nothing was sent." in message


# --- Ids ------------------------------------------------------------------------------------------


def test_one_null_id_is_refused(frames, refused):
    frame = frames.make({"id": ["a", None], "prompt": ["one", "two"]})

    assert refused(bf.RowError, frame) == (
        "1 row has no id: column 'id' is null in row 1. Every row needs an id of its own: fill in "
        "the missing ones, or drop those rows."
    )


def test_null_ids_are_refused_with_the_first_five_rows(frames, refused):
    frame = frames.make({"id": [1, *[None] * 7], "prompt": ["x"] * 8})

    assert refused(bf.RowError, frame).startswith(
        "7 rows have no id: column 'id' is null in rows 1, 2, 3, 4, 5 and more. "
    )


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT], ids=repr)
def test_whatever_pandas_takes_for_missing_is_no_id(refused, missing):
    ids = pd.Series([1, missing], dtype=object)

    assert "null in row 1." in refused(bf.RowError, pd.DataFrame({"id": ids, "prompt": ["a", "b"]}))


def test_nan_is_no_id(frames, complete, calls):
    frame = frames.make({"id": [1.0, float("nan")], "prompt": ["one", "two"]})

    with pytest.raises(bf.InputError, match=r"holds double|is null in row 1\."):
        complete(frame)

    assert calls() == {}


def test_one_duplicate_id_is_refused(frames, refused):
    frame = frames.make({"id": ["a", "b", "a"], "prompt": ["one", "two", "three"]})

    assert refused(bf.RowError, frame) == (
        "1 row repeats the id of an earlier row: column 'id' has 'a' in row 2. Every row needs an "
        "id of its own: drop the duplicates, or number the rows."
    )


def test_duplicate_ids_are_refused_with_the_first_five_rows(frames, refused):
    frame = frames.make({"id": [1, 1, 2, 2, 2, 2, 3, 1], "prompt": ["x"] * 8})

    assert (
        "5 rows repeat the id of an earlier row: column 'id' has "
        "1 in row 1, 2 in row 3, 2 in row 4, 2 in row 5, 1 in row 7."
    ) in refused(bf.RowError, frame)


def test_duplicates_count_also_where_nothing_is_to_be_sent(frames, refused):
    assert "'a' in row 1" in refused(
        bf.RowError, frames.make({"id": ["a", "a"], "prompt": ["one", None]})
    )
    assert "'a' in row 1" in refused(
        bf.RowError, frames.make({"id": ["a", "a"], "prompt": [None, None]})
    )


def test_equal_categories_are_duplicate_ids(refused):
    ids = pd.Categorical(["a", "b", "a"])
    assert "'a' in row 2" in refused(
        bf.RowError, pd.DataFrame({"id": ids, "prompt": ["x", "y", "z"]})
    )
    ids = pl.Series(["a", "b", "a"], dtype=pl.Categorical)
    assert "'a' in row 2" in refused(
        bf.RowError, pl.DataFrame({"id": ids, "prompt": ["x", "y", "z"]})
    )


NOT_IDS = {
    "floats": ([1.0, 2.0], "double", "1.0 in row 0, 2.0 in row 1"),
    "truth values": ([True, False], "bool", "True in row 0, False in row 1"),
    "bytes": ([b"a", b"b"], "binary", "b'a' in row 0, b'b' in row 1"),
    "tuples": ([(1, 2), (3, 4)], "list", "[1, 2] in row 0, [3, 4] in row 1"),
    "dicts": ([{"a": 1}, {"a": 2}], "struct", "{'a': 1} in row 0"),
    "decimals": ([decimal.Decimal(1), decimal.Decimal(2)], "decimal", "Decimal('1') in row 0"),
}


@pytest.mark.parametrize(("ids", "kind", "rows"), NOT_IDS.values(), ids=NOT_IDS.keys())
def test_ids_that_are_neither_integers_nor_text_are_refused(frames, refused, ids, kind, rows):
    message = refused(bf.ColumnError, frames.make({"id": ids, "prompt": ["one", "two"]}))

    assert message.startswith("Column 'id' holds ")
    assert kind in message
    assert rows in message
    assert message.endswith("Cast it first, for example to Int64 or str.")


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        ([1, "1"], "1 in row 0, '1' in row 1"),
        (["1", 1], "'1' in row 0, 1 in row 1"),
        ([True, 1], "True in row 0, 1 in row 1"),
        ([2**64, 2], "18446744073709551616 in row 0"),
    ],
    ids=str,
)
def test_ids_of_several_types_are_refused(refused, ids, shown):
    frame = pd.DataFrame({"id": pd.Series(ids, dtype=object), "prompt": ["one", "two"]})

    assert refused(bf.ColumnError, frame) == (
        f"Column 'id' of dtype object cannot be read as values of one type: {shown}. "
        "Cast it first: df['id'] = df['id'].astype(str)"
    )


# --- Keywords -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("checkpiont", "checkpoint"),
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("Model_", "model"),
        ("outputs", "output"),
        ("sytem", "system"),
        ("max_retry", "max_retries"),
        ("prompt", "prompt_col"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_closest_name(frames, refused, given, meant):
    assert refused(bf.ParameterError, frames.make(GOOD), **{given: 1}) == (
        f"complete() and /v1/chat/completions know no keyword {given!r}. Did you mean {meant!r}? "
        "Nothing was sent."
    )


@pytest.mark.parametrize("given", ["zzz", "frame", "self", "params", "api_key"])
def test_an_unknown_keyword_like_no_other_is_refused(frames, refused, given):
    assert refused(bf.ParameterError, frames.make(GOOD), **{given: "sk-secret"}) == (
        f"complete() and /v1/chat/completions know no keyword {given!r}. Nothing was sent."
    )


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"stream": True}, "stream= cannot be set: the Batch API cannot stream."),
        ({"stream": False}, "stream= cannot be set: the Batch API cannot stream."),
        ({"stream_options": {}}, "stream_options= cannot be set: the Batch API cannot stream."),
        (
            {"messages": []},
            "messages= cannot be set: the messages are made of prompt_col and system.",
        ),
        ({"n": 2}, "n=2: each row has one completion. Call once for each, with its own output=."),
    ],
    ids=str,
)
def test_what_a_batch_of_rows_cannot_do_is_refused(frames, refused, keywords, why):
    assert refused(bf.ParameterError, frames.make(GOOD), **keywords) == why


@pytest.mark.parametrize(
    ("keywords", "where"),
    [
        ({"temperature": float("nan")}, "temperature is nan,"),
        ({"temperature": float("inf")}, "temperature is inf,"),
        ({"temperature": np.float64("nan")}, "temperature is nan,"),
        ({"stop": {"a"}}, "stop is a set,"),
        ({"stop": b"a"}, "stop is a bytes,"),
        ({"seed": decimal.Decimal(1)}, "seed is a Decimal,"),
        ({"stop": ["a", b"b"]}, "stop[1] is a bytes,"),
        ({"logit_bias": {"a": [1, {"b": -np.inf}]}}, "logit_bias.a[1].b is -inf,"),
        ({"metadata": {1: "a"}}, "metadata has the key 1:"),
        ({"user": "half \ud83d"}, "user holds half a character"),
        ({"response_format": dict}, "response_format=<class 'dict'> must be"),
        ({"extra_body": {"a": [1, {"b": {2}}]}}, "extra_body.a[1].b is a set,"),
        ({"extra_body": {"top_k": bf.col("k")}}, "extra_body.top_k is a Column,"),
        ({"extra_body": {1: "a"}}, "extra_body has the key 1:"),
    ],
    ids=str,
)
def test_parameters_that_json_cannot_hold_are_refused_with_their_place(
    frames, refused, keywords, where
):
    assert refused(bf.ParameterError, frames.make(GOOD), **keywords).startswith(where)


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"extra_body": {"temperature": 1}}, "temperature is a field with a keyword: pass temp"),
        ({"extra_body": {"model": "gpt-4o"}}, "model is a field with a keyword: pass model="),
        ({"extra_body": {"n": 2}}, "n is a field with a keyword: pass n="),
        ({"extra_body": {"messages": []}}, "messages cannot be set: the messages are made of"),
        ({"extra_body": {"stream": True}}, "stream cannot be set: the Batch API cannot stream."),
        ({"extra_body": {"max_output_tokens": 9}}, "max_output_tokens is no field of /v1/chat/c"),
        (
            {"extra_body": {"prompt": "x"}, "endpoint": "/v1/completions"},
            "prompt cannot be set: it is made of",
        ),
    ],
    ids=str,
)
def test_a_field_that_has_its_place_is_refused_in_extra_body(frames, refused, keywords, why):
    message = refused(bf.ParameterError, frames.make(GOOD), **keywords)
    assert message.startswith(f"extra_body.{why}")


VALUES = {
    "extra_body": ["top_k=40", ["top_k"], 5, True],
    "model": [None, "", " \n", 5, b"gpt-4o", "gpt-\ud83d"],
    "system": [5, b"text", ["text"], "half \ud83d"],
    "output": [None, "", " ", 5, "half \ud83d"],
    "checkpoint": ["", " ", 5, b"place", "a\0b", True, "~nobody-of-this-name/x"],
    "max_retries": [-1, 1.5, "3", True, None],
    "retry_failed": [None, 1, "yes"],
    "nulls": [None, "", "drop", True],
    "on_error": [None, "", "skip", True],
    "max_error_ratio": [-0.1, 1.1, float("nan"), "5", True],
    "endpoint": [None, "", "/v1/files", 5],
    "on_unknown": [None, "", "wait", True],
    "delete_remote": [None, 1, "yes"],
    "completion_window": ["5m", "", "24", 24, None, "24h "],
    "poll_interval": [-0.1, 0, 0.009, float("nan"), float("inf"), "5", True, 1e10],
    "timeout": [-1, float("nan"), "5", True, dt.timedelta(1)],
    "progress": [None, 1, "no"],
    "dialect": [7, b"azure", ["azure"], "azur", ""],
    "details": [None, 0, "yes"],
}


CASES = [(name, value) for name, values in VALUES.items() for value in values]


@pytest.mark.parametrize(
    ("name", "value"), CASES, ids=[f"{name}={value!a}" for name, value in CASES]
)
def test_a_value_that_a_keyword_cannot_take_is_refused(refused, name, value):
    message = refused(bf.ParameterError, pl.DataFrame(GOOD), **{name: value})

    assert message.startswith(f"{name}={value!r} must ")


def test_the_smallest_poll_interval_is_named(frames, refused):
    assert refused(bf.ParameterError, frames.make(GOOD), poll_interval=0) == (
        "poll_interval=0 must be seconds from 0.01 to 86,400, or None."
    )


@pytest.mark.parametrize("limits", [5, {"max_requests": 5}, bf.Limits], ids=str)
def test_limits_of_another_type_are_refused(refused, limits):
    assert refused(bf.ParameterError, pl.DataFrame(GOOD), limits=limits) == (
        f"limits must be bf.Limits(...), not {type(limits).__name__}."
    )


@pytest.mark.parametrize(
    "frame",
    [
        pd.Series(["one"]),
        pl.Series(["one"]),
        GOOD,
        pa.chunked_array([[1]]),
        None,
        pd.DataFrame,
        "prompt",
    ],
    ids=lambda frame: f"{type(frame).__module__.split('.')[0]} {type(frame).__name__}",
)
def test_what_is_no_frame_is_refused(refused, frame):
    assert refused(bf.ParameterError, frame) == (
        f"A {type(frame).__name__} was passed; complete() takes pandas and Polars DataFrames "
        "and pyarrow Tables."
    )


def test_a_lazy_frame_is_to_be_collected(refused):
    message = refused(bf.ParameterError, pl.LazyFrame(GOOD))

    assert message.startswith("A LazyFrame was passed;")
    assert message.endswith("Collect it first; lf.openai_batch.complete() takes it as it is.")


# --- The call itself ------------------------------------------------------------------------------

THE_CALL = (
    'Nothing was sent. Call df.openai_batch.complete("prompt", "id", model="gpt-4o-mini"), or '
    'batchframe.complete(df, "prompt", "id", model="gpt-4o-mini"): all else goes by keyword.'
)
MISFITS = {
    "no model": (["prompt", "id"], {}, "it lacks model"),
    "nothing": ([], {}, "it lacks model"),
    "a mistyped model": (["prompt", "id"], {"modle": "m"}, "it lacks model"),
    "a model by position": (["prompt", "id", "m"], {}, "too many positional arguments"),
    "a column twice": (
        ["prompt", "id"],
        {"prompt_col": "prompt", "model": "m"},
        "multiple values for argument 'prompt_col'",
    ),
}


@pytest.mark.parametrize(("args", "keywords", "misfit"), MISFITS.values(), ids=MISFITS.keys())
def test_a_call_that_does_not_fit_is_refused_and_the_right_one_shown(
    frames, tmp_path, monkeypatch, args, keywords, misfit
):
    monkeypatch.chdir(tmp_path)
    df = frames.make(GOOD)

    for call in (functools.partial(bf.complete, df), df.openai_batch.complete):
        with pytest.raises(bf.ParameterError) as caught:
            call(*args, **keywords)
        assert str(caught.value) == f"This call does not fit complete(): {misfit}. {THE_CALL}"

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keywords", [{}, {"frame": pd.DataFrame(GOOD)}], ids=["none", "keyword"])
def test_a_call_without_a_frame_in_front_is_refused(keywords):
    with pytest.raises(bf.ParameterError, match=r"does not fit complete\(\): .*frame") as caught:
        bf.complete(prompt_col="prompt", id_col="id", model="m", **keywords)

    assert str(caught.value).endswith(THE_CALL)


# --- Checkpoint, client, key ----------------------------------------------------------------------


def test_a_checkpoint_that_is_a_file_is_refused_and_left_alone(frames, complete, calls, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")

    with pytest.raises(bf.CheckpointError, match=r"notes\.txt cannot be used as a checkpoint"):
        complete(frames.make(GOOD), checkpoint=file)

    assert calls() == {}
    assert file.read_text() == "mine"


def test_a_client_that_does_not_wait_is_refused(frames, refused, server):
    client = openai.AsyncOpenAI(api_key="sk-secret", base_url=server.base_url)

    message = refused(bf.ParameterError, frames.make(GOOD), client=client)

    assert message.startswith("client is an AsyncOpenAI, and this call waits")
    assert "secret" not in message


@pytest.mark.parametrize("client", ["sk-secret", openai.OpenAI, openai, {"api_key": "sk-secret"}])
def test_what_is_no_client_is_refused_and_not_shown(frames, refused, client):
    message = refused(bf.ParameterError, frames.make(GOOD), client=client)

    assert message == (
        f"client must be an openai.OpenAI client, not {type(client).__name__}. An API key goes "
        "into OpenAI(api_key=...)."
    )


def test_a_bad_client_is_refused_also_where_nothing_is_to_be_sent(frames, refused):
    frame = frames.make({"id": [1, 2], "prompt": [None, ""]})

    assert "openai.OpenAI client, not str" in refused(bf.ParameterError, frame, client="sk-secret")


def test_without_a_key_the_message_says_how_to_set_one_and_how_to_try_without(
    frames, refused, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    message = refused(bf.ApiKeyError, frames.make(GOOD), client=None)

    assert "OPENAI_API_KEY" in message
    assert "OpenAI(api_key=...)" in message
    assert "batchframe demo" in message
    assert "bf.emulator.LocalServer()" in message


@pytest.mark.parametrize("key", ["", "   ", "sk-secret\n", "sk-se\ncret", "sk-sec ret"], ids=repr)
def test_a_blank_or_broken_key_is_refused_and_not_shown(frames, refused, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    message = refused(bf.ApiKeyError, frames.make(GOOD), client=None)

    assert "blank, or holds white space" in message
    assert "sk-" not in message
    assert "OPENAI_API_KEY" in message


def test_a_broken_key_of_a_client_is_refused_and_not_shown(frames, refused, server):
    client = openai.OpenAI(api_key="sk-se\ncret", base_url=server.base_url)

    assert "sk-" not in refused(bf.ApiKeyError, frames.make(GOOD), client=client)


@pytest.mark.parametrize("address", ["http://api.example.com/v1", "ftp://127.0.0.1/v1"])
def test_a_key_does_not_travel_in_the_clear(frames, refused, monkeypatch, address):
    client = openai.OpenAI(api_key="sk-secret", base_url=address)
    message = refused(bf.ParameterError, frames.make(GOOD), client=client)
    assert address in message
    assert "https" in message

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    assert refused(bf.ParameterError, frames.make(GOOD), client=None) == message
