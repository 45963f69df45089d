"""Real processes on one checkpoint: killed, raced, stopped, interrupted, forked.

The server runs in the test's process, outlives them all, and counts what it bills. By default 25
processes are killed, on a seed that is printed; for the long proof, with the counts shown:

    BATCHFRAME_KILLS=500 python -m pytest -s tests/engine/test_processes.py -k killed

`BATCHFRAME_SEED=...` chooses other moments. A kill counts only if it found work under way: a shard
that the log has as anything but collected.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from batchframe.clock import SystemClock
from batchframe.commits import Commit
from batchframe.core.batches import Collected, Dropped, ShardFrozen, State, advance
from batchframe.emulator import Echo, Fault, LocalServer
from batchframe.ledger import Ledger
from batchframe.storage import Storage
from tests.engine.processes import PATIENCE, ROOT, Child, Nursery, prompts_of

if sys.platform == "win32":
    pytest.skip("signals and fork are POSIX", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("all_cores")

ROWS = 40  # in shards of ten
KILLS = int(os.environ.get("BATCHFRAME_KILLS", "25"))
SEED = int(os.environ.get("BATCHFRAME_SEED", "20260801"))


@pytest.fixture(scope="module")
def nursery(all_cores) -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


class Gate:
    """Answers as the echo model does, but not before the gate is opened."""

    name = "gate"
    instant = False

    def __init__(self) -> None:
        #: Set when a row is to be executed: its batch is live.
        self.asked = threading.Event()
        self._opened = threading.Event()
        self._echo = Echo()

    def open(self) -> None:
        self._opened.set()

    def answer(self, body: dict[str, Any], endpoint: str) -> tuple[int, dict[str, Any]]:
        self.asked.set()
        assert self._opened.wait(PATIENCE)
        return self._echo.answer(body, endpoint)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def server(gate) -> Iterator[LocalServer]:
    """A server whose batches end when the gate is opened."""
    with LocalServer(gate, stage_seconds=0.02) as running:
        yield running
        gate.open()  # or the server would wait for its rows


@pytest.fixture
def call(server, tmp_path) -> dict[str, Any]:
    return call_of(server, tmp_path / "checkpoint")


def call_of(server: LocalServer, checkpoint: Path, n_rows: int = ROWS) -> dict[str, Any]:
    return {
        "base_url": server.base_url,
        "checkpoint": str(checkpoint),
        "name": checkpoint.name,
        "n_rows": n_rows,
    }


def assert_answered(outcome: dict[str, Any], call: dict[str, Any]) -> None:
    prompts = prompts_of(call["name"], call["n_rows"])
    assert outcome == {
        "ids": list(range(len(prompts))),
        "completions": [f"echo: {prompt}" for prompt in prompts],
        "statuses": ["ok"],
    }


def assert_each_paid_once(server: LocalServer, n_rows: int = ROWS) -> None:
    executions = server.executions()
    assert Counter(executions.values()) == {1: n_rows}


# Killed


class Log:
    """Where the shards of a checkpoint stand, read from outside."""

    def __init__(self, checkpoint: Path) -> None:
        self._folder = checkpoint / "log"
        self._n_read = self._n_seen = 0
        self.states: dict[int, State] = {}
        self.n_rows = 0
        self.last = "nothing"

    def has_grown(self) -> bool:
        """Whether something was committed since this was asked last."""
        before, self._n_seen = self._n_seen, self._n_read
        return self._n_read > before or self._n_read == 0

    def _read(self) -> None:
        with suppress(FileNotFoundError):
            while True:
                data = (self._folder / f"{self._n_read:08d}.json").read_bytes()
                commit = msgspec.json.decode(data.partition(b"\n")[0], type=Commit)
                self.states[commit.shard] = advance(self.states.get(commit.shard), commit.event)
                self.last = type(commit.event).__name__
                if isinstance(commit.event, ShardFrozen):
                    self.n_rows += commit.event.n_requests
                self._n_read += 1

    def under_way(self) -> set[str]:
        """The states of the shards that are not done, as of now."""
        self._read()
        return {
            type(state).__name__
            for state in self.states.values()
            if not isinstance(state, Collected | Dropped)
        }


class Deaths:
    """What a number of deaths were worth: where the shards stood."""

    def __init__(self) -> None:
        self.n = self.n_in_vain = self.n_escaped = 0
        #: Deaths that found a shard in a state.
        self.states = Counter[str]()
        #: Deaths by the last event that was committed.
        self.events = Counter[str]()

    def count(self, log: Log) -> None:
        if states := log.under_way():
            self.n += 1
            self.states.update(states)
            self.events[log.last] += 1
        else:
            self.n_in_vain += 1

    def __str__(self) -> str:
        return (
            f"{self.n} deaths with work under way, {self.n_in_vain} without,"
            f" {self.n_escaped} processes ended first"
            f"\n  found a shard in: {dict(self.states.most_common())}"
            f"\n  last commit: {dict(self.events.most_common())}"
        )


def live_and_die(
    nursery: Nursery,
    server: LocalServer,
    call: dict[str, Any],
    *,
    deaths: Deaths,
    most: int,
    moments: random.Random,
    by: signal.Signals,
) -> None:
    """Start process after process on one checkpoint, and let each die at some moment."""
    log = Log(Path(call["checkpoint"]))
    seconds = 0.0
    # Not for ever on one checkpoint: to read a long one would take most of each life.
    while deaths.n < most and call["n_rows"] <= 200:
        match moments.random():
            case luck if luck < 0.25:
                server.inject(Fault("batches.create", "reply-lost-after"))
            case luck if luck < 0.30:
                server.inject(Fault("batches.create", "lands-late:0.5"))
        # The new rows take about half a second. A search for a batch takes longer: after a life
        # that got nowhere comes a longer one.
        seconds = 0.5 if log.has_grown() else seconds * 1.5
        moment = moments.uniform(0, seconds)
        child = nursery.start(**call)
        child.wait_for("began")
        if child.has_news(moment):
            assert_answered(child.outcome(), call)
            deaths.n_escaped += 1
        else:
            child.send(by)
            outcome = child.outcome()
            deaths.count(log)
            assert outcome.get("error", "KeyboardInterrupt") == "KeyboardInterrupt"
        # Rows of a round that was tried again, or of a shard that was dropped, are frozen anew.
        if not log.under_way() and log.n_rows >= call["n_rows"]:
            # All is done: the frame grows, or the next death would find no work.
            call["n_rows"] += ROWS


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_after_any_number_of_deaths_every_row_is_answered_and_paid_once(nursery, tmp_path, by):
    n_deaths = KILLS if by is signal.SIGKILL else KILLS // 5
    moments = random.Random(SEED)  # noqa: S311 - to be repeatable
    deaths, n_rows, n_checkpoints = Deaths(), 0, 0
    with LocalServer() as server:
        while deaths.n < n_deaths:
            n_checkpoints += 1
            call = call_of(server, tmp_path / f"checkpoint {n_checkpoints}")
            live_and_die(
                nursery, server, call, deaths=deaths, most=n_deaths, moments=moments, by=by
            )

            assert_answered(nursery.start(**call).outcome(), call)

            n_rows += call["n_rows"]
            assert_each_paid_once(server, n_rows)
        assert server.calls().get("batches.cancel", 0) == 0
        print(f"\n{by.name}, seed {SEED}, {n_rows} rows: {deaths}")  # noqa: T201 - what it proves


# Two at once


def first_with_news(children: list[Child], *, seconds: float) -> list[Child]:
    """Those that have something to say, as soon as there is one."""
    deadline = time.monotonic() + seconds
    news: list[Child] = []
    while not news and time.monotonic() < deadline:
        news = [child for child in children if child.has_news(0.05)]
    return news


def test_of_two_processes_one_works_and_the_other_is_told_who(nursery, server, gate, call):
    children = [nursery.start(**call), nursery.start(**call)]
    for child in children:
        child.wait_for("began")
    (loser,) = first_with_news(children, seconds=60)
    (winner,) = (child for child in children if child is not loser)

    refusal = loser.outcome()
    gate.open()

    assert refusal["error"] == "CheckpointBusyError"
    assert_answered(winner.outcome(), call)
    assert_answered(nursery.start(**call).outcome(), call)
    assert_each_paid_once(server)


def test_a_second_process_is_told_the_pid_and_the_host_of_the_first(nursery, server, gate, call):
    first = nursery.start(**call)
    assert gate.asked.wait(PATIENCE)

    refusal = nursery.start(**call).outcome()
    gate.open()

    assert refusal["error"] == "CheckpointBusyError"
    assert str(first.pid) in refusal["message"]
    assert socket.gethostname() in refusal["message"]
    assert_answered(first.outcome(), call)
    assert_each_paid_once(server)


@pytest.mark.parametrize("attempt", range(5))
def test_without_a_lock_of_two_racing_processes_one_loses_its_commit(
    nursery, server, gate, call, attempt
):
    call["lock"] = False
    children = [nursery.start(**call), nursery.start(**call)]
    for child in children:
        child.wait_for("began")
    # The second may have come when the first had committed all it can: then they meet later.
    first_with_news(children, seconds=3)
    gate.open()

    outcomes = [child.outcome() for child in children]
    lost = [outcome for outcome in outcomes if "error" in outcome]
    (won,) = [outcome for outcome in outcomes if "error" not in outcome]

    assert [outcome["error"] for outcome in lost] == ["CheckpointBusyError"]
    assert_answered(won, call)
    assert_answered(nursery.start(**call).outcome(), call)
    assert_each_paid_once(server)


@pytest.mark.parametrize(
    "at",
    [
        "before Checkpoint.commit",
        "after Provider.upload",
        "before Provider.create",
        "after Provider.create",
        "after Provider.retrieve",
        "after Provider.download",
    ],
)
def test_a_stopped_process_that_was_overtaken_ends_at_its_next_commit(
    nursery, server, gate, call, at
):
    gate.open()
    call["lock"] = False
    zombie = nursery.start(**call, at=at, do="stop")
    zombie.wait_for("stopped")

    assert_answered(nursery.start(**call).outcome(), call)
    zombie.send(signal.SIGCONT)

    outcome = zombie.outcome()
    assert outcome["error"] == "CheckpointBusyError"
    assert "Nothing is lost" in outcome["message"]
    assert_answered(nursery.start(**call).outcome(), call)
    assert_each_paid_once(server)


# Interrupted

_SCRIPT = """
import json, sys
from tests.engine.processes import _complete
_complete(json.loads(sys.argv[1]))
"""


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_the_batches_running_and_says_how_to_resume(
    nursery, server, gate, call, times
):
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, msgspec.json.encode(call).decode()],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert gate.asked.wait(PATIENCE)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)

    assert process.returncode == -signal.SIGINT, stderr
    assert "KeyboardInterrupt" in stderr
    assert "run the same call again to resume" in stderr
    assert call["checkpoint"] in stderr
    assert server.calls().get("batches.cancel", 0) == 0
    gate.open()
    assert_answered(nursery.start(**call).outcome(), call)
    assert_each_paid_once(server)


# Forked


@pytest.fixture
def grandchildren() -> Iterator[list[int]]:
    """Processes to be ended when the test has: pids that their living parent reported."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_forked_child_that_lives_on_does_not_keep_the_checkpoint(
    nursery, server, gate, call, grandchildren
):
    gate.open()
    parent = nursery.start(**call, at="after Provider.create", do="fork idle")
    grandchildren.append(parent.wait_for("forked")["forked"])

    assert_answered(parent.outcome(), call)
    assert_answered(nursery.start(**call).outcome(), call)
    assert_each_paid_once(server)


def test_a_process_with_a_forked_child_can_make_the_same_call_again(
    nursery, server, gate, call, grandchildren
):
    gate.open()
    parent = nursery.start(**call, runs=2, at="after Provider.create", do="fork idle")
    grandchildren.append(parent.wait_for("forked")["forked"])

    assert_answered(parent.outcome(), call)
    assert_each_paid_once(server)


def test_a_killed_process_leaves_the_checkpoint_though_its_forked_child_lives(
    nursery, server, gate, call, grandchildren
):
    parent = nursery.start(**call, at="after Provider.create", do="fork idle")
    grandchildren.append(parent.wait_for("forked")["forked"])
    assert gate.asked.wait(PATIENCE)
    parent.send(signal.SIGKILL)
    parent.outcome()
    gate.open()

    assert_answered(nursery.start(**call).outcome(), call)
    assert_each_paid_once(server)


def test_a_child_forked_in_the_middle_of_a_run_can_run_a_frame_of_its_own(
    nursery, server, gate, call, grandchildren, tmp_path
):
    gate.open()
    own = call_of(server, tmp_path / "of the child")
    parent = nursery.start(**call, at="after Provider.create", do="fork working", child=own)
    grandchildren.append(parent.wait_for("forked")["forked"])

    parent.outcome()  # the pipe's end is the end of both

    reports = {key: report for report in parent.reports for key in report}
    assert_answered(reports["child"]["child"], own)
    assert_answered(reports["completions"], call)
    assert_each_paid_once(server, 2 * ROWS)


def test_a_child_forked_in_the_middle_of_a_run_is_refused_the_same_checkpoint(
    nursery, server, gate, call, grandchildren
):
    parent = nursery.start(**call, at="after Provider.create", do="fork working", child={})
    grandchildren.append(parent.wait_for("forked")["forked"])

    refusal = parent.wait_for("child")["child"]
    gate.open()

    assert refusal["error"] == "CheckpointBusyError"
    assert_answered(parent.outcome(), call)
    assert_each_paid_once(server)


def test_a_child_forked_while_its_parent_enters_a_queue_does_not_keep_others_out(tmp_path):
    reader, writer = os.pipe()
    children = []

    def fork():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside other threads
            pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # until its parent closes the pipe
            os._exit(0)
        children.append(pid)

    def enter(commit):
        ledger = Ledger(tmp_path, Storage(), SystemClock())
        nothing = {"ours": {}, "provider": None, "room": 10.0}
        return ledger.put(1, commit=commit, queue=("a", "", "", "b"), **nothing)

    try:
        assert enter(fork)
        entered = threading.Event()
        threading.Thread(target=enter, args=[entered.set], daemon=True).start()
        assert entered.wait(20)
    finally:
        os.close(writer)
        for pid in children:
            os.waitpid(pid, 0)
        os.close(reader)
