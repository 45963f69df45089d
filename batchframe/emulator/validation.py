"""An input file becomes the facts of its batch, or the list of everything wrong with it.

The service reads the whole file before it says `failed`, so all errors are found, not the first.
Codes and messages are those seen on the service (litellm pull 37527, 2026); the texts for a
duplicate custom_id and for mixed models are from the DashScope error page, 2026-08, whose other
texts are OpenAI's word for word.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .records import LineError
from .tokens import count_prompt_tokens

__all__ = ["MAX_REQUESTS", "Checked", "check_input", "is_json_object"]

#: Requests in one batch (OpenAI Batch API guide, 2026-08).
MAX_REQUESTS = 50_000

#: Inputs that the requests of one batch of embeddings may have together (OpenAI API spec, 2026-08).
MAX_EMBEDDING_INPUTS = 50_000

#: The fields of an input line, and what each must be.
_FIELDS: dict[str, tuple[type, str]] = {
    "custom_id": (str, "a string"),
    "method": (str, "a string"),
    "url": (str, "a string"),
    "body": (dict, "an object"),
}

#: The field of the body without which an endpoint cannot answer.
_REQUIRED_OF_BODY = {
    "/v1/chat/completions": "messages",
    "/v1/responses": "input",
    "/v1/embeddings": "input",
    "/v1/moderations": "input",
    "/v1/completions": "prompt",
}


_DECODER = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Checked:
    """What validation learned from an input file."""

    #: Number of lines.
    total: int
    #: The model of the first request that names one.
    model: str | None
    #: Prompt tokens of all requests; 0 when they were not counted.
    prompt_tokens: int
    errors: tuple[LineError, ...]


def check_input(
    path: Path, *, endpoint: str, max_requests: int = MAX_REQUESTS, count_tokens: bool = False
) -> Checked:
    """Read every line of the input file at `path` and collect what is wrong."""
    errors: list[LineError] = []
    seen: set[str] = set()
    model: str | None = None
    prompt_tokens = 0
    embedding_inputs = 0
    number = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number > max_requests:  # they are counted only: memory is for no more than that
                continue
            request = _decoded(line)
            if not isinstance(request, dict):
                message = "This line is not parseable as valid JSON."
                errors.append(LineError("invalid_json_line", message, line=number))
                continue
            body = request.get("body")
            if isinstance(body, dict):
                if model is None and isinstance(body.get("model"), str):
                    model = body["model"]
                embedding_inputs += _n_embedding_inputs(body, endpoint)
                if count_tokens:
                    prompt_tokens += count_prompt_tokens(body)
            for code, param, message in _faults(request, endpoint, model, seen):
                errors.append(LineError(code, message, param, number))
            custom_id = request.get("custom_id")
            if isinstance(custom_id, str):
                seen.add(custom_id)
    errors += _over_limits(number, max_requests, embedding_inputs)
    return Checked(number, model, prompt_tokens, tuple(errors))


def is_json_object(line: bytes) -> bool:
    """Whether the line could be one of an input file at all."""
    return isinstance(_decoded(line), dict)


def _decoded(line: bytes) -> Any:
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _over_limits(n_requests: int, max_requests: int, inputs: int) -> Iterator[LineError]:
    if not n_requests:  # the code of Azure (batch guide, 2026-08); not seen on the service
        yield LineError("empty_file", "The input file has no requests.")
    if n_requests > max_requests:
        message = (
            f"This batch contains {n_requests} requests, which is more than the maximum of"
            f" {max_requests} requests per batch."
        )
        yield LineError("too_many_requests", message)
    if inputs > MAX_EMBEDDING_INPUTS:
        # Neither the code nor the text of this one was seen on the service.
        message = (
            f"This batch contains {inputs} embedding inputs, which is more than the maximum of"
            f" {MAX_EMBEDDING_INPUTS} embedding inputs per batch."
        )
        yield LineError("too_many_requests", message)


def _n_embedding_inputs(body: dict[str, Any], endpoint: str) -> int:
    """How many texts are to be embedded: a list of numbers is one text, as its tokens."""
    if endpoint != "/v1/embeddings":
        return 0
    match body.get("input"):
        case [str() | list(), *_] as texts:
            return len(texts)
        case _:
            return 1


def _faults(
    request: dict[str, Any], endpoint: str, model: str | None, seen: set[str]
) -> Iterator[tuple[str, str, str]]:
    for name, (wanted, words) in _FIELDS.items():
        value = request.get(name)
        if value is None:
            yield "missing_required_parameter", name, f"Missing required parameter: '{name}'."
        elif not isinstance(value, wanted):
            yield "invalid_type", name, f"Invalid type for '{name}': expected {words}."
    custom_id, body = request.get("custom_id"), request.get("body")
    if isinstance(custom_id, str) and custom_id in seen:
        message = (
            f"The custom_id '{custom_id}' for this request is a duplicate of another request. The"
            " custom_id parameter must be unique for each request in a batch."
        )
        yield "duplicate_custom_id", "custom_id", message
    if isinstance(request.get("method"), str) and request["method"] != "POST":
        yield "invalid_value", "method", f"Invalid method: '{request['method']}'. Expected 'POST'."
    if isinstance(request.get("url"), str) and request["url"] != endpoint:
        message = "The URL provided for this request does not match the batch endpoint."
        yield "invalid_url", "url", message
    if isinstance(body, dict):
        yield from _faults_of_body(body, endpoint, model)


def _faults_of_body(
    body: dict[str, Any], endpoint: str, model: str | None
) -> Iterator[tuple[str, str, str]]:
    required = _REQUIRED_OF_BODY.get(endpoint)
    for name in ("model", required) if required else ("model",):
        if not body.get(name):
            yield "invalid_request", f"body.{name}", f"Missing required parameter: 'body.{name}'."
    named = body.get("model")
    if named and not isinstance(named, str):
        yield "invalid_type", "body.model", "Invalid type for 'body.model': expected a string."
    elif named and named != model:
        message = (
            f"The model '{named}' for this request does not match the rest of the batch. Each batch"
            " must contain requests for a single model."
        )
        yield "mismatched_model", "body.model", message
    if body.get("stream"):
        message = "Streaming is not supported in the Batch API."
        yield "streaming_unsupported", "body.stream", message
