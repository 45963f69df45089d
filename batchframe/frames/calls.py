"""What stands behind the signatures: a frame in, its rows answered, the same frame out.

    frame --labels checked, columns read--> Rows --run--> results --columns--> the same frame

All functions that take a frame go this way; they differ in what a row asks and in what its answer
becomes, which a `Call` says.
"""

import functools
import sys
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as fields_of
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, cast

from batchframe.errors import ParameterError
from batchframe.parameters import (
    Column,
    check_client,
    check_values,
    checkpoint_path,
    own_fields,
)

if TYPE_CHECKING:
    import openai
    import pyarrow as pa

    from batchframe.checkpoint import Checkpoint
    from batchframe.core.columns import Form
    from batchframe.core.dialects import Dialect
    from batchframe.core.estimates import Estimate
    from batchframe.core.rates import Prices
    from batchframe.core.requests import Rows
    from batchframe.core.shards import Limits
    from batchframe.core.spec import Spec
    from batchframe.frames.usage import Usage
    from batchframe.jobs import Submission
    from batchframe.rounds import Options

__all__ = [
    "EMBEDDINGS",
    "MODERATIONS",
    "PRICES_WAY_OUT",
    "Asked",
    "Call",
    "Columns",
    "Keywords",
    "Settings",
    "answered",
    "asked",
    "attached",
    "completion",
    "embedding",
    "estimated",
    "how",
    "moderation",
    "read_checkpoint",
    "rows_of_table",
    "sent",
    "sent_windows",
    "unanswered",
    "usage_in_frame",
]

COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a call says of its new columns and its rows."""

    output: str
    details: bool
    nulls: str
    on_error: str
    max_error_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Columns):
    """The keywords of all functions that send; none is taken that does not fit."""

    checkpoint: str | Path | None
    dedupe: bool
    max_retries: int
    retry_failed: bool
    max_cost_usd: float | None
    prices: "Prices | None"
    limits: "Limits | None"
    completion_window: str
    poll_interval: float | None
    timeout: float | None
    on_unknown: str
    delete_remote: bool
    progress: bool
    client: "openai.OpenAI | None"
    dialect: "str | Dialect | None"

    @classmethod
    def of(cls, given: Mapping[str, Any], **fixed: Any) -> Self:
        """Take them out of a function's arguments, by name, and those that are `fixed` there."""
        values = {**given, **fixed}
        return cls(**{field.name: values[field.name] for field in fields_of(cls)})

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields_of(self)}
        check_client(values.pop("client"))
        check_values(**values)


class Question(NamedTuple):
    """Where the prompts of a call come from."""

    #: The label of each column that they are made of, and the keyword that named it.
    columns: Sequence[tuple[Hashable, str]]
    #: Reads them out of a frame; called once the labels are known to be right.
    read: Callable[["_Adapter", Any], "pa.Array"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What the rows of a frame ask, and what their answers become."""

    question: Question
    #: The fields of the spec, without the account.
    spec: Mapping[str, Any]
    #: The columns of the rows' own body fields, by the fields' names.
    own: Mapping[str, Column]
    form: "Form | None"


class Keywords(NamedTuple):
    """What a function calls itself and its keywords, for messages."""

    function: str
    names: Collection[str]


def completion(
    prompt_col: Hashable | None,
    *,
    model: object,
    template: str | None,
    images: Hashable | list[Hashable] | None,
    format_: object,
    system: str | None,
    endpoint: str,
    extra_body: object,
    params: Mapping[str, Any],
    keywords: Keywords,
) -> Call:
    """A call of an endpoint that answers prompts with text."""
    from batchframe.bodies import body_params, extra_fields
    from batchframe.formats import response_format

    check_values(template=template, system=system, endpoint=endpoint)
    fields_of_format, structure = response_format(format_, endpoint)
    body = body_params(params, endpoint, function=keywords.function, keywords=keywords.names)
    body |= extra_fields(extra_body, endpoint)
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
    if endpoint == COMPLETIONS and system is not None:
        raise ParameterError(f"system= has no place in {endpoint}: it knows no messages.")
    form = None
    if structure is not None:
        from batchframe.core.columns import Form
        from batchframe.core.structure import read_texts

        form = Form(read=functools.partial(read_texts, structure=structure))
    return Call(
        question=_question(prompt_col, template, images, endpoint),
        spec={"endpoint": endpoint, "model": _one_model(model), "system": system, "params": body},
        own=own_fields(params, model),
        form=form,
    )


def embedding(
    text_col: Hashable,
    *,
    model: object,
    extra_body: object,
    params: Mapping[str, Any],
    keywords: Keywords,
) -> Call:
    """A call that makes vectors of texts; `dimensions` is among the parameters."""
    from batchframe.bodies import body_params, extra_fields

    check_values(dimensions=params.get("dimensions"))
    given = {name: value for name, value in params.items() if value is not None}
    body = body_params(given, EMBEDDINGS, function=keywords.function, keywords=keywords.names)
    body |= extra_fields(extra_body, EMBEDDINGS)
    # A third of the bytes of numbers in words, and exact.
    body["encoding_format"] = "base64"
    return _of_texts(text_col, EMBEDDINGS, model, params, body)


def moderation(
    text_col: Hashable,
    *,
    model: object,
    extra_body: object,
    params: Mapping[str, Any],
    keywords: Keywords,
) -> Call:
    """A call that has texts judged."""
    from batchframe.bodies import body_params, extra_fields

    body = body_params(params, MODERATIONS, function=keywords.function, keywords=keywords.names)
    body |= extra_fields(extra_body, MODERATIONS)
    return _of_texts(text_col, MODERATIONS, model, params, body)


def _of_texts(
    text_col: Hashable,
    endpoint: str,
    model: object,
    params: Mapping[str, Any],
    body: dict[str, Any],
) -> Call:
    return Call(
        question=_texts(text_col),
        spec={"endpoint": endpoint, "model": _one_model(model), "params": body},
        own=own_fields(params, model),
        form=_form_of(endpoint, body),
    )


def attached(
    prompt_col: Hashable | None,
    there: "Checkpoint",
    *,
    model: object,
    template: str | None,
    images: Hashable | list[Hashable] | None,
    params: Mapping[str, Any],
    keywords: Keywords,
) -> Call:
    """The call that the checkpoint's rows were sent by, for another frame."""
    from batchframe.bodies import body_params

    check_values(template=template)
    spec = there.spec
    own = own_fields(params, model)
    shared = body_params(
        params, spec.endpoint, function=keywords.function, keywords=keywords.names
    ) | ({} if model is None or "model" in own else {"model": model})
    if shared:
        raise ParameterError(
            f"attach() was given {', '.join(f'{name}=' for name in shared)}; it takes parameters "
            "that stand in columns, as bf.col(...), and the checkpoint knows of all others."
        )
    if spec.model is None and model is None:
        raise ParameterError(
            "The rows of this checkpoint have models of their own: name their column, for example "
            "model=bf.col('model')."
        )
    return Call(
        question=_question(prompt_col, template, images, spec.endpoint),
        spec={},
        own=own,
        form=_form_of(spec.endpoint, spec.params),
    )


def _question(
    prompt_col: Hashable | None,
    template: str | None,
    images: Hashable | list[Hashable] | None,
    endpoint: str,
) -> Question:
    """The prompts of a column, or of a template over several; and their images."""
    if (prompt_col is None) == (template is None):
        raise ParameterError(
            "Exactly one of prompt_col and template= says what to ask; this call has "
            f"{'both' if template is not None else 'neither'}. Nothing was sent."
        )
    if images is not None and endpoint == COMPLETIONS:
        raise ParameterError(f"images= has no place in {endpoint}: it takes text alone.")
    from batchframe.frames import inputs

    fields = inputs.template_fields(template) if template is not None else []
    pictures = [] if images is None else list(images) if isinstance(images, list) else [images]

    def read(adapter: "_Adapter", frame: Any) -> "pa.Array":
        if template is not None:
            prompts = inputs.rendered(
                fields,
                lambda name: (
                    adapter.column(frame, name)
                    if (values := adapter.objects(frame, name)) is None
                    else values
                ),
            )
        elif (lists := adapter.lists(frame, prompt_col)) is not None:
            if pictures:
                raise ParameterError(
                    "images= goes with prompts that are text; lists of chat messages hold their "
                    "images themselves. Nothing was sent."
                )
            if endpoint == COMPLETIONS:
                raise ParameterError(
                    f"Column {prompt_col!r} holds lists of chat messages, and {endpoint} takes "
                    "text alone. Nothing was sent."
                )
            return inputs.messages(lists, prompt_col)
        else:
            prompts = inputs.prompts(adapter.column(frame, prompt_col), prompt_col)
        if not pictures:
            return prompts
        columns = [(label, _values(adapter, frame, label)) for label in pictures]
        return inputs.with_images(prompts, columns, endpoint)

    asked = [prompt_col] if template is None else [name for _, name in fields if name is not None]
    role = "prompt_col" if template is None else "template"
    return Question(
        [*((label, role) for label in asked), *((label, "images") for label in pictures)], read
    )


def _texts(text_col: Hashable) -> Question:
    """The texts of a column."""
    from batchframe.frames import inputs

    return Question(
        [(text_col, "text_col")],
        lambda adapter, frame: inputs.prompts(adapter.column(frame, text_col), text_col),
    )


class Asked(NamedTuple):
    """What the rows of a frame ask, and what makes the frame that comes back."""

    rows: "Rows"
    #: Results, where each row has its own, and the status of rows without one -> the frame.
    finish: Callable[["pa.Table", "pa.Int64Array", str | None], Any]


def asked(
    frame: Any, call: Call, id_col: Hashable | None, columns: Columns, *, is_kept: bool = False
) -> Asked:
    """Read a frame; an error, before anything is sent, if the call does not fit it.

    Args:
        frame: The user's.
        call: What its rows ask.
        id_col: The label of the ids, or None.
        columns: What the call says of new columns and rows; at its end, `finish` raises what it
            says of rows without an answer.
        is_kept: The user goes on with the frame before it is finished, and may change it.
    """
    import pyarrow as pa

    from batchframe.core.columns import result_columns
    from batchframe.core.results import RESULT_SCHEMA
    from batchframe.frames import inputs
    from batchframe.frames.failures import Failures

    adapter = _adapter(frame)
    columns_of = functools.partial(
        result_columns, output=columns.output, details=columns.details, form=call.form
    )
    _check_labels(adapter, frame, call, id_col)
    empty = columns_of(RESULT_SCHEMA.empty_table(), pa.array([], pa.int64()), skipped=None)
    inputs.check_free(adapter.new_labels(empty), adapter.labels(frame), columns.output)
    rows = _rows(adapter, frame, call, id_col, nulls=columns.nulls)
    like, is_null = call.question.columns[0][0], rows.prompts.is_null()
    kept = adapter.snapshot(frame) if is_kept else frame
    ids = None if id_col is None else rows.ids

    def finish(results: "pa.Table", positions: "pa.Int64Array", unanswered: str | None) -> Any:
        made = columns_of(results, positions, skipped=is_null, unanswered=unanswered)
        failures = Failures(columns)
        if failures.matter and unanswered is not None:  # the call is at its end
            failures.look(made, ids, results, positions)
            failures.check()
        return adapter.attach(kept, made, like=like)

    return Asked(rows, finish)


def answered(
    frame: Any,
    call: Call,
    id_col: Hashable | None,
    columns: Columns,
    answer: Callable[["Rows"], "tuple[pa.Table, pa.Int64Array, str | None]"],
) -> Any:
    """The frame with the answers to its rows.

    Args:
        frame: As for `asked`.
        call: As for `asked`.
        id_col: As for `asked`.
        columns: As for `asked`.
        answer: What rows ask -> results, where each row has its own, and the status of rows without
            one.
    """
    import pyarrow as pa

    from batchframe.core.results import RESULT_SCHEMA

    rows, finish = asked(frame, call, id_col, columns)
    if rows.prompts.null_count == len(rows):
        return finish(RESULT_SCHEMA.empty_table(), pa.nulls(len(rows), pa.int64()), None)
    return finish(*answer(rows))


def rows_of_table(table: "pa.Table", call: Call, id_col: Hashable | None, *, nulls: str) -> "Rows":
    """What the rows of a pyarrow Table ask, whichever frame the call was made for."""
    from batchframe.frames import arrow

    return _rows(cast("_Adapter", arrow), table, call, id_col, nulls=nulls)


def _check_labels(adapter: "_Adapter", frame: Any, call: Call, id_col: Hashable | None) -> None:
    from batchframe.frames import inputs

    labels, index = adapter.labels(frame), adapter.index_names(frame)
    own = ((column.label, name) for name, column in call.own.items())
    for label, role in (*call.question.columns, *own):
        inputs.check_label(label, role, labels, index)
    if id_col is not None:
        inputs.check_label(id_col, "id_col", labels, index)


def _rows(
    adapter: "_Adapter", frame: Any, call: Call, id_col: Hashable | None, *, nulls: str
) -> "Rows":
    """What the frame's rows ask."""
    from batchframe.core.requests import Rows
    from batchframe.frames import inputs

    prompts = call.question.read(adapter, frame)
    if nulls == "raise":
        asked = [label for label, role in call.question.columns if role != "images"]
        inputs.check_nulls(prompts, asked)
    own = _own_of_rows(adapter, frame, call.own, prompts)
    ids = (
        inputs.numbers(prompts, *own.values())
        if id_col is None
        else inputs.ids(adapter.column(frame, id_col), id_col)
    )
    return Rows(ids=ids, prompts=prompts, **own)


def estimated(
    frame: Any,
    call: Call,
    id_col: Hashable | None,
    *,
    checkpoint: str | Path | None,
    dedupe: bool,
    retry_failed: bool,
    nulls: str,
    prices: "Prices | None",
    limits: "Limits | None",
    completion_window: str,
    client: "openai.OpenAI | None",
    dialect: "str | Dialect | None",
) -> "Estimate":
    """What the call would send and cost; nothing is sent and nothing is written."""
    from batchframe.accounts import account_of
    from batchframe.clock import SystemClock
    from batchframe.core.dialects import hours_of
    from batchframe.core.shards import fitting
    from batchframe.core.spec import Spec
    from batchframe.plans import estimate_rows

    check_client(client)
    check_values(
        checkpoint=checkpoint,
        dedupe=dedupe,
        retry_failed=retry_failed,
        nulls=nulls,
        prices=prices,
        limits=limits,
        completion_window=completion_window,
        dialect=dialect,
    )
    account, spoken = account_of(client, dialect)
    spec = Spec(account=account, **call.spec)
    spoken.check(endpoint=spec.endpoint, window=completion_window)
    fitted = fitting(limits, spoken, spec.endpoint)
    adapter = _adapter(frame)
    _check_labels(adapter, frame, call, id_col)
    rows = _rows(adapter, frame, call, id_col, nulls=nulls)
    return estimate_rows(
        rows,
        spec,
        _found(checkpoint, spec),
        limits=fitted,
        window_hours=hours_of(completion_window),
        dedupe=dedupe,
        retry_failed=retry_failed,
        prices=prices,
        dialect=spoken,
        now=SystemClock().now(),
    )


def _found(checkpoint: str | Path | None, spec: "Spec") -> "Checkpoint | None":
    """The checkpoint of the call, as it is on the disk; None where there is none yet."""
    from batchframe.layout import SPEC

    path = checkpoint_path(checkpoint, spec)
    if not (path / SPEC).exists():
        return None
    there = read_checkpoint(path)
    there.check_spec(spec)
    return there


def _values(adapter: "_Adapter", frame: Any, label: Hashable) -> Sequence[object]:
    """A column as Python values, each as it is; None where one is missing."""
    values = adapter.objects(frame, label)
    if values is None:
        values = adapter.lists(frame, label)
    return adapter.column(frame, label).to_pylist() if values is None else values


def _own_of_rows(
    adapter: "_Adapter", frame: Any, own: Mapping[str, Column], prompts: "pa.Array"
) -> dict[str, Any]:
    """Models and fields of `Rows`, out of their columns."""
    from batchframe.frames import inputs

    found: dict[str, Any] = {}
    fields = {name: column.label for name, column in own.items() if name != "model"}
    if "model" in own:
        label = own["model"].label
        found["models"] = inputs.models(adapter.column(frame, label), label, prompts)
    if fields:
        columns = {name: (label, _values(adapter, frame, label)) for name, label in fields.items()}
        found["fields"] = inputs.own_fields(columns, prompts)
    return found


def sent(
    rows: "Rows", *, settings: Settings, spec: Mapping[str, Any]
) -> "tuple[pa.Table, pa.Int64Array, str]":
    """What the provider answers, or has answered, as `answered` takes it.

    `spec` are the fields but the account.
    """
    from batchframe.answers import warn_of_unknown_prices
    from batchframe.core.prices import unpriced_models
    from batchframe.running import run_rows

    shared, submission, path, options = how(settings, spec)
    results, positions, _, checkpoint = run_rows(rows, shared, submission, path, options=options)
    price_list = submission.provider.dialect.price_list
    models = unpriced_models(results, shared.model, settings.prices, price_list)
    warn_of_unknown_prices(models, PRICES_WAY_OUT)
    return results, positions, unanswered(checkpoint)


def unanswered(checkpoint: "Checkpoint") -> str:
    """The status of a call's rows that have no result at its end."""
    from batchframe.core.statuses import Status

    return Status.CANCELLED if checkpoint.is_cancelled() else Status.MISSING


def sent_windows(
    windows: Callable[[], Iterable["Rows"]], *, settings: Settings, spec: Mapping[str, Any]
) -> "tuple[Checkpoint, list[pa.FixedSizeBinaryArray]]":
    """Have rows answered that are never all in memory.

    Returns the checkpoint that has the answers, and for each window the keys of its requests.
    """
    from batchframe.answers import warn_of_unknown_prices
    from batchframe.core.prices import unpriced_models
    from batchframe.running import run_windows

    shared, submission, path, options = how(settings, spec)
    keys = run_windows(windows, shared, submission, path, options=options)
    there = read_checkpoint(path)
    price_list = submission.provider.dialect.price_list
    models = {
        model
        for number in there.collected()
        for model in unpriced_models(
            there.results_of(number, _FOR_PRICES),
            there.model_of(number),
            settings.prices,
            price_list,
        )
    }
    warn_of_unknown_prices(sorted(models), PRICES_WAY_OUT)
    return there, keys


#: The columns of results that tell which prices are missing.
_FOR_PRICES = ("input_tokens", "output_tokens", "model")
#: What to do about a model without a price, with {} for it.
PRICES_WAY_OUT = (
    " Give what you pay, in dollars per million tokens: "
    "prices={{{!r}: bf.Rates(input=..., output=...)}}."
)


def how(settings: Settings, spec: Mapping[str, Any]) -> "tuple[Spec, Submission, Path, Options]":
    """What is shared by all requests, and how they are sent, where and by which rules.

    Raises ParameterError for what the service does not take.
    """
    from batchframe.client import Provider
    from batchframe.core.shards import fitting
    from batchframe.core.spec import Spec
    from batchframe.jobs import Submission
    from batchframe.rounds import Options

    provider = Provider(settings.client, settings.dialect)
    shared = Spec(account=provider.account, **spec)
    provider.dialect.check(endpoint=shared.endpoint, window=settings.completion_window)
    submission = Submission(
        provider=provider,
        limits=fitting(settings.limits, provider.dialect, shared.endpoint),
        completion_window=settings.completion_window,
        poll_interval=settings.poll_interval,
        ask_if_unknown=settings.on_unknown == "raise",
        delete_remote=settings.delete_remote,
        prices=settings.prices,
    )
    options = Options(
        max_retries=settings.max_retries,
        retry_failed=settings.retry_failed,
        timeout=settings.timeout,
        progress=settings.progress,
        dedupe=settings.dedupe,
        max_cost_usd=settings.max_cost_usd,
        max_error_ratio=settings.max_error_ratio,
    )
    return shared, submission, checkpoint_path(settings.checkpoint, shared), options


def usage_in_frame(
    frame: Any, *, output: str, model: str | None, prices: "Prices | None", digits: int
) -> "Usage":
    """What the rows of a frame that came back have used."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from batchframe.clock import SystemClock
    from batchframe.core.prices import cost_usd, usage_table
    from batchframe.core.rates import OPENAI_LIST
    from batchframe.core.usage import ROUNDING, added_up, used
    from batchframe.frames import inputs
    from batchframe.frames.usage import Usage

    adapter = _adapter(frame)
    labels, index = adapter.labels(frame), adapter.index_names(frame)
    suffixes = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "cost_usd")
    for suffix in suffixes:
        inputs.check_label(f"{output}_{suffix}", "output", labels, index)
    found = {suffix: adapter.column(frame, f"{output}_{suffix}") for suffix in suffixes}
    named = f"{output}_model"
    models = (
        adapter.column(frame, named)
        if named in labels
        else pa.nulls(len(found["cost_usd"]), pa.string())
    )
    table = usage_table(found["input_tokens"], found["output_tokens"], models)
    for suffix, column in found.items():
        place = table.schema.get_field_index(suffix)
        field = table.schema.field(place)
        table = table.set_column(place, field, column.cast(field.type))
    # Rows that did not run used nothing; of those whose cost is null, nobody knows.
    idle = pc.and_(pc.is_null(table["input_tokens"]), pc.equal(table["cost_usd"], 0.0))
    table = table.filter(pc.invert(pc.fill_null(idle, fill_value=False)))
    known: dict[str, Any] = {
        "model": model or "",
        "at": datetime.fromtimestamp(SystemClock().now(), UTC),
    }
    # A frame does not say who answered: the list is that of OpenAI where the costs are by it.
    listed = pc.divide(cost_usd(table, **known), table["cost_usd"])
    is_listed = pc.less(pc.abs(pc.subtract(listed, 1.0)), ROUNDING)
    is_free = pc.equal(table["cost_usd"], 0.0)
    is_openai = pc.fill_null(pc.or_kleene(is_free, is_listed), fill_value=False)
    parts = [
        used(table.filter(is_openai), prices=prices, price_list=OPENAI_LIST, **known),
        used(table.filter(pc.invert(is_openai)), prices=prices, price_list=None, **known),
    ]
    return Usage(table=added_up(parts), digits=digits)


def _one_model(model: object) -> str | None:
    """The model of all rows; None where each has its own."""
    if isinstance(model, Column):
        return None
    check_values(model=model)
    return cast("str", model)


def _form_of(endpoint: str, body: Mapping[str, Any]) -> "Form | None":
    """What answers become, as the fields of all bodies say."""
    from batchframe.core.columns import Form
    from batchframe.core.structure import read_texts

    if endpoint == EMBEDDINGS:
        from batchframe.core.vectors import read_vectors

        return Form(
            read=functools.partial(read_vectors, n_dimensions=body.get("dimensions")),
            with_text=False,
        )
    if endpoint == MODERATIONS:
        from batchframe.core.verdicts import VERDICT

        reader = functools.partial(read_texts, structure=VERDICT)
        return Form(read=reader, with_text=False, flat=True)
    from batchframe.formats import sent_structure

    structure = sent_structure(body)
    return (
        None if structure is None else Form(read=functools.partial(read_texts, structure=structure))
    )


def read_checkpoint(checkpoint: str | Path | None) -> "Checkpoint":
    """The checkpoint as it is on the disk now."""
    if checkpoint is None:
        raise ParameterError("checkpoint must be the path of a directory, not None.")
    from batchframe.checkpoint import Checkpoint
    from batchframe.clock import SystemClock
    from batchframe.storage import Storage

    return Checkpoint.read(Path(checkpoint).expanduser(), Storage(), SystemClock())


class _Adapter(Protocol):
    """What each frame library's module offers."""

    def labels(self, frame: Any) -> list[Hashable]: ...

    def index_names(self, frame: Any) -> list[Hashable]: ...

    def column(self, frame: Any, label: Hashable) -> "pa.Array": ...

    def lists(self, frame: Any, label: Hashable) -> list[Any] | None: ...

    def objects(self, frame: Any, label: Hashable) -> list[Any] | None: ...

    def new_labels(self, columns: "pa.Table") -> list[str]: ...

    def attach(self, frame: Any, columns: "pa.Table", *, like: Hashable) -> Any: ...

    def snapshot(self, frame: Any) -> Any: ...


def _class_of(library: str, name: str) -> Any:
    """A class of a library, or none at all: a frame's library is imported, and completely."""
    return getattr(sys.modules.get(library), name, ())


def _adapter(frame: object) -> _Adapter:
    if isinstance(frame, _class_of("pandas", "DataFrame")):
        from batchframe.frames import pandas as pandas_adapter

        return cast("_Adapter", pandas_adapter)
    if isinstance(frame, _class_of("polars", "DataFrame")):
        from batchframe.frames import polars as polars_adapter

        return cast("_Adapter", polars_adapter)
    if isinstance(frame, _class_of("pyarrow", "Table")):
        from batchframe.frames import arrow as arrow_adapter

        return cast("_Adapter", arrow_adapter)
    hint = " Collect it first." if type(frame).__name__ == "LazyFrame" else ""
    raise ParameterError(
        f"A {type(frame).__name__} was passed; complete() takes pandas and Polars DataFrames "
        f"and pyarrow Tables.{hint}"
    )
