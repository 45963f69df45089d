"""What is shared is shared fairly: queues between runs and processes, the pool, and listings."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pyarrow as pa
import pytest

import batchframe as bf
from batchframe.answers import find_keys
from batchframe.checkpoint import Checkpoint
from batchframe.client import Provider
from batchframe.core.batches import Collected
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import CallableModel, Fault, JumpClock, LocalServer
from batchframe.engine import Engine
from batchframe.jobs import Submission
from batchframe.rounds import Left, Options, Rounds
from batchframe.running import rounds_of_rows
from batchframe.storage import Storage


def rounds_of(
    server,
    path,
    prompts,
    *,
    engine,
    limits,
    model="gpt-4o",
    first=0,
    storage=None,
    provider=None,
    poll_interval=None,
    **options,
):
    """The work of sending prompts, with ids from `first` on."""
    provider = provider or Provider(server.client())
    return rounds_of_rows(
        Rows(ids=pa.array(range(first, first + len(prompts))), prompts=pa.array(prompts)),
        Spec(model=model, account=provider.account),
        Submission(
            provider=provider,
            limits=limits,
            completion_window="24h",
            poll_interval=poll_interval,
        ),
        path,
        options=Options(**{"progress": False, **options}),
        engine=engine,
        storage=storage,
    )


def send(server, path, prompts, **how):
    """Send prompts, and give the results in their order."""
    return outcome_of(rounds_of(server, path, prompts, **how))


def outcome_of(rounds):
    """Do the work, and give the results in their order."""
    rounds.work()
    answers = find_keys(rounds.keys, rounds.checkpoint, None)
    return answers.results["completion"].take(answers.positions).to_pylist()


def prompts_of(name, n):
    return [f"question {row} of {name}" for row in range(n)]


def answers_to(prompts):
    return [f"echo: {prompt}" for prompt in prompts]


def batches_of(server):
    return list(server.client().batches.list(limit=100))


def test_many_live_batches_are_looked_at_by_listings(run, clock):
    rows = {row: f"question {row}" for row in range(30)}
    with LocalServer(clock=clock, stage_seconds=600) as server:
        run(server, rows, limits=Limits(max_requests=1))

        calls = server.calls()
        assert calls["batches.create"] == 30
        # Each is asked by itself once, when a listing says that it has ended.
        assert calls["batches.retrieve"] == 30
        # Half an hour is looked at every few seconds at first and then every minute.
        assert 30 < calls["batches.list"] < 300


def test_a_batch_that_is_new_among_many_does_not_have_all_of_them_listed_all_the_time(run, clock):
    rows = {row: f"question {row}" for row in range(60)}
    seconds = iter(range(300, 900, 10))
    began = clock.monotonic()
    with LocalServer(clock=clock, stage_seconds=cache(lambda _: next(seconds))) as server:
        run(server, rows, limits=Limits(max_requests=1, max_live_batches=20))

        minutes = (clock.monotonic() - began) / 60
        assert minutes > 90
        # All are listed every quarter of a minute, and more often while half of them are new.
        assert server.calls()["batches.list"] < 5 * minutes


def test_few_live_batches_are_asked_one_by_one(run, clock):
    with LocalServer(clock=clock, stage_seconds=600) as server:
        run(server, {1: "one", 2: "two"}, limits=Limits(max_requests=1))

        assert "batches.list" not in server.calls()


class Leaving(Provider):
    """A client whose run is told to leave while it asks, and which is closed when that has left."""

    def __init__(self, client):
        super().__init__(client)
        self.rounds, self.is_closed = None, threading.Event()

    def retrieve(self, batch_id):
        self.rounds.left.set()
        # A run that leaves at once has closed it by then.
        if self.is_closed.wait(0.5):
            raise RuntimeError("The client was closed.")
        return super().retrieve(batch_id)


def test_who_leaves_waits_for_a_step_that_is_taken_with_its_client(tmp_path):
    path = tmp_path / "a"
    ready = threading.Event()
    clock = HeldClock(ready.is_set)
    how = {"engine": Engine(clock), "limits": Limits()}
    with LocalServer(clock=clock, stage_seconds=600) as server, ThreadPoolExecutor(2) as pool:
        staying = rounds_of(server, path, ["question"], **how)
        stays = pool.submit(outcome_of, staying)
        assert staying.submitted.wait(60)
        client = Leaving(server.client())
        client.rounds = rounds_of(server, path, ["question"], provider=client, **how)

        def leave():
            left_to_others(client.rounds)
            client.is_closed.set()

        leaves = pool.submit(leave)
        while not (client.rounds.left.is_set() or leaves.done()):
            threading.Event().wait(0.001)
        leaves.result(60)
        ready.set()

        assert stays.result(60) == ["echo: question"]


class HeldClock(JumpClock):
    """Stands still until something is so."""

    def __init__(self, is_ready):
        super().__init__()
        self._is_ready = is_ready

    def wait(self, condition, seconds, *, idle=False):
        if idle and not self._is_ready():
            condition.wait(0.001)
        else:
            super().wait(condition, seconds, idle=idle)


@pytest.mark.parametrize(
    ("names", "n", "others"),
    [("ab", 1, 3600), ("ab", 6, 3600), ("ab", 6, None), ("aa", 1, 3600)],
    ids=["few", "many", "others that adapt", "the same rows"],
)
def test_who_looks_often_is_not_slowed_by_runs_that_do_not(tmp_path, names, n, others):
    often, seldom = (tmp_path / name for name in ("a", names[1]))
    ready = threading.Event()
    clock = HeldClock(ready.is_set)
    how = {"engine": Engine(clock), "limits": Limits(max_requests=1)}
    with LocalServer(clock=clock, stage_seconds=600) as server, ThreadPoolExecutor(2) as pool:
        how["provider"] = Provider(server.client())
        prompts = prompts_of("a", n)
        first = rounds_of(server, often, prompts, poll_interval=7, **how)
        others_prompts = prompts if names == "aa" else prompts_of("b", 20)
        second = rounds_of(server, seldom, others_prompts, poll_interval=others, **how)
        runs = []
        for rounds in (first, second):
            runs.append(pool.submit(rounds.work))
            assert rounds.submitted.wait(60)
        ready.set()
        for run in runs:
            run.result(60)

        # Three stages are 1,800 seconds, and the next look comes within seven.
        batches = bf.open_run(often).batches().to_pylist()
        seconds = [(one["ended_at"] - one["created_at"]).total_seconds() for one in batches]
        assert len(seconds) == n
        assert max(seconds) <= 1_808


class Joined(Provider):
    """A client whose first question about a batch takes until somebody else waits for it too."""

    def __init__(self, client, join):
        super().__init__(client)
        self._joins = [join]

    def retrieve(self, batch_id):
        seen = super().retrieve(batch_id)
        if self._joins:
            self._joins.pop()()
        return seen


def test_who_comes_while_a_batch_is_looked_at_does_not_wait_for_the_other_one(tmp_path, clock):
    path = tmp_path / "a"
    how = {"engine": Engine(clock), "limits": Limits()}
    with LocalServer(clock=clock, stage_seconds=1_500) as server, ThreadPoolExecutor(2) as pool:
        often = rounds_of(server, path, ["question"], poll_interval=7, **how)
        runs = []

        def join():
            runs.append(pool.submit(often.work))
            while not often.watch.jobs:
                assert not runs[0].done()

        seldom = Joined(server.client(), join)
        rounds_of(server, path, ["question"], poll_interval=3_600, provider=seldom, **how).work()
        runs[0].result(60)

        # The hour is over when the other one comes, and three stages are 4,500 seconds.
        (batch,) = bf.open_run(path).batches().to_pylist()
        assert (batch["ended_at"] - batch["created_at"]).total_seconds() <= 4_508


def n_shards(path):
    return len(list(path.glob("shards/*.parquet")))


def test_a_small_run_does_not_wait_for_a_large_one_to_end(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    clock = HeldClock(lambda: (n_shards(a), n_shards(b)) == (12, 3))
    engine, limits = Engine(clock), Limits(max_requests=1, max_live_batches=2)
    large, small = prompts_of("large", 12), prompts_of("small", 3)
    with LocalServer(clock=clock, stage_seconds=60) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, server, a, large, engine=engine, limits=limits)
        second = pool.submit(send, server, b, small, engine=engine, limits=limits)
        assert first.result(60) == answers_to(large)
        assert second.result(60) == answers_to(small)

        batches = sorted(batches_of(server), key=lambda batch: batch.created_at)
        files = [server.client().files.content(batch.input_file_id).text for batch in batches]
        # The large one has two places at first; then they take turns: s, l, s, l, s.
        assert max(place for place, text in enumerate(files) if "small" in text) <= 7
        assert len(files) == 15


def test_the_results_of_a_small_run_are_not_fetched_after_all_of_a_large_one(tmp_path):
    ready = threading.Event()
    clock = HeldClock(ready.is_set)
    how = {"engine": Engine(clock), "limits": Limits(max_requests=1), "poll_interval": 60}
    large, small = prompts_of("large", 24), prompts_of("small", 1)
    with LocalServer(clock=clock, stage_seconds=60) as server, ThreadPoolExecutor(2) as pool:
        runs = []
        for path, prompts in ((tmp_path / "a", large), (tmp_path / "b", small)):
            rounds = rounds_of(server, path, prompts, **how)
            runs.append(pool.submit(outcome_of, rounds))
            assert rounds.submitted.wait(60)
        ready.set()  # all have been created in one moment, and end in one
        assert [run.result(60) for run in runs] == [answers_to(large), answers_to(small)]

        (batch,) = bf.open_run(tmp_path / "b").batches().to_pylist()
        fetched = [call.path for call in server.log() if call.path.endswith("/content")]
        output = server.client().batches.retrieve(batch["batch_id"]).output_file_id
        place = fetched.index(f"/v1/files/{output}/content")
        assert len(fetched) == 25
        assert place <= 8  # four steps may be under way when it ends, and another four are next


class LetsGo(Storage):
    """A disk; when the third shard is written, the run that made the first two leaves."""

    n_shards, leave = 0, None

    def create(self, path, data):
        is_new = super().create(path, data)
        self.n_shards += b"ShardFrozen" in data
        if self.n_shards == 3 and self.leave:
            leave, self.leave = self.leave, None
            leave()
        return is_new


def test_a_shard_of_two_windows_that_another_run_lets_go_is_sent_once(tmp_path):
    ready = threading.Event()
    clock, disk = HeldClock(ready.is_set), LetsGo()
    engine, prompts = Engine(clock), prompts_of("a", 20)
    rows = Rows(ids=pa.array(range(20)), prompts=pa.array(prompts))
    with LocalServer(clock=clock, stage_seconds=60) as server, ThreadPoolExecutor(1) as pool:
        large = Limits(max_requests=8, max_live_batches=1)
        # One batch is live, and rows 12 to 19 wait.
        how = {"engine": engine, "limits": large, "first": 4, "storage": disk}
        first = rounds_of(server, tmp_path / "a", prompts[4:], **how)
        run = pool.submit(left_to_others, first)
        assert first.submitted.wait(60)

        def leave():
            first.left.set()
            run.result(60)

        disk.leave = leave
        second = Rounds(
            lambda: (rows.take(pa.arange(*part)) for part in ((0, 16), (16, 20))),
            None,
            Checkpoint.open(tmp_path / "a", first.checkpoint.spec, disk, clock),
            replace(first.submission, limits=Limits(max_requests=2, max_live_batches=1)),
            Options(progress=False, max_error_ratio=1.0),
            engine,
            20,
        )
        ready.set()
        second.work()
        assert disk.leave is None
        assert len(server.executions()) == 20
        assert set(server.executions().values()) == {1}


LIMITED = {"gpt-4o": 200}
#: A prompt of these has 11 tokens as the server counts, and is guessed to have 15.
LIMITS = Limits(max_requests=5, max_enqueued_tokens=200)


def refused(server):
    return [batch for batch in batches_of(server) if batch.status == "failed"]


def test_processes_that_share_a_root_do_not_fill_the_queue_twice(tmp_path, clock):
    # An engine each is what processes have; the checkpoints' logs are all that they share.
    runs = [(prompts_of(name, 20), tmp_path / name) for name in ("a", "b")]
    with (
        LocalServer(clock=clock, stage_seconds=600, enqueued_token_limit=LIMITED) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [
            pool.submit(send, server, path, prompts, engine=Engine(clock), limits=LIMITS)
            for prompts, path in runs
        ]
        for (prompts, _), run in zip(runs, waiting, strict=True):
            assert run.result(120) == answers_to(prompts)

        assert refused(server) == []
        assert set(server.executions().values()) == {1}


def test_a_batch_whose_process_is_gone_takes_its_room_until_it_ends(tmp_path, clock):
    first, second = prompts_of("a", 10), prompts_of("b", 10)
    with LocalServer(clock=clock, stage_seconds=600, enqueued_token_limit=LIMITED) as server:
        # All batches are created, and nobody waits for them any more.
        with pytest.raises(bf.RunTimeoutError):
            send(server, tmp_path / "a", first, engine=Engine(clock), limits=LIMITS, timeout=30)
        assert {batch.status for batch in batches_of(server)} == {"validating"}
        began = clock.monotonic()

        answers = send(server, tmp_path / "b", second, engine=Engine(clock), limits=LIMITS)

        assert answers == answers_to(second)
        assert refused(server) == []
        # They end after half an hour, and then the others run for as long.
        assert clock.monotonic() - began > 3_000


def test_checkpoints_of_other_models_and_other_roots_take_no_room(tmp_path, clock):
    limits = {"gpt-4o": 200, "gpt-4o-mini": 200}
    prompts = prompts_of("a", 10)
    with LocalServer(clock=clock, stage_seconds=600, enqueued_token_limit=limits) as server:
        with pytest.raises(bf.RunTimeoutError):
            send(
                server,
                tmp_path / "a",
                prompts,
                engine=Engine(clock),
                limits=LIMITS,
                timeout=30,
                model="gpt-4o-mini",
            )
        (tmp_path / "no checkpoint").mkdir()
        (tmp_path / "a file").write_text("")
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "spec.json").write_text("{")
        began = clock.monotonic()

        answers = send(server, tmp_path / "b", prompts, engine=Engine(clock), limits=LIMITS)

        assert answers == answers_to(prompts)
        assert clock.monotonic() - began < 2_400


def test_a_shard_that_nobody_works_on_any_more_takes_no_room(tmp_path, clock):
    with LocalServer(clock=clock, stage_seconds=60) as server:
        server.inject(Fault("batches.create", "no-money"))
        with pytest.raises(bf.ProviderError, match="insufficient_quota"):
            # Its file is uploaded, and its batch was refused.
            send(server, tmp_path / "a", prompts_of("a", 40), engine=Engine(clock), limits=Limits())

        few = Limits(max_enqueued_tokens=300)
        answers = send(
            server, tmp_path / "b", prompts_of("b", 10), engine=Engine(clock), limits=few
        )

        assert answers == answers_to(prompts_of("b", 10))
        assert clock.monotonic() < 3_600


def test_batches_that_are_too_far_down_the_list_are_asked_at_their_own_pace(tmp_path, clock):
    with LocalServer(clock=clock, stage_seconds=1_200) as server:
        client = server.client()
        limits = Limits(max_requests=1)
        with pytest.raises(bf.RunTimeoutError):
            send(
                server,
                tmp_path / "a",
                prompts_of("a", 6),
                engine=Engine(clock),
                limits=limits,
                timeout=30,
            )
        file = client.files.create(file=("other.jsonl", LINE), purpose="batch")
        for _ in range(110):
            client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        before = server.calls()

        send(server, tmp_path / "a", prompts_of("a", 6), engine=Engine(clock), limits=limits)

        calls = server.calls()
        # In the hour that they run: ten times at 0.25 s, 57 times until a tenth of their age is a
        # minute, and then once a minute, fifty times.
        assert calls["batches.retrieve"] < 6 * 125
        assert calls["batches.list"] - before["batches.list"] < 5


LINE = (
    b'{"custom_id":"1","method":"POST","url":"/v1/chat/completions",'
    b'"body":{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hello"}]}}\n'
)


class Interrupted(Storage):
    """A disk on which a thread named "late" does something else before it opens a file."""

    def __init__(self, folder, prefix, times, interrupt):
        self._opened, self._times, self._interrupt = (folder, prefix), times, interrupt
        self._n = 0

    def open(self, path):
        folder, prefix = self._opened
        is_late = threading.current_thread().name == "late"
        if is_late and path.parent.name == folder and path.name.startswith(prefix):
            self._n += 1
            if self._n == self._times:
                self._interrupt()
        return super().open(path)


def left_to_others(rounds):
    with contextlib.suppress(Left):
        rounds.work()


def in_thread(function, *arguments, name, **keywords):
    thread = threading.Thread(target=function, args=arguments, kwargs=keywords, name=name)
    thread.start()
    return thread


@pytest.fixture
def gated():
    """An event, and a model that answers some prompts only after it."""
    gate = threading.Event()

    def answer(body):
        text = body["messages"][-1]["content"]
        if text.startswith("slow"):
            assert gate.wait(60)
        return f"echo: {text}"

    return gate, CallableModel(answer, instant=False)


def test_a_row_whose_equal_one_is_dropped_in_this_moment_is_sent_itself(tmp_path, clock, gated):
    gate, model = gated
    engine, path = Engine(clock), tmp_path / "checkpoint"

    def others_leave():
        early.left.set()
        early_thread.join(60)
        gate.set()

    # First it is looked up which rows are equal, and then which of them are under way.
    disk = Interrupted("shards", "00001-", 2, others_leave)
    how = {"engine": engine, "dedupe": True, "storage": disk}
    answers = []
    with LocalServer(model, clock=clock) as server:
        few = Limits(max_requests=2, max_live_batches=1)
        prompts = ["slow", "slow too", "same", "other"]
        early = rounds_of(server, path, prompts, limits=few, **how)
        early_thread = in_thread(left_to_others, early, name="early")
        assert early.submitted.wait(60)

        late = in_thread(
            lambda: answers.extend(send(server, path, ["same"], first=9, limits=Limits(), **how)),
            name="late",
        )
        late.join(60)

        assert answers == ["echo: same"]


def test_a_row_whose_equal_one_is_collected_in_this_moment_is_not_sent(tmp_path, clock, gated):
    gate, model = gated
    engine, path = Engine(clock), tmp_path / "checkpoint"

    def others_end():
        gate.set()
        early_thread.join(60)

    disk = Interrupted("results", "00000", 1, others_end)
    how = {"engine": engine, "dedupe": True, "storage": disk, "limits": Limits(max_requests=1)}
    answers = []
    with LocalServer(model, clock=clock) as server:
        early = rounds_of(server, path, ["quick", "slow"], **how)
        early_thread = in_thread(early.work, name="early")
        while not (path / "results" / "00000.parquet").exists():
            assert early_thread.is_alive()
        while not isinstance(early.checkpoint.shards[0].state, Collected):
            assert early_thread.is_alive()

        late = in_thread(
            lambda: answers.extend(send(server, path, ["slow"], first=9, **how)), name="late"
        )
        late.join(60)

        assert answers == ["echo: slow"]
        assert set(server.executions().values()) == {1}
        assert server.calls()["batches.create"] == 2


def test_a_row_whose_equal_one_another_run_will_try_again_is_answered(tmp_path, clock):
    gate, tries = threading.Event(), []

    def answer(body):
        text = body["messages"][-1]["content"]
        tries.append(text)
        if tries == ["flaky"]:
            return 500, {"error": {"message": "Sorry.", "code": "server_error"}}
        if text == "slow":
            assert gate.wait(60)
        return f"echo: {text}"

    few = Limits(max_requests=1, max_live_batches=1)
    how = {"engine": Engine(clock), "dedupe": True, "limits": few}
    path = tmp_path / "checkpoint"
    with LocalServer(CallableModel(answer, instant=False), clock=clock) as server:
        early = rounds_of(server, path, ["flaky", "slow", "other"], **how)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(early.work)
            while "slow" not in tries:
                assert not first.done()
            # What failed waits until all of the first round is sent.
            late = rounds_of(server, path, ["flaky"], first=9, **how)
            second = pool.submit(outcome_of, late)
            while not (late.submitted.is_set() or second.done()):
                assert not first.done()
            gate.set()
            assert second.result(60) == ["echo: flaky"]
            first.result(60)


def test_what_is_collected_while_a_limit_of_cost_is_looked_at_counts_once(tmp_path, clock):
    gate, path, engine, begun = threading.Event(), tmp_path / "checkpoint", Engine(clock), []
    # A dollar for each token of an answer, which may have ten of them and has.
    rates = {"gpt-4o": bf.Rates(input=0, output=1e6)}

    def answer(body):
        text = body["messages"][-1]["content"]
        assert text != "slow" or gate.wait(60)
        message = {"role": "assistant", "content": f"echo: {text}"}
        return 200, {
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 10},
        }

    def rounds(prompts, storage=None):
        provider = Provider(server.client())
        return rounds_of_rows(
            Rows(ids=pa.array(range(len(prompts))), prompts=pa.array(prompts)),
            Spec(
                model="gpt-4o",
                account=provider.account,
                params={"max_completion_tokens": 10},
            ),
            Submission(
                provider=provider,
                limits=Limits(),
                completion_window="24h",
                poll_interval=None,
                prices=rates,
            ),
            path,
            options=Options(progress=False, max_cost_usd=25.0),
            engine=engine,
            storage=storage,
        )

    def it_ends():
        gate.set()
        while not isinstance(begun[0].checkpoint.shards[0].state, Collected):
            threading.Event().wait(0.001)

    # Its rows, its lines, and the ids that it has.
    disk = Interrupted("shards", "00000-", 3, it_ends)
    answers, model = [], CallableModel(answer, instant=False)
    with LocalServer(model, clock=clock) as server:
        begun.append(rounds(["slow"], disk))
        early = in_thread(begun[0].work, name="early")
        assert begun[0].submitted.wait(60)
        late = in_thread(lambda: answers.extend(outcome_of(rounds(["slow", "quick"]))), name="late")
        late.join(60)
        early.join(60)

        assert answers == ["echo: slow", "echo: quick"]


@pytest.mark.parametrize("is_same_process", [True, False])
def test_what_nobody_wants_any_more_of_the_runs_own_checkpoint_takes_no_room(
    tmp_path, clock, is_same_process
):
    unwanted, edited, engine = prompts_of("a", 40), prompts_of("b", 40), Engine(clock)
    with LocalServer(clock=clock, stage_seconds=60, enqueued_token_limit=LIMITED) as server:
        server.inject(Fault("batches.create", "not-visible:100"))
        with pytest.raises(bf.RunTimeoutError):
            # Files that fill the queue are uploaded, and no batch can be made of them yet.
            send(server, tmp_path / "a", unwanted, engine=engine, limits=LIMITS, timeout=20)
        assert batches_of(server) == []

        answers = send(
            server,
            tmp_path / "a",
            edited,
            engine=engine if is_same_process else Engine(clock),
            limits=LIMITS,
            timeout=86_400,
        )

        assert answers == answers_to(edited)


def test_a_create_that_came_to_nothing_takes_no_room_of_edited_rows_for_a_day(tmp_path, clock):
    edited = prompts_of("b", 40)
    with LocalServer(clock=clock, stage_seconds=60, enqueued_token_limit=LIMITED) as server:
        server.inject(Fault("batches.create", "error-before:503", times=30))
        how = {"limits": LIMITS, "timeout": 60}
        with pytest.raises(bf.RunTimeoutError):
            send(server, tmp_path / "a", prompts_of("a", 200), engine=Engine(clock), **how)

        how = {"limits": LIMITS, "timeout": 36_000}
        answers = send(server, tmp_path / "a", edited, engine=Engine(clock), **how)

        assert answers == answers_to(edited)
