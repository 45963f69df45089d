"""Servers in processes of their own, which can be killed and started again."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from tests.emulator import upstreams

ROOT = Path(__file__).parents[2]


def free_ports(n):
    """Ports of this machine that nobody uses now."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports


@contextmanager
def _running(*arguments):
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, encoding="utf-8")
    try:
        first = process.stdout.readline()
        assert "http://127.0.0.1:" in first, first
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def upstream(port, n_answers):
    """A model server that answers so many rows; it holds those that come after them."""
    return _running(upstreams.__file__, port, n_answers)


def serve(port, directory, *options):
    """A `batchframe serve`."""
    return _running("-m", "batchframe", "serve", "--port", port, "--directory", directory, *options)
