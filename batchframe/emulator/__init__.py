"""A local server of the OpenAI Files and Batches API, for tests, demonstrations and development.

    from batchframe.emulator import LocalServer

    with LocalServer() as server:            # "echo", or "smollm2": a real model in this process
        client = server.client()             # an openai.OpenAI of this server
        client.batches.list()
        server.executions()                  # {custom_id: billed executions}

    faults = [Fault("batches.create", "reply-lost-after"), Fault("output", "drop-line")]
    with LocalServer(clock=JumpClock(), faults=faults) as server:
        ...                                  # a day passes in no time, and things go wrong

    with LocalServer(dialect="azure") as server:
        ...                                  # it speaks like Azure OpenAI

The modules, downwards: testing (the server as a context manager), dialects (how services speak),
server (HTTP), store (what is asked), timeline (what time does), work (rows), archive (what is
kept), validation and requests (refusals), faults, models, schemas (answers in JSON), records
(values).
"""

from .faults import Fault
from .models import CallableModel, Echo, Model, SmolLM2
from .records import Billed
from .testing import JumpClock, LocalServer

__all__ = [
    "Billed",
    "CallableModel",
    "Echo",
    "Fault",
    "JumpClock",
    "LocalServer",
    "Model",
    "SmolLM2",
]
