"""Values -> words for people: texts that are safe to show, times and amounts in few digits.

What a provider or a user wrote is untrusted: nothing of it may act on a terminal or a page.
"""

import math

__all__ = ["dollars", "duration", "printable"]


def printable(text: str, limit: int | None = None) -> str:
    """Text on one line, without what a terminal would obey: escapes, controls, directions.

    Args:
        text: Any text.
        limit: The most characters; a longer text ends in an ellipsis. None: no limit.
    """
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if limit is None or len(words) <= limit:
        return words
    return words[: limit - 1].rstrip() + "\u2026"


def dollars(amount: float) -> str:
    """An amount in print: two digits that count, and cents where it is more."""
    # Sums in another order differ in their last bit, and are to read the same all the same.
    amount = round(amount, 12)
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.{1 - math.floor(math.log10(amount))}f}"


def duration(seconds: float) -> str:
    """A time in its two largest units, rounded up: "40 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 60:
        return f"{math.ceil(max(0.0, seconds))} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, rest = divmod(math.ceil(minutes / 60), 24)
    return f"{days} d {rest} h" if rest else f"{days} d"
