"""What users can reach: every public name is listed, importable and documented."""

import doctest
import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import polars as pl
import pytest

import batchframe as bf
import batchframe.frames.accessor
from batchframe import errors


def test_the_public_names_are_sorted():
    assert bf.__all__ == sorted(bf.__all__)


def test_every_public_name_is_there_and_documented():
    for name in bf.__all__:
        assert inspect.getdoc(getattr(bf, name)), name


def test_what_is_public_is_listed():
    found = {
        name
        for name, value in vars(bf).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "").startswith("batchframe")
        and not inspect.ismodule(value)
    }

    # Registers what users never register themselves.
    assert found - set(bf.__all__) == {"register"}


def test_the_version_is_that_of_the_distribution():
    assert bf.__version__ == version("openai-batchframe")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'batchframe' has no attribute 'complte'"):
        bf.complte  # noqa: B018 - the look is the test


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_the_accessor_has_the_signature_and_the_docstring_of_the_function(library):
    method = library.DataFrame().openai_batch.complete
    function = inspect.signature(bf.complete)

    assert (
        list(inspect.signature(method).parameters.values())
        == (list(function.parameters.values())[1:])
    )
    assert inspect.signature(method).return_annotation == function.return_annotation
    assert method.__doc__ == bf.complete.__doc__


def test_every_keyword_is_in_the_docstring():
    documented = re.findall(r"^ {4}(?:\*\*)?(\w+): ", inspect.getdoc(bf.complete), re.MULTILINE)

    names = list(inspect.signature(bf.complete).parameters)
    assert documented[: len(names)] == names


def test_every_error_is_in_the_tree_at_its_place():
    tree = {}
    above = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"^((?:[|` ][-| ] {2}|[|`]-- )*)(\w+Error)\b(?: \((\w+)\))?", line)
        if match:
            depth = len(match[1]) // 4
            above[depth] = match[2]
            tree[match[2]] = {above.get(depth - 1, "Exception"), match[3]} - {None}

    assert {
        name: {base.__name__ for base in cls.__bases__} for name, cls in public_errors()
    } == tree


def public_errors():
    return [(name, getattr(bf, name)) for name in bf.__all__ if name.endswith("Error")]


def test_every_error_of_the_tree_is_public():
    assert {name for name, _ in public_errors()} == set(errors.__all__)
    for name, cls in public_errors():
        assert cls is getattr(errors, name)
        assert issubclass(cls, bf.BatchframeError)
        assert cls.__doc__


@pytest.mark.parametrize(
    "module", [bf, batchframe.frames.accessor], ids=lambda module: module.__name__
)
def test_the_examples_in_docstrings_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    outcome = doctest.testmod(module)

    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_type_checkers_are_told_that_there_are_types():
    assert Path(bf.__file__).with_name("py.typed").is_file()
