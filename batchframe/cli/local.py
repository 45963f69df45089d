"""What runs on this machine alone, or looks at it: doctor, serve and demo."""

import errno
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from batchframe.cli import options as o
from batchframe.cli.app import Exit, app, show, show_json
from batchframe.demo import run_demo
from batchframe.errors import BatchframeError

__all__ = ["demo", "doctor", "serve"]


class _Model(StrEnum):
    ECHO = "echo"
    SMOLLM2 = "smollm2"


class _DemoModel(StrEnum):
    AUTO = "auto"
    SMOLLM2 = "smollm2"
    ECHO = "echo"


@app.command()
def doctor(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIRECTORY", help="Where checkpoints are to be kept."),
    ] = Path(),
    *,
    as_json: o.Json = False,
) -> None:
    """Look whether all is there that a run needs.

    \b
      batchframe doctor /var/lib/runs

    It looks at the key, the address, the clock and the disk. Each line says ok, or what is wrong
    and how to mend it; exit code 1 if something is. The key is never shown, and nothing is paid.

    --json prints an array of check, is_ok and message.
    """
    from batchframe.core.texts import printable
    from batchframe.doctor import examine

    findings = []
    for found in examine(directory):
        findings.append(found)
        if not as_json:
            word = "ok   " if found.is_ok else "WRONG"
            show(f"{word}  {found.check:<8}  {printable(found.message)}")
    if as_json:
        show_json([asdict(found) for found in findings])
    if not all(found.is_ok for found in findings):
        raise typer.Exit(Exit.ERROR)


@app.command()
def serve(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 is any free one.")
    ] = 0,
    dialect: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The service that it speaks like: openai, azure, groq, ..., generic.",
        ),
    ] = "openai",
    model: Annotated[
        _Model,
        typer.Option(help="Who answers: echo repeats the prompt, smollm2 is a small real model."),
    ] = _Model.ECHO,
    directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where files and batches are kept, to be found again by the next server. "
            "Without it they go when the server stops.",
        ),
    ] = None,
) -> None:
    """Serve the Files and Batches API here until Ctrl-C.

    \b
      batchframe serve --port 8000

    For trying out and testing whatever uses the OpenAI Batch API: it takes any key and any model
    name, and it listens on 127.0.0.1 only.
    """
    from batchframe.emulator import LocalServer

    # Also where a shell started this in the background, and so made it deaf to SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with (
            LocalServer(model.value, directory=directory, port=port, dialect=dialect) as server,
            suppress(KeyboardInterrupt),
        ):
            typer.echo(
                f"base_url: {server.base_url}\n"
                "\n"
                f"The OpenAI Files and Batches API, answered by {model.value}. "
                "Point a client at it:\n"
                f"  export OPENAI_BASE_URL={server.base_url}\n"
                "  export OPENAI_API_KEY=anything\n"
                f"{_spoken(dialect)}"
                "\n"
                f"Files and batches are kept in {directory or 'a temporary folder'}. Ctrl-C stops."
            )
            while True:
                time.sleep(3600)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--dialect") from None
    except OSError as error:
        raise BatchframeError(_why_not_served(error, port)) from error
    typer.echo("Stopped.")


@app.command()
def demo(
    *,
    rows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rows in each frame: pandas and Polars.")
    ] = 24,
    model: Annotated[
        _DemoModel,
        typer.Option(help="Who answers; auto is smollm2 where it is installed, else echo."),
    ] = _DemoModel.AUTO,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="The parquet file to write."),
    ] = Path("batchframe-demo.parquet"),
) -> None:
    """Run the main job on this machine: no key, no cost.

    \b
      batchframe demo --rows 24

    Docstrings of Python's own standard library are summarised through the Batch API, from a pandas
    and from a Polars frame, by a small language model on a local server. Prints the answers, the
    tokens and the cost, and writes all rows to a parquet file.
    """
    run_demo(rows=rows, model=model.value, output=output)


def _spoken(dialect: str) -> str:
    if dialect == "openai":
        return ""
    return f"It speaks the dialect of another service: pass dialect={dialect!r}.\n"


def _why_not_served(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is in use. Choose another with --port, or leave it out for a free one."
    return f"The server cannot start: {error}"
