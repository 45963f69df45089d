"""A run tells where it stands: bars where people look, a line a minute where a log is kept."""

import io
import logging
import os
import re
import sys
import threading
from dataclasses import replace

import pytest

from batchframe.core.shards import Limits
from batchframe.emulator import Fault, JumpClock, LocalServer
from batchframe.progress import Lines, Tally, progress_for


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_in_a_terminal_three_bars_move(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress_for(clock) as bars:
        bars.show(Tally(total=2000, prepared=2000, sent=1200, done=0, n_live=2, note="waiting"))
        bars.show(Tally(total=2000, prepared=2000, sent=2000, done=2000, cost_usd=0.25))
    shown = re.sub(r"\d\d:\d\d", "00:00", terminal.getvalue())  # whatever time it took
    for words in (
        "Preparing  100%|##########| 2,000 of 2,000 rows, 00:00",
        "Sending     60%|######    | 1,200 of 2,000 rows, 00:00, waiting",
        "Processing   0%|          | 0 of 2,000 rows, 00:00, 2 batches live, $0.00 so far",
        "Sending    100%|##########| 2,000 of 2,000 rows, 00:00",
        "Processing 100%|##########| 2,000 of 2,000 rows, 00:00, $0.25",
    ):
        assert words in shown


def lines_of(terminal):
    """What stood in a line of the terminal, each time that it was drawn."""
    return [line for line in re.split(r"[\r\n]|\x1b\[A", terminal.getvalue()) if line.strip()]


@pytest.fixture
def narrow():
    """A terminal of 80 columns."""
    termios = pytest.importorskip("termios")
    ends = os.openpty()
    termios.tcsetwinsize(ends[1], (24, 80))
    terminal = Terminal()
    terminal.fileno = lambda: ends[1]
    yield terminal
    for end in ends:
        os.close(end)


def test_in_a_narrow_terminal_words_stand_below_the_bars(clock, narrow, monkeypatch):
    monkeypatch.setattr(sys, "stderr", narrow)
    note = "The upload of an input file failed: APIConnectionError; again in 16 s"
    waiting = Tally(total=100_000, prepared=100_000, sent=60_000, done=50_000, n_live=12, note=note)
    with progress_for(clock) as bars:
        bars.show(waiting)
        bars.show(replace(waiting, note=f"{note}, and {note}"))
        bars.show(replace(waiting, sent=100_000, done=100_000, note=""))
    shown = lines_of(narrow)

    # Nothing is cut in two, and what is left for a gauge shows something.
    assert max(map(len, shown)) <= 80
    assert "12 batches live, $0.00 so far, about 1 min left" in shown
    assert note in shown
    assert any(line.startswith(note[:60]) and line.endswith("...") for line in shown)
    assert all(line.count("|") == 2 for line in shown if "%" in line)
    assert min(len(line.split("|")[1]) for line in shown if "%" in line) >= 10
    # What fits stands beside its bar, and below it is nothing then.
    assert shown[-1].endswith("| 100,000 of 100,000 rows, 00:00, $0.00")


def test_what_is_logged_stands_above_the_bars(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    # As in a program that says nothing of logging; here pytest listens.
    monkeypatch.setattr(logging.getLogger("batchframe"), "propagate", False)
    log = logging.getLogger("batchframe.engine")
    with progress_for(clock) as bars:
        bars.show(Tally(total=10, prepared=10, sent=0, done=0))
        log.warning("shard %s: its batch is gone", 7)
        bars.show(Tally(total=10, prepared=10, sent=10, done=10))
    assert "batchframe: shard 7: its batch is gone\n" in terminal.getvalue()
    assert not logging.getLogger("batchframe").handlers


class Coloured(logging.StreamHandler):
    def format(self, record):
        assert self.stream.isatty()
        return super().format(record)


@pytest.mark.parametrize("kind", [logging.StreamHandler, Coloured])
def test_what_handlers_write_into_the_terminal_stands_above_the_bars(
    clock, narrow, monkeypatch, kind
):
    monkeypatch.setattr(sys, "stderr", narrow)
    handler = kind()  # as logging.basicConfig() makes it
    monkeypatch.setattr(logging.root, "handlers", [handler])
    tally = Tally(total=2000, prepared=2000, sent=1200, done=0, n_live=2)
    with progress_for(clock) as bars:
        bars.show(tally)
        logging.getLogger("another").warning("a line of a log")
        bars.show(replace(tally, done=2000))
    assert re.search(
        r"\r +\r(\x1b\[A)*a line of a log\n", narrow.getvalue()
    )  # where a bar was wiped away
    assert handler.stream is narrow


class Redirected(logging.StreamHandler):
    """Writes to what is the terminal in that moment, as the handler of Airflow does."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr


def test_a_handler_that_keeps_its_stream_does_not_stop_a_call(clock, narrow, monkeypatch):
    monkeypatch.setattr(sys, "stderr", narrow)
    handlers = [Redirected(), logging.StreamHandler()]
    monkeypatch.setattr(logging.root, "handlers", handlers)
    with progress_for(clock) as bars:
        bars.show(Tally(total=2000, prepared=2000, sent=1200, done=0, n_live=2))
        logging.getLogger("another").warning("a line of a log")
    assert narrow.getvalue().count("a line of a log\n") == 2
    assert handlers[1].stream is narrow


def test_a_refusal_is_a_warning_once_and_a_full_queue_is_none(run, clock, caplog):
    """The bars have them beside them; a line for each try would fill the terminal."""
    caplog.set_level(logging.INFO, logger="batchframe")
    with LocalServer(clock=clock) as server:
        server.inject(Fault("files.create", "error-before:503", times=3))
        server.inject(Fault("batches.create", "queue-full", times=2))
        run(server, {1: "question"})
    told = [(record.levelname, record.message) for record in caplog.records]
    refused = [level for level, message in told if "input file was refused" in message]
    full = [level for level, message in told if "the provider's queue is full" in message]
    assert (refused, full) == (["WARNING", "INFO", "INFO"], ["INFO", "INFO"])


class LongPauses(JumpClock):
    """A run that pauses finds all work done when it looks again."""

    def pause(self, seconds):
        for thread in threading.enumerate():
            if thread.name == "batchframe-engine":
                thread.join()


class TestOneLook:
    @pytest.fixture
    def clock(self):
        return LongPauses()

    def test_shows_what_a_run_has_cost(self, run, clock, monkeypatch):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        message = {"role": "assistant", "content": "answer"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 0, "completion_tokens": 1_000_000, "total_tokens": 1_000_000}
        body = {"model": "gpt-4o-mini", "choices": [choice], "usage": usage}
        with LocalServer(lambda _: (200, body), clock=clock) as server:
            run(server, {1: "question"}, progress=True)
        *_, last = re.findall(r"Processing 100%.*?(\$[\d.]+)", terminal.getvalue())
        assert last == "$0.30"  # half of 0.60 for a million tokens of answers


def test_a_log_has_one_line_a_minute(clock, capsys):
    lines = Lines(clock)
    tally = Tally(total=1000, prepared=1000, sent=600, done=300, n_live=3, cost_usd=0.25)
    for _ in range(10):
        lines.show(tally)
        clock.advance(20)
    shown = capsys.readouterr().err.splitlines()
    assert shown == [
        # After 60, 120 and 180 seconds: 700 rows are left, 2.33 times as many as were done.
        "batchframe: 300 of 1,000 rows done, 600 sent, 3 batches live, $0.25 so far, "
        f"about {left} min left"
        for left in (3, 5, 7)
    ]


def test_little_that_is_done_tells_nothing_of_the_rest(clock, capsys):
    lines = Lines(clock)
    tally = Tally(
        total=1000, prepared=1000, sent=1000, done=99, n_live=1, cost_usd=None, note="waiting"
    )
    lines.show(tally)
    clock.advance(60)
    lines.show(tally)
    assert capsys.readouterr().err == (
        "batchframe: 99 of 1,000 rows done, 1,000 sent, 1 batch live, "
        "a cost that is not known so far, waiting\n"
    )


def test_a_run_without_a_terminal_keeps_a_log(run, clock, capsys):
    rows = {row: f"question {row}" for row in range(20)}
    with LocalServer(clock=clock, stage_seconds=600) as server:
        run(server, rows, progress=True, limits=Limits(max_requests=10))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) > 3
    assert shown[0].startswith(
        "batchframe: 0 of 20 rows done, 20 sent, 2 batches live, $0.00 so far"
    )


def test_a_short_run_shows_nothing(run, server, capsys):
    run(server, {1: "question"}, progress=True)
    assert capsys.readouterr().err == ""
