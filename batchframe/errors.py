"""Every error that batchframe raises, in one tree.

BatchframeError
|-- InputError (ValueError)         the call or its frame does not fit; nothing was sent
|   |-- ColumnError                 a column is missing, has the wrong type, or exists already
|   |-- RowError                    values in rows: null or duplicate ids, prompts too large
|   `-- ParameterError              a keyword or its value
|-- MissingDependencyError (ImportError)   an extra is not installed
|-- ApiKeyError                     no usable key; nothing was sent
|-- CheckpointError                 the directory that holds what was paid for
|   |-- CheckpointBusyError         another process works on it
|   |-- CheckpointMismatchError     it belongs to another spec, provider or version
|   `-- CheckpointCorruptError      a file in it is not what was written
|-- BudgetExceededError             max_cost_usd is reached; what was paid for is kept
|-- ErrorRatioExceededError         max_error_ratio is exceeded; what was paid for is kept
|-- UnansweredError                 rows have no answer, and on_error="raise" asks for all of them
|-- ProviderError                   the service refused, and trying again will not help
|   |-- AuthenticationError         401 or 403: the key
|   |-- AccountMismatchError        a known batch is not found: the key of another project
|   `-- UnknownOutcomeError         a create got no answer, and on_unknown="raise" asks a person
`-- RunTimeoutError (TimeoutError)  the wait ended; the batches go on, the same call resumes

Each message says what happened, to which rows, what it means for the money, and what to do next.
"""

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
    "ErrorRatioExceededError",
    "InputError",
    "MissingDependencyError",
    "ParameterError",
    "ProviderError",
    "RowError",
    "RunTimeoutError",
    "UnansweredError",
    "UnknownOutcomeError",
]


class BatchframeError(Exception):
    """The root of every error that batchframe raises."""


class InputError(BatchframeError, ValueError):
    """The call or its frame does not fit. Raised before anything is sent."""


class ColumnError(InputError):
    """A column is missing, has the wrong type, or exists already."""


class RowError(InputError):
    """Values in rows cannot be used: null or duplicate ids, prompts that cannot be sent."""


class ParameterError(InputError):
    """A keyword is unknown, or its value cannot be sent."""


class MissingDependencyError(BatchframeError, ImportError):
    """A package of an extra is not installed. The message names the extra."""


class ApiKeyError(BatchframeError):
    """No usable API key. Raised before anything is sent; the key is never shown."""


class CheckpointError(BatchframeError):
    """The checkpoint directory cannot be used."""


class CheckpointBusyError(CheckpointError):
    """Another process works on this checkpoint."""


class CheckpointMismatchError(CheckpointError):
    """The checkpoint belongs to another spec, provider, account or version."""


class CheckpointCorruptError(CheckpointError):
    """A file of the checkpoint is not what was written."""


class BudgetExceededError(BatchframeError):
    """What is spent and what is still to be sent could exceed `max_cost_usd`: no more is sent."""


class ErrorRatioExceededError(BatchframeError):
    """More rows than `max_error_ratio` allows have no answer: no more is sent."""


class UnansweredError(BatchframeError):
    """Rows have no answer at the end of a call, and `on_error="raise"` was asked for."""


class ProviderError(BatchframeError):
    """The service refused, and sending the same again will not help."""


class AuthenticationError(ProviderError):
    """The service refused the key (401 or 403)."""


class AccountMismatchError(ProviderError):
    """A batch that this checkpoint created is not found: the key is of another project."""


class UnknownOutcomeError(ProviderError):
    """A create got no answer, no batch was found, and `on_unknown="raise"` was asked for."""


class RunTimeoutError(BatchframeError, TimeoutError):
    """The wait ended before the batches did. They go on, and the same call resumes."""
