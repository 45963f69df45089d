"""A million requests in 50 batches through a local server that is killed in the middle, twice.

    python -m pytest -m benchmark -s tests/benchmarks/test_server.py

All batches are live at once. What is checked: each row is answered once, with its own answer, and
counted once; and the memory of the server, which must not grow with the rows but by some bytes.
"""

import time

import pytest

from tests.emulator.many import through_kills

pytestmark = pytest.mark.benchmark

#: Memory that a server may have at its peak, in bytes.
BOUND = 128 << 20


def test_a_million_requests_through_kills(tmp_path):
    print(f"\n{'rows':>10} {'batches':>8} {'wall s':>8}   peak MB of each server")
    for n_rows in (200, 2_000, 20_000):
        folder = tmp_path / str(n_rows)
        folder.mkdir()
        began = time.perf_counter()
        peaks = through_kills(
            folder, n_batches=50, n_rows=n_rows, row_seconds=40 / n_rows, kill_at=(0.33, 0.67)
        )
        wall = time.perf_counter() - began
        shown = " ".join(f"{peak / (1 << 20):8.0f}" for peak in peaks)
        print(f"{50 * n_rows:>10,} {50:>8} {wall:>8.1f}   {shown}")
    assert 0 < max(peaks) < BOUND
