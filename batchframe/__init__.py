"""batchframe: a column of prompts through the OpenAI Batch API, at half price.

>>> import batchframe as bf
>>> import pandas as pd
>>> df = pd.DataFrame({"id": ["a"], "prompt": ["Hello"]})
>>> with bf.emulator.LocalServer() as server:
...     out = bf.complete(
...         df, "prompt", "id", model="gpt-4o-mini", client=server.client(), progress=False
...     )
>>> out["completion"].item()
'echo: Hello'

Importing it gives the DataFrames of pandas and Polars the accessor `openai_batch`, whichever of
them is installed, whichever is imported first; neither is imported for it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from batchframe.errors import (
    AccountMismatchError,
    ApiKeyError,
    AuthenticationError,
    BatchframeError,
    CheckpointBusyError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    ColumnError,
    InputError,
    MissingDependencyError,
    ParameterError,
    ProviderError,
    RowError,
    RunTimeoutError,
    UnknownOutcomeError,
)
from batchframe.frames.accessor import attach, complete, embed, moderate, register, results
from batchframe.parameters import col

if TYPE_CHECKING:
    from batchframe import emulator
    from batchframe.core.shards import Limits

__all__ = [
    "AccountMismatchError",
    "ApiKeyError",
    "AuthenticationError",
    "BatchframeError",
    "CheckpointBusyError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "ColumnError",
    "InputError",
    "Limits",
    "MissingDependencyError",
    "ParameterError",
    "ProviderError",
    "RowError",
    "RunTimeoutError",
    "UnknownOutcomeError",
    "attach",
    "col",
    "complete",
    "embed",
    "emulator",
    "moderate",
    "results",
]

for _library in ("pandas", "polars"):
    when_imported(_library)(register)


def __getattr__(name: str) -> Any:
    # These import heavy libraries, which `import batchframe` must not wait for.
    if name == "emulator":
        return importlib.import_module("batchframe.emulator")
    if name == "Limits":
        from batchframe.core.shards import Limits

        return Limits
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
