"""Lines in, one result per request out, whatever the lines are."""

import json
import random
from hashlib import blake2b
from itertools import chain, pairwise
from time import perf_counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchframe.core.batches import BatchError
from batchframe.core.lines import lines_in, whole_lines
from batchframe.core.results import RESULT_SCHEMA, Collected, answer_bodies, collect_results
from batchframe.core.statuses import MAYBE_BILLED, Status

KEY = bytes(range(16))


def keys(n):
    return [blake2b(str(i).encode(), digest_size=16).digest() for i in range(n)]


def encode(value):
    return json.dumps(value).encode()


def line(key=KEY, body=None, *, status_code=200, error=None, **response):
    """One line as OpenAI writes it."""
    return {
        "id": "batch_req_1",
        "custom_id": key.hex(),
        "response": {"status_code": status_code, "request_id": "req_1", "body": body, **response},
        "error": error,
    }


def chat(content="hello", *, finish_reason="stop", usage=None, **message):
    """The body of a chat answer."""
    return {
        "id": "chatcmpl-1",
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, **message},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5} if usage is None else usage,
    }


def collect(lines, row_keys=(KEY,), *, ended="completed", batch_errors=()):
    ids = pa.array([f"id-{i}" for i in range(len(row_keys))], pa.string())
    named = pa.array(row_keys, pa.binary(16))
    return collect_results(
        named, ids, lines, batch_id="batch_1", ended=ended, batch_errors=batch_errors
    )


def one(raw, **kwargs):
    """The result of a shard of one request with one line, given as a value or as bytes."""
    collected = collect([raw if isinstance(raw, bytes) else encode(raw)], **kwargs)
    (row,) = collected.table.to_pylist()
    return row


# --- whole_lines, lines_in ------------------------------------------------------------------------


def cut(data, borders):
    at = sorted({0, len(data), *(b for b in borders if b < len(data))})
    return [data[a:b] for a, b in pairwise(at)]


def lines_of(chunks):
    return list(chain.from_iterable(map(lines_in, whole_lines(chunks))))


@given(
    st.lists(st.binary(min_size=1).filter(lambda b: b"\n" not in b and b.strip() == b)),
    st.lists(st.integers(0, 200)),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_lines_survive_any_chunk_borders_line_ends_and_blank_lines(
    lines, borders, end, with_bom, with_last_end
):
    lines = [one.removeprefix(b"\xef\xbb\xbf") or b"x" for one in lines]
    data = (b"\xef\xbb\xbf" if with_bom else b"") + end.join(lines) + (end * with_last_end)
    assert lines_of(cut(data, borders)) == lines


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_a_line_feed_ends_a_line(separator):
    text = f'{{"a": "x{separator}y"}}'.encode()
    assert lines_of([text + b"\n" + text]) == [text, text]


def test_no_chunks_and_empty_chunks_give_no_lines():
    assert lines_of([]) == []
    assert lines_of([b"", b"", b"\n", b""]) == []


@given(st.binary(), st.lists(st.integers(0, 200)))
def test_blocks_are_all_of_the_bytes_and_end_with_lines(data, borders):
    blocks = list(whole_lines(cut(data, borders)))
    assert b"".join(blocks) == data
    assert all(block.endswith(b"\n") for block in blocks[:-1])
    assert all(blocks)


def test_a_line_of_50_mb_in_small_chunks_takes_linear_time():
    chunk = b"x" * 4096
    before = perf_counter()
    (long,) = lines_of(chunk for _ in range(12_207))
    assert len(long) == 12_207 * 4096
    assert perf_counter() - before < 10  # 0.2 s; quadratic time would be minutes


# --- What a line says -----------------------------------------------------------------------------


def test_an_answer_becomes_a_row_with_every_column():
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 32},
        "completion_tokens_details": {"reasoning_tokens": 8},
    }
    collected = collect([encode(line(body=chat(usage=usage)))])
    assert collected.table.schema.equals(RESULT_SCHEMA)
    assert collected.table.to_pylist() == [
        {
            "row_key": KEY,
            "id": "id-0",
            "status": "ok",
            "completion": "hello",
            "error_code": None,
            "error_message": None,
            "input_tokens": 100,
            "cached_tokens": 64,
            "cache_write_tokens": 32,
            "output_tokens": 20,
            "reasoning_tokens": 8,
            "tool_calls": None,
            "cost_usd": None,
            "price_source": None,
            "http_status": 200,
            "finish_reason": "stop",
            "model": "gpt-4o-mini-2024-07-18",
            "request_id": "req_1",
            "batch_id": "batch_1",
        }
    ]
    assert collected == Collected(
        collected.table,
        n_duplicate=0,
        n_foreign=0,
        n_unreadable=0,
        input_tokens=100,
        cached_tokens=64,
        cache_write_tokens=32,
        output_tokens=20,
        reasoning_tokens=8,
    )


EXPIRED = {"code": "batch_expired", "message": "could not be executed"}
CANCELLED = {"code": "batch_cancelled", "message": "was cancelled"}
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
QUOTA = {"error": {"message": "No money.", "type": "quota", "param": None, "code": None}}
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
NO_PART = [{"type": "refusal", "refusal": "No."}]


@pytest.mark.parametrize(
    ("raw", "status", "completion", "code"),
    [
        # Answers.
        (line(body=chat("x")), "ok", "x", None),
        (line(body=chat("")), "ok", "", None),
        (line(body=chat(PARTS)), "ok", "ab", None),
        (line(body=chat(None, tool_calls=CALLS)), "ok", json.dumps(CALLS), None),
        (line(body=chat("", tool_calls=CALLS)), "ok", json.dumps(CALLS), None),
        (line(body=chat("x", tool_calls=[])), "ok", "x", None),
        (line(status_code="200", body=chat("x")), "ok", "x", None),
        (line(status_code=None, body=chat("x")), "ok", "x", None),
        (line(status_code=201, body=chat("x")), "ok", "x", None),
        (line(body=json.dumps(chat("x"))), "ok", "x", None),
        (line(body=json.dumps({**chat("x"), "usage": {"prompt_tokens": "3"}})), "ok", "x", None),
        (line(body=chat("x"), error={}), "ok", "x", None),
        (line(body=chat("x"), error=""), "ok", "x", None),
        (line(body=chat("x"), error={"code": None, "message": None}), "ok", "x", None),
        # Answers that are not what was asked for.
        (line(body=chat("x", finish_reason="length")), "truncated", "x", "length"),
        (line(body=chat(None, finish_reason="length")), "truncated", None, "length"),
        (line(body=chat("x", finish_reason="content_filter")), "filtered", "x", "content_filter"),
        (line(body=chat(None, finish_reason="content_filter")), "filtered", None, "content_filter"),
        (line(body=chat(None, refusal="No.")), "refused", None, "refusal"),
        (line(body=chat(NO_PART)), "refused", None, "refusal"),
        # Answers without any content.
        (line(body=chat(None)), "failed", None, "empty_content"),
        (line(body=chat(None, tool_calls=[])), "failed", None, "empty_content"),
        (line(body=chat(None, tool_calls=None)), "failed", None, "empty_content"),
        (line(body={**chat(), "choices": []}), "failed", None, "empty_content"),
        (line(body={**chat(), "choices": [None]}), "failed", None, "empty_content"),
        (line(body={**chat(), "choices": [{"message": None}]}), "failed", None, "empty_content"),
        (line(body=None), "failed", None, "empty_content"),
        (line(body=[]), "failed", None, "empty_content"),
        (line(body="<html>"), "failed", None, "empty_content"),
        ({"custom_id": KEY.hex()}, "failed", None, "empty_content"),
        # Errors, wherever they stand.
        (line(status_code=429, body=QUOTA), "failed", None, "quota"),
        (line(status_code=400, body={"error": {"code": 17}}), "failed", None, "17"),
        (line(status_code=400, body={"error": "no"}), "failed", None, "http_400"),
        (line(status_code=500, body=None), "failed", None, "http_500"),
        (line(status_code=502, body="<html>"), "failed", None, "http_502"),
        (line(status_code=0, body=""), "failed", None, "http_0"),
        (line(status_code="503", body={"error": None}), "failed", None, "http_503"),
        (line(body=QUOTA), "failed", None, "quota"),
        (line(body={**chat("x"), **QUOTA}), "failed", None, "quota"),
        ({"custom_id": KEY.hex(), "error": {"message": "x"}}, "failed", None, "unknown_error"),
        (
            {"custom_id": KEY.hex(), "response": None, "error": {"code": "request_timeout"}},
            "failed",
            None,
            "request_timeout",
        ),
        (
            {"custom_id": KEY.hex(), "response": None, "error": EXPIRED},
            "expired",
            None,
            "batch_expired",
        ),
        (
            {"custom_id": KEY.hex(), "response": None, "error": CANCELLED},
            "cancelled",
            None,
            "batch_cancelled",
        ),
    ],
)
def test_a_line_has_the_status_that_it_tells(raw, status, completion, code):
    row = one(raw)
    assert (row["status"], row["completion"], row["error_code"]) == (status, completion, code)
    assert (row["error_message"] is None) == (code is None)


def test_error_messages_are_the_providers_own_words():
    assert one(line(status_code=429, body=QUOTA))["error_message"] == "No money."
    assert one(line(body=chat(None, refusal="I won't.")))["error_message"] == "I won't."
    assert one(line(status_code=502, body="<html>bad gateway"))["error_message"] == (
        "<html>bad gateway"
    )
    assert "cut at max tokens" in one(line(body=chat(finish_reason="length")))["error_message"]


def test_the_http_status_is_kept_for_the_retry_rules():
    assert one(line(status_code="503", body=QUOTA))["http_status"] == 503
    assert one({"custom_id": KEY.hex(), "error": EXPIRED})["http_status"] is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3}, (3, None, None, None)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, (0, None, 0, None)),
        ({"prompt_tokens_details": None, "completion_tokens_details": None}, (None,) * 4),
        ({"prompt_tokens_details": {"cached_tokens": None}}, (None,) * 4),
        ({"prompt_tokens_details": {"cached_tokens": 2}}, (None, 2, None, None)),
        ({"prompt_tokens": 12.0, "completion_tokens": "5"}, (12, None, 5, None)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (None,) * 4),
        ({"prompt_tokens": 2**63, "completion_tokens": 2**63 - 1}, (None, None, 2**63 - 1, None)),
        ({"prompt_tokens": [], "completion_tokens": "many"}, (None,) * 4),
        ([], (None,) * 4),
    ],
)
def test_usage_is_what_was_told_and_null_where_nothing_was(usage, expected):
    row = one(line(body=chat("x", usage=usage)))
    names = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    assert tuple(row[name] for name in names) == expected
    assert row["completion"] == "x"


def test_usage_that_is_null_or_absent_is_null():
    body = chat("x")
    for answer in ({**body, "usage": None}, {k: v for k, v in body.items() if k != "usage"}):
        row = one(line(body=answer))
        assert (row["status"], row["input_tokens"], row["output_tokens"]) == ("ok", None, None)


def responses(*output, **body):
    details = {"reasoning_tokens": 4}
    usage = {"input_tokens": 9, "output_tokens": 7, "output_tokens_details": details}
    return {"model": "gpt-5", "status": "completed", "output": output, "usage": usage, **body}


def test_a_responses_answer_is_the_text_of_all_its_messages():
    text = {"type": "output_text", "annotations": []}
    row = one(
        line(
            body=responses(
                {"type": "reasoning", "summary": [], "content": [{"text": "hidden"}]},
                {"type": "message", "content": [{**text, "text": "a"}, {**text, "text": "b"}]},
                {"type": "message", "content": [{**text, "text": "c"}]},
            )
        )
    )
    assert (row["status"], row["completion"]) == ("ok", "abc")
    assert (row["input_tokens"], row["output_tokens"], row["reasoning_tokens"]) == (9, 7, 4)


def test_a_responses_answer_may_be_calls_a_refusal_cut_filtered_or_nothing():
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    row = one(line(body=responses({**call, "id": "fc_1"})))
    assert (row["status"], json.loads(row["completion"])) == ("ok", [call])

    message = {"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}
    assert one(line(body=responses(message)))["status"] == "refused"

    for reason, status in (("max_output_tokens", "truncated"), ("content_filter", "filtered")):
        row = one(line(body=responses(status="incomplete", incomplete_details={"reason": reason})))
        assert (row["status"], row["completion"]) == (status, None)

    assert one(line(body=responses()))["error_code"] == "empty_content"


def test_embeddings_and_moderations_are_kept_as_their_json():
    usage = {"prompt_tokens": 2, "total_tokens": 2}
    for vector, text in (("AACAPw==", "AACAPw=="), ([1.0, -0.5], "[1.0, -0.5]")):
        row = one(line(body={"data": [{"embedding": vector}], "usage": usage}))
        assert (row["status"], row["completion"], row["input_tokens"]) == ("ok", text, 2)
        assert row["output_tokens"] is None
    row = one(line(body={"results": [{"flagged": False}]}))
    assert (row["status"], row["completion"]) == ("ok", '{"flagged": false}')


# --- Lines that no strict parser reads ------------------------------------------------------------


def with_text(raw):
    """A good line whose text is the given bytes of JSON."""
    return encode(line(body=chat("TEXT"))).replace(b'"TEXT"', raw)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (rb'"a\ud83d"', "a\ufffd"),
        (rb'"a\ude00b"', "a\ufffdb"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (b'"a\xffb"', "a\ufffdb"),
        (b'"a\tb\x00"', "a\tb\x00"),
        ('"\u2028\x85"'.encode(), "\u2028\x85"),
    ],
)
def test_text_that_is_not_quite_unicode_is_repaired_not_lost(raw, text):
    row = one(with_text(raw))
    assert (row["status"], row["completion"], row["input_tokens"]) == ("ok", text, 3)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"NaN", id="nan"),
        pytest.param(b"-Infinity", id="infinity"),
        pytest.param(b"9" * 5000, id="5000-digits"),
        pytest.param(b'{"a": 1, "a": 2}', id="duplicate-keys"),
    ],
)
def test_strange_values_beside_the_answer_do_not_cost_the_answer(raw):
    for place in (b'"logprobs": null', b'"prompt_tokens": 3'):
        name = place.split(b":")[0]
        row = one(encode(line(body=chat("x"))).replace(place, name + b": " + raw))
        assert (row["status"], row["completion"], row["output_tokens"]) == ("ok", "x", 5)


def test_strange_values_beside_calls_do_not_cost_the_calls():
    raw = encode(line(body=chat(None, tool_calls=CALLS))).replace(b'"logprobs": null', b'"x": NaN')
    assert json.loads(one(raw)["completion"]) == CALLS


def test_the_last_of_duplicate_keys_holds():
    assert one(with_text(b'"a", "content": "b"'))["completion"] == "b"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(encode(line(body=chat("x")))[:-30], id="torn"),
        pytest.param(with_text(b"[" * 100_000 + b"]" * 100_000), id="deep"),
        pytest.param(with_text(b'"a" "b"'), id="broken"),
    ],
)
def test_an_unreadable_line_fails_the_request_that_it_names(raw):
    row = one(raw)
    assert (row["status"], row["error_code"]) == ("failed", "unreadable_line")
    assert "may have been billed" in row["error_message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b"\x00\xff",
        b'{"custom_id": null}',
        b'{"custom_id": []}',
        # Two names: which one is meant cannot be told.
        b'{"custom_id": "%b", "custom_id": "%b", "' % (b"0" * 32, b"1" * 32),
    ],
)
def test_a_line_that_names_no_request_is_only_counted(raw):
    collected = collect([raw])
    assert (collected.n_unreadable, collected.n_foreign, collected.n_duplicate) == (1, 0, 0)
    assert collected.table["status"].to_pylist() == ["missing"]


def test_a_torn_line_is_not_taken_for_the_request_that_its_text_quotes():
    victim, torn = keys(2)
    quoted = json.dumps({"custom_id": victim.hex()})
    raw = encode(line(torn, chat(quoted)))[:-10]
    collected = collect([raw], [victim, torn])
    assert collected.table["status"].to_pylist() == ["missing", "failed"]


def test_a_line_that_stands_within_a_torn_one_has_its_result():
    torn, within, other = keys(3)
    head = encode(line(torn, chat("torn")) | {"trace": "T"}).removesuffix(b'"T"}')
    block = b"\n".join([head, encode(line(within, chat())), b"}"])
    json.loads(block)  # all of it is one value
    collected = collect([block, encode(line(other, chat("other")))], [torn, within, other])
    assert collected.table["status"].to_pylist() == ["ok", "ok", "ok"]
    assert collected.table["completion"].to_pylist() == ["torn", "hello", "other"]


def test_answers_that_go_over_several_lines_are_read_also_where_one_is_missing():
    asked = keys(3)
    block = b"\n".join(json.dumps(line(key, chat()), indent=1).encode() for key in asked[:2])
    assert collect([block], asked).table["status"].to_pylist() == ["ok", "ok", "missing"]


# --- One result per request -----------------------------------------------------------------------


def test_foreign_lines_are_counted_and_ignored():
    collected = collect([encode(line(keys(1)[0], chat())), encode({**line(), "custom_id": 7})])
    assert collected.n_foreign == 2
    assert collected.table["status"].to_pylist() == ["missing"]
    assert collected.input_tokens == 0


@pytest.mark.parametrize(
    ("order", "status", "completion"),
    [
        ("good other", "ok", "good"),
        ("other good", "ok", "other"),
        ("failed good other", "ok", "good"),
        ("torn failed good", "ok", "good"),
        ("good failed torn", "ok", "good"),
        ("failed torn", "failed", None),
    ],
)
def test_of_several_lines_the_first_answer_wins(order, status, completion):
    lines = {
        "good": encode(line(body=chat("good"))),
        "other": encode(line(body=chat("other"))),
        "failed": encode(line(status_code=500, body=QUOTA)),
        "torn": encode(line(body=chat("torn")))[:-40],
    }
    words = order.split()
    collected = collect([lines[word] for word in words])
    (row,) = collected.table.to_pylist()
    assert (row["status"], row["completion"]) == (status, completion)
    assert row["error_code"] in {None, "quota"}  # the first of two failures
    assert collected.n_duplicate == len(words) - 1
    assert collected.input_tokens == (3 if status == "ok" else 0)


@pytest.mark.parametrize(
    ("ended", "status", "code"),
    [
        ("completed", "missing", "missing"),
        ("expired", "expired", "batch_expired"),
        ("cancelled", "cancelled", "batch_cancelled"),
        ("failed", "failed", "batch_failed"),
    ],
)
def test_a_request_without_a_line_has_the_batchs_ending(ended, status, code):
    collected = collect([encode(line(body=chat()))], [KEY, *keys(2)], ended=ended)
    assert collected.table["status"].to_pylist() == ["ok", status, status]
    assert collected.table["error_code"].to_pylist() == [None, code, code]
    assert collected.table["error_message"].null_count == 1
    assert collected.table["batch_id"].to_pylist() == ["batch_1"] * 3


def test_a_batch_that_has_not_ended_has_no_results():
    with pytest.raises(ValueError, match="in_progress"):
        collect([], ended="in_progress")


def refused(*errors):
    table = collect([], keys(4), ended="failed", batch_errors=errors).table
    return list(
        zip(table["error_code"].to_pylist(), table["error_message"].to_pylist(), strict=True)
    )


def test_a_refused_batch_blames_each_line_for_itself_and_the_bad_lines_for_the_others():
    codes, messages = zip(
        *refused(
            BatchError(code="invalid_url", message="Wrong.", line=2, param="url"),
            BatchError(code="second", message="Of the same line.", line=2),
            BatchError(code="invalid_json_line", message="Not JSON.", line=4),
        ),
        strict=True,
    )
    assert codes == ("batch_not_run", "invalid_url", "batch_not_run", "invalid_json_line")
    assert messages[1] == "Wrong."
    assert messages[3] == "Not JSON."
    assert "line 2 and 1 other lines (invalid_url: Wrong.)" in messages[0]


def test_a_refusal_of_the_whole_batch_is_everyones():
    whole = BatchError(code="token_limit_exceeded", message="Too many.")
    assert refused(whole) == [("token_limit_exceeded", "Too many.")] * 4
    line_3 = BatchError(code="invalid_url", message="Wrong.", line=3)
    assert [code for code, _ in refused(line_3, whole)] == [
        "token_limit_exceeded",
        "token_limit_exceeded",
        "invalid_url",
        "token_limit_exceeded",
    ]


def test_a_refusal_without_words_still_gives_a_code_and_a_message():
    (first, *_) = refused(BatchError(code="", message=""))
    assert first == ("batch_failed", "The batch failed and the service gave no reason.")


def test_an_empty_shard_has_an_empty_table():
    collected = collect([], [])
    assert collected.table.num_rows == 0
    assert collected.table.schema.equals(RESULT_SCHEMA)


KINDS = st.sampled_from(["answer", "error", "missing", "twice", "torn", "error then answer"])


@given(
    st.lists(KINDS, max_size=30),
    st.integers(0, 5),
    st.sampled_from(["completed", "failed", "expired", "cancelled"]),
    st.lists(st.integers(0, 3_000)),
    st.sampled_from([b"\n", b"\r\n", b"\n \n"]),
    st.randoms(use_true_random=False),
)
def test_every_request_has_exactly_one_row_in_order_whatever_the_lines(
    kinds, n_foreign, ended, borders, end, rng: random.Random
):
    row_keys = keys(len(kinds))
    lines, n_duplicate = [], 0
    for i, kind in enumerate(kinds):
        answer = encode(line(row_keys[i], chat(f"text {i}")))
        failure = encode(line(row_keys[i], QUOTA, status_code=400))
        own = {
            "answer": [answer],
            "error": [failure],
            "missing": [],
            "twice": [answer, answer],
            "torn": [answer[:-25]],
            "error then answer": [failure, answer],
        }[kind]
        n_duplicate += max(len(own) - 1, 0)
        lines += own
    lines += [encode(line(bytes([i]) * 16, chat("foreign"))) for i in range(n_foreign)]
    rng.shuffle(lines)

    collected = collect(lines, row_keys, ended=ended)

    without = {"completed": "missing"}.get(ended, ended)
    expected = {"error": "failed", "torn": "failed", "missing": without}
    texts = {"error": None, "torn": None, "missing": None}
    rows = collected.table.to_pylist()
    assert [row["row_key"] for row in rows] == row_keys
    assert [row["id"] for row in rows] == [f"id-{i}" for i in range(len(kinds))]
    assert [row["status"] for row in rows] == [expected.get(kind, "ok") for kind in kinds]
    assert [row["completion"] for row in rows] == [
        texts.get(kind, f"text {i}") for i, kind in enumerate(kinds)
    ]
    assert (collected.n_duplicate, collected.n_foreign) == (n_duplicate, n_foreign)
    assert collected.output_tokens == 5 * sum(row["status"] == "ok" for row in rows)
    assert collect(whole_lines(cut(end.join(lines), borders)), row_keys, ended=ended) == collected


def test_a_line_that_is_torn_anywhere_takes_nothing_from_the_next():
    torn, whole = (encode(line(key, chat("text"))) for key in keys(2))
    for end in range(1, len(torn)):
        rows = collect([torn[:end] + b"\n" + whole + b"\n"], keys(2)).table.to_pylist()
        assert rows[0]["status"] in {"failed", "missing"}
        assert (rows[1]["status"], rows[1]["completion"]) == ("ok", "text")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "error", "usage", "output", "data"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON, JSON)
def test_no_json_in_a_line_raises_and_all_of_it_gives_a_row(body, error, status_code):
    row = one(line(body=body, error=error, status_code=status_code))
    assert row["status"] in set(Status)
    assert row["row_key"] == KEY


@given(st.binary(max_size=80))
def test_no_bytes_raise(raw):
    collected = collect([raw, encode(line(body=chat()))[: len(raw)] + raw])
    assert collected.table.num_rows == 1


@given(st.text())
def test_any_text_comes_back_as_it_was(text):
    assert one(line(body=chat(text)))["completion"] == text
    raw = json.dumps(line(body=chat(text)), ensure_ascii=False).encode()
    assert one(raw)["completion"] == text


def test_the_codes_that_may_be_billed_are_given():
    torn = one(encode(line(body=chat()))[:-20])["error_code"]
    empty = one(line(body=chat(None)))["error_code"]
    assert (torn, empty) == MAYBE_BILLED[:2]


@pytest.mark.benchmark
def test_200_000_lines_a_second_are_read():
    row_keys = keys(100_000)
    lines = [encode(line(key, chat("word " * 80))) for key in row_keys]
    before = perf_counter()
    collected = collect(lines, row_keys)
    seconds = perf_counter() - before
    assert collected.output_tokens == 500_000
    assert len(lines) / seconds > 100_000  # 200,000 where nothing else runs


def test_bodies_come_back_as_the_service_gave_them_but_for_half_characters():
    body = {"choices": [{"index": 0, "message": {"content": "\u2028"}}], "usage": {"a": [1.5]}}
    other, third = (key.hex() for key in keys(3)[1:])
    bodies = answer_bodies(
        [
            encode(line(key=bytes.fromhex(other), body=None, status_code=500)),
            encode(line(body=body)),
            encode(line(key=bytes.fromhex(other), body={"choices": "later, but answered"})),
            encode(line(key=bytes.fromhex(other), body={"choices": "later still"})),
            encode(line(key=bytes.fromhex(third), body=json.dumps({"choices": ["in a string"]}))),
            b"torn",
        ]
    )
    assert bodies == {
        KEY.hex(): body,
        other: {"choices": "later, but answered"},
        third: {"choices": ["in a string"]},
    }
    raw = b'{"custom_id": "%s", "response": {"status_code": 200, "body": {"x": "a\\ud83d"}}}'
    assert answer_bodies([raw % other.encode()]) == {other: {"x": "a\ufffd"}}
    assert answer_bodies([encode(line(body="a page"))]) == {KEY.hex(): {}}
