"""The file operations that a checkpoint is made of.

Each either happened whole or did not happen, also after a power cut: bytes are flushed before a
name points at them, and the directory is flushed before anyone relies on the name. They are an
argument of the checkpoint, so that tests can let every one of them fail.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from batchframe.errors import ParameterError

__all__ = ["Storage", "check_replaceable", "replacing"]

_TEMPORARY = ".tmp-"


class Storage:
    """A local directory tree that only its owner may read (0700, 0600)."""

    def make_directory(self, path: Path) -> None:
        """Create a directory and its parents; fine if it exists."""
        missing = [part for part in (path, *path.parents) if not part.is_dir()]
        for part in reversed(missing):
            part.mkdir(mode=0o700, exist_ok=True)
            self._flush_directory(part.parent)

    def names(self, path: Path) -> list[str]:
        """The names in a directory, sorted, without unfinished writes and other hidden files."""
        # Desktops and network file systems leave .DS_Store and .nfs... wherever they look.
        return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))

    def read(self, path: Path) -> bytes:
        """The bytes of a file; FileNotFoundError if there is none."""
        return path.read_bytes()

    def open(self, path: Path) -> BinaryIO:
        """A file for reading, as a stream."""
        return path.open("rb")

    def create(self, path: Path, data: bytes) -> bool:
        """Put a file where none is. False, and nothing done, if one is there already."""
        temporary = self._temporary(path)
        try:
            with self._open_new(temporary) as file:
                file.write(data)
                file.flush()
                self._flush(file)
            self._link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        self._flush_directory(path.parent)
        return True

    @contextlib.contextmanager
    def replace(self, path: Path) -> Iterator[BinaryIO]:
        """Write a file that takes its place, whole, when the block ends without an error."""
        temporary = self._temporary(path)
        try:
            with self._open_new(temporary) as file:
                yield file
                file.flush()
                self._flush(file)
            self._rename(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._flush_directory(path.parent)

    def remove(self, path: Path) -> None:
        """Delete a file; fine if there is none."""
        path.unlink(missing_ok=True)

    # The primitives below are what a test for power cuts replaces.

    def _temporary(self, path: Path) -> Path:
        # Unique for each write: with a shared name, the loser of a race would crash the winner.
        return path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")

    def _open_new(self, path: Path) -> BinaryIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(path, flags, 0o600), "wb")

    def _flush(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())

    def _link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def _rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def _flush_directory(self, path: Path) -> None:
        if os.name == "nt":  # Windows cannot open a directory; NTFS journals its names itself
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_replaceable(target: Path) -> None:
    """Raise ParameterError unless `replacing` a user's file can work."""
    if target.exists() and not target.is_file():
        raise ParameterError(
            f"{target} is no file that could be replaced. Nothing was sent. Name a file."
        )
    path = _beside(target)
    try:
        path.touch(exist_ok=False)
        path.unlink()
    except OSError as error:
        raise ParameterError(
            f"{target} cannot be written: {error.strerror}. Nothing was sent. Name a file in a "
            "directory that you may write to."
        ) from None


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside a user's file, which takes its place when the block ends without an error."""
    path = _beside(target)
    try:
        yield path
        with path.open("rb+") as file:  # a disk that is full may say so only here
            os.fsync(file.fileno())
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)
