"""Rows per second of preparing and collecting, beside the least that any design must do.

    python -m pytest -m benchmark -s tests/benchmarks/test_prepare.py

Preparing makes shards of prompts of 600 characters. Its floor encodes the same bodies, hashes each
once, and writes the same bytes. Collecting makes a table of results, with costs, of lines of 1 kB
and writes it; its floor decodes the same lines into the same structs, and writes their texts. Both
have been done once before for a few rows, so that what a process does once (importing, loading
prices) is not counted. Each is the best of some turns: what another process takes away is not ours.
"""

import json
import time
from datetime import UTC, datetime
from hashlib import blake2b

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchframe.checkpoint import Checkpoint
from batchframe.clock import SystemClock
from batchframe.core.lines import decode, whole_lines
from batchframe.core.prices import priced
from batchframe.core.requests import Rows, render_requests
from batchframe.core.results import collect_results
from batchframe.core.shards import Limits, cut_shards
from batchframe.core.spec import Account, Spec
from batchframe.storage import Storage

pytestmark = pytest.mark.benchmark

SIZES = (10_000, 100_000, 1_000_000)
TEXT = ("lorem ipsum dolor sit amet " * 30)[:592]
SPEC = Spec(model="gpt-4o-mini", account=Account(base_url="https://api.example.com/v1/"))
SHARD = 20_000
TURNS = 3
#: Size of the pieces in which a download is read, in bytes.
PIECE = 1 << 19
#: Rows of the round that is not shown.
WARM_UP = 1_000


def seconds(*works):
    """What each of the works takes of a processor, in seconds: the best of turns."""
    found = [[] for _ in works]
    for _ in range(TURNS):
        for work, times in zip(works, found, strict=True):
            before = time.process_time()
            work()
            times.append(time.process_time() - before)
    return map(min, found)


def show(title, sizes):
    print(f"\n{title:<10} {'rows':>10} {'rows/s':>10} {'floor/s':>10} {'ratio':>6}")
    for n, ours, floor in sizes[1:]:
        print(f"{'':<10} {n:>10,} {n / ours:>10,.0f} {n / floor:>10,.0f} {floor / ours:>6.0%}")


def test_preparing(tmp_path):
    found = []
    for n in (WARM_UP, *SIZES):
        prompts = pa.array([f"{TEXT}{row:08d}" for row in range(n)], pa.large_string())
        rows = Rows(ids=pa.array(range(n), pa.int64()), prompts=prompts)
        checkpoint = Checkpoint.open(tmp_path / f"{n}", SPEC, Storage(), SystemClock())

        positions = pa.arange(0, n)

        def ours(rows=rows, checkpoint=checkpoint, positions=positions):
            for shard in cut_shards(render_requests(rows, positions, SPEC), Limits()):
                checkpoint.freeze(shard, round_=0)

        def floor(prompts=prompts, n=n):
            encode = msgspec.json.Encoder().encode
            before = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":'
            with (tmp_path / f"floor-{n}").open("wb") as file:
                for start in range(0, n, SHARD):
                    for prompt in prompts.slice(start, SHARD).to_pylist():
                        body = before + encode(prompt) + b"}]}"
                        key = blake2b(body, digest_size=16).hexdigest().encode()
                        file.write(
                            b'{"custom_id":"' + key + b'","method":"POST","url":'
                            b'"/v1/chat/completions","body":' + body + b"}\n"
                        )

        found.append((n, *seconds(ours, floor)))
        checkpoint.close()
    show("prepare", found)


def test_collecting(tmp_path):
    answer = {
        "id": "batch_req_1",
        "custom_id": "",
        "response": {
            "status_code": 200,
            "request_id": "req_1",
            "body": {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": "gpt-4o-mini-2024-07-18",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": TEXT, "refusal": None},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": 150,
                    "completion_tokens": 140,
                    "total_tokens": 290,
                    "prompt_tokens_details": {"cached_tokens": 0},
                    "completion_tokens_details": {"reasoning_tokens": 0},
                },
            },
        },
        "error": None,
    }
    found = []
    for n in (WARM_UP, *SIZES):
        keys = [row.to_bytes(16, "big") for row in range(SHARD)]
        ids = pa.array([str(row) for row in range(SHARD)])
        lines = [json.dumps(answer | {"custom_id": key.hex()}).encode() for key in keys]
        part = min(n, SHARD)
        data = b"\n".join(lines[:part])

        def ours(n=n, part=part, keys=keys, ids=ids, data=data):
            for _ in range(n // part):
                pieces = (data[at : at + PIECE] for at in range(0, len(data), PIECE))
                table = collect_results(
                    keys[:part], ids[:part], whole_lines(pieces), batch_id="b", ended="completed"
                ).table
                at = datetime.now(UTC)
                pq.write_table(priced(table, model="gpt-4o-mini", at=at), tmp_path / "ours.parquet")

        def floor(n=n, part=part, lines=lines):
            for _ in range(n // part):
                texts = [decode(line).response.body.choices[0].message for line in lines[:part]]
                table = pa.table({"completion": [message.content for message in texts]})
                pq.write_table(table, tmp_path / "floor.parquet")

        found.append((n, *seconds(ours, floor)))
    show("collect", found)
