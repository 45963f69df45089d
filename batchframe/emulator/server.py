"""HTTP around the operations: who may come in, how much they may send, and what every reply has.

`create_app` is the one door: it looks at the host and the key, gives the reply its id and logs the
call. `_gate` is what all operations have in common, and the one place where scripted faults come
in: before the operation, and before its reply is sent.
"""

import secrets
from collections.abc import Awaitable, Callable
from itertools import groupby
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batchframe.clock import Clock

from .door import Door
from .faults import REFUSALS, Script, birth
from .mishaps import WITHOUT_REPLY, Hangup, NoResponse, spoiled
from .operations import OPERATIONS, Operation
from .records import Call, Refusal
from .store import Store

__all__ = ["create_app"]

_Endpoint = Callable[[Request], Awaitable[Response]]

#: How much of a body that is too large is read and dropped, in bytes, before the reply: a client
#: that is still sending may not see a reply that comes earlier.
_DRAINED_BYTES = 64 << 20


def create_app(
    store: Store, script: Script, hang_up: Hangup, *, door: Door, clock: Clock
) -> ASGIApp:
    """Serve the store, with the faults of the script."""
    routes = []
    for path, operations in groupby(OPERATIONS, lambda operation: operation.path):
        gates = {o.method: _gate(store, script, hang_up, o) for o in operations}
        routes.append(Route(path, _by_method(gates), methods=list(gates)))
    handlers: Any = {Refusal: _refused, HTTPException: _unknown_url, Exception: _broken}
    app = Starlette(routes=routes, exception_handlers=handlers)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        request_id = f"req_{secrets.token_hex(16)}"
        arrived_at = clock.now()
        is_logged = False

        def log(status: int | None) -> None:
            # Before the reply is sent, so that who has it finds the call in the log.
            nonlocal is_logged
            if not is_logged:
                is_logged = True
                call = Call(arrived_at, request.method, request.url.path, status, request_id)
                store.log(call)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                log(message["status"])
                pair = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message["headers"], pair]}
            await send(message)

        headers = request.headers
        refusal = door.refusal(headers.get("host", ""), headers.get("authorization", ""))
        reply = app if refusal is None else _refused(request, refusal)
        try:
            await reply(scope, receive, send_with_id)
        finally:
            log(None)

    return answer


def _by_method(gates: dict[str, _Endpoint]) -> _Endpoint:
    async def endpoint(request: Request) -> Response:
        # Who asks for the head of a reply gets it: the HTTP server leaves out the body.
        return await gates["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


def _gate(store: Store, script: Script, hang_up: Hangup, operation: Operation) -> _Endpoint:
    async def endpoint(request: Request) -> Response:
        await run_in_threadpool(store.count_call, operation.name)
        faults = script.take(operation.name)
        for fault in faults:
            if fault.name in REFUSALS:
                raise REFUSALS[fault.name](fault.argument)
            if fault.name == "reset-before":
                return NoResponse(hang_up)
        request.state.birth = birth(faults)
        response = await _performed(store, request, operation)
        # What takes the reply away comes last: there is nothing to edit in it any more.
        for fault in sorted(faults, key=lambda fault: fault.name in WITHOUT_REPLY):
            response = spoiled(fault, response, hang_up)
        return response

    return endpoint


async def _performed(store: Store, request: Request, operation: Operation) -> Response:
    body = _Body(request, operation.max_bytes)
    try:
        return await operation.perform(store, Request(request.scope, body.receive))
    except (MultiPartException, HTTPException) as error:
        # The body's own refusal, or what starlette makes of a form that it cannot read.
        raise (body.refusal or Refusal(400, getattr(error, "detail", str(error)))) from None


class _Body:
    """The body of a request, up to a size."""

    def __init__(self, request: Request, limit: int) -> None:
        self._receive = request.receive
        self._limit = limit
        self._n_bytes = 0
        #: Why it cannot be had, if it cannot.
        self.refusal: Refusal | None = None

    async def receive(self) -> Message:
        """Receive the next piece. Sets the refusal, and raises, where there is none to be had.

        It is MultiPartException that is raised, the one after which starlette closes its files.
        """
        message = await self._receive()
        self._n_bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect":  # nobody will see this
            self.refusal = Refusal(400, "The connection was closed.")
        elif self._n_bytes > self._limit:
            await self._drain(message)
            self.refusal = Refusal(413, f"Maximum content size limit ({self._limit}) exceeded.")
        else:
            return message
        raise MultiPartException(str(self.refusal))

    async def _drain(self, message: Message) -> None:
        """Read what follows the piece, up to a limit, and keep nothing of it."""
        drained = 0
        while message.get("more_body") and drained <= _DRAINED_BYTES:
            message = await self._receive()
            drained += len(message.get("body", b""))


def _refused(_request: Request, refusal: Exception) -> Response:
    if not isinstance(refusal, Refusal):  # starlette's type for handlers; it sends us no other
        raise refusal
    return JSONResponse(refusal.envelope, refusal.status, headers=refusal.headers)


def _unknown_url(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message = f"Unknown request URL: {request.method} {request.url.path}."
    refusal = Refusal(error.status_code, message, code="unknown_url", headers=error.headers)
    return _refused(request, refusal)


def _broken(request: Request, _error: Exception) -> Response:
    # The error itself goes to stderr.
    return _refused(request, Refusal(500, "The server had an error while processing your request."))
