"""What is known of a run -> HTML: a card for notebooks, a report for a browser.

Pure functions of a value. Nothing in the pages runs or is fetched: no script, no font, no address;
the report tells the browser so in its policy. Every value goes through two doors, whatever its
template says: `printable` takes out what is no text, and Jinja escapes the rest.

The templates lay out; what is placed where, in per cent, is worked out here.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from batchframe.core.histories import ShardHistory
from batchframe.core.standing import IN_PROGRESS, WAITING
from batchframe.core.statuses import ANSWERED, Status
from batchframe.core.texts import dollars, duration, printable
from batchframe.core.usage import CATEGORIES, TOTAL
from batchframe.overview import Overview
from batchframe.run_status import RunStatus, time_left

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["card", "report"]

#: The colour of each word for rows, the same everywhere. Each has a contrast of 3 or more to white
#: and to #16181d, so that one palette does for light and dark pages; neighbours differ in lightness
#: and hue for the colour-blind, and a legend names them all.
_COLOURS = {
    Status.OK: "#2a9d8f",
    Status.TRUNCATED: "#b8860b",
    Status.FILTERED: "#a8702d",
    Status.REFUSED: "#8f6b45",
    Status.INVALID: "#997a1f",
    Status.FAILED: "#d1493f",
    Status.EXPIRED: "#8e6bbf",
    Status.CANCELLED: "#6b7280",
    Status.MISSING: "#b5468b",
    IN_PROGRESS: "#4a90d9",
    WAITING: "#8a8f98",
}
#: What a batch goes through, in order: class, words, and the time at which it ends.
_PHASES = (
    ("prepared", "prepared, waiting to be sent", "uploaded_at"),
    ("uploaded", "uploaded, waiting for its batch", "created_at"),
    ("running", "at the provider", "ended_at"),
    ("collecting", "ended, results not collected yet", "collected_at"),
)
#: Height of the timeline, and of one batch in it, in pixels: least and most.
_CHART_PX, _LANE_PX = 560, (2, 20)
#: The least distance of two labels, in pixels.
_LABEL_PX = 14
#: Labels of the axis of time.
_MOST_TICKS = 5
#: Distances of ticks, in seconds: what people divide time by.
_TICK_SECONDS = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200),
    *(86_400 * days for days in (1, 2, 7, 14, 28, 91, 182, 365)),
)
#: The part of a batch's rows that gives its mark their colour.
_MANY_PART = 0.1
#: Characters of a batch's id.
_ID_CHARS = 40


def card(status: RunStatus) -> str:
    """A run in a notebook: HTML with its own styles, readable on any background."""
    return _templates().get_template("card.html").render(**_shared(status))


def report(overview: Overview) -> str:
    """A run as one HTML page that needs nothing else."""
    status = overview.status
    return (
        _templates()
        .get_template("report.html")
        .render(
            **_shared(status),
            at=overview.at,
            saved_usd=overview.saved_usd,
            chart=_chart(overview),
            phases=_PHASES,
            failures=overview.failures,
            n_more_failures=overview.n_more_failures,
            usage=list(_usage(overview)),
            differences=overview.differences,
            settings=overview.settings,
            shards=[(shard, _took(shard)) for shard in overview.shards],
            has_models=status.model is None,
        )
    )


@functools.cache
def _templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("batchframe"),
        autoescape=True,
        finalize=_clean,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(
        n=lambda number: f"{number:,}",
        compact=_compact,
        usd=lambda amount: "unknown" if amount is None else dollars(amount),
        time=_time,
        short=lambda text: printable(text, _ID_CHARS),
        slug=lambda word: word.replace(" ", "-"),
    )
    return templates


def _clean(value: Any) -> Any:
    """What a template shows, without control characters; its own markup as it is."""
    from markupsafe import Markup

    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)


def _compact(number: int) -> str:
    """A large number in three digits, where the exact one stands elsewhere."""
    for size, letter in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= 10 * size:
            return f"{number / size:,.0f} {letter}"
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return str(number)


def _time(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


# --- What both show -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """One colour of the bar of rows."""

    word: str
    n_rows: int
    #: Its part of all rows, in words: "under 1 %" is not "0 %".
    part: str


def _shared(status: RunStatus) -> dict[str, Any]:
    rows = [
        _Slice(word=word, n_rows=n, part=_part(n, status.n_rows)) for word, n in status.rows.items()
    ]
    state, kind = _state(status)
    return {
        "status": status,
        "state": state,
        "kind": kind,
        "rows": rows,
        "time_left": time_left(status),
        "done": _part(status.n_done, status.n_rows),
        "n_batches": sum(status.batches.values()),
        "colours": {str(word): colour for word, colour in _COLOURS.items()},
    }


def _part(n: int, total: int) -> str:
    if not n or not total:
        return "0 %"
    share = 100 * n / total
    return "under 1 %" if share < 1 else f"{math.floor(share)} %"


def _state(status: RunStatus) -> tuple[str, str]:
    """The state of a run in words, and the word for rows whose colour it has."""
    if not status.n_rows:
        return "Nothing was sent yet", WAITING
    if status.is_done and status.n_failures:
        bad = {word: n for word, n in status.rows.items() if word not in ANSWERED}
        return "Done, some rows have no answer", max(bad, key=lambda word: bad[word])
    if status.is_done:
        return "Done", Status.OK
    if status.rows.get(IN_PROGRESS):
        return "Running", IN_PROGRESS
    return "Waiting to be sent", WAITING


# --- The timeline ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """A stretch of time in the chart: `left` and `width` in per cent of its width."""

    kind: str
    left: str
    width: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lane:
    """One shard in the chart."""

    #: Its number, or "" where there is no room for it.
    label: str
    #: What it shows to those who point at it.
    title: str
    spans: tuple[_Span, ...]
    #: The word for rows whose colour its end has, or "" where it has not ended.
    end: str
    end_left: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chart:
    """The shards along the axis of time."""

    lanes: tuple[_Lane, ...]
    #: Height of a lane and of the gap below it, in pixels.
    lane_px: int
    gap_px: int
    #: Place and words of each tick.
    ticks: tuple[tuple[str, str], ...]
    #: What the chart shows, for those who do not see it.
    summary: str


def _chart(overview: Overview) -> _Chart | None:
    """The shards that were not dropped; None where there are none."""
    shards = [shard for shard in overview.shards if shard.frozen_at and shard.state != "dropped"]
    if not shards:
        return None
    known = [at for shard in shards for at in _times(shard)]
    since = min(known)
    until = max([*known, *([] if overview.status.is_done else [overview.at])])
    scale = _Scale(since, max(until - since, timedelta(seconds=1)))
    pitch = max(_LANE_PX[0], min(_LANE_PX[1], _CHART_PX // len(shards)))
    gap = 0 if pitch < 4 else 1 if pitch < 10 else 4
    step = _label_step(pitch)
    n_ended = sum(shard.ended_as is not None for shard in shards)
    return _Chart(
        lanes=tuple(
            _lane(shard, scale, until, has_label=place % step == 0)
            for place, shard in enumerate(shards)
        ),
        lane_px=pitch - gap,
        gap_px=gap,
        ticks=tuple(_ticks(scale)),
        summary=(
            f"{_batches(len(shards))} from {_time(since)} to {_time(until)} UTC; "
            f"{n_ended:,} of them ended. The table of batches below has the same numbers."
        ),
    )


def _batches(n: int) -> str:
    return "1 batch" if n == 1 else f"{n:,} batches"


def _label_step(pitch: int) -> int:
    """Every which lane has room for a label: 1, 2, 5, 10, 20, 50, ..."""
    needed = math.ceil(_LABEL_PX / pitch)
    return next(step for step in (1, 2, 5, 10, 20, 50) if step >= needed)


def _times(shard: ShardHistory) -> list[datetime]:
    names = ("frozen_at", *(name for _, _, name in _PHASES))
    return [at for name in names if (at := getattr(shard, name)) is not None]


@dataclass(frozen=True, slots=True)
class _Scale:
    """Times -> per cent of the chart's width."""

    since: datetime
    length: timedelta

    def place(self, at: datetime) -> float:
        return min(100.0, max(0.0, 100.0 * ((at - self.since) / self.length)))


def _lane(shard: ShardHistory, scale: _Scale, until: datetime, *, has_label: bool) -> _Lane:
    spans = []
    begin = shard.frozen_at
    for kind, _, name in _PHASES:
        if begin is None:
            break
        end = getattr(shard, name)
        left, right = scale.place(begin), scale.place(end or until)
        if right > left:
            spans.append(_Span(kind=kind, left=f"{left:.3f}", width=f"{right - left:.3f}"))
        # Two clocks tell the times: one that is before the last begins with it.
        begin = max(end, begin) if end else None
    ended = shard.collected_at or shard.ended_at
    return _Lane(
        label=str(shard.number) if has_label else "",
        title=_title(shard),
        spans=tuple(spans),
        end=_came_out(shard) if ended else "",
        end_left=f"{scale.place(ended):.3f}" if ended else "0",
    )


def _came_out(shard: ShardHistory) -> str:
    """The word for most rows of a batch that are not ok, where they are many; or ok."""
    bad = {word: n for word, n in shard.rows.items() if word not in {Status.OK, IN_PROGRESS}}
    if sum(bad.values()) >= _MANY_PART * shard.n_requests and bad:
        return max(bad, key=lambda word: bad[word])
    return str(Status.OK)


def _title(shard: ShardHistory) -> str:
    parts = [
        f"Batch {shard.number}: {shard.n_requests:,} requests, {_as(shard)}",
        ", ".join(f"{n:,} {word}" for word, n in shard.rows.items()),
        f"created {_time(shard.created_at)} UTC" if shard.created_at else "",
        f"took {took}" if (took := _took(shard)) else "",
        f"{dollars(shard.cost_usd)}" if shard.cost_usd and shard.collected_at else "",
    ]
    return "; ".join(part for part in parts if part)


def _as(shard: ShardHistory) -> str:
    return shard.state if shard.ended_as is None else f"{shard.ended_as}, {shard.state}"


def _took(shard: ShardHistory) -> str:
    """How long the provider had the batch, in words."""
    if shard.created_at is None or shard.ended_at is None:
        return ""
    return duration((shard.ended_at - shard.created_at).total_seconds())


def _ticks(scale: _Scale) -> Iterator[tuple[str, str]]:
    seconds = scale.length.total_seconds()
    step = next((s for s in _TICK_SECONDS if seconds / s <= _MOST_TICKS), _TICK_SECONDS[-1])
    form = "%d %b" if step >= 86_400 else "%H:%M" if step >= 60 else "%H:%M:%S"
    first = math.ceil(scale.since.timestamp() / step) * step
    day = ""
    for tick in range(first, math.floor(scale.since.timestamp() + seconds) + 1, step):
        at = datetime.fromtimestamp(tick, UTC)
        is_new = step < 86_400 and f"{at:%d %b}" != day
        day = f"{at:%d %b}"
        yield f"{scale.place(at):.3f}", f"{day} {at:{form}}" if is_new else f"{at:{form}}"


# --- Tokens and dollars ---------------------------------------------------------------------------


def _usage(overview: Overview) -> Iterator[Mapping[str, Any]]:
    """The rows of the table, each with how it is shown."""
    rows: Sequence[Mapping[str, Any]] = overview.usage.to_pylist()
    model = None
    for row in rows:
        category = row["category"]
        yield {
            **row,
            "is_first": row["model"] != model,
            "is_part": CATEGORIES.get(category, False),
            "is_total": category == TOTAL,
        }
        model = row["model"]
