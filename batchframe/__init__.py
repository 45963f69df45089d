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
    BudgetExceededError,
    CheckpointBusyError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    ColumnError,
    ErrorRatioExceededError,
    InputError,
    MissingDependencyError,
    ParameterError,
    ProviderError,
    RowError,
    RunTimeoutError,
    UnansweredError,
    UnknownOutcomeError,
)
from batchframe.frames.accessor import (
    acomplete,
    attach,
    complete,
    complete_parquet,
    embed,
    estimate,
    moderate,
    register,
    results,
    submit,
    usage,
)
from batchframe.parameters import col

if TYPE_CHECKING:
    __version__: str
    from batchframe import emulator
    from batchframe.core.dialects import Dialect
    from batchframe.core.estimates import Estimate
    from batchframe.core.rates import Rates
    from batchframe.core.shards import Limits
    from batchframe.frames.runs import Run, open_run, runs
    from batchframe.frames.usage import Usage
    from batchframe.run_status import RunStatus

__all__ = [
    "AccountMismatchError",
    "ApiKeyError",
    "AuthenticationError",
    "BatchframeError",
    "BudgetExceededError",
    "CheckpointBusyError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointMismatchError",
    "ColumnError",
    "Dialect",
    "ErrorRatioExceededError",
    "Estimate",
    "InputError",
    "Limits",
    "MissingDependencyError",
    "ParameterError",
    "ProviderError",
    "Rates",
    "RowError",
    "Run",
    "RunStatus",
    "RunTimeoutError",
    "UnansweredError",
    "UnknownOutcomeError",
    "Usage",
    "acomplete",
    "attach",
    "col",
    "complete",
    "complete_parquet",
    "embed",
    "emulator",
    "estimate",
    "moderate",
    "open_run",
    "results",
    "runs",
    "submit",
    "usage",
]

#: What is imported when it is asked for, and from where.
_HEAVY = {
    "Dialect": "batchframe.core.dialects",
    "Estimate": "batchframe.core.estimates",
    "Limits": "batchframe.core.shards",
    "Rates": "batchframe.core.rates",
    "Run": "batchframe.frames.runs",
    "RunStatus": "batchframe.run_status",
    "Usage": "batchframe.frames.usage",
    "open_run": "batchframe.frames.runs",
    "runs": "batchframe.frames.runs",
}

for _library in ("pandas", "polars"):
    when_imported(_library)(register)


def __getattr__(name: str) -> Any:
    # These import heavy libraries, which `import batchframe` must not wait for.
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("openai-batchframe")
    if name == "emulator":
        return importlib.import_module("batchframe.emulator")
    if name in _HEAVY:
        return getattr(importlib.import_module(_HEAVY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
