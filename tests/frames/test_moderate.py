"""Texts are judged: one truth value for each category, and what it costs: nothing."""

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from openai.types.moderation import Categories

import batchframe as bf
from batchframe.emulator import LocalServer


@pytest.fixture
def moderate(client, checkpoint):
    """`bf.moderate` on the server, quick and quiet."""

    def call(frame, /, text_col="text", id_col="id", **kwargs):
        settings = {
            "client": client,
            "checkpoint": checkpoint,
            "poll_interval": 0.01,
            "progress": False,
        }
        return bf.moderate(frame, text_col, id_col, **settings | kwargs)

    return call


def test_every_text_is_judged_by_every_category(frames, moderate, paid):
    texts = ["a walk", None, "self-harm/intent", "violence"]
    frame = frames.make({"id": range(4), "text": texts})
    out = moderate(frame)

    assert frames.values(out, "moderation_flagged") == [False, None, True, True]
    assert frames.values(out, "moderation_violence") == [False, None, False, True]
    assert frames.values(out, "moderation_self_harm") == [False, None, True, False]
    assert frames.values(out, "moderation_self_harm_intent") == [False, None, True, False]
    assert frames.values(out, "moderation_status") == ["ok", "skipped", "ok", "ok"]
    assert frames.values(out, "moderation_cost_usd") == [0.0] * 4
    assert paid() == 3
    moderate(frame)
    assert paid() == 3


def test_the_categories_are_those_of_the_sdk(frames, moderate):
    out = moderate(frames.make({"id": ["a"], "text": ["one"]}))
    names = [name.removeprefix("moderation_") for name in out.columns]
    assert set(Categories.model_fields) <= set(names)
    assert names[2] == "flagged"
    types = frames.types(out)
    booleans = {types[f"moderation_{name}"] for name in ("flagged", *Categories.model_fields)}
    assert len(booleans) == 1
    assert booleans < {"boolean", "bool[pyarrow]", "Boolean"}


def test_the_columns_have_their_types_without_a_verdict_and_survive_parquet(
    frames, moderate, tmp_path
):
    frame = frames.make({"id": ["a"], "text": ["one"]})
    full = moderate(frame)
    assert frames.types(moderate(frame.head(0))) == frames.types(full)
    frames.assert_frame_equal(frames.through_parquet(full, tmp_path / "out.parquet"), full)


def test_answers_that_are_no_verdict_are_invalid_and_unknown_categories_null(frames, moderate):
    answers = {
        "old": {"flagged": True, "categories": {"hate": True}, "category_scores": {}},
        "none": {"flagged": None, "categories": {}},
        "list": [1],
        "odd": {"flagged": False, "categories": {"hate": "no"}},
    }

    def answer(body):
        return 200, {"model": body["model"], "results": [answers[body["input"]]]}

    with LocalServer(answer, stage_seconds=0) as server:
        frame = frames.make({"id": range(4), "text": list(answers)})
        out = moderate(frame, client=server.client())

    assert frames.values(out, "moderation_status") == ["ok", "invalid", "invalid", "invalid"]
    assert frames.values(out, "moderation_flagged") == [True, None, None, None]
    assert frames.values(out, "moderation_hate") == [True, None, None, None]
    assert frames.values(out, "moderation_illicit") == [None] * 4
    assert frames.values(out, "moderation_error")[1].startswith("invalid: this is no verdict: ")


def test_tables_and_the_accessors(moderate, client, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = {"id": [1], "text": ["hate"]}
    assert moderate(pa.table(data))["moderation_hate"].to_pylist() == [True]
    for frame in (pd.DataFrame(data), pl.DataFrame(data)):
        out = frame.openai_batch.moderate("text", "id", client=client, progress=False)
        assert list(out["moderation_hate"]) == [True]


def test_what_does_not_fit_is_refused(frames, moderate, calls):
    frame = frames.make({"id": [1], "text": ["one"], "moderation_hate": [1]})
    with pytest.raises(bf.ColumnError, match="'moderation_hate' already"):
        moderate(frame)
    with pytest.raises(
        bf.ParameterError, match=r"moderate\(\) and /v1/moderations know no keyword"
    ):
        moderate(frame, temperature=0)
    assert calls() == {}
