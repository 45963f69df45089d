"""Cutting keeps every request once and in order, within every limit at once."""

import math
from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchframe.core.dialects import DIALECTS, GENERIC, OPENAI, Dialect
from batchframe.core.requests import Requests
from batchframe.core.shards import Limits, cut_shards, fitting
from batchframe.core.spec import CHAT_COMPLETIONS, EMBEDDINGS
from batchframe.errors import ParameterError


def a_request(number=0, n_bytes=10, n_tokens=1):
    row_key = number.to_bytes(16, "big")
    return Requests(None, [row_key], [str(number)], [bytes(16)], [b"x" * n_bytes], [n_tokens])


def sizes(shards):
    return [len(shard) for shard in shards]


def n_bytes(shard):
    return sum(map(len, shard.lines))


def n_tokens(shard):
    return sum(shard.n_tokens)


# Cutting


def test_nothing_makes_no_shard():
    assert list(cut_shards([], Limits())) == []


@pytest.mark.parametrize(
    ("n", "expected"), [(1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (7, [3, 3, 1])]
)
def test_a_shard_holds_as_many_requests_as_allowed(n, expected):
    requests = [a_request(i) for i in range(n)]
    assert sizes(cut_shards(requests, Limits(max_requests=3))) == expected


def test_a_shard_may_fill_its_bytes_to_the_last_one_but_not_beyond():
    requests = [a_request(i, n_bytes=10) for i in range(5)]
    assert sizes(cut_shards(requests, Limits(max_bytes=20))) == [2, 2, 1]
    assert sizes(cut_shards(requests, Limits(max_bytes=19))) == [1, 1, 1, 1, 1]


def test_a_shard_may_fill_the_queue_to_the_last_token_but_not_beyond():
    requests = [a_request(i, n_tokens=5) for i in range(5)]
    assert sizes(cut_shards(requests, Limits(max_enqueued_tokens=10))) == [2, 2, 1]
    assert sizes(cut_shards(requests, Limits(max_enqueued_tokens=9))) == [1, 1, 1, 1, 1]


def test_a_request_that_alone_exceeds_the_tokens_goes_by_itself():
    requests = [a_request(0), a_request(1, n_tokens=100), a_request(2), a_request(3)]
    assert sizes(cut_shards(requests, Limits(max_enqueued_tokens=10))) == [1, 1, 2]


def test_the_defaults_cut_at_20_000_requests():
    requests = (a_request(i) for i in range(40_001))
    assert sizes(cut_shards(requests, Limits())) == [20_000, 20_000, 1]


def test_a_shard_is_given_before_the_next_ones_requests_are_asked_for():
    asked = []

    def requests():
        for i in range(7):
            asked.append(i)
            yield a_request(i)

    shards = cut_shards(requests(), Limits(max_requests=2))
    next(shards)
    assert asked == [0, 1, 2]


REQUESTS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=40)
LIMITS = st.builds(
    Limits,
    max_requests=st.integers(1, 8),
    max_bytes=st.integers(30, 90),
    max_enqueued_tokens=st.none() | st.integers(1, 90),
)


@given(REQUESTS, LIMITS)
def test_cutting_keeps_every_request_once_in_order_within_every_limit(weights, limits):
    requests = [a_request(i, *weight) for i, weight in enumerate(weights)]
    shards = list(cut_shards(requests, limits))
    assert [request for shard in shards for request in shard] == [
        request for chunk in requests for request in chunk
    ]
    most_tokens = math.inf if limits.max_enqueued_tokens is None else limits.max_enqueued_tokens
    for shard in shards:
        assert 1 <= len(shard) <= limits.max_requests
        assert n_bytes(shard) <= limits.max_bytes
        assert n_tokens(shard) <= most_tokens or len(shard) == 1


@given(REQUESTS, LIMITS)
def test_no_shard_has_room_for_the_request_that_begins_the_next(weights, limits):
    requests = [a_request(i, *weight) for i, weight in enumerate(weights)]
    shards = list(cut_shards(requests, limits))
    most_tokens = math.inf if limits.max_enqueued_tokens is None else limits.max_enqueued_tokens
    for shard, following in pairwise(shards):
        longer = Requests.joined([shard, following.part(0, 1)])
        assert (
            len(longer) > limits.max_requests
            or n_bytes(longer) > limits.max_bytes
            or n_tokens(longer) > most_tokens
        )


# Limits


@pytest.mark.parametrize(
    "fields",
    [
        {"max_requests": 1},
        {"max_requests": 50_000},
        {"max_bytes": 1},
        {"max_bytes": 209_715_200},
        {"max_enqueued_tokens": 1},
        {"max_enqueued_tokens": 10**12},
        {"max_live_batches": 1},
        {"max_live_batches": 10**6},
        {"reconcile_seconds": 0},
        {"reconcile_seconds": 0.5},
    ],
    ids=str,
)
def test_limits_within_the_services_own_are_taken(fields):
    limits = fitting(Limits(**fields), OPENAI, CHAT_COMPLETIONS)
    assert {name: getattr(limits, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "range_"),
    [
        ({"max_requests": 0}, "from 1 upwards."),
        ({"max_requests": -1}, "from 1 upwards."),
        ({"max_bytes": 0}, "from 1 upwards."),
        ({"max_enqueued_tokens": 0}, "from 1 upwards."),
        ({"max_enqueued_tokens": -5}, "from 1 upwards."),
        ({"max_live_batches": 0}, "from 1 upwards."),
        ({"max_live_batches": -1}, "from 1 upwards."),
        ({"reconcile_seconds": -1}, "0 or more."),
        ({"reconcile_seconds": -0.5}, "0 or more."),
        ({"reconcile_seconds": float("nan")}, "0 or more."),
        ({"reconcile_seconds": "600"}, "0 or more."),
        ({"reconcile_seconds": None}, "0 or more."),
        ({"reconcile_seconds": True}, "0 or more."),
    ],
    ids=str,
)
def test_limits_that_every_service_would_refuse_are_refused_by_name(fields, range_):
    ((name, value),) = fields.items()
    with pytest.raises(ParameterError) as caught:
        Limits(**fields)
    assert str(caught.value) == f"Limits({name}={value!r}) must be {range_}"


@pytest.mark.parametrize(
    ("name", "fields", "most"),
    [
        ("openai", {"max_requests": 50_001}, "50,000"),
        ("openai", {"max_bytes": 209_715_201}, "209,715,200"),
        ("azure", {"max_requests": 100_001}, "100,000"),
        ("azure-v1", {"max_bytes": 200_000_001}, "200,000,000"),
        ("siliconflow", {"max_requests": 5_001}, "5,000"),
        ("moonshot", {"max_bytes": 100_000_001}, "100,000,000"),
        ("dashscope", {"max_bytes": 500_000_001}, "500,000,000"),
    ],
)
def test_limits_above_those_of_the_service_are_refused_by_name(name, fields, most):
    ((field, value),) = fields.items()
    dialect = DIALECTS[name]
    fitting(Limits(**{field: value - 1}), dialect, CHAT_COMPLETIONS)  # that is taken
    with pytest.raises(ParameterError) as caught:
        fitting(Limits(**fields), dialect, CHAT_COMPLETIONS)
    assert str(caught.value) == (
        f"Limits({field}={value}): {dialect} takes from 1 to {most}. Nothing was sent."
    )


def test_a_default_that_is_more_than_the_service_takes_is_what_it_takes():
    fitted = fitting(None, DIALECTS["siliconflow"], CHAT_COMPLETIONS)
    assert (fitted.max_requests, fitted.max_bytes) == (5_000, 90_000_000)
    assert fitting(Limits(max_live_batches=3), DIALECTS["siliconflow"], CHAT_COMPLETIONS) == (
        Limits(max_requests=5_000, max_live_batches=3)
    )
    assert fitting(None, GENERIC, CHAT_COMPLETIONS) == Limits()


def test_a_batch_of_embeddings_holds_no_more_texts_than_the_service_takes():
    small = Dialect(name="small", max_requests=100_000, max_inputs=1_000)
    assert fitting(None, small, EMBEDDINGS).max_requests == 1_000
    assert fitting(None, small, CHAT_COMPLETIONS).max_requests == 20_000


NUMBERS = ["max_requests", "max_bytes", "max_enqueued_tokens", "max_live_batches"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(NUMBERS, [True, False, 1.0, 2.5, float("nan"), float("inf"), "100"]),
        # Only the tokens may be left open.
        *product([name for name in NUMBERS if name != "max_enqueued_tokens"], [None]),
    ],
)
def test_limits_that_are_no_whole_numbers_are_refused_by_name(name, value):
    with pytest.raises(ParameterError) as caught:
        Limits(**{name: value})
    assert str(caught.value) == f"Limits({name}={value!r}) must be a whole number."


def test_the_queue_of_one_model_does_not_cut_the_requests_of_another():
    chunks = [replace(a_request(n, n_tokens=5), model=model) for model in "ab" for n in range(4)]
    own = {"a": Limits(max_enqueued_tokens=5)}
    assert sizes(cut_shards(chunks, Limits(), own)) == [1, 1, 1, 1, 4]
