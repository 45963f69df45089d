"""Only what was not paid for and may succeed is tried again, and waits grow to a limit."""

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchframe.core.results import RESULT_SCHEMA
from batchframe.core.retries import (
    _RETRYABLE_CODES,
    hopeless,
    latest,
    poll_delay,
    queue_delay,
    retry_delay,
    too_many,
    unfinished,
)
from batchframe.core.statuses import Status


def a_table(*rows):
    """Results with the named columns; all others are null, or text where null is not allowed."""
    rows = [{"row_key": i.to_bytes(16, "big"), "status": "ok", **row} for i, row in enumerate(rows)]
    columns = [
        pa.array([row.get(field.name) for row in rows], field.type) for field in RESULT_SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=RESULT_SCHEMA)


def failed(code=None, http=None):
    return {"status": "failed", "error_code": code, "http_status": http}


# Which rows

#: Each outcome, whether it is tried again by itself, and whether with retry_failed=True.
CASES = [
    ({"status": "ok", "http_status": 200}, False, False),
    ({"status": "truncated", "error_code": "length", "http_status": 200}, False, False),
    ({"status": "filtered", "error_code": "content_filter", "http_status": 200}, False, True),
    ({"status": "refused", "error_code": "refusal", "http_status": 200}, False, True),
    ({"status": "invalid", "http_status": 200}, False, True),
    ({"status": "missing", "error_code": "missing"}, False, True),
    ({"status": "cancelled", "error_code": "batch_cancelled"}, False, True),
    ({"status": "expired", "error_code": "batch_expired"}, True, True),
    (failed(), False, True),
    (failed("unreadable_line"), False, True),
    (failed("empty_content", 200), False, True),
    (failed("batch_failed"), False, True),
    (failed("batch_not_run"), True, True),
    (failed("token_limit_exceeded"), True, True),
    (failed("rate_limit_exceeded", 429), True, True),
    (failed("request_timeout"), True, True),
    (failed("server_error"), True, True),
    (failed("http_0", 0), True, True),
    (failed("invalid_request_error", 400), False, True),
    (failed("context_length_exceeded", 400), False, True),
    (failed("invalid_api_key", 401), False, True),
    (failed("http_403", 403), False, True),
    (failed("insufficient_quota", 429), True, True),
    (failed("input_file_not_found"), True, True),
    (failed("http_408", 408), True, True),
    (failed("http_409", 409), True, True),
    (failed("http_413", 413), False, True),
    (failed("http_422", 422), False, True),
    (failed("http_429", 429), True, True),
    (failed(None, 429), True, True),
    (failed("http_499", 499), False, True),
    (failed("http_500", 500), True, True),
    (failed("http_502", 502), True, True),
    (failed("http_503", 503), True, True),
    (failed("http_599", 599), True, True),
]


@pytest.mark.parametrize(("row", "again", "again_if_asked"), CASES, ids=str)
def test_a_result_is_tried_again_when_nothing_was_paid_and_it_can_help(row, again, again_if_asked):
    results = a_table(row)
    assert unfinished(results).to_pylist() == [again]
    assert unfinished(results, retry_failed=True).to_pylist() == [again_if_asked]


def test_the_cases_cover_every_status_of_a_result_and_every_retryable_code():
    # A skipped row has no request, and so no result.
    assert {row["status"] for row, *_ in CASES} == set(Status) - {"skipped"}
    again = {row.get("error_code") for row, again, _ in CASES if again}
    assert again >= set(_RETRYABLE_CODES)


def test_all_results_of_a_table_are_judged_in_order():
    results = a_table(*(row for row, *_ in CASES))
    halves = pa.concat_tables([results.slice(0, 9), results.slice(9)])
    assert unfinished(halves).to_pylist() == [again for _, again, _ in CASES]


def test_what_may_be_tried_again_by_itself_may_be_so_when_asked():
    assert all(if_asked for _, again, if_asked in CASES if again)


@pytest.mark.parametrize("retry_failed", [False, True])
def test_no_results_leave_nothing_to_try_again(retry_failed):
    none = RESULT_SCHEMA.empty_table()
    assert unfinished(none, retry_failed=retry_failed).to_pylist() == []


# Delays


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [(1, 1), (2, 2), (3, 4), (4, 8), (7, 64), (8, 120), (9, 120), (5_000, 120)],
)
def test_waits_double_up_to_two_minutes(attempt, seconds):
    assert retry_delay(attempt) == seconds


@pytest.mark.parametrize(
    ("asked", "seconds"), [(None, 4), (0, 4), (3.9, 4), (4.5, 4.5), (600, 600), (-1, 4)]
)
def test_what_the_service_asks_for_is_never_undercut(asked, seconds):
    assert retry_delay(3, retry_after=asked) == seconds


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [(1, 5), (2, 60), (3, 120), (4, 240), (6, 960), (7, 1_800), (8, 1_800), (5_000, 1_800)],
)
def test_a_full_queue_is_tried_soon_and_then_ever_more_rarely_up_to_half_an_hour(attempt, seconds):
    assert queue_delay(attempt) == seconds


@pytest.mark.parametrize(
    ("age", "seconds"),
    [(0, 0.25), (2.5, 0.25), (10, 1), (60, 6), (600, 60), (86_400, 60), (-5, 0.25)],
)
def test_a_batch_is_looked_at_after_a_tenth_of_its_age(age, seconds):
    assert poll_delay(age, None) == seconds


@pytest.mark.parametrize(("age", "seconds"), [(0, 0.25), (60, 6), (150, 15), (86_400, 15)])
def test_a_batch_that_is_listed_with_others_is_looked_at_more_often(age, seconds):
    assert poll_delay(age, None, is_listed=True) == seconds


@pytest.mark.parametrize("interval", [0, 0.01, 5, 3600])
def test_the_users_own_interval_is_taken_as_it_is(interval):
    assert poll_delay(86_400, interval) == interval
    assert poll_delay(86_400, interval, is_listed=True) == interval


# The latest of several tries

A, B, C = (bytes([i] * 16) for i in range(3))


def tried(key, completion, cost):
    return {"row_key": key, "completion": completion, "cost_usd": cost}


def test_the_last_of_several_tries_counts_and_costs_their_sum():
    results = a_table(tried(A, "a1", 0.25), tried(B, "b1", 1.0), tried(A, "a2", 0.5))
    counted = latest(results)
    assert counted.schema == RESULT_SCHEMA
    assert counted.select(["row_key", "completion", "cost_usd"]).to_pylist() == [
        tried(B, "b1", 1.0),
        tried(A, "a2", 0.75),
    ]


def test_a_try_of_unknown_cost_makes_the_cost_of_the_row_unknown():
    results = a_table(tried(A, "a1", None), tried(A, "a2", 0.5), tried(B, "b1", 1.0))
    assert latest(results)["cost_usd"].to_pylist() == [None, 1.0]


def test_results_without_second_tries_stay_as_they_are():
    results = a_table(tried(A, "a1", 0.25), tried(B, "b1", None))
    assert latest(results).equals(results)


def test_no_results_stay_none():
    none = RESULT_SCHEMA.empty_table()
    assert latest(none).equals(none)


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.none() | st.integers(0, 100)), max_size=12),
    st.integers(0, 12),
)
def test_each_row_has_one_latest_result_and_the_costs_are_the_bill(tries, border):
    results = a_table(*(tried(key, str(i), cost) for i, (key, cost) in enumerate(tries)))
    results = pa.concat_tables([results.slice(0, border), results.slice(border)])
    counted = latest(results).select(["row_key", "completion", "cost_usd"]).to_pylist()
    last = {key: i for i, (key, _) in enumerate(tries)}
    assert [row["completion"] for row in counted] == [str(i) for i in sorted(last.values())]
    for row in counted:
        costs = [cost for key, cost in tries if key == row["row_key"]]
        expected = None if None in costs else math.fsum(costs)
        assert row["cost_usd"] == expected


REFUSED = {"status": "failed", "error_code": "model_not_found", "error_message": "no such model"}


def test_a_shard_that_failed_as_one_is_hopeless_until_the_spec_is_proven():
    results = a_table(REFUSED, REFUSED)

    assert hopeless(results, proven=False) == "model_not_found: no such model"
    assert hopeless(results, proven=True) is None


@pytest.mark.parametrize(
    "other",
    [
        {"status": "ok"},
        {"status": "failed", "error_code": "bad_prompt"},
        {"status": "failed", "error_code": "server_error"},
        {"status": "expired", "error_code": "batch_expired"},
    ],
    ids=lambda row: row["status"] + row.get("error_code", ""),
)
def test_one_row_that_fared_otherwise_leaves_hope(other):
    assert hopeless(a_table(REFUSED, other), proven=False) is None


def test_failures_that_pass_leave_hope():
    overloaded = {"status": "failed", "error_code": "server_error", "http_status": 503}

    assert hopeless(a_table(overloaded, overloaded), proven=False) is None


def test_an_account_without_money_is_hopeless_even_when_others_were_answered():
    broke = {"status": "failed", "error_code": "insufficient_quota", "error_message": "pay"}

    assert hopeless(a_table({"status": "ok"}, broke), proven=True) == "insufficient_quota: pay"


def test_a_shard_without_results_leaves_hope():
    assert hopeless(a_table(), proven=False) is None


# Too many


@pytest.mark.parametrize(
    ("n_failed", "n_ended", "n_rows", "ratio", "expected"),
    [
        (0, 0, 0, 0, False),
        (1, 1, 3, 0, True),  # no row may fail
        (1, 1, 3, 0.5, False),  # two more may be answered
        (2, 2, 3, 0.5, True),  # 2 > 1.5, whatever comes
        (29, 100, 100, 0.29, False),  # as floats 0.29 * 100 is less than 29
        (30, 100, 100, 0.29, True),
        (100, 100, 100, 1, False),
        (200, 999, 3_000, 0.1, False),  # 300 may fail, and too few have ended to speak for others
        (100, 1_000, 3_000, 0.1, False),
        (101, 1_000, 3_000, 0.1, True),
    ],
)
def test_too_many_failed_when_it_is_certain_or_looks_so(n_failed, n_ended, n_rows, ratio, expected):
    assert too_many(n_failed, n_ended, n_rows, ratio) is expected
