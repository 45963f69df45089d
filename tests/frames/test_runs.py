"""A call that goes on by itself: looked at, waited for, cancelled, found again without its frame.

The server's clock stands still until a test moves it: what is live stays live.
"""

import asyncio
import os
import queue
import select
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pandas as pd
import polars as pl
import pytest

import batchframe as bf
from batchframe.checkpoint import Checkpoint
from batchframe.clock import SystemClock
from batchframe.emulator import CallableModel, Fault, JumpClock, LocalServer
from batchframe.storage import Storage

DAY = 86_400.0


@pytest.fixture
def clock():
    return JumpClock()


@pytest.fixture
def still(clock):
    """A server on which nothing moves before its clock does."""
    with LocalServer(clock=clock, stage_seconds=600) as server:
        yield server


@pytest.fixture
def keywords(still, checkpoint):
    """Ten rows make five batches, of which two are live at once."""
    return {
        "model": "gpt-4o-mini",
        "client": still.client(),
        "checkpoint": checkpoint,
        "limits": bf.Limits(max_requests=2, max_live_batches=2),
        "poll_interval": 0.01,
        "progress": False,
    }


@pytest.fixture
def opened(keywords, checkpoint):
    """Another handle of the run, as another process has it."""

    def open_it():
        names = ("client", "limits", "poll_interval", "progress")
        return bf.open_run(checkpoint, **{name: keywords[name] for name in names})

    return open_it


def data(n=10):
    return {"id": list(range(n)), "prompt": [f"question {row}" for row in range(n)]}


ANSWERS = [f"echo: question {row}" for row in range(10)]


class Moving:
    """Moves the server's clock on for as long as a block lasts, whenever somebody looks at it."""

    def __init__(self, clock):
        self._clock = clock
        self._now = clock.now

    def __enter__(self):
        def later():
            self._clock.advance(120)
            return self._now()

        self._clock.now = later

    def __exit__(self, *_):
        del self._clock.now


@pytest.fixture
def moving(clock):
    return Moving(clock)


def test_what_fits_is_at_the_provider_when_submit_returns(frames, keywords, still):
    run = bf.submit(frames.make(data()), "prompt", "id", **keywords)

    status = run.status()

    assert still.calls()["batches.create"] == 2
    assert status.rows == {"in progress": 4, "waiting": 6}
    assert status.batches == {"waiting": 3, "validating": 2}
    assert (status.n_rows, status.n_done, status.is_done) == (10, 0, False)
    partial = run.partial()
    assert frames.values(partial, "completion_status") == [None] * 10
    assert frames.values(partial, "completion") == [None] * 10
    run.detach()


def test_the_run_goes_on_by_itself_and_gives_what_complete_gives(
    frames, keywords, still, moving, tmp_path
):
    frame = frames.make(data())
    run = bf.submit(frame, "prompt", "id", **keywords)
    with moving:
        out = run.result()
        complete = bf.complete(frame, "prompt", "id", **keywords)

        # The rest was sent, collected, and paid once.
        assert set(still.executions().values()) == {1}
        frames.assert_frame_equal(out, complete)
        assert frames.values(out, "completion") == ANSWERS
        assert run.status().rows == {"ok": 10}
        assert run.status().is_done
        frames.assert_frame_equal(run.partial(), out)


def test_some_answers_are_there_before_all_are(keywords, clock):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
    clock.advance(3 * 600)
    with pytest.raises(bf.RunTimeoutError, match=r"not done after 0\.5 seconds, and goes on"):
        run.wait(0.5)

    partial = run.partial()

    # The first two batches ended, and the next two began.
    assert partial["completion"].to_list() == [*ANSWERS[:4], *[None] * 6]
    assert partial["completion_status"].to_list() == [*["ok"] * 4, *[None] * 6]
    assert run.status().rows == {"ok": 4, "in progress": 4, "waiting": 2}
    assert run.status().cost_usd == pytest.approx(run.usage().cost_usd)
    run.detach()


def test_a_frame_that_is_changed_meanwhile_comes_back_as_it_was(keywords, moving):
    pandas, polars = pd.DataFrame(data()), pl.DataFrame(data())
    runs = [
        bf.submit(pandas, "prompt", "id", **keywords),
        bf.submit(polars, "prompt", "id", **keywords, output="other"),
    ]
    pandas["prompt"] = "changed"
    pandas.loc[100] = [100, "added"]
    polars.drop_in_place("prompt")
    with moving:
        for run, column in zip(runs, ("completion", "other"), strict=True):
            out = run.result()
            assert list(out["prompt"]) == data()["prompt"]
            assert list(out[column]) == ANSWERS


def test_another_handle_takes_up_what_one_left_and_each_row_is_paid_once(
    keywords, still, moving, checkpoint, opened
):
    frame = pl.DataFrame(data())
    first = bf.submit(frame, "prompt", "id", **keywords)
    first.detach()
    assert not first.status().is_done

    other = opened()
    assert other.status() == first.status()
    with moving:
        table = other.result()

    assert dict(zip(table["id"].to_pylist(), table["completion"].to_pylist(), strict=True)) == {
        str(row): ANSWERS[row] for row in range(10)
    }
    assert set(still.executions().values()) == {1}
    # The one who has the frame has the answers on it.
    assert first.result()["completion"].to_list() == ANSWERS
    attached = frame.openai_batch.attach(checkpoint, "prompt", "id")
    assert attached["completion"].to_list() == ANSWERS


def test_a_handle_without_the_frame_sends_again_what_failed_and_may_pass(checkpoint):
    failed = set()

    def answer(body):
        text = body["messages"][-1]["content"]
        if text in {"question 1", "question 7"} and text not in failed:
            failed.add(text)
            return 500, {"error": {"message": "Sorry.", "code": "server_error"}}
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": f"echo: {text}"}}
        return 200, {"model": body["model"], "choices": [choice]}

    with LocalServer(CallableModel(answer), stage_seconds=0) as server:
        run = bf.submit(
            pl.DataFrame(data()),
            "prompt",
            "id",
            model="gpt-4o-mini",
            client=server.client(),
            checkpoint=checkpoint,
            max_retries=0,
            poll_interval=0.01,
            progress=False,
        ).wait()
        assert run.status().rows == {"ok": 8, "failed": 2}
        # No key, no client: there is something to send, so that it cannot wait without one.
        opened = bf.open_run(checkpoint, client=server.client(), poll_interval=0.01, progress=False)

        table = opened.result()

        assert set(table["status"].to_pylist()) == {"ok"}
        assert opened.status().rows == {"ok": 10}
        assert set(server.executions().values()) == {1}
        assert server.calls()["batches.create"] == 2
        assert list((checkpoint / "shards").glob("*.jsonl")) == []


def test_a_cancelled_run_keeps_what_was_paid_and_sends_nothing_more(keywords, still, clock, moving):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
    clock.advance(3 * 600)
    with pytest.raises(bf.RunTimeoutError):
        run.wait(0.5)

    run.cancel()
    with moving:
        out = run.result()

    # Two batches were done, two are cancelled, and the fifth was never sent.
    assert out["completion_status"].to_list() == [*["ok"] * 4, *["cancelled"] * 6]
    assert out["completion"].to_list() == [*ANSWERS[:4], *[None] * 6]
    assert still.calls()["batches.create"] == 4
    # The same call again asks for its rows; cancelled ones only when it says so.
    with moving:
        assert bf.complete(pl.DataFrame(data()), "prompt", "id", **keywords)[
            "completion_status"
        ].to_list() == [*["ok"] * 4, *["cancelled"] * 4, *["ok"] * 2]
        again = bf.complete(pl.DataFrame(data()), "prompt", "id", **keywords, retry_failed=True)
    assert again["completion"].to_list() == ANSWERS
    assert set(still.executions().values()) == {1}


def test_a_run_is_cancelled_through_another_handle(keywords, still, moving, opened):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)

    opened().cancel()
    with moving:
        out = run.result()

    assert out["completion_status"].to_list() == ["cancelled"] * 10
    assert still.calls()["batches.create"] == 2
    assert still.executions() == {}


def test_a_batch_that_cannot_be_cancelled_keeps_no_other_running(keywords, still, moving, opened):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
    assert run.detach() is False

    still.inject(Fault("batches.cancel", "error-before:400"))
    with pytest.raises(bf.ProviderError, match=r"batch_\w+ could not be cancelled now"):
        opened().cancel()

    assert still.calls()["batches.cancel"] == 2
    # Nor does it end the work of who waits.
    still.inject(Fault("batches.cancel", "error-before:400"))
    with moving:
        opened().wait()
    out = bf.results(keywords["checkpoint"])
    assert set(out["status"].to_pylist()) <= {"ok", "cancelled"}


def test_nor_does_one_whose_cancel_gets_no_answer(keywords, still, moving, opened):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
    assert run.detach() is False

    # Of the handle's two calls, and of the first of who waits.
    still.inject(Fault("batches.cancel", "error-before:503", times=3))
    with pytest.raises(bf.ProviderError, match="could not be cancelled now"):
        opened().cancel()
    with moving:
        opened().wait()

    asked = [call.path for call in still.log() if call.path.endswith("/cancel")]
    assert len(set(asked[2:4])) == 2


class Hanging(httpx2.HTTPTransport):
    """A connection on which no cancel is answered before its gate is open."""

    def __init__(self):
        super().__init__()
        self.arrived, self.gate = queue.SimpleQueue(), threading.Event()

    def handle_request(self, request):
        if request.url.path.endswith("/cancel"):
            self.arrived.put(request.url.path)
            assert self.gate.wait(60)
        return super().handle_request(request)


def test_who_leaves_does_not_wait_for_a_service_that_hangs_when_asked_to_cancel(
    keywords, still, moving, opened
):
    hanging = Hanging()
    with httpx2.Client(transport=hanging) as http, ThreadPoolExecutor(2) as pool:
        keywords["client"] = still.client(http_client=http)
        run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
        try:
            cancelling = pool.submit(opened().cancel)
            # Of the handle and of the run, for both live batches each.
            asked = [hanging.arrived.get(timeout=20) for _ in range(4)]
            assert len(set(asked)) == 2
            assert pool.submit(run.detach).result(20) is False
            assert not cancelling.done()
        finally:
            hanging.gate.set()
        cancelling.result()

        with moving:
            table = opened().result()
        assert table["status"].to_pylist() == ["cancelled"] * 4
        assert still.calls()["batches.create"] == 2


def test_many_batches_are_cancelled_a_few_at_a_time(keywords, still, opened):
    hanging = Hanging()
    keywords["limits"] = bf.Limits(max_requests=1)
    with httpx2.Client(transport=hanging) as http, ThreadPoolExecutor(1) as pool:
        bf.submit(pl.DataFrame(data(20)), "prompt", "id", **keywords).detach()
        keywords["client"] = still.client(http_client=http)
        try:
            cancelling = pool.submit(opened().cancel)
            first = [hanging.arrived.get(timeout=20) for _ in range(8)]
            assert hanging.arrived.empty()
        finally:
            hanging.gate.set()
        cancelling.result()

        others = [hanging.arrived.get(timeout=20) for _ in range(12)]
        assert len({*first, *others}) == 20
        assert still.calls()["batches.cancel"] == 20


def test_another_account_is_asked_to_cancel_nothing(keywords, still, checkpoint):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
    assert run.detach() is False

    with LocalServer() as other:
        with pytest.raises(bf.CheckpointMismatchError):
            bf.open_run(checkpoint, client=other.client()).cancel()
        assert other.calls() == {}


def test_a_handle_without_the_frame_cancels_what_nobody_works_on(keywords, still, moving, opened):
    bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords).detach()
    other = opened()

    other.cancel()
    with moving:
        table = other.result()

    assert table["status"].to_pylist() == ["cancelled"] * 4
    assert other.status().is_done
    assert still.calls()["batches.create"] == 2


def test_what_ends_the_work_is_raised_where_somebody_waits(keywords, still, clock):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
    still.inject(Fault("batches.retrieve", "redirect", times=None))

    for _ in range(2):
        with pytest.raises(bf.ProviderError, match="was refused: HTTP 307"):
            run.wait()
    with pytest.raises(bf.ProviderError, match="was refused: HTTP 307"):
        run.result()


def test_what_is_refused_at_once_is_raised_by_submit(keywords, still):
    with pytest.raises(bf.ParameterError, match=r"does not fit submit\(\).*submit\(df, "):
        bf.submit(pl.DataFrame(data()), "prompt", "id", "gpt-4o-mini", client=still.client())
    with pytest.raises(bf.ParameterError, match="it lacks model"):
        pl.DataFrame(data()).openai_batch.submit("prompt", "id")
    with pytest.raises(bf.InputError, match="checkpoint"):
        bf.submit(pl.DataFrame(data()), "prompt", "id", model="m", checkpiont="runs/a")
    with pytest.raises(bf.ColumnError, match="There is no column 'promt'"):
        bf.submit(pl.DataFrame(data()), "promt", "id", **keywords)
    assert still.calls() == {}


def test_a_run_whose_rows_are_all_there_needs_no_key(complete, checkpoint, monkeypatch):
    complete(pl.DataFrame(data()))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    opened = bf.open_run(checkpoint, progress=False)

    assert opened.status().is_done
    assert opened.result()["completion"].to_pylist() == ANSWERS


def test_damaged_results_are_made_anew_where_somebody_waits_for_the_run(
    complete, checkpoint, calls, monkeypatch
):
    complete(pl.DataFrame(data()))
    before, asked = bf.results(checkpoint), calls()
    (checkpoint / "results" / "00000.parquet").write_bytes(b"damaged")
    with pytest.raises(bf.CheckpointError, match="cannot be read"):
        bf.results(checkpoint)
    # The downloads are here: nobody needs to be asked.
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    bf.open_run(checkpoint, progress=False).wait()

    assert bf.results(checkpoint) == before
    assert calls() == asked


def test_damaged_results_without_downloads_are_fetched_again_where_somebody_waits(
    complete, checkpoint, calls, client, monkeypatch
):
    complete(pl.DataFrame(data()))
    before = bf.results(checkpoint)
    (checkpoint / "results" / "00000.parquet").unlink()
    (checkpoint / "raw" / "00000-output.jsonl.zst").write_bytes(b"damaged")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(bf.ApiKeyError):
        bf.open_run(checkpoint, progress=False).wait()

    run = bf.open_run(checkpoint, client=client, poll_interval=0.01, progress=False)

    assert run.result() == before
    assert calls()["files.content"] == 2
    assert calls()["batches.create"] == 1


def test_a_key_of_another_account_sends_nothing(keywords, still, checkpoint):
    bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords).detach()
    before = still.calls()

    opened = bf.open_run(checkpoint, client=still.client(project="another"), progress=False)

    assert opened.status().rows == {"in progress": 4, "waiting": 6}
    with pytest.raises(bf.CheckpointMismatchError, match="project: null there"):
        opened.wait()
    assert still.calls() == before


def test_handles_are_found_by_their_directory(
    keywords, still, moving, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    assert bf.runs() == []
    frame = pl.DataFrame(data())
    del keywords["checkpoint"]
    with moving:
        first = bf.submit(frame, "prompt", "id", **keywords).wait()
        second = bf.submit(frame, "prompt", "id", **keywords | {"model": "gpt-4o"}).wait()
    (tmp_path / ".batchframe" / "no checkpoint").mkdir()
    broken = tmp_path / ".batchframe" / "broken"
    broken.mkdir()
    (broken / "spec.json").write_text("{")

    found = bf.runs()

    assert [run.path for run in found] == [second.path, first.path]
    assert [run.status().model for run in found] == ["gpt-4o", "gpt-4o-mini"]
    assert "broken is left out" in caplog.text
    with pytest.raises(bf.CheckpointError, match="cannot be read as a checkpoint"):
        bf.open_run(tmp_path / "nothing")


def test_a_run_shows_itself(keywords, clock, tmp_path):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)

    assert "in progress" in repr(run)
    assert "in progress" in run._repr_html_()
    page = run.report(tmp_path / "report.html")

    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    run.detach()


def test_an_event_loop_goes_on_while_a_call_waits(keywords, moving):
    ticks = []

    async def tick():
        while True:
            ticks.append(1)
            await asyncio.sleep(0)

    async def both():
        ticking = asyncio.ensure_future(tick())
        out = await bf.acomplete(pd.DataFrame(data()), "prompt", "id", **keywords)
        ticking.cancel()
        return out

    with moving:
        out = asyncio.run(both())

    assert list(out["completion"]) == ANSWERS
    assert len(ticks) > 10


def test_a_cancelled_task_sends_nothing_more_and_the_same_call_resumes(keywords, still, moving):
    frame = pd.DataFrame(data())

    async def give_up():
        task = asyncio.ensure_future(frame.openai_batch.acomplete("prompt", "id", **keywords))
        while still.calls().get("batches.create", 0) < 2:  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())

    assert still.calls()["batches.create"] == 2
    with moving:
        out = bf.complete(frame, "prompt", "id", **keywords)
    assert list(out["completion"]) == ANSWERS
    assert set(still.executions().values()) == {1}


def test_a_run_is_cancelled_for_all_who_share_its_checkpoint(keywords, still, moving):
    frame = pl.DataFrame(data())
    runs = [bf.submit(frame, "prompt", "id", **keywords) for _ in range(2)]

    runs[0].cancel()
    with moving:
        outs = [run.result() for run in runs]

    assert still.calls()["batches.create"] == 2
    for out in outs:
        assert out["completion_status"].to_list() == ["cancelled"] * 10


def test_a_call_whose_run_is_cancelled_elsewhere_says_so(keywords, still, moving, opened):
    def cancel_it():
        while still.calls().get("batches.create", 0) < 2:
            pass
        run = opened()
        while run.status().batches != {"waiting": 3, "validating": 2}:
            pass
        run.cancel()
        moving.__enter__()

    with ThreadPoolExecutor(1) as pool:
        cancelling = pool.submit(cancel_it)
        out = bf.complete(pl.DataFrame(data()), "prompt", "id", **keywords)
        cancelling.result()
    moving.__exit__()

    assert out["completion_status"].to_list() == ["cancelled"] * 10
    assert still.calls()["batches.create"] == 2


def test_work_that_fails_while_it_is_submitted_is_no_run(keywords, still):
    still.inject(Fault("files.create", "error-before:400", times=None))

    with pytest.raises(bf.ProviderError, match="HTTP 400"):
        bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)


def test_a_run_may_be_looked_at_by_several_threads(keywords, moving, opened):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
    other = opened()
    with moving, ThreadPoolExecutor(3) as pool:
        looks = [pool.submit(other.status) for _ in range(60)]
        run.wait()
        assert {look.result().n_rows for look in looks} == {10}


def test_who_waits_for_a_run_that_is_detached_is_told(keywords):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)

    async def detached():
        waiting = asyncio.ensure_future(run.wait_async())
        await asyncio.sleep(0)
        await asyncio.to_thread(run.detach)
        await waiting

    with pytest.raises(bf.RunTimeoutError, match="detached while this waited"):
        asyncio.run(detached())


def test_a_limit_of_cost_holds_for_who_opens_the_run(checkpoint, clock, moving):
    def dear(body):
        choice = {"index": 0, "finish_reason": "length", "message": {"content": "x"}}
        usage = {"prompt_tokens": 10, "completion_tokens": 1_000, "total_tokens": 1_010}
        return 200, {"model": body["model"], "choices": [choice], "usage": usage}

    # At most a little more than 0.0003 dollars a row (1,000 x 0.30 a million): three have room.
    keywords = {"limits": bf.Limits(max_requests=1), "poll_interval": 0.01, "progress": False}
    with LocalServer(CallableModel(dear), clock=clock, stage_seconds=600) as server:
        client = server.client()
        run = bf.submit(
            pl.DataFrame(data()),
            "prompt",
            "id",
            model="gpt-4o-mini",
            client=client,
            checkpoint=checkpoint,
            max_completion_tokens=1_000,
            max_cost_usd=np.float64(0.001),
            **keywords,
        )
        with moving:
            with pytest.raises(bf.BudgetExceededError):
                run.wait()
            assert server.billed().requests == 3

            with pytest.raises(bf.BudgetExceededError):
                bf.open_run(checkpoint, client=client, **keywords).wait()
            assert server.billed().requests == 3

            bf.open_run(checkpoint, client=client, max_cost_usd=1, **keywords).wait()
            assert server.billed().requests == 10


def test_a_limit_of_cost_that_cannot_be_read_leaves_the_run_to_others(opened, keywords, checkpoint):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
    assert run.detach() is False
    (checkpoint / "max_cost_usd").write_text("a little")

    with pytest.raises(bf.CheckpointCorruptError, match="max_cost_usd cannot be read"):
        opened().wait()

    assert not Checkpoint.read(checkpoint, Storage(), SystemClock()).is_at_work()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(keywords, moving):
    run = bf.submit(pl.DataFrame(data()), "prompt", "id", **keywords)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside other threads
        child = os.fork()
    if child == 0:
        try:
            run.wait()
        except bf.CheckpointBusyError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    is_told = bool(select.select([reader], [], [], 30)[0])
    told = os.read(reader, 1000) if is_told else b""
    os.close(reader)
    if not is_told:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert f"is in use by process {os.getpid()}".encode() in told
    with moving:
        assert run.result()["completion"].to_list() == ANSWERS
