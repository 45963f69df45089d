"""`complete` and `estimate`: files in, answers or an estimate out."""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchframe.cli import options as o
from batchframe.cli.app import (
    Exit,
    app,
    count,
    expanded,
    in_options,
    say,
    show,
    show_json,
    to_stdout,
    words_of,
)
from batchframe.errors import ParameterError, RunTimeoutError

if TYPE_CHECKING:
    import pyarrow as pa

    from batchframe.tables import Format, RowsOfFile

__all__ = ["complete", "estimate"]

_CHAT = "/v1/chat/completions"


@app.command()
def complete(
    source: o.Source,
    target: o.Target,
    *,
    model: o.Model,
    prompt_col: o.PromptCol = None,
    id_col: o.IdCol = None,
    template: o.Template = None,
    system: o.System = None,
    param: o.Params = None,
    extra_body: o.ExtraBody = None,
    response_format: o.ResponseFormat = None,
    endpoint: o.Endpoint = _CHAT,
    output: o.Output = "completion",
    details: o.Details = False,
    from_: o.From = None,
    to: o.To = None,
    checkpoint: o.Checkpoint = None,
    max_cost: o.MaxCost = None,
    max_error_ratio: o.MaxErrorRatio = None,
    price: o.Price = None,
    dedupe: o.Dedupe = False,
    retry_failed: o.RetryFailed = False,
    max_retries: o.MaxRetries = 3,
    batch_size: o.BatchSize = None,
    max_live: o.MaxLive = None,
    max_enqueued_tokens: o.MaxEnqueuedTokens = None,
    dialect: o.Dialect = None,
    poll_interval: o.PollInterval = None,
    timeout: o.Timeout = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Do what can be done now and do not wait: collect what has ended, send what fits. "
            "Exit code 3 until all is done and written.",
        ),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit code 5, and not 0, where rows have no answer."),
    ] = False,
    no_progress: o.NoProgress = False,
    as_json: o.Json = False,
) -> None:
    """Answer the prompts of a file through the Batch API.

    \b
      batchframe complete in.csv out.csv --prompt-col prompt --id-col id --model gpt-4o-mini

    \b
    As a cron job, every ten minutes until it is done:
      batchframe complete in.jsonl out.jsonl --template "Summarise {title}: {body}" --id-col id
        --model gpt-4o-mini --checkpoint /var/lib/summaries --detach --no-progress

    OUT appears when all is done. It has the rows of IN in their order, as they are, and their
    answers, statuses, tokens and costs as further columns. The same line again resumes, and pays
    for new rows only. Ids of CSV are text, as they stand there: 007 stays 007.

    --json prints is_done, out, checkpoint, n_rows, rows (by status), n_failures, cost_usd,
    input_tokens and output_tokens.
    """
    given = locals()
    if as_json and target == "-":
        raise typer.BadParameter("the rows go to stdout already", param_hint="--json")
    keywords = o.keywords_of(given) | {"progress": not no_progress, "max_cost_usd": max_cost}
    # Of the source and the target, not of the call.
    columns = (keywords.pop("prompt_col"), keywords.pop("id_col"))
    job = _Job(source, target, _format(source, from_, "--from"), _format(target, to, "--to"))
    try:
        new = job.complete(columns, keywords, detach=detach)
    except RunTimeoutError as error:
        new = None
        if not no_progress:
            say(" ".join([str(error), *getattr(error, "__notes__", ())]))
    if new is None:
        path = _checkpoint_of(columns, keywords)
        if detach and not no_progress:
            say(f"Not done yet; run the same line again. The checkpoint is {path}")
        if as_json:
            show_json(_not_done(path, dialect))
        raise typer.Exit(Exit.NOT_DONE)
    told = _told(new, output)
    if as_json:
        show_json(
            {"is_done": True, "out": target, "checkpoint": _checkpoint_of(columns, keywords)} | told
        )
    _tell(told, target, quiet=no_progress)
    if strict and told["n_failures"]:
        raise typer.Exit(Exit.UNANSWERED)


@app.command()
def estimate(
    source: o.Source,
    *,
    model: o.Model,
    prompt_col: o.PromptCol = None,
    id_col: o.IdCol = None,
    template: o.Template = None,
    system: o.System = None,
    param: o.Params = None,
    extra_body: o.ExtraBody = None,
    response_format: o.ResponseFormat = None,
    endpoint: o.Endpoint = _CHAT,
    from_: o.From = None,
    checkpoint: o.Checkpoint = None,
    price: o.Price = None,
    dedupe: o.Dedupe = False,
    retry_failed: o.RetryFailed = False,
    batch_size: o.BatchSize = None,
    max_live: o.MaxLive = None,
    max_enqueued_tokens: o.MaxEnqueuedTokens = None,
    dialect: o.Dialect = None,
    as_json: o.Json = False,
) -> None:
    """Say what `complete` would send and cost, without a key.

    \b
      batchframe estimate in.csv --prompt-col prompt --id-col id --model gpt-4o-mini
        --param max_completion_tokens=100

    --json prints the fields of batchframe.Estimate; ranges have low and high, and high is null
    where there is no bound.
    """
    from batchframe.frames import accessor
    from batchframe.tables import needed_of

    keywords = o.keywords_of(locals())
    columns = (keywords.pop("prompt_col"), keywords.pop("id_col"))
    rows = _rows_of(source, _format(source, from_, "--from"))
    needed = needed_of(rows, _needed(columns, keywords))
    found = accessor.estimate(needed, *columns, **keywords)
    if as_json:
        show_json(asdict(found))
    else:
        show(in_options(repr(found)))


class _Job:
    """One file to be answered into another."""

    def __init__(self, source: str, target: str, from_: "Format", to: "Format") -> None:
        """Check what can be checked before anything is read."""
        self._source, self._target, self._from, self._to = source, target, from_, to
        path = expanded(target)
        self._path = None if target == "-" else path
        if target == "-":
            return
        if not path.parent.is_dir():
            raise ParameterError(f"There is no directory {path.parent}. Nothing was sent.")
        if source != "-" and path.resolve() == expanded(source).resolve():
            raise ParameterError(
                f"{target} is the file that is read. Nothing was sent. Name another one."
            )
        from batchframe.storage import check_replaceable

        check_replaceable(path)

    def complete(
        self, columns: tuple[str | None, str | None], keywords: dict[str, Any], *, detach: bool
    ) -> "pa.Table | None":
        """Have the rows answered and written. Returns the new columns; None while not done."""
        if self._is_streamed(columns, keywords, detach=detach):
            return self._stream(columns, keywords)
        from batchframe.frames import accessor
        from batchframe.tables import needed_of, writer_of

        rows = _rows_of(self._source, self._from)
        table = needed_of(rows, _needed(columns, keywords))
        write = writer_of(rows, self._to)
        if detach:
            run = accessor.submit(table, *columns, **keywords)
            if not run.detach():
                return None
            answered = run.result()
        else:
            answered = accessor.complete(table, *columns, **keywords)
        new = answered.select(answered.column_names[table.num_columns :])
        if self._path is None:
            to_stdout(lambda file: write(file, new))
            return new
        from batchframe.storage import replacing

        with replacing(self._path) as temporary, temporary.open("xb") as file:
            write(file, new)
        return new

    def _is_streamed(
        self, columns: tuple[str | None, str | None], keywords: Mapping[str, Any], *, detach: bool
    ) -> bool:
        """True where neither the files nor the options ask for all rows at once."""
        from batchframe.tables import Format

        is_file = self._path is not None and self._source != "-"
        is_whole = detach or keywords["dedupe"] or keywords["max_cost_usd"] is not None
        formats = {self._from, self._to}
        return is_file and formats == {Format.PARQUET} and columns[1] is not None and not is_whole

    def _stream(
        self, columns: tuple[str | None, str | None], keywords: Mapping[str, Any]
    ) -> "pa.Table":
        import pyarrow.parquet as pq

        from batchframe.frames import accessor

        whole = {"dedupe", "max_cost_usd"}
        streamed = {name: value for name, value in keywords.items() if name not in whole}
        path = accessor.complete_parquet(self._source, self._target, *columns, **streamed)
        output = keywords["output"]
        new = [f"{output}_{name}" for name in ("status", "cost_usd", *_TOKENS)]
        return pq.read_table(path, columns=new, partitioning=None)


def _format(path: str, given: o.FileFormat | None, option: str) -> "Format":
    from batchframe.tables import Format, format_of

    return format_of(path, option) if given is None else Format(given.value)


def _rows_of(source: str, format_: "Format") -> "RowsOfFile":
    from batchframe.tables import read_rows

    if source == "-":
        return read_rows(sys.stdin.buffer.read(), format_, "standard input")
    try:
        data = expanded(source).read_bytes()
    except OSError as error:
        raise ParameterError(
            f"{source} cannot be read: {error.strerror}. Nothing was sent."
        ) from None
    return read_rows(data, format_, source)


def _needed(columns: tuple[str | None, str | None], keywords: Mapping[str, Any]) -> set[str]:
    """The columns that a call reads."""
    from batchframe.frames.inputs import template_fields

    template = keywords["template"]
    fields = [] if template is None else template_fields(template)
    return {name for name in (*columns, *(name for _, name in fields)) if name is not None}


def _checkpoint_of(columns: tuple[str | None, str | None], keywords: Mapping[str, Any]) -> str:
    from batchframe.frames import accessor

    if keywords["checkpoint"] is not None:
        return str(keywords["checkpoint"])
    return str(accessor.checkpoint_of(*columns, keywords))


_TOKENS = ("input_tokens", "output_tokens")


def _told(new: "pa.Table", output: str) -> dict[str, Any]:
    """What became of the rows, by their new columns."""
    import pyarrow.compute as pc

    from batchframe.core.statuses import ANSWERED

    rows = dict(Counter(new[f"{output}_status"].to_pylist()).most_common())
    cost = new[f"{output}_cost_usd"]
    sums = {name: pc.sum(new[f"{output}_{name}"]).as_py() or 0 for name in _TOKENS}
    return {
        "n_rows": len(new),
        "rows": rows,
        "n_failures": sum(n for word, n in rows.items() if word not in ANSWERED),
        "cost_usd": None if cost.null_count else pc.sum(cost).as_py() or 0.0,
        **sums,
    }


def _not_done(path: str, dialect: str | None) -> dict[str, Any]:
    """The same of a checkpoint that is not done."""
    from batchframe.frames.runs import open_run

    status = open_run(path, dialect=dialect).status()
    return {
        "is_done": False,
        "out": None,
        "checkpoint": path,
        "n_rows": status.n_rows,
        "rows": dict(status.rows),
        "n_failures": status.n_failures,
        "cost_usd": status.cost_usd,
        "input_tokens": status.input_tokens,
        "output_tokens": status.output_tokens,
    }


def _tell(told: Mapping[str, Any], target: str, *, quiet: bool) -> None:
    from batchframe.core.texts import dollars

    n_failures = told["n_failures"]
    if quiet and not n_failures:
        return
    cost = "an unknown cost" if told["cost_usd"] is None else dollars(told["cost_usd"])
    where = "" if target == "-" else f" Written to {target}."
    rows = told["rows"]
    what = f"{count(told['n_rows'], 'row')}: {words_of(rows)}" if rows else "no rows"
    way_out = " Try those again with --retry-failed." if n_failures else ""
    say(f"{what}; {cost}.{where}{way_out}")
