"""Progress bars in rows: Preparing, Sending, Processing.

A run tells where it stands as one value, from its own thread; bars show it in a terminal or a
notebook (widgets where ipywidgets is installed, else text), and a line a minute where there is
neither.
"""

import logging
import math
import sys
import textwrap
import warnings
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from batchframe.clock import Clock
from batchframe.core.standing import TELLING_PART
from batchframe.core.texts import dollars

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Bars", "Lines", "Progress", "Silence", "Tally", "Texts", "progress_for"]

_LOG = logging.getLogger("batchframe")
_LINE_SECONDS = 60.0
#: One bar, as tqdm fills it in; the postfix brings its comma along.
_BAR = "{desc:<10}{percentage:4.0f}%|{bar}| {n:,} of {total:,} rows, {elapsed}{postfix}"
#: Spaces that tqdm does not make wide ones of in widgets.
_SPACES = str.maketrans(" ", "\N{NO-BREAK SPACE}")
#: The same in a widget.
_WIDGET = "{desc}|{bar}| {n:,} of {total:,} rows, {elapsed}{postfix}".translate(_SPACES)
#: The same in a terminal, with the shortest gauge that shows something.
_LEAST = _BAR.replace("{bar}", " " * 10)
#: The same as text in a notebook.
_TEXT = _BAR.replace("{bar}", "{bar:40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Where a run stands, in rows."""

    #: Rows that this call sends or waits for.
    total: int
    #: Rows that are encoded and on disk.
    prepared: int
    #: Rows whose batch the provider has.
    sent: int
    #: Rows that the provider has done.
    done: int
    #: Batches that are live at the provider.
    n_live: int = 0
    #: What the rows that came back have cost, in US dollars; None where a price is unknown.
    cost_usd: float | None = 0.0
    #: What keeps the run waiting beside the work itself, in words, or "".
    note: str = ""


class Progress(Protocol):
    """What a run tells of itself. Used as a context manager, from one thread."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, whatever happened."""
        ...

    def show(self, tally: Tally) -> None:
        """Show where the run stands now."""
        ...


class Silence:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def show(self, tally: Tally) -> None:
        """Show nothing."""


def progress_for(clock: Clock) -> Progress:
    """Bars in a terminal or a notebook; lines where the output goes into a file."""
    if sys.stderr.isatty():
        return Bars()
    if _is_notebook():
        return Bars() if _has_widgets() else Texts(clock)
    return Lines(clock)


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _has_widgets() -> bool:
    from tqdm.notebook import tqdm_notebook

    return issubclass(_tqdm(), tqdm_notebook)


def _tqdm() -> "type[tqdm[Any]]":
    """The bars that fit where this runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of notebook mode, and of ipywidgets that is missing
        from tqdm.auto import tqdm
    return tqdm


class Lines(Silence):
    """One line a minute, for logs; a run of less than a minute shows none."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started: float | None = None
        self._next = 0.0

    def show(self, tally: Tally) -> None:
        """Print where the run stands, if a minute has passed."""
        now = self._clock.monotonic()
        if self._started is None:
            self._started, self._next = now, now + _LINE_SECONDS
        if now < self._next:
            return
        self._next = now + _LINE_SECONDS
        parts = [
            f"{tally.done:,} of {tally.total:,} rows done",
            f"{tally.sent:,} sent",
            _batches(tally.n_live),
            _spent(tally.cost_usd),
            *_left(tally, now - self._started),
        ]
        if tally.note:
            parts.append(tally.note)
        print(f"batchframe: {', '.join(parts)}", file=sys.stderr, flush=True)  # noqa: T201


def _batches(n: int) -> str:
    return "1 batch live" if n == 1 else f"{n:,} batches live"


def _spent(amount: float | None) -> str:
    return "a cost that is not known so far" if amount is None else f"{dollars(amount)} so far"


def _left(tally: Tally, seconds: float) -> list[str]:
    """The time that is left, by the pace so far; empty where that tells nothing."""
    if not tally.total * TELLING_PART <= tally.done < tally.total:
        return []
    return [f"about {_time(seconds * (tally.total - tally.done) / max(1, tally.done))} left"]


def _time(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"


@dataclass(frozen=True, slots=True)
class _Bar:
    """One of the three bars: its name, its rows, and what stands beside it."""

    name: str
    rows: int
    words: str


def _bars(tally: Tally, seconds: float) -> list[_Bar]:
    cost = "a cost that is not known" if tally.cost_usd is None else dollars(tally.cost_usd)
    standing = cost
    if tally.done < tally.total:
        parts = [_batches(tally.n_live), _spent(tally.cost_usd), *_left(tally, seconds)]
        standing = ", ".join(parts)
    return [
        _Bar("Preparing", tally.prepared, ""),
        _Bar("Sending", tally.sent, tally.note),
        _Bar("Processing", tally.done, standing),
    ]


class Texts(Silence):
    """Three bars of text in a notebook without widgets, one output that changes in its place."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started: float | None = None
        self._handle: Any = None
        self._text = ""

    def show(self, tally: Tally) -> None:
        """Draw the bars where the run stands, if that changed."""
        if tally.total == 0:
            return
        from IPython.display import display
        from tqdm import tqdm

        now = self._clock.monotonic()
        if self._started is None:
            self._started = now
        seconds = now - self._started
        text = "\n".join(
            tqdm.format_meter(
                bar.rows,
                tally.total,
                seconds,
                prefix=bar.name,
                postfix=bar.words,
                bar_format=_TEXT,
            )
            for bar in _bars(tally, seconds)
        )
        if self._handle is None:
            self._handle = display(  # type: ignore[no-untyped-call]
                {"text/plain": text}, raw=True, display_id=True
            )
        elif text != self._text:
            self._handle.update({"text/plain": text}, raw=True)
        self._text = text


class _Aside:
    """A stream of the terminal: what is logged stands above the bars, and not across them.

    Handlers keep their levels and filters, which `tqdm.contrib.logging` does not leave them.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        _tqdm().write(text, file=self._stream, end="")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Bars:
    """Three bars of tqdm, made when there is something to show.

    In a terminal, words that leave a gauge too little room stand in a line below.
    """

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}
        self._below: dict[str, tqdm[Any]] = {}
        self._shown: dict[str, tuple[_Bar, int]] = {}
        self._own: logging.Handler | None = None
        self._moved: list[tuple[logging.StreamHandler[Any], Any]] = []

    def __enter__(self) -> Self:
        if not sys.stderr.isatty():
            return self
        # Who has handlers has said where all of it is to go; in the same terminal, above the bars.
        if not _LOG.hasHandlers():
            self._own = logging.StreamHandler(sys.stderr)
            self._own.setLevel(logging.WARNING)
            self._own.setFormatter(logging.Formatter("batchframe: %(message)s"))
            _LOG.addHandler(self._own)
        for handler in {*_LOG.handlers, *logging.root.handlers}:
            stream = getattr(handler, "stream", None)
            if isinstance(handler, logging.StreamHandler) and stream in (sys.stdout, sys.stderr):
                aside = _Aside(stream)
                with suppress(Exception):  # of one that chooses its stream itself
                    handler.setStream(aside)
                if handler.stream is aside:
                    self._moved.append((handler, stream))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handler, stream in self._moved:
            handler.setStream(stream)
        if self._own is not None:
            _LOG.removeHandler(self._own)
        for line in self._below.values():
            line.clear()  # it moves up where another one had nothing to say
        for bar in self._bars.values():
            bar.close()
            if kind is None and bar.n != bar.total and hasattr(bar, "container"):
                _, gauge, _ = bar.container.children
                gauge.bar_style = ""  # tqdm makes it red, but the work goes on by itself
        for line in self._below.values():
            line.leave = bool(line.desc)
            line.close()

    def show(self, tally: Tally) -> None:
        """Move the bars to where the run stands."""
        if tally.total == 0:
            return
        if not self._bars:
            self._open(tally.total)
        seconds = self._bars["Processing"].format_dict["elapsed"]
        for new in _bars(tally, seconds):
            if self._shown.get(new.name) != (new, tally.total):
                self._shown[new.name] = (new, tally.total)
                bar = self._bars[new.name]
                bar.n, bar.total, bar.postfix = new.rows, tally.total, new.words or None
                if hasattr(bar, "container"):
                    _fit_widget(bar)
                elif width := bar.format_dict["ncols"]:
                    self._fit_line(new, bar, width)
                bar.refresh()

    def _fit_line(self, new: _Bar, bar: "tqdm[Any]", width: int) -> None:
        """Put the words of a bar below all of them where they do not fit beside it."""
        below = ""
        least = {**bar.format_dict, "bar_format": _LEAST, "ncols": None}
        if len(bar.format_meter(**least)) > width:
            below, bar.postfix = textwrap.shorten(new.words, width, placeholder="..."), None
        if below and new.name not in self._below:
            self._below[new.name] = _tqdm()(
                bar_format="{desc}", position=len(self._bars) + len(self._below), leave=False
            )
        if new.name in self._below:
            self._below[new.name].set_description_str(below)

    def _open(self, total: int) -> None:
        tqdm = _tqdm()
        self._bars = {
            name: tqdm(
                desc=name,
                bar_format=_BAR,
                total=total,
                position=position,
                disable=None,  # silent where the output is not a terminal or notebook
                dynamic_ncols=sys.stderr.isatty(),
            )
            for position, name in enumerate(("Preparing", "Sending", "Processing"))
        }


def _fit_widget(bar: Any) -> None:
    """Give a widget its form and its total, which tqdm does only when it makes one."""
    bar.bar_format = _WIDGET
    bar.postfix = bar.postfix and bar.postfix.translate(_SPACES)
    label, gauge, _ = bar.container.children
    label.layout.width, gauge.layout.width = "6em", "24em"
    gauge.bar_style, gauge.max = "", bar.total
