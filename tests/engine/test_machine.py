"""A checkpoint lives through anything, in any order: every row is answered and paid once.

Hypothesis mixes frames that grow, change and are re-ordered; runs that end well, that die at some
operation, and that lose power; clocks that jump; a provider that errs in every way that loses
nothing it was paid for. What is drawn never depends on what happened, so that it can be repeated.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from batchframe.client import Provider
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import Fault, JumpClock, LocalServer
from batchframe.engine import Engine
from batchframe.jobs import Submission
from batchframe.rounds import Options
from batchframe.running import run_rows
from tests.engine.mortality import Died, Life, MortalProvider, MortalStorage

HOUR = 3600.0
#: What goes wrong at the provider, at one of the next calls.
FAULTS = [
    "files.create=error-before:500",
    "files.create=error-after:503",
    "files.create=reply-lost-after",
    "files.create=reset-before",
    "files.create=visible-late:30",
    "files.delete=error-before:500",
    "files.retrieve=error-before:502",
    "files.content=error-before:500",
    "files.content=truncate:40",
    "files.content=truncate-silent:40",
    "batches.create=error-before:500",
    "batches.create=error-before:429:30",
    "batches.create=error-after:500",
    "batches.create=reply-lost-after",
    "batches.create=reset-before",
    "batches.create=lands-late:5",
    "batches.create=lands-late:200",
    "batches.create=visible-late:60",
    "batches.create=list-lag:300",
    "batches.create=not-visible:2",
    "batches.list=error-before:500*3",
    "batches.list=reply-lost-after",
    "batches.retrieve=error-before:502*4",
    "batches.retrieve=unknown-status:pondering*2",
    "batches.retrieve=null-counts",
    "batches.retrieve=empty-file-ids",
    "output=duplicate-line",
    "output=foreign-line",
    "output=no-final-newline",
    "output=crlf",
]


NEW_ROWS = st.integers(1, 12)  # of which five make a shard
#: Operations after which a run dies: one of two shards has some hundred.
POINTS = st.integers(1, 120)


class ACheckpointsLife(RuleBasedStateMachine):
    """One frame and its checkpoint, from one run to the next."""

    @initialize(slow=st.booleans())
    def begin(self, *, slow: bool) -> None:
        self.clock = JumpClock()
        # The rows of a slow server are five hours apart: of five, the day is over for the last.
        self.server = LocalServer(
            clock=self.clock, stage_seconds=60.0, row_seconds=5 * HOUR if slow else 0.0
        )
        self.server.__enter__()
        self.provider = Provider(self.server.client())
        self.folder = TemporaryDirectory()
        self.rows: dict[int, str] = {0: "question 0"}
        self.n_edits = 0

    # The frame, the provider and the time

    @rule(edits=st.lists(st.integers(0, 100), max_size=3))
    def edit_and_turn_around(self, edits: list[int]) -> None:
        for edit in edits:
            self.n_edits += 1
            row = list(self.rows)[edit % len(self.rows)]
            self.rows[row] = f"another question {self.n_edits}"
        self.rows = dict(reversed(self.rows.items()))

    def _grow(self, n: int) -> None:
        first = max(self.rows) + 1
        self.rows |= {row: f"question {row}" for row in range(first, first + n)}

    @rule(
        faults=st.lists(
            st.tuples(st.sampled_from(FAULTS), st.integers(1, 3)),
            min_size=1,
            unique_by=lambda fault: fault[0].partition("=")[0],
        )
    )
    def fail(self, faults: list[tuple[str, int]]) -> None:
        # Not on top of older ones: delays would add up to more than what is searched for.
        self.server._script._calls.clear()
        for text, first in faults:
            fault = Fault.parse(text)
            self.server.inject(replace(fault, first=first))

    @rule(hours=st.sampled_from([0.01, 1.0, 30.0, 24.0 * 7]))
    def pass_time(self, hours: float) -> None:
        self.clock.advance(hours * HOUR)

    # Runs, most with new rows: without work there is little to disturb

    @rule(n=NEW_ROWS)
    def run(self, n: int) -> None:
        self._grow(n)
        self._assert_answered(self._run(self.provider, MortalStorage(Life())))

    @rule(n=NEW_ROWS, point=POINTS)
    def run_until_killed(self, n: int, point: int) -> None:
        self._grow(n)
        self._run_and_die(point)

    @rule(n=NEW_ROWS, point=POINTS)
    def run_until_the_power_is_cut(self, n: int, point: int) -> None:
        self._grow(n)
        if storage := self._run_and_die(point):
            storage.cut_power()

    @rule(n=NEW_ROWS, seconds=st.sampled_from([0.0, 30.0, 2 * HOUR]))
    def run_until_time_is_up(self, n: int, seconds: float) -> None:
        self._grow(n)
        with suppress(TimeoutError):
            self._assert_answered(self._run(self.provider, MortalStorage(Life()), timeout=seconds))

    def _run_and_die(self, point: int) -> MortalStorage | None:
        life = Life(point)
        storage = MortalStorage(life)
        try:
            results = self._run(MortalProvider(self.provider, life), storage)
        except Died:
            return storage
        # It ended before it came to the point.
        self._assert_answered(results)
        return None

    @invariant()
    def nothing_is_paid_twice(self) -> None:
        assert set(self.server.executions().values()) <= {1}

    def teardown(self) -> None:
        if not hasattr(self, "server"):
            return
        try:
            self.server._script._calls.clear()
            results = self._run(self.provider, MortalStorage(Life()))
            assert [row["completion"] for row in results] == self._answers()
            assert {row["status"] for row in results} == {"ok"}
            assert set(self.server.executions().values()) == {1}
            calls = self.server.calls()
            assert self._run(self.provider, MortalStorage(Life())) == results
            assert self.server.calls() == calls
        finally:
            self.server.__exit__(None, None, None)
            self.folder.cleanup()

    def _answers(self) -> list[str]:
        return [f"echo: {prompt}" for prompt in self.rows.values()]

    def _assert_answered(self, results: list[dict[str, Any]]) -> None:
        """Each row has its own answer, or an end that another call mends."""
        for row, answer in zip(results, self._answers(), strict=True):
            assert (
                row["completion"] == answer
                if row["status"] == "ok"
                else row["status"]
                in {
                    "expired",
                    "failed",
                }
            )

    def _run(
        self, provider: Any, storage: MortalStorage, *, timeout: float | None = None
    ) -> list[dict[str, Any]]:
        answers = run_rows(
            Rows(
                ids=pa.array(list(self.rows), pa.int64()),
                prompts=pa.array(list(self.rows.values()), pa.string()),
            ),
            Spec(model="gpt-4o-mini", account=self.provider.account),
            Submission(
                provider=provider,
                limits=Limits(max_requests=5),
                completion_window="24h",
                poll_interval=HOUR,
            ),
            Path(self.folder.name) / "checkpoint",
            options=Options(progress=False, timeout=timeout),
            engine=Engine(self.clock),
            storage=storage,
        )
        return answers.results.take(answers.positions).to_pylist()


TestAnyLifeOfACheckpoint = ACheckpointsLife.TestCase
TestAnyLifeOfACheckpoint.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    # Threads are in no fixed order: a failure is shown as it came, and not shrunk for minutes.
    phases=(Phase.generate,),
    database=None,
    suppress_health_check=list(HealthCheck),
)
