"""What all commands share: the app, its exit codes, errors in one line, output."""

import json
import os
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from typer.core import TyperGroup

import batchframe
from batchframe.core.texts import printable
from batchframe.errors import (
    BatchframeError,
    CheckpointBusyError,
    ParameterError,
    RunTimeoutError,
)

__all__ = [
    "NOTHING_LOST",
    "Exit",
    "app",
    "count",
    "expanded",
    "in_options",
    "say",
    "show",
    "show_json",
    "to_stdout",
    "words_of",
]

NOTHING_LOST = "Nothing is lost, and nothing is paid again: run the same line again."


class Exit(IntEnum):
    """Exit codes; the help of the app and the README have the same table."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    NOT_DONE = 3
    BUSY = 4
    UNANSWERED = 5
    INTERRUPTED = 130


#: Keywords of the package's messages that are options here.
_KEYWORDS = re.compile(
    r"(?<!\()(?<!metadata )(?<!--price )(?<![\w./-])"  # and not in the name of a model
    r"(checkpoint|dedupe|endpoint|limits|max_cost_usd|max_error_ratio|model|nulls|output"
    r"|response_format|retry_failed|system|template|timeout|id_col|prompt_col)=(True\b|\.\.\.)?"
)
#: Values that are written in another way here: first of all, as they hold such keywords.
_VALUES = (
    (re.compile(r"prices=\{(['\"])(.*?)\1: bf\.Rates\(.*?\)\}"), r"--price \2=IN,OUT"),
    (re.compile(r"\bdialect=(['\"])(.*?)\1"), r"--dialect \2"),
    (re.compile(r"\bprices= "), "--price "),
    (re.compile(r"\bmax_cost_usd\b(?!=)"), "--max-cost"),
    (re.compile(r"(?<!')\b(prompt|id)_col\b(?![='])"), r"--\1-col"),
    (re.compile(r"\b(max_(?:completion_|output_|)tokens)=(?=[ ,;)])"), r"--param \1=..."),
    (re.compile(r", or pass client=OpenAI\(api_key=\.\.\.\)"), ""),
    (
        re.compile(r"`with bf\.emulator\.\w+\(\) as server:` and client=\S+\(\)"),
        "`batchframe serve`",
    ),
    (re.compile(r"limits=bf\.Limits\(max_requests=\.\.\.\)"), "--batch-size"),
    (re.compile(r"Limits\(max_requests=([^).]*)\)"), r"--batch-size \1"),
    (re.compile(r"Limits\(max_live_batches=([^).]*)\)"), r"--max-live \1"),
    (re.compile(r"Limits\(max_enqueued_tokens=([^).]*)\)"), r"--max-enqueued-tokens \1"),
)


def in_options(message: str) -> str:
    """A message of the package in the words of the command line."""

    def option(found: re.Match[str]) -> str:
        name = found[1].removesuffix("_usd").replace("_", "-")
        return (
            f"--{name}"
            if found[2] or message[found.end() : found.end() + 1] in " .,;"
            else (f"--{name} ")
        )

    for value, written in _VALUES:
        message = value.sub(written, message)
    message = _KEYWORDS.sub(option, message)
    return re.sub(r"\bthe (same )?call again", r"the \1line again", message)


def expanded(path: str | Path) -> Path:
    """A path of the line, with ~ for a home directory.

    Raises ParameterError where there is none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ParameterError(f"{path} names no known home directory. Nothing was sent.") from None


def say(message: str) -> None:
    """A message for people, on stderr: one line, which a terminal breaks between words."""
    line = f"batchframe: {printable(message)}"
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        line = textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
    typer.echo(line, err=True)


def show(text: str) -> None:
    """Data for people, on stdout."""
    to_stdout(lambda file: file.write(f"{text}\n".encode(_encoding(), "backslashreplace")))


def show_json(value: Any) -> None:
    """Data for programs, on stdout: one value of JSON, in one line."""
    to_stdout(lambda file: file.write(json.dumps(value).encode() + b"\n"))


def _encoding() -> str:
    return sys.stdout.encoding or "utf-8"


def to_stdout(write: Callable[[BinaryIO], Any]) -> None:
    """Write data to stdout; whoever reads it may stop reading."""
    try:
        sys.stdout.flush()
        write(sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Or the interpreter's own flush at its end would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say("whoever read the output stopped reading.")
        raise typer.Exit(Exit.ERROR) from None


#: The commands in the order of --help: as one needs them.
_ORDER = (
    *("doctor", "estimate", "complete", "status", "wait", "cancel", "results", "usage"),
    *("report", "runs", "purge", "serve", "demo"),
)


class _Commands(TyperGroup):
    """Commands whose expected errors are one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        warnings.showwarning = _say_warning
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            say(_with_notes(stopped, "Stopped.", f"Batches go on at the provider. {NOTHING_LOST}"))
            raise typer.Exit(Exit.INTERRUPTED) from None
        except BatchframeError as error:
            say(_with_notes(error, in_options(str(error))))
            match error:
                case RunTimeoutError():
                    code = Exit.NOT_DONE
                case CheckpointBusyError():
                    code = Exit.BUSY
                case _:
                    code = Exit.ERROR
            raise typer.Exit(code) from error
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            say(_with_notes(error, f"{error.strerror or error}{where}.", NOTHING_LOST))
            raise typer.Exit(Exit.ERROR) from error


def _with_notes(error: BaseException, message: str, default: str = "") -> str:
    notes = [in_options(note) for note in getattr(error, "__notes__", ())] or [default]
    # An error's message may say by itself what its note says.
    return " ".join([message, *(note for note in notes if note and note not in message)])


def _say_warning(message: Warning | str, *_where: Any, **_more: Any) -> None:
    say(in_options(str(message)))


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _say_version(is_asked: bool) -> None:
    if is_asked:
        show(f"batchframe {batchframe.__version__}")
        raise typer.Exit


@app.callback()
def _about(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    """A column of prompts through the OpenAI Batch API, at half price.

    \b
      batchframe complete in.csv out.csv --prompt-col prompt --id-col id --model gpt-4o-mini

    Run the same line again to resume: what is paid is kept in a checkpoint, and never paid twice.
    The key comes from OPENAI_API_KEY, and another address from OPENAI_BASE_URL.

    \b
    Exit codes:
      0    done
      1    an error; the message says what to do
      2    the line is not one that batchframe knows
      3    not done yet: the work goes on at the provider; run the same line again
      4    busy: another process works on this checkpoint
      5    done and written, but rows have no answer; only with --strict
      130  stopped by Ctrl-C; the batches go on
    """


def count(n: int, what: str) -> str:
    """A number with its noun: "1 row", "2,000 rows"."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def words_of(counts: Mapping[str, int]) -> str:
    """Counts by word: "990 ok, 10 failed"."""
    return ", ".join(f"{n:,} {word}" for word, n in counts.items())
