"""What is learned of a provider's queue: how many prompt tokens it takes, and how we guess them.

The limit stands on a page for people and in refusals, and nowhere in the API. It is taken from the
text of a refusal where that states it; else from what was live when the queue was full, and then it
grows with each batch that is taken. Tokens are guessed from bytes until usage tells them; what a
vocabulary counts in a sample holds in between.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from batchframe.core.spec import Account

__all__ = ["Queue", "queue_of"]

#: "Limit: 2,000,000 enqueued tokens." (openai-python issue 2084, 2025).
_STATED = re.compile(r"[Ll]imit:? ([1-9][\d,]*)")
#: Part of what was in a queue that was full which is taken for its limit, where it is not stated.
_CAUTION = 0.9
#: How a limit that is not stated grows with each batch that the queue takes.
_GROWTH = 1.05
#: How much more than usage so far a shard may use, so that ours is not the batch that is refused;
#: and how much more than a sample says (1.4% off in 95 of 100 samples, 2026-11).
_MARGIN, _SAMPLE_MARGIN = 1.02, 1.03


def queue_of(account: Account, model: str) -> tuple[str, ...]:
    """Names a queue: who pays, and for which model."""
    return (account.base_url, account.organization or "", account.project or "", model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One account's queue for one model."""

    #: Tokens that it takes, by the provider's count; None while that is not known.
    limit: float | None = None
    #: The provider stated the limit.
    is_stated: bool = False
    #: Tokens of answered prompts as they were guessed, and as they were.
    n_guessed: int = 0
    n_used: int = 0
    #: Tokens that a vocabulary counts in prompts, for each that is guessed; None where none did.
    counted: float | None = None

    def refused(self, messages: Iterable[str], *, n_live: int, n_shard: int) -> "Queue":
        """After a refusal of `n_shard` guessed tokens, while `n_live` of ours were in the queue."""
        stated = [found[1] for text in messages if (found := _STATED.search(text))]
        if stated:
            return replace(self, limit=float(stated[0].replace(",", "")), is_stated=True)
        if not n_live:  # others fill it, or the shard is too large: nobody knows yet
            return self
        limit = max(_CAUTION * (n_live + n_shard), n_live, n_shard) * self._ratio
        return replace(self, limit=limit if self.limit is None else min(limit, self.limit))

    def too_large(self, n_tokens: int) -> "Queue":
        """After `n_tokens`, guessed, did not fit again and again: half of them may."""
        limit = n_tokens * self._ratio / 2
        if self.limit is not None:
            limit = min(limit, self.limit)
        return replace(self, limit=max(1.0, limit), is_stated=False)

    def accepted(self) -> "Queue":
        """After the queue took a batch."""
        if self.limit is None or self.is_stated:
            return self
        return replace(self, limit=self.limit * _GROWTH)

    def used(self, n_guessed: int, n_used: int) -> "Queue":
        """After prompts were answered that were guessed to have so many tokens."""
        return replace(self, n_guessed=self.n_guessed + n_guessed, n_used=self.n_used + n_used)

    def sampled(self, ratio: float) -> "Queue":
        """After prompts were counted that have so many tokens for each that is guessed."""
        return replace(self, counted=ratio)

    def room(self, given: int | None) -> float | None:
        """Guessed tokens that fit into the empty queue; None where no limit is known.

        `given` is the limit as the user knows it, or None.
        """
        limits = [limit for limit in (given, self.limit) if limit is not None]
        return min(limits) / (self._ratio * self._margin) if limits else None

    @property
    def is_calibrated(self) -> bool:
        """True where more is known of our guesses than that they are guesses."""
        return self.counted is not None or bool(self.n_guessed and self.n_used)

    @property
    def _ratio(self) -> float:
        # Of nothing and of cached answers of no tokens, nothing is learned.
        if self.n_guessed and self.n_used:
            return self.n_used / self.n_guessed
        return self.counted or 1.0

    @property
    def _margin(self) -> float:
        if self.n_guessed and self.n_used:
            return _MARGIN
        return 1.0 if self.counted is None else _SAMPLE_MARGIN
