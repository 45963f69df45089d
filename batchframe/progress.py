"""Progress bars in rows: Preparing, Sending, Processing.

A run tells where it stands as one value, from its own thread; the bars show it in a terminal or a
notebook, and nothing is shown where there is neither.
"""

import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Bars", "Progress", "Silence", "Tally"]


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


class Bars:
    """Three bars, made when there is something to show."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}
        self._note = ""

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
