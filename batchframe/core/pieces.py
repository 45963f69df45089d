"""A row's own values -> the JSON that stands for them in its body, or an error that names the row.

Values come as Python objects out of any frame: messages, a text with images, fields of a body.
What a frame put there by itself is taken out again, or the same row would have another key: fields
that are null because other rows have them, and integers that became floats beside a gap.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from batchframe.core.spec import RESPONSES, json_value
from batchframe.errors import ParameterError, RowError

__all__ = ["encode_fields", "encode_messages", "encode_parts"]


def encode_messages(messages: Any, place: str) -> bytes:
    """A list of chat messages -> the JSON that a request holds.

    Fields that are null are left out: an Arrow or Polars struct has the fields of all rows. `place`
    names the list in messages. Raises RowError unless it is a list, not empty, of objects with a
    role, that JSON can hold.
    """
    plain = _without_nulls(messages)
    if (
        not isinstance(plain, list)
        or not plain
        or not all(isinstance(part, Mapping) and "role" in part for part in plain)
    ):
        raise RowError(
            f"{place} is {messages!r:.80}. Nothing was sent. It must be a list of chat messages, "
            '[{"role": "user", "content": ...}, ...].'
        )
    try:
        return msgspec.json.encode(json_value(plain, place))
    except ParameterError as error:
        raise RowError(f"{error} Nothing was sent.") from None


def encode_parts(text: str, image_urls: Sequence[str], endpoint: str) -> bytes:
    """A text and images -> the JSON of a list of one user message, in the endpoint's own words."""
    if endpoint == RESPONSES:
        parts: list[dict[str, Any]] = [{"type": "input_text", "text": text}]
        parts += [{"type": "input_image", "image_url": url} for url in image_urls]
    else:
        parts = [{"type": "text", "text": text}]
        parts += [{"type": "image_url", "image_url": {"url": url}} for url in image_urls]
    return msgspec.json.encode([{"role": "user", "content": parts}])


def encode_fields(values: Mapping[str, tuple[Any, str]]) -> bytes | None:
    """A row's own body fields -> the JSON that its request holds, or None if all are null.

    Each value comes with words for its place, for messages. Numbers without a fraction are written
    as integers: JSON knows one kind of number, and a pandas column with gaps is of floats. Raises
    RowError for what JSON cannot hold.
    """
    try:
        fields = {
            name: _whole(json_value(_without_nulls(value), place))
            for name, (value, place) in values.items()
            if value is not None
        }
    except ParameterError as error:
        raise RowError(f"{error} Nothing was sent. Null leaves the field out.") from None
    return msgspec.json.encode(fields) if fields else None


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case dict():
            return {name: _whole(item) for name, item in value.items()}
        case list():
            return [_whole(item) for item in value]
        case _:
            return value


def _without_nulls(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy's arrays, which pandas reads out of parquet
        value = value.tolist()
    match value:
        case Mapping():
            return {key: _without_nulls(item) for key, item in value.items() if item is not None}
        case list() | tuple():
            return [_without_nulls(item) for item in value]
        case _:
            return value
