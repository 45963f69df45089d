"""Rows through the engine and a real HTTP server: each answered once, each paid once."""

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
import pyarrow as pa
import pytest

import batchframe as bf
from batchframe.answers import find_rows
from batchframe.checkpoint import Checkpoint
from batchframe.client import Provider
from batchframe.core.batches import Collected
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import CallableModel, Fault, JumpClock, LocalServer
from batchframe.engine import Engine
from batchframe.jobs import Submission
from batchframe.rounds import Options
from batchframe.running import run_rows, run_windows
from batchframe.storage import Storage


def rows_of(n: int) -> dict[int, str | None]:
    return {i: f"question {i}" for i in range(n)}


def completions(results: list[dict[str, Any] | None]) -> list[str | None]:
    return [result["completion"] if result else None for result in results]


def answers_to(rows: dict[int, str | None]) -> list[str | None]:
    # The local server's model answers with a function of the prompt.
    return [None if prompt is None else f"echo: {prompt}" for prompt in rows.values()]


def assert_each_paid_once(server: LocalServer, n: int) -> None:
    executions = server.executions()
    assert len(executions) == n
    assert set(executions.values()) == {1}


def test_each_row_gets_the_answer_to_its_own_prompt(run, server):
    rows = rows_of(50)

    results = run(server, rows)

    assert completions(results) == answers_to(rows)
    assert {result["status"] for result in results} == {"ok"}
    assert_each_paid_once(server, 50)


def test_one_file_and_one_batch_are_created_for_rows_that_fit_one(run, server):
    run(server, rows_of(50))

    calls = server.calls()
    assert (calls["files.create"], calls["batches.create"]) == (1, 1)


def test_the_same_rows_again_send_nothing(run, server):
    first = run(server, rows_of(20))
    before = server.calls()

    assert run(server, rows_of(20)) == first
    assert server.calls() == before


def test_a_grown_and_reordered_frame_pays_for_its_new_rows_only(run, server):
    run(server, rows_of(20))
    grown = dict(reversed(rows_of(25).items()))

    assert completions(run(server, grown)) == answers_to(grown)
    assert_each_paid_once(server, 25)


def test_an_edited_prompt_is_sent_alone(run, server):
    run(server, rows_of(20))
    edited = rows_of(20) | {7: "another question"}

    assert completions(run(server, edited)) == answers_to(edited)
    assert_each_paid_once(server, 21)


def test_rows_without_a_prompt_are_not_sent(run, server):
    rows = rows_of(3) | {1: None}

    assert completions(run(server, rows)) == ["echo: question 0", None, "echo: question 2"]
    assert_each_paid_once(server, 2)


def test_many_shards_come_back_in_the_order_of_the_rows(run, server):
    rows = rows_of(95)

    results = run(server, rows, limits=Limits(max_requests=10))

    assert completions(results) == answers_to(rows)
    assert server.calls()["batches.create"] == 10
    assert_each_paid_once(server, 95)


def test_no_more_batches_are_live_than_the_limit_allows(run, server):
    run(server, rows_of(30), limits=Limits(max_requests=10, max_live_batches=1))

    batches = sorted(server.client().batches.list().data, key=lambda batch: batch.created_at)
    assert len(batches) == 3
    for earlier, later in itertools.pairwise(batches):
        assert earlier.completed_at <= later.created_at


def test_a_row_larger_than_a_file_is_refused_before_anything_is_sent(run, server):
    rows = {0: "short", 1: "long " * 100}

    with pytest.raises(bf.RowError, match=r"row 1, id 1, with \d+ bytes"):
        run(server, rows, limits=Limits(max_bytes=400))

    assert server.calls() == {}


def test_two_threads_with_the_same_rows_share_one_batch(run, server):
    rows, outcomes = rows_of(40), []
    threads = [
        threading.Thread(target=lambda: outcomes.append(completions(run(server, rows))))
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes == [answers_to(rows)] * 4
    assert server.calls()["batches.create"] == 1
    assert_each_paid_once(server, 40)


# What goes wrong on the way


@pytest.mark.parametrize("kind", ["reply-lost-after", "error-after:500", "error-after:429"])
def test_a_batch_whose_reply_was_lost_is_found_and_not_created_again(run, server, kind):
    server.inject(Fault("batches.create", kind))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert server.calls()["batches.create"] == 1
    assert_each_paid_once(server, 10)


def test_a_batch_that_lands_late_is_waited_for(run, server):
    server.inject(Fault("batches.create", "lands-late:200"))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert server.calls()["batches.create"] == 1


def test_several_faults_can_meet_in_one_create(run, server, caplog):
    for kind in ("reply-lost-after", "lands-late:100", "lands-late:200", "null-counts"):
        server.inject(Fault("batches.create", kind))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert server.calls()["batches.create"] == 1
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("kind", ["reset-before", "error-before:500", "error-before:429"])
def test_a_create_that_never_arrived_is_sent_again_after_ten_minutes(run, server, clock, kind):
    server.inject(Fault("batches.create", kind))
    rows, started = rows_of(10), clock.now()

    assert completions(run(server, rows)) == answers_to(rows)
    assert clock.now() - started >= 600
    assert server.calls()["batches.create"] == 2
    assert_each_paid_once(server, 10)


def test_a_file_that_was_given_up_is_deleted_so_that_no_late_batch_can_read_it(run, server):
    server.inject(Fault("batches.create", "reset-before"))

    run(server, rows_of(10))

    calls = server.calls()
    assert (calls["files.create"], calls["files.delete"]) == (2, 1)


def test_a_listing_that_fails_is_no_proof_that_there_is_no_batch(run, server):
    server.inject(Fault("batches.create", "reply-lost-after"))
    server.inject(Fault("batches.list", "error-before:500", times=5))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert server.calls()["batches.create"] == 1


def test_a_file_that_is_not_visible_yet_is_tried_again(run, server):
    server.inject(Fault("batches.create", "not-visible", times=3))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    calls = server.calls()
    assert (calls["files.create"], calls["batches.create"]) == (1, 4)
    assert_each_paid_once(server, 10)


def test_an_upload_whose_reply_was_lost_is_sent_again(run, server):
    server.inject(Fault("files.create", "reply-lost-after"))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    calls = server.calls()
    assert (calls["files.create"], calls["batches.create"]) == (2, 1)


def test_looks_that_fail_change_nothing(run, server):
    server.inject(Fault("batches.retrieve", "error-before:502", times=50))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert server.calls()["batches.create"] == 1


def test_retry_after_is_waited_for_however_long_it_is(run, server, clock):
    server.inject(Fault("batches.retrieve", "error-before:429:3600"))
    started = clock.now()

    run(server, rows_of(10))

    assert clock.now() - started >= 3600


@pytest.mark.parametrize("kind", ["truncate:100", "truncate-silent:100", "error-before:502"])
def test_a_broken_download_is_fetched_again(run, server, kind):
    server.inject(Fault("files.content", kind))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert server.calls()["files.content"] == 2


def test_an_unknown_status_word_means_still_running(run, server):
    server.inject(Fault("batches.retrieve", "unknown-status:pondering", times=5))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert server.calls()["batches.create"] == 1


def test_empty_file_ids_and_null_counts_are_read_as_none(run, server):
    server.inject(Fault("batches.retrieve", "empty-file-ids", times=None))
    server.inject(Fault("batches.retrieve", "null-counts", times=None))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)


def test_a_batch_that_is_stuck_and_names_its_files_late_is_waited_for(run, server):
    server.inject(Fault("batches.retrieve", "stuck", times=12))
    server.inject(Fault("batches.retrieve", "files-late", times=8, first=13))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert_each_paid_once(server, 10)


def test_an_error_in_an_answer_of_200_is_no_answer_and_its_row_goes_again(run, server):
    server.inject(Fault("output", "error-in-200"))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert server.calls()["batches.create"] == 2


def test_a_line_that_is_missing_is_said_and_never_sent_again_silently(run, server):
    server.inject(Fault("output", "drop-line"))

    first = run(server, rows_of(10))
    again = run(server, rows_of(10))

    assert sorted(result["status"] for result in first) == ["missing"] + ["ok"] * 9
    assert again == first
    assert_each_paid_once(server, 10)


def test_a_missing_line_is_sent_again_when_asked(run, server):
    server.inject(Fault("output", "drop-line"))
    run(server, rows_of(10))

    results = run(server, rows_of(10), retry_failed=True)

    assert completions(results) == answers_to(rows_of(10))
    assert sorted(server.executions().values()) == [1] * 9 + [2]


def test_a_broken_service_is_tried_again_in_further_rounds(run, clock):
    failures = {"question 3": 2}

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = body["messages"][-1]["content"]
        if failures.get(prompt, 0) > 0:
            failures[prompt] -= 1
            return 500, {"error": {"message": "broken", "type": "server_error", "code": None}}
        return 200, {"choices": [{"message": {"content": prompt}, "finish_reason": "stop"}]}

    with LocalServer(answer, clock=clock) as server:
        results = run(server, rows_of(10))

        assert completions(results) == list(rows_of(10).values())
        assert server.calls()["batches.create"] == 3


def test_rounds_end_at_max_retries_and_a_later_call_goes_on(run, clock):
    answers = {"calls": 0}

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        answers["calls"] += 1
        if answers["calls"] <= 2:
            return 503, {"error": {"message": "overloaded", "type": None, "code": None}}
        return 200, {"choices": [{"message": {"content": "at last"}, "finish_reason": "stop"}]}

    with LocalServer(answer, clock=clock) as server:
        (result,) = run(server, rows_of(1), max_retries=1)
        assert (result["status"], result["error_code"]) == ("failed", "http_503")

        assert completions(run(server, rows_of(1), max_retries=1)) == ["at last"]


def test_a_row_that_the_service_refused_for_good_is_not_sent_again(run, clock):
    refusal = {"error": {"message": "no", "type": "invalid_request_error", "code": "bad_prompt"}}

    with LocalServer(lambda body: (400, refusal), clock=clock) as server:
        (result,) = run(server, rows_of(1))
        run(server, rows_of(1))

        assert (result["status"], result["error_code"], result["error_message"]) == (
            "failed",
            "bad_prompt",
            "no",
        )
        assert server.calls()["batches.create"] == 1


def test_an_expired_batch_keeps_what_was_paid_and_sends_only_the_rest_again(run, clock):
    # Five rows a batch, five hours apart: the window of 24 hours ends before the fifth.
    with LocalServer(clock=clock, row_seconds=5 * 3600) as server:
        rows = rows_of(5)

        results = run(server, rows)

        assert completions(results) == answers_to(rows)
        assert_each_paid_once(server, 5)
        assert server.calls()["batches.create"] == 2


def test_the_wait_can_end_before_the_batches_and_the_same_call_resumes(run, clock):
    with LocalServer(clock=clock, stage_seconds=3600) as server:
        with pytest.raises(bf.RunTimeoutError, match=r"1 batch goes on.*run the same call again"):
            run(server, rows_of(10), timeout=60)

        assert completions(run(server, rows_of(10))) == answers_to(rows_of(10))
        assert server.calls()["batches.create"] == 1


def test_a_batch_of_another_project_is_never_sent_again(run, server, clock):
    # For the ten minutes in which a new batch may not be visible yet: 1, 2, 4 ... 120 seconds.
    server.inject(Fault("batches.retrieve", "error-before:404", times=12))

    with pytest.raises(bf.AccountMismatchError, match="another project"):
        run(server, rows_of(10))
    run(server, rows_of(10))

    assert server.calls()["batches.create"] == 1


def test_a_batch_that_is_not_visible_yet_is_waited_for(run, server):
    server.inject(Fault("batches.create", "visible-late:60"))

    assert completions(run(server, rows_of(10))) == answers_to(rows_of(10))
    assert server.calls()["batches.create"] == 1


def test_a_refused_key_stops_the_run_and_a_valid_one_resumes(run, server):
    server.inject(Fault("batches.retrieve", "error-before:401"))

    with pytest.raises(
        bf.AuthenticationError, match="run the same call again: it resumes"
    ) as caught:
        run(server, rows_of(10))

    assert any("1 batch goes on at the provider" in note for note in caught.value.__notes__)
    assert completions(run(server, rows_of(10))) == answers_to(rows_of(10))
    assert server.calls()["batches.create"] == 1


def test_a_batch_that_is_refused_fails_its_rows_with_the_services_words(run, clock):
    with LocalServer(clock=clock, enqueued_token_limit={"gpt-4o": 1}) as server:
        (result,) = run(server, rows_of(1), model="gpt-4o", max_retries=0)

    assert (result["status"], result["error_code"]) == ("failed", "token_limit_exceeded")
    assert "Enqueued token limit reached for gpt-4o" in result["error_message"]


def test_no_thread_of_the_engine_outlives_its_work(run, server):
    run(server, rows_of(10))

    for thread in threading.enumerate():
        if thread.name.startswith("batchframe"):
            thread.join(60)
            assert not thread.is_alive()


# What is stopped, mended and told apart


class FirstBatchOnly:
    """A slow model: it answers the first ten rows, and the others once it is told to go on.

    A server of it has a clock of its own: on the run's, which jumps from look to look, the day of a
    batch that waits is over in some seconds.
    """

    def __init__(self, answer: Callable[[str], tuple[int, dict[str, Any]]]) -> None:
        self._answer = answer
        self._gate = threading.Event()

    def go_on(self) -> None:
        self._gate.set()

    def __call__(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt = body["messages"][-1]["content"]
        if prompt not in set(rows_of(10).values()):
            self._gate.wait()
        return self._answer(prompt)


def failure(status: int, code: str, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"error": {"message": message, "type": None, "code": code}}


def test_a_first_batch_that_fails_for_good_stops_the_rest(run):
    model = FirstBatchOnly(lambda prompt: failure(404, "model_not_found", "no such model"))
    limits = Limits(max_requests=10, max_live_batches=1)

    with LocalServer(CallableModel(model, instant=False), stage_seconds=0.0) as server:
        try:
            with pytest.raises(bf.ProviderError, match=r"model_not_found: no such model\. .* sent"):
                run(server, rows_of(60), limits=limits)
        finally:
            model.go_on()

        # The second may have been on its way when the answers of the first came.
        assert server.calls()["batches.create"] <= 2


def test_an_account_without_money_stops_the_run_and_a_later_call_goes_on(run):
    account = {"money": False}

    def answer(prompt: str) -> tuple[int, dict[str, Any]]:
        if not account["money"]:
            return failure(429, "insufficient_quota", "pay")
        return 200, {"choices": [{"message": {"content": prompt}, "finish_reason": "stop"}]}

    model = FirstBatchOnly(answer)
    limits = Limits(max_requests=10, max_live_batches=1)
    with LocalServer(CallableModel(model, instant=False), stage_seconds=0.0) as server:
        try:
            with pytest.raises(bf.ProviderError, match="insufficient_quota"):
                run(server, rows_of(30), limits=limits)
        finally:
            account["money"] = True
            model.go_on()

        assert completions(run(server, rows_of(30), limits=limits)) == list(rows_of(30).values())


def test_failed_rows_of_a_proven_spec_stop_nothing(run, clock):
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = body["messages"][-1]["content"]
        if text in {"question 2", "question 3"}:
            return 400, {"error": {"message": "no", "type": None, "code": "bad_prompt"}}
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    with LocalServer(answer, clock=clock) as server:
        results = run(server, rows_of(6), limits=Limits(max_requests=2, max_live_batches=1))

    assert [result["status"] for result in results] == ["ok", "ok", "failed", "failed", "ok", "ok"]


def test_a_batch_whose_input_file_is_not_found_is_sent_again_from_a_new_file(run, server):
    server.inject(Fault("files.create", "visible-late:15"))
    rows = rows_of(10)

    assert completions(run(server, rows)) == answers_to(rows)
    assert_each_paid_once(server, 10)


def test_damaged_results_are_made_anew_from_the_downloads(run, server, tmp_path):
    first = run(server, rows_of(10))
    (tmp_path / "checkpoint" / "results" / "00000.parquet").write_bytes(b"damaged")
    before = server.calls()

    assert run(server, rows_of(10)) == first
    assert server.calls() == before


def test_damaged_results_and_downloads_are_fetched_again_and_nothing_is_paid(run, server, tmp_path):
    first = run(server, rows_of(10))
    (tmp_path / "checkpoint" / "results" / "00000.parquet").unlink()
    (tmp_path / "checkpoint" / "raw" / "00000-output.jsonl.zst").write_bytes(b"damaged")

    assert run(server, rows_of(10)) == first
    assert server.calls()["batches.create"] == 1
    assert server.calls()["files.content"] == 2


def test_downloads_that_someone_deleted_are_not_missed(run, server, tmp_path):
    first = run(server, rows_of(10))
    (tmp_path / "checkpoint" / "raw" / "00000-output.jsonl.zst").unlink()

    assert run(server, rows_of(10)) == first


def test_rows_that_do_not_add_up_to_the_batch_are_told(run, server, caplog):
    server.inject(Fault("output", "drop-line"))

    run(server, rows_of(10))

    assert "the batch says" in caplog.text


# What stops the sending


def n_batches(server: LocalServer) -> int:
    return server.calls().get("batches.create", 0)


def test_when_the_wait_is_over_nothing_more_is_sent(run, clock):
    limits = Limits(max_requests=1, max_live_batches=8)
    with LocalServer(clock=clock, stage_seconds=600) as server:
        with pytest.raises(bf.RunTimeoutError, match=r"(\d+) batches go on") as caught:
            run(server, rows_of(20), limits=limits, timeout=60)
        created = n_batches(server)

        assert f" {created} batches go on" in str(caught.value)
        assert created < 20
        assert alive_threads() == []
        assert n_batches(server) == created
        assert completions(run(server, rows_of(20), limits=limits)) == answers_to(rows_of(20))
        assert_each_paid_once(server, 20)


def alive_threads() -> list[threading.Thread]:
    """The engine's threads that are left once they had the time to end."""
    threads = [thread for thread in threading.enumerate() if "batchframe" in thread.name]
    for thread in threads:
        thread.join(60)
    return [thread for thread in threads if thread.is_alive()]


def test_an_engine_that_cannot_start_a_thread_tells_all_who_wait(run, server, monkeypatch):
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("batchframe_"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            run(server, rows_of(10))

    assert completions(run(server, rows_of(10))) == answers_to(rows_of(10))
    assert_each_paid_once(server, 10)


def test_an_address_where_nothing_answers_ends_in_an_error(run, server):
    server.inject(Fault("files.create", "reset-before", times=None))

    with pytest.raises(bf.ProviderError, match=r"Nothing answers at http.* Check base_url"):
        run(server, rows_of(10))


# What was frozen and is not wanted any more


@pytest.mark.parametrize("operation", ["files.create", "batches.create"])
def test_of_a_batch_that_was_never_sent_only_the_rows_that_are_still_wanted_are_sent(
    run, server, operation
):
    server.inject(Fault(operation, "error-before:401"))
    with pytest.raises(bf.AuthenticationError):
        run(server, rows_of(1000))
    few = dict(list(rows_of(1000).items())[:2]) | {5000: "a new question"}

    assert completions(run(server, few)) == answers_to(few)
    assert_each_paid_once(server, 3)
    assert server.calls().get("files.delete", 0) == (operation == "batches.create")

    assert completions(run(server, rows_of(1000))) == answers_to(rows_of(1000))
    assert_each_paid_once(server, 1001)


# Money and queues


@pytest.mark.parametrize("status", [403, 429])
def test_a_create_that_is_refused_for_lack_of_money_stops_at_once(run, server, clock, status):
    server.inject(Fault("batches.create", f"no-money:{status}"))
    started = clock.now()

    with pytest.raises(bf.ProviderError, match=r"insufficient_quota.*Add credit"):
        run(server, rows_of(10))

    assert clock.now() - started < 60
    assert completions(run(server, rows_of(10))) == answers_to(rows_of(10))
    assert n_batches(server) == 2
    assert_each_paid_once(server, 10)


def test_rows_that_failed_for_lack_of_money_are_not_sent_again_and_again(run, clock):
    broke = failure(429, "insufficient_quota", "pay")

    with LocalServer(lambda body: broke, clock=clock) as server:
        with pytest.raises(bf.ProviderError, match="insufficient_quota: pay"):
            run(server, rows_of(10))

        assert n_batches(server) == 1


def test_a_file_that_the_provider_lost_is_uploaded_again(run, server):
    server.inject(Fault("batches.create", "reset-before"))
    server.inject(Fault("batches.create", "not-visible", times=12, first=2))

    assert completions(run(server, rows_of(10))) == answers_to(rows_of(10))
    assert_each_paid_once(server, 10)


def test_a_full_queue_is_waited_for_and_costs_no_attempt(run, clock):
    rows = rows_of(100)
    # Ten batches of ten rows; the queue takes some of them at once.
    with LocalServer(clock=clock, stage_seconds=30, enqueued_token_limit={"gpt-4o": 400}) as server:
        results = run(server, rows, model="gpt-4o", limits=Limits(max_requests=10), max_retries=0)

        assert completions(results) == answers_to(rows)
        assert_each_paid_once(server, 100)


def test_a_batch_that_is_larger_than_the_queue_is_cut_into_smaller_ones(run, clock):
    rows = rows_of(100)
    # All rows in one batch have some 1,000 tokens.
    with LocalServer(clock=clock, stage_seconds=30, enqueued_token_limit={"gpt-4o": 400}) as server:
        results = run(server, rows, model="gpt-4o", max_retries=0)

        assert completions(results) == answers_to(rows)
        assert_each_paid_once(server, 100)
        batches = [batch.status for batch in server.client().batches.list(limit=100)]
        assert batches.count("failed") == 1
        assert batches.count("completed") >= 4


def test_first_rows_are_answered_and_collected_before_the_last_are_read(tmp_path):
    rows = Rows(ids=pa.array(range(2)), prompts=pa.array(["first", "last"]))
    collected = threading.Event()

    def seen(request):
        if request.method == "DELETE":  # of our files, once their results are in the checkpoint
            collected.set()

    with (
        LocalServer(stage_seconds=0) as server,
        httpx2.Client(event_hooks={"request": [seen]}) as http,
    ):
        provider = Provider(server.client(http_client=http))
        asked = []

        def windows():
            asked.append("once more")
            yield rows.take(pa.array([0]))
            assert len(asked) == 1 or collected.wait(60)  # the first time they are only looked at
            yield rows.take(pa.array([1]))

        run_windows(
            windows,
            Spec(model="gpt-4o", account=provider.account),
            Submission(
                provider=provider,
                limits=Limits(),
                completion_window="24h",
                poll_interval=0.01,
                delete_remote=True,
            ),
            tmp_path / "checkpoint",
            options=Options(progress=False),
        )
        assert_each_paid_once(server, 2)


def test_four_files_are_uploaded_at_once_and_never_more(run, server):
    lock, are_four, are_five = threading.Lock(), threading.Event(), threading.Event()
    under_way, most = set(), 0

    def began(request):
        nonlocal most
        if request.method == "POST" and request.url.path.endswith("/files"):
            with lock:
                under_way.add(request)
                most = max(most, len(under_way))
                if len(under_way) == 4:
                    are_four.set()
                if len(under_way) == 5:
                    are_five.set()
            assert are_four.wait(60)
            are_five.wait(0.2)  # which they never are

    def ended(response):
        with lock:
            under_way.discard(response.request)

    with httpx2.Client(event_hooks={"request": [began], "response": [ended]}) as http:
        client = server.client(http_client=http)
        results = run(server, rows_of(40), limits=Limits(max_requests=2), client=client)

    assert completions(results) == answers_to(rows_of(40))
    assert most == 4


def test_windows_of_rows_learn_the_queue_too(clock, engine, tmp_path):
    ids = pa.array(range(60), pa.int64())
    prompts = pa.array([f"question {row}" for row in range(60)])
    rows = Rows(ids=ids, prompts=prompts)
    place = tmp_path / "checkpoint"
    with LocalServer(clock=clock, stage_seconds=30, enqueued_token_limit={"gpt-4o": 200}) as server:
        provider = Provider(server.client())
        submission = Submission(
            provider=provider, limits=Limits(), completion_window="24h", poll_interval=None
        )
        run_windows(
            lambda: (rows.take(pa.array(range(n, n + 30))) for n in (0, 30)),
            Spec(model="gpt-4o", account=provider.account),
            submission,
            place,
            options=Options(progress=False, max_retries=0),
            engine=engine,
        )
        assert_each_paid_once(server, 60)
    results, positions, *_ = find_rows(rows, Checkpoint.read(place, Storage(), clock))
    answers = results["completion"].take(positions).to_pylist()
    assert answers == [f"echo: question {row}" for row in range(60)]


def test_what_was_learned_of_a_queue_serves_the_next_call(run, clock, engine):
    with LocalServer(clock=clock, stage_seconds=30, enqueued_token_limit={"gpt-4o": 400}) as server:
        run(server, rows_of(100), model="gpt-4o")
        more = {1000 + row: f"another question {row}" for row in range(100)}
        results = run(server, more, model="gpt-4o")

        assert len(completions(results)) == 100
        batches = [batch.status for batch in server.client().batches.list(limit=100)]
        assert batches.count("failed") == 1


def test_two_runs_that_wait_for_a_batch_that_is_too_large_are_both_answered(run, clock, tmp_path):
    rows = rows_of(60)
    with LocalServer(clock=clock, stage_seconds=30, enqueued_token_limit={"gpt-4o": 300}) as server:
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(run, server, rows, model="gpt-4o") for _ in range(2)]
            for one in runs:
                assert completions(one.result(60)) == answers_to(rows)
        assert_each_paid_once(server, 60)


# What is read wrongly for a moment


class OutOfDescriptors(Storage):
    """A disk of which one file cannot be opened now."""

    def __init__(self) -> None:
        self.failing = ""

    def open(self, path: Path) -> BinaryIO:
        if self.failing and self.failing in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().open(path)


def test_results_that_cannot_be_opened_now_are_not_taken_for_damaged(run, server, tmp_path):
    disk = OutOfDescriptors()
    first = run(server, rows_of(10), storage=disk)
    before = server.calls()

    disk.failing = "results"
    with pytest.raises(bf.CheckpointError, match=r"cannot be read now: .*Too many open files"):
        run(server, rows_of(10), storage=disk)
    disk.failing = ""

    assert run(server, rows_of(10), storage=disk) == first
    assert server.calls() == before


def test_a_run_that_joins_another_goes_on_when_the_others_client_is_closed(run, clock):
    model = FirstBatchOnly(
        lambda text: (200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})
    )
    rows: dict[int, str | None] = {1: "another question"}
    with LocalServer(CallableModel(model, instant=False), clock=clock) as server:
        with pytest.raises(bf.RunTimeoutError):
            run(server, rows, timeout=0)
        model.go_on()

        assert completions(run(server, rows)) == ["another question"]


def test_a_date_in_microseconds_says_nothing_and_stops_nothing(run, server):
    server.inject(Fault("batches.retrieve", "microseconds", times=None))
    server.inject(Fault("batches.create", "microseconds", times=None))

    assert completions(run(server, rows_of(10))) == answers_to(rows_of(10))


# Asked for


def test_who_prefers_to_be_asked_is_asked_before_rows_are_sent_again(run, server, clock):
    server.inject(Fault("batches.create", "reset-before"))
    started = clock.now()

    with pytest.raises(bf.UnknownOutcomeError, match=r"10 rows were not sent again.*resend"):
        run(server, rows_of(10), ask_if_unknown=True)

    assert clock.now() - started >= 600
    assert n_batches(server) == 1
    assert completions(run(server, rows_of(10))) == answers_to(rows_of(10))
    assert_each_paid_once(server, 10)


def test_who_prefers_to_be_asked_is_not_asked_where_the_batch_is_found(run, server):
    server.inject(Fault("batches.create", "reply-lost-after"))

    results = run(server, rows_of(10), ask_if_unknown=True)

    assert completions(results) == answers_to(rows_of(10))
    assert n_batches(server) == 1


def test_our_files_stay_at_the_provider_unless_their_deletion_is_asked_for(run, server):
    run(server, rows_of(10))
    assert len(server.client().files.list().data) == 2

    rows: dict[int, str | None] = {100: "another question"}
    assert completions(run(server, rows, delete_remote=True)) == answers_to(rows)

    assert len(server.client().files.list().data) == 2
    assert completions(run(server, rows)) == answers_to(rows)


def test_the_search_for_a_lost_batch_is_told(run, server, clock):
    server.inject(Fault("batches.create", "reset-before"))

    with pytest.raises(bf.RunTimeoutError, match=r"No batch goes on .*, and 1 more may"):
        run(server, rows_of(10), timeout=100)


class LooksAway(Storage):
    """A disk on which a thread named "late" reads the first results until the second are there."""

    def __init__(self, go_on: threading.Event) -> None:
        self._go_on = go_on

    def open(self, path: Path) -> BinaryIO:
        is_late = threading.current_thread().name == "late"
        is_first = (path.parent.name, path.name) == ("results", "00000.parquet")
        if is_late and is_first and not self._go_on.is_set():
            self._go_on.set()
            until_collected(path.parents[1], 1)
        return super().open(path)


def until_collected(path: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        checkpoint = Checkpoint._open.get(path.resolve())
        shard = checkpoint and checkpoint.shards.get(number)
        if shard and isinstance(shard.state, Collected):
            return
        time.sleep(0.01)  # the engine collects in threads of its own
    raise AssertionError(f"shard {number} was not collected")


def test_a_batch_that_is_collected_while_another_run_plans_is_not_sent_again(run, tmp_path):
    go_on = threading.Event()

    def answer(body):
        text = body["messages"][-1]["content"]
        if text == "second":
            assert go_on.wait(120)
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    rows: dict[int, str | None] = {1: "first", 2: "second"}
    limits, disk = Limits(max_requests=1), LooksAway(go_on)
    # By a clock of its own, as for FirstBatchOnly: the second batch waits for the other thread.
    with LocalServer(CallableModel(answer, instant=False), stage_seconds=0.0) as server:
        found = []
        early, late = (
            threading.Thread(
                target=lambda: found.append(run(server, rows, limits=limits, storage=disk)),
                name=name,
            )
            for name in ("early", "late")
        )
        early.start()
        until_collected(tmp_path / "checkpoint", 0)
        late.start()
        for thread in (early, late):
            thread.join(120)

        assert [completions(results) for results in found] == [["first", "second"]] * 2
        assert server.calls()["batches.create"] == 2


def test_what_another_run_answered_between_two_windows_is_not_sent_again(clock, engine, tmp_path):
    place = tmp_path / "checkpoint"
    both = [
        Rows(
            ids=pa.array(range(n, n + 10)),
            prompts=pa.array([f"question {row}" for row in range(n, n + 10)]),
        )
        for n in (0, 10)
    ]
    with LocalServer(clock=clock) as server:
        provider = Provider(server.client())
        spec = Spec(model="gpt-4o", account=provider.account)
        submission = Submission(
            provider=provider, limits=Limits(), completion_window="24h", poll_interval=None
        )
        options = Options(progress=False)
        asked = []

        def windows():
            asked.append("once more")
            yield both[0]
            if len(asked) == 2:  # the first time they are only looked at
                run_rows(both[1], spec, submission, place, options=options, engine=engine)
            yield both[1]

        run_windows(windows, spec, submission, place, options=options, engine=engine)
        assert_each_paid_once(server, 20)


def test_files_that_the_provider_loses_again_and_again_end_in_an_error(run, server):
    server.inject(Fault("batches.create", "not-visible", times=None))
    with pytest.raises(bf.ProviderError, match="took 4 files, and knows none of them"):
        run(server, rows_of(10))
    assert server.calls()["files.create"] == 4
    assert server.calls()["files.delete"] == 3


def test_no_more_batches_are_created_in_an_hour_than_the_account_may(tmp_path):
    clock = JumpClock()
    with LocalServer(clock=clock, stage_seconds=1.0) as server:
        provider = Provider(server.client())
        answers = run_rows(
            Rows(ids=pa.array(range(5)), prompts=pa.array(list("abcde"))),
            Spec(model="gpt-4o", account=provider.account),
            Submission(
                provider=provider,
                limits=Limits(max_requests=1, max_creates_per_hour=2),
                completion_window="24h",
                poll_interval=None,
            ),
            tmp_path / "checkpoint",
            options=Options(progress=False),
            engine=Engine(clock),
        )
        batches = server.client().batches.list(limit=100)
        created = sorted(batch.created_at for batch in batches)
    assert answers.results["status"].to_pylist() == ["ok"] * 5
    assert len(created) == 5
    assert created[1] - created[0] < 3600 <= created[2] - created[0] + 1
    assert created[3] - created[2] < 3600 <= created[4] - created[2] + 1


@pytest.mark.parametrize("status", [400, 429])
def test_a_queue_that_is_full_at_create_teaches_its_limit_and_costs_no_attempt(
    run, clock, engine, status
):
    rows = rows_of(100)
    with LocalServer(clock=clock, stage_seconds=30, enqueued_token_limit={"gpt-4o": 400}) as server:
        server.inject(Fault("batches.create", f"queue-full:400:{status}"))
        results = run(server, rows, model="gpt-4o", max_retries=0)

        assert completions(results) == answers_to(rows)
        assert_each_paid_once(server, 100)
        # All rows have some 1,000 tokens: what was refused was cut into parts that fit.
        batches = [batch.status for batch in server.client().batches.list(limit=100)]
        assert set(batches) == {"completed"}
        assert len(batches) >= 4


def test_a_queue_that_is_full_at_create_and_says_no_number_is_waited_for(run, clock):
    rows = rows_of(10)
    with LocalServer(clock=clock, stage_seconds=30) as server:
        server.inject(Fault("batches.create", "queue-full", times=2))
        results = run(server, rows, model="gpt-4o", max_retries=0)

        assert completions(results) == answers_to(rows)
        assert server.calls()["batches.create"] == 3
        assert_each_paid_once(server, 10)


def test_a_queue_that_stays_full_is_tried_ever_more_rarely(run, clock):
    tried = []

    def seen(request):
        if request.method == "POST" and request.url.path.endswith("/batches"):
            tried.append(clock.monotonic())

    with (
        LocalServer(clock=clock, stage_seconds=30) as server,
        httpx2.Client(event_hooks={"request": [seen]}) as http,
    ):
        # Of several rows, and with a limit that they fit into: so it is others who fill it.
        server.inject(Fault("batches.create", "queue-full:400", times=5))
        client = server.client(http_client=http)
        results = run(server, rows_of(10), model="gpt-4o", max_retries=0, client=client)

        assert completions(results) == answers_to(rows_of(10))
        assert_each_paid_once(server, 10)
    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert pauses == pytest.approx([5, 60, 120, 240, 480], abs=1)


@pytest.mark.parametrize("kind", ["queue-full", "queue-full:5", "queue-full:5:429"])
def test_a_row_that_a_queue_never_takes_at_create_ends_the_run(run, clock, kind):
    with LocalServer(clock=clock, stage_seconds=30) as server:
        server.inject(Fault("batches.create", kind, times=None))
        with pytest.raises(bf.ProviderError, match="One row by itself was refused 4 times") as met:
            run(server, rows_of(2), model="gpt-4o")

        assert "Nothing was billed" in str(met.value)
        assert server.executions() == {}


def test_a_wish_to_wait_at_create_is_kept_by_all_shards_of_the_account(run, server, clock):
    server.inject(Fault("batches.create", "error-before:429:3600"))
    limits = Limits(max_requests=5)

    assert completions(run(server, rows_of(10), limits=limits)) == answers_to(rows_of(10))

    created = [call.at for call in server.log() if (call.method, call.path) == CREATE]
    # One shard's create may have been under way already when the other's was answered.
    assert all(at - created[0] >= 3600 or at == created[0] for at in created)
    assert_each_paid_once(server, 10)


CREATE = ("POST", "/v1/batches")


SMALLER = [Limits(max_bytes=2_000), Limits(max_requests=4)]


@pytest.mark.parametrize("smaller", SMALLER)
def test_a_file_that_is_too_large_is_cut_anew_by_a_call_of_smaller_limits(run, clock, smaller):
    with LocalServer(clock=clock, max_file_bytes=2_000) as server:
        with pytest.raises(
            bf.ProviderError, match=r"too large.* with a smaller Limits\(max_requests="
        ):
            run(server, rows_of(40))

        assert completions(run(server, rows_of(40), limits=smaller)) == answers_to(rows_of(40))
        assert_each_paid_once(server, 40)


@pytest.mark.parametrize("smaller", SMALLER)
def test_a_file_that_is_too_large_is_cut_anew_without_its_frame(run, tmp_path, smaller):
    with LocalServer(stage_seconds=0, max_file_bytes=2_000) as server:
        with pytest.raises(bf.ProviderError, match="too large"):
            run(server, rows_of(40))

        path, options = tmp_path / "checkpoint", {"client": server.client(), "progress": False}
        found = bf.open_run(path, limits=smaller, poll_interval=0.01, **options).wait()

        assert sorted(found.result()["completion"].to_pylist()) == sorted(answers_to(rows_of(40)))
        assert_each_paid_once(server, 40)


def test_lines_that_are_damaged_when_they_are_cut_anew_are_made_anew(run, clock, tmp_path):
    limits = Limits(max_requests=4)
    with LocalServer(clock=clock, max_file_bytes=2_000) as server:
        with pytest.raises(bf.ProviderError, match="too large"):
            run(server, rows_of(40))
        (lines,) = (tmp_path / "checkpoint" / "shards").glob("*.jsonl")
        lines.write_bytes(lines.read_bytes()[:500])
        with pytest.raises(bf.CheckpointCorruptError, match="run the same call again"):
            run(server, rows_of(40), limits=limits)

        assert completions(run(server, rows_of(40), limits=limits)) == answers_to(rows_of(40))
        assert_each_paid_once(server, 40)


def test_rows_that_are_cut_anew_count_on_their_tries(run, server):
    server.inject(Fault("batches.create", "expire:0", times=None))
    server.inject(Fault("files.create", "error-before:413", first=4))
    with pytest.raises(bf.ProviderError, match="HTTP 413"):
        run(server, rows_of(8), max_retries=3)
    assert server.calls()["batches.create"] == 3

    run(server, rows_of(8), max_retries=3, limits=Limits(max_requests=4))

    # The last of four tries, in two batches.
    assert server.calls()["batches.create"] == 5


def test_what_was_created_before_the_process_began_counts_in_its_hour(run, server, clock, engine):
    limits = Limits(max_requests=1, max_creates_per_hour=2)
    run(server, rows_of(2), limits=limits)
    engine.__init__(clock)  # as in another process
    run(server, rows_of(4), limits=limits)
    created = sorted(batch.created_at for batch in server.client().batches.list(limit=100))
    assert len(created) == 4
    assert created[2] - created[0] >= 3_599
