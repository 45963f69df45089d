"""The page that other tests look at does notice what goes wrong in it."""


def test_what_goes_wrong_in_a_page_is_noted(browser_page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(
        "<script>console.error('said')</script>"
        "<script>throw new Error('thrown')</script>"
        "<img src='http://localhost:9/a.png'>"
    )
    browser_page.goto(file.as_uri())

    assert {"said", "thrown", "not at 127.0.0.1: http://localhost:9/a.png"} <= set(
        browser_page.errors
    )


def test_a_page_without_errors_has_none(browser_page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text("<p>All is well.</p>")
    browser_page.goto(file.as_uri())

    assert browser_page.errors == []
