"""Scripted faults: what goes wrong, at which call, as plain data.

The common mishaps have names of their own, in `MISHAPS`; `Fault.parse` reads both forms.

A `Fault` names an operation and a kind; a `Script` hands out those that a call meets. Kinds are
tables: a refusal instead of the operation, an edit of its reply, a new shape of a result file, or
a mishap of the connection or of time, which the server carries out. A fault that comes before the
operation leaves the state as it was; one that comes after does not.
"""

import difflib
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from .records import Birth, Refusal

__all__ = ["EDITS", "KINDS", "MISHAPS", "REFUSALS", "SHAPES", "Fault", "Mishap", "Script", "birth"]


def _error(argument: str) -> Refusal:
    status, _, retry_after = argument.partition(":")
    headers = {"retry-after": retry_after} if retry_after else {}
    return Refusal(int(status), "The server had an error (scripted).", headers=headers)


def _not_visible(_argument: str) -> Refusal:
    # What the service said of files uploaded a moment before (bespokelabs curator issue 116, 2024).
    message = "Cannot find file, or organization org-local does not have access to it."
    return Refusal(400, message, param="input_file_id")


def _no_money(status: str) -> Refusal:
    message = "You exceeded your current quota, please check your plan and billing details."
    return Refusal(int(status or 429), message, code="insufficient_quota")


def _queue_full(argument: str) -> Refusal:
    # What batches of the service say that fail for it (openai-python issue 2084, 2025).
    limit, _, status = argument.partition(":")
    stated = f" Limit: {int(limit):,} enqueued tokens." if limit else ""
    message = f"Enqueued token limit reached in organization org-local.{stated}"
    return Refusal(int(status or 400), message, code="token_limit_exceeded")


def _redirect(url: str) -> Refusal:
    return Refusal(307, "Go to another address (scripted).", headers={"location": url})


#: Answered instead of the operation: `error-before:STATUS[:RETRY_AFTER]`, `not-visible[:CALLS]`,
#: `no-money[:STATUS]`, `queue-full[:LIMIT[:STATUS]]`, `redirect:URL` (307).
REFUSALS: dict[str, Callable[[str], Refusal]] = {
    "error-before": _error,
    "not-visible": _not_visible,
    "no-money": _no_money,
    "queue-full": _queue_full,
    "redirect": _redirect,
}

#: Carried out by the server, at any call: `reset-before` and `reply-lost-after` close the
#: connection without a reply; `error-after:STATUS[:RETRY_AFTER]` replaces the reply.
_AT_ANY_CALL = frozenset({"reset-before", "reply-lost-after", "error-after"})

#: `lands-late:SECONDS` loses the reply, and what was created comes into being so much later;
#: `visible-late:SECONDS` only the latter; `list-lag:SECONDS` only in lists.
_AT_CREATION = frozenset({"lands-late", "visible-late", "list-lag"})

#: `expire[:ROWS]`: the batch expires as soon as so many of its rows, or none, were executed; never
#: all of them.
_AT_CREATION_OF_BATCHES = frozenset({"expire"})

#: `truncate:BYTES` cuts a download and its connection; `truncate-silent:BYTES` hides the cut, by
#: leaving out the Content-Length. Of a range, so many of its own bytes are sent. `ignore-range`
#: sends the whole file, with status 200.
_AT_DOWNLOAD = frozenset({"truncate", "truncate-silent", "ignore-range"})

#: `duplicate` makes a call again that was taken, under the same id.
_AT_DELIVERY = frozenset({"duplicate"})


def _empty_file_ids(batch: dict[str, Any], _argument: str) -> dict[str, Any]:
    ids = ("output_file_id", "error_file_id")
    return batch | {name: batch[name] or "" for name in ids}


def _null_counts(batch: dict[str, Any], _argument: str) -> dict[str, Any]:
    return batch | {"request_counts": None}


def _unknown_status(batch: dict[str, Any], word: str) -> dict[str, Any]:
    return batch | {"status": word or "pondering"}


def _microseconds(batch: dict[str, Any], _argument: str) -> dict[str, Any]:
    return batch | {"created_at": batch["created_at"] * 1_000_000}


def _files_late(batch: dict[str, Any], _argument: str) -> dict[str, Any]:
    return batch | {"output_file_id": None, "error_file_id": None}


def _stuck(batch: dict[str, Any], word: str) -> dict[str, Any]:
    # Batches of the service stood still for days (community forum, 2025-12).
    ends = ("completed_at", "expired_at", "cancelled_at", "failed_at")
    return _files_late(batch, "") | dict.fromkeys(ends) | {"status": word or "finalizing"}


#: Edits of each batch in a reply: `empty-file-ids` ("" for null), `null-counts`,
#: `unknown-status:WORD`, `microseconds` (of its creation, where seconds belong), `files-late` (an
#: end without its files), `stuck[:STATUS]` (no end, whatever has become of it).
EDITS: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "empty-file-ids": _empty_file_ids,
    "null-counts": _null_counts,
    "unknown-status": _unknown_status,
    "microseconds": _microseconds,
    "files-late": _files_late,
    "stuck": _stuck,
}


def _foreign_line(lines: list[bytes]) -> list[bytes]:
    foreign = msgspec.json.decode(lines[0]) | {"custom_id": "of-another-batch"}
    return [*lines, msgspec.json.encode(foreign) + b"\n"]


def _torn_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1][: len(lines[-1]) // 2]]


def _status_zero(lines: list[bytes]) -> list[bytes]:
    # Seen in output files of the service (community forum, 2025-11).
    line = msgspec.json.decode(lines[0])
    line["response"] = {"status_code": 0, "request_id": None, "body": None}
    return [msgspec.json.encode(line) + b"\n", *lines[1:]]


def _error_in_200(lines: list[bytes]) -> list[bytes]:
    line = msgspec.json.decode(lines[0])
    error = {"message": "The server had an error (scripted).", "type": "server_error", "code": None}
    # In the error file a row may have failed otherwise, or have no answer at all.
    answer = {"request_id": None, **(line["response"] or {}), "status_code": 200}
    line |= {"response": answer | {"body": {"error": error | {"param": None}}}, "error": None}
    return [msgspec.json.encode(line) + b"\n", *lines[1:]]


#: New shapes of the result files `output` and `error` as they are made.
SHAPES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "drop-line": lambda lines: lines[1:],
    "duplicate-line": lambda lines: [*lines, lines[0]],
    "foreign-line": _foreign_line,
    "torn-line": _torn_line,
    "no-final-newline": lambda lines: [*lines[:-1], lines[-1].rstrip(b"\n")],
    "crlf": lambda lines: [line.replace(b"\n", b"\r\n") for line in lines],
    "status-zero": _status_zero,
    "error-in-200": _error_in_200,
}

#: What reads the argument of each kind that has one that can be wrong.
_ARGUMENTS: dict[str, Callable[[str], object]] = {
    **REFUSALS,
    "error-after": _error,
    "lands-late": float,
    "visible-late": float,
    "list-lag": float,
    "expire": lambda n_rows: int(n_rows or 0),
    "truncate": int,
    "truncate-silent": int,
}

#: The kinds of faults that each operation, result file as it is made, or webhook can meet.
KINDS: dict[str, frozenset[str]] = {
    "files.create": _AT_ANY_CALL | _AT_CREATION | REFUSALS.keys(),
    "files.list": _AT_ANY_CALL | REFUSALS.keys(),
    "files.retrieve": _AT_ANY_CALL | REFUSALS.keys(),
    "files.delete": _AT_ANY_CALL | REFUSALS.keys(),
    "files.content": _AT_ANY_CALL | _AT_DOWNLOAD | REFUSALS.keys(),
    "uploads.create": _AT_ANY_CALL | REFUSALS.keys(),
    "uploads.parts.create": _AT_ANY_CALL | REFUSALS.keys(),
    "uploads.complete": _AT_ANY_CALL | REFUSALS.keys(),
    "uploads.cancel": _AT_ANY_CALL | REFUSALS.keys(),
    "batches.create": (
        _AT_ANY_CALL | _AT_CREATION | _AT_CREATION_OF_BATCHES | REFUSALS.keys() | EDITS.keys()
    ),
    "batches.list": _AT_ANY_CALL | REFUSALS.keys() | EDITS.keys(),
    "batches.retrieve": _AT_ANY_CALL | REFUSALS.keys() | EDITS.keys(),
    "batches.cancel": _AT_ANY_CALL | REFUSALS.keys() | EDITS.keys(),
    "output": frozenset(SHAPES),
    "error": frozenset(SHAPES),
    "webhooks": _AT_DELIVERY,
}


@dataclass(frozen=True, slots=True)
class Mishap:
    """A fault that has a name, because it is common: services have shown each of them."""

    operation: str
    kind: str
    #: What happens, in a few words.
    meaning: str


#: The common mishaps, by name.
MISHAPS: dict[str, Mishap] = {
    "reply-lost-after-upload": Mishap(
        "files.create", "reply-lost-after", "the file is kept, and the connection closed"
    ),
    "error-on-upload": Mishap("files.create", "error-before:500", "500, and no file is kept"),
    "reply-lost-after-create": Mishap(
        "batches.create", "reply-lost-after", "the batch is made, and the connection closed"
    ),
    "error-after-create": Mishap(
        "batches.create", "error-after:500", "the batch is made, and the answer is 500"
    ),
    "error-on-create": Mishap("batches.create", "error-before:500", "500, and no batch is made"),
    "rate-limited": Mishap(
        "batches.create", "error-before:429:1", "429, Retry-After 1, and no batch is made"
    ),
    "queue-full": Mishap(
        "batches.create", "queue-full", "400 token_limit_exceeded, and no batch is made"
    ),
    "no-money": Mishap(
        "batches.create", "no-money", "429 insufficient_quota, and no batch is made"
    ),
    "file-not-found": Mishap(
        "batches.create", "not-visible", "400: the file just uploaded cannot be found"
    ),
    "list-lag": Mishap("batches.create", "list-lag:60", "lists show the batch a minute late"),
    "expired": Mishap("batches.create", "expire:1", "the batch expires with one row executed"),
    "error-on-retrieve": Mishap("batches.retrieve", "error-before:500", "500 for a look"),
    "unknown-status": Mishap(
        "batches.retrieve", "unknown-status", "a look shows a status that nobody knows"
    ),
    "download-cut": Mishap(
        "files.content", "truncate:100", "a download ends after 100 bytes, with its connection"
    ),
    "error-on-download": Mishap("files.content", "error-before:502", "502 for a download"),
    "line-missing": Mishap("output", "drop-line", "a line of the output file is left out"),
    "line-twice": Mishap("output", "duplicate-line", "a line of the output file is there twice"),
    "line-torn": Mishap("output", "torn-line", "the last line of the output file is cut in half"),
}

_NAMED_FORM = re.compile(r"([a-z-]+)(?::(\d+|all))?")
_FORM = re.compile(r"([\w.]+)=([\w-]+(?::[^@*]*)?)(?:@(\d+))?(?:\*(\d+|all))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong: `Fault("batches.create", "error-before:503")`."""

    #: The operation, as in `LocalServer.calls()`; for shapes `output` or `error`; or `webhooks`.
    operation: str
    #: A name of `KINDS`, and its argument after a colon.
    kind: str
    #: How many calls it meets; None is all.
    times: int | None = 1
    #: The first call that it meets, from 1, counted since the fault was added.
    first: int = 1

    def __post_init__(self) -> None:
        if self.operation not in KINDS:
            raise ValueError(f"no operation {self.operation!r}; there are {sorted(KINDS)}")
        if self.name not in KINDS[self.operation]:
            known = sorted(KINDS[self.operation])
            raise ValueError(f"{self.operation} has no fault {self.name!r}; it has {known}")
        try:
            _ARGUMENTS.get(self.name, str)(self.argument)
        except ValueError:
            given = repr(self.argument) if self.argument else "no argument"
            raise ValueError(f"{self.name} cannot do with {given}") from None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a fault, as the command line takes it.

        Args:
            text: `NAME[:TIMES]` with a name of `MISHAPS`, or
                `OPERATION=KIND[:ARGUMENT][@FIRST][*TIMES]`. TIMES may be `all`; without it, 1.

        Raises:
            ValueError: there is no such fault; the message names those that there are.
        """
        named = _NAMED_FORM.fullmatch(text)
        if named is not None:
            name, times = named.groups()
            if name not in MISHAPS:
                raise ValueError(_unknown(name))
            return cls(MISHAPS[name].operation, MISHAPS[name].kind, _times(times))
        match = _FORM.fullmatch(text)
        if match is None:
            form = "NAME[:TIMES] or OPERATION=KIND[:ARGUMENT][@FIRST][*TIMES]"
            raise ValueError(f"{text!r} is not {form}")
        operation, kind, first, times = match.groups()
        return cls(operation, kind, _times(times), int(first or 1))

    @property
    def name(self) -> str:
        """The kind without its argument."""
        return self.kind.partition(":")[0]

    @property
    def argument(self) -> str:
        """What follows the colon; empty if nothing does."""
        return self.kind.partition(":")[2]

    def meets(self, call: int) -> bool:
        """Whether the n-th call, from 1, meets the fault."""
        times = self.times
        if self.name == "not-visible" and self.argument:
            times = int(self.argument)
        return self.first <= call and (times is None or call < self.first + times)


def _times(text: str | None) -> int | None:
    return None if text == "all" else int(text or 1)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, MISHAPS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"there is no fault {name!r}.{hint} There are {', '.join(sorted(MISHAPS))}"


class Script:
    """The faults of one server. Thread-safe."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        #: Each fault, and the calls of its operation so far.
        self._calls: list[tuple[Fault, list[int]]] = []
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """Add a fault, from the next call on."""
        with self._lock:
            self._calls.append((fault, [0]))

    def take(self, operation: str) -> list[Fault]:
        """Count one call, and return the faults that it meets."""
        met = []
        with self._lock:
            for fault, calls in self._calls:
                if fault.operation == operation:
                    calls[0] += 1
                    if fault.meets(calls[0]):
                        met.append(fault)
        return met

    def reshape(self, kind: str, path: Path) -> None:
        """Give the result file just made the shapes that it meets."""
        for fault in self.take(kind):
            lines = path.read_bytes().splitlines(keepends=True)
            if lines:
                path.write_bytes(b"".join(SHAPES[fault.name](lines)))


def birth(faults: Iterable[Fault]) -> Birth:
    """How what a call creates comes into being."""
    found_after = listed_after = 0.0
    rows_before_expiry = None
    for fault in faults:
        match fault.name:
            case "lands-late" | "visible-late":
                found_after += float(fault.argument)
                listed_after += float(fault.argument)
            case "list-lag":
                listed_after += float(fault.argument)
            case "expire":
                rows_before_expiry = int(fault.argument or 0)
            case _:
                pass
    return Birth(
        found_after=found_after, listed_after=listed_after, rows_before_expiry=rows_before_expiry
    )
