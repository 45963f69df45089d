"""The README is true: its Python runs as written, and its tables name what there is."""

import re
from pathlib import Path

import pytest

from batchframe.core.columns import column_names
from batchframe.core.dialects import DIALECTS
from batchframe.core.statuses import Status
from batchframe.emulator import LocalServer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_its_python_runs_as_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    monkeypatch.chdir(tmp_path)
    names, billed = {}, []
    with LocalServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "anything")
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"README.md, block {number}", "exec"), names)  # noqa: S102
            billed.append(server.billed().requests)
        names["test_colours"](tmp_path / "their-test")

    # Two rows; two that have a prompt; two with a schema; one new row; two in a checkpoint of their
    # own, and none when that is opened; two with a limit of tokens;
    # then a message in a list.
    assert billed == [2, 4, 6, 7, 9, 11, 11, 11, 12]
    out, french = names["out"], names["french"]
    assert list(out["id"]) == ["a", "b", "c"]
    assert list(out["completion"]) == [f"echo: {prompt}" for prompt in out["prompt"]]
    assert list(french["french"]) == ["echo: tree", "echo: house", None]
    assert list(french["french_status"]) == ["ok", "ok", "skipped"]
    printed = capsys.readouterr().out
    assert str(names["paid"]["completion_cost_usd"].sum()) in printed
    assert "Estimate for gpt-4o-mini" in printed
    assert "| gpt-4o-mini | Prompt " in printed
    assert "echo: Name a tree." in printed
    # The echo answers in the form that is asked for.
    assert list(names["typed"]["colour_status"]) == ["ok", "ok"]
    assert list(names["typed"]["colour_name"]) == ["echo: Name a colour.", "echo: Name a fruit."]
    assert str(names["typed"]["colour_warm"].dtype) == "boolean"
    assert "| Category   | Tokens |" in printed
    assert "There is no column 'promt' for prompt_col. Did you mean 'prompt'?" in printed
    assert (tmp_path / ".batchframe").is_dir()


def test_it_names_every_column():
    named = re.findall(r"`(completion\w*)`", README)
    assert set(named) == set(column_names("completion", True))


def test_it_names_every_status():
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|$", README, re.MULTILINE)
    assert rows == list(Status)


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_is_short_and_names_the_distribution():
    assert len(README.splitlines()) < 290
    assert "pip install batchframe" not in README
    assert "`openai-batchframe`" in README


def test_the_continuous_check_runs_its_test_command():
    (command,) = re.findall(r'^pip install "\.\[dev\]" && (.*)$', README, re.MULTILINE)
    check = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"step test {command} " in check
    assert 'install -q ".[dev]"' in check


def test_its_table_of_services_names_each_dialect():
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]*\|[^|]*\|[^|]*\|$", README, re.MULTILINE)
    assert sorted(rows) == sorted(DIALECTS)
