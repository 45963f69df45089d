"""What runs on this machine alone, or looks at it: doctor, serve and demo."""

import errno
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchframe.cli import options as o
from batchframe.cli.app import Exit, app, expanded, say, show, show_json
from batchframe.core.addresses import is_loopback
from batchframe.demo import run_demo
from batchframe.errors import BatchframeError

if TYPE_CHECKING:
    from batchframe.emulator import Fault, LocalServer, Upstream

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
    for found in examine(expanded(directory)):
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
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="The address to listen on. One that other machines reach, say 0.0.0.0, needs "
            "--token-env.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="The port; 0 is any free one.")
    ] = 0,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The environment variable that holds the only key that is let in. Without it any "
            "key is.",
        ),
    ] = None,
    dialect: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The service that it speaks like: openai, azure, groq, ..., generic.",
        ),
    ] = "openai",
    model: Annotated[
        _Model | None,
        typer.Option(
            help="Who answers: echo repeats the prompt, smollm2 is a small real model.  "
            "[default: echo]"
        ),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Let another OpenAI-compatible server answer, say http://127.0.0.1:11434/v1.",
        ),
    ] = None,
    upstream_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The environment variable that holds its key."),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Rows that the upstream or smollm2 has at once."),
    ] = 2,
    directory: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where files and batches are kept, to be found again by the next server. "
            "Without it they go when the server stops.",
        ),
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:TIMES]",
            help="What goes wrong, in the next call that can meet it, or in so many, or in all. "
            "May be given many times.",
        ),
    ] = None,
    stage_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long validating, finalizing and cancelling last, and in_progress at least.",
        ),
    ] = 0.05,
    row_seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time from row to row of a batch.")
    ] = 0.0,
    enqueued_token_limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Prompt tokens that may be queued for each model."),
    ] = None,
    webhook_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where the end of each batch is told, signed."),
    ] = None,
    webhook_secret_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The environment variable that holds the secret that signs it. Without it one is "
            "made and shown.",
        ),
    ] = None,
) -> None:
    """Serve the Files and Batches API here until Ctrl-C.

    \b
      batchframe serve --port 8000
      batchframe serve --upstream http://127.0.0.1:11434/v1 --concurrency 8 --directory DIR
      batchframe serve --fault reply-lost-after-create --fault error-on-retrieve:3

    For trying out and testing whatever uses the OpenAI Batch API, and for a Batch API in front of
    Ollama, vLLM, llama.cpp or a gateway. It takes any key and any model name, and it listens on
    127.0.0.1 only. With --directory it goes on where the last one was, also after a kill: rows
    that were answered are not asked again.

    With --host and --token-env other machines reach it, over plain http: whoever listens on the
    way reads the token and the prompts, and batchframe itself refuses such an address. Put a proxy
    with https before it.

    An upstream that is away or busy is waited for; other errors that may pass are asked 8 times;
    any other answer is the row's. Its key is neither stored nor shown.

    \b
    Faults, each once, or as often as :TIMES says (a number, or all):
      reply-lost-after-upload   the file is kept, and the connection closed
      error-on-upload           500, and no file is kept
      reply-lost-after-create   the batch is made, and the connection closed
      error-after-create        the batch is made, and the answer is 500
      error-on-create           500, and no batch is made
      rate-limited              429, Retry-After 1, and no batch is made
      queue-full                400 token_limit_exceeded, and no batch is made
      no-money                  429 insufficient_quota, and no batch is made
      file-not-found            400: the file just uploaded cannot be found
      list-lag                  lists show the batch a minute late
      expired                   the batch expires with one row executed
      error-on-retrieve         500 for a look
      unknown-status            a look shows a status that nobody knows
      download-cut              a download ends after 100 bytes, with its connection
      error-on-download         502 for a download
      line-missing              a line of the output file is left out
      line-twice                a line of the output file is there twice
      line-torn                 the last line of the output file is cut in half

    \b
    Or in full, for more of them: OPERATION=KIND[:ARGUMENT][@FIRST][*TIMES], as in
      batches.create=error-before:503:30@2*all    503 with Retry-After, from the second call on
    """
    from batchframe.emulator import LocalServer, Upstream

    source = _source(model, upstream, upstream_key_env)
    if token_env is None and not is_loopback(host):
        raise typer.BadParameter(
            f"other machines may reach {host}: give --token-env NAME", param_hint="--host"
        )
    if webhook_url is None and webhook_secret_env is not None:
        raise typer.BadParameter("there is no --webhook-url", param_hint="--webhook-secret-env")
    token = _of_environment(token_env, "--token-env")
    secret = _of_environment(webhook_secret_env, "--webhook-secret-env")
    try:
        local = LocalServer(
            source,
            directory=directory,
            host=host,
            port=port,
            token=token,
            concurrency=concurrency,
            stage_seconds=stage_seconds,
            row_seconds=row_seconds,
            enqueued_token_limit=enqueued_token_limit,
            webhook_url=webhook_url,
            webhook_secret=secret,
            faults=_faults(fault or ()),
            dialect=dialect,
        )
    except ValueError as error:  # no address or dialect, or a token or a secret that cannot be one
        raise typer.BadParameter(str(error)) from error
    # Also where a shell started this in the background, and so made it deaf to SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with local as server, suppress(KeyboardInterrupt):
            typer.echo(_welcome(server, source, directory, token_env, dialect))
            if webhook_url is not None and secret is None:
                typer.echo(f"Webhooks are signed with {server.webhook_secret}")
            if isinstance(source, Upstream) and (wrong := source.look()) is not None:
                say(f"{wrong} Batches are taken all the same, and their rows wait.")
            while True:
                time.sleep(3600)
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


def _source(model: _Model | None, upstream: str | None, key_env: str | None) -> "str | Upstream":
    """Who answers, as LocalServer takes it."""
    from batchframe.emulator import Upstream

    if upstream is None:
        if key_env is not None:
            raise typer.BadParameter("there is no --upstream", param_hint="--upstream-key-env")
        return (model or _Model.ECHO).value
    if model is not None:
        raise typer.BadParameter("it is the upstream that answers", param_hint="--model")
    return Upstream(upstream, key_env=key_env)


def _faults(texts: Iterable[str]) -> "list[Fault]":
    from batchframe.emulator import Fault

    try:
        return [Fault.parse(text) for text in texts]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from error


def _welcome(
    server: "LocalServer",
    source: "str | Upstream",
    directory: Path | None,
    token_env: str | None,
    dialect: str,
) -> str:
    """What a server says when it has started."""
    key = "anything" if token_env is None else f'"${token_env}"'
    name = source if isinstance(source, str) else source.name
    return (
        f"base_url: {server.base_url}\n"
        "\n"
        f"The OpenAI Files and Batches API, answered by {name}. "
        "Point a client at it:\n"
        f"  export OPENAI_BASE_URL={server.base_url}\n"
        f"  export OPENAI_API_KEY={key}\n"
        f"{_spoken(dialect)}"
        "\n"
        f"Files and batches are kept in {directory or 'a temporary folder'}. Ctrl-C stops."
    )


def _of_environment(name: str | None, option: str) -> str | None:
    """What the variable holds, which stands in no list of processes; None for no variable."""
    if name is None:
        return None
    value = os.environ.get(name)
    if not value:
        raise typer.BadParameter(f"the environment variable {name} is not set", param_hint=option)
    return value


def _spoken(dialect: str) -> str:
    if dialect == "openai":
        return ""
    return f"It speaks the dialect of another service: pass dialect={dialect!r}.\n"


def _why_not_served(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is in use. Choose another with --port, or leave it out for a free one."
    return f"The server cannot start: {error}"
