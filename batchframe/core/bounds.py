"""The fields of a request's body -> what bounds its cost, before it is sent.

A prompt has no more tokens than bytes, an answer no more than its limit, and an image no more than
is said here. What the service adds by itself, out of a file, a search or an earlier conversation,
nothing bounds.
"""

import re
from collections.abc import Mapping
from typing import Any

from batchframe.core.spec import CHAT_COMPLETIONS, EMBEDDINGS, MODERATIONS, RESPONSES

__all__ = ["MEDIA", "answer_limit", "beyond", "media_beyond", "most_read"]

#: What limits the tokens of an answer, by the names of all endpoints.
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
#: What a message holds beside text, by its type in chats and in responses.
MEDIA: Mapping[str, str] = {
    "image_url": "images",
    "input_image": "images",
    "input_audio": "audio",
    "file": "files",
    "input_file": "files",
}
#: The most tokens that an image takes: those of gpt-4o-mini, 2,833 and 5,667 for each of the 8
#: tiles of 512 pixels that 2,048 x 768 have. Other models of OpenAI take fewer (OpenAI, Images and
#: vision guide, "Calculating costs", 2026-08).
_IMAGE_TOKENS = 2_833 + 8 * 5_667
#: An image within the JSON of messages; in a text the quotes would be escaped.
_INLINE = re.compile(rb'"data:image/[^"]*"')
#: Fields by which the model reads, or is billed for, what the request does not hold: earlier
#: answers, prompts that are kept at the service, searches, spoken answers.
_BEYOND = {
    CHAT_COMPLETIONS: ("web_search_options", "audio"),
    RESPONSES: ("previous_response_id", "conversation", "prompt"),
}
#: Tools that the caller runs. All others the service runs, as often as the model likes: most are
#: billed by the call, and the model reads what they find (OpenAI, pricing, "Built-in tools",
#: 2026-08).
_OF_CALLERS = frozenset({"function", "custom"})


def answer_limit(fields: Mapping[str, Any], endpoint: str) -> int | None:
    """The most tokens that an answer may have, reasoning included, by the fields of its body.

    0 where answers have no tokens, None where nothing limits them: -1 and 0, which model servers
    take for the end of the context, do not. Nor does a default: without a field /v1/completions
    stops at 16 tokens at OpenAI (API reference, 2026-08), and elsewhere much later.

    /v1/completions generates `best_of` answers, gives back the best of them (API reference, "can
    quickly consume your token quota", 2026-08), and each is billed.
    """
    if endpoint in {EMBEDDINGS, MODERATIONS}:
        return 0
    limits = [fields[name] for name in _LIMITS if fields.get(name) is not None]
    n_answers = 1 if fields.get("best_of") is None else fields["best_of"]
    if not limits or not all(isinstance(n, int) and n > 0 for n in (*limits, n_answers)):
        return None
    return int(max(limits) * n_answers)


def beyond(fields: Mapping[str, Any], endpoint: str) -> str | None:
    """What of a body's fields nothing bounds the cost of, as it is written; None: nothing."""
    for name in _BEYOND.get(endpoint, ()):
        if fields.get(name) is not None:
            return f"{name}="
    tools = fields.get("tools")
    kinds = [tool.get("type") for tool in tools] if isinstance(tools, list) else []
    run = [str(kind) for kind in kinds if kind not in _OF_CALLERS]
    return f"tools: {', '.join(run)}" if run else None


def media_beyond(messages: bytes) -> str | None:
    """Which media in the JSON of a request's messages nothing bounds the cost of, in words."""
    found = (what for kind, what in MEDIA.items() if what != "images" and _n(messages, kind))
    return next(found, None)


def most_read(n_bytes: int, messages: bytes) -> int:
    """The most tokens that the model reads of a request of so many bytes, with these messages.

    No token is shorter than a byte. Images are seen, and the bytes of those that stand in the JSON
    of the messages are not read.
    """
    kinds = (kind for kind, what in MEDIA.items() if what == "images")
    n_images = sum(_n(messages, kind) for kind in kinds)
    inline = _INLINE.finditer(messages) if n_images else ()
    return n_bytes - sum(len(found[0]) for found in inline) + _IMAGE_TOKENS * n_images


def _n(messages: bytes, kind: str) -> int:
    # We write JSON without spaces; in a text the quotes would be escaped.
    return messages.count(f'"type":"{kind}"'.encode())
