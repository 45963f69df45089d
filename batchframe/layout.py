"""What is in the directory of a checkpoint, by name.

spec.json      what all requests share; immutable
shards/        00000-<sha16>.jsonl, the exact bytes uploaded, until the results are committed;
               00000-<sha16>.parquet, row key, id, body digest and token estimate of each line
log/           00000000.json ...: one commit each, put where no file was, chained by SHA-256
raw/           00000-output.jsonl.zst, 00000-error.jsonl.zst: the downloads, verbatim
results/       00000.parquet: one result per request of the shard
lock           names the process at work, for a friendly message
cancelled      is there while nothing more is to be sent
cancelled.json the numbers of shards that stay cancelled though a call has begun anew
max_cost_usd, max_error_ratio   limits of the last call that asked for rows, if it had them

All names are made of numbers and hashes; nothing else that is read becomes a path or an address. A
shard's files carry the hash of its lines, so that a process which another one has overtaken cannot
write over them.
"""

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from batchframe.core.batches import ShardFrozen
from batchframe.errors import CheckpointCorruptError, CheckpointError

__all__ = [
    "HOME",
    "LOCK",
    "LOG",
    "NAMES",
    "PARTS",
    "SPEC",
    "DownloadKind",
    "Layout",
    "LimitName",
    "unreadable",
]

#: Directory under the working directory in which checkpoints are found by their spec.
HOME = ".batchframe"
#: The two files that a batch leaves.
DownloadKind = Literal["output", "error"]
#: The limits of a call that hold for all who work on its checkpoint.
LimitName = Literal["max_cost_usd", "max_error_ratio"]
#: The directories.
PARTS = SHARDS, LOG, RAW, RESULTS = "shards", "log", "raw", "results"
#: The files beside them.
SPEC, LOCK = "spec.json", "lock"
CANCELLED, CANCELLED_SHARDS = "cancelled", "cancelled.json"
#: All that a checkpoint makes, but for hidden files.
NAMES = frozenset({*PARTS, SPEC, LOCK, CANCELLED, CANCELLED_SHARDS, *get_args(LimitName)})


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths in the directory of one checkpoint."""

    root: Path

    @property
    def spec(self) -> Path:
        """What all requests share."""
        return self.root / SPEC

    @property
    def lock(self) -> Path:
        """Names the process at work."""
        return self.root / LOCK

    @property
    def cancelled(self) -> Path:
        """Is there while nothing more is to be sent."""
        return self.root / CANCELLED

    @property
    def cancelled_shards(self) -> Path:
        """The numbers of shards that stay cancelled though a call has begun anew."""
        return self.root / CANCELLED_SHARDS

    def limit(self, name: LimitName) -> Path:
        """A limit of the last call that asked for rows."""
        return self.root / name

    @property
    def shards(self) -> Path:
        """Where the files of shards are."""
        return self.root / SHARDS

    def shard(self, number: int, frozen: ShardFrozen, kind: Literal["jsonl", "parquet"]) -> Path:
        """A shard's lines, or what is known of each."""
        return self.shards / f"{number:05d}-{frozen.sha256[:16]}.{kind}"

    @property
    def log(self) -> Path:
        """Where the commits are."""
        return self.root / LOG

    def commit(self, n: int) -> Path:
        """The commit with this number."""
        return self.log / f"{n:08d}.json"

    def raw(self, number: int, kind: DownloadKind) -> Path:
        """A download of a shard's batch."""
        return self.root / RAW / f"{number:05d}-{kind}.jsonl.zst"

    def results(self, number: int) -> Path:
        """The results of a shard."""
        return self.root / RESULTS / f"{number:05d}.parquet"


def unreadable(path: Path, error: Exception) -> CheckpointError:
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
        if path.parent.name == RESULTS
        else ""
    )
    return CheckpointCorruptError(f"{path} cannot be read: {error}.{way_out}")
