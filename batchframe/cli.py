"""The command line: each command is a thin shell around what the package does.

Data and what a command has to say go to stdout, errors to stderr: one line, exit code 1, no
traceback. Heavy libraries are imported by the command that needs them, so that --help is quick.
"""

import errno
import signal
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from batchframe.core.texts import printable
from batchframe.demo import run_demo
from batchframe.errors import BatchframeError

__all__ = ["app"]


class _Commands(TyperGroup):
    """Commands whose expected errors are one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BatchframeError as error:
            typer.echo(f"batchframe: {printable(str(error))}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Model(StrEnum):
    ECHO = "echo"
    SMOLLM2 = "smollm2"


class _DemoModel(StrEnum):
    AUTO = "auto"
    SMOLLM2 = "smollm2"
    ECHO = "echo"


@app.callback()
def _about() -> None:
    """A column of prompts through the OpenAI Batch API, at half price."""


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
    """Run the main job on this machine: no key, no cost, about a minute.

    Docstrings of Python's own standard library are summarised through the Batch API, from a pandas
    and from a Polars frame, by a small language model on a local server. Prints the answers, the
    tokens and the cost, and writes all rows to a parquet file.
    """
    run_demo(rows=rows, model=model.value, output=output)


@app.command()
def serve(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 is any free one.")
    ] = 0,
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

    For trying out and testing whatever uses the OpenAI Batch API: it takes any key and any model
    name, and it listens on 127.0.0.1 only.
    """
    from batchframe.emulator import LocalServer

    # Also where a shell started this in the background, and so made it deaf to SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with (
            LocalServer(model.value, directory=directory, port=port) as server,
            suppress(KeyboardInterrupt),
        ):
            typer.echo(
                f"base_url: {server.base_url}\n"
                "\n"
                f"The OpenAI Files and Batches API, answered by {model.value}. "
                "Point a client at it:\n"
                f"  export OPENAI_BASE_URL={server.base_url}\n"
                "  export OPENAI_API_KEY=anything\n"
                "\n"
                f"Files and batches are kept in {directory or 'a temporary folder'}. Ctrl-C stops."
            )
            while True:
                time.sleep(3600)
    except OSError as error:
        raise BatchframeError(_why_not_served(error, port)) from error
    typer.echo("Stopped.")


def _why_not_served(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is in use. Choose another with --port, or leave it out for a free one."
    return f"The server cannot start: {error}"
