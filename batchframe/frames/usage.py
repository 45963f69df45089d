"""Tokens and dollars as people read them: a table in print, in a notebook, or as a frame."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from batchframe.core.batches import Usage as Tokens
from batchframe.core.usage import CATEGORIES, TOTAL, Difference

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = ["Usage"]

_NAMES = ("Model", "Category", "Tokens", "Price")
#: How a notebook sets each column: words left, and numbers right. Long names of models are broken,
#: and what is a part of another category begins with spaces.
_STYLES = (
    "text-align:left;overflow-wrap:anywhere",
    "text-align:left;white-space:pre",
    "text-align:right",
    "text-align:right",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and dollars, by model and category; `print` it, or show it in a notebook."""

    #: `model`, `category`, `tokens`, `cost_usd`, `requests`, `standard_usd`: one row for each model
    #: and category, and one for its "total", which alone has requests and the standard price.
    #: "cached" and "cache writes" are parts of "prompt", and "reasoning" of "completion".
    table: pa.Table
    #: Batches that the provider counts otherwise.
    differences: tuple[Difference, ...] = ()
    #: Digits of dollars in print.
    digits: int = 6

    @property
    def cost_usd(self) -> float | None:
        """What all of it costs, in US dollars, or None where a price is unknown."""
        return self._sum("cost_usd")

    @property
    def saved_usd(self) -> float | None:
        """What the same would cost more outside of batches, or None where a price is unknown."""
        standard, cost = self._sum("standard_usd"), self.cost_usd
        return None if standard is None or cost is None else standard - cost

    def to_pandas(self) -> "pd.DataFrame":
        """The table as a pandas DataFrame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def to_polars(self) -> "pl.DataFrame":
        """The table as a Polars DataFrame."""
        import polars as pl

        return pl.DataFrame(self.table)

    def __repr__(self) -> str:
        """A table for a terminal."""
        return "\n".join([str(self._pretty()), *self._notes()])

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self._notes())
        head = "".join(
            f"<th style='{style}'>{name}</th>" for name, style in zip(_NAMES, _STYLES, strict=True)
        )
        body = "".join(
            f"<tr>{''.join(map(_cell, cells, _STYLES))}</tr>" for cells, _ in self._lines()
        )
        # Between two dollar signs notebooks see a formula, if they are not told.
        ignored = "tex2jax_ignore mathjax_ignore"
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<div class='{ignored}'>{table}{notes}</div>"

    def _totals(self) -> pa.Table:
        return self.table.filter(pc.equal(self.table["category"], TOTAL))

    def _sum(self, name: str) -> float | None:
        column = self._totals()[name]
        return None if column.null_count else float(pc.sum(column).as_py() or 0.0)

    def _pretty(self) -> Any:
        from prettytable import PrettyTable

        pretty = PrettyTable(_NAMES)
        pretty.align.update({"Model": "l", "Category": "l", "Tokens": "r", "Price": "r"})
        for cells, is_total in self._lines():
            pretty.add_row(cells, divider=is_total)
        return pretty

    def _lines(self) -> Iterator[tuple[list[str], bool]]:
        """The cells of each row, and whether it is a total."""
        for row in self.table.to_pylist():
            category = row["category"]
            words = f"  {category}" if CATEGORIES.get(category) else category.capitalize()
            model = row["model"] if category == "prompt" else ""
            price = _shown(row["cost_usd"], self.digits)
            yield [model, words, f"{row['tokens']:,}", price], category == TOTAL

    def _notes(self) -> list[str]:
        n_requests = pc.sum(self._totals()["requests"]).as_py() or 0
        saved = self.saved_usd
        notes = [
            f"{_requests(n_requests)}, {_shown(self.cost_usd, self.digits)}"
            + ("" if saved is None else f"; {_shown(saved, self.digits)} saved by batches")
        ]
        notes += [
            f"{one.batch_id}: its rows add up to {_tokens(one.rows)}, it says {_tokens(one.batch)}"
            for one in self.differences
        ]
        return notes


def _cell(text: str, style: str) -> str:
    return f"<td style='{style}'>{escape(text)}</td>"


def _requests(n: int) -> str:
    return "1 request" if n == 1 else f"{n:,} requests"


def _shown(dollars: float | None, digits: int) -> str:
    return "unknown" if dollars is None else f"${dollars:,.{digits}f}"


def _tokens(usage: Tokens) -> str:
    return f"{usage.input_tokens:,} input and {usage.output_tokens:,} output tokens"
