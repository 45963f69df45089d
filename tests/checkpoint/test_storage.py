"""Each file operation happened whole or not at all, and only the owner may read what it left."""

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from batchframe.storage import Storage


class FullDisk(Storage):
    """Takes a few bytes, and then no more."""

    def _flush(self, file):
        raise OSError(errno.ENOSPC, "No space left on device")


class NoLinks(Storage):
    def _link(self, source, target):
        raise OSError(errno.EPERM, "Operation not permitted")


class NoRenames(Storage):
    def _rename(self, source, target):
        raise OSError(errno.EIO, "Input/output error")


class Recorded(Storage):
    """Notes the primitives in the order in which they are called."""

    def __init__(self):
        self.steps = []

    def _flush(self, file):
        self.steps.append("flush file")
        super()._flush(file)

    def _link(self, source, target):
        self.steps.append(f"link {target.name}")
        super()._link(source, target)

    def _rename(self, source, target):
        self.steps.append(f"rename {target.name}")
        super()._rename(source, target)

    def _flush_directory(self, path):
        self.steps.append(f"flush directory {path.name}")
        super()._flush_directory(path)


@pytest.fixture
def storage():
    return Storage()


@pytest.fixture
def open_umask():
    """Let the process give everybody everything that is not refused explicitly."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def everything_in(path):
    return sorted(entry.name for entry in path.iterdir())


def replace(storage, path, data):
    with storage.replace(path) as file:
        file.write(data)


# Directories


def test_a_directory_is_made_with_its_parents_for_the_owner_only(storage, tmp_path, open_umask):
    storage.make_directory(tmp_path / "a" / "b" / "c")
    for made in ("a", "a/b", "a/b/c"):
        assert mode(tmp_path / made) == 0o700


def test_a_directory_that_exists_is_fine_and_keeps_its_files(storage, tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    storage.make_directory(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("inner", ["file", "file/below", "dangling"])
def test_what_is_no_directory_is_refused(storage, tmp_path, inner):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        storage.make_directory(tmp_path / inner)


def test_each_new_name_is_flushed_into_its_parent(tmp_path):
    storage = Recorded()
    storage.make_directory(tmp_path / "a" / "b")
    assert storage.steps == [f"flush directory {tmp_path.name}", "flush directory a"]


def test_names_are_sorted_and_leave_out_unfinished_writes_and_hidden_files(storage, tmp_path):
    for name in ("10.json", "9.json", ".tmp-10.json-1-ab", ".DS_Store", ".nfs000001", "a"):
        (tmp_path / name).write_bytes(b"")
    assert storage.names(tmp_path) == ["10.json", "9.json", "a"]


# create: put where nothing is


def test_a_file_is_created_once_and_never_changed(storage, tmp_path):
    path = tmp_path / "file"
    assert storage.create(path, b"first") is True
    assert storage.create(path, b"second") is False
    assert storage.read(path) == b"first"
    assert everything_in(tmp_path) == ["file"]


def test_a_created_file_is_the_owners_only_and_has_one_name(storage, tmp_path, open_umask):
    storage.create(tmp_path / "file", b"x")
    assert mode(tmp_path / "file") == 0o600
    assert (tmp_path / "file").stat().st_nlink == 1


def test_of_many_threads_that_create_one_file_exactly_one_wins(storage, tmp_path):
    n, path = 32, tmp_path / "file"
    together = Barrier(n)

    def create(i):
        together.wait()
        return storage.create(path, b"%d" % i * 1000)

    with ThreadPoolExecutor(n) as pool:
        won = list(pool.map(create, range(n)))
    assert won.count(True) == 1
    assert storage.read(path) == b"%d" % won.index(True) * 1000
    assert everything_in(tmp_path) == ["file"]


def test_bytes_are_on_disk_before_their_name_and_the_name_before_anyone_relies_on_it(tmp_path):
    storage = Recorded()
    storage.create(tmp_path / "file", b"x")
    assert storage.steps == ["flush file", "link file", f"flush directory {tmp_path.name}"]


# replace: take the place of what is there


def test_a_file_is_replaced_whole(storage, tmp_path, open_umask):
    path = tmp_path / "file"
    replace(storage, path, b"first, and longer")
    replace(storage, path, b"second")
    assert storage.read(path) == b"second"
    assert mode(path) == 0o600
    assert everything_in(tmp_path) == ["file"]


def test_nobody_sees_a_file_before_its_writer_is_done(storage, tmp_path):
    path = tmp_path / "file"
    replace(storage, path, b"old")
    with storage.replace(path) as file:
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old"
        assert storage.names(tmp_path) == ["file"]
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_writer_that_stops_leaves_the_old_file_and_nothing_else(storage, tmp_path, error):
    path = tmp_path / "file"
    replace(storage, path, b"old")
    with pytest.raises(error), storage.replace(path) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert everything_in(tmp_path) == ["file"]


def test_a_replaced_file_is_flushed_before_it_is_renamed(tmp_path):
    storage = Recorded()
    replace(storage, tmp_path / "file", b"x")
    assert storage.steps == ["flush file", "rename file", f"flush directory {tmp_path.name}"]


@pytest.mark.parametrize("broken", [FullDisk, NoRenames])
def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(storage, tmp_path, broken):
    path = tmp_path / "file"
    replace(storage, path, b"old")
    with pytest.raises(OSError, match=r"No space|Input/output"):
        replace(broken(), path, b"new")
    assert path.read_bytes() == b"old"
    assert everything_in(tmp_path) == ["file"]


@pytest.mark.parametrize("broken", [FullDisk, NoLinks])
def test_a_creation_that_fails_leaves_nothing(tmp_path, broken):
    with pytest.raises(OSError, match=r"No space|not permitted"):
        broken().create(tmp_path / "file", b"new")
    assert everything_in(tmp_path) == []


# Reading and removing


def test_a_file_that_is_not_there_is_said_to_be_absent(storage, tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.read(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        storage.open(tmp_path / "file")


def test_a_file_is_read_as_a_stream(storage, tmp_path):
    storage.create(tmp_path / "file", b"abc")
    with storage.open(tmp_path / "file") as file:
        assert (file.read(2), file.read()) == (b"ab", b"c")


def test_a_file_is_removed_and_to_remove_it_again_is_fine(storage, tmp_path):
    storage.create(tmp_path / "file", b"abc")
    storage.remove(tmp_path / "file")
    storage.remove(tmp_path / "file")
    assert everything_in(tmp_path) == []
