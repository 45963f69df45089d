import socket
import sys
import threading
import time
import warnings

import openai
import pytest

from batchframe.emulator import JumpClock, LocalServer
from batchframe.errors import MissingDependencyError


def test_an_idle_wait_jumps_ahead_at_once():
    clock, condition = JumpClock(start=1000.0), threading.Condition()
    began = time.monotonic()
    with condition:
        clock.wait(condition, 86_400, idle=True)

    assert (clock.now(), clock.monotonic()) == (87_400.0, 86_400.0)
    assert time.monotonic() - began < 60


def test_a_wait_for_work_in_flight_ends_with_its_notification_and_moves_nothing():
    clock, condition = JumpClock(start=1000.0), threading.Condition()

    def notify():
        with condition:
            condition.notify()

    with condition:
        threading.Thread(target=notify).start()
        clock.wait(condition, None)
        clock.wait(condition, 0.0)

    assert clock.now() == 1000.0


def test_a_clock_does_not_go_back():
    clock = JumpClock()
    clock.advance(2.5)
    assert clock.monotonic() == 2.5

    with pytest.raises(ValueError, match="-1"):
        clock.advance(-1)


def test_a_stopped_server_leaves_no_thread_no_socket_and_no_directory():
    before = set(threading.enumerate())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with LocalServer() as server:
            server.client().files.list()
            directory = server._store._archive.contents
            listening = server._socket

    assert set(threading.enumerate()) <= before
    assert listening.fileno() == -1
    assert not directory.exists()


def test_a_client_can_come_at_once_and_does_not_read_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://example.invalid")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    with LocalServer() as server:
        client = server.client(max_retries=0)

        assert client.files.list().data == []
        assert client.api_key != "sk-real"


@pytest.fixture
def closed_port():
    """A port of this machine that is taken, and on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("scheme", ["HTTP", "ALL"])
def test_a_client_does_not_go_through_a_proxy(monkeypatch, closed_port, scheme):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(f"{scheme}_PROXY", f"http://127.0.0.1:{closed_port}")

    with LocalServer() as server:
        assert server.client(max_retries=0).files.list().data == []
        assert server.client(max_retries=0).with_options(timeout=60).files.list().data == []


def test_clients_are_closed_with_their_server():
    with LocalServer() as server:
        clients = [server.client(), server.client(http_client=openai.DefaultHttpxClient())]
        clients[0].files.list()

    assert all(client.is_closed() for client in clients)


def test_a_client_of_ones_own_making_is_taken():
    with openai.DefaultHttpxClient() as http_client, LocalServer() as server:
        client = server.client(http_client=http_client)

        assert client.files.list().data == []
        assert client._client is http_client


@pytest.mark.parametrize("missing", ["uvicorn", "python_multipart", "starlette.applications"])
def test_a_missing_extra_is_named(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "batchframe.emulator.server", raising=False)

    with pytest.raises(MissingDependencyError, match=r"openai-batchframe\[emulator\]"):
        LocalServer().__enter__()


def test_a_port_in_use_is_an_error_that_leaves_nothing_behind():
    with LocalServer() as server:
        port = server._socket.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            LocalServer(port=port).__enter__()


def test_with_the_machines_clock_a_batch_completes():
    with LocalServer(stage_seconds=0) as server:
        client = server.client(max_retries=0)
        line = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"hi"}]}}\n'  # noqa: E501
        file = client.files.create(file=("a.jsonl", line), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        assert client.batches.retrieve(batch.id).status == "completed"


def test_a_server_starts_once_and_stops_as_often_as_one_likes():
    server = LocalServer()
    server.stop()
    server.start()
    with pytest.raises(RuntimeError, match="has started already"):
        server.start()
    assert server.client().files.list().data == []
    server.stop()
    server.stop()

    with server:
        assert server.client().files.list().data == []
