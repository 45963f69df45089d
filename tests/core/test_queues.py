"""A queue's limit is taken from refusals, and tokens from usage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchframe.core.queues import Queue

STATED = (
    "Enqueued token limit reached for gpt-4o-mini in organization org-1. Limit: 2,000,000 enqueued"
    " tokens. Please try again once some in_progress batches have been completed."
)


def test_nothing_is_known_at_first_but_what_the_user_says():
    assert Queue().room(None) is None
    assert Queue().room(90_000) == 90_000


def test_a_refusal_may_state_the_limit():
    queue = Queue().refused([STATED], n_live=5, n_shard=10)
    assert queue.room(None) == 2_000_000
    assert queue.room(90_000) == 90_000
    assert queue.room(10**9) == 2_000_000
    # What is stated does not grow by itself, and another statement holds instead.
    assert queue.accepted() == queue
    lower = STATED.replace("2,000,000", "90,000")
    assert queue.refused([lower], n_live=0, n_shard=1).room(None) == 90_000


def test_else_a_part_of_what_was_there_is_taken_for_the_limit_and_grows():
    queue = Queue().refused(["The queue is full."], n_live=600, n_shard=400)
    assert queue.room(None) == 900
    assert queue.accepted().room(None) == pytest.approx(945)
    # Which fits one shard at least, and alone tells nothing: others may fill the queue.
    assert Queue().refused([""], n_live=10, n_shard=200).room(None) == 200
    assert queue.refused([""], n_live=0, n_shard=500) == queue
    assert Queue().refused(["token limit , see the page. Limit: 0"], n_live=0, n_shard=1) == Queue()
    # It never grows by a refusal.
    assert queue.refused([""], n_live=5000, n_shard=500).room(None) == 900


def test_half_of_what_never_fits_may_fit():
    assert Queue().too_large(1000).room(None) == 500
    assert Queue().too_large(1).room(None) == 1


def test_usage_corrects_what_is_guessed_from_bytes():
    queue = Queue().refused([STATED], n_live=0, n_shard=1).used(3000, 2000)
    # Two tokens for three that are guessed, and a margin of a fiftieth.
    assert queue.room(None) == pytest.approx(3_000_000 / 1.02)
    assert queue.used(1000, 2000).room(None) == pytest.approx(2_000_000 / 1.02)
    assert Queue().used(0, 0).room(100) == 100


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["refused", "too_large", "accepted", "used"]), st.integers(1, 10**9)
        ),
        max_size=20,
    )
)
def test_there_is_always_room_for_something(steps):
    queue = Queue()
    for step, n in steps:
        match step:
            case "refused":
                queue = queue.refused([""], n_live=n, n_shard=n)
            case "too_large":
                queue = queue.too_large(n)
            case "accepted":
                queue = queue.accepted()
            case "used":
                queue = queue.used(n, n // 3)
    room = queue.room(None)
    assert room is None or room > 0
