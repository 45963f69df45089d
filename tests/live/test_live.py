"""The survey at the real service: `OPENAI_API_KEY=... python -m pytest -m live`, again and again.

It costs less than a hundredth of a cent; README.md says more. An answer that is not the one that we
assume fails its test, and its line says what the service said.
"""

import os

import pytest

from tests.live.questions import QUESTIONS, asked
from tests.live.survey import Pending, from_environment

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def survey():
    if "OPENAI_API_KEY" not in os.environ:
        pytest.skip("the real service needs OPENAI_API_KEY")
    return from_environment()


def test_all_is_begun_before_anything_is_waited_for(survey):
    for question in QUESTIONS:
        try:
            asked(survey, question)
        except Pending:
            continue


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
def test_it_is_as_we_assume(survey, question, capsys):
    try:
        answer, line = asked(survey, question)
    except Pending as pending:
        pytest.skip(f"{pending}: run the same command again later")
    with capsys.disabled():
        print(f"\n{line}")  # noqa: T201 - this is what it is for
    assert answer.holds, f"assumed: {question.assumed}; seen: {answer.text}"


def test_what_was_made_is_removed_once_all_is_answered(survey):
    try:
        for question in QUESTIONS:
            asked(survey, question)
    except Pending as pending:
        pytest.skip(f"{pending}: run the same command again later")
    survey.once("removed", survey.remove)
