"""The bodies that the API answers with, and what other endpoints for text make of a chat.

A model that knows chats answers responses and completions as well, by `by_chat`.
"""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "EMBEDDINGS",
    "MODERATIONS",
    "RESPONSES",
    "Answer",
    "by_chat",
    "completion",
    "error_body",
    "no_messages",
    "usage_of",
]

#: The endpoints that the local models answer, or some of them.
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
COMPLETIONS = "/v1/completions"
EMBEDDINGS, MODERATIONS = "/v1/embeddings", "/v1/moderations"

#: An HTTP status code and the response body that goes with it.
Answer = tuple[int, dict[str, Any]]


def error_body(message: str, code: str | None, param: str | None) -> dict[str, Any]:
    """Make the body of a row that failed: the API's error envelope."""
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def no_messages() -> Answer:
    """Refuse a chat without messages."""
    message = "Missing required parameter: 'messages'."
    return 400, error_body(message, "missing_required_parameter", "messages")


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Make the usage of a chat completion."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def completion(
    body: Mapping[str, Any], identity: str, text: str, finish_reason: str, usage: dict[str, Any]
) -> dict[str, Any]:
    """Make a chat completion of one choice."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    return {
        "id": identity,
        "object": "chat.completion",
        # Not a time: an answer is a function of its request.
        "created": 0,
        "model": body.get("model"),
        "choices": [choice],
        "usage": usage,
        "system_fingerprint": None,
    }


def by_chat(
    chat: Callable[[dict[str, Any]], Answer], body: dict[str, Any], endpoint: str
) -> Answer:
    """Answer a request of an endpoint for text by a model that knows chats."""
    if endpoint == CHAT:
        return chat(body)
    if endpoint == COMPLETIONS:
        prompt = {"role": "user", "content": body.get("prompt")}
        status, reply = chat({**body, "messages": [prompt]})
        return (200, _text_completion(reply)) if status == 200 else (status, reply)
    if endpoint != RESPONSES:
        message = f"The local models do not answer {endpoint}."
        return 404, error_body(message, "unsupported_endpoint", None)
    asked = body.get("input")
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if isinstance(messages, list) and isinstance(body.get("instructions"), str):
        messages = [{"role": "system", "content": body["instructions"]}, *messages]
    limit = body.get("max_output_tokens")
    asked_of_chat = {**body, "messages": messages, "max_completion_tokens": limit}
    match body.get("text"):
        case {"format": {"type": "json_schema", "schema": dict(schema)}}:
            form = {"type": "json_schema", "json_schema": {"schema": schema}}
            asked_of_chat["response_format"] = form
        case {"format": {"type": "json_object"} as form}:
            asked_of_chat["response_format"] = form
        case _:
            pass
    status, reply = chat(asked_of_chat)
    return (200, _response(reply)) if status == 200 else (status, reply)


def _text_completion(reply: Mapping[str, Any]) -> dict[str, Any]:
    choice = reply["choices"][0]
    return {
        **reply,
        "id": reply["id"].replace("chatcmpl-", "cmpl-"),
        "object": "text_completion",
        "choices": [
            {
                "index": 0,
                "text": choice["message"]["content"],
                "logprobs": None,
                "finish_reason": choice["finish_reason"],
            }
        ],
    }


def _response(reply: Mapping[str, Any]) -> dict[str, Any]:
    choice, usage = reply["choices"][0], reply["usage"]
    is_cut = choice["finish_reason"] == "length"
    text = {"type": "output_text", "text": choice["message"]["content"], "annotations": []}
    identity = reply["id"].removeprefix("chatcmpl-")
    message = {
        "type": "message",
        "id": f"msg_{identity}",
        "role": "assistant",
        "status": "incomplete" if is_cut else "completed",
        "content": [text],
    }
    return {
        "id": f"resp_{identity}",
        "object": "response",
        "created_at": 0,
        "model": reply["model"],
        "status": message["status"],
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "error": None,
        "output": [message],
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
    }
