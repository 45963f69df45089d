import pytest

from batchframe.emulator import LocalServer

HOUR = 3600


def _limited(reply):
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (429, "rate_limit_exceeded")
    assert f"Please try again in {reply.headers['retry-after']}s." in error["message"]
    return int(reply.headers["retry-after"])


def _order(file):
    return {
        "input_file_id": file.id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }


def test_a_batch_too_many_in_an_hour_is_told_how_long_to_wait(serve):
    bench = serve(max_creates_per_hour=2)
    file = bench.upload(bench.lines(1))
    bench.create(file.id)
    bench.clock.advance(600)
    bench.create(file.id)

    wait = _limited(bench.raw("POST", "/batches", json=_order(file)))
    assert wait == HOUR - 600
    bench.clock.advance(wait - 1)
    assert _limited(bench.raw("POST", "/batches", json=_order(file))) == 1
    bench.clock.advance(1)
    assert bench.create(file.id).status == "validating"
    assert len(bench.client.batches.list().data) == 3


def test_the_batches_of_the_hour_are_counted_over_a_restart(serve, bench, tmp_path, clock):
    with LocalServer(directory=tmp_path, clock=clock) as server:
        client = server.client(max_retries=0)
        file = client.files.create(file=("a.jsonl", bench.lines(1)), purpose="batch")
        client.batches.create(**_order(file))

    again = serve(directory=tmp_path, max_creates_per_hour=1)
    assert _limited(again.raw("POST", "/batches", json=_order(file))) == HOUR


def test_what_was_refused_for_another_reason_does_not_count(serve, refused):
    bench = serve(max_creates_per_hour=1)
    file = bench.upload(bench.lines(1))
    assert refused(bench.create, file.id, endpoint="/v1/audio")[0] == 400

    assert bench.create(file.id).status == "validating"


def test_a_file_too_many_in_a_minute_is_told_how_long_to_wait(serve):
    bench = serve(max_uploads_per_minute=2)
    bench.upload(bench.lines(1))
    bench.upload(bench.lines(1))

    form = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", bench.lines(1))}}
    assert _limited(bench.raw("POST", "/files", **form)) == 60
    bench.clock.advance(60)
    assert bench.upload(bench.lines(1)).status == "processed"


def test_the_rates_are_those_of_the_service(bench):
    file = bench.upload(bench.lines(1))
    for _ in range(2_000):
        bench.server._store._creates.take(bench.clock.now())
    for _ in range(999):
        bench.server._store._uploads_rate.take(bench.clock.now())

    assert _limited(bench.raw("POST", "/batches", json=_order(file))) == HOUR
    form = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", bench.lines(1))}}
    assert _limited(bench.raw("POST", "/files", **form)) == 60


def test_a_full_queue_can_be_told_at_the_create(serve, refused):
    # One row is 3 + 4 + 2 tokens.
    bench = serve(enqueued_token_limit=30, refuse_at_create=True)
    first = bench.submit(bench.lines(3))
    assert bench.after(first, 10).status == "in_progress"
    file = bench.upload(bench.lines(1))

    assert refused(bench.create, file.id) == (400, "token_limit_exceeded", None)
    assert [batch.id for batch in bench.client.batches.list()] == [first.id]
    assert bench.after(first, 20).status == "completed"
    assert bench.create(file.id).status == "validating"
    assert bench.create("file-none").status == "validating"  # that is found out later


@pytest.fixture
def embeds(serve):
    """A server whose model makes no vectors: of 50,000 they would take a minute."""
    return serve(lambda body: (200, {}))


@pytest.mark.parametrize(
    ("inputs", "status"),
    [(["a"] * 50_000, "in_progress"), (["a"] * 50_001, "failed"), ([[1, 2]] * 50_001, "failed")],
    ids=["at the limit", "above", "as tokens"],
)
def test_a_batch_embeds_50_000_texts_at_most(embeds, inputs, status):
    assert _embedded(embeds, inputs).status == status


def test_the_tokens_of_one_text_are_one_input(embeds):
    assert _embedded(embeds, [1] * 60_000).status == "in_progress"


def test_the_texts_of_all_requests_are_added_up(embeds):
    failed = _embedded(embeds, ["a"] * 30_000, ["a"] * 20_001)
    (error,) = failed.errors.data

    assert (error.line, error.code) == (None, "too_many_requests")
    assert "50001 embedding inputs" in error.message


def _embedded(bench, *inputs):
    url = "/v1/embeddings"
    content = b"".join(
        bench.line(str(i), url=url, body={"messages": None, "input": texts})
        for i, texts in enumerate(inputs)
    )
    return bench.after(bench.create(bench.upload(content).id, endpoint=url), 10)
