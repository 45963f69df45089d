"""In a notebook, bars are widgets where ipywidgets is installed, and text where it is not."""

import nbformat
import pytest
from nbclient import NotebookClient

CALL = """
import batchframe as bf
import polars as pl

df = pl.DataFrame({"id": range(3), "prompt": ["one", "two", "three"]})
with bf.emulator.LocalServer() as server:
    out = df.openai_batch.complete("prompt", "id", model="gpt-4o-mini", client=server.client())
"""


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Run cells in a clean kernel, and return the notebook with its outputs."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def execute(*sources):
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources]
        )
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
        return notebook

    return execute


def test_bars_are_widgets_that_know_their_totals(executed):
    notebook = executed(CALL)
    widgets = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    gauges = [
        (state["value"], state["max"], state["bar_style"])
        for state in (widget["state"] for widget in widgets.values())
        if state["_view_name"] == "ProgressView"
    ]
    assert gauges == [(3, 3, "success")] * 3


def test_without_ipywidgets_bars_are_text_that_changes_in_its_place(executed):
    notebook = executed("import sys; sys.modules['ipywidgets'] = None", CALL)
    (output,) = notebook.cells[1].outputs
    bars = output["data"]["text/plain"].splitlines()
    assert [bar.split("|")[0].split() for bar in bars] == [
        ["Preparing", "100%"],
        ["Sending", "100%"],
        ["Processing", "100%"],
    ]
    assert all("| 3 of 3 rows, " in bar for bar in bars)
    assert "$0.0000" in bars[2]
