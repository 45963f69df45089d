"""Frames of each library, one server for all tests, and calls that leave traces to look at."""

from collections import Counter
from types import MappingProxyType

import pandas as pd
import polars as pl
import polars.testing
import pyarrow as pa
import pytest

import batchframe as bf
from batchframe.emulator import LocalServer

FLOATS, INTEGERS, TEXTS = "floats", "integers", "texts"


class Pandas:
    """pandas with its own dtypes."""

    #: The dtypes of new columns.
    dtypes = MappingProxyType({TEXTS: "str", INTEGERS: "Int64", FLOATS: "Float64"})

    def make(self, data):
        return pd.DataFrame(data)

    def types(self, frame):
        return {name: str(dtype) for name, dtype in frame.dtypes.items()}

    def values(self, frame, column):
        """A column as a list, with None where a value is missing."""
        return [None if pd.isna(value) else value for value in frame[column].tolist()]

    def copy(self, frame):
        return frame.copy(deep=True)

    def select(self, frame, columns):
        return frame[list(columns)]

    def rows(self, frame, positions):
        return frame.iloc[list(positions)]

    def concat(self, frame, other):
        return pd.concat([frame, other], ignore_index=True)

    def through_parquet(self, frame, path):
        frame.to_parquet(path)
        return pd.read_parquet(path)

    def assert_frame_equal(self, actual, expected):
        assert type(actual) is type(expected)
        pd.testing.assert_frame_equal(
            actual, expected, check_column_type=True, check_flags=True, check_freq=True
        )


class ArrowPandas(Pandas):
    """pandas with Arrow's dtypes."""

    dtypes = MappingProxyType(
        {TEXTS: "string[pyarrow]", INTEGERS: "int64[pyarrow]", FLOATS: "double[pyarrow]"}
    )

    def make(self, data):
        arrays = {name: pa.array(values) for name, values in data.items()}
        return pd.DataFrame(
            {
                name: pd.Series(array, dtype=pd.ArrowDtype(array.type))
                for name, array in arrays.items()
            }
        )

    def through_parquet(self, frame, path):
        frame.to_parquet(path)
        return pd.read_parquet(path, dtype_backend="pyarrow")


class Polars:
    """Polars."""

    dtypes = MappingProxyType({TEXTS: "String", INTEGERS: "Int64", FLOATS: "Float64"})

    def make(self, data):
        return pl.DataFrame(data)

    def types(self, frame):
        return {name: str(dtype) for name, dtype in frame.schema.items()}

    def values(self, frame, column):
        return frame[column].to_list()

    def copy(self, frame):
        return frame.clone()

    def select(self, frame, columns):
        return frame.select(list(columns))

    def rows(self, frame, positions):
        return frame[list(positions)]

    def concat(self, frame, other):
        return pl.concat([frame, other])

    def through_parquet(self, frame, path):
        frame.write_parquet(path)
        return pl.read_parquet(path)

    def assert_frame_equal(self, actual, expected):
        polars.testing.assert_frame_equal(actual, expected)


@pytest.fixture(
    params=[Pandas(), ArrowPandas(), Polars()], ids=["pandas", "pandas-arrow", "polars"]
)
def frames(request):
    """A frame library: makes, reads and compares frames."""
    return request.param


@pytest.fixture(scope="session")
def server():
    """A server whose model answers `echo: ` and the prompt."""
    with LocalServer(stage_seconds=0) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture
def calls(server):
    """The calls that reached the server in this test so far: {"batches.create": 1, ...}."""
    before = Counter(server.calls())
    return lambda: dict(Counter(server.calls()) - before)


@pytest.fixture
def paid(server):
    """How many requests the server has executed and billed in this test so far."""
    before = sum(server.executions().values())
    return lambda: sum(server.executions().values()) - before


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "checkpoint"


@pytest.fixture
def complete(client, checkpoint):
    """`bf.complete` on the server, quick and quiet."""

    def call(frame, /, prompt_col="prompt", id_col="id", **kwargs):
        settings = {
            "model": "gpt-4o-mini",
            "client": client,
            "checkpoint": checkpoint,
            "poll_interval": 0.01,
            "progress": False,
        }
        return bf.complete(frame, prompt_col, id_col, **settings | kwargs)

    return call
