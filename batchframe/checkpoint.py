"""The checkpoint: one spec's shards, log, downloads and results, in one directory.

spec.json      what all requests share; immutable
shards/        00000-<sha16>.jsonl, the exact bytes uploaded, until the results are committed;
               00000-<sha16>.parquet, row key, id, body digest and token estimate of each line
log/           00000000.json ...: one commit each, put where no file was, chained by SHA-256
raw/           00000-output.jsonl.zst, 00000-error.jsonl.zst: the downloads, verbatim
results/       00000.parquet: one result per request of the shard
lock           names the process at work, for a friendly message
cancelled      is there while nothing more is to be sent
max_cost_usd, max_error_ratio   limits of the last call that asked for rows, if it had them

The log is the truth: a shard's state is its events, folded. A commit that finds its number taken
belongs to a process that another one has overtaken, and stops there, before it can spend money.
A shard's files carry the hash of its lines, so that such a process cannot write over them either.
All names are made of numbers and hashes; nothing else that is read becomes a path or an address.
"""

import contextlib
import errno
import io
import itertools
import json
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Literal, Self, get_args

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchframe.clock import Clock
from batchframe.core.batches import (
    BatchSeen,
    Collected,
    Dropped,
    Event,
    IllegalTransitionError,
    ResultsCommitted,
    ShardDropped,
    ShardFrozen,
    State,
    advance,
)
from batchframe.core.prices import Prices, repriced
from batchframe.core.requests import Requests, url_in
from batchframe.core.results import RESULT_SCHEMA
from batchframe.core.retries import unfinished
from batchframe.core.spec import SPEC_VERSION, Spec
from batchframe.errors import (
    CheckpointBusyError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
)
from batchframe.storage import Storage

try:
    import fcntl
except ImportError:  # Windows: the log alone protects
    fcntl = None  # type: ignore[assignment]

__all__ = ["Checkpoint", "DownloadKind", "LimitName", "Shard", "remove_checkpoint"]

#: The two files that a batch leaves.
DownloadKind = Literal["output", "error"]
#: The limits of a call that hold for all who work on its checkpoint.
LimitName = Literal["max_cost_usd", "max_error_ratio"]

#: What is known of each line of a shard.
_SHARD_SCHEMA = pa.schema(
    [
        pa.field("row_key", pa.binary(16), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("body_digest", pa.binary(16), nullable=False),
        pa.field("n_tokens", pa.int64(), nullable=False),
    ]
)
#: The columns of results that tell which rows may be tried again.
_FOR_TRIES = ("row_key", "status", "error_code", "http_status")
#: Columns whose values are all different: a dictionary of them costs time and space.
_UNIQUE = frozenset({"row_key", "id", "body_digest", "request_id"})
#: The directories of a checkpoint.
_PARTS = ("shards", "log", "raw", "results")
#: How often the lock is tried, and the seconds in between.
_LOCK_TRIES, _LOCK_SECONDS = 5, 0.01
#: Size of the pieces in which downloads are read back, in bytes.
_READ_BYTES = 1 << 20


class Shard(msgspec.Struct):
    """One shard as the log has it."""

    #: What was frozen.
    frozen: ShardFrozen
    #: Where it stands.
    state: State


class _Commit(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the log."""

    n: int
    #: Hex SHA-256 of the commit before, "" for the first.
    prev: str
    #: When, UTC; for people only.
    at: str
    shard: int
    event: Event


class Checkpoint:
    """One spec's directory, shared by all runs and threads of this process.

    Open it with `Checkpoint.open`, and close it once for each opening.
    """

    _open: dict[Path, "Checkpoint"] = {}  # noqa: RUF012 - one per directory and process, by design
    _open_lock = threading.Lock()

    def __init__(self, path: Path, spec: Spec, storage: Storage, clock: Clock) -> None:
        self.path = path
        self.spec = spec
        self.shards: dict[int, Shard] = {}
        #: Held while a run plans: two threads with the same rows must not both plan them.
        self.planning = threading.RLock()
        self._storage = storage
        self._clock = clock
        self._commits = threading.Lock()
        self._n_commits = 0
        self._last_hash = ""
        self._failure: OSError | None = None
        self._users = 0
        self._lock_file: BinaryIO | None = None
        #: What `is_cancelled` said last: nothing unsent is sent then.
        self.was_cancelled = False

    @classmethod
    def open(cls, path: Path, spec: Spec, storage: Storage, clock: Clock) -> Self:
        """The checkpoint at `path`, made if there is none.

        Raises:
            CheckpointMismatchError: it belongs to another spec; the message says what differs.
            CheckpointBusyError: another process works on it.
            CheckpointCorruptError: its log is broken.
            CheckpointError: the path cannot be used.
        """
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a symbolic link, which may lead anywhere. Nothing was sent. Name the "
                "directory itself with checkpoint=."
            )
        resolved = path.resolve()
        with cls._open_lock:
            checkpoint = cls._open.get(resolved)
            if checkpoint is None:
                checkpoint = cls(resolved, spec, storage, clock)
                checkpoint._prepare()
                cls._open[resolved] = checkpoint
            else:
                checkpoint.check_spec(spec)
            checkpoint._users += 1
        return checkpoint  # type: ignore[return-value]

    @classmethod
    def read(cls, path: Path, storage: Storage, clock: Clock) -> Self:
        """The checkpoint at `path` as it is now, to be read: nothing is locked and nothing made.

        Another process may be at work on it; what that commits later is not seen.

        Raises:
            CheckpointMismatchError: it is of another version.
            CheckpointCorruptError: its log is broken.
            CheckpointError: there is none.
        """
        resolved = path.resolve()
        try:
            data = storage.read(resolved / "spec.json")
        except OSError as error:
            raise CheckpointError(f"{resolved} cannot be read as a checkpoint: {error}.") from error
        checkpoint = cls(resolved, _spec_in(data, resolved), storage, clock)
        checkpoint._replay()
        return checkpoint

    def catch_up(self) -> None:
        """Read what was committed since; for a checkpoint that was opened by `read`."""
        self._replay()

    def ask_to_cancel(self) -> None:
        """Have whoever works on it, now or later, send nothing more and cancel what is live."""
        self._storage.create(self._cancel_path, b"")

    def is_cancelled(self) -> bool:
        """True if somebody asked for that, and no call has asked for its rows since."""
        self.was_cancelled = self._cancel_path.exists()
        return self.was_cancelled

    def forget_cancel(self) -> None:
        """Begin anew: a call asks for rows."""
        if self.is_cancelled():
            self._storage.remove(self._cancel_path)
            self.was_cancelled = False

    def set_limit(self, name: LimitName, limit: float | None) -> None:
        """Note a limit of the last call that asked for rows; None for no limit."""
        path = self.path / name
        if limit is not None:
            with self._storage.replace(path) as file:
                file.write(repr(float(limit)).encode())
        elif path.exists():
            self._storage.remove(path)

    def limit(self, name: LimitName) -> float | None:
        """That limit, which holds also for who works on the checkpoint without rows."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            return float(self._storage.read(path))
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    @property
    def _cancel_path(self) -> Path:
        return self.path / "cancelled"

    def is_at_work(self) -> bool:
        """True while a process has the directory open, this one included."""
        if fcntl is None:
            return False
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # Given free at once, and not only by closing: a forked child may hold a copy.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
        finally:
            os.close(descriptor)
        return False

    def check_spec(self, spec: Spec) -> None:
        """Raise CheckpointMismatchError if it belongs to another spec."""
        if self.spec != spec:
            raise _mismatch(self.path, spec, self.spec)

    def share(self) -> None:
        """One more user of the open checkpoint, who closes it as well."""
        with self._open_lock:
            self._users += 1

    def close(self) -> None:
        """Give the directory free when the last user of this process closes it."""
        with self._open_lock:
            self._users -= 1
            if self._users == 0:
                self._open.pop(self.path, None)
                try:
                    self._remove_inputs()
                finally:
                    self._release_lock()

    # Shards

    def freeze(self, requests: Requests, *, round_: int) -> int:
        """Write the requests as a new shard and commit it. Returns its number."""
        number = len(self.shards)
        data = b"".join(requests.lines)
        frozen = ShardFrozen(
            n_requests=len(requests),
            n_bytes=len(data),
            n_tokens=sum(requests.n_tokens),
            sha256=sha256(data).hexdigest(),
            round=round_,
            model=requests.model,
        )
        columns = [
            _keys(requests.row_keys),
            pa.array(requests.ids, pa.string()),
            _keys(requests.body_digests),
            pa.array(requests.n_tokens, pa.int64()),
        ]
        self._write_table(
            self._shard_path(number, frozen, "parquet"),
            pa.Table.from_arrays(columns, schema=_SHARD_SCHEMA),
        )
        with self._storage.replace(self._shard_path(number, frozen, "jsonl")) as file:
            file.write(data)
        self.commit(number, frozen)
        return number

    def requests(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Row key, id, body digest and token estimate of each line of a shard, in its order."""
        path = self._shard_path(number, self.shards[number].frozen, "parquet")
        return self._read_table(path, _SHARD_SCHEMA, columns)

    def model_of(self, number: int) -> str:
        """The model of a shard's requests."""
        return self.spec.model or self.shards[number].frozen.model or ""

    def input_path(self, number: int) -> Path:
        """Where a shard's input file is, until its results are committed."""
        return self._shard_path(number, self.shards[number].frozen, "jsonl")

    def input_file(self, number: int) -> BinaryIO:
        """The exact bytes of a shard's input file, as a stream."""
        try:
            return self._storage.open(self.input_path(number))
        except FileNotFoundError:
            # Another process has sent it, and removed it, where the log goes on without us.
            with self._commits:
                is_overtaken = self._commit_path(self._n_commits).exists()
            if is_overtaken:
                raise self._overtaken() from None
            raise CheckpointCorruptError(
                f"The input file of shard {number} is gone from {self.path}."
            ) from None

    def url_of(self, number: int) -> str | None:
        """What the lines of a shard call their endpoint; None where they are gone or damaged."""
        try:
            with self.input_file(number) as file:
                return url_in(file.readline())
        except (CheckpointCorruptError, ValueError):
            return None

    def lines(self, number: int, keys: pa.FixedSizeBinaryArray) -> Requests:
        """The requests of a shard that have these row keys, as they were sent.

        They are there as long as a row of the shard may have to be sent again.
        """
        known = self.requests(number)
        is_asked = pc.is_in(known["row_key"], value_set=keys)
        with self.input_file(number) as file:
            data = file.read()
        if sha256(data).hexdigest() != self.shards[number].frozen.sha256:
            raise CheckpointCorruptError(
                f"{self.input_path(number)} was changed, so that its rows cannot be sent again "
                "from it. Nothing was sent. Delete that one file and run the same call again."
            )
        lines = list(itertools.compress(io.BytesIO(data), is_asked.to_pylist()))
        columns = (known.filter(is_asked)[name].to_pylist() for name in _SHARD_SCHEMA.names)
        row_keys, ids, digests, n_tokens = columns
        model = self.shards[number].frozen.model
        return Requests(model, row_keys, ids, digests, lines, n_tokens)

    def row_keys(self, number: int) -> pa.FixedSizeBinaryArray:
        """The row keys of a shard's lines, in its order."""
        return self.requests(number, ("row_key",))["row_key"].combine_chunks()

    def to_send_again(self) -> dict[int, pa.FixedSizeBinaryArray]:
        """By shard, keys of rows that may be tried again: their lines are here, and nowhere later.

        A shard that has none is left out.
        """
        found: dict[int, pa.FixedSizeBinaryArray] = {}
        for number in self.inputs():
            match self.shards[number].state:
                case Collected():
                    results = self.results_of(number, _FOR_TRIES)
                    found[number] = results.filter(unfinished(results))["row_key"].combine_chunks()
                case Dropped(is_unwanted=False):
                    found[number] = self.row_keys(number)
                case _:
                    pass
        newer = self.newer(found)
        left = {number: keys.filter(newer[number].is_null()) for number, keys in found.items()}
        return {number: keys for number, keys in left.items() if len(keys)}

    def newer(self, keys: Mapping[int, pa.FixedSizeBinaryArray]) -> dict[int, pa.Int64Array]:
        """The last shard that holds each row key of these, by shard; null where no later one does.

        All of them are looked up together, and each shard is read once.
        """
        asked = pa.concat_arrays([pa.array([], pa.binary(16)), *keys.values()])
        later = [
            number
            for number, shard in sorted(list(self.shards.items()))  # noqa: C414 - a copy, first
            if len(asked) and number > min(keys) and not isinstance(shard.state, Dropped)
        ]
        held = [self.row_keys(number) for number in later]
        owners = [
            pa.repeat(pa.scalar(number, pa.int64()), len(there))
            for number, there in zip(later, held, strict=True)
        ]
        places = pa.table(
            [pa.chunked_array(held, pa.binary(16)), pa.chunked_array(owners, pa.int64())],
            names=["key", "owner"],
        )
        places = places.filter(pc.is_in(places["key"], value_set=asked))
        last = places.group_by("key").aggregate([("owner", "max")])
        owner = last["owner_max"].combine_chunks()
        owner = owner.take(pc.index_in(asked, value_set=last["key"].combine_chunks()))
        found, start = {}, 0
        for number, asked_of_it in keys.items():
            mine = owner.slice(start, len(asked_of_it))
            found[number] = pc.if_else(pc.greater(mine, number), mine, None)
            start += len(asked_of_it)
        return found

    def inputs(self) -> list[int]:
        """The shards whose input files are here, in order."""
        paths = {self.input_path(number).name: number for number in self.shards}
        names = self._storage.names(self.path / "shards")
        return sorted(paths[name] for name in names if name in paths)

    def _remove_inputs(self) -> None:
        """Remove the input files that nothing will be sent from."""
        # What cannot be read or removed now stays, and is looked at the next time.
        with contextlib.suppress(OSError, CheckpointError):
            again = self.to_send_again()
            for number in self.inputs():
                state = self.shards[number].state
                if isinstance(state, Collected | Dropped) and number not in again:
                    self._storage.remove(self.input_path(number))

    # The log

    def commit(self, number: int, event: Event) -> State:
        """Record what happened to a shard; only then is it so.

        Raises CheckpointBusyError when another process committed in between.
        """
        with self._commits:
            shard = self.shards.get(number)
            state = advance(shard.state if shard else None, event)
            commit = _Commit(
                n=self._n_commits,
                prev=self._last_hash,
                at=datetime.fromtimestamp(self._clock.now(), UTC).isoformat(),
                shard=number,
                event=event,
            )
            data = _sealed(msgspec.json.encode(commit))
            try:
                is_ours = self._storage.create(self._commit_path(commit.n), data)
            except OSError as error:
                self._failure = error
                raise
            if not is_ours and self._failure is not None:
                # Our own commit, which failed after it had its name: the next opening reads it.
                raise self._failure
            if not is_ours:
                raise self._overtaken()
            self._n_commits += 1
            self._last_hash = sha256(data).hexdigest()
            self._apply(number, state, event)
            return state

    def _overtaken(self) -> CheckpointBusyError:
        return CheckpointBusyError(
            f"Another process works on {self.path} and has overtaken this one, which stops here. "
            "Nothing is lost: run the same call again when the other has ended."
        )

    def observe(self, number: int, seen: BatchSeen) -> None:
        """Take note of a live batch's progress, which the log does not keep."""
        with self._commits:
            self.shards[number].state = advance(self.shards[number].state, seen)

    def history(self) -> Iterator[tuple[datetime, int, Event]]:
        """What the log says: when it was, UTC, to which shard, and what happened; in its order.

        The log is read again from the disk, as far as this checkpoint knows it, because what is
        kept in memory is only where each shard stands.

        Raises CheckpointCorruptError if a commit is not what was written.
        """
        for n in range(self._n_commits):
            commit, _ = self._read_commit(n)
            yield datetime.fromisoformat(commit.at), commit.shard, commit.event

    # Downloads and results

    @contextlib.contextmanager
    def download(self, number: int, kind: DownloadKind) -> Iterator[BinaryIO]:
        """Write a verbatim download; it takes its place when the block ends without an error."""
        with (
            self._storage.replace(self._raw_path(number, kind)) as file,
            pa.CompressedOutputStream(pa.PythonFile(_KeptOpen(file), mode="w"), "zstd") as stream,
        ):
            yield stream

    def downloaded(self, number: int, kind: DownloadKind) -> Iterator[bytes]:
        """The bytes of a download, in pieces."""
        path = self._raw_path(number, kind)
        try:
            with (
                self._storage.open(path) as file,
                pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream,
            ):
                while piece := stream.read(_READ_BYTES):
                    yield piece
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error

    def drop(self, number: int, *, is_unwanted: bool) -> None:
        """Give up a shard that was never sent, because of its size, or because rows are unwanted.

        Its lines stay until the checkpoint is closed: others may want the rest of its rows.
        """
        self.commit(number, ShardDropped(is_unwanted=is_unwanted))

    def store_results(self, number: int, table: pa.Table, committed: ResultsCommitted) -> None:
        """Write a shard's results, read their keys back, and commit them."""
        self.write_results(number, table)
        self.commit(number, committed)
        if not pc.any(unfinished(table)).as_py():
            self._storage.remove(self.input_path(number))

    def write_results(self, number: int, table: pa.Table) -> None:
        """Write a shard's results and read their keys back."""
        path = self._results_path(number)
        self._write_table(path, table)
        # One column stands for all: a file whose end is there was written whole, and what is
        # damaged later is made anew from the downloads.
        there = self._read_table(path, RESULT_SCHEMA, ("row_key",))["row_key"]
        if not there.equals(table["row_key"]):
            raise CheckpointCorruptError(f"{path} does not read back as it was written.")

    def results_of(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The results of one collected shard; CheckpointCorruptError if they are damaged."""
        return self._read_table(self._results_path(number), RESULT_SCHEMA, columns)

    def results(
        self,
        columns: Sequence[str] = tuple(RESULT_SCHEMA.names),
        *,
        prices: Prices | None = None,
        numbers: Iterable[int] | None = None,
    ) -> pa.Table:
        """All results, in the order of their shards: of a row tried twice, the last counts.

        With `prices`, at the user's own rates where it has any for them. With `numbers`, those of
        these collected shards.
        """
        chosen = self.collected() if numbers is None else numbers
        tables = (self._priced_results(number, columns, prices) for number in chosen)
        return pa.concat_tables([RESULT_SCHEMA.empty_table().select(columns), *tables])

    def results_of_windows(
        self, windows: Sequence[pa.FixedSizeBinaryArray], *, prices: Prices | None = None
    ) -> Iterator[pa.Table]:
        """For each window of row keys its results, in the order of their shards.

        No key is in two windows, and one without a result has none. Where each result belongs is
        looked up once for all, and a shard is read for the windows alone that it has results of.
        """
        numbers = self.collected()
        keys = [
            self._read_table(self._results_path(number), RESULT_SCHEMA, ("row_key",))["row_key"]
            for number in numbers
        ]
        nothing = pa.array([], pa.binary(16))
        place = pc.index_in(
            pa.chunked_array([chunk for column in keys for chunk in column.chunks], nothing.type),
            value_set=pa.concat_arrays([nothing, *windows]),
            skip_nulls=True,
        )
        owners = [pa.repeat(pa.scalar(n, pa.int32()), len(w)) for n, w in enumerate(windows)]
        owner = pa.concat_arrays([pa.array([], pa.int32()), *owners]).take(place)
        owner_of, start = {}, 0
        for number, column in zip(numbers, keys, strict=True):
            owner_of[number] = owner.slice(start, len(column)).combine_chunks()
            start += len(column)
        shards_of: dict[int, list[int]] = {}
        for number in numbers:
            for index in owner_of[number].unique().drop_null().to_pylist():
                shards_of.setdefault(index, []).append(number)

        def results(index: int, number: int) -> pa.Table:
            table = self._priced_results(number, RESULT_SCHEMA.names, prices)
            is_ours = pc.equal(owner_of[number], index)
            # What is whole needs no copy.
            is_whole = pc.all(is_ours, skip_nulls=False).as_py()
            return table if is_whole else table.filter(is_ours)

        for index in range(len(windows)):
            tables = (results(index, number) for number in shards_of.get(index, ()))
            yield pa.concat_tables([RESULT_SCHEMA.empty_table(), *tables])

    def _priced_results(
        self, number: int, columns: Sequence[str], prices: Prices | None
    ) -> pa.Table:
        """The results of one collected shard, at the user's own rates where there are any."""
        if not prices:
            return self.results_of(number, columns)
        table = repriced(self.results_of(number), model=self.model_of(number), prices=prices)
        return table.select(columns)

    def collected(self) -> list[int]:
        """The shards whose results are here, in order."""
        return [
            number
            for number, shard in sorted(self.shards.items())
            if isinstance(shard.state, Collected)
        ]

    # Opening

    def _prepare(self) -> None:
        try:
            self._storage.make_directory(self.path)
            self._check_directory()
            # First of all, or a process that dies here would leave a directory that is refused.
            self._check_spec()
            for part in _PARTS:
                self._storage.make_directory(self.path / part)
            self._take_lock()
            self._storage.create(self.path / ".gitignore", b"*\n")
        except OSError as error:
            self._release_lock()
            raise CheckpointError(
                f"{self.path} cannot be used as a checkpoint: {error}. Nothing was sent. "
                "Name a directory that you may write to with checkpoint=."
            ) from error
        except BaseException:
            self._release_lock()
            raise
        try:
            self._replay()
        except BaseException:
            self._release_lock()
            raise

    def _check_directory(self) -> None:
        names = [name for name in self._storage.names(self.path) if not self._is_rest(name)]
        if names and "spec.json" not in names:
            raise CheckpointError(
                f"{self.path} holds other files ({', '.join(names[:3])}) and is no checkpoint. "
                "Nothing was sent. Name a directory of its own with checkpoint=."
            )
        if os.name != "nt" and self.path.stat().st_mode & 0o022:
            if names:
                raise CheckpointError(
                    f"Others than its owner may write to {self.path}, so it cannot be trusted. "
                    f"Nothing was sent. Close it first: chmod -R go-w {self.path}"
                )
            self.path.chmod(0o700)
            if self.path.stat().st_mode & 0o022:
                raise CheckpointError(
                    f"{self.path} stays writable for others, whatever its mode is set to: its file "
                    "system knows no owners. Nothing was sent. Name a directory elsewhere with "
                    "checkpoint=."
                )

    def _is_rest(self, name: str) -> bool:
        """True for what an opening leaves that lost its power before the spec was on the disk."""
        if name == "lock":
            return not (self.path / "spec.json").exists()
        return name in _PARTS and not self._storage.names(self.path / name)

    def _check_spec(self) -> None:
        path = self.path / "spec.json"
        if self._storage.create(path, self.spec.to_json()):
            return
        there = _spec_in(self._storage.read(path), self.path)
        if there != self.spec:
            raise _mismatch(self.path, self.spec, there)

    def _replay(self) -> None:
        names = self._storage.names(self.path / "log")
        if names and names[-1] != self._commit_path(len(names) - 1).name:
            # A listing that was made while files were added may lack one before the last.
            names = self._storage.names(self.path / "log")
        for n, name in enumerate(names[self._n_commits :], start=self._n_commits):
            path = self._commit_path(n)
            if name != path.name:
                raise self._broken_log(f"{path.name} is missing")
            commit, digest = self._read_commit(n)
            if commit.n != n or commit.prev != self._last_hash:
                raise self._broken_log(f"{name} does not follow the commit before it")
            shard = self.shards.get(commit.shard)
            try:
                state = advance(shard.state if shard else None, commit.event)
            except IllegalTransitionError as error:
                raise self._broken_log(f"{name}: {error}") from None
            self._apply(commit.shard, state, commit.event)
            self._n_commits = n + 1
            self._last_hash = digest

    def _read_commit(self, n: int) -> tuple[_Commit, str]:
        """One commit of the log, and the hex SHA-256 of its file."""
        path = self._commit_path(n)
        try:
            data = self._storage.read(path)
        except FileNotFoundError:
            raise self._broken_log(f"{path.name} is missing") from None
        payload = data.partition(b"\n")[0]
        if data != _sealed(payload):
            raise self._broken_log(f"{path.name} is not what was written")
        try:
            commit = msgspec.json.decode(payload, type=_Commit)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._broken_log(f"{path.name} cannot be read: {error}") from None
        return commit, sha256(data).hexdigest()

    def _apply(self, number: int, state: State, event: Event) -> None:
        if isinstance(event, ShardFrozen):
            self.shards[number] = Shard(frozen=event, state=state)
        else:
            self.shards[number].state = state

    def _broken_log(self, what: str) -> CheckpointCorruptError:
        return CheckpointCorruptError(
            f"The log of {self.path} is broken: {what}. Nothing was sent. Restore the directory "
            "from a copy. Without one: results/*.parquet, which any parquet reader opens, hold "
            "what was collected; what was not is on the provider's page for 30 days after its "
            f"batch, under the metadata checkpoint={self.spec.fingerprint}. A call with another "
            "checkpoint= sends its rows anew, and they are paid for again: leave out those."
        )

    # The lock: for the message only. The log protects.

    def _take_lock(self) -> None:
        path = self.path / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        self._lock_file = file
        if fcntl is None:
            return
        for tries_left in reversed(range(_LOCK_TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if tries_left:  # somebody may only be looking whether it is locked
                    time.sleep(_LOCK_SECONDS)
                    continue
                self._lock_file = None
                holder = file.read(200).decode(errors="replace").strip() or "another process"
                file.close()
                raise CheckpointBusyError(
                    f"{self.path} is in use by {holder}. Nothing was sent. Wait for it to end, or "
                    "give this call a checkpoint= of its own."
                ) from None
            except OSError:  # a file system without locks: the log alone protects
                break
        file.truncate(0)
        file.seek(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def _release_lock(self) -> None:
        if self._lock_file is not None:
            if fcntl is not None:
                # Unlocked, and not only closed: a forked child may hold a copy of the file.
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(self._lock_file, fcntl.LOCK_UN)
            self._lock_file.close()
            self._lock_file = None

    # Files

    def _write_table(self, path: Path, table: pa.Table) -> None:
        with self._storage.replace(path) as file:
            pq.write_table(
                table,
                file,
                compression="zstd",
                compression_level=1,
                use_dictionary=[name for name in table.column_names if name not in _UNIQUE],
                write_page_checksum=True,
            )

    def _read_table(
        self, path: Path, schema: pa.Schema, columns: Sequence[str] | None = None
    ) -> pa.Table:
        try:
            # Checked, or a text with a byte that was changed on the disk would be an answer.
            with (
                self._storage.open(path) as file,
                pq.ParquetFile(file, page_checksum_verification=True) as parquet,
            ):
                fits = parquet.schema_arrow.equals(schema)
                table = parquet.read(columns, use_threads=False) if fits else None
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error
        if table is None:
            raise CheckpointCorruptError(f"{path} does not have the columns that were written.")
        return table.select(columns) if columns else table

    def _shard_path(self, number: int, frozen: ShardFrozen, kind: str) -> Path:
        return self.path / "shards" / f"{number:05d}-{frozen.sha256[:16]}.{kind}"

    def _commit_path(self, n: int) -> Path:
        return self.path / "log" / f"{n:08d}.json"

    def _raw_path(self, number: int, kind: DownloadKind) -> Path:
        return self.path / "raw" / f"{number:05d}-{kind}.jsonl.zst"

    def _results_path(self, number: int) -> Path:
        return self.path / "results" / f"{number:05d}.parquet"


def _spec_in(data: bytes, path: Path) -> Spec:
    """The spec of the checkpoint at `path`, from the content of its spec.json."""
    version = _version_of(data)
    if version not in {None, SPEC_VERSION}:
        raise CheckpointMismatchError(
            f"{path} was written by another version of batchframe (layout {version}, this one "
            f"reads {SPEC_VERSION}). Use that version, or another checkpoint=."
        )
    try:
        return Spec.from_json(data)
    except msgspec.DecodeError as error:
        raise CheckpointCorruptError(f"{path / 'spec.json'} cannot be read: {error}.") from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """What it means that a file cannot be read: it is damaged, or only the moment is bad."""
    # pyarrow's own OSErrors, about the content, have no number.
    passing = isinstance(error, OSError) and error.errno not in {None, errno.ENOENT}
    if passing:
        return CheckpointError(
            f"{path} cannot be read now: {error}. Nothing is lost. Mend the cause and run the same "
            "call again; if it stays so, delete that one file: it is made anew."
        )
    way_out = (
        " Delete that one file and run the same call again: it is made anew from the downloads, "
        "and nothing is paid again."
        if path.parent.name == "results"
        else ""
    )
    return CheckpointCorruptError(f"{path} cannot be read: {error}.{way_out}")


def _forget_the_parents() -> None:
    """A forked child has its parent's checkpoints, but neither its threads nor its lock."""
    for checkpoint in Checkpoint._open.values():  # noqa: SLF001
        # Only its own copy is closed: to unlock it would unlock the parent's.
        if checkpoint._lock_file is not None:  # noqa: SLF001
            checkpoint._lock_file.close()  # noqa: SLF001
    Checkpoint._open.clear()  # noqa: SLF001
    Checkpoint._open_lock = threading.Lock()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint's directory with all that is in it.

    It goes at once, under another name, so that none is left that has half of its files.

    Raises CheckpointError where it is none, or holds what no checkpoint has made.
    """
    if path.is_symlink() or not (path / "spec.json").is_file():
        raise CheckpointError(f"{path} is no checkpoint; nothing was removed.")
    ours = {*_PARTS, "spec.json", "lock", "cancelled", *get_args(LimitName)}
    foreign = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.name not in ours and not entry.name.startswith(".")
    )
    if foreign:
        raise CheckpointError(
            f"{path} holds other files as well ({', '.join(foreign[:3])}); nothing was removed. "
            "Move them elsewhere first."
        )
    going = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    path.rename(going)
    shutil.rmtree(going)


def _sealed(payload: bytes) -> bytes:
    """A commit as it stands in its file: one line of JSON, and one with the JSON's SHA-256."""
    return payload + b"\n" + sha256(payload).hexdigest().encode() + b"\n"


def _keys(keys: Sequence[bytes]) -> pa.FixedSizeBinaryArray:
    """Row keys or digests as a column, without looking at one by one."""
    data = pa.py_buffer(b"".join(keys))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, data])


class _KeptOpen:
    """A file that a compressor cannot close: its bytes are still to be flushed to the disk."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        pass


def _mismatch(path: Path, ours: Spec, theirs: Spec) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"The checkpoint {path} belongs to another spec: {'; '.join(ours.differences(theirs))}. "
        "Nothing was sent. Give this call a checkpoint= of its own, or leave it out: a directory "
        "is then found by the spec."
    )


def _version_of(data: bytes) -> object:
    try:
        fields = json.loads(data)
    except ValueError:
        return None
    return fields.get("version") if isinstance(fields, dict) else None
