"""HTTP words for the store: routes, authentication, envelopes, pages, multipart, streams.

Each operation is a function of the store and a request. `_gate` is what they have in common, and
the one place where scripted faults come in: before the store is asked, and before its reply is
sent.
"""

import json
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .faults import EDITS, REFUSALS, Fault, Script
from .records import Batch, File, Refusal
from .requests import expiry_seconds, page_limit, read_order
from .store import Store

__all__ = ["create_app"]

_Operation = Callable[[Store, Request], Awaitable[Response]]

#: Hosts that a request may name: a web page that resolves its own name to 127.0.0.1 is refused.
_HOSTS = frozenset({"127.0.0.1", "localhost"})

#: Closes the connection to a client, named by its address, after what was sent.
_Hangup = Callable[[tuple[str, int]], None]


def create_app(store: Store, script: Script, hang_up: _Hangup) -> ASGIApp:
    """Serve the store, with the faults of the script."""
    routes = [
        Route(path, _gate(store, script, hang_up, name, operation), methods=[method])
        for method, path, name, operation in _OPERATIONS
    ]
    handlers: Any = {Refusal: _refused, HTTPException: _unknown_url}
    app = Starlette(routes=routes, exception_handlers=handlers)

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _foreign(Request(scope)) if scope["type"] == "http" else None
        if refusal is None:
            await app(scope, receive, send)
        else:
            await _refused(Request(scope), refusal)(scope, receive, send)

    return checked


def _gate(
    store: Store, script: Script, hang_up: _Hangup, name: str, operation: _Operation
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        await run_in_threadpool(store.count_call, name)
        faults = script.take(name)
        for fault in faults:
            if fault.name in REFUSALS:
                raise REFUSALS[fault.name](fault.argument)
            if fault.name == "reset-before":
                return _NoResponse(hang_up)
        response = made = await operation(store, request)
        # What takes the reply away comes last: there is nothing to edit in it any more.
        for fault in sorted(faults, key=lambda fault: fault.name in _WITHOUT_REPLY):
            response = await run_in_threadpool(_spoiled, fault, response, made, store, hang_up)
        response.headers["x-request-id"] = _request_id()
        return response

    return endpoint


#: Faults after which the operation's own reply is gone.
_WITHOUT_REPLY = frozenset({"reply-lost-after", "error-after", "lands-late"})


def _spoiled(
    fault: Fault, response: Response, made: Response, store: Store, hang_up: _Hangup
) -> Response:
    """Carry out a fault that comes after the operation, whose own reply is `made`."""
    match fault.name:
        case "reply-lost-after":
            return _NoResponse(hang_up)
        case "error-after":
            refusal = REFUSALS["error-before"](fault.argument)
            return JSONResponse(refusal.envelope, refusal.status, headers=refusal.headers)
        case "lands-late":
            store.postpone(_created(made), float(fault.argument))
            return _NoResponse(hang_up)
        case "visible-late":
            store.postpone(_created(made), float(fault.argument))
            return response
        case "list-lag":
            store.postpone(_created(made), float(fault.argument), only_listing=True)
            return response
        case "truncate":
            return _CutResponse(response, int(fault.argument), hang_up)
        case "truncate-silent":
            return _CutResponse(response, int(fault.argument), None)
        case "ignore-range":
            return _WholeResponse(response)
        case _:
            return _edited(fault, response)


def _edited(fault: Fault, response: Response) -> Response:
    reply = json.loads(bytes(response.body))
    edit = EDITS[fault.name]
    if reply["object"] == "list":
        reply["data"] = [edit(batch, fault.argument) for batch in reply["data"]]
    else:
        reply = edit(reply, fault.argument)
    return JSONResponse(reply)


def _created(response: Response) -> str:
    return str(json.loads(bytes(response.body))["id"])


class _NoResponse(Response):
    """No reply, and the end of the connection."""

    def __init__(self, hang_up: _Hangup) -> None:
        super().__init__()
        self._hang_up = hang_up

    async def __call__(self, scope: Scope, receive: Receive, _send: Send) -> None:
        self._hang_up(scope["client"])
        await _disconnected(receive)


class _WrappedResponse(Response):
    """Another response, sent in another way; its headers are those of the other."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.raw_headers = response.raw_headers


class _WholeResponse(_WrappedResponse):
    """The whole of a file, also where a range was asked for."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await self._response({**scope, "headers": headers}, receive, send)


class _CutResponse(_WrappedResponse):
    """The first `size` bytes of a body, and the end of the connection or, without a hang-up, not.

    Of a body that is no longer than that, nothing is cut.
    """

    def __init__(self, response: Response, size: int, hang_up: _Hangup | None) -> None:
        super().__init__(response)
        self._size = size
        self._hang_up = hang_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self._size
        is_cut = False

        async def cut(message: Message) -> None:
            nonlocal left, is_cut
            if is_cut:
                return
            if message["type"] == "http.response.start" and self._hang_up is None:
                # Without a Content-Length it is sent in chunks, and the end looks like any other.
                headers = [pair for pair in message["headers"] if pair[0] != b"content-length"]
                message = {**message, "headers": headers}
            body = message.get("body", b"")
            if len(body) > left:
                is_cut = True
                message = {**message, "body": body[:left], "more_body": self._hang_up is not None}
            left -= len(body)
            await send(message)

        await self._response(scope, receive, cut)
        if is_cut and self._hang_up is not None:
            self._hang_up(scope["client"])
            await _disconnected(receive)


async def _disconnected(receive: Receive) -> None:
    # Until the HTTP server knows of the end, it would answer 500 for us.
    while (await receive())["type"] != "http.disconnect":
        pass


# --- files


async def _create_file(store: Store, request: Request) -> Response:
    async with request.form() as form:
        upload, purpose = form.get("file"), form.get("purpose")
        for param, value in (("file", upload), ("purpose", purpose)):
            if value is None:
                message = f"Missing required parameter: '{param}'."
                raise Refusal(400, message, code="missing_required_parameter", param=param)
        if not isinstance(upload, UploadFile):
            raise Refusal(400, "'file' must be a file.", code="invalid_type", param="file")
        sent = {
            key: form[f"expires_after[{key}]"]
            for key in ("anchor", "seconds")
            if f"expires_after[{key}]" in form
        }
        lasts = expiry_seconds(sent, "expires_after") if sent else None
        file = await run_in_threadpool(
            store.create_file,
            upload.file,
            filename=upload.filename or "",
            purpose=str(purpose),
            expires_after=lasts,
        )
    return JSONResponse(file.as_json())


async def _list_files(store: Store, request: Request) -> Response:
    query = request.query_params
    limit = page_limit(query.get("limit"), 10_000, 10_000)  # OpenAI API spec, 2026-08
    order = query.get("order", "desc")
    if order not in {"asc", "desc"}:
        message = f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'."
        raise Refusal(400, message, code="invalid_value", param="order")
    page, more = await run_in_threadpool(
        store.files,
        after=query.get("after"),
        limit=limit,
        purpose=query.get("purpose"),
        ascending=order == "asc",
    )
    return _list(page, more)


async def _retrieve_file(store: Store, request: Request) -> Response:
    file = await run_in_threadpool(store.file, request.path_params["id"])
    return JSONResponse(file.as_json())


async def _delete_file(store: Store, request: Request) -> Response:
    file_id = request.path_params["id"]
    await run_in_threadpool(store.delete_file, file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


async def _file_content(store: Store, request: Request) -> Response:
    path = await run_in_threadpool(store.open_content, request.path_params["id"])
    return FileResponse(path, media_type="application/octet-stream")


# --- batches


async def _create_batch(store: Store, request: Request) -> Response:
    try:
        sent = json.loads(await request.body())
    except ValueError:
        sent = None
    batch = await run_in_threadpool(store.create_batch, read_order(sent, store.dialect))
    return JSONResponse(batch.as_json())


async def _list_batches(store: Store, request: Request) -> Response:
    query = request.query_params
    limit = page_limit(query.get("limit"), 20, 100)  # OpenAI API spec, 2026-08
    page, more = await run_in_threadpool(store.batches, after=query.get("after"), limit=limit)
    return _list(page, more)


async def _retrieve_batch(store: Store, request: Request) -> Response:
    batch = await run_in_threadpool(store.batch, request.path_params["id"])
    return JSONResponse(batch.as_json())


async def _cancel_batch(store: Store, request: Request) -> Response:
    batch = await run_in_threadpool(store.cancel, request.path_params["id"])
    return JSONResponse(batch.as_json())


#: Method, path, the name of the operation in counts and faults, and what performs it.
_OPERATIONS: tuple[tuple[str, str, str, _Operation], ...] = (
    ("POST", "/v1/files", "files.create", _create_file),
    ("GET", "/v1/files", "files.list", _list_files),
    ("GET", "/v1/files/{id}", "files.retrieve", _retrieve_file),
    ("DELETE", "/v1/files/{id}", "files.delete", _delete_file),
    ("GET", "/v1/files/{id}/content", "files.content", _file_content),
    ("POST", "/v1/batches", "batches.create", _create_batch),
    ("GET", "/v1/batches", "batches.list", _list_batches),
    ("GET", "/v1/batches/{id}", "batches.retrieve", _retrieve_batch),
    ("POST", "/v1/batches/{id}/cancel", "batches.cancel", _cancel_batch),
)


# --- what all have in common


def _list(page: Sequence[File | Batch], more: bool) -> JSONResponse:  # noqa: FBT001
    return JSONResponse(
        {
            "object": "list",
            "data": [record.as_json() for record in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": more,
        }
    )


def _foreign(request: Request) -> Refusal | None:
    if request.url.hostname not in _HOSTS:
        return Refusal(421, "This server answers only to 127.0.0.1 and localhost.")
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        message = "You didn't provide an API key: send it as 'Authorization: Bearer YOUR_KEY'."
        return Refusal(401, message, code="invalid_api_key")
    return None


def _refused(_request: Request, refusal: Exception) -> Response:
    if not isinstance(refusal, Refusal):  # starlette's type for handlers; it sends us no other
        raise refusal
    headers = {"x-request-id": _request_id(), **refusal.headers}
    return JSONResponse(refusal.envelope, refusal.status, headers=headers)


def _unknown_url(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    message = f"Unknown request URL: {request.method} {request.url.path}."
    return _refused(request, Refusal(status, message, code="unknown_url"))


def _request_id() -> str:
    return f"req_{secrets.token_hex(16)}"
