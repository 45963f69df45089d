"""The echo: a model that answers at once with a function of the request.

So a wrong join of rows cannot pass a test. Texts are repeated, in JSON where a form is asked for;
vectors are made of the hash of a text, and verdicts of the words in it.
"""

import json
from collections.abc import Callable, Mapping
from hashlib import blake2b, shake_256
from typing import Any

from .answers import (
    CHAT,
    EMBEDDINGS,
    MODERATIONS,
    Answer,
    by_chat,
    completion,
    error_body,
    no_messages,
    usage_of,
)
from .schemas import fitting
from .tokens import count_prompt_tokens, count_tokens, first_tokens, text_of
from .vectors import embeddings, no_texts, texts_of, unit

__all__ = ["Echo", "answered"]

_count_pieces = count_tokens

#: What is judged (OpenAI API spec, 2026-08).
_CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening"),
    *("illicit", "illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent"),
    *("sexual", "sexual/minors", "violence", "violence/graphic"),
)

#: Dimensions of an embedding that names none, as many as text-embedding-3-small has.
_DIMENSIONS = 1536

#: Dimensions of an embedding at most: those of text-embedding-3-large (OpenAI embeddings guide,
#: 2026-08).
_MOST_DIMENSIONS = 3072


class Echo:
    """Answers a chat with `echo: ` and the last user message, in JSON where that is asked for."""

    name = "echo"
    instant = True

    def __init__(self, count_tokens: Callable[[str], int] | None = None) -> None:
        """Take what counts the tokens of a text; None: pieces of words, near what is usual."""
        self._count = count_tokens or _count_pieces

    def answer(self, body: dict[str, Any], endpoint: str = CHAT) -> Answer:
        """Answer a chat completion, a response, an embedding or a moderation."""
        if endpoint == MODERATIONS:
            return _judged(body)
        if endpoint == EMBEDDINGS:
            return _embedded(body)
        return by_chat(self._chat, body, endpoint)

    def _chat(self, body: dict[str, Any]) -> Answer:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            return no_messages()
        asked = ""
        for message in messages:
            if isinstance(message, dict) and message.get("role") == "user":
                asked = text_of(message)
        return answered(body, _echoed(asked, body.get("response_format")), self._count)


def answered(body: Mapping[str, Any], text: str, count: Callable[[str], int]) -> Answer:
    """Make the text the answer to a chat, cut where the body sets a limit of tokens."""
    finish_reason = "stop"
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(limit, int):
        text, is_cut = first_tokens(text, limit)
        finish_reason = "length" if is_cut else "stop"
    usage = usage_of(count_prompt_tokens(body, count), count(text))
    both = f"{body.get('messages')}{text}"
    identity = f"chatcmpl-{blake2b(both.encode(), digest_size=12).hexdigest()}"
    return 200, completion(body, identity, text, finish_reason, usage)


def _echoed(asked: str, form: Any) -> str:
    """The answer in the form that is asked for."""
    text = f"echo: {asked}"
    match form:
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return json.dumps(fitting(schema, text), ensure_ascii=False)
        case {"type": "json_object"}:
            return json.dumps({"echo": asked}, ensure_ascii=False)
        case _:
            return text


def _embedded(body: Mapping[str, Any]) -> Answer:
    texts = texts_of(body)
    size = body.get("dimensions") or _DIMENSIONS
    if not isinstance(size, int) or not 0 < size <= _MOST_DIMENSIONS:
        message = f"Invalid 'dimensions': must be from 1 to {_MOST_DIMENSIONS}."
        return 400, error_body(message, "invalid_value", "dimensions")
    vectors = [_hashed(text, size) for text in texts]
    return embeddings(body, vectors, sum(map(count_tokens, texts)))


def _judged(body: Mapping[str, Any]) -> Answer:
    """Each category is flagged whose name stands in the text."""
    texts = texts_of(body)
    if not texts:
        return no_texts()
    verdicts = []
    for text in texts:
        categories = {name: name in text for name in _CATEGORIES}
        verdicts.append(
            {
                "flagged": any(categories.values()),
                "categories": categories,
                "category_scores": {name: float(flag) for name, flag in categories.items()},
                "category_applied_input_types": {name: ["text"] for name in categories},
            }
        )
    identity = blake2b("".join(texts).encode(), digest_size=12).hexdigest()
    return 200, {"id": f"modr-{identity}", "model": body.get("model"), "results": verdicts}


def _hashed(text: str, size: int) -> list[float]:
    return unit([byte - 127.5 for byte in shake_256(text.encode()).digest(size)])
