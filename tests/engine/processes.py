"""Real processes that run a frame, cheap enough to be killed by the hundred.

To start Python and import pandas takes a second. So one process, the nursery, imports everything
once and forks a child for each call; a fork costs some milliseconds. A child tells what becomes of
it in lines of JSON on a pipe of its own, whose end is the child's end. Calls can ask for a child
that bypasses the lock, that stops itself at an operation, or that forks there.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]
#: How long to wait for news of a process before it counts as hanging, in seconds.
PATIENCE = 300.0

#: What a call says: base_url, checkpoint, name, n_rows; and maybe reconcile_seconds, lock (False
#: bypasses it), runs (how often the same call is made), and `at`, an operation such as
#: "after Provider.create", with `do`, what happens there, the first time.
Call = dict[str, Any]


def prompts_of(name: str, n_rows: int) -> list[str]:
    """The prompts of a call: a wrong join or a mixed-up checkpoint would show in the answers."""
    return [f"{name}, question {row}" for row in range(n_rows)]


@dataclass
class Child:
    """A process of the nursery, seen from the test."""

    pid: int
    _pipe: int
    _unread: bytes = b""
    reports: list[dict[str, Any]] = field(default_factory=list)
    has_ended: bool = False

    def has_news(self, seconds: float = PATIENCE) -> bool:
        """Wait for a report, or for its end."""
        return bool(select.select([self._pipe], [], [], seconds)[0])

    def report(self) -> dict[str, Any] | None:
        """The next report; None when it has ended."""
        while b"\n" not in self._unread:
            if not self.has_news():
                raise AssertionError(f"process {self.pid} hangs; so far {self.reports}")
            piece = os.read(self._pipe, 1 << 16)
            if not piece:
                self.has_ended = True
                return None
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        self.reports.append(json.loads(line))
        return self.reports[-1]

    def wait_for(self, what: str) -> dict[str, Any]:
        """Its report of something, once that has happened."""
        while report := self.report():
            if what in report:
                return report
        raise AssertionError(f"process {self.pid} ended without {what!r}: {self.reports}")

    def outcome(self) -> dict[str, Any]:
        """Its last report, once it has ended."""
        while self.report():
            pass
        return self.reports[-1] if self.reports else {}

    def send(self, signal_: signal.Signals) -> None:
        """Send a signal. The nursery buries its dead only when it forks: the pid is still its."""
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError):  # it died, and was buried already
                os.kill(self.pid, signal_)

    def close(self) -> None:
        """End it, whatever it does."""
        self.send(signal.SIGKILL)
        os.close(self._pipe)


class Nursery:
    """Forks children from a process that has imported everything, as a context manager."""

    def __enter__(self) -> Self:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.engine.processes", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
            )
        self._children: list[Child] = []
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._children:
            child.close()
        self._socket.close()
        self._process.wait(PATIENCE)

    def start(self, **call: Any) -> Child:
        """Fork a child that makes a call."""
        for child in [child for child in self._children if child.has_ended]:
            child.close()
            self._children.remove(child)
        ours, theirs = os.pipe()
        socket.send_fds(self._socket, [json.dumps(call, default=str).encode()], [theirs])
        os.close(theirs)
        child = Child(int(self._socket.recv(100)), ours)
        self._children.append(child)
        return child


# What follows runs in the nursery and in its children.


#: What a call imports on its way, so that the children find it imported.
_WARM = (
    "anyio.from_thread",
    "batchframe.bodies",
    "batchframe.client",
    "batchframe.core.columns",
    "batchframe.formats",
    "batchframe.frames.inputs",
    "batchframe.frames.pandas",
    "batchframe.running",
    "genai_prices.data",
    "openai.resources.batches",
    "openai.resources.files",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
)


def _nurse(orders: socket.socket) -> None:
    for name in _WARM:
        importlib.import_module(name)
    while True:
        order, pipes, _, _ = socket.recv_fds(orders, 1 << 16, 1)
        if not order:
            return
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        pid = os.fork()
        if pid == 0:
            orders.close()
            _live(json.loads(order), pipes[0])
            return  # by the interpreter's own end, as any process
        os.close(pipes[0])
        orders.sendall(str(pid).encode())


def _live(call: Call, pipe: int) -> None:
    def tell(**report: Any) -> None:
        # The notes are as long as they are: a report may exceed what a pipe takes at once.
        line = json.dumps(report).encode() + b"\n"
        while line:
            line = line[os.write(pipe, line) :]

    from batchframe import lock

    if not call.get("lock", True):
        lock.fcntl = None
    if at := call.get("at"):
        _intervene(at, lambda: _DEEDS[call["do"]](call, pipe, tell))
    try:
        tell(began=True)
        for _ in range(call.get("runs", 1)):
            answer = _complete(call)
        tell(**answer)
    except BaseException as error:  # noqa: BLE001 - the test judges
        notes = getattr(error, "__notes__", [])
        tell(error=type(error).__name__, message=str(error), notes=notes)
    os.close(pipe)


def _complete(call: Call) -> dict[str, Any]:
    import pandas as pd
    from openai import OpenAI

    from batchframe import Limits

    prompts = prompts_of(call["name"], call["n_rows"])
    frame = pd.DataFrame({"id": range(len(prompts)), "prompt": prompts})
    with OpenAI(base_url=call["base_url"], api_key="sk-local") as client:
        out = frame.openai_batch.complete(
            "prompt",
            "id",
            model="gpt-4o-mini",
            checkpoint=call["checkpoint"],
            limits=Limits(max_requests=10, reconcile_seconds=call.get("reconcile_seconds", 2)),
            poll_interval=0.02,
            progress=False,
            client=client,
        )
    return {
        "ids": out["id"].to_list(),
        "completions": out["completion"].to_list(),
        "statuses": sorted(set(out["completion_status"])),
    }


def _intervene(at: str, deed: Callable[[], None]) -> None:
    """Let a deed happen before or after an operation such as `Provider.create`, once."""
    from batchframe.checkpoint import Checkpoint
    from batchframe.client import Provider

    when, _, operation = at.partition(" ")
    owner_name, _, name = operation.partition(".")
    owner: Any = {"Provider": Provider, "Checkpoint": Checkpoint}[owner_name]
    original = getattr(owner, name)
    deeds = [deed]

    def performed(*args: Any, **kwargs: Any) -> Any:
        if when == "before" and deeds:
            deeds.pop()()
        result = original(*args, **kwargs)
        if when == "after" and deeds:
            deeds.pop()()
        return result

    setattr(owner, name, performed)


def _stop(_call: Call, _pipe: int, tell: Callable[..., None]) -> None:
    """Stand still, with all threads, until somebody continues the process."""
    tell(stopped=True)
    # To this thread, which then goes no step further; the others stop a moment later.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _fork_idle(_call: Call, pipe: int, tell: Callable[..., None]) -> None:
    """Have a child that does nothing, as a pool of worker processes may."""
    pid = os.fork()
    if pid == 0:
        os.close(pipe)  # its end is to be the parent's
        signal.pause()
        os._exit(0)
    tell(forked=pid)


def _fork_working(call: Call, _pipe: int, tell: Callable[..., None]) -> None:
    """Have a child that makes a call itself, while the parent is in the middle of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            report = _complete(call | call["child"])
        except BaseException as error:  # noqa: BLE001 - the test judges
            report = {"error": type(error).__name__, "message": str(error)}
        tell(child=report)
        os._exit(0)
    tell(forked=pid)


_DEEDS = {"stop": _stop, "fork idle": _fork_idle, "fork working": _fork_working}


if __name__ == "__main__":
    # By its importable name: what the children import is this very module.
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        _nurse(inherited)
