"""Rows per second and memory of preparing and collecting, beside the least that any design must do.

    python -m pytest -m benchmark -s tests/benchmarks/test_prepare.py

Preparing makes shards of prompts of 600 characters. Its floor encodes the same bodies, hashes each
once, and writes the same bytes. Collecting makes a table of results, with costs, of lines of 1 kB
and writes it; its floor decodes the same lines into the same structs, and writes their texts.

Each turn is a process of its own, so that none inherits the memory of another. It has done the same
with a few rows before: what a process does once (importing, loading prices) takes no time here.
Times are of a processor, and the best of some turns, as what another process takes away is not
ours. Peaks are of the whole process: Python, Arrow, the prompts or a shard's lines, and the work.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
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
#: Rows of the work that is not measured.
WARM_UP = 1_000


def prompts_of(n):
    numbers = pc.utf8_lpad(pa.arange(0, n).cast(pa.large_string()), 8, padding="0")
    text, nothing = (pa.scalar(one, pa.large_string()) for one in (TEXT, ""))
    return pc.binary_join_element_wise(text, numbers, nothing)


def prepare(n, folder):
    rows, positions = Rows(ids=pa.arange(0, n), prompts=prompts_of(n)), pa.arange(0, n)
    checkpoint = Checkpoint.open(folder / f"{n}", SPEC, Storage(), SystemClock())
    began = time.process_time()
    for shard in cut_shards(render_requests(rows, positions, SPEC), Limits()):
        checkpoint.freeze(shard, round_=0)
    took = time.process_time() - began
    checkpoint.close()
    return took


def prepare_at_least(n, folder):
    prompts, encode = prompts_of(n), msgspec.json.Encoder().encode
    before = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":'
    began = time.process_time()
    with (folder / f"{n}.jsonl").open("wb") as file:
        for start in range(0, n, SHARD):
            for prompt in prompts.slice(start, SHARD).to_pylist():
                body = before + encode(prompt) + b"}]}"
                key = blake2b(body, digest_size=16).hexdigest().encode()
                file.write(
                    b'{"custom_id":"' + key + b'","method":"POST","url":'
                    b'"/v1/chat/completions","body":' + body + b"}\n"
                )
    return time.process_time() - began


ANSWER = {
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


def lines_of(keys):
    return [json.dumps(ANSWER | {"custom_id": key.hex()}).encode() for key in keys]


def collect(n, folder):
    part = min(n, SHARD)
    keys, ids = [row.to_bytes(16, "big") for row in range(part)], pa.arange(0, part)
    data, ids = b"\n".join(lines_of(keys)), ids.cast(pa.string())
    keys = pa.array(keys, pa.binary(16))
    began = time.process_time()
    for _ in range(n // part):
        pieces = (data[at : at + PIECE] for at in range(0, len(data), PIECE))
        table = collect_results(
            keys, ids, whole_lines(pieces), batch_id="b", ended="completed"
        ).table
        at = datetime.now(UTC)
        pq.write_table(priced(table, model="gpt-4o-mini", at=at), folder / "ours.parquet")
    return time.process_time() - began


def collect_at_least(n, folder):
    part = min(n, SHARD)
    lines = lines_of(row.to_bytes(16, "big") for row in range(part))
    began = time.process_time()
    for _ in range(n // part):
        messages = [decode(line).response.body.choices[0].message for line in lines]
        table = pa.table({"completion": [message.content for message in messages]})
        pq.write_table(table, folder / "floor.parquet")
    return time.process_time() - began


def turn(work, n, folder):
    """Seconds of a processor and megabytes at the peak, of a process of its own."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, __file__, work.__name__, str(n), folder],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    shutil.rmtree(folder)
    return json.loads(done.stdout)


def peak_bytes():
    """The most memory that this process had. On Linux `ru_maxrss` begins with its parent's."""
    if sys.platform == "linux":
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.mark.parametrize(
    ("ours", "floor"), [(prepare, prepare_at_least), (collect, collect_at_least)]
)
def test_rows_per_second(ours, floor, tmp_path):
    print(f"\n{'':<21} {'rows/s':>10} {'floor':>10} {'ratio':>6} {'peak MB':>8} {'floor':>6}")
    for n in SIZES:
        turns = [[turn(work, n, tmp_path / "turn") for work in (ours, floor)] for _ in range(TURNS)]
        (took, peak), (least, least_peak) = (
            map(min, zip(*of_one, strict=True)) for of_one in zip(*turns, strict=True)
        )
        print(
            f"{ours.__name__:<10} {n:>10,} {n / took:>10,.0f} {n / least:>10,.0f} "
            f"{least / took:>6.0%} {peak:>8.0f} {least_peak:>6.0f}"
        )


if __name__ == "__main__":
    name, n_rows, place = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    work = {w.__name__: w for w in (prepare, prepare_at_least, collect, collect_at_least)}[name]
    work(WARM_UP, place)
    seconds = work(n_rows, place)
    print(json.dumps([seconds, peak_bytes() / 1_000_000]))
