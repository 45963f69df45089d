"""What a call's rows have cost and may still cost, and whether `max_cost_usd` has room for more.

The bound is hard: a shard is sent only if all that is spent, all that is live and the shard itself,
each at the most that it can cost, stay within it. So does an answer that came back and whose cost
nobody knows. What the rows of the frame cost in earlier calls counts as well, so that the same call
again does not spend the same sum again.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from batchframe.checkpoint import Checkpoint
from batchframe.clock import Clock
from batchframe.core.bounds import beyond, media_beyond
from batchframe.core.estimates import Known, price_takes, takes
from batchframe.core.rates import Prices
from batchframe.core.requests import RowKeys, Rows
from batchframe.core.spec import Spec
from batchframe.core.texts import dollars
from batchframe.errors import BudgetExceededError, ParameterError
from batchframe.jobs import Job
from batchframe.plans import most_usd

__all__ = ["Budget", "check_bounded"]


def check_bounded(
    rows: Rows,
    row_keys: RowKeys,
    spec: Spec,
    limit: float | None,
    *,
    prices: Prices | None,
    price_list: str | None,
    now: float,
) -> None:
    """Raise ParameterError if there is a limit, and nothing bounds what the rows cost."""
    if limit is None:
        return
    what = _unbounded(rows, spec)
    if what is not None:
        raise ParameterError(
            f"max_cost_usd={limit} cannot be kept: nothing bounds what {what} may cost. Nothing "
            "was sent. Leave max_cost_usd out, or what has no bound."
        )
    asked = pc.indices_nonzero(pc.is_valid(rows.prompts))
    new = rows.take(asked)
    taken = takes(new, row_keys.n_tokens.take(asked), spec, Known())
    if taken.output_high is None:
        raise ParameterError(
            f"max_cost_usd={limit} needs a limit of each answer, or nothing bounds what an answer "
            "costs. Nothing was sent. Set max_completion_tokens=, from 1 upwards (of responses: "
            "max_output_tokens=; of completions: max_tokens=)."
        )
    at = datetime.fromtimestamp(now, UTC)
    cost, _ = price_takes(taken, new, spec, at=at, prices=prices, price_list=price_list)
    if cost is None:
        raise ParameterError(
            f"max_cost_usd={limit} needs prices, and that of a model is not known. Nothing was "
            "sent. Give what you pay, in dollars per million tokens: "
            "prices={'model': bf.Rates(input=..., output=...)}."
        )


def _unbounded(rows: Rows, spec: Spec) -> str | None:
    """What nothing bounds the cost of: a field of all rows, or what the first row has."""
    shared = beyond(spec.params, spec.endpoint)
    if shared is not None:
        return shared
    kind = rows.prompts.type
    has_lists = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if rows.fields is None and not has_lists:
        return None
    for row in pc.indices_nonzero(pc.is_valid(rows.prompts)).to_pylist():
        own = None if rows.fields is None else rows.fields[row].as_py()
        what = None if own is None else beyond(msgspec.json.decode(own), spec.endpoint)
        prompt = rows.prompts[row].as_py()
        if what is None and isinstance(prompt, bytes):
            what = media_beyond(prompt)
        if what is not None:
            return f"{what} of row {row}, id {rows.ids[row].as_py()!r},"
    return None


@dataclass(slots=True)
class Budget:
    """The account of one call; without a limit it says yes to everything."""

    limit: float | None
    checkpoint: Checkpoint
    prices: Prices | None
    #: Whose published rates hold where `prices` has none.
    price_list: str | None
    clock: Clock
    #: What the frame's rows had cost before, and the shards that this was read of.
    _before: float = 0.0
    _read: frozenset[int] = frozenset()
    #: What each shard has cost that was collected since.
    _spent: dict[int, float] = field(default_factory=dict)
    #: The most that each request of a shard can cost, and all of them together.
    _most: dict[int, tuple[pa.DoubleArray, float]] = field(default_factory=dict)

    def open(
        self, keys: pa.FixedSizeBinaryArray, new: Rows, row_keys: RowKeys, positions: pa.Array
    ) -> None:
        """Take up what was spent; `new` are the rows to be sent, at `positions` of the frame.

        Raises BudgetExceededError if the least that they cost is too much; nothing was sent.
        """
        if self.limit is None:
            return
        self._before = self._of_earlier_calls(keys)
        if not len(new):
            return
        if math.isinf(self._before):
            raise self._unbounded("Nothing was sent.")
        taken = takes(new, row_keys.n_tokens.take(positions), self.checkpoint.spec, Known())
        at = datetime.fromtimestamp(self.clock.now(), UTC)
        known: dict[str, Any] = {"prices": self.prices, "price_list": self.price_list}
        cost, _ = price_takes(taken, new, self.checkpoint.spec, at=at, **known)
        if cost is not None and self._before + cost.low > self.limit:
            raise BudgetExceededError(
                f"max_cost_usd={self.limit} is too little: {self._paid()}, and the {len(new):,} "
                f"rows to be sent cost {dollars(cost.low)} at least. Nothing was sent. Raise it, "
                "or send fewer rows."
            )

    def resume(self) -> None:
        """Take up what was spent on all rows of the checkpoint."""
        if self.limit is not None:
            self._before = self._of_earlier_calls(None)

    def _of_earlier_calls(self, keys: pa.FixedSizeBinaryArray | None) -> float:
        """What all tries of the requests with these keys, or of all, have cost."""
        known = [
            pa.table({"row_key": pa.array([], pa.binary(16)), "usd": pa.array([], pa.float64())})
        ]
        numbers = self.checkpoint.collected()
        self._read = frozenset(numbers)
        for number in numbers:
            columns = ("row_key", "cost_usd")
            results = self.checkpoint.results(columns, prices=self.prices, numbers=[number])
            usd = self._bounded(number, results)
            known.append(pa.table({"row_key": results["row_key"].combine_chunks(), "usd": usd}))
        table = pa.concat_tables(known)
        if keys is not None:
            table = table.filter(pc.is_in(table["row_key"], value_set=keys))
        return pc.sum(table["usd"]).as_py() or 0.0

    def _bounded(self, number: int, results: pa.Table) -> pa.DoubleArray:
        """What each result of a shard has cost; the most that it can, where nobody knows."""
        cost = results["cost_usd"].combine_chunks()
        if cost.null_count:
            self._most_of(number)
            cost = pc.coalesce(cost, self._most[number][0])
        return cost

    def has_room(self, number: int, jobs: Iterable[Job]) -> bool:
        """True if the shard can be sent beside the jobs that were not taken note of yet."""
        if self.limit is None:
            return True
        live = (job.number for job in jobs if job.number not in self._spent)
        return self._total() + sum(map(self._most_of, live)) + self._most_of(number) <= self.limit

    def expect(self, number: int) -> None:
        """Take note of the most that a shard can cost, as long as its requests are there."""
        if self.limit is not None:
            self._most_of(number)

    def spend(self, number: int, results: pa.Table) -> None:
        """Take note of what a shard has cost."""
        if self.limit is None:
            return
        # One that was watched already, and was collected before its costs were read, counts once.
        is_new = number not in self._read
        usd = pc.sum(self._bounded(number, results)).as_py() if is_new else None
        self._spent[number] = usd or 0.0

    def exceeded(self, number: int, n_rows: int) -> BudgetExceededError:
        """The error for a shard that has no room, when nothing is live any more."""
        rows = "1 row was" if n_rows == 1 else f"{n_rows:,} rows were"
        if math.isinf(self._total()):
            return self._unbounded(f"{rows} not sent, and cost nothing.")
        n_next = self.checkpoint.shards[number].frozen.n_requests
        most = self._most_of(number)
        could = "any sum" if math.isinf(most) else f"up to {dollars(most)}"
        return BudgetExceededError(
            f"max_cost_usd={self.limit} has no room for more: {self._paid()}, and the next batch "
            f"of {n_next:,} could cost {could}. {rows} not sent, "
            "and cost nothing. What was answered is in the checkpoint. To go on, raise "
            "max_cost_usd and run the same call again; smaller batches, "
            "limits=bf.Limits(max_requests=...), or a lower limit of tokens come closer to it."
        )

    def _unbounded(self, unsent: str) -> BudgetExceededError:
        """The error where rows may have cost anything, by what is known of them still."""
        return BudgetExceededError(
            f"max_cost_usd={self.limit} cannot be kept: nobody knows what rows without an answer "
            "have cost, each had a limit of tokens of its own, and the lines that named these are "
            f"gone. {unsent} To go on, leave max_cost_usd out: what was answered is in the "
            "checkpoint, and is not paid again."
        )

    def _paid(self) -> str:
        return f"the rows have cost {dollars(self._total())} so far"

    def _total(self) -> float:
        return self._before + sum(self._spent.values())

    def _most_of(self, number: int) -> float:
        if number not in self._most:
            most = most_usd(
                self.checkpoint,
                number,
                prices=self.prices,
                price_list=self.price_list,
                now=self.clock.now(),
            )
            self._most[number] = most, pc.sum(most).as_py() or 0.0
        return self._most[number][1]
