"""The requests of one batch become the lines of its output and error files.

Each answered row is appended to a results file as the very line that will be served, in the order
in which rows are answered. The id of a line holds the number of its row, so what is answered is
known after a restart, and no row is answered twice. At the end the lines are shuffled into the two
files, because the service promises no order, and the billed custom_ids go into a ledger that
outlives the files. Memory holds some bytes for each row of a live batch, and no line.
"""

import random
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from .answers import Answer, error_body
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

#: Stands for the place of the line of a row that has no answer.
_NOWHERE = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the input file."""

    #: Its place in the file, from 0.
    row: int
    custom_id: str
    body: dict[str, Any]


class _Response(msgspec.Struct):
    status_code: int
    body: Any


class _Answered(msgspec.Struct):
    """A line of the results file."""

    id: str
    custom_id: str
    response: _Response

    @property
    def row(self) -> int:
        return int(self.id[-8:], 16)


_ANSWERED = msgspec.json.Decoder(_Answered)


class Work:
    """The rows of one batch, executed so far and still to do. Not thread-safe."""

    def __init__(self, folder: Path, batch_id: str, total: int) -> None:
        self.total = total
        #: Rows that have an answer.
        self.done = 0
        self.failed = 0
        self.usage = Usage()
        self._batch_id = batch_id
        #: What the ids of this batch's requests begin with.
        self._tag = batch_id.removeprefix("batch_")[:16]
        self._input_path = folder / f"{batch_id}.input"
        self._results_path = folder / f"{batch_id}.results"
        self._ledger_path = folder / f"{batch_id}.ledger"
        #: Where the line of each row begins in the results file, and whether it failed.
        self._places = array("Q", [_NOWHERE]) * total
        self._has_failed = bytearray(total)
        self._end = 0
        self._recover()
        #: Rows that were answered, or handed out to be.
        self.begun = self.done
        self._input = self._unanswered()
        # Unbuffered: what a full disk does not take must not be there later, in the middle.
        self._results = self._results_path.open("ab", buffering=0)

    def read(self, n: int) -> list[Request]:
        """The next `n` requests, or as many as there are. None is handed out twice."""
        requests = []
        for row, line in islice(self._input, n):
            request = _DECODER.decode(line)
            requests.append(Request(row, request["custom_id"], request["body"]))
        self.begun += len(requests)
        return requests

    def append(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Record the answers of requests that `read` returned.

        Raises OSError, and records none of them, if they cannot be written.
        """
        kept = [self._kept(*pair) for pair in zip(requests, answers, strict=True)]
        self._write(b"".join(line for _, line in kept))
        for request, ((status, body), line) in zip(requests, kept, strict=True):
            self._count(request.row, status, body, len(line))

    def billed(self) -> Iterator[str]:
        """The custom_id of each execution so far that is billed."""
        with self._results_path.open("rb") as results:
            for line in results:
                answered = _ANSWERED.decode(line)
                if not self._has_failed[answered.row]:
                    yield answered.custom_id

    def finish(self, output: Path, errors: Path, *, cancelled: bool) -> None:
        """Write both files and the ledger. Rows not executed are in `errors`, with the reason."""
        reason = _CANCELLED if cancelled else _EXPIRED
        with output.open("wb") as out, errors.open("wb") as err:
            for has_failed, line in self._shuffled():
                (err if has_failed else out).write(line)
            # Rows under way are among them: they have no answer yet.
            for row, line in self._unanswered():
                unanswered = {
                    "id": f"batch_req_{self._tag}{row:08x}",
                    "custom_id": _DECODER.decode(line)["custom_id"],
                    "response": None,
                    "error": reason,
                }
                err.write(_ENCODER.encode(unanswered) + b"\n")
        with self._ledger_path.open("wb") as ledger:
            ledger.writelines(_ENCODER.encode(custom_id) + b"\n" for custom_id in self.billed())

    def close(self) -> None:
        """Close the files."""
        self._input.close()
        self._results.close()

    def discard(self) -> None:
        """Close and remove the files, all but the ledger."""
        self.close()
        self._input_path.unlink(missing_ok=True)
        self._results_path.unlink(missing_ok=True)

    def _unanswered(self) -> Generator[tuple[int, bytes]]:
        with self._input_path.open("rb") as requests:
            for row, line in enumerate(requests):
                if self._places[row] == _NOWHERE:
                    yield row, line

    def _kept(self, request: Request, answer: Answer) -> tuple[Answer, bytes]:
        """The answer and its line; 500 in the place of one that no line can hold."""
        try:
            return answer, self._line(request, answer)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            message = f"The answer cannot be written as JSON ({type(error).__name__}: {error})"
            answer = 500, error_body(message, "server_error", None)
            return answer, self._line(request, answer)

    def _line(self, request: Request, answer: Answer) -> bytes:
        number = f"{self._tag}{request.row:08x}"
        status, body = answer
        answered = {
            "id": f"batch_req_{number}",
            "custom_id": request.custom_id,
            "response": {"status_code": status, "request_id": f"req_{number}", "body": body},
            "error": None,
        }
        return _ENCODER.encode(answered) + b"\n"

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        try:
            while left:
                left = left[self._results.write(left) :]
        except OSError:
            self._results.truncate(self._end)
            raise

    def _count(self, row: int, status: int, body: Any, size: int) -> None:
        self.done += 1
        self._places[row] = self._end
        self._end += size
        if 200 <= status < 300:
            self.usage += _usage_of(body)
        else:
            self.failed += 1
            self._has_failed[row] = True

    def _recover(self) -> None:
        # A process that was killed may have left half a line: everything before it counts.
        with suppress(FileNotFoundError), self._results_path.open("rb+") as results:
            for line in results:
                if not line.endswith(b"\n"):
                    break
                answered = _ANSWERED.decode(line)
                response = answered.response
                self._count(answered.row, response.status_code, response.body, len(line))
            results.truncate(self._end)

    def _shuffled(self) -> Iterator[tuple[bool, bytes]]:
        order = [row for row, place in enumerate(self._places) if place != _NOWHERE]
        random.Random(self._batch_id).shuffle(order)  # noqa: S311 - to be repeatable
        with self._results_path.open("rb", buffering=8192) as results:
            for row in order:
                results.seek(self._places[row])
                yield bool(self._has_failed[row]), results.readline()


def read_ledger(folder: Path, batch_id: str) -> Iterator[str]:
    """The custom_ids that an ended batch was billed for."""
    with suppress(FileNotFoundError), (folder / f"{batch_id}.ledger").open("rb") as ledger:
        yield from map(msgspec.json.decode, ledger)


def _usage_of(body: Any) -> Usage:
    usage = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(usage, dict):
        return Usage()
    # Chats say prompt and completion, responses say input and output.
    read, written = ("prompt", "completion") if "prompt_tokens" in usage else ("input", "output")
    return Usage(
        _number(usage, f"{read}_tokens"),
        _number(usage.get(f"{read}_tokens_details"), "cached_tokens"),
        _number(usage, f"{written}_tokens"),
        _number(usage.get(f"{written}_tokens_details"), "reasoning_tokens"),
    )


def _number(counts: Any, name: str) -> int:
    # What answers may be no better than a stranger's server.
    n = counts.get(name) if isinstance(counts, dict) else None
    return n if isinstance(n, int) else 0
