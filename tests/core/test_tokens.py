"""OpenAI's own vocabularies count tokens; the counts here are tiktoken's."""

import sys

import pytest

from batchframe.core.tokens import counter, vocabulary_of


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4o-2024-08-06", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("gpt-5.4-mini", "o200k_base"),
        ("o4-mini", "o200k_base"),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("davinci-002", "cl100k_base"),
        ("llama3", None),
        ("gpt-4omega", None),
        ("", None),
    ],
)
def test_a_model_has_a_vocabulary(model, vocabulary):
    assert vocabulary_of(model) == vocabulary


# Counted by tiktoken 0.14 with the published vocabularies.
@pytest.mark.parametrize(
    ("text", "o200k", "cl100k"),
    [
        ("", 0, 0),
        ("hello world", 2, 2),
        ("Съешь же ещё этих мягких французских булок", 12, 28),
        ("在本文中我们提出一种新的方法", 8, 12),
        ('{"id": "3f2504e0-4f89-11d3-9a0c-0305e82c3301"}', 32, 32),
    ],
)
def test_texts_are_counted_as_openai_does(text, o200k, cl100k):
    assert counter("o200k_base")(text) == o200k
    assert counter("cl100k_base")(text) == cl100k


def test_without_the_extra_nothing_counts(monkeypatch):
    monkeypatch.setitem(sys.modules, "splintr", None)
    assert counter("p50k_base") is None
