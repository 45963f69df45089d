"""A process that can die at any of its operations, and a disk that loses what was not flushed.

Every storage primitive and every provider call has two points at which the process can die: just
before it, and just after. Once dead, nothing more happens. Under a power cut, the disk moreover
forgets each name whose directory was not flushed, and each byte that was not flushed before. What
is flushed is kept in mind only: the real disk is not asked, which takes most of the time.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from batchframe.client import Provider
from batchframe.storage import Storage


class Died(BaseException):
    """The process is gone. Not an Exception: nothing may catch it and go on."""


class Life:
    """Counts the points at which the process can die, and ends at one of them."""

    def __init__(self, ends_at: int | None = None) -> None:
        self.points = 0
        self.is_over = False
        self._ends_at = ends_at
        self._lock = threading.Lock()

    def perform(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._point()
        result = operation(*args, **kwargs)
        try:
            self._point()
        except Died:
            if hasattr(result, "close"):
                result.close()  # as the operating system does
            raise
        return result

    def _point(self) -> None:
        with self._lock:
            if not self.is_over:
                self.points += 1
                self.is_over = self.points == self._ends_at
            if self.is_over:
                raise Died


class MortalStorage(Storage):
    """The disk of a process that can die."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._lock = threading.Lock()
        #: How to undo each change of a name that its directory has not been flushed for.
        self._unflushed: list[tuple[Path, Callable[[], object]]] = []
        #: Files whose bytes may still be in memory only.
        self._unwritten: dict[int, Path] = {}
        self._written: set[int] = set()

    def cut_power(self) -> None:
        """Forget what was not flushed. Called once the process is dead."""
        for inode, path in self._unwritten.items():
            for name in path.parent.iterdir():
                if inode not in self._written and name.stat().st_ino == inode:
                    name.write_bytes(b"")
        for _, undo in reversed(self._unflushed):
            undo()

    def names(self, path: Path) -> list[str]:
        return self._life.perform(super().names, path)

    def read(self, path: Path) -> bytes:
        return self._life.perform(super().read, path)

    def open(self, path: Path) -> BinaryIO:
        return self._life.perform(super().open, path)

    def remove(self, path: Path) -> None:
        self._life.perform(super().remove, path)

    def _open_new(self, path: Path) -> BinaryIO:
        return self._life.perform(self._opened, path)

    def _opened(self, path: Path) -> BinaryIO:
        file = super()._open_new(path)
        with self._lock:
            self._unwritten[_inode(file)] = path
        return file

    def _flush(self, file: BinaryIO) -> None:
        self._life.perform(self._flushed, file)

    def _flushed(self, file: BinaryIO) -> None:
        with self._lock:
            self._written.add(_inode(file))

    def _link(self, source: Path, target: Path) -> None:
        self._life.perform(self._linked, source, target)

    def _linked(self, source: Path, target: Path) -> None:
        super()._link(source, target)
        with self._lock:
            self._unflushed.append((target.parent, lambda: target.unlink(missing_ok=True)))

    def _rename(self, source: Path, target: Path) -> None:
        self._life.perform(self._renamed, source, target)

    def _renamed(self, source: Path, target: Path) -> None:
        before = target.read_bytes() if target.exists() else None
        super()._rename(source, target)
        with self._lock:
            self._unflushed.append((target.parent, lambda: _restore(target, before)))

    def _flush_directory(self, path: Path) -> None:
        self._life.perform(self._directory_flushed, path)

    def _directory_flushed(self, path: Path) -> None:
        with self._lock:
            self._unflushed = [change for change in self._unflushed if change[0] != path]


class MortalProvider:
    """The calls of a process that can die: the provider itself lives on."""

    def __init__(self, provider: Provider, life: Life) -> None:
        self._provider = provider
        self._life = life

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._provider, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **kwargs: self._life.perform(attribute, *args, **kwargs)


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)
