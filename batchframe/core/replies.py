"""The provider's answers: HTTP words -> core types.

An answer is a mapping that nobody checked, and not every service keeps to the form: what does not
fit says nothing, and never fails. What comes out fits the log.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from batchframe.core.batches import BatchError, BatchSeen, BatchStatus, Usage

__all__ = ["batch_seen", "is_ours", "linked", "mapping", "passes"]

#: What stands for the id of a result file that has an address instead: its kind and its batch.
_LINKED = re.compile(r"file-(output|error)-of-(.+)")


def batch_seen(batch_id: str, fields: Mapping[str, Any]) -> BatchSeen:
    """What an answer says of the batch with this id.

    A result file that has an address instead of an id gets a name that `linked` reads: no address
    goes into the checkpoint, whoever the service is taken for, as what is read there is never
    asked.
    """
    counts, errors = mapping(fields.get("request_counts")), fields.get("errors")
    if isinstance(errors, Mapping):  # Groq gives the list as it is (docs, 2026-11)
        errors = errors.get("data")
    metadata = mapping(fields.get("metadata"))
    return BatchSeen(
        batch_id=batch_id,
        input_file_id=str(fields.get("input_file_id") or ""),
        status=_status(fields.get("status")),
        created_at=_date(fields.get("created_at")),
        in_progress_at=_date(fields.get("in_progress_at")),
        output_file_id=_result_file("output", batch_id, fields),
        error_file_id=_result_file("error", batch_id, fields),
        n_done=int(_number(counts.get("completed")) + _number(counts.get("failed"))),
        n_answered=int(_number(counts.get("completed"))),
        usage=_usage(fields.get("usage")),
        errors=tuple(
            BatchError(
                code=str(error.get("code") or ""),
                message=str(error.get("message") or ""),
                line=int(_number(error.get("line"))) or None,
                param=error["param"] if isinstance(error.get("param"), str) else None,
            )
            for error in map(_reason, errors if isinstance(errors, list) else ())
            if error
        ),
        metadata={str(key): str(value) for key, value in metadata.items()},
    )


def linked(file_id: str) -> tuple[str, str] | None:
    """The kind and the batch of a result file that has an address, by its name; or None."""
    found = _LINKED.fullmatch(file_id)
    return None if found is None else (found[1], found[2])


def is_ours(batch: BatchSeen, file_id: str, token: str) -> bool:
    """True for a batch that reads this file or carries this token."""
    return batch.input_file_id == file_id or batch.metadata.get("token") == token


def passes(page: Sequence[BatchSeen], since: float) -> bool:
    """True if what follows this page of a listing was created before `since`, as far as it proves.

    A date that is not given proves nothing, nor does a page that is not newest first; of one whose
    dates are all the same, nobody knows.
    """
    dates = [batch.created_at for batch in page]
    newest_first = dates == sorted(dates, reverse=True) and dates[:1] > dates[-1:]
    return newest_first and any(0 < date < since for date in dates)


def mapping(value: object) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _reason(error: object) -> Mapping[str, Any]:
    """Why a batch was refused; SiliconFlow says it in a text alone (docs, 2026-11)."""
    return {"message": error} if isinstance(error, str) else mapping(error)


def _status(word: object) -> BatchStatus:
    text = str(word).lower()
    try:
        return BatchStatus("cancelled" if text == "canceled" else text)
    except ValueError:
        return BatchStatus.UNKNOWN


def _usage(fields: object) -> Usage | None:
    if not isinstance(fields, Mapping):
        return None
    read = mapping(fields.get("input_tokens_details"))
    written = mapping(fields.get("output_tokens_details"))
    return Usage(
        input_tokens=int(_number(fields.get("input_tokens"))),
        cached_tokens=int(_number(read.get("cached_tokens"))),
        output_tokens=int(_number(fields.get("output_tokens"))),
        reasoning_tokens=int(_number(written.get("reasoning_tokens"))),
    )


def _result_file(kind: str, batch_id: str, fields: Mapping[str, Any]) -> str | None:
    value = fields.get(f"{kind}_file_id")
    if "://" in str(value):
        return f"file-{kind}-of-{batch_id}"
    return value if isinstance(value, str) and value else None  # "" means none at some services


def _number(value: object) -> float:
    # What does not fit a date or a count says nothing; the log must be able to hold it.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return 0
    return value


def _date(value: object) -> float:
    # Seconds of this age of the world; 0, which says nothing, for milliseconds and the like.
    seconds = _number(value)
    return seconds if 0 < seconds < 1e11 else 0.0
