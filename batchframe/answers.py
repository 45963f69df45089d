"""What a checkpoint holds for rows, wherever they were sent from. Nothing is sent here."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint
from batchframe.core.rates import Prices
from batchframe.core.requests import Rows, row_keys
from batchframe.core.retries import latest
from batchframe.plans import FOR_PLANS, equal_keys, keys_of, settled_keys

__all__ = ["Answers", "find_keys", "find_rows", "find_windows", "warn_of_unknown_prices"]


class Answers(NamedTuple):
    """What the checkpoint holds for a call's rows."""

    #: One row of RESULT_SCHEMA for each of the keys that has a result.
    results: pa.Table
    #: int64, one per input row, in the frame's order: its row of `results`, or null.
    positions: pa.Int64Array
    #: binary(16), one per input row: the key of the request that answers it, or null where nothing
    #: was sent.
    keys: pa.FixedSizeBinaryArray
    #: Where all of it is kept; closed, so only to be read.
    checkpoint: Checkpoint


def find_rows(
    rows: Rows, checkpoint: Checkpoint, *, dedupe: bool = False, prices: Prices | None = None
) -> Answers:
    """What a checkpoint holds for rows, wherever they were sent from; nothing is sent.

    Args:
        rows: What each row asks, as for `run_rows`.
        checkpoint: Opened by `Checkpoint.read`.
        dedupe: Rows whose own request is not there take an equal one's answer.
        prices: Rates that hold instead of those of the checkpoint.
    """
    own = row_keys(rows, checkpoint.spec)
    if not dedupe:
        return find_keys(own.keys, checkpoint, prices)
    settled = settled_keys(latest(checkpoint.results(FOR_PLANS)), retry_failed=False)
    return find_keys(equal_keys(own, checkpoint, settled), checkpoint, prices)


def find_keys(
    keys: pa.FixedSizeBinaryArray, checkpoint: Checkpoint, prices: Prices | None
) -> Answers:
    """What a checkpoint holds for rows whose requests have these keys; arguments as above."""
    return next(find_windows([keys], checkpoint, prices))


def find_windows(
    windows: Sequence[pa.FixedSizeBinaryArray], checkpoint: Checkpoint, prices: Prices | None
) -> Iterator[Answers]:
    """What a checkpoint holds for windows of rows whose requests have these keys, one by one.

    No key is in two windows; arguments as above.
    """

    def answers(keys: pa.FixedSizeBinaryArray, results: pa.Table) -> Answers:
        positions = pc.index_in(keys, value_set=keys_of(results), skip_nulls=True)
        return Answers(results, positions.cast(pa.int64()), keys, checkpoint)

    # By no loop, whose variables would hold one window's results while the next are read.
    found = checkpoint.results_of_windows(windows, prices=prices)
    return map(answers, windows, map(latest, found))


def warn_of_unknown_prices(models: Sequence[str], way_out: str = "") -> None:
    """Warn the caller of this package of models that answered and whose price is not known.

    Args:
        models: Their names; none is no reason to warn.
        way_out: What to do about it, with {} for the first of them.
    """
    if models:
        warnings.warn(
            f"No price is known for {', '.join(models)}: their cost is null, not zero."
            f"{way_out.format(models[0])}",
            stacklevel=_stacklevel(),
        )


def _stacklevel() -> int:
    """How far up the caller of this package stands, seen from the function that calls this."""
    level, frame = 1, sys._getframe(1)  # noqa: SLF001 - the way of the standard library's own
    package = __name__.partition(".")[0] + "."
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(package):
        level, frame = level + 1, frame.f_back
    return level
