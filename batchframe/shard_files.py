"""The files of a checkpoint's shards: the lines that are sent, and what is known of each."""

import io
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.commits import Log
from batchframe.core.batches import Dropped, ShardDropped, ShardFrozen
from batchframe.core.requests import Requests, url_in
from batchframe.errors import CheckpointCorruptError
from batchframe.table_files import read_table, write_table

__all__ = ["ShardFiles"]

#: What is known of each line of a shard.
_SHARD_SCHEMA = pa.schema(
    [
        pa.field("row_key", pa.binary(16), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("body_digest", pa.binary(16), nullable=False),
        pa.field("n_tokens", pa.int64(), nullable=False),
    ]
)
#: Lines that are hashed, and written, together.
_LINES_OF_PIECE = 256


class ShardFiles(Log):
    """A log, and the files of the shards that it tells of."""

    def freeze(self, requests: Requests, *, round_: int) -> int:
        """Write the requests as a new shard and commit it. Returns its number."""
        number = len(self.shards)
        digest, n_bytes = sha256(), 0
        for piece in _pieces(requests.lines):
            digest.update(piece)
            n_bytes += len(piece)
        frozen = ShardFrozen(
            n_requests=len(requests),
            n_bytes=n_bytes,
            n_tokens=sum(requests.n_tokens),
            sha256=digest.hexdigest(),
            round=round_,
            model=requests.model,
        )
        columns = [
            _keys(requests.row_keys),
            pa.array(requests.ids, pa.string()),
            _keys(requests.body_digests),
            pa.array(requests.n_tokens, pa.int64()),
        ]
        write_table(
            self._storage,
            self._layout.shard(number, frozen, "parquet"),
            pa.Table.from_arrays(columns, schema=_SHARD_SCHEMA),
        )
        with self._storage.replace(self._layout.shard(number, frozen, "jsonl")) as file:
            for piece in _pieces(requests.lines):
                file.write(piece)
        self.commit(number, frozen)
        return number

    def drop(self, number: int, *, is_unwanted: bool) -> None:
        """Give up a shard that was never sent, because of its size, or because rows are unwanted.

        Its lines stay until the checkpoint is closed: others may want the rest of its rows.
        """
        self.commit(number, ShardDropped(is_unwanted=is_unwanted))

    def requests(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Row key, id, body digest and token estimate of each line of a shard, in its order."""
        path = self._layout.shard(number, self.shards[number].frozen, "parquet")
        return read_table(self._storage, path, _SHARD_SCHEMA, columns)

    def model_of(self, number: int) -> str:
        """The model of a shard's requests."""
        return self.spec.model or self.shards[number].frozen.model or ""

    def input_path(self, number: int) -> Path:
        """Where a shard's input file is, until its results are committed."""
        return self._layout.shard(number, self.shards[number].frozen, "jsonl")

    def input_file(self, number: int) -> BinaryIO:
        """The exact bytes of a shard's input file, as a stream."""
        try:
            return self._storage.open(self.input_path(number))
        except FileNotFoundError:
            # Another process has sent it, and removed it, where the log goes on without us.
            if self.is_overtaken():
                raise self.overtaken() from None
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

    def newer(
        self, keys: Mapping[int, pa.FixedSizeBinaryArray], *, given_up: Collection[bool] = ()
    ) -> dict[int, pa.Int64Array]:
        """The last shard that holds each row key of these, by shard; null where no later one does.

        All of them are looked up together, and each shard is read once. Of shards that were dropped
        those count whose `is_unwanted` is in `given_up`.
        """
        asked = pa.concat_arrays([pa.array([], pa.binary(16)), *keys.values()])
        later = [
            number
            for number, shard in sorted(list(self.shards.items()), reverse=True)  # noqa: C414 - a copy
            if len(asked)
            and number > min(keys)
            and not (isinstance(shard.state, Dropped) and shard.state.is_unwanted not in given_up)
        ]
        held = [pa.array([], pa.binary(16))]
        owners = [pa.array([], pa.int64())]
        for number in later:
            there = self.row_keys(number)
            there = there.filter(pc.is_in(there, value_set=asked))
            held.append(there)
            owners.append(pa.repeat(pa.scalar(number, pa.int64()), len(there)))
        # The first place counts, and so the last shard.
        places = pc.index_in(asked, value_set=pa.concat_arrays(held))
        owner = pa.concat_arrays(owners).take(places)
        found, start = {}, 0
        for number, asked_of_it in keys.items():
            mine = owner.slice(start, len(asked_of_it))
            found[number] = pc.if_else(pc.greater(mine, number), mine, None)
            start += len(asked_of_it)
        return found

    def inputs(self) -> list[int]:
        """The shards whose input files are here, in order."""
        paths = {self.input_path(number).name: number for number in self.shards}
        names = self._storage.names(self._layout.shards)
        return sorted(paths[name] for name in names if name in paths)


def _pieces(lines: Sequence[bytes]) -> Iterator[bytes]:
    """The bytes of lines, some at a time: a processor's cache holds them, and memory stays free."""
    for start in range(0, len(lines), _LINES_OF_PIECE):
        yield b"".join(lines[start : start + _LINES_OF_PIECE])


def _keys(keys: Sequence[bytes]) -> pa.FixedSizeBinaryArray:
    """Row keys or digests as a column, without looking at one by one."""
    data = pa.py_buffer(b"".join(keys))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, data])
