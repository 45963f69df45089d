"""A client of the local server whose looks cost no time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchframe.emulator import LocalServer
from batchframe.openai_batch_api import OpenaiBatchAPI


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


@pytest.fixture
def client_of(tmp_path: Path) -> Callable[..., OpenaiBatchAPI]:
    """Make a client of a server; all of a test's clients share one checkpoint."""

    def make(server: LocalServer, **options: Any) -> OpenaiBatchAPI:
        return OpenaiBatchAPI(
            **{
                "client": server.client(),
                "req_cooldown": 0,
                "checkpoint": tmp_path / "checkpoint",
                **options,
            }
        )

    return make
