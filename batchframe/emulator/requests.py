"""What a client sends becomes an order, or is refused with 400 before anything is kept.

Only what the service refuses at once is refused here; the lines of an input file are looked at
later, while the batch is `validating`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchframe.core.dialects import OPENAI, Dialect

from .records import Refusal
from .validation import is_json_object

__all__ = [
    "ENDPOINTS",
    "MAX_FILE_BYTES",
    "BatchOrder",
    "check_upload",
    "expiry_seconds",
    "page_limit",
    "read_order",
]

#: Endpoints that batches can be made for (OpenAI API spec, 2026-08).
ENDPOINTS = (
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
)

#: Size of any other file, in bytes (OpenAI API spec, 2026-08: 512 MB).
MAX_FILE_BYTES = 536_870_912

#: Purposes that an upload may have (OpenAI API spec, 2026-08).
_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")

#: Bounds of `expires_after.seconds`: an hour to 30 days (OpenAI API spec, 2026-08).
_EXPIRY_SECONDS = (3_600, 2_592_000)

#: Metadata: pairs, characters of a key, characters of a value (OpenAI API spec, 2026-08).
_METADATA_PAIRS, _METADATA_KEY, _METADATA_VALUE = 16, 64, 512

_ORDER_FIELDS = frozenset(
    {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """What `POST /v1/batches` asks for, checked."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    #: Seconds after which the output files are deleted; None is the service's default.
    output_expires_after: int | None


def check_upload(path: Path, filename: str, purpose: str, max_batch_bytes: int) -> None:
    """Refuse what `POST /v1/files` refuses at once."""
    if purpose not in _PURPOSES:
        message = f"'{purpose}' is not one of {list(_PURPOSES)} - 'purpose'"
        raise Refusal(400, message, param="purpose")
    size = path.stat().st_size
    if size > (max_batch_bytes if purpose == "batch" else MAX_FILE_BYTES):
        raise Refusal(400, "File is too large.", param="file")
    if purpose == "batch":
        with path.open("rb") as lines:
            first = lines.readline()
        if not filename.endswith(".jsonl") or not is_json_object(first):
            message = "Invalid file format for Batch API. Must be .jsonl"
            raise Refusal(400, message, param="file")


def read_order(sent: Any, dialect: Dialect = OPENAI) -> BatchOrder:
    """Check the JSON body of a create, as the service of the dialect does."""
    if not isinstance(sent, dict):
        raise Refusal(400, "We could not parse the JSON body of your request.")
    for name in sorted(sent.keys() - _ORDER_FIELDS):
        message = f"Unknown parameter: '{name}'."
        raise Refusal(400, message, code="unknown_parameter", param=name)
    for name in ("input_file_id", "endpoint", "completion_window"):
        value = sent.get(name)
        if value is None:
            message = f"Missing required parameter: '{name}'."
            raise Refusal(400, message, code="missing_required_parameter", param=name)
        if not isinstance(value, str):
            message = f"Invalid type for '{name}': expected a string."
            raise Refusal(400, message, code="invalid_type", param=name)
    endpoints = {dialect.url(e): e for e in dialect.endpoints or ENDPOINTS}
    if sent["endpoint"] not in endpoints:
        supported = ", ".join(f"'{e}'" for e in endpoints)
        message = f"Invalid endpoint: '{sent['endpoint']}'. Supported values: {supported}."
        raise Refusal(400, message, code="invalid_value", param="endpoint")
    window = sent["completion_window"]
    if not re.fullmatch(r"\d{1,4}[hd]", window) or not dialect.takes_window(window):
        message = f"Invalid value: '{window}'. Value must be '{dialect.window_words}'."
        raise Refusal(400, message, code="invalid_value", param="completion_window")
    _check_metadata(sent.get("metadata"))
    expiry = sent.get("output_expires_after")
    return BatchOrder(
        input_file_id=sent["input_file_id"],
        endpoint=endpoints[sent["endpoint"]],
        completion_window=sent["completion_window"],
        metadata=sent.get("metadata"),
        output_expires_after=None
        if expiry is None
        else expiry_seconds(expiry, "output_expires_after"),
    )


def expiry_seconds(sent: Any, param: str) -> int:
    """Read an expiry, `{"anchor": "created_at", "seconds": n}`, in JSON or from form fields."""
    if not isinstance(sent, dict) or sent.get("anchor") != "created_at":
        message = f"Invalid value for '{param}.anchor': must be 'created_at'."
        raise Refusal(400, message, code="invalid_value", param=f"{param}.anchor")
    low, high = _EXPIRY_SECONDS
    return _bounded(sent.get("seconds"), f"{param}.seconds", low, high)


def page_limit(sent: str | None, default: int, highest: int) -> int:
    """Read the `limit` of a listing."""
    return default if sent is None else _bounded(sent, "limit", 1, highest)


def _bounded(sent: Any, param: str, low: int, high: int) -> int:
    try:
        value = int(sent)
    except (TypeError, ValueError):
        message = f"Invalid type for '{param}': expected an integer."
        raise Refusal(400, message, code="invalid_type", param=param) from None
    if not low <= value <= high:
        message = f"Invalid '{param}': {value} is not between {low} and {high}."
        raise Refusal(400, message, code="integer_out_of_range", param=param)
    return value


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        message = "Invalid type for 'metadata': expected an object."
        raise Refusal(400, message, code="invalid_type", param="metadata")
    if len(metadata) > _METADATA_PAIRS:
        message = f"Invalid 'metadata': too many properties, the maximum is {_METADATA_PAIRS}."
        raise Refusal(400, message, code="object_above_max_properties", param="metadata")
    for key, value in metadata.items():
        param = f"metadata.{key}"
        if len(key) > _METADATA_KEY:
            message = f"Invalid 'metadata': a key is longer than {_METADATA_KEY} characters."
            raise Refusal(400, message, code="string_above_max_length", param="metadata")
        if not isinstance(value, str):
            message = f"Invalid type for '{param}': expected a string."
            raise Refusal(400, message, code="invalid_type", param=param)
        if len(value) > _METADATA_VALUE:
            message = f"Invalid '{param}': longer than {_METADATA_VALUE} characters."
            raise Refusal(400, message, code="string_above_max_length", param=param)
