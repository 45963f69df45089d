"""The survey works: here it is made at the local server, which is what we assume of the service."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from batchframe.clock import SystemClock
from batchframe.emulator import JumpClock, LocalServer
from tests.live.questions import QUESTIONS, asked
from tests.live.survey import Pending, Survey

ROOT = Path(__file__).parents[2]
#: Our server has no list of models: it answers for each.
DIFFERENT = {"no_model"}
#: What can only be answered once a batch has ended.
LATE = {
    *("duplicate", "mixed", "no_model", "all_refused", "clean", "row_refused", "usage", "range"),
    *("length", "cancel_ended", "partial", "pipeline", "no_file", "fence"),
}


def answer(body):
    if body.get("max_completion_tokens", 0) > 100_000:
        message = "max_completion_tokens is too large."
        return 400, {"error": {"message": message, "type": "invalid_request_error", "code": None}}
    return "yes"


@pytest.fixture
def clock():
    return JumpClock(SystemClock().now())


@pytest.fixture
def server(clock):
    with LocalServer(answer, clock=clock, stage_seconds=600) as running:
        yield running


def survey_at(server, directory, **more):
    settings = {"model": "gpt-4.1-nano", "max_usd": 0.01, **more}
    return Survey(server.client(), directory, **settings)


def ask_all(survey):
    """The answers that are there, by the questions' names."""
    found = {}
    for question in QUESTIONS:
        try:
            found[question.name] = asked(survey, question)
        except Pending:
            continue
    return found


def test_it_begins_goes_on_later_and_leaves_nothing_behind(server, clock, tmp_path):
    theirs = server.client()
    foreign = theirs.files.create(file=("theirs.jsonl", b'{"custom_id": "x"}\n'), purpose="batch")

    early = ask_all(survey_at(server, tmp_path))
    assert early.keys() == {question.name for question in QUESTIONS} - LATE
    created = server.calls()["batches.create"]

    # Another process, a day later: the shards of our own run need a call more to be collected.
    clock.advance(3_600)
    found = {}
    while len(found) < len(QUESTIONS):
        found = ask_all(survey_at(server, tmp_path))
    assert {name for name, (answered, _) in found.items() if not answered.holds} <= DIFFERENT
    for question in QUESTIONS:
        answered, line = found[question.name]
        pattern = rf"{re.escape(question.text)} .+ \(seen \d{{4}}-\d\d-\d\d, openai \S+\)"
        assert re.match(pattern, line)
        assert line.endswith("NOT AS ASSUMED") is not answered.holds
    # Nothing was made again, and no more was billed than is checked before.
    assert server.calls()["batches.create"] == created
    assert server.billed().requests <= 12

    survey = survey_at(server, tmp_path)
    survey.remove()
    assert [file.id for file in theirs.files.list()] == [foreign.id]
    assert {batch.status for batch in theirs.batches.list()} <= {"completed", "cancelled", "failed"}
    calls = server.calls()
    assert ask_all(survey_at(server, tmp_path)) == found
    assert server.calls() == calls


def test_the_commands_of_the_page_begin_and_give_up(server, tmp_path):
    environment = {
        **os.environ,
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": server.base_url,
        "BATCHFRAME_LIVE_DIR": str(tmp_path / "survey"),
    }

    def run(*arguments):
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    begun = run("pytest", "-m", "live", "-q", "tests/live")
    given_up = run("tests.live.survey")

    # One test begins all, and that of the removal waits for the last answer.
    n_late = len(LATE) + 1
    assert begun.returncode == 0, begun.stdout
    assert f"{len(QUESTIONS) + 2 - n_late} passed, {n_late} skipped" in begun.stdout
    assert "Is metadata kept, and shown in listings? kept by the create" in begun.stdout
    assert given_up.returncode == 0, given_up.stderr
    assert server.client().files.list().data == []
    assert {batch.status for batch in server.client().batches.list()} == {"cancelling"}


def test_a_survey_that_is_given_up_cancels_and_deletes_what_it_made(server, clock, tmp_path):
    theirs = server.client()
    foreign = theirs.files.create(file=("theirs.jsonl", b'{"custom_id": "x"}\n'), purpose="batch")
    ask_all(survey_at(server, tmp_path))

    removed = survey_at(server, tmp_path).remove()

    assert foreign.id not in removed
    assert {batch.status for batch in theirs.batches.list()} == {"cancelling"}
    assert [file.id for file in theirs.files.list()] == [foreign.id]
    clock.advance(3_600)
    assert server.billed().requests == 0


def test_a_batch_whose_run_died_is_not_made_again(server, tmp_path):
    survey = survey_at(server, tmp_path)
    file_id = survey.file("clean", [survey.line("a")])["id"]
    first = survey.create("clean", file_id)
    facts = tmp_path / "facts.json"
    text = facts.read_text()
    # As the file was before the create.
    facts.write_text(text[: text.index(',\n "batch clean"')] + "\n}")

    assert survey_at(server, tmp_path).create("clean", file_id)["id"] == first["id"]
    assert server.calls()["batches.create"] == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"max_usd": 1e-7}, "could cost .* Nothing was sent"),
        ({"model": "no-price"}, "The price of no-price is not known"),
    ],
)
def test_what_costs_more_than_is_allowed_is_not_begun(server, tmp_path, more, words):
    with pytest.raises(RuntimeError, match=words):
        survey_at(server, tmp_path, **more)
    assert server.calls() == {}


def test_the_page_has_the_questions():
    page = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \| .+ \|$", page, re.MULTILINE)
    assert rows[1:] == [(q.text, q.assumed, q.matters) for q in QUESTIONS]
