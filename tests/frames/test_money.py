"""Money: what a call costs is known before, bounded while it runs, and accounted for after it."""

import contextlib
import itertools
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batchframe as bf
from batchframe.core.tokens import counter
from batchframe.emulator import Echo, Fault, LocalServer

MINI = "gpt-4o-mini"
#: Dollars per token of gpt-4o-mini in a batch: $0.075 and $0.30 a million.
IN, OUT = 0.075e-6, 0.30e-6
_numbers = itertools.count()


def answering(n_input, n_output, *, model=None, **details):
    """A model that says the prompt again and reports this usage."""

    def answer(body):
        usage = {"prompt_tokens": n_input, "completion_tokens": n_output}
        if "cached" in details:
            usage["prompt_tokens_details"] = {"cached_tokens": details["cached"]}
        if "reasoning" in details:
            usage["completion_tokens_details"] = {"reasoning_tokens": details["reasoning"]}
        message = {"role": "assistant", "content": body["messages"][-1]["content"]}
        return 200, {
            "model": model or body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
        }

    return answer


@pytest.fixture
def on_server(complete):
    """`complete` on a server of its own."""

    def call(frame, model, /, **kwargs):
        with LocalServer(model, stage_seconds=0) as server:
            return complete(frame, client=server.client(), **kwargs), server

    return call


# --- Prices of one's own --------------------------------------------------------------------------


def test_own_rates_hold_instead_of_the_published_ones(frames, on_server):
    frame = frames.make({"id": [1], "prompt": ["x"]})
    rates = bf.Rates(input=2, cached=1, output=10)
    out, _ = on_server(frame, answering(1000, 100, cached=400), prices={MINI: rates})

    expected = (600 * 2 + 400 * 1 + 100 * 10) / 1e6
    assert frames.values(out, "completion_cost_usd") == pytest.approx([expected])


@pytest.mark.parametrize("name", ["my-llama", "llama-3.3-70b-instruct"])
def test_a_model_of_unknown_price_has_one_by_its_asked_or_its_answered_name(
    frames, on_server, name, recwarn
):
    frame = frames.make({"id": [1], "prompt": ["x"]})
    model = answering(1000, 100, model="llama-3.3-70b-instruct")
    prices = {name: bf.Rates(input=0.5, output=1)}
    out, _ = on_server(frame, model, model="my-llama", prices=prices)

    assert frames.values(out, "completion_cost_usd") == pytest.approx([600e-6])
    assert not [w for w in recwarn if "price" in str(w.message)]


def test_a_price_that_is_given_later_holds_for_what_was_paid_before(
    frames, complete, paid, checkpoint
):
    frame = frames.make({"id": [1], "prompt": ["one two"]})
    words = r"No price is known for their-model.*prices=\{'their-model': bf.Rates\("
    with pytest.warns(UserWarning, match=words):
        out = complete(frame, model="their-model")
    assert frames.values(out, "completion_cost_usd") == [None]
    assert bf.results(checkpoint)["price_source"].to_pylist() == [None]

    prices = {"their-model": bf.Rates(input=1, output=2)}
    out = complete(frame, model="their-model", prices=prices)
    # 3 and 4 for the chat and "one two"; "echo", ":" and "one two".
    assert frames.values(out, "completion_cost_usd") == pytest.approx([(9 * 1 + 4 * 2) / 1e6])
    assert paid() == 1
    attached = bf.attach(frame, checkpoint, "prompt", "id", prices=prices)
    frames.assert_frame_equal(attached, out)


def test_results_say_where_their_prices_come_from(complete, tmp_path):
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    complete(frame, checkpoint=tmp_path / "published")
    own = {MINI: bf.Rates(input=1, output=1)}
    complete(frame, checkpoint=tmp_path / "own", prices=own)

    (published,) = bf.results(tmp_path / "published")["price_source"].to_pylist()
    assert published.startswith("genai-prices 0.")
    assert bf.results(tmp_path / "own")["price_source"].to_pylist() == ["prices="]


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", None, True])
def test_what_is_no_rate_is_refused(value):
    with pytest.raises(bf.ParameterError, match="dollars per million tokens"):
        bf.Rates(input=value)


@pytest.mark.parametrize("value", [{MINI: 1.0}, [1], {1: bf.Rates(input=1)}])
def test_what_is_no_prices_is_refused(complete, value):
    with pytest.raises(bf.ParameterError, match=r"prices=.* must be a dict of bf\.Rates"):
        complete(pl.DataFrame({"id": [1], "prompt": ["x"]}), prices=value)


# --- Equal requests -------------------------------------------------------------------------------

TWINS = {"id": [1, 2, 3, 4, 5], "prompt": ["same", "other", "same", None, "same"]}


def test_equal_requests_are_sent_once_and_all_their_rows_are_answered(
    frames, complete, paid, calls
):
    out = complete(frames.make(TWINS), dedupe=True)

    same, other = "echo: same", "echo: other"
    assert frames.values(out, "completion") == [same, other, same, None, same]
    assert paid() == 2
    # 3 and 4 for the chat and 1 for the word; "echo", ":" and the word.
    cost = 8 * IN + 3 * OUT
    costs = frames.values(out, "completion_cost_usd")
    assert costs == pytest.approx([cost, cost, 0, 0, 0])

    sent = calls()
    frames.assert_frame_equal(complete(frames.make(TWINS), dedupe=True), out)
    assert calls() == sent


def test_without_dedupe_each_row_is_sent(frames, complete, paid):
    complete(frames.make(TWINS))
    assert paid() == 4


def test_rows_that_are_answered_already_serve_equal_ones_of_other_frames(frames, complete, paid):
    first = complete(frames.make(TWINS), dedupe=True)
    other = frames.make({"id": [8, 9, 10], "prompt": ["new", "same", "new"]})
    out = complete(other, dedupe=True)

    assert frames.values(out, "completion") == ["echo: new", "echo: same", "echo: new"]
    assert paid() == 3
    assert frames.values(first, "completion")[0] == "echo: same"


def test_calls_at_the_same_time_send_equal_requests_once(complete, paid):
    frames_ = [
        pl.DataFrame({"id": ids, "prompt": [f"prompt {id_ % 10}" for id_ in ids]})
        for ids in (range(100), range(100, 200), range(200, 300))
    ]
    with ThreadPoolExecutor(3) as pool:
        outs = list(pool.map(lambda frame: complete(frame, dedupe=True), frames_))
    for frame, out in zip(frames_, outs, strict=True):
        assert out["completion"].to_list() == [f"echo: {prompt}" for prompt in frame["prompt"]]
    assert paid() == 10


def test_equal_prompts_with_other_parameters_are_not_equal(complete, paid):
    frame = pl.DataFrame({"id": [1, 2, 3], "prompt": ["x"] * 3, "n": [50, 60, 50]})
    complete(frame, dedupe=True, max_completion_tokens=bf.col("n"))
    assert paid() == 2


def test_attach_finds_equal_rows_where_that_is_asked_for(frames, complete, checkpoint):
    out = complete(frames.make(TWINS), dedupe=True)
    frames.assert_frame_equal(
        bf.attach(frames.make(TWINS), checkpoint, "prompt", "id", dedupe=True), out
    )
    alone = bf.attach(frames.make(TWINS), checkpoint, "prompt", "id")
    assert frames.values(alone, "completion_status") == ["ok", "ok", None, "skipped", None]


def test_an_equal_request_that_failed_is_tried_again_once(frames, complete):
    tries = []

    def answer(body):
        tries.append(body)
        if len(tries) == 1:
            return 500, {"error": {"message": "again", "code": "server_error"}}
        return answering(10, 5)(body)

    frame = frames.make({"id": [1, 2, 3], "prompt": ["x"] * 3})
    with LocalServer(answer, stage_seconds=0) as server:
        out = complete(frame, client=server.client(), dedupe=True, max_retries=0)
        assert frames.values(out, "completion_status") == ["failed"] * 3
        # The first row is gone, and with it the request that failed.
        rest = frames.rows(frame, [1, 2])
        out = complete(rest, client=server.client(), dedupe=True)
    assert frames.values(out, "completion") == ["x", "x"]
    assert len(tries) == 2
    assert frames.values(out, "completion_cost_usd") == pytest.approx([10 * IN + 5 * OUT, 0])


# --- A limit --------------------------------------------------------------------------------------


def test_nothing_is_sent_where_the_least_is_too_much(frames, complete, calls):
    frame = frames.make({"id": range(100), "prompt": ["word " * 100] * 100})
    words = "is too little: the rows have cost .0.00 so far, and the 100 rows"
    with pytest.raises(bf.BudgetExceededError, match=words):
        complete(frame, max_cost_usd=0.0001, max_completion_tokens=10)
    assert calls() == {}


def test_a_limit_needs_a_limit_of_tokens_and_a_price(complete, calls):
    frame = pl.DataFrame({"id": [1], "prompt": ["x"]})
    with pytest.raises(bf.ParameterError, match="max_completion_tokens="):
        complete(frame, max_cost_usd=1)
    with pytest.raises(bf.ParameterError, match=r"prices=\{'model': bf.Rates\("):
        complete(frame, max_cost_usd=1, max_completion_tokens=10, model="theirs")
    assert calls() == {}
    own = {"theirs": bf.Rates(input=1, output=1)}
    out = complete(frame, max_cost_usd=1, max_completion_tokens=10, model="theirs", prices=own)
    assert out["completion_status"].to_list() == ["ok"]


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "5", True])
def test_what_is_no_sum_is_refused(complete, value):
    with pytest.raises(bf.ParameterError, match=r"max_cost_usd=.* must be US dollars above 0"):
        complete(pl.DataFrame({"id": [1], "prompt": ["x"]}), max_cost_usd=value)


def test_no_batch_is_sent_that_could_exceed_the_limit(frames, on_server, complete, checkpoint):
    # Answers may have 1,000 tokens and do: 3e-4 dollars each, and prompts of a dollar's 1e-5th.
    frame = frames.make({"id": range(10), "prompt": [f"row {row}" for row in range(10)]})
    keywords = {"max_completion_tokens": 1000, "limits": bf.Limits(max_requests=1)}
    with LocalServer(answering(10, 1000), stage_seconds=0) as server:
        with pytest.raises(bf.BudgetExceededError) as caught:
            complete(frame, client=server.client(), max_cost_usd=0.00125, **keywords)
        # Four times 3.0075e-4 are 1.203e-3; a fifth would be 1.504e-3.
        assert server.billed().requests == 4
        message = str(caught.value)
        assert "max_cost_usd=0.00125 has no room for more: the rows have cost $0.0012" in message
        assert "the next batch of 1 could cost up to $0.0003" in message
        assert "6 rows were not sent, and cost nothing" in message

        again = {"client": server.client(), **keywords}
        with pytest.raises(bf.BudgetExceededError, match="6 rows were not sent"):
            complete(frame, max_cost_usd=0.00125, **again)
        assert server.billed().requests == 4  # what was spent before counts

        out = complete(frame, max_cost_usd=1, **again)
        assert server.billed().requests == 10
    assert frames.values(out, "completion_status") == ["ok"] * 10
    total = sum(frames.values(out, "completion_cost_usd"))
    assert total == pytest.approx(10 * (10 * IN + 1000 * OUT))


def test_answers_whose_cost_nobody_knows_count_at_the_most_that_they_can_cost(complete):
    frame = pl.DataFrame({"id": range(10), "prompt": [f"row {row}" for row in range(10)]})
    with LocalServer(answering(10, 1000), stage_seconds=0) as server:
        # The provider bills them, and says nothing of them.
        server.inject(Fault("output", "drop-line", times=None))
        with pytest.raises(bf.BudgetExceededError, match="6 rows were not sent"):
            complete(
                frame,
                client=server.client(),
                max_cost_usd=0.0013,
                max_completion_tokens=1000,
                limits=bf.Limits(max_requests=1, reconcile_seconds=0),
            )
        assert server.billed().requests == 4


def test_what_is_not_known_of_earlier_calls_counts_at_the_most_as_well(complete, checkpoint):
    frame = pl.DataFrame({"id": range(10), "prompt": [f"row {row}" for row in range(10)]})
    with LocalServer(answering(10, 1000), stage_seconds=0) as server:
        server.inject(Fault("output", "drop-line", times=None))
        limits = bf.Limits(max_requests=1, reconcile_seconds=0)
        call = {
            "client": server.client(),
            "max_cost_usd": 0.0013,
            "max_completion_tokens": 1000,
            "limits": limits,
        }
        with pytest.raises(bf.BudgetExceededError, match="6 rows were not sent"):
            complete(frame, **call)
        with pytest.raises(bf.BudgetExceededError, match="6 rows were not sent"):
            complete(frame, **call)
        run = bf.open_run(checkpoint, client=server.client(), limits=limits, progress=False)
        with pytest.raises(bf.BudgetExceededError, match=r"rows? w\w+ not sent"):
            run.wait()
        assert server.billed().requests == 4


def test_a_limit_that_cannot_be_kept_any_more_says_how_to_go_on(complete):
    frame = pl.DataFrame({"id": [1, 2, 3], "prompt": ["one", "two", "three"], "most": [10] * 3})
    with LocalServer(stage_seconds=0) as server:
        server.inject(Fault("output", "drop-line"))
        call = {"client": server.client(), "max_completion_tokens": bf.col("most")}
        complete(frame.head(2), max_cost_usd=1.0, limits=bf.Limits(reconcile_seconds=0), **call)
        with pytest.raises(bf.BudgetExceededError, match="leave max_cost_usd out"):
            complete(frame, max_cost_usd=1.0, **call)
        out = complete(frame, **call)
    assert sorted(out["completion_status"]) == ["missing", "ok", "ok"]


def test_damaged_results_that_are_fetched_again_stop_no_call_with_a_limit(complete, checkpoint):
    first = pl.DataFrame({"id": [1], "prompt": ["one"]})
    second = pl.DataFrame({"id": [1, 2], "prompt": ["one", "two"]})
    call = {"max_cost_usd": 1.0, "max_completion_tokens": 1000}
    complete(first, **call)
    for kind in ("results", "raw"):
        for path in (checkpoint / kind).iterdir():
            path.write_bytes(b"damaged")

    out = complete(second, **call)
    assert out["completion"].to_list() == ["echo: one", "echo: two"]


def test_what_costs_less_than_it_could_leaves_room_for_more(complete):
    frame = pl.DataFrame({"id": range(10), "prompt": [f"row {row}" for row in range(10)]})
    with LocalServer(answering(10, 1), stage_seconds=0) as server:
        out = complete(
            frame,
            client=server.client(),
            max_cost_usd=0.0005,  # one answer of 1,000 tokens, and not two
            max_completion_tokens=1000,
            limits=bf.Limits(max_requests=1),
        )
    assert out["completion_status"].to_list() == ["ok"] * 10


# --- Before ---------------------------------------------------------------------------------------


@pytest.fixture
def without_network(monkeypatch):
    """No key, and an address where nobody is."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")


def test_an_estimate_needs_no_key_and_no_network(frames, without_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = frames.make({"id": range(5), "prompt": ["a", "b", "a", None, ""]})
    found = bf.estimate(
        frame, "prompt", "id", model=MINI, max_completion_tokens=10, progress=False, output="x"
    )

    assert (found.n_rows, found.n_skipped, found.n_requests, found.n_duplicates) == (5, 2, 3, 1)
    assert (found.n_paid, found.n_under_way, found.n_shards, found.n_waves) == (0, 0, 1, 1)
    assert found.output_tokens == type(found.output_tokens)(3, 30)
    # Of three rows: 3 and 4 for the chat and 1 for the letter, and a tenth of doubt.
    assert found.input_tokens == type(found.input_tokens)(3 * 7, 3 * 9)
    low, high = 21 * IN + 3 * OUT, 27 * IN + 30 * OUT
    assert (found.cost_usd.low, found.cost_usd.high) == pytest.approx((low, high))
    assert found.standard_usd.high == pytest.approx(2 * high)
    assert found.duplicates_usd.low == pytest.approx(low / 3)
    assert list(tmp_path.iterdir()) == []


def test_its_rows_add_up_also_when_equal_requests_are_sent_once(without_network):
    frame = pl.DataFrame({"id": range(6), "prompt": ["a", "b", "a", "a", None, "c"]})
    call = {"model": MINI, "max_completion_tokens": 10}
    found = frame.openai_batch.estimate("prompt", "id", dedupe=True, **call)
    apart = frame.openai_batch.estimate("prompt", "id", **call)

    assert (found.n_rows, found.n_skipped, found.n_duplicates, found.n_requests) == (6, 1, 2, 3)
    assert (apart.n_rows, apart.n_skipped, apart.n_duplicates, apart.n_requests) == (6, 1, 2, 5)
    assert found.duplicates_usd == apart.duplicates_usd
    assert "dedupe=True leaves them out and saves $0.00000" in repr(found)
    assert "dedupe=True would leave them out and save $0.00000" in repr(apart)


def test_it_reads_well(without_network):
    frame = pl.DataFrame({"id": range(4), "prompt": ["a <b>", "b", "b", None]})
    found = frame.openai_batch.estimate("prompt", "id", model=MINI, max_completion_tokens=10)
    lines = [
        "Estimate for gpt-4o-mini",
        "rows                                   4",
        "  paid already                         0",
        "  under way                            0",
        "  without prompt                       1",
        "  duplicates  1  dedupe=True would leave them out and save $0.00000083 to $0.0000037",
        "requests                               3  in 1 batch, 0.00 MB",
        "input tokens                    24 to 31  3 rows counted by o200k_base",
        "output tokens                    3 to 30",
        "cost              $0.0000027 to $0.000011  $0.0000054 to $0.000023 without batches",
        "time                      up to 24 hours",
    ]
    shown = repr(found).split("\n")
    assert [line.split() for line in shown] == [line.split() for line in lines]
    assert len({line.find("  ", 20) for line in shown[1:5]}) == 1
    html = found._repr_html_()
    assert html.startswith("<table class='tex2jax_ignore mathjax_ignore'>")  # $ is no formula
    assert "<td>3</td><td style='text-align:left'>in 1 batch" in html
    odd = frame.openai_batch.estimate("prompt", "id", model="<script>")
    assert "<script>" not in odd._repr_html_()


ENGLISH = [f"{line} {row}" for row, line in enumerate(str(sys.__doc__ or math.__doc__).split("\n"))]
ENGLISH += [
    "A checkpoint keeps what was paid for, so that the same call again sends nothing at all.",
    "It was a bright cold day in April, and the clocks were striking thirteen.",
    "Call the function with a frame; it comes back with the answers as new columns.",
]
CHINESE = [
    "在本文中我们提出一种新的方法来处理大规模数据",
    "实验结果表明该方法优于现有的所有方法",
    "今天天气很好所以我们决定去公园散步",
]
JSON = [
    json.dumps({"id": f"{row * 2654435761 % 2**32:08x}-{row:04x}-4d3a-9f0c", "n": row * 7919})
    for row in range(50)
]


@pytest.mark.parametrize("texts", [ENGLISH, CHINESE, JSON], ids=["English", "Chinese", "JSON"])
@pytest.mark.parametrize("model", [MINI, "their-model"], ids=["vocabulary", "bytes"])
def test_the_prompts_take_what_was_estimated(on_server, texts, model, without_network):
    texts = [text for text in texts if text.strip()]
    frame = pl.DataFrame({"id": range(len(texts)), "prompt": texts})
    prices = {"their-model": bf.Rates(input=1, output=1)}
    found = frame.openai_batch.estimate(
        "prompt", "id", model=model, system="Answer in one word.", prices=prices
    )
    count = counter("o200k_base") if model == MINI else None
    out, _ = on_server(frame, Echo(count), model=model, system="Answer in one word.", prices=prices)

    real = out["completion_input_tokens"].sum()
    assert found.input_tokens.low <= real <= found.input_tokens.high
    if model == MINI:
        assert f"{len(texts)} rows counted by o200k_base" in found.counted
        middle = (found.input_tokens.low + found.input_tokens.high) / 2
        assert middle == pytest.approx(real, rel=0.1)
    else:
        assert found.counted == "bounded by bytes"


def test_a_sample_of_a_large_frame_stands_for_all_of_it(on_server, without_network):
    texts = [f"{'word ' * (row % 40)}{row}" for row in range(5000)]
    frame = pl.DataFrame({"id": range(len(texts)), "prompt": texts})
    found = frame.openai_batch.estimate("prompt", "id", model=MINI)
    real = sum(counter("o200k_base")(text) + 7 for text in texts)
    assert "1,000 rows counted" in found.counted or "999 rows counted" in found.counted
    middle = (found.input_tokens.low + found.input_tokens.high) / 2
    assert middle == pytest.approx(real, rel=0.03)


def test_rows_that_were_paid_teach_and_are_not_counted_again(frames, complete, client, checkpoint):
    frame = frames.make({"id": range(20), "prompt": [f"the word {row:03d}" for row in range(20)]})
    keywords = {"model": MINI, "client": client, "checkpoint": checkpoint, "progress": False}
    complete(frames.rows(frame, range(10)), **keywords)
    found = bf.estimate(frame, "prompt", "id", **keywords)

    assert (found.n_paid, found.n_requests, found.counted) == (10, 10, "as the rows so far had")
    # Each had 3 + 4 + 3 tokens and an answer of 5, and the others are as long.
    assert found.input_tokens.low <= 10 * 10 <= found.input_tokens.high
    assert found.input_tokens.high <= 1.2 * 10 * 10
    assert found.output_tokens.low <= 10 * 5 <= found.output_tokens.high
    assert found.output_tokens.high <= 1.5 * 10 * 5
    out = complete(frame, **keywords)
    real = sum(frames.values(out, "completion_cost_usd")[10:])
    assert found.cost_usd.low <= real <= found.cost_usd.high


def test_batches_and_waves_are_counted(without_network):
    frame = pl.DataFrame({"id": range(100), "prompt": ["a prompt of some words"] * 100})
    limits = bf.Limits(max_requests=10, max_enqueued_tokens=1000)
    found = frame.openai_batch.estimate("prompt", "id", model=MINI, limits=limits)
    assert found.n_shards >= 10
    n_guessed = len("a prompt of some words") // 3 + 8
    assert found.n_waves == math.ceil(100 * n_guessed / 1000)
    assert found.hours == found.n_waves * 24
    assert "the queue is filled" in repr(found)


def test_embeddings_and_moderations_are_estimated_as_well(client, checkpoint, without_network):
    frame = pl.DataFrame({"id": [1, 2], "text": ["one two", "three"]})
    keywords = {"model": "text-embedding-3-small", "checkpoint": checkpoint, "client": client}
    found = frame.openai_batch.estimate(
        "text", "id", endpoint="/v1/embeddings", dimensions=4, **keywords
    )
    assert found.output_tokens.high == 0
    assert found.cost_usd.high == pytest.approx(found.input_tokens.high * 0.01e-6)
    frame.openai_batch.embed("text", "id", dimensions=4, progress=False, **keywords)
    found = frame.openai_batch.estimate(
        "text", "id", endpoint="/v1/embeddings", dimensions=4, **keywords
    )
    assert (found.n_paid, found.n_requests) == (2, 0)
    free = frame.openai_batch.estimate(
        "text", "id", model="omni-moderation-latest", endpoint="/v1/moderations"
    )
    assert free.cost_usd.high == 0


def test_each_model_of_a_column_has_its_price(without_network):
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["a", "a"], "m": ["gpt-4o", MINI]})
    found = frame.openai_batch.estimate("prompt", "id", model=bf.col("m"), max_tokens=1)
    # 8 tokens and one of an answer: 1.25 and 5, 0.075 and 0.30 a million.
    assert found.cost_usd.low == pytest.approx((7 * 1.325 + 5.3) / 1e6)
    assert found.n_shards == 2


def test_pictures_are_told_and_not_counted(without_network):
    frame = pl.DataFrame({"id": [1], "prompt": ["What is it?"], "url": ["https://x.test/a.png"]})
    found = frame.openai_batch.estimate("prompt", "id", model=MINI, images="url")
    assert found.counted.endswith("images not counted")


def test_what_a_call_refuses_an_estimate_refuses(frames, without_network):
    frame = frames.make({"id": [1, 1], "prompt": ["a", "b"]})
    with pytest.raises(bf.RowError, match="repeats the id"):
        bf.estimate(frame, "prompt", "id", model=MINI)
    with pytest.raises(bf.ColumnError, match="Did you mean 'prompt'"):
        bf.estimate(frame, "promt", "id", model=MINI)
    with pytest.raises(bf.ParameterError, match="Did you mean 'temperature'"):
        bf.estimate(frame, "prompt", "id", model=MINI, temprature=1)


def test_a_checkpoint_of_another_spec_is_refused(frames, complete, client, checkpoint):
    frame = frames.make({"id": [1], "prompt": ["a"]})
    complete(frame)
    with pytest.raises(bf.CheckpointMismatchError, match="temperature"):
        bf.estimate(
            frame,
            "prompt",
            "id",
            model=MINI,
            temperature=1,
            checkpoint=checkpoint,
            client=client,
        )


# --- After ----------------------------------------------------------------------------------------


def test_usage_adds_up_what_a_checkpoint_holds(on_server, checkpoint):
    frame = pl.DataFrame({"id": range(3), "prompt": ["a", "b", "c"]})
    model = answering(1000, 100, cached=400, reasoning=40)
    on_server(frame, model, model="gpt-5")
    used = bf.usage(checkpoint)

    # gpt-5 in a batch: 0.625, cached 0.0625 and 5 dollars; twice that and 10 outside.
    cost = 3 * (600 * 0.625 + 400 * 0.0625 + 100 * 5) / 1e6
    assert used.cost_usd == pytest.approx(cost)
    standard = 3 * (600 * 1.25 + 400 * 0.125 + 100 * 10) / 1e6
    assert used.saved_usd == pytest.approx(standard - cost)
    table = used.to_polars()
    assert table.select("model", "category", "tokens", "requests").rows() == [
        ("gpt-5", "prompt", 3000, None),
        ("gpt-5", "cached", 1200, None),
        ("gpt-5", "completion", 300, None),
        ("gpt-5", "reasoning", 120, None),
        ("gpt-5", "total", 3300, 3),
    ]
    parts = [1800 * 0.625 + 1200 * 0.0625, 1200 * 0.0625, 300 * 5, 120 * 5]
    expected = [part / 1e6 for part in parts]
    assert table["cost_usd"].to_list() == pytest.approx([*expected, cost])
    assert used.differences == ()
    pd.testing.assert_frame_equal(used.to_pandas(), table.to_pandas(), check_dtype=False)


def test_it_prints_in_terminals_and_notebooks(on_server, checkpoint):
    frame = pl.DataFrame({"id": range(2), "prompt": ["a", "b"], "m": ["gpt-5", MINI]})
    on_server(frame, answering(1_000_000, 0, cached=0), model=bf.col("m"))
    assert repr(bf.usage(checkpoint, digits=3)).split("\n") == [
        "+-------------+------------+-----------+--------+",
        "| Model       | Category   |    Tokens |  Price |",
        "+-------------+------------+-----------+--------+",
        "| gpt-4o-mini | Prompt     | 1,000,000 | $0.075 |",
        "|             | Completion |         0 | $0.000 |",
        "|             | Total      | 1,000,000 | $0.075 |",
        "+-------------+------------+-----------+--------+",
        "| gpt-5       | Prompt     | 1,000,000 | $0.625 |",
        "|             | Completion |         0 | $0.000 |",
        "|             | Total      | 1,000,000 | $0.625 |",
        "+-------------+------------+-----------+--------+",
        "2 requests, $0.700; $0.700 saved by batches",
    ]
    html = bf.usage(checkpoint)._repr_html_()
    assert html.startswith("<div class='tex2jax_ignore mathjax_ignore'><table>")  # $ is no formula
    assert "<p>2 requests, $0.700000; $0.700000 saved by batches</p>" in html


def test_a_usage_table_reads_in_a_notebook_as_it_does_in_print(on_server, checkpoint):
    frame = pl.DataFrame({"id": [1], "prompt": ["a"]})
    on_server(frame, answering(1_000_000, 0, cached=1000))
    used = bf.usage(checkpoint, digits=3)
    html = used._repr_html_()
    # Words are left, numbers right, and what is a part is indented.
    left, right = "text-align:left", "text-align:right"
    for word in ("Prompt", "  cached", "Completion", "Total"):
        assert f"<td style='{left};white-space:pre'>{word}</td>" in html
    assert f"<td style='{right}'>1,000,000</td><td style='{right}'>$0.075</td>" in html
    assert (
        f"<th style='{left};white-space:pre'>Category</th><th style='{right}'>Tokens</th>" in html
    )
    for shown in (repr(used), html):
        assert "1 request, $0.075; $0.075 saved by batches" in shown


def test_a_price_that_is_not_known_is_not_zero(on_server, checkpoint):
    frame = pl.DataFrame({"id": [1], "prompt": ["a"]})
    with pytest.warns(UserWarning, match="No price is known"):
        on_server(frame, answering(10, 10), model="<theirs>")
    used = bf.usage(checkpoint)
    assert used.cost_usd is None
    assert used.saved_usd is None
    assert "unknown" in repr(used)
    assert "<theirs>" not in used._repr_html_()
    own = {"<theirs>": bf.Rates(input=1, output=2)}
    assert bf.usage(checkpoint, prices=own).cost_usd == pytest.approx(30e-6)


def test_usage_has_no_published_prices_for_what_cost_another_sum(on_server, checkpoint):
    # 1,000 and 2,000 dollars a million: no list has them.
    own = {MINI: bf.Rates(input=1_000, output=2_000)}
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["a", "b"]})
    out, _ = on_server(frame, answering(100, 10), prices=own, details=True)
    for used in (bf.usage(checkpoint), bf.usage(out)):
        costs = dict(used.to_polars().select("category", "cost_usd").rows())
        assert costs["prompt"] is None
        assert costs["completion"] is None
        assert costs["total"] == pytest.approx(out["completion_cost_usd"].sum())
    # Of a frame nobody knows that it was OpenAI who answered.
    assert bf.usage(out).saved_usd is None
    for used in (bf.usage(checkpoint, prices=own), bf.usage(out, prices=own)):
        costs = dict(used.to_polars().select("category", "cost_usd").rows())
        assert costs["prompt"] + costs["completion"] == pytest.approx(costs["total"])


def test_results_that_are_made_anew_have_the_prices_of_the_call(complete, checkpoint):
    own = {MINI: bf.Rates(input=1_000, output=2_000)}
    frame = pl.DataFrame({"id": [1], "prompt": ["a"]})
    with LocalServer(answering(100, 10), stage_seconds=0) as server:
        complete(frame, prices=own, client=server.client())
        assert bf.usage(checkpoint).cost_usd == pytest.approx(0.12)
        (checkpoint / "results/00000.parquet").write_bytes(b"damaged")
        complete(frame, prices=own, client=server.client())
    assert bf.usage(checkpoint).cost_usd == pytest.approx(0.12)


def test_usage_of_a_frame_that_came_back(frames, on_server, checkpoint):
    frame = frames.make({"id": range(3), "prompt": ["a", None, "c"]})
    out, _ = on_server(frame, answering(100, 10), details=True, output="answer")
    used = bf.usage(out, output="answer")
    assert used.cost_usd == pytest.approx(2 * (100 * IN + 10 * OUT))
    assert used.to_polars().rows() == bf.usage(checkpoint).to_polars().rows()

    plain = out[[name for name in out.columns if name != "answer_model"]]
    whole = bf.usage(plain, output="answer")
    assert whole.cost_usd == used.cost_usd
    assert whole.to_polars()["cost_usd"].to_list()[:2] == [None, None]
    assert bf.usage(plain, output="answer", model=MINI).saved_usd == pytest.approx(used.saved_usd)
    with pytest.raises(bf.ColumnError, match="completion_input_tokens"):
        bf.usage(out)


def test_batches_that_do_not_add_up_are_told(complete, checkpoint):
    frame = pl.DataFrame({"id": range(3), "prompt": ["a", "b", "c"]})
    with LocalServer(stage_seconds=0, faults=[Fault("output", "drop-line")]) as server:
        out = complete(frame, client=server.client(), details=True)
        (batch,) = server.client().batches.list().data
    assert out["completion_status"].to_list().count("missing") == 1
    (difference,) = bf.usage(checkpoint).differences
    assert difference.batch_id == batch.id
    assert (difference.rows.input_tokens, difference.batch.input_tokens) == (2 * 8, 3 * 8)
    assert f"{batch.id}: its rows add up to 16 input and 6 output tokens, it says 24 input" in (
        repr(bf.usage(checkpoint))
    )


# --- The bill -------------------------------------------------------------------------------------


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    prompts=st.lists(st.sampled_from(["a", "b b", "c c c", None, "fails", "once"]), max_size=8),
    more=st.lists(st.sampled_from(["a", "d", "once", "fails"]), max_size=4),
    dedupe=st.booleans(),
    faults=st.lists(
        st.sampled_from(
            [
                Fault("batches.create", "reply-lost-after"),
                Fault("output", "duplicate-line"),
                Fault("output", "foreign-line"),
            ]
        ),
        max_size=2,
        unique_by=lambda fault: fault.name,
    ),
)
def test_the_costs_are_the_bill_whatever_happens(complete, tmp_path, prompts, more, dedupe, faults):
    seen = set()

    def answer(body):
        text = body["messages"][-1]["content"]
        if text == "fails":
            return 400, {"error": {"message": "no", "code": "invalid_value"}}
        if text == "once" and len(seen) == 0:
            seen.add(text)
            return 503, {"error": {"message": "later", "code": "server_error"}}
        return 200, Echo().answer(body)[1]

    place = tmp_path / f"checkpoint-{next(_numbers)}"
    frame = pl.DataFrame(
        {"id": range(len(prompts)), "prompt": prompts}, schema={"id": pl.Int64, "prompt": pl.String}
    )
    grown = frame.vstack(
        pl.DataFrame(
            {"id": range(100, 100 + len(more)), "prompt": more},
            schema={"id": pl.Int64, "prompt": pl.String},
        )
    )
    keywords = {
        "checkpoint": place,
        "dedupe": dedupe,
        "limits": bf.Limits(max_requests=3, reconcile_seconds=0),
    }
    with LocalServer(answer, stage_seconds=0, faults=faults) as server:
        with contextlib.suppress(bf.ProviderError):  # all of a first batch failed for good
            complete(frame, client=server.client(), **keywords)
        try:
            out = complete(grown, client=server.client(), **keywords)
        except bf.ProviderError:
            return
        billed = server.billed()
    bill = billed.input_tokens * IN + billed.output_tokens * OUT
    assert out["completion_cost_usd"].sum() == pytest.approx(bill)
    assert (out["completion_cost_usd"] >= 0).all()
    if billed.requests:
        assert bf.usage(place).cost_usd == pytest.approx(bill)
