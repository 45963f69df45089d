"""One shard's life: every pair of state and event is a transition of the table, or refused."""

from itertools import product
from typing import get_args

import msgspec
import pytest

from batchframe.core.batches import (
    Action,
    BatchError,
    BatchSeen,
    BatchStatus,
    Collect,
    Collected,
    Create,
    CreateRefused,
    CreateStarted,
    Creating,
    Dropped,
    Ended,
    Event,
    FileLost,
    FileUploaded,
    IllegalTransitionError,
    Live,
    NotFound,
    Nothing,
    Planned,
    Poll,
    Reconcile,
    ResultsCommitted,
    ResultsLost,
    ShardDropped,
    ShardFrozen,
    State,
    TurnedAway,
    Upload,
    Uploaded,
    Uploading,
    UploadStarted,
    Usage,
    advance,
    next_action,
)


def seen(status="in_progress", **changes):
    fields = {"batch_id": "batch_1", "input_file_id": "file-1", "created_at": 1000.0}
    return BatchSeen(status=BatchStatus(status), **{**fields, **changes})


RUNNING, DONE = seen(n_done=3), seen("completed", output_file_id="file-2")
NO_USAGE = Usage(input_tokens=0, cached_tokens=0, output_tokens=0, reasoning_tokens=0)
COMMITTED = ResultsCommitted(
    usage=NO_USAGE, downloads={"output": "ab"}, n_duplicate=0, n_foreign=0, n_unreadable=0
)

STATES = {
    "not frozen": None,
    "planned": Planned(),
    "uploading": Uploading(),
    "uploaded": Uploaded(file_id="file-1"),
    "creating": Creating(file_id="file-1", token="t", since=5.0),
    "live": Live(batch=seen()),
    "ended": Ended(batch=DONE),
    "collected": Collected(batch=DONE, results=COMMITTED),
    "dropped": Dropped(),
}
EVENTS = {
    "frozen": ShardFrozen(n_requests=1, n_bytes=2, n_tokens=3, sha256="ab" * 32, round=0),
    "upload started": UploadStarted(),
    "file uploaded": FileUploaded(file_id="file-1"),
    "create started": CreateStarted(token="t", at=5.0),
    "create refused": CreateRefused(code="http_400", message="Cannot find file"),
    "not found": NotFound(),
    "seen running": RUNNING,
    "seen done": DONE,
    "committed": COMMITTED,
    "lost": ResultsLost(),
    "file lost": FileLost(),
    "turned away": TurnedAway(),
    "dropped": ShardDropped(),
}
#: The whole machine. Whatever does not stand here is refused.
TRANSITIONS = {
    ("not frozen", "frozen"): Planned(),
    ("planned", "upload started"): Uploading(),
    ("uploading", "file uploaded"): Uploaded(file_id="file-1"),
    ("uploaded", "create started"): STATES["creating"],
    ("creating", "create refused"): Uploaded(file_id="file-1"),
    ("creating", "not found"): Planned(),
    ("creating", "seen running"): Live(batch=RUNNING),
    ("creating", "seen done"): Ended(batch=DONE),
    ("live", "seen running"): Live(batch=RUNNING),
    ("live", "seen done"): Ended(batch=DONE),
    ("ended", "committed"): STATES["collected"],
    ("collected", "lost"): Ended(batch=DONE),
    ("uploaded", "file lost"): Planned(),
    ("ended", "turned away"): Planned(),
    ("uploaded", "turned away"): Planned(),
    ("planned", "dropped"): Dropped(),
    ("uploading", "dropped"): Dropped(),
    ("uploaded", "dropped"): Dropped(),
}
REFUSED = sorted(set(product(STATES, EVENTS)) - TRANSITIONS.keys())


def test_the_samples_cover_every_state_event_and_action():
    assert {type(state) for state in STATES.values()} == {*get_args(State), type(None)}
    assert {type(event) for event in EVENTS.values()} == {*get_args(Event)}
    assert {type(action) for action in ACTIONS.values()} == {*get_args(Action)}
    assert ACTIONS.keys() == STATES.keys() - {"not frozen"}


@pytest.mark.parametrize(("state", "event"), TRANSITIONS, ids=str)
def test_each_transition_of_the_table_is_made(state, event):
    assert advance(STATES[state], EVENTS[event]) == TRANSITIONS[state, event]


@pytest.mark.parametrize(("state", "event"), REFUSED, ids=str)
def test_every_other_pair_is_refused(state, event):
    name = type(STATES[state]).__name__ if STATES[state] is not None else "not frozen"
    with pytest.raises(IllegalTransitionError) as caught:
        advance(STATES[state], EVENTS[event])
    expected = f"{type(EVENTS[event]).__name__} cannot happen to a shard that is {name}"
    assert str(caught.value) == expected


def test_table_and_refusals_are_all_pairs():
    assert len(TRANSITIONS) + len(REFUSED) == 9 * 13


def test_no_way_leads_from_a_create_that_was_sent_to_a_second_one_for_the_same_file_unasked():
    # After CreateStarted, another CreateStarted needs a refusal, or a new upload after a search.
    creating = STATES["creating"]
    unasked = [event for name, event in EVENTS.items() if ("creating", name) in TRANSITIONS]
    for event in unasked:
        after = advance(creating, event)
        if isinstance(after, Uploaded):
            assert isinstance(event, CreateRefused)
        else:
            assert not isinstance(next_action(after), Create)


@pytest.mark.parametrize("status", list(BatchStatus), ids=str)
def test_a_live_batch_is_not_replaced_by_another(status):
    # Two batches of one shard are both paid for: that must never pass as progress.
    for batch_id in ("batch_2", "batch_10", "BATCH_1", ""):
        with pytest.raises(
            IllegalTransitionError, match="BatchSeen cannot happen to a shard that is Live"
        ):
            advance(STATES["live"], seen(status, batch_id=batch_id))


@pytest.mark.parametrize("status", list(BatchStatus), ids=str)
def test_a_batch_ends_with_its_final_statuses_and_with_no_other(status):
    final = {"completed", "failed", "expired", "cancelled"}
    expected = Ended if status in final else Live
    assert status.is_final is (status in final)
    for state in (STATES["creating"], STATES["live"]):
        assert advance(state, seen(status)) == expected(batch=seen(status))


def test_the_eight_statuses_of_the_service_are_known_and_one_word_stands_for_all_others():
    assert {str(status) for status in BatchStatus} == {
        "validating",
        "in_progress",
        "finalizing",
        "cancelling",
        "completed",
        "failed",
        "expired",
        "cancelled",
        "unknown",
    }


ACTIONS = {
    "planned": Upload(again=False),
    "uploading": Upload(again=True),
    "uploaded": Create(file_id="file-1"),
    "creating": Reconcile(file_id="file-1", token="t", since=5.0),
    "live": Poll(batch_id="batch_1"),
    "ended": Collect(batch=DONE),
    "collected": Nothing(),
    "dropped": Nothing(),
}


@pytest.mark.parametrize("state", ACTIONS)
def test_each_state_has_its_action(state):
    assert next_action(STATES[state]) == ACTIONS[state]


def test_a_shard_goes_the_straight_way_from_frozen_to_collected():
    state = None
    for name in (
        "frozen",
        "upload started",
        "file uploaded",
        "create started",
        "seen running",
        "seen done",
        "committed",
    ):
        state = advance(state, EVENTS[name])
    assert state == Collected(batch=DONE, results=COMMITTED)


FULL = seen(
    "failed",
    error_file_id="file-3",
    n_done=7,
    usage=Usage(input_tokens=1, cached_tokens=2, output_tokens=3, reasoning_tokens=4),
    errors=(BatchError(code="c", message="m", line=1, param="body.model"),),
    metadata={"token": "t"},
)


@pytest.mark.parametrize("name", [*EVENTS, "seen in full"])
def test_events_read_back_from_json_as_they_were_written(name):
    event = EVENTS.get(name, FULL)
    data = msgspec.json.encode(event)
    assert msgspec.json.decode(data, type=Event) == event
    assert msgspec.json.decode(data)["type"] == type(event).__name__


@pytest.mark.parametrize(
    "digest",
    ["", "ab", "AB" * 32, "ab" * 33, "g" * 64, "../" + "0" * 61, " " + "ab" * 32, "ab" * 31 + "/x"],
)
def test_a_hash_that_is_none_is_not_read_because_it_becomes_the_name_of_a_file(digest):
    fields = msgspec.to_builtins(EVENTS["frozen"]) | {"sha256": digest}
    with pytest.raises(msgspec.ValidationError, match=r"matching regex .* `\$\.sha256`"):
        msgspec.json.decode(msgspec.json.encode(fields), type=Event)
