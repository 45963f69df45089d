"""The checkpoint: one spec's shards, log, downloads and results, in one directory.

This module opens and closes it, and knows what belongs to the whole of it. Its parts are in modules
of their own, each built on the one before: a log (`commits`), with the files of its shards
(`shard_files`), with what came back of them (`result_files`). `layout` has all names.
"""

import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import msgspec
import pyarrow as pa

from batchframe.clock import Clock
from batchframe.core.spec import SPEC_VERSION, Spec
from batchframe.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
)
from batchframe.layout import HOME, LOCK, NAMES, PARTS, SPEC, Layout, LimitName, unreadable
from batchframe.lock import Lock
from batchframe.result_files import ResultFiles
from batchframe.storage import Storage

__all__ = ["Checkpoint", "checkpoint_path", "remove_checkpoint"]


class Checkpoint(ResultFiles):
    """One spec's directory, shared by all runs and threads of this process.

    Open it with `Checkpoint.open`, and close it once for each opening.
    """

    _open: dict[Path, "Checkpoint"] = {}  # noqa: RUF012 - one per directory and process, by design
    _open_lock = threading.Lock()

    def __init__(self, path: Path, spec: Spec, storage: Storage, clock: Clock) -> None:
        super().__init__(path, spec, storage, clock)
        #: Held while a run plans: two threads with the same rows must not both plan them.
        self.planning = threading.RLock()
        self._users = 0
        self._lock = Lock(self._layout.lock)
        #: What `is_cancelled` said last: nothing unsent is sent then.
        self.was_cancelled = False
        self._cancelled_shards: frozenset[int] | None = None

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
            data = storage.read(Layout(resolved).spec)
        except OSError as error:
            raise CheckpointError(f"{resolved} cannot be read as a checkpoint: {error}.") from error
        checkpoint = cls(resolved, _spec_in(data, resolved), storage, clock)
        checkpoint.catch_up()
        return checkpoint

    def ask_to_cancel(self) -> None:
        """Have whoever works on it, now or later, send nothing more and cancel what is live."""
        self._storage.create(self._layout.cancelled, b"")

    def is_cancelled(self) -> bool:
        """True if somebody asked for that, and no call has asked for its rows since."""
        self.was_cancelled = self._layout.cancelled.exists()
        return self.was_cancelled

    def forget_cancel(self, shards: Iterable[int]) -> None:
        """Begin anew: a call asks for rows. These shards stay cancelled until one asks for them."""
        self._keep_cancelled(self.cancelled_shards.union(shards))
        self._storage.remove(self._layout.cancelled)
        self.was_cancelled = False

    @property
    def cancelled_shards(self) -> frozenset[int]:
        """The shards of which nothing is sent, or sent again: what was sent is collected.

        They were cancelled, and nobody was at work on them when a call began anew.
        """
        if self._cancelled_shards is None:
            path = self._layout.cancelled_shards
            try:
                numbers = msgspec.json.decode(self._storage.read(path), type=list[int])
            except FileNotFoundError:
                numbers = []
            except (OSError, msgspec.DecodeError) as error:
                raise CheckpointError(
                    f"{path} cannot be read: {error}. Nothing was sent. Without it nothing counts "
                    "as cancelled: delete it if what it names may be sent after all."
                ) from error
            self._cancelled_shards = frozenset(numbers)
        return self._cancelled_shards

    def take_back(self, shards: Iterable[int]) -> None:
        """Take note that a call asks for rows of these shards: they are cancelled no more."""
        left = self.cancelled_shards.difference(shards)
        if left != self.cancelled_shards:
            self._keep_cancelled(left)

    def _keep_cancelled(self, shards: frozenset[int]) -> None:
        with self._storage.replace(self._layout.cancelled_shards) as file:
            file.write(msgspec.json.encode(sorted(shards)))
        self._cancelled_shards = shards

    def left_to_send(self) -> dict[int, pa.FixedSizeBinaryArray]:
        """What is `to_send_again`, but for shards that were cancelled."""
        found = self.to_send_again().items()
        return {number: keys for number, keys in found if number not in self.cancelled_shards}

    def set_limit(self, name: LimitName, limit: float | None) -> None:
        """Note a limit of the last call that asked for rows; None for no limit."""
        path = self._layout.limit(name)
        if limit is not None:
            with self._storage.replace(path) as file:
                file.write(repr(float(limit)).encode())
        elif path.exists():
            self._storage.remove(path)

    def limit(self, name: LimitName) -> float | None:
        """That limit, which holds also for who works on the checkpoint without rows."""
        path = self._layout.limit(name)
        if not path.exists():
            return None
        try:
            return float(self._storage.read(path))
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error

    def is_at_work(self) -> bool:
        """True while a process has the directory open, this one included."""
        return self._lock.is_held()

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
                    self._lock.release()

    # Opening

    def _prepare(self) -> None:
        try:
            self._storage.make_directory(self.path)
            self._check_directory()
            # First of all, or a process that dies here would leave a directory that is refused.
            self._check_spec()
            for part in PARTS:
                self._storage.make_directory(self.path / part)
            self._lock.take()
            self._storage.create(self.path / ".gitignore", b"*\n")
        except OSError as error:
            self._lock.release()
            raise CheckpointError(
                f"{self.path} cannot be used as a checkpoint: {error}. Nothing was sent. "
                "Name a directory that you may write to with checkpoint=."
            ) from error
        except BaseException:
            self._lock.release()
            raise
        try:
            self.catch_up()
            self.cancelled_shards  # noqa: B018 - one that cannot be read is told before all else
        except BaseException:
            self._lock.release()
            raise

    def _check_directory(self) -> None:
        names = [name for name in self._storage.names(self.path) if not self._is_rest(name)]
        if names and SPEC not in names:
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
        if name == LOCK:
            return not self._layout.spec.exists()
        return name in PARTS and not self._storage.names(self.path / name)

    def _check_spec(self) -> None:
        path = self._layout.spec
        if self._storage.create(path, self.spec.to_json()):
            return
        there = _spec_in(self._storage.read(path), self.path)
        if there != self.spec:
            raise _mismatch(self.path, self.spec, there)
        self.spec = there  # by whose JSON the rows are named, where the order of names differs


def checkpoint_path(named: str | Path | None, spec: Spec) -> Path:
    """The directory that was named, or the one in HOME of the spec, or of an equal one there."""
    if named:
        return Path(named).expanduser()
    path = Path(HOME, spec.fingerprint)
    if path.exists():
        return path
    for found in Path(HOME).glob(f"*/{SPEC}"):
        try:
            there = Spec.from_json(found.read_bytes())
        except (OSError, msgspec.DecodeError):
            continue
        if there == spec and found.parent.name == there.fingerprint:
            return found.parent
    return path


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
        raise CheckpointCorruptError(f"{path / SPEC} cannot be read: {error}.") from None


def _forget_the_parents() -> None:
    """A forked child has its parent's checkpoints, but neither its threads nor its lock."""
    for checkpoint in Checkpoint._open.values():  # noqa: SLF001
        checkpoint._lock.forget()  # noqa: SLF001
    Checkpoint._open.clear()  # noqa: SLF001
    Checkpoint._open_lock = threading.Lock()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint's directory with all that is in it.

    It goes at once, under another name, so that none is left that has half of its files.

    Raises CheckpointError where it is none, or holds what no checkpoint has made.
    """
    if path.is_symlink() or not (path / SPEC).is_file():
        raise CheckpointError(f"{path} is no checkpoint; nothing was removed.")
    foreign = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.name not in NAMES and not entry.name.startswith(".")
    )
    if foreign:
        raise CheckpointError(
            f"{path} holds other files as well ({', '.join(foreign[:3])}); nothing was removed. "
            "Move them elsewhere first."
        )
    going = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    path.rename(going)
    shutil.rmtree(going)


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
