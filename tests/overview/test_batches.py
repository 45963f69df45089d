"""The table of batches: one row for each, with its times, as a user makes pictures of them."""

from itertools import pairwise

import pandas as pd
import pyarrow.compute as pc
import pytest

import batchframe as bf
from batchframe.core.shards import Limits
from batchframe.overview import batches_of, overview_of
from tests.overview.answers import INPUT_TOKENS, ROW_USD

TIMES = ["frozen_at", "uploaded_at", "created_at", "started_at", "ended_at", "collected_at"]


def test_each_batch_is_one_row_with_the_numbers_of_the_report(serve, run, read, clock):
    with serve() as server:
        run(server, {n: f"row {n}" for n in range(5)}, limits=Limits(max_requests=2))
    table = batches_of(read())
    shards = overview_of(read(), now=clock.now()).shards
    assert table.to_pylist() == [
        {name: getattr(shard, name) for name in table.column_names} for shard in shards
    ]
    assert table["number"].to_pylist() == [0, 1, 2]
    assert table["n_requests"].to_pylist() == [2, 2, 1]
    assert table["ended_as"].to_pylist() == ["completed"] * 3
    assert pc.sum(table["input_tokens"]).as_py() == 5 * INPUT_TOKENS
    assert pc.sum(table["cost_usd"]).as_py() == pytest.approx(5 * ROW_USD)
    for earlier, later in pairwise(TIMES):
        assert pc.all(pc.less_equal(table[earlier], table[later])).as_py()


def test_what_has_not_come_yet_is_null_and_the_columns_keep_their_types(serve, run, read):
    with serve(stage_seconds=864_000.0) as server:
        limits = Limits(max_requests=1, max_live_batches=1)
        run(server, {1: "a", 2: "b"}, limits=limits, timeout=1)
    table = batches_of(read())
    assert table["state"].to_pylist() == ["validating", "waiting"]
    assert table["ended_at"].null_count == table["collected_at"].null_count == 2
    assert table["uploaded_at"].null_count == 1
    assert {str(table.schema.field(name).type) for name in TIMES} == {"timestamp[us, tz=UTC]"}


def test_a_run_has_its_batches_wherever_it_was_opened(tmp_path):
    df = pd.DataFrame({"id": [1, 2, 3], "prompt": ["a", "b", "c"]})
    with bf.emulator.LocalServer() as server:
        run = df.openai_batch.submit(
            "prompt",
            "id",
            model="gpt-4o-mini",
            limits=bf.Limits(max_requests=2),
            checkpoint=tmp_path,
            client=server.client(),
            progress=False,
        ).wait()
    assert run.batches().num_rows == 2
    assert bf.open_run(tmp_path).batches().equals(run.batches())
