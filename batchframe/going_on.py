"""What is said of batches that go on without their call: until when, and how to come back."""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from batchframe.checkpoint import Checkpoint
from batchframe.core.batches import KEPT_DAYS, Creating, Ended, Live
from batchframe.errors import (
    BudgetExceededError,
    ErrorRatioExceededError,
    InputError,
    ProviderError,
)

__all__ = ["explain", "how_to_resume", "warn_of_deletion"]

_log = logging.getLogger(__name__)

#: So many days before the provider deletes results, a run that finds such a batch says so.
_WARN_DAYS = 5


def explain(error: BaseException, checkpoint: Checkpoint) -> None:
    """Tell with an error what goes on without this call, and how to come back."""
    if isinstance(
        error, InputError | ProviderError | BudgetExceededError | ErrorRatioExceededError
    ):
        # Its own message says what to do.
        note = f"{_what_goes_on(checkpoint)} The checkpoint is {checkpoint.path}"
    else:
        note = how_to_resume(checkpoint)
    if note not in getattr(error, "__notes__", ()):  # one error may end several runs
        error.add_note(note)


def how_to_resume(checkpoint: Checkpoint) -> str:
    """What goes on without this call, and what to do next."""
    return (
        f"{_what_goes_on(checkpoint)} Nothing is lost, and nothing is paid again: run the same "
        f"call again to resume. The checkpoint is {checkpoint.path}"
    )


def _what_goes_on(checkpoint: Checkpoint) -> str:
    states = [shard.state for shard in list(checkpoint.shards.values())]
    live = [state.batch for state in states if isinstance(state, Live | Ended)]
    creating = sum(isinstance(state, Creating) for state in states)
    goes_on = "1 batch goes on" if len(live) == 1 else f"{len(live)} batches go on"
    said = f"{goes_on} at the provider" if live else "No batch goes on at the provider"
    if creating:
        said += f", and {creating} more may: the answer to the create did not come"
    dates = [batch.created_at for batch in live if batch.created_at]
    if dates:
        until = datetime.fromtimestamp(min(dates), UTC) + timedelta(days=KEPT_DAYS)
        said += f", which keeps the results until {until:%Y-%m-%d}"
    return f"{said}. Nothing else is sent."


def warn_of_deletion(checkpoint: Checkpoint, numbers: Iterable[int], *, now: float) -> None:
    """Tell of batches whose results the provider deletes soon, or has deleted."""
    states = [checkpoint.shards[number].state for number in numbers]
    dates = [
        state.batch.created_at
        for state in states
        if isinstance(state, Live | Ended) and state.batch.created_at
    ]
    if dates and now > min(dates) + (KEPT_DAYS - _WARN_DAYS) * 86_400:
        _log.warning(
            "the oldest batch without results is of %s: the provider deletes results after "
            "%s days, and this call fetches what is there",
            datetime.fromtimestamp(min(dates), UTC).date(),
            KEPT_DAYS,
        )
