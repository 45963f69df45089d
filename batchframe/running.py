"""Where a call begins: rows, windows of rows, or a checkpoint -> the work, to be done or done."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.answers import Answers, find_keys
from batchframe.budget import check_bounded
from batchframe.checkpoint import Checkpoint
from batchframe.core.requests import RowKeys, Rows, line_bytes_at_most, row_keys
from batchframe.core.spec import Spec
from batchframe.engine import Engine, default_engine
from batchframe.errors import RowError
from batchframe.jobs import Submission
from batchframe.rounds import Options, Rounds
from batchframe.storage import Storage

__all__ = ["rounds_of_checkpoint", "rounds_of_rows", "run_rows", "run_windows"]


def run_rows(
    rows: Rows,
    spec: Spec,
    submission: Submission,
    path: Path,
    *,
    options: Options,
    engine: Engine | None = None,
    storage: Storage | None = None,
) -> Answers:
    """Send what the checkpoint lacks, wait for it, and give back what it then holds.

    Args:
        rows: What each row asks; ids without duplicates.
        spec: What all requests share.
        submission: Provider, limits, window, polling.
        path: The checkpoint's directory.
        options: Retries, waiting, progress.
        engine: Another engine than the process's own.
        storage: Other file operations than the disk's.

    Raises:
        ParameterError: nothing bounds what a row costs, and the options have a limit of cost.
        RowError: a row's request alone exceeds the size of a file, or its id had another type
            when it was sent before.
        RunTimeoutError: `timeout` passed; the batches go on.
        CheckpointError: the directory cannot be used, or belongs to other work.
        ErrorRatioExceededError: too many rows failed, and more were to be sent.
        ProviderError: the service refused for good.
    """
    rounds = rounds_of_rows(
        rows, spec, submission, path, options=options, engine=engine, storage=storage
    )
    rounds.work()
    return find_keys(rounds.keys, rounds.checkpoint, submission.prices)


def rounds_of_rows(
    rows: Rows,
    spec: Spec,
    submission: Submission,
    path: Path,
    *,
    options: Options,
    engine: Engine | None = None,
    storage: Storage | None = None,
) -> Rounds:
    """The work that `run_rows` does, to be done: arguments and errors as there."""
    engine = engine or default_engine()
    keys = None
    limit, max_bytes = options.max_cost_usd, submission.limits.max_bytes
    dialect = submission.provider.dialect
    if limit is not None or line_bytes_at_most(rows, spec, dialect) > max_bytes:
        keys = row_keys(rows, spec, dialect)
        check_bounded(
            rows,
            keys,
            spec,
            limit,
            prices=submission.prices,
            price_list=dialect.price_list,
            now=engine.clock.now(),
        )
        _check_sizes(rows.ids, keys, max_bytes)
    checkpoint = Checkpoint.open(path, spec, storage or Storage(), engine.clock)
    if keys is not None and checkpoint.spec.to_json() != spec.to_json():
        keys = row_keys(rows, checkpoint.spec, dialect)  # an equal one has other bytes there
    return Rounds(lambda: (rows,), keys, checkpoint, submission, options, engine, rows.n_asked)


def rounds_of_checkpoint(
    spec: Spec,
    submission: Submission,
    path: Path,
    *,
    options: Options,
    engine: Engine | None = None,
) -> Rounds:
    """The work that is left of a checkpoint, without the rows that it was made for.

    Raises what `Checkpoint.open` raises.
    """
    engine = engine or default_engine()
    checkpoint = Checkpoint.open(path, spec, Storage(), engine.clock)
    try:
        if options.max_cost_usd is None:
            options = replace(options, max_cost_usd=checkpoint.limit("max_cost_usd"))
        if options.max_error_ratio is None:
            options = replace(options, max_error_ratio=checkpoint.limit("max_error_ratio"))
    except BaseException:
        checkpoint.close()
        raise
    # Without the rows, each request counts as one row.
    options = replace(options, dedupe=False)
    return Rounds(None, None, checkpoint, submission, options, engine)


def run_windows(
    windows: Callable[[], Iterable[Rows]],
    spec: Spec,
    submission: Submission,
    path: Path,
    *,
    options: Options,
    engine: Engine | None = None,
) -> list[pa.FixedSizeBinaryArray]:
    """Send what the checkpoint lacks of rows that are too many to be held, and wait for it.

    What they were answered is then in the checkpoint, where `find_windows` finds it.

    Args:
        windows: Gives all rows, some at a time, as often as it is called: the same, in one order,
            and no id twice.
        spec: What all requests share.
        submission: Provider, limits, window, polling.
        path: The checkpoint's directory.
        options: Retries, waiting, progress; without `dedupe` and `max_cost_usd`, which look at all
            rows together.
        engine: Another engine than the process's own.

    Returns:
        For each window the key of each row's request, or null where nothing was sent.

    Raises what `run_rows` raises.
    """
    engine = engine or default_engine()
    dialect = submission.provider.dialect
    n_rows = n_seen = 0
    # All of them once, so that a mistake in the last row is told before the first is sent.
    for rows in windows():
        n_rows += rows.n_asked
        before, n_seen = n_seen, n_seen + len(rows)
        if line_bytes_at_most(rows, spec, dialect) > submission.limits.max_bytes:
            keys = row_keys(rows, spec, dialect)
            _check_sizes(rows.ids, keys, submission.limits.max_bytes, before=before)
            del keys
        del rows  # given up before the next ones are read
    checkpoint = Checkpoint.open(path, spec, Storage(), engine.clock)
    rounds = Rounds(windows, None, checkpoint, submission, options, engine, n_rows)
    rounds.work()
    return rounds.tries.keys_of_windows


def _check_sizes(ids: pa.Array, keys: RowKeys, max_bytes: int, *, before: int = 0) -> None:
    over = pc.indices_nonzero(pc.fill_null(pc.greater(keys.line_bytes, max_bytes), False))
    if len(over):
        first = over[0].as_py()
        raise RowError(
            f"{len(over)} {'row is' if len(over) == 1 else 'rows are'} larger than a file may be "
            f"({max_bytes:,} bytes). The first is row {before + first}, id {ids[first].as_py()!r}, "
            f"with {keys.line_bytes[first].as_py():,} bytes. Nothing was sent. Shorten the prompt, "
            "or raise Limits(max_bytes=...)."
        )
