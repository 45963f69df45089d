"""Texts and prompts -> numbers of tokens, near what a real tokenizer gives, and always the same."""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["count_prompt_tokens", "count_tokens", "first_tokens", "text_of"]

#: Signs of scripts that are written without spaces, where a token is about one of them.
_IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
#: About what a byte-pair tokenizer does: pieces of words of at most six letters, each other sign
#: by itself, spaces free.
_TOKEN = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]{{1,6}}|[^\w\s]")

#: Tokens that the chat format adds to each message and to each prompt (OpenAI cookbook, "How to
#: count tokens with tiktoken", 2026-08).
_TOKENS_PER_MESSAGE = 3
_TOKENS_PER_PROMPT = 3


def count_tokens(text: str) -> int:
    """Count the tokens of a text."""
    return len(_TOKEN.findall(text))


_count_pieces = count_tokens


def first_tokens(text: str, limit: int) -> tuple[str, bool]:
    """Cut a text after so many tokens; True where something was cut off."""
    kept = list(itertools.islice(_TOKEN.finditer(text), limit + 1))
    is_cut = len(kept) > limit
    return (text[: kept[limit].start()] if is_cut else text), is_cut


def count_prompt_tokens(
    body: Mapping[str, Any], count_tokens: Callable[[str], int] = _count_pieces
) -> int:
    """Count the tokens that the prompt of one request has."""
    asked = body.get("messages") or body.get("input") or body.get("prompt")
    total = _TOKENS_PER_PROMPT
    for message in asked if isinstance(asked, list) else [asked]:
        match message:
            case dict():
                total += _TOKENS_PER_MESSAGE + 1 + count_tokens(text_of(message))
            case str():
                total += _TOKENS_PER_MESSAGE + 1 + count_tokens(message)
            case list():  # a text as its tokens
                total += len(message)
            case int():
                total += 1
            case _:
                pass
    return total


def text_of(message: Mapping[str, Any]) -> str:
    """Join the texts of a message."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "".join(text for text in texts if isinstance(text, str))
