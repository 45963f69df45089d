"""The fixture `batchframe_server`, in runs of pytest of their own, as its users have it."""

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "batchframe.emulator.pytest_plugin"


@pytest.fixture
def run(pytester, monkeypatch):
    """Run the tests of a text; they must leave no warning."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def run(text, *options):
        pytester.makepyfile(text)
        pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers")
        return pytester.runpytest_subprocess("-p", PLUGIN, *options)

    return run


def test_a_test_gets_a_server_and_an_environment_that_leads_to_it(run):
    run("""
        import os
        import openai
        import pandas as pd
        import batchframe

        def test_client(batchframe_server):
            assert os.environ["OPENAI_BASE_URL"] == batchframe_server.base_url
            with openai.OpenAI() as client:
                client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
            assert batchframe_server.calls() == {"files.create": 1}

        def test_each_test_has_a_server_of_its_own(batchframe_server, tmp_path):
            assert batchframe_server.calls() == {}
            df = pd.DataFrame({"id": [1, 2], "prompt": ["one", "two"]})
            out = df.openai_batch.complete(
                "prompt", "id", model="gpt-4o-mini", checkpoint=tmp_path, progress=False
            )
            assert list(out["completion"]) == ["echo: one", "echo: two"]
            assert batchframe_server.billed().requests == 2

        def test_without_it_nothing_is_left_in_the_environment():
            assert "OPENAI_BASE_URL" not in os.environ
    """).assert_outcomes(passed=3)


def test_the_marker_says_what_the_server_is_like(run):
    run("""
        import openai
        import pytest
        from batchframe.emulator import Fault, JumpClock

        clock = JumpClock(start=1_800_000_000.0)

        @pytest.mark.batchframe_server(
            lambda body: "Yes.", clock=clock, stage_seconds=60, faults=[Fault.parse("queue-full")]
        )
        def test_it(batchframe_server):
            client = batchframe_server.client(max_retries=0)
            line = (
                b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": '
                b'{"model": "m", "messages": [{"role": "user", "content": "?"}]}}'
            )
            file = client.files.create(file=("a.jsonl", line), purpose="batch")
            assert file.created_at == 1_800_000_000
            order = dict(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            with pytest.raises(openai.BadRequestError, match="queued|enqueued|Enqueued"):
                client.batches.create(**order)
            batch = client.batches.create(**order)
            clock.advance(600)
            done = client.batches.retrieve(batch.id)
            assert b"Yes." in client.files.content(done.output_file_id).content
    """).assert_outcomes(passed=1)


def test_without_the_extra_only_a_test_that_asks_for_the_server_fails(run):
    outcome = run("""
        import sys

        sys.modules["uvicorn"] = None

        def test_other():
            pass

        def test_it(batchframe_server):
            pass
    """)

    outcome.assert_outcomes(passed=1, errors=1)
    outcome.stdout.fnmatch_lines(["*The local server needs an extra: pip install*emulator*"])


def test_the_plugin_imports_nothing_heavy_before_it_is_used():
    look = (
        f"import sys, {PLUGIN}; heavy = ('httpx2', 'msgspec', 'openai', 'pyarrow', 'starlette');"
        "sys.stdout.write(str([name for name in heavy if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)

    assert done.stdout == "[]"


def test_the_marker_and_the_fixture_explain_themselves(run):
    outcome = run("", "--markers")
    outcome.stdout.fnmatch_lines(["@pytest.mark.batchframe_server(model, [*][*]settings): *"])
    outcome = run("", "--fixtures")
    outcome.stdout.fnmatch_lines(["batchframe_server -- *", "*answered by an echo."])


def test_pytest_finds_the_plugin_wherever_the_package_is_installed():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ((name, value),) = declared["project"]["entry-points"]["pytest11"].items()

    plugin = EntryPoint(name, value, "pytest11").load()
    assert plugin.__name__ == PLUGIN
    assert hasattr(plugin, "batchframe_server")


def test_the_key_of_the_environment_is_the_token_of_the_marker(run):
    run("""
        import openai
        import pytest

        @pytest.mark.batchframe_server(token="sesame")
        def test_it(batchframe_server):
            with openai.OpenAI() as client:
                assert client.files.list().data == []
    """).assert_outcomes(passed=1)
