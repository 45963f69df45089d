"""The client of the library OpenaiBatchAPI (1.1.2), on batchframe's engine and checkpoint.

A program written for it changes one import: `from batchframe.openai_batch_api import
OpenaiBatchAPI`. Lists of messages go in, batches come back, and the usage is printed as a table.

What is different, because the original loses answers or pays twice there:

- A second call with the same messages sends nothing that was answered: it reads the checkpoint.
  Another `checkpoint=` asks anew.
- `timeout` bounds the wait for all of the work, in seconds, and then raises RunTimeoutError. The
  batches go on, and the same call picks them up. The original cancels a batch that has run for so
  long, and pays for another.
- A `Batch` is a run of `batch_size` messages, and its contents stand in the order of the list; the
  original gives them in the order in which the service wrote them. Its ids and status are those of
  the provider's batch that last took one of its messages; what is tried again goes into further
  batches of the provider.
- `output_file` is always there; its contents are the messages that were answered. `error_file` is
  None, or holds those that were not, each with its error.
- Ids come back as they were given, and automatic ones are the index in the list, as text; the
  original puts a random number in front. An id that occurs twice is refused.
- Any model is taken, at its batch price. Where that is unknown the price is None.
- `usage` is what the messages cost, whenever that was paid, all tries included. The original adds
  the price of earlier files of a batch again.
- `req_cooldown` is the time between two looks at the same batch. `batch_cooldown` is taken and not
  needed: the engine keeps to the service's own pace.

What is gone: `prepare_batchs`, `send_batchs`, `processing_batchs`, and `clean`, `send`, `resend`,
`need_resend` and `update` of a batch. Sending, looking and trying again are the engine's; a batch
that is sent by hand is one that may be paid for twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from batchframe.accounts import open_client
from batchframe.answers import Answers, warn_of_unknown_prices
from batchframe.bodies import body_params
from batchframe.checkpoint import checkpoint_path
from batchframe.client import Provider
from batchframe.clock import SystemClock
from batchframe.core.batches import BatchSeen, Collected
from batchframe.core.lines import whole_lines
from batchframe.core.pieces import encode_messages
from batchframe.core.prices import unpriced_models
from batchframe.core.requests import Rows, render_requests
from batchframe.core.results import answer_bodies
from batchframe.core.shards import Limits, fitting
from batchframe.core.spec import CHAT_COMPLETIONS, Spec, json_value
from batchframe.core.usage import prompt_and_completion_usd
from batchframe.errors import CheckpointError, ParameterError, RowError
from batchframe.jobs import Submission
from batchframe.parameters import SHORTEST_POLL, check_client, check_values
from batchframe.rounds import Options
from batchframe.running import run_rows

if TYPE_CHECKING:
    import openai

    from batchframe.checkpoint import Checkpoint

__all__ = ["Batch", "File", "OpenaiBatchAPI"]

#: The model of the original's signature.
_DEFAULT_MODEL = "gpt-4o-mini"
_WINDOW = "24h"
#: Ids that a message names.
_SHOWN = 5

#: `{"prompt": {"tokens": int, "price": float | None}, "completion": {...}}`; dollars.
Usage = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file at the provider."""

    #: The provider's id; None where there is no such file.
    id: str | None
    #: Of an input file: where the checkpoint keeps it until its results are there.
    path: str | None = None
    #: Tokens of its contents: `{"prompt_tokens": int, "completion_tokens": int}`.
    usage: dict[str, int]
    #: One `{"id", "choices", "usage", "error"}` for each message, in the order of the list: choices
    #: and usage as the API gives them, or None; the error as a dict, or None. None: an input file.
    contents: list[dict[str, Any]] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A run of messages, as many as `batch_size` says."""

    #: The provider's batch that last took one of the messages.
    id: str
    #: How that one ended: completed, failed, expired or cancelled.
    status: str
    #: True: a batch is given back when its results are in the checkpoint.
    done: bool = True
    #: What that batch read.
    input_file: File
    #: The messages that were answered.
    output_file: File
    #: The messages that were not; None where all were.
    error_file: File | None
    #: What the messages cost, all tries included.
    usage: Usage
    #: As it was asked for.
    max_retry: int
    #: As it was asked for, in seconds.
    timeout: float | None
    #: When that batch began to run, in seconds since the epoch; None where the provider said not.
    in_progress_at: float | None


class OpenaiBatchAPI:
    """Lists of chat messages through the Batch API, with the interface of OpenaiBatchAPI 1.1.2."""

    def __init__(
        self,
        api_key: str | None = None,
        req_cooldown: float = 1.7,
        batch_cooldown: float = 0.052,
        timeout: float | None = 300,
        max_retry: int = 3,
        *,
        client: "openai.OpenAI | None" = None,
        base_url: str | None = None,
        checkpoint: str | Path | None = None,
    ) -> None:
        """Take a key, or a client.

        Args:
            api_key: The key; None takes OPENAI_API_KEY.
            req_cooldown: Seconds between two looks at the same batch, at least 0.01.
            batch_cooldown: Taken for the original's sake; the engine keeps its own pace.
            timeout: Seconds to wait for all of the work; None waits as long as it takes.
            max_retry: Further rounds for messages whose error may pass: overload, expiry.
            client: An `openai.OpenAI` client, instead of key and address.
            base_url: The API's address; None is OpenAI's, or that of OPENAI_BASE_URL.
            checkpoint: The directory that keeps what was paid for; None finds one under
                `.batchframe/` by model, parameters and account.

        Raises:
            ApiKeyError: there is no usable key.
            ParameterError: a value does not fit, or the address is neither https nor local.
        """
        check_values(
            req_cooldown=req_cooldown,
            batch_cooldown=batch_cooldown,
            timeout=timeout,
            max_retry=max_retry,
            checkpoint=checkpoint,
        )
        check_client(client)
        if client is not None and (api_key is not None or base_url is not None):
            raise ParameterError(
                "client= has a key and an address already: leave out api_key= and base_url=."
            )
        self.client = client if client is not None else open_client(api_key, base_url)
        self.req_cooldown = req_cooldown
        self.batch_cooldown = batch_cooldown
        self.timeout = timeout
        self.max_retry = max_retry
        self.usage = _no_usage()
        self._checkpoint = checkpoint
        self._provider = Provider(self.client)

    def batchs_completion(
        self, messages: Sequence[Any], batch_size: int = 20, **kwargs: Any
    ) -> list[Batch]:
        """Send the messages, wait, and give back their answers.

        Args:
            messages: Any mixture of lists of chat messages, of `{"id": ..., "content": [chat
                messages]}` with an id of one's own, and of plain chat messages `{"role": ...,
                "content": ...}`. Ids are text or integers; what has none gets its index as text.
            batch_size: How many messages a batch has, 1 to 50,000.
            **kwargs: Body fields of all requests: model="gpt-4o-mini", temperature=0, ...

        Returns:
            One `Batch` for each `batch_size` messages, in the order of the list.

        Raises:
            InputError: the call or a message does not fit; nothing was sent.
            CheckpointError: the checkpoint is in use, broken, or of another spec.
            ProviderError: the service refused for good.
            RunTimeoutError: `timeout` passed; the batches go on, and the same call resumes.
        """
        check_values(batch_size=batch_size)
        spec = self._spec(_with_model(kwargs))
        dialect = self._provider.dialect
        dialect.check(endpoint=spec.endpoint, window=_WINDOW)
        given, contents = _read_messages(messages)
        self.setup()
        if not given:
            return []
        answers = run_rows(
            Rows(ids=_ids(given), prompts=contents),
            spec,
            Submission(
                provider=self._provider,
                limits=fitting(Limits(max_requests=batch_size), dialect, spec.endpoint),
                completion_window=_WINDOW,
                poll_interval=max(self.req_cooldown, SHORTEST_POLL),
            ),
            checkpoint_path(self._checkpoint, spec),
            options=Options(max_retries=self.max_retry, timeout=self.timeout),
        )
        price_list = dialect.price_list
        models = unpriced_models(answers.results, spec.model, price_list=price_list)
        warn_of_unknown_prices(models)
        chunks = _chunks(answers, given, batch_size, price_list)
        batchs = [chunk.batch(max_retry=self.max_retry, timeout=self.timeout) for chunk in chunks]
        for batch in batchs:
            self.update_usage(batch)
        return batchs

    def prepare_reqs(self, messages: Sequence[Any], **kwargs: Any) -> list[dict[str, Any]]:
        """The lines that `batchs_completion` would upload for these messages; nothing is sent.

        Takes and raises what that takes and raises for bad input. Returns one request for each
        message, in order; its custom_id names id and body.
        """
        spec = self._spec(_with_model(kwargs))
        given, contents = _read_messages(messages)
        every = pa.array(range(len(given)), pa.int64())
        rows = Rows(ids=_ids(given), prompts=contents)
        requests = render_requests(rows, every, spec, self._provider.dialect)
        return [msgspec.json.decode(line) for chunk in requests for line in chunk.lines]

    def setup(self, **kwargs: Any) -> dict[str, Any]:
        """Begin a new account of usage. Returns the body fields, with the default model."""
        self.usage = _no_usage()
        return _with_model(kwargs)

    def update_usage(self, batch: Batch) -> None:
        """Add a batch's usage to the client's."""
        for category, used in batch.usage.items():
            self.usage[category]["tokens"] += used["tokens"]
            self.usage[category]["price"] = _sum(self.usage[category]["price"], used["price"])

    def print_usage_table(self, digits: int = 8) -> None:
        """Print tokens and price, in dollars with so many digits, of the last call.

        Prices are "unknown" where that of the model is.
        """
        from prettytable import PrettyTable

        table = PrettyTable(["Category", "Tokens", "Price"])
        table.align.update({"Category": "l", "Tokens": "r", "Price": "r"})
        n_tokens = 0
        dollars: float | None = 0.0
        for category, used in self.usage.items():
            tokens, price = used["tokens"], used["price"]
            is_last = category == next(reversed(self.usage))
            table.add_row([category.capitalize(), tokens, _shown(price, digits)], divider=is_last)
            n_tokens, dollars = n_tokens + tokens, _sum(dollars, price)
        table.add_row(["Total", n_tokens, _shown(dollars, digits)])
        print(table)  # noqa: T201 - what it is for

    def _spec(self, body: dict[str, Any]) -> Spec:
        model = body.pop("model")
        check_values(model=model)
        params = body_params(
            body, CHAT_COMPLETIONS, function="batchs_completion", keywords=("batch_size",)
        )
        return Spec(model=model, params=params, account=self._provider.account)


# What goes in: messages -> ids and contents


def _with_model(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": _DEFAULT_MODEL, **fields}


def _read_messages(messages: Sequence[Any]) -> tuple[list[str | int], pa.Array]:
    """The ids as they were given, and the chat messages of each as JSON."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ParameterError(f"messages must be a list, not a {type(messages).__name__}.")
    pairs = [_read_message(message, index) for index, message in enumerate(messages)]
    ids = [id_ for id_, _ in pairs]
    seen: set[str] = set()
    repeated = [id_ for id_ in ids if str(id_) in seen or seen.add(str(id_))]  # type: ignore[func-returns-value]
    if repeated:
        raise RowError(
            f"{len(repeated)} {'message repeats' if len(repeated) == 1 else 'messages repeat'} the "
            "id of an earlier one: "
            f"{', '.join(map(repr, repeated[:_SHOWN]))}{' and more' * (len(repeated) > _SHOWN)}. "
            "Nothing was sent. Give each an id of its own; a message without one has its index."
        )
    return ids, pa.array([chat for _, chat in pairs], pa.large_binary())


def _read_message(message: object, index: int) -> tuple[str | int, bytes]:
    """One entry of the list -> its id, and its chat messages as JSON."""
    place = f"messages[{index}]"
    id_: object = str(index)
    chat: object
    if isinstance(message, Mapping) and "role" in message and "id" not in message:
        chat = [message]
    elif isinstance(message, Mapping) and message.keys() == {"id", "content"}:
        id_, chat = message["id"], message["content"]
    else:
        chat = message
    if isinstance(id_, bool) or not isinstance(id_, str | int):
        raise RowError(f"{place} has the id {id_!r:.60}; ids are text or integers.")
    if not isinstance(chat, list | tuple):
        raise RowError(
            f"{place} is {message!r:.80}. Nothing was sent. Each message is a list of chat "
            'messages, {"id": ..., "content": [chat messages]}, or one chat message '
            '{"role": "user", "content": ...}.'
        )
    return json_value(id_, f"the id of {place}"), encode_messages(chat, place)


def _ids(given: Sequence[str | int]) -> pa.Array:
    return pa.array([str(id_) for id_ in given], pa.string())


# What comes out: shards -> chunks of messages -> batches


@dataclass(slots=True)
class _Chunk:
    """What is known of `batch_size` messages in a row."""

    #: One content for each message, in their order.
    contents: list[dict[str, Any]]
    #: Each message's tokens: of the prompt, and of the completion.
    tokens: list[tuple[int, int]]
    usage: Usage
    #: The provider's last batch, and the path of its input file.
    seen: BatchSeen | None = None
    path: str = ""

    def batch(self, *, max_retry: int, timeout: float | None) -> Batch:
        if self.seen is None:
            raise AssertionError("a run ends when each row has a result")
        answered = [n for n, content in enumerate(self.contents) if content["error"] is None]
        failed = [n for n, content in enumerate(self.contents) if content["error"] is not None]
        return Batch(
            id=self.seen.batch_id,
            status=self.seen.status.value,
            input_file=File(
                id=self.seen.input_file_id,
                path=self.path,
                usage={"prompt_tokens": 0, "completion_tokens": 0},
            ),
            output_file=self._file(self.seen.output_file_id, answered),
            error_file=self._file(self.seen.error_file_id, failed) if failed else None,
            usage=self.usage,
            max_retry=max_retry,
            timeout=timeout,
            in_progress_at=self.seen.in_progress_at or None,
        )

    def _file(self, id_: str | None, numbers: Sequence[int]) -> File:
        return File(
            id=id_,
            usage={
                "prompt_tokens": sum(self.tokens[n][0] for n in numbers),
                "completion_tokens": sum(self.tokens[n][1] for n in numbers),
            },
            contents=[self.contents[n] for n in numbers],
        )


def _chunks(
    answers: Answers, given: Sequence[str | int], batch_size: int, price_list: str | None
) -> list[_Chunk]:
    """The answers to the messages, `batch_size` in each chunk but the last."""
    chunks = [
        _Chunk([{}] * n, [(0, 0)] * n, _no_usage())
        for n in (min(batch_size, len(given) - at) for at in range(0, len(given), batch_size))
    ]
    place_of = {key: place for place, key in enumerate(answers.keys.to_pylist())}
    # In the order of the shards: of a message that was tried twice, the last try counts.
    for number, shard in sorted(answers.checkpoint.shards.items()):
        state = shard.state
        if not isinstance(state, Collected):
            continue
        table = answers.checkpoint.results_of(number)
        found = [place_of.get(key) for key in table["row_key"].to_pylist()]
        places = [place for place in found if place is not None]
        if not places:
            continue
        table = table.filter(pa.array([place is not None for place in found]))
        bodies = _bodies(answers.checkpoint, number, list(state.results.downloads))
        prices = prompt_and_completion_usd(
            table,
            model=answers.checkpoint.model_of(number),
            at=datetime.fromtimestamp(state.batch.created_at or SystemClock().now(), UTC),
            price_list=price_list,
        )
        for place, result, *costs in zip(
            places, table.to_pylist(), *(price.to_pylist() for price in prices), strict=True
        ):
            chunk, n = chunks[place // batch_size], place % batch_size
            chunk.seen = state.batch
            chunk.path = str(answers.checkpoint.input_path(number))
            chunk.contents[n] = _content(
                given[place], result, bodies.get(result["row_key"].hex(), {})
            )
            chunk.tokens[n] = (result["input_tokens"] or 0, result["output_tokens"] or 0)
            for used, tokens, cost in zip(
                chunk.usage.values(), chunk.tokens[n], costs, strict=True
            ):
                used["tokens"] += tokens
                used["price"] = _sum(used["price"], cost)
    return chunks


def _bodies(
    checkpoint: "Checkpoint", number: int, kinds: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """The verbatim answers of a shard; none where its downloads are damaged."""
    try:
        return answer_bodies(
            chain.from_iterable(whole_lines(checkpoint.downloaded(number, kind)) for kind in kinds)
        )
    except CheckpointError:  # the results are there all the same, with text and tokens
        return {}


def _content(id_: str | int, result: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    choices, error = body.get("choices") or None, body.get("error") or None
    if isinstance(error, str):
        error = {"message": error}
    text = result["completion"]
    if choices is None and error is None and text is not None:  # the download is damaged
        message = {"role": "assistant", "content": text}
        reason = result["finish_reason"]
        choices = [{"index": 0, "message": message, "finish_reason": reason}]
    if choices is None and error is None:
        error = {"code": result["error_code"], "message": result["error_message"]}
    return {
        "id": id_,
        "choices": choices if error is None else None,
        "usage": body.get("usage"),
        "error": error,
    }


def _no_usage() -> Usage:
    return {name: {"tokens": 0, "price": 0.0} for name in ("prompt", "completion")}


def _sum(one: float | None, other: float | None) -> float | None:
    """The sum of two prices: unknown if one of them is."""
    return None if one is None or other is None else one + other


def _shown(price: float | None, digits: int) -> str:
    return "unknown" if price is None else f"${price:.{digits}f}"
