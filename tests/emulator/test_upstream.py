"""Batches in front of another server, which is slow, wrong, busy, or not there."""

import json
import socket
import threading
from itertools import pairwise

import pytest

from batchframe.emulator import Upstream
from batchframe.emulator.upstream import TRIES, delay
from batchframe.errors import ApiKeyError, ParameterError
from tests.emulator.upstreams import Stub, answer

DAY = 86_400


def eventually(look):
    """Wait for what another thread does, by looking; each look is a round trip."""
    while not (seen := look()):
        pass
    return seen


@pytest.fixture
def stub():
    """Start upstreams that answer in a given way; without one, like a model server."""
    stubs = []

    def start(reply=lambda _path, body: (200, answer(body)), **kwargs):
        stubs.append(Stub(reply, **kwargs).__enter__())
        return stubs[-1]

    yield start
    for each in stubs:
        each.__exit__()


@pytest.fixture
def front(serve):
    """Start a local server before an upstream."""

    def start(upstream, **kwargs):
        settings = {"concurrency": 4, "stage_seconds": 0, **kwargs}
        return serve(Upstream(upstream.base_url), **settings)

    return start


def ended(bench, batch):
    return eventually(lambda: b if (b := bench.batch(batch)).status == "completed" else None)


def by_id(bench, file_id):
    return {row["custom_id"]: row["response"] for row in bench.rows(file_id)}


def test_the_answers_are_those_of_the_upstream_word_for_word(stub, serve, monkeypatch, tmp_path):
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream-7")
    refusal = {"error": {"message": "too long", "code": "context_length_exceeded"}, "x": 1}

    def reply(_path, body):
        is_bad = body["messages"][0]["content"] == "prompt 1"
        return (422, refusal) if is_bad else (200, answer(body) | {"extra": [1.5, None]})

    upstream = stub(reply)
    source = Upstream(upstream.base_url + "/", key_env="UPSTREAM_KEY")
    bench = serve(source, concurrency=3, directory=tmp_path, stage_seconds=0)
    batch = ended(bench, bench.submit(bench.lines(3)))

    good, bad = by_id(bench, batch.output_file_id), by_id(bench, batch.error_file_id)
    assert {k: v["body"]["choices"][0]["message"]["content"] for k, v in good.items()} == {
        "row-0": "upstream: prompt 0",
        "row-2": "upstream: prompt 2",
    }
    assert good["row-0"]["body"]["extra"] == [1.5, None]
    assert (bad["row-1"]["status_code"], bad["row-1"]["body"]) == (422, refusal)
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (10, 4)
    assert {(path, sent["authorization"]) for path, _, sent in upstream.calls} == {
        ("/v1/chat/completions", "Bearer sk-upstream-7")
    }
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sk-upstream-7" in content for content in kept)
    assert "sk-upstream-7" not in repr(source) + source.name


def test_rows_end_in_any_order_and_the_next_begins_at_once(stub, front):
    gates = {f"prompt {i}": threading.Event() for i in range(4)}
    asked = []

    def reply(_path, body):
        prompt = body["messages"][0]["content"]
        asked.append(prompt)
        gates[prompt].wait(30)
        return 200, answer(body)

    bench = front(stub(reply), concurrency=2)
    batch = bench.submit(bench.lines(4))
    eventually(lambda: bench.batch(batch) and sorted(asked) == ["prompt 0", "prompt 1"])
    for last in ("prompt 1", "prompt 2", "prompt 3"):
        gates[last].set()
        n_answered = int(last[-1])
        eventually(lambda n=n_answered: bench.batch(batch).request_counts.completed == n)
    assert sorted(asked) == sorted(gates)

    gates["prompt 0"].set()
    assert len(by_id(bench, ended(bench, batch).output_file_id)) == 4


def test_live_batches_take_turns(stub, front):
    gate, asked = threading.Event(), []

    def reply(_path, body):
        asked.append(body["messages"][0]["content"])
        gate.wait(30)
        return 200, answer(body)

    bench = front(stub(reply), concurrency=1)
    first = bench.submit(bench.lines(3))
    eventually(lambda: bench.batch(first) and asked)
    second = bench.submit(b"".join(bench.line(f"other-{i}", f"other {i}") for i in range(2)))
    eventually(lambda: bench.batch(second).status == "in_progress")
    gate.set()
    for batch in (first, second):
        ended(bench, batch)

    assert asked == ["prompt 0", "other 0", "prompt 1", "other 1", "prompt 2"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_upstream_is_waited_for_as_long_as_it_says(stub, front, status):
    asked_at = []

    def reply(_path, body):
        asked_at.append(bench.clock.monotonic())
        if len(asked_at) <= 2 * TRIES:
            return status, {"error": {"message": "later"}}, {"retry-after": "100"}
        return 200, answer(body)

    bench = front(stub(reply))
    batch = bench.submit(bench.lines(1))

    def look():
        bench.clock.advance(10)
        seen = bench.batch(batch)
        return seen if seen.status == "completed" else None

    assert eventually(look).request_counts.completed == 1
    assert len(asked_at) == 2 * TRIES + 1
    assert min(later - earlier for earlier, later in pairwise(asked_at)) >= 100


@pytest.mark.parametrize(
    ("reply", "status", "message"),
    [
        ((500, {"error": {"message": "broken"}}), 500, "broken"),
        ((408, {"error": {"message": "slow"}}), 408, "slow"),
        ((500, b"<html>"), 502, "The upstream gave HTTP 500 with what is not a JSON object"),
        (None, 502, "The upstream gave no whole answer"),
    ],
)
def test_an_error_that_comes_again_and_again_is_the_rows_answer(
    stub, front, reply, status, message
):
    upstream = stub(lambda *_: reply)
    bench = front(upstream)
    batch = bench.submit(bench.lines(1))

    def look():
        bench.clock.advance(1)
        seen = bench.batch(batch)
        return seen if seen.status == "completed" else None

    (row,) = bench.rows(eventually(look).error_file_id)
    assert row["response"]["status_code"] == status
    assert row["response"]["body"]["error"]["message"].startswith(message)
    assert len(upstream.calls) == TRIES


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, b"<html>hello"), "HTTP 200 with what is not a JSON object: b'<html>hello'"),
        ((200, b"[1]"), "HTTP 200 with what is not a JSON object: b'[1]'"),
        ((200, b'{"a": "\xff"}'), "HTTP 200 with what is not a JSON object"),
        ((404, b"page not found"), "HTTP 404 with what is not a JSON object"),
        ((200, b" " * (65 << 20)), "an answer of more than 67,108,864 bytes"),
        ((200, b"{}", {"content-encoding": "gzip"}), "an answer that cannot be read"),
    ],
    ids=["html", "list", "utf-8", "404", "large", "gzip"],
)
def test_what_is_no_answer_is_a_502(stub, front, reply, message):
    upstream = stub(lambda *_: reply)
    bench = front(upstream)
    (row,) = bench.rows(ended(bench, bench.submit(bench.lines(1))).error_file_id)

    assert row["response"]["status_code"] == 502
    assert message in row["response"]["body"]["error"]["message"]
    assert len(upstream.calls) == 1


def test_an_account_without_money_is_not_waited_for(stub, front):
    broke = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    bench = front(stub(lambda *_: (429, broke)))
    (row,) = bench.rows(ended(bench, bench.submit(bench.lines(1))).error_file_id)

    assert (row["response"]["status_code"], row["response"]["body"]) == (429, broke)


def test_no_redirect_is_followed(stub, front):
    elsewhere = stub()
    target = elsewhere.base_url + "/chat/completions"
    bench = front(stub(lambda *_: (307, {}, {"location": target})))
    (row,) = bench.rows(ended(bench, bench.submit(bench.lines(1))).error_file_id)

    assert row["response"]["status_code"] == 502
    assert elsewhere.calls == []


@pytest.fixture
def away():
    """The address of an upstream that is not there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()  # or another socket could not be bound later
        return taken.getsockname()[1]


def test_rows_wait_for_an_upstream_that_is_away(stub, serve, away):
    bench = serve(Upstream(f"http://127.0.0.1:{away}/v1"), stage_seconds=0)
    batch = bench.submit(bench.lines(5))
    for _ in range(3 * TRIES):
        bench.clock.advance(60)
        assert bench.batch(batch).request_counts.failed == 0
    upstream = stub(port=away)

    def look():
        bench.clock.advance(60)
        seen = bench.batch(batch)
        return seen if seen.status == "completed" else None

    assert eventually(look).request_counts.completed == 5
    assert sorted(upstream.prompts()) == [f"prompt {i}" for i in range(5)]


def test_rows_that_nobody_answered_expire_with_their_batch(serve, away):
    bench = serve(Upstream(f"http://127.0.0.1:{away}/v1"), stage_seconds=0)
    batch = bench.submit(bench.lines(3))
    assert bench.batch(batch).status == "in_progress"
    batch = bench.after(batch, DAY)

    assert batch.status == "expired"
    assert [row["error"]["code"] for row in bench.rows(batch.error_file_id)] == [
        "batch_expired"
    ] * 3
    assert bench.server.executions() == {}


def test_a_cancelled_batch_gives_up_its_rows_and_their_places(stub, front):
    gate, ended_late = threading.Event(), []

    def reply(_path, body):
        if body["messages"][0]["content"] == "prompt 1":
            gate.wait(30)
            ended_late.append(body)
        return 200, answer(body)

    upstream = stub(reply)
    bench = front(upstream, concurrency=1)
    batch = bench.submit(bench.lines(3))
    eventually(lambda: bench.batch(batch) and len(upstream.calls) == 2)
    bench.client.batches.cancel(batch.id)
    cancelled = eventually(lambda: b if (b := bench.batch(batch)).status == "cancelled" else None)

    assert list(by_id(bench, cancelled.output_file_id)) == ["row-0"]
    left = bench.rows(cancelled.error_file_id)
    assert [(row["custom_id"], row["error"]["code"]) for row in left] == [
        ("row-1", "batch_cancelled"),
        ("row-2", "batch_cancelled"),
    ]
    # The upstream still works on row-1, and nobody waits for it.
    assert ended(bench, bench.submit(bench.line("next"))).request_counts.completed == 1
    assert ended_late == []
    gate.set()


def test_a_stop_does_not_wait_for_the_upstream_and_the_next_server_asks_again(
    stub, serve, tmp_path
):
    gate = threading.Event()

    def reply(_path, body):
        if body["messages"][0]["content"] == "prompt 1":
            gate.wait(30)
        return 200, answer(body)

    upstream = stub(reply)
    first = serve(Upstream(upstream.base_url), directory=tmp_path, concurrency=2, stage_seconds=0)
    batch = first.submit(first.lines(4))
    eventually(lambda: first.batch(batch).request_counts.completed == 3)
    first.server.stop()
    assert not gate.is_set()
    gate.set()

    second = serve(Upstream(upstream.base_url), directory=tmp_path, stage_seconds=0)
    assert len(by_id(second, ended(second, batch).output_file_id)) == 4
    asked = sorted(upstream.prompts())
    assert asked == ["prompt 0", "prompt 1", "prompt 1", "prompt 2", "prompt 3"]


def test_the_upstreams_word_on_embeddings_is_taken(stub, front):
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}
    made = {"object": "list", "data": [vector], "usage": {"prompt_tokens": "many"}}
    upstream = stub(lambda *_: (200, made))
    bench = front(upstream)
    body = {"model": "m", "input": "a"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    file = bench.upload(json.dumps(line).encode())
    batch = ended(bench, bench.create(file.id, endpoint="/v1/embeddings"))

    assert by_id(bench, batch.output_file_id)["a"]["body"] == made
    assert upstream.calls[0][:2] == ("/v1/embeddings", body)
    assert batch.usage.input_tokens == 0  # what is no number is not counted


def test_delays_double_up_to_half_a_minute_and_are_never_shorter_than_asked_for():
    assert [delay(n) for n in (1, 2, 3, 7, 8, 5000)] == [0.5, 1.0, 2.0, 30.0, 30.0, 30.0]
    assert delay(1, 100.0) == 100.0


@pytest.mark.parametrize(
    "address",
    [
        "http://10.0.0.1/v1",
        "http://example.com/v1",
        "ftp://127.0.0.1/v1",
        "127.0.0.1:80",
        "",
        "https://user:word@example.com/v1",
        "https://:word@example.com/v1",
        "http://127.0.0.1:99999/v1",
        "http://[::1/v1",
        "https://example.com/v1?key=1",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address):
    with pytest.raises(ParameterError, match="upstream"):
        Upstream(address)


@pytest.mark.parametrize(
    "address", ["https://example.com/v1", "http://[::1]:80", "http://localhost"]
)
def test_https_and_this_machine_are_taken(address):
    assert Upstream(address).name.endswith(address)


@pytest.mark.parametrize("value", [None, "", "two words", "line\n", "schlüssel"])
def test_a_key_that_is_none_is_refused_and_not_shown(monkeypatch, value):
    monkeypatch.delenv("UPSTREAM_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("UPSTREAM_KEY", value)
    with pytest.raises(ApiKeyError, match="UPSTREAM_KEY") as caught:
        Upstream("https://example.com/v1", key_env="UPSTREAM_KEY")

    assert not value or value not in str(caught.value)


def test_a_look_tells_whether_the_upstream_is_there(stub, away):
    assert Upstream(stub().base_url).look() is None
    wrong = Upstream(f"http://127.0.0.1:{away}/v1").look()

    assert wrong.startswith(f"Nothing answers at http://127.0.0.1:{away}/v1 (ConnectError")
