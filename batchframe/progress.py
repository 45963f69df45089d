"""Progress bars in rows: Preparing, Sending, Processing.

A run tells where it stands as one value, from its own thread; bars show it in a terminal or a
notebook, and a line a minute where there is neither.
"""

import math
import sys
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from batchframe.clock import Clock

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["TELLING_PART", "Bars", "Lines", "Progress", "Silence", "Tally", "progress_for"]

_LINE_SECONDS = 60.0
#: The part of the rows that must be done before their pace tells anything of the rest.
TELLING_PART = 0.1


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
    has_bars = sys.stderr.isatty() or "ipykernel" in sys.modules
    return Bars() if has_bars else Lines(clock)


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
        ]
        if tally.done >= tally.total * TELLING_PART:
            left = (now - self._started) * (tally.total - tally.done) / max(1, tally.done)
            parts.append(f"about {_time(left)} left")
        if tally.note:
            parts.append(tally.note)
        print(f"batchframe: {', '.join(parts)}", file=sys.stderr, flush=True)  # noqa: T201


def _batches(n: int) -> str:
    return "1 batch live" if n == 1 else f"{n:,} batches live"


def _spent(dollars: float | None) -> str:
    return "a cost that is not known so far" if dollars is None else f"${dollars:,.4f} so far"


def _time(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"


class Bars:
    """Three bars, made when there is something to show."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}
        self._note = self._state = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for bar in self._bars.values():
            bar.close()

    def show(self, tally: Tally) -> None:
        """Move the bars to where the run stands."""
        if tally.total == 0:
            return
        if not self._bars:
            self._open()
        for name, rows in (
            ("Preparing", tally.prepared),
            ("Sending", tally.sent),
            ("Processing", tally.done),
        ):
            bar = self._bars[name]
            if bar.n != rows or bar.total != tally.total:
                bar.total, bar.n = tally.total, rows
                bar.refresh()
        if tally.note != self._note:
            self._note = tally.note
            self._bars["Sending"].set_postfix_str(tally.note)
        state = f"{_batches(tally.n_live)}, {_spent(tally.cost_usd)}"
        if state != self._state:
            self._state = state
            self._bars["Processing"].set_postfix_str(state)

    def _open(self) -> None:
        with warnings.catch_warnings():
            # Where ipywidgets is missing, text bars do as well as a warning about it.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
        self._bars = {
            name: tqdm(
                desc=f"{name:<10}",
                unit="rows",
                total=0,
                position=position,
                disable=None,  # silent where the output is not a terminal or notebook
                dynamic_ncols=True,
            )
            for position, name in enumerate(("Preparing", "Sending", "Processing"))
        }
