"""Parquet in, parquet out: the same rows in the same order, whatever the files."""

import io
import json
import re
import sys

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, field_validator

import batchframe as bf
from batchframe.emulator import CallableModel, Fault, LocalServer
from batchframe.frames.sources import Source


@pytest.fixture
def convert(client, checkpoint, tmp_path):
    """`bf.complete_parquet` on the server, quick and quiet; gives what was written."""

    def call(source, /, prompt_col="prompt", id_col="id", *, target="out.parquet", **kwargs):
        settings = {
            "model": "gpt-4o-mini",
            "client": client,
            "checkpoint": checkpoint,
            "poll_interval": 0.01,
            "progress": False,
        }
        path = bf.complete_parquet(
            source, tmp_path / target, prompt_col, id_col, **settings | kwargs
        )
        assert path == tmp_path / target
        return pl.read_parquet(path)

    return call


@pytest.fixture
def source(tmp_path):
    """Write rows as a parquet file; gives its path."""

    def write(data, name="in.parquet", **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table = data if isinstance(data, pa.Table) else pa.table(data)
        pq.write_table(table, path, **options)
        return path

    return write


def numbered(start, stop):
    return {"id": list(range(start, stop)), "prompt": [f"row {n}" for n in range(start, stop)]}


def test_rows_come_back_in_their_order_with_all_their_columns(convert, source, paid):
    data = {**numbered(0, 1000), "other": [float(n) for n in range(1000)]}
    data["prompt"][7] = None
    out = convert(source(data, row_group_size=70), limits=bf.Limits(max_requests=300))

    assert out.select("id", "prompt", "other").to_dict(as_series=False) == data
    assert out["completion"].to_list() == [
        None if prompt is None else f"echo: {prompt}" for prompt in data["prompt"]
    ]
    assert out["completion_status"].to_list().count("skipped") == 1
    assert paid() == 999


def test_source_and_target_may_be_named(source, client, checkpoint, tmp_path):
    named = {"source": source(numbered(0, 2)), "target": tmp_path / "out.parquet"}
    columns = {"prompt_col": "prompt", "id_col": "id", "model": "gpt-4o-mini"}
    settings = {"client": client, "checkpoint": checkpoint, "progress": False}
    assert bf.complete_parquet(**named, **columns, **settings) == tmp_path / "out.parquet"


def test_it_writes_what_complete_gives(convert, source, complete):
    data = {**numbered(0, 10), "list": [[n] for n in range(10)]}
    out = convert(source(data), details=True)
    pl.testing.assert_frame_equal(out, complete(pl.DataFrame(data), details=True))


def test_files_of_a_directory_a_glob_and_a_list_are_read_in_the_order_of_their_names(
    convert, source, tmp_path, paid
):
    for part in (2, 0, 1):
        source(numbered(part * 10, part * 10 + 10), f"in/part-{part}.parquet")
    expected = [f"echo: row {n}" for n in range(30)]
    for where in (tmp_path / "in", str(tmp_path / "in/part-*.parquet")):
        assert convert(where)["completion"].to_list() == expected
    both = [tmp_path / "in/part-1.parquet", tmp_path / "in/part-0.parquet"]
    assert convert(both)["id"].to_list() == [*range(10, 20), *range(10)]
    assert paid() == 30


def test_rows_that_are_many_are_looked_at_some_at_a_time(convert, source, paid, monkeypatch):
    monkeypatch.setattr("batchframe.frames.sources._WINDOW_ROWS", 7)
    out = convert(source(numbered(0, 50)), limits=bf.Limits(max_requests=4))
    assert out["completion"].to_list() == [f"echo: row {n}" for n in range(50)]
    assert paid() == 50
    grown = convert(source(numbered(0, 60)), limits=bf.Limits(max_requests=4))
    assert grown["completion"].to_list() == [f"echo: row {n}" for n in range(60)]
    assert paid() == 60


WORDS = pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (WORDS, "x"),
        (pa.list_(WORDS), ["x", "y"]),
        (pa.struct([("word", WORDS)]), {"word": "x"}),
    ],
    ids=str,
)
def test_columns_with_dictionaries_stand_in_several_row_groups(
    convert, source, tmp_path, kind, value
):
    table = pa.table({**numbered(0, 50), "other": pa.array([value, None] * 25, kind)})
    out = convert(source(table, row_group_size=7))
    assert out["completion"].to_list() == [f"echo: row {n}" for n in range(50)]
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.select(table.column_names).equals(table.unify_dictionaries())


def test_small_files_go_together(convert, source, tmp_path, calls):
    for part in range(20):
        source(numbered(part * 2, part * 2 + 2), f"in/{part:02}.parquet")
    out = convert(tmp_path / "in")
    assert out["completion"].to_list() == [f"echo: row {n}" for n in range(40)]
    assert calls()["batches.create"] == 1


@pytest.mark.parametrize(
    "texts",
    [
        # One text in all rows stands once in the file.
        pa.repeat("x" * 10_000, 4_000).dictionary_encode().dictionary_decode(),
        # Few rows that are large, behind many that are small.
        pa.chunked_array(
            [pa.repeat("x", 100_000), pa.array(["x" * 200_000 + str(n) for n in range(200)])]
        ),
    ],
    ids=["repeated", "unequal"],
)
def test_a_window_holds_what_it_may_whatever_the_file_says(source, tmp_path, texts):
    table = pa.table({"id": pa.array(range(len(texts))), "text": texts})
    with pq.ParquetWriter(tmp_path / "in.parquet", table.schema) as writer:
        for part in (table.slice(0, 100_000), table.slice(100_000)):
            writer.write_table(part)
    windows = Source(tmp_path / "in.parquet", tmp_path / "out.parquet").windows()
    assert max(window.nbytes for window in windows) < 40_000_000


def test_windows_of_small_files_hold_what_they_may(source, tmp_path):
    # A document each, and questions about it: it stands once in its file.
    for part in range(20):
        document = pa.repeat(f"{part:0100000}", 100)
        source(
            {"id": range(part * 100, part * 100 + 100), "text": document}, f"in/{part:02}.parquet"
        )
    windows = Source(tmp_path / "in", tmp_path / "out.parquet").windows()
    assert max(window.nbytes for window in windows) < 40_000_000


def test_a_large_row_group_is_not_held_as_the_file_has_it(source, tmp_path):
    texts = [f"{n:010}" * 200 for n in range(50_000)]
    path = source({"id": range(50_000), "text": texts}, compression="none", use_dictionary=False)
    assert pq.read_metadata(path).num_row_groups == 1
    assert pq.read_metadata(path).row_group(0).total_byte_size > 100_000_000
    before = pa.total_allocated_bytes()
    windows = Source(path, tmp_path / "out.parquet").windows()
    assert max(pa.total_allocated_bytes() - before for _ in windows) < 80_000_000


def test_columns_that_are_not_sent_make_no_batches(convert, source, calls):
    data = {**numbered(0, 3_000), "page": pa.repeat("x" * 100_000, 3_000)}
    out = convert(source(data))
    assert out["completion"].to_list() == [f"echo: row {n}" for n in range(3_000)]
    assert out["page"].str.len_bytes().unique().to_list() == [100_000]
    assert calls()["batches.create"] == 1


def test_rows_that_pyarrow_does_not_find_are_not_dropped(convert, source, calls):
    words = pa.array([["word"]], pa.list_(pa.dictionary(pa.int32(), pa.string())))
    # Of such a file pyarrow 26 reads a column without rows.
    path = source({**numbered(0, 1), "words": words}, data_page_size=50, write_batch_size=8)
    with pytest.raises(
        bf.ParameterError, match=r"in\.parquet cannot be read .*row group 0 has 1 rows, and 0 were"
    ):
        convert(path)
    assert calls() == {}


def test_many_categories_do_not_make_windows_small(source, tmp_path):
    words = pa.array([f"{n:0100}" for n in range(50_000)])
    column = pa.DictionaryArray.from_arrays(pa.array(range(2_000), pa.int32()), words)
    path = source({"id": pa.array(range(2_000)), "word": column})
    assert len(pq.read_table(path)["word"].chunk(0).dictionary) == 50_000
    windows = Source(path, tmp_path / "out.parquet").windows()
    assert [len(window) for window in windows] == [2_000]


def test_rows_are_told_by_their_place_in_the_source(convert, source, calls, monkeypatch):
    monkeypatch.setattr("batchframe.frames.sources._WINDOW_ROWS", 10)
    data = numbered(0, 30)
    data["prompt"][27] = None
    with pytest.raises(bf.RowError, match=r"empty in row 7, .* Rows count from row 20 of the"):
        convert(source(data), nulls="raise")
    data["prompt"][27] = "x" * 3_000
    with pytest.raises(bf.RowError, match=r"The first is row 27, id 27, with 3,"):
        convert(source(data), limits=bf.Limits(max_bytes=2_000))
    assert calls() == {}


def test_bars_count_rows_that_were_not_looked_at_yet(convert, source, monkeypatch):
    monkeypatch.setattr("batchframe.frames.sources._WINDOW_ROWS", 10)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    convert(source(numbered(0, 50)), progress=True)
    assert set(re.findall(r"of (\d+) rows", terminal.getvalue())) == {"50"}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_that_is_damaged_is_named(convert, source, calls):
    path = source(numbered(0, 2000), row_group_size=500, compression="none")
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(3).column(1).data_page_offset
    data[start : start + 30] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(bf.ParameterError, match=r"in\.parquet cannot be read as parquet: "):
        convert(path)
    assert calls() == {}


def test_rows_that_fail_for_a_while_are_tried_again_in_every_window(convert, source, monkeypatch):
    monkeypatch.setattr("batchframe.frames.sources._WINDOW_ROWS", 5)
    tries = {}

    def answer(body):
        text = body["messages"][-1]["content"]
        tries[text] = tries.get(text, 0) + 1
        if tries[text] == 1 and text.endswith(("3", "8")):
            return 503, {"error": {"message": "later", "code": "server_error"}}
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    with LocalServer(answer, stage_seconds=0) as server:
        out = convert(source(numbered(0, 20)), client=server.client())
        # Those of several windows may go together, as soon as nothing else waits.
        assert 4 < server.calls()["batches.create"] <= 4 + 4
    assert out["completion"].to_list() == [f"row {n}" for n in range(20)]
    assert sum(tries.values()) == 24


def test_a_call_that_died_is_resumed(convert, source, client, tmp_path):
    path = source(numbered(0, 40))
    with LocalServer(stage_seconds=0) as server:
        server.inject(Fault("files.content", "error-before:401"))
        keywords = {"client": server.client(), "limits": bf.Limits(max_requests=10)}
        with pytest.raises(bf.AuthenticationError):
            convert(path, **keywords)
        assert not (tmp_path / "out.parquet").exists()
        out = convert(path, **keywords)
        assert server.billed().requests == 40
        assert server.calls()["batches.create"] == 4
    assert out["completion"].to_list() == [f"echo: row {n}" for n in range(40)]


def test_the_target_is_replaced_when_all_of_it_is_there(convert, source, tmp_path):
    (tmp_path / "out.parquet").write_bytes(b"old")
    path = source(numbered(0, 3))
    with pytest.raises(bf.ColumnError):
        convert(path, "promt")
    assert (tmp_path / "out.parquet").read_bytes() == b"old"
    convert(path)
    assert pl.read_parquet(tmp_path / "out.parquet").height == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "checkpoint",
        "in.parquet",
        "out.parquet",
    ]


def test_the_metadata_stay_and_pandas_finds_its_index(convert, source, tmp_path):
    frame = pd.DataFrame(numbered(0, 3), index=pd.Index(["x", "y", "z"], name="key"))
    convert(source(pa.Table.from_pandas(frame)))
    read = pd.read_parquet(tmp_path / "out.parquet")
    assert read.index.tolist() == ["x", "y", "z"]
    assert read["completion"].tolist() == ["echo: row 0", "echo: row 1", "echo: row 2"]
    assert b"pandas" in pq.read_schema(tmp_path / "out.parquet").metadata


def test_structured_answers_are_a_struct(convert, source, tmp_path):
    class Place(BaseModel):
        name: str
        size: int

    out = convert(source({"id": [1], "prompt": ["x"]}), response_format=Place)
    assert out["completion"].to_list() == [{"name": "echo: x", "size": 7}]
    assert json.loads(out["completion_text"][0]) == {"name": "echo: x", "size": 7}
    with duckdb.connect() as connection:
        answers = connection.read_parquet(str(tmp_path / "out.parquet"))
        assert answers.project("completion.size").fetchall() == [(7,)]


def test_templates_models_and_fields_stand_in_columns(convert, source):
    data = {"id": [1, 2], "word": ["a", "b"], "m": ["gpt-4o", "gpt-4o-mini"], "n": [50, None]}
    out = convert(
        source(data),
        None,
        template="Say {word}",
        model=bf.col("m"),
        max_completion_tokens=bf.col("n"),
        details=True,
    )
    assert out["completion"].to_list() == ["echo: Say a", "echo: Say b"]
    assert out["completion_model"].to_list() == data["m"]


def test_files_without_rows_or_prompts_need_no_key(convert, source, monkeypatch, calls):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    schema = pa.schema([("id", pa.int64()), ("prompt", pa.string())])
    out = convert(source(schema.empty_table()), client=None)
    assert out.height == 0
    assert out.schema["completion"] == pl.String
    out = convert(source({"id": [1], "prompt": pa.array([None], pa.string())}), client=None)
    assert out["completion_status"].to_list() == ["skipped"]
    assert calls() == {}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"id": [1, 2, 1], "prompt": ["a", "b", "c"]}, "repeats the id"),
        ({"id": [1, None, 3], "prompt": ["a", "b", "c"]}, "is null in row 1"),
        ({"id": [1, 2, 3], "prompt": [1, 2, 3]}, "prompts are text"),
        ({"id": [1, 2], "prompt": ["a", "b"], "completion": [1, 2]}, "'completion' already"),
        ({"id": [1, 2], "text": ["a", "b"]}, "There is no column 'prompt'"),
    ],
)
def test_bad_input_is_told_before_anything_is_sent(convert, source, calls, checkpoint, data, words):
    with pytest.raises(bf.InputError, match=words):
        convert(source(data))
    assert calls() == {}
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("label", "kind", "words"),
    [
        ("id", pa.string_view(), "repeats the id"),
        ("prompt", pa.binary_view(), "prompts are text"),
        ("id", pa.binary_view(), "ids are integers, text"),
    ],
)
def test_bad_input_in_views_is_told(convert, source, calls, label, kind, words):
    views = {label: pa.array([b"x", b"x"]).cast(kind)}
    with pytest.raises(bf.InputError, match=words):
        convert(source({"id": [1, 2], "prompt": ["a", "b"]} | views))
    assert calls() == {}


def test_bad_paths_are_told(convert, source, calls, tmp_path):
    path = source(numbered(0, 3))
    with pytest.raises(bf.ParameterError, match="names no parquet file"):
        convert(tmp_path / "none.parquet")
    with pytest.raises(bf.ParameterError, match="one of the files that are read"):
        convert(path, target="in.parquet")
    with pytest.raises(bf.ParameterError, match="There is no directory"):
        convert(path, target="none/out.parquet")
    (tmp_path / "there").mkdir()
    with pytest.raises(bf.ParameterError, match="there is no file that could be replaced"):
        convert(path, target="there")
    with pytest.raises(bf.ParameterError, match=r"cannot be written: File name too long\. Nothing"):
        convert(path, target="x" * 250)
    with pytest.raises(bf.ParameterError, match="target=None must be the path of a file"):
        bf.complete_parquet(path, None, "prompt", "id", model="gpt-4o-mini")
    with pytest.raises(bf.ParameterError, match="needs an id_col"):
        convert(path, "prompt", None)
    other = source({"id": ["a"], "prompt": ["x"]}, "other.parquet")
    with pytest.raises(bf.ParameterError, match="'id' is string there and int64 here"):
        convert([path, other])
    text = tmp_path / "text.parquet"
    text.write_text("no parquet")
    with pytest.raises(bf.ParameterError, match="cannot be read as parquet"):
        convert(text)
    assert calls() == {}


@pytest.mark.parametrize("source", [None, 5, [5], pl.DataFrame({"id": [1]}), {"id": [1]}], ids=repr)
def test_what_is_no_source_is_told(convert, source):
    with pytest.raises(bf.ParameterError, match=r"^source= must be a path, a list of paths or a"):
        convert(source)


def test_files_that_fit_but_for_their_order_or_nulls_are_told_apart(convert, source):
    one = source({"id": [1], "prompt": ["x"]}, "a.parquet")
    other = source({"prompt": ["y"], "id": [2]}, "b.parquet")
    with pytest.raises(bf.ParameterError, match=r"a\.parquet: their order is 'prompt', 'id' there"):
        convert([one, other])
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), ("prompt", pa.string())])
    wide = source({"id": [4], "prompt": ["z"], **{f"c{n}": [n] for n in range(7)}}, "d.parquet")
    with pytest.raises(
        bf.ParameterError, match=r"'c4' is int64 there and missing here, and 2 more"
    ):
        convert([one, wide])
    strict = source(pa.table({"id": [3], "prompt": ["z"]}, schema), "c.parquet")
    with pytest.raises(bf.ParameterError, match="'id' is int64 not null there and int64 here"):
        convert([one, strict])


def test_types_that_arrow_lacks_are_told(convert, calls, tmp_path):
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]}).with_columns(pl.col("id").cast(pl.Int128))
    frame.write_parquet(tmp_path / "in.parquet")
    with pytest.raises(bf.ParameterError, match=r"in\.parquet cannot be read as parquet: Integers"):
        convert(tmp_path / "in.parquet")
    assert calls() == {}


def test_no_directory_is_its_own_target(convert, source, tmp_path):
    source(numbered(0, 2), "data/in.parquet")
    convert(tmp_path / "data", target="data/out.parquet")
    with pytest.raises(bf.ParameterError, match="one of the files that are read"):
        convert(tmp_path / "data", target="data/out.parquet")


def test_a_directory_is_read_as_pyarrow_reads_it(convert, source, tmp_path):
    for name in ("1.parquet", "_temporary/2.parquet", ".3.parquet", "_4.parquet", "deep/5.parquet"):
        n = int(name.removesuffix(".parquet")[-1])
        source(numbered(n, n + 1), f"data/{name}")
    expected = ds.dataset(tmp_path / "data").to_table()["id"].to_pylist()

    assert convert(tmp_path / "data")["id"].to_list() == expected == [1, 5]


def test_columns_in_the_names_of_folders_are_not_lost_without_a_word(convert, source, tmp_path):
    for part in range(2):
        source(numbered(part, part + 1), f"data/day={part}/rows.parquet")
    with pytest.raises(bf.ParameterError, match=r"names of its folders .*: day\. Nothing was sent"):
        convert(tmp_path / "data")
    assert convert(str(tmp_path / "data/*/*.parquet"))["id"].to_list() == [0, 1]

    data = {**numbered(2, 3), "day": ["2"]}
    source(data, "both/day=2/rows.parquet")
    assert convert(tmp_path / "both")["day"].to_list() == ["2"]


def test_a_filtered_dataset_is_not_sent_whole(convert, source, calls, tmp_path):
    dataset = ds.dataset(source(numbered(0, 4)))
    with pytest.raises(bf.ParameterError, match="The dataset is filtered, and its files are read"):
        convert(dataset.filter(ds.field("id") > 1))
    assert calls() == {}


def test_a_dataset_of_parquet_files_is_a_source(convert, source, tmp_path):
    for part in range(3):
        source(numbered(part * 5, part * 5 + 5), f"data/day={part}/rows.parquet")

    out = convert(ds.dataset(tmp_path / "data", format="parquet"))

    assert out["completion"].to_list() == [f"echo: row {n}" for n in range(15)]
    with pytest.raises(bf.ParameterError, match=r"names of its folders .*: day"):
        convert(ds.dataset(tmp_path / "data", format="parquet", partitioning="hive"))
    (tmp_path / "rows.csv").write_text("id,prompt\n1,one\n")
    with pytest.raises(bf.ParameterError, match="dataset of parquet files"):
        convert(ds.dataset(tmp_path / "rows.csv", format="csv"))


@pytest.mark.parametrize("rows", [range(20)[::-1], range(15), range(200_000)])
def test_a_source_that_changes_meanwhile_is_joined_with_no_answers(convert, source, tmp_path, rows):
    path = source(numbered(0, 20))
    others = {"id": list(rows), "prompt": [f"row {n}" for n in rows]}

    def answer(body):
        # As another program may do in the hours that a batch takes.
        if others:
            source({name: others.pop(name) for name in ("id", "prompt")})
        return f"echo: {body['messages'][-1]['content']}"

    with LocalServer(CallableModel(answer), stage_seconds=0) as server:
        with pytest.raises(bf.ParameterError, match=r"in\.parquet was changed while"):
            convert(path, client=server.client())
        assert [file.name for file in tmp_path.iterdir() if "out" in file.name] == []

        source(numbered(0, 20))
        out = convert(path, client=server.client())
        assert out["completion"].to_list() == [f"echo: row {n}" for n in range(20)]
        assert set(server.executions().values()) == {1}


def test_a_source_that_changes_while_its_answers_are_written_leaves_no_target(
    convert, source, tmp_path
):
    path = source(numbered(0, 20))
    left = [numbered(0, 20)]

    class Answer(BaseModel):
        text: str

        @field_validator("text")
        @classmethod
        def read(cls, text: str) -> str:
            if left:  # all rows were read for the last time, and the target is not there yet
                source(left.pop())
            return text

    with LocalServer(CallableModel(lambda _: '{"text": "fine"}'), stage_seconds=0) as server:
        call = {"client": server.client(), "response_format": Answer}
        with pytest.raises(bf.ParameterError, match=r"in\.parquet was changed while"):
            convert(path, **call)
        assert [file.name for file in tmp_path.iterdir() if "out" in file.name] == []

        assert convert(path, **call)["completion"].to_list() == [{"text": "fine"}] * 20
        assert set(server.executions().values()) == {1}
