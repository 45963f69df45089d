"""A request's body becomes a status code and a response body: the models of the local server.

`Echo` answers at once with a function of the prompt, so that a wrong join of rows cannot pass a
test. `SmolLM2` is a real language model of 135 million parameters in this process. Whatever model
name a request asks for is accepted and echoed, so that prices apply.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .answers import CHAT, Answer, by_chat
from .echo import Echo, answered
from .smollm2 import SmolLM2
from .tokens import count_tokens
from .upstream import Upstream

__all__ = ["CallableModel", "Model", "resolve_model"]


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


_NAMED: Mapping[str, Callable[[], Model]] = {"echo": Echo, "smollm2": SmolLM2}


def resolve_model(
    model: str | Model | Upstream | Callable[[dict[str, Any]], Answer | str],
) -> Model | Upstream:
    """Turn a name or a plain function into a model."""
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
            return by_chat(lambda chat: answered(chat, text, count_tokens), body, endpoint)
        return answer
