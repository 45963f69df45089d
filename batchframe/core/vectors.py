"""Answers of the embeddings endpoint -> a column of 32-bit floats."""

import base64
import binascii
import json
import math
import sys
from array import array
from collections.abc import Iterable

import pyarrow as pa

__all__ = ["read_vectors", "vector_type"]

_FLOAT_BYTES = 4


def vector_type(n_dimensions: int | None) -> pa.DataType:
    """The type of a column of vectors: of a fixed size where it was asked for."""
    if n_dimensions is None:  # by 64 bits: a million vectors of a large model have 2**31 floats
        return pa.large_list(pa.float32())
    return pa.list_(pa.float32(), n_dimensions)


def read_vectors(
    texts: Iterable[str | None], n_dimensions: int | None
) -> tuple[pa.Array, list[str | None]]:
    """Answers -> vectors and, for each that is none, the reason; one entry per text.

    Args:
        texts: Each the base64 of little-endian 32-bit floats, or a JSON list of numbers, from
            services that know only that; or null.
        n_dimensions: How long each vector is, or None for any length.

    Returns:
        Vectors of `vector_type(n_dimensions)`, null where the text is null or is no vector.
    """
    values = array("f")
    offsets: list[int | None] = []
    reasons: list[str | None] = []
    for text in texts:
        vector, reason = _vector(text, n_dimensions) if text is not None else (None, None)
        offsets.append(None if vector is None else len(values))
        reasons.append(reason)
        if vector is not None:
            values.extend(vector)
    floats = pa.Array.from_buffers(pa.float32(), len(values), [None, pa.py_buffer(values)])
    if n_dimensions is None:
        ends = pa.array([*offsets, len(values)], pa.int64())
        return pa.LargeListArray.from_arrays(ends, floats), reasons
    vectors = pa.FixedSizeListArray.from_arrays(floats, n_dimensions)
    places = [None if start is None else start // n_dimensions for start in offsets]
    return vectors.take(pa.array(places, pa.int64())), reasons


def _vector(text: str, n_dimensions: int | None) -> "tuple[array[float] | None, str | None]":
    try:
        vector = _floats(text)
    except (ValueError, TypeError, OverflowError, binascii.Error):
        return None, f"this is no vector of numbers: {text[:40]!r}"
    if n_dimensions is not None and len(vector) != n_dimensions:
        return None, f"the vector has {len(vector)} dimensions, not {n_dimensions}"
    if not all(map(math.isfinite, vector)):
        return None, "the vector holds a number that is not finite"
    return vector, None


def _floats(text: str) -> "array[float]":
    vector = array("f")
    if text.lstrip().startswith("["):
        vector.extend(json.loads(text))
    else:
        vector.frombytes(base64.b64decode(text, validate=True))
        if sys.byteorder == "big":
            vector.byteswap()
    return vector
