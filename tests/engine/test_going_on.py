"""What one run leaves to the next: the rounds of its rows, and whether it was done."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pyarrow as pa
import pytest

import batchframe as bf
from batchframe.client import Provider
from batchframe.core.batches import Collected
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import CallableModel, Fault, LocalServer
from batchframe.jobs import Submission
from batchframe.rounds import Left, Options
from batchframe.running import rounds_of_rows
from batchframe.storage import Storage


def overloaded(body):
    return 500, {"error": {"message": "overloaded", "code": "server_error"}}


FRAME = pl.DataFrame({"id": [1], "prompt": ["a"]})


def test_a_batch_that_another_run_sent_keeps_its_round(tmp_path):
    batches: list[str] = []
    slow = [True]

    def stage_seconds(batch_id):
        if batch_id not in batches:
            batches.append(batch_id)
        return 3600 if slow[0] and batch_id in batches[1:] else 0.02

    with LocalServer(overloaded, stage_seconds=stage_seconds) as server:
        call = {
            "model": "gpt-4o-mini",
            "checkpoint": tmp_path / "checkpoint",
            "client": server.client(),
            "max_retries": 1,
            "poll_interval": 0.02,
            "progress": False,
        }
        run = bf.submit(FRAME, "prompt", "id", **call)
        while run.status().batches != {"collected": 1, "validating": 1}:
            assert not run.status().is_done
        assert run.detach() is False
        slow[0] = False
        out = bf.complete(FRAME, "prompt", "id", **call)

        assert out["completion_status"].to_list() == ["failed"]
        assert server.calls()["batches.create"] == 2


@pytest.mark.parametrize("answer", ["echo", overloaded])
def test_a_run_that_is_done_says_so_when_it_is_left(answer, tmp_path):
    with LocalServer(answer, stage_seconds=0) as server:
        run = bf.submit(
            FRAME,
            "prompt",
            "id",
            model="gpt-4o-mini",
            checkpoint=tmp_path / "checkpoint",
            client=server.client(),
            max_retries=0,
            poll_interval=0.02,
            progress=False,
        ).wait()

        assert run.detach() is True
        status = "ok" if answer == "echo" else "failed"
        assert run.result()["completion_status"].to_list() == [status]


@pytest.fixture
def rounds_of(clock, engine, tmp_path):
    """The work of sending prompts, one in each batch."""

    def rounds(server, prompts, *, storage=None, poll_interval=None, **options):
        provider = Provider(server.client())
        return rounds_of_rows(
            Rows(ids=pa.array(range(len(prompts))), prompts=pa.array(prompts)),
            Spec(model="gpt-4o", account=provider.account),
            Submission(
                provider=provider,
                limits=Limits(max_requests=1, max_live_batches=1),
                completion_window="24h",
                poll_interval=poll_interval,
            ),
            tmp_path / "checkpoint",
            options=Options(progress=False, **options),
            engine=engine,
            storage=storage,
        )

    return rounds


class Late(Storage):
    """A disk that is slow to take the first results: meanwhile the run is left."""

    rounds = None

    def replace(self, path):
        if (path.parent.name, path.name) == ("results", "00000.parquet"):
            self.rounds.left.set()
            while self.rounds.watch.jobs[0].watchers:
                threading.Event().wait(0.001)
        return super().replace(path)


def test_a_batch_that_is_collected_while_its_run_leaves_keeps_its_round(rounds_of, clock):
    disk = Late()
    with LocalServer(overloaded, clock=clock) as server, ThreadPoolExecutor(1) as pool:
        first = rounds_of(server, ["a"], storage=disk, max_retries=1)
        disk.rounds = first
        with contextlib.suppress(Left):
            pool.submit(first.work).result(60)
        assert disk.rounds.left.is_set()
        rounds_of(server, ["a"], max_retries=1).work()

        # The first time and once more.
        assert server.calls()["batches.create"] == 2


def test_rows_that_wait_for_their_next_try_when_the_time_is_up_keep_their_round(rounds_of, clock):
    asked = []

    def answer(body):
        asked.append(body["messages"][-1]["content"])
        return overloaded(body) if asked[-1] == "broken" else "ok"

    prompts = ["broken", "b", "c", "d"]
    with LocalServer(CallableModel(answer), clock=clock, stage_seconds=60) as server:
        with pytest.raises(bf.RunTimeoutError):
            rounds_of(server, prompts, max_retries=1, timeout=250).work()
        assert asked.count("broken") == 1
        rounds_of(server, prompts, max_retries=1).work()

        assert sorted(asked) == ["b", "broken", "broken", "c", "d"]


class Slow(Storage):
    """A disk that is slow to give the lines of the second shard: meanwhile the fifth one ends."""

    def __init__(self, gate):
        self.gate, self.rounds = gate, None

    def open(self, path):
        if path.name.startswith("00001-") and path.suffix == ".jsonl" and not self.gate.is_set():
            self.gate.set()
            while not isinstance(self.rounds.checkpoint.shards[4].state, Collected):
                self.rounds.engine.clock.advance(1)
                threading.Event().wait(0.001)
        return super().open(path)


REFUSED_ROW = (400, {"error": {"message": "No.", "code": "bad_prompt"}})
NO_MONEY = (
    429,
    {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}},
)


@pytest.mark.parametrize(
    ("answer_to_last", "options", "error", "said"),
    [
        (REFUSED_ROW, {"max_error_ratio": 0.2}, bf.ErrorRatioExceededError, "max_error_ratio"),
        (NO_MONEY, {}, bf.ProviderError, "insufficient_quota"),
    ],
    ids=["too many failed", "no money"],
)
def test_rows_of_all_rounds_are_written_down_before_a_run_stops(
    rounds_of, clock, answer_to_last, options, error, said
):
    gate, asked = threading.Event(), []
    disk = Slow(gate)

    def answer(body):
        asked.append(body["messages"][-1]["content"])
        if asked[-1] == "last":
            assert gate.wait(60)
            return answer_to_last if asked.count("last") == 1 else "ok"
        return "ok" if asked[-1] == "fine" else overloaded(body)

    model = CallableModel(answer, instant=False)
    with LocalServer(model, clock=clock, stage_seconds=60) as server:
        with pytest.raises(bf.RunTimeoutError):
            rounds_of(server, ["a"], max_retries=2, poll_interval=1, timeout=200).work()
        assert asked.count("a") == 1

        # The last one stops the run while "a" is written down for its third try, before "b" is
        # for its second.
        prompts = ["a", "b", "fine", "last"]
        how = {"max_retries": 2, "poll_interval": 1}
        disk.rounds = rounds_of(server, prompts, storage=disk, **how, **options)
        with pytest.raises(error, match=f"{said}.* 2 rows were not sent"):
            disk.rounds.work()

        rounds_of(server, prompts, **how).work()
        assert (asked.count("a"), asked.count("b")) == (3, 3)


@pytest.mark.parametrize(
    ("answer_to_last", "fault", "options", "error"),
    [
        (NO_MONEY, None, {}, bf.ProviderError),
        (REFUSED_ROW, None, {"max_error_ratio": 0.2}, bf.ErrorRatioExceededError),
        ("ok", Fault("batches.create", "no-money", first=3), {}, bf.ProviderError),
    ],
    ids=["no money", "too many failed", "refused"],
)
def test_rows_that_wait_for_their_next_try_when_a_run_stops_keep_their_round(
    rounds_of, clock, answer_to_last, fault, options, error
):
    asked = []

    def answer(body):
        asked.append(body["messages"][-1]["content"])
        if asked[-1] == "last" and fault is None and asked.count("last") == 1:
            return answer_to_last
        return overloaded(body) if asked[-1] == "broken" else "ok"

    prompts = ["broken", "b", "last", "more"]
    with LocalServer(CallableModel(answer), clock=clock, stage_seconds=60) as server:
        rounds = rounds_of(server, prompts, max_retries=1, **options)
        if fault:
            server.inject(fault)
        with pytest.raises(error):
            rounds.work()
        rounds_of(server, prompts, max_retries=1).work()

        assert asked.count("broken") == 2
