"""Texts become vectors: the same promises, another endpoint."""

import base64
import hashlib
import json
import math
import struct

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchframe as bf
from batchframe.emulator import LocalServer

MODEL = "text-embedding-3-small"


@pytest.fixture
def embed(client, checkpoint):
    """`bf.embed` on the server, quick and quiet."""

    def call(frame, /, text_col="text", id_col="id", **kwargs):
        settings = {
            "model": MODEL,
            "client": client,
            "checkpoint": checkpoint,
            "poll_interval": 0.01,
            "progress": False,
        }
        return bf.embed(frame, text_col, id_col, **settings | kwargs)

    return call


def expected(text, size):
    """The local server's vector of a text: its hash, of length 1, in 32-bit floats."""
    raw = [byte - 127.5 for byte in hashlib.shake_256(text.encode()).digest(size)]
    length = math.sqrt(sum(value * value for value in raw))
    return [struct.unpack("f", struct.pack("f", value / length))[0] for value in raw]


def vectors(frames, frame, column="embedding"):
    values = frame[column].to_list()
    return [
        None if value is None or value is pd.NA else [float(x) for x in value] for value in values
    ]


def test_every_row_has_the_vector_of_its_own_text(frames, embed, client):
    texts = ["tree", None, "house\u2028", "", "tree"]
    out = embed(frames.make({"id": range(5), "text": texts}), dimensions=4)

    assert vectors(frames, out) == [expected(t, 4) if t else None for t in texts]
    assert frames.values(out, "embedding_status") == ["ok", "skipped", "ok", "skipped", "ok"]
    batch = client.batches.list(limit=1).data[0]
    line = json.loads(client.files.content(batch.input_file_id).text.split("\n")[0])
    assert batch.endpoint == line["url"] == "/v1/embeddings"
    assert line["body"] == {
        "model": MODEL,
        "dimensions": 4,
        "encoding_format": "base64",
        "input": "tree",
    }


@pytest.mark.parametrize("texts", [["one", None], [None, None]], ids=["an answer", "none"])
@pytest.mark.parametrize(
    ("dimensions", "kind"), [(4, pl.Array(pl.Float32, 4)), (None, pl.List(pl.Float32))]
)
def test_the_columns_are_typed_whatever_comes_back(embed, texts, dimensions, kind):
    frame = pl.DataFrame({"id": ["a", "b"], "text": texts}, schema_overrides={"text": pl.String})
    assert embed(frame, dimensions=dimensions)["embedding"].dtype == kind


def test_numbers_of_numpy_are_numbers(embed, paid):
    frame = pl.DataFrame({"id": [1], "text": ["tree"]})
    out = embed(frame, dimensions=np.int64(4), max_retries=np.uint8(0), timeout=np.int32(60))
    assert out["embedding"].dtype == pl.Array(pl.Float32, 4)
    assert embed(frame, dimensions=4, max_error_ratio=np.float32(0.5)).equals(out)
    assert paid() == 1


def test_a_table_has_typed_vectors_without_any_answer(embed):
    table = pa.table({"id": ["a"], "text": pa.array([None], pa.string())})
    assert embed(table, dimensions=4)["embedding"].type == pa.list_(pa.float32(), 4)
    assert embed(table)["embedding"].type == pa.large_list(pa.float32())


def test_pandas_has_arrays_of_32_bit_floats_that_survive_parquet(embed, tmp_path):
    out = embed(pd.DataFrame({"id": [1, 2], "text": ["one", None]}), dimensions=4)
    out.to_parquet(tmp_path / "out.parquet")
    for frame in (out, pd.read_parquet(tmp_path / "out.parquet")):
        first, second = frame["embedding"]
        assert isinstance(first, np.ndarray)
        assert first.dtype == np.float32
        assert first.tolist() == expected("one", 4)
        assert second is None
    assert (
        pq.read_schema(tmp_path / "out.parquet").field("embedding").type.value_type == pa.float32()
    )


def test_a_second_call_sends_nothing_and_a_grown_frame_its_new_rows(frames, embed, paid):
    first = embed(frames.make({"id": [1, 2], "text": ["a", "b"]}), dimensions=4)
    grown = embed(frames.make({"id": [3, 2, 1], "text": ["c", "b", "a"]}), dimensions=4)
    assert vectors(frames, grown)[::-1][:2] == vectors(frames, first)
    assert paid() == 3


def test_the_cost_is_half_of_the_standard_rate(frames, embed):
    out = embed(frames.make({"id": [1], "text": ["one two three"]}))
    assert frames.values(out, "embedding_input_tokens") == [3]
    # text-embedding-3-small: $0.02 a million tokens, half of it in a batch.
    assert frames.values(out, "embedding_cost_usd") == [pytest.approx(3 * 0.01e-6)]
    assert len(vectors(frames, out)[0]) == 1536


def test_answers_that_are_no_such_vector_are_invalid(frames, embed):
    packed = base64.b64encode(struct.pack("<4f", 1, 2, 3, math.inf)).decode()
    answers = {
        "list": [1, 2, 3, 4],
        "short": [1, 2],
        "text": "###",
        "odd": base64.b64encode(b"abc").decode(),
        "words": ["a", "b", "c", "d"],
        "infinite": packed,
    }

    def answer(body):
        data = [{"embedding": answers[body["input"]], "index": 0}]
        return 200, {"model": body["model"], "data": data, "usage": {"prompt_tokens": 1}}

    with LocalServer(answer, stage_seconds=0) as server:
        frame = frames.make({"id": range(6), "text": list(answers)})
        out = embed(frame, dimensions=4, client=server.client())

    assert vectors(frames, out) == [[1, 2, 3, 4], None, None, None, None, None]
    assert frames.values(out, "embedding_status") == ["ok", *["invalid"] * 5]
    errors = frames.values(out, "embedding_error")
    assert errors[1] == "invalid: the vector has 2 dimensions, not 4"
    assert errors[2] == "invalid: this is no vector of numbers: '###'"
    assert errors[5] == "invalid: the vector holds a number that is not finite"


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"dimensions": 0}, bf.ParameterError, "dimensions=0 must be"),
        ({"dimensions": 1.5}, bf.ParameterError, "dimensions=1.5 must be"),
        ({"encoding_format": "float"}, bf.ParameterError, "encoding_format= cannot be set"),
        ({"input": "x"}, bf.ParameterError, "input= cannot be set"),
        ({"temperature": 0}, bf.ParameterError, "embed.. and /v1/embeddings know no keyword"),
        ({"dimension": 4}, bf.ParameterError, "Did you mean 'dimensions'"),
        ({"text_col": "texts"}, bf.ColumnError, "no column 'texts' for text_col"),
        ({"output": "text", "text_col": "text"}, bf.ColumnError, "'text' already"),
        ({"nulls": "raise"}, bf.RowError, "1 row has no prompt: column 'text'"),
    ],
)
def test_what_does_not_fit_is_refused(frames, embed, calls, checkpoint, keywords, error, words):
    frame = frames.make({"id": [1, 2], "text": ["one", None]})
    with pytest.raises(error, match=words):
        embed(frame, **keywords)
    assert calls() == {}
    assert not checkpoint.exists()


def test_a_call_that_does_not_fit_is_shown_the_right_one():
    with pytest.raises(bf.ParameterError) as caught:
        bf.embed(pd.DataFrame(), "text", "id")
    assert str(caught.value) == (
        "This call does not fit embed(): it lacks model. Nothing was sent. Call "
        'df.openai_batch.embed("text", "id", model="text-embedding-3-small"), or '
        'batchframe.embed(df, "text", "id", model="text-embedding-3-small"): all else goes by '
        "keyword."
    )


def test_the_accessor_and_rows_without_ids(embed, client, checkpoint, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    frame = pl.DataFrame({"text": ["a", "b", "a"]})
    out = frame.openai_batch.embed("text", model=MODEL, dimensions=2, client=client, progress=False)
    assert out["embedding"].to_list() == [expected(text, 2) for text in "aba"]


def test_a_vector_has_a_size_that_there_may_be(embed):
    with pytest.raises(bf.ParameterError, match=r"dimensions=8589934592 must be .* to 65,536"):
        embed(pl.DataFrame({"id": [1], "text": ["x"]}), dimensions=2**33)
