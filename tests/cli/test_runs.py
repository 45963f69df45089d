"""Runs that outlive their process: killed, detached, busy, out of space, under cron."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.csv
import pytest

import batchframe as bf
from batchframe.checkpoint import Checkpoint
from batchframe.cli import Exit
from batchframe.clock import SystemClock
from batchframe.core.batches import Live
from batchframe.emulator import LocalServer
from batchframe.storage import Storage
from tests.cli.conftest import PATIENCE

ASKED = ["--prompt-col", "prompt", "--id-col", "id", "--model", "gpt-4o-mini", "--checkpoint", "ck"]
SMALL = ["--batch-size", "10", "--max-live", "2", "--poll-interval", "0.02"]


def write_rows(path, n):
    path.write_text("id,prompt\n" + "".join(f"{row:03d},question {row}\n" for row in range(n)))


def answers(path):
    table = pyarrow.csv.read_csv(path).select(["id", "prompt", "completion", "completion_status"])
    return [tuple(row.values()) for row in table.to_pylist()]


def expected(n):
    return [(row, f"question {row}", f"echo: question {row}", "ok") for row in range(n)]


def shards(folder):
    if not (folder / "log").is_dir():
        return []
    return list(Checkpoint.read(folder, Storage(), SystemClock()).shards.values())


def n_shards(folder):
    return len(shards(folder))


def until(condition, process):
    """Look again and again; the process may not end before that."""
    while not condition():
        assert process.poll() is None, process.stderr.read()


def is_live(folder):
    return any(isinstance(shard.state, Live) for shard in shards(folder))


def test_a_killed_run_is_seen_waited_for_and_read_by_other_processes(
    terminal, still, clock, tmp_path
):
    write_rows(tmp_path / "in.csv", 100)
    terminal.at(still)
    with terminal.start("complete", "in.csv", "out.csv", *ASKED, *SMALL) as process:
        # All of it is prepared, which is what `wait` needs, and some of it is at the provider.
        until(lambda: n_shards(tmp_path / "ck") == 10, process)
        until(lambda: is_live(tmp_path / "ck"), process)
        process.kill()
    assert not (tmp_path / "out.csv").exists()

    status = json.loads(terminal.run("status", "ck", "--json").stdout)
    late = terminal.run("wait", "ck", "--timeout", "0", *SMALL, "--json")
    clock.step = 60
    waited = terminal.run("wait", "ck", *SMALL, "--json")
    results = terminal.run("results", "ck", "results.jsonl")
    ended = terminal.run("complete", "in.csv", "out.csv", *ASKED, *SMALL)

    assert (status["n_rows"], status["is_done"], status["is_at_work"]) == (100, False, False)
    assert (late.returncode, json.loads(late.stdout)["is_done"]) == (Exit.NOT_DONE, False)
    assert waited.returncode == 0
    assert json.loads(waited.stdout)["rows"] == {"ok": 100}
    assert results.stderr == b"batchframe: 100 rows written to results.jsonl.\n"
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    rows = sorted((row["id"], row["completion"]) for row in map(json.loads, lines))
    assert rows == [(f"{row:03d}", f"echo: question {row}") for row in range(100)]
    assert ended.returncode == 0
    assert answers(tmp_path / "out.csv") == expected(100)
    assert sorted(still.executions().values()) == [1] * 100
    assert still.calls()["batches.create"] == 10


def test_the_same_detached_line_again_and_again_comes_to_an_end(terminal, still, clock, tmp_path):
    write_rows(tmp_path / "in.csv", 50)
    terminal.at(still)
    line = ["complete", "in.csv", "out.csv", *ASKED, *SMALL, "--detach", "--no-progress", "--json"]
    created, codes = [], []

    while not codes or codes[-1] == Exit.NOT_DONE:
        ended = terminal.run(*line)
        clock.advance(3_600)
        assert ended.stderr == b""
        codes.append(ended.returncode)
        created.append(still.calls()["batches.create"])
        told = json.loads(ended.stdout)
        assert told["is_done"] is (ended.returncode == 0)
        assert (tmp_path / "out.csv").exists() is told["is_done"]

    # Two at a time; each run finds that the last two have ended.
    assert codes == [Exit.NOT_DONE, Exit.NOT_DONE, Exit.NOT_DONE, 0]
    assert created == [2, 4, 5, 5]
    assert answers(tmp_path / "out.csv") == expected(50)
    assert sorted(still.executions().values()) == [1] * 50
    assert told == {
        "is_done": True,
        "out": "out.csv",
        "checkpoint": "ck",
        "n_rows": 50,
        "rows": {"ok": 50},
        "n_failures": 0,
        "cost_usd": told["cost_usd"],
        "input_tokens": still.billed().input_tokens,
        "output_tokens": still.billed().output_tokens,
    }


def always_failing(body):
    if "question 1" in body["messages"][0]["content"]:
        return 500, {"error": {"message": "overloaded", "code": "server_error"}}
    return "fine"


def test_rows_that_fail_each_time_come_to_an_end_under_cron_too(terminal, clock, tmp_path):
    write_rows(tmp_path / "in.csv", 3)
    line = ["complete", "in.csv", "out.csv", *ASKED, "--max-retries", "2"]
    codes = []
    with LocalServer(always_failing, clock=clock, stage_seconds=600) as server:
        terminal.at(server)
        while Exit.UNANSWERED not in codes:
            assert len(codes) < 4
            ended = terminal.run(*line, "--poll-interval", "0.02", "--detach", "--strict")
            clock.advance(3_600)
            codes.append(ended.returncode)
        # The first time, two times again, and then the last one is collected.
        assert server.calls()["batches.create"] == 3
    assert codes == [Exit.NOT_DONE, Exit.NOT_DONE, Exit.NOT_DONE, Exit.UNANSWERED]
    assert ended.stderr.startswith(b"batchframe: 3 rows: 2 ok, 1 failed; $")
    assert [row[3] for row in answers(tmp_path / "out.csv")] == ["ok", "failed", "ok"]


def test_rows_without_an_answer_change_the_exit_code_only_where_that_is_asked(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 3)
    line = ["complete", "in.csv", "out.csv", *ASKED, "--max-retries", "0", "--no-progress"]
    with LocalServer(always_failing, stage_seconds=0.02) as server:
        terminal.at(server)
        usual = terminal.run(*line)
        strict = terminal.run(*line, "--strict")

    assert (usual.returncode, strict.returncode) == (0, Exit.UNANSWERED)
    assert usual.stderr.decode().endswith(
        "Written to out.csv. Try those again with --retry-failed.\n"
    )


def test_too_many_rows_that_fail_are_an_error_and_no_file_is_written(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 3)
    line = ["complete", "in.csv", "out.csv", *ASKED, "--max-retries", "0", "--max-error-ratio"]
    with LocalServer(always_failing, stage_seconds=0.02) as server:
        terminal.at(server)
        ended = terminal.run(*line, "0.3")
        written = (tmp_path / "out.csv").exists()
        allowed = terminal.run(*line, "0.34", "--no-progress")
        asked_again = terminal.run(*line, "2")

    assert (ended.returncode, written) == (Exit.ERROR, False)
    assert "--max-error-ratio 0.3 is exceeded: 1 of 3 rows has no answer" in ended.stderr.decode()
    assert (allowed.returncode, (tmp_path / "out.csv").exists()) == (0, True)
    assert asked_again.returncode == Exit.USAGE


def test_a_busy_checkpoint_has_a_code_of_its_own_and_ctrl_c_another(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 5)
    with LocalServer(stage_seconds=3600) as server:
        line = ["complete", "in.csv", "out.csv", *ASKED]
        with terminal.at(server).start(*line) as process:
            until(lambda: is_live(tmp_path / "ck"), process)

            again = terminal.run(*line, "--detach")
            waited = terminal.run("wait", "ck")
            purged = terminal.run("purge", "ck", "--yes", "--force")
            status = terminal.run("status", "ck", "--json")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
        created = server.calls()["batches.create"]

    assert [again.returncode, waited.returncode, purged.returncode] == [Exit.BUSY] * 3
    assert f"is in use by process {process.pid}".encode() in again.stderr
    assert again.stderr.count(b"\n") == 1
    assert json.loads(status.stdout)["is_at_work"] is True
    assert json.loads(status.stdout)["rows"] == {"in progress": 5}
    assert (process.returncode, out) == (Exit.INTERRUPTED, b"")
    assert b"1 batch goes on at the provider" in err
    assert err.count(b"\n") == 1
    assert created == 1


def test_a_timeout_is_not_done_and_what_is_cancelled_is_collected(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 5)

    seconds = [3600]
    with LocalServer(stage_seconds=lambda _batch: seconds[0]) as server:
        late = terminal.at(server).run(
            "complete", "in.csv", "out.csv", *ASKED, "--timeout", "1", "--json"
        )
        kept = terminal.run("purge", "ck", "--yes")
        cancelled = terminal.run("cancel", "ck", "--json")
        seconds[0] = 0.02
        waited = terminal.run("wait", "ck", "--poll-interval", "0.02", "--json")
        asked = terminal.run("purge", "ck", input=b"n\n")
        removed = terminal.run("purge", "ck", "--yes")

    assert late.returncode == Exit.NOT_DONE
    assert json.loads(late.stdout)["rows"] == {"in progress": 5}
    assert (kept.returncode, kept.stdout) == (1, b"")
    assert b"1 batch at the provider, paid for and never collected then" in kept.stderr
    assert cancelled.returncode == 0
    assert json.loads(waited.stdout)["rows"] == {"cancelled": 5}
    assert (asked.returncode, asked.stdout) == (1, b"")
    assert asked.stderr.endswith(b"batchframe: nothing was removed.\n")
    assert (removed.returncode, removed.stdout) == (0, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]


def test_purge_removes_no_directory_that_is_none(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 1)
    assert terminal.run("complete", "in.csv", "out.csv", *ASKED).returncode == 0
    (tmp_path / "ck" / "mine.txt").touch()

    foreign = terminal.run("purge", "ck", "--yes", "--force")
    none = terminal.run("purge", ".", "--yes", "--force")

    assert b"holds other files as well (mine.txt); nothing was removed" in foreign.stderr
    assert (foreign.returncode, none.returncode) == (1, 1)
    assert (tmp_path / "ck" / "spec.json").exists()


def test_purge_removes_what_a_limit_of_cost_has_left(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 2)
    bounded = ["--max-cost", "1", "--param", "max_completion_tokens=10"]
    assert terminal.run("complete", "in.csv", "out.csv", *ASKED, *bounded).returncode == 0

    purged = terminal.run("purge", "ck", "--yes")

    assert (purged.returncode, purged.stderr) == (0, b"batchframe: ck is removed.\n")
    assert not (tmp_path / "ck").exists()


def test_purge_removes_damaged_results_only_by_force(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 2)
    assert terminal.run("complete", "in.csv", "out.csv", *ASKED).returncode == 0
    (tmp_path / "ck" / "results" / "00000.parquet").write_bytes(b"damaged")

    kept = terminal.run("purge", "ck", "--yes")
    assert (kept.returncode, (tmp_path / "ck").exists()) == (1, True)
    purged = terminal.run("purge", "ck", "--yes", "--force")

    assert (purged.returncode, (tmp_path / "ck").exists()) == (0, False)


def test_one_damaged_checkpoint_hides_no_other_run(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 2)
    for place in ("runs/a", "runs/b"):
        asked = [*ASKED[:-1], place]
        assert terminal.run("complete", "in.csv", "out.csv", *asked).returncode == 0
    (tmp_path / "runs" / "a" / "results" / "00000.parquet").write_bytes(b"damaged")

    listed = terminal.run("runs", "runs", "--json")

    assert [Path(one["path"]).name for one in json.loads(listed.stdout)] == ["b"]
    assert b"runs/a" in listed.stderr


def test_it_works_in_the_empty_environment_of_cron(terminal, server, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": 1, "prompt": "Grüße"}\n')
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.defpath,
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": server.base_url,
    }
    asked = ["--prompt-col", "prompt", "--id-col", "id", "--model", "gpt-4o-mini"]

    ended = terminal.run(
        "complete",
        tmp_path / "in.jsonl",
        "~/out.jsonl",
        *asked,
        "--checkpoint",
        "~/ck",
        env=environment,
        cwd="/",
    )
    piped = terminal.run(
        *("complete", "~/in.jsonl", "-", "--to", "jsonl", *asked, "--checkpoint", "~/ck"),
        env=environment,
        cwd="/",
    )

    assert (ended.returncode, ended.stdout) == (0, b"")
    assert (tmp_path / "ck" / "spec.json").exists()
    assert piped.stdout == (tmp_path / "out.jsonl").read_bytes()
    assert json.loads(piped.stdout)["completion"] == "echo: Grüße"


@pytest.mark.parametrize("n_bytes", [2_000, 12_000, 40_000])
def test_a_full_disk_is_one_line_and_a_rerun_pays_once(n_bytes, terminal, server, tmp_path):
    write_rows(tmp_path / "in.csv", 1_000)

    def fill():  # as a file system does that has no more room: the write ends in the middle
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    line = ["complete", "in.csv", "out.csv", *ASKED, "--batch-size", "100"]
    environment = terminal.environment | {"PYTHONDONTWRITEBYTECODE": "1"}
    full = terminal.run(*line, preexec_fn=fill, env=environment)
    assert not (tmp_path / "out.csv").exists()
    ended = terminal.run(*line)

    assert (full.returncode, full.stdout) == (1, b"")
    assert full.stderr.startswith(b"batchframe: ")
    assert full.stderr.count(b"\n") == 1
    assert b"File too large" in full.stderr
    assert ended.returncode == 0
    assert answers(tmp_path / "out.csv") == expected(1_000)
    assert sorted(server.executions().values()) == [1] * 1_000
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_small_disk_that_is_full_is_said_and_mended(terminal, server, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        write_rows(tmp_path / "in.csv", 1_000)
        (disk / "ballast").write_bytes(bytes(100_000))
        line = ["complete", "in.csv", disk / "out.csv", *ASKED[:-1], disk / "ck"]

        full = terminal.run(*line, "--batch-size", "250")
        there = (disk / "out.csv").exists()
        (disk / "ballast").unlink()
        subprocess.run([*mount[:4], "remount,size=8m", "tmpfs", str(disk)], check=True)
        ended = terminal.run(*line, "--batch-size", "250")
        out = answers(disk / "out.csv")
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S607 - wherever it is

    assert (full.returncode, full.stdout, there) == (1, b"", False)
    assert b"No space left on device" in full.stderr
    assert full.stderr.count(b"\n") == 1
    assert ended.returncode == 0
    assert out == expected(1_000)
    assert sorted(server.executions().values()) == [1] * 1_000


def test_what_prints_data_prints_nothing_else(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 4)

    def told_by(*line):
        ended = terminal.run(*line, "--json")
        assert ended.returncode == 0, (ended.stdout, ended.stderr)
        return json.loads(ended.stdout)

    done = told_by("complete", "in.csv", "out.csv", *ASKED)
    told = {
        name: told_by(*line)
        for name, line in {
            "status": ["status", "ck"],
            "watch": ["status", "ck", "--watch"],
            "wait": ["wait", "ck"],
            "usage": ["usage", "ck"],
            "runs": ["runs", "."],
            "doctor": ["doctor"],
        }.items()
    }
    shown = {name: terminal.run(name, "ck") for name in ("status", "usage", "wait")}
    report = terminal.run("report", "ck", "report.html")

    assert done["rows"] == {"ok": 4}
    assert told["status"] == told["watch"] == told["wait"]
    assert told["runs"] == [told["status"]]
    assert told["status"]["path"] == str(tmp_path / "ck")
    assert set(told["status"]) == {
        *("path", "model", "endpoint", "n_rows", "rows", "batches", "n_done", "n_failures"),
        *("cost_usd", "input_tokens", "output_tokens", "eta_seconds", "kept_until", "is_done"),
        "is_at_work",
    }
    assert told["usage"]["cost_usd"] == pytest.approx(done["cost_usd"])
    assert [line["category"] for line in told["usage"]["lines"]] == [
        "prompt",
        "completion",
        "total",
    ]
    assert {(one["check"], one["is_ok"]) for one in told["doctor"]} == {
        (check, True)
        for check in ("versions", "key", "address", "access", "clock", "disk", "limits")
    }
    assert shown["status"].stdout.startswith(f"Run in {tmp_path / 'ck'}\nmodel ".encode())
    assert shown["usage"].stdout.startswith(b"+---")
    assert [one.stderr for one in shown.values()] == [b""] * 3
    assert (report.returncode, report.stdout) == (0, b"")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_whoever_stops_reading_is_no_traceback(terminal, tmp_path):
    write_rows(tmp_path / "in.csv", 5_000)
    assert terminal.run("complete", "in.csv", "out.csv", *ASKED).returncode == 0

    with terminal.start("complete", "in.csv", "-", "--to", "csv", *ASKED) as process:
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=PATIENCE)

    assert process.returncode == Exit.ERROR
    assert err == b"batchframe: whoever read the output stopped reading.\n"


def test_the_scheduler_example_submits_in_one_process_and_collects_in_another(
    terminal, server, tmp_path
):
    script = Path(__file__).parents[2] / "notebooks" / "etl_pipeline.py"
    table = pyarrow.csv.read_csv
    write_rows(tmp_path / "in.csv", 20)
    pyarrow.parquet.write_table(table(tmp_path / "in.csv"), tmp_path / "in.parquet")

    def task(name, *arguments):
        return subprocess.run(
            [sys.executable, "-W", "error", script, name, *arguments],
            cwd=tmp_path,
            env=terminal.environment,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )

    submitted = task("submit", "in.parquet", "ck")
    sent = server.calls()["batches.create"]
    collected = [task("collect", "in.parquet", "ck", "out.parquet")]
    while collected[-1].returncode == Exit.NOT_DONE:
        collected.append(task("collect", "in.parquet", "ck", "out.parquet"))

    assert (submitted.returncode, submitted.stderr, sent) == (0, b"", 1)
    assert (collected[-1].returncode, collected[-1].stderr) == (0, b"")
    out = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert out["completion"].to_pylist() == [f"echo: question {row}" for row in range(20)]
    assert sorted(server.executions().values()) == [1] * 20
    assert bf.usage(tmp_path / "ck").cost_usd > 0


def test_a_dialect_is_named_where_the_address_does_not_say_it(terminal, tmp_path):
    (tmp_path / "in.csv").write_text("id,prompt\n1,one\n2,two\n")
    columns = ["--prompt-col", "prompt", "--id-col", "id", "--model", "m"]
    line = ["complete", "in.csv", "out.csv", *columns, "--price", "m=1,2", "--no-progress"]
    unknown = terminal.run("estimate", "in.csv", *columns, "--dialect", "generc")
    assert unknown.returncode == 1
    assert b"Did you mean 'generic'?" in unknown.stderr
    # Its ids are none of OpenAI's, which a server on this machine is taken for.
    with LocalServer(dialect="generic", stage_seconds=0) as server:
        ended = terminal.at(server).run(*line, "--dialect", "generic")
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert server.billed().requests == 2
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("1,one,echo: one,ok")
