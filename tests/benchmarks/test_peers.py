"""How long 5,000 rows in one batch take, beside other clients of the Batch API.

    pip install OpenaiBatchAPI batch-openai openai-batch   # what is missing is left out
    python -m pytest -m benchmark -s tests/benchmarks/test_peers.py

All on one local server in another process, each in a process of its own that has done as many other
rows before, and all with the same polling interval. `bare` is the openai SDK by itself: lines,
upload, create, poll, download, and nothing read; what it takes is mostly the server's own time.

Clients take turns, and each round begins with another one. A round counts a client's best of some
calls, as what others take of the machine is nobody's here; over `bare` is the median of what it
took more than `bare` did in the same round, so that a machine that slows down slows down both.
"""

import json
import operator
import os
import statistics
import subprocess
import sys
from collections import deque

import pytest

pytestmark = pytest.mark.benchmark

ROWS = 5_000
ROUNDS = 15
#: Calls of each client in a round, after one that is not measured.
CALLS = 3

SERVER = """
import sys
from batchframe.emulator import LocalServer

with LocalServer("echo", stage_seconds=0) as server:
    print(server.base_url, flush=True)
    sys.stdin.read()
"""

SHARED = """
import contextlib, io, json, logging, os, sys, tempfile, time
from openai import OpenAI

os.chdir(tempfile.mkdtemp())
MODEL, POLL = "gpt-4o-mini", 0.01
text = ("lorem ipsum dolor sit amet " * 30)[:592]

def prompts_of(n, start):
    return [f"{text}{start + row:08d}" for row in range(n)]
"""

RUN = """
def main(n, start):
    prompts = prompts_of(n, start)
    said = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        answers = run(prompts)
    took = time.perf_counter() - began
    assert answers is None or answers == [f"echo: {prompt}" for prompt in prompts], answers[:2]
    return took

n, calls = int(sys.argv[1]), int(sys.argv[2])
main(n, 10_000_000)
print(json.dumps([main(n, call * n) for call in range(calls)]))
"""

#: A function `run(prompts)` each: the answers in the order of the prompts.
CLIENTS = {
    "bare": """
client = OpenAI()

def run(prompts):
    lines = [
        json.dumps({"custom_id": str(row), "method": "POST", "url": "/v1/chat/completions", "body":
            {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}})
        for row, prompt in enumerate(prompts)
    ]
    file = client.files.create(file=("in.jsonl", "\\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status != "completed":
        time.sleep(POLL)
        batch = client.batches.retrieve(batch.id)
    client.files.content(batch.output_file_id).read()
""",
    "batchframe, polars": """
import batchframe, polars as pl

client = OpenAI()

def run(prompts):
    frame = pl.DataFrame({"id": range(len(prompts)), "prompt": prompts})
    out = frame.openai_batch.complete(
        "prompt",
        "id",
        model=MODEL,
        checkpoint=tempfile.mkdtemp(),
        poll_interval=POLL,
        client=client,
    )
    return out["completion"].to_list()
""",
    "batchframe, pandas": """
import batchframe, pandas as pd

client = OpenAI()

def run(prompts):
    frame = pd.DataFrame({"id": range(len(prompts)), "prompt": prompts})
    out = frame.openai_batch.complete(
        "prompt",
        "id",
        model=MODEL,
        checkpoint=tempfile.mkdtemp(),
        poll_interval=POLL,
        client=client,
    )
    return out["completion"].to_list()
""",
    "OpenaiBatchAPI": """
import openai_batch_api

def run(prompts):
    client = openai_batch_api.OpenaiBatchAPI(
        api_key="none-needed", req_cooldown=0, batch_cooldown=POLL
    )
    messages = [
        {"id": f"row_{row}", "content": [{"role": "user", "content": prompt}]}
        for row, prompt in enumerate(prompts)
    ]
    [batch] = client.batchs_completion(messages, batch_size=len(messages), model=MODEL)
    contents = sorted(
        batch.output_file.contents, key=lambda content: int(content["id"].rpartition("_")[2])
    )
    return [content["choices"][0]["message"]["content"] for content in contents]
""",
    "batch-openai": """
from batch_openai import BatchRequestBuilder

client = OpenAI()

def run(prompts):
    builder = BatchRequestBuilder()
    for row, prompt in enumerate(prompts):
        builder.add(
            messages=[{"role": "user", "content": prompt}], model=MODEL, custom_id=str(row)
        )
    result = builder.submit(client).wait(poll_interval=POLL)
    return [item.content for item in sorted(result.succeeded, key=lambda item: int(item.custom_id))]
""",
    "openai-batch": """
from openai_batch import Batch

def run(prompts):
    with Batch(output_file="out.jsonl") as batch:
        for prompt in prompts:
            batch.add_to_batch(model=MODEL, messages=[{"role": "user", "content": prompt}])
        batch.submit_wait_download(interval=POLL)
    rows = sorted(
        map(json.loads, open("out.jsonl", encoding="utf-8")),
        key=lambda row: int(row["custom_id"].rpartition("-")[2]),
    )
    return [row["response"]["body"]["choices"][0]["message"]["content"] for row in rows]
""",
}


def test_peers():
    times = {name: [] for name in CLIENTS}
    reasons = {}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        address = server.stdout.readline().strip()
        environment = os.environ | {
            "OPENAI_BASE_URL": address,
            "OPENAI_API_KEY": "none-needed",
            "NO_PROXY": "127.0.0.1",
        }
        order = deque(CLIENTS.items())
        for _ in range(ROUNDS):
            order.rotate(-1)
            for name, code in order:
                if name in reasons:
                    continue
                done = subprocess.run(
                    [sys.executable, "-c", SHARED + code + RUN, str(ROWS), str(CALLS)],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    reasons[name] = done.stderr.strip().splitlines()[-1]
                else:
                    times[name].append(min(json.loads(done.stdout.splitlines()[-1])))
        server.stdin.close()
    ours = statistics.median(times["batchframe, polars"])
    print(f"\n{'client':<20} {'wall s':>7} {'over bare s':>12} {'wall / ours':>12}")
    for name, found in times.items():
        if name in reasons:
            print(f"{name:<20} {reasons[name]}")
            continue
        wall = statistics.median(found)
        over = statistics.median(map(operator.sub, found, times["bare"]))
        print(f"{name:<20} {wall:>7.3f} {over:>12.3f} {wall / ours:>12.2f}")
    assert not {"bare", "batchframe, polars", "batchframe, pandas"} & reasons.keys(), reasons
