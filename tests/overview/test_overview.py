"""What is said of a run is what became of its rows: numbers that can be checked by hand."""

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from io import BufferedReader, FileIO
from pathlib import Path
from textwrap import dedent

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchframe.checkpoint import Checkpoint
from batchframe.core.batches import (
    BatchSeen,
    BatchStatus,
    Collected,
    CreateStarted,
    Dropped,
    FileUploaded,
    Live,
    Planned,
    ResultsCommitted,
    ResultsLost,
    TurnedAway,
    UploadStarted,
    Usage,
)
from batchframe.core.rates import Rates
from batchframe.core.requests import Requests, Rows, render_requests
from batchframe.core.results import RESULT_SCHEMA
from batchframe.core.shards import Limits
from batchframe.core.spec import Account, Spec
from batchframe.emulator import Fault, JumpClock
from batchframe.overview import overview_of
from batchframe.run_status import status_of, time_left
from batchframe.storage import Storage
from batchframe.sums import Sums
from tests.overview.answers import INPUT_TOKENS, OUTPUT_TOKENS, ROW_USD, answer

#: Longer than the clock jumps before a run is interrupted.
LONG = 10 * 86_400.0
#: What a row takes, likewise; 20 of them take less than the window of 24 hours.
ROW_SECONDS = 4_000.0
TWO = Limits(max_requests=2)


# Where it stands


def test_a_run_that_is_done_counts_its_rows_tokens_and_dollars(serve, run, read, clock, path):
    with serve() as server:
        run(server, {1: "a", 2: "b", 3: "400 no", 4: "c", 5: "d"}, limits=TWO)
    status = status_of(read(), now=clock.now())
    assert status.path == path.resolve()
    assert (status.model, status.endpoint) == ("gpt-4o-mini", "/v1/chat/completions")
    assert (status.n_rows, status.n_done, status.n_failures) == (5, 5, 1)
    assert list(status.rows.items()) == [("ok", 4), ("failed", 1)]
    assert status.batches == {"collected": 3}
    assert status.cost_usd == pytest.approx(4 * ROW_USD)
    assert (status.input_tokens, status.output_tokens) == (4 * INPUT_TOKENS, 4 * OUTPUT_TOKENS)
    assert (status.eta_seconds, status.kept_until, status.is_done) == (None, None, True)


def test_a_row_that_was_tried_again_is_one_row_and_every_try_is_paid(serve, run, read, clock):
    tries = Counter()

    def moody(body):
        prompt = body["messages"][-1]["content"]
        tries[prompt] += 1
        # The first try of "b" fails in a way that passes, and is billed all the same.
        status = 500 if prompt == "b" and tries[prompt] == 1 else 200
        usage = {"prompt_tokens": 1_000_000, "completion_tokens": 0}
        error = {"error": {"message": "later", "code": "server_error"}} if status == 500 else {}
        choices = [{"message": {"content": "yes"}, "finish_reason": "stop"}]
        return status, {"choices": choices, "usage": usage, "model": body["model"], **error}

    with serve(moody) as server:
        run(server, {1: "a", 2: "b"}, max_retries=1)
    status = status_of(read(), now=clock.now())
    assert tries == {"a": 1, "b": 2}
    assert (status.n_rows, dict(status.rows), status.n_done) == (2, {"ok": 2}, 2)
    assert status.batches == {"collected": 2}
    assert status.input_tokens == 3_000_000
    assert status.cost_usd == pytest.approx(3 * 0.075)


def test_an_interrupted_run_has_rows_in_progress_and_rows_that_wait(serve, run, read, clock):
    with serve(stage_seconds=LONG) as server:
        limits = Limits(max_requests=2, max_live_batches=1)
        run(server, {n: f"row {n}" for n in range(5)}, limits=limits, timeout=1)
        checkpoint = read()
        status = status_of(checkpoint, now=clock.now())
    (live,) = [one.state for one in checkpoint.shards.values() if isinstance(one.state, Live)]
    assert list(status.rows.items()) == [("in progress", 2), ("waiting", 3)]
    assert list(status.batches.items()) == [("waiting", 2), ("validating", 1)]
    assert (status.n_rows, status.n_done, status.n_failures, status.is_done) == (5, 0, 0, False)
    assert (status.cost_usd, status.input_tokens, status.eta_seconds) == (0.0, 0, None)
    made = datetime.fromtimestamp(live.batch.created_at, UTC)
    assert status.kept_until == made + timedelta(days=30)


def test_a_batch_that_was_cancelled_or_expired_has_its_words(serve, run, read, clock):
    with serve(stage_seconds=LONG) as server:
        run(server, {1: "a", 2: "b"}, timeout=1)
        (shard,) = read().shards.values()
        server.client().batches.cancel(shard.state.batch.batch_id)
        clock.advance(LONG)
        run(server, {1: "a", 2: "b"})
    status = status_of(read(), now=clock.now())
    assert (dict(status.rows), status.is_done, status.cost_usd) == ({"cancelled": 2}, True, 0.0)


def test_a_price_that_is_not_known_is_not_a_price_of_zero(serve, run, read, clock):
    with serve() as server:
        run(server, {1: "a"}, model="house-model")
    assert status_of(read(), now=clock.now()).cost_usd is None
    assert re.search(r"cost +unknown", repr(status_of(read(), now=clock.now())))
    prices = {"house-model": Rates(input=2.0, output=5.0)}
    sums = Sums()
    for rates, cost in ((prices, 1_000 * 2e-6 + 200 * 5e-6), (None, None), (prices, 0.003)):
        status = status_of(read(), now=clock.now(), prices=rates, sums=sums)
        assert status.cost_usd == pytest.approx(cost)


def test_one_price_that_is_not_known_makes_the_sum_unknown(serve, run, read, clock):
    def two_models(body):
        status, content = answer(body)
        is_odd = "odd" in body["messages"][-1]["content"]
        return status, {**content, "model": "mystery" if is_odd else body["model"]}

    with serve(two_models) as server:
        run(server, {1: "even", 2: "odd"})
    assert status_of(read(), now=clock.now()).cost_usd is None


def test_a_checkpoint_without_rows_is_done(clock, path):
    spec = Spec(model=None, account=Account(base_url="https://x/"))
    checkpoint = Checkpoint.open(path, spec, Storage(), clock)
    status = status_of(checkpoint, now=clock.now())
    overview = overview_of(checkpoint, now=clock.now())
    checkpoint.close()
    assert (status.n_rows, status.rows, status.batches, status.is_done) == (0, {}, {}, True)
    assert status.cost_usd == 0.0
    assert (overview.shards, overview.failures, overview.usage.num_rows) == ((), (), 0)


# When it will be done


def test_the_time_that_is_left_follows_the_pace_of_live_batches(serve, run, read, ask, clock):
    # The batch begins at once; its 20 rows take ROW_SECONDS each.
    with serve(stage_seconds=0, row_seconds=ROW_SECONDS) as server:
        run(server, {n: f"row {n}" for n in range(20)}, timeout=1)
        checkpoint = read()
        (shard,) = checkpoint.shards.values()
        made = shard.state.batch.created_at
        clock.advance(made + 5.5 * ROW_SECONDS - clock.now())
        assert status_of(checkpoint, now=clock.now()).eta_seconds is None  # nobody asked
        ask(server, checkpoint)
        status = status_of(checkpoint, now=clock.now())
        assert (status.n_done, status.rows, status.is_done) == (5, {"in progress": 20}, False)
        # 5 of 20 rows were done in 22,000 s: at that pace, 15 more take 66,000 s.
        assert status.eta_seconds == pytest.approx(66_000, abs=10)
        assert re.search("time left +18 h 2[01] min  at the pace so far", repr(status))


def test_less_than_a_tenth_tells_nothing_of_the_time_that_is_left(serve, run, read, ask, clock):
    with serve(stage_seconds=0, row_seconds=ROW_SECONDS) as server:
        run(server, {n: f"row {n}" for n in range(20)}, timeout=1)
        checkpoint = read()
        (shard,) = checkpoint.shards.values()
        etas = []
        for rows in (1.5, 2.5):
            clock.advance(shard.state.batch.created_at + rows * ROW_SECONDS - clock.now())
            ask(server, checkpoint)
            etas.append(status_of(checkpoint, now=clock.now()).eta_seconds)
        # 1 of 20, then 2 of 20 in 10,000 s: 18 are left.
        assert etas == [None, pytest.approx(90_000, abs=10)]


def test_a_pause_before_the_live_batches_does_not_slow_the_pace(serve, run, read, ask, clock):
    with serve(stage_seconds=0, row_seconds=ROW_SECONDS) as server:
        run(server, {n: f"row {n}" for n in range(10)})
        clock.advance(30 * 86_400)
        run(server, {n: f"row {n}" for n in range(20)}, timeout=1)
        checkpoint = read()
        made = checkpoint.shards[1].state.batch.created_at
        clock.advance(made + 4.5 * ROW_SECONDS - clock.now())
        ask(server, checkpoint)
        status = status_of(checkpoint, now=clock.now())
        assert (status.n_done, status.n_rows) == (14, 20)
        assert status.eta_seconds == pytest.approx(4.5 * ROW_SECONDS * 6 / 4, abs=10)


# What is read once


class CountingStorage(Storage):
    """Counts what is opened."""

    def __init__(self):
        self.opened = []

    def open(self, path):
        self.opened.append(path.name)
        return super().open(path)


def test_a_look_that_finds_nothing_new_reads_no_file(serve, run, read, clock):
    with serve() as server:
        run(server, {1: "a", 2: "500 later", 3: "b"}, limits=TWO, max_retries=1)
    storage, sums = CountingStorage(), Sums()
    checkpoint = read(storage)
    first = status_of(checkpoint, now=clock.now(), sums=sums)
    n_opened = len(storage.opened)
    assert n_opened > 0
    assert status_of(checkpoint, now=clock.now(), sums=sums) == first
    assert len(storage.opened) == n_opened
    assert status_of(read(), now=clock.now(), sums=sums) == first


class WatchedFile(FileIO):
    """Knows which threads read it."""

    def __init__(self, path, readers):
        super().__init__(path)
        self.readers = readers

    def readinto(self, buffer):
        self.readers.add(threading.get_ident())
        return super().readinto(buffer)


class WatchedStorage(Storage):
    """Knows which threads read its files."""

    def __init__(self):
        self.readers = set()

    def open(self, path):
        return BufferedReader(WatchedFile(path, self.readers))


def test_no_thread_of_arrow_holds_a_file_of_ours(serve, run, read, clock):
    # It would let go of it when it comes to that, and abort the process where that is ending.
    with serve() as server:
        run(server, {1: "a", 2: "b"}, limits=TWO)
    storage = WatchedStorage()
    status_of(read(storage), now=clock.now())
    assert storage.readers == {threading.get_ident()}


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_process_that_looks_at_a_checkpoint_gets_no_thread_by_it(serve, run, path):
    with serve() as server:
        run(server, {1: "a", 2: "b"}, limits=TWO)
    code = """
        import os, sys
        import batchframe
        import pyarrow.parquet

        def n_threads():
            return len(os.listdir("/proc/self/task"))

        path, before = sys.argv[1], n_threads()
        run = batchframe.open_run(path)
        for look in (
            run.status,
            run.usage,
            run.batches,
            lambda: run.report(f"{path}.html"),
            lambda: batchframe.results(path),
            lambda: batchframe.runs(path),
        ):
            look()
            print(n_threads() - before)
    """
    ended = subprocess.run(
        [sys.executable, "-c", dedent(code), str(path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OPENAI_API_KEY": "sk-test"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert ended.stdout.split() == ["0"] * 6


class Unflushed(Storage):
    """Does not wait for the disk."""

    def _flush(self, file):
        pass

    def _flush_directory(self, path):
        pass


class Played:
    """A checkpoint whose shards are moved by hand, and what each row's last shard says of it."""

    SPEC = Spec(model="m", account=Account(base_url="https://x/"))

    def __init__(self, path):
        self.checkpoint = Checkpoint.open(path, self.SPEC, Unflushed(), JumpClock())
        self.shards = []  # the rows of each, and their statuses: one word, or one each

    def freeze(self, rows):
        ids = pa.array([f"r{row}" for row in rows])
        positions = pa.array(range(len(rows)), pa.int64())
        all_rows = Rows(ids=ids, prompts=ids)
        requests = Requests.joined([*render_requests(all_rows, positions, self.SPEC)])
        self.checkpoint.freeze(requests, round_=0)
        self.shards.append((rows, "waiting"))

    def drop(self, number):
        self.checkpoint.drop(number, is_unwanted=True)
        self.shards[number] = ([], "dropped")

    def send(self, number):
        for event in (
            UploadStarted(),
            FileUploaded(file_id="f"),
            CreateStarted(token="t", at=0.0),
            self.batch(BatchStatus.IN_PROGRESS),
        ):
            self.checkpoint.commit(number, event)
        self.shards[number] = (self.shards[number][0], "in progress")

    def batch(self, status):
        return BatchSeen(batch_id="b", input_file_id="f", status=status, created_at=1.0)

    def collect(self, number, statuses):
        self.checkpoint.commit(number, self.batch(BatchStatus.COMPLETED))
        self.store(number, statuses)

    def store(self, number, statuses):
        rows, _ = self.shards[number]
        keys = self.checkpoint.requests(number)["row_key"]
        columns = {"row_key": keys, "status": pa.array(statuses)}
        empty = pa.nulls(len(rows))
        table = pa.table(
            [columns.get(f.name, empty).cast(f.type) for f in RESULT_SCHEMA], schema=RESULT_SCHEMA
        )
        none = Usage(input_tokens=0, cached_tokens=0, output_tokens=0, reasoning_tokens=0)
        done = ResultsCommitted(
            downloads={}, usage=none, n_duplicate=0, n_foreign=0, n_unreadable=0
        )
        self.checkpoint.store_results(number, table, done)
        self.shards[number] = (rows, statuses)

    def expected(self):
        last = {}
        for rows, statuses in self.shards:
            words = [statuses] * len(rows) if isinstance(statuses, str) else statuses
            last.update(zip(rows, words, strict=True))
        return last

    def free_rows(self):
        """The rows that a run may put into a new shard."""
        last = self.expected()
        return [row for row in range(6) if last.get(row, "failed") not in SETTLED]


SETTLED = ("ok", "truncated", "in progress", "waiting")
STATUSES = st.sampled_from(["ok", "truncated", "failed", "expired", "missing", "refused"])


@settings(max_examples=60)
@given(st.data())
def test_each_row_stands_where_its_last_shard_does_whatever_happened(data):
    sums = Sums()
    with tempfile.TemporaryDirectory() as folder:
        played = Played(Path(folder, "checkpoint"))
        try:
            for _ in range(data.draw(st.integers(1, 12))):
                free = played.free_rows()
                shards = played.checkpoint.shards
                moves = ["freeze"] * bool(free)
                moves += [
                    (move, number)
                    for number, shard in shards.items()
                    for move, state in (("drop", Planned), ("send", Planned), ("collect", Live))
                    if isinstance(shard.state, state)
                ]
                match data.draw(st.sampled_from(moves or ["rest"])):
                    case "freeze":
                        rows = data.draw(st.sets(st.sampled_from(free), min_size=1))
                        played.freeze(sorted(rows))
                    case ("collect", number):
                        n = len(played.shards[number][0])
                        played.collect(
                            number, data.draw(st.lists(STATUSES, min_size=n, max_size=n))
                        )
                    case ("drop", number):
                        played.drop(number)
                    case ("send", number):
                        played.send(number)
                status = status_of(played.checkpoint, now=2.0, sums=sums)
                expected = played.expected()
                assert status.rows == Counter(expected.values())
                assert status.n_rows == len(expected)
                assert status == status_of(played.checkpoint, now=2.0)
                failed = [s for s in expected.values() if s not in {"ok", "in progress", "waiting"}]
                overview = overview_of(played.checkpoint, now=2.0, sums=sums)
                assert Counter({f.status: f.n_rows for f in overview.failures}) == Counter(failed)
                assert status.n_failures == len([s for s in failed if s != "truncated"])
        finally:
            played.checkpoint.close()


def test_results_that_were_lost_and_fetched_again_count_as_before(tmp_path):
    played, sums = Played(tmp_path / "checkpoint"), Sums()
    played.freeze([1, 2])
    played.send(0)
    played.collect(0, ["failed", "failed"])
    played.freeze([1])
    played.checkpoint.commit(0, ResultsLost())
    status_of(played.checkpoint, now=2.0, sums=sums)  # a first look in a bad moment
    played.store(0, ["failed", "failed"])
    status = status_of(played.checkpoint, now=2.0, sums=sums)
    played.checkpoint.close()
    assert (status.n_rows, status.rows) == (2, {"failed": 1, "waiting": 1})


# What it looks like in a terminal


def test_the_status_prints_as_an_aligned_table(serve, run, read, clock, path):
    with serve(stage_seconds=LONG) as server:
        run(server, {1: "a", 2: "b", 3: "c"}, limits=Limits(max_requests=2, max_live_batches=1),
            timeout=1)  # fmt: skip
        status = status_of(read(), now=clock.now())
    assert repr(status).splitlines() == [
        f"Run in {path.resolve()}",
        "model          gpt-4o-mini  /v1/chat/completions",
        "rows                     3",
        "  in progress            2",
        "  waiting                1",
        "batches                  2",
        "  waiting                1",
        "  validating             1",
        "done                     0  0 %",
        "cost                 $0.00  so far",
        "input tokens             0",
        "output tokens            0",
        "time left          unknown  not enough is done to tell",
        f"results         {status.kept_until:%Y-%m-%d}  the provider keeps them until then",
    ]


# All of it


def test_the_history_of_a_shard_has_its_times_in_order(serve, run, read, clock):
    with serve(stage_seconds=60) as server:
        run(server, {1: "a", 2: "400 no", 3: "b"}, limits=TWO)
    overview = overview_of(read(), now=clock.now())
    first, second = overview.shards
    assert [shard.number for shard in overview.shards] == [0, 1]
    assert (first.n_requests, first.state, first.ended_as, first.round) == (
        2,
        "collected",
        "completed",
        0,
    )
    assert (first.rows, first.input_tokens, first.output_tokens) == (
        {"ok": 1, "failed": 1},
        INPUT_TOKENS,
        OUTPUT_TOKENS,
    )
    assert first.cost_usd == pytest.approx(ROW_USD)
    assert second.rows == {"ok": 1}
    for shard in overview.shards:
        times = (shard.frozen_at, shard.uploaded_at, shard.ended_at, shard.collected_at)
        assert list(times) == sorted(times)
        # validating, in_progress and finalizing: a minute each.
        assert shard.started_at - shard.created_at == timedelta(seconds=60)
        assert shard.ended_at - shard.created_at >= timedelta(seconds=180)
        assert shard.batch_id.startswith("batch_")
    assert overview.at == datetime.fromtimestamp(clock.now(), UTC)


def test_what_has_not_happened_has_no_time(serve, run, read, clock):
    limits = Limits(max_requests=2, max_live_batches=1)
    with serve(stage_seconds=LONG) as server:
        run(server, {n: f"row {n}" for n in range(3)}, limits=limits, timeout=1)
        live, waiting = overview_of(read(), now=clock.now()).shards
    assert (live.state, live.ended_as, live.rows) == ("validating", None, {"in progress": 2})
    assert None not in {live.frozen_at, live.uploaded_at, live.created_at}
    assert {live.started_at, live.ended_at, live.collected_at} == {None}
    assert (waiting.state, waiting.batch_id, waiting.rows) == ("waiting", None, {"waiting": 1})
    assert waiting.frozen_at is not None
    assert {waiting.uploaded_at, waiting.created_at, waiting.collected_at} == {None}


def test_a_batch_that_the_queue_turned_away_begins_anew(serve, run, read, clock):
    rows = dict.fromkeys(range(2), "word " * 50)
    with serve(enqueued_token_limit=100) as server:
        run(server, rows, limits=Limits(max_requests=1))
    overview = overview_of(read(), now=clock.now())
    assert sum(shard.n_turned_away for shard in overview.shards) > 0
    for shard in overview.shards:
        assert shard.frozen_at <= shard.uploaded_at <= shard.ended_at <= shard.collected_at


def test_a_batch_that_was_turned_away_and_waits_has_no_times_but_its_first(tmp_path):
    played = Played(tmp_path / "checkpoint")
    played.freeze([1])
    played.send(0)
    for event in (played.batch(BatchStatus.FAILED), TurnedAway()):
        played.checkpoint.commit(0, event)
    (shard,) = overview_of(played.checkpoint, now=2.0).shards
    played.checkpoint.close()
    assert (shard.state, shard.n_turned_away) == ("waiting", 1)
    assert shard.frozen_at is not None
    assert {shard.uploaded_at, shard.created_at, shard.ended_at, shard.collected_at} == {None}


def test_a_dropped_shard_stands_in_the_history_and_its_rows_count_once(tmp_path):
    played = Played(tmp_path / "checkpoint")
    played.freeze([1, 2])
    played.drop(0)
    played.freeze([1])
    overview = overview_of(played.checkpoint, now=2.0)
    played.checkpoint.close()
    assert [(shard.state, shard.rows) for shard in overview.shards] == [
        ("dropped", {}),
        ("waiting", {"waiting": 1}),
    ]
    assert (overview.status.n_rows, overview.status.batches) == (1, {"waiting": 1})
    assert isinstance(played.checkpoint.shards[0].state, Dropped)


def test_failures_are_told_by_reason_in_the_providers_words(serve, run, read, clock):
    rows = {f"id-{n}": f"400 Your request req_{n}7 is too long." for n in range(5)}
    rows |= {"x": "403 Not allowed.", "y": "fine", "z": "400 Your request has no end."}
    with serve() as server:
        run(server, rows, limits=Limits(max_requests=3))
    overview = overview_of(read(), now=clock.now())
    assert [(f.status, f.code, f.message, f.n_rows, f.ids) for f in overview.failures] == [
        # Messages that differ in a number are one reason; the first stands for it.
        ("failed", "code_400", "Your request req_07 is too long.", 5, ("id-0", "id-1", "id-2")),
        ("failed", "code_403", "Not allowed.", 1, ("x",)),
        ("failed", "code_400", "Your request has no end.", 1, ("z",)),
    ]
    assert overview.n_more_failures == 0


def test_rows_that_are_tried_again_are_no_failures_any_more(serve, run, read, clock):
    tries = Counter()

    def moody(body):
        prompt = body["messages"][-1]["content"]
        tries[prompt] += 1
        if tries[prompt] == 1:
            return 500, {"error": {"message": "later", "code": "server_error"}}
        return 400, {"error": {"message": "never", "code": "no"}}

    with serve(moody) as server:
        run(server, {1: "a", 2: "b"}, max_retries=1)
    overview = overview_of(read(), now=clock.now())
    assert [(f.code, f.n_rows) for f in overview.failures] == [("no", 2)]
    assert [shard.round for shard in overview.shards] == [0, 1]


def test_of_many_reasons_the_most_frequent_are_told_and_the_rest_is_counted(
    serve, run, read, clock
):
    letters = [f"{a}{b}" for a in "abcde" for b in "fghij"]
    rows = {n: f"400 reason {letters[n]}" for n in range(25)} | {99: f"400 reason {letters[24]}"}
    rows |= {100: "fine"}  # a shard that fails as a whole would stop the run
    with serve() as server:
        run(server, rows)
    overview = overview_of(read(), now=clock.now())
    assert len(overview.failures) == 20
    assert (overview.failures[0].message, overview.failures[0].n_rows) == ("reason ej", 2)
    assert overview.n_more_failures == 26 - 2 - 19


def test_usage_and_settings_are_those_of_the_run_and_no_prompt_is_among_them(
    serve, run, read, clock
):
    with serve() as server:
        account = Account(base_url=server.base_url + "/")
        spec = Spec(
            model="gpt-4o-mini",
            system="Be brief. " * 100,
            params={"temperature": 0.5, "stop": ["x"]},
            account=account,
        )
        run(server, {1: "SECRET one", 2: "SECRET two"}, spec=spec)
    overview = overview_of(read(), now=clock.now())
    totals = {row["category"]: row for row in overview.usage.to_pylist()}
    assert totals["prompt"]["tokens"] == 2 * INPUT_TOKENS
    assert totals["total"]["cost_usd"] == pytest.approx(2 * ROW_USD)
    assert overview.saved_usd == pytest.approx(2 * ROW_USD)  # batches cost half
    assert overview.differences == ()
    assert {name: text[:20] for name, text in overview.settings.items()} == {
        "model": "gpt-4o-mini",
        "endpoint": "/v1/chat/completions",
        "system": "Be brief. Be brief. ",
        "stop": '["x"]',
        "temperature": "0.5",
    }
    assert len(overview.settings["system"]) <= 200
    assert "SECRET" not in repr(overview)
    assert "answer to" not in repr(overview)


def test_a_create_without_an_answer_is_neither_waiting_nor_a_batch(serve, run, read, clock):
    faults = [
        Fault("batches.create", "lands-late:1000000"),
        Fault("batches.list", "error-before:500", None),
    ]
    with serve(faults=faults) as server:
        run(server, {1: "a", 2: "b"}, timeout=1)
        status = status_of(read(), now=clock.now())
    assert (status.batches, status.rows) == ({"creating": 1}, {"in progress": 2})
    assert (status.is_done, status.kept_until) == (False, None)


def test_a_status_of_a_checkpoint_at_work_is_that_of_its_memory(serve, run, read, tmp_path):
    played = Played(tmp_path / "checkpoint")
    played.freeze([1, 2, 3])
    played.send(0)
    played.checkpoint.observe(
        0,
        BatchSeen(
            batch_id="b",
            input_file_id="f",
            status=BatchStatus.FINALIZING,
            created_at=1.0,
            in_progress_at=5.0,
            n_done=99,
        ),
    )
    status = status_of(played.checkpoint, now=11.0)
    overview = overview_of(played.checkpoint, now=11.0)
    assert not isinstance(played.checkpoint.shards[0].state, Collected)
    played.checkpoint.close()
    # The provider's count is a hint: never more than the rows.
    assert (status.n_done, status.batches) == (3, {"finalizing": 1})
    # All rows are done, and how long the provider's last steps take is not known.
    assert (status.eta_seconds, time_left(status)[0]) == (None, "unknown")
    assert overview.shards[0].started_at == datetime.fromtimestamp(5, UTC)
