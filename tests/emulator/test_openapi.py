"""Requests made from OpenAI's schema by schemathesis, and replies checked against it.

`openapi-subset.json` says where it is from and how it differs from what is published. What is left
of differences between it and the server is in `_DEVIATIONS`, and in tests/README.md.
"""

from pathlib import Path

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from batchframe.emulator.operations import OPERATIONS

_CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.positive_data_acceptance,
]

#: Operations that refuse what fits the schema, and why.
_DEVIATIONS = {
    "createFile": "the content and the name of an input file are checked as well",
    "completeUpload": "the parts must be those of the upload, and add up to its bytes",
    "addUploadPart": "an upload that ended takes no more parts",
    "cancelUpload": "an upload that was completed or has expired cannot be cancelled",
}


def _schema(*modes):
    schema = schemathesis.openapi.from_path(Path(__file__).with_name("openapi-subset.json"))
    schema.config.generation.modes = list(modes)
    # Whatever else a query may hold is ignored, as the service does.
    schema.config.generation.allow_extra_parameters = False
    return schema


everything = _schema(GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
existing = _schema(GenerationMode.POSITIVE).include(path_regex="{")

bounded = settings(
    max_examples=20,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def call():
    with requests.Session() as session:
        session.trust_env = False

        def make(case, server):
            unfit = case.operation.definition.raw["operationId"] in _DEVIATIONS
            case.call_and_validate(
                base_url=server.base_url,
                session=session,
                headers={"authorization": "Bearer x"},
                checks=_CHECKS,
                excluded_checks=[checks.positive_data_acceptance] if unfit else [],
            )

        yield make


@everything.parametrize()
@bounded
def test_any_request_is_answered_as_the_schema_says(case, call, bench):
    call(case, bench.server)


@pytest.fixture
def known(in_all_states):
    """A server, and ids of files, uploads and batches in all states, by the name in paths."""
    bench, batches = in_all_states
    order = {"filename": "a.txt", "purpose": "vision", "mime_type": "text/plain"}
    begin = bench.client.uploads.create
    completed, cancelled, pending = (begin(bytes=3, **order) for _ in range(3))
    part = bench.client.uploads.parts.create(completed.id, data=b"abc")
    bench.client.uploads.complete(completed.id, part_ids=[part.id])
    bench.client.uploads.cancel(cancelled.id)
    return bench, {
        "file_id": [file.id for file in bench.client.files.list()],
        "upload_id": [completed.id, cancelled.id, pending.id],
        "batch_id": [batch.id for batch in batches.values()],
    }


@existing.parametrize()
@existing.given(number=st.integers(0, 100))
@bounded
def test_a_request_for_what_exists_is_answered_as_the_schema_says(case, call, known, number):
    bench, ids = known
    (name,) = case.path_parameters
    case.path_parameters[name] = ids[name][number % len(ids[name])]

    call(case, bench.server)


def test_every_operation_is_in_the_schema(bench):
    paths = everything.raw_schema["paths"]
    operations = {(method.upper(), path) for path in paths for method in paths[path]}

    assert len(operations) == 13
    assert operations == {
        (o.method, o.path.removeprefix("/v1").replace("{id}", _name_in(o.path))) for o in OPERATIONS
    }


def _name_in(path):
    return (
        "{" + {"files": "file_id", "uploads": "upload_id"}.get(path.split("/")[2], "batch_id") + "}"
    )
