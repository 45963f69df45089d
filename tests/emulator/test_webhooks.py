"""The ends of batches are told to a receiver on loopback, until it takes them."""

import contextlib
import http.server
import json
import queue
import threading
import time

import openai
import pytest

from batchframe.emulator import Fault, JumpClock, LocalServer

HOUR = 3600
ENDPOINT = "/v1/chat/completions"


class Receiver:
    """Takes calls on loopback; answers with the statuses that it was given, then with 200."""

    def __init__(self, *statuses):
        self.calls = queue.Queue()
        answers = iter(statuses)
        calls = self.calls

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status = next(answers, 200)
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "http://127.0.0.1:9/")
                self.send_header("content-length", "0")
                self.end_headers()
                calls.put((dict(self.headers), body))

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exit_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next(self):
        """The next call, within ten seconds."""
        return self.calls.get(timeout=10)


@pytest.fixture
def clock():
    """Begins now, because the SDK compares the time of a webhook with that of the machine."""
    return JumpClock(start=float(int(time.time())))


def _unwrap(bench, call):
    headers, body = call
    return bench.client.webhooks.unwrap(body, headers, secret=bench.server.webhook_secret)


def test_the_sdk_unwraps_what_the_end_of_a_batch_sends(serve):
    with Receiver() as receiver:
        bench = serve(webhook_url=receiver.url, stage_seconds=1)
        batch = bench.submit(bench.lines(1))
        bench.clock.advance(3)  # nobody looks: the end is told, not asked for
        call = receiver.next()
        event = _unwrap(bench, call)

        assert (event.type, event.data.id, event.object) == ("batch.completed", batch.id, "event")
        assert event.created_at == batch.created_at + 3
        assert event.id.startswith("evt_")
        assert call[0]["webhook-id"].startswith("wh_")
        assert call[0]["webhook-timestamp"] == str(batch.created_at + 3)
        assert call[0]["content-type"] == "application/json"
        with pytest.raises(openai.InvalidWebhookSignatureError):
            bench.client.webhooks.unwrap(
                call[1] + b" ", call[0], secret=bench.server.webhook_secret
            )
        with pytest.raises(openai.InvalidWebhookSignatureError):
            bench.client.webhooks.unwrap(call[1], call[0], secret="whsec_b3RoZXI=")


def _begin(bench, how):
    if how == "failed":
        return bench.create("file-none")
    batch = bench.submit(bench.lines(2))
    if how == "cancelled":
        bench.client.batches.cancel(batch.id)
    return batch


@pytest.mark.parametrize("how", ["failed", "expired", "cancelled"])
def test_each_kind_of_end_has_its_event(serve, how):
    with Receiver() as receiver:
        row_seconds = 20 * HOUR if how == "expired" else 0
        bench = serve(webhook_url=receiver.url, stage_seconds=1, row_seconds=row_seconds)
        batch = _begin(bench, how)
        ended = bench.after(batch, 25 * HOUR if how == "expired" else 10)
        headers, body = receiver.next()

        assert ended.status == how
        # A day later by our clock, which the SDK's check of the time is not about.
        bench.client.webhooks.verify_signature(
            body, headers, secret=bench.server.webhook_secret, tolerance=2 * 86_400
        )
        event = json.loads(body)
        assert (event["type"], event["data"]) == (f"batch.{how}", {"id": batch.id})


def test_a_webhook_is_sent_again_until_it_is_taken_under_the_same_id(serve):
    with Receiver(500, 302, 429) as receiver:
        bench = serve(webhook_url=receiver.url, stage_seconds=1)
        bench.submit(bench.lines(1))
        bench.clock.advance(3)
        calls = [receiver.next()]
        for wait in (5, 10, 20):  # doubled each time
            bench.clock.advance(wait)
            calls.append(receiver.next())

        times = [int(headers["webhook-timestamp"]) for headers, _ in calls]
        assert [later - times[0] for later in times] == [0, 5, 15, 35]
        assert len({headers["webhook-id"] for headers, _ in calls}) == 1
        assert len({body for _, body in calls}) == 1
        for call in calls:
            assert _unwrap(bench, call).type == "batch.completed"


def test_a_webhook_that_nobody_takes_is_given_up_after_72_hours(serve):
    with Receiver(*[500] * 100) as receiver:
        bench = serve(webhook_url=receiver.url, stage_seconds=1)
        bench.submit(bench.lines(1))
        bench.clock.advance(3)
        first = int(receiver.next()[0]["webhook-timestamp"])
        last = first
        while (delivery := _delivery(bench)).next_at is not None:
            bench.clock.advance(delivery.next_at - bench.clock.now())
            last = int(receiver.next()[0]["webhook-timestamp"])

        assert 66 * HOUR < last - first <= 72 * HOUR


def _delivery(bench):
    """The one delivery, as it is after the attempt that the receiver has just seen."""
    store = bench.server._store
    with store._changed:
        while True:
            (delivery,) = store._archive.deliveries.values()
            if delivery.next_at is None or delivery.next_at > bench.clock.now():
                return delivery
            store._changed.wait(10)


def test_a_webhook_that_was_not_taken_is_sent_by_the_next_server(bench, tmp_path, clock):
    kwargs = {"directory": tmp_path, "clock": clock, "stage_seconds": 1, "webhook_secret": "key"}
    with Receiver(500) as receiver:
        with LocalServer(webhook_url=receiver.url, **kwargs) as server:
            client = server.client(max_retries=0)
            file = client.files.create(file=("a.jsonl", bench.lines(1)), purpose="batch")
            client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
            clock.advance(3)
            first = receiver.next()
        clock.advance(HOUR)
        with LocalServer(webhook_url=receiver.url, **kwargs):
            again = receiver.next()

    assert again[0]["webhook-id"] == first[0]["webhook-id"]
    assert again[1] == first[1]


def test_a_webhook_may_come_twice_and_is_known_by_its_id(serve):
    with Receiver() as receiver:
        faults = [Fault("webhooks", "duplicate")]
        bench = serve(webhook_url=receiver.url, stage_seconds=1, faults=faults)
        bench.submit(bench.lines(1))
        bench.clock.advance(3)
        first, second = receiver.next(), receiver.next()
        bench.submit(bench.lines(1))
        bench.clock.advance(3)
        other = receiver.next()

        assert first[0]["webhook-id"] == second[0]["webhook-id"]
        assert first[1] == second[1]
        assert other[0]["webhook-id"] != first[0]["webhook-id"]


def test_a_server_without_a_webhook_has_no_secret_and_keeps_no_events(bench):
    bench.after(bench.submit(bench.lines(1)), HOUR)

    assert bench.server._store._archive.deliveries == {}
    with pytest.raises(ValueError, match="webhook_url"):
        _ = bench.server.webhook_secret


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"webhook_url": "ftp://x"}, "http or https"),
        ({"webhook_url": "http://"}, "http or https"),
        ({"webhook_url": "http://[x"}, "http or https"),
        ({"webhook_url": "http://x:99999/"}, "http or https"),
        ({"webhook_url": "http://x/a b"}, "http or https"),
        ({"webhook_url": "http://x", "webhook_secret": "whsec_?"}, "base64"),
    ],
)
def test_a_webhook_that_cannot_work_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LocalServer(**kwargs)


def test_a_fault_of_all_webhooks_sends_each_twice(serve):
    with Receiver() as receiver:
        faults = [Fault("webhooks", "duplicate", times=None)]
        bench = serve(webhook_url=receiver.url, stage_seconds=1, faults=faults)
        ids = []
        for _ in range(2):
            batch = bench.submit(bench.lines(1))
            bench.clock.advance(3)
            ids += [json.loads(receiver.next()[1])["data"]["id"] for _ in range(2)]
            assert ids[-2:] == [batch.id] * 2


def test_a_disk_that_was_full_for_a_while_loses_no_webhook(serve, caplog):
    with Receiver() as receiver:
        bench = serve(webhook_url=receiver.url, stage_seconds=1)
        bench.submit(bench.lines(1))
        archive = bench.server._store._archive
        with archive.changed:
            archive._database.execute("PRAGMA query_only = ON")
            bench.clock.advance(3)
        while "cannot go on" not in caplog.text:
            pass
        with archive.changed:
            archive._database.execute("PRAGMA query_only = OFF")

        assert json.loads(receiver.next()[1])["type"] == "batch.completed"


def test_a_receiver_whose_answer_has_no_end_does_not_keep_the_server(serve):
    class Endless(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            called.set()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"and so on, ")

        def log_message(self, *args):
            pass

    called = threading.Event()
    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    thread = threading.Thread(target=receiver.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{receiver.server_port}/"
        bench = serve(webhook_url=url, stage_seconds=1)
        bench.submit(bench.lines(1))
        bench.clock.advance(3)
        assert called.wait(10)
        bench.server.stop()
        assert not any(t.name == "emulator-webhooks" for t in threading.enumerate())
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()
