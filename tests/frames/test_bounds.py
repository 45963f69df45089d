"""What a call can cost at the most: nothing that the service bills goes beyond it."""

import itertools

import polars as pl
import pytest

import batchframe as bf
from batchframe.core.tokens import counter
from batchframe.emulator import LocalServer

MINI, INSTRUCT = "gpt-4o-mini", "gpt-3.5-turbo-instruct"
#: Own rates of a dollar a million, so that a token is a millionth of a dollar.
ONE = bf.Rates(input=1, output=1)
LEGACY = "/v1/completions"
_numbers = itertools.count()


def taking(n_input, n_output):
    """A model that reports this usage, at each endpoint."""

    def answer(body):
        if "input" in body:
            usage = {"input_tokens": n_input, "output_tokens": n_output}
            part = {"type": "output_text", "text": "yes"}
            output = [{"type": "message", "role": "assistant", "content": [part]}]
            return 200, {"model": body["model"], "output": output, "usage": usage}
        message = {"role": "assistant", "content": "yes"}
        usage = {"prompt_tokens": n_input, "completion_tokens": n_output}
        choice = {"index": 0, "text": "yes", "message": message, "finish_reason": "stop"}
        return 200, {"model": body["model"], "choices": [choice], "usage": usage}

    return answer


@pytest.fixture
def spent(complete, tmp_path):
    """What the service bills for a call with a limit that may end it, at a dollar a million."""

    def call(frame, n_input, n_output, /, *, dialect="openai", **kwargs):
        with LocalServer(taking(n_input, n_output), stage_seconds=0, dialect=dialect) as server:
            if dialect != "openai":
                kwargs["dialect"] = dialect
            try:
                complete(
                    frame,
                    client=server.client(),
                    checkpoint=tmp_path / f"{next(_numbers)}",
                    **{"prices": {"m": ONE}, "model": "m"} | kwargs,
                )
            except (bf.BudgetExceededError, bf.ParameterError) as error:
                assert "max_cost_usd" in str(error)  # noqa: PT017 - the sum is what is asked for
            billed = server.billed()
        return (billed.input_tokens + billed.output_tokens) * 1e-6

    return call


# --- Answers --------------------------------------------------------------------------------------


def test_all_completions_that_best_of_makes_are_billed_and_count(spent):
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    # Five of 1,000 tokens are 0.005 dollars, and one would be a fifth of it.
    call = {"endpoint": LEGACY, "max_tokens": 1000, "best_of": 5}
    assert spent(frame, 1, 5000, max_cost_usd=0.003, **call) == 0
    assert spent(frame, 1, 5000, max_cost_usd=0.006, **call) == pytest.approx(0.005001)


def test_an_estimate_has_all_completions_that_best_of_makes():
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["x", "y"]})
    found = frame.openai_batch.estimate(
        "prompt", "id", model=INSTRUCT, endpoint=LEGACY, max_tokens=10, best_of=5
    )
    assert found.output_tokens.high == 2 * 5 * 10


def test_best_of_is_the_same_for_all_rows(complete, calls):
    # Of a row whose line is gone nobody could say what it may have cost.
    frame = pl.DataFrame({"id": [1], "prompt": ["x"], "n": [3]})
    with pytest.raises(bf.ParameterError, match=r"best_of= cannot stand in a column"):
        complete(frame, endpoint=LEGACY, model=INSTRUCT, best_of=bf.col("n"))
    assert calls() == {}


@pytest.mark.parametrize("limit", [-1, 0, 10.5])
def test_what_bounds_no_answer_is_no_limit(spent, limit):
    # Model servers take -1 and 0 for "to the end of the context".
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    assert spent(frame, 1, 5000, max_cost_usd=0.001, max_tokens=limit) == 0
    own = frame.with_columns(n=pl.lit(limit))
    assert spent(own, 1, 5000, max_cost_usd=0.001, max_tokens=bf.col("n")) == 0


def test_of_two_limits_the_larger_bounds_an_answer(spent):
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    call = {"max_completion_tokens": 10, "max_tokens": 5000}
    assert spent(frame, 1, 5000, max_cost_usd=0.001, **call) == 0


def test_what_a_service_takes_for_no_limit_bounds_no_answer(spent):
    # 16 tokens at OpenAI; 512 at DeepInfra; as long as the context at others.
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    assert spent(frame, 1, 512, max_cost_usd=0.0003, endpoint=LEGACY, dialect="deepinfra") == 0


# --- Prompts --------------------------------------------------------------------------------------

#: By o200k_base each byte of it is a token.
DIGITS = "1 2 3 4 5 6 7 8 9 0 " * 500


def test_a_prompt_may_have_as_many_tokens_as_bytes(spent):
    frame = pl.DataFrame({"id": [1], "prompt": [DIGITS]})
    assert counter("o200k_base")(DIGITS) == len(DIGITS) == 10_000
    assert spent(frame, 10_007, 1, max_cost_usd=0.009, max_completion_tokens=1) == 0


def test_an_estimate_that_is_bounded_by_bytes_is(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    frame = pl.DataFrame({"id": [1], "prompt": [DIGITS]})
    found = frame.openai_batch.estimate("prompt", "id", model="m", prices={"m": ONE})
    assert found.counted == "bounded by bytes"
    assert found.input_tokens.high >= 10_007


#: A word of one token, a hundred times.
LONG = "word " * 100


@pytest.mark.parametrize("model", [MINI, "m"], ids=["vocabulary", "bytes"])
@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("/v1/responses", {"instructions": LONG}),
        ("/v1/responses", {"instructions": bf.col("more")}),
        (LEGACY, {"suffix": LONG}),
        ("/v1/chat/completions", {"tools": bf.col("tools")}),
    ],
    ids=["instructions", "instructions of rows", "suffix", "tools of rows"],
)
def test_an_estimate_counts_all_that_the_model_reads(model, endpoint, fields):
    function = {"name": "f", "description": LONG, "parameters": {"type": "object"}}
    tools = [[{"type": "function", "function": function}]]
    frame = pl.DataFrame({"id": [1], "prompt": ["x"], "more": [LONG], "tools": tools})
    found = frame.openai_batch.estimate("prompt", "id", model=model, endpoint=endpoint, **fields)
    assert found.input_tokens.high >= 101
    assert found.input_tokens.low <= 102


@pytest.mark.parametrize("model", [MINI, "m"], ids=["vocabulary", "bytes"])
def test_an_estimate_counts_the_calls_in_messages(model):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": LONG}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "y"},
    ]
    frame = pl.DataFrame({"id": [1], "prompt": [messages]})
    found = frame.openai_batch.estimate("prompt", "id", model=model)
    assert found.input_tokens.high >= 102
