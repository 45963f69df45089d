"""What a call costs this machine beside the service: processor seconds and memory, by rows.

    python -m pytest -m benchmark -s tests/benchmarks/test_end_to_end.py

Parquet to parquet, prompts of 600 characters and answers of as many, over a local server in another
process that answers at once. The last line is the exponent with which processor time grows.
"""

import json
import math
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.benchmark

SIZES = (10_000, 100_000, 1_000_000)

# Each in a process of its own, so that none inherits the memory of another.
SERVER = """
import sys
from batchframe.emulator import LocalServer

def answer(body):
    message = {"role": "assistant", "content": body["messages"][-1]["content"][:600]}
    usage = {"prompt_tokens": 150, "completion_tokens": 140, "total_tokens": 290}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return 200, {"model": body["model"], "choices": [choice], "usage": usage}

with LocalServer(answer, stage_seconds=0) as server:
    print(server.base_url, flush=True)
    sys.stdin.read()
"""
SOURCE = """
import sys
import pyarrow as pa
import pyarrow.parquet as pq

n, path = int(sys.argv[1]), sys.argv[2]
text = ("lorem ipsum dolor sit amet " * 30)[:592]
schema = pa.schema([("id", pa.int64()), ("prompt", pa.string())])
with pq.ParquetWriter(path, schema) as writer:
    for start in range(0, n, 50_000):
        rows = range(start, min(n, start + 50_000))
        prompts = [f"{text}{row:08d}" for row in rows]
        writer.write_table(pa.table({"id": list(rows), "prompt": prompts}, schema))
"""
CLIENT = """
import json, resource, sys, time
import batchframe as bf

folder = sys.argv[1]
before = time.perf_counter()
bf.complete_parquet(
    f"{folder}/in.parquet", f"{folder}/out.parquet", "prompt", "id", model="gpt-4o-mini",
    checkpoint=f"{folder}/checkpoint", progress=False, poll_interval=0.5,
)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "wall": time.perf_counter() - before,
    "cpu": used.ru_utime + used.ru_stime,
    "peak": used.ru_maxrss / 1024,
}))
"""


def test_parquet_to_parquet(tmp_path):
    print(f"\n{'rows':>10} {'wall s':>8} {'cpu s':>8} {'peak MB':>8}")
    cpu = []
    for n in SIZES:
        folder = tmp_path / str(n)
        folder.mkdir()
        subprocess.run([sys.executable, "-c", SOURCE, str(n), folder / "in.parquet"], check=True)
        with subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            address = server.stdout.readline().strip()
            done = subprocess.run(
                [sys.executable, "-c", CLIENT, str(folder)],
                env=os.environ | {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": "none-needed"},
                capture_output=True,
                text=True,
                check=True,
            )
            server.stdin.close()
        assert pq.read_metadata(folder / "out.parquet").num_rows == n
        found = json.loads(done.stdout)
        cpu.append(found["cpu"])
        print(f"{n:>10,} {found['wall']:>8.1f} {found['cpu']:>8.1f} {found['peak']:>8.0f}")
    # Against what importing and starting take: the line through the two larger sizes.
    print(f"exponent {math.log(cpu[-1] / cpu[-2]) / math.log(SIZES[-1] / SIZES[-2]):.2f}")
