"""How many rows of a call ended without an answer, and whether `max_error_ratio` lets more be sent.

It counts what the provider said, as it comes in; so it never counts too much, and stops a run that
cannot keep the ratio, or does not look like it. What holds of the frame in the end, answers that do
not fit a schema included, is said of its columns (`frames/failures`).
"""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from batchframe.core.retries import too_many
from batchframe.core.statuses import ANSWERED
from batchframe.errors import ErrorRatioExceededError

__all__ = ["Tolerance"]


@dataclass(slots=True)
class Tolerance:
    """The account of one call; without a ratio it says yes to everything."""

    ratio: float | None
    #: All rows of the call that have a prompt.
    n_rows: int = 0
    #: Rows that are not tried again, by status; and those without an answer by their reason.
    _ended: Counter[str] = field(default_factory=Counter)
    _reasons: Counter[str] = field(default_factory=Counter)

    def count(self, results: pa.Table, n_answered: pa.Int64Array) -> None:
        """Take note of results that are not tried again.

        Args:
            results: With `status` and `error_code`.
            n_answered: How many rows of the call each of them answers.
        """
        status, code = (results[name].combine_chunks() for name in ("status", "error_code"))
        table = pa.table({"status": status, "code": code, "n": n_answered})
        for row in (
            table.group_by(["status", "code"], use_threads=False)
            .aggregate([("n", "sum")])
            .to_pylist()
        ):
            self._ended[row["status"]] += row["n_sum"]
            if row["status"] not in ANSWERED:
                self._reasons[row["code"] or row["status"]] += row["n_sum"]

    def is_exceeded(self) -> bool:
        """True if nothing more is to be sent."""
        n_ended, n_failed = self._ended.total(), self._reasons.total()
        return self.ratio is not None and too_many(n_failed, n_ended, self.n_rows, self.ratio)

    def exceeded(self, n_unsent: int) -> ErrorRatioExceededError:
        """The error for a run that has so many rows to be sent still."""
        rows = "1 row was" if n_unsent == 1 else f"{n_unsent:,} rows were"
        reason, n_most = self._reasons.most_common(1)[0]
        return ErrorRatioExceededError(
            f"max_error_ratio={self.ratio} is exceeded: {self._reasons.total():,} of the "
            f"{self._ended.total():,} rows that ended have no answer, {n_most:,} of them for "
            f"{reason!r}. {rows} not sent, and cost nothing. What was answered is in the "
            "checkpoint, and is not paid again. Mend the cause and run the same call again with "
            "retry_failed=True; or raise max_error_ratio."
        )
