"""The command line as it is used: real processes, and a server in the process of the test."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from batchframe.cli import app
from batchframe.clock import SystemClock
from batchframe.emulator import JumpClock, LocalServer

ROOT = Path(__file__).parents[2]
#: How long a process may take before it counts as hanging, in seconds.
PATIENCE = 300


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(stage_seconds=0.02) as running:
        yield running


class ServerClock(JumpClock):
    """Stands still until the test moves it, or moves by a step whenever the server looks at it."""

    step = 0.0

    def now(self) -> float:
        self.advance(self.step)
        return super().now()


@pytest.fixture
def clock() -> ServerClock:
    # From now on: batches of long ago come with a warning.
    return ServerClock(SystemClock().now())


@pytest.fixture
def still(clock: ServerClock) -> Iterator[LocalServer]:
    """A server on which what is live stays live until its clock moves."""
    with LocalServer(clock=clock, stage_seconds=600) as running:
        yield running


class Terminal:
    """Runs `python -m batchframe` in a directory, as its user does."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"}
        self.command = [sys.executable, "-W", "error", "-m", "batchframe"]

    def at(self, server: LocalServer) -> "Terminal":
        self.environment["OPENAI_BASE_URL"] = server.base_url
        return self

    def run(self, *arguments: object, **more: Any) -> "subprocess.CompletedProcess[bytes]":
        """Run a command to its end."""
        given = {"cwd": self.cwd, "env": self.environment, **more}
        line = [*self.command, *map(str, arguments)]
        return subprocess.run(line, capture_output=True, timeout=PATIENCE, check=False, **given)

    def start(self, *arguments: object, **more: Any) -> "subprocess.Popen[bytes]":
        """Run a command that goes on."""
        given = {"cwd": self.cwd, "env": self.environment, **more}
        line = [*self.command, *map(str, arguments)]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **given)


@pytest.fixture
def terminal(tmp_path: Path, server: LocalServer) -> Terminal:
    return Terminal(tmp_path).at(server)


@pytest.fixture
def invoke(
    tmp_path: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run a command within the test's own process: for what ends before anything begins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])
