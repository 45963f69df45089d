"""What one run leaves to the next: the rounds of its rows, and whether it was done."""

import polars as pl
import pytest

import batchframe as bf
from batchframe.emulator import LocalServer


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
