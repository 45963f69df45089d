"""Output and error file lines -> exactly one result per request of a shard.

    bytes --whole_lines--> blocks --collect_results--> Collected (one table row per request)

The invariant: the table has one row per row key, in the shard's order, whatever the lines are.
Lines come in any order, twice, for strangers, torn, or not at all; none of that raises, and each
request without a usable line says so in its status. A line is read by typed msgspec structs; where
they refuse it, the standard library's more lenient parser gets a second try at the same structs,
with every field that does not fit left out, because the answer in that line has been paid for.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from operator import attrgetter
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import inspect as shapes

from batchframe.core.batches import BatchError

__all__ = [
    "ANSWERED",
    "COUNTS",
    "MAYBE_BILLED",
    "RESULT_SCHEMA",
    "Collected",
    "Status",
    "answer_bodies",
    "collect_results",
    "split_lines",
    "take",
    "whole_lines",
]


class Status(StrEnum):
    """What became of a request. The only place where these words are listed."""

    #: The model answered.
    OK = "ok"
    #: The answer was cut at the token limit; the text so far is kept.
    TRUNCATED = "truncated"
    #: The provider's content filter stopped the answer; the text so far is kept.
    FILTERED = "filtered"
    #: The model declined; its words are the error message.
    REFUSED = "refused"
    #: The answer does not fit the declared schema. Given where answers are validated, not here.
    INVALID = "invalid"
    #: The provider reported an error, or a line without an answer.
    FAILED = "failed"
    #: The completion window ended before the request ran; not billed.
    EXPIRED = "expired"
    #: The batch was cancelled before the request ran; not billed.
    CANCELLED = "cancelled"
    #: The batch ended and no line speaks of the request: nobody knows whether it was billed.
    MISSING = "missing"
    #: The row's prompt was null, so no request was made. Given where rows are planned, not here.
    SKIPPED = "skipped"


#: Rows of these words have what was asked for, or asked for nothing. All others have no answer.
ANSWERED = frozenset({Status.OK, Status.TRUNCATED, Status.SKIPPED})
#: Codes of `failed` rows that the provider may have billed although it told no usage.
MAYBE_BILLED = ("unreadable_line", "empty_content")
_UNREADABLE, _EMPTY = MAYBE_BILLED

_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("row_key", pa.binary(16), nullable=False),
    pa.field("id", pa.string()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("completion", pa.string()),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("input_tokens", pa.int64()),
    pa.field("cached_tokens", pa.int64()),
    pa.field("cache_write_tokens", pa.int64()),
    pa.field("output_tokens", pa.int64()),
    pa.field("reasoning_tokens", pa.int64()),
    pa.field("cost_usd", pa.float64()),
    pa.field("price_source", pa.string()),
    pa.field("http_status", pa.int64()),
    pa.field("finish_reason", pa.string()),
    pa.field("model", pa.string()),
    pa.field("request_id", pa.string()),
    pa.field("batch_id", pa.string()),
]

#: One row per request. Null means that the provider did not say; it is never written as 0 or "".
RESULT_SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True, slots=True)
class Collected:
    """The results of one batch."""

    #: RESULT_SCHEMA, one row per request, in the shard's order, without costs.
    table: pa.Table
    #: Lines for a request that has another line already.
    n_duplicate: int
    #: Lines whose custom_id is not of this shard.
    n_foreign: int
    #: Lines that do not say which request they answer.
    n_unreadable: int
    #: Tokens over all rows of the table; rows without a number count nothing.
    input_tokens: int
    #: Those of `input_tokens` that the provider had cached.
    cached_tokens: int
    #: Those of `input_tokens` that went into the provider's cache; newer models bill them higher.
    cache_write_tokens: int
    #: Tokens over all rows of the table, reasoning included.
    output_tokens: int
    #: Those of `output_tokens` that were spent on reasoning.
    reasoning_tokens: int


_T = TypeVar("_T")


# --- Lines ----------------------------------------------------------------------------------------

_BOM = b"\xef\xbb\xbf"


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Give the lines of one file, whatever the borders of its chunks.

    Splits on b"\n" alone: U+2028, U+0085 and their like stand unescaped inside JSON strings. Blank
    lines are left out, and so are a trailing b"\r" and a byte order mark before the first line.
    """
    lines = _raw_lines(chunks)
    first = next(lines).removeprefix(_BOM)
    for line in chain((first,), lines):
        if line and not line.isspace():
            yield line.removesuffix(b"\r")


def _raw_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # At least one line, if an empty one. The parts of an unfinished line are joined once, at its
    # end: a 50 MB line stays linear.
    parts: list[bytes] = []
    for chunk in chunks:
        head, *rest = chunk.split(b"\n")
        parts.append(head)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            parts = [rest[-1]]
    yield b"".join(parts)


def whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give the bytes of one file in blocks that end where lines end."""
    parts: list[bytes] = []
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end:
            yield b"".join((*parts, chunk[:end]))
            parts = []
        parts.append(chunk[end:])
    rest = b"".join(parts)
    if rest:
        yield rest


# --- The shape of a line --------------------------------------------------------------------------
# Only what is used is named; msgspec skips the rest without building it. Every field may be absent
# or null. gc=False: these live for one line and hold no cycles, and the collector need not know.

# What fits Arrow's int64; a number beyond it is no count of tokens.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Error(msgspec.Struct, gc=False):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    refusal: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    message: _Message | None = None
    # Of /v1/completions, which knows no messages.
    text: str | None = None


class _Item(msgspec.Struct, gc=False, omit_defaults=True):
    type: str | None = None
    content: list[_Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class _Vector(msgspec.Struct, gc=False):
    embedding: msgspec.Raw = msgspec.Raw()


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct, gc=False):
    # Chat and embeddings say prompt and completion, responses say input and output.
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct, gc=False):
    model: str | None = None
    usage: _Usage | None = None
    error: _Error | str | None = None
    # Exactly one of these four says which endpoint answered: chat, responses, embeddings,
    # moderations.
    choices: list[_Choice] | None = None
    output: list[_Item] | None = None
    data: list[_Vector] | None = None
    results: list[msgspec.Raw] | None = None
    # Of responses only: how the answer ended.
    status: str | None = None
    incomplete_details: _Incomplete | None = None


class _Response(msgspec.Struct, gc=False):
    status_code: _Count | None = None
    request_id: str | None = None
    body: _Body | str | None = None


class _Line(msgspec.Struct, gc=False):
    custom_id: str | None = None
    response: _Response | None = None
    error: _Error | str | None = None


_LINE = msgspec.json.Decoder(_Line, strict=False)
_BODY = msgspec.json.Decoder(_Body)


def _lenient(shape: type[_T], data: bytes | str) -> _T:
    # The second reader: bad UTF-8 is replaced; NaN, raw control characters, lone surrogates and
    # endless integers are accepted; what then does not fit its field becomes the field's default.
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    value = json.loads(text, strict=False, parse_int=_integer)
    fitted = _fit(_SHAPES[shape], value)
    if not isinstance(fitted, shape):
        message = f"expected an object, got {type(value).__name__}"
        raise TypeError(message)
    return fitted


_SHAPES: dict[type, shapes.Type] = {shape: shapes.type_info(shape) for shape in (_Line, _Body)}


def _integer(digits: str) -> int | float:
    # int() refuses more than 4300 digits, and with them the whole line; no count is that long.
    return int(digits) if len(digits) < 20 else float(digits)


def _fit(shape: shapes.Type, value: Any) -> Any:
    # None wherever the value does not fit.
    match shape:
        case shapes.StructType(cls=cls, fields=fields) if isinstance(value, Mapping):
            fitted = ((f.name, _fit(f.type, value.get(f.encode_name))) for f in fields)
            return cls(**{name: field for name, field in fitted if field is not None})
        case shapes.ListType(item_type=item) if isinstance(value, list):
            return [one for one in (_fit(item, v) for v in value) if one is not None]
        case shapes.UnionType(types=types):
            return next((one for one in (_fit(t, value) for t in types) if one is not None), None)
        case shapes.IntType():
            return _count(value)
        case shapes.StrType():
            return _text(value)
        case shapes.RawType() if value is not None:
            return msgspec.Raw(json.dumps(value).encode())
        case _:
            return None


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number < 2**63 else None


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return str(value) if type(value) is int else None
    try:
        value.encode()
    except UnicodeEncodeError:
        # An emoji cut in half by a token limit. Arrow, pandas and Polars all refuse it, after
        # payment; a pair that was written as two escapes becomes its character.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


# --- One line -> one result -----------------------------------------------------------------------


class _Result(msgspec.Struct, gc=False):
    # Named like the columns of RESULT_SCHEMA, so that columns are read off by name.
    status: Status
    completion: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    http_status: int | None = None
    finish_reason: str | None = None
    model: str | None = None
    request_id: str | None = None
    # Whether this is a 2xx answer, which wins over another line for the same request.
    answered: bool = False


# Members of an enumeration are found slowly, and this one is the rule.
_OK = Status.OK

# Seen only outside quoted text: inside a JSON string its quotes would be escaped.
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]{32})"')


def _read(line: bytes) -> tuple[str | None, _Result]:
    """The custom_id and the result of one line; a None says that no request can be told."""
    try:
        return _interpret(_LINE.decode(line))
    except Exception:  # noqa: BLE001 - whatever the strict reader objects to, the lenient one sees
        try:
            return _interpret(_lenient(_Line, line))
        except Exception as why:  # noqa: BLE001 - RecursionError, MemoryError, ...: one row, not all
            named = set(_CUSTOM_ID.findall(line))
            return named.pop().decode() if len(named) == 1 else None, _Result(
                Status.FAILED,
                error_code=_UNREADABLE,
                error_message=(
                    f"The result line cannot be read ({type(why).__name__}). The request may have "
                    "been billed; the raw download holds the line."
                ),
            )


def _read_block(block: bytes) -> Iterable[tuple[str | None, _Result]]:
    """The custom_id and the result of each line of a block, in order."""
    n_lines = block.count(b"\n") + (not block.endswith(b"\n"))
    try:
        lines = _LINE.decode_lines(block)
        if len(lines) == n_lines:
            return list(map(_interpret, lines))
    except Exception:  # noqa: BLE001, S110 - one of them is odd
        pass
    return map(_read, split_lines((block,)))


def _interpret(line: _Line) -> tuple[str | None, _Result]:
    response = line.response or _Response()
    http, body, prose = response.status_code, response.body, None
    if isinstance(body, str):
        body, prose = _body_in_string(body)
    body = body or _Body()

    result = _Result(_OK)
    result.http_status, result.request_id = http, response.request_id
    result.model = body.model
    if body.usage is not None:
        _read_usage(body.usage, result)

    # Asked first, because this is the rule, a hundred million times.
    has_error = body.error is not None or line.error is not None
    error = (_error(body.error) or _error(line.error)) if has_error else None
    refused = http is not None and not 200 <= http < 300
    if error is not None or refused:
        # Observed: a 4xx with `error: null` and no body, and an error object inside a 200.
        error = error or _Error()
        code = error.code or error.type or (f"http_{http}" if refused else "unknown_error")
        result.error_code = str(code)
        result.error_message = error.message or prose or f"The service gave no reason ({code})."
        result.status = _FAILED_AS.get(result.error_code, Status.FAILED)
    else:
        result.answered = line.response is not None
        _read_answer(body, result)
    return line.custom_id, result


# Non-HTTP failures of single lines (OpenAI's Batch guide, 2026-08).
_FAILED_AS = {"batch_expired": Status.EXPIRED, "batch_cancelled": Status.CANCELLED}


def _read_usage(usage: _Usage, result: _Result) -> None:
    """Fill in the tokens, whichever names the endpoint has for them."""
    chat, responses = usage.prompt_tokens, usage.input_tokens
    result.input_tokens = responses if chat is None else chat
    chat, responses = usage.completion_tokens, usage.output_tokens
    result.output_tokens = responses if chat is None else chat
    inputs = usage.prompt_tokens_details or usage.input_tokens_details
    if inputs is not None:
        result.cached_tokens = inputs.cached_tokens
        result.cache_write_tokens = inputs.cache_write_tokens
    outputs = usage.completion_tokens_details or usage.output_tokens_details
    if outputs is not None:
        result.reasoning_tokens = outputs.reasoning_tokens


def _body_in_string(text: str) -> tuple[_Body | None, str | None]:
    # Some gateways send the body as JSON in a string; others send a proxy's page.
    try:
        return _BODY.decode(text), None
    except Exception:  # noqa: BLE001 - as in _read
        try:
            return _lenient(_Body, text), None
        except Exception:  # noqa: BLE001 - then it is prose, and may say what happened
            return None, text[:1000]


def _error(error: _Error | str | None) -> _Error | None:
    # An empty error object or string is no error.
    if error is None:
        return None
    if isinstance(error, str):
        error = _Error(message=error)
    return error if error.code or error.type or error.message else None


def _read_answer(body: _Body, result: _Result) -> None:
    """Fill in the text, and the status that it has."""
    if body.choices is not None:
        text, refusal, reason = _chat(body.choices)
    elif body.output is not None:
        text, refusal, reason = _responses(body)
    else:
        raws = body.results or [vector.embedding for vector in body.data or ()]
        text, refusal, reason = (_json_text(raws[0]) if raws else None), None, None

    result.completion, result.finish_reason = text, reason
    if refusal:
        result.status = Status.REFUSED
        result.error_code, result.error_message = "refusal", refusal
    elif reason in {"length", "max_output_tokens"}:
        result.status = Status.TRUNCATED
        result.error_code = reason
        result.error_message = (
            "The answer was cut at max tokens. It is billed; allow more tokens to get all of it."
        )
    elif reason == "content_filter":
        result.status = Status.FILTERED
        result.error_code = reason
        result.error_message = "The provider's content filter stopped the answer."
    elif text is None:
        result.status = Status.FAILED
        result.error_code = _EMPTY
        result.error_message = "The service answered without any content."


# Text, refusal, and why the answer ended.
_Answer: TypeAlias = tuple[str | None, str | None, str | None]


def _chat(choices: list[_Choice]) -> _Answer:
    # The first choice is all of it: n > 1 is refused before anything is sent.
    if not choices:
        return None, None, None
    choice = choices[0]
    message = choice.message or _Message(content=choice.text)
    content, refusal = message.content, message.refusal
    if isinstance(content, list):
        content, refused = _join(content)
        refusal = refusal or refused
    # Servers say "no text, only calls" by null or by "".
    return content or _calls(message.tool_calls) or content, refusal, choice.finish_reason


def _calls(raw: msgspec.Raw) -> str | None:
    text = bytes(raw).decode("utf-8", "replace").strip()
    return text if text not in {"", "null", "[]"} else None


def _join(parts: Iterable[_Part]) -> tuple[str | None, str | None]:
    # Text and refusal; None where no part has any, which is not the same as an empty text.
    texts: list[str] = []
    refusals: list[str] = []
    for part in parts:
        if part.text is not None:
            texts.append(part.text)
        if part.refusal:
            refusals.append(part.refusal)
    return "".join(texts) if texts else None, "".join(refusals) or None


def _responses(body: _Body) -> _Answer:
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
        return _text(json.loads(text, strict=False))
    return text if text not in {"", "null"} else None


# --- All lines -> one result per request ----------------------------------------------------------

#: The columns of tokens.
COUNTS = (
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
)


def collect_results(
    row_keys: Sequence[bytes],
    ids: pa.StringArray,
    blocks: Iterable[bytes],
    *,
    batch_id: str,
    ended: str,
    batch_errors: Sequence[BatchError] = (),
    files_gone: bool = False,
) -> Collected:
    """Give each request of a shard its one result.

    Of several lines for one request the first with a 2xx answer counts, else the first.

    Args:
        row_keys: The shard's row keys, 16 bytes each and distinct, in the order of its lines.
        ids: The user's ids, as strings, in the same order.
        blocks: The lines of the output file and of the error file, in any order, one or more whole
            lines in each block.
        batch_id: The batch that answered.
        ended: How the batch ended (completed, failed, expired or cancelled), which says what became
            of requests without a line.
        batch_errors: What the provider said of a batch that it refused.
        files_gone: The provider has deleted a file of results: whatever has no line may have been
            in it.

    Returns:
        One row per row key, in their order.

    Raises:
        ValueError: The batch has not ended.
    """
    row_of = {key.hex(): row for row, key in enumerate(row_keys)}
    #: For each row the entry that is its result, among those of all parts; -1 while there is none.
    entry_of = [-1] * len(row_keys)
    is_answered = bytearray(len(row_keys))
    parts: list[pa.RecordBatch] = []
    n_entries = n_duplicate = n_foreign = n_unreadable = 0
    for block in blocks:
        entries: list[_Result] = []
        for custom_id, result in _read_block(block):
            if custom_id is None:
                n_unreadable += 1
                continue
            row = row_of.get(custom_id)
            if row is None:
                n_foreign += 1
                continue
            is_first = entry_of[row] < 0
            n_duplicate += not is_first
            if is_first or (result.answered and not is_answered[row]):
                entry_of[row] = n_entries + len(entries)
                is_answered[row] = result.answered
                entries.append(result)
        # Columns at once, while the block is in the processor's cache.
        parts.append(_read_off(entries))
        n_entries += len(entries)

    without_line = _without_line("gone" if files_gone else ended, batch_errors)
    rows_without = [row for row, entry in enumerate(entry_of) if entry < 0]
    parts.append(_read_off([without_line(row + 1) for row in rows_without]))
    for entry, row in enumerate(rows_without, start=n_entries):
        entry_of[row] = entry
    found = pa.Table.from_batches(parts)
    order = pa.array(entry_of, pa.int64())
    values = {name: take(found[name], order) for name in _READ}
    return Collected(
        _table(row_keys, ids, values, batch_id),
        n_duplicate=n_duplicate,
        n_foreign=n_foreign,
        n_unreadable=n_unreadable,
        **{name: _sum(values[name]) for name in COUNTS},
    )


def answer_bodies(lines: Iterable[bytes]) -> dict[str, dict[str, Any]]:
    """Each custom_id's answer as the service gave it, for those who want all of it.

    Of several lines for one custom_id the same one counts as in `collect_results`.

    Args:
        lines: The lines of the output file and of the error file, in any order.

    Returns:
        The body of each response by its custom_id, as JSON values; {} where there is none. Halves
        of characters are replaced, so that what comes back can be printed and stored.
    """
    chosen: dict[str, tuple[bool, bytes]] = {}
    for line in lines:
        custom_id, result = _read(line)
        if custom_id is not None and (
            custom_id not in chosen or (result.answered and not chosen[custom_id][0])
        ):
            chosen[custom_id] = (result.answered, line)
    return {custom_id: _body(line) for custom_id, (_, line) in chosen.items()}


def _body(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8", "replace"), strict=False, parse_int=_integer)
        body = (value.get("response") or {}).get("body")
        if isinstance(body, str):
            body = json.loads(body, strict=False, parse_int=_integer)
    except (ValueError, AttributeError, RecursionError):
        return {}
    return _printable(body) if isinstance(body, dict) else {}


def _printable(value: Any) -> Any:
    match value:
        case str():
            return _text(value)
        case list():
            return [_printable(item) for item in value]
        case dict():
            return {_text(key): _printable(item) for key, item in value.items()}
        case _:
            return value


def _without_line(ended: str, batch_errors: Sequence[BatchError]) -> Callable[[int], _Result]:
    """What becomes of a request without a line, as a function of its line number, from 1."""
    match ended:
        case "completed":
            result = _Result(
                Status.MISSING,
                error_code="missing",
                error_message=(
                    "The batch ended, and neither of its files has a line for this request. "
                    "Whether it was billed is unknown."
                ),
            )
        case "gone":
            result = _Result(
                Status.MISSING,
                error_code="results_expired",
                error_message=(
                    "The provider has deleted the file that held the answer, which was paid for. "
                    "It keeps files for 30 days."
                ),
            )
        case "expired":
            result = _Result(
                Status.EXPIRED,
                error_code="batch_expired",
                error_message="The completion window ended before the request ran. Not billed.",
            )
        case "cancelled":
            result = _Result(
                Status.CANCELLED,
                error_code="batch_cancelled",
                error_message="The batch was cancelled before the request ran. Not billed.",
            )
        case "failed":
            return _refused(batch_errors)
        case _:
            message = f"a batch that is {ended!r} has no results yet"
            raise ValueError(message)
    return lambda _: result


def _refused(batch_errors: Sequence[BatchError]) -> Callable[[int], _Result]:
    # A refused batch runs nothing, so one bad line fails the requests of all the others too.
    named: dict[int, _Result] = {}
    for error in batch_errors:
        if error.line is not None and error.line not in named:
            named[error.line] = _failed(error)
    whole = next((error for error in batch_errors if error.line is None), None)
    if whole is not None and whole.param == "file_id":
        # Seen just after an upload, and when the file has expired: nothing ran, and a new upload
        # helps (bespokelabs curator issue 116, 2024). The provider's own code says only "invalid".
        rest = _failed(BatchError(code="input_file_not_found", message=whole.message))
    elif whole is not None:
        rest = _failed(whole)
    elif named:
        line, first = next(iter(named.items()))
        others = f" and {len(named) - 1} other lines" if len(named) > 1 else ""
        rest = _Result(
            Status.FAILED,
            error_code="batch_not_run",
            error_message=(
                f"The batch was refused because of line {line}{others} "
                f"({first.error_code}: {first.error_message}). This request did not run. "
                "Not billed."
            ),
        )
    else:
        rest = _failed(BatchError(code="", message=""))
    return lambda line: named.get(line, rest)


def _failed(error: BatchError) -> _Result:
    return _Result(
        Status.FAILED,
        error_code=error.code or "batch_failed",
        error_message=error.message or "The batch failed and the service gave no reason.",
    )


# Columns that are read off the results; the others are the shard's, or filled in later.
_READ = (
    "status",
    "completion",
    "error_code",
    "error_message",
    *COUNTS,
    "http_status",
    "finish_reason",
    "model",
    "request_id",
)


def _read_off(results: Sequence[_Result]) -> pa.RecordBatch:
    """The columns of results, one entry each, in their order."""
    return pa.record_batch(
        [
            pa.array(list(map(attrgetter(name), results)), RESULT_SCHEMA.field(name).type)
            for name in _READ
        ],
        names=_READ,
    )


def take(column: pa.ChunkedArray, positions: pa.Int64Array) -> pa.ChunkedArray:
    """The entries of a column at `positions`, and null where a position is null."""
    if positions.equals(pa.arange(0, len(column))):  # as they stand: there is nothing to copy
        return column
    # Arrow's strings count their bytes in 32 bits, and their `take` fails above 2 GiB in all,
    # wherever chunks are cut. A column's text may be more: it goes by 64 bits, and back in pieces.
    try:
        return column.take(positions)
    except pa.ArrowInvalid:
        wide = column.cast(pa.large_string()).combine_chunks()
        return pa.chunked_array(_pieces(wide, positions), pa.string())


def _pieces(wide: pa.LargeStringArray, positions: pa.Int64Array) -> Iterator[pa.StringArray]:
    try:
        yield wide.take(positions).cast(pa.string())
    except pa.ArrowInvalid:
        if len(positions) < 2:
            raise
        half = len(positions) // 2
        yield from _pieces(wide, positions[:half])
        yield from _pieces(wide, positions[half:])


def _sum(counts: pa.ChunkedArray) -> int:
    most = pc.max(counts).as_py() or 0
    if most * len(counts) < 2**63:
        return pc.sum(counts).as_py() or 0
    return sum(filter(None, counts.to_pylist()))  # Arrow's sum would go round


def _table(
    row_keys: Sequence[bytes],
    ids: pa.StringArray,
    values: Mapping[str, pa.ChunkedArray],
    batch_id: str,
) -> pa.Table:
    n = len(row_keys)
    columns = {
        "row_key": pa.array(row_keys, pa.binary(16)),
        "id": ids.cast(pa.string()),
        "cost_usd": pa.nulls(n, pa.float64()),
        "price_source": pa.nulls(n, pa.string()),
        "batch_id": pa.repeat(pa.scalar(batch_id, pa.string()), n),
        **values,
    }
    return pa.table(columns, schema=RESULT_SCHEMA)
