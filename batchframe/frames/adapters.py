"""Which frame library handles a frame, and what the module of each offers."""

import sys
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from batchframe.errors import ParameterError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Adapter", "adapter_of", "values_of"]


class Adapter(Protocol):
    """What each frame library's module offers."""

    def labels(self, frame: Any) -> list[Hashable]: ...

    def index_names(self, frame: Any) -> list[Hashable]: ...

    def column(self, frame: Any, label: Hashable) -> "pa.Array": ...

    def lists(self, frame: Any, label: Hashable) -> list[Any] | None: ...

    def objects(self, frame: Any, label: Hashable) -> list[Any] | None: ...

    def new_labels(self, columns: "pa.Table") -> list[str]: ...

    def attach(self, frame: Any, columns: "pa.Table", *, like: Hashable) -> Any: ...

    def snapshot(self, frame: Any) -> Any: ...


def _class_of(library: str, name: str) -> Any:
    """A class of a library, or none at all: a frame's library is imported, and completely."""
    return getattr(sys.modules.get(library), name, ())


def adapter_of(frame: object) -> Adapter:
    if isinstance(frame, _class_of("pandas", "DataFrame")):
        from batchframe.frames import pandas as pandas_adapter

        return cast("Adapter", pandas_adapter)
    if isinstance(frame, _class_of("polars", "DataFrame")):
        from batchframe.frames import polars as polars_adapter

        return cast("Adapter", polars_adapter)
    if isinstance(frame, _class_of("pyarrow", "Table")):
        from batchframe.frames import arrow as arrow_adapter

        return cast("Adapter", arrow_adapter)
    hint = ""
    if type(frame).__name__ == "LazyFrame":
        hint = " Collect it first; lf.openai_batch.complete() takes it as it is."
    raise ParameterError(
        f"A {type(frame).__name__} was passed; complete() takes pandas and Polars DataFrames "
        f"and pyarrow Tables.{hint}"
    )


def values_of(adapter: Adapter, frame: Any, label: Hashable) -> Sequence[object]:
    """A column as Python values, each as it is; None where one is missing."""
    values = adapter.objects(frame, label)
    if values is None:
        values = adapter.lists(frame, label)
    return adapter.column(frame, label).to_pylist() if values is None else values
