"""What a row can bring beside a text and an id: messages, templates, other ids, other frames."""

import datetime as dt
import re
import uuid
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchframe as bf


@pytest.fixture
def refused(complete, calls, checkpoint):
    """Make a call that is refused with nothing sent and nothing written; gives the message."""

    def call(error, frame, /, *args, **kwargs):
        with pytest.raises(bf.BatchframeError) as caught:
            complete(frame, *args, **kwargs)
        assert calls() == {}
        assert not checkpoint.exists()
        assert type(caught.value) is error
        return str(caught.value)

    return call


def user(content):
    return {"role": "user", "content": content}


def bodies(client):
    """The messages of each request of the newest batch, by the text of the last one."""
    import json

    batch = client.batches.list(limit=1).data[0]
    lines = client.files.content(batch.input_file_id).text.split("\n")[:-1]
    found = [json.loads(line)["body"]["messages"] for line in lines]
    return {messages[-1]["content"]: messages for messages in found}


# --- Chat messages --------------------------------------------------------------------------------

CHATS = [
    [{"role": "system", "content": "Be brief."}, user("one")],
    [user("two")],
    None,
    [],
    [user("a"), {"role": "assistant", "content": "b\u2028"}, user("three")],
]


def test_lists_of_one_size_in_pandas_are_chat_messages(complete):
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]), 1)
    column = pd.array(pa.array([[user("one")], None], kind), dtype=pd.ArrowDtype(kind))
    out = complete(pd.DataFrame({"id": [1, 2], "prompt": column}))
    assert out["completion_status"].tolist() == ["ok", "skipped"]
    assert out["completion"].tolist()[0] == "echo: one"


def test_lists_of_chat_messages_are_sent_as_they_are(frames, complete, client):
    frame = frames.make({"id": range(5), "prompt": CHATS})
    out = complete(frame)

    expected = ["echo: one", "echo: two", None, None, "echo: three"]
    assert frames.values(out, "completion") == expected
    assert frames.values(out, "completion_status") == ["ok", "ok", "skipped", "skipped", "ok"]
    assert bodies(client) == {chat[-1]["content"]: chat for chat in CHATS if chat}


def test_a_system_message_stands_before_them(frames, complete, client):
    complete(frames.make({"id": [1], "prompt": [[user("one")]]}), system="Be kind.")

    assert bodies(client) == {"one": [{"role": "system", "content": "Be kind."}, user("one")]}


def test_a_text_and_the_list_of_that_one_message_are_the_same_row(frames, complete, paid):
    complete(frames.make({"id": [1, 2], "prompt": ["one", "two"]}))
    assert paid() == 2

    out = complete(frames.make({"id": [1, 2], "prompt": [[user("one")], [user("two")]]}))
    assert frames.values(out, "completion") == ["echo: one", "echo: two"]
    assert paid() == 2


def test_messages_survive_parquet_and_are_the_same_rows(frames, complete, paid, tmp_path):
    frame = frames.make({"id": range(5), "prompt": CHATS})
    complete(frame)
    assert paid() == 3

    complete(frames.through_parquet(frame, tmp_path / "chats.parquet"))
    assert paid() == 3


def test_contents_of_parts_and_of_text_may_stand_in_one_pandas_column(complete, client):
    parts = [{"type": "text", "text": "two"}]
    tools = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function"}]}
    frame = pd.DataFrame(
        {"id": [1, 2], "prompt": [[user("one")], [tools, {"role": "user", "content": parts}]]}
    )
    out = complete(frame)

    assert out["completion"].tolist() == ["echo: one", "echo: two"]
    batch = client.batches.list(limit=1).data[0]
    sent = client.files.content(batch.input_file_id).text
    assert '{"role":"assistant","tool_calls":[{"id":"c","type":"function"}]}' in sent
    assert '"content":[{"type":"text","text":"two"}]' in sent


NO_CHATS = {
    "texts": [["a"], ["b"]],
    "no role": [[{"content": "a"}]],
    "numbers": [[1, 2]],
    "a number among them": [[user("a")], [user(1.5), {"role": None, "content": None}]],
}


@pytest.mark.parametrize("prompts", NO_CHATS.values(), ids=NO_CHATS.keys())
def test_lists_of_anything_else_are_refused_with_their_row(frames, refused, prompts):
    if prompts is NO_CHATS["a number among them"] and frames.dtypes["texts"] != "str":
        prompts = prompts[1:]  # Arrow has one type for a field
    frame = frames.make({"id": range(len(prompts)), "prompt": prompts})

    message = refused(bf.RowError, frame)

    assert message.startswith(f"Row {len(prompts) - 1 if prompts[0] == [user('a')] else 0} of ")
    assert "column 'prompt' is [" in message
    assert '[{"role": "user", "content": ...}, ...]' in message


def test_what_json_cannot_hold_is_refused_with_its_place(refused):
    frame = pd.DataFrame({"id": [1, 2], "prompt": [[user("a")], [user({1, 2})]]})

    message = refused(bf.RowError, frame)

    assert message.startswith("Row 1 of column 'prompt'[0].content is a set, which JSON cannot")


# --- Templates ------------------------------------------------------------------------------------


def test_a_template_asks_with_the_values_of_several_columns(frames, complete):
    frame = frames.make(
        {
            "id": [1, 2, 3],
            "title": ["A {b}", "C%s", None],
            "pages": [7, 8, 9],
            "day": [dt.date(2026, 1, 2)] * 3,
            "share": [0.5, 1.0, 2.0],
        }
    )
    out = complete(frame, None, template="{{{title}}} {pages}/{share} on {day}: {title}")

    assert frames.values(out, "completion") == [
        "echo: {A {b}} 7/0.5 on 2026-01-02: A {b}",
        "echo: {C%s} 8/1.0 on 2026-01-02: C%s",
        None,
    ]
    assert frames.values(out, "completion_status") == ["ok", "ok", "skipped"]


def test_a_template_and_the_text_that_it_makes_are_the_same_row(frames, complete, paid):
    frame = frames.make({"id": [1], "prompt": ["Say one"], "word": ["one"]})
    complete(frame, None, template="Say {word}")
    complete(frame)
    assert paid() == 1


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("Say {word.upper}", "template= has {word.upper}"),
        ("Say {word[0]}", "template= has {word[0]}"),
        ("Say {word!r}", "template= has {word!r}"),
        ("Say {word:>5}", "template= has {word:>5}"),
        ("Say {}", "template= has {}"),
        ("Say {word", "cannot be read"),
        ("Say word}", "cannot be read"),
        ("Say it", "names no column"),
        ("Say {{word}}", "names no column"),
        ("", "names no column"),
        (7, "template=7 must be text"),
        ("\ud83d {word}", "without half characters"),
    ],
)
def test_a_template_that_is_none_is_refused(frames, refused, template, words):
    frame = frames.make({"id": [1], "word": ["one"]})
    assert words in refused(bf.ParameterError, frame, None, template=template)


def test_a_template_names_columns_that_there_are(frames, refused):
    frame = frames.make({"id": [1], "word": ["one"]})
    message = refused(bf.ColumnError, frame, None, template="Say {wrod}")
    assert message.startswith("There is no column 'wrod' for template. Did you mean 'word'?")


def test_bytes_have_no_place_in_a_template(frames, refused):
    frame = frames.make({"id": [1], "word": [b"one"]})
    message = refused(bf.ColumnError, frame, None, template="Say {word}")
    assert re.match(
        r"Column 'word' of the template holds ((large_)?binary, |b'one' in row 0)", message
    )
    assert "b'one' in row 0" in message


@pytest.mark.parametrize(
    ("prompt_col", "template", "has"), [("prompt", "{prompt}", "both"), (None, None, "neither")]
)
def test_either_a_column_or_a_template_says_what_to_ask(frames, refused, prompt_col, template, has):
    frame = frames.make({"id": [1], "prompt": ["one"]})
    message = refused(bf.ParameterError, frame, prompt_col, template=template)
    assert f"this call has {has}" in message


# --- Nulls ----------------------------------------------------------------------------------------


def test_rows_without_a_prompt_are_refused_where_that_is_asked_for(frames, refused, complete):
    frame = frames.make({"id": [1, 2, 3], "prompt": ["one", None, ""]})
    message = refused(bf.RowError, frame, nulls="raise")
    assert message.startswith(
        "2 rows have no prompt: column 'prompt' is null or empty in rows 1, 2"
    )
    refused(bf.RowError, frame, None, template="{prompt}", nulls="raise")
    refused(bf.ParameterError, frame, nulls="drop")

    complete(frames.make({"id": [1], "prompt": ["one"]}), nulls="raise")


# --- Ids ------------------------------------------------------------------------------------------


def test_rows_without_ids_resume_wherever_they_stand(frames, complete, paid):
    out = complete(frames.make({"prompt": ["a", "b", "a", None]}), "prompt", None)
    assert frames.values(out, "completion") == ["echo: a", "echo: b", "echo: a", None]
    assert paid() == 3

    grown = complete(frames.make({"prompt": ["c", "a", "b", "a", "a"]}), "prompt", None)
    assert frames.values(grown, "completion") == [f"echo: {text}" for text in "cabaa"]
    assert paid() == 5


def test_uuids_are_ids_and_the_same_as_their_text(frames, complete, paid):
    ids = [uuid.UUID(int=1), uuid.UUID(int=2)]
    data = {"id": ids, "prompt": ["one", "two"]}
    assert frames.values(complete(frames.make(data)), "completion") == ["echo: one", "echo: two"]

    complete(frames.make(data | {"id": list(map(str, ids))}))
    assert paid() == 2


def test_dates_and_times_are_ids_and_instants_count(frames, complete, paid, checkpoint):
    berlin, utc = ZoneInfo("Europe/Berlin"), dt.UTC
    days = [dt.date(2026, 1, 2), dt.date(1500, 1, 2)]
    naive = [dt.datetime(2026, 1, 2, 3), dt.datetime(1500, 1, 2, 3)]  # noqa: DTZ001
    aware = [dt.datetime(2026, 1, 2, 3, tzinfo=utc), dt.datetime(2026, 7, 2, 3, tzinfo=utc)]
    there = [instant.astimezone(berlin) for instant in aware]
    for ids, n_paid in ((days, 2), (naive, 4), (aware, 6), (there, 6)):
        out = complete(frames.make({"id": ids, "prompt": ["one", "two"]}))
        assert frames.values(out, "completion") == ["echo: one", "echo: two"]
        assert paid() == n_paid

    ids = pq.read_table(checkpoint / "results")["id"].to_pylist()
    assert set(ids) == {
        "2026-01-02",
        "1500-01-02",
        "2026-01-02 03:00:00.000000000",
        "1500-01-02 03:00:00.000000000",
        "2026-01-02 03:00:00.000000000Z",
        "2026-07-02 03:00:00.000000000Z",
    }


def test_an_instant_in_two_zones_is_a_duplicate(refused):
    instant = dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC)
    ids = pd.Series([instant, instant.astimezone(ZoneInfo("Europe/Berlin"))], dtype="M8[us, UTC]")
    message = refused(bf.RowError, pd.DataFrame({"id": ids, "prompt": ["one", "two"]}))
    assert message.startswith("1 row repeats the id of an earlier row")


# --- pyarrow Tables -------------------------------------------------------------------------------


def test_a_table_comes_back_with_the_columns_behind_its_own(complete, calls, paid, tmp_path):
    table = pa.table(
        {
            "id": pa.chunked_array([["a"], ["b", "c"]]),
            "prompt": pa.chunked_array([["one", None], ["three"]]),
            "rest": pa.array([{"x": 1}, None, {"x": 3}]),
        }
    ).replace_schema_metadata({"made": "here"})
    out = complete(table)

    assert isinstance(out, pa.Table)
    assert out.select(table.column_names).equals(table)
    assert out.schema.metadata == {b"made": b"here"}
    assert out["completion"].to_pylist() == ["echo: one", None, "echo: three"]
    assert out["completion_status"].to_pylist() == ["ok", "skipped", "ok"]
    assert out["completion_input_tokens"].type == pa.int64()
    assert out["completion_cost_usd"].type == pa.float64()
    assert paid() == 2

    pq.write_table(out, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").equals(out)
    before = calls()
    assert complete(table).equals(out)
    assert calls() == before
    assert table.column_names == ["id", "prompt", "rest"]


def test_a_table_shares_its_checkpoint_with_frames(frames, complete, paid):
    data = {"id": [1, 2], "prompt": ["one", "two"]}
    complete(frames.make(data))
    complete(pa.table(data))
    assert paid() == 2


def test_a_table_of_chat_messages(complete):
    table = pa.table({"id": [1, 2], "prompt": [[user("one")], None]})
    assert complete(table)["completion"].to_pylist() == ["echo: one", None]


def test_a_table_without_rows_gets_the_columns(complete):
    out = complete(pa.table({"id": pa.array([], pa.int64()), "prompt": pa.array([], pa.string())}))
    assert out.num_rows == 0
    assert out["completion"].type == pa.string()


def test_a_column_of_a_table_is_not_replaced(refused):
    table = pa.table({"id": [1], "prompt": ["one"], "completion": ["mine"]})
    assert "has a column 'completion' already" in refused(bf.ColumnError, table)
    del table
    assert "no column 'prompt'" in refused(bf.ColumnError, pa.table({"id": [1]}))


def test_polars_objects_that_are_no_uuids_are_refused(refused):
    ids = pl.Series([uuid.UUID(int=1), object()], dtype=pl.Object)
    message = refused(bf.ColumnError, pl.DataFrame({"prompt": ["a", "b"]}).with_columns(id=ids))
    assert "Python objects" in message


# --- Values of a template are those of the row ----------------------------------------------------


def test_objects_of_several_types_stand_as_they_are(complete):
    moments = [dt.date(2024, 1, 2), dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC), 1, np.int64(3), "x"]
    frame = pd.DataFrame({"id": range(5), "value": pd.Series(moments, dtype=object)})
    out = complete(frame, None, template="<{value}>")
    assert out["completion"].tolist() == [f"echo: <{moment}>" for moment in moments]


@pytest.mark.parametrize(
    "values",
    [
        pd.period_range("2024-01", periods=1, freq="M"),
        pd.interval_range(0, 1, periods=1),
        pd.to_timedelta(["1 day"]),
        [{"a": 1}],
        [pd.Timedelta("1 day")],
    ],
    ids=["period", "interval", "timedelta", "dict", "object timedelta"],
)
def test_what_has_no_plain_text_is_refused_in_a_template(refused, values):
    frame = pd.DataFrame({"id": [1], "word": values})
    assert "Column 'word' of the template holds" in refused(
        bf.ColumnError, frame, None, template="Say {word}"
    )


def test_a_template_that_comes_to_nothing_is_not_sent(frames, complete, paid):
    out = complete(frames.make({"id": [1, 2], "word": ["", "x"]}), None, template="{word}")
    assert frames.values(out, "completion_status") == ["skipped", "ok"]
    assert paid() == 1


def test_dates_among_times_are_no_ids(refused):
    ids = pd.Series([dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC), dt.date(2024, 1, 2)], dtype=object)
    frame = pd.DataFrame({"id": ids[::-1], "prompt": ["a", "b"]})
    message = refused(bf.ColumnError, frame)
    assert "dates and times in one" in message or "one type" in message
