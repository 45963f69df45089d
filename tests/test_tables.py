"""CSV and JSONL with new columns: what stood there stands there, whatever it was."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batchframe.errors import ColumnError, ParameterError
from batchframe.tables import Format, format_of, needed_of, read_rows, write_table, writer_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)


def written(rows, format_, new):
    file = io.BytesIO()
    writer_of(rows, format_)(file, new)
    return file.getvalue()


@given(ROWS, st.sampled_from(["\n", "\r\n"]), st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
def test_csv_comes_back_field_by_field_with_the_new_ones(rows, end, quoting):
    # Python's own writer leaves it without quotes where it does not end lines (before 3.13).
    assume(quoting == csv.QUOTE_ALL or end == "\r\n" or "\r" not in "".join(map("".join, rows)))
    source = io.StringIO(newline="")
    csv.writer(source, lineterminator=end, quoting=quoting).writerows([("id", "text"), *rows])
    read = read_rows(source.getvalue().encode(), Format.CSV, "in.csv")
    assert needed_of(read, {"text"})["text"].to_pylist() == [text for _, text in rows]

    out = written(read, Format.CSV, pa.table({"new": [text for _, text in rows]})).decode()

    assert list(csv.reader(io.StringIO(out, newline=""), strict=True)) == [
        ["id", "text", "new"],
        *([*row, row[1]] for row in rows),
    ]
    # Without what was added, it is the source.
    first = f"id,text{end}" if quoting == csv.QUOTE_MINIMAL else f'"id","text"{end}'
    assert out.startswith(first.removesuffix(end) + f",new{end}")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | TEXTS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.lists(
    st.dictionaries(TEXTS.filter(lambda name: name != "new"), VALUES, max_size=4),
    min_size=1,
    max_size=5,
)


@given(OBJECTS, st.booleans(), st.sampled_from(["\n", "\r\n", " \n"]))
def test_jsonl_comes_back_object_by_object_with_the_new_fields(objects, ascii_only, end):
    lines = [json.dumps(one, ensure_ascii=ascii_only) for one in objects]
    read = read_rows(end.join(lines).encode(), Format.JSONL, "in.jsonl")
    new = [json.dumps(one, ensure_ascii=False) + "\u2028\x85" for one in objects]

    out = written(read, Format.JSONL, pa.table({"new": new})).decode()

    back = [line for line in out.split("\n") if line.strip()]
    assert [json.loads(line) for line in back] == [
        {**one, "new": text} for one, text in zip(objects, new, strict=True)
    ]
    assert all(line.startswith(before[:-1]) for line, before in zip(back, lines, strict=True))


def test_nothing_and_an_empty_text_are_two_things_in_csv():
    file = io.BytesIO()
    table = pa.table(
        {
            "a": [None, "", "x"],
            "b": [True, False, None],
            "c": [1.5e-06, 2.0, None],
            "d": [{"k": [1]}, None, {"k": []}],
            "e": pa.array([0, 1, None], pa.timestamp("us")),
        }
    )
    write_table(file, table, Format.CSV)

    assert file.getvalue().decode().split("\r\n") == [
        "a,b,c,d,e",
        ',true,1.5e-06,"{""k"":[1]}",1970-01-01T00:00:00',
        '"",false,2.0,,1970-01-01T00:00:00.000001',
        'x,,,"{""k"":[]}",',
        "",
    ]


def test_a_file_without_rows_stays_one():
    new = pa.table({"new": pa.array([], pa.string())})
    assert written(read_rows(b"id,text\n", Format.CSV, "a"), Format.CSV, new) == b"id,text,new\n"
    empty = read_rows(b"", Format.JSONL, "a")
    assert needed_of(empty, {"text"}).column_names == ["text"]
    assert written(empty, Format.JSONL, new) == b""


def test_the_ending_says_the_format():
    names = ["a.csv", "a.CSV", "a.jsonl", "a.ndjson", "a.parquet", "a.b.pq"]
    found = [format_of(name, "--to") for name in names]
    assert found == ["csv", "csv", "jsonl", "jsonl", "parquet", "parquet"]
    with pytest.raises(ParameterError, match="Say it by --to"):
        format_of("-", "--to")


def parquet_of(**columns):
    file = io.BytesIO()
    write_table(file, pa.table(columns), Format.PARQUET)
    return read_rows(file.getvalue(), Format.PARQUET, "in.parquet")


@pytest.mark.parametrize("format_", [Format.CSV, Format.JSONL])
def test_what_json_has_no_form_for_is_written_as_its_text(format_):
    # Python's own durations and times have no nanoseconds: pandas' are given instead.
    rows = parquet_of(d=pa.array([1], pa.duration("ns")), t=pa.array([[1]], pa.list_(NS)))
    out = written(rows, format_, pa.table({"new": ["x"]})).decode()

    assert "0 days 00:00:00.000000001" in out
    assert "1970-01-01 00:00:00.000000001" in out


NS = pa.timestamp("ns")


@pytest.mark.parametrize("format_", [Format.CSV, Format.JSONL])
def test_what_has_no_text_is_told_before_anything_is_paid(format_):
    rows = parquet_of(t=pa.array([2**45], pa.timestamp("s")))
    with pytest.raises(ColumnError, match=f"cannot be written as {format_}.*Nothing was sent"):
        writer_of(rows, format_)
    assert writer_of(rows, Format.PARQUET)


def parquet(labels):
    file = io.BytesIO()
    columns = [pa.array(["a long text " * 50, f"in column {n}"]) for n in range(len(labels))]
    pq.write_table(pa.table(columns, names=labels), file)
    return file.getvalue()


def test_parquet_with_two_columns_of_one_name_is_refused_by_that_name():
    with pytest.raises(ColumnError, match=r"^in\.parquet has more than one column .* 'prompt'\. "):
        read_rows(parquet(["prompt", "id", "prompt"]), Format.PARQUET, "in.parquet")


def test_parquet_whose_pages_are_damaged_is_refused_by_its_name():
    data = bytearray(parquet(["prompt"]))
    data[30:60] = bytes(30)
    with pytest.raises(ParameterError, match=r"^in\.parquet cannot be read as parquet: .*[^.]\. N"):
        read_rows(bytes(data), Format.PARQUET, "in.parquet")


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_parquet_is_read_without_a_thread_that_could_outlive_the_process():
    # A thread of Arrow that still holds Python's bytes when Python ends aborts the process.
    code = """
        import io, os
        import pyarrow as pa
        import pyarrow.parquet as pq
        from batchframe.tables import Format, read_rows

        file = io.BytesIO()
        pq.write_table(pa.table({"id": [1, 2], "prompt": ["a", "b"]}), file)
        before = len(os.listdir("/proc/self/task"))
        rows = read_rows(file.getvalue(), Format.PARQUET, "in.parquet")
        assert rows.values(["prompt"])["prompt"].to_pylist() == ["a", "b"]
        print(len(os.listdir("/proc/self/task")) - before)
    """
    root = Path(__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", dedent(code)], cwd=root, capture_output=True, check=True, text=True
    )
    assert ended.stdout == "0\n"
