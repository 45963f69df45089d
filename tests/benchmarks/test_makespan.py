"""How long a run takes beside the least that its queue allows, on a clock that jumps.

    python -m pytest -m benchmark -s tests/benchmarks/test_makespan.py

A provider takes so many prompt tokens at once and needs an hour for each batch. The bound is what
is to be sent, in queues, times the service time of a batch. The limit is known, or learned from the
first refusal; tokens are guessed from bytes until the first batches tell.
"""

import pyarrow as pa
import pytest

from batchframe.client import Provider
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import JumpClock, LocalServer
from batchframe.emulator.models import count_prompt_tokens
from batchframe.engine import Engine, Submission
from batchframe.run import Options, run_rows

pytestmark = pytest.mark.benchmark

#: Of validating, running and finalizing, each.
STAGE_SECONDS = 1200.0
CASES = [
    (rows, queues, known) for rows, queues in ((1000, 1), (4000, 10)) for known in (True, False)
]


def test_makespan(tmp_path):
    print(f"\n{'rows':>6} {'queues':>7} {'limit':>8} {'batches':>8} {'refused':>8} {'ratio':>6}")
    for number, (n, queues, known) in enumerate(CASES):
        prompts = [f"{'lorem ipsum dolor sit amet ' * 4}{row}" for row in range(n)]
        bodies = ({"messages": [{"content": prompt}]} for prompt in prompts)
        limit = sum(map(count_prompt_tokens, bodies)) // queues
        clock = JumpClock()
        with LocalServer(
            clock=clock, stage_seconds=STAGE_SECONDS, enqueued_token_limit={"gpt-4o": limit}
        ) as server:
            provider = Provider(server.client())
            began = clock.monotonic()
            answers = run_rows(
                Rows(ids=pa.array(range(n)), prompts=pa.array(prompts)),
                Spec(model="gpt-4o", account=provider.account),
                Submission(
                    provider=provider,
                    limits=Limits(max_enqueued_tokens=limit if known else None),
                    completion_window="24h",
                    poll_interval=None,
                ),
                tmp_path / str(number),
                options=Options(progress=False, max_retries=0),
                engine=Engine(clock),
            )
            took = clock.monotonic() - began
            batches = [batch.status for batch in server.client().batches.list(limit=100)]
        assert set(answers.results["status"].to_pylist()) == {"ok"}
        print(
            f"{n:>6,} {queues:>7} {'known' if known else 'learned':>8} {len(batches):>8} "
            f"{batches.count('failed'):>8} {took / (3 * STAGE_SECONDS * queues):>6.2f}"
        )
