"""How a batch can end, and what time, the provider and others do meanwhile."""

import logging
import os
import re
import stat
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

import batchframe as bf
from batchframe.client import Provider
from batchframe.core.batches import BatchSeen
from batchframe.emulator import Fault, JumpClock, LocalServer

DAY = 86_400.0


def rows_of(n: int) -> dict[int, str | None]:
    return {i: f"question {i}" for i in range(n)}


def answers_to(rows: dict[int, str | None]) -> list[str]:
    return [f"echo: {prompt}" for prompt in rows.values()]


def completions(results: list[dict[str, Any]]) -> list[str | None]:
    return [result["completion"] for result in results]


def the_batch(server: LocalServer) -> Any:
    (batch,) = server.client().batches.list().data
    return batch


def start(run: Any, server: LocalServer, rows: dict[int, str | None], **options: Any) -> None:
    """Have the rows sent, and leave before they are answered."""
    with pytest.raises(bf.RunTimeoutError):
        run(server, rows, timeout=30, **options)


def test_a_batch_that_somebody_cancelled_keeps_its_answers_and_asks_before_the_rest(run, clock):
    rows = rows_of(5)
    with LocalServer(clock=clock, row_seconds=3600, stage_seconds=1) as server:
        start(run, server, rows)
        clock.advance(2.5 * 3600)
        server.client().batches.cancel(the_batch(server).id)

        results = run(server, rows)
        answered = [result for result in results if result["status"] == "ok"]
        assert 0 < len(answered) < 5
        assert {row["status"] for row in results} == {"ok", "cancelled"}
        assert run(server, rows) == results
        assert server.calls()["batches.create"] == 1

        assert completions(run(server, rows, retry_failed=True)) == answers_to(rows)
        assert set(server.executions().values()) == {1}


def test_an_expired_batch_with_null_counts_keeps_its_paid_answers(run, clock):
    rows = rows_of(5)
    with LocalServer(clock=clock, row_seconds=5 * 3600) as server:
        server.inject(Fault("batches.retrieve", "null-counts", times=None))

        assert completions(run(server, rows)) == answers_to(rows)
        assert set(server.executions().values()) == {1}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("output", "drop-line"), id="without a line"),
        pytest.param(Fault("batches.retrieve", "files-late", times=40), id="without files"),
    ],
)
def test_rows_that_an_expired_batch_did_and_has_no_line_for_are_not_paid_again(run, clock, fault):
    rows = rows_of(5)
    with LocalServer(clock=clock) as server:
        server.inject(Fault("batches.create", "expire:2"))
        server.inject(fault)

        results = run(server, rows)

        assert {row["status"] for row in results} <= {"ok", "missing"}
        assert "missing" in {row["status"] for row in results}
        assert {row["cost_usd"] for row in results if row["status"] == "missing"} == {None}
        assert set(server.executions().values()) == {1}
        assert run(server, rows) == results


def test_a_batch_of_failed_rows_only_has_no_output_file_and_each_row_its_reason(run, clock):
    refusal = {"error": {"message": "no", "type": "invalid_request_error", "code": "bad_prompt"}}
    with LocalServer(lambda body: (400, refusal), clock=clock) as server:
        results = run(server, rows_of(3))

        assert the_batch(server).output_file_id is None
        assert [result["error_code"] for result in results] == ["bad_prompt"] * 3


def test_a_batch_that_is_stuck_for_three_days_is_waited_for(run, clock):
    rows = rows_of(3)
    with LocalServer(clock=clock, stage_seconds=1) as server:
        server.inject(Fault("batches.retrieve", "unknown-status:finalizing", times=5000))
        began = clock.now()

        assert completions(run(server, rows)) == answers_to(rows)
        assert clock.now() - began > 3 * DAY
        assert server.calls()["batches.create"] == 1


def test_result_files_that_the_provider_deleted_are_missing_rows_and_nothing_is_sent(
    run, clock, caplog
):
    rows = rows_of(3)
    with LocalServer(clock=clock, stage_seconds=60) as server:
        start(run, server, rows)
        clock.advance(DAY)
        server.client().files.delete(the_batch(server).output_file_id)

        results = run(server, rows)

        assert {(row["status"], row["error_code"]) for row in results} == {
            ("missing", "results_expired")
        }
        assert {row["cost_usd"] for row in results} == {None}
        assert "was paid for" in caplog.text
        assert run(server, rows) == results
        assert server.calls()["batches.create"] == 1
        assert completions(run(server, rows, retry_failed=True)) == answers_to(rows)


def test_an_answer_that_stands_within_a_torn_line_is_not_missing(run, clock, tmp_path):
    rows = rows_of(3)
    with LocalServer(clock=clock, directory=tmp_path / "server", stage_seconds=60) as server:
        start(run, server, rows)
        clock.advance(DAY)
        (output,) = (tmp_path / "server").rglob(the_batch(server).output_file_id)
        first, second, third = output.read_bytes().splitlines()
        assert first.endswith(b'"error":null}')
        # All values of the file can be read, and one of them is of two requests. As long as before.
        torn = [first.removesuffix(b"null}"), second, b"}".ljust(4), third, b""]
        output.write_bytes(b"\n".join(torn))

        assert completions(run(server, rows)) == answers_to(rows)
        assert set(server.executions().values()) == {1}


def test_a_result_file_that_is_not_found_once_is_fetched_again(run, server):
    server.inject(Fault("files.retrieve", "error-before:404"))

    assert completions(run(server, rows_of(3))) == answers_to(rows_of(3))


def test_of_two_batches_for_one_file_the_oldest_counts_and_the_other_is_cancelled(
    run, clock, caplog
):
    rows = rows_of(3)
    with LocalServer(clock=clock, stage_seconds=60) as server:
        server.inject(Fault("batches.create", "reply-lost-after"))
        server.inject(Fault("batches.list", "error-before:500", times=None))
        start(run, server, rows)
        (first,) = (call for call in server.client().files.list().data if call.purpose == "batch")
        clock.advance(5)
        client = server.client()
        second = client.batches.create(
            input_file_id=first.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        server._script._calls.clear()

        assert completions(run(server, rows)) == answers_to(rows)
        assert client.batches.retrieve(second.id).status in {"cancelling", "cancelled"}
        assert "billed twice" in caplog.text


def test_of_two_batches_for_one_file_one_that_failed_does_not_count(run, clock):
    rows = rows_of(3)
    with LocalServer(clock=clock, stage_seconds=60) as server:
        server.inject(Fault("batches.create", "lands-late:200"))
        server.inject(Fault("batches.list", "error-before:500", times=None))
        start(run, server, rows)
        (first,) = (call for call in server.client().files.list().data if call.purpose == "batch")
        # Older, and refused: its address is not that of the lines.
        client = server.client()
        client.batches.create(
            input_file_id=first.id, endpoint="/v1/embeddings", completion_window="24h"
        )
        clock.advance(300)
        server._script._calls.clear()

        assert completions(run(server, rows)) == answers_to(rows)
        assert server.billed().requests == 3


def test_a_batch_that_lists_show_five_minutes_late_is_found(run, server):
    server.inject(Fault("batches.create", "reply-lost-after"))
    server.inject(Fault("batches.create", "list-lag:300"))

    assert completions(run(server, rows_of(3))) == answers_to(rows_of(3))
    assert server.calls()["batches.create"] == 1


class WrongClock:
    """A clock whose time of day is wrong; its delays are right."""

    def __init__(self, clock: JumpClock, error: float) -> None:
        self._clock = clock
        self._error = error
        self.monotonic, self.wait, self.pause = clock.monotonic, clock.wait, clock.pause

    def now(self) -> float:
        return self._clock.now() + self._error


@pytest.mark.parametrize("error", [-9 * 3600.0, 9 * 3600.0, 400 * DAY], ids=str)
def test_a_wall_clock_that_jumps_while_a_batch_runs_changes_nothing(run, engine, clock, error):
    rows = rows_of(3)
    with LocalServer(clock=clock, stage_seconds=3600) as server:
        start(run, server, rows)
        engine.clock = WrongClock(clock, error)

        assert completions(run(server, rows)) == answers_to(rows)
        assert server.calls()["batches.create"] == 1


def test_neither_the_key_nor_a_prompt_is_told_to_anyone(run, clock, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="batchframe")
    key, prompt = "sk-local-very-secret-0123456789", "a prompt that is private"
    with LocalServer(clock=clock) as server:
        server.inject(Fault("batches.create", "reply-lost-after"))
        server.inject(Fault("batches.retrieve", "error-before:502", times=3))
        server.inject(Fault("files.content", "error-before:401"))
        client = server.client(api_key=key)
        server_like = type("", (), {"client": lambda self: client})()
        with pytest.raises(bf.AuthenticationError) as caught:
            run(server_like, {0: prompt})
        run(server_like, {0: prompt})

    said = f"{caught.value!r} {caught.value} {caught.value.__notes__} {caplog.text}"
    assert caplog.text
    assert key not in said
    assert prompt not in said
    files = [path for path in (tmp_path / "checkpoint").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert key.encode() not in path.read_bytes(), path
        assert path.name == ".gitignore" or stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for path in (tmp_path / "checkpoint" / "log").iterdir():
        assert prompt.encode() not in path.read_bytes(), path


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_checkpoint_behind_a_link_is_refused(run, server, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "checkpoint").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(bf.CheckpointError, match="symbolic link"):
        run(server, rows_of(3))

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert server.calls() == {}


@pytest.mark.parametrize("operation", ["files.create", "batches.create", "batches.retrieve"])
def test_no_call_follows_a_redirect_to_another_server(run, server, clock, operation):
    with LocalServer(clock=clock) as other:
        server.inject(Fault(operation, f"redirect:{other.base_url}/files"))
        # A create that is answered so may have been made; anything else is refused.
        with nullcontext() if operation == "batches.create" else pytest.raises(bf.ProviderError):
            run(server, rows_of(3))

        assert other.calls() == {}
        assert completions(run(server, rows_of(3))) == answers_to(rows_of(3))


def test_the_message_says_until_when_the_provider_keeps_the_results(run, clock):
    with LocalServer(clock=clock, stage_seconds=3600) as server:
        with pytest.raises(bf.RunTimeoutError) as caught:
            run(server, rows_of(3), timeout=60)

        until = datetime.fromtimestamp(the_batch(server).created_at + 30 * DAY, UTC)
        assert f"keeps the results until {until:%Y-%m-%d}" in str(caught.value)


@pytest.mark.parametrize(("days", "is_warned"), [(24, False), (26, True)])
def test_a_call_that_comes_late_is_told_that_results_are_deleted_after_30_days(
    run, clock, caplog, days, is_warned
):
    rows = rows_of(3)
    with LocalServer(clock=clock, stage_seconds=3600) as server:
        start(run, server, rows)
        clock.advance(days * DAY)

        assert completions(run(server, rows)) == answers_to(rows)

    assert ("deletes results after 30 days" in caplog.text) is is_warned


def test_a_run_that_stops_counts_as_unsent_what_was_not_sent(run):
    def broken(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 400, {"error": {"code": "invalid_value", "message": "temperature is too high"}}

    with LocalServer(broken) as refusing:
        one_by_one = bf.Limits(max_requests=1, max_live_batches=1)
        with pytest.raises(bf.ProviderError, match="temperature is too high") as caught:
            run(refusing, rows_of(9), limits=one_by_one)

        # The engine may have sent another before the run saw the first: all the same it adds up.
        unsent = re.search(r"(\d) rows? w\w+ not sent", str(caught.value))
        assert unsent is not None
        assert int(unsent[1]) + refusing.calls()["batches.create"] == 9


class NamesFilesLate(Provider):
    """A service that says that a batch has ended a few looks before it names its files."""

    looks = 3
    late = ("output_file_id", "error_file_id")

    def retrieve(self, batch_id: str) -> BatchSeen:
        seen = super().retrieve(batch_id)
        if seen.status.is_final and self.looks:
            self.looks -= 1
            return msgspec.structs.replace(seen, **dict.fromkeys(self.late))
        return seen


@pytest.mark.parametrize("how", [{"stage_seconds": 60}, {"row_seconds": 5 * 3600}])
def test_a_batch_that_names_its_files_late_loses_nothing_and_pays_nothing_twice(
    run, clock, monkeypatch, how
):
    monkeypatch.setattr("tests.engine.conftest.Provider", NamesFilesLate)
    with LocalServer(clock=clock, **how) as server:
        results = run(server, rows_of(5))

        assert completions(results) == answers_to(rows_of(5))
        assert set(server.executions().values()) == {1}


def test_a_batch_that_names_its_output_file_after_its_error_file_loses_nothing(
    run, clock, monkeypatch
):
    monkeypatch.setattr("tests.engine.conftest.Provider", NamesFilesLate)
    monkeypatch.setattr(NamesFilesLate, "late", ("output_file_id",))
    with LocalServer(clock=clock, faults=["expired"]) as server:
        results = run(server, rows_of(5))

        assert completions(results) == answers_to(rows_of(5))
        assert set(server.executions().values()) == {1}


def test_a_batch_that_never_names_its_files_has_rows_that_are_missing(run, clock, monkeypatch):
    monkeypatch.setattr("tests.engine.conftest.Provider", NamesFilesLate)
    monkeypatch.setattr(NamesFilesLate, "looks", 1_000)
    with LocalServer(clock=clock) as server:
        results = run(server, rows_of(2))

        assert [result["status"] for result in results] == ["missing"] * 2
        assert server.calls()["batches.create"] == 1
