"""`Run`: a call that goes on while its caller does something else, here or in another process.

    submit(...) --> Run: a thread that works, and the frame that its answers go onto
    open_run(path) --> Run: what is in a checkpoint, and a thread once somebody waits

A handle knows no more than its checkpoint: whatever happens to it, or to its process, the next
handle goes on from there. It sends nothing by itself that was not asked for: `status`, `partial`,
`usage` and `report` look, `wait` and `result` work on, `cancel` stops.
"""

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from batchframe.accounts import account_of
from batchframe.answers import find_keys, warn_of_unknown_prices
from batchframe.cancelling import Asks
from batchframe.checkpoint import Checkpoint
from batchframe.client import Provider, Unavailable
from batchframe.clock import SystemClock
from batchframe.collecting import damaged, repair
from batchframe.core.batches import Collected, Dropped, Live
from batchframe.core.dialects import price_list_of
from batchframe.core.prices import unpriced_models
from batchframe.core.retries import latest
from batchframe.core.spec import Spec
from batchframe.errors import BatchframeError, CheckpointError, ProviderError, RunTimeoutError
from batchframe.frames.calls import asked
from batchframe.frames.questions import Call
from batchframe.frames.sending import PRICES_WAY_OUT, how, read_checkpoint, unanswered
from batchframe.frames.settings import Settings
from batchframe.frames.usage import Usage
from batchframe.going_on import explain
from batchframe.layout import HOME, LOG, SPEC
from batchframe.overview import batches_of, overview_of
from batchframe.pages import card
from batchframe.pages import report as report_page
from batchframe.parameters import check_values
from batchframe.plans import usage_in
from batchframe.progress import Progress, Silence, progress_for
from batchframe.rounds import Left, Rounds
from batchframe.run_status import RunStatus, status_of
from batchframe.running import rounds_of_checkpoint, rounds_of_rows
from batchframe.storage import Storage
from batchframe.sums import Sums

if TYPE_CHECKING:
    from collections.abc import Hashable

    import openai
    import pyarrow as pa

    from batchframe.core.dialects import Dialect
    from batchframe.core.rates import Prices
    from batchframe.core.shards import Limits

__all__ = ["Run", "begun", "open_run", "runs"]

_log = logging.getLogger(__name__)

#: How often a thread that waits looks around, in seconds.
_LOOK_SECONDS = 0.1
#: How long a process that ends waits for its runs to leave, in seconds.
_LAST_SECONDS = 5.0

#: Results, where each row has its own, and the status of rows without one -> a frame.
Finish = Callable[["pa.Table", "pa.Int64Array", str | None], Any]


class Run:
    """A call that goes on by itself: made by `submit`, and found again by `open_run`.

    In the process that submitted it a thread goes on submitting and collecting; when that process
    ends, its batches go on at the provider, and `open_run` of any process takes up the rest. Shown
    in a notebook, it is a card with where it stands.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        *,
        rounds: Rounds | None = None,
        finish: Finish | None = None,
    ) -> None:
        """Made by `submit` and `open_run`."""
        self._path = path
        self._settings = settings
        self._finish = finish
        self._rounds = rounds
        self._keys: pa.FixedSizeBinaryArray | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._starting = threading.Lock()
        self._is_left = False
        #: All results were read once, and what was damaged is made anew, or to be fetched again.
        self._is_whole = False
        self._there: Checkpoint | None = None
        self._looking = threading.Lock()
        self._sums = Sums()
        _handles.add(self)
        if rounds is not None:
            self._work_on(rounds)

    @property
    def path(self) -> Path:
        """The checkpoint's directory."""
        return self._path

    def __repr__(self) -> str:
        """Where it stands, as a table for a terminal."""
        return repr(self.status())

    def _repr_html_(self) -> str:
        """Where it stands, as a card for a notebook."""
        return card(self.status())

    # Looking

    def status(self) -> RunStatus:
        """Where the run stands now; nothing is sent.

        Of a run that no thread of this process works on, live batches are asked how they are, where
        there is a key of their account; else they are as the checkpoint has them.

        Raises:
            CheckpointError: the checkpoint is broken.
        """
        checkpoint = self._look()
        status = status_of(
            checkpoint,
            now=SystemClock().now(),
            prices=self._settings.prices,
            sums=self._sums,
        )
        # Between two batches nothing may be at the provider while there is more to send.
        return replace(status, is_done=status.is_done and not checkpoint.is_at_work())

    def usage(self) -> Usage:
        """Tokens and dollars by model and category, of all that was billed so far.

        Returns what `batchframe.usage` returns of a checkpoint.

        Raises:
            CheckpointError: the checkpoint is broken.
        """
        table, differences = usage_in(read_checkpoint(self._path), self._settings.prices)
        return Usage(table=table, differences=differences, digits=6)

    def batches(self) -> "pa.Table":
        """The batches so far and their times, in the order in which they were made.

        Returns:
            A pyarrow Table with one row for each batch that was prepared: number, round (0 for the
            first try of its rows), batch_id, model, n_requests, state (as in
            `RunStatus.batches`), ended_as; frozen_at (prepared), uploaded_at, created_at,
            started_at, ended_at (when we saw that it had ended), collected_at; input_tokens,
            output_tokens and cost_usd. Times are UTC, and null where they have not come yet.

        Raises:
            CheckpointError: the checkpoint is broken.
        """
        return batches_of(self._look(), prices=self._settings.prices, sums=self._sums)

    def partial(self) -> Any:
        """What is there now: what `result` gives, with rows that have no status yet; nothing waits.

        Raises:
            CheckpointError: the checkpoint is broken.
        """
        return self._answers(None)

    def report(self, path: str | Path) -> Path:
        """Write one HTML page about the run: its batches in time, failures, tokens and spend.

        It needs no network to be read, and holds no prompt and no answer.

        Args:
            path: The file that is written.

        Returns:
            Its path.

        Raises:
            CheckpointError: the checkpoint is broken.
        """
        target = Path(path).expanduser()
        overview = overview_of(
            self._look(),
            now=SystemClock().now(),
            prices=self._settings.prices,
            sums=self._sums,
        )
        target.write_text(report_page(overview), encoding="utf-8")
        return target

    # Waiting

    def wait(self, timeout: float | None = None) -> Self:
        """Work on the run until nothing is left to send or to collect.

        What was cancelled is not sent, unless a call has asked for those rows since. Of a run that
        `open_run` found, results that are damaged on the disk are made anew from the downloads, or
        fetched again; nothing is sent for them.

        Args:
            timeout: Seconds to wait; None waits as long as it takes.

        Returns:
            The run itself.

        Raises:
            RunTimeoutError: `timeout` passed; the run goes on.
            CheckpointBusyError: another process works on it.
            CheckpointError: it is broken, or cannot be read now.
            ApiKeyError: there is something to do, and no usable key.
            ProviderError: the service refused for good.
            BudgetExceededError: `max_cost_usd` has no room for more rows.
            ErrorRatioExceededError: too many rows failed to send more, by `max_error_ratio`.
        """
        check_values(timeout=timeout)
        self._start()
        if not self._ended.is_set():
            self._watch(self._ended, timeout)
        return self._outcome()

    async def wait_async(self) -> Self:
        """Do what `wait` does, while the event loop goes on.

        When the task is cancelled, as by `asyncio.timeout`, the run goes on nevertheless.
        """
        await asyncio.to_thread(self._start)
        if not self._ended.is_set():
            with self._progress() as progress:
                # A thread that waited for the event would outlive a task that is cancelled.
                while not self._ended.is_set():
                    await asyncio.sleep(_LOOK_SECONDS)
                    self._show(progress)
        return self._outcome()

    def result(self, timeout: float | None = None) -> Any:
        """Wait as `wait` does, and give the answers.

        Returns:
            Of a run that `submit` made, its frame as it was then, with the columns of `complete`.
            Of one that `open_run` found, which has no frame, the table of `batchframe.results`;
            `attach` puts it onto a frame.

        Raises:
            What `wait` raises; and of a run that `submit` made, what its `on_error` and its
            `max_error_ratio` say of the frame. `partial` gives it all the same.
        """
        self.wait(timeout)
        return self._answers(unanswered(read_checkpoint(self._path)))

    # Stopping

    def cancel(self) -> None:
        """Send nothing more of the run, and ask for its live batches to be cancelled.

        What they have done by then is paid and kept: the provider takes up to ten minutes, and
        `wait` collects it. The other rows are `cancelled`; the same call of `complete` or `submit`
        with retry_failed=True sends them again. It works from any process, also while another one
        works on the run.

        Raises:
            ApiKeyError: there are live batches, and there is no usable key.
            CheckpointMismatchError: the key is of another account.
            ProviderError: the service refused or did not answer. Nothing more is sent all the same.
        """
        checkpoint = self._look()
        checkpoint.ask_to_cancel()
        states = [shard.state for shard in list(checkpoint.shards.values())]
        live = [state.batch.batch_id for state in states if isinstance(state, Live)]
        if not live:
            return
        provider = Provider(self._settings.client, self._settings.dialect)
        checkpoint.check_spec(Spec(account=provider.account, **_shared(checkpoint)))
        # One that is refused keeps none of the others running.
        refusals: list[tuple[str, Exception]] = []
        asks = Asks(provider)
        while live:
            asks.begin(live)
            for batch_id, reason in asks.outcomes(_LOOK_SECONDS):
                live.remove(batch_id)
                if isinstance(reason, Unavailable | ProviderError):
                    refusals.append((batch_id, reason))
                elif reason is not None:
                    raise reason
        if refusals:
            (batch_id, why), *others = refusals
            more = f" (and {len(others)} more)" if others else ""
            raise ProviderError(
                f"The batch {batch_id}{more} could not be cancelled now: {why} Nothing more is "
                "sent; cancel again, or wait(), which asks until it is answered."
            ) from why

    def detach(self) -> bool:
        """Stop working on the run in this process; its batches go on, and `wait` takes it up.

        Returns:
            True where the work had come to its end by itself, which `result` then gives at once.
        """
        if self._rounds is not None:
            self._leave()
            self._ended.wait()
        return self._rounds is not None

    # Within

    @property
    def _is_working(self) -> bool:
        return self._rounds is not None and not self._ended.is_set()

    def _work_on(self, rounds: Rounds) -> None:
        self._rounds, self._is_left = rounds, False
        self._ended.clear()
        threading.Thread(
            target=self._work, args=[rounds], name="batchframe-run", daemon=True
        ).start()

    def _work(self, rounds: Rounds) -> None:
        is_left = False
        try:
            rounds.work()
        except Left:
            is_left = True
        except BaseException as error:  # noqa: BLE001 - raised again in the threads that wait
            self._error = error
        finally:
            with self._starting:  # or another thread's work would be taken for the one that ends
                self._keep_keys(rounds)
                if is_left:
                    self._rounds, self._is_left = None, True
                self._ended.set()
            rounds.submitted.set()  # as far as it ever will be

    def _leave(self) -> None:
        """Have the thread leave what there is to do, as soon as it can."""
        rounds = self._rounds
        if rounds is not None:
            rounds.left.set()

    def _keep_keys(self, rounds: Rounds) -> None:
        if self._finish is not None and self._keys is None:
            self._keys = rounds.keys

    def _begin_anew(self) -> None:
        """In a forked child, which has neither the thread nor the checkpoint of its parent."""
        if self._is_working and self._rounds is not None:
            self._keep_keys(self._rounds)
            self._rounds = None
        is_ended, self._ended = self._ended.is_set(), threading.Event()
        if is_ended:
            self._ended.set()
        self._starting, self._looking = threading.Lock(), threading.Lock()

    def _start(self) -> None:
        """Have a thread work on it, if there is something to do and none does."""
        with self._starting:
            if self._is_working or (self._ended.is_set() and self._rounds is not None):
                return
            there = read_checkpoint(self._path)
            if not (self._is_whole or there.is_at_work()):
                self._repair(there)
                self._is_whole = True
            # Of one that somebody works on, more may come.
            if _is_settled(there) and not there.is_at_work():
                self._is_left = False
                self._ended.set()
                return
            spec, submission, path, options = how(
                replace(self._settings, checkpoint=self._path), _shared(there)
            )
            options = replace(options, progress=False, timeout=None)
            self._work_on(rounds_of_checkpoint(spec, submission, path, options=options))

    def _repair(self, there: Checkpoint) -> None:
        """Make damaged results anew; where their downloads are damaged too, there is work again."""
        if not damaged(there):
            return
        clock = SystemClock()
        account, dialect = account_of(self._settings.client, self._settings.dialect)
        is_ours = account == there.spec.account  # else only the address tells whose prices hold
        price_list = dialect.price_list if is_ours else price_list_of(there.spec.account.base_url)
        checkpoint = Checkpoint.open(self._path, there.spec, Storage(), clock)
        try:
            with checkpoint.planning:
                repair(checkpoint, clock, price_list, self._settings.prices)
        finally:
            checkpoint.close()
        there.catch_up()

    def _watch(self, event: threading.Event, timeout: float | None) -> None:
        """Wait for an event of the work, and show how it stands."""
        clock = SystemClock()
        deadline = None if timeout is None else clock.monotonic() + timeout
        with self._progress() as progress:
            while True:
                has_come = event.wait(_LOOK_SECONDS)
                self._show(progress)
                if has_come:
                    return
                if deadline is not None and clock.monotonic() >= deadline:
                    raise self._timed_out(timeout)

    def _progress(self) -> Progress:
        return progress_for(SystemClock()) if self._settings.progress else Silence()

    def _show(self, progress: Progress) -> None:
        rounds = self._rounds
        if rounds is not None:
            progress.show(rounds.tally())

    def _timed_out(self, timeout: float | None) -> RunTimeoutError:
        return RunTimeoutError(
            f"The run was not done after {timeout} seconds, and goes on. Wait again, or "
            f"bf.open_run({str(self._path)!r}) in another process. Nothing is lost."
        )

    def _outcome(self) -> Self:
        if self._error is not None:
            raise self._error
        if self._is_left:
            raise RunTimeoutError(
                "The run was detached while this waited for it, and its batches go on. Wait again "
                "to take it up. Nothing is lost."
            )
        return self

    def _look(self) -> Checkpoint:
        """The checkpoint as it is now."""
        rounds = self._rounds
        if rounds is not None and self._is_working:
            return rounds.checkpoint
        with self._looking:
            if self._there is None:
                self._there = read_checkpoint(self._path)
            else:
                self._there.catch_up()
            self._ask(self._there)
            return self._there

    def _ask(self, checkpoint: Checkpoint) -> None:
        """Ask live batches how they are, as nobody here does; what is not answered stays."""
        live = {
            shard.state.batch.batch_id: number
            for number, shard in checkpoint.shards.items()
            if isinstance(shard.state, Live)
        }
        if not live:
            return
        with suppress(BatchframeError, Unavailable):  # no key of that account, or no network
            provider = Provider(self._settings.client, self._settings.dialect)
            if provider.account == checkpoint.spec.account:
                for batch_id, seen in provider.glance(live.keys()).items():
                    # That it has ended is for the log to say.
                    if not seen.status.is_final:
                        checkpoint.observe(live[batch_id], seen)

    def _answers(self, status: str | None) -> Any:
        checkpoint = read_checkpoint(self._path)
        prices = self._settings.prices
        if self._finish is None:
            return latest(checkpoint.results(prices=prices)).drop_columns("row_key")
        if self._keys is None and self._rounds is not None:
            self._keys = self._rounds.keys  # known once all is submitted
        results, positions, *_ = find_keys(self._keys, checkpoint, prices)
        price_list = price_list_of(checkpoint.spec.account.base_url)
        if self._rounds is not None:
            price_list = self._rounds.dialect.price_list
        models = unpriced_models(results, checkpoint.spec.model, prices, price_list)
        warn_of_unknown_prices(models, PRICES_WAY_OUT)
        return self._finish(results, positions, status)


#: All handles of this process.
_handles: "weakref.WeakSet[Run]" = weakref.WeakSet()


def _forget_the_parents() -> None:
    for run in _handles:
        run._begin_anew()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)


def _leave_all() -> None:
    """Where the process ends, have all runs leave what there is to do to another one.

    A thread that is cut off within Arrow may abort the process.
    """
    clock = SystemClock()
    deadline = clock.monotonic() + _LAST_SECONDS
    working = [run for run in list(_handles) if run._is_working]  # noqa: SLF001 - of this module
    for run in working:
        run._leave()  # noqa: SLF001 - likewise
    for run in working:
        run._ended.wait(max(0.0, deadline - clock.monotonic()))  # noqa: SLF001 - likewise


atexit.register(_leave_all)


def _is_settled(checkpoint: Checkpoint) -> bool:
    """True where nothing is left to send or to collect."""
    done = all(isinstance(shard.state, Collected | Dropped) for shard in checkpoint.shards.values())
    return done and not checkpoint.left_to_send()


def _shared(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of a checkpoint's spec, without the account: the key's is compared to it."""
    spec = checkpoint.spec
    return {
        "endpoint": spec.endpoint,
        "model": spec.model,
        "system": spec.system,
        "params": spec.params,
    }


def begun(
    frame: Any,
    call: Call,
    id_col: "Hashable | None",
    settings: Settings,
    left: threading.Event | None = None,
) -> Run:
    """A frame's call, begun: returns when all that fits the limits is at the provider.

    Who sets `left` has it stop, wherever it is, and let the batches go on.
    """
    rows, finish = asked(frame, call, id_col, settings, is_kept=True)
    spec, submission, path, options = how(settings, call.spec)
    rounds = rounds_of_rows(rows, spec, submission, path, options=replace(options, progress=False))
    rounds.left = left or rounds.left
    run = Run(rounds.checkpoint.path, settings, rounds=rounds, finish=finish)
    try:
        run._watch(rounds.submitted, None)  # noqa: SLF001 - of this module
    except BaseException as error:
        run.detach()
        explain(error, rounds.checkpoint)
        raise
    return run._outcome()  # noqa: SLF001 - likewise


def open_run(
    path: str | Path,
    *,
    client: "openai.OpenAI | None" = None,
    prices: "Prices | None" = None,
    limits: "Limits | None" = None,
    completion_window: str = "24h",
    max_cost_usd: float | None = None,
    max_error_ratio: float | None = None,
    max_retries: int = 3,
    poll_interval: float | None = None,
    on_unknown: str = "resend",
    delete_remote: bool = False,
    progress: bool = True,
    dialect: "str | Dialect | None" = None,
) -> Run:
    """A handle of the run in a checkpoint, in whichever process it was begun.

    Nothing is sent before somebody waits. Rows that were never prepared, because their process died
    before it had written them down, are not there: the same call sends them.

    Args:
        path: The checkpoint's directory, as it was given to `complete` or `submit`, or as
            `Run.path` has it.
        client: As for `complete`; it needs a key of the account that began the run.
        prices: As for `complete`.
        limits: As for `complete`.
        completion_window: As for `complete`, for batches that are not created yet.
        max_cost_usd: The most that all rows of the checkpoint may cost; None: what the call said
            that began it.
        max_error_ratio: The part of all rows of the checkpoint that may end without an answer
            before no more is sent; None: what the call said that began it. Rows that share a
            request, by `dedupe`, count as one here.
        max_retries: As for `complete`.
        poll_interval: As for `complete`.
        on_unknown: As for `complete`.
        delete_remote: As for `complete`.
        progress: As for `complete`.
        dialect: As for `complete`.

    Returns:
        The handle.

    Raises:
        InputError: a keyword does not fit.
        CheckpointError: there is no such checkpoint, or it is broken.

    Example:
        >>> import batchframe as bf, polars as pl, tempfile
        >>> df = pl.DataFrame({"id": [1, 2], "prompt": ["2 + 2?", "3 + 3?"]})
        >>> folder = tempfile.mkdtemp()
        >>> with bf.emulator.LocalServer() as server:
        ...     client = server.client()
        ...     _ = df.openai_batch.submit(
        ...         "prompt",
        ...         "id",
        ...         model="gpt-4o-mini",
        ...         checkpoint=folder,
        ...         client=client,
        ...         progress=False,
        ...     )
        ...     run = bf.open_run(folder, client=client, progress=False)  # in any process
        ...     _ = run.wait() if run.status().is_done else None
        >>> run.status().n_rows
        2
    """
    settings = Settings.of(
        locals(),
        checkpoint=path,
        output="completion",
        details=False,
        nulls="skip",
        on_error="null",
        dedupe=False,
        retry_failed=False,
        timeout=None,
    )
    return Run(read_checkpoint(path).path, settings)


def runs(directory: str | Path = HOME) -> list[Run]:
    """Handles of all runs in a directory of checkpoints, those that changed last come first.

    Args:
        directory: Where checkpoints are found that no call named: `.batchframe` of the working
            directory; or another directory that holds some.

    Returns:
        One handle for each checkpoint; none where there is no such directory. One that cannot be
        read is left out, and a warning in the log says so.
    """
    check_values(checkpoint=directory)
    root = Path(directory).expanduser()
    found = sorted(
        (path.parent for path in root.glob(f"*/{SPEC}")),
        key=lambda path: (path / LOG).stat().st_mtime if (path / LOG).is_dir() else 0.0,
        reverse=True,
    )
    handles = []
    for path in found:
        try:
            handles.append(open_run(path))
        except CheckpointError as error:
            _log.warning("%s is left out: %s", path, error)
    return handles
