"""Many batches through a server that is killed in the middle of them, and what came of it."""

import json
import re
import threading
import time
from collections import Counter
from pathlib import Path

import openai

from batchframe.emulator import LocalServer
from tests.emulator.processes import free_ports, serve

ENDPOINT = "/v1/chat/completions"


def lines_of(name, n):
    """The lines of an input file whose row i asks `name i` and is called `name-i`."""
    for i in range(n):
        messages = [{"role": "user", "content": f"{name} {i}"}]
        line = {"custom_id": f"{name}-{i}", "method": "POST", "url": ENDPOINT}
        yield json.dumps(line | {"body": {"model": "m", "messages": messages}}).encode() + b"\n"


class Looks(threading.Thread):
    """Lists the batches again and again, so that the server always has work when it is killed."""

    def __init__(self, client):
        super().__init__()
        self._client = client
        self._changed = threading.Condition()
        self._is_over = False
        self._batches = []

    def run(self):
        while not self._is_over:
            try:
                batches = self._client.batches.list(limit=100).data
            except openai.APIConnectionError:
                time.sleep(0.01)  # until the server is there again
                continue
            with self._changed:
                self._batches = batches
                self._changed.notify_all()

    def until(self, is_it):
        """Wait until the batches are as wanted."""
        with self._changed:
            self._changed.wait_for(lambda: is_it(self._batches))
            return self._batches

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._is_over = True
        self.join()


def n_answered(batches):
    return sum(batch.request_counts.completed for batch in batches)


def through_kills(folder, *, n_batches, n_rows, row_seconds, kill_at):
    """Run batches through `batchframe serve`, killed whenever such a part of all rows is answered.

    Rows are `row_seconds` apart until the last server, which answers the rest as fast as it can.
    Returns the peak of the memory of each server, in bytes; or fails, unless each row of each batch
    was answered once, with its own answer, and counted once.
    """
    (port,) = free_ports(1)
    directory = folder / "server"
    paced = ("--row-seconds", row_seconds)
    peaks = []
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x", max_retries=0) as client,
        Looks(client) as looks,
    ):
        for part in kill_at:
            with serve(port, directory, *paced) as server:
                if not peaks:
                    _submit(client, folder, n_batches, n_rows)
                batches = looks.until(
                    lambda batches, n=part * n_batches * n_rows: n_answered(batches) >= n
                )
                assert n_answered(batches) < n_batches * n_rows
                peaks.append(_peak(server.pid))
        with serve(port, directory) as server:
            ended = looks.until(
                lambda batches: (
                    len(batches) == n_batches and all(b.status == "completed" for b in batches)
                )
            )
            for batch in ended:
                _check(client, batch, n_rows)
            peaks.append(_peak(server.pid))
    with LocalServer(directory=directory) as kept:
        assert Counter(kept.executions().values()) == {1: n_batches * n_rows}
        assert kept.billed().requests == n_batches * n_rows
    return peaks


def _submit(client, folder, n_batches, n_rows):
    path = folder / "rows.jsonl"
    for number in range(n_batches):
        with path.open("wb") as lines:
            lines.writelines(lines_of(f"batch-{number}", n_rows))
        with path.open("rb") as lines:
            file = client.files.create(file=("rows.jsonl", lines), purpose="batch")
        client.batches.create(
            input_file_id=file.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata={"name": f"batch-{number}"},
        )


def _check(client, batch, n_rows):
    """Whether each row is there once, with its own answer."""
    name = batch.metadata["name"]
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (n_rows, n_rows, 0)
    seen = bytearray(n_rows)
    with client.files.with_streaming_response.content(batch.output_file_id) as reply:
        for line in reply.iter_lines():
            row = json.loads(line)
            number = int(row["custom_id"].removeprefix(f"{name}-"))
            seen[number] += 1
            message = row["response"]["body"]["choices"][0]["message"]
            assert message["content"] == f"echo: {name} {number}"
    assert seen == b"\x01" * n_rows


def _peak(pid):
    """The most memory that a process had so far, in bytes; 0 where Linux does not say it."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1))
