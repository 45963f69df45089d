import json
import threading

from batchframe.emulator import CallableModel, JumpClock, LocalServer
from batchframe.emulator.work import Work

HOUR = 3600


def test_a_server_on_the_same_directory_goes_on_where_the_last_one_was(serve, tmp_path, clock):
    with LocalServer(directory=tmp_path, clock=clock, stage_seconds=10) as server:
        client = server.client(max_retries=0)
        file = client.files.create(file=("a.jsonl", serve().lines(3)), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        clock.advance(10)
        assert client.batches.retrieve(batch.id).status == "in_progress"

    bench = serve(directory=tmp_path)
    assert bench.batch(batch).status == "in_progress"
    done = bench.after(batch, 20)
    assert len(bench.rows(done.output_file_id)) == 3
    assert bench.server.executions() == {f"row-{i}": 1 for i in range(3)}
    assert bench.server.calls()["batches.create"] == 1


def test_the_bill_survives_a_restart(serve, tmp_path, clock):
    with LocalServer(directory=tmp_path, clock=clock) as server:
        client = server.client(max_retries=0)
        file = client.files.create(file=("a.jsonl", serve().lines(3)), purpose="batch")
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        clock.advance(HOUR)
        billed, executions = server.billed(), server.executions()
    assert billed.requests == 3

    with LocalServer(directory=tmp_path, clock=clock) as server:
        assert server.billed() == billed
        assert server.executions() == executions


def _answer(body):
    return 200, {"usage": {"prompt_tokens": 5, "completion_tokens": 1}}


def test_rows_executed_before_a_kill_are_not_executed_again(tmp_path, bench):
    (tmp_path / "batch_1.input").write_bytes(bench.lines(4))
    killed = Work(tmp_path, "batch_1", 4)
    requests = killed.read(2)
    killed.append(requests, [_answer(r.body) for r in requests])
    killed.close()
    with (tmp_path / "batch_1.results").open("ab") as results:
        results.write(b'{"id": "half a li')

    work = Work(tmp_path, "batch_1", 4)
    assert (work.done, work.usage.input_tokens) == (2, 10)
    assert [request.custom_id for request in work.read(4)] == ["row-2", "row-3"]
    work.close()


def test_rows_answered_in_any_order_are_known_after_a_kill(tmp_path, bench):
    (tmp_path / "batch_1.input").write_bytes(bench.lines(5))
    killed = Work(tmp_path, "batch_1", 5)
    requests = killed.read(4)
    for row in (3, 1):
        status = 500 if row == 1 else 200
        killed.append([requests[row]], [(status, {"usage": {"prompt_tokens": 5}, "of": row})])
    killed.close()

    work = Work(tmp_path, "batch_1", 5)
    assert (work.done, work.failed, work.usage.input_tokens) == (2, 1, 5)
    assert list(work.billed()) == ["row-3"]
    again = work.read(5)
    assert [request.custom_id for request in again] == ["row-0", "row-2", "row-4"]
    work.append(again[1:2], [(200, {"of": 2})])
    work.finish(tmp_path / "output", tmp_path / "error", cancelled=False)
    work.close()

    output, error = (
        {row["custom_id"]: row for row in map(json.loads, path.read_bytes().splitlines())}
        for path in (tmp_path / "output", tmp_path / "error")
    )
    assert {k: v["response"]["body"]["of"] for k, v in output.items()} == {"row-3": 3, "row-2": 2}
    assert error.keys() == {"row-0", "row-1", "row-4"}
    assert error["row-1"]["response"]["status_code"] == 500
    assert error["row-4"]["error"]["code"] == "batch_expired"
    assert len({row["id"] for row in [*output.values(), *error.values()]}) == 5


def test_a_row_under_way_when_the_batch_ends_is_left_over_and_not_lost(tmp_path, bench):
    (tmp_path / "batch_1.input").write_bytes(bench.lines(3))
    work = Work(tmp_path, "batch_1", 3)
    work.read(2)
    work.finish(tmp_path / "output", tmp_path / "error", cancelled=True)
    work.close()

    left = [json.loads(line) for line in (tmp_path / "error").read_bytes().splitlines()]
    assert [row["custom_id"] for row in left] == ["row-0", "row-1", "row-2"]


class _Gate:
    """A slow model: each row waits until it is let through."""

    def __init__(self):
        self.let_through = threading.Semaphore(0)
        self.answered = threading.Semaphore(0)

    def __call__(self, body):
        self.let_through.acquire()
        self.answered.release()
        return _answer(body)


def _eventually(look):
    """Wait for what another thread does, by looking; each look is a round trip."""
    while not (seen := look()):
        pass
    return seen


def test_the_progress_of_a_slow_model_is_seen_while_it_goes(serve):
    gate = _Gate()
    bench = serve(CallableModel(gate, instant=False))
    batch = bench.submit(bench.lines(4))
    bench.clock.advance(10)
    gate.let_through.release(2)
    running = _eventually(
        lambda: b if (b := bench.batch(batch)).request_counts.completed == 2 else None
    )
    assert running.status == "in_progress"

    gate.let_through.release(2)
    _eventually(lambda: bench.batch(batch).request_counts.completed == 4)
    assert bench.after(batch, 20).status == "completed"
    assert bench.server.billed().requests == 4


def test_a_slow_model_goes_on_after_a_restart(bench, tmp_path):
    gate, clock = _Gate(), JumpClock()
    model = CallableModel(gate, instant=False)
    with LocalServer(model, directory=tmp_path, clock=clock, stage_seconds=10) as server:
        client = server.client(max_retries=0)
        file = client.files.create(file=("a.jsonl", bench.lines(4)), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        clock.advance(10)
        gate.let_through.release(2)
        _eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed == 2)
        gate.let_through.release(2)  # the server lets rows under way end before it stops

    with LocalServer(model, directory=tmp_path, clock=clock, stage_seconds=10) as server:
        gate.let_through.release(4)
        client = server.client(max_retries=0)
        _eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed == 4)
        assert server.executions() == {f"row-{i}": 1 for i in range(4)}
    answered = 0
    while gate.answered.acquire(blocking=False):
        answered += 1
    assert answered == 4


def test_what_a_killed_server_left_half_done_is_swept_away(serve, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file-1.part").write_bytes(b"half an upload")
    serve(directory=tmp_path)

    assert list((tmp_path / "files").iterdir()) == []
