"""Shards wait for a place and for room in the queue, and none is overtaken for ever."""

from hypothesis import given
from hypothesis import strategies as st

from batchframe.core.batches import BatchSeen, BatchStatus, Creating, Ended, Live, Planned
from batchframe.core.schedule import Load, admit, creates_of
from batchframe.core.shards import Limits

MINE = ("https://api.openai.com/v1/", "", "", "gpt-4o-mini")
OTHER = ("https://api.openai.com/v1/", "", "", "gpt-4o")


def loads(*tokens, queue=MINE, **limits):
    return [Load(queue=queue, n_tokens=n, limits=Limits(**limits)) for n in tokens]


def test_without_limits_in_the_way_all_go_in_their_order():
    assert admit(loads(5, 5, 5), []) == [0, 1, 2]


def test_nothing_waits_and_nothing_goes():
    assert admit([], loads(5)) == []


def test_only_as_many_batches_are_live_as_allowed():
    assert admit(loads(1, 1, 1, max_live_batches=2), []) == [0, 1]
    assert admit(loads(1, 1, 1, max_live_batches=2), loads(1)) == [0]
    assert admit(loads(1, 1, 1, max_live_batches=2), loads(1, 1)) == []
    assert admit(loads(1, 1, 1, max_live_batches=2), loads(1, 1, 1)) == []


def test_the_queue_may_be_filled_to_the_last_token_but_not_beyond():
    assert admit(loads(40, 60, 1, max_enqueued_tokens=100), []) == [0, 1]
    assert admit(loads(41, max_enqueued_tokens=100), loads(60)) == []
    assert admit(loads(40, max_enqueued_tokens=100), loads(60)) == [0]


def test_a_shard_that_alone_exceeds_the_queue_goes_when_nothing_else_is_live():
    assert admit(loads(500, max_enqueued_tokens=100), []) == [0]
    assert admit(loads(500, max_enqueued_tokens=100), loads(1)) == []
    assert admit(loads(1, 500, max_enqueued_tokens=100), []) == [0]


def test_a_large_shard_is_not_overtaken_by_small_ones_behind_it():
    assert admit(loads(60, 60, 1, 1, max_enqueued_tokens=100), []) == [0]


def test_queues_do_not_stand_in_each_others_way():
    waiting = [
        *loads(500, max_enqueued_tokens=100),
        *loads(50, queue=OTHER, max_enqueued_tokens=100),
        *loads(1, max_enqueued_tokens=100),
        *loads(50, queue=OTHER, max_enqueued_tokens=100),
    ]
    assert admit(waiting, loads(1)) == [1, 3]


def test_the_same_model_of_another_payer_has_a_queue_of_its_own():
    mine, theirs = ("https://a/", "", "p1", "m"), ("https://a/", "", "p2", "m")
    live = loads(1, queue=theirs)
    assert admit(loads(1, queue=mine, max_live_batches=1), live) == [0]
    assert admit(loads(1, queue=theirs, max_live_batches=1), live) == []


def owned(owner, *tokens, **limits):
    return [Load(queue=MINE, n_tokens=n, limits=Limits(**limits), owner=owner) for n in tokens]


def test_runs_take_turns_in_a_queue_by_the_tokens_that_they_have_in_it():
    waiting = [*owned("large", 10, 10, 10, 10), *owned("small", 10, 10)]
    # 0, 1, 2, 3 are those of the large run, 4 and 5 those of the small one.
    assert admit(waiting, []) == [0, 4, 1, 5, 2, 3]
    # Who has much in the queue lets the other go first, ...
    assert admit(waiting, owned("large", 25)) == [4, 5, 0, 1, 2, 3]
    # ... and where only three places are free, they are not all the first one's.
    three = [*owned("large", 10, 10, 10, max_live_batches=3), *owned("small", 10)]
    assert admit(three, []) == [0, 3, 1]


def test_a_run_whose_next_shard_does_not_fit_is_not_overtaken_by_the_other():
    waiting = [*owned("large", 90, max_enqueued_tokens=100), *owned("small", 5, 5)]
    assert admit(waiting, owned("small", 20)) == []


def test_each_shard_is_held_to_the_limits_of_its_own_run():
    waiting = [*loads(1, max_live_batches=5), *loads(1, max_live_batches=1)]
    assert admit(waiting, []) == [0]
    assert admit(waiting[::-1], []) == [0, 1]


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([MINE, OTHER])), max_size=12),
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([MINE, OTHER])), max_size=6),
    st.none() | st.integers(1, 100),
    st.integers(1, 5),
)
def test_what_is_live_after_admission_keeps_the_limits_and_something_always_goes(
    waiting, live, most_tokens, most_batches
):
    limits = Limits(max_enqueued_tokens=most_tokens, max_live_batches=most_batches)
    waiting = [Load(queue=queue, n_tokens=n, limits=limits) for n, queue in waiting]
    live = [Load(queue=queue, n_tokens=n, limits=limits) for n, queue in live]
    admitted = admit(waiting, live)
    assert len(admitted) == len(set(admitted))
    for queue in (MINE, OTHER):
        before = [load for load in live if load.queue == queue]
        added = [waiting[i] for i in admitted if waiting[i].queue == queue]
        ours = [i for i, load in enumerate(waiting) if load.queue == queue]
        # In order, without gaps: nobody is overtaken.
        assert [i for i in admitted if i in ours] == ours[: len(added)]
        after = [*before, *added]
        if added:
            assert len(after) <= most_batches
            tokens = sum(load.n_tokens for load in after)
            assert most_tokens is None or tokens <= most_tokens or len(after) == 1
        elif ours:
            assert before, "a queue with nothing live admits its first shard"


def test_creates_of_the_last_hour_count_whatever_became_of_them():
    def batch(created_at):
        return BatchSeen(
            batch_id="b", input_file_id="f", status=BatchStatus.COMPLETED, created_at=created_at
        )

    states = [
        Planned(),
        Creating(file_id="f", token="t", since=9_000),
        Live(batch=batch(6_401)),
        Ended(batch=batch(6_400)),  # an hour ago
        Ended(batch=batch(10_005)),  # by a clock that is ahead of ours
    ]
    assert creates_of(states, now=10_000) == [1_000, 3_599, 0]
