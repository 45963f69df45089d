"""`complete` and its accessor: one signature, one docstring.

`bf.complete(df, ...)` is the function and the typed way; `df.openai_batch.complete(...)` is the
same function with the frame in front. pandas makes a new accessor at every access, so it holds
nothing but the frame. Heavy libraries are imported when a call needs them.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, cast

from batchframe.errors import ParameterError
from batchframe.parameters import (
    Column,
    body_params,
    check_client,
    check_values,
    checkpoint_path,
    own_fields,
    sent_structure,
)
from batchframe.parameters import response_format as read_response_format

if TYPE_CHECKING:
    import openai
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from pydantic import BaseModel

    from batchframe.checkpoint import Checkpoint
    from batchframe.core.columns import Form
    from batchframe.core.requests import Rows
    from batchframe.core.shards import Limits
__all__ = ["OpenAIBatch", "attach", "complete", "embed", "moderate", "register", "results"]

# A pyarrow Table goes in and comes out as well, but pyarrow ships no types: in the bound, it would
# take any value for a frame.
FrameT = TypeVar("FrameT", bound="pd.DataFrame | pl.DataFrame")
P = ParamSpec("P")
R = TypeVar("R")


_COMPLETIONS = "/v1/completions"
_EMBEDDINGS = "/v1/embeddings"
_MODERATIONS = "/v1/moderations"
#: A call of each function, as its messages show one.
_EXAMPLES = {
    "complete": '"prompt", "id", model="gpt-4o-mini"',
    "embed": '"text", "id", model="text-embedding-3-small"',
    "moderate": '"text", "id"',
    "attach": '"runs/a", "prompt", "id"',
}


def _fitting(function: Callable[P, R]) -> Callable[P, R]:
    """The function; a call that does not fit its signature is a ParameterError."""
    signature = inspect.signature(function)
    name = function.__name__
    example = _EXAMPLES[name]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        misfit = _misfit(signature, args, kwargs)
        if misfit:
            raise ParameterError(
                f"This call does not fit {name}(): {misfit}. Nothing was sent. "
                f"Call df.openai_batch.{name}({example}), or batchframe.{name}(df, {example}): all "
                "else goes by keyword."
            )
        return function(*args, **kwargs)

    return checked


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
    max_retries: int = 3,
    retry_failed: bool = False,
    nulls: str = "skip",
    limits: "Limits | None" = None,
    completion_window: str = "24h",
    poll_interval: float | None = None,
    timeout: float | None = None,
    on_unknown: str = "resend",
    delete_remote: bool = False,
    progress: bool = True,
    details: bool = False,
    client: "openai.OpenAI | None" = None,
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
        max_retries: Further rounds for rows whose error may pass: overload, expiry.
        retry_failed: Try again also rows of earlier calls that failed for good, were cancelled,
            or are missing.
        nulls: "skip" rows without a prompt, or "raise" an error for them.
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
    check_values(template=template, system=system, endpoint=endpoint)
    settings = _Settings(
        output=output,
        checkpoint=checkpoint,
        max_retries=max_retries,
        retry_failed=retry_failed,
        nulls=nulls,
        limits=limits,
        completion_window=completion_window,
        poll_interval=poll_interval,
        timeout=timeout,
        on_unknown=on_unknown,
        delete_remote=delete_remote,
        progress=progress,
        details=details,
        client=client,
    )
    fields_of_format, structure = read_response_format(response_format, endpoint)
    body = body_params(params, endpoint, function="complete", keywords=_keywords(complete))
    if fields_of_format and not isinstance(body.get("text", {}), dict):
        raise ParameterError(f"text={body['text']!r:.60} must be a dict, as the SDK has it.")
    # Of responses, `text` may hold more than the format.
    body |= {
        name: {**dict(body.get(name) or {}), **value} for name, value in fields_of_format.items()
    }
    if body.get("n", 1) != 1:
        raise ParameterError(
            f"n={body['n']}: each row has one completion. Call once for each, with its own output=."
        )
    if endpoint == _COMPLETIONS and system is not None:
        raise ParameterError(f"system= has no place in {endpoint}: it knows no messages.")
    from batchframe.core.columns import Form
    from batchframe.core.structure import read_texts

    form = None
    if structure is not None:
        form = Form(read=functools.partial(read_texts, structure=structure))
    return _answered(
        frame,
        _question(frame, prompt_col, template, images, endpoint),
        id_col,
        settings,
        functools.partial(
            _sent,
            settings=settings,
            spec={"endpoint": endpoint, "model": _name(model), "system": system, "params": body},
        ),
        own=own_fields(params, model),
        form=form,
    )


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
    max_retries: int = 3,
    retry_failed: bool = False,
    nulls: str = "skip",
    limits: "Limits | None" = None,
    completion_window: str = "24h",
    poll_interval: float | None = None,
    timeout: float | None = None,
    on_unknown: str = "resend",
    delete_remote: bool = False,
    progress: bool = True,
    details: bool = False,
    client: "openai.OpenAI | None" = None,
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
        max_retries: As for `complete`.
        retry_failed: As for `complete`.
        nulls: As for `complete`.
        limits: As for `complete`.
        completion_window: As for `complete`.
        poll_interval: As for `complete`.
        timeout: As for `complete`.
        on_unknown: As for `complete`.
        delete_remote: As for `complete`.
        progress: As for `complete`.
        details: As for `complete`.
        client: As for `complete`.
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
    check_values(dimensions=dimensions)
    settings = _Settings(
        output=output,
        checkpoint=checkpoint,
        max_retries=max_retries,
        retry_failed=retry_failed,
        nulls=nulls,
        limits=limits,
        completion_window=completion_window,
        poll_interval=poll_interval,
        timeout=timeout,
        on_unknown=on_unknown,
        delete_remote=delete_remote,
        progress=progress,
        details=details,
        client=client,
    )
    body = body_params(params, _EMBEDDINGS, function="embed", keywords=_keywords(embed))
    # A third of the bytes of numbers in words, and exact.
    body["encoding_format"] = "base64"
    if dimensions is not None:
        body["dimensions"] = dimensions
    return _answered(
        frame,
        _texts(frame, text_col),
        id_col,
        settings,
        functools.partial(
            _sent,
            settings=settings,
            spec={"endpoint": _EMBEDDINGS, "model": _name(model), "params": body},
        ),
        own=own_fields(params, model),
        form=_form_of(_EMBEDDINGS, body),
    )


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
    max_retries: int = 3,
    retry_failed: bool = False,
    nulls: str = "skip",
    limits: "Limits | None" = None,
    completion_window: str = "24h",
    poll_interval: float | None = None,
    timeout: float | None = None,
    on_unknown: str = "resend",
    delete_remote: bool = False,
    progress: bool = True,
    details: bool = False,
    client: "openai.OpenAI | None" = None,
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
        max_retries: As for `complete`.
        retry_failed: As for `complete`.
        nulls: As for `complete`.
        limits: As for `complete`.
        completion_window: As for `complete`.
        poll_interval: As for `complete`.
        timeout: As for `complete`.
        on_unknown: As for `complete`.
        delete_remote: As for `complete`.
        progress: As for `complete`.
        details: As for `complete`.
        client: As for `complete`.
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
    settings = _Settings(
        output=output,
        checkpoint=checkpoint,
        max_retries=max_retries,
        retry_failed=retry_failed,
        nulls=nulls,
        limits=limits,
        completion_window=completion_window,
        poll_interval=poll_interval,
        timeout=timeout,
        on_unknown=on_unknown,
        delete_remote=delete_remote,
        progress=progress,
        details=details,
        client=client,
    )
    body = body_params(params, _MODERATIONS, function="moderate", keywords=_keywords(moderate))
    return _answered(
        frame,
        _texts(frame, text_col),
        id_col,
        settings,
        functools.partial(
            _sent,
            settings=settings,
            spec={"endpoint": _MODERATIONS, "model": _name(model), "params": body},
        ),
        own=own_fields(params, model),
        form=_form_of(_MODERATIONS, body),
    )


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
    check_values(checkpoint=checkpoint, template=template, output=output, details=details)
    from batchframe.run import find_rows

    there = _read(checkpoint)
    own = own_fields(params, model)
    shared = body_params(
        params, there.spec.endpoint, function="attach", keywords=_keywords(attach)
    ) | ({} if model is None or "model" in own else {"model": model})
    if shared:
        raise ParameterError(
            f"attach() was given {', '.join(f'{name}=' for name in shared)}; it takes parameters "
            "that stand in columns, as bf.col(...), and the checkpoint knows of all others."
        )
    if there.spec.model is None and model is None:
        raise ParameterError(
            "The rows of this checkpoint have models of their own: name their column, for example "
            "model=bf.col('model')."
        )
    return _answered(
        frame,
        _question(frame, prompt_col, template, images, there.spec.endpoint),
        id_col,
        _Columns(output=output, details=details, nulls="skip"),
        lambda rows: find_rows(rows, there)[:2],
        own=own,
        form=_form_of(there.spec.endpoint, there.spec.params),
        unanswered=None,
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

    return latest(_read(checkpoint).results()).drop_columns("row_key")


def _read(checkpoint: str | Path | None) -> "Checkpoint":
    """The checkpoint as it is on the disk now."""
    if checkpoint is None:
        raise ParameterError("checkpoint must be the path of a directory, not None.")
    from batchframe.checkpoint import Checkpoint
    from batchframe.clock import SystemClock
    from batchframe.storage import Storage

    return Checkpoint.read(Path(checkpoint).expanduser(), Storage(), SystemClock())


def _form_of(endpoint: str, body: Mapping[str, Any]) -> "Form | None":
    """What answers become, as the fields of all bodies say."""
    from batchframe.core.columns import Form
    from batchframe.core.structure import read_texts

    if endpoint == _EMBEDDINGS:
        from batchframe.core.vectors import read_vectors

        return Form(
            read=functools.partial(read_vectors, n_dimensions=body.get("dimensions")),
            with_text=False,
        )
    if endpoint == _MODERATIONS:
        from batchframe.core.verdicts import VERDICT

        reader = functools.partial(read_texts, structure=VERDICT)
        return Form(read=reader, with_text=False, flat=True)
    structure = sent_structure(body)
    return (
        None if structure is None else Form(read=functools.partial(read_texts, structure=structure))
    )


def _name(model: object) -> str | None:
    """The model of all rows; None where each has its own."""
    if isinstance(model, Column):
        return None
    check_values(model=model)
    return cast("str", model)


def _keywords(function: Callable[..., Any]) -> set[str]:
    """The function's own keywords, which a misspelt one may have meant."""
    return inspect.signature(function).parameters.keys() - {"frame", "params"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """What a call says of its new columns and its rows."""

    output: str
    details: bool
    nulls: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings(_Columns):
    """The keywords of all functions that send; none is taken that does not fit."""

    checkpoint: str | Path | None
    max_retries: int
    retry_failed: bool
    limits: "Limits | None"
    completion_window: str
    poll_interval: float | None
    timeout: float | None
    on_unknown: str
    delete_remote: bool
    progress: bool
    client: "openai.OpenAI | None"

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields_of(self)}
        check_client(values.pop("client"))
        check_values(**values)


class _Question(NamedTuple):
    """Where the prompts of a call come from."""

    #: The label of each column that they are made of, and the keyword that named it.
    columns: Sequence[tuple[Hashable, str]]
    #: Reads them; called once the labels are known to be right.
    read: Callable[["_Adapter"], "pa.Array"]


def _question(
    frame: Any,
    prompt_col: Hashable | None,
    template: str | None,
    images: Hashable | list[Hashable] | None,
    endpoint: str,
) -> _Question:
    """The prompts of a column, or of a template over several; and their images."""
    if (prompt_col is None) == (template is None):
        raise ParameterError(
            "Exactly one of prompt_col and template= says what to ask; this call has "
            f"{'both' if template is not None else 'neither'}. Nothing was sent."
        )
    if images is not None and endpoint == _COMPLETIONS:
        raise ParameterError(f"images= has no place in {endpoint}: it takes text alone.")
    from batchframe.frames import inputs

    fields = inputs.template_fields(template) if template is not None else []
    pictures = [] if images is None else list(images) if isinstance(images, list) else [images]

    def read(adapter: "_Adapter") -> "pa.Array":
        if template is not None:
            prompts = inputs.rendered(fields, lambda name: adapter.column(frame, name))
        elif (lists := adapter.lists(frame, prompt_col)) is not None:
            if pictures:
                raise ParameterError(
                    "images= goes with prompts that are text; lists of chat messages hold their "
                    "images themselves. Nothing was sent."
                )
            if endpoint == _COMPLETIONS:
                raise ParameterError(
                    f"Column {prompt_col!r} holds lists of chat messages, and {endpoint} takes "
                    "text alone. Nothing was sent."
                )
            return inputs.messages(lists, prompt_col)
        else:
            prompts = inputs.prompts(adapter.column(frame, prompt_col), prompt_col)
        if not pictures:
            return prompts
        columns = [(label, adapter.column(frame, label)) for label in pictures]
        return inputs.with_images(prompts, columns, endpoint)

    asked = [prompt_col] if template is None else [name for _, name in fields if name is not None]
    role = "prompt_col" if template is None else "template"
    return _Question(
        [*((label, role) for label in asked), *((label, "images") for label in pictures)], read
    )


def _texts(frame: Any, text_col: Hashable) -> _Question:
    """The texts of a column."""
    from batchframe.frames import inputs

    return _Question(
        [(text_col, "text_col")],
        lambda adapter: inputs.prompts(adapter.column(frame, text_col), text_col),
    )


def _answered(
    frame: FrameT,
    question: _Question,
    id_col: Hashable | None,
    columns: _Columns,
    answer: Callable[["Rows"], "tuple[pa.Table, pa.Int64Array]"],
    *,
    own: Mapping[str, Column],
    form: "Form | None",
    unanswered: str | None = "missing",
) -> FrameT:
    """The frame with the answers to its rows.

    Args:
        frame: The user's.
        question: Where the prompts come from.
        id_col: The label of the ids, or None.
        columns: What the call says of new columns and rows.
        answer: What rows ask -> results, and where each row has its own.
        own: The columns of the rows' own body fields, by the fields' names.
        form: What answers become.
        unanswered: The status of rows without a result.
    """
    import pyarrow as pa

    from batchframe.core.columns import result_columns
    from batchframe.core.requests import Rows
    from batchframe.core.results import RESULT_SCHEMA
    from batchframe.frames import inputs

    adapter = _adapter(frame)
    labels, index = adapter.labels(frame), adapter.index_names(frame)
    for label, role in (*question.columns, *((own[name].label, name) for name in own)):
        inputs.check_label(label, role, labels, index)
    if id_col is not None:
        inputs.check_label(id_col, "id_col", labels, index)
    columns_of = functools.partial(
        result_columns,
        output=columns.output,
        details=columns.details,
        form=form,
        unanswered=unanswered,
    )
    nothing = RESULT_SCHEMA.empty_table()
    empty = columns_of(nothing, pa.array([], pa.int64()), skipped=None)
    inputs.check_free(adapter.new_labels(empty), labels, columns.output)

    prompts = question.read(adapter)
    if columns.nulls == "raise":
        asked = [label for label, role in question.columns if role != "images"]
        inputs.check_nulls(prompts, asked)
    ids = (
        inputs.numbers(prompts)
        if id_col is None
        else inputs.ids(adapter.column(frame, id_col), id_col)
    )
    if prompts.null_count == len(prompts):
        results, positions = nothing, pa.nulls(len(prompts), pa.int64())
    else:
        results, positions = answer(
            Rows(
                ids=ids,
                prompts=prompts,
                **_own_of_rows(adapter, frame, own, prompts),
            )
        )
    made = columns_of(results, positions, skipped=prompts.is_null())
    return cast("FrameT", adapter.attach(frame, made, like=question.columns[0][0]))


def _own_of_rows(
    adapter: "_Adapter", frame: Any, own: Mapping[str, Column], prompts: "pa.Array"
) -> dict[str, Any]:
    """Models and fields of `Rows`, out of their columns."""
    from batchframe.frames import inputs

    def values(label: Hashable) -> Sequence[object]:
        lists = adapter.lists(frame, label)
        return adapter.column(frame, label).to_pylist() if lists is None else lists

    found: dict[str, Any] = {}
    fields = {name: column.label for name, column in own.items() if name != "model"}
    if "model" in own:
        label = own["model"].label
        found["models"] = inputs.models(adapter.column(frame, label), label, prompts)
    if fields:
        columns = {name: (label, values(label)) for name, label in fields.items()}
        found["fields"] = inputs.own_fields(columns, prompts)
    return found


def _sent(
    rows: "Rows", *, settings: _Settings, spec: Mapping[str, Any]
) -> "tuple[pa.Table, pa.Int64Array]":
    """What the provider answers, or has answered; `spec` are the fields but the account."""
    from batchframe.client import Provider
    from batchframe.core.shards import Limits
    from batchframe.core.spec import Spec
    from batchframe.engine import Submission
    from batchframe.run import Options, run_rows, warn_of_unknown_prices

    provider = Provider(settings.client)
    shared = Spec(account=provider.account, **spec)
    results, positions, *_ = run_rows(
        rows,
        shared,
        Submission(
            provider=provider,
            limits=settings.limits or Limits(),
            completion_window=settings.completion_window,
            poll_interval=settings.poll_interval,
            ask_if_unknown=settings.on_unknown == "raise",
            delete_remote=settings.delete_remote,
        ),
        checkpoint_path(settings.checkpoint, shared),
        options=Options(
            max_retries=settings.max_retries,
            retry_failed=settings.retry_failed,
            timeout=settings.timeout,
            progress=settings.progress,
        ),
    )
    warn_of_unknown_prices(results, shared.model)
    return results, positions


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
    embed = _method(embed)
    moderate = _method(moderate)
    attach = _method(attach)


def register(library: Any) -> None:
    """Give the DataFrames of an imported pandas or Polars the accessor `openai_batch`."""
    if hasattr(library.DataFrame, "openai_batch"):  # a notebook that reloads modules
        return
    if library.__name__ == "pandas":
        library.api.extensions.register_dataframe_accessor("openai_batch")(OpenAIBatch)
    else:
        library.api.register_dataframe_namespace("openai_batch")(OpenAIBatch)


class _Adapter(Protocol):
    """What each frame library's module offers."""

    def labels(self, frame: Any) -> list[Hashable]: ...

    def index_names(self, frame: Any) -> list[Hashable]: ...

    def column(self, frame: Any, label: Hashable) -> "pa.Array": ...

    def lists(self, frame: Any, label: Hashable) -> list[Any] | None: ...

    def new_labels(self, columns: "pa.Table") -> list[str]: ...

    def attach(self, frame: Any, columns: "pa.Table", *, like: Hashable) -> Any: ...


def _adapter(frame: object) -> _Adapter:
    # A frame's library is imported already: looking it up imports nothing.
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if pandas is not None and isinstance(frame, pandas.DataFrame):
        from batchframe.frames import pandas as pandas_adapter

        return cast("_Adapter", pandas_adapter)
    if polars is not None and isinstance(frame, polars.DataFrame):
        from batchframe.frames import polars as polars_adapter

        return cast("_Adapter", polars_adapter)
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None and isinstance(frame, pyarrow.Table):
        from batchframe.frames import arrow as arrow_adapter

        return cast("_Adapter", arrow_adapter)
    hint = " Collect it first." if type(frame).__name__ == "LazyFrame" else ""
    raise ParameterError(
        f"A {type(frame).__name__} was passed; complete() takes pandas and Polars DataFrames "
        f"and pyarrow Tables.{hint}"
    )
