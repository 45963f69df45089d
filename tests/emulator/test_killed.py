"""Upstreams and servers that are killed in the middle of batches and started again."""

import json
import sys
import threading
import time
from collections import Counter

import openai
import pandas as pd
import pytest

from batchframe.emulator import LocalServer
from tests.emulator.many import ENDPOINT, lines_of, through_kills
from tests.emulator.processes import free_ports, serve, upstream
from tests.emulator.upstreams import Stub, answer

N_ROWS, CONCURRENCY = 40, 4


@pytest.fixture
def ports():
    return free_ports(2)


@pytest.fixture
def client(ports):
    """A client of the server on the first port."""
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{ports[0]}/v1", api_key="x", max_retries=0
    ) as made:
        yield made


def submit(client, content):
    file = client.files.create(file=("rows.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h"
    ).id


def until(client, batch_id, is_it):
    """Look at the batch until it is as wanted."""
    while not is_it(batch := client.batches.retrieve(batch_id)):
        time.sleep(0.01)  # this process and the two servers share few processors
    return batch


def answers(client, batch_id):
    """What each custom_id of a completed batch was answered; each of them is there once."""
    batch = until(client, batch_id, lambda batch: batch.status == "completed")
    assert batch.error_file_id is None
    lines = client.files.content(batch.output_file_id).content.splitlines()
    rows = [json.loads(line) for line in lines]
    assert Counter(row["custom_id"] for row in rows).most_common(1)[0][1] == 1
    return {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
        for row in rows
    }


EXPECTED = {f"row-{i}": f"upstream: row {i}" for i in range(N_ROWS)}


def test_an_upstream_that_is_killed_and_comes_back_answers_every_row_once(ports, client, tmp_path):
    options = ("--upstream", f"http://127.0.0.1:{ports[1]}/v1", "--concurrency", CONCURRENCY)
    with serve(ports[0], tmp_path, *options):
        with upstream(ports[1], 15):
            batch_id = submit(client, b"".join(lines_of("row", N_ROWS)))
            until(client, batch_id, lambda batch: batch.request_counts.completed == 15)
        with upstream(ports[1], N_ROWS - 15) as second:
            assert answers(client, batch_id) == EXPECTED
            second.kill()
            asked_again = second.stdout.read().splitlines()
    assert len(set(asked_again)) == N_ROWS - 15


def test_a_server_that_is_killed_and_comes_back_asks_no_answered_row_again(ports, client, tmp_path):
    left, is_killed = iter(range(15)), threading.Event()

    def reply(_path, body):
        # Those that find none left are under way when the server dies.
        if next(left, None) is None:
            is_killed.wait()
        return 200, answer(body)

    with Stub(reply) as stub:
        options = ("--upstream", stub.base_url, "--concurrency", CONCURRENCY)
        with serve(ports[0], tmp_path, *options):
            batch_id = submit(client, b"".join(lines_of("row", N_ROWS)))
            until(client, batch_id, lambda _: len(stub.calls) == 15 + CONCURRENCY)
            until(client, batch_id, lambda batch: batch.request_counts.completed == 15)
        before = len(stub.calls)
        is_killed.set()
        with serve(ports[0], tmp_path, *options):
            assert answers(client, batch_id) == EXPECTED

    assert before == 15 + CONCURRENCY
    assert len(stub.calls) - before == N_ROWS - 15
    with LocalServer(directory=tmp_path) as kept:
        assert kept.executions() == dict.fromkeys(EXPECTED, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the files of another process")
def test_a_full_disk_is_waited_for_and_no_answer_is_lost(ports, client, tmp_path):
    import resource

    def reply(_path, body):
        return 200, answer(body) | {"padding": "x" * 300_000}

    with Stub(reply) as stub, serve(ports[0], tmp_path, "--upstream", stub.base_url) as server:
        limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
        batch_id = submit(client, b"".join(lines_of("row", 10)))
        # Six fit; two more were answered, and cannot be written.
        until(client, batch_id, lambda _: len(stub.calls) == 8)
        assert client.batches.retrieve(batch_id).request_counts.completed == 6
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)

        assert answers(client, batch_id).keys() == {f"row-{i}" for i in range(10)}
    assert len(stub.calls) == 10


def test_a_frame_is_completed_by_a_server_of_ones_own(ports, client, tmp_path):
    import batchframe as bf

    df = pd.DataFrame({"id": range(N_ROWS), "prompt": [f"row {i}" for i in range(N_ROWS)]})
    options = ("--upstream", f"http://127.0.0.1:{ports[1]}/v1", "--concurrency", CONCURRENCY)
    with (
        upstream(ports[1], N_ROWS) as models,
        serve(ports[0], tmp_path / "server", *options),
    ):
        out = df.openai_batch.complete(
            "prompt",
            "id",
            model="my-model",
            client=client,
            checkpoint=tmp_path / "checkpoint",
            limits=bf.Limits(max_requests=15),
            prices={"my-model": bf.Rates(input=1, output=1)},
            progress=False,
        )
        models.kill()
        asked = models.stdout.read().splitlines()

    assert list(out["completion"]) == [f"upstream: row {i}" for i in range(N_ROWS)]
    assert list(out["completion_input_tokens"]) == [5] * N_ROWS
    assert sorted(asked) == sorted(df["prompt"])


def test_many_batches_survive_kills_of_their_server(tmp_path):
    through_kills(tmp_path, n_batches=50, n_rows=40, row_seconds=0.1, kill_at=(0.1, 0.3))
