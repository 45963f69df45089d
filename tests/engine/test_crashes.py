"""The run dies before or after every single operation, and is resumed.

Each time: every row is answered with the answer to its own prompt, in order; each is paid once; no
more batches are created than an undisturbed run creates.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batchframe.client import Provider
from batchframe.core.batches import BatchSeen, BatchStatus
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import JumpClock, LocalServer
from batchframe.engine import Engine
from batchframe.errors import ProviderError
from batchframe.jobs import Submission
from batchframe.rounds import Options
from batchframe.running import run_rows
from batchframe.storage import Storage
from tests.engine.mortality import Died, Life, MortalProvider, MortalStorage

ROWS = 3
#: Two rows and one: two shards, so that their operations mix.
LIMITS = Limits(max_requests=2)


class CancelledByAPerson(Provider):
    """The account's owner cancels each batch of which a look finds some rows done."""

    def retrieve(self, batch_id: str) -> BatchSeen:
        seen = super().retrieve(batch_id)
        if seen.status is BatchStatus.IN_PROGRESS and seen.n_done:
            self.cancel(batch_id)
        return seen


def run_once(
    provider: Any,
    clock: JumpClock,
    path: Path,
    prompts: list[str],
    storage: Storage,
    *,
    limits: Limits = LIMITS,
    retry_failed: bool = False,
) -> list[dict[str, Any]]:
    answers = run_rows(
        Rows(ids=pa.array(range(len(prompts)), pa.int64()), prompts=pa.array(prompts, pa.string())),
        Spec(model="gpt-4o-mini", account=provider.account),
        Submission(
            provider=provider,
            limits=limits,
            completion_window="24h",
            poll_interval=36_000.0,
        ),
        path,
        options=Options(progress=False, retry_failed=retry_failed),
        engine=Engine(clock),
        storage=storage,
    )
    return answers.results.take(answers.positions).to_pylist()


def die_and_resume(
    server: LocalServer, clock: JumpClock, path: Path, *, ends_at: int, power: bool
) -> tuple[list[str], list[dict[str, Any]], bool]:
    """One run that dies at a point, and one that resumes it: prompts, results, and if it died."""
    prompts = [f"{path.name}, question {row}" for row in range(ROWS)]
    provider = Provider(server.client())
    life = Life(ends_at)
    storage = MortalStorage(life)
    try:
        run_once(MortalProvider(provider, life), clock, path, prompts, storage)
    except Died:
        if power:
            storage.cut_power()
    again = MortalStorage(Life())
    return prompts, run_once(provider, clock, path, prompts, again), life.is_over


#: What the server is; how many batches an undisturbed run creates there, and one that died may.
SERVERS: dict[str, tuple[dict[str, Any], set[int], set[int]]] = {
    # A death may leave a create of which nobody knows whether it arrived.
    "completed": ({}, {2}, {2, 3}),
    # Rows 13 hours apart: of two rows in a batch, the day is over for the second.
    "expired": ({"row_seconds": 13 * 3600.0}, {3}, {3, 4}),
    # There is room for one of the two batches: the other is turned away, until the first is done;
    # which it may be already, for the clock jumps whenever nothing is under way.
    "queue full": ({"enqueued_token_limit": 34, "stage_seconds": 1.0}, {2, 3}, {2, 3, 4, 5}),
}


@pytest.mark.parametrize(
    ("ending", "power"),
    [("completed", False), ("completed", True), ("expired", True), ("queue full", False)],
    ids=[
        "completed, process killed",
        "completed, power cut",
        "expired, power cut",
        "queue full, process killed",
    ],
)
def test_a_run_that_died_at_any_operation_is_resumed_and_pays_once(tmp_path, ending, power):
    clock = JumpClock()
    options, undisturbed, disturbed = SERVERS[ending]
    with LocalServer(clock=clock, **options) as server:
        point = 0
        died = True
        while died:
            point += 1
            path = tmp_path / f"point {point}"
            created = server.calls().get("batches.create", 0)

            prompts, results, died = die_and_resume(server, clock, path, ends_at=point, power=power)

            where = f"died at point {point}"
            assert [row["completion"] for row in results] == [
                f"echo: {prompt}" for prompt in prompts
            ], where
            assert {row["status"] for row in results} == {"ok"}, where
            n_created = server.calls()["batches.create"] - created
            assert n_created in (disturbed if died else undisturbed), where
            assert server.billed().requests == point * ROWS, where
        # An undisturbed run of two shards has some hundred operations; all of them were tried.
        assert point > 100


@pytest.mark.parametrize(
    ("options", "provider_of", "ended", "n_ok"),
    [
        # Its batches of two rows are refused as too large: nothing runs but the row by itself.
        ({"max_requests": 1}, Provider, "failed", 1),
        # Rows 13 hours apart, and a look every 10: of two rows in a batch the first has run.
        ({"row_seconds": 13 * 3600.0}, CancelledByAPerson, "cancelled", 2),
    ],
    ids=["failed validation, process killed", "cancelled, process killed"],
)
def test_a_run_that_died_over_batches_that_came_to_nothing_is_resumed_and_pays_once(
    tmp_path, options, provider_of, ended, n_ok
):
    clock = JumpClock()
    stopped = 0
    with LocalServer(clock=clock, **options) as server:
        point = 0
        died = True
        while died:
            point += 1
            path = tmp_path / f"point {point}"
            where = f"died at point {point}"
            paid = server.billed().requests
            prompts = [f"{path.name}, question {row}" for row in range(ROWS)]
            provider, life = provider_of(server.client()), Life(point)

            # It dies; or it sees first that the other shard came to nothing, and stops.
            with suppress(Died, ProviderError):
                run_once(MortalProvider(provider, life), clock, path, prompts, MortalStorage(life))
            died = life.is_over
            try:
                results = run_once(provider, clock, path, prompts, Storage())
            except ProviderError:
                # The death was between the shards: the first failed before the second was sent,
                # and the run does not send it into the same failure.
                stopped += 1
            else:
                statuses = [row["status"] for row in results]
                assert statuses.count("ok") == n_ok, where
                assert statuses.count(ended) == ROWS - n_ok, where
                assert server.billed().requests - paid == n_ok, where

            # What came to nothing is not sent again unless that is asked for, and then it is.
            again = run_once(
                Provider(server.client()),
                clock,
                path,
                prompts,
                Storage(),
                limits=Limits(max_requests=1),
                retry_failed=True,
            )
            assert [row["completion"] for row in again] == [
                f"echo: {prompt}" for prompt in prompts
            ], where
            assert server.billed().requests - paid == ROWS, where
        assert point > 80
        assert stopped < point / 2
