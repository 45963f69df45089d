"""What a checkpoint holds comes onto any frame that has its rows; nothing is sent."""

import json

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pydantic import BaseModel

import batchframe as bf
from batchframe.emulator import LocalServer

DATA = {"id": [1, 2, 3, 4], "prompt": ["one", "two", None, "four"]}


def test_answers_come_onto_frames_of_any_library_and_order(frames, complete, calls, checkpoint):
    out = complete(pd.DataFrame(DATA))
    before = calls()

    frame = frames.make({name: values[::-1] for name, values in DATA.items()})
    attached = bf.attach(frame, checkpoint, "prompt", "id")

    assert frames.values(attached, "completion") == ["echo: four", None, "echo: two", "echo: one"]
    assert frames.values(attached, "completion_status") == ["ok", "skipped", "ok", "ok"]
    costs = frames.values(attached, "completion_cost_usd")
    assert costs == out["completion_cost_usd"].tolist()[::-1]
    assert calls() == before


def test_what_is_attached_is_what_the_call_gave(frames, complete, checkpoint):
    frame = frames.make(DATA)
    out = complete(frame, details=True, output="answer")
    again = bf.attach(frame, checkpoint, "prompt", "id", details=True, output="answer")
    frames.assert_frame_equal(again, out)


def test_rows_that_the_checkpoint_does_not_know_have_no_status(frames, complete, checkpoint):
    complete(frames.make({"id": [1], "prompt": ["one"]}))
    frame = frames.make({"id": [1, 2, 1], "prompt": ["one", "two", "edited"]})
    with pytest.raises(bf.RowError, match="repeats the id"):
        bf.attach(frame, checkpoint, "prompt", "id")
    frame = frames.make({"id": [1, 2, 3], "prompt": ["one", "two", "edited"]})
    out = bf.attach(frame, checkpoint, "prompt", "id")
    assert frames.values(out, "completion_status") == ["ok", None, None]
    assert frames.values(out, "completion") == ["echo: one", None, None]


def test_templates_and_rows_without_ids(frames, complete, checkpoint):
    frame = frames.make({"word": ["a", "b", "a"]})
    complete(frame, None, None, template="Say {word}")
    out = bf.attach(frame, checkpoint, template="Say {word}")
    assert frames.values(out, "completion") == [f"echo: Say {word}" for word in "aba"]


class Pair(BaseModel):
    a: int
    b: str | None


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/responses"])
def test_structured_answers_have_their_types(frames, complete, checkpoint, endpoint):
    text = json.dumps({"a": 1, "b": None})

    def answer(body):
        if endpoint == "/v1/responses":
            content = [{"type": "output_text", "text": text}]
            return 200, {"output": [{"type": "message", "content": content}]}
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    frame = frames.make(DATA)
    with LocalServer(answer, stage_seconds=0) as server:
        out = complete(
            frame, endpoint=endpoint, response_format=Pair, client=server.client(), output="pair"
        )
    attached = bf.attach(frame, checkpoint, "prompt", "id", output="pair")
    frames.assert_frame_equal(attached, out)


def test_vectors_and_verdicts_have_their_types(frames, client, checkpoint):
    frame = frames.make({"id": [1, 2], "text": ["hate", None]})
    options = {"client": client, "checkpoint": checkpoint, "progress": False}
    out = bf.embed(frame, "text", "id", model="text-embedding-3-small", dimensions=3, **options)
    attached = bf.attach(frame, checkpoint, "text", "id", output="embedding")
    assert frames.types(attached) == frames.types(out)
    assert list(attached["embedding"][0]) == list(out["embedding"][0])

    other = checkpoint.with_name("other")
    judged = bf.moderate(frame, "text", "id", **options | {"checkpoint": other})
    attached = bf.attach(frame, other, "text", "id", output="moderation")
    frames.assert_frame_equal(attached, judged)


def test_a_checkpoint_in_use_is_read_as_it_is(frames, complete, checkpoint, client, server):
    with LocalServer(stage_seconds=3600) as slow:
        with pytest.raises(bf.RunTimeoutError):
            complete(frames.make(DATA), client=slow.client(), timeout=0.2)
        out = bf.attach(frames.make(DATA), checkpoint, "prompt", "id")
    assert frames.values(out, "completion_status") == [None, None, "skipped", None]


def test_what_is_no_checkpoint_is_refused_and_left_alone(frames, tmp_path):
    frame = frames.make(DATA)
    with pytest.raises(bf.CheckpointError, match="cannot be read as a checkpoint"):
        bf.attach(frame, tmp_path / "none", "prompt", "id")
    (tmp_path / "spec.json").write_bytes(b"{")
    with pytest.raises(bf.CheckpointCorruptError, match=r"spec\.json cannot be read"):
        bf.attach(frame, tmp_path, "prompt", "id")
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]
    for read in (bf.results, lambda place: bf.attach(frame, place, "prompt", "id")):
        with pytest.raises(bf.ParameterError, match="not None"):
            read(None)
    with pytest.raises(bf.ParameterError, match=r"attach\(\): it lacks checkpoint"):
        bf.attach(frame)


def test_nothing_is_written_and_no_key_needed(frames, complete, checkpoint, monkeypatch):
    complete(frames.make(DATA))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    bf.attach(frames.make(DATA), checkpoint, "prompt", "id")
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before


def test_the_accessor_and_tables(complete, checkpoint):
    complete(pa.table(DATA))
    assert (
        bf.attach(pa.table(DATA), checkpoint, "prompt", "id")["completion"][0].as_py()
        == "echo: one"
    )
    for frame in (pd.DataFrame(DATA), pl.DataFrame(DATA)):
        out = frame.openai_batch.attach(checkpoint, "prompt", "id")
        assert out["completion"][3] == "echo: four"


def test_results_are_a_plain_table_by_id(frames, complete, checkpoint):
    failures = iter([500, 400])

    def answer(body):
        text = body["messages"][-1]["content"]
        status = next(failures, 200) if text == "two" else 200
        if status != 200:
            return status, {"error": {"message": "no", "code": f"code_{status}"}}
        choices = [{"message": {"content": text.upper()}, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 3, "completion_tokens": 1}
        return 200, {"choices": choices, "usage": usage, "model": "gpt-4o-mini"}

    with LocalServer(answer, stage_seconds=0) as server:
        complete(frames.make(DATA), client=server.client())
    table = bf.results(checkpoint)

    assert isinstance(table, pa.Table)
    assert table.column_names[0] == "id"
    rows = {row["id"]: row for row in table.to_pylist()}
    assert rows.keys() == {"1", "2", "4"}
    assert [rows[id_]["completion"] for id_ in ("1", "2", "4")] == ["ONE", None, "FOUR"]
    # The first try of row 2 was one that passes, the second was not.
    assert (rows["2"]["status"], rows["2"]["error_code"]) == ("failed", "code_400")
    assert rows["1"]["cost_usd"] == pytest.approx(3 * 0.075e-6 + 1 * 0.30e-6)
    with pytest.raises(bf.CheckpointError, match="cannot be read as a checkpoint"):
        bf.results(checkpoint / "none")
