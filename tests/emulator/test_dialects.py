"""The server speaks like each service, by what the service's own documentation shows."""

import json
import re
import socket

import httpx2
import openai
import pytest

from batchframe.core.dialects import DIALECTS, Dialect
from batchframe.emulator import Fault, LocalServer

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"

#: What each client's address ends in, and how ids of files and batches look.
SHAPES = {
    "openai": ("/v1", r"file-[0-9a-f]{24}", r"batch_[0-9a-f]{32}"),
    "azure": ("/openai", rf"file-{UUID}", rf"batch_{UUID}"),
    "azure-v1": ("/openai/v1", rf"file-{UUID}", rf"batch_{UUID}"),
    "groq": ("/openai/v1", r"file_01[0-9a-f]{24}", r"batch_01[0-9a-f]{32}"),
    "dashscope": ("/compatible-mode/v1", r"file-batch-[0-9a-f]{24}", rf"batch_{UUID}"),
    "doubleword": ("/v1", UUID, UUID),
    "parasail": ("/v1", r"file-[0-9a-f]{24}", r"batch_[0-9a-f]{32}"),
    "deepinfra": ("/v1/openai", r"file_[0-9a-f]{24}", r"batch_[0-9a-f]{32}"),
    "moonshot": ("/v1", r"file-[0-9a-f]{24}", r"batch_[0-9a-f]{32}"),
    "siliconflow": ("/v1", r"file-[0-9a-f]{24}", r"batch_[0-9a-f]{32}"),
    "generic": ("/v1", UUID, UUID),
}
CHAT = "/v1/chat/completions"


@pytest.fixture
def speak(serve):
    """A server in a dialect, and a batch of one request in it, as it is after so many seconds."""

    def start(name, **kwargs):
        bench = serve(dialect=name, **kwargs)
        bench.url = "/chat/completions" if name == "azure" else CHAT
        return bench

    return start


def uploaded(bench, **fields):
    answer = bench.client.files.with_raw_response.create(
        file=("rows.jsonl", bench.line("row-1", url=bench.url, **fields)), purpose="batch"
    )
    reply = json.loads(answer.content)
    return answer.status_code, reply.get("data") or reply


def created(bench, file_id, **kwargs):
    answer = bench.client.batches.with_raw_response.create(
        **{
            "input_file_id": file_id,
            "endpoint": bench.url,
            "completion_window": "24h",
            **kwargs,
        }
    )
    return answer.status_code, json.loads(answer.content)


def seen(bench, batch_id):
    return json.loads(bench.client.batches.with_raw_response.retrieve(batch_id).content)


def after(bench, batch, seconds):
    bench.clock.advance(seconds)
    return seen(bench, batch["id"])


@pytest.mark.parametrize("name", DIALECTS)
def test_addresses_and_ids_are_those_of_the_service(speak, name):
    bench = speak(name)
    base, file_id, batch_id = SHAPES[name]
    assert re.fullmatch(rf"http://127\.0\.0\.1:\d+{base}", bench.server.base_url)
    _, file = uploaded(bench)
    _, batch = created(bench, file["id"])
    assert re.fullmatch(file_id, file["id"])
    assert re.fullmatch(batch_id, batch["id"])
    assert batch["input_file_id"] == file["id"]
    listed = json.loads(bench.client.batches.with_raw_response.list().content)["data"]
    assert [one["id"] for one in listed] == [batch["id"]]
    assert DIALECTS[name].is_id(file["id"])
    assert DIALECTS[name].is_id(batch["id"])


@pytest.mark.parametrize("name", sorted(DIALECTS.keys() - {"siliconflow"}))
def test_files_are_found_read_and_deleted_by_their_ids(speak, name):
    bench = speak(name)
    _, file = uploaded(bench)
    assert bench.client.files.retrieve(file["id"]).id == file["id"]
    assert bench.content(file["id"]) == bench.line("row-1", url=bench.url)
    assert bench.client.files.delete(file["id"]).deleted
    with pytest.raises(openai.NotFoundError):
        bench.client.files.retrieve(file["id"])


@pytest.mark.parametrize("name", sorted(DIALECTS.keys() - {"siliconflow"}))
def test_pages_go_on_behind_the_ids_of_the_service(speak, name):
    bench = speak(name)
    _, file = uploaded(bench)
    made = [created(bench, file["id"])[1]["id"] for _ in range(5)]
    pages = bench.client.batches.list(limit=2)
    assert [batch.id for batch in pages] == made[::-1]


@pytest.mark.parametrize(
    "name", ["azure", "azure-v1", "groq", "dashscope", "doubleword", "deepinfra", "generic"]
)
def test_an_id_in_the_form_of_openai_is_nobodys_elsewhere(speak, name):
    bench = speak(name)
    number = uploaded(bench)[1]["id"].replace("-", "")[-24:]
    with pytest.raises(openai.NotFoundError):
        bench.client.files.retrieve(f"file-{number}")


@pytest.mark.parametrize("path", ["/v1/batches", "/v2/batches", "/batches", "/openai/v1/batches"])
def test_what_is_not_under_the_address_is_not_there(speak, path):
    bench = speak("azure")
    root = bench.server.base_url.removesuffix("/openai")
    url = f"{root}{path}?api-version=2024-10-21"
    assert httpx2.get(url, headers={"api-key": "k"}).status_code == 404


def test_azure_of_old_asks_for_the_version_and_takes_its_own_header(speak):
    bench = speak("azure")
    url = f"{bench.server.base_url}/batches"
    version = {"api-version": "2024-10-21"}
    assert httpx2.get(url, params=version, headers={"api-key": "k"}).status_code == 200
    assert httpx2.get(url, headers={"api-key": "k"}).status_code == 404
    assert httpx2.get(url, params=version).status_code == 401
    assert isinstance(bench.client, openai.AzureOpenAI)


@pytest.mark.parametrize("name", ["azure", "azure-v1"])
def test_azure_says_little_of_a_batch_and_makes_empty_error_files(speak, name):
    bench = speak(name)
    _, batch = created(bench, uploaded(bench)[1]["id"])
    assert (batch["endpoint"], batch["request_counts"]) == (None, None)
    ended = after(bench, batch, 60)
    assert (ended["status"], ended["endpoint"], ended["usage"]) == ("completed", None, None)
    assert ended["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert bench.client.files.retrieve(ended["error_file_id"]).bytes == 0
    assert bench.content(ended["error_file_id"]) == b""


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ({"url": "/v1/embeddings"}, "url_mismatch"),
        ({"body": {"model": "other"}}, "model_mismatch"),
        ({}, "duplicate_custom_id"),
    ],
)
def test_azure_has_its_own_codes_for_lines_that_are_wrong(speak, line, code):
    bench = speak("azure")
    content = bench.line("row-1", url=bench.url) + bench.line(
        "row-2" if line else "row-1", **{"url": bench.url, **line}
    )
    file = bench.upload(content)
    _, batch = created(bench, file.id)
    failed = after(bench, batch, 20)
    assert failed["status"] == "failed"
    assert code in {error["code"] for error in failed["errors"]["data"]}


def test_azure_refuses_a_byte_order_mark(speak, refused):
    bench = speak("azure")
    marked = b"\xef\xbb\xbf" + bench.line("row-1", url=bench.url)
    status, _, param = refused(bench.upload, marked)
    assert (status, param) == (400, "file")


@pytest.mark.parametrize("name", ["azure", "azure-v1"])
def test_azure_goes_on_after_its_window(speak, name):
    bench = speak(name, row_seconds=30 * 3600)
    _, batch = created(bench, uploaded(bench)[1]["id"])
    assert after(bench, batch, 25 * 3600)["status"] == "in_progress"
    assert after(bench, batch, 6 * 3600)["status"] == "completed"


def test_others_expire_when_the_window_ends_that_was_asked_for(speak):
    bench = speak("groq", row_seconds=200 * 3600)
    _, short = created(bench, uploaded(bench)[1]["id"])
    _, long = created(bench, uploaded(bench)[1]["id"], completion_window="7d")
    assert long["expires_at"] - long["created_at"] == 7 * 86_400
    assert after(bench, short, 86_400 + 60)["status"] == "expired"
    assert seen(bench, long["id"])["status"] == "in_progress"
    assert after(bench, long, 6 * 86_400)["status"] == "expired"


@pytest.mark.parametrize(
    ("name", "window"), [("openai", "1h"), ("groq", "8d"), ("moonshot", "11h"), ("generic", "soon")]
)
def test_a_window_that_the_service_has_not_is_refused(speak, refused, name, window):
    bench = speak(name)
    file_id = uploaded(bench)[1]["id"]
    assert refused(created, bench, file_id, completion_window=window) == (
        400,
        "invalid_value",
        "completion_window",
    )


def test_an_endpoint_that_the_service_has_not_is_refused(speak, refused):
    bench = speak("groq")
    file_id = uploaded(bench)[1]["id"]
    assert refused(created, bench, file_id, endpoint="/v1/embeddings") == (
        400,
        "invalid_value",
        "endpoint",
    )


@pytest.mark.parametrize("name", ["doubleword", "generic"])
def test_some_say_201_where_something_was_made(speak, name):
    bench = speak(name)
    status, file = uploaded(bench)
    assert status == 201
    assert created(bench, file["id"])[0] == 201


def test_groq_lists_errors_without_an_envelope(speak):
    bench = speak("groq")
    _, batch = created(bench, uploaded(bench, method="GET")[1]["id"])
    (error,) = after(bench, batch, 20)["errors"]
    assert (error["code"], error["param"], error["line"]) == ("invalid_value", "method", 1)


def test_moonshot_refuses_to_cancel_what_has_ended(speak):
    bench = speak("moonshot")
    _, batch = created(bench, uploaded(bench)[1]["id"])
    bench.clock.advance(60)
    with pytest.raises(openai.BadRequestError):
        bench.client.batches.cancel(batch["id"])
    assert "errors" not in batch


def test_siliconflow_gives_results_by_address_to_who_shows_no_key(speak):
    bench = speak("siliconflow")
    _, file = uploaded(bench)
    assert file.keys() == {"id", "object", "bytes", "createdAt", "filename", "purpose"}
    _, batch = created(bench, file["id"])
    assert (batch["status"], batch["request_counts"]) == ("in_queue", None)
    link = after(bench, batch, 60)["output_file_id"]
    assert httpx2.get(link).status_code == 200
    assert json.loads(httpx2.get(link).content)["custom_id"] == "row-1"
    assert httpx2.get(link, headers={"authorization": "Bearer k"}).status_code == 404
    with pytest.raises(openai.NotFoundError):
        bench.client.files.retrieve(file["id"])


def test_the_generic_one_differs_in_all_that_readers_tolerate(speak):
    bench = speak("generic")
    _, file = uploaded(bench)
    _, batch = created(bench, file["id"], metadata={"a": "b"})
    assert batch["status"] == "IN_QUEUE"
    assert (batch["metadata"], batch["request_counts"], batch["error_file_id"]) == (None, None, "")
    ended = after(bench, batch, 60)
    assert ended["status"] == "COMPLETED"
    (row,) = bench.rows(ended["output_file_id"])
    assert json.loads(row["response"]["body"])["choices"]
    _, batch = created(bench, file["id"])
    bench.client.batches.cancel(batch["id"])
    assert after(bench, batch, 60)["status"] == "CANCELED"


def test_a_record_of_ones_own_is_spoken(speak):
    house = Dialect(name="house", windows=("3h",), takes_metadata=False)
    bench = speak(house)
    _, batch = created(bench, uploaded(bench)[1]["id"], completion_window="3h", metadata={"a": "b"})
    assert batch["expires_at"] - batch["created_at"] == 3 * 3600
    assert batch["metadata"] is None


def test_faults_come_in_every_dialect(speak):
    bench = speak("azure", faults=[Fault("batches.create", "queue-full:1000")])
    file_id = uploaded(bench)[1]["id"]
    with pytest.raises(openai.BadRequestError) as caught:
        created(bench, file_id)
    assert caught.value.code == "token_limit_exceeded"
    assert bench.server.calls()["batches.create"] == 1


def test_a_dialect_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no dialect 'azur'"):
        LocalServer(dialect="azur")


def test_a_body_that_is_too_large_is_refused_before_its_end(serve):
    bench = serve(dialect="generic")
    head = (
        b"POST /v1/batches HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer x\r\n"
        b"content-length: 999999999\r\n\r\n"
    )
    with socket.create_connection(bench.server._socket.getsockname(), timeout=20) as connection:
        connection.sendall(head + bytes(68 << 20))  # 64 MiB are read and dropped

        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
