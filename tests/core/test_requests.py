"""Arrow columns become lines: each reads back to its prompt and is named by its id and body."""

import json
from hashlib import blake2b

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchframe.core.dialects import AZURE
from batchframe.core.requests import Rows, addressed, render_requests, row_keys, url_in
from batchframe.core.spec import Account, Spec

ACCOUNT = Account(base_url="https://api.openai.com/v1/")
#: Whatever a column of text can hold: no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def a_spec(**changes):
    return Spec(**{"model": "gpt-4o-mini", "account": ACCOUNT, **changes})


SPEC = a_spec()


def rendered(ids, prompts, spec=SPEC, positions=None):
    chosen = range(len(ids)) if positions is None else positions
    rows = Rows(ids=ids, prompts=prompts)
    chunks = render_requests(rows, pa.array(chosen, pa.int64()), spec)
    return [request for chunk in chunks for request in chunk]


def keys(ids, prompts, spec=SPEC):
    prompts = prompts if isinstance(prompts, pa.Array) else pa.array(prompts, pa.string())
    return row_keys(Rows(ids=pa.array(ids), prompts=prompts), spec).keys.to_pylist()


def key(id_, prompt, **changes):
    return keys([id_], [prompt], a_spec(**changes))[0]


# The line


def test_the_line_is_the_request_in_the_envelope_of_the_batch_api():
    spec = a_spec(system="Be brief.", params={"temperature": 0, "stop": ["\n"]})
    (request,) = rendered(pa.array([7]), pa.array(["Hello"]), spec)
    assert request.line == (
        b'{"custom_id":"' + request.row_key.hex().encode() + b'","method":"POST",'
        b'"url":"/v1/chat/completions","body":{"model":"gpt-4o-mini","stop":["\\n"],'
        b'"temperature":0,"messages":[{"role":"system","content":"Be brief."},'
        b'{"role":"user","content":"Hello"}]}}\n'
    )


def test_without_a_system_message_the_prompt_is_the_only_message():
    (request,) = rendered(pa.array(["a"]), pa.array(["Hello"]))
    assert json.loads(request.line)["body"] == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "Hello"}],
    }


def test_an_empty_system_message_is_a_message():
    (request,) = rendered(pa.array(["a"]), pa.array(["Hello"]), a_spec(system=""))
    messages = json.loads(request.line)["body"]["messages"]
    assert messages[0] == {"role": "system", "content": ""}


def test_the_body_keeps_the_order_within_a_schema():
    schema = {"properties": {"zebra": {}, "ant": {}}, "additionalProperties": False}
    (request,) = rendered(pa.array([1]), pa.array(["x"]), a_spec(params={"schema": schema}))
    sent = json.loads(request.line)["body"]["schema"]
    assert list(sent) == ["properties", "additionalProperties"]
    assert list(sent["properties"]) == ["zebra", "ant"]


@given(prompt=TEXT, id_=TEXT, system=st.none() | TEXT)
def test_any_text_reads_back_from_its_line(prompt, id_, system):
    (request,) = rendered(pa.array([id_]), pa.array([prompt]), a_spec(system=system))
    assert request.line.count(b"\n") == 1
    assert request.line.endswith(b"\n")
    line = json.loads(request.line)
    assert line["body"]["messages"][-1] == {"role": "user", "content": prompt}
    assert len(line["body"]["messages"]) == (1 if system is None else 2)
    assert line["body"]["messages"][0]["content"] == (prompt if system is None else system)
    assert line["custom_id"] == request.row_key.hex()
    assert request.id == id_


@pytest.mark.parametrize(
    "text",
    [
        "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e",
        "\r\n\r",
        "\x00",
        "\ufeff",
        "👩\u200d🚀",
        '{x} %s \\ "',
    ],
    ids=ascii,
)
def test_text_that_breaks_lines_elsewhere_stays_in_one_line_here(text):
    (request,) = rendered(pa.array([1]), pa.array([text]))
    assert request.line.split(b"\n")[1:] == [b""]
    assert json.loads(request.line)["body"]["messages"][0]["content"] == text


@given(st.lists(st.none() | TEXT, max_size=8), st.none() | TEXT)
def test_what_is_measured_is_what_is_rendered(prompts, system):
    spec = a_spec(system=system)
    ids, column = pa.array(range(len(prompts)), pa.int64()), pa.array(prompts, pa.string())
    measured = row_keys(Rows(ids=ids, prompts=column), spec)
    sent = [position for position, prompt in enumerate(prompts) if prompt is not None]
    requests = rendered(ids, column, spec, sent)
    assert [measured.keys[i].as_py() for i in sent] == [r.row_key for r in requests]
    assert [measured.line_bytes[i].as_py() for i in sent] == [len(r.line) for r in requests]


def test_null_prompts_have_neither_key_nor_size():
    named = row_keys(Rows(ids=pa.array([1, 2, 3]), prompts=pa.array(["a", None, ""])), SPEC)
    assert named.keys.type == pa.binary(16)
    assert named.line_bytes.type == pa.int64()
    assert named.keys.is_null().to_pylist() == [False, True, False]
    assert named.line_bytes.is_null().to_pylist() == [False, True, False]


def test_no_rows_have_no_keys_and_no_requests():
    none = pa.array([], pa.string())
    assert len(row_keys(Rows(ids=none, prompts=none), SPEC).keys) == 0
    assert rendered(none, none) == []


def test_requests_come_in_the_order_of_their_positions():
    ids, prompts = pa.array(["a", "b", "c"]), pa.array(["x", None, "z"])
    assert [request.id for request in rendered(ids, prompts, positions=[2, 0])] == ["c", "a"]


def test_rows_beyond_the_first_chunk_are_named_as_they_would_be_alone():
    n = 40_000
    ids = pa.array(range(n), pa.int64())
    prompts = pa.array([f"prompt {i}" for i in range(n)])
    named = row_keys(Rows(ids=ids, prompts=prompts), SPEC).keys
    assert named.null_count == 0
    assert len(set(named.to_pylist())) == n
    for i in (0, 16_383, 16_384, 32_768, n - 1):
        assert named[i].as_py() == key(i, f"prompt {i}")
    chosen = [n - 1, 16_384, 5]
    assert [r.row_key for r in rendered(ids, prompts, positions=chosen)] == [
        named[i].as_py() for i in chosen
    ]


@pytest.mark.parametrize(
    ("prompt", "extra", "n_tokens"),
    [
        ("Hello", {}, 5 // 3 + 8),
        ("x" * 300, {}, 100 + 8),
        # {"role":"system","content":"Be brief."}, is 41 bytes.
        ("Hello", {"system": "Be brief."}, (5 + 41) // 3 + 8),
        # ,"temperature":0 is 16 bytes.
        ("Hello", {"params": {"temperature": 0}}, (5 + 16) // 3 + 8),
        ("Hello", {"endpoint": "/v1/embeddings"}, 5 // 3 + 8),
    ],
)
def test_tokens_are_guessed_as_a_third_of_the_texts_and_what_stands_around(prompt, extra, n_tokens):
    spec = Spec(model="gpt-4o-mini", account=SPEC.account, **extra)
    rows = Rows(ids=pa.array([1]), prompts=pa.array([prompt]))
    (chunk,) = render_requests(rows, pa.array([0]), spec)
    assert chunk.n_tokens == [n_tokens]
    assert row_keys(rows, spec).n_tokens.to_pylist() == [n_tokens]


# The row key


def test_the_row_key_is_pinned_because_a_change_would_pay_for_every_row_again():
    assert key(1, "Hello").hex() == "7aafd7bd88a140d5b75276a7b98ecac3"
    assert key("1", "Hello").hex() == "6b3cb6b962d44c7af7438dc86cd6530f"


def test_the_row_key_is_the_digest_of_the_tagged_id_and_the_bodys_digest():
    body = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello"}]}'
    digest = blake2b(body, digest_size=16).digest()
    assert key(12, "Hello") == blake2b(b"i12" + digest, digest_size=16).digest()
    (request,) = rendered(pa.array([12]), pa.array(["Hello"]))
    assert request.body_digest == digest


@pytest.mark.parametrize(
    "type_",
    [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()],
    ids=str,
)
def test_an_integer_id_has_one_key_whatever_its_width(type_):
    ids = pa.array([0, 1, 100], type_)
    assert row_keys(Rows(ids=ids, prompts=pa.array(["x"] * 3)), SPEC).keys.to_pylist() == [
        key(0, "x"),
        key(1, "x"),
        key(100, "x"),
    ]


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_a_text_has_one_key_whatever_its_layout(type_):
    column = pa.array(["a", "é", ""], type_)
    assert row_keys(Rows(ids=column, prompts=column), SPEC).keys.to_pylist() == [
        key("a", "a"),
        key("é", "é"),
        key("", ""),
    ]
    assert [request.row_key for request in rendered(column, column)] == [
        key("a", "a"),
        key("é", "é"),
        key("", ""),
    ]


def test_a_slice_of_a_column_is_named_like_the_whole():
    ids, prompts = pa.array(range(10)), pa.array([str(i) for i in range(10)])
    whole = row_keys(Rows(ids=ids, prompts=prompts), SPEC).keys
    part = row_keys(Rows(ids=ids.slice(4, 3), prompts=prompts.slice(4, 3)), SPEC).keys
    assert part.to_pylist() == whole.to_pylist()[4:7]


def test_large_integers_are_told_apart_exactly():
    ids = pa.array([2**53, 2**53 + 1, 2**63, 2**64 - 1], pa.uint64())
    named = row_keys(Rows(ids=ids, prompts=pa.array(["x"] * 4)), SPEC).keys.to_pylist()
    assert len(set(named)) == 4
    assert [request.id for request in rendered(ids, pa.array(["x"] * 4))] == [
        "9007199254740992",
        "9007199254740993",
        "9223372036854775808",
        "18446744073709551615",
    ]


def test_row_keys_differ_when_anything_that_is_sent_differs():
    ours = {
        "the row itself": key(1, "Hello"),
        "a text as id": key("1", "Hello"),
        "a tagged text as id": key("i1", "Hello"),
        "an id": key(2, "Hello"),
        "a negative id": key(-1, "Hello"),
        "a prompt": key(1, "Hello "),
        "an empty prompt": key(1, ""),
        "a model": key(1, "Hello", model="gpt-4o"),
        "a system message": key(1, "Hello", system="Be brief."),
        "an empty system message": key(1, "Hello", system=""),
        "a parameter": key(1, "Hello", params={"seed": 1}),
        "its value": key(1, "Hello", params={"seed": 2}),
    }
    assert len(set(ours.values())) == len(ours)


def test_the_payer_is_told_apart_by_the_checkpoint_not_by_the_row_key():
    other = Account(base_url="https://eu.api.openai.com/v1/", organization="o", project="p")
    assert key(1, "Hello", account=other) == key(1, "Hello")
    assert key(1, "Hello", endpoint="/v1/responses") != key(1, "Hello")  # another body


def test_composed_and_decomposed_characters_are_different_ids_and_prompts():
    assert key("\u00e9", "x") != key("e\u0301", "x")
    assert key("x", "\u00e9") != key("x", "e\u0301")


def test_the_same_row_has_the_same_key_in_every_call_and_place():
    first, second = keys([1, 2], ["a", "b"]), keys([2, 1], ["b", "a"])
    assert first == second[::-1]


def test_equal_specs_give_equal_row_keys_whatever_the_order_of_their_parameters():
    one, other = {"temperature": 0, "seed": 42}, {"seed": 42, "temperature": 0}
    assert key(1, "Hello", params=one) == key(1, "Hello", params=other)


def test_a_spec_read_back_from_disk_gives_the_same_row_keys():
    spec = a_spec(params={"z": {"b": 1, "a": 2}, "a": 1.0}, system="é")
    there = Spec.from_json(spec.to_json())
    assert keys([1], ["Hello"], there) == keys([1], ["Hello"], spec)


@given(TEXT, TEXT, TEXT, TEXT)
def test_different_rows_have_different_keys(id_1, prompt_1, id_2, prompt_2):
    same = (id_1, prompt_1) == (id_2, prompt_2)
    assert (key(id_1, prompt_1) == key(id_2, prompt_2)) is same


def test_equal_bodies_have_equal_digests_whatever_their_ids():
    one, other, third = rendered(pa.array([1, 2, 3]), pa.array(["Hello", "Hello", "Bye"]))
    assert one.body_digest == other.body_digest
    assert one.body_digest != third.body_digest


def test_a_list_of_messages_is_sent_as_it_is_after_the_system_message():
    chat = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        {"role": "user", "content": [{"type": "text", "text": "h\u2028i"}]},
    ]
    encoded = pa.array([json.dumps(chat).encode()], pa.large_binary())
    ids = pa.array(["a"])
    spec = a_spec(system="Be brief.")
    (request,) = rendered(ids, encoded, spec)
    body = json.loads(request.line)["body"]
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, *chat]
    measured = row_keys(Rows(ids=ids, prompts=encoded), spec)
    assert measured.keys.to_pylist() == [request.row_key]
    assert measured.line_bytes.to_pylist() == [len(request.line)]


@given(st.text())
def test_a_text_has_the_key_of_the_list_of_that_one_message(text):
    chat = msgspec.json.encode([{"role": "user", "content": text}])
    as_list = row_keys(Rows(ids=pa.array(["a"]), prompts=pa.array([chat], pa.large_binary())), SPEC)
    assert as_list == row_keys(
        Rows(ids=pa.array(["a"]), prompts=pa.array([text], pa.string())), SPEC
    )


# Addresses of endpoints in lines


def test_a_line_calls_its_endpoint_what_the_service_calls_it_and_keys_stay():
    rows = Rows(ids=pa.array(["a", "b"]), prompts=pa.array(["x", 'y ,"body":{"z":1}']))
    (plain,) = render_requests(rows, pa.array([0, 1]), SPEC)
    (azure,) = render_requests(rows, pa.array([0, 1]), SPEC, AZURE)
    assert [json.loads(line)["url"] for line in plain.lines] == ["/v1/chat/completions"] * 2
    assert [json.loads(line)["url"] for line in azure.lines] == ["/chat/completions"] * 2
    assert [url_in(line) for line in azure.lines] == ["/chat/completions"] * 2
    assert azure.row_keys == plain.row_keys
    assert azure.body_digests == plain.body_digests
    named, of_azure = row_keys(rows, SPEC), row_keys(rows, SPEC, AZURE)
    assert of_azure.keys == named.keys
    assert of_azure.line_bytes.to_pylist() == list(map(len, azure.lines))

    # And the other way round, out of lines that were written before.
    assert addressed(azure, "/v1/chat/completions") == plain
    assert addressed(plain, "/chat/completions") == azure
    assert addressed(plain, "/v1/chat/completions") is plain


@pytest.mark.parametrize("line", [b"", b"{}", b"x" * 200, b'{"custom_id":"' + b"0" * 32 + b'"}'])
def test_a_line_that_is_none_of_ours_has_no_address(line):
    with pytest.raises(ValueError):
        url_in(line)
