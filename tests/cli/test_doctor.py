"""`doctor`, and what all commands say of themselves."""

import json
import re
import socket
from pathlib import Path

import pytest
import typer.main

from batchframe.cli import Exit, app
from batchframe.emulator.faults import Fault

ROOT = Path(__file__).parents[2]
COMMANDS = typer.main.get_command(app).commands


def findings(invoke, *arguments):
    ended = invoke("doctor", "--json", *arguments)
    assert ended.stderr == ""
    return ended.exit_code, {
        one["check"]: one["message"] for one in json.loads(ended.stdout) if not one["is_ok"]
    }


def test_all_is_well(terminal):
    ended = terminal.run("doctor")

    assert (ended.returncode, ended.stderr) == (0, b"")
    lines = ended.stdout.decode().splitlines()
    assert [line[:15] for line in lines] == [
        *("ok     versions", "ok     key     ", "ok     address ", "ok     access  "),
        *("ok     clock   ", "ok     disk    ", "ok     limits  "),
    ]
    assert "sk-test" not in ended.stdout.decode()


def test_no_key(invoke, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")

    code, wrong = findings(invoke)

    assert (code, list(wrong)) == (1, ["key"])
    assert wrong["key"] == "there is none. Set it: export OPENAI_API_KEY=..."


def test_a_key_that_is_none(invoke, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-se cret")

    code, wrong = findings(invoke)

    assert (code, list(wrong)) == (1, ["key"])
    assert "cret" not in wrong["key"]


def test_an_address_where_nothing_answers(invoke, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")

    code, wrong = findings(invoke)

    assert (code, list(wrong)) == (1, ["address"])
    assert f"http://127.0.0.1:{port}/v1/ does not answer as it should" in wrong["address"]


def test_an_address_in_the_clear(invoke, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://example.com/v1")

    code, wrong = findings(invoke)

    assert (code, list(wrong)) == (1, ["address"])
    assert "is not https" in wrong["address"]


def test_an_address_that_knows_no_batches(invoke, monkeypatch, server):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.base_url}/other")

    code, wrong = findings(invoke)

    assert (code, list(wrong)) == (1, ["address"])


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_the_address_refuses(status, invoke, server):
    server.inject(Fault.parse(f"batches.list=error-before:{status}*all"))

    code, wrong = findings(invoke)

    assert (code, list(wrong)) == (1, ["access"])
    assert "refuses it. Take a key of a project" in wrong["access"]


def test_a_directory_where_nothing_can_be_written(invoke):
    code, wrong = findings(invoke, "/proc")

    assert (code, list(wrong)) == (1, ["disk"])
    assert wrong["disk"].startswith("/proc cannot keep a checkpoint: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_an_example_and_stands_on_the_page(name, invoke):
    shown = invoke(name, "--help")

    assert shown.exit_code == 0
    assert re.search(rf"^ +batchframe {name}\b", shown.output, re.MULTILINE)
    assert f"`batchframe {name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_broken_between_two_lines_of_the_help(name, invoke):
    assert re.findall(r"--[\w-]*-$", invoke(name, "--help").output, re.MULTILINE) == []


def test_the_json_of_a_command_is_documented(invoke):
    with_json = [name for name in COMMANDS if "--json " in invoke(name, "--help").output]

    assert set(with_json) == {
        *("complete", "estimate", "status", "wait", "cancel", "usage", "runs", "doctor")
    }
    for name in with_json:
        assert re.search(r"--json prints", " ".join(invoke(name, "--help").output.split())), name


def test_the_exit_codes_are_the_same_in_the_help_and_on_the_page(invoke):
    shown = re.findall(r"^    (\d+) +\w", invoke("--help").output, re.MULTILINE)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)

    assert shown == table == [str(code.value) for code in Exit]
