"""The end of a process: by its last line, by sys.exit, by an error; while its work goes on."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import batchframe as bf
from batchframe.emulator import JumpClock, LocalServer

N_ROWS = 60
FRAME = pl.DataFrame({"id": range(N_ROWS), "prompt": [f"question {row}" for row in range(N_ROWS)]})
#: The same frame, sent in batches of four rows, of which ten are live at once.
BEGINNING = f"""
import sys
import threading
import httpx2
import openai
import polars as pl
import batchframe as bf

class Silent(httpx2.HTTPTransport):
    def handle_request(self, request):
        if hangs.is_set():
            has_hung.set()
            threading.Event().wait()
        return super().handle_request(request)

hangs, has_hung = threading.Event(), threading.Event()
frame = pl.DataFrame(
    {{"id": range({N_ROWS}), "prompt": [f"question {{row}}" for row in range({N_ROWS})]}}
)
how = {{
    "model": "gpt-4o-mini",
    "client": openai.OpenAI(base_url=sys.argv[1], api_key="sk-local"),
    "checkpoint": sys.argv[2],
    "limits": bf.Limits(max_requests=4, max_live_batches=10),
    "poll_interval": 0.01,
    "progress": False,
}}
"""


def ended(server: LocalServer, checkpoint: Path, script: str) -> "subprocess.CompletedProcess[str]":
    """What became of a process that ran a script."""
    return subprocess.run(
        [sys.executable, "-c", BEGINNING + script, server.base_url, str(checkpoint)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_it_resumes(server: LocalServer, checkpoint: Path) -> None:
    """The same call takes up what is there, and pays for each row once."""
    out = bf.complete(
        FRAME,
        "prompt",
        "id",
        model="gpt-4o-mini",
        client=server.client(),
        checkpoint=checkpoint,
        limits=bf.Limits(max_requests=4),
        poll_interval=0.01,
        progress=False,
    )
    assert out["completion"].to_list() == [f"echo: question {row}" for row in range(N_ROWS)]
    assert set(server.executions().values()) == {1}
    assert len(server.executions()) == N_ROWS


@pytest.mark.parametrize(
    ("ending", "code", "last"),
    [
        ("", 0, []),
        ("sys.exit(3)", 3, []),
        ("raise ValueError('Enough.')", 1, ["ValueError: Enough."]),
    ],
    ids=["last line", "exit", "error"],
)
def test_a_process_that_ends_while_a_run_goes_on_says_nothing_of_it(tmp_path, ending, code, last):
    with LocalServer(stage_seconds=0.01) as server:
        process = ended(
            server, tmp_path / "run", f"bf.submit(frame, 'prompt', 'id', **how)\n{ending}"
        )

        assert process.returncode == code
        assert process.stderr.splitlines()[-1:] == last
        assert process.stderr.count("Traceback") == len(last)
        assert_it_resumes(server, tmp_path / "run")


def test_a_service_that_hangs_does_not_keep_a_process_from_its_end(tmp_path):
    clock = JumpClock()
    with LocalServer(clock=clock, stage_seconds=600) as server:
        process = ended(
            server,
            tmp_path / "run",
            """
how["client"] = how["client"].with_options(
    http_client=httpx2.Client(transport=Silent()), timeout=None
)
how["limits"] = bf.Limits(max_requests=4)
bf.submit(frame, "prompt", "id", **how)
hangs.set()
has_hung.wait()
""",
        )

        assert (process.returncode, process.stderr) == (0, "")
        clock.advance(1_800)
        assert_it_resumes(server, tmp_path / "run")


def test_a_call_of_another_thread_goes_on_when_the_main_thread_has_ended(tmp_path):
    with LocalServer(stage_seconds=0.5) as server:
        process = ended(
            server,
            tmp_path / "run",
            """
def work():
    out = bf.complete(frame, "prompt", "id", **how)
    print(set(out["completion_status"]))

threading.Thread(target=work).start()
""",
        )

        assert (process.stdout, process.stderr) == ("{'ok'}\n", "")
        assert process.returncode == 0
