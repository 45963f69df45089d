"""`import batchframe` is light, order does not matter, and one frame library is enough.

Each test is a process of its own, because what is imported cannot be forgotten.
"""

import subprocess
import sys
import textwrap

import pytest

#: Makes an import fail as it does where the library is not installed.
HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""

#: Runs the main job on `df`, with the accessor and the function.
RUN = """
import batchframe as bf

with bf.emulator.LocalServer(stage_seconds=0) as server:
    settings = dict(
        model="gpt-4o-mini",
        client=server.client(),
        checkpoint="checkpoint",
        poll_interval=0.01,
    )
    by_accessor = df.openai_batch.complete("prompt", "id", **settings)
    by_function = bf.complete(df, "prompt", "id", **settings)
print(list(by_accessor["completion"]), list(by_function["completion"]))
"""

PANDAS = """
import pandas as pd
df = pd.DataFrame({"id": [1, 2], "prompt": ["one", "two"]})
"""
POLARS = """
import polars as pl
df = pl.DataFrame({"id": [1, 2], "prompt": ["one", "two"]})
"""
ANSWERS = "['echo: one', 'echo: two'] ['echo: one', 'echo: two']"


@pytest.fixture
def python(tmp_path):
    """Run code in a process of its own, with warnings as errors; gives what it prints."""

    def run(*parts):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", "\n".join(map(textwrap.dedent, parts))],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    return run


def imported(*names):
    return f"import sys; print([name for name in {names!r} if name in sys.modules])"


def test_a_call_loads_nothing_of_arrow_that_it_does_not_need(python):
    """Loaded while Ctrl-C ends a process, it would hide that from the process's exit code."""
    shown = python(POLARS, RUN, imported("pyarrow.acero", "pyarrow.dataset"))
    assert shown.splitlines() == [ANSWERS, "[]"]


def test_the_import_loads_no_heavy_library(python):
    frames = ("pandas", "polars", "numpy", "pyarrow")
    others = ("openai", "httpx2", "tqdm", "starlette", "genai_prices")
    heavy = frames + others

    assert python("import batchframe", imported(*heavy)) == "[]"


def test_the_import_loads_nothing_of_its_own_beyond_the_door(python):
    own = "print(sorted(name for name in sys.modules if name.startswith('batchframe')))"

    assert python("import sys, batchframe", own) == (
        "['batchframe', 'batchframe.errors', 'batchframe.frames', 'batchframe.frames.accessor', "
        "'batchframe.frames.adapters', 'batchframe.frames.calls', 'batchframe.frames.questions', "
        "'batchframe.frames.sending', 'batchframe.frames.settings', 'batchframe.parameters']"
    )


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_the_accessor_is_there_whichever_import_comes_first(python, library):
    check = f"print({library}.DataFrame().openai_batch.complete.__name__)"

    assert python("import batchframe", f"import {library}", check) == "complete"
    assert python(f"import {library}", "import batchframe", check) == "complete"


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_importing_again_and_reloading_neither_warn_nor_break(python, library):
    again = """
        import importlib, sys
        import batchframe
        importlib.reload(batchframe)
        for name in [name for name in sys.modules if name.startswith("batchframe")]:
            del sys.modules[name]
        import batchframe
    """
    check = f"print({library}.DataFrame().openai_batch.complete.__name__)"

    assert python(f"import {library}", again, check) == "complete"
    assert python(again, f"import {library}", check) == "complete"


def test_with_pandas_alone_the_main_job_runs(python):
    assert python(HIDE.format(name="polars"), PANDAS, RUN) == ANSWERS


def test_with_polars_alone_the_main_job_runs(python):
    assert python(HIDE.format(name="pandas"), POLARS, RUN) == ANSWERS


def test_pandas_frames_do_not_import_polars(python):
    look = imported("polars", "batchframe.frames.polars")

    assert python(PANDAS, RUN, look) == f"{ANSWERS}\n[]"


def test_polars_frames_do_not_import_our_side_of_pandas(python):
    # pyarrow imports pandas by itself where it is installed.
    look = imported("batchframe.frames.pandas")

    assert python(POLARS, RUN, look) == f"{ANSWERS}\n[]"


def test_without_any_frame_library_the_import_works_and_a_call_says_what_it_takes(python):
    call = """
        import batchframe as bf
        try:
            bf.complete([1], "prompt", "id", model="gpt-4o-mini")
        except bf.ParameterError as error:
            print(error)
    """

    assert python(HIDE.format(name="pandas"), HIDE.format(name="polars"), call) == (
        "A list was passed; complete() takes pandas and Polars DataFrames and pyarrow Tables."
    )
