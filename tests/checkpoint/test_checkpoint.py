"""The checkpoint reads back as it was written, belongs to one spec and to one process at a time."""

import errno
import json
import os
import stat
import subprocess
import sys
from hashlib import sha256
from textwrap import dedent

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchframe.checkpoint import Checkpoint, remove_checkpoint
from batchframe.core.batches import (
    BatchError,
    BatchSeen,
    BatchStatus,
    Collected,
    CreateRefused,
    CreateStarted,
    Creating,
    Ended,
    FileUploaded,
    IllegalTransitionError,
    Live,
    NotFound,
    Planned,
    ResultsCommitted,
    ResultsLost,
    Uploaded,
    UploadStarted,
    Usage,
)
from batchframe.core.requests import Requests, Rows, render_requests
from batchframe.core.results import RESULT_SCHEMA
from batchframe.core.spec import Account, Spec
from batchframe.emulator import JumpClock
from batchframe.errors import (
    CheckpointBusyError,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
)
from batchframe.storage import Storage

SPEC = Spec(model="gpt-4o-mini", account=Account(base_url="https://api.openai.com/v1/"))


class OtherProcess(Checkpoint):
    """What another process holds: it knows nothing of the checkpoints that are open here."""

    _open = {}  # noqa: RUF012 - as in Checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint"


@pytest.fixture
def open_checkpoint(path):
    """Open checkpoints that are closed at the end of the test."""
    opened = []

    def open_(where=path, *, spec=SPEC, storage=None, kind=Checkpoint):
        checkpoint = kind.open(where, spec, storage or Storage(), JumpClock())
        opened.append(checkpoint)
        return checkpoint

    yield open_
    for checkpoint in opened:
        if checkpoint._users:  # not closed by the test
            checkpoint.close()


@pytest.fixture
def reopened(path):
    """Read the directory as a process that starts anew would."""

    class NextProcess(Checkpoint):
        _open = {}  # noqa: RUF012 - as in Checkpoint

    def reopen():
        (path / "lock").unlink()
        fresh = NextProcess.open(path, SPEC, Storage(), JumpClock())
        fresh.close()
        return fresh

    return reopen


def some_requests(*prompts, spec=SPEC):
    ids = pa.array([f"row {i}" for i in range(len(prompts))])
    positions = pa.array(range(len(prompts)), pa.int64())
    return Requests.joined(
        [*render_requests(Rows(ids=ids, prompts=pa.array(prompts, pa.string())), positions, spec)]
    )


def seen(status="in_progress", **changes):
    fields = {"batch_id": "batch_1", "input_file_id": "file-1", "created_at": 1000.0}
    return BatchSeen(status=BatchStatus(status), **{**fields, **changes})


STARTED = CreateStarted(token="t", at=5.0)
DONE = seen(
    "completed",
    output_file_id="file-2",
    errors=(BatchError(code="c", message="m", line=1),),
    metadata={"token": "t"},
)
COMMITTED = ResultsCommitted(
    downloads={},
    usage=Usage(input_tokens=4, cached_tokens=5, output_tokens=6, reasoning_tokens=7),
    n_duplicate=1,
    n_foreign=2,
    n_unreadable=3,
)


def some_results(requests, text="answer"):
    columns = {
        "row_key": [request.row_key for request in requests],
        "id": [request.id for request in requests],
        "status": ["ok"] * len(requests),
        "completion": [f"{text} to {request.id}" for request in requests],
    }
    empty = [None] * len(requests)
    return pa.Table.from_arrays(
        [pa.array(columns.get(field.name, empty), field.type) for field in RESULT_SCHEMA],
        schema=RESULT_SCHEMA,
    )


def run_to(checkpoint, number, *events):
    for event in events:
        checkpoint.commit(number, event)


UPLOADED = (UploadStarted(), FileUploaded(file_id="file-1"))
ENDED = (*UPLOADED, STARTED, seen(), DONE)


def files(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def log(path):
    return sorted((path / "log").iterdir())


def shard_file(path, number, requests, kind):
    """Where a shard's file must be: its name carries the hash of its lines."""
    digest = sha256(b"".join(request.line for request in requests)).hexdigest()
    return path / "shards" / f"{number:05d}-{digest[:16]}.{kind}"


def sealed(payload):
    """A commit's file: its JSON, and the JSON's hash."""
    return payload + b"\n" + sha256(payload).hexdigest().encode() + b"\n"


def payload_of(file):
    """The JSON of a commit's file."""
    payload, seal, rest = file.read_bytes().split(b"\n")
    assert (seal, rest) == (sha256(payload).hexdigest().encode(), b"")
    return payload


# A new checkpoint


def test_a_new_checkpoint_is_a_private_directory_that_git_ignores(open_checkpoint, path):
    before = os.umask(0)
    try:
        checkpoint = open_checkpoint()
        requests = some_requests("a")
        number = checkpoint.freeze(requests, round_=0)
        run_to(checkpoint, number, *ENDED)
        with checkpoint.download(number, "output") as file:
            file.write(b"x\n")
        checkpoint.store_results(number, some_results(requests), COMMITTED)
        checkpoint.freeze(some_requests("b"), round_=0)
    finally:
        os.umask(before)
    assert (path / ".gitignore").read_text() == "*\n"
    assert (path / "spec.json").read_bytes() == SPEC.to_json()
    modes = {
        str(part.relative_to(path)): stat.S_IMODE(part.stat().st_mode)
        for part in (path, *path.rglob("*"))
    }
    directories = {".", "log", "raw", "results", "shards"}
    assert {name for name, mode in modes.items() if mode == 0o700} == directories
    assert {name for name, mode in modes.items() if mode == 0o600} == modes.keys() - directories
    assert {name.split("/")[0] for name in modes} == directories | {
        ".gitignore",
        "lock",
        "spec.json",
    }


def test_the_lock_names_the_process(open_checkpoint, path):
    open_checkpoint()
    assert (path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_new_checkpoint_has_neither_shards_nor_results(open_checkpoint):
    checkpoint = open_checkpoint()
    assert checkpoint.shards == {}
    assert checkpoint.results().equals(RESULT_SCHEMA.empty_table())


# Shards


def test_a_frozen_shard_is_the_exact_bytes_of_its_lines(open_checkpoint, path):
    checkpoint = open_checkpoint()
    requests = some_requests("a", "é\u2028\n")
    number = checkpoint.freeze(requests, round_=2)
    data = b"".join(request.line for request in requests)
    with checkpoint.input_file(number) as file:
        assert file.read() == data
    assert checkpoint.shards[number].state == Planned()
    frozen = checkpoint.shards[number].frozen
    assert (frozen.n_requests, frozen.n_bytes, frozen.round) == (2, len(data), 2)
    assert frozen.sha256 == sha256(data).hexdigest()
    assert frozen.n_tokens == sum(requests.n_tokens)
    names = [shard_file(path, number, requests, kind).name for kind in ("jsonl", "parquet")]
    assert files(path / "shards") == names


def test_a_shard_remembers_key_id_digest_and_tokens_of_each_line(open_checkpoint):
    checkpoint = open_checkpoint()
    requests = some_requests("a", "b", "c")
    number = checkpoint.freeze(requests, round_=0)
    assert checkpoint.requests(number).to_pylist() == [
        {
            "row_key": request.row_key,
            "id": request.id,
            "body_digest": request.body_digest,
            "n_tokens": request.n_tokens,
        }
        for request in requests
    ]


def test_shards_are_numbered_in_their_order(open_checkpoint):
    checkpoint = open_checkpoint()
    assert [checkpoint.freeze(some_requests(text), round_=0) for text in "abc"] == [0, 1, 2]
    checkpoint.close()
    fresh = OtherProcess.open(checkpoint.path, SPEC, Storage(), JumpClock())
    assert fresh.freeze(some_requests("d"), round_=0) == 3
    fresh.close()


def test_of_all_later_shards_with_a_row_the_last_is_the_newer_one(open_checkpoint):
    checkpoint = open_checkpoint()
    for prompts in ("ab", "ac", "a", "d"):
        checkpoint.freeze(some_requests(*prompts), round_=0)
    asked = {number: checkpoint.row_keys(number) for number in range(4)}
    newer = {number: found.to_pylist() for number, found in checkpoint.newer(asked).items()}
    assert newer == {0: [2, None], 1: [2, None], 2: [None], 3: [None]}


def test_an_input_file_that_is_gone_is_named(open_checkpoint, path):
    checkpoint = open_checkpoint()
    requests = some_requests("a")
    number = checkpoint.freeze(requests, round_=0)
    shard_file(path, number, requests, "jsonl").unlink()
    with pytest.raises(CheckpointCorruptError, match="The input file of shard 0 is gone from"):
        checkpoint.input_file(number)


def test_a_shard_that_was_written_but_not_committed_is_written_anew(open_checkpoint, path):
    class DiesBeforeTheCommit(Storage):
        def create(self, path, data):
            if path.parent.name == "log":
                raise OSError(errno.EIO, "Input/output error")
            return super().create(path, data)

    dying = open_checkpoint(storage=DiesBeforeTheCommit(), kind=OtherProcess)
    with pytest.raises(OSError, match="Input/output"):
        dying.freeze(some_requests("lost", "lost too"), round_=0)
    assert dying.shards == {}
    dying.close()
    checkpoint = open_checkpoint()
    assert checkpoint.shards == {}
    requests = some_requests("kept")
    assert checkpoint.freeze(requests, round_=0) == 0
    with checkpoint.input_file(0) as file:
        assert file.read() == requests.lines[0]
    assert checkpoint.requests(0).num_rows == 1


# The log


def test_commits_are_numbered_chained_and_named(open_checkpoint, path):
    checkpoint = open_checkpoint()
    number = checkpoint.freeze(some_requests("a"), round_=0)
    run_to(checkpoint, number, *UPLOADED)
    first, second, third = log(path)
    assert [file.name for file in log(path)] == ["00000000.json", "00000001.json", "00000002.json"]
    assert json.loads(payload_of(first))["prev"] == ""
    assert json.loads(payload_of(third)) == {
        "n": 2,
        "prev": sha256(second.read_bytes()).hexdigest(),
        "at": "2026-09-21T14:13:20+00:00",
        "shard": 0,
        "event": {"type": "FileUploaded", "file_id": "file-1"},
    }


LIVES = {
    "planned": (),
    "uploading": (UploadStarted(),),
    "uploaded": UPLOADED,
    "creating": (*UPLOADED, STARTED),
    "refused": (*UPLOADED, STARTED, CreateRefused(code="c", message="m")),
    "not found": (*UPLOADED, STARTED, NotFound()),
    "live": (*UPLOADED, STARTED, seen()),
    "ended": ENDED,
    "collected": (*ENDED, COMMITTED),
    "lost": (*ENDED, COMMITTED, ResultsLost()),
}


@pytest.mark.parametrize("life", LIVES)
def test_a_checkpoint_opened_anew_knows_what_was_committed(open_checkpoint, path, life):
    checkpoint = open_checkpoint()
    for text in ("a", "b"):
        checkpoint.freeze(some_requests(text), round_=1)
    run_to(checkpoint, 1, *LIVES[life])
    before = msgspec.json.encode(checkpoint.shards)
    checkpoint.close()
    fresh = OtherProcess.open(path, SPEC, Storage(), JumpClock())
    assert fresh is not checkpoint
    assert {n: (shard.frozen, shard.state) for n, shard in fresh.shards.items()} == {
        n: (shard.frozen, shard.state) for n, shard in checkpoint.shards.items()
    }
    assert msgspec.json.encode(fresh.shards) == before
    assert fresh.shards[0].state == Planned()
    fresh.close()


def test_an_event_that_cannot_happen_is_neither_written_nor_believed(open_checkpoint, path):
    checkpoint = open_checkpoint()
    number = checkpoint.freeze(some_requests("a"), round_=0)
    with pytest.raises(IllegalTransitionError):
        checkpoint.commit(number, STARTED)
    with pytest.raises(IllegalTransitionError):
        checkpoint.commit(17, UploadStarted())
    assert checkpoint.shards.keys() == {0}
    assert checkpoint.shards[number].state == Planned()
    assert len(log(path)) == 1


def test_an_intent_that_cannot_be_written_is_not_believed(open_checkpoint, path):
    class FillsUp(Storage):
        full = False

        def _flush(self, file):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            super()._flush(file)

    storage = FillsUp()
    checkpoint = open_checkpoint(storage=storage)
    number = checkpoint.freeze(some_requests("a"), round_=0)
    run_to(checkpoint, number, *UPLOADED)
    storage.full = True
    with pytest.raises(OSError, match="No space left"):
        checkpoint.commit(number, STARTED)
    assert checkpoint.shards[number].state == Uploaded(file_id="file-1")
    assert all(file.suffix == ".json" for file in log(path))
    storage.full = False
    assert isinstance(checkpoint.commit(number, STARTED), Creating)


def test_progress_is_noted_but_not_logged(open_checkpoint, path):
    checkpoint = open_checkpoint()
    number = checkpoint.freeze(some_requests("a"), round_=0)
    run_to(checkpoint, number, *UPLOADED, STARTED, seen())
    before = len(log(path))
    checkpoint.observe(number, seen(n_done=7))
    assert checkpoint.shards[number].state == Live(batch=seen(n_done=7))
    assert len(log(path)) == before


def test_the_history_is_what_was_committed_with_its_times(open_checkpoint, path):
    checkpoint = open_checkpoint()
    clock = checkpoint._clock
    for name in ("a", "b"):
        checkpoint.freeze(some_requests(name), round_=0)
        clock.advance(60)
    for event in UPLOADED:
        checkpoint.commit(1, event)
        clock.advance(60)
    checkpoint.drop(0, is_unwanted=True)

    for there in (checkpoint, Checkpoint.read(path, Storage(), clock)):
        minutes = [round((at.timestamp() - 1_790_000_000) / 60) for at, _, _ in there.history()]
        assert minutes == [0, 1, 2, 3, 4]
        assert [(number, type(event).__name__) for _, number, event in there.history()] == [
            (0, "ShardFrozen"),
            (1, "ShardFrozen"),
            (1, "UploadStarted"),
            (1, "FileUploaded"),
            (0, "ShardDropped"),
        ]


def test_a_history_is_as_old_as_the_checkpoint_that_was_read(open_checkpoint, path):
    checkpoint = open_checkpoint()
    checkpoint.freeze(some_requests("a"), round_=0)
    there = Checkpoint.read(path, Storage(), JumpClock())
    checkpoint.freeze(some_requests("b"), round_=0)
    assert [number for _, number, _ in there.history()] == [0]


def test_the_history_of_a_log_that_broke_meanwhile_is_refused(open_checkpoint, path):
    checkpoint = open_checkpoint()
    checkpoint.freeze(some_requests("a"), round_=0)
    (file,) = log(path)
    file.write_bytes(file.read_bytes().replace(b'"shard":0', b'"shard":1'))
    with pytest.raises(CheckpointCorruptError, match=r"00000000\.json is not what was written"):
        list(checkpoint.history())
    file.unlink()
    with pytest.raises(CheckpointCorruptError, match=r"00000000\.json is missing"):
        list(checkpoint.history())


# A broken log


def tamper_missing_first(path):
    log(path)[0].unlink()


def tamper_missing_middle(path):
    log(path)[1].unlink()


def tamper_flipped_bit(path):
    # In the text of a value: the file stays good JSON.
    file = log(path)[1]
    file.write_bytes(file.read_bytes().replace(b'"at":"2026', b'"at":"2027'))


def tamper_flipped_bit_in_the_last(path):
    # No commit follows whose chain could tell.
    file = log(path)[-1]
    file.write_bytes(file.read_bytes().replace(b"file-1", b"file-2"))


def tamper_resealed_middle(path):
    # As who knows the layout would: its own seal is right, and only the chain can tell.
    file = log(path)[1]
    file.write_bytes(sealed(payload_of(file).replace(b'"at":"2026', b'"at":"2027')))


def tamper_no_seal(path):
    file = log(path)[-1]
    file.write_bytes(payload_of(file) + b"\n")


def tamper_foreign_seal(path):
    file = log(path)[-1]
    file.write_bytes(payload_of(file) + b"\n" + b"0" * 64 + b"\n")


def tamper_more_after_the_seal(path):
    file = log(path)[-1]
    file.write_bytes(file.read_bytes() + b"\n")


def tamper_torn_last(path):
    file = log(path)[-1]
    file.write_bytes(file.read_bytes()[:-10])


def tamper_torn_by_its_newline(path):
    file = log(path)[-1]
    file.write_bytes(file.read_bytes()[:-1])


def tamper_empty_last(path):
    log(path)[-1].write_bytes(b"")


def reseal_last(path, **changes):
    file = log(path)[-1]
    file.write_bytes(sealed(json.dumps(json.loads(payload_of(file)) | changes).encode()))


def tamper_foreign_prev(path):
    reseal_last(path, prev="0" * 64)


def tamper_wrong_number(path):
    reseal_last(path, n=17)


def tamper_impossible_event(path):
    reseal_last(path, event={"type": "NotFound"})


def tamper_unknown_event(path):
    reseal_last(path, event={"type": "Teleported"})


def tamper_unknown_shard(path):
    reseal_last(path, shard=5)


def tamper_hash_that_is_a_path(path):
    # The only word of the log that becomes part of a file's name.
    frozen = json.loads(payload_of(log(path)[0]))["event"]
    for file in log(path)[1:]:
        file.unlink()
    reseal_last(path, event=frozen | {"sha256": "/../../elsewhere".ljust(64, "0")})


def tamper_stranger(path):
    (path / "log" / "00000001 (copy).json").write_bytes(b"{}")


def tamper_invalid_utf8(path):
    file = log(path)[-1]
    file.write_bytes(file.read_bytes().replace(b"file-1", b"file-\xff"))


def tamper_resealed_invalid_utf8(path):
    file = log(path)[-1]
    file.write_bytes(sealed(payload_of(file).replace(b"file-1", b"file-\xff")))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (tamper_missing_first, "00000000.json is missing"),
        (tamper_missing_middle, "00000001.json is missing"),
        (tamper_flipped_bit, "00000001.json is not what was written"),
        (tamper_flipped_bit_in_the_last, "00000002.json is not what was written"),
        (tamper_resealed_middle, "00000002.json does not follow the commit before it"),
        (tamper_no_seal, "00000002.json is not what was written"),
        (tamper_foreign_seal, "00000002.json is not what was written"),
        (tamper_more_after_the_seal, "00000002.json is not what was written"),
        (tamper_torn_last, "00000002.json is not what was written"),
        (tamper_torn_by_its_newline, "00000002.json is not what was written"),
        (tamper_empty_last, "00000002.json is not what was written"),
        (tamper_foreign_prev, "00000002.json does not follow the commit before it"),
        (tamper_wrong_number, "00000002.json does not follow the commit before it"),
        (tamper_impossible_event, "00000002.json: NotFound cannot happen to a shard that is"),
        (tamper_unknown_event, "00000002.json cannot be read"),
        (tamper_unknown_shard, "00000002.json: FileUploaded cannot happen to a shard that is"),
        (tamper_hash_that_is_a_path, "00000000.json cannot be read"),
        (tamper_stranger, "00000001.json is missing"),
        (tamper_invalid_utf8, "00000002.json is not what was written"),
        (tamper_resealed_invalid_utf8, "00000002.json cannot be read"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_log_is_refused_and_the_message_says_where(open_checkpoint, path, tamper, message):
    checkpoint = open_checkpoint(kind=OtherProcess)
    number = checkpoint.freeze(some_requests("a"), round_=0)
    run_to(checkpoint, number, *UPLOADED)
    checkpoint.close()
    tamper(path)
    before = {name: (path / name).read_bytes() for name in files(path) if name != "lock"}
    with pytest.raises(CheckpointCorruptError) as caught:
        Checkpoint.open(path, SPEC, Storage(), JumpClock())
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "Nothing was sent." in str(caught.value)
    # Nothing was changed, and the directory is free for who mends it.
    assert {name: (path / name).read_bytes() for name in before} == before
    with pytest.raises(CheckpointCorruptError):
        Checkpoint.open(path, SPEC, Storage(), JumpClock())


@pytest.mark.parametrize("name", [".tmp-00000003.json-1-ab", ".DS_Store", ".nfs00000001"])
def test_unfinished_writes_and_hidden_files_in_the_log_are_nothing(open_checkpoint, path, name):
    checkpoint = open_checkpoint(kind=OtherProcess)
    checkpoint.freeze(some_requests("a"), round_=0)
    checkpoint.close()
    (path / "log" / name).write_bytes(b'{"n":')
    assert open_checkpoint().shards.keys() == {0}


# One process at a time


def test_threads_and_runs_of_one_process_share_one_checkpoint(open_checkpoint, path, monkeypatch):
    first = open_checkpoint()
    monkeypatch.chdir(path.parent)
    assert open_checkpoint(path.parent / "x" / ".." / path.name) is first
    assert open_checkpoint(type(path)(path.name)) is first


def test_a_checkpoint_is_free_when_its_last_user_closes_it(path):
    first = Checkpoint.open(path, SPEC, Storage(), JumpClock())
    second = Checkpoint.open(path, SPEC, Storage(), JumpClock())
    first.close()
    with pytest.raises(CheckpointBusyError):
        OtherProcess.open(path, SPEC, Storage(), JumpClock())
    second.close()
    OtherProcess.open(path, SPEC, Storage(), JumpClock()).close()
    third = Checkpoint.open(path, SPEC, Storage(), JumpClock())
    assert third is not first
    third.close()


def test_a_second_process_is_refused_and_told_who_works_there(open_checkpoint, path):
    open_checkpoint()
    script = dedent(
        """
        import sys
        from pathlib import Path
        from batchframe.checkpoint import Checkpoint, remove_checkpoint
        from batchframe.clock import SystemClock
        from batchframe.core.spec import Spec
        from batchframe.errors import CheckpointBusyError
        from batchframe.storage import Storage

        path = Path(sys.argv[1])
        spec = Spec.from_json((path / "spec.json").read_bytes())
        try:
            Checkpoint.open(path, spec, Storage(), SystemClock())
        except CheckpointBusyError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert f"{path} is in use by process {os.getpid()} on " in done.stdout
    assert "Nothing was sent." in done.stdout


def test_a_process_that_was_killed_holds_nothing(open_checkpoint, path):
    script = dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from batchframe.checkpoint import Checkpoint, remove_checkpoint
        from batchframe.clock import SystemClock
        from batchframe.core.spec import Spec
        from batchframe.storage import Storage

        spec = Spec.from_json(sys.argv[2].encode())
        Checkpoint.open(Path(sys.argv[1]), spec, Storage(), SystemClock())
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    command = [sys.executable, "-c", script, str(path), SPEC.to_json().decode()]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    checkpoint = open_checkpoint()
    assert checkpoint.freeze(some_requests("a"), round_=0) == 0


@pytest.fixture
def two_openers(open_checkpoint, path):
    """Two processes in one directory, past the lock: somebody deleted its file."""
    first = open_checkpoint()
    number = first.freeze(some_requests("a"), round_=0)
    run_to(first, number, *UPLOADED)
    (path / "lock").unlink()
    return first, open_checkpoint(kind=OtherProcess)


def test_of_two_processes_past_the_lock_one_may_create_the_batch(two_openers, path):
    winner, loser = two_openers
    assert isinstance(winner.commit(0, STARTED), Creating)
    before = len(log(path))
    with pytest.raises(CheckpointBusyError, match="has overtaken this one, which stops here"):
        loser.commit(0, CreateStarted(token="mine", at=6.0))
    assert loser.shards[0].state == Uploaded(file_id="file-1")
    assert len(log(path)) == before


def test_a_process_that_was_overtaken_cannot_write_over_the_winners_shard(two_openers, reopened):
    winner, loser = two_openers
    requests = some_requests("winner's", "winner's too")
    assert winner.freeze(requests, round_=0) == 1
    with pytest.raises(CheckpointBusyError):
        loser.freeze(some_requests("loser's"), round_=0)
    assert loser.shards.keys() == {0}
    data = b"".join(request.line for request in requests)
    for checkpoint in (winner, reopened()):
        with checkpoint.input_file(1) as file:
            assert file.read() == data
        assert checkpoint.requests(1)["row_key"].to_pylist() == [
            request.row_key for request in requests
        ]
        assert checkpoint.shards[1].frozen.sha256 == sha256(data).hexdigest()


def test_a_process_that_was_overtaken_can_never_commit_again(two_openers, reopened):
    winner, loser = two_openers
    run_to(winner, 0, STARTED, seen(), DONE)
    for event in (STARTED, STARTED):
        with pytest.raises(CheckpointBusyError):
            loser.commit(0, event)
    assert winner.shards[0].state == Ended(batch=DONE)
    assert reopened().shards[0].state == Ended(batch=DONE)


def test_a_process_that_was_overtaken_is_told_so_where_an_input_file_is_gone(two_openers):
    winner, loser = two_openers
    run_to(winner, 0, STARTED, seen(), DONE)
    winner.input_path(0).unlink()  # as it does when nothing is to be sent from it any more
    with pytest.raises(CheckpointBusyError, match="has overtaken this one, which stops here"):
        loser.input_file(0)
    with pytest.raises(CheckpointCorruptError, match="The input file of shard 0 is gone from"):
        winner.input_file(0)


# One spec, one layout


@pytest.mark.parametrize("open_here", [True, False], ids=["open in this process", "on disk"])
def test_another_spec_is_refused_and_the_message_names_what_differs(open_checkpoint, open_here):
    checkpoint = open_checkpoint()
    if not open_here:
        checkpoint.close()
    other = Spec(model="gpt-4o", params={"seed": 1}, account=SPEC.account)
    with pytest.raises(CheckpointMismatchError) as caught:
        open_checkpoint(spec=other)
    assert 'model: "gpt-4o-mini" there, "gpt-4o" here' in str(caught.value)
    assert "seed: not set there, 1 here" in str(caught.value)
    assert "endpoint" not in str(caught.value)
    assert "Nothing was sent." in str(caught.value)


def test_the_account_of_another_address_is_refused(open_checkpoint):
    checkpoint = open_checkpoint(kind=OtherProcess)
    checkpoint.close()
    other = Spec(model="gpt-4o-mini", account=Account(base_url="https://evil.example/v1/"))
    with pytest.raises(CheckpointMismatchError, match=r"base_url: .*api\.openai\.com.* there"):
        open_checkpoint(spec=other)


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"version": 2, "model": None, "models": ["a"]}, {"version": "next"}],
    ids=str,
)
def test_another_layout_is_refused_by_its_number(open_checkpoint, path, changes):
    path.mkdir(0o700)
    fields = msgspec.to_builtins(SPEC) | changes
    (path / "spec.json").write_text(json.dumps(fields))
    expected = f"layout {changes['version']}, this one reads 1"
    with pytest.raises(CheckpointMismatchError, match=expected):
        open_checkpoint()


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b'{"version":1,"model":"\xff"}', b'{"version":1}', b'"spec"'],
)
def test_an_unreadable_spec_is_not_an_absent_one(open_checkpoint, path, data):
    path.mkdir(0o700)
    (path / "spec.json").write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match=r"spec\.json cannot be read"):
        open_checkpoint()
    assert (path / "spec.json").read_bytes() == data


# Places that cannot be used


def test_a_file_is_no_checkpoint(open_checkpoint, path):
    path.write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be used as a checkpoint") as caught:
        open_checkpoint()
    assert str(path) in str(caught.value)
    assert path.read_text() == "mine"


def with_files(path, *names, mode=0o700):
    """A directory of somebody, with files in it."""
    path.mkdir()
    path.chmod(mode)  # mkdir would ask the umask
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("mine")


@pytest.mark.parametrize(
    "names",
    [
        ("thesis.tex",),
        (".gitignore", "thesis.tex"),
        ("log/00000000.json", "results/00000.parquet"),
        ("sub/spec.json",),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", [0o700, 0o777], ids=oct)
def test_a_directory_of_other_files_is_refused_and_left_alone(open_checkpoint, path, names, mode):
    with_files(path, *names, mode=mode)
    before = {str(part): part.is_file() and part.read_text() for part in path.rglob("*")}
    with pytest.raises(CheckpointError, match="and is no checkpoint") as caught:
        open_checkpoint()
    first = min(name.partition("/")[0] for name in names if not name.startswith("."))
    assert f"{path} holds other files ({first}" in str(caught.value)
    assert "Nothing was sent." in str(caught.value)
    assert {str(part): part.is_file() and part.read_text() for part in path.rglob("*")} == before
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_of_many_other_files_three_are_named(open_checkpoint, path):
    with_files(path, *"edcba")
    with pytest.raises(CheckpointError, match=r"holds other files \(a, b, c\) and"):
        open_checkpoint()


@pytest.mark.parametrize("names", [(), (".gitignore",), (".DS_Store", ".tmp-spec.json-1-ab")])
@pytest.mark.parametrize(
    ("mode", "closed"),
    [(0o700, 0o700), (0o755, 0o755), (0o775, 0o700), (0o757, 0o700), (0o1777, 0o700)],
    ids=oct,
)
def test_a_directory_with_nothing_to_see_becomes_one_that_only_its_owner_writes_to(
    open_checkpoint, path, names, mode, closed
):
    with_files(path, *names, mode=mode)
    assert open_checkpoint().freeze(some_requests("a"), round_=0) == 0
    assert stat.S_IMODE(path.stat().st_mode) == closed
    # What was there stays as it was.
    assert {name: (path / name).read_text() for name in names} == dict.fromkeys(names, "mine")
    assert (path / ".gitignore").exists()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777], ids=oct)
def test_a_checkpoint_that_others_may_write_to_is_not_trusted(open_checkpoint, path, mode):
    checkpoint = open_checkpoint(kind=OtherProcess)
    checkpoint.freeze(some_requests("a"), round_=0)
    checkpoint.close()
    path.chmod(mode)
    with pytest.raises(CheckpointError, match="Others than its owner may write to") as caught:
        open_checkpoint()
    assert str(path) in str(caught.value)
    assert "Nothing was sent." in str(caught.value)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    # What the message says helps.
    command = str(caught.value).partition("first: ")[2]
    assert command == f"chmod -R go-w {path}"
    subprocess.run(command.split(), check=True)  # a temporary directory's path has no blanks
    assert open_checkpoint().shards.keys() == {0}


@pytest.mark.parametrize("mode", [0o755, 0o750], ids=oct)
def test_a_checkpoint_that_others_may_read_is_one(open_checkpoint, path, mode):
    open_checkpoint(kind=OtherProcess).close()
    path.chmod(mode)
    assert open_checkpoint().shards == {}


class DiesAtFile(Storage):
    """The process ends when it makes the nth of its files or directories."""

    def __init__(self, nth):
        self.left = nth

    def make_directory(self, path):
        self._make()
        super().make_directory(path)

    def create(self, path, data):
        self._make()
        return super().create(path, data)

    def _make(self):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("nth", range(1, 8))
def test_a_checkpoint_that_was_half_made_is_made_whole(open_checkpoint, path, nth):
    with pytest.raises(KeyboardInterrupt):
        open_checkpoint(storage=DiesAtFile(nth))
    assert open_checkpoint().freeze(some_requests("a"), round_=0) == 0
    assert (path / ".gitignore").read_text() == "*\n"


class ReadOnly(Storage):
    def make_directory(self, path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))


class ReadOnlyFiles(Storage):
    def _open_new(self, path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))


@pytest.mark.parametrize(
    ("storage", "reason"),
    [(ReadOnly, "Permission denied"), (ReadOnlyFiles, "Read-only file system")],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_sent(
    open_checkpoint, path, storage, reason
):
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(storage=storage())
    assert str(path) in str(caught.value)
    assert "Nothing was sent." in str(caught.value)
    # The failure keeps nothing open: with a storage that works, the same place works.
    assert open_checkpoint().shards == {}


# Downloads and results


def test_a_download_is_kept_compressed_and_reads_back_byte_for_byte(open_checkpoint, path):
    checkpoint = open_checkpoint()
    pieces = [b'{"a": "\xe2\x80\xa8"}\n' * 100_000, b"", b"\x00\xff no newline at the end"]
    with checkpoint.download(3, "output") as file:
        for piece in pieces:
            file.write(piece)
    data = b"".join(pieces)
    read = list(checkpoint.downloaded(3, "output"))
    assert b"".join(read) == data
    assert len(read) > 1
    raw = path / "raw" / "00003-output.jsonl.zst"
    assert files(path / "raw") == [raw.name]
    assert pa.CompressedInputStream(raw, "zstd").read() == data
    assert raw.stat().st_size < len(data) / 10


def test_an_empty_download_reads_back_empty(open_checkpoint):
    checkpoint = open_checkpoint()
    with checkpoint.download(0, "error"):
        pass
    assert b"".join(checkpoint.downloaded(0, "error")) == b""


def test_both_downloads_of_a_shard_have_a_place(open_checkpoint):
    checkpoint = open_checkpoint()
    for kind in ("output", "error"):
        with checkpoint.download(0, kind) as file:
            file.write(kind.encode())
    assert b"".join(checkpoint.downloaded(0, "output")) == b"output"
    assert b"".join(checkpoint.downloaded(0, "error")) == b"error"


def test_a_download_that_breaks_off_leaves_the_earlier_one(open_checkpoint, path):
    checkpoint = open_checkpoint()
    with checkpoint.download(0, "output") as file:
        file.write(b"whole")
    with pytest.raises(ConnectionError), checkpoint.download(0, "output") as file:  # noqa: PT012
        file.write(b"ha")
        raise ConnectionError
    assert b"".join(checkpoint.downloaded(0, "output")) == b"whole"
    assert files(path / "raw") == ["00000-output.jsonl.zst"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(b'{"id": "not compressed"}\n'),
        lambda file: file.write_bytes(file.read_bytes() + b"x"),
    ],
    ids=["gone", "torn at its end", "torn", "foreign", "longer"],
)
@pytest.mark.parametrize("kind", ["output", "error"])
def test_a_damaged_download_is_not_a_short_one(open_checkpoint, path, kind, damage):
    checkpoint = open_checkpoint()
    with checkpoint.download(0, kind) as file:
        file.write(os.urandom(3_000_000))
    raw = path / "raw" / f"00000-{kind}.jsonl.zst"
    damage(raw)
    with pytest.raises(CheckpointCorruptError, match="cannot be read") as caught:
        list(checkpoint.downloaded(0, kind))
    assert str(raw) in str(caught.value)


def test_results_read_back_as_they_were_stored_and_the_input_file_goes(
    open_checkpoint, reopened, path
):
    checkpoint = open_checkpoint()
    requests = some_requests("a", "b")
    number = checkpoint.freeze(requests, round_=0)
    run_to(checkpoint, number, *ENDED)
    checkpoint.store_results(number, some_results(requests), COMMITTED)
    assert checkpoint.results().equals(some_results(requests))
    assert checkpoint.shards[number].state == Collected(batch=DONE, results=COMMITTED)
    assert files(path / "shards") == [shard_file(path, number, requests, "parquet").name]
    assert pq.read_table(path / "results" / "00000.parquet").equals(some_results(requests))
    assert reopened().results().equals(some_results(requests))


def test_results_of_all_collected_shards_come_in_the_order_of_the_shards(open_checkpoint):
    checkpoint = open_checkpoint()
    for text in ("a", "b", "c"):
        checkpoint.freeze(some_requests(text), round_=0)
    stored = {}
    for number in (2, 0):
        run_to(checkpoint, number, *ENDED)
        stored[number] = some_results(some_requests("x"), text=f"answer {number}")
        checkpoint.store_results(number, stored[number], COMMITTED)
    assert checkpoint.results()["completion"].to_pylist() == [
        "answer 0 to row 0",
        "answer 2 to row 0",
    ]


def test_each_window_gets_the_results_of_its_row_keys_in_the_order_of_the_shards(open_checkpoint):
    checkpoint = open_checkpoint()
    a, b, c, other = requests = list(some_requests("a", "b", "c", "other"))
    for number, parts in enumerate([(a, b), (c,), (b, c)]):
        first, last = requests.index(parts[0]), requests.index(parts[-1])
        checkpoint.freeze(some_requests("a", "b", "c").part(first, last + 1), round_=0)
        run_to(checkpoint, number, *ENDED)
        checkpoint.store_results(number, some_results(parts, text=f"{number}"), COMMITTED)

    def window(*asked):
        keys = [None if request is None else request.row_key for request in asked]
        return pa.array(keys, pa.binary(16))

    windows = [window(b, a), window(), window(None, other), window(c, None)]
    found = [table["completion"].to_pylist() for table in checkpoint.results_of_windows(windows)]
    assert found == [
        ["0 to row 0", "0 to row 1", "2 to row 1"],
        [],
        [],
        ["1 to row 2", "2 to row 2"],
    ]


def test_results_that_were_written_but_not_committed_do_not_count(open_checkpoint, path):
    checkpoint = open_checkpoint()
    requests = some_requests("a")
    number = checkpoint.freeze(requests, round_=0)
    run_to(checkpoint, number, *UPLOADED, STARTED, seen())
    with pytest.raises(IllegalTransitionError):
        checkpoint.store_results(number, some_results(requests), COMMITTED)
    assert files(path / "results") == ["00000.parquet"]
    assert checkpoint.results().num_rows == 0
    names = [shard_file(path, number, requests, kind).name for kind in ("jsonl", "parquet")]
    assert files(path / "shards") == names


def test_results_of_another_shape_are_not_committed(open_checkpoint):
    checkpoint = open_checkpoint()
    requests = some_requests("a")
    number = checkpoint.freeze(requests, round_=0)
    run_to(checkpoint, number, *ENDED)
    with pytest.raises(CheckpointCorruptError, match="does not have the columns"):
        checkpoint.store_results(number, some_results(requests).drop(["model"]), COMMITTED)
    assert checkpoint.shards[number].state == Ended(batch=DONE)


def test_results_that_a_full_disk_refuses_leave_the_shard_ended_and_no_half_file(
    open_checkpoint, path
):
    class FillsUp(Storage):
        full = False

        def _flush(self, file):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            super()._flush(file)

    storage = FillsUp()
    checkpoint = open_checkpoint(storage=storage)
    requests = some_requests("a")
    number = checkpoint.freeze(requests, round_=0)
    run_to(checkpoint, number, *ENDED)
    storage.full = True
    with pytest.raises(OSError, match="No space left"):
        checkpoint.store_results(number, some_results(requests), COMMITTED)
    assert checkpoint.shards[number].state == Ended(batch=DONE)
    assert files(path / "results") == []
    storage.full = False
    checkpoint.store_results(number, some_results(requests), COMMITTED)
    assert checkpoint.results().num_rows == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "cannot be read"),
        (lambda file: file.write_bytes(b""), "cannot be read"),
        (lambda file: file.write_bytes(file.read_bytes()[:-20]), "cannot be read"),
        (
            lambda file: pq.write_table(pa.table({"row_key": [b"x"]}), file),
            "does not have the columns",
        ),
    ],
    ids=["gone", "empty", "torn", "foreign"],
)
@pytest.mark.parametrize("part", ["results", "shards"])
def test_a_damaged_table_is_not_an_empty_one(open_checkpoint, path, part, damage, message):
    checkpoint = open_checkpoint()
    requests = some_requests("a")
    number = checkpoint.freeze(requests, round_=0)
    run_to(checkpoint, number, *ENDED)
    checkpoint.store_results(number, some_results(requests), COMMITTED)
    file = path / "results" / "00000.parquet"
    if part == "shards":
        file = shard_file(path, number, requests, "parquet")
    damage(file)
    with pytest.raises(CheckpointCorruptError, match=message) as caught:
        checkpoint.results() if part == "results" else checkpoint.requests(number)
    assert str(file) in str(caught.value)


def test_all_that_a_checkpoint_may_hold_goes_with_it(open_checkpoint, path):
    checkpoint = open_checkpoint()
    checkpoint.set_limit("max_cost_usd", 2.5)
    checkpoint.set_limit("max_error_ratio", 0.1)
    checkpoint.ask_to_cancel()
    checkpoint.close()

    remove_checkpoint(path)

    assert not path.exists()


def test_a_file_system_without_locks_is_protected_by_the_log(open_checkpoint, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    checkpoint = open_checkpoint()
    assert not checkpoint.is_at_work()
    checkpoint.close()
    (checkpoint.path / "log" / "00000003.json").touch()

    with pytest.raises(CheckpointCorruptError, match=r"The log of .* is broken"):
        open_checkpoint()
