"""A clock that jumps, servers on it, and helpers that say what a test sends."""

import json

import httpx2
import openai
import pytest

from batchframe.emulator import JumpClock, LocalServer

ENDPOINT = "/v1/chat/completions"
HOUR = 3600


class Bench:
    """One server on a jumping clock, and the calls that tests make."""

    def __init__(self, server, clock, client):
        self.server = server
        self.clock = clock
        self.client = client

    @staticmethod
    def line(custom_id, prompt="hello", **fields):
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}]}
        body |= fields.pop("body", {})
        line = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body, **fields}
        return json.dumps({k: v for k, v in line.items() if v is not None}).encode() + b"\n"

    def lines(self, n):
        return b"".join(self.line(f"row-{i}", f"prompt {i}") for i in range(n))

    def upload(self, content, name="rows.jsonl", **kwargs):
        kwargs = {"purpose": "batch", **kwargs}
        return self.client.files.create(file=(name, content), **kwargs)

    def create(self, input_file_id, **kwargs):
        kwargs = {"endpoint": ENDPOINT, "completion_window": "24h", **kwargs}
        return self.client.batches.create(input_file_id=input_file_id, **kwargs)

    def submit(self, content):
        return self.create(self.upload(content).id)

    def batch(self, batch):
        return self.client.batches.retrieve(batch.id)

    def after(self, batch, seconds):
        self.clock.advance(seconds)
        return self.batch(batch)

    def content(self, file_id):
        return self.client.files.content(file_id).content

    def rows(self, file_id):
        return [json.loads(line) for line in self.content(file_id).splitlines()]

    def raw(self, method, path, **kwargs):
        headers = {"authorization": "Bearer x", **kwargs.pop("headers", {})}
        url = self.server.base_url + path
        # Plain http: to read the certificates that a system trusts takes longer than the call.
        options = {"trust_env": False, "verify": False}
        return httpx2.request(method, url, headers=headers, **options, **kwargs)


@pytest.fixture
def clock():
    return JumpClock()


@pytest.fixture
def serve(clock):
    """Start servers whose stages last ten seconds of the clock."""
    servers = []

    def start(model="echo", *, stage_seconds=10, **kwargs):
        server = LocalServer(model, clock=clock, stage_seconds=stage_seconds, **kwargs)
        servers.append(server.__enter__())
        return Bench(server, clock, server.client(max_retries=0))

    yield start
    for server in servers:
        server.__exit__(None, None, None)


@pytest.fixture
def bench(serve):
    return serve()


@pytest.fixture
def refused():
    """Make a call that is refused, and return the status and the error's fields."""

    def call(function, *args, **kwargs):
        with pytest.raises(openai.APIStatusError) as caught:
            function(*args, **kwargs)
        error = caught.value
        return error.status_code, error.code, error.param

    return call


def _fail_some(body):
    if body["messages"][0]["content"] == "fail":
        return 500, {"error": {"message": "no", "type": "x", "param": None, "code": None}}
    return 200, {"usage": {"prompt_tokens": 7, "completion_tokens": 2}}


@pytest.fixture
def in_all_states(serve):
    """A server on which the clock stands still, and a batch in each status, by its status."""
    bench = serve(_fail_some, row_seconds=HOUR)
    batches = {"completed": bench.submit(bench.line("a") + bench.line("b", "fail"))}
    batches["failed"] = bench.create("file-none")
    batches["expired"], batches["cancelled"] = (bench.submit(bench.lines(30)) for _ in range(2))
    bench.clock.advance(2 * HOUR + 20)
    bench.client.batches.cancel(batches["cancelled"].id)
    bench.clock.advance(22 * HOUR)
    batches["finalizing"] = bench.submit(bench.lines(1))
    batches["in_progress"], batches["cancelling"] = (bench.submit(bench.lines(30)) for _ in "ab")
    bench.clock.advance(10 + HOUR + 5)
    bench.client.batches.cancel(batches["cancelling"].id)
    batches["validating"] = bench.submit(bench.lines(1))
    batches = {status: bench.batch(batch) for status, batch in batches.items()}
    assert {status: batch.status for status, batch in batches.items()} == {s: s for s in batches}
    return bench, batches
