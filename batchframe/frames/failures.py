"""Rows without an answer, and whether a call allows them: the last look before it ends.

Nothing is lost by the error: all that was answered is in the checkpoint by then.
"""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.retries import too_many, unfinished
from batchframe.core.statuses import ANSWERED, Status
from batchframe.errors import BatchframeError, ErrorRatioExceededError, UnansweredError
from batchframe.frames.settings import Columns

__all__ = ["Failures"]

#: Rows that a message names, and the letters of each one's error.
_SHOWN, _LETTERS = 5, 100


class Failures:
    """The rows of one call, counted as they come, some at a time."""

    def __init__(self, columns: Columns) -> None:
        """Take what the call says of rows without an answer."""
        self._columns = columns
        self._n_seen = 0
        self._statuses: Counter[str] = Counter()
        self._first: list[str] = []
        self._n_again = 0

    @property
    def matter(self) -> bool:
        """True where the call does not take them as they are."""
        return self._columns.on_error == "raise" or self._columns.max_error_ratio is not None

    def look(
        self, made: pa.Table, ids: pa.Array | None, results: pa.Table, positions: pa.Int64Array
    ) -> None:
        """Take note of the next rows.

        Args:
            made: Their new columns.
            ids: Their ids, where the user gave them some.
            results: What they were made of.
            positions: For each row its place in `results`, or null.
        """
        status = made[f"{self._columns.output}_status"].combine_chunks()
        self._statuses.update(status.to_pylist())
        failed = pc.indices_nonzero(pc.invert(pc.is_in(status, pa.array(ANSWERED, pa.string()))))
        # A row without a result, as of a run that was cancelled, was never sent.
        is_new = pc.and_(pc.is_null(positions), pc.not_equal(status, Status.SKIPPED))
        is_again = pc.coalesce(unfinished(results).take(positions), is_new)
        self._n_again += pc.sum(is_again).as_py() or 0
        error = made[f"{self._columns.output}_error"]
        for row in failed[: _SHOWN + 1 - len(self._first)].to_pylist():
            reason = str(error[row].as_py() or "")
            shown = f"{reason[:_LETTERS]}..." if len(reason) > _LETTERS else reason
            is_told = not shown or reason.startswith(f"{status[row]}: ")
            words = (shown or f"{status[row]}") if is_told else f"{status[row]}: {shown}"
            named = "" if ids is None else f", id {ids[row].as_py()!r}"
            self._first.append(f"row {self._n_seen + row}{named} ({words})")
        self._n_seen += len(status)

    def check(self) -> None:
        """Raise the error that the call asks for, if these rows are too many."""
        ratio = self._columns.max_error_ratio
        n_rows = self._n_seen - self._statuses[Status.SKIPPED]
        n_failed = sum(n for word, n in self._statuses.items() if word not in ANSWERED)
        if ratio is not None and too_many(n_failed, 0, n_rows, ratio):
            raise self._error(
                ErrorRatioExceededError,
                f"max_error_ratio={ratio} is exceeded: ",
                "a higher max_error_ratio",
            )
        if self._columns.on_error == "raise" and n_failed:
            raise self._error(UnansweredError, "", "on_error='null'")

    def _error(self, kind: type[BatchframeError], begin: str, way_out: str) -> BatchframeError:
        counts = {word: n for word, n in self._statuses.most_common() if word not in ANSWERED}
        n_failed = sum(counts.values())
        words = ", ".join(f"{n:,} {word}" for word, n in counts.items())
        have = "has" if n_failed == 1 else "have"
        more = "; and more" if len(self._first) > _SHOWN else ""
        sends = "sends nothing"
        if self._n_again:
            these = "1 row" if self._n_again == 1 else f"{self._n_again:,} rows"
            sends = f"sends nothing but the {these} that another try may help"
        # Answers that do not fit stand in the checkpoint as they came, and are not asked for again.
        n_invalid = counts.get(Status.INVALID, 0)
        these = f"the {n_failed - n_invalid:,} that are not invalid" if n_invalid else "these rows"
        again = f" Mend the cause and run it with retry_failed=True to send {these} again."
        return kind(
            f"{begin}{n_failed:,} of {self._n_seen:,} rows {have} no answer ({words}): "
            f"{'; '.join(self._first[:_SHOWN])}{more}. All that was answered is in the "
            f"checkpoint, and is not paid again: the same call with {way_out} gives the frame, and "
            f"{sends}.{again if n_failed > n_invalid else ''}"
        )
