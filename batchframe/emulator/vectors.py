"""Texts and their vectors -> the answer of the embeddings endpoint."""

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from .answers import Answer, error_body

__all__ = ["embeddings", "no_texts", "texts_of", "unit"]


def texts_of(body: Mapping[str, Any]) -> list[str]:
    """Find the texts that a body asks about; none where it is not made of texts."""
    asked = body.get("input")
    texts = [asked] if isinstance(asked, str) else asked
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return []
    return texts


def no_texts() -> Answer:
    """Refuse a body that is not made of texts."""
    message = "Missing or invalid parameter: 'input'."
    return 400, error_body(message, "invalid_value", "input")


def unit(vector: Sequence[float]) -> list[float]:
    """Scale a vector to the length 1."""
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


def embeddings(
    body: Mapping[str, Any], vectors: Sequence[Sequence[float]], n_tokens: int
) -> Answer:
    """Make the list of embeddings, in the encoding that is asked for; without vectors, refuse."""
    if not vectors:
        return no_texts()
    as_base64 = body.get("encoding_format") == "base64"
    data = []
    for index, vector in enumerate(vectors):
        shown: Any = vector
        if as_base64:
            shown = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return 200, {"object": "list", "data": data, "model": body.get("model"), "usage": usage}
