"""What a client sends becomes an order, or is refused with 400 before anything is kept.

Only what the service refuses at once is refused here; the lines of an input file are looked at
later, while the batch is `validating`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from batchframe.core.dialects import OPENAI, Dialect

from .records import Refusal
from .validation import is_json_object

__all__ = [
    "ENDPOINTS",
    "MAX_FILE_BYTES",
    "MAX_JSON_BYTES",
    "MAX_PART_BYTES",
    "MAX_UPLOAD_BYTES",
    "BatchOrder",
    "Completion",
    "UploadOrder",
    "check_upload",
    "page_limit",
    "parse_json",
    "read_completion",
    "read_form",
    "read_order",
    "read_upload_order",
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

#: Size of a body in JSON, in bytes: all that a valid one can hold fits several times.
MAX_JSON_BYTES = 1 << 20

#: Size of one part of an upload, and of all its parts, in bytes (OpenAI API spec, 2026-08: 64 MB
#: and 8 GB; the parts of openai-python 3.57 are 64 MiB).
MAX_PART_BYTES, MAX_UPLOAD_BYTES = 64 << 20, 8 << 30

#: Purposes that a file may be uploaded for (OpenAI API spec, 2026-08).
_PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")

#: Bounds of `expires_after.seconds`: an hour to 30 days (OpenAI API spec, 2026-08).
_EXPIRY_SECONDS = (3_600, 2_592_000)

#: Seconds that the inputs and outputs of batches last (OpenAI API spec, 2026-08: 30 days).
_RETENTION_SECONDS = 2_592_000

#: Metadata: pairs, characters of a key, characters of a value (OpenAI API spec, 2026-08).
_METADATA_PAIRS, _METADATA_KEY, _METADATA_VALUE = 16, 64, 512

_ORDER_FIELDS = frozenset(
    {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
)
_FORM_FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
_UPLOAD_FIELDS = frozenset({"filename", "purpose", "bytes", "mime_type", "expires_after"})

#: A whole number in a query or a form.
_WHOLE_NUMBER = re.compile("-?[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """What `POST /v1/batches` asks for, checked."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    #: Seconds after which the output files are deleted.
    output_expires_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOrder:
    """What `POST /v1/uploads` asks for, checked."""

    filename: str
    purpose: str
    mime_type: str
    #: Size of the file, in bytes.
    n_bytes: int
    #: Seconds after which the file is deleted; None is never.
    expires_after: int | None


@dataclass(frozen=True, slots=True)
class Completion:
    """What `POST /v1/uploads/{id}/complete` asks for, checked."""

    #: The parts, in the order of the file.
    part_ids: tuple[str, ...]
    #: What the file must have, in hex, if it is given.
    md5: str | None


def parse_json(body: bytes) -> dict[str, Any]:
    """Read the body of a call that takes a JSON object."""
    try:
        sent = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        sent = None
    if not isinstance(sent, dict):
        raise Refusal(400, "We could not parse the JSON body of your request.")
    return sent


def check_upload(path: Path, filename: str, purpose: str, max_batch_bytes: int) -> None:
    """Refuse what `POST /v1/files` refuses at once."""
    _check_purpose(purpose)
    size = path.stat().st_size
    if size > (max_batch_bytes if purpose == "batch" else MAX_FILE_BYTES):
        raise Refusal(400, "File is too large.", param="file")
    if purpose == "batch":
        with path.open("rb") as lines:
            is_readable = filename.endswith(".jsonl") and any(map(is_json_object, lines))
        if not is_readable:  # litellm pull 37527, 2026
            message = "Invalid file format for Batch API. Must be .jsonl"
            raise Refusal(400, message, param="file")


def read_order(sent: dict[str, Any], dialect: Dialect = OPENAI) -> BatchOrder:
    """Check the JSON body of a create, as the service of the dialect does."""
    _check_fields(sent, _ORDER_FIELDS, ("input_file_id", "endpoint", "completion_window"))
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
    lasts = _expiry_seconds(sent, "output_expires_after")
    return BatchOrder(
        input_file_id=sent["input_file_id"],
        endpoint=endpoints[sent["endpoint"]],
        completion_window=sent["completion_window"],
        metadata=sent.get("metadata"),
        output_expires_after=lasts or _RETENTION_SECONDS,
    )


def read_upload_order(sent: dict[str, Any]) -> UploadOrder:
    """Check the JSON body that begins an upload."""
    _check_fields(sent, _UPLOAD_FIELDS, ("filename", "purpose", "mime_type"))
    _check_purpose(sent["purpose"])
    if "bytes" not in sent:
        raise _missing("bytes")
    return UploadOrder(
        filename=sent["filename"],
        purpose=sent["purpose"],
        mime_type=sent["mime_type"],
        n_bytes=_bounded(sent["bytes"], "bytes", 1, MAX_UPLOAD_BYTES),
        expires_after=_file_lasts(sent, sent["purpose"]),
    )


def read_completion(sent: dict[str, Any]) -> Completion:
    """Check the JSON body that completes an upload."""
    _check_fields(sent, frozenset({"part_ids", "md5"}), ())
    if "part_ids" not in sent:
        raise _missing("part_ids")
    part_ids = sent["part_ids"]
    if not isinstance(part_ids, list) or not all(isinstance(i, str) for i in part_ids):
        raise _wrong_type("part_ids", "an array of strings")
    if not isinstance(sent.get("md5", ""), str):
        raise _wrong_type("md5", "a string")
    return Completion(tuple(part_ids), sent.get("md5"))


def read_form(sent: Mapping[str, Any]) -> tuple[str, int | None]:
    """Check the fields of `POST /v1/files` but the file: its purpose, and the seconds it lasts."""
    _check_fields(sent, _FORM_FIELDS, ("purpose",))
    # As the SDK sends an object in a form (openai-python 3.57).
    expiry = {
        key.removeprefix("expires_after[").removesuffix("]"): _number(value)
        for key, value in sent.items()
        if key.startswith("expires_after[")
    }
    purpose = sent["purpose"]
    return purpose, _file_lasts({"expires_after": expiry} if expiry else {}, purpose)


def page_limit(sent: str | None, default: int, highest: int) -> int:
    """Read the `limit` of a listing."""
    return default if sent is None else _bounded(_number(sent), "limit", 1, highest)


def _file_lasts(sent: Mapping[str, Any], purpose: str) -> int | None:
    """The seconds that a file lasts, by its `expires_after` or by its purpose; None is for ever."""
    lasts = _expiry_seconds(sent, "expires_after")
    return _RETENTION_SECONDS if lasts is None and purpose == "batch" else lasts


def _expiry_seconds(sent: Mapping[str, Any], param: str) -> int | None:
    if param not in sent:
        return None
    expiry = sent[param]
    if not isinstance(expiry, dict):
        raise _wrong_type(param, "an object")
    if expiry.get("anchor") != "created_at":
        message = f"Invalid value for '{param}.anchor': must be 'created_at'."
        raise Refusal(400, message, code="invalid_value", param=f"{param}.anchor")
    low, high = _EXPIRY_SECONDS
    return _bounded(expiry.get("seconds"), f"{param}.seconds", low, high)


def _check_fields(sent: Mapping[str, Any], known: frozenset[str], texts: tuple[str, ...]) -> None:
    for name in sorted(sent.keys() - known):
        message = f"Unknown parameter: '{name}'."
        raise Refusal(400, message, code="unknown_parameter", param=name)
    for name in texts:
        if sent.get(name) is None:
            raise _missing(name)
        if not isinstance(sent[name], str):
            raise _wrong_type(name, "a string")


def _missing(param: str) -> Refusal:
    message = f"Missing required parameter: '{param}'."
    return Refusal(400, message, code="missing_required_parameter", param=param)


def _wrong_type(param: str, wanted: str) -> Refusal:
    message = f"Invalid type for '{param}': expected {wanted}."
    return Refusal(400, message, code="invalid_type", param=param)


def _check_purpose(purpose: str) -> None:
    if purpose not in _PURPOSES:  # the text of the service (openai-ruby issue 748, 2026)
        message = f"'{purpose}' is not one of {list(_PURPOSES)} - 'purpose'"
        raise Refusal(400, message, param="purpose")


def _number(sent: Any) -> Any:
    """The whole number that a field of a form or a query holds, or what it holds."""
    is_number = isinstance(sent, str) and _WHOLE_NUMBER.fullmatch(sent)
    return int(sent) if is_number else sent


def _bounded(value: Any, param: str, low: int, high: int) -> int:
    if isinstance(value, float) and value.is_integer():  # 1e3 is an integer in JSON
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(param, "an integer")
    if not low <= value <= high:
        message = f"Invalid '{param}': {value} is not between {low} and {high}."
        raise Refusal(400, message, code="integer_out_of_range", param=param)
    return value


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise _wrong_type("metadata", "an object")
    if len(metadata) > _METADATA_PAIRS:
        message = f"Invalid 'metadata': too many properties, the maximum is {_METADATA_PAIRS}."
        raise Refusal(400, message, code="object_above_max_properties", param="metadata")
    for key, value in metadata.items():
        param = f"metadata.{key}"
        if len(key) > _METADATA_KEY:
            message = f"Invalid 'metadata': a key is longer than {_METADATA_KEY} characters."
            raise Refusal(400, message, code="string_above_max_length", param="metadata")
        if not isinstance(value, str):
            raise _wrong_type(param, "a string")
        if len(value) > _METADATA_VALUE:
            message = f"Invalid '{param}': longer than {_METADATA_VALUE} characters."
            raise Refusal(400, message, code="string_above_max_length", param=param)
