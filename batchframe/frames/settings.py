"""What a call says of its new columns, its rows, and how they are sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from batchframe.parameters import check_client, check_values

if TYPE_CHECKING:
    import openai

    from batchframe.core.dialects import Dialect
    from batchframe.core.rates import Prices
    from batchframe.core.shards import Limits

__all__ = ["Columns", "Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a call says of its new columns and its rows."""

    output: str
    details: bool
    nulls: str
    on_error: str
    max_error_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Columns):
    """The keywords of all functions that send; none is taken that does not fit."""

    checkpoint: str | Path | None
    dedupe: bool
    max_retries: int
    retry_failed: bool
    max_cost_usd: float | None
    prices: "Prices | None"
    limits: "Limits | None"
    completion_window: str
    poll_interval: float | None
    timeout: float | None
    on_unknown: str
    delete_remote: bool
    progress: bool
    client: "openai.OpenAI | None"
    dialect: "str | Dialect | None"

    @classmethod
    def of(cls, given: Mapping[str, Any], **fixed: Any) -> Self:
        """Take them out of a function's arguments, by name, and those that are `fixed` there."""
        values = {**given, **fixed}
        return cls(**{field.name: values[field.name] for field in fields_of(cls)})

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields_of(self)}
        check_client(values.pop("client"))
        check_values(**values)
