"""How long a run takes beside the least that its queue allows, on a clock that jumps.

    python -m pytest -m benchmark -s tests/benchmarks/test_makespan.py

A provider takes so many prompt tokens at once, sixteen shards' worth of 25 rows each. Its batches
take an hour each; or times that are drawn from a lognormal distribution with a median of an hour
and a sigma of 0.5, and then 2% of the rows fail the first time they are sent, and 1% expire. The
bound is what each batch takes, in tokens and time, over the limit; and no run is shorter than the
batches of any one row, one after the other. The limit is known, or learned from the first refusal;
tokens are counted in a sample until the first batches tell.
"""

import json
import random
from collections import Counter
from functools import cache

import pyarrow as pa
import pytest

from batchframe.client import Provider
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import JumpClock, LocalServer
from batchframe.emulator.tokens import count_prompt_tokens
from batchframe.engine import Engine
from batchframe.jobs import Submission
from batchframe.rounds import Options
from batchframe.running import run_rows

pytestmark = pytest.mark.benchmark

#: Of validating, running and finalizing, each.
STAGE_SECONDS = 1200.0
SIGMA = 0.5
FAILING, EXPIRING = 0.02, 0.01
#: Rows of a shard, and shards of a queue.
ROWS, SHARDS = 25, 16
CASES = [
    (n_shards, varied, known)
    for n_shards in (1, 10, 1_000)
    for varied in (False, True)
    for known in (True, False)
]


def answer_but_the_first_time(prompts, expiring):
    """Answers with what was asked, where `prompts` fail and `expiring` expire the first time."""
    failed = set()

    def answer(body):
        [message] = body["messages"]
        if message["content"] in prompts - failed:
            failed.add(message["content"])
            code = "batch_expired" if message["content"] in expiring else "server_error"
            return 500, {"error": {"message": "It did not run this time", "code": code}}
        n_tokens = count_prompt_tokens(body)
        usage = {"prompt_tokens": n_tokens, "completion_tokens": 1, "total_tokens": n_tokens + 1}
        choice = {"index": 0, "finish_reason": "stop", "message": {**message, "role": "assistant"}}
        return 200, {"model": body["model"], "choices": [choice], "usage": usage}

    return answer


@pytest.mark.parametrize(("n_shards", "varied", "known"), CASES)
def test_makespan(tmp_path, n_shards, varied, known):
    n = n_shards * ROWS
    prompts = [f"Which of these words says most about the weather of {row}?" for row in range(n)]
    tokens = sum(count_prompt_tokens({"messages": [{"content": prompt}]}) for prompt in prompts)
    limit = tokens * SHARDS // n_shards
    drawn = random.Random(7)  # noqa: S311 - no secret
    failing = drawn.sample(prompts, int(n * (FAILING + EXPIRING))) if varied else []
    expiring = set(failing[: int(n * EXPIRING)])

    @cache
    def stage_seconds(_batch_id):
        return drawn.lognormvariate(0, SIGMA) * STAGE_SECONDS if varied else STAGE_SECONDS

    clock = JumpClock()
    with LocalServer(
        answer_but_the_first_time(set(failing), expiring),
        clock=clock,
        stage_seconds=stage_seconds,
        enqueued_token_limit={"gpt-4o": limit},
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
            tmp_path / "checkpoint",
            options=Options(progress=False),
            engine=Engine(clock),
        )
        took = clock.monotonic() - began
        batches = list(server.client().batches.list(limit=100))
        ran = [batch for batch in batches if batch.status == "completed"]
        seconds = {batch.id: 3 * stage_seconds(batch.id) for batch in ran}
        of_rows = Counter()
        for batch in ran:
            lines = server.client().files.content(batch.input_file_id).content.splitlines()
            of_rows.update({json.loads(line)["custom_id"]: seconds[batch.id] for line in lines})
    assert set(answers.results["status"].to_pylist()) == {"ok"}
    rows_seconds = sum(batch.request_counts.total * seconds[batch.id] for batch in ran)
    bound = max(rows_seconds * tokens / n / limit, *of_rows.values())
    print(
        f"\n{n_shards:>5} shards' worth, {'varied' if varied else 'steady':>6}, limit "
        f"{'known' if known else 'learned':>7}: {len(ran):>5} batches, "
        f"{len(batches) - len(ran):>3} refused, {took / 3600:>7.1f} h, {took / bound:>5.2f} of the "
        "bound"
    )
