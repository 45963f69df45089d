"""The report of a run, opened from disk: whole at any width, and it asks nobody for anything."""

import pandas as pd
import pytest
from playwright.sync_api import expect

import batchframe as bf

HEADINGS = [
    "Rows",
    "Batches over time",
    "Rows that are not ok",
    "Tokens and dollars",
    "Settings",
    "Batches",
]


def answer(request):
    text = request["messages"][-1]["content"]
    if "number 7" in text:
        message = f"The prompt of {len(text)} characters is more than this model takes. " * 3
        return 400, {"error": {"message": message, "code": "context_length_exceeded"}}
    return f"An answer to {text}"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a run of nine batches, with rows that failed; some names are long."""
    folder = tmp_path_factory.mktemp("report")
    df = pd.DataFrame(
        {
            "id": [f"a-document-with-a-rather-long-identifier-{n:06}" for n in range(45)],
            "prompt": [f"What is number {n}?" for n in range(45)],
        }
    )
    with bf.emulator.LocalServer(answer, row_seconds=0.01) as server:
        run = df.openai_batch.submit(
            "prompt",
            "id",
            model="gpt-4o-mini",
            system="Answer in one sentence, " + "and never in two, " * 12,
            limits=bf.Limits(max_requests=5),
            checkpoint=folder / "a_run_whose_name_has_no_place_to_break_the_line",
            client=server.client(),
            progress=False,
        )
        return run.wait().report(folder / "report.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_a_report_opens_from_disk_and_fits_the_window(
    browser_page, report, width, scheme, tmp_path
):
    page = browser_page
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(report.as_uri())
    page.screenshot(path=tmp_path / "report.png", full_page=True)

    assert asked == [report.as_uri()]
    assert page.errors == []
    root = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert root == [width, width]
    # Nothing is cut off either: what is wider than the window scrolls in a box of its own.
    out = page.evaluate("""
        [...document.querySelectorAll("body *")]
            .filter(one => !one.closest(".scroll > *"))
            .filter(one => one.getBoundingClientRect().right > innerWidth + 1)
            .map(one => one.outerHTML.slice(0, 80))
    """)
    assert out == []
    wide = page.locator(".scroll").evaluate_all("all => all.map(one => one.scrollWidth)")
    if width == 1280:
        assert max(wide) < width


def test_a_report_has_its_headings_and_figures(browser_page, report):
    page = browser_page
    page.goto(report.as_uri())

    expect(page.get_by_role("heading", level=1)).to_have_text(
        "a_run_whose_name_has_no_place_to_break_the_line"
    )
    expect(page.get_by_role("heading", level=2)).to_have_text(HEADINGS)
    expect(page.locator(".figures dt")).to_have_text(
        ["Rows", "Done", "No answer", "Spent", "Tokens"]
    )
    expect(page.locator(".figures dd").nth(0)).to_contain_text("45")
    expect(page.locator(".figures dd").nth(2)).to_contain_text("1")
    # Each batch has a lane in the chart that can be seen, and a row in the table.
    lanes = page.locator(".lane")
    expect(lanes).to_have_count(9)
    for lane in lanes.all():
        box = lane.locator(".running").bounding_box()
        assert box["width"] >= 1
        assert box["height"] >= 8
    batches = page.get_by_role("region", name="Batches", exact=True)
    expect(batches.locator("tbody tr")).to_have_count(9)
    failures = page.get_by_role("region", name="Rows that are not ok").locator("tbody tr")
    expect(failures).to_have_count(1)
    expect(failures).to_contain_text("context_length_exceeded")
    expect(failures).to_contain_text("a-document-with-a-rather-long-identifier-000007")
