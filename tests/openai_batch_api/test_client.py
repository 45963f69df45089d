"""The client by itself: what it takes, what it gives back, and what it survives."""

import logging
import signal
import subprocess
import sys
from typing import Any

import pytest

import batchframe as bf
from batchframe.emulator import Fault, JumpClock, LocalServer
from batchframe.openai_batch_api import OpenaiBatchAPI

HOUR = 3600.0


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def questions(n: int) -> list[list[dict[str, str]]]:
    return [[user(f"question {i}")] for i in range(n)]


def texts(batchs: list[Any]) -> list[str]:
    return [
        content["choices"][0]["message"]["content"]
        for batch in batchs
        for content in batch.output_file.contents
    ]


def echoes(n: int) -> list[str]:
    return [f"echo: question {i}" for i in range(n)]


def paid_once(server: LocalServer, n: int) -> bool:
    return list(server.executions().values()) == [1] * n


# What goes in


def test_all_kinds_of_messages_in_one_list(server, client_of):
    messages = [
        {"id": "mine", "content": [user("one")]},
        user("two"),
        [{"role": "system", "content": "brief"}, user("three")],
        {"id": 12, "content": ({"role": "user", "content": [{"type": "text", "text": "four"}]},)},
    ]
    (batch,) = client_of(server).batchs_completion(messages)
    contents = batch.output_file.contents
    assert [content["id"] for content in contents] == ["mine", "1", "2", 12]
    assert texts([batch]) == ["echo: one", "echo: two", "echo: three", "echo: four"]


def test_what_sends_nothing_leaves_the_usage_of_the_last_call(server, client_of):
    client = client_of(server)
    client.batchs_completion(questions(2))
    used = client.usage
    assert used["prompt"]["tokens"] > 0
    client.prepare_reqs(questions(1))
    with pytest.raises(bf.InputError):
        client.batchs_completion([3])
    assert client.usage is used


def test_body_fields_go_into_every_request(server, client_of):
    fields = {
        "model": "gpt-4o",
        "temperature": 0,
        "seed": 42,
        "max_completion_tokens": 9,
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
        "response_format": {"type": "json_object"},
    }
    client = client_of(server)
    requests = client.prepare_reqs([user("one"), [user("two")]], **fields)
    assert [request["body"] for request in requests] == [
        {**fields, "messages": [user(text)]} for text in ("one", "two")
    ]
    assert {request["url"] for request in requests} == {"/v1/chat/completions"}
    assert server.calls() == {}

    client.batchs_completion([user("one"), [user("two")]], **fields)
    assert set(server.executions()) == {request["custom_id"] for request in requests}


def test_the_default_model_is_that_of_the_original(server, client_of):
    (request,) = client_of(server).prepare_reqs([user("one")])
    assert request["body"]["model"] == "gpt-4o-mini"


def test_no_messages_make_no_batches(server, client_of):
    client = client_of(server)
    assert client.batchs_completion([]) == []
    assert client.usage["prompt"] == {"tokens": 0, "price": 0}
    assert server.calls() == {}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "must be a list, not a str"),
        (user("hello"), "must be a list, not a dict"),
        ([user("a"), "hello"], r"messages\[1\] is 'hello'"),
        ([[]], r"messages\[0\] is \[\]"),
        ([None], r"messages\[0\] is None"),
        ([{"id": "a", "content": "hello"}], "content"),
        ([{"id": "a"}], "content"),
        ([{"id": 1.5, "content": [user("a")]}], "the id 1.5"),
        ([{"id": True, "content": [user("a")]}], "the id True"),
        ([{"id": None, "content": [user("a")]}], "the id None"),
        ([[user("\ud83d")]], r"messages\[0\]\[0\].content holds half a character"),
        ([[{"role": "user", "content": float("nan")}]], r"messages\[0\]\[0\].content is nan"),
        ([{"id": "a", "content": [user("x")]}] * 2, "1 message repeats the id .*'a'"),
        ([{"id": "1", "content": [user("x")]}, user("y")], "1 message repeats the id .*'1'"),
        ([{"id": 1, "content": [user("x")]}, user("y")], "1 message repeats the id .*'1'"),
    ],
)
def test_messages_that_cannot_be_sent_are_refused(server, client_of, messages, words):
    with pytest.raises(bf.InputError, match=words):
        client_of(server).batchs_completion(messages)
    assert server.calls() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 50_001}, "batch_size=50001"),
        ({"model": ""}, "model="),
        ({"batchsize": 3}, "batchs_completion.* 'batchsize'. Did you mean 'batch_size'"),
        ({"temprature": 0}, "Did you mean 'temperature'"),
        ({"messages": []}, None),
    ],
)
def test_keywords_that_do_not_fit_are_refused(server, client_of, options, words):
    with pytest.raises((bf.ParameterError, TypeError), match=words):
        client_of(server).batchs_completion([user("a")], **options)
    assert server.calls() == {}


@pytest.mark.parametrize(
    "options",
    [{"timeout": -1}, {"max_retry": 1.5}, {"req_cooldown": -1}, {"batch_cooldown": "1"}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(bf.ParameterError, match=next(iter(options))):
        OpenaiBatchAPI(api_key="sk-local", **options)


def test_a_key_or_a_client_but_not_both(server, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(bf.ApiKeyError):
        OpenaiBatchAPI()
    with pytest.raises(bf.ParameterError, match="leave out api_key="):
        OpenaiBatchAPI(api_key="sk-local", client=server.client())
    with pytest.raises(bf.ParameterError, match="not https"):
        OpenaiBatchAPI(api_key="sk-local", base_url="http://example.com/v1")

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = OpenaiBatchAPI(
        "sk-local", 0, base_url=server.base_url, checkpoint=tmp_path / "checkpoint"
    )
    assert texts(client.batchs_completion(questions(1))) == echoes(1)
    client.client.close()


# What comes out


def test_batches_have_the_attributes_of_the_original(server, client_of):
    client = client_of(server, timeout=77, max_retry=5)
    first, second = client.batchs_completion(questions(3), batch_size=2)
    seen = {batch.id: batch for batch in server.client().batches.list().data}
    for batch in (first, second):
        theirs = seen[batch.id]
        assert batch.status == theirs.status == "completed"
        assert batch.done is True
        assert batch.input_file.id == theirs.input_file_id
        assert batch.input_file.path.endswith(".jsonl")
        assert batch.input_file.contents is None
        assert batch.output_file.id == theirs.output_file_id
        assert batch.output_file.path is None
        assert batch.error_file is None
        assert batch.in_progress_at == theirs.in_progress_at
        assert (batch.timeout, batch.max_retry) == (77, 5)
    assert [len(batch.output_file.contents) for batch in (first, second)] == [2, 1]
    assert first.output_file.contents[0].keys() == {"id", "choices", "usage", "error"}
    # Each prompt is counted with 9 tokens more than its text of 10 characters has.
    assert first.output_file.usage == {
        "prompt_tokens": sum(c["usage"]["prompt_tokens"] for c in first.output_file.contents),
        "completion_tokens": sum(
            c["usage"]["completion_tokens"] for c in first.output_file.contents
        ),
    }


def test_choices_come_back_as_the_service_gave_them(client_of):
    calls = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    choices = [
        {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": calls}},
        {"index": 1, "message": {"role": "assistant", "content": "two"}, "logprobs": {"a": [1.5]}},
    ]

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, {"model": body["model"], "choices": choices, "usage": None}

    with LocalServer(answer) as server:
        (batch,) = client_of(server).batchs_completion(questions(1), n=2)
    (content,) = batch.output_file.contents
    assert content == {"id": "0", "choices": choices, "usage": None, "error": None}


def test_usage_is_the_bill_and_begins_anew_with_each_call(server, client_of, capsys):
    client = client_of(server)
    client.batchs_completion(questions(3), batch_size=2)
    billed = server.billed()
    assert client.usage["prompt"]["tokens"] == billed.input_tokens
    assert client.usage["completion"]["tokens"] == billed.output_tokens
    # gpt-4o-mini in a batch: $0.075 and $0.30 a million tokens.
    assert client.usage["prompt"]["price"] == pytest.approx(billed.input_tokens * 0.075e-6)
    assert client.usage["completion"]["price"] == pytest.approx(billed.output_tokens * 0.30e-6)
    before = client.usage
    client.batchs_completion(questions(3), batch_size=2)
    assert client.usage == before


def test_an_unknown_price_is_none_and_printed_as_unknown(server, client_of, capsys):
    client = client_of(server)
    with pytest.warns(UserWarning, match="No price is known for house-model"):
        (batch,) = client.batchs_completion(questions(1), model="house-model")
    assert batch.usage["prompt"]["price"] is None
    assert client.usage["completion"]["price"] is None
    client.print_usage_table()
    printed = capsys.readouterr().out
    assert printed.count("unknown") == 3
    assert "$" not in printed


def test_the_checkpoint_is_the_same_as_that_of_a_frame(server, client_of, tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"id": ["a", "b"], "prompt": ["one", "two"]})
    out = frame.openai_batch.complete(
        "prompt",
        "id",
        model="gpt-4o-mini",
        client=server.client(),
        checkpoint=tmp_path / "checkpoint",
        progress=False,
    )
    messages = [{"id": id_, "content": [user(text)]} for id_, text in frame.itertuples(index=False)]
    assert texts(client_of(server).batchs_completion(messages)) == list(out["completion"])
    assert server.calls()["batches.create"] == 1


def test_another_batch_size_reads_what_is_there(server, client_of):
    client = client_of(server)
    client.batchs_completion(questions(6), batch_size=4)
    batchs = client.batchs_completion(questions(7), batch_size=3)
    assert [len(batch.output_file.contents) for batch in batchs] == [3, 3, 1]
    assert texts(batchs) == echoes(7)
    assert paid_once(server, 7)


def test_answers_survive_the_loss_of_the_downloads(server, client_of, tmp_path):
    client = client_of(server)
    before = client.batchs_completion(questions(2))
    for download in (tmp_path / "checkpoint" / "raw").iterdir():
        download.unlink()
    again = client.batchs_completion(questions(2))
    assert texts(again) == texts(before)
    assert again[0].usage == before[0].usage


# What goes wrong


def test_a_batch_slower_than_the_timeout_goes_on_and_is_picked_up(client_of):
    clock = JumpClock()
    with LocalServer(clock=clock, stage_seconds=HOUR) as server:
        with pytest.raises(bf.RunTimeoutError, match="1 batch goes on"):
            client_of(server, timeout=0.5).batchs_completion(questions(3))
        clock.advance(4 * HOUR)
        assert texts(client_of(server).batchs_completion(questions(3))) == echoes(3)
        assert server.calls()["batches.create"] == 1
        assert "batches.cancel" not in server.calls()


def test_the_answers_of_an_expired_batch_are_kept_and_the_others_tried_again(client_of):
    clock = JumpClock()
    with LocalServer(clock=clock, row_seconds=10 * HOUR) as server:
        with pytest.raises(bf.RunTimeoutError):
            client_of(server, timeout=0.5).batchs_completion(questions(3))
        clock.advance(25 * HOUR)

        (batch,) = client_of(server, max_retry=0).batchs_completion(questions(3))
        assert batch.status == "expired"
        assert texts([batch]) == echoes(2)
        (content,) = batch.error_file.contents
        assert (content["id"], content["choices"]) == ("2", None)
        assert content["error"]["code"] == "batch_expired"

        with pytest.raises(bf.RunTimeoutError):
            client_of(server, timeout=0.5).batchs_completion(questions(3))
        clock.advance(25 * HOUR)
        (batch,) = client_of(server).batchs_completion(questions(3))
        assert batch.status == "completed"
        assert texts([batch]) == echoes(3)
        assert batch.error_file is None
        assert paid_once(server, 3)


def test_a_list_whose_messages_all_fail_gives_their_errors(client_of):
    def refuse(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 400, {"error": {"message": "too hot", "code": "invalid_value", "type": None}}

    with LocalServer(refuse) as server:
        client = client_of(server)
        (batch,) = client.batchs_completion(questions(2))
    assert batch.status == "completed"
    assert batch.output_file.id is None
    assert batch.output_file.contents == []
    assert batch.error_file.id is not None
    assert [content["error"]["message"] for content in batch.error_file.contents] == ["too hot"] * 2
    assert client.usage["prompt"] == {"tokens": 0, "price": 0}


def test_messages_that_fail_stand_beside_those_that_are_answered(client_of):
    def picky(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        text = body["messages"][0]["content"]
        if text in {"question 1", "question 4"}:
            return 400, {"error": {"message": "no", "code": "invalid_value"}}
        message = {"role": "assistant", "content": f"echo: {text}"}
        return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    with LocalServer(picky) as server:
        first, second = client_of(server).batchs_completion(questions(6), batch_size=3)
    assert [content["id"] for content in first.output_file.contents] == ["0", "2"]
    assert [content["id"] for content in first.error_file.contents] == ["1"]
    assert [content["id"] for content in second.output_file.contents] == ["3", "5"]
    assert [content["id"] for content in second.error_file.contents] == ["4"]


@pytest.mark.parametrize("shape", ["status-zero", "drop-line", "torn-line"])
def test_a_line_without_a_response_costs_its_own_answer_only(server, client_of, shape):
    server.inject(Fault("output", shape))
    (batch,) = client_of(server, max_retry=0).batchs_completion(questions(3))
    failed = [content["id"] for content in batch.error_file.contents]
    assert len(failed) == 1
    assert batch.error_file.contents[0]["error"]["message"]
    assert len(texts([batch])) == 2


def test_a_failure_on_an_accepted_create_makes_no_second_batch(server, client_of, caplog):
    server.inject(Fault("batches.create", "error-after:500"))
    with caplog.at_level(logging.WARNING):
        assert texts(client_of(server).batchs_completion(questions(3))) == echoes(3)
    assert server.calls()["batches.create"] == 1
    assert paid_once(server, 3)


CHILD = """
import os, signal, sys
import openai
from batchframe.openai_batch_api import OpenaiBatchAPI

def die(response):
    if response.request.method == "GET" and "/batches/" in str(response.request.url):
        os.kill(os.getpid(), signal.SIGKILL)

http = openai.DefaultHttpxClient(trust_env=False, event_hooks={"response": [die]})
client = openai.OpenAI(base_url=sys.argv[1], api_key="sk-local", http_client=http)
messages = [[{"role": "user", "content": f"question {i}"}] for i in range(5)]
OpenaiBatchAPI(client=client, checkpoint=sys.argv[2], req_cooldown=0).batchs_completion(
    messages, batch_size=2
)
"""


def test_a_killed_program_that_is_run_again_pays_nothing_twice(server, client_of, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", CHILD, server.base_url, str(tmp_path / "checkpoint")],
        timeout=120,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert server.calls()["batches.create"] >= 1

    batchs = client_of(server).batchs_completion(questions(5), batch_size=2)
    assert texts(batchs) == echoes(5)
    assert [len(batch.output_file.contents) for batch in batchs] == [2, 2, 1]
    assert server.calls()["batches.create"] == 3
    assert paid_once(server, 5)
