"""The openai SDK, which checks every reply against its types, drives every operation."""

import hashlib
import json
from itertools import pairwise
from typing import get_args

import openai
import pytest

from batchframe.emulator import Fault
from batchframe.emulator.records import TERMINAL, Status

HOUR = 3600
ENDPOINT = "/v1/chat/completions"

#: The stamps of a batch, in the order in which it can get them.
_STAMPS = (
    *("created_at", "in_progress_at", "finalizing_at", "cancelling_at"),
    *("failed_at", "completed_at", "expired_at", "cancelled_at"),
)

#: The stamps of each status.
_STAMPED = {
    "validating": {"created_at"},
    "failed": {"created_at", "failed_at"},
    "in_progress": {"created_at", "in_progress_at"},
    "finalizing": {"created_at", "in_progress_at", "finalizing_at"},
    "completed": {"created_at", "in_progress_at", "finalizing_at", "completed_at"},
    "expired": {"created_at", "in_progress_at", "finalizing_at", "expired_at"},
    "cancelling": {"created_at", "in_progress_at", "cancelling_at"},
    "cancelled": {"created_at", "in_progress_at", "cancelling_at", "cancelled_at"},
}


def _strictly(bench):
    bench.client = bench.server.client(max_retries=0, _strict_response_validation=True)
    return bench.client


@pytest.fixture
def strict(bench):
    return _strictly(bench)


def _both(method, *args, **kwargs):
    """The reply as the SDK parses it, and as it came; `method` must be one that changes nothing."""
    raw = method.__self__.with_raw_response
    reply = getattr(raw, method.__name__)(*args, **kwargs)
    assert reply.headers["x-request-id"].startswith("req_")
    parsed = method(*args, **kwargs)
    assert reply.parse().model_dump() == parsed.model_dump()
    return parsed, json.loads(reply.text)


def test_strict_validation_would_notice_a_reply_that_does_not_fit(serve):
    bench = serve(faults=[Fault("batches.retrieve", "unknown-status:pondering")])
    batch = bench.submit(bench.lines(1))

    with pytest.raises(openai.APIResponseValidationError):
        _strictly(bench).batches.retrieve(batch.id)


def test_a_batch_is_read_in_every_status_with_its_stamps_in_order(in_all_states):
    bench, batches = in_all_states
    client = _strictly(bench)
    assert batches.keys() == set(get_args(Status))

    for status, batch in batches.items():
        parsed, raw = _both(client.batches.retrieve, batch.id)
        stamps = {name: raw[name] for name in _STAMPS if raw[name] is not None}
        assert (parsed.status, stamps.keys()) == (status, _STAMPED[status])
        assert all(a <= b for a, b in pairwise(stamps.values()))
        assert parsed.expires_at == parsed.created_at + 24 * HOUR

        has_results = status in TERMINAL - {"failed"}
        assert (parsed.output_file_id is not None) == has_results
        assert (parsed.error_file_id is not None) == has_results
        assert (parsed.usage is not None) == has_results
        assert (parsed.model == "gpt-4o-mini") == has_results
        assert (parsed.errors is not None) == (status == "failed")


def test_batches_are_listed_in_every_status_newest_first(in_all_states):
    bench, batches = in_all_states
    client = _strictly(bench)
    page, raw = _both(client.batches.list, limit=3)
    ids = [batch.id for batch in client.batches.list(limit=3)]  # all pages

    assert {batch.id: batch.status for batch in client.batches.list()} == {
        batch.id: status for status, batch in batches.items()
    }
    created = [client.batches.retrieve(id_).created_at for id_ in ids]
    assert created == sorted(created, reverse=True)
    assert [batch.id for batch in page.data] == ids[:3]
    assert (raw["first_id"], raw["last_id"], raw["has_more"]) == (ids[0], ids[2], True)
    last, raw = _both(client.batches.list, after=ids[-1])
    assert (last.data, raw["first_id"], raw["last_id"], raw["has_more"]) == ([], None, None, False)


def test_only_a_batch_that_runs_can_be_cancelled(in_all_states):
    bench, batches = in_all_states
    client = _strictly(bench)
    for status in ("completed", "failed", "expired"):
        with pytest.raises(openai.ConflictError, match=f"with status '{status}'"):
            client.batches.cancel(batches[status].id)
    for status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert client.batches.cancel(batches[status].id).status == "cancelling"
    assert client.batches.cancel(batches["cancelled"].id).status == "cancelled"

    bench.clock.advance(10)
    for status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert client.batches.retrieve(batches[status].id).status == "cancelled"


def test_a_batch_that_ended_never_changes_again(in_all_states):
    bench, batches = in_all_states
    client = _strictly(bench)
    ended = {status: client.batches.retrieve(batches[status].id) for status in TERMINAL}
    client.files.delete(ended["completed"].input_file_id)
    bench.clock.advance(40 * 24 * HOUR)

    for batch in ended.values():
        assert client.batches.retrieve(batch.id) == batch


@pytest.mark.parametrize("end", ["completed", "cancelled", "expired"])
def test_counts_never_decrease_and_results_are_there_only_at_the_end(serve, end):
    n_rows, hours = {"completed": (20, 0.1), "cancelled": (20, 0.1), "expired": (30, 1)}[end]
    bench = serve(row_seconds=hours * HOUR)
    client = _strictly(bench)
    batch = bench.submit(bench.lines(n_rows))
    done = []
    for step in range(60):
        bench.clock.advance(hours * HOUR / 2 + 1)
        if step == 11 and end == "cancelled":
            client.batches.cancel(batch.id)
        seen = client.batches.retrieve(batch.id)
        counts = seen.request_counts
        done.append((counts.total, counts.completed, counts.failed))
        assert counts.completed + counts.failed <= counts.total == n_rows
        assert (seen.output_file_id is None) == (seen.status != end)

    assert done == sorted(done)
    assert seen.status == end
    # Cancelled in step 12 of 181 s, expired after a day; both were validated for 10 s, and
    # (12 * 181 - 10) / 360 = 6.0, (86400 - 10) / 3600 = 23.9.
    n_done = {"completed": 20, "cancelled": 6, "expired": 23}[end]
    assert done[-1] == (n_rows, n_done, 0)
    assert len(bench.rows(seen.output_file_id)) == n_done


def test_a_batch_is_created_with_all_that_can_be_said(strict, bench):
    file = bench.upload(bench.lines(1))
    kwargs = {
        "input_file_id": file.id,
        "endpoint": ENDPOINT,
        "completion_window": "24h",
        "metadata": {"run": "7"},
        "output_expires_after": {"anchor": "created_at", "seconds": 7200},
    }
    reply = strict.batches.with_raw_response.create(**kwargs)
    assert (reply.parse().status, reply.parse().metadata) == ("validating", {"run": "7"})

    done = bench.after(strict.batches.create(**kwargs), HOUR)
    output = strict.files.retrieve(done.output_file_id)
    assert output.expires_at == done.completed_at + 7200
    bench.clock.advance(output.expires_at - bench.clock.now())
    with pytest.raises(openai.NotFoundError):
        strict.files.retrieve(done.output_file_id)


def test_a_batch_runs_on_when_its_input_is_deleted(strict, bench):
    batch = bench.after(bench.submit(bench.lines(3)), 10)
    assert strict.files.delete(batch.input_file_id).deleted

    assert bench.after(batch, HOUR).request_counts.completed == 3


def test_files_are_made_read_listed_and_deleted(strict, bench):
    expiry = {"anchor": "created_at", "seconds": 3600}
    content = bench.lines(2)
    reply = strict.files.with_raw_response.create(
        file=("a.jsonl", content), purpose="batch", expires_after=expiry
    )
    file = reply.parse()
    others = [
        strict.files.create(file=("a.txt", b"text"), purpose=purpose)
        for purpose in ("assistants", "fine-tune", "vision", "user_data")
    ]

    assert _both(strict.files.retrieve, file.id)[0] == file
    assert (file.expires_at, others[0].expires_at) == (file.created_at + 3600, None)
    listed, raw = _both(strict.files.list)
    assert [f.id for f in listed.data] == [f.id for f in (*others[::-1], file)]
    assert (raw["first_id"], raw["last_id"], raw["has_more"]) == (others[-1].id, file.id, False)
    assert [f.id for f in strict.files.list(purpose="batch", order="asc", limit=1)] == [file.id]
    deleted = strict.files.with_raw_response.delete(file.id)
    assert (deleted.parse().id, deleted.parse().deleted) == (file.id, True)
    with pytest.raises(openai.NotFoundError):
        strict.files.retrieve(file.id)


def test_content_comes_whole_in_ranges_and_streamed(strict, bench):
    content = bench.lines(100)
    file = bench.upload(content)

    assert strict.files.content(file.id).content == content
    raw = strict.files.with_raw_response.content(file.id)
    assert raw.headers["content-length"] == str(len(content))
    assert raw.headers["content-type"] == "application/octet-stream"
    part = strict.files.content(file.id, extra_headers={"range": f"bytes={len(content) - 5}-"})
    assert part.content == content[-5:]
    assert part.response.headers["content-range"].endswith(f"/{len(content)}")
    with strict.files.with_streaming_response.content(file.id) as stream:
        assert b"".join(stream.iter_bytes(100)) == content


def test_uploads_are_begun_filled_completed_and_cancelled(strict, bench):
    content = bench.lines(2)
    order = {
        "bytes": len(content),
        "filename": "a.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "batch",
        "expires_after": {"anchor": "created_at", "seconds": 3600},
    }
    upload = strict.uploads.with_raw_response.create(**order).parse()
    part = strict.uploads.parts.with_raw_response.create(upload.id, data=content).parse()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    done = strict.uploads.with_raw_response.complete(upload.id, part_ids=[part.id], md5=md5)
    assert done.parse().file == strict.files.retrieve(done.parse().file.id)
    assert done.parse().file.expires_at == done.parse().file.created_at + 3600

    upload = strict.uploads.create(**order)
    part = strict.uploads.parts.create(upload.id, data=content)
    assert (upload.status, part.upload_id) == ("pending", upload.id)
    assert strict.uploads.complete(upload.id, part_ids=[part.id]).status == "completed"
    upload = strict.uploads.create(**order)
    assert strict.uploads.with_raw_response.cancel(upload.id).parse().status == "cancelled"
    assert _both(strict.uploads.cancel, upload.id)[0].status == "cancelled"


def test_errors_are_read_by_their_class_and_fields(strict, bench):
    for call, kind, param in [
        (lambda: strict.batches.retrieve("batch_none"), openai.NotFoundError, "batch_id"),
        (lambda: strict.files.content("file-none"), openai.NotFoundError, "id"),
        (lambda: strict.uploads.cancel("upload_none"), openai.NotFoundError, "upload_id"),
        (lambda: bench.create("file-x", endpoint="/v1/x"), openai.BadRequestError, "endpoint"),
    ]:
        with pytest.raises(kind) as caught:
            call()

        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"
        assert caught.value.request_id.startswith("req_")
