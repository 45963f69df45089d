"""The page of the local server is true."""

import re
from pathlib import Path

from batchframe.emulator import LocalServer, Upstream
from batchframe.emulator.faults import MISHAPS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "batchframe" / "emulator" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_its_table_lists_every_named_fault():
    listed = re.findall(r"^\| `([a-z-]+)` \| (.+?) \| .+ \|$", PAGE, re.MULTILINE)
    assert listed == [(name, mishap.meaning) for name, mishap in MISHAPS.items()]


def test_its_first_block_starts_a_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)  # noqa: S102
    assert names["LocalServer"] is LocalServer
    assert names["Upstream"] is Upstream
    assert (tmp_path / "batches" / "store.sqlite").exists()


def test_its_test_passes(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(BLOCKS[1])
    plugin = "batchframe.emulator.pytest_plugin"
    outcome = pytester.runpytest_subprocess("-p", plugin)
    outcome.assert_outcomes(passed=1)
