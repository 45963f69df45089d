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


SUBMIT = """
import batchframe as bf
import polars as pl

df = pl.DataFrame({"id": range(3), "prompt": ["one", "two", "three"]})
server = bf.emulator.LocalServer(row_seconds=0.3).start()
call = {"prompt_col": "prompt", "id_col": "id", "model": "gpt-4o-mini", "client": server.client()}
run = df.openai_batch.submit(**call)
"""


def gauges(notebook):
    """The bars that are widgets: value, total and style."""
    widgets = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    return [
        (state["value"], state["max"], state["bar_style"])
        for state in (widget["state"] for widget in widgets.values())
        if state["_view_name"] == "ProgressView"
    ]


def test_bars_are_widgets_that_know_their_totals(executed):
    assert gauges(executed(CALL)) == [(3, 3, "success")] * 3


def test_bars_of_a_run_that_goes_on_by_itself_are_not_red(executed):
    preparing, sending, processing = gauges(executed(SUBMIT))
    assert preparing == sending == (3, 3, "success")
    assert (processing[1], processing[2]) == (3, "")


@pytest.mark.parametrize("wait", ["run.wait()", "await run.wait_async()"])
def test_whoever_waits_for_a_run_sees_bars_and_later_none(executed, wait):
    notebook = executed(f"{SUBMIT}\n{wait};", "out = run.result()", wait)
    shown = [[output.output_type for output in cell.outputs] for cell in notebook.cells]
    assert shown == [["display_data"] * 6, [], ["execute_result"]]
    assert gauges(notebook)[3:] == [(3, 3, "success")] * 3


def test_a_call_that_is_awaited_shows_bars_that_come_to_their_end(executed):
    notebook = executed(
        SUBMIT.replace("run = df.openai_batch.submit", "out = await df.openai_batch.acomplete"),
        'out["completion"].to_list()',
    )
    assert "echo: three" in notebook.cells[1].outputs[0].data["text/plain"]
    assert gauges(notebook)[-1] == (3, 3, "success")


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
