"""Tokens and dollars as people read them: a table in print, in a notebook, or as a frame."""

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
        # Between two dollar signs notebooks see a formula, if they are not told.
        ignored = "tex2jax_ignore mathjax_ignore"
        return f"<div class='{ignored}'>{self._pretty().get_html_string()}{notes}</div>"

    def _totals(self) -> pa.Table:
        return self.table.filter(pc.equal(self.table["category"], TOTAL))

    def _sum(self, name: str) -> float | None:
        column = self._totals()[name]
        return None if column.null_count else float(pc.sum(column).as_py() or 0.0)

    def _pretty(self) -> Any:
        from prettytable import PrettyTable

        pretty = PrettyTable(["Model", "Category", "Tokens", "Price"])
        pretty.align.update({"Model": "l", "Category": "l", "Tokens": "r", "Price": "r"})
        for row in self.table.to_pylist():
            category, is_total = row["category"], row["category"] == TOTAL
            words = f"  {category}" if CATEGORIES.get(category) else category.capitalize()
            price = _shown(row["cost_usd"], self.digits)
            model = row["model"] if category == "prompt" else ""
            pretty.add_row([model, words, f"{row['tokens']:,}", price], divider=is_total)
        return pretty

    def _notes(self) -> list[str]:
        n_requests = pc.sum(self._totals()["requests"]).as_py() or 0
        saved = self.saved_usd
        notes = [
            f"{n_requests:,} requests, {_shown(self.cost_usd, self.digits)}"
            + ("" if saved is None else f"; {_shown(saved, self.digits)} saved by batches")
        ]
        notes += [
            f"{one.batch_id}: its rows add up to {_tokens(one.rows)}, it says {_tokens(one.batch)}"
            for one in self.differences
        ]
        return notes


def _shown(dollars: float | None, digits: int) -> str:
    return "unknown" if dollars is None else f"${dollars:,.{digits}f}"


def _tokens(usage: Tokens) -> str:
    return f"{usage.input_tokens:,} input and {usage.output_tokens:,} output tokens"
