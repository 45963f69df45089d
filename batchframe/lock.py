"""The lock of a checkpoint, for a friendly message only: the log is what protects."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import BinaryIO

from batchframe.errors import CheckpointBusyError

try:
    import fcntl
except ImportError:  # Windows: the log alone protects
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock"]

#: How often the lock is tried, and the seconds in between.
_LOCK_TRIES, _LOCK_SECONDS = 5, 0.01


class Lock:
    """A file that the process at work on its directory holds locked, and that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def is_held(self) -> bool:
        """True while a process holds it, this one included."""
        if fcntl is None:
            return False
        try:
            descriptor = os.open(self._path, os.O_RDONLY)
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

    def take(self) -> None:
        """Hold it.

        Raises:
            CheckpointBusyError: another process holds it, and is named.
            OSError: the file cannot be made.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        self._file = file
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
                self._file = None
                holder = file.read(200).decode(errors="replace").strip() or "another process"
                file.close()
                raise CheckpointBusyError(
                    f"{self._path.parent} is in use by {holder}. Nothing was sent. Wait for it to "
                    "end, or give this call a checkpoint= of its own."
                ) from None
            except OSError:  # a file system without locks: the log alone protects
                break
        file.truncate(0)
        file.seek(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Give it free, if it is held."""
        if self._file is not None:
            if fcntl is not None:
                # Unlocked, and not only closed: a forked child may hold a copy of the file.
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None

    def forget(self) -> None:
        """Close a forked child's copy of the file; to unlock it would unlock the parent's."""
        if self._file is not None:
            self._file.close()
            self._file = None
