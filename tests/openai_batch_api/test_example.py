"""The example of the original's documentation runs, and prints in the original's form."""

import os
import re
import subprocess
import sys

import pytest

from batchframe.emulator import LocalServer

# As in the documentation of OpenaiBatchAPI 1.1.2, but for the import; the address comes from the
# environment. The table is printed in its section "Usage Statistics".
EXAMPLE = """
from {package} import OpenaiBatchAPI

# Initialize the Batch API client
batch_client = OpenaiBatchAPI(
    api_key="API_TOKEN",
    max_retry=3,
    timeout=5 * 60  # Timeout in seconds
)

messages = []

# Add messages with custom IDs (e.g., "calc_{{i}}")
for i in range(7):
    messages.append({{
        "id": f"calc_{{i}}",
        "content": [
            {{
                "role": "user",
                "content": f"Calculate: 1 + {{i}} = "
            }}
        ]
    }})

# Add messages with auto-generated IDs (index-based)
for i in range(7):
    messages.append({{
        "role": "user",
        "content": f"Calculate: 1 + {{i}} = "
    }})

# Execute batch completion
batchs = batch_client.batchs_completion(
    messages,
    max_completion_tokens=32,
    model="gpt-4o-mini",
    temperature=0,
    seed=42,
    batch_size=2
)

# Print batch outputs
for batch in batchs:
    print("BATCH ID:", batch.id)
    print("FILE ID:", batch.output_file.id)
    for content in batch.output_file.contents:
        print("Message ID:", content["id"])
        print("Response:", content["choices"][0]['message']['content'])
    print()

batch_client.print_usage_table(digits=8)
"""


def run_example(package, server, directory):
    return subprocess.run(
        [sys.executable, "-c", EXAMPLE.format(package=package)],
        cwd=directory,
        env={**os.environ, "OPENAI_BASE_URL": server.base_url, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_example_runs_but_for_the_import_and_prints_in_the_original_form(tmp_path):
    with LocalServer() as server:
        ended = run_example("batchframe.openai_batch_api", server, tmp_path)
        assert ended.returncode == 0, ended.stderr
        billed = server.billed()
        assert server.calls()["batches.create"] == 7

    ids = [f"calc_{i}" for i in range(7)] + [str(i) for i in range(7, 14)]
    asked = [f"Calculate: 1 + {i} = " for i in [*range(7), *range(7)]]
    expected = []
    for first in range(0, 14, 2):
        expected += ["BATCH ID: BATCH", "FILE ID: FILE"]
        for n in (first, first + 1):
            expected += [f"Message ID: {ids[n]}", f"Response: echo: {asked[n]}"]
        expected.append("")
    # 14 prompts of 14 tokens at $0.075 a million, 14 answers of 9 tokens at $0.30 a million.
    assert (billed.input_tokens, billed.output_tokens) == (196, 126)
    expected += [
        "+------------+--------+-------------+",
        "| Category   | Tokens |       Price |",
        "+------------+--------+-------------+",
        "| Prompt     |    196 | $0.00001470 |",
        "| Completion |    126 | $0.00003780 |",
        "+------------+--------+-------------+",
        "| Total      |    322 | $0.00005250 |",
        "+------------+--------+-------------+",
    ]
    printed = re.sub(r"batch_\w+", "BATCH", re.sub(r"file-\w+", "FILE", ended.stdout))
    assert printed.splitlines() == expected


def test_the_original_itself_fails_at_its_own_example(tmp_path):
    pytest.importorskip("openai_batch_api")
    with LocalServer() as server:
        ended = run_example("openai_batch_api", server, tmp_path)
    assert "KeyError: 'id'" in ended.stderr
