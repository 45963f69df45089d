"""What people read: texts that are safe to show, times that are easy to take in."""

import math

import pytest

from batchframe.core.texts import dollars, duration, printable


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("plain", None, "plain"),
        ("two\nlines\tand  gaps", None, "two lines and gaps"),
        ("\x1b[31mred\x1b[0m\x07", None, "[31mred [0m"),
        ("title\x1b]0;owned\x07!", None, "title ]0;owned !"),
        ("csi \x9b2J", None, "csi 2J"),
        ("abc\u202edcba", None, "abc dcba"),
        ("half \ud83d a smile", None, "half a smile"),
        ("plain, and näïve 文字", None, "plain, and näïve 文字"),
        ("exactly10!", 10, "exactly10!"),
        ("one more 11", 10, "one more\u2026"),
        ("", 5, ""),
    ],
)
def test_a_text_becomes_one_line_that_nothing_obeys(text, limit, shown):
    assert printable(text, limit) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-3, "0 s"),
        (0.2, "1 s"),
        (59, "59 s"),
        (60, "1 min"),
        (61, "2 min"),
        (3599, "1 h"),
        (12_000, "3 h 20 min"),
        (172_800, "2 d"),
        (187_000, "2 d 4 h"),
    ],
)
def test_a_time_is_told_in_its_two_largest_units(seconds, shown):
    assert duration(seconds) == shown


def test_sums_that_differ_in_their_last_bit_read_the_same():
    cost = 0.000405
    other = math.nextafter(cost, 1)
    assert f"{cost:.5f}" != f"{other:.5f}"
    assert dollars(cost) == dollars(other) == "$0.00040"
