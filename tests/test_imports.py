"""Importing batchframe is cheap, and never imports a library that the user does not use."""

import subprocess
import sys

import pytest

RUN = """
import batchframe as bf, {library}
df = {library}.DataFrame({{"id": [1, 2], "prompt": ["a", None]}})
with bf.emulator.LocalServer() as server:
    out = df.openai_batch.complete(
        "prompt", "id", model="gpt-4o-mini", client=server.client(), checkpoint={path!r}
    )
print(out["completion"].to_list()[0], out["completion_status"].to_list())
"""
#: Makes a library look as if it were not installed.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_imports_no_heavy_library():
    heavy = ("pandas", "polars", "pyarrow", "openai", "tqdm", "starlette", "genai_prices")

    loaded = python(f"import sys, batchframe; print([m for m in {heavy} if m in sys.modules])")

    assert loaded == "[]"


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("order", ["batchframe, {}", "{}, batchframe"])
def test_the_accessor_is_there_whichever_import_comes_first(library, order):
    code = f"import {order.format(library)}; print({library}.DataFrame.openai_batch.__name__)"

    assert python(code) == "OpenAIBatch"


@pytest.mark.parametrize(("library", "hidden"), [("pandas", "polars"), ("polars", "pandas")])
def test_one_frame_library_is_enough(library, hidden, tmp_path):
    code = HIDE.format(library=hidden) + RUN.format(library=library, path=str(tmp_path / "c"))

    assert python(code) == "echo: a ['ok', 'skipped']"


@pytest.mark.parametrize(("library", "other"), [("pandas", "polars"), ("polars", "pandas")])
def test_the_module_of_the_other_frame_library_is_not_loaded(library, other, tmp_path):
    # pyarrow itself imports pandas where it is installed, so pandas proves nothing here.
    code = RUN.format(library=library, path=str(tmp_path / "c")) + (
        f"\nimport sys; print('batchframe.frames.{other}' in sys.modules)"
    )

    assert python(code).splitlines()[-1] == "False"
