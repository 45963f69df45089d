import os

import httpx2
import openai
import pytest

from batchframe.core.dialects import OPENAI
from batchframe.emulator.records import Refusal
from batchframe.emulator.requests import check_upload


def test_an_upload_comes_back_byte_by_byte(bench):
    file = bench.upload(bench.lines(3))

    assert bench.content(file.id) == bench.lines(3)
    assert file.bytes == len(bench.lines(3))
    assert (file.object, file.purpose, file.filename) == ("file", "batch", "rows.jsonl")
    assert file.status == "processed"
    assert file.id.startswith("file-")


def test_a_large_upload_comes_back_byte_by_byte(bench):
    content = bench.line("a", "x" * 5_000_000)

    assert bench.content(bench.upload(content).id) == content


def test_content_has_a_length_and_can_be_asked_for_in_ranges(bench):
    file = bench.upload(bench.lines(3))
    whole = bench.raw("GET", f"/files/{file.id}/content")
    part = bench.raw("GET", f"/files/{file.id}/content", headers={"range": "bytes=5-9"})

    assert whole.headers["content-length"] == str(file.bytes)
    assert whole.headers["content-type"] == "application/octet-stream"
    assert (part.status_code, part.content) == (206, bench.lines(3)[5:10])


@pytest.mark.parametrize(
    ("name", "content"),
    [("rows.json", b'{"a": 1}\n'), ("rows.jsonl", b""), ("rows.jsonl", b"not json\n")],
    ids=["not .jsonl", "empty", "not JSON"],
)
def test_what_cannot_be_a_batch_input_is_refused_at_once(bench, refused, name, content):
    assert refused(bench.upload, content, name) == (400, None, "file")
    assert bench.client.files.list().data == []


def test_an_input_above_the_size_limit_is_refused_at_once(serve, refused):
    bench = serve(max_file_bytes=len(bench_line := b'{"a": 1}\n') - 1)

    assert refused(bench.upload, bench_line) == (400, None, "file")


@pytest.mark.parametrize(("purpose", "limit"), [("batch", 209_715_200), ("vision", 536_870_912)])
def test_the_sizes_of_files_are_those_of_the_service(tmp_path, purpose, limit):
    content = tmp_path / "a.jsonl"
    content.write_bytes(b'{"a": 1}\n')
    os.truncate(content, limit)  # the rest are holes: nothing is written
    check_upload(content, "a.jsonl", purpose, OPENAI.max_bytes)
    os.truncate(content, limit + 1)

    with pytest.raises(Refusal, match="File is too large"):
        check_upload(content, "a.jsonl", purpose, OPENAI.max_bytes)


def test_a_file_with_some_lines_of_json_is_accepted_and_its_batch_fails(bench):
    batch = bench.after(bench.submit(b"not json\n" + bench.line("a")), 10)

    assert (batch.status, batch.errors.data[0].line) == ("failed", 1)


def test_a_field_of_the_form_that_nobody_knows_is_refused(bench):
    files = {"file": ("a.jsonl", bench.line("a"))}
    reply = bench.raw("POST", "/files", files=files, data={"purpose": "batch", "colour": "red"})

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "colour")


def test_an_unknown_purpose_is_refused(bench, refused):
    assert refused(bench.upload, b"text", purpose="fun") == (400, None, "purpose")


def test_an_upload_without_a_file_is_refused(bench):
    reply = bench.raw("POST", "/files", data={"purpose": "batch"})

    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "file"


def test_a_deleted_file_is_gone_also_from_the_disk(serve, tmp_path):
    bench = serve(directory=tmp_path)
    file = bench.upload(bench.line("a", "a secret"))
    assert bench.client.files.delete(file.id).deleted

    with pytest.raises(openai.NotFoundError):
        bench.client.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        bench.content(file.id)
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"a secret" in content for content in kept)


def test_files_are_listed_newest_first_in_pages(bench):
    ids = [bench.upload(bench.line("a")).id for _ in range(5)]
    ids.reverse()

    page = bench.raw("GET", "/files?limit=2").json()
    assert [file["id"] for file in page["data"]] == ids[:2]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[0], ids[1], True)
    last = bench.raw("GET", f"/files?limit=2&after={ids[2]}").json()
    assert [file["id"] for file in last["data"]] == ids[3:]
    assert not last["has_more"]
    assert [file.id for file in bench.client.files.list(limit=2)] == ids
    assert [file.id for file in bench.client.files.list(order="asc")] == ids[::-1]


def test_files_are_listed_by_purpose(bench):
    bench.upload(bench.line("a"))
    other = bench.upload(b"text", "a.txt", purpose="user_data")

    assert [file.id for file in bench.client.files.list(purpose="user_data")] == [other.id]


@pytest.mark.parametrize("limit", ["0", "10001", "many"])
def test_a_limit_out_of_bounds_is_refused(bench, limit):
    reply = bench.raw("GET", f"/files?limit={limit}")

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "limit")


def test_an_input_expires_after_30_days_or_as_asked(bench):
    default = bench.upload(bench.line("a"))
    asked = bench.upload(bench.line("a"), expires_after={"anchor": "created_at", "seconds": 3600})
    assert default.expires_at - default.created_at == 30 * 86_400
    assert asked.expires_at - asked.created_at == 3600

    bench.clock.advance(3600)
    assert [file.id for file in bench.client.files.list()] == [default.id]


def test_an_expiry_out_of_bounds_is_refused(bench, refused):
    expiry = {"anchor": "created_at", "seconds": 3599}
    error = refused(bench.upload, bench.line("a"), expires_after=expiry)

    assert error == (400, "integer_out_of_range", "expires_after.seconds")


def test_a_call_without_a_key_is_refused(bench):
    for headers in ({}, {"authorization": "Bearer"}, {"authorization": "Basic eDp5"}):
        reply = httpx2.get(bench.server.base_url + "/files", headers=headers)

        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"
    assert bench.server.calls() == {}


def test_the_key_is_nowhere_on_the_disk(serve, tmp_path):
    bench = serve(directory=tmp_path)
    bench.raw("GET", "/files", headers={"authorization": "Bearer sk-very-secret"})

    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-very-secret" not in path.read_bytes()


def test_a_foreign_host_is_refused(bench):
    reply = bench.raw("GET", "/files", headers={"host": "example.com"})

    assert reply.status_code == 421


def test_replies_and_refusals_carry_a_request_id_and_a_date(bench):
    for path in ("/files", "/files/file-none", "/nowhere"):
        reply = bench.raw("GET", path)

        assert reply.headers["x-request-id"].startswith("req_")
        assert reply.headers["date"]


def test_an_unknown_url_is_answered_in_the_envelope(bench):
    reply = bench.raw("GET", "/nowhere")

    assert reply.status_code == 404
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}


def test_the_server_listens_on_the_loopback_interface_only(bench):
    assert bench.server.base_url.startswith("http://127.0.0.1:")
    assert bench.server._socket.getsockname()[0] == "127.0.0.1"
