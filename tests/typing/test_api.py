"""Type checkers see the public API as we mean it."""

import subprocess
import sys
from pathlib import Path

import pytest

API = Path(__file__).with_name("api.py")
ROOT = API.parents[2]

CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", str(API)],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(API)],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_statements_of_the_api_have_the_types_they_claim(checker: str) -> None:
    done = subprocess.run(
        CHECKERS[checker], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )

    assert done.returncode == 0, done.stdout + done.stderr
