"""The frames that come back are written to parquet and read by a library that is none of ours."""

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

import batchframe as bf
from batchframe.emulator import LocalServer


class Review(BaseModel):
    title: str
    stars: int | None
    tags: list[str]


ANSWER = '{"title": "Moby", "stars": null, "tags": ["a"]}'


@pytest.fixture
def read(frames, tmp_path):
    """Write a frame to parquet, and ask DuckDB about it."""

    def ask(frame, query):
        path = tmp_path / "out.parquet"
        if isinstance(frame, pa.Table):
            pq.write_table(frame, path)
        else:
            frames.through_parquet(frame, path)
        with duckdb.connect() as connection:
            return connection.sql(query.format(frame=f"'{path}'")).fetchall()

    return ask


@pytest.mark.parametrize("prompts", [["one", None, ""], [None, None, None]], ids=["some", "none"])
def test_answers_tokens_and_costs(frames, complete, read, prompts):
    frame = frames.make({"id": [1, 2, 3], "prompt": prompts})
    if prompts[0] is None:
        frame = frame.head(0)
    out = complete(frame)
    n = len([prompt for prompt in prompts if prompt])
    assert read(
        out,
        "SELECT count(completion), sum(completion_cost_usd) > 0, "
        "sum(completion_input_tokens + completion_output_tokens) FROM {frame}",
    ) == [(n, n > 0 or None, (3 + 4 + 1 + 3) * n or None)]
    types = dict(read(out, "SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {frame})"))
    assert (
        types["completion"] == types["completion_status"] == types["completion_error"] == "VARCHAR"
    )
    assert types["completion_output_tokens"] == "BIGINT"
    assert types["completion_cost_usd"] == "DOUBLE"


def test_structured_answers(frames, complete, read):
    def answer(body):
        return 200, {"choices": [{"message": {"content": ANSWER}, "finish_reason": "stop"}]}

    with LocalServer(answer, stage_seconds=0) as server:
        out = complete(
            frames.make({"id": [1, 2], "prompt": ["x", None]}),
            response_format=Review,
            client=server.client(),
        )
    if isinstance(out, pl.DataFrame):
        query = "SELECT completion.title, completion.stars, completion.tags[1] FROM {frame}"
    else:
        query = "SELECT completion_title, completion_stars, completion_tags[3:3] FROM {frame}"
    assert read(out, query)[:1] == [("Moby", None, "a")]
    assert read(out, query)[1][:2] == (None, None)


def test_vectors_and_verdicts(frames, client, checkpoint, read):
    frame = frames.make({"id": [1, 2], "text": ["violence", None]})
    options = {"client": client, "progress": False}
    out = bf.embed(
        frame,
        "text",
        "id",
        model="text-embedding-3-small",
        dimensions=4,
        checkpoint=checkpoint,
        **options,
    )
    query = "SELECT id, len(embedding), list_sum([x * x for x in embedding]) FROM {frame}"
    (_, size, squares), nothing = read(out, query)
    assert size == 4
    assert squares == pytest.approx(1, abs=1e-6)
    assert nothing == (2, None, None)

    judged = bf.moderate(frame, "text", "id", checkpoint=checkpoint.with_name("other"), **options)
    query = "SELECT moderation_flagged, moderation_violence, moderation_hate FROM {frame}"
    assert read(judged, query) == [(True, True, False), (None, None, None)]
