"""How a call's rows are sent: its settings, made into what a run takes, and what came back."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchframe.errors import ParameterError
from batchframe.frames.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from batchframe.checkpoint import Checkpoint
    from batchframe.core.requests import Rows
    from batchframe.core.spec import Spec
    from batchframe.jobs import Submission
    from batchframe.rounds import Options

__all__ = ["PRICES_WAY_OUT", "how", "read_checkpoint", "sent", "sent_windows", "unanswered"]

#: The columns of results that tell which prices are missing.
_FOR_PRICES = ("input_tokens", "output_tokens", "model")
#: What to do about a model without a price, with {} for it.
PRICES_WAY_OUT = (
    " Give what you pay, in dollars per million tokens: "
    "prices={{{!r}: bf.Rates(input=..., output=...)}}."
)


def sent(
    rows: "Rows", *, settings: Settings, spec: Mapping[str, Any]
) -> "tuple[pa.Table, pa.Int64Array, str]":
    """What the provider answers, or has answered, as `answered` takes it.

    `spec` are the fields but the account.
    """
    from batchframe.answers import warn_of_unknown_prices
    from batchframe.core.prices import unpriced_models
    from batchframe.running import run_rows

    shared, submission, path, options = how(settings, spec)
    results, positions, _, checkpoint = run_rows(rows, shared, submission, path, options=options)
    price_list = submission.provider.dialect.price_list
    models = unpriced_models(results, shared.model, settings.prices, price_list)
    warn_of_unknown_prices(models, PRICES_WAY_OUT)
    return results, positions, unanswered(checkpoint)


def unanswered(checkpoint: "Checkpoint") -> str:
    """The status of a call's rows that have no result at its end."""
    from batchframe.core.statuses import Status

    return Status.CANCELLED if checkpoint.is_cancelled() else Status.MISSING


def sent_windows(
    windows: Callable[[], Iterable["Rows"]], *, settings: Settings, spec: Mapping[str, Any]
) -> "tuple[Checkpoint, list[pa.FixedSizeBinaryArray]]":
    """Have rows answered that are never all in memory.

    Returns the checkpoint that has the answers, and for each window the keys of its requests.
    """
    from batchframe.answers import warn_of_unknown_prices
    from batchframe.core.prices import unpriced_models
    from batchframe.running import run_windows

    shared, submission, path, options = how(settings, spec)
    keys = run_windows(windows, shared, submission, path, options=options)
    there = read_checkpoint(path)
    price_list = submission.provider.dialect.price_list
    models = {
        model
        for number in there.collected()
        for model in unpriced_models(
            there.results_of(number, _FOR_PRICES),
            there.model_of(number),
            settings.prices,
            price_list,
        )
    }
    warn_of_unknown_prices(sorted(models), PRICES_WAY_OUT)
    return there, keys


def how(settings: Settings, spec: Mapping[str, Any]) -> "tuple[Spec, Submission, Path, Options]":
    """What is shared by all requests, and how they are sent, where and by which rules.

    Raises ParameterError for what the service does not take.
    """
    from batchframe.checkpoint import checkpoint_path
    from batchframe.client import Provider
    from batchframe.core.shards import fitting
    from batchframe.core.spec import Spec
    from batchframe.jobs import Submission
    from batchframe.rounds import Options

    provider = Provider(settings.client, settings.dialect)
    shared = Spec(account=provider.account, **spec)
    provider.dialect.check(endpoint=shared.endpoint, window=settings.completion_window)
    submission = Submission(
        provider=provider,
        limits=fitting(settings.limits, provider.dialect, shared.endpoint),
        completion_window=settings.completion_window,
        poll_interval=settings.poll_interval,
        ask_if_unknown=settings.on_unknown == "raise",
        delete_remote=settings.delete_remote,
        prices=settings.prices,
    )
    options = Options(
        max_retries=settings.max_retries,
        retry_failed=settings.retry_failed,
        timeout=settings.timeout,
        progress=settings.progress,
        dedupe=settings.dedupe,
        max_cost_usd=settings.max_cost_usd,
        max_error_ratio=settings.max_error_ratio,
    )
    return shared, submission, checkpoint_path(settings.checkpoint, shared), options


def read_checkpoint(checkpoint: str | Path | None) -> "Checkpoint":
    """The checkpoint as it is on the disk now."""
    if checkpoint is None:
        raise ParameterError("checkpoint must be the path of a directory, not None.")
    from batchframe.checkpoint import Checkpoint
    from batchframe.clock import SystemClock
    from batchframe.storage import Storage

    return Checkpoint.read(Path(checkpoint).expanduser(), Storage(), SystemClock())
