"""`complete` and its accessor: one signature, one docstring.

`bf.complete(df, ...)` is the function and the typed way; `df.openai_batch.complete(...)` is the
same function with the frame in front. pandas makes a new accessor at every access, so it holds
nothing but the frame. Heavy libraries are imported when a call needs them.
"""

import asyncio
import atexit
import functools
import inspect
import tempfile
import threading
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from batchframe.errors import ParameterError
from batchframe.frames.calls import answered, estimated, usage_in_frame
from batchframe.frames.questions import (
    EMBEDDINGS,
    MODERATIONS,
    Call,
    Keywords,
    attached,
    completion,
    embedding,
    moderation,
)
from batchframe.frames.sending import read_checkpoint, sent, sent_windows
from batchframe.frames.settings import Columns, Settings
from batchframe.parameters import Column, check_values

if TYPE_CHECKING:
    import openai
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    import pyarrow.dataset as ds
    from pydantic import BaseModel

    from batchframe.core.dialects import Dialect
    from batchframe.core.estimates import Estimate
    from batchframe.core.rates import Prices
    from batchframe.core.shards import Limits
    from batchframe.frames.runs import Run
    from batchframe.frames.usage import Usage

__all__ = [
    "OpenAIBatch",
    "acomplete",
    "attach",
    "checkpoint_of",
    "complete",
    "complete_parquet",
    "embed",
    "estimate",
    "moderate",
    "register",
    "results",
    "submit",
    "usage",
]

# A pyarrow Table goes in and comes out as well, but pyarrow ships no types: in the bound, it would
# take any value for a frame.
FrameT = TypeVar("FrameT", bound="pd.DataFrame | pl.DataFrame")
P = ParamSpec("P")
R = TypeVar("R")


#: A call of each function, as its messages show one.
_EXAMPLES = {
    "complete": '"prompt", "id", model="gpt-4o-mini"',
    "submit": '"prompt", "id", model="gpt-4o-mini"',
    "acomplete": '"prompt", "id", model="gpt-4o-mini"',
    "embed": '"text", "id", model="text-embedding-3-small"',
    "moderate": '"text", "id"',
    "attach": '"runs/a", "prompt", "id"',
    "estimate": '"prompt", "id", model="gpt-4o-mini"',
    "complete_parquet": '"in.parquet", "out.parquet", "prompt", "id", model="gpt-4o-mini"',
}


def _fitting(function: Callable[P, R]) -> Callable[P, R]:
    """The function; a call that does not fit its signature is a ParameterError."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        _check_fit(signature, function.__name__, args, kwargs)
        return function(*args, **kwargs)

    return checked


def _check_fit(
    signature: inspect.Signature, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raise ParameterError for a call that does not fit the function of that name."""
    misfit = _misfit(signature, args, kwargs)
    if misfit:
        example = _EXAMPLES[name]
        calls = f"df.openai_batch.{name}({example}), or batchframe.{name}(df, {example})"
        if not hasattr(OpenAIBatch, name):
            calls = f"batchframe.{name}({example})"
        raise ParameterError(
            f"This call does not fit {name}(): {misfit}. Nothing was sent. "
            f"Call {calls}: all else goes by keyword."
        )


def _misfit(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Why a call does not fit a signature, in words; empty if it fits."""
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError as error:
        return str(error)
    needed = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    lacking = [name for name in needed if name not in given]
    return f"it lacks {', '.join(lacking)}" if lacking else ""


@_fitting
def complete(
    frame: FrameT,
    /,
    prompt_col: Hashable | None = None,
    id_col: Hashable | None = None,
    *,
    model: str | Column,
    template: str | None = None,
    images: Hashable | list[Hashable] | None = None,
    response_format: "type[BaseModel] | Mapping[str, Any] | None" = None,
    system: str | None = None,
    endpoint: str = "/v1/chat/completions",
    output: str = "completion",
    checkpoint: str | Path | None = None,
    dedupe: bool = False,
    max_retries: int = 3,
    retry_failed: bool = False,
    nulls: str = "skip",
    on_error: str = "null",
    max_error_ratio: float | None = None,
    max_cost_usd: float | None = None,
    prices: "Prices | None" = None,
    limits: "Limits | None" = None,
    completion_window: str = "24h",
    poll_interval: float | None = None,
    timeout: float | None = None,
    on_unknown: str = "resend",
    delete_remote: bool = False,
    progress: bool = True,
    details: bool = False,
    client: "openai.OpenAI | None" = None,
    dialect: "str | Dialect | None" = None,
    extra_body: Mapping[str, Any] | None = None,
    **params: Any,
) -> FrameT:
    """Run a column of prompts through the OpenAI Batch API.

    Each row becomes one request. The answers, tokens and costs come back as new columns of the
    same frame: same rows, same order, same index; the frame that was passed is not changed. What
    was paid for is kept in the checkpoint, so the same call again sends nothing, a grown or edited
    frame pays for its new rows only, and a call that was interrupted resumes.

    Args:
        frame: A pandas or Polars DataFrame, or a pyarrow Table.
        prompt_col: The column with the prompts: text, or lists of chat messages ({"role": ...,
            "content": ...}). Null and empty prompts are not sent.
        id_col: The column with the ids: integers, text, UUIDs or dates, unique, without nulls. None
            numbers the rows that have the same prompt, so that they resume all the same.
        model: The model that answers, such as "gpt-4o-mini"; or `bf.col("model")`, for a column
            that names each row's own.
        template: Instead of prompt_col: a text with column names in braces, such as "Summarise
            {title}: {body}". A row where one of them is null is not sent.
        images: A column of images, or a list of such columns: URLs, paths of files, or bytes, of
            PNG, JPEG, GIF or WebP. Files and bytes are sent along. Null is no image.
        response_format: What answers look like: a pydantic model, a JSON schema of an object, or
            {"type": "json_object"}. With a schema the answers come back as values of its types: a
            Struct column in Polars, and its JSON as `completion_text`; in pandas the JSON as
            `completion`, and one column for each field. Those that do not fit are `invalid`.
        system: One system message for all rows.
        endpoint: What answers: "/v1/chat/completions", "/v1/responses", or "/v1/completions" of
            old, which takes text alone.
        output: Names the new columns, so that several calls live side by side.
        checkpoint: The directory that keeps shards and results, such as "~/runs/summaries"; None
            finds one under `.batchframe/` by model, parameters and account.
        dedupe: Send equal requests once, whatever their ids, also those of earlier calls. All of
            their rows have the answer; the first of them its cost, the others 0.
        max_retries: Further rounds for rows whose error may pass: overload, expiry.
        retry_failed: Try again also rows of earlier calls that failed for good, were cancelled,
            or are missing.
        nulls: "skip" rows without a prompt, or "raise" an error for them.
        on_error: "null" gives rows without an answer with their status; "raise" an UnansweredError
            for them, once all that can be answered is, and is kept.
        max_error_ratio: The part of the rows, from 0 to 1, that may end without an answer, earlier
            calls included. Where it is more, ErrorRatioExceededError ends the call. As soon as that
            is certain, or holds for 1,000 rows or more that have ended, no further batch is sent;
            live ones go on, and the next call collects them first. Rows that are tried again have
            not ended.
        max_cost_usd: The most that these rows may cost, in US dollars, earlier calls with this
            checkpoint included. A batch that could exceed it is not sent; what is live then is
            collected, and BudgetExceededError ends the call. Answers need a limit of tokens; each
            byte of a request counts as a token, and an image as the most that one takes. Refused
            with what has no bound: files, audio, tools that the service runs, earlier responses.
        prices: What you pay, where that is not the published price of batches: `bf.Rates` by the
            names of models, as they are asked for or as they answer.
        limits: How large batches may be, and how many may be live at once.
        completion_window: The window within which the provider promises to answer.
        poll_interval: Seconds between looks at a batch, from 0.01; None adapts to its age.
        timeout: Seconds to wait; None waits as long as it takes.
        on_unknown: What to do when the creation of a batch got no answer and no batch is found in
            `Limits.reconcile_seconds` of looking for it: "resend" its rows, or "raise" an error.
        delete_remote: Delete our files at the provider once their results are in the checkpoint.
        progress: Show progress bars where there is a terminal or a notebook.
        details: Add columns with finish reason, model, request id and batch id.
        client: An `openai.OpenAI` client; None makes one from the environment.
        dialect: How the client's service speaks: the name of one, such as "azure" or "generic", or
            a `bf.Dialect`. None: as its address says.
        extra_body: Body fields of a provider that the SDK has no name for, such as {"top_k": 40};
            they are sent as they are, and are part of what finds a checkpoint.
        **params: Further body fields, as the SDK names them: temperature=0, seed=42, ... For each
            row's own, a column: max_completion_tokens=bf.col("n_max").

    Returns:
        A new frame of the same type with the columns, each one entry per row, in the frame's order:
        `completion` (text), `completion_status`, `completion_error`, `completion_input_tokens`,
        `completion_cached_tokens`, `completion_output_tokens`, `completion_reasoning_tokens`
        (integers) and `completion_cost_usd` (float; null where the model's price is unknown).

    Raises:
        InputError: the call or the frame does not fit; nothing was sent.
        ApiKeyError: there is no usable key; nothing was sent.
        CheckpointError: the checkpoint is in use, broken, or of another spec.
        BudgetExceededError: `max_cost_usd` has no room for more rows.
        ErrorRatioExceededError: more rows than `max_error_ratio` have no answer.
        UnansweredError: rows have no answer, and `on_error` is "raise".
        ProviderError: the service refused for good.
        RunTimeoutError: `timeout` passed; the batches go on, and the same call resumes.

    Example:
        >>> import batchframe as bf, pandas as pd
        >>> df = pd.DataFrame({"id": [1, 2], "prompt": ["2 + 2?", "3 + 3?"]})
        >>> with bf.emulator.LocalServer() as server:
        ...     out = df.openai_batch.complete(
        ...         "prompt", "id", model="gpt-4o-mini", client=server.client(), progress=False
        ...     )
        >>> list(out["completion"])
        ['echo: 2 + 2?', 'echo: 3 + 3?']
    """
    call, settings = _asked_by(locals(), _keywords(complete))
    return _sent(frame, call, id_col, settings)


def submit(frame: "pd.DataFrame | pl.DataFrame", /, *args: Any, **keywords: Any) -> "Run":
    """Begin what `complete` does, and give back a handle of it.

    Returns when all that fits the limits is at the provider; a thread goes on submitting and
    collecting while this process lives. Afterwards the batches go on at the provider, and
    `batchframe.open_run` takes up the rest, in any process.

    Args:
        frame: As for `complete`. What is done to it later changes nothing of the run.
        *args: prompt_col and id_col, as for `complete`.
        **keywords: As for `complete`. `timeout` ends the work that goes on, after so many seconds.

    Returns:
        The handle: status(), wait(), result(), partial(), cancel(), usage(), report().

    Raises:
        As `complete`, as far as it is known by then.

    Example:
        >>> import batchframe as bf, pandas as pd
        >>> df = pd.DataFrame({"id": [1, 2], "prompt": ["2 + 2?", "3 + 3?"]})
        >>> with bf.emulator.LocalServer() as server:
        ...     run = df.openai_batch.submit(
        ...         "prompt", "id", model="gpt-4o-mini", client=server.client(), progress=False
        ...     )
        ...     out = run.result()
        >>> list(out["completion"])
        ['echo: 2 + 2?', 'echo: 3 + 3?']
    """
    return _submitted("submit", frame, args, keywords)


def checkpoint_of(prompt_col: str | None, id_col: str | None, keywords: Mapping[str, Any]) -> Path:
    """The directory that a call of `complete` with these arguments keeps its results in.

    Raises:
        InputError: the call does not fit.
        ApiKeyError: there is no usable key.
    """
    from batchframe.frames.sending import how

    given = _bound("complete", (None, prompt_col, id_col), keywords)
    call, settings = _asked_by(given, _keywords(complete))
    return how(settings, call.spec)[2]


async def acomplete(frame: FrameT, /, *args: Any, **keywords: Any) -> FrameT:
    """Do what `complete` does, while the event loop goes on.

    When the task is cancelled nothing more is sent, as after Ctrl-C; the batches go on, and the
    same call resumes.

    Args:
        frame: As for `complete`.
        *args: prompt_col and id_col, as for `complete`.
        **keywords: As for `complete`.

    Returns:
        What `complete` returns.

    Raises:
        As `complete`.

    Example:
        >>> import asyncio, batchframe as bf, pandas as pd
        >>> df = pd.DataFrame({"id": [1], "prompt": ["2 + 2?"]})
        >>> with bf.emulator.LocalServer() as server:
        ...     call = bf.acomplete(
        ...         df, "prompt", "id", model="gpt-4o-mini", client=server.client(), progress=False
        ...     )
        ...     out = asyncio.run(call)
        >>> list(out["completion"])
        ['echo: 2 + 2?']
    """
    left = threading.Event()
    try:
        run = await asyncio.to_thread(_submitted, "acomplete", frame, args, keywords, left)
        await run.wait_async()
    except asyncio.CancelledError:
        left.set()
        raise
    return cast("FrameT", await asyncio.to_thread(run.result))


def _submitted(
    name: str,
    frame: Any,
    args: tuple[Any, ...],
    keywords: Mapping[str, Any],
    left: threading.Event | None = None,
) -> "Run":
    """The handle of a call of `complete` that goes by another name."""
    from batchframe.frames.runs import begun

    given = _bound(name, (frame, *args), keywords)
    call, settings = _asked_by(given, Keywords(name, _keywords(complete).names))
    return begun(frame, call, given["id_col"], settings, left)


def _bound(name: str, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `complete` by their names, with its defaults; `name` is what was called."""
    signature = inspect.signature(complete)
    _check_fit(signature, name, args, keywords)
    bound = signature.bind(*args, **keywords)
    bound.apply_defaults()
    return bound.arguments


def _asked_by(given: Mapping[str, Any], keywords: Keywords) -> tuple[Call, Settings]:
    """What the arguments of `complete` ask for."""
    settings = Settings.of(given)
    call = completion(
        given["prompt_col"],
        model=given["model"],
        template=given["template"],
        images=given["images"],
        format_=given["response_format"],
        system=given["system"],
        endpoint=given["endpoint"],
        extra_body=given["extra_body"],
        params=given["params"],
        keywords=keywords,
    )
    return call, settings


@_fitting
def embed(
    frame: FrameT,
    /,
    text_col: Hashable,
    id_col: Hashable | None = None,
    *,
    model: str | Column,
    dimensions: int | None = None,
    output: str = "embedding",
    checkpoint: str | Path | None = None,
    dedupe: bool = False,
    max_retries: int = 3,
    retry_failed: bool = False,
    nulls: str = "skip",
    on_error: str = "null",
    max_error_ratio: float | None = None,
    max_cost_usd: float | None = None,
    prices: "Prices | None" = None,
    limits: "Limits | None" = None,
    completion_window: str = "24h",
    poll_interval: float | None = None,
    timeout: float | None = None,
    on_unknown: str = "resend",
    delete_remote: bool = False,
    progress: bool = True,
    details: bool = False,
    client: "openai.OpenAI | None" = None,
    dialect: "str | Dialect | None" = None,
    extra_body: Mapping[str, Any] | None = None,
    **params: Any,
) -> FrameT:
    """Embed a column of texts through the OpenAI Batch API.

    All that is said of `complete` holds here: checkpoints, resuming, costs. Each text is a request
    of its own, so that each row has its own tokens, cost and error; several in one request would
    save nothing, for the limit of 50,000 a batch counts texts (OpenAI, Batch guide, 2026-08).

    Args:
        frame: A pandas or Polars DataFrame, or a pyarrow Table.
        text_col: The column with the texts. Null and empty texts are not sent.
        id_col: The column with the ids, as for `complete`; None tells rows apart by their texts.
        model: The model that embeds, such as "text-embedding-3-small".
        dimensions: How long each vector is to be, where the model can shorten them; the column then
            has vectors of that fixed size. None: as long as the model makes them.
        output: Names the new columns.
        checkpoint: As for `complete`.
        dedupe: As for `complete`.
        max_retries: As for `complete`.
        retry_failed: As for `complete`.
        nulls: As for `complete`.
        on_error: As for `complete`.
        max_error_ratio: As for `complete`.
        max_cost_usd: As for `complete`.
        prices: As for `complete`.
        limits: As for `complete`.
        completion_window: As for `complete`.
        poll_interval: As for `complete`.
        timeout: As for `complete`.
        on_unknown: As for `complete`.
        delete_remote: As for `complete`.
        progress: As for `complete`.
        details: As for `complete`.
        client: As for `complete`.
        dialect: As for `complete`.
        extra_body: As for `complete`.
        **params: Further body fields, as the SDK names them: user="..."

    Returns:
        A new frame of the same type with the columns, each one entry per row, in the frame's order:
        `embedding` (32-bit floats: a Polars Array, or List where `dimensions` is None; the same in
        pyarrow; in pandas NumPy arrays, which parquet keeps), and the further columns of
        `complete`. A vector of another length than `dimensions` is `invalid`.

    Raises:
        As `complete`.

    Example:
        >>> import batchframe as bf, polars as pl
        >>> df = pl.DataFrame({"id": [1, 2], "text": ["tree", "house"]})
        >>> with bf.emulator.LocalServer() as server:
        ...     out = df.openai_batch.embed(
        ...         "text",
        ...         "id",
        ...         model="text-embedding-3-small",
        ...         dimensions=4,
        ...         client=server.client(),
        ...         progress=False,
        ...     )
        >>> out["embedding"].dtype
        Array(Float32, shape=(4,))
    """
    settings = Settings.of(locals())
    call = embedding(
        text_col,
        model=model,
        extra_body=extra_body,
        params={**params, "dimensions": dimensions},
        keywords=_keywords(embed),
    )
    return _sent(frame, call, id_col, settings)


@_fitting
def moderate(
    frame: FrameT,
    /,
    text_col: Hashable,
    id_col: Hashable | None = None,
    *,
    model: str | Column = "omni-moderation-latest",
    output: str = "moderation",
    checkpoint: str | Path | None = None,
    dedupe: bool = False,
    max_retries: int = 3,
    retry_failed: bool = False,
    nulls: str = "skip",
    on_error: str = "null",
    max_error_ratio: float | None = None,
    max_cost_usd: float | None = None,
    prices: "Prices | None" = None,
    limits: "Limits | None" = None,
    completion_window: str = "24h",
    poll_interval: float | None = None,
    timeout: float | None = None,
    on_unknown: str = "resend",
    delete_remote: bool = False,
    progress: bool = True,
    details: bool = False,
    client: "openai.OpenAI | None" = None,
    dialect: "str | Dialect | None" = None,
    extra_body: Mapping[str, Any] | None = None,
    **params: Any,
) -> FrameT:
    """Have a column of texts judged by OpenAI's moderation models, which cost nothing.

    All that is said of `complete` holds here: checkpoints, resuming, errors.

    Args:
        frame: A pandas or Polars DataFrame, or a pyarrow Table.
        text_col: The column with the texts. Null and empty texts are not sent.
        id_col: The column with the ids, as for `complete`; None tells rows apart by their texts.
        model: The model that judges.
        output: Names the new columns.
        checkpoint: As for `complete`.
        dedupe: As for `complete`.
        max_retries: As for `complete`.
        retry_failed: As for `complete`.
        nulls: As for `complete`.
        on_error: As for `complete`.
        max_error_ratio: As for `complete`.
        max_cost_usd: As for `complete`.
        prices: As for `complete`.
        limits: As for `complete`.
        completion_window: As for `complete`.
        poll_interval: As for `complete`.
        timeout: As for `complete`.
        on_unknown: As for `complete`.
        delete_remote: As for `complete`.
        progress: As for `complete`.
        details: As for `complete`.
        client: As for `complete`.
        dialect: As for `complete`.
        extra_body: As for `complete`.
        **params: Further body fields, as the SDK names them.

    Returns:
        A new frame of the same type with the columns, each one entry per row, in the frame's order:
        `moderation_flagged` and one column for each category, such as
        `moderation_harassment_threatening` (truth values; null where there is no verdict, or where
        the model does not know the category), and the further columns of `complete`.

    Raises:
        As `complete`.

    Example:
        >>> import batchframe as bf, polars as pl
        >>> df = pl.DataFrame({"id": [1, 2], "text": ["a walk", "violence"]})
        >>> with bf.emulator.LocalServer() as server:
        ...     out = df.openai_batch.moderate(
        ...         "text", "id", client=server.client(), progress=False
        ...     )
        >>> out["moderation_flagged"].to_list()
        [False, True]
    """
    settings = Settings.of(locals())
    call = moderation(
        text_col,
        model=model,
        extra_body=extra_body,
        params=params,
        keywords=_keywords(moderate),
    )
    return _sent(frame, call, id_col, settings)


@_fitting
def attach(
    frame: FrameT,
    /,
    checkpoint: str | Path,
    prompt_col: Hashable | None = None,
    id_col: Hashable | None = None,
    *,
    template: str | None = None,
    images: Hashable | list[Hashable] | None = None,
    model: "str | Column | None" = None,
    dedupe: bool = False,
    prices: "Prices | None" = None,
    output: str = "completion",
    details: bool = False,
    **params: Any,
) -> FrameT:
    """Put what a checkpoint holds onto a frame that has its rows; nothing is sent.

    Rows are found by their ids and prompts, in whatever frame, library and order they stand. The
    checkpoint knows what was asked for: structured answers, vectors and verdicts have their types.
    It may be in use by another process.

    Args:
        frame: A pandas or Polars DataFrame, or a pyarrow Table.
        checkpoint: The directory, as it was given to `complete`, `embed` or `moderate`.
        prompt_col: The column with the prompts or texts, as it was given there.
        id_col: The column with the ids, likewise.
        template: The template, likewise.
        images: The columns of images, likewise.
        model: The column of the models, likewise: `bf.col("model")`. The checkpoint knows of a
            model that is the same for all rows.
        dedupe: Rows whose own request is not there take the answer of an equal one.
        prices: What you pay, as for `complete`, instead of the prices that the results have.
        output: Names the new columns.
        details: As for `complete`.
        **params: The columns of further body fields, likewise: max_completion_tokens=bf.col("n").
            The checkpoint knows of those that are the same for all rows.

    Returns:
        A new frame of the same type with the columns that the call made or will make, each one
        entry per row, in the frame's order. Rows without a result yet, or that the checkpoint does
        not know, have no status.

    Raises:
        InputError: the call or the frame does not fit.
        CheckpointError: there is no such checkpoint, or it is broken.

    Example:
        >>> import batchframe as bf, polars as pl, tempfile
        >>> df = pl.DataFrame({"id": [1, 2], "prompt": ["2 + 2?", "3 + 3?"]})
        >>> runs = tempfile.mkdtemp()
        >>> with bf.emulator.LocalServer() as server:
        ...     _ = df.head(1).openai_batch.complete(
        ...         "prompt",
        ...         "id",
        ...         model="gpt-4o-mini",
        ...         checkpoint=runs,
        ...         client=server.client(),
        ...         progress=False,
        ...     )
        >>> df.openai_batch.attach(runs, "prompt", "id")["completion"].to_list()
        ['echo: 2 + 2?', None]
    """
    check_values(checkpoint=checkpoint, dedupe=dedupe, output=output, prices=prices)
    check_values(details=details)
    from batchframe.answers import find_rows

    there = read_checkpoint(checkpoint)
    call = attached(
        prompt_col,
        there,
        model=model,
        template=template,
        images=images,
        params=params,
        keywords=_keywords(attach),
    )
    return cast(
        "FrameT",
        answered(
            frame,
            call,
            id_col,
            Columns(
                output=output,
                details=details,
                nulls="skip",
                on_error="null",
                max_error_ratio=None,
            ),
            lambda rows: (*find_rows(rows, there, dedupe=dedupe, prices=prices)[:2], None),
        ),
    )


@_fitting
def estimate(
    frame: "pd.DataFrame | pl.DataFrame",
    /,
    prompt_col: Hashable | None = None,
    id_col: Hashable | None = None,
    *,
    model: "str | Column",
    template: str | None = None,
    images: Hashable | list[Hashable] | None = None,
    response_format: "type[BaseModel] | Mapping[str, Any] | None" = None,
    system: str | None = None,
    endpoint: str = "/v1/chat/completions",
    checkpoint: str | Path | None = None,
    dedupe: bool = False,
    retry_failed: bool = False,
    nulls: str = "skip",
    prices: "Prices | None" = None,
    limits: "Limits | None" = None,
    completion_window: str = "24h",
    client: "openai.OpenAI | None" = None,
    dialect: "str | Dialect | None" = None,
    extra_body: Mapping[str, Any] | None = None,
    **params: Any,
) -> "Estimate":
    """Say what a call would send and cost; nothing is sent, and no key is needed.

    It takes a call of `complete` as it stands: its other keywords may stay, and change nothing.

    Args:
        frame: A pandas or Polars DataFrame, or a pyarrow Table.
        prompt_col: As for `complete`; of embeddings and moderations, the column of the texts.
        id_col: As for `complete`.
        model: As for `complete`.
        template: As for `complete`.
        images: As for `complete`.
        response_format: As for `complete`.
        system: As for `complete`.
        endpoint: As for `complete`; "/v1/embeddings" and "/v1/moderations" stand for `embed` and
            `moderate`.
        checkpoint: As for `complete`; what is paid there is not counted again.
        dedupe: As for `complete`.
        retry_failed: As for `complete`.
        nulls: As for `complete`.
        prices: As for `complete`.
        limits: As for `complete`.
        completion_window: As for `complete`.
        client: As for `complete`; only its address, organization and project are read.
        dialect: As for `complete`.
        extra_body: As for `complete`.
        **params: As for `complete`.

    Returns:
        Rows, requests, batches, bytes, tokens and dollars, as numbers and ranges. The tokens of
        prompts are taken from the rows that the checkpoint has, or else counted in a sample, where
        the extra `tokens` is installed and knows the model, or else bounded by their bytes. Those
        of answers have no upper bound unless max_completion_tokens (max_output_tokens, max_tokens)
        limits them, or earlier rows tell their length.

    Raises:
        InputError: the call or the frame does not fit.
        CheckpointError: the checkpoint is broken, or of another spec.

    Example:
        >>> import batchframe as bf, polars as pl
        >>> df = pl.DataFrame({"id": [1, 2, 3], "prompt": ["2 + 2?", "3 + 3?", None]})
        >>> found = bf.estimate(df, "prompt", "id", model="gpt-4o-mini", max_completion_tokens=10)
        >>> found.n_requests, found.n_skipped, found.output_tokens.high
        (2, 1, 20)
    """
    keywords = _keywords(estimate)
    fields = {name: value for name, value in params.items() if name not in _WITHOUT_EFFECT}
    if endpoint in {EMBEDDINGS, MODERATIONS}:
        build = embedding if endpoint == EMBEDDINGS else moderation
        call = build(
            prompt_col, model=model, extra_body=extra_body, params=fields, keywords=keywords
        )
    else:
        call = completion(
            prompt_col,
            model=model,
            template=template,
            images=images,
            format_=response_format,
            system=system,
            endpoint=endpoint,
            extra_body=extra_body,
            params=fields,
            keywords=keywords,
        )
    return estimated(
        frame,
        call,
        id_col,
        checkpoint=checkpoint,
        dedupe=dedupe,
        retry_failed=retry_failed,
        nulls=nulls,
        prices=prices,
        limits=limits,
        completion_window=completion_window,
        client=client,
        dialect=dialect,
    )


@_fitting
def complete_parquet(
    source: "str | Path | list[str | Path] | ds.Dataset",
    target: str | Path,
    prompt_col: str | None = None,
    id_col: str | None = None,
    *,
    model: "str | Column",
    template: str | None = None,
    images: Hashable | list[Hashable] | None = None,
    response_format: "type[BaseModel] | Mapping[str, Any] | None" = None,
    system: str | None = None,
    endpoint: str = "/v1/chat/completions",
    output: str = "completion",
    checkpoint: str | Path | None = None,
    max_retries: int = 3,
    retry_failed: bool = False,
    nulls: str = "skip",
    on_error: str = "null",
    max_error_ratio: float | None = None,
    prices: "Prices | None" = None,
    limits: "Limits | None" = None,
    completion_window: str = "24h",
    poll_interval: float | None = None,
    timeout: float | None = None,
    on_unknown: str = "resend",
    delete_remote: bool = False,
    progress: bool = True,
    details: bool = False,
    client: "openai.OpenAI | None" = None,
    dialect: "str | Dialect | None" = None,
    extra_body: Mapping[str, Any] | None = None,
    **params: Any,
) -> Path:
    """Run a column of parquet files through the Batch API, and write parquet; in bounded memory.

    All that is said of `complete` holds here: checkpoints, resuming, costs. The rows are read some
    at a time, and never held together; only their ids are.

    Args:
        source: A parquet file, a directory of them, a glob such as "data/*.parquet", or a list of
            these; or a pyarrow Dataset of parquet files, without a filter. Files are read in the
            order of their names, and have the same columns. Of a directory, names that begin with
            a dot or an underscore are left out.
        target: The file that is written. It appears, or is replaced, when all of it is there.
        prompt_col: As for `complete`.
        id_col: The column with the ids, as for `complete`; unique over all files, and never None.
        model: As for `complete`.
        template: As for `complete`.
        images: As for `complete`.
        response_format: As for `complete`; structured answers are a Struct, and its JSON as
            `completion_text`.
        system: As for `complete`.
        endpoint: As for `complete`.
        output: As for `complete`.
        checkpoint: As for `complete`.
        max_retries: As for `complete`.
        retry_failed: As for `complete`.
        nulls: As for `complete`.
        on_error: As for `complete`; an error leaves the target as it was.
        max_error_ratio: As for `complete`.
        prices: As for `complete`.
        limits: As for `complete`.
        completion_window: As for `complete`.
        poll_interval: As for `complete`.
        timeout: As for `complete`.
        on_unknown: As for `complete`.
        delete_remote: As for `complete`.
        progress: As for `complete`.
        details: As for `complete`.
        client: As for `complete`.
        dialect: As for `complete`.
        extra_body: As for `complete`.
        **params: As for `complete`.

    Returns:
        The target's path. It has the rows of the source in their order, all of their columns and
        the metadata, and the new columns of `complete`.

    Raises:
        As `complete`.

    Example:
        >>> import batchframe as bf, polars as pl, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> df = pl.DataFrame({"id": [1, 2], "prompt": ["2 + 2?", "3 + 3?"]})
        >>> df.write_parquet(f"{folder}/questions.parquet")
        >>> with bf.emulator.LocalServer() as server:
        ...     out = bf.complete_parquet(
        ...         f"{folder}/questions.parquet",
        ...         f"{folder}/answers.parquet",
        ...         "prompt",
        ...         "id",
        ...         model="gpt-4o-mini",
        ...         client=server.client(),
        ...         progress=False,
        ...     )
        >>> pl.read_parquet(out)["completion"].to_list()
        ['echo: 2 + 2?', 'echo: 3 + 3?']
    """
    settings = Settings.of(locals(), dedupe=False, max_cost_usd=None)
    if id_col is None:
        raise ParameterError(
            "complete_parquet() needs an id_col: rows that are never together cannot be told apart "
            "by their prompts. Nothing was sent. lf.with_row_index('id') numbers those of a "
            "LazyFrame."
        )
    check_values(target=target)
    call = completion(
        prompt_col,
        model=model,
        template=template,
        images=images,
        format_=response_format,
        system=system,
        endpoint=endpoint,
        extra_body=extra_body,
        params=params,
        keywords=_keywords(complete_parquet),
    )
    from batchframe.frames.files import write_answers
    from batchframe.frames.sources import Source

    path = Path(target).expanduser()
    send = functools.partial(sent_windows, settings=settings, spec=call.spec)
    write_answers(Source(source, path), path, call, id_col, settings, send, prices=prices)
    return path


#: What `complete` and its sisters take, and an estimate does not depend on.
_WITHOUT_EFFECT = frozenset(
    {"output", "max_retries", "max_cost_usd", "poll_interval", "timeout", "on_unknown"}
    | {"delete_remote", "progress", "details", "on_error", "max_error_ratio"}
)


def results(checkpoint: str | Path) -> "pa.Table":
    """All that a checkpoint holds, as a plain table; nothing is sent.

    Args:
        checkpoint: The directory, as it was given to `complete`, `embed` or `moderate`.

    Returns:
        One row for each request with a result, in the order of the batches: `id` (as text),
        `status`, `completion` (the answer as it came), `error_code`, `error_message`, the tokens,
        `cost_usd`, `http_status`, `finish_reason`, `model`, `request_id` and `batch_id`. Of a row
        that was tried again the last try stands there, with the tokens and the cost of all.

    Raises:
        CheckpointError: there is no such checkpoint, or it is broken.

    Example:
        >>> import batchframe as bf, polars as pl, tempfile
        >>> df = pl.DataFrame({"id": [1, 2], "prompt": ["2 + 2?", "3 + 3?"]})
        >>> runs = tempfile.mkdtemp()
        >>> with bf.emulator.LocalServer() as server:
        ...     _ = df.openai_batch.complete(
        ...         "prompt",
        ...         "id",
        ...         model="gpt-4o-mini",
        ...         checkpoint=runs,
        ...         client=server.client(),
        ...         progress=False,
        ...     )
        >>> pl.from_arrow(bf.results(runs)).select("id", "completion").rows()
        [('1', 'echo: 2 + 2?'), ('2', 'echo: 3 + 3?')]
    """
    check_values(checkpoint=checkpoint)
    from batchframe.core.retries import latest

    return latest(read_checkpoint(checkpoint).results()).drop_columns("row_key")


def usage(
    source: "pd.DataFrame | pl.DataFrame | str | Path",
    *,
    output: str = "completion",
    model: str | None = None,
    prices: "Prices | None" = None,
    digits: int = 6,
) -> "Usage":
    """Tokens and dollars by model and category, of a checkpoint or of a frame; nothing is sent.

    Args:
        source: The directory of a checkpoint: all that was billed there, tries that failed
            included. Or a frame that came back: what its rows say; rows that share an answer each
            show its tokens.
        output: Of a frame: the name of its columns, as the call had it.
        model: Of a frame without `details=True`: the model that answered. None: its tokens are
            priced as a whole only.
        prices: What you pay, as for `complete`.
        digits: Digits of dollars in print.

    Returns:
        A table that prints in terminals and notebooks, with `cost_usd`, `saved_usd` against the
        standard rates, `differences` from what the provider says of whole batches, and the frames
        `to_pandas()` and `to_polars()`: `model`, `category` ("prompt" and its part "cached",
        "completion" and its part "reasoning", "total"), `tokens`, `cost_usd`; and for totals
        `requests` and `standard_usd`. Dollars are null where a price is unknown.

    Raises:
        ColumnError: the frame has no such columns.
        CheckpointError: there is no such checkpoint, or it is broken.

    Example:
        >>> import batchframe as bf, polars as pl, tempfile
        >>> df = pl.DataFrame({"id": [1, 2], "prompt": ["2 + 2?", "3 + 3?"]})
        >>> runs = tempfile.mkdtemp()
        >>> with bf.emulator.LocalServer() as server:
        ...     _ = df.openai_batch.complete(
        ...         "prompt",
        ...         "id",
        ...         model="gpt-4o-mini",
        ...         checkpoint=runs,
        ...         client=server.client(),
        ...         progress=False,
        ...     )
        >>> print(bf.usage(runs))
        +-------------+------------+--------+-----------+
        | Model       | Category   | Tokens |     Price |
        +-------------+------------+--------+-----------+
        | gpt-4o-mini | Prompt     |     22 | $0.000002 |
        |             | Completion |     12 | $0.000004 |
        |             | Total      |     34 | $0.000005 |
        +-------------+------------+--------+-----------+
        2 requests, $0.000005; $0.000005 saved by batches
    """
    check_values(output=output, prices=prices, digits=digits)
    if isinstance(source, str | Path):
        from batchframe.frames.usage import Usage
        from batchframe.plans import usage_in

        table, differences = usage_in(read_checkpoint(source), prices)
        return Usage(table=table, differences=differences, digits=digits)
    return usage_in_frame(source, output=output, model=model, prices=prices, digits=digits)


def _sent(frame: FrameT, call: Call, id_col: Hashable | None, settings: Settings) -> FrameT:
    """The frame with the answers of the provider."""
    answer = functools.partial(sent, settings=settings, spec=call.spec)
    return cast("FrameT", answered(frame, call, id_col, settings, answer))


def _keywords(function: Callable[..., Any]) -> Keywords:
    """The function's own keywords, which a misspelt one may have meant."""
    names = inspect.signature(function).parameters.keys() - {"frame", "params"}
    return Keywords(function.__name__, names)


def _method(
    function: Callable[Concatenate[Any, P], Any],
) -> Callable[Concatenate["OpenAIBatch", P], Any]:
    """The function with the accessor's frame as its first argument."""

    @functools.wraps(function)
    def method(self: "OpenAIBatch", /, *args: P.args, **kwargs: P.kwargs) -> Any:
        return function(self._frame, *args, **kwargs)

    signature = inspect.signature(function)
    frame, *others = signature.parameters.values()
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[frame.replace(name="self", annotation=inspect.Parameter.empty), *others]
    )
    return cast("Callable[Concatenate[OpenAIBatch, P], Any]", method)


class OpenAIBatch:
    """`df.openai_batch`: the Batch API on the columns of this frame."""

    def __init__(self, frame: Any) -> None:
        """Take the frame; nothing is done with it before a method is called."""
        self._frame = frame

    complete = _method(complete)
    submit = _method(submit)
    acomplete = _method(acomplete)
    embed = _method(embed)
    moderate = _method(moderate)
    attach = _method(attach)
    estimate = _method(estimate)


class LazyOpenAIBatch:
    """`lf.openai_batch`: the Batch API on the columns of a Polars LazyFrame, in bounded memory."""

    def __init__(self, frame: "pl.LazyFrame") -> None:
        """Take the frame; its query does not run before a method is called."""
        self._frame = frame

    def complete(
        self, prompt_col: str | None = None, id_col: str | None = None, **keywords: Any
    ) -> "pl.LazyFrame":
        """Run the query once, send its rows, wait, and give back a LazyFrame of the answers.

        Rows and answers are in a parquet file in the folder for temporary files (TMPDIR) until the
        process ends; so what is made of them runs neither the query nor the batches again. To keep
        them use `sink_parquet`, or the checkpoint, from which the same call again takes what is
        paid.

        Args:
            prompt_col: As for `complete`.
            id_col: The column with the ids, as for `complete`; unique, and never None.
            **keywords: As for `complete_parquet`.

        Returns:
            The rows of the query in its order, all of their columns, and the new ones of
            `complete`.

        Raises:
            As `complete`.

        Example:
            >>> import batchframe as bf, polars as pl
            >>> lf = pl.LazyFrame({"id": [1, 2], "prompt": ["2 + 2?", "3 + 3?"]})
            >>> with bf.emulator.LocalServer() as server:
            ...     out = lf.openai_batch.complete(
            ...         "prompt", "id", model="gpt-4o-mini", client=server.client(), progress=False
            ...     )
            >>> out.select("completion").collect().to_series().to_list()
            ['echo: 2 + 2?', 'echo: 3 + 3?']
        """
        from batchframe.frames import polars

        folder = tempfile.TemporaryDirectory(prefix="batchframe-")
        try:
            path = self.sink_parquet(
                Path(folder.name, "answers.parquet"), prompt_col, id_col, **keywords
            )
            answers = polars.scan(path, self._frame)
        except BaseException:
            folder.cleanup()
            raise
        atexit.register(folder.cleanup)
        return answers

    def sink_parquet(
        self,
        target: str | Path,
        prompt_col: str | None = None,
        id_col: str | None = None,
        **keywords: Any,
    ) -> Path:
        """Run the query once, send its rows, wait, and write them with their answers.

        The rows are kept in the folder for temporary files (TMPDIR) meanwhile.

        Args:
            target: The parquet file, as for `complete_parquet`.
            prompt_col: As for `complete`.
            id_col: As for `complete_parquet`.
            **keywords: As for `complete_parquet`.

        Returns:
            The target's path.

        Raises:
            As `complete_parquet`.
        """
        from batchframe.frames import polars
        from batchframe.frames.files import check_target

        check_values(target=target)
        check_target(Path(target).expanduser())
        with tempfile.TemporaryDirectory(prefix="batchframe-") as folder:
            source, nothing = Path(folder, "rows.parquet"), Path(folder, "none.parquet")
            # So that the query, which may take long, does not run for a call that does not fit.
            polars.sink_empty(self._frame, nothing)
            complete_parquet(nothing, Path(folder, "out.parquet"), prompt_col, id_col, **keywords)
            polars.sink(self._frame, source)
            return complete_parquet(source, target, prompt_col, id_col, **keywords)


def register(library: Any) -> None:
    """Give the frames of an imported pandas or Polars the accessor `openai_batch`."""
    if hasattr(library.DataFrame, "openai_batch"):  # a notebook that reloads modules
        return
    if library.__name__ == "pandas":
        library.api.extensions.register_dataframe_accessor("openai_batch")(OpenAIBatch)
    else:
        library.api.register_dataframe_namespace("openai_batch")(OpenAIBatch)
        library.api.register_lazyframe_namespace("openai_batch")(LazyOpenAIBatch)
