"""Arrow columns -> row keys and encoded lines.

A row becomes body = constant prefix + encoded prompt + constant suffix, and its own fields if it
has any; its row key is the BLAKE2b of the type-tagged id and the body's digest; its line is the
body in the Batch API's envelope. What is measured here is, byte for byte, what is uploaded.

A prompt is text, the content of one user message; or bytes, the JSON of a list of messages, which
is sent as it is. A text and the list of that one message make the same body.
"""

from binascii import hexlify
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, compress, groupby, repeat
from typing import Any, NamedTuple, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.dialects import OPENAI, Dialect
from batchframe.core.spec import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    MODERATIONS,
    RESPONSES,
    Spec,
)

__all__ = [
    "BYTES_PER_TOKEN",
    "Request",
    "Requests",
    "RowKeys",
    "Rows",
    "addressed",
    "line_bytes_at_most",
    "render_requests",
    "row_keys",
    "shared_keys",
    "url_in",
]

_T = TypeVar("_T")

#: Rows turned into Python objects at a time, so that memory does not grow with the frame.
_CHUNK_ROWS = 1_024
#: Size of row keys and body digests, in bytes.
_DIGEST_BYTES = 16
#: Bytes per token assumed before real usage is known: cautious for English, near for most scripts
#: (measured over prose in seven languages, 2026-11).
BYTES_PER_TOKEN = 3
#: Tokens of a request beside its texts: 3 for each message, 1 for its role and 3 for the answer's
#: beginning (OpenAI cookbook, "How to count tokens with tiktoken", 2026-08), rounded up.
_TOKENS_AROUND = 8


#: What each endpoint calls the list of messages in a body.
_MESSAGES_FIELD = {CHAT_COMPLETIONS: b"messages", RESPONSES: b"input"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a frame's rows ask: each array has one entry per row, in the frame's order."""

    #: Integers or strings, without nulls.
    ids: pa.Array
    #: Strings; or binary with the JSON of a list of messages. Null where nothing is to be sent.
    prompts: pa.Array
    #: Strings: each row's own model; None where the spec names one for all. Without nulls where
    #: there are prompts.
    models: pa.Array | None = None
    #: Binary: the JSON object of each row's own body fields; null or None where it has none.
    fields: pa.Array | None = None

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.ids)

    @property
    def n_asked(self) -> int:
        """How many of them ask something: those that have a prompt."""
        return len(self) - int(self.prompts.null_count)

    def take(self, positions: pa.Array) -> "Rows":
        """The rows at `positions`, in that order."""
        n = len(positions)
        first = positions[0].as_py() if n else 0
        if positions.equals(pa.arange(first, first + n).cast(positions.type)):
            # A run of rows needs no copy.
            return Rows(
                ids=self.ids.slice(first, n),
                prompts=self.prompts.slice(first, n),
                models=None if self.models is None else self.models.slice(first, n),
                fields=None if self.fields is None else self.fields.slice(first, n),
            )
        return Rows(
            ids=_take(self.ids, positions),
            prompts=_take(self.prompts, positions),
            models=None if self.models is None else _take(self.models, positions),
            fields=None if self.fields is None else _take(self.fields, positions),
        )


class Request(NamedTuple):
    """One row's call, encoded."""

    #: 16 bytes that name the row's id and body.
    row_key: bytes
    #: The row's id as text, for people who read the checkpoint.
    id: str
    #: 16 bytes that name the body alone: equal bodies have equal digests.
    body_digest: bytes
    #: The encoded JSONL line with its newline, as uploaded.
    line: bytes
    #: Estimated prompt tokens, for the provider's queue.
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests for one model, column by column, because a hundred million objects would be slow.

    Each list has one entry per request, as `Request` has it.
    """

    #: The rows' own model, or None where the spec names one for all.
    model: str | None
    row_keys: list[bytes]
    ids: list[str]
    body_digests: list[bytes]
    lines: list[bytes]
    n_tokens: list[int]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.row_keys)

    def __iter__(self) -> Iterator[Request]:
        """One after the other."""
        return map(Request, *self.columns())

    def part(self, start: int, stop: int) -> "Requests":
        """The requests from `start` to before `stop`."""
        return Requests(self.model, *(column[start:stop] for column in self.columns()))

    @classmethod
    def joined(cls, parts: Sequence["Requests"]) -> "Requests":
        """All requests of parts that are for one model, at least one part."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(part.columns() for part in parts), strict=True)
        return cls(parts[0].model, *(list(chain.from_iterable(column)) for column in columns))

    def columns(self) -> tuple[list[Any], ...]:
        """All lists, in the order of `Request`."""
        return self.row_keys, self.ids, self.body_digests, self.lines, self.n_tokens


class RowKeys(NamedTuple):
    """The keys and sizes of all rows, one entry per row, in the frame's order."""

    #: binary(16); null where the prompt is null, so that nothing is sent.
    keys: pa.FixedSizeBinaryArray
    #: int64: size of the row's line, in bytes; null where the prompt is null.
    line_bytes: pa.Int64Array
    #: binary(16): names the body alone; null where the prompt is null.
    digests: pa.FixedSizeBinaryArray
    #: int64: estimated prompt tokens, for the provider's queue; null where the prompt is null.
    n_tokens: pa.Int64Array


class _Renderer:
    """The constant bytes around each prompt that goes to one model."""

    def __init__(self, spec: Spec, model: str | None, dialect: Dialect) -> None:
        system = [{"role": "system", "content": spec.system}] if spec.system is not None else []
        head = msgspec.json.encode({"model": spec.model or model, **spec.params})
        messages = b"".join(msgspec.json.encode(message) + b"," for message in system)
        if spec.endpoint in {EMBEDDINGS, MODERATIONS}:  # a text by itself
            self._prefix, self._suffix = head[:-1] + b',"input":', b"}"
            self._text_prefix, self._text_suffix = self._prefix, self._suffix
        elif spec.endpoint == COMPLETIONS:
            self._prefix, self._suffix = head[:-1] + b',"prompt":', b"}"
            self._text_prefix, self._text_suffix = self._prefix, self._suffix
        else:
            field = _MESSAGES_FIELD[spec.endpoint]
            self._prefix, self._suffix = head[:-1] + b',"' + field + b'":[' + messages, b"]}"
            self._text_prefix = self._prefix + b'{"role":"user","content":'
            self._text_suffix = b"}" + self._suffix
        self._line_head = b'{"custom_id":"'
        self._line_middle = _line_middle(dialect.url(spec.endpoint))
        self._line_tail = b"}\n"
        self._encode = msgspec.json.Encoder().encode
        #: Bytes of a line beside its body.
        self.envelope_bytes = len(self.lines([bytes(_DIGEST_BYTES)], [b""])[0])
        params = len(head) - len(msgspec.json.encode({"model": spec.model or model}))
        #: Bytes of a body beside its texts and parameters: they are no tokens.
        self.bare_bytes = len(self.body("", None)) - params - len(messages)

    def body(self, prompt: str | bytes, fields: bytes | None) -> bytes:
        if isinstance(prompt, bytes):
            body = self._prefix + prompt[1:-1] + self._suffix
        else:
            body = self._text_prefix + self._encode(prompt) + self._text_suffix
        return body if fields is None else body[:-1] + b"," + fields[1:]

    def bodies(self, prompts: Iterable[str | bytes | None]) -> list[bytes | None]:
        """The bodies of rows without fields of their own; None where there is no prompt."""
        before, after, encode = self._text_prefix, self._text_suffix, self._encode
        return [
            b"".join((before, encode(prompt), after))
            if isinstance(prompt, str)
            else (None if prompt is None else self.body(prompt, None))
            for prompt in prompts
        ]

    def lines(self, row_keys: Iterable[bytes], bodies: Iterable[bytes]) -> list[bytes]:
        head, middle, tail = self._line_head, self._line_middle, self._line_tail
        return [
            b"".join((head, hexlify(row_key), middle, body, tail))
            for row_key, body in zip(row_keys, bodies, strict=True)
        ]


_BEFORE_URL, _BEFORE_BODY = b'","method":"POST","url":', b',"body":'
#: Where a line's custom_id ends: `{"custom_id":"` and 32 digits.
_ID_END = len(b'{"custom_id":"') + 2 * _DIGEST_BYTES


def _line_middle(url: str) -> bytes:
    """What stands in a line between its custom_id and its body."""
    return _BEFORE_URL + msgspec.json.encode(url) + _BEFORE_BODY


def url_in(line: bytes) -> str:
    """What a line of ours calls its endpoint. Raises ValueError for a line that is not ours."""
    start = _ID_END + len(_BEFORE_URL)
    return str(msgspec.json.decode(line[start : line.index(_BEFORE_BODY, start)]))


def addressed(requests: Requests, url: str) -> Requests:
    """The requests with lines that call their endpoint `url`, whatever they called it before."""
    middle = _line_middle(url)
    if not requests.lines or requests.lines[0].startswith(middle, _ID_END):
        return requests
    start = _ID_END + len(_line_middle(url_in(requests.lines[0])))
    lines = [line[:_ID_END] + middle + line[start:] for line in requests.lines]
    return replace(requests, lines=lines)


def row_keys(rows: Rows, spec: Spec, dialect: Dialect = OPENAI) -> RowKeys:
    """Name every row and measure its line.

    Args:
        rows: What each row asks.
        spec: What all rows share.
        dialect: How the service speaks, of which only the sizes of lines depend.

    Returns:
        Keys and line sizes, one per row, in the same order.
    """
    keys: list[bytes | None] = []
    sizes: list[int | None] = []
    digests: list[bytes | None] = []
    tokens: list[int | None] = []
    for chunk in _chunks(rows, spec, dialect):
        bodies = [body for body in chunk.bodies if body is not None]
        named = _digests(bodies)
        is_asked = [body is not None for body in chunk.bodies]
        own_ids = list(compress(chunk.ids, is_asked))
        around = chunk.envelope_bytes
        keys += _spread(_row_keys(chunk.letter, own_ids, named), is_asked)
        sizes += _spread([around + len(body) for body in bodies], is_asked)
        digests += _spread(named, is_asked)
        tokens += _spread(chunk.guessed_tokens(bodies), is_asked)
    return RowKeys(
        pa.array(keys, pa.binary(_DIGEST_BYTES)),
        pa.array(sizes, pa.int64()),
        pa.array(digests, pa.binary(_DIGEST_BYTES)),
        pa.array(tokens, pa.int64()),
    )


def line_bytes_at_most(rows: Rows, spec: Spec, dialect: Dialect = OPENAI) -> int:
    """A number of bytes that no row's line exceeds, without encoding any of them."""
    models = _distinct(rows.models) or [None]
    renderers = [_Renderer(spec, model, dialect) for model in models]
    around = max(renderer.envelope_bytes + len(renderer.body("", None)) for renderer in renderers)
    n_prompt = pc.max(pc.binary_length(rows.prompts)).as_py() or 0
    n_fields = 0 if rows.fields is None else pc.max(pc.binary_length(rows.fields)).as_py() or 0
    # A byte of text becomes six of JSON at the most: "\\u0000".
    return int(around + 6 * n_prompt + n_fields)


def _distinct(models: pa.Array | None) -> list[str | None]:
    return [] if models is None else models.drop_null().unique().to_pylist()


def shared_keys(keys: RowKeys, known: pa.Table) -> pa.FixedSizeBinaryArray:
    """The key of the request that answers each row, where equal bodies are sent once.

    A row whose own request is known keeps its key; one whose body is, takes that request's; of
    others with the same body, the first one's key is that of all.

    Args:
        keys: All rows.
        known: `row_key` and `body_digest` of requests that are answered or under way.

    Returns:
        binary(16), one per row; null where the prompt is null.
    """
    own = pc.is_in(keys.keys, value_set=known["row_key"].combine_chunks(), skip_nulls=True)
    there = pc.index_in(keys.digests, value_set=known["body_digest"].combine_chunks())
    first = keys.keys.take(pc.index_in(keys.digests, value_set=keys.digests))
    shared = pc.coalesce(known["row_key"].combine_chunks().take(there), first)
    return pc.if_else(pc.or_(own, pc.is_null(keys.keys)), keys.keys, shared)


def render_requests(
    rows: Rows, positions: pa.Array, spec: Spec, dialect: Dialect = OPENAI
) -> Iterator[Requests]:
    """The requests of the rows at `positions` (int64), in that order, some thousands at a time."""
    for start in range(0, len(positions), _CHUNK_ROWS):
        for chunk in _chunks(rows.take(positions.slice(start, _CHUNK_ROWS)), spec, dialect):
            bodies = [body for body in chunk.bodies if body is not None]
            if len(bodies) < len(chunk.bodies):
                raise ValueError("a row without a prompt has no request")
            digests = _digests(bodies)
            keys = _row_keys(chunk.letter, chunk.ids, digests)
            lines, tokens = chunk.lines(keys, bodies), chunk.guessed_tokens(bodies)
            requests = Requests(None, keys, chunk.ids, digests, lines, tokens)
            if rows.models is None:
                yield requests
                continue
            place = 0
            for model, run in groupby(chunk.models):
                end = place + sum(1 for _ in run)
                yield replace(requests.part(place, end), model=model)
                place = end


def _digests(bodies: Iterable[bytes]) -> list[bytes]:
    return [blake2b(body, digest_size=_DIGEST_BYTES).digest() for body in bodies]


def _row_keys(letter: str, ids: Iterable[str], digests: Iterable[bytes]) -> list[bytes]:
    # The letter is that of the ids' type: the integer 1 and the text "1" are different rows. The
    # digest has a fixed size, so that no id can borrow bytes from the one behind it.
    return [
        blake2b((letter + id_).encode() + digest, digest_size=_DIGEST_BYTES).digest()
        for id_, digest in zip(ids, digests, strict=True)
    ]


def _spread(values: Iterable[_T], is_asked: Iterable[bool]) -> Iterator[_T | None]:
    """The values, one for each row that is asked, with None for the others."""
    rest = iter(values)
    return (next(rest) if asked else None for asked in is_asked)


def _take(column: pa.Array, positions: pa.Array) -> pa.Array:
    if pa.types.is_string_view(column.type):  # pyarrow 26 cannot take from views
        column = pc.cast(column, pa.large_string())
    return column.take(positions)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows that are Python objects now: each list has one entry per row."""

    #: The letter of the ids' type.
    letter: str
    ids: list[str]
    #: None where there is no prompt.
    bodies: list[bytes | None]
    #: The row's own model, or None where the spec names one for all.
    models: Iterable[str | None]
    #: Row keys and bodies -> their lines.
    lines: Callable[[Iterable[bytes], Iterable[bytes]], list[bytes]]
    #: Bytes of a line beside its body.
    envelope_bytes: int
    #: Bytes of a body beside its texts and parameters.
    bare_bytes: int

    def guessed_tokens(self, bodies: Iterable[bytes]) -> list[int]:
        """Tokens that a request with each body probably has."""
        # At least 1: the shortest list of messages, [{"role":1}], and the shortest model's name are
        # together 19 bytes shorter than what is taken away here.
        more = _TOKENS_AROUND * BYTES_PER_TOKEN - self.bare_bytes
        return [(size + more) // BYTES_PER_TOKEN for size in map(len, bodies)]


def _chunks(rows: Rows, spec: Spec, dialect: Dialect) -> Iterator[_Chunk]:
    letter = "i" if pa.types.is_integer(rows.ids.type) else "s"
    shared = _Renderer(spec, None, dialect)
    renderers = {None: shared} | {
        model: _Renderer(spec, model, dialect) for model in _distinct(rows.models)
    }
    for start in range(0, len(rows), _CHUNK_ROWS):
        ids = pc.cast(rows.ids.slice(start, _CHUNK_ROWS), pa.string()).to_pylist()
        prompts = rows.prompts.slice(start, _CHUNK_ROWS).to_pylist()
        models = _own(rows.models, start)
        if rows.models is None and rows.fields is None:
            bodies = shared.bodies(prompts)
        else:
            # Those that are the same for all rows do not end.
            own = zip(prompts, models, _own(rows.fields, start), strict=False)
            bodies = [
                None if prompt is None else renderers[model].body(prompt, fields)
                for prompt, model, fields in own
            ]
        yield _Chunk(
            letter, ids, bodies, models, shared.lines, shared.envelope_bytes, shared.bare_bytes
        )


def _own(column: pa.Array | None, start: int) -> Iterable[Any]:
    return repeat(None) if column is None else column.slice(start, _CHUNK_ROWS).to_pylist()
