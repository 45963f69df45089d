"""`df.openai_batch.complete(...)` is `bf.complete(df, ...)`, on every frame there is."""

import copy
import functools
import pickle
import sys
import types
import warnings

import pandas as pd
import polars as pl
import pytest

import batchframe as bf
from batchframe.frames.accessor import register

DATA = {"id": [1, 2], "prompt": ["one", "two"]}


@pytest.fixture
def settings(client, checkpoint):
    return {
        "model": "gpt-4o-mini",
        "client": client,
        "checkpoint": checkpoint,
        "poll_interval": 0.01,
        "progress": False,
    }


def test_a_library_that_another_thread_is_importing_is_not_looked_at(complete, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    out = complete(pl.DataFrame({"id": [1], "prompt": ["x"]}))
    assert out["completion"].to_list() == ["echo: x"]


def test_the_accessor_the_function_and_the_pipe_give_the_same(frames, settings):
    df = frames.make(DATA)

    out = df.openai_batch.complete("prompt", "id", **settings)

    assert frames.values(out, "completion") == ["echo: one", "echo: two"]
    frames.assert_frame_equal(bf.complete(df, "prompt", "id", **settings), out)
    frames.assert_frame_equal(df.pipe(bf.complete, "prompt", "id", **settings), out)


def test_columns_may_be_named_by_keyword(frames, settings):
    out = frames.make(DATA).openai_batch.complete(id_col="id", prompt_col="prompt", **settings)

    assert frames.values(out, "completion") == ["echo: one", "echo: two"]


def test_a_column_named_like_a_keyword_is_a_column(frames, settings):
    df = frames.make({"model": [1, 2], "self": ["one", "two"]})

    out = df.openai_batch.complete("self", "model", **settings)

    assert frames.values(out, "completion") == ["echo: one", "echo: two"]


def test_the_accessor_of_a_changed_pandas_frame_sees_the_change(settings):
    df = pd.DataFrame(DATA)
    accessor = df.openai_batch
    df["prompt"] = ["three", "four"]

    for seen in (accessor, df.openai_batch):
        out = seen.complete("prompt", "id", **settings)
        assert out["completion"].tolist() == ["echo: three", "echo: four"]


def test_the_accessor_does_not_hinder_copies_and_pickles(frames):
    df = frames.make(DATA)
    assert df.openai_batch is not None

    frames.assert_frame_equal(copy.deepcopy(df), df)
    frames.assert_frame_equal(pickle.loads(pickle.dumps(df)), df)  # noqa: S301 - our own bytes


def test_registering_again_neither_warns_nor_replaces():
    before = pd.DataFrame.openai_batch, pl.DataFrame.openai_batch

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register(pd)
        register(pl)

    assert before == (pd.DataFrame.openai_batch, pl.DataFrame.openai_batch)


def test_warnings_point_at_the_line_of_the_call(frames, settings):
    df = frames.make(DATA)
    settings |= {"model": "our-own"}

    for call in (functools.partial(bf.complete, df), df.openai_batch.complete):
        with pytest.warns(UserWarning, match="No price is known for our-own") as caught:
            call("prompt", "id", **settings)

        assert [warning.filename for warning in caught] == [__file__]


def test_progress_is_silent_where_there_is_no_terminal(frames, settings, capfd):
    bf.complete(frames.make(DATA), "prompt", "id", **settings | {"progress": True})

    assert capfd.readouterr() == ("", "")


def test_a_frame_is_never_printed_by_an_error(frames, settings):
    df = frames.make({"id": [1, 1], "prompt": ["private words", "more of them"]})

    with pytest.raises(bf.RowError) as caught:
        bf.complete(df, "prompt", "id", **settings)

    assert "private" not in str(caught.value)
