"""How the local server speaks the dialect of a service: its addresses, ids, replies and files.

    a client's request --Speaker--> OpenAI's form --> store --> OpenAI's form --Speaker--> the reply

The store knows one form. What a service has in another one is translated here, on the way in and on
the way out; the record in `core/dialects.py` says what it takes, and `Manners` how it answers. All
of it is by the sources that the record names.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from batchframe.core.dialects import DIALECTS, Dialect

from .requests import MAX_JSON_BYTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Manners", "Speaker", "manners_of"]

_Reply = dict[str, Any]

#: Hexadecimal digits of the store's own ids.
_DIGITS = {"file": 24, "batch": 32}
#: The fields of replies that hold ids, and of what.
_ID_FIELDS = {"input_file_id": "file", "output_file_id": "file", "error_file_id": "file"}
#: Where results are that have an address and no id.
_RESULTS = "/results/"


def _as_it_is(reply: _Reply) -> _Reply:
    return reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How a service answers, beside what its record says."""

    dialect: Dialect
    #: What the address of a client ends in.
    base: str = "/v1"
    #: Each call names the version of the API in its query.
    needs_version: bool = False
    #: How ids look: `{hex}` or `{uuid}` stands for their number.
    ids: Mapping[str, str] = field(
        default_factory=lambda: {"file": "file-{hex}", "batch": "batch_{hex}"}
    )
    #: A batch of the store -> one of the service; ids are translated before.
    batch: Callable[[_Reply], _Reply] = _as_it_is
    #: The reply to an upload, likewise.
    uploaded: Callable[[_Reply], _Reply] = _as_it_is
    #: A list, likewise.
    listed: Callable[[_Reply], _Reply] = _as_it_is
    #: The service's words for codes of lines that are wrong.
    codes: Mapping[str, str] = field(default_factory=dict)
    #: Other HTTP statuses than OpenAI's, by operation and status.
    statuses: Mapping[tuple[str, int], int] = field(default_factory=dict)
    #: There is an error file also where no row failed, of no bytes.
    has_empty_files: bool = False
    #: The bodies of answers are JSON in strings.
    has_string_bodies: bool = False

    @property
    def is_plain(self) -> bool:
        """True where nothing has to be translated: all is as at OpenAI."""
        return self == Manners(dialect=self.dialect)

    def reshape(self, _kind: str, path: Path) -> None:
        """Give a result file that was just made the form of the service."""
        if self.has_string_bodies:
            lines = map(msgspec.json.decode, path.read_bytes().splitlines())
            path.write_bytes(b"".join(map(_with_string_body, lines)))

    def shown(self, kind: str, value: str) -> str:
        """An id of the store, as the service has it; what is none, as it is."""
        if not _is_own(kind, value):
            return value
        number = value[len(f"{kind}-") :]
        return self.ids[kind].format(hex=number, uuid=UUID(hex=number.rjust(32, "0")))

    def own(self, kind: str, value: str) -> str:
        """An id of the service, as the store has it."""
        before = self.ids[kind].partition("{")[0]
        number = value.removeprefix(before).replace("-", "")[-_DIGITS[kind] :]
        own = f"file-{number}" if kind == "file" else f"batch_{number}"
        if _is_own(kind, own) and self.shown(kind, own) == value:
            return own
        # An id of the store's own form is none of the service's.
        return f"{self.dialect.name}:{value}" if _is_own(kind, value) else value


def _is_own(kind: str, value: str) -> bool:
    return re.fullmatch(rf"{kind}[-_][0-9a-f]{{{_DIGITS[kind]}}}", value) is not None


def _with_string_body(line: Any) -> bytes:
    if line["response"] is not None:
        line["response"]["body"] = json.dumps(line["response"]["body"])
    return msgspec.json.encode(line) + b"\n"


def manners_of(dialect: str | Dialect) -> Manners:
    """The manners of a service, by its name or record; those of OpenAI for a record of one's own.

    Raises ValueError where there is no such name.
    """
    if isinstance(dialect, Dialect):
        return _MANNERS.get(dialect.name) or Manners(dialect=dialect, batch=_quiet(dialect))
    if dialect not in _MANNERS:
        raise ValueError(f"no dialect {dialect!r}; there are {sorted(_MANNERS)}")
    return _MANNERS[dialect]


def _quiet(dialect: Dialect) -> Callable[[_Reply], _Reply]:
    return _as_it_is if dialect.takes_metadata else lambda batch: batch | {"metadata": None}


# --- The services ---------------------------------------------------------------------------------


def _azure(batch: _Reply) -> _Reply:
    unknown: _Reply = {"endpoint": None, "in_progress_at": None, "model": None, "usage": None}
    if batch["status"] == "validating":
        unknown["request_counts"] = None
    return batch | unknown


def _groq(batch: _Reply) -> _Reply:
    return batch | {"errors": batch["errors"] and batch["errors"]["data"], "usage": None}


def _moonshot(batch: _Reply) -> _Reply:
    return {key: batch[key] for key in batch if key not in {"errors", "model", "usage"}}


def _without_nulls(batch: _Reply) -> _Reply:
    return {key: value for key, value in batch.items() if value is not None}


def _siliconflow(batch: _Reply) -> _Reply:
    word = batch["status"]
    return batch | {
        "status": "in_queue" if word == "validating" else word,
        "request_counts": None,
        "errors": [error["message"] for error in (batch["errors"] or {"data": ()})["data"]] or None,
        "usage": None,
    }


def _wrapped(file: _Reply) -> _Reply:
    kept = {key: file[key] for key in ("id", "object", "bytes", "filename", "purpose")}
    data = kept | {"createdAt": file["created_at"]}
    return {"code": 20000, "message": "Ok", "status": True, "data": data}


def _unpaged(page: _Reply) -> _Reply:
    return {"object": "list", "data": page["data"]}


def _odd(batch: _Reply) -> _Reply:
    ids = {name: batch[name] or "" for name in _ID_FIELDS}
    status = "CANCELED" if batch["status"] == "cancelled" else batch["status"].upper()
    status = "IN_QUEUE" if status == "VALIDATING" else status
    return batch | ids | {"status": status, "request_counts": None, "metadata": None, "usage": None}


_UUIDS = {"file": "file-{uuid}", "batch": "batch_{uuid}"}
_BARE = {"file": "{uuid}", "batch": "{uuid}"}
_AZURE: dict[str, Any] = {
    "ids": _UUIDS,
    "batch": _azure,
    "has_empty_files": True,
    "codes": {
        "too_many_requests": "too_many_tasks",
        "invalid_url": "url_mismatch",
        "mismatched_model": "model_mismatch",
    },
}
_CREATED = {("files.create", 200): 201, ("batches.create", 200): 201}
#: How each service answers; those that are not named answer as OpenAI does.
_OWN: dict[str, dict[str, Any]] = {
    "azure": {"base": "/openai", "needs_version": True, **_AZURE},
    "azure-v1": {"base": "/openai/v1", **_AZURE},
    "groq": {
        "base": "/openai/v1",
        "ids": {"file": "file_01{hex}", "batch": "batch_01{hex}"},
        "batch": _groq,
    },
    "dashscope": {
        "base": "/compatible-mode/v1",
        "ids": {"file": "file-batch-{hex}", "batch": "batch_{uuid}"},
    },
    "doubleword": {"ids": _BARE, "batch": _without_nulls, "statuses": _CREATED},
    "deepinfra": {
        "base": "/v1/openai",
        "ids": {"file": "file_{hex}", "batch": "batch_{hex}"},
    },
    "moonshot": {"batch": _moonshot, "statuses": {("batches.cancel", 409): 400}},
    "siliconflow": {"batch": _siliconflow, "uploaded": _wrapped, "listed": _unpaged},
    "generic": {
        "ids": _BARE,
        "batch": _odd,
        "statuses": _CREATED,
        "has_string_bodies": True,
    },
}
_MANNERS = {
    name: Manners(dialect=dialect, **_OWN.get(name, {})) for name, dialect in DIALECTS.items()
}


# --- The translation ------------------------------------------------------------------------------


class Speaker:
    """The server of OpenAI's API, as it is in the dialect of a service."""

    def __init__(self, app: "ASGIApp", manners: Manners) -> None:
        """Speak for `app`."""
        self._app = app
        self._manners = manners

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Translate one request and its reply."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        operation, scope = self._asked(scope)
        if operation == "batches.create":
            receive = self._with_own_file(receive)
        host, port = scope["server"]
        translate = _Translation(self._manners, operation, f"http://{host}:{port}", send)
        await self._app(scope, receive, translate)

    def _asked(self, scope: "Scope") -> "tuple[str, Scope]":
        """What is asked for, and the request in OpenAI's form; "" for what the service has not."""
        manners, path, headers = self._manners, scope["path"], dict(scope["headers"])
        if b"api-key" in headers:  # Azure's header for keys
            headers.setdefault(b"authorization", b"Bearer " + headers[b"api-key"])
        if manners.dialect.links_results and path.startswith(_RESULTS):
            is_given_away = b"authorization" in headers
            headers[b"authorization"] = b"Bearer nobody's"
            kept = "/-/the key was sent to it" if is_given_away else _content(path)
            return "", _moved(scope, kept, headers)
        parts = path.removeprefix(manners.base).strip("/").split("/")
        operation = _operation(scope["method"], parts)
        is_here = path.startswith(f"{manners.base}/") and not (
            manners.needs_version and b"api-version=" not in scope["query_string"]
        )
        if manners.dialect.links_results and operation in _UNLINKED:
            is_here = False
        if not is_here:
            return "", _moved(scope, f"/-{path}", headers)
        if len(parts) > 1:
            parts[1] = manners.own(_kind(parts[0]), parts[1])
        query = _with_own_cursor(manners, parts[0], scope["query_string"])
        moved = _moved(scope, "/".join(["/v1", *parts]), headers)
        return operation, {**moved, "query_string": query}

    def _with_own_file(self, receive: "Receive") -> "Receive":
        """A create whose input file has the store's id."""
        is_sent = False

        async def translated() -> "Message":
            nonlocal is_sent
            if is_sent:
                return await receive()
            is_sent = True
            body = b""
            while True:
                message = await receive()
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
                if len(body) > MAX_JSON_BYTES:  # for the server to refuse
                    return {**message, "body": body}
            try:
                sent = json.loads(body)
                sent["input_file_id"] = self._manners.own("file", sent["input_file_id"])
            except (ValueError, KeyError, TypeError, AttributeError):
                return {"type": "http.request", "body": body}  # for the server to refuse
            return {"type": "http.request", "body": json.dumps(sent).encode()}

        return translated


#: What a service has not that gives its results addresses.
_UNLINKED = frozenset({"files.retrieve", "files.delete", "files.content"})


def _operation(method: str, parts: list[str]) -> str:
    """The operation, by the names that faults have for them."""
    match method, parts:
        case "POST", [("files" | "batches") as what]:
            return f"{what}.create"
        case "GET", [("files" | "batches") as what]:
            return f"{what}.list"
        case "GET", [("files" | "batches") as what, _]:
            return f"{what}.retrieve"
        case "DELETE", ["files", _]:
            return "files.delete"
        case "GET", ["files", _, "content"]:
            return "files.content"
        case "POST", ["batches", _, "cancel"]:
            return "batches.cancel"
        case _:
            return ""


def _content(path: str) -> str:
    return f"/v1/files/{path.removeprefix(_RESULTS)}/content"


def _moved(scope: "Scope", path: str, headers: Mapping[bytes, bytes]) -> "Scope":
    return {**scope, "path": path, "raw_path": path.encode(), "headers": list(headers.items())}


def _with_own_cursor(manners: Manners, what: str, query: bytes) -> bytes:
    if manners.dialect.links_results:  # its lists have no pages
        return b"limit=100"

    def own(found: re.Match[bytes]) -> bytes:
        return manners.own(_kind(what), found[0].decode()).encode()

    return re.sub(rb"(?<=after=)[^&]+", own, query)


def _kind(what: str) -> str:
    return "file" if what == "files" else "batch"


class _Translation:
    """The way out of one reply: JSON is translated, all else goes as it is."""

    def __init__(self, manners: Manners, operation: str, origin: str, send: "Send") -> None:
        self._manners = manners
        self._operation = operation
        self._origin = origin
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: "Message") -> None:
        if message["type"] == "http.response.start":
            is_json = dict(message["headers"]).get(b"content-type") == b"application/json"
            if is_json and self._operation:
                self._start = message
                return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body"):
            return
        status = self._start["status"]
        body = json.dumps(self._translated(json.loads(self._body))).encode()
        headers = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        status = self._manners.statuses.get((self._operation, status), status)
        await self._send({**self._start, "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def _translated(self, reply: _Reply) -> _Reply:
        manners = self._manners
        if "error" in reply:
            return reply
        if reply["object"] == "list":
            kind = _kind(self._operation.partition(".")[0])
            ends = {
                name: reply[name] and manners.shown(kind, reply[name])
                for name in ("first_id", "last_id")
            }
            data = [self._record(record) for record in reply["data"]]
            return manners.listed(reply | ends | {"data": data})
        record = self._record(reply)
        return manners.uploaded(record) if self._operation == "files.create" else record

    def _record(self, record: _Reply) -> _Reply:
        manners = self._manners
        if record["object"] == "file":
            return record | {"id": manners.shown("file", record["id"])}
        ids = {
            name: manners.shown(kind, record[name])
            for name, kind in _ID_FIELDS.items()
            if record[name]
        }
        if manners.dialect.links_results:
            for name in ids.keys() - {"input_file_id"}:
                ids[name] = f"{self._origin}{_RESULTS}{record[name]}"
        for error in (record["errors"] or {"data": ()})["data"]:
            error["code"] = manners.codes.get(error["code"], error["code"])
        return manners.batch(record | ids | {"id": manners.shown("batch", record["id"])})
