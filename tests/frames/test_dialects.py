"""The whole pipeline in the dialect of each service, through the client class that people use."""

import asyncio
from collections import Counter

import httpx2
import openai
import pandas as pd
import polars as pl
import pytest

import batchframe as bf
from batchframe.core.dialects import DIALECTS
from batchframe.emulator import CallableModel, Fault, JumpClock, LocalServer

PROMPTS = ["one", "no", "three", "four"]
DATA = {"id": [1, 2, 3, 4], "prompt": PROMPTS}


def answer(body):
    """Say it again; refuse to say no."""
    prompt = body["messages"][-1]["content"]
    if prompt == "no":
        return 400, {"error": {"code": "bad_prompt", "message": "I will not say no."}}
    message = {"role": "assistant", "content": f"said {prompt}"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return 200, {"model": body["model"], "choices": [choice], "usage": usage}


STATUSES = ["ok", "failed", "ok", "ok"]
ANSWERS = ["said one", None, "said three", "said four"]
PRICES = {"house-model": bf.Rates(input=1, output=2)}
ERRORS = [None, "bad_prompt: I will not say no.", None, None]


@pytest.fixture(params=[pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def frame(request):
    return request.param(DATA)


@pytest.fixture(params=list(DIALECTS))
def name(request):
    return request.param


@pytest.fixture
def serve(name):
    """A server in the dialect."""
    servers = []

    def start(**kwargs):
        kwargs = {"stage_seconds": 0, **kwargs}
        servers.append(LocalServer(CallableModel(answer), dialect=name, **kwargs).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def settings(name, tmp_path):
    """What all calls in the dialect have in common: they are quick and quiet."""
    return {
        "model": "house-model",
        "checkpoint": tmp_path / "run",
        "dialect": name,
        "poll_interval": 0.01,
        "progress": False,
        "prices": PRICES,
    }


@pytest.fixture
def call(settings):
    """`complete` in the dialect."""

    def complete(server, frame, **kwargs):
        return bf.complete(
            frame, "prompt", "id", **{"client": server.client(), **settings, **kwargs}
        )

    return complete


def values(frame, column):
    return [None if pd.isna(value) else value for value in frame[column].to_list()]


def check(out):
    assert values(out, "completion") == ANSWERS
    assert values(out, "completion_status") == STATUSES
    assert values(out, "completion_error") == ERRORS
    assert values(out, "completion_input_tokens") == [10, None, 10, 10]


def test_rows_are_answered_and_a_second_call_sends_nothing(serve, call, frame):
    server = serve()
    out = call(server, frame, details=True)
    check(out)
    # 10 tokens at 1, and 5 at 2 dollars a million.
    assert values(out, "completion_cost_usd") == [2e-05, 0.0, 2e-05, 2e-05]
    assert server.billed().requests == 3
    before = server.calls()
    check(call(server, frame))
    assert server.calls() == before


def test_a_batch_whose_reply_was_lost_is_found_and_paid_once(serve, call, frame):
    server = serve(faults=[Fault("batches.create", "reply-lost-after")])
    check(call(server, frame))
    assert server.calls()["batches.create"] == 1
    assert set(server.executions().values()) == {1}


def test_a_batch_that_was_cancelled_keeps_what_it_did(serve, settings):
    clock = JumpClock()
    server = serve(clock=clock, stage_seconds=10, row_seconds=60)
    frame = pl.DataFrame(DATA)
    run = bf.submit(frame, "prompt", "id", client=server.client(), **settings)
    clock.advance(10 + 60 + 1)  # validated, and one row done
    run.cancel()
    clock.advance(10)
    assert Counter(run.result()["completion_status"]) == {"ok": 1, "cancelled": 3}
    assert server.billed().requests == 1


def test_a_batch_that_takes_longer_than_its_window_expires_or_goes_on(serve, settings, name, frame):
    # A row in nine hours: in 24 of them two are done.
    clock = JumpClock()
    server = serve(clock=clock, stage_seconds=10, row_seconds=9 * 3600)
    run = bf.submit(frame, "prompt", "id", client=server.client(), max_retries=0, **settings)
    clock.advance(37 * 3600)
    goes_on = name in {"azure", "azure-v1"}
    expected = STATUSES if goes_on else ["ok", "failed", "expired", "expired"]
    assert values(run.result(), "completion_status") == expected


def test_lists_of_many_batches_are_read_to_their_end(serve, call):
    server = serve()
    # Each row is a batch: with five live ones, they are looked at by listings.
    many = pl.DataFrame({"id": range(8), "prompt": [f"p{n}" for n in range(8)]})
    out = call(server, many, limits=bf.Limits(max_requests=1))
    assert out["completion"].to_list() == [f"said p{n}" for n in range(8)]
    assert server.calls()["batches.create"] == 8


def test_an_input_file_calls_its_endpoint_what_the_service_calls_it(serve, call, name, tmp_path):
    server = serve(directory=tmp_path / "server")
    call(server, pl.DataFrame(DATA))
    (url,) = {
        line["url"]
        for path in (tmp_path / "server/files").iterdir()
        for line in pl.read_ndjson(path).to_dicts()
        if "url" in line
    }
    assert url == ("/chat/completions" if name == "azure" else "/v1/chat/completions")


#: What a row of a batch says that was refused, where it is not said as OpenAI does.
REFUSALS = {
    "azure": "too_many_tasks: This batch contains 4 requests",
    "azure-v1": "too_many_tasks: This batch contains 4 requests",
    "siliconflow": "batch_failed: This batch contains 4 requests",
    "moonshot": "batch_failed: The batch failed and the service gave no reason.",
}


def test_a_batch_that_is_refused_says_why_if_the_service_does(serve, call, name):
    server = serve(max_requests=3)
    out = call(server, pl.DataFrame(DATA))
    assert out["completion_status"].to_list() == ["failed"] * 4
    said = REFUSALS.get(name, "too_many_requests: This batch contains 4 requests")
    assert all(error.startswith(said) for error in out["completion_error"])
    assert out["completion_cost_usd"].to_list() == [0.0] * 4
    assert server.billed().requests == 0


# By its address


class Rerouted(httpx2.HTTPTransport):
    """A network in which every host is the local server."""

    def __init__(self, server):
        super().__init__()
        self._port = httpx2.URL(server.base_url).port
        self.asked = []

    def handle_request(self, request):
        self.asked.append(request.url)
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._port)
        request.headers["host"] = f"127.0.0.1:{self._port}"
        return super().handle_request(request)


ADDRESSES = {
    "openai": "https://api.openai.com/v1",
    "azure-v1": "https://contoso.openai.azure.com/openai/v1",
    "groq": "https://api.groq.com/openai/v1",
    "dashscope": "https://dashscope.aliyuncs.com/compatible-mode/v1",
    "doubleword": "https://api.doubleword.ai/v1",
    "parasail": "https://api.parasail.io/v1",
    "deepinfra": "https://api.deepinfra.com/v1/openai",
    "moonshot": "https://api.moonshot.ai/v1",
    "generic": "https://gateway.example.com/v1",
}


def client_at(server, name):
    http = httpx2.Client(transport=Rerouted(server))
    if name == "azure":
        return openai.AzureOpenAI(
            azure_endpoint="https://contoso.openai.azure.com",
            api_version="2025-04-01-preview",
            api_key="k",
            http_client=http,
        )
    return openai.OpenAI(base_url=ADDRESSES[name], api_key="k", http_client=http)


@pytest.mark.parametrize("name", [*ADDRESSES, "azure"])
def test_the_address_alone_says_how_to_speak(serve, call, name):
    server = serve()
    with client_at(server, name) as client:
        check(call(server, pl.DataFrame(DATA), client=client, dialect=None))


@pytest.mark.parametrize("name", ["azure"])
def test_clients_of_one_resource_share_what_is_paid(serve, call, name):
    server = serve()
    with client_at(server, name) as client:
        check(call(server, pl.DataFrame(DATA), client=client, dialect=None))
    before = server.calls()
    # Its address names a deployment, but files and batches are those of the whole resource.
    with openai.AzureOpenAI(
        azure_endpoint="https://contoso.openai.azure.com",
        azure_deployment="house-model",
        api_version="2025-04-01-preview",
        api_key="k",
        http_client=httpx2.Client(transport=Rerouted(server)),
    ) as client:
        check(call(server, pl.DataFrame(DATA), client=client, dialect=None))
        assert server.calls() == before
        more = pl.DataFrame({"id": [5], "prompt": ["five"]})
        assert call(server, more, client=client, dialect=None)["completion"].item() == "said five"


# What no service takes


class Nobody(httpx2.BaseTransport):
    """A network in which nothing may be asked."""

    def handle_request(self, request):
        raise AssertionError(f"asked {request.url}")


def refused(address, function=bf.complete, **kwargs):
    with openai.OpenAI(
        base_url=address, api_key="k", http_client=httpx2.Client(transport=Nobody())
    ) as client:
        columns = ("prompt",) if function in {bf.embed, bf.moderate} else ("prompt", "id")
        with pytest.raises(bf.ParameterError) as caught:
            function(pl.DataFrame(DATA), *columns, client=client, **{"model": "m", **kwargs})
    assert "Nothing was sent." in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("function", [bf.complete, bf.submit, bf.estimate, bf.embed, bf.moderate])
def test_a_service_with_another_protocol_is_refused_before_any_call(
    function, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert "Anthropic" in refused("https://api.anthropic.com/v1", function)
    assert not list(tmp_path.iterdir())


def test_what_the_service_does_not_take_is_refused_before_any_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "'1h'" in refused(ADDRESSES["openai"], completion_window="1h")
    assert "24h to 168h" in refused(ADDRESSES["groq"], completion_window="8d")
    assert "/v1/responses" in refused(ADDRESSES["groq"], endpoint="/v1/responses")
    assert "makes no batches for /v1/embeddings" in refused(ADDRESSES["groq"], bf.embed)
    big = bf.Limits(max_requests=50_001)
    assert "from 1 to 50,000" in refused(ADDRESSES["openai"], limits=big)
    assert "from 1 to 50,000" in refused(ADDRESSES["openai"], bf.estimate, limits=big)
    assert "Did you mean 'groq'" in refused(ADDRESSES["openai"], dialect="grok")
    assert not list(tmp_path.iterdir())


def test_what_is_no_name_of_a_service_is_refused_before_any_call(tmp_path):
    with pytest.raises(bf.ParameterError, match="must be the name of a service"):
        bf.complete(pl.DataFrame(DATA), "prompt", "id", model="m", checkpoint=tmp_path, dialect=7)
    assert not list(tmp_path.iterdir())


# Overridden

HOUSE = bf.Dialect(name="house", urls={"/v1/chat/completions": "/house/chat"})


def test_a_record_of_ones_own_holds(tmp_path):
    house = bf.Dialect(
        name="house",
        urls={"/v1/chat/completions": "/house/chat"},
        windows=("3h",),
        max_requests=2,
        takes_metadata=False,
    )
    with LocalServer(
        CallableModel(answer), dialect=house, stage_seconds=0, directory=tmp_path / "server"
    ) as server:
        out = bf.complete(
            pl.DataFrame(DATA),
            "prompt",
            "id",
            model="m",
            client=server.client(),
            checkpoint=tmp_path / "run",
            dialect=house,
            completion_window="3h",
            poll_interval=0.01,
            progress=False,
            prices={"m": bf.Rates(input=1)},
        )
        check(out)
        assert server.calls()["batches.create"] == 2
        batches = server.client().batches.list().data
    assert {batch.endpoint for batch in batches} == {"/v1/chat/completions"}
    assert {batch.completion_window for batch in batches} == {"3h"}
    assert {batch.metadata for batch in batches} == {None}


def test_what_is_paid_is_not_sent_again_in_another_dialect(tmp_path):
    keywords = {
        "model": "m",
        "checkpoint": tmp_path,
        "poll_interval": 0.01,
        "progress": False,
        "prices": {"m": bf.Rates(input=1)},
    }
    with LocalServer(CallableModel(answer), stage_seconds=0) as server:
        client = server.client()
        check(bf.complete(pl.DataFrame(DATA), "prompt", "id", client=client, **keywords))
        before = server.calls()
        for name in DIALECTS:
            again = bf.complete(
                pl.DataFrame(DATA), "prompt", "id", client=client, dialect=name, **keywords
            )
            check(again)
        assert server.calls() == before


def test_rows_that_were_prepared_in_another_dialect_are_prepared_anew(tmp_path):
    # A service that is taken for OpenAI at first: its uploads do not arrive.
    keywords = {
        "model": "m",
        "checkpoint": tmp_path / "run",
        "poll_interval": 0.01,
        "progress": False,
        "prices": {"m": bf.Rates(input=1)},
    }
    with LocalServer(CallableModel(answer), dialect="azure", stage_seconds=0) as server:
        client = server.client()
        server.inject(Fault("files.create", "error-before:400"))
        with pytest.raises(bf.ProviderError):
            bf.complete(
                pl.DataFrame(DATA), "prompt", "id", client=client, dialect="azure-v1", **keywords
            )
        assert server.billed().requests == 0
        check(bf.complete(pl.DataFrame(DATA), "prompt", "id", client=client, **keywords))
        assert set(server.executions().values()) == {1}


def every_form(keywords, tmp_path):
    """What each function that sends gives back of the answers, one after the other."""
    frame, named = pl.DataFrame(DATA), {"model": "m", **keywords}
    frame.write_parquet(tmp_path / "in.parquet")
    yield bf.submit(frame, "prompt", "id", checkpoint=tmp_path / "a", **named).result()
    call = bf.acomplete(frame, "prompt", "id", checkpoint=tmp_path / "b", **named)
    yield asyncio.run(call)
    whole = bf.complete_parquet(
        tmp_path / "in.parquet",
        tmp_path / "out.parquet",
        "prompt",
        "id",
        checkpoint=tmp_path / "c",
        **named,
    )
    yield pl.read_parquet(whole)
    lazy = frame.lazy().openai_batch.complete("prompt", "id", checkpoint=tmp_path / "d", **named)
    yield lazy.collect()
    yield frame.openai_batch.complete("prompt", "id", checkpoint=tmp_path / "e", **named)


def test_every_function_that_sends_takes_a_dialect(tmp_path):
    keywords = {"poll_interval": 0.01, "progress": False, "prices": {"m": bf.Rates(input=1)}}
    with LocalServer(CallableModel(answer), dialect=HOUSE, stage_seconds=0) as server:
        keywords |= {"client": server.client(), "dialect": HOUSE}
        for out in every_form(keywords, tmp_path):
            check(out)
        assert server.billed().requests == 5 * 3


@pytest.mark.parametrize(
    ("function", "output"), [(bf.embed, "embedding"), (bf.moderate, "moderation")]
)
def test_vectors_and_verdicts_come_through_azure_as_well(tmp_path, function, output):
    with LocalServer(dialect="azure", stage_seconds=0) as server:
        out = function(
            pl.DataFrame(DATA),
            "prompt",
            "id",
            model="house-model",
            client=server.client(),
            checkpoint=tmp_path,
            poll_interval=0.01,
            progress=False,
            prices=PRICES,
        )
    assert out[f"{output}_status"].to_list() == ["ok"] * 4


def test_an_estimate_measures_the_lines_of_the_service():
    frame = pl.DataFrame(DATA)
    sizes = {
        name: bf.estimate(frame, "prompt", "id", model="m", dialect=name).n_bytes
        for name in ("openai", "azure")
    }
    # "/chat/completions" is three bytes shorter, four times.
    assert sizes["openai"] - sizes["azure"] == 4 * len("/v1")


def test_what_was_prepared_goes_out_as_its_lines_have_it(tmp_path):
    # Nobody has the rows any more, so they cannot be prepared anew.
    keywords = {"poll_interval": 0.01, "progress": False, "prices": {"m": bf.Rates(input=1)}}
    with LocalServer(CallableModel(answer), dialect=HOUSE, stage_seconds=0) as server:
        client = server.client()
        server.inject(Fault("files.create", "error-before:400"))
        with pytest.raises(bf.ProviderError):
            bf.complete(
                pl.DataFrame(DATA),
                "prompt",
                "id",
                model="m",
                client=client,
                checkpoint=tmp_path,
                dialect=HOUSE,
                **keywords,
            )
        bf.open_run(tmp_path, client=client, dialect="generic", **keywords).wait()
        assert server.billed().requests == 3
        assert server.calls()["batches.create"] == 1


def test_what_is_tried_again_is_addressed_anew(tmp_path):
    is_up = False

    def shaky(body):
        return answer(body) if is_up else (500, {"error": {"message": "not now"}})

    keywords = {"poll_interval": 0.01, "progress": False, "prices": {"m": bf.Rates(input=1)}}
    place = {"directory": tmp_path / "server", "stage_seconds": 0}
    frame = pl.DataFrame({"id": [1], "prompt": ["one"]})
    with LocalServer(CallableModel(shaky), **place) as server:
        port = httpx2.URL(server.base_url).port
        out = bf.complete(
            frame,
            "prompt",
            "id",
            model="m",
            client=server.client(),
            checkpoint=tmp_path / "run",
            max_retries=0,
            **keywords,
        )
        assert out["completion_status"].item() == "failed"
    is_up = True
    with LocalServer(CallableModel(shaky), dialect=HOUSE, port=port, **place) as server:
        client = server.client()
        run = bf.open_run(tmp_path / "run", client=client, dialect=HOUSE, **keywords)
        assert run.wait().status().rows == {"ok": 1}
        assert server.billed().requests == 1


def test_a_batch_whose_id_is_none_of_the_dialect_is_not_paid_again(tmp_path):
    # Of a service whose ids were said wrongly: each create succeeds, and its answer is not read.
    wrong = bf.Dialect(name="house", ids=r"file-[0-9a-f]+|job-[0-9]+")
    keywords = {
        "model": "m",
        "checkpoint": tmp_path,
        "limits": bf.Limits(reconcile_seconds=0),
        "timeout": 30,
        "poll_interval": 0.01,
        "progress": False,
        "prices": {"m": bf.Rates(input=1)},
    }
    with LocalServer(CallableModel(answer), stage_seconds=0) as server:
        keywords["client"] = server.client()
        with pytest.raises(bf.ProviderError, match=r"Nothing is sent again.*bf\.Dialect"):
            bf.complete(pl.DataFrame(DATA), "prompt", "id", dialect=wrong, **keywords)
        check(bf.complete(pl.DataFrame(DATA), "prompt", "id", **keywords))
        assert server.calls()["batches.create"] == 1
        assert set(server.executions().values()) == {1}


@pytest.mark.parametrize("first", ["generic", "siliconflow"])
def test_results_at_addresses_are_not_lost_where_the_dialect_was_not_said(tmp_path, first):
    keywords = {
        "limits": bf.Limits(reconcile_seconds=0),
        "poll_interval": 0.01,
        "progress": False,
        "prices": {"m": bf.Rates(input=1)},
    }
    clock = JumpClock()
    with LocalServer(
        CallableModel(answer), dialect="siliconflow", clock=clock, stage_seconds=10
    ) as server:
        keywords["client"] = server.client()
        frame, named = pl.DataFrame(DATA), {"model": "m", "checkpoint": tmp_path, **keywords}
        bf.submit(frame, "prompt", "id", dialect=first, **named).detach()
        clock.advance(3_600)
        if first == "siliconflow":  # it is known that the batch has ended, and no more
            server.inject(Fault("files.content", "error-before:503"))
            with pytest.raises(bf.RunTimeoutError):
                bf.open_run(tmp_path, dialect=first, **keywords).wait(timeout=0.5)
        # Whoever comes without it reads no address, and takes nothing for gone.
        for other in ("generic", "openai"):
            run = bf.open_run(tmp_path, dialect=other, **keywords)
            with pytest.raises(bf.ProviderError, match="dialect='siliconflow'"):
                run.wait()
        check(bf.complete(frame, "prompt", "id", dialect="siliconflow", **named))
        assert server.calls()["batches.create"] == 1


# Money


@pytest.mark.parametrize("name", sorted(DIALECTS.keys() - {"openai"}))
def test_no_other_service_has_the_prices_of_openai(serve, call, name):
    with pytest.warns(UserWarning, match="No price is known for gpt-4o-mini"):
        out = call(serve(), pl.DataFrame(DATA), model="gpt-4o-mini", prices=None)
    assert out["completion_cost_usd"].to_list() == [None, 0.0, None, None]


@pytest.mark.parametrize("name", ["openai"])
def test_openai_has_its_own(serve, call):
    out = call(serve(), pl.DataFrame(DATA), model="gpt-4o-mini", prices=None)
    # 10 tokens at 0.075, and 5 at 0.30 dollars a million (OpenAI's batch rates).
    assert out["completion_cost_usd"][0] == pytest.approx(2.25e-06)


@pytest.mark.parametrize("name", ["groq"])
def test_a_service_that_publishes_prices_of_batches_has_them(serve, call):
    out = call(serve(), pl.DataFrame(DATA), model="openai/gpt-oss-20b", prices=None)
    # 10 tokens at 0.0375, and 5 at 0.15 dollars a million (Groq's batch rates, 2026-10-14).
    assert out["completion_cost_usd"][0] == pytest.approx(1.125e-06)
