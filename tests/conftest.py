"""What holds for all tests: none depends on how fast the machine is, and workers keep apart.

Each worker of pytest-xdist has a core to itself. A test that runs a server and an engine has some
ten threads of which Python runs one at a time: handed to and fro between cores, they take twice as
long. Where processes are to race, `all_cores` lets them.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("batchframe", deadline=None)
settings.load_profile("batchframe")

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
#: The cores of this process's tests: all of them, unless it is a worker.
OWN = {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]} if WORKER and CORES else set(CORES)


def pytest_configure() -> None:
    _run_on(OWN)


@pytest.fixture(scope="module")
def all_cores() -> Iterator[None]:
    """The processes and threads that a module starts run on all cores, and so at the same time."""
    _run_on(set(CORES))
    yield
    _run_on(OWN)


def _run_on(cores: set[int]) -> None:
    # Threads and processes begin where the thread runs that starts them.
    if cores:
        os.sched_setaffinity(0, cores)
