"""The same call on the endpoint of responses."""

import json

import polars as pl
import pytest
from openai.lib._parsing._responses import type_to_text_format_param
from pydantic import BaseModel

import batchframe as bf
from batchframe.emulator import LocalServer

RESPONSES = {"endpoint": "/v1/responses"}


def sent(client):
    batch = client.batches.list(limit=1).data[0]
    lines = client.files.content(batch.input_file_id).text.split("\n")[:-1]
    return batch, [json.loads(line) for line in lines]


def test_prompts_become_responses(frames, complete, client, server):
    before = server.billed()
    frame = frames.make({"id": [1, 2, 3], "prompt": ["one", None, "three"]})
    out = complete(frame, **RESPONSES, system="Be brief.", max_output_tokens=50)

    batch, (first, _) = sent(client)
    assert batch.endpoint == first["url"] == "/v1/responses"
    assert first["body"] == {
        "model": "gpt-4o-mini",
        "max_output_tokens": 50,
        "input": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
        ],
    }
    assert frames.values(out, "completion") == ["echo: one", None, "echo: three"]
    billed = server.billed()
    read = sum(filter(None, frames.values(out, "completion_input_tokens")))
    assert read == billed.input_tokens - before.input_tokens > 0
    costs = frames.values(out, "completion_cost_usd")
    written = sum(filter(None, frames.values(out, "completion_output_tokens")))
    assert sum(costs) == pytest.approx(read * 0.075e-6 + written * 0.30e-6)


def test_an_answer_that_was_cut_says_so(frames, complete):
    out = complete(
        frames.make({"id": [1], "prompt": ["one two three"]}), **RESPONSES, max_output_tokens=3
    )
    assert frames.values(out, "completion") == ["echo: one "]
    assert frames.values(out, "completion_status") == ["truncated"]


def test_lists_of_messages_and_templates_go_there_as_well(frames, complete):
    chat = [[{"role": "user", "content": "one"}]]
    out = complete(frames.make({"id": [1], "prompt": chat}), **RESPONSES)
    assert frames.values(out, "completion") == ["echo: one"]


def test_the_checkpoint_of_one_endpoint_is_not_that_of_the_other(frames, complete):
    frame = frames.make({"id": [1], "prompt": ["one"]})
    complete(frame)
    with pytest.raises(bf.CheckpointMismatchError, match="endpoint"):
        complete(frame, **RESPONSES)


def test_parameters_are_those_of_the_endpoint(frames, complete, calls):
    frame = frames.make({"id": [1], "prompt": ["one"]})
    with pytest.raises(bf.ParameterError, match="/v1/responses know no keyword 'max_tokens'"):
        complete(frame, **RESPONSES, max_tokens=5)
    with pytest.raises(bf.ParameterError, match="/v1/chat/completions know no keyword 'reasoning'"):
        complete(frame, reasoning={"effort": "low"})
    with pytest.raises(bf.ParameterError, match="input= cannot be set"):
        complete(frame, **RESPONSES, input="x")
    with pytest.raises(bf.ParameterError, match="endpoint='/v1/embeddings' must be"):
        complete(frame, endpoint="/v1/embeddings")
    assert calls() == {}


class Pair(BaseModel):
    a: int
    b: str | None


def test_structured_answers_are_asked_for_in_the_form_of_responses(frames, complete):
    def answer(body):
        text = {"type": "output_text", "text": '{"a": 1, "b": null}'}
        usage = {"input_tokens": 5, "output_tokens": 7}
        message = {"type": "message", "content": [text]}
        reasoning = {"type": "reasoning", "summary": []}
        return 200, {"model": body["model"], "output": [reasoning, message], "usage": usage}

    with LocalServer(answer) as server:
        client = server.client()
        out = complete(
            frames.make({"id": [1], "prompt": ["x"]}),
            **RESPONSES,
            response_format=Pair,
            text={"verbosity": "low"},
            client=client,
            output="pair",
        )
        _, (line,) = sent(client)
    # The SDK's own form for responses.
    expected = type_to_text_format_param(Pair)
    assert line["body"]["text"] == {"verbosity": "low", "format": expected}
    assert frames.values(out, "pair_status") == ["ok"]
    typed = {"a": 1, "b": None} if isinstance(out, pl.DataFrame) else 1
    assert frames.values(out, "pair" if isinstance(out, pl.DataFrame) else "pair_a") == [typed]
