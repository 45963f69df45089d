"""Disks that are full, broken or read-only, at every single operation.

Each time: the run ends with an error that says what is wrong, never with a wrong frame; and once
the disk is mended, the same call answers every row and pays nothing twice.
"""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batchframe as bf
from batchframe.checkpoint import Checkpoint
from batchframe.client import Provider
from batchframe.core.batches import UploadStarted
from batchframe.core.requests import Rows, render_requests
from batchframe.core.shards import Limits
from batchframe.core.spec import Account, Spec
from batchframe.emulator import JumpClock, LocalServer
from batchframe.engine import Engine
from batchframe.jobs import Submission
from batchframe.rounds import Options
from batchframe.running import run_rows
from batchframe.storage import Storage

#: The operations that need room, that flush, that change names, and that need a descriptor.
WRITING = frozenset({"make directory", "write", "flush", "link"})
FLUSHING = frozenset({"flush", "flush directory"})
CHANGING = frozenset({"make directory", "open new", "link", "rename", "remove"})
READING = frozenset({"names", "read", "open"})


class QuickDisk(Storage):
    """A disk that is not waited for: these tests do not cut the power."""

    def _flush(self, file: BinaryIO) -> None:
        file.flush()

    def _flush_directory(self, path: Path) -> None:
        pass


class SickDisk(QuickDisk):
    """A disk whose nth operation of some kinds fails; and all that follow, unless only `once`."""

    def __init__(self, kinds: frozenset[str], error: int, *, nth: int, once: bool) -> None:
        self._kinds = kinds
        self._error = error
        self._left = nth
        self._once = once
        self._lock = threading.Lock()

    @property
    def has_failed(self) -> bool:
        return self._left <= 0

    def fail_next(self) -> None:
        self._left = 1

    def check(self, kind: str) -> None:
        if kind not in self._kinds:
            return
        with self._lock:
            self._left -= 1
            fails = self._left == 0 or (self._left < 0 and not self._once)
        if fails:
            raise OSError(self._error, os.strerror(self._error), kind)

    def make_directory(self, path: Path) -> None:
        if not path.is_dir():
            self.check("make directory")
        super().make_directory(path)

    def names(self, path: Path) -> list[str]:
        self.check("names")
        return super().names(path)

    def read(self, path: Path) -> bytes:
        self.check("read")
        return super().read(path)

    def open(self, path: Path) -> BinaryIO:
        self.check("open")
        return super().open(path)

    def remove(self, path: Path) -> None:
        self.check("remove")
        super().remove(path)

    def _open_new(self, path: Path) -> BinaryIO:
        self.check("open new")
        return _Written(super()._open_new(path), self)  # type: ignore[return-value]

    def _flush(self, file: BinaryIO) -> None:
        self.check("flush")
        super()._flush(file)

    def _link(self, source: Path, target: Path) -> None:
        self.check("link")
        super()._link(source, target)

    def _rename(self, source: Path, target: Path) -> None:
        self.check("rename")
        super()._rename(source, target)

    def _flush_directory(self, path: Path) -> None:
        # The change was made before it is flushed: whether it stays, nobody knows.
        self.check("flush directory")
        super()._flush_directory(path)


class _Written:
    """A file whose first write can fail: half of it arrives, as on a disk that fills up."""

    def __init__(self, file: BinaryIO, disk: SickDisk) -> None:
        self._file = file
        self._disk = disk
        self._is_empty = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        if self._is_empty:
            self._is_empty = False
            try:
                self._disk.check("write")
            except OSError:
                self._file.write(memoryview(data)[: len(data) // 2])
                raise
        return self._file.write(data)


Run = Callable[[Path, Storage, int], list[dict[str, Any]]]


@pytest.fixture
def clock() -> JumpClock:
    return JumpClock()


@pytest.fixture
def server(clock: JumpClock) -> Iterator[LocalServer]:
    with LocalServer(clock=clock) as running:
        yield running


@pytest.fixture
def run(server: LocalServer, clock: JumpClock) -> Run:
    """Run a number of rows, in shards of two, on a storage."""
    provider = Provider(server.client())

    def run_them(path: Path, storage: Storage, n_rows: int) -> list[dict[str, Any]]:
        answers = run_rows(
            Rows(
                ids=pa.array(range(n_rows), pa.int64()),
                prompts=pa.array(prompts(path, n_rows), pa.string()),
            ),
            Spec(model="gpt-4o-mini", account=provider.account),
            Submission(
                provider=provider,
                limits=Limits(max_requests=2),
                completion_window="24h",
                poll_interval=3600.0,
            ),
            path,
            options=Options(progress=False),
            engine=Engine(clock),
            storage=storage,
        )
        return answers.results.take(answers.positions).to_pylist()

    return run_them


def prompts(path: Path, n_rows: int) -> list[str]:
    return [f"{path.name}, question {row}" for row in range(n_rows)]


def assert_answered(results: list[dict[str, Any]], path: Path, n_rows: int, where: str) -> None:
    expected = [f"echo: {prompt}" for prompt in prompts(path, n_rows)]
    assert [row["completion"] for row in results] == expected, where
    assert {row["status"] for row in results} == {"ok"}, where


@pytest.mark.parametrize(
    ("kinds", "error", "once"),
    [
        pytest.param(WRITING, errno.ENOSPC, False, id="full from then on"),
        pytest.param(WRITING, errno.ENOSPC, True, id="full once"),
        pytest.param(FLUSHING, errno.EIO, False, id="broken at fsync from then on"),
        pytest.param(FLUSHING, errno.EIO, True, id="broken at one fsync"),
        pytest.param(CHANGING, errno.EROFS, False, id="read-only from then on"),
        pytest.param(READING, errno.EMFILE, True, id="out of file descriptors once"),
    ],
)
def test_a_disk_that_fails_at_any_operation_ends_in_an_error_and_is_resumed_when_mended(
    run, server, tmp_path, kinds, error, once
):
    n_rows, nth, has_failed, n_errors = 3, 0, True, 0
    while has_failed:
        nth += 1
        path, where = tmp_path / f"failure {nth}", f"operation {nth} failed"
        disk, said = SickDisk(kinds, error, nth=nth, once=once), ""
        try:
            results = run(path, disk, n_rows)
        except (bf.BatchframeError, OSError) as failure:
            n_errors += 1
            said = str(failure)
        else:
            assert_answered(results, path, n_rows, where)
        assert not said or os.strerror(error) in said, where
        has_failed = disk.has_failed

        assert_answered(run(path, QuickDisk(), n_rows), path, n_rows, where)
        assert Counter(server.executions().values()) == {1: nth * n_rows}, where
    assert nth > 10
    # Damage to results heals by itself; little else does.
    assert n_errors > nth / 2


def test_after_a_commit_whose_directory_could_not_be_flushed_the_disk_is_blamed(clock, tmp_path):
    account = Account(base_url="https://api.example.com/v1/", organization=None, project=None)
    spec = Spec(model="gpt-4o-mini", account=account)
    disk = SickDisk(frozenset({"flush directory"}), errno.EIO, nth=1000, once=True)
    checkpoint = Checkpoint.open(tmp_path / "checkpoint", spec, disk, clock)
    (requests,) = render_requests(
        Rows(ids=pa.array([0]), prompts=pa.array(["question"])), pa.array([0]), spec
    )
    shards = [checkpoint.freeze(requests, round_=round_) for round_ in range(2)]

    disk.fail_next()
    try:
        # The commit stands in the log, but nobody knows whether it outlives a power cut.
        for shard in shards:
            with pytest.raises(OSError, match="Input/output error"):
                checkpoint.commit(shard, UploadStarted())
    finally:
        checkpoint.close()


def test_an_operation_that_failed_says_what_it_means_for_the_money(run, tmp_path):
    disk = SickDisk(frozenset({"rename"}), errno.ENOSPC, nth=4, once=False)

    with pytest.raises(OSError, match="No space left on device") as caught:
        run(tmp_path / "checkpoint", disk, 3)

    assert any("run the same call again" in note for note in caught.value.__notes__)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system in memory of so many kilobytes; called again, it has another size."""
    place = tmp_path / "disk"
    mounted = False

    def resize(kilobytes: int) -> Path:
        nonlocal mounted
        options = f"size={kilobytes}k,mode=0700" + (",remount" if mounted else "")
        mount = shutil.which("mount") or pytest.skip("there is no mount command")
        command = [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"tmpfs cannot be mounted: {done.stderr.strip()}")
        mounted = True
        return place

    place.mkdir()
    yield resize
    if mounted:
        subprocess.run([shutil.which("umount") or "umount", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
@pytest.mark.parametrize("kilobytes", [8, 32, 64, 128, 256])
def test_a_full_disk_ends_the_run_and_when_there_is_room_the_same_call_finishes_it(
    run, server, small_disk, kilobytes
):
    path, n_rows = small_disk(kilobytes) / "checkpoint", 50

    with pytest.raises((bf.BatchframeError, OSError), match="No space left on device"):
        run(path, Storage(), n_rows)
    small_disk(64 * 1024)

    assert_answered(run(path, Storage(), n_rows), path, n_rows, f"{kilobytes} kB")
    assert Counter(server.executions().values()) == {1: n_rows}


def with_another_answer(data: bytes) -> bytes:
    """Results with one bit changed, so that another answer is read where nobody checks."""
    whole = pq.read_table(pa.BufferReader(data))["completion"]
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    [column] = [one for one in columns if one.path_in_schema == "completion"]
    for place in range(column.data_page_offset, len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with suppress(OSError, pa.ArrowException):
            if pq.read_table(pa.BufferReader(bytes(changed)))["completion"] != whole:
                return bytes(changed)
    raise AssertionError("no bit makes another answer")


def test_an_answer_that_was_changed_on_the_disk_is_no_answer(tmp_path):
    path = tmp_path / "checkpoint"
    frame = pa.table({"id": range(20), "prompt": [f"question {row}" for row in range(20)]})
    with LocalServer(stage_seconds=0) as server:
        keywords = {
            "model": "gpt-4o-mini",
            "checkpoint": path,
            "client": server.client(),
            "poll_interval": 0.01,
            "progress": False,
        }
        whole = bf.complete(frame, "prompt", "id", **keywords)
        results = path / "results" / "00000.parquet"
        results.write_bytes(with_another_answer(results.read_bytes()))

        with pytest.raises(bf.CheckpointCorruptError, match="Delete that one file and run the"):
            bf.complete(frame, "prompt", "id", **keywords)
        results.unlink()

        assert bf.complete(frame, "prompt", "id", **keywords).equals(whole)
        assert server.calls()["batches.create"] == 1
