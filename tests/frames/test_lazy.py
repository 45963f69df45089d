"""LazyFrames: the query runs once, and so do its batches."""

import datetime as dt
import os
import subprocess
import sys
from decimal import Decimal

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import batchframe as bf


@pytest.fixture
def settings(client, checkpoint):
    return {
        "model": "gpt-4o-mini",
        "client": client,
        "checkpoint": checkpoint,
        "poll_interval": 0.01,
        "progress": False,
    }


def test_a_query_runs_once_and_its_answers_are_a_query(settings, paid):
    runs = []

    def seen(batch):
        runs.append(batch.height)
        return batch

    frame = pl.LazyFrame({"id": range(100), "prompt": [f"row {n}" for n in range(100)]})
    query = frame.filter(pl.col("id") >= 10).map_batches(seen, schema=frame.collect_schema())
    out = query.openai_batch.complete("prompt", "id", **settings)
    assert isinstance(out, pl.LazyFrame)
    few = out.filter(pl.col("id") < 12).select("completion").collect()
    assert few["completion"].to_list() == ["echo: row 10", "echo: row 11"]
    assert out.select(pl.len()).collect().item() == 90
    assert sum(runs) == 90
    assert paid() == 90


def test_columns_keep_their_dtypes_and_values(settings):
    frame = pl.DataFrame(
        {
            "id": [1, 2],
            "prompt": ["a", None],
            "category": pl.Series(["x", "y"], dtype=pl.Categorical),
            "enum": pl.Series(["u", "v"], dtype=pl.Enum(["u", "v"])),
            "decimal": [Decimal("1.50"), None],
            "duration": [dt.timedelta(seconds=1), None],
            "when": pl.Series([None, 1], dtype=pl.Int64).cast(pl.Datetime("ns", "UTC")),
            "time": [dt.time(1, 2, 3), None],
            "list": [[1, 2], []],
            "struct": [{"a": 1, "b": "x"}, {"a": None, "b": None}],
            "binary": [b"\x00", None],
            "small": pl.Series([1, None], dtype=pl.Int8),
            "array": pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int16, 2)),
        }
    )
    out = frame.lazy().openai_batch.complete("prompt", "id", **settings).collect()
    assert_frame_equal(out.select(frame.columns), frame)
    eager = frame.openai_batch.complete("prompt", "id", **settings)
    assert_frame_equal(out, eager)


def test_the_end_of_a_process_removes_its_answers_without_a_word(client, tmp_path):
    (tmp_path / "temporary").mkdir()
    code = """
import os, polars as pl, batchframe as bf
lf = pl.LazyFrame({"id": [1], "prompt": ["x"]})
out = lf.openai_batch.complete("prompt", "id", model="gpt-4o-mini", progress=False)
assert out.collect()["completion"].to_list() == ["echo: x"]
assert len(os.listdir(os.environ["TMPDIR"])) == 1
"""
    environment = {
        "TMPDIR": str(tmp_path / "temporary"),
        "OPENAI_API_KEY": client.api_key,
        "OPENAI_BASE_URL": str(client.base_url),
    }
    ended = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", code],
        env=os.environ | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""
    assert list((tmp_path / "temporary").iterdir()) == []


def test_it_sinks_into_a_file(settings, tmp_path, paid):
    frame = pl.LazyFrame({"id": ["a", "b"], "prompt": ["x", "y"]})
    target = tmp_path / "out.parquet"
    assert frame.openai_batch.sink_parquet(target, "prompt", "id", **settings) == target
    assert pl.read_parquet(target)["completion"].to_list() == ["echo: x", "echo: y"]
    frame.openai_batch.complete("prompt", "id", **settings)
    assert paid() == 2


def test_columns_may_be_named_by_keyword(settings, tmp_path, paid):
    frame = pl.LazyFrame({"id": [1], "prompt": ["x"]})
    named = {"prompt_col": "prompt", "id_col": "id"} | settings
    assert frame.openai_batch.complete(**named).collect()["completion"].to_list() == ["echo: x"]
    out = frame.openai_batch.complete(template="{prompt}", id_col="id", **settings).collect()
    assert out["completion"].to_list() == ["echo: x"]
    target = tmp_path / "out.parquet"
    assert frame.openai_batch.sink_parquet(target=target, **named) == target
    assert paid() == 1


@pytest.mark.parametrize(
    "mistake",
    [
        {"temprature": 0},
        {"prompt_col": "promt"},
        {"output": "prompt"},
        {"template": "{prompt}"},
        {"response_format": int},
        {"id_col": None},
    ],
    ids=str,
)
def test_the_query_does_not_run_for_a_call_that_does_not_fit(settings, mistake):
    def seen(batch):
        raise AssertionError("the query ran")

    frame = pl.LazyFrame({"id": [1], "prompt": ["x"]})
    query = frame.map_batches(seen, schema=frame.collect_schema())
    named = {"prompt_col": "prompt", "id_col": "id"} | settings
    with pytest.raises(bf.InputError):
        query.openai_batch.complete(**named | mistake)


@pytest.mark.parametrize("target", [None, "none/out.parquet", "."])
def test_the_query_does_not_run_for_a_target_that_cannot_be_written(settings, tmp_path, target):
    def seen(batch):
        raise AssertionError("the query ran")

    frame = pl.LazyFrame({"id": [1], "prompt": ["x"]})
    query = frame.map_batches(seen, schema=frame.collect_schema())
    path = None if target is None else tmp_path / target
    with pytest.raises(bf.ParameterError, match=r"target|no file that could be replaced"):
        query.openai_batch.sink_parquet(path, "prompt", "id", **settings)


@pytest.mark.parametrize(
    "odd",
    [
        pl.Series([1, 2], dtype=pl.Int128),
        pl.Series([[1], None], dtype=pl.List(pl.UInt128)),
        pl.Series([object(), None], dtype=pl.Object),
        pl.Series([{}, None], dtype=pl.Struct([])),
    ],
    ids=lambda series: str(series.dtype),
)
def test_columns_that_parquet_cannot_hold_are_named(settings, paid, odd):
    frame = pl.LazyFrame({"id": [1, 2], "prompt": ["x", "y"]}).with_columns(odd.alias("odd"))
    with pytest.raises(bf.ColumnError, match=r"^Column 'odd' holds .* Nothing was sent\. Cast it"):
        frame.openai_batch.complete("prompt", "id", **settings)
    assert paid() == 0


def test_mistakes_are_told_and_nothing_is_sent(settings, paid):
    frame = pl.LazyFrame({"id": [1, 1], "prompt": ["x", "y"]})
    with pytest.raises(bf.RowError, match="id"):
        frame.openai_batch.complete("prompt", "id", **settings)
    with pytest.raises(bf.ParameterError, match=r"lf\.openai_batch\.complete\(\) takes it"):
        bf.complete(frame, "prompt", "id", **settings)
    with pytest.raises(bf.ParameterError, match="id_col"):
        frame.openai_batch.complete("prompt", **settings)
    with pytest.raises(bf.ParameterError, match="checkpoint"):
        frame.openai_batch.complete("prompt", "id", **settings, checkpiont="there")
    assert paid() == 0
