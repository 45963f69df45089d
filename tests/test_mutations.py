"""The list of mutations fits the code: each guard stands where the list says, once."""

import pytest

from tests.mutations import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_guard_stands_once_where_the_list_says(mutation: Mutation) -> None:
    source = (ROOT / "batchframe" / mutation.module).read_text()

    assert source.count(mutation.old) == 1
    assert mutation.new not in source or mutation.new in mutation.old
    assert (ROOT / "tests" / mutation.tests).exists()
