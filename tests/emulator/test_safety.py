"""Who is let in, how much they may send, and what is never kept."""

import socket

import httpx2
import openai
import pytest

from batchframe.emulator import LocalServer

MEBIBYTE = 1 << 20


def _status(server, host=None, key="x"):
    headers = {"authorization": f"Bearer {key}"} | ({"host": host} if host else {})
    return httpx2.get(server.base_url + "/files", headers=headers).status_code


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:80"])
def test_the_names_of_this_machine_are_answered(bench, host):
    assert _status(bench.server, host) == 200


@pytest.mark.parametrize(
    "host", ["example.com", "127.0.0.1.example.com", "localhost.", "[::1", "a:b:c", "localhost:x"]
)
def test_a_foreign_host_is_refused(bench, host):
    assert _status(bench.server, host) == 421
    assert bench.server.calls() == {}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])  # noqa: S104 - that is tested
def test_a_server_that_others_reach_needs_a_token(host):
    with pytest.raises(ValueError, match="give a token"):
        LocalServer(host=host)


@pytest.mark.parametrize("token", ["", "two words", "naïve"])
def test_a_token_that_no_header_can_carry_is_refused(token):
    with pytest.raises(ValueError, match="token"):
        LocalServer(token=token)


def test_with_a_token_every_call_needs_exactly_it(serve):
    bench = serve(token="sesame", host="127.0.0.1")

    assert bench.client.files.list().data == []
    for key in ("sesam", "sesame2", "Sesame", "sésame", "sesame sesame"):
        headers = {"authorization": f"Bearer {key}".encode()}
        reply = httpx2.get(bench.server.base_url + "/files", headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        bench.server.client(api_key="other", max_retries=0).files.list()


def test_on_all_addresses_any_host_may_be_named_with_the_token(serve):
    server = serve(host="0.0.0.0", token="sesame").server  # noqa: S104 - that is tested

    assert server.base_url.startswith("http://127.0.0.1:")
    assert _status(server, "box.example.com", "sesame") == 200
    assert _status(server, "box.example.com", "other") == 401


def test_an_ipv6_server_is_reached_by_its_address(serve):
    bench = serve(host="::1")

    assert bench.server.base_url.startswith("http://[::1]:")
    assert bench.client.files.list().data == []


@pytest.mark.parametrize("path", ["/batches", "/uploads", "/uploads/upload_none/complete"])
def test_a_json_body_above_a_mebibyte_is_refused(bench, path):
    for content in (b" " * (MEBIBYTE + 1), iter([b" " * MEBIBYTE, b" "])):  # announced, or not
        reply = bench.raw("POST", path, content=content)

        assert reply.status_code == 413
        assert reply.json()["error"]["message"] == "Maximum content size limit (1048576) exceeded."
    assert bench.raw("POST", path, content=b" " * MEBIBYTE).status_code == 400


def test_a_form_above_its_size_is_refused_and_nothing_is_kept(serve, tmp_path):
    bench = serve(directory=tmp_path)
    upload = bench.client.uploads.create(
        bytes=1, filename="a", purpose="user_data", mime_type="text/plain"
    )
    large = bytes(65 * MEBIBYTE)

    path = f"/uploads/{upload.id}/parts"
    reply = bench.raw("POST", path, files={"data": ("a", large)})
    assert reply.status_code == 413
    request = httpx2.Request("POST", "http://x", files={"data": ("a", large)})
    unannounced = iter([request.read()])
    headers = {"content-type": request.headers["content-type"]}
    assert bench.raw("POST", path, content=unannounced, headers=headers).status_code == 413
    assert list((tmp_path / "parts").iterdir()) == []


def test_a_client_that_goes_away_in_the_middle_of_a_body_leaves_nothing(serve, tmp_path, capfd):
    bench = serve(directory=tmp_path)
    head = (
        b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer x\r\n"
        b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 9999\r\n\r\n"
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhalf'
    )
    with socket.create_connection(bench.server._socket.getsockname()) as connection:
        connection.sendall(head)
    bench.raw("GET", "/batches")  # comes in after it
    bench.server.stop()  # waits for the calls that are under way

    assert {call.path: call.status for call in bench.server.log()}["/v1/files"] == 400
    assert list((tmp_path / "files").iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=x", "application/json", "\xff"],
)
def test_a_form_that_cannot_be_read_is_refused(bench, content_type):
    headers = {"content-type": content_type.encode("latin-1")}
    reply = bench.raw("POST", "/files", content=b"--y\r\n{", headers=headers)

    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"NaN",
        b'{"metadata": {"a": "\\ud800"}}',
        b"[" * 100_000,
        b'{"input_file_id": 1e999}',
        b"\xff",
    ],
    ids=["empty", "list", "NaN", "surrogate", "deep", "huge", "not UTF-8"],
)
def test_a_body_that_is_no_json_object_is_refused(bench, body):
    assert bench.raw("POST", "/batches", content=body).status_code == 400


@pytest.mark.parametrize("seconds", [3600.5, "1_0000", " 3600", "٣٦٠٠", True, None, 10**30, [3600]])
def test_seconds_that_are_no_whole_number_in_bounds_are_refused(bench, seconds):
    order = {
        "input_file_id": "file-x",
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
        "output_expires_after": {"anchor": "created_at", "seconds": seconds},
    }
    reply = bench.raw("POST", "/batches", json=order)

    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "output_expires_after.seconds"


def test_every_error_is_in_the_envelope(bench):
    file = bench.upload(bench.lines(1))
    content = f"/files/{file.id}/content"
    replies = [
        bench.raw("GET", content, headers={"range": "bytes=99999-"}),
        bench.raw("GET", content, headers={"range": "lines=1"}),
        bench.raw("PATCH", "/files"),
        bench.raw("GET", "/chat/completions"),
    ]

    assert [reply.status_code for reply in replies] == [416, 400, 405, 404]
    for reply in replies:
        assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
        assert reply.headers["x-request-id"].startswith("req_")
    assert set(replies[2].headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


def test_the_log_names_each_call_and_its_answer_but_no_key_and_no_body(serve, clock):
    bench = serve()
    reply = bench.raw("GET", "/files?limit=5", headers={"authorization": "Bearer sk-secret"})
    bench.clock.advance(7)
    bench.raw("POST", "/batches", content=b"a secret")
    httpx2.get(bench.server.base_url + "/files")

    listed, created, foreign = bench.server.log()
    assert (listed.method, listed.path, listed.status) == ("GET", "/v1/files", 200)
    assert listed.request_id == reply.headers["x-request-id"]
    assert (created.path, created.status, created.at) == ("/v1/batches", 400, listed.at + 7)
    assert foreign.status == 401
    assert "secret" not in repr(bench.server.log())


def test_the_log_is_bounded(bench):
    with httpx2.Client(trust_env=False, verify=False) as client:
        for _ in range(1_001):
            client.get(bench.server.base_url)

    assert len(bench.server.log()) == 1_000


def test_no_credential_is_anywhere_on_the_disk(serve, tmp_path):
    bench = serve(
        directory=tmp_path,
        token="sk-very-secret",
        webhook_url="http://127.0.0.1:9/",
        webhook_secret="whsec_dmVyeS1zZWNyZXQ=",
    )
    bench.after(bench.submit(bench.lines(2)), 3600)
    bench.client.files.list()

    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"batch.completed" in content or b"completed" in content for content in kept)
    for secret in (b"sk-very-secret", b"dmVyeS1zZWNyZXQ", b"very-secret", b"Bearer"):
        assert not any(secret in content for content in kept)


def test_a_server_on_all_addresses_of_ipv6_is_reached_by_one_of_them(serve):
    bench = serve(host="::", token="sesame")

    assert bench.server.base_url.startswith("http://[::1]:")
    assert bench.client.files.list().data == []


def test_a_connection_is_closed_whoever_the_client_says_that_it_is(serve):
    bench = serve(faults=["files.list=reset-before"])
    with pytest.raises(httpx2.RemoteProtocolError):
        bench.raw("GET", "/files", headers={"x-forwarded-for": "192.0.2.7"})
