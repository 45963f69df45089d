"""What a call can cost at the most: nothing that the service bills goes beyond it."""

import itertools

import openai
import pandas as pd
import polars as pl
import pytest

import batchframe as bf
from batchframe.core.tokens import counter
from batchframe.emulator import LocalServer

MINI, INSTRUCT = "gpt-4o-mini", "gpt-3.5-turbo-instruct"
#: Own rates of a dollar a million, so that a token is a millionth of a dollar.
ONE = bf.Rates(input=1, output=1)
LEGACY = "/v1/completions"
RESPONSES = ("/v1/responses", "max_output_tokens")
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


# --- What is not in the bytes of a request --------------------------------------------------------


def test_images_count_at_the_most_that_one_takes(spent):
    # A picture of 60 bytes of address took 48,000 tokens: gpt-4o-mini counts 2,833, and 5,667 for
    # each of up to 8 tiles.
    frame = pl.DataFrame({"id": [1], "prompt": ["x"], "url": ["https://x.test/a.png"]})
    for endpoint, limit in (("/v1/chat/completions", "max_completion_tokens"), RESPONSES):
        call = {"images": "url", "endpoint": endpoint, limit: 1}
        assert spent(frame, 48_000, 1, max_cost_usd=0.047, **call) == 0
        assert spent(frame, 48_000, 1, max_cost_usd=0.049, **call) == pytest.approx(0.048001)


@pytest.mark.parametrize(
    ("endpoint", "limit"), [("/v1/chat/completions", "max_completion_tokens"), RESPONSES]
)
def test_the_bytes_of_an_image_in_the_request_are_no_tokens(spent, endpoint, limit):
    # 300,000 bytes in base64 are 400,000, and the model sees an image.
    png = b"\x89PNG\r\n\x1a\n".ljust(300_000, b"\0")
    frame = pl.DataFrame({"id": [1], "prompt": ["x"], "png": [png]})
    call = {"images": "png", "endpoint": endpoint, limit: 1}
    assert spent(frame, 48_000, 1, max_cost_usd=0.049, **call) == pytest.approx(0.048001)


SEARCH = [{"type": "web_search"}]
CALLED = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]


@pytest.mark.parametrize(
    ("endpoint", "fields", "what"),
    [
        ("/v1/responses", {"tools": SEARCH}, "tools: web_search"),
        ("/v1/responses", {"tools": bf.col("tools")}, "tools: web_search"),
        ("/v1/responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/responses", {"conversation": "conv_1"}, "conversation"),
        ("/v1/responses", {"prompt": {"id": "pmpt_1"}}, "prompt"),
        ("/v1/chat/completions", {"web_search_options": {}}, "web_search_options"),
    ],
)
def test_what_the_service_adds_has_no_bound(complete, calls, endpoint, fields, what):
    frame = pl.DataFrame({"id": [7], "prompt": ["x"], "tools": [SEARCH]})
    limit = "max_output_tokens" if endpoint == "/v1/responses" else "max_completion_tokens"
    with pytest.raises(bf.ParameterError, match=rf"max_cost_usd=1 cannot be kept.*{what}"):
        complete(frame, endpoint=endpoint, max_cost_usd=1, **{limit: 1}, **fields)
    assert calls() == {}


@pytest.mark.parametrize(
    ("endpoint", "part"),
    [
        ("/v1/chat/completions", {"type": "file", "file": {"file_id": "file-1"}}),
        ("/v1/chat/completions", {"type": "input_audio", "input_audio": {"data": "AAAA"}}),
        ("/v1/responses", {"type": "input_file", "file_url": "https://x.test/a.pdf"}),
    ],
)
def test_files_and_audio_have_no_bound(complete, calls, endpoint, part):
    contents = ["x", [part]]
    prompts = [[{"role": "user", "content": content}] for content in contents]
    frame = pd.DataFrame({"id": [7, 8], "prompt": prompts})
    limit = "max_output_tokens" if endpoint == "/v1/responses" else "max_completion_tokens"
    with pytest.raises(bf.ParameterError, match=r"max_cost_usd=1 cannot be kept.*row 1, id 8"):
        complete(frame, endpoint=endpoint, max_cost_usd=1, **{limit: 1})
    assert calls() == {}


def test_functions_that_the_caller_runs_are_bounded(complete):
    frame = pl.DataFrame({"id": [7], "prompt": ['"type":"input_file"']})
    call = {"max_cost_usd": 1, "max_output_tokens": 1, "tools": CALLED}
    out = complete(frame, endpoint="/v1/responses", **call)
    assert out["completion_status"].to_list() != ["failed"]


def test_who_takes_up_what_has_no_bound_sends_nothing_more(complete, checkpoint):
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})

    def fails(_):
        return 500, {"error": {"message": "later", "code": "server_error"}}

    with LocalServer(fails, stage_seconds=0) as server:
        call = {"endpoint": "/v1/responses", "tools": SEARCH, "max_output_tokens": 1}
        complete(frame, client=server.client(), max_retries=0, **call)
        before = server.calls()["batches.create"]
        run = bf.open_run(checkpoint, client=server.client(), max_cost_usd=1, progress=False)
        with pytest.raises(bf.BudgetExceededError, match="the next batch of 1 could cost any sum"):
            run.wait()
        assert server.calls()["batches.create"] == before


# --- What usage does not tell ---------------------------------------------------------------------


def searching(n_calls):
    """A model that had the service search the web so often, which costs a cent each time."""

    def answer(body):
        part = {"type": "output_text", "text": "yes"}
        calls = [{"type": "web_search_call", "status": "completed"}] * n_calls
        output = [*calls, {"type": "message", "role": "assistant", "content": [part]}]
        usage = {"input_tokens": 10, "output_tokens": 1}
        return 200, {"model": body["model"], "output": output, "usage": usage}

    return answer


@pytest.mark.parametrize("prices", [None, {MINI: ONE}], ids=["published", "own"])
def test_an_answer_for_which_the_service_ran_a_tool_has_no_known_cost(complete, checkpoint, prices):
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    call = {"endpoint": "/v1/responses", "tools": SEARCH, "prices": prices}
    with LocalServer(searching(2), stage_seconds=0) as server:
        out = complete(frame, client=server.client(), **call)
    assert out["completion_cost_usd"].to_list() == [None]
    assert bf.usage(checkpoint, prices=prices).cost_usd is None
    assert bf.usage(checkpoint).saved_usd is None


def test_an_answer_for_which_it_ran_none_costs_its_tokens(complete):
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    with LocalServer(searching(0), stage_seconds=0) as server:
        call = {"endpoint": "/v1/responses", "tools": SEARCH, "prices": {MINI: ONE}}
        out = complete(frame, client=server.client(), **call)
    assert out["completion_cost_usd"].to_list() == pytest.approx([11e-6])


def test_a_refusal_of_a_filter_may_have_been_billed(complete, checkpoint):
    # Azure: "a 400 error due to a content filter" is charged where the prompt was processed.
    def refuses(_):
        return 400, {"error": {"message": "The response was filtered", "code": "content_filter"}}

    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    with LocalServer(refuses, stage_seconds=0) as server:
        out = complete(frame, client=server.client(), prices={MINI: ONE})
    assert out["completion_status"].to_list() == ["failed"]
    assert out["completion_cost_usd"].to_list() == [None]
    assert bf.usage(checkpoint, prices={MINI: ONE}).cost_usd is None


@pytest.mark.parametrize(
    "model", ["gpt-audio", "gpt-4o-audio-preview", "gpt-4o-search-preview", "gpt-5-search-api"]
)
def test_a_model_that_is_not_billed_by_tokens_of_text_alone_has_no_known_price(complete, model):
    # Spoken tokens cost more than ten times as much, and each search a cent besides.
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    found = frame.openai_batch.estimate("prompt", "id", model=model, max_completion_tokens=1)
    assert found.cost_usd is None
    with (
        LocalServer(taking(1000, 1000), stage_seconds=0) as server,
        pytest.warns(UserWarning, match="No price is known"),
    ):
        out = complete(frame, client=server.client(), model=model)
    assert out["completion_cost_usd"].to_list() == [None]


def test_a_region_of_openai_has_not_the_prices_of_the_others():
    # "Regional processing (data residency) endpoints are charged a 10% uplift for models released
    # on or after March 5, 2026": 7.50 dollars a million for gpt-5.4 are 8.25 there.
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    client = openai.OpenAI(api_key="k", base_url="https://eu.api.openai.com/v1")
    call = {"model": "gpt-5.4", "max_completion_tokens": 1_000_000, "client": client}
    assert frame.openai_batch.estimate("prompt", "id", **call).cost_usd is None
    # Who knows that the model has none says so.
    found = frame.openai_batch.estimate("prompt", "id", dialect="openai", **call)
    assert found.cost_usd.high == pytest.approx(7.5, rel=1e-4)
