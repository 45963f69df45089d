"""The card and the report: whole, self-contained, and deaf to what strangers wrote into them."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

import batchframe as bf
from batchframe.clock import SystemClock
from batchframe.core.histories import ShardHistory
from batchframe.core.shards import Limits
from batchframe.core.standing import ROW_WORDS
from batchframe.emulator import LocalServer
from batchframe.overview import Overview, overview_of
from batchframe.pages import _COLOURS, card, report
from batchframe.run_status import RunStatus, status_of
from tests.overview.answers import ROW_USD, answer

#: Elements that have no end tag (HTML standard, 2026).
VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
)
#: All that a page of ours is made of: nothing that runs, fetches, links or sends.
ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "main",
    "footer",
    "section",
    "h1",
    "h2",
    "p",
    "div",
    "span",
    "i",
    "b",
    "br",
    "small",
    "code",
    "dl",
    "dt",
    "dd",
    "ul",
    "li",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}
ATTRIBUTES = {
    "lang",
    "charset",
    "name",
    "content",
    "http-equiv",
    "id",
    "class",
    "style",
    "title",
    "role",
    "aria-label",
    "aria-labelledby",
    "tabindex",
    "scope",
}


class Page(HTMLParser):
    """What a browser finds in a page; it refuses what is not well-formed or not ours."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.stack, self.texts, self.attributes, self.tags = [], [], [], []
        self.ids, self.styles = [], []
        self.feed(html)
        self.close()
        assert self.stack == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        assert tag in ALLOWED, tag
        self.tags.append(tag)
        if tag not in VOID:
            self.stack.append(tag)
        names = [name for name, _ in attrs]
        assert set(names) <= ATTRIBUTES, names
        assert len(names) == len(set(names))
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        self.styles += [value for name, value in attrs if name == "style"]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "style":
            self.styles.append(data)
        elif data.strip():
            self.texts.append(data.strip())

    def handle_comment(self, data):
        raise AssertionError(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def checked(html):
    """The page, if it is self-contained."""
    page = Page(html)
    for style in page.styles:
        assert not re.search(r"url\(|@import|expression|</|http", style, re.IGNORECASE)
    labels = {name: value for name, value in page.attributes if name == "aria-labelledby"}
    assert set(labels.values()) <= set(page.ids)
    assert html.isprintable() or {c for c in html if not c.isprintable()} == {"\n"}
    return page


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "' onmouseover='alert(3)",
    "{{ 7 * 7 }} {% raw %}",
    "</style><style>@import 'http://x'",
    "back\u202ewards \x1b[31m \x00 and\x07 bells",
    "\ud83d half".encode("utf-8", "replace").decode(),
    "x" * 5_000,
)


@pytest.fixture
def hostile(path):
    """A run whose ids, errors, codes and model are written by an enemy."""
    ids = [f"{text}{place}" for place, text in enumerate(HOSTILE)]
    errors = iter(HOSTILE)

    def bad(body):
        if "PROMPT fine" in str(body):
            status, content = answer({**body, "messages": [{"content": "fine"}]})
            return status, {**content, "model": "<b onclick=x()>model</b>"}
        text = next(errors)
        return 400, {"error": {"message": text, "code": text}}

    with LocalServer(bad, stage_seconds=0) as server:
        import pandas as pd

        bf.complete(
            pd.DataFrame(
                {"id": [*ids, "ok"], "prompt": ["PROMPT bad"] * len(ids) + ["PROMPT fine"]}
            ),
            "prompt",
            "id",
            model="gpt-4o-mini",
            prices={"<b onclick=x()>model</b>": bf.Rates(input=1.0)},
            system="<script>system()</script>",
            stop=["</code><script>stop()</script>"],
            checkpoint=path,
            client=server.client(),
            poll_interval=0.01,
            progress=False,
        )


def test_what_an_enemy_wrote_is_text_and_nothing_else(hostile, read):
    overview = overview_of(read(), now=SystemClock().now())
    html = report(overview)
    page = checked(html)
    for tag in ("<script", "<img", "<b onclick", "onerror=alert(2)>"):
        assert tag not in html
    # Shown as it was written, and no longer than a line or five.
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "<b onclick=x()>model</b>" in page.text
    assert "<script>system()</script>" in page.text
    assert "back wards [31m and bells" in page.text
    assert "x" * 301 not in html
    assert "PROMPT" not in html
    assert checked(card(overview.status)).text


def test_a_hostile_path_and_model_are_text_on_the_card_and_in_the_table(hostile, read):
    status = replace(
        status_of(read(), now=0.0),
        path=Path("/runs/<script>\x1b]0;x\x07"),
        model="<i>\x1b[2J",
        endpoint="/v1/<b>",
    )
    html = card(status)
    page = checked(html)
    assert "/runs/<script> ]0;x" in page.text
    assert "<script" not in html
    assert "\x1b" not in repr(status)


def test_a_long_name_of_a_model_leaves_the_table_narrow(read, hostile):
    name = "ft:gpt-4o-mini:an-organisation-with-a-name:and-a-suffix:abcdefgh"
    lines = repr(replace(status_of(read(), now=0.0), model=name)).splitlines()
    shown = lines[1].split()[1]
    assert shown.startswith("ft:gpt-4o-mini:an-organisation-with-a-")
    assert len(shown) <= 41


def test_a_report_says_what_a_run_was_in_numbers(serve, run, read, clock):
    rows = {f"id-{n}": f"row {n}" for n in range(7)} | {"bad": "400 Too long.", "worse": "403 No."}
    with serve() as server:
        run(server, rows, limits=Limits(max_requests=4))
    overview = overview_of(read(), now=clock.now())
    text = checked(report(overview)).text
    assert "checkpoint" in text
    assert "Done, some rows have no answer" in text
    assert "Rows 9 in 3 batches" in text
    assert "Done 100 % 9 rows" in text
    assert "No answer 2 rows" in text
    # 7 answers at ROW_USD: $0.000945; as much is saved.
    assert f"{7 * ROW_USD:.6f}" == "0.000945"
    assert "Spent $0.00094 $0.00094 saved by batches" in text or "Spent $0.00095" in text
    assert "Tokens 8,400 7.0 k in, 1.4 k out" in text
    assert "7 ok 77 %" in text
    assert "2 failed 22 %" in text
    assert "1 failed code_400 Too long. bad" in text
    assert "gpt-4o-mini prompt 7,000" in text
    assert "total 8,400" in text
    assert "endpoint /v1/chat/completions" in text
    assert "Time left" not in text
    assert "row 3" not in text
    for shard in overview.shards:
        assert shard.batch_id in text


def test_an_interrupted_run_says_what_is_left_and_until_when(serve, run, read, clock):
    limits = Limits(max_requests=2, max_live_batches=1)
    with serve(stage_seconds=864_000.0) as server:
        run(server, {n: f"row {n}" for n in range(5)}, limits=limits, timeout=1)
    overview = overview_of(read(), now=clock.now())
    until = f"{overview.status.kept_until:%Y-%m-%d}"
    for html in (card(overview.status), report(overview)):
        page = checked(html)
        assert "Running" in page.text
        assert f"The provider keeps results that are not collected until {until}." in page.text
        assert "Time left unknown not enough is done to tell" in page.text
        assert ("aria-label", "Rows: 2 in progress, 3 waiting") in page.attributes
    assert "2 waiting, 1 validating" in checked(card(overview.status)).text
    text = checked(report(overview)).text
    assert "No row came back yet." in text
    assert "Nothing was used yet." in text
    later = replace(overview.status, eta_seconds=4_000.0)
    assert "Time left 1 h 7 min at the pace so far" in checked(card(later)).text


def test_the_card_shows_the_parts_of_the_rows_in_their_colours(serve, run, read, clock):
    with serve() as server:
        run(server, {1: "a", 2: "b", 3: "400 no"})
    html = card(status_of(read(), now=clock.now()))
    page = checked(html)
    slices = [style for style in page.styles if style.startswith("--bf-n")]
    assert slices == [
        "--bf-n: 2; --bf-colour: var(--bf-ok)",
        "--bf-n: 1; --bf-colour: var(--bf-failed)",
    ]
    assert "2 ok 1 failed" in page.text
    # Its styles are its own: no other output of the notebook is touched.
    (style,) = [style for style in page.styles if "{" in style]
    selectors = re.sub(r"\{[^}]*\}", ",", style).split(",")
    assert all(one.strip().startswith(".batchframe-card") for one in selectors if one.strip())


@pytest.mark.parametrize(
    ("state", "rows", "is_done"),
    [
        ("Nothing was sent yet", {}, True),
        ("Waiting to be sent", {"ok": 1, "waiting": 2}, False),
        ("Running", {"failed": 1, "in progress": 2, "waiting": 3}, False),
        ("Done", {"ok": 3}, True),
        ("Done", {"ok": 3, "truncated": 1}, True),
        ("Done, some rows have no answer", {"ok": 3, "truncated": 1, "failed": 1}, True),
    ],
)
def test_the_state_of_a_run_is_one_sentence(state, rows, is_done):
    page = checked(card(status(rows=rows, n_rows=sum(rows.values()), is_done=is_done)))
    assert page.texts[0] == state


def status(**changes):
    fields = {
        "path": Path("runs"),
        "model": None,
        "endpoint": "/v1/embeddings",
        "n_rows": 0,
        "rows": {},
        "batches": {},
        "n_done": 0,
        "cost_usd": None,
        "input_tokens": 0,
        "output_tokens": 0,
        "eta_seconds": None,
        "kept_until": None,
        "is_done": False,
    }
    return RunStatus(**fields | changes)


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """As WCAG 2.2 defines it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_every_word_for_rows_has_a_colour_that_is_seen_on_white_and_on_black():
    assert {str(word) for word in _COLOURS} == set(ROW_WORDS) - {"skipped"}
    for ground in ("#ffffff", "#16181d"):
        for word, colour in _COLOURS.items():
            assert contrast(colour, ground) >= 3, (word, ground)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme):
    html = report(overview([]))
    blocks = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w{6});", blocks[0 if scheme == "light" else 1]))
    for ink in ("ink", "quiet"):
        for ground in ("ground", "panel"):
            assert contrast(colours[ink], colours[ground]) >= 4.5


# The timeline

START = datetime(2026, 11, 26, 12, tzinfo=UTC)


def shard(number, *minutes, **changes):
    """A shard that was frozen, uploaded, created, ended and collected at so many minutes."""
    times = [START + timedelta(minutes=m) for m in minutes] + [None] * (5 - len(minutes))
    frozen, uploaded, created, ended, collected = times
    fields = {
        "number": number,
        "round": 0,
        "batch_id": f"batch_{number}",
        "model": "m",
        "n_requests": 100,
        "state": "collected" if collected else "in_progress",
        "ended_as": "completed" if ended else None,
        "n_turned_away": 0,
        "started_at": None,
        "rows": {"ok": 100} if collected else {"in progress": 100},
        "input_tokens": 0,
        "output_tokens": 0,
        "cost_usd": 0.5,
    }
    return ShardHistory(
        **fields | changes,
        frozen_at=frozen,
        uploaded_at=uploaded,
        created_at=created,
        ended_at=ended,
        collected_at=collected,
    )


def overview(shards, *, minutes=100, **changes):
    import pyarrow as pa

    names = {"model": pa.string(), "category": pa.string(), "tokens": pa.int64()}
    names |= {"cost_usd": pa.float64(), "requests": pa.int64(), "standard_usd": pa.float64()}
    return Overview(
        status=status(n_rows=1, rows={"ok": 1}, **changes),
        at=START + timedelta(minutes=minutes),
        shards=tuple(shards),
        failures=(),
        n_more_failures=0,
        usage=pa.schema(names).empty_table(),
        differences=(),
        settings={},
    )


def lanes(html):
    """The spans of each lane: (class, left, width) in per cent."""
    spans = r'<span class="(\w+)" style="left: ([\d.]+)%; width: ([\d.]+)%">'
    rows = re.findall(r'<div class="lane" title="([^"]*)">(.*?)</div>', html)
    return [
        (title, [(kind, float(a), float(b)) for kind, a, b in re.findall(spans, inner)], inner)
        for title, inner in rows
    ]


def test_each_phase_of_a_batch_has_its_place_in_time():
    html = report(overview([shard(0, 0, 10, 20, 60, 80), shard(1, 0, 50)], minutes=100))
    checked(html)
    (_, first, inner), (_, second, _) = lanes(html)
    assert first == [
        ("prepared", 0, 10),
        ("uploaded", 10, 10),
        ("running", 20, 40),
        ("collecting", 60, 20),
    ]
    assert '<b style="left: 80.000%; --colour: var(--ok)"></b>' in inner
    # What has not ended goes on until now.
    assert second == [("prepared", 0, 50), ("uploaded", 50, 50)]


def test_the_axis_of_a_run_that_is_done_ends_with_it():
    html = report(overview([shard(0, 0, 10, 20, 60, 80)], minutes=10_000, is_done=True))
    ((_, spans, _),) = lanes(html)
    assert spans[-1] == ("collecting", 75, 25)


def test_the_mark_of_a_batch_tells_how_it_came_out():
    marks = [
        shard(0, 0, 1, 2, 3, 4, rows={"ok": 91, "failed": 9}),
        shard(1, 0, 1, 2, 3, 4, rows={"ok": 90, "failed": 4, "expired": 6}),
        shard(2, 0, 1, 2, 3, 4, rows={"cancelled": 100}, ended_as="cancelled"),
        shard(3, 0, 1, 2),
    ]
    found = [
        re.findall(r"var\(--([\w-]+)\)", inner) for _, _, inner in lanes(report(overview(marks)))
    ]
    assert found == [["ok"], ["expired"], ["cancelled"], []]


def test_a_batch_says_its_numbers_to_those_who_point_at_it():
    html = report(overview([shard(3, 0, 10, 20, 83, 84, rows={"ok": 99, "failed": 1})]))
    assert lanes(html)[0][0] == (
        "Batch 3: 100 requests, completed, collected; 99 ok, 1 failed; "
        "created 2026-11-26 12:20:00 UTC; took 1 h 3 min; $0.50"
    )


def test_clocks_that_disagree_leave_no_bar_that_goes_back():
    # The provider says that the batch was made before we sent the create, and ended before that.
    html = report(overview([shard(0, 0, 10, 5, 3, 20)], minutes=20))
    ((_, spans, _),) = lanes(html)
    assert spans == [("prepared", 0, 50), ("collecting", 50, 50)]


@pytest.mark.parametrize("n", [1, 20, 300, 2_000])
def test_a_timeline_has_a_lane_for_each_batch_and_is_not_too_tall(n):
    shards = [shard(k, 0, 1, 2 + k, 30 + k, 31 + k) for k in range(n)]
    html = report(overview(shards, minutes=n + 31))
    page = checked(html)
    assert len(lanes(html)) == n
    ((lane, gap),) = re.findall(r"--lane: (\d+)px; --gap: (\d+)px", html)
    pitch = int(lane) + int(gap)
    assert pitch == {1: 20, 20: 20, 300: 2, 2_000: 2}[n]
    names = re.search(r'<div class="names">(.*?)</div>', html)[1]
    labels = re.findall(r"<span>(\d*)</span>", names)
    shown = [int(label) for label in labels if label]
    assert len(labels) == n
    # Labels are so far apart that they can be read.
    assert all(pitch * (b - a) >= 14 for a, b in pairwise(shown))
    assert ("class", "chart dense" if n >= 300 else "chart") in page.attributes


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        (0.1, ["26 Nov 12:00:00", "12:00:02", "12:00:04", "12:00:06"]),
        (100, ["26 Nov 12:00", "12:30", "13:00", "13:30"]),
        (15 * 60, ["26 Nov 12:00", "15:00", "18:00", "21:00", "27 Nov 00:00", "03:00"]),
        (4 * 1440, ["27 Nov", "28 Nov", "29 Nov", "30 Nov"]),
    ],
)
def test_the_axis_has_a_few_round_times_and_names_the_day(minutes, words):
    html = report(overview([shard(0, 0)], minutes=minutes))
    axis = re.search(r'<div class="axis">(.*?)</div>', html)[1]
    assert re.findall(r">([^<]+)</span>", axis) == words


def test_a_run_without_batches_has_no_timeline_and_no_table_of_them():
    page = checked(report(overview([])))
    assert "Batches over time" not in page.text
    assert "batches" not in page.ids


def test_one_row_is_one_row():
    assert "<small>1 row</small>" in report(overview([], n_done=1))


def test_a_dropped_shard_is_in_the_table_and_not_in_the_timeline():
    dropped = shard(0, 0, state="dropped", batch_id=None, rows={})
    html = report(overview([dropped, shard(1, 0, 1, 2)]))
    assert [title.partition(":")[0] for title, _, _ in lanes(html)] == ["Batch 1"]
    assert "dropped" in checked(html).text


def test_what_the_queue_turned_away_and_who_answers_is_in_the_table():
    html = report(overview([shard(0, 0, 1, 2, n_turned_away=2, model="o3", round=1)]))
    assert "o3 in progress turned away 2 times: queue full" in checked(html).text
