"""Each notebook runs from a clean kernel, on its own local server, and shows what it says."""

import importlib
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
#: Of each notebook: what its cells show, in order, among other things.
SHOWN = {
    "01_quickstart": [
        "Summarise in one sentence:",
        "Processing",
        "Recursively copy a directory tree and return the destination directory.",
        "completion_status",
        "Completion",
        "saved by batches",
        "nothing was sent: True",
        "the same answers: True",
        "rows have answers;",
        "Return a list of paths matching a pathname pattern.",
        "Running",
        "in progress",
        "Done",
        "Return the sample variance of data.",
    ],
    "02_polars_and_parquet": [
        "letters",
        "licence_cost_usd",
        "MIT",
        "files became answers.parquet",
        "image/svg+xml",
        "title",
        "input_tokens",
        "Apache",
    ],
    "05_costs_and_budgets": [
        "different texts",
        "dedupe=True would leave them out",
        "as the rows so far had",
        "max_cost_usd=0.001 is too little",
        "saved by batches",
        "image/svg+xml",
        "gpt-4.1-nano",
        "image/svg+xml",
        "image/svg+xml",
        "truncated",
    ],
    "06_resume_after_a_crash": [
        "the first batches are at the provider",
        "its exit code: -9",
        "Running",
        "in progress",
        "waiting",
        "rows were answered when it died",
        "Processing",
        "Done",
        "60 of 60",
        "60 rows were answered, each of them 1 to 1 times",
        "60 requests are on the bill",
        "saved by batches",
        "image/svg+xml",
        "nothing was sent: True",
        "True",
    ],
    "07_etl_pipeline": [
        "send.py  2026-11-23: all ",
        "so far 3 batches",
        "send.py  2026-11-23: all ",
        "so far 3 batches",
        "fetch.py 2026-11-23: ",
        "so far 3 batches",
        "fetch.py 2026-11-23: ",
        "so far 3 batches",
        "send.py  2026-11-24: all ",
        "fetch.py 2026-11-24: ",
        "context_length_exceeded",
        "fetch.py 2026-11-25: ",
        "[('ok', ",
        "saved by batches",
        "image/svg+xml",
        "iframe",
        "Done, some rows have no answer",
    ],
    "03_structured_output": [
        "Bisection algorithms",
        "Int64",
        "list[str]",
        "16 by 16 pixels",
        "audience",
        "has_text",
    ],
    "04_embeddings": [
        "array[f32, 256]",
        "(256,)",
        "similarity",
        "true",
        "flagged",
    ],
}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module", autouse=True)
def fonts():
    """matplotlib looks for fonts when it first runs on a machine, and may say so on stderr."""
    importlib.import_module("matplotlib.font_manager")


@pytest.mark.parametrize("name", SHOWN)
def test_it_runs_from_a_clean_kernel_and_shows_what_it_says(name, tmp_path, monkeypatch):
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read(name)
    work = tmp_path / "work"
    work.mkdir()

    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(work)}}
    ).execute()

    shown = json.dumps([cell.get("outputs") for cell in notebook.cells], ensure_ascii=False)
    place = 0
    for words in SHOWN[name]:
        place = shown.index(words, place) + len(words)
    assert "stderr" not in shown


def test_every_notebook_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_they_are_kept_without_outputs_that_go_stale(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
