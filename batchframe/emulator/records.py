"""What the server remembers: files, uploads, batches, webhooks, and its refusals, as values.

A record becomes the JSON object of the API in `as_json`, and is kept in the store as its own JSON.
Times are seconds since the epoch, UTC, as floats; the API shows whole seconds. A batch in a
terminal status never changes again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from batchframe.core.dialects import hours_of

__all__ = [
    "TERMINAL",
    "Batch",
    "Billed",
    "Birth",
    "Call",
    "Delivery",
    "File",
    "LineError",
    "Part",
    "Refusal",
    "Status",
    "Upload",
    "Usage",
]

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]

#: The statuses that a batch never leaves.
TERMINAL: frozenset[Status] = frozenset({"failed", "completed", "expired", "cancelled"})


class Refusal(Exception):  # noqa: N818 - an answer of the API, not a failure of the server
    """A request that is answered with an error: the envelope and its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.envelope = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class LineError:
    """One entry of a failed batch's `errors.data`."""

    code: str
    message: str
    param: str | None = None
    #: The line of the input file, from 1; None when the whole file or batch is meant.
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the answered requests of one batch."""

    input_tokens: int = 0
    #: The part of `input_tokens` that came from the prompt cache.
    cached_tokens: int = 0
    output_tokens: int = 0
    #: The part of `output_tokens` that was reasoning.
    reasoning_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    def as_json(self) -> dict[str, Any]:
        """The `usage` object of a batch."""
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


@dataclass(frozen=True, slots=True)
class Billed:
    """What the service would put on the bill: only requests answered with 2xx."""

    #: Executions, each counted, also when one custom_id was executed twice.
    requests: int
    input_tokens: int
    #: The part of `input_tokens` billed at the cached rate.
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the Files API. Its bytes are on disk, under its id."""

    id: str
    filename: str
    purpose: str
    #: Size, in bytes.
    n_bytes: int
    #: From when on the file is found. In the future when a fault delays it.
    created_at: float
    #: From when on lists show the file.
    listed_at: float
    #: When the file is deleted; None is never.
    expires_at: float | None

    def as_json(self) -> dict[str, Any]:
        """The `file` object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.n_bytes,
            "created_at": int(self.created_at),
            "expires_at": _whole(self.expires_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload of the Uploads API: a file that arrives in parts."""

    id: str
    filename: str
    purpose: str
    mime_type: str
    #: Size of the file that is to come of it, in bytes.
    n_bytes: int
    created_at: float
    #: When it takes no more parts, and those that it has are removed.
    expires_at: float
    #: Seconds that the file lasts, from its completion; None is the default of its purpose.
    file_expires_after: int | None
    status: Literal["pending", "completed", "cancelled", "expired"] = "pending"

    def as_json(self, file: File | None = None) -> dict[str, Any]:
        """The `upload` object, with the file that was made of it."""
        return {
            "id": self.id,
            "object": "upload",
            "bytes": self.n_bytes,
            "created_at": int(self.created_at),
            "expires_at": int(self.expires_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.status,
            "file": None if file is None else file.as_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of an upload. Its bytes are on disk, under its id, while the upload is pending."""

    id: str
    upload_id: str
    #: Size, in bytes.
    n_bytes: int
    created_at: float

    def as_json(self) -> dict[str, Any]:
        """The `upload.part` object."""
        return {
            "id": self.id,
            "object": "upload.part",
            "created_at": int(self.created_at),
            "upload_id": self.upload_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch of the Batch API. The rows it has executed are in its `Work`."""

    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: dict[str, str] | None
    #: Seconds after which the output files are deleted, from their creation.
    output_expires_after: int
    #: From when on the batch is found. In the future when a fault delays it.
    created_at: float
    #: From when on lists show the batch.
    listed_at: float
    status: Status = "validating"
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None
    errors: tuple[LineError, ...] = ()
    #: The one model that all requests name.
    model: str | None = None
    #: Requests in the input file; 0 until it is validated.
    total: int = 0
    #: Requests answered with 2xx so far.
    completed: int = 0
    #: Requests answered with anything else so far. Expired and cancelled rows are not among them.
    failed: int = 0
    #: Prompt tokens that count against the queue of the model until the batch ends.
    enqueued_tokens: int = 0
    usage: Usage = field(default_factory=Usage)
    output_file_id: str | None = None
    error_file_id: str | None = None

    #: Rows after which it expires at once, by a scripted fault; None is no such fault.
    rows_before_expiry: int | None = None

    @property
    def expires_at(self) -> float:
        """When the completion window ends: 24 hours after creation at OpenAI (spec, 2026-08)."""
        if self.rows_before_expiry is not None and self.finalizing_at is not None:
            return self.finalizing_at
        return self.created_at + 3_600 * hours_of(self.completion_window)

    def as_json(self) -> dict[str, Any]:
        """The `batch` object. Its model and usage are known at the end, if any row was run."""
        ended = self.status in TERMINAL and self.status != "failed"
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model if ended else None,
            "errors": self._errors_as_json(),
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(self.created_at),
            "in_progress_at": _whole(self.in_progress_at),
            "expires_at": int(self.expires_at),
            "finalizing_at": _whole(self.finalizing_at),
            "completed_at": _whole(self.completed_at),
            "failed_at": _whole(self.failed_at),
            "expired_at": _whole(self.expired_at),
            "cancelling_at": _whole(self.cancelling_at),
            "cancelled_at": _whole(self.cancelled_at),
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "usage": self.usage.as_json() if ended else None,
            "metadata": self.metadata,
        }

    def _errors_as_json(self) -> dict[str, Any] | None:
        if not self.errors:
            return None
        data = [
            {"code": e.code, "message": e.message, "param": e.param, "line": e.line}
            for e in self.errors
        ]
        return {"object": "list", "data": data}


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """How a new file or batch comes into being, by scripted faults."""

    #: Seconds until it is found, and until lists show it.
    found_after: float = 0.0
    listed_after: float = 0.0
    #: Rows after which a batch expires at once; None is no such fault.
    rows_before_expiry: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The webhook that tells of the end of a batch, and how far it has come."""

    #: The `webhook-id`: the same at each attempt, so that a receiver can tell duplicates.
    id: str
    batch_id: str
    #: The status in which the batch ended.
    status: Status
    #: When the batch ended.
    created_at: float
    #: Attempts so far.
    attempts: int = 0
    #: When the next attempt is due; None when there is none, as it arrived or was given up.
    next_at: float | None

    def as_json(self) -> dict[str, Any]:
        """The `event` object."""
        return {
            "id": f"evt_{self.id.removeprefix('wh_')}",
            "object": "event",
            "created_at": int(self.created_at),
            "type": f"batch.{self.status}",
            "data": {"id": self.batch_id},
        }


@dataclass(frozen=True, slots=True)
class Call:
    """One call that arrived, whatever its answer. It holds no key and no body."""

    #: When it arrived, by the clock of the server.
    at: float
    method: str
    #: Without the query.
    path: str
    #: The HTTP status of the answer; None when the connection was closed without one.
    status: int | None
    #: The `x-request-id` of the answer.
    request_id: str


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
