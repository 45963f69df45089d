"""Rows that are sent again are made from the lines that were sent, also without their frame."""

import errno
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

import batchframe as bf
from batchframe.answers import find_windows
from batchframe.checkpoint import Checkpoint
from batchframe.client import Provider
from batchframe.core.batches import Collected
from batchframe.core.requests import Rows, render_requests
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import CallableModel, Fault, LocalServer
from batchframe.jobs import Submission
from batchframe.rounds import Options
from batchframe.running import rounds_of_checkpoint, run_rows, run_windows
from batchframe.storage import Storage


@pytest.fixture
def call(engine, tmp_path):
    """Send prompts; or, without any, do what is left of the checkpoint. Gives the results."""

    def call_it(server, prompts=None, *, models=None, limits=None, storage=None, **options):
        provider = Provider(server.client())
        submission = Submission(
            provider=provider,
            limits=limits or Limits(),
            completion_window="24h",
            poll_interval=None,
        )
        spec = Spec(model=None if models else "gpt-4o", account=provider.account)
        how = {"options": Options(**{"progress": False, **options}), "engine": engine}
        path = tmp_path / "checkpoint"
        if prompts is None:
            rounds_of_checkpoint(spec, submission, path, **how).work()
            return None
        rows = Rows(
            ids=pa.array(range(len(prompts))),
            prompts=pa.array(prompts),
            models=None if models is None else pa.array(models),
        )
        answers = run_rows(rows, spec, submission, path, storage=storage, **how)
        return answers.results.take(answers.positions).to_pylist()

    return call_it


class Counting(Storage):
    """A disk that counts how often the tables of shards are opened."""

    n_opened = 0

    def open(self, path):
        self.n_opened += path.parent.name == "shards" and path.suffix == ".parquet"
        return super().open(path)


def broken_once(*questions):
    """Answers with what was asked; these fail the first time."""
    left = set(questions)

    def answer(body):
        asked = body["messages"][-1]["content"]
        if asked in left:
            left.remove(asked)
            return 500, {"error": {"message": "Sorry.", "code": "server_error"}}
        return f"ok {asked}"

    return CallableModel(answer)


class FullAfterADrop(Storage):
    """A disk without room for the shard that is to take the place of one that was given up."""

    is_dropped = False

    def create(self, path, data):
        if self.is_dropped:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.is_dropped = b"ShardDropped" in data
        return super().create(path, data)


QUESTIONS = [f"question {row}" for row in range(20)]


def test_rows_of_a_second_try_that_was_given_up_are_sent_once_more_and_not_twice(call, clock):
    with LocalServer(broken_once(*QUESTIONS), clock=clock, stage_seconds=60) as server:
        # All fail at first, and their second batch is more than the queue takes.
        server.inject(Fault("batches.create", "queue-full:60", first=2))
        with pytest.raises(OSError, match="No space left"):
            call(server, QUESTIONS, storage=FullAfterADrop())
        assert server.executions() == {}

        call(server)  # out of the lines that are there

        assert set(server.executions().values()) == {1}
        results = call(server, QUESTIONS)
        assert [result["completion"] for result in results] == [f"ok {one}" for one in QUESTIONS]


def test_who_has_no_time_for_batches_that_are_too_large_is_told_so(call, clock):
    with LocalServer(clock=clock, stage_seconds=60, max_file_bytes=2_000) as server:
        with pytest.raises(bf.ProviderError, match="too large"):
            call(server, QUESTIONS)
        for prompts in (QUESTIONS, None):
            with pytest.raises(bf.RunTimeoutError):
                call(server, prompts, limits=Limits(max_requests=4), timeout=0)

        results = call(server, QUESTIONS)
        assert [result["status"] for result in results] == ["ok"] * 20
        assert set(server.executions().values()) == {1}


class Cancels(Storage):
    """A disk; when one of these was written after another, somebody cancels."""

    def __init__(self, *events):
        self.events = list(events)

    def create(self, path, data):
        is_new = super().create(path, data)
        if self.events and self.events[0] in data:
            self.events.pop(0)
            if not self.events:
                bf.open_run(path.parent.parent).cancel()
        return is_new


def other_rows_and_what_is_left(call, server):
    """Forget that somebody cancelled, and do whatever is left; gives the rows that were sent."""
    assert [result["status"] for result in call(server, ["another question"])] == ["ok"]
    before, n_uploads = server.executions(), server.calls()["files.create"]
    call(server)
    assert (server.executions(), server.calls()["files.create"]) == (before, n_uploads)
    return sum(before.values()) - 1


@pytest.mark.parametrize("events", [[b"ShardDropped"], [b"ShardDropped", b"ShardFrozen"]])
def test_rows_that_are_cancelled_when_they_were_cut_anew_are_not_sent_later(call, clock, events):
    with LocalServer(clock=clock, stage_seconds=60, max_file_bytes=2_000) as server:
        with pytest.raises(bf.ProviderError, match="too large"):
            call(server, QUESTIONS)
        disk = Cancels(*events)
        call(server, QUESTIONS, limits=Limits(max_requests=4), storage=disk)
        assert not disk.events

        assert other_rows_and_what_is_left(call, server) == 0


def test_nor_are_those_that_were_given_up_for_a_full_queue(call, clock):
    with LocalServer(clock=clock, stage_seconds=60) as server:
        server.inject(Fault("batches.create", "queue-full:60", first=1))
        disk = Cancels(b"ShardDropped")
        call(server, QUESTIONS, storage=disk)
        assert not disk.events

        assert other_rows_and_what_is_left(call, server) == 0


def test_nor_those_whose_process_died_while_they_were_cut(call, clock, tmp_path):
    with LocalServer(clock=clock, stage_seconds=60) as server:
        server.inject(Fault("batches.create", "queue-full:60", first=1))
        with pytest.raises(OSError, match="No space left"):
            call(server, QUESTIONS, storage=FullAfterADrop())
        bf.open_run(tmp_path / "checkpoint").cancel()
        call(server)

        assert other_rows_and_what_is_left(call, server) == 0


def test_nor_what_waited_when_nobody_was_at_work(call, clock, tmp_path):
    with LocalServer(clock=clock, stage_seconds=60) as server:
        limits = Limits(max_requests=4, max_live_batches=1)
        with pytest.raises(bf.RunTimeoutError):
            call(server, QUESTIONS, limits=limits, timeout=30)
        assert server.calls()["batches.create"] == 1
        bf.open_run(tmp_path / "checkpoint", client=server.client()).cancel()

        assert other_rows_and_what_is_left(call, server) <= 4


def test_nor_what_failed_before_it_was_cancelled(call, clock):
    with LocalServer(broken_once(*QUESTIONS), clock=clock, stage_seconds=60) as server:
        disk = Cancels(b"ResultsCommitted")
        results = call(server, QUESTIONS, storage=disk)
        assert [result["error_code"] for result in results] == ["server_error"] * 20

        assert other_rows_and_what_is_left(call, server) == 0


def test_nor_what_fails_afterwards(call, clock, tmp_path):
    with LocalServer(broken_once(*QUESTIONS), clock=clock, stage_seconds=60) as server:
        with pytest.raises(bf.RunTimeoutError):
            call(server, QUESTIONS, timeout=30)
        clock.advance(1_000)  # the batch has ended: nobody can cancel it any more
        bf.open_run(tmp_path / "checkpoint", client=server.client()).cancel()

        assert other_rows_and_what_is_left(call, server) == 0


def test_nor_what_was_never_created(call, clock, tmp_path):
    with LocalServer(clock=clock, stage_seconds=60) as server:
        server.inject(Fault("batches.create", "reset-before", first=1))
        with pytest.raises(bf.RunTimeoutError):
            call(server, QUESTIONS, timeout=5)
        bf.open_run(tmp_path / "checkpoint").cancel()
        clock.advance(1_000)

        assert other_rows_and_what_is_left(call, server) == 0


def test_what_was_cancelled_is_no_failure_of_other_rows(call, clock):
    others = [f"another question {row}" for row in range(8)]
    with LocalServer(broken_once(*QUESTIONS), clock=clock, stage_seconds=60) as server:
        call(server, QUESTIONS, storage=Cancels(b"ResultsCommitted"))
        how = {"limits": Limits(max_requests=2, max_live_batches=1), "max_error_ratio": 0.4}
        with pytest.raises(bf.RunTimeoutError):
            call(server, others, timeout=30, **how)

        call(server, **how)

        assert list(server.executions().values()) == [1] * 8


def test_what_a_call_asks_for_again_is_sent_and_tried_again_without_its_rows(call, clock, tmp_path):
    with LocalServer(broken_once(*QUESTIONS), clock=clock, stage_seconds=60) as server:
        server.inject(Fault("batches.create", "reset-before", first=1))
        limits = Limits(max_requests=10)
        with pytest.raises(bf.RunTimeoutError):  # of one batch it does not know
            call(server, QUESTIONS, limits=limits, timeout=5)
        clock.advance(1_000)  # nor does the cancel know that the other has ended
        bf.open_run(tmp_path / "checkpoint", client=server.client()).cancel()
        with pytest.raises(bf.RunTimeoutError):
            call(server, QUESTIONS, limits=limits, timeout=0)  # begins anew, and leaves

        call(server)

        assert list(server.executions().values()) == [1] * 20
        results = call(server, QUESTIONS)
        assert [result["completion"] for result in results] == [f"ok {one}" for one in QUESTIONS]
        assert list(server.executions().values()) == [1] * 20


def test_a_shard_that_stays_cancelled_is_sent_once_it_is_taken_back(engine, clock, tmp_path):
    with LocalServer(clock=clock) as server:
        provider = Provider(server.client())
        spec = Spec(model="gpt-4o", account=provider.account)
        rows = Rows(ids=pa.array([1]), prompts=pa.array(["question"]))
        checkpoint = Checkpoint.open(tmp_path / "checkpoint", spec, Storage(), clock)
        number = checkpoint.freeze(*render_requests(rows, pa.array([0]), spec), round_=0)
        checkpoint.forget_cancel([number])
        how = Submission(
            provider=provider, limits=Limits(), completion_window="24h", poll_interval=None
        )

        job = engine.watch("a run", checkpoint, number, how)
        assert engine.is_waiting([job])  # nothing of it begins
        checkpoint.take_back([number])
        engine.watch("another", checkpoint, number, how)
        assert engine.wait([job], seconds=float("inf"), look=lambda: None)
        assert isinstance(job.state, Collected)

        for owner in ("a run", "another"):
            engine.release(owner)
        checkpoint.close()


def test_rows_with_models_of_their_own_are_cut_anew_for_the_queue_of_their_model(call, clock):
    limit = {"gpt-4o": 100}
    with LocalServer(clock=clock, stage_seconds=30, enqueued_token_limit=limit) as server:
        results = call(server, QUESTIONS, models=["gpt-4o"] * 20)

        assert [result["completion"] for result in results] == [
            f"echo: {question}" for question in QUESTIONS
        ]
        assert set(server.executions().values()) == {1}


def test_the_queue_of_one_model_cuts_no_batches_of_another(call, clock):
    others = [f"another question {row}" for row in range(20)]
    models = ["gpt-4o"] * 20 + ["gpt-4o-mini"] * 20
    limit = {"gpt-4o": 100}
    with LocalServer(clock=clock, stage_seconds=30, enqueued_token_limit=limit) as server:
        call(server, QUESTIONS, models=models[:20])
        before = server.calls()["batches.create"]
        assert before > 2  # the queue's limit is known by now
        results = call(server, [*QUESTIONS, *others], models=models)

        assert [result["status"] for result in results] == ["ok"] * 40
        assert server.calls()["batches.create"] - before == 1


def test_runs_with_the_same_rows_try_them_no_more_often_than_one(call, clock):
    def broken(_body):
        return 500, {"error": {"message": "Sorry.", "code": "server_error"}}

    with (
        LocalServer(CallableModel(broken), clock=clock, stage_seconds=60) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        for run in [pool.submit(call, server, ["a", "b"], max_retries=3) for _ in range(3)]:
            assert [result["status"] for result in run.result(60)] == ["failed", "failed"]

        # The first time and three times more.
        assert server.calls()["batches.create"] == 4


def test_a_run_that_was_answered_is_not_called_hopeless_for_what_another_met(
    engine, clock, tmp_path
):
    def answer(body):
        asked = body["messages"][-1]["content"]
        if asked.startswith("too long"):
            return 400, {"error": {"message": "Too long.", "code": "context_length_exceeded"}}
        return f"ok {asked}"

    def row(number, prompt):
        return Rows(ids=pa.array([number]), prompts=pa.array([prompt]))

    first, second = row(0, "short"), row(1, "too long")
    others, last = row(2, "too long as well"), row(3, "short as well")
    with LocalServer(CallableModel(answer), clock=clock, stage_seconds=60) as server:
        provider = Provider(server.client())
        submission = Submission(
            provider=provider, limits=Limits(), completion_window="24h", poll_interval=None
        )
        spec, path = Spec(model="gpt-4o", account=provider.account), tmp_path / "checkpoint"
        how = {"options": Options(progress=False), "engine": engine}

        asked = []

        def run_them(*them):
            for rows in them if len(asked) == 2 else ():  # the first time they are only counted
                run_rows(rows, spec, submission, path, **how)

        def windows():
            asked.append("once more")
            yield first
            run_them(first)
            yield second
            # What others meet is read for the last rows, and says nothing of the first ones.
            run_them(second, others)
            yield last

        keys = run_windows(windows, spec, submission, path, **how)

        there = Checkpoint.read(path, Storage(), clock)
        assert [
            answers.results["status"].to_pylist() for answers in find_windows(keys, there, None)
        ] == [["ok"], ["failed"], ["ok"]]


def test_what_is_left_is_not_called_hopeless_where_a_row_was_answered(call, clock):
    def answer(body):
        asked = body["messages"][-1]["content"]
        if asked == "question 2":
            return 400, {"error": {"message": "Too long.", "code": "context_length_exceeded"}}
        return f"ok {asked}"

    limits = Limits(max_requests=1, max_live_batches=1)
    with LocalServer(CallableModel(answer), clock=clock, stage_seconds=60) as server:
        with pytest.raises(bf.RunTimeoutError):
            call(server, QUESTIONS[:5], limits=limits, timeout=250)

        call(server, limits=limits)

        assert server.calls()["batches.create"] == 5
        results = call(server, QUESTIONS[:5], limits=limits)
        assert [result["status"] for result in results] == ["ok", "ok", "failed", "ok", "ok"]


def test_a_run_is_not_called_hopeless_where_a_batch_was_answered_that_an_earlier_one_sent(
    call, clock
):
    def answer(body):
        asked = body["messages"][-1]["content"]
        if asked == "question 1":
            return 400, {"error": {"message": "Too long.", "code": "context_length_exceeded"}}
        return f"ok {asked}"

    limits = Limits(max_requests=1, max_live_batches=1)
    with LocalServer(CallableModel(answer), clock=clock, stage_seconds=60) as server:
        with pytest.raises(bf.RunTimeoutError):
            call(server, QUESTIONS[:6], limits=limits, timeout=30)
        assert server.calls()["batches.create"] == 1

        results = call(server, QUESTIONS[:6], limits=limits)

        assert [result["status"] for result in results] == ["ok", "failed", *["ok"] * 4]


def test_what_fails_so_that_it_may_pass_is_no_answer_that_leaves_hope(call, clock):
    def answer(body):
        if body["messages"][-1]["content"] == "question 0":
            return 500, {"error": {"message": "Sorry.", "code": "server_error"}}
        return 400, {"error": {"message": "No such model.", "code": "model_not_found"}}

    limits = Limits(max_requests=1, max_live_batches=1)
    with (
        LocalServer(CallableModel(answer), clock=clock, stage_seconds=60) as server,
        pytest.raises(bf.ProviderError, match=r"No such model\. 1\d rows were not sent"),
    ):
        call(server, QUESTIONS, limits=limits)


def test_failures_of_equal_rows_count_as_well_where_the_frame_is_gone(call, clock):
    def answer(body):
        asked = body["messages"][-1]["content"]
        if asked != "question 0":
            return 400, {"error": {"message": "Too long.", "code": "context_length_exceeded"}}
        return f"ok {asked}"

    how = {"limits": Limits(max_requests=1, max_live_batches=1), "dedupe": True}
    with LocalServer(CallableModel(answer), clock=clock, stage_seconds=60) as server:
        with pytest.raises(bf.RunTimeoutError):
            call(server, QUESTIONS[:5], max_error_ratio=0.2, timeout=250, **how)

        # One failure of five rows is allowed, and the second one is one too many.
        with pytest.raises(bf.ErrorRatioExceededError, match="2 of the 3 rows that ended"):
            call(server, **how)
        assert server.calls()["batches.create"] == 3


def test_lines_that_were_changed_on_the_disk_are_not_sent(call, clock, tmp_path):
    with LocalServer(broken_once("question 1"), clock=clock, stage_seconds=60) as server:
        call(server, QUESTIONS[:4], max_retries=0)
        [lines] = (tmp_path / "checkpoint" / "shards").glob("*.jsonl")
        whole = lines.read_bytes()
        lines.write_bytes(whole[: len(whole) // 2])

        with pytest.raises(bf.CheckpointCorruptError, match="was changed"):
            call(server)

        assert server.calls()["batches.create"] == 1
        lines.unlink()
        results = call(server, QUESTIONS[:4])
        assert [result["completion"] for result in results] == [
            f"ok {question}" for question in QUESTIONS[:4]
        ]


def test_lines_are_on_the_disk_as_long_as_their_rows_may_go_again(call, clock, tmp_path):
    shards = tmp_path / "checkpoint" / "shards"
    with LocalServer(broken_once("question 1"), clock=clock, stage_seconds=60) as server:
        call(server, QUESTIONS[:4], max_retries=0)
        assert len(list(shards.glob("*.jsonl"))) == 1

        call(server)

        assert list(shards.glob("*.jsonl")) == []
        assert set(server.executions().values()) == {1}


def test_rows_go_again_while_other_batches_are_still_live(call, clock):
    known = []

    def seconds(batch_id):
        if batch_id not in known:
            known.append(batch_id)
        return 3_600.0 if known.index(batch_id) == 1 else 10.0

    model = broken_once("question 0", "question 1")
    with LocalServer(model, clock=clock, stage_seconds=seconds) as server:
        call(server, QUESTIONS[:2], limits=Limits(max_requests=1))

        batches = sorted(server.client().batches.list().data, key=lambda one: one.created_at)
        slowest = max(batch.completed_at for batch in batches[:2])
        assert len(batches) == 4
        assert batches[2].completed_at < slowest


def test_to_send_rows_of_many_shards_again_reads_each_shard_a_few_times(call, clock):
    disk = Counting()
    with LocalServer(broken_once(*QUESTIONS), clock=clock, stage_seconds=60) as server:
        call(server, QUESTIONS, limits=Limits(max_requests=1), storage=disk)

        # To read its rows and their usage, to look for its rows elsewhere, and at the end; but not
        # once for each of the others.
        n_shards = server.calls()["batches.create"]
        assert n_shards == 40
        assert disk.n_opened <= 6 * n_shards


def test_to_resume_many_windows_reads_each_shard_a_few_times(call, clock, engine, tmp_path):
    disk, path = Counting(), tmp_path / "checkpoint"
    one_by_one = Limits(max_requests=1, max_live_batches=1)
    with LocalServer(clock=clock, stage_seconds=60) as server:
        with pytest.raises(bf.RunTimeoutError):
            call(server, QUESTIONS, limits=one_by_one, timeout=30)
        provider = Provider(server.client())
        spec = Spec(model="gpt-4o", account=provider.account)
        shared = Checkpoint.open(path, spec, disk, clock)
        rows = Rows(ids=pa.array(range(20)), prompts=pa.array(QUESTIONS))

        run_windows(
            lambda: (rows.take(pa.array([row])) for row in range(20)),
            spec,
            Submission(
                provider=provider, limits=one_by_one, completion_window="24h", poll_interval=None
            ),
            path,
            options=Options(progress=False),
            engine=engine,
        )

        shared.close()
        assert set(server.executions().values()) == {1}
        # Each once for its own window, and at most once more for the one before; and when it is
        # collected.
        assert disk.n_opened <= 5 * 20


def test_rows_of_a_shard_that_was_given_up_are_left_to_the_next_call_when_the_time_is_up(
    call, clock
):
    # Two batches of short rows fill the queue, and the third waits; the long rows never fit.
    prompts = [*QUESTIONS[:15], *(f"{'question ' * 20}{row}" for row in range(5))]
    how = {"limits": Limits(max_requests=5)}
    with LocalServer(clock=clock, stage_seconds=600, enqueued_token_limit={"gpt-4o": 100}) as there:
        with pytest.raises(bf.RunTimeoutError, match="run the same call again"):
            call(there, prompts, timeout=900, **how)

        results = call(there, prompts, **how)

        assert [result["status"] for result in results] == ["ok"] * 20
        assert set(there.executions().values()) == {1}
