"""The options of the command line, each declared once; and what they become for the package."""

import inspect
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from batchframe.cli.app import expanded
from batchframe.errors import ParameterError
from batchframe.frames import accessor

__all__ = [
    "BatchSize",
    "Checkpoint",
    "Dedupe",
    "Details",
    "Dialect",
    "Directory",
    "Endpoint",
    "ExtraBody",
    "FileFormat",
    "From",
    "IdCol",
    "Json",
    "MaxCost",
    "MaxEnqueuedTokens",
    "MaxErrorRatio",
    "MaxLive",
    "MaxRetries",
    "Model",
    "NoProgress",
    "Output",
    "Params",
    "PollInterval",
    "Price",
    "PromptCol",
    "ResponseFormat",
    "RetryFailed",
    "Source",
    "System",
    "Target",
    "Template",
    "Timeout",
    "To",
    "keywords_of",
    "limits_of",
    "prices_of",
]


class FileFormat(StrEnum):
    """What a file is, where its name does not say it."""

    PARQUET = "parquet"
    CSV = "csv"
    JSONL = "jsonl"


_WHAT, _HOW, _WORK = "What is asked", "How it is sent", "How the command works"

Source = Annotated[
    str, typer.Argument(metavar="IN", help="The rows: parquet, CSV or JSONL; - is standard input.")
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help="The file that is written, whole or not at all; - is standard output.",
    ),
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The checkpoint's directory.")]
From = Annotated[
    FileFormat | None,
    typer.Option("--from", help="What IN is, where its name does not say it."),
]
To = Annotated[
    FileFormat | None,
    typer.Option("--to", help="What OUT is, where its name does not say it."),
]
PromptCol = Annotated[str | None, typer.Option(metavar="NAME", help="The column of the prompts.")]
IdCol = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The column of the ids. Without it, rows go by their prompts."
    ),
]
Model = Annotated[str, typer.Option(metavar="NAME", help="The model, such as gpt-4o-mini.")]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help='Instead of --prompt-col: a text with columns in braces, "Summarise {title}: {body}".',
    ),
]
System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="One system message for all rows.")
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        metavar="NAME=VALUE",
        help="A field of the API's request, such as temperature=0; the value is JSON, or else "
        "text. May be given many times.",
    ),
]
ExtraBody = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="Fields of the request that only your provider knows, such as '{\"top_k\": 40}'.",
    ),
]
ResponseFormat = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A JSON schema that the answers are to fit."),
]
Endpoint = Annotated[
    str,
    typer.Option(metavar="PATH", help="What answers; or /v1/responses, /v1/completions."),
]
Output = Annotated[
    str, typer.Option(metavar="NAME", help="What the names of the new columns begin with.")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The directory that keeps what is paid. Without it one under .batchframe in the "
        "working directory, which is another one for cron: name it there.",
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option(metavar="USD", help="Send no batch that could bring the cost above this."),
]
MaxErrorRatio = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="PART",
        help="Send no more once more than this part of the rows, 0 to 1, has failed for good; "
        "and write no file then.",
    ),
]
Price = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL=IN,OUT",
        help="What you pay, in dollars per million tokens, where it is not the published price "
        "of batches. May be given many times.",
    ),
]
Dedupe = Annotated[
    bool, typer.Option("--dedupe", help="Send equal requests once; all their rows get the answer.")
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Try again also rows of earlier runs that failed for good, were cancelled, or are "
        "missing.",
    ),
]
MaxRetries = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="Further tries for rows whose error may pass."),
]
Details = Annotated[
    bool,
    typer.Option("--details", help="Add finish reason, model, request id and batch id."),
]
Dialect = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How the service speaks: openai, azure, groq, ... or generic; by its address where "
        "not given.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(metavar="N", help="Rows in a batch, at most; 20,000 unless it is given."),
]
MaxLive = Annotated[
    int | None,
    typer.Option(metavar="N", help="Batches that may be live at once; 64 unless it is given."),
]
MaxEnqueuedTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Tokens that may be enqueued, as your limits page says; learned where not given.",
    ),
]
PollInterval = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Time between looks at a batch; adapts by itself."),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="SECONDS", help="How long to wait at most; then exit code 3, if not done."
    ),
]
NoProgress = Annotated[
    bool, typer.Option("--no-progress", help="Say nothing on stderr but what went wrong.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for programs.")]


def keywords_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `batchframe.complete` out of the variables of a command.

    Raises BadParameter, a mistake in the line, for values that cannot be read.
    """
    known = inspect.signature(accessor.complete).parameters
    named = {name: value for name, value in given.items() if name in known}
    schema, extra = named.get("response_format"), named.get("extra_body")
    named["checkpoint"] = given["checkpoint"]
    return {
        **named,
        "response_format": None if schema is None else _schema_in(schema),
        "extra_body": None if extra is None else _object_in(extra, "--extra-body"),
        "prices": prices_of(given.get("price")),
        "limits": limits_of(
            given.get("batch_size"), given.get("max_live"), given.get("max_enqueued_tokens")
        ),
        **_params_of(given.get("param") or (), known),
    }


def limits_of(
    batch_size: int | None = None, max_live: int | None = None, max_tokens: int | None = None
) -> Any:
    """The limits of a call; None for the usual ones."""
    given = {
        "max_requests": batch_size,
        "max_live_batches": max_live,
        "max_enqueued_tokens": max_tokens,
    }
    named = {name: value for name, value in given.items() if value is not None}
    if not named:
        return None
    from batchframe.core.shards import Limits

    return Limits(**named)


def prices_of(pairs: Sequence[str] | None) -> Any:
    """Rates by model, out of MODEL=IN,OUT; None for none."""
    if not pairs:
        return None
    from batchframe.core.rates import Rates

    found = {}
    for pair in pairs:
        model, _, rates = pair.rpartition("=")
        try:
            paid_in, paid_out = map(float, (rates if model else "").split(","))
        except ValueError:
            raise typer.BadParameter(
                f"{pair!r} is not of the form MODEL=IN,OUT, such as gpt-4o-mini=0.075,0.3",
                param_hint="--price",
            ) from None
        found[model] = Rates(input=paid_in, output=paid_out)
    return found


def _params_of(pairs: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(
                f"{pair!r} is not of the form NAME=VALUE, such as temperature=0",
                param_hint="--param",
            )
        if name in known:
            raise typer.BadParameter(
                f"{name!r} is no field of the request: see --help for the option",
                param_hint="--param",
            )
        try:
            found[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            found[name] = value
    return found


def _object_in(text: str, option: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        raise typer.BadParameter(
            f'{text!r:.60} is no JSON object, such as {{"top_k": 40}}', param_hint=option
        ) from None


def _schema_in(path: Path) -> Any:
    try:
        return msgspec.json.decode(expanded(path).read_bytes())
    except msgspec.DecodeError as error:
        raise ParameterError(f"{path} is not JSON: {error}. Nothing was sent.") from None
    except OSError as error:
        raise ParameterError(
            f"{path} cannot be read: {error.strerror}. Nothing was sent."
        ) from None
