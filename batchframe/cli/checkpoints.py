"""What there is to do with a checkpoint: look, wait, cancel, read, add up, remove."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchframe.cli import options as o
from batchframe.cli.app import Exit, app, count, expanded, say, show, show_json, to_stdout, words_of
from batchframe.errors import CheckpointCorruptError, CheckpointError, RunTimeoutError
from batchframe.layout import HOME

if TYPE_CHECKING:
    from batchframe.frames.runs import Run
    from batchframe.run_status import RunStatus

__all__ = ["cancel", "purge", "report", "results", "runs", "status", "usage", "wait"]

_WATCH_SECONDS = 10.0


@app.command()
def status(
    directory: o.Directory,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every ten seconds until it is done.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Say where a run stands.

    \b
      batchframe status .batchframe/4f0c...

    Nothing is sent, and another process may work on it. Live batches are asked how they are where
    there is a key; else they are as they were seen last.

    --json prints path, model, endpoint, n_rows, rows (by where they stand), batches, n_done,
    n_failures, cost_usd, input_tokens, output_tokens, eta_seconds, kept_until, is_done and
    is_at_work; with --watch one object in each line.
    """
    run = _opened(directory)
    while True:
        there = run.status()
        if as_json:
            show_json(_status_fields(there))
        else:
            show(f"\x1b[H\x1b[2J{there!r}" if watch and sys.stdout.isatty() else repr(there))
        if not watch or there.is_done:
            return
        if not as_json and not _is_at_work(directory):
            say(f"no process works on it: batchframe wait {directory} does.")
        time.sleep(_WATCH_SECONDS)


@app.command()
def wait(
    directory: o.Directory,
    *,
    timeout: o.Timeout = None,
    max_retries: o.MaxRetries = 3,
    batch_size: o.BatchSize = None,
    max_live: o.MaxLive = None,
    max_enqueued_tokens: o.MaxEnqueuedTokens = None,
    poll_interval: o.PollInterval = None,
    dialect: o.Dialect = None,
    no_progress: o.NoProgress = False,
    as_json: o.Json = False,
) -> None:
    """Work on a run until it is done.

    \b
      batchframe wait .batchframe/4f0c... --timeout 3600

    It sends and collects what is left, and prints where the run stands then. It needs no rows: what
    was prepared is in the checkpoint. `results` writes the answers, and so
    does `complete`, which also sends rows that were never prepared.

    --json prints what `status --json` prints.
    """
    run = _opened(
        directory,
        progress=not no_progress,
        max_retries=max_retries,
        poll_interval=poll_interval,
        limits=o.limits_of(batch_size, max_live, max_enqueued_tokens),
        dialect=dialect,
    )
    is_late = False
    try:
        run.wait(timeout)
    except RunTimeoutError:
        is_late = True
    finally:
        run.detach()
    _show(run.status(), as_json=as_json)
    if is_late:
        if not no_progress:
            say("not done yet; run the same line again. Its batches go on at the provider.")
        raise typer.Exit(Exit.NOT_DONE)


@app.command()
def cancel(directory: o.Directory, *, dialect: o.Dialect = None, as_json: o.Json = False) -> None:
    """Send nothing more of a run, and cancel its live batches.

    \b
      batchframe cancel .batchframe/4f0c...

    What they did by then is paid and kept: `wait` collects it, within about ten minutes. With
    --retry-failed, the same line of `complete` sends the rest again.

    --json prints what `status --json` prints.
    """
    run = _opened(directory, dialect=dialect)
    run.cancel()
    say(f"cancelled. What is done by then is collected by: batchframe wait {directory}")
    if as_json:
        _show(run.status(), as_json=True)


@app.command()
def results(directory: o.Directory, target: o.Target, *, to: o.To = None) -> None:
    """Write all answers of a checkpoint to a file.

    \b
      batchframe results .batchframe/4f0c... answers.csv

    One row for each request that has a result: id (as text), status, completion, error_code,
    error_message, the tokens, cost_usd, http_status, finish_reason, model, request_id, batch_id.
    """
    from batchframe.frames import accessor
    from batchframe.storage import replacing
    from batchframe.tables import Format, format_of, write_table

    format_ = format_of(target, "--to") if to is None else Format(to.value)
    table = accessor.results(directory)
    if target == "-":
        to_stdout(lambda file: write_table(file, table, format_))
        return
    with replacing(expanded(target)) as path, path.open("xb") as file:
        write_table(file, table, format_)
    say(f"{count(len(table), 'row')} written to {target}.")


@app.command()
def usage(directory: o.Directory, *, price: o.Price = None, as_json: o.Json = False) -> None:
    """Add up tokens and dollars of a checkpoint.

    \b
      batchframe usage .batchframe/4f0c...

    --json prints cost_usd, saved_usd, lines (model, category, tokens, cost_usd, requests,
    standard_usd) and differences (batches that the provider counts otherwise).
    """
    from batchframe.frames import accessor

    found = accessor.usage(directory, prices=o.prices_of(price))
    if not as_json:
        show(repr(found))
        return
    show_json(
        {
            "cost_usd": found.cost_usd,
            "saved_usd": found.saved_usd,
            "lines": found.table.to_pylist(),
            "differences": [
                {"batch_id": one.batch_id, "rows": _tokens(one.rows), "batch": _tokens(one.batch)}
                for one in found.differences
            ],
        }
    )


def _tokens(used: Any) -> dict[str, int]:
    import msgspec

    fields: dict[str, int] = msgspec.to_builtins(used)
    return fields


@app.command()
def runs(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="Where checkpoints are.")
    ] = Path(HOME),
    *,
    as_json: o.Json = False,
) -> None:
    """List the runs in a directory of checkpoints.

    \b
      batchframe runs
      batchframe runs /var/lib/runs

    Those that changed last come first.

    --json prints an array of what `status --json` prints.
    """
    from batchframe.frames.runs import runs as found_in

    found = []
    for run in found_in(directory):
        try:
            found.append(run.status())
        except CheckpointError as error:
            say(f"{run.path} is left out: {error}")
    if as_json:
        show_json([_status_fields(one) for one in found])
    elif found:
        show("\n".join(_table([_COLUMNS, *map(_line, found)])))
    else:
        say(f"there are no runs in {directory}.")


_COLUMNS = ("checkpoint", "model", "rows", "done", "cost", "now")


def _line(one: "RunStatus") -> tuple[str, ...]:
    from batchframe.core.texts import dollars, printable

    failed = f", {one.n_failures:,} without an answer" if one.n_failures else ""
    now = "done" if one.is_done else words_of(one.batches)
    return (
        printable(str(one.path)),
        printable(one.model or "of each row"),
        f"{one.n_rows:,}",
        f"{one.n_done:,}",
        "unknown" if one.cost_usd is None else dollars(one.cost_usd),
        f"{now}{failed}",
    )


def _table(lines: list[tuple[str, ...]]) -> list[str]:
    """Lines of columns; the numbers, which are in the middle, end where they end."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if 2 <= place <= 4 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


@app.command()
def report(
    directory: o.Directory,
    target: Annotated[Path, typer.Argument(metavar="OUT.html", help="The page that is written.")],
) -> None:
    """Write one HTML page about a run.

    \b
      batchframe report .batchframe/4f0c... report.html

    It shows batches in time, failures, tokens and spend. It holds no
    prompt and no answer, and needs no network to be read.
    """
    say(f"written to {_opened(directory).report(target)}.")


@app.command()
def purge(
    directory: o.Directory,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also what is paid and not collected yet, or is broken."),
    ] = False,
) -> None:
    """Remove a checkpoint and all of its answers.

    \b
      batchframe purge .batchframe/4f0c...

    The same rows are paid again afterwards. Files that were written by `complete` stay.
    """
    from batchframe.checkpoint import Checkpoint, remove_checkpoint
    from batchframe.clock import SystemClock
    from batchframe.run_status import status_of
    from batchframe.storage import Storage

    directory = expanded(directory)
    with ExitStack() as stack:
        try:
            spec = Checkpoint.read(directory, Storage(), SystemClock()).spec
            # Opened, so that no other process begins to work on it meanwhile.
            held = Checkpoint.open(directory, spec, Storage(), SystemClock())
            stack.callback(held.close)
            there = status_of(held, now=SystemClock().now())
        except CheckpointCorruptError:
            if not force:
                raise
            lost = "it is broken"
        else:
            lost = _lost(there)
            if not there.is_done and not force:
                raise CheckpointError(
                    f"{directory} is not done: {lost}. Nothing was removed. First collect it "
                    f"(batchframe wait {directory}), or give it up with --force."
                )
        _ask(f"Remove {directory}: {lost}?", yes=yes)
        remove_checkpoint(directory)
    say(f"{directory} is removed.")


def _lost(there: "RunStatus") -> str:
    """What goes with a checkpoint, in words."""
    from batchframe.core.texts import dollars

    cost = "an unknown cost" if there.cost_usd is None else dollars(there.cost_usd)
    n_live = sum(n for word, n in there.batches.items() if word not in {"waiting", "collected"})
    parts = [f"answers to {count(there.n_rows - _n_open(there.rows), 'row')} that cost {cost}"]
    if n_live:
        batches = "1 batch" if n_live == 1 else f"{n_live:,} batches"
        parts.append(f"{batches} at the provider, paid for and never collected then")
    if waiting := there.rows.get("waiting", 0):
        parts.append(f"{count(waiting, 'row')} that {'was' if waiting == 1 else 'were'} not sent")
    return ", ".join(parts)


def _n_open(rows: Mapping[str, int]) -> int:
    return rows.get("in progress", 0) + rows.get("waiting", 0)


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    # Not typer.confirm, which writes a space to stdout.
    typer.echo(f"{question} [y/N] ", err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        say("nothing was removed.")
        raise typer.Exit(Exit.ERROR)


def _opened(directory: Path, **keywords: Any) -> "Run":
    from batchframe.frames.runs import open_run

    return open_run(directory, **keywords)


def _is_at_work(directory: Path) -> bool:
    from batchframe.frames.sending import read_checkpoint

    return read_checkpoint(directory).is_at_work()


def _show(there: "RunStatus", *, as_json: bool) -> None:
    if as_json:
        show_json(_status_fields(there))
    else:
        show(repr(there))


def _status_fields(there: "RunStatus") -> dict[str, Any]:
    fields = asdict(there) | {"rows": dict(there.rows), "batches": dict(there.batches)}
    return fields | {
        "path": str(there.path),
        "n_failures": there.n_failures,
        "kept_until": None if there.kept_until is None else there.kept_until.isoformat(),
        "is_at_work": _is_at_work(there.path),
    }
