import hashlib

import pytest

from batchframe.emulator import LocalServer

HOUR = 3600
MEBIBYTE = 1 << 20


@pytest.fixture
def begin(bench):
    """Begin an upload of so many bytes."""

    def create(n_bytes, **fields):
        fields = {"filename": "rows.jsonl", "purpose": "batch", **fields}
        return bench.client.uploads.create(bytes=n_bytes, mime_type="application/jsonl", **fields)

    return create


def _part(bench, upload, content):
    return bench.client.uploads.parts.create(upload.id, data=content)


def _complete(bench, upload, *parts, **kwargs):
    return bench.client.uploads.complete(upload.id, part_ids=[p.id for p in parts], **kwargs)


def test_parts_become_a_file_in_the_order_of_their_ids_and_a_batch_runs_it(bench, begin):
    content = bench.lines(4)
    upload = begin(len(content))
    assert (upload.status, upload.file) == ("pending", None)
    assert upload.expires_at == upload.created_at + HOUR
    second = _part(bench, upload, content[100:])
    first = _part(bench, upload, content[:100])
    assert (first.object, first.upload_id) == ("upload.part", upload.id)

    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    done = _complete(bench, upload, first, second, md5=md5)
    assert (done.id, done.status, done.bytes) == (upload.id, "completed", len(content))
    assert (done.file.bytes, done.file.purpose) == (len(content), "batch")
    assert done.file.expires_at == done.file.created_at + 30 * 24 * HOUR
    assert bench.content(done.file.id) == content
    batch = bench.after(bench.create(done.file.id), HOUR)
    assert batch.request_counts.completed == 4


def test_the_helper_of_the_sdk_uploads_a_file_of_three_parts(bench):
    content = bench.line("a", "x" * 150_000)
    done = bench.client.uploads.upload_file_chunked(
        file=content,
        filename="rows.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=60_000,
    )

    assert bench.server.calls()["uploads.parts.create"] == 3
    assert bench.content(done.file.id) == content


@pytest.mark.parametrize(
    ("order", "code", "param"),
    [
        ({"bytes": None}, "invalid_type", "bytes"),
        ({"bytes": True}, "invalid_type", "bytes"),
        ({"bytes": 0}, "integer_out_of_range", "bytes"),
        ({"bytes": 8 * 1024 * MEBIBYTE + 1}, "integer_out_of_range", "bytes"),
        ({"purpose": "fun"}, None, "purpose"),
        ({"filename": None}, "missing_required_parameter", "filename"),
        ({"mime_type": 7}, "invalid_type", "mime_type"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
        ({"expires_after": {"anchor": "now"}}, "invalid_value", "expires_after.anchor"),
    ],
)
def test_an_upload_that_cannot_be_meant_is_refused_at_once(bench, order, code, param):
    valid = {"filename": "a", "purpose": "user_data", "bytes": 1, "mime_type": "text/plain"}
    reply = bench.raw("POST", "/uploads", json=valid | order)

    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param)


def test_an_upload_of_eight_gibibytes_may_begin(begin):
    assert begin(8 * 1024 * MEBIBYTE).status == "pending"


def test_what_does_not_add_up_is_refused_and_can_be_completed_afterwards(bench, begin, refused):
    content = bench.lines(2)
    upload = begin(len(content))
    half = _part(bench, upload, content[:50])
    rest = _part(bench, upload, content[50:])
    other = _part(bench, begin(1), b"x")

    complete = bench.client.uploads.complete
    for part_ids in ([half.id], [half.id, half.id, rest.id], [half.id, other.id], ["none"], []):
        assert refused(complete, upload.id, part_ids=part_ids) == (400, None, "part_ids")
    ids = [half.id, rest.id]
    assert refused(complete, upload.id, part_ids=ids, md5="0" * 32) == (400, None, "md5")
    reply = bench.raw("POST", f"/uploads/{upload.id}/complete", json={"part_ids": "half"})
    assert reply.json()["error"]["code"] == "invalid_type"
    assert bench.client.files.list().data == []

    assert _complete(bench, upload, half, rest).status == "completed"


def test_a_part_cannot_be_used_twice(bench, begin, refused):
    upload = begin(6)
    part = _part(bench, upload, b"{}\n")

    complete = bench.client.uploads.complete
    assert refused(complete, upload.id, part_ids=[part.id] * 2) == (400, None, "part_ids")


def test_the_parts_of_a_batch_are_checked_like_a_file(serve, refused):
    bench = serve(max_file_bytes=100)
    for content, name in ((b"not json\n", "a.jsonl"), (b"{}\n", "a.txt"), (b"x" * 101, "a.jsonl")):
        upload = bench.client.uploads.create(
            bytes=len(content), filename=name, purpose="batch", mime_type="application/jsonl"
        )
        part = _part(bench, upload, content)

        answer = refused(bench.client.uploads.complete, upload.id, part_ids=[part.id])
        assert answer == (400, None, "file")
    assert bench.client.files.list().data == []


def test_an_upload_that_ended_takes_nothing_more(bench, begin, refused):
    uploads = bench.client.uploads
    completed = begin(3)
    _complete(bench, completed, _part(bench, completed, b"{}\n"))
    cancelled = begin(3)
    assert uploads.cancel(cancelled.id).status == "cancelled"
    assert uploads.cancel(cancelled.id).status == "cancelled"

    for upload in (completed, cancelled):
        error = (400, None, "upload_id")
        assert refused(uploads.parts.create, upload.id, data=b"x") == error
        assert refused(uploads.complete, upload.id, part_ids=[]) == error
    assert refused(uploads.cancel, completed.id) == (400, None, "upload_id")
    assert refused(uploads.cancel, "upload_none") == (404, None, "upload_id")


def test_an_upload_expires_after_an_hour(bench, begin, refused):
    upload = begin(3)
    part = _part(bench, upload, b"{}\n")
    bench.clock.advance(HOUR - 1)
    assert begin(1).status == "pending"
    bench.clock.advance(1)

    complete = bench.client.uploads.complete
    assert refused(complete, upload.id, part_ids=[part.id]) == (400, None, "upload_id")


def test_a_part_above_64_mebibytes_is_refused(bench, begin, refused):
    upload = begin(65 * MEBIBYTE)
    content = bytes(64 * MEBIBYTE + 1)

    assert refused(bench.client.uploads.parts.create, upload.id, data=content) == (
        400,
        None,
        "data",
    )
    assert _part(bench, upload, content[1:]).upload_id == upload.id


def test_the_parts_of_uploads_that_ended_are_gone_from_the_disk(serve, tmp_path, clock):
    bench = serve(directory=tmp_path)
    client = bench.client
    order = {"filename": "a.txt", "purpose": "user_data", "mime_type": "text/plain"}
    expired = client.uploads.create(bytes=9, **order)
    _part(bench, expired, b"a secret1")
    clock.advance(HOUR)
    cancelled, completed = (client.uploads.create(bytes=9, **order) for _ in range(2))
    _part(bench, cancelled, b"a secret2")
    client.uploads.cancel(cancelled.id)
    _complete(bench, completed, _part(bench, completed, b"a secret3"))

    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(b"a secret" in content for content in kept) == 1  # the file that came of one


def test_an_upload_goes_on_after_a_restart(bench, tmp_path, clock):
    content = bench.lines(2)
    with LocalServer(directory=tmp_path, clock=clock) as server:
        client = server.client(max_retries=0)
        upload = client.uploads.create(
            bytes=len(content), filename="a.jsonl", purpose="batch", mime_type="application/jsonl"
        )
        first = client.uploads.parts.create(upload.id, data=content[:50])
        (tmp_path / "parts" / "part_torn.part").write_bytes(b"half a part")  # as a kill leaves it

    with LocalServer(directory=tmp_path, clock=clock) as server:
        client = server.client(max_retries=0)
        rest = client.uploads.parts.create(upload.id, data=content[50:])
        done = client.uploads.complete(upload.id, part_ids=[first.id, rest.id])
        assert client.files.content(done.file.id).content == content
        assert list((tmp_path / "parts").iterdir()) == []
