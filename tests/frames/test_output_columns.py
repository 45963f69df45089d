"""The new columns have the declared dtypes, whatever happened to the rows, and survive parquet."""

import pandas as pd
import polars as pl
import polars.testing
import pyarrow as pa
import pytest

from batchframe.emulator import LocalServer

DATA = {"id": [1, 2, 3], "prompt": ["one", "two", None]}
#: Each new column, and what it holds.
COLUMNS = {
    "completion": "texts",
    "completion_status": "texts",
    "completion_error": "texts",
    "completion_input_tokens": "integers",
    "completion_cached_tokens": "integers",
    "completion_output_tokens": "integers",
    "completion_reasoning_tokens": "integers",
    "completion_cost_usd": "floats",
}
DETAILS = {
    "completion_finish_reason": "texts",
    "completion_model": "texts",
    "completion_request_id": "texts",
    "completion_batch_id": "texts",
}


def assert_dtypes(frames, out, columns):
    types = {name: dtype for name, dtype in frames.types(out).items() if name in columns}
    assert types == {name: frames.dtypes[holds] for name, holds in columns.items()}


def refuse(body):
    return 400, {"error": {"message": "Too long.", "code": "context_length_exceeded"}}


def cut(body):
    text = body["messages"][-1]["content"]
    choice = {"message": {"role": "assistant", "content": f"echo: {text}"}}
    reason = {"one": "length", "two": "content_filter"}[text]
    return 200, {"model": body["model"], "choices": [choice | {"finish_reason": reason}]}


@pytest.fixture(scope="module")
def refusing():
    """A client of a server on which every request fails."""
    with LocalServer(refuse, stage_seconds=0) as server:
        yield server.client()


@pytest.fixture(scope="module")
def cutting():
    """A client of a server that cuts one answer and filters the other, and tells no usage."""
    with LocalServer(cut, stage_seconds=0) as server:
        yield server.client()


def test_answered_rows_have_the_declared_dtypes(frames, complete):
    assert_dtypes(frames, complete(frames.make(DATA)), COLUMNS)


def test_details_are_four_more_columns(frames, complete):
    out = complete(frames.make(DATA), details=True)

    assert list(out.columns) == [*DATA, *COLUMNS, *DETAILS]
    assert_dtypes(frames, out, COLUMNS | DETAILS)
    assert frames.values(out, "completion_finish_reason") == ["stop", "stop", None]
    assert frames.values(out, "completion_model") == ["gpt-4o-mini", "gpt-4o-mini", None]
    for column in ("completion_request_id", "completion_batch_id"):
        first, second, skipped = frames.values(out, column)
        assert first
        assert second
        assert skipped is None


def test_details_of_a_paid_call_cost_nothing_more(frames, complete, calls):
    complete(frames.make(DATA))
    sent = calls()

    complete(frames.make(DATA), details=True)

    assert calls() == sent


def test_skipped_rows_have_the_declared_dtypes(frames, complete):
    out = complete(frames.make({"id": [1, 2], "prompt": ["", None]}), details=True)

    assert frames.values(out, "completion") == [None, None]
    assert frames.values(out, "completion_status") == ["skipped", "skipped"]
    assert frames.values(out, "completion_input_tokens") == [None, None]
    assert frames.values(out, "completion_cost_usd") == [0.0, 0.0]
    assert_dtypes(frames, out, COLUMNS | DETAILS)


def test_failed_rows_have_the_declared_dtypes_and_say_why(frames, complete, refusing):
    out = complete(frames.make(DATA), client=refusing, details=True)

    said = "context_length_exceeded: Too long."
    assert frames.values(out, "completion") == [None, None, None]
    assert frames.values(out, "completion_status") == ["failed", "failed", "skipped"]
    assert frames.values(out, "completion_error") == [said, said, None]
    assert frames.values(out, "completion_cost_usd") == [0.0, 0.0, 0.0]
    assert_dtypes(frames, out, COLUMNS | DETAILS)


def test_rows_without_usage_have_the_declared_dtypes_and_an_unknown_cost(frames, complete, cutting):
    out = complete(frames.make(DATA), client=cutting)

    assert frames.values(out, "completion") == ["echo: one", "echo: two", None]
    assert frames.values(out, "completion_status") == ["truncated", "filtered", "skipped"]
    assert frames.values(out, "completion_input_tokens") == [None, None, None]
    assert frames.values(out, "completion_cost_usd") == [None, None, 0.0]
    assert_dtypes(frames, out, COLUMNS)


def test_an_empty_frame_has_the_declared_dtypes(frames, complete):
    out = complete(frames.rows(frames.make(DATA), []), details=True)

    assert len(out) == 0
    assert list(out.columns) == [*DATA, *COLUMNS, *DETAILS]
    assert_dtypes(frames, out, COLUMNS | DETAILS)


def test_a_model_without_a_known_price_costs_null_and_warns(frames, complete):
    with pytest.warns(UserWarning, match="No price is known for our-own: their cost is null"):
        out = complete(frames.make(DATA), model="our-own")

    assert frames.values(out, "completion_cost_usd") == [None, None, 0.0]
    assert_dtypes(frames, out, COLUMNS)


def test_the_dtype_of_the_prompts_decides_those_of_the_new_pandas_columns(complete):
    frame = pd.DataFrame({"id": [1], "plain": ["one"], "arrow": ["one"]})
    frame["arrow"] = frame["arrow"].astype(pd.ArrowDtype(pa.large_string()))

    assert str(complete(frame, "plain")["completion_cost_usd"].dtype) == "Float64"
    assert str(complete(frame, "arrow")["completion_cost_usd"].dtype) == "double[pyarrow]"


def test_the_result_survives_parquet(frames, complete, tmp_path):
    out = complete(frames.make(DATA), details=True)

    back = frames.through_parquet(out, tmp_path / "out.parquet")

    frames.assert_frame_equal(back, out)


def test_the_result_of_one_library_is_read_by_the_other(complete, tmp_path):
    by_pandas = complete(pd.DataFrame(DATA))
    by_polars = complete(pl.DataFrame(DATA))
    by_pandas.to_parquet(tmp_path / "pandas.parquet")
    by_polars.write_parquet(tmp_path / "polars.parquet")

    pl.testing.assert_frame_equal(pl.read_parquet(tmp_path / "pandas.parquet"), by_polars)
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "polars.parquet", dtype_backend="numpy_nullable"),
        by_pandas.convert_dtypes(),
    )
