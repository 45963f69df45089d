"""What the rows of a frame ask, and what their answers become: one `Call` for each function."""

import functools
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from batchframe.errors import ParameterError
from batchframe.frames.adapters import Adapter, values_of
from batchframe.parameters import Column, check_values, own_fields

if TYPE_CHECKING:
    import pyarrow as pa

    from batchframe.checkpoint import Checkpoint
    from batchframe.core.columns import Form

__all__ = [
    "EMBEDDINGS",
    "MODERATIONS",
    "Call",
    "Keywords",
    "attached",
    "completion",
    "embedding",
    "moderation",
]

COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"


class Question(NamedTuple):
    """Where the prompts of a call come from."""

    #: The label of each column that they are made of, and the keyword that named it.
    columns: Sequence[tuple[Hashable, str]]
    #: Reads them out of a frame; called once the labels are known to be right.
    read: Callable[[Adapter, Any], "pa.Array"]


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
    # By their names: values that are the same for all rows are not looked at.
    named = {name: own.get(name) for name in params}
    body_params(named, spec.endpoint, function=keywords.function, keywords=keywords.names)
    shared = [name for name in ("model", *params) if name not in own]
    if model is None:
        shared.remove("model")
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

    def read(adapter: Adapter, frame: Any) -> "pa.Array":
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
        columns = [(label, values_of(adapter, frame, label)) for label in pictures]
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
