"""The requests of one batch become the lines of its output and error files.

Each answered row is appended to a results file as the very line that will be served, in the order
of the input. The number of complete lines there is the place to go on from after a restart, so a
row is never executed twice. At the end the lines are shuffled into the two files, because the
service promises no order, and the billed custom_ids go into a ledger that outlives the files.
"""

import mmap
import random
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from .models import Answer
from .records import Usage

__all__ = ["Request", "Work", "read_ledger"]

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder()

#: The errors of rows that were not executed (OpenAI Batch API guide, 2026-08).
_EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
_CANCELLED = {
    "code": "batch_cancelled",
    "message": "The batch was cancelled before this request executed.",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the input file."""

    custom_id: str
    body: dict[str, Any]


class Work:
    """The rows of one batch, executed so far and still to do. Not thread-safe."""

    def __init__(self, folder: Path, batch_id: str, total: int) -> None:
        self.total = total
        self.done = 0
        self.failed = 0
        self.usage = Usage()
        #: The custom_id of each execution that is billed.
        self.billed: list[str] = []
        self._batch_id = batch_id
        #: What the ids of this batch's requests begin with.
        self._tag = batch_id.removeprefix("batch_")[:16]
        self._input_path = folder / f"{batch_id}.input"
        self._results_path = folder / f"{batch_id}.results"
        self._ledger_path = folder / f"{batch_id}.ledger"
        #: Where each results line ends, and whether it belongs into the output file.
        self._ends = array("Q", [0])
        self._succeeded = bytearray()
        self._recover()
        self._input = self._remaining()
        self._results = self._results_path.open("ab")

    def read(self, n: int) -> list[Request]:
        """The next `n` requests. Each is to be handed back to `append` before the next read."""
        requests = []
        for line in islice(self._input, n):
            request = _DECODER.decode(line)
            requests.append(Request(request["custom_id"], request["body"]))
        return requests

    def append(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Record the answers of the requests that `read` returned last."""
        lines = []
        for request, (status, body) in zip(requests, answers, strict=True):
            number = f"{self._tag}{self.done:08x}"
            answered = {
                "id": f"batch_req_{number}",
                "custom_id": request.custom_id,
                "response": {"status_code": status, "request_id": f"req_{number}", "body": body},
                "error": None,
            }
            line = _ENCODER.encode(answered) + b"\n"
            lines.append(line)
            self._count(request.custom_id, status, body, len(line))
        self._results.writelines(lines)
        self._results.flush()

    def finish(self, output: Path, errors: Path, *, cancelled: bool) -> None:
        """Write both files and the ledger. Rows not executed are in `errors`, with the reason."""
        reason = _CANCELLED if cancelled else _EXPIRED
        # From `done` on, not from where `read` is: a row under way has no answer yet.
        with output.open("wb") as out, errors.open("wb") as err, self._remaining() as remaining:
            for succeeded, line in self._shuffled():
                (out if succeeded else err).write(line)
            for index, line in enumerate(remaining, start=self.done):
                unanswered = {
                    "id": f"batch_req_{self._tag}{index:08x}",
                    "custom_id": _DECODER.decode(line)["custom_id"],
                    "response": None,
                    "error": reason,
                }
                err.write(_ENCODER.encode(unanswered) + b"\n")
        self._ledger_path.write_bytes(_ENCODER.encode(self.billed))

    def close(self) -> None:
        """Close the files."""
        self._input.close()
        self._results.close()

    def discard(self) -> None:
        """Close and remove the files, all but the ledger."""
        self.close()
        self._input_path.unlink(missing_ok=True)
        self._results_path.unlink(missing_ok=True)

    def _remaining(self) -> BinaryIO:
        requests = self._input_path.open("rb")
        for _ in islice(requests, self.done):
            pass
        return requests

    def _count(self, custom_id: str, status: int, body: dict[str, Any], size: int) -> None:
        self.done += 1
        self._ends.append(self._ends[-1] + size)
        succeeded = 200 <= status < 300
        self._succeeded.append(succeeded)
        if succeeded:
            self.billed.append(custom_id)
            self.usage += _usage_of(body)
        else:
            self.failed += 1

    def _recover(self) -> None:
        # A process that was killed may have left half a line: everything before it counts.
        with suppress(FileNotFoundError), self._results_path.open("rb+") as results:
            for line in results:
                if not line.endswith(b"\n"):
                    break
                answered = _DECODER.decode(line)
                response = answered["response"]
                self._count(
                    answered["custom_id"], response["status_code"], response["body"], len(line)
                )
            results.truncate(self._ends[-1])

    def _shuffled(self) -> Iterator[tuple[bool, bytes]]:
        if not self.done:  # an empty file cannot be mapped
            return
        order = list(range(self.done))
        random.Random(self._batch_id).shuffle(order)  # noqa: S311 - to be repeatable
        with (
            self._results_path.open("rb") as results,
            mmap.mmap(results.fileno(), 0, access=mmap.ACCESS_READ) as lines,
        ):
            for i in order:
                yield bool(self._succeeded[i]), lines[self._ends[i] : self._ends[i + 1]]


def read_ledger(folder: Path, batch_id: str) -> list[str]:
    """The custom_ids that an ended batch was billed for."""
    try:
        return msgspec.json.decode((folder / f"{batch_id}.ledger").read_bytes(), type=list[str])
    except FileNotFoundError:
        return []


def _usage_of(body: dict[str, Any]) -> Usage:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return Usage()
    # Chats say prompt and completion, responses say input and output.
    read, written = ("prompt", "completion") if "prompt_tokens" in usage else ("input", "output")
    return Usage(
        usage.get(f"{read}_tokens") or 0,
        (usage.get(f"{read}_tokens_details") or {}).get("cached_tokens") or 0,
        usage.get(f"{written}_tokens") or 0,
        (usage.get(f"{written}_tokens_details") or {}).get("reasoning_tokens") or 0,
    )
