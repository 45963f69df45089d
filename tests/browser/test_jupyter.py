"""The first notebook in JupyterLab, as people run it: bars and cards that move, and no errors."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.overview.test_pages import contrast

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
#: Keeps all states of the last card of the page, from now on.
WATCH_CARD = """
window.cards = []
new MutationObserver(() => {
    const card = [...document.querySelectorAll(".batchframe-card")].at(-1)
    const text = card && card.innerText
    if (text && window.cards.at(-1) !== text) window.cards.push(text)
}).observe(document.body, {subtree: true, childList: true, characterData: true})
"""
#: Of each text of a card, and of each colour of its bar: how it is seen, and what is behind it.
SEEN = """
card => {
    const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true})
    const seen = (element, colour) => {
        const grounds = []
        for (let one = element; one; one = one.parentElement)
            grounds.unshift(getComputedStyle(one).backgroundColor)
        for (const layer of [...grounds, colour]) {
            paint.fillStyle = layer
            paint.fillRect(0, 0, 1, 1)
        }
        const parts = [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3)
        return "#" + parts.map(part => part.toString(16).padStart(2, "0")).join("")
    }
    const own = one => [...one.childNodes].some(node => node.nodeType == 3 && node.data.trim())
    const texts = [...card.querySelectorAll("div, span, b")].filter(own)
    const slices = [...card.querySelectorAll(".bf-bar span")]
    const colour = (one, name) => getComputedStyle(one).getPropertyValue(name)
    const pair = (one, name) => [seen(one, colour(one, name)), seen(one, "transparent")]
    return {
        texts: texts.map(one => [one.innerText, ...pair(one, "color")]),
        slices: slices.map(one => [
            one.title, seen(card, colour(one, "--bf-colour")), seen(card, "transparent")
        ]),
    }
}
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


def test_the_card_of_a_run_moves_and_is_readable_by_day_and_by_night(page, jupyter, tmp_path):
    page.goto(jupyter(NOTEBOOKS / "01_quickstart.ipynb"))
    cards = page.locator(".batchframe-card")
    wrong = page.locator("[data-mime-type$='jupyter.error'], [data-mime-type$='jupyter.stderr']")

    expect(page.locator(".jp-Notebook .jp-CodeCell").last).to_be_attached()
    page.evaluate(WATCH_CARD)
    run_all_cells(page)
    expect(cards.nth(1).get_by_text("Done", exact=True).or_(wrong).first).to_be_visible()
    assert wrong.all_inner_texts() == []

    # The first card shows where the run stood then; the second one was drawn until it was done.
    expect(cards).to_have_count(2)
    expect(cards.first.locator(".bf-state")).to_have_text("Running")
    said = page.evaluate("cards")
    assert said[0].startswith("Running")
    assert said[-1].startswith("Done")
    done = [tuple(map(int, re.search(r"(\d+) of (\d+)", text).groups())) for text in said]
    assert done == sorted(done)
    assert done[0][0] < done[-1][0] == done[-1][1]

    for theme, is_light in (("JupyterLab Light", "true"), ("JupyterLab Dark", "false")):
        page.get_by_role("menuitem", name="Settings", exact=True).click()
        for name in ("Theme", theme):
            page.locator(".lm-Menu-item", has_text=re.compile(rf"^{name}\s*$")).click()
        expect(page.locator("body")).to_have_attribute("data-jp-theme-light", is_light)
        cards.first.scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / f"{theme}.png")
        for card in cards.all():
            seen = card.evaluate(SEEN)
            assert len(seen["texts"]) > 10
            for text, ink, ground in seen["texts"]:
                assert contrast(ink, ground) >= 4.5, (theme, text, ink, ground)
            assert seen["slices"]
            for words, colour, ground in seen["slices"]:
                assert contrast(colour, ground) >= 3, (theme, words, colour, ground)
        (ground,) = {ground for _, _, ground in seen["slices"]}
        assert (contrast(ground, "#000000") > contrast(ground, "#ffffff")) == (is_light == "true")
    assert page.errors == []
