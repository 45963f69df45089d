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

The modules, downwards: testing (the server as a context manager), server (HTTP), door (who may
come in), operations (the thirteen), mishaps (replies that go wrong), store (what is asked), uploads
(files in parts), webhooks, rates (how often), timeline (what time does), work (rows), archive (what
is kept), validation and requests (refusals), faults, models, schemas (answers in JSON), records
(values).
"""

from .faults import Fault
from .models import CallableModel, Echo, Model, SmolLM2
from .records import Billed, Call
from .testing import JumpClock, LocalServer

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
]
