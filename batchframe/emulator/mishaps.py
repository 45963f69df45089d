"""Faults of replies and connections, carried out: what is sent instead, cut, or not at all."""

import json
from collections.abc import Callable

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from .faults import EDITS, REFUSALS, Fault

__all__ = ["WITHOUT_REPLY", "Hangup", "NoResponse", "spoiled"]

#: Closes the connection to a client, named by its address, after what was sent.
Hangup = Callable[[tuple[str, int]], None]

#: Faults after which the operation's own reply is gone.
WITHOUT_REPLY = frozenset({"reply-lost-after", "error-after", "lands-late"})


def spoiled(fault: Fault, response: Response, hang_up: Hangup) -> Response:
    """Carry out what a fault does to the reply of an operation."""
    match fault.name:
        case "reply-lost-after" | "lands-late":
            return NoResponse(hang_up)
        case "error-after":
            refusal = REFUSALS["error-before"](fault.argument)
            return JSONResponse(refusal.envelope, refusal.status, headers=refusal.headers)
        case "visible-late" | "list-lag" | "expire":  # see `birth`
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


class NoResponse(Response):
    """No reply, and the end of the connection."""

    def __init__(self, hang_up: Hangup) -> None:
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

    def __init__(self, response: Response, size: int, hang_up: Hangup | None) -> None:
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
