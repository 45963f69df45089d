"""One line -> the outcome of its request: its status, its answer or its error, its tokens."""

import json
from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from batchframe.core.lines import (
    Body,
    Choice,
    Error,
    Item,
    Line,
    Message,
    Part,
    Response,
    Usage,
    custom_id_in,
    decode,
    decode_all,
    decode_body,
    decode_leniently,
    lines_in,
    without_halves,
)
from batchframe.core.statuses import MAYBE_BILLED, Status

__all__ = ["Outcome", "read_line", "read_lines"]

_UNREADABLE, _EMPTY, _ = MAYBE_BILLED


class Outcome(msgspec.Struct, gc=False):
    """What a line says; all but the last two fields are columns of results."""

    status: Status
    completion: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    finish_reason: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    #: Of responses: calls of tools that the service ran, and bills beside the tokens.
    tool_calls: int | None = None
    http_status: int | None = None
    model: str | None = None
    request_id: str | None = None
    #: The request that it is of; None where that cannot be told.
    custom_id: str | None = None
    #: Whether this is a 2xx answer, which wins over another line for the same request.
    answered: bool = False


#: Status, completion, error code, error message, finish reason.
_Ending: TypeAlias = tuple[Status, str | None, str | None, str | None, str | None]
#: Input, cached, cache-write, output and reasoning tokens.
_Counts: TypeAlias = tuple[int | None, int | None, int | None, int | None, int | None]

_NO_RESPONSE, _NO_BODY = Response(), Body()
_NO_COUNTS: _Counts = (None, None, None, None, None)
# Members of an enumeration are found slowly, and this one is the rule.
_OK = Status.OK


def read_lines(block: bytes) -> Iterable[Outcome]:
    """The outcome of each line of a block; no bytes raise."""
    try:
        return list(map(_outcome, decode_all(block)))
    except Exception:  # noqa: BLE001 - one of them is odd
        return map(read_line, lines_in(block))


def read_line(line: bytes) -> Outcome:
    """The outcome that a line tells; no bytes raise."""
    try:
        return _outcome(decode(line))
    except Exception:  # noqa: BLE001 - whatever the strict reader objects to, the lenient one sees
        try:
            return _outcome(decode_leniently(line))
        except Exception as why:  # noqa: BLE001 - RecursionError, MemoryError, ...: one row, not all
            return Outcome(
                Status.FAILED,
                error_code=_UNREADABLE,
                error_message=(
                    f"The result line cannot be read ({type(why).__name__}). The request may have "
                    "been billed; the raw download holds the line."
                ),
                custom_id=custom_id_in(line),
            )


def _outcome(line: Line) -> Outcome:
    response = line.response or _NO_RESPONSE
    http, body, prose = response.status_code, response.body, None
    if isinstance(body, str):
        # Some gateways send the body as JSON in a string; others send a proxy's page, which may
        # say what happened.
        text, body = body, decode_body(body)
        prose = text[:1000] if body is None else None
    body = body or _NO_BODY
    # Asked first, because this is the rule, a hundred million times.
    has_error = body.error is not None or line.error is not None
    error = (_error(body.error) or _error(line.error)) if has_error else None
    failed = error is not None or not (http is None or 200 <= http < 300)
    ending = _failure(error or Error(), http, prose) if failed else _answer(body)
    counts = _NO_COUNTS if body.usage is None else _counts(body.usage)
    return Outcome(
        *ending,
        *counts,
        None if body.output is None else _n_tool_calls(body.output),
        http,
        body.model,
        response.request_id,
        line.custom_id,
        not failed and line.response is not None,
    )


# Non-HTTP failures of single lines (OpenAI's Batch guide, 2026-08).
_FAILED_AS = {"batch_expired": Status.EXPIRED, "batch_cancelled": Status.CANCELLED}


def _failure(error: Error, http: int | None, prose: str | None) -> _Ending:
    # Observed: a 4xx with `error: null` and no body, and an error object inside a 200.
    refused = http is not None and not 200 <= http < 300
    code = str(error.code or error.type or (f"http_{http}" if refused else "unknown_error"))
    message = error.message or prose or f"The service gave no reason ({code})."
    return _FAILED_AS.get(code, Status.FAILED), None, code, message, None


def _error(error: Error | str | None) -> Error | None:
    # An empty error object or string is no error.
    if error is None:
        return None
    if isinstance(error, str):
        error = Error(message=error)
    return error if error.code or error.type or error.message else None


def _counts(usage: Usage) -> _Counts:
    """The tokens, whichever names the endpoint has for them."""
    chat, responses = usage.prompt_tokens, usage.input_tokens
    n_input = responses if chat is None else chat
    chat, responses = usage.completion_tokens, usage.output_tokens
    n_output = responses if chat is None else chat
    read = usage.prompt_tokens_details or usage.input_tokens_details
    written = usage.completion_tokens_details or usage.output_tokens_details
    return (
        n_input,
        None if read is None else read.cached_tokens,
        None if read is None else read.cache_write_tokens,
        n_output,
        None if written is None else written.reasoning_tokens,
    )


# Of these only the tokens are billed: the caller runs the tool, or a server of the caller's does
# (OpenAI, pricing, "Built-in tools", and the guide of remote MCP, 2026-08). What a web search, a
# file search or a container costs besides, no usage tells.
_FREE_CALLS = frozenset(
    {"function_call", "custom_tool_call", "computer_call", "local_shell_call", "mcp_call"}
)


def _n_tool_calls(items: list[Item]) -> int:
    kinds = [item.type for item in items if item.type is not None]
    return sum(kind.endswith("_call") and kind not in _FREE_CALLS for kind in kinds)


def _answer(body: Body) -> _Ending:
    """The text, and the status that it has."""
    if body.choices is not None:
        text, refusal, reason = _chat(body.choices)
    elif body.output is not None:
        text, refusal, reason = _responses(body)
    else:
        raws = body.results or [vector.embedding for vector in body.data or ()]
        text, refusal, reason = (_json_text(raws[0]) if raws else None), None, None

    if refusal:
        return Status.REFUSED, text, "refusal", refusal, reason
    if reason in {"length", "max_output_tokens"}:
        why = "The answer was cut at max tokens. It is billed; allow more tokens to get all of it."
        return Status.TRUNCATED, text, reason, why, reason
    if reason == "content_filter":
        why = "The provider's content filter stopped the answer."
        return Status.FILTERED, text, reason, why, reason
    if text is None:
        return Status.FAILED, None, _EMPTY, "The service answered without any content.", reason
    return _OK, text, None, None, reason


# Text, refusal, and why the answer ended.
_Answer: TypeAlias = tuple[str | None, str | None, str | None]


def _chat(choices: list[Choice]) -> _Answer:
    # The first choice is all of it: n > 1 is refused before anything is sent.
    if not choices:
        return None, None, None
    choice = choices[0]
    message = choice.message or Message(content=choice.text)
    content, refusal = message.content, message.refusal
    if isinstance(content, list):
        content, refused = _join(content)
        refusal = refusal or refused
    # Servers say "no text, only calls" by null or by "".
    return content or _calls(message.tool_calls) or content, refusal, choice.finish_reason


def _calls(raw: msgspec.Raw) -> str | None:
    text = bytes(raw).decode("utf-8", "replace").strip()
    return text if text not in {"", "null", "[]"} else None


def _join(parts: Iterable[Part]) -> tuple[str | None, str | None]:
    # Text and refusal; None where no part has any, which is not the same as an empty text.
    texts: list[str] = []
    refusals: list[str] = []
    for part in parts:
        if part.text is not None:
            texts.append(part.text)
        if part.refusal:
            refusals.append(part.refusal)
    return "".join(texts) if texts else None, "".join(refusals) or None


def _responses(body: Body) -> _Answer:
    # Several items are usual: reasoning, then one or more messages or calls.
    items = body.output or []
    text, refusal = _join(
        part for item in items if item.type == "message" for part in item.content or ()
    )
    calls = [item for item in items if item.type == "function_call"]
    if not text and calls:
        text = msgspec.json.encode(calls).decode()
    incomplete = body.incomplete_details
    return text, refusal, (incomplete.reason if incomplete else None) or body.status


def _json_text(raw: msgspec.Raw) -> str | None:
    # The JSON as it came; a string (a base64 embedding) without its quotes.
    text = bytes(raw).decode("utf-8", "replace").strip()
    if text.startswith('"'):
        return without_halves(json.loads(text, strict=False))
    return text if text not in {"", "null"} else None
