"""The command line, as processes: what it prints, how it ends, and what it does not import."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import openai
import pytest
from typer.testing import CliRunner

from batchframe.cli import app
from batchframe.emulator.faults import MISHAPS
from tests.emulator.test_webhooks import Receiver

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-W", "error"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


def run(*arguments, cwd):
    return subprocess.run(
        [*PYTHON, "-m", "batchframe", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


@contextmanager
def serving(*arguments, cwd):
    """A `batchframe serve`, and the base_url that it printed."""
    process = subprocess.Popen(
        [*PYTHON, "-m", "batchframe", "serve", *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        first = process.stdout.readline()
        assert first.startswith("base_url: http://127.0.0.1:"), process.stderr.read()
        yield process, first.removeprefix("base_url: ").strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_the_version_is_that_of_the_distribution():
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"batchframe {version('openai-batchframe')}\n")


def test_help_names_every_command():
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert {"demo", "serve"} <= set(shown.output.split())


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("demo", ["--rows", "--model", "--output"]),
        ("serve", ["--port", "--dialect", "--model", "--directory", "--upstream", "--fault"]),
    ],
)
def test_each_command_explains_itself_and_its_options(command, options):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert [option for option in options if option not in shown.output] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_serve_answers_and_stops_cleanly(number, tmp_path):
    with serving(cwd=tmp_path) as (process, base_url):
        with openai.OpenAI(base_url=base_url, api_key="anything") as client:
            file = client.files.create(file=("rows.jsonl", b"{}"), purpose="batch")
            assert [listed.id for listed in client.files.list()] == [file.id]
        process.send_signal(number)
        # Not communicate(), which does not see what was read ahead with the first line.
        out, err = process.stdout.read(), process.stderr.read()
        process.wait(timeout=300)
    assert f"export OPENAI_BASE_URL={base_url}\n" in out
    assert "export OPENAI_API_KEY=anything\n" in out
    assert out.endswith("Ctrl-C stops.\nStopped.\n")
    assert (process.returncode, err) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_serve_speaks_like_another_service(tmp_path):
    with serving("--dialect", "groq", cwd=tmp_path) as (process, base_url):
        with openai.OpenAI(base_url=base_url, api_key="anything") as client:
            file = client.files.create(file=("rows.jsonl", b"{}"), purpose="batch")
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(timeout=30) == 0
    assert base_url.endswith("/openai/v1")
    assert file.id.startswith("file_01")
    assert "pass dialect='groq'" in said


def test_serve_knows_its_dialects(tmp_path):
    ended = run("serve", "--dialect", "azur", cwd=tmp_path)
    assert ended.returncode == 2
    assert "no dialect 'azur'" in ended.stderr


def test_serve_finds_its_directory_again(tmp_path):
    for listed in (0, 1):
        with (
            serving("--directory", "kept", cwd=tmp_path) as (process, base_url),
            openai.OpenAI(base_url=base_url, api_key="anything") as client,
        ):
            assert len(list(client.files.list())) == listed
            client.files.create(file=("rows.jsonl", b"{}"), purpose="batch")
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=300) == 0


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("serve", "--port", str(port), cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == (
        f"batchframe: Port {port} is in use. Choose another with --port, or leave it out for a "
        "free one.\n"
    )


def test_a_directory_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    ended = run("serve", "--directory", "file", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("batchframe: The server cannot start: ")
    assert ended.stderr.count("\n") == 1


def test_serve_tells_of_an_upstream_that_is_not_there_and_serves(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    options = ("--upstream", address, "--concurrency", "3")
    with serving(*options, cwd=tmp_path) as (process, base_url):
        warning = process.stderr.readline()
        assert warning.startswith(f"batchframe: Nothing answers at {address} (ConnectError: ")
        assert warning.endswith("). Batches are taken all the same, and their rows wait.\n")
        with openai.OpenAI(base_url=base_url, api_key="anything") as client:
            assert client.batches.list().data == []
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()
    assert f"answered by the server at {address}." in out


def test_serve_lets_go_wrong_what_is_asked_for(tmp_path):
    options = ("--fault", "error-on-upload:2", "--fault", "files.list=error-before:418@2")
    with (
        serving(*options, cwd=tmp_path) as (_, base_url),
        openai.OpenAI(base_url=base_url, api_key="anything", max_retries=0) as client,
    ):
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                client.files.create(file=("rows.jsonl", b"{}"), purpose="batch")
        file = client.files.create(file=("rows.jsonl", b"{}"), purpose="batch")
        assert [listed.id for listed in client.files.list()] == [file.id]
        with pytest.raises(openai.APIStatusError):
            client.files.list()


def test_serve_lets_in_who_has_the_token(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "BATCH_TOKEN", "sesame-7")
    options = ("--host", "0.0.0.0", "--token-env", "BATCH_TOKEN")  # noqa: S104 - that is tested
    with serving(*options, cwd=tmp_path) as (process, base_url):
        with openai.OpenAI(base_url=base_url, api_key="sesame-7") as client:
            assert client.batches.list().data == []
        with (
            openai.OpenAI(base_url=base_url, api_key="anything") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.batches.list()
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()
    assert '  export OPENAI_API_KEY="$BATCH_TOKEN"\n' in out
    assert "sesame-7" not in out


@pytest.mark.parametrize("secret", [None, "whsec_c2VjcmV0"])
def test_serve_tells_a_receiver_of_the_end_of_a_batch(secret, tmp_path, monkeypatch):
    options = []
    if secret:
        monkeypatch.setitem(ENVIRONMENT, "HOOK_SECRET", secret)
        options = ["--webhook-secret-env", "HOOK_SECRET"]
    with Receiver() as receiver:
        options += ["--webhook-url", receiver.url, "--stage-seconds", "0"]
        with (
            serving(*options, cwd=tmp_path) as (process, base_url),
            openai.OpenAI(base_url=base_url, api_key="anything") as client,
        ):
            batch = client.batches.create(
                input_file_id="file-none", endpoint="/v1/responses", completion_window="24h"
            )
            headers, body = receiver.next()
            process.send_signal(signal.SIGINT)
            shown = re.search(
                r"^Webhooks are signed with (\S+)$", process.stdout.read(), re.MULTILINE
            )
            assert (shown is None) == bool(secret)
            event = client.webhooks.unwrap(body, headers, secret=secret or shown[1])
    assert (event.type, event.data.id) == ("batch.failed", batch.id)


def test_the_help_of_serve_lists_every_named_fault():
    shown = CliRunner().invoke(app, ["serve", "--help"]).output
    listed = re.findall(r"^    ([a-z-]+) {2,}(.+)$", shown, re.MULTILINE)
    assert listed == [(name, mishap.meaning) for name, mishap in MISHAPS.items()]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--fault", "quue-full"], 2, "there is no fault 'quue-full'. Did you mean 'queue-full'?"),
        (["--fault", "output=redirect:x"], 2, "output has no fault 'redirect'"),
        (["--upstream", "http://example.com/v1"], 1, "is not https"),
        (["--upstream", "https://example.com", "--upstream-key-env", "NOT_SET"], 1, "NOT_SET"),
        (["--upstream", "https://example.com", "--model", "echo"], 2, "it is the upstream that"),
        (["--upstream-key-env", "HOME"], 2, "there is no --upstream"),
        (["--host", "::"], 2, "other machines may reach ::: give --token-env NAME"),
        (["--host", "box", "--token-env", "A_TOKEN"], 2, "'box' does not appear to be an IPv4"),
        (["--token-env", "NOT_SET"], 2, "the environment variable NOT_SET is not set"),
        (["--token-env", "NOT_A_TOKEN"], 2, "token must be of visible ASCII characters"),
        (["--webhook-url", "ftp://x"], 2, "must be of http or https"),
        (["--webhook-secret-env", "A_TOKEN"], 2, "there is no --webhook-url"),
        (["--webhook-url", "http://x", "--webhook-secret-env", "NOT_A_SECRET"], 2, "in base64"),
    ],
)
def test_what_serve_cannot_do_is_said_before_it_serves(options, code, message):
    environment = {"A_TOKEN": "a", "NOT_A_TOKEN": "two words", "NOT_A_SECRET": "whsec_?"}
    ended = CliRunner().invoke(app, ["serve", *options], env=environment)
    assert ended.exit_code == code
    assert message in " ".join(ended.output.replace("│", " ").split())
    assert "base_url" not in ended.output
    assert not [value for value in ("two words", "whsec_?") if value in ended.output]


def test_the_command_line_imports_no_heavy_library(tmp_path):
    heavy = {"numpy", "openai", "pandas", "polars", "pyarrow", "starlette", "tqdm", "xllamacpp"}
    code = f"import sys, batchframe.__main__; print({heavy!r} & sys.modules.keys())"
    ended = subprocess.run(
        [*PYTHON, "-c", code],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert ended.stdout == "set()\n"
