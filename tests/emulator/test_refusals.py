import pytest


@pytest.mark.parametrize(
    ("order", "code", "param"),
    [
        ({"endpoint": "/v1/audio"}, "invalid_value", "endpoint"),
        ({"completion_window": "48h"}, "invalid_value", "completion_window"),
        ({"metadata": {"tags": ["a"]}}, "invalid_type", "metadata.tags"),
        ({"metadata": {str(i): "" for i in range(17)}}, "object_above_max_properties", "metadata"),
        ({"metadata": {"k" * 65: ""}}, "string_above_max_length", "metadata"),
        ({"metadata": {"k": "v" * 513}}, "string_above_max_length", "metadata.k"),
        ({"extra_body": {"input_file_id": None}}, "missing_required_parameter", "input_file_id"),
        ({"extra_body": {"colour": "red"}}, "unknown_parameter", "colour"),
    ],
    ids=["endpoint", "window", "type", "pairs", "key", "value", "missing", "unknown"],
)
def test_a_create_that_cannot_be_meant_is_refused_at_once(bench, refused, order, code, param):
    input_id = bench.upload(bench.lines(1)).id

    assert refused(bench.create, input_id, **order) == (400, code, param)
    assert bench.client.batches.list().data == []


def test_metadata_at_its_limits_is_accepted(bench):
    metadata = {f"{i:064}": "v" * 512 for i in range(16)}

    assert bench.create(bench.upload(bench.lines(1)).id, metadata=metadata).metadata == metadata


def test_a_create_that_is_not_json_is_refused(bench):
    assert bench.raw("POST", "/batches", content=b"{").status_code == 400


def test_a_missing_input_file_is_accepted_and_then_fails(bench):
    batch = bench.create("file-none")
    assert batch.status == "validating"
    failed = bench.after(batch, 10)
    (error,) = failed.errors.data

    assert (failed.status, failed.failed_at) == ("failed", batch.created_at + 10)
    assert (error.code, error.line, error.param) == ("invalid_request", None, "file_id")
    assert error.message.startswith("Cannot find file file-none")


def _errors(bench, content):
    failed = bench.after(bench.submit(content), 10)
    assert failed.status == "failed"
    assert failed.request_counts.completed == 0
    return [(error.line, error.code, error.param) for error in failed.errors.data]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"custom_id": 7}, "invalid_type", "custom_id"),
        ({"method": None}, "missing_required_parameter", "method"),
        ({"method": "GET"}, "invalid_value", "method"),
        ({"url": None}, "missing_required_parameter", "url"),
        ({"url": "/v1/responses"}, "invalid_url", "url"),
        ({"body": {"model": None}}, "invalid_request", "body.model"),
        ({"body": {"messages": None}}, "invalid_request", "body.messages"),
        ({"body": {"model": "gpt-4o"}}, "mismatched_model", "body.model"),
        ({"body": {"stream": True}}, "streaming_unsupported", "body.stream"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_line_fails_the_batch_with_its_number(bench, fields, code, param):
    custom_id = fields.pop("custom_id", "b") if "custom_id" in fields else "b"
    content = bench.line("a") + bench.line(custom_id, **fields)

    assert _errors(bench, content) == [(2, code, param)]


def test_a_line_without_a_body_fails_the_batch(bench):
    line = b'{"custom_id": "b", "method": "POST", "url": "/v1/chat/completions"}\n'

    assert _errors(bench, bench.line("a") + line) == [(2, "missing_required_parameter", "body")]


def test_all_wrong_lines_are_named_at_once(bench):
    content = b"".join(
        [
            bench.line("a"),
            b"{\n",
            bench.line("a"),
            bench.line("c", url="/v1/x", body={"stream": True}),
            b"[]\n",
        ]
    )

    assert _errors(bench, content) == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_url", "url"),
        (4, "streaming_unsupported", "body.stream"),
        (5, "invalid_json_line", None),
    ]


def test_a_batch_with_too_many_requests_fails(serve):
    bench = serve(max_requests=2)
    assert bench.after(bench.submit(bench.lines(2)), 10).status == "in_progress"

    assert _errors(bench, bench.lines(3)) == [(None, "too_many_requests", None)]


def test_a_full_queue_fails_a_batch_until_another_one_ends(serve):
    # One row is 3 + 4 + 2 tokens.
    bench = serve(enqueued_token_limit={"gpt-4o-mini": 30})
    first = bench.submit(bench.lines(3))
    assert bench.after(first, 10).status == "in_progress"
    second = bench.submit(bench.lines(1))
    failed = bench.after(second, 9.9)
    assert failed.status == "validating"
    failed = bench.after(second, 0.1)
    (error,) = failed.errors.data
    assert (error.code, error.line) == ("token_limit_exceeded", None)
    assert "Limit: 30 enqueued tokens" in error.message
    assert bench.after(first, 10).status == "completed"

    assert bench.after(bench.submit(bench.lines(1)), 10).status == "in_progress"


def test_a_batch_that_alone_exceeds_the_queue_fails(serve):
    bench = serve(enqueued_token_limit=30)

    assert _errors(bench, bench.lines(4)) == [(None, "token_limit_exceeded", None)]
