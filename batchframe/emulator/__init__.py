"""A local server of the OpenAI Files, Uploads and Batches API, for tests and development.

    from batchframe.emulator import LocalServer

    with LocalServer() as server:            # "echo", or "smollm2": a real model in this process
        client = server.client()             # an openai.OpenAI of this server
        client.batches.list()
        server.executions()                  # {custom_id: billed executions}

    faults = [Fault("batches.create", "reply-lost-after"), Fault("output", "drop-line")]
    with LocalServer(clock=JumpClock(), faults=faults) as server:
        ...                                  # a day passes in no time, and things go wrong

    with LocalServer(webhook_url="http://127.0.0.1:9000/hook") as server:
        ...                                  # the end of each batch is told there, signed by
        server.webhook_secret                # for client.webhooks.unwrap(..., secret=...)

    with LocalServer(dialect="azure") as server:
        ...                                  # it speaks like Azure OpenAI

    with LocalServer(Upstream("http://127.0.0.1:11434/v1"), concurrency=8) as server:
        ...                                  # a Batch API in front of a model server of one's own

The modules, downwards: pytest_plugin (a fixture), testing (the server as a context manager),
dialects (how services speak), server (HTTP), door (who may come in), operations (the thirteen),
mishaps (replies that go wrong), store (what is asked), uploads (files in parts), webhooks, rates
(how often), timeline (what time does), window (rows that take time, so many at once), rows (which
is next), work (the rows of one batch), archive (what is kept), validation and requests (refusals),
faults, models (what answers), upstream (another server), echo and smollm2 (in this process),
schemas (answers in JSON), answers and vectors (their bodies), tokens, records (values).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .echo import Echo
    from .faults import Fault
    from .models import CallableModel, Model
    from .records import Billed, Call
    from .smollm2 import SmolLM2
    from .testing import JumpClock, LocalServer
    from .upstream import Upstream

__all__ = [
    "Billed",
    "Call",
    "CallableModel",
    "Echo",
    "Fault",
    "JumpClock",
    "LocalServer",
    "Model",
    "SmolLM2",
    "Upstream",
]

#: The module of each public name. It is imported when the name is asked for: pytest imports this
#: package at each of its starts, for the fixture in it.
_HOMES = {
    "Billed": "records",
    "Call": "records",
    "CallableModel": "models",
    "Echo": "echo",
    "Fault": "faults",
    "JumpClock": "testing",
    "LocalServer": "testing",
    "Model": "models",
    "SmolLM2": "smollm2",
    "Upstream": "upstream",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
