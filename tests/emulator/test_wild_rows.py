"""Rows and answers that nobody expects: they fail by themselves, and the server goes on."""

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest

from batchframe.emulator import CallableModel, Upstream
from tests.emulator.test_upstream import ended

HOUR = 3600

#: More nested than any reader takes.
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n"


def _request(endpoint, **body):
    line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {"model": "m", **body}}
    return json.dumps(line).encode()


def test_a_line_that_is_nested_too_deeply_is_one_that_cannot_be_parsed(bench):
    upload = {"files": {"file": ("a.jsonl", DEEP)}, "data": {"purpose": "batch"}}
    assert bench.raw("POST", "/files", **upload).status_code == 400

    batch = bench.after(bench.submit(bench.line("a") + DEEP), HOUR)
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_json_line", 2)]


def test_a_model_that_is_no_text_is_refused(bench):
    batch = bench.after(bench.submit(bench.line("a", body={"model": 5})), HOUR)
    assert [(e.code, e.param) for e in batch.errors.data] == [("invalid_type", "body.model")]


@pytest.mark.parametrize(
    "messages", [5, True, [5], [{"content": [{"text": 5}]}], {"a": 1}, [None, {"content": 1}]]
)
def test_a_prompt_of_no_known_form_is_counted_all_the_same(serve, messages):
    bench = serve(enqueued_token_limit=1000)
    batch = bench.submit(bench.line("a", body={"messages": messages}))
    assert bench.after(batch, HOUR).status == "completed"


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ("one two", 3 + 4 + 2),
        (["one two", "three"], 3 + 4 + 2 + 4 + 1),
        ([101, 102, 103], 3 + 3),
        ([[101, 102], [103]], 3 + 3),
    ],
    ids=["a text", "texts", "tokens", "texts as tokens"],
)
def test_inputs_of_each_form_take_room_in_the_queue(serve, asked, tokens):
    for limit, status in ((tokens, "completed"), (tokens - 1, "failed")):
        bench = serve(enqueued_token_limit=limit)
        file = bench.upload(_request("/v1/embeddings", input=asked))
        batch = bench.create(file.id, endpoint="/v1/embeddings")
        assert bench.after(batch, HOUR).status == status


@pytest.mark.parametrize("size", [3_073, -4, "x", 1e300, 10**30])
def test_an_embedding_has_no_more_dimensions_than_there_are(bench, size):
    file = bench.upload(_request("/v1/embeddings", input="a", dimensions=size))
    batch = bench.after(bench.create(file.id, endpoint="/v1/embeddings"), HOUR)
    (row,) = bench.rows(batch.error_file_id)
    assert row["response"]["status_code"] == 400


_WRONG = {
    "no answer": None,
    "one value": (200,),
    "a status that is a text": ("200", {}),
    "what JSON cannot hold": (200, {"a": object()}),
    "half a character": "\ud800",
}


@pytest.mark.parametrize("wrong", _WRONG.values(), ids=_WRONG)
@pytest.mark.parametrize("is_instant", [True, False], ids=["instant", "slow"])
def test_an_answer_that_is_none_is_a_row_with_status_500(serve, tmp_path, is_instant, wrong):
    def wayward(body):
        return wrong if body["messages"][0]["content"] == "prompt 1" else "fine"

    bench = serve(CallableModel(wayward, instant=is_instant), stage_seconds=0, directory=tmp_path)
    batch = ended(bench, bench.submit(bench.lines(3)))

    (failed,) = bench.rows(batch.error_file_id)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("row-1", 500)
    assert failed["response"]["body"]["error"]["code"] == "server_error"
    assert batch.request_counts.completed == 2


def test_a_status_may_be_one_of_the_standard_library(serve):
    bench = serve(lambda _body: (HTTPStatus.CREATED, {"a": 1}))
    batch = bench.after(bench.submit(bench.lines(1)), HOUR)
    (row,) = bench.rows(batch.output_file_id)
    assert row["response"]["status_code"] == 201


class _Broken(Upstream):
    @asynccontextmanager
    async def session(self, concurrency):
        async with super().session(concurrency) as ask:

            async def broken(body, endpoint):
                if body["messages"][0]["content"] == "prompt 0":
                    raise RuntimeError("what nobody thought of")
                return 200, {"asked": ask is not None, "endpoint": endpoint}

            yield broken


def test_a_row_that_cannot_be_asked_at_all_does_not_stop_the_others(serve, caplog):
    bench = serve(_Broken("http://127.0.0.1:9/v1"), stage_seconds=0)
    batch = ended(bench, bench.submit(bench.lines(3)))

    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    assert "what nobody thought of" in caplog.text


def test_a_process_that_never_stops_its_slow_server_can_end():
    program = (
        "from batchframe.emulator import CallableModel, LocalServer\n"
        "LocalServer(CallableModel(str, instant=False)).start()\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, timeout=60, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_lines_beyond_the_limit_are_counted_and_not_looked_at(serve):
    bench = serve(max_requests=2)
    batch = bench.after(bench.submit(bench.lines(2) + b"{}\n" * 3), HOUR)

    (error,) = batch.errors.data
    assert (error.code, error.line) == ("too_many_requests", None)
    assert "contains 5 requests" in error.message


def test_a_batch_of_no_requests_fails(bench):
    file = bench.upload(b"", purpose="user_data")
    batch = bench.after(bench.create(file.id), HOUR)
    assert [(e.code, e.line) for e in batch.errors.data] == [("empty_file", None)]


def test_rows_go_on_after_an_error_that_passes(serve, caplog):
    is_broken = True

    def stage(_batch_id):
        if is_broken:
            raise RuntimeError("the stage is not known yet")
        return 0

    bench = serve(CallableModel(lambda _body: "fine", instant=False), stage_seconds=stage)
    file = bench.upload(bench.lines(1))
    created = bench.create(file.id)
    while "the stage is not known yet" not in caplog.text:
        pass
    is_broken = False

    assert ended(bench, created).request_counts.completed == 1
