import json

import openai
import pytest

HOUR = 3600


def test_a_batch_goes_through_its_statuses_in_order_with_their_stamps(bench):
    batch = bench.submit(bench.lines(3))
    start = batch.created_at
    assert batch.status == "validating"
    assert batch.expires_at == start + 24 * HOUR
    assert batch.request_counts.total == 0

    assert bench.after(batch, 10).status == "in_progress"
    assert bench.after(batch, 10).status == "finalizing"
    done = bench.after(batch, 10)
    assert done.status == "completed"
    stamps = (done.in_progress_at, done.finalizing_at, done.completed_at)
    assert stamps == (start + 10, start + 20, start + 30)
    assert (done.failed_at, done.expired_at, done.cancelling_at, done.cancelled_at) == (None,) * 4


def test_the_state_is_a_function_of_the_time_and_not_of_the_looks(bench):
    batch = bench.submit(bench.lines(3))
    done = bench.after(batch, 5 * HOUR)

    assert done.completed_at == batch.created_at + 30


def test_counts_usage_and_model_are_there_at_the_end(bench):
    batch = bench.submit(bench.lines(3))
    running = bench.after(batch, 10)
    assert running.request_counts.model_dump() == {"total": 3, "completed": 3, "failed": 0}
    assert (running.usage, running.model) == (None, None)
    done = bench.after(batch, 20)

    # Prompt: 3 for itself, 3 + 1 for its message, 2 for "prompt N". Answer: echo, :, prompt, N.
    assert done.usage.input_tokens == 3 * (3 + 4 + 2)
    assert done.usage.output_tokens == 3 * 4
    assert done.usage.total_tokens == 3 * 13
    assert done.model == "gpt-4o-mini"


def test_each_request_is_answered_once_under_its_custom_id(bench):
    done = bench.after(bench.submit(bench.lines(50)), HOUR)
    rows = bench.rows(done.output_file_id)
    texts = {
        row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"]
        for row in rows
    }

    assert texts == {f"row-{i}": f"echo: prompt {i}" for i in range(50)}
    assert len(rows) == 50
    assert len({row["id"] for row in rows}) == 50
    assert all(row["id"].startswith("batch_req_") and row["error"] is None for row in rows)
    assert all(row["response"]["status_code"] == 200 for row in rows)


def test_the_output_is_in_another_order_and_ends_with_a_newline(bench):
    done = bench.after(bench.submit(bench.lines(50)), HOUR)
    content = bench.content(done.output_file_id)
    order = [json.loads(line)["custom_id"] for line in content.splitlines()]

    assert order != [f"row-{i}" for i in range(50)]
    assert content.endswith(b"\n")
    file = bench.client.files.retrieve(done.output_file_id)
    assert (file.purpose, file.status, file.bytes) == ("batch_output", "processed", len(content))


def _fail_odd(body):
    if int(body["messages"][0]["content"].split()[1]) % 2:
        error = {"message": "no", "type": "server_error", "param": None, "code": None}
        return 500, {"error": error}
    return 200, {"usage": {"prompt_tokens": 7, "completion_tokens": 2}}


def test_rows_that_failed_are_in_the_error_file_and_are_not_billed(serve):
    bench = serve(_fail_odd)
    done = bench.after(bench.submit(bench.lines(5)), HOUR)
    failed = bench.rows(done.error_file_id)

    assert done.status == "completed"
    assert done.request_counts.model_dump() == {"total": 5, "completed": 3, "failed": 2}
    assert {row["custom_id"] for row in failed} == {"row-1", "row-3"}
    assert {row["response"]["status_code"] for row in failed} == {500}
    assert {row["error"] for row in failed} == {None}
    assert failed[0]["response"]["body"]["error"]["message"] == "no"
    assert bench.server.executions() == {"row-0": 1, "row-2": 1, "row-4": 1}
    assert bench.server.billed().requests == 3
    assert bench.server.billed().input_tokens == 21


def test_file_ids_are_null_when_there_is_nothing_in_the_file(serve):
    fine = serve()
    done = fine.after(fine.submit(fine.lines(1)), HOUR)
    assert done.output_file_id
    assert done.error_file_id is None

    broken = serve(lambda body: (500, {"error": {}}))
    done = broken.after(broken.submit(broken.lines(1)), HOUR)
    assert (done.status, done.output_file_id) == ("completed", None)
    assert done.error_file_id


def test_a_model_that_raises_fails_its_row_and_not_the_batch(serve):
    def stumble(body):
        raise ZeroDivisionError

    bench = serve(stumble)
    done = bench.after(bench.submit(bench.lines(1)), HOUR)

    assert done.status == "completed"
    assert bench.rows(done.error_file_id)[0]["response"]["status_code"] == 500


def test_a_cancelled_batch_keeps_what_was_executed(serve):
    bench = serve(row_seconds=100)
    batch = bench.submit(bench.lines(4))
    bench.clock.advance(10 + 250)
    cancelling = bench.client.batches.cancel(batch.id)
    assert cancelling.status == "cancelling"
    assert cancelling.cancelling_at == batch.created_at + 260

    done = bench.after(batch, 10)
    assert (done.status, done.cancelled_at) == ("cancelled", batch.created_at + 270)
    assert done.request_counts.model_dump() == {"total": 4, "completed": 2, "failed": 0}
    kept = {row["custom_id"] for row in bench.rows(done.output_file_id)}
    left = {row["custom_id"]: row for row in bench.rows(done.error_file_id)}
    assert kept == {"row-0", "row-1"}
    assert left.keys() == {"row-2", "row-3"}
    assert left["row-2"]["response"] is None
    assert left["row-2"]["error"]["code"] == "batch_cancelled"
    assert bench.server.executions() == {"row-0": 1, "row-1": 1}


def test_an_expired_batch_keeps_what_was_executed(serve):
    bench = serve(row_seconds=10 * HOUR)
    batch = bench.submit(bench.lines(4))
    assert bench.after(batch, 24 * HOUR - 1).status == "in_progress"
    assert bench.after(batch, 1).status == "finalizing"
    done = bench.after(batch, 10)

    assert (done.status, done.expired_at) == ("expired", batch.expires_at + 10)
    assert done.request_counts.model_dump() == {"total": 4, "completed": 2, "failed": 0}
    assert len(bench.rows(done.output_file_id)) == 2
    codes = [row["error"]["code"] for row in bench.rows(done.error_file_id)]
    assert codes == ["batch_expired"] * 2


def test_rows_are_executed_one_after_the_other_at_the_pace(serve):
    bench = serve(row_seconds=100)
    batch = bench.submit(bench.lines(3))
    seen = [bench.after(batch, seconds).request_counts.completed for seconds in (10, 100, 199, 1)]

    assert seen == [0, 1, 2, 3]


def test_the_last_row_is_executed_whatever_the_times_are_in_binary(serve):
    bench = serve(stage_seconds=0.05, row_seconds=0.001)
    file = bench.upload(bench.lines(100))
    batches = []
    for _ in range(20):
        bench.clock.advance(0.123)
        batches.append(bench.create(file.id))
    bench.clock.advance(HOUR)

    assert [bench.batch(batch).status for batch in batches] == ["completed"] * 20


def test_a_batch_cancelled_before_validation_has_no_files(bench):
    batch = bench.submit(bench.lines(2))
    bench.client.batches.cancel(batch.id)
    done = bench.after(batch, 10)

    assert (done.status, done.output_file_id, done.error_file_id) == ("cancelled", None, None)
    assert bench.server.billed().requests == 0


def test_cancelling_twice_is_fine_and_cancelling_the_past_is_a_conflict(bench, refused):
    batch, ended = bench.submit(bench.lines(1)), bench.submit(bench.lines(1))
    bench.client.batches.cancel(batch.id)
    assert bench.client.batches.cancel(batch.id).status == "cancelling"
    bench.clock.advance(HOUR)

    assert bench.client.batches.cancel(batch.id).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        bench.client.batches.cancel(ended.id)


def test_an_input_deleted_while_the_batch_runs_does_not_stop_it(bench):
    batch = bench.submit(bench.lines(2))
    assert bench.after(batch, 10).status == "in_progress"
    bench.client.files.delete(batch.input_file_id)

    assert bench.after(batch, 20).request_counts.completed == 2


def test_an_input_deleted_before_validation_fails_the_batch(bench):
    batch = bench.submit(bench.lines(2))
    bench.client.files.delete(batch.input_file_id)

    assert bench.after(batch, 10).status == "failed"


def test_batches_are_listed_newest_first_in_pages(bench):
    input_id = bench.upload(bench.lines(1)).id
    ids = [bench.create(input_id).id for _ in range(5)][::-1]
    page = bench.raw("GET", "/batches?limit=2").json()

    assert [batch["id"] for batch in page["data"]] == ids[:2]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[0], ids[1], True)
    assert [batch.id for batch in bench.client.batches.list(limit=2)] == ids
    assert bench.raw("GET", "/batches?limit=101").status_code == 400
    assert bench.raw("GET", "/batches?after=batch_none").status_code == 404


def test_an_unknown_batch_is_not_found(bench, refused):
    assert refused(bench.client.batches.retrieve, "batch_none") == (404, None, "batch_id")
    assert refused(bench.client.batches.cancel, "batch_none") == (404, None, "batch_id")


def test_output_files_are_deleted_when_they_expire(bench):
    expiry = {"anchor": "created_at", "seconds": HOUR}
    batch = bench.create(bench.upload(bench.lines(1)).id, output_expires_after=expiry)
    done = bench.after(batch, 30)
    assert bench.client.files.retrieve(done.output_file_id).expires_at == done.completed_at + HOUR
    bench.clock.advance(HOUR)

    with pytest.raises(openai.NotFoundError):
        bench.content(done.output_file_id)


def test_metadata_comes_back(bench):
    batch = bench.create(bench.upload(bench.lines(1)).id, metadata={"run": "a"})

    assert bench.batch(batch).metadata == {"run": "a"}


def test_calls_are_counted_by_operation(bench):
    done = bench.after(bench.submit(bench.lines(1)), HOUR)
    bench.content(done.output_file_id)
    bench.client.batches.list()

    assert bench.server.calls() == {
        "files.create": 1,
        "batches.create": 1,
        "batches.retrieve": 1,
        "files.content": 1,
        "batches.list": 1,
    }


def test_each_execution_of_a_custom_id_is_counted(bench):
    input_id = bench.upload(bench.lines(2)).id
    bench.create(input_id)
    bench.create(input_id)
    bench.clock.advance(HOUR)

    assert bench.server.executions() == {"row-0": 2, "row-1": 2}
    assert bench.server.billed().requests == 4
