"""Results become columns by position: each input row has its own, in order."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchframe.core.columns import column_names, result_columns
from batchframe.core.results import RESULT_SCHEMA


def a_table(*rows):
    return pa.Table.from_pylist(
        [{"row_key": bytes(16), "status": "ok", **row} for row in rows], RESULT_SCHEMA
    )


def columns(results, positions, *, skipped=None, output="completion", details=False):
    return result_columns(
        results,
        pa.array(positions, pa.int64()),
        skipped=skipped if skipped is None else pa.array(skipped, pa.bool_()),
        output=output,
        details=details,
    )


FULL = {
    "completion": "hello",
    "input_tokens": 10,
    "cached_tokens": 4,
    "output_tokens": 3,
    "reasoning_tokens": 2,
    "cost_usd": 0.5,
    "finish_reason": "stop",
    "model": "gpt-4o-mini-2024-07-18",
    "request_id": "req_1",
    "batch_id": "batch_1",
}


def test_the_columns_are_named_after_the_output_and_stand_in_order():
    plain = [
        "answer",
        "answer_status",
        "answer_error",
        "answer_input_tokens",
        "answer_cached_tokens",
        "answer_output_tokens",
        "answer_reasoning_tokens",
        "answer_cost_usd",
    ]
    details = ["answer_finish_reason", "answer_model", "answer_request_id", "answer_batch_id"]
    assert column_names("answer", details=False) == plain
    assert column_names("answer", details=True) == plain + details
    for with_details in (False, True):
        table = columns(a_table(FULL), [0], output="answer", details=with_details)
        assert table.column_names == column_names("answer", details=with_details)


def test_a_result_becomes_one_entry_in_every_column():
    assert columns(a_table(FULL), [0], details=True).to_pylist() == [
        {
            "completion": "hello",
            "completion_status": "ok",
            "completion_error": None,
            "completion_input_tokens": 10,
            "completion_cached_tokens": 4,
            "completion_output_tokens": 3,
            "completion_reasoning_tokens": 2,
            "completion_cost_usd": 0.5,
            "completion_finish_reason": "stop",
            "completion_model": "gpt-4o-mini-2024-07-18",
            "completion_request_id": "req_1",
            "completion_batch_id": "batch_1",
        }
    ]


@pytest.mark.parametrize("positions", [[], [None, None]])
def test_columns_without_a_value_keep_their_types(positions):
    table = columns(RESULT_SCHEMA.empty_table(), positions, details=True)
    assert table.num_rows == len(positions)
    tokens = ["input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"]
    types = {f"completion_{name}": pa.int64() for name in tokens}
    types["completion_cost_usd"] = pa.float64()
    for field in table.schema:
        assert field.type == types.get(field.name, pa.string())


def test_rows_without_a_result_are_skipped_at_no_cost_or_missing():
    table = columns(a_table(FULL), [None, 0, None], skipped=[True, True, False])
    assert table["completion_status"].to_pylist() == ["skipped", "ok", "missing"]
    assert table["completion_cost_usd"].to_pylist() == [0.0, 0.5, None]
    assert table["completion"].to_pylist() == [None, "hello", None]


def test_an_error_is_its_code_and_its_message():
    failed = {"status": "failed", "completion": None}
    results = a_table(
        {**failed, "error_code": "quota", "error_message": "No money."},
        {**failed, "error_code": "quota"},
        {**failed, "error_message": "No money."},
        {"completion": "x"},
    )
    table = columns(results, [3, 0, 1, 2, None])
    assert table["completion_error"].to_pylist() == [
        None,
        "quota: No money.",
        "quota",
        "No money.",
        None,
    ]


def test_a_result_that_rows_share_is_paid_for_by_the_first_of_them():
    results = a_table({"cost_usd": 1.0}, {"cost_usd": 2.0}, {"cost_usd": None})
    table = columns(results, [1, 0, 1, None, 1, 2, 0, None, 2])
    assert table["completion_cost_usd"].to_pylist() == [
        2.0,
        1.0,
        0.0,
        None,
        0.0,
        None,
        0.0,
        None,
        0.0,
    ]


def test_results_in_many_chunks_and_wider_strings_are_read_alike():
    results = pa.concat_tables([a_table({"completion": text}) for text in "abc"])
    wide = results.set_column(3, "completion", results["completion"].cast(pa.large_string()))
    for table in (results, wide):
        got = columns(table, [2, None, 0])["completion"]
        assert got.type == pa.string()
        assert got.to_pylist() == ["c", None, "a"]


@given(st.data())
def test_each_row_has_the_result_at_its_position(data):
    n = data.draw(st.integers(0, 20))
    costs = data.draw(st.lists(st.integers(0, 100), min_size=n, max_size=n))
    results = a_table(
        *({"completion": f"text {i}", "cost_usd": float(cost)} for i, cost in enumerate(costs))
    )
    positions = data.draw(st.lists(st.none() | st.integers(0, n - 1) if n else st.none()))
    skipped = data.draw(st.lists(st.booleans(), min_size=len(positions), max_size=len(positions)))

    table = columns(results, positions, skipped=skipped)

    assert table["completion"].to_pylist() == [
        None if p is None else f"text {p}" for p in positions
    ]
    assert table["completion_status"].to_pylist() == [
        "ok" if p is not None else "skipped" if skip else "missing"
        for p, skip in zip(positions, skipped, strict=True)
    ]
    bill = sum(costs[p] for p in set(positions) - {None})
    assert sum(filter(None, table["completion_cost_usd"].to_pylist())) == bill


@pytest.mark.benchmark
def test_more_text_than_32_bits_count_becomes_a_chunked_column():
    text = pa.array(["x" * 1_000_000] * 600)
    results = pa.concat_tables(
        [
            a_table(*[{}] * 600).set_column(3, RESULT_SCHEMA.field("completion"), text)
            for _ in range(4)
        ]
    )
    positions = list(reversed(range(2400)))  # 2.4 GB
    completion = columns(results, positions)["completion"]
    assert completion.type == pa.string()
    assert len(completion) == 2400
    assert completion.num_chunks > 1
    assert completion[0].as_py() == "x" * 1_000_000
