"""What is shared is shared fairly: queues between runs and processes, the pool, and listings."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

import batchframe as bf
from batchframe.client import Provider
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import Fault, JumpClock, LocalServer
from batchframe.engine import Engine, Submission
from batchframe.rounds import Options, run_rows


def send(server, path, prompts, *, engine, limits, model="gpt-4o", **options):
    """Send prompts, and give the results in their order."""
    provider = Provider(server.client())
    answers = run_rows(
        Rows(ids=pa.array(range(len(prompts))), prompts=pa.array(prompts)),
        Spec(model=model, account=provider.account),
        Submission(provider=provider, limits=limits, completion_window="24h", poll_interval=None),
        path,
        options=Options(**{"progress": False, **options}),
        engine=engine,
    )
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


def test_few_live_batches_are_asked_one_by_one(run, clock):
    with LocalServer(clock=clock, stage_seconds=600) as server:
        run(server, {1: "one", 2: "two"}, limits=Limits(max_requests=1))

        assert "batches.list" not in server.calls()


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
