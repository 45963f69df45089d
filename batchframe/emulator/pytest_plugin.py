"""The pytest fixture `batchframe_server`: a fresh local server for each test that asks for it.

pytest loads this module at its start wherever batchframe is installed, so nothing of the server is
imported before a test wants one.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import LocalServer

__all__ = ["batchframe_server", "pytest_configure"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that configures the fixture."""
    config.addinivalue_line(
        "markers",
        "batchframe_server(model, **settings): what the fixture of this name starts: the arguments "
        'of batchframe.emulator.LocalServer, as in model="echo", faults=["queue-full:2"]',
    )


@pytest.fixture
def batchframe_server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator["LocalServer"]:
    """A local server of the OpenAI Files and Batches API, answered by an echo.

    OPENAI_BASE_URL and OPENAI_API_KEY lead there while the test runs. The marker
    `@pytest.mark.batchframe_server(...)` takes what LocalServer takes.
    """
    from .testing import LocalServer

    marker = request.node.get_closest_marker("batchframe_server")
    arguments = (marker.args, marker.kwargs) if marker is not None else ((), {})
    with LocalServer(*arguments[0], **arguments[1]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", arguments[1].get("token") or "sk-local")
        yield server
