"""The bytes of an output or error file -> lines -> what each of them says, as far as it is used.

A line is read by typed msgspec structs. Where they refuse it, the standard library's more lenient
parser gets a second try at the same structs, with every field that does not fit left out, because
the answer in that line has been paid for.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import inspect as shapes

__all__ = [
    "Body",
    "Choice",
    "Error",
    "Item",
    "Line",
    "Message",
    "Part",
    "Response",
    "Usage",
    "custom_id_in",
    "decode",
    "decode_all",
    "decode_body",
    "decode_leniently",
    "integer",
    "lines_in",
    "whole_lines",
    "without_halves",
]

_T = TypeVar("_T")

_BOM = b"\xef\xbb\xbf"


def whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give the bytes of one file in blocks that end where lines end."""
    # The parts of an unfinished line are joined once, at its end: a 50 MB line stays linear.
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


def lines_in(block: bytes) -> list[bytes]:
    r"""The lines of a block, without a byte order mark before them and white space around them.

    Splits on b"\n" alone: U+2028, U+0085 and their like stand unescaped inside JSON strings. Blank
    lines are left out.
    """
    return list(filter(None, map(bytes.strip, block.removeprefix(_BOM).split(b"\n"))))


# --- The shape of a line --------------------------------------------------------------------------
# Only what is used is named; msgspec skips the rest without building it. Every field may be absent
# or null. gc=False: these live for one line and hold no cycles, and the collector need not know.

# What fits Arrow's int64; a number beyond it is no count of tokens.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Error(msgspec.Struct, gc=False):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class Part(msgspec.Struct, gc=False):
    text: str | None = None
    refusal: str | None = None


class Message(msgspec.Struct, gc=False):
    content: str | list[Part] | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()


class Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    message: Message | None = None
    # Of /v1/completions, which knows no messages.
    text: str | None = None


class Item(msgspec.Struct, gc=False, omit_defaults=True):
    type: str | None = None
    content: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class Vector(msgspec.Struct, gc=False):
    embedding: msgspec.Raw = msgspec.Raw()


class Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class Details(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class Usage(msgspec.Struct, gc=False):
    # Chat and embeddings say prompt and completion, responses say input and output.
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: Details | None = None
    output_tokens_details: Details | None = None


class Body(msgspec.Struct, gc=False):
    model: str | None = None
    usage: Usage | None = None
    error: Error | str | None = None
    # Exactly one of these four says which endpoint answered: chat, responses, embeddings,
    # moderations.
    choices: list[Choice] | None = None
    output: list[Item] | None = None
    data: list[Vector] | None = None
    results: list[msgspec.Raw] | None = None
    # Of responses only: how the answer ended.
    status: str | None = None
    incomplete_details: Incomplete | None = None


class Response(msgspec.Struct, gc=False):
    status_code: _Count | None = None
    request_id: str | None = None
    body: Body | str | None = None


class Line(msgspec.Struct, gc=False):
    custom_id: str | None = None
    response: Response | None = None
    error: Error | str | None = None


_decoder = msgspec.json.Decoder(Line, strict=False)
#: A line as it should be; whatever is raised, `decode_leniently` may read it.
decode = _decoder.decode
#: All values of a block, where each is as it should be: lines, or what goes over several of them. A
#: line that is torn is hardly ever read as one with the next: no string holds a line end, and after
#: the next something would have to close what the torn one left open.
decode_all = _decoder.decode_lines
_decode_body = msgspec.json.Decoder(Body).decode


def decode_leniently(line: bytes) -> Line:
    """A line that is odd: what does not fit its field becomes the field's default.

    Bad UTF-8 is replaced; NaN, raw control characters, lone surrogates and endless integers are
    accepted. Whatever is raised, the line cannot be read.
    """
    return _lenient(Line, line)


def decode_body(text: str) -> Body | None:
    """A body that came as a text; None where that is no JSON object."""
    try:
        return _decode_body(text)
    except Exception:  # noqa: BLE001 - whatever the strict reader objects to, the lenient one sees
        try:
            return _lenient(Body, text)
        except Exception:  # noqa: BLE001 - RecursionError and the like as well
            return None


def _lenient(shape: type[_T], data: bytes | str) -> _T:
    text = data if isinstance(data, str) else data.decode("utf-8", "replace")
    value = json.loads(text, strict=False, parse_int=integer)
    fitted = _fit(_SHAPES[shape], value)
    if not isinstance(fitted, shape):
        message = f"expected an object, got {type(value).__name__}"
        raise TypeError(message)
    return fitted


_SHAPES: dict[type, shapes.Type] = {shape: shapes.type_info(shape) for shape in (Line, Body)}


def integer(digits: str) -> int | float:
    """A number of JSON; int() refuses more than 4300 digits, and no count is that long."""
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
            return without_halves(value)
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


def without_halves(value: Any) -> str | None:
    """A text that can be printed and stored; a number as text; None for all else.

    Half of a character, as where a token limit cut an emoji in two, is replaced: Arrow, pandas and
    Polars all refuse it, after payment. Two halves that were written as two escapes are joined.
    """
    if not isinstance(value, str):
        return str(value) if type(value) is int else None
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


# Seen only outside quoted text: inside a JSON string its quotes would be escaped.
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]{32})"')


def custom_id_in(line: bytes) -> str | None:
    """The custom_id that a line which cannot be read names, if it is one."""
    named = set(_CUSTOM_ID.findall(line))
    return named.pop().decode() if len(named) == 1 else None
