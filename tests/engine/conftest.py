"""A run against the local server, on a clock that both share and that jumps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
import pytest

from batchframe.client import Provider
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import JumpClock, LocalServer
from batchframe.engine import Engine
from batchframe.jobs import Submission
from batchframe.rounds import Options
from batchframe.running import run_rows
from batchframe.storage import Storage


@pytest.fixture
def clock() -> JumpClock:
    return JumpClock()


@pytest.fixture
def engine(clock: JumpClock) -> Engine:
    return Engine(clock)


@pytest.fixture
def server(clock: JumpClock) -> Iterator[LocalServer]:
    with LocalServer(clock=clock) as running:
        yield running


Prompts = dict[int, str | None]


@pytest.fixture
def run(engine: Engine, tmp_path: Path) -> Callable[..., list[dict[str, Any] | None]]:
    """Run rows {id: prompt} through a server; gives one result, as a dict, per row, in order."""

    def run_them(
        server: LocalServer,
        rows: Prompts,
        *,
        limits: Limits | None = None,
        model: str = "gpt-4o-mini",
        storage: Storage | None = None,
        ask_if_unknown: bool = False,
        delete_remote: bool = False,
        client: openai.OpenAI | None = None,
        **options: Any,
    ) -> list[dict[str, Any] | None]:
        provider = Provider(client or server.client())
        answers = run_rows(
            Rows(
                ids=pa.array(list(rows), pa.int64()),
                prompts=pa.array(list(rows.values()), pa.string()),
            ),
            Spec(model=model, account=provider.account),
            Submission(
                provider=provider,
                limits=limits or Limits(),
                completion_window="24h",
                poll_interval=None,
                ask_if_unknown=ask_if_unknown,
                delete_remote=delete_remote,
            ),
            tmp_path / "checkpoint",
            options=Options(**{"progress": False, **options}),
            engine=engine,
            storage=storage,
        )
        results = answers.results.to_pylist()
        return [
            results[position] if position is not None else None
            for position in answers.positions.to_pylist()
        ]

    return run_them
