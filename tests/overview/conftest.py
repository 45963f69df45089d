"""Runs on a server and a clock that jumps, which leave a directory to look at."""

from contextlib import suppress

import pyarrow as pa
import pytest

from batchframe.checkpoint import Checkpoint
from batchframe.client import Provider
from batchframe.core.requests import Rows
from batchframe.core.shards import Limits
from batchframe.core.spec import Spec
from batchframe.emulator import JumpClock, LocalServer
from batchframe.engine import Engine
from batchframe.errors import RunTimeoutError
from batchframe.jobs import Submission
from batchframe.rounds import Options
from batchframe.running import run_rows
from batchframe.storage import Storage
from tests.overview.answers import answer


@pytest.fixture
def clock():
    return JumpClock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint"


@pytest.fixture
def serve(clock):
    """A server on the clock: `with serve(model, stage_seconds=60) as server`."""

    def serve_it(model=answer, **settings):
        return LocalServer(model, clock=clock, **{"stage_seconds": 60, **settings})

    return serve_it


@pytest.fixture
def run(clock, path):
    """Run rows {id: prompt} through a server, as far as `timeout` lets it."""

    def run_them(server, rows, *, limits=None, model="gpt-4o-mini", spec=None, **options):
        provider = Provider(server.client())
        ids = list(rows)
        with suppress(RunTimeoutError):
            run_rows(
                Rows(ids=pa.array(ids), prompts=pa.array(list(rows.values()), pa.string())),
                spec or Spec(model=model, account=provider.account),
                Submission(
                    provider=provider,
                    limits=limits or Limits(),
                    completion_window="24h",
                    poll_interval=None,
                    ask_if_unknown=False,
                    delete_remote=False,
                ),
                path,
                options=Options(**{"progress": False, "max_retries": 0, **options}),
                engine=Engine(clock),
            )

    return run_them


@pytest.fixture
def read(clock, path):
    """The checkpoint as another process reads it."""
    return lambda storage=None: Checkpoint.read(path, storage or Storage(), clock)


@pytest.fixture
def ask():
    """Let a checkpoint that was read know how its live batches are doing."""

    def ask_the_server(server, checkpoint):
        from batchframe.core.batches import Live

        for number, shard in checkpoint.shards.items():
            if isinstance(shard.state, Live):
                provider = Provider(server.client())
                checkpoint.observe(number, provider.retrieve(shard.state.batch.batch_id))

    return ask_the_server
