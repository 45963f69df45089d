"""The first notebook in JupyterLab, as people run it: bars that move, answers, no errors."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
#: Milliseconds that JupyterLab may take to start, or a notebook to run, on a busy machine.
PATIENCE = 120_000
#: Keeps all that the bars of the page say, from now on.
WATCH_BARS = """
window.said = []
new MutationObserver(() => {
    const texts = [...document.querySelectorAll(".widget-hbox")].map(bar => bar.innerText)
    window.said.push(...texts.filter(text => !window.said.includes(text)))
}).observe(document.body, {subtree: true, childList: true, characterData: true})
"""


@pytest.fixture
def page(browser_page):
    browser_page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    return browser_page


def run_all_cells(page):
    """Start all cells of the notebook that is open, once its kernel is there."""
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def rows(text):
    """What a bar says: how many rows of how many."""
    return [int(number) for number in re.search(r"(\d+)\sof\s(\d+)\srows", text).groups()]


def test_the_quickstart_shows_bars_that_move_and_answers(page, jupyter, tmp_path):
    page.goto(jupyter(NOTEBOOKS / "01_quickstart.ipynb"))
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    bars = page.locator(".widget-hbox", has=page.locator(".widget-hprogress"))
    wrong = page.locator("[data-mime-type$='jupyter.error'], [data-mime-type$='jupyter.stderr']")
    last_has_run = cells.last.locator(".jp-InputPrompt").get_by_text(re.compile(r"\[\d+\]"))

    expect(cells.last).to_be_attached()
    page.evaluate(WATCH_BARS)
    run_all_cells(page)
    expect(bars.nth(2).or_(wrong).first).to_be_visible()
    bars.first.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "running.png")
    expect(last_has_run.or_(wrong).first).to_be_visible()
    page.screenshot(path=tmp_path / "done.png")

    assert wrong.all_inner_texts() == []
    # Three bars of the first call, three of the call with more rows; between them nothing was sent.
    names = ["Preparing", "Sending", "Processing"] * 2
    expect(bars).to_have_text([re.compile(rf"^{name}\s*(\d+)\sof\s\1\srows") for name in names])
    gauge = page.locator(".progress-bar")
    expect(gauge).to_have_count(6)
    for number in range(6):
        expect(gauge.nth(number)).to_have_attribute("style", re.compile(r"width: 100%"))
    # They count the rows of each call, from none on.
    first, *_, more = (rows(text)[1] for text in bars.all_inner_texts())
    expect(cells.nth(7)).to_contain_text(f"{first + more} rows have answers")
    said = [text for text in page.evaluate("said") if "Processing" in text and "rows" in text]
    assert rows(said[0])[0] == 0
    assert [first, first] in map(rows, said)

    answers = cells.nth(3).locator("table tr")
    expect(answers).to_have_count(1 + 8)
    expect(answers.first).to_have_text(re.compile(r"name\s*completion"))
    expect(answers.last).to_contain_text("Recursively copy a directory tree")
    # Dollars are no formulas.
    expect(cells.nth(5)).to_contain_text("saved by batches")
    assert page.locator("mjx-container, .MathJax").count() == 0
    assert page.errors == []
