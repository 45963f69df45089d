"""Each call is made once and ends in its value, in Unavailable, or in an error that is final."""

import gzip
import io
import json
import threading
import traceback
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import openai
import pytest

from batchframe.bodies import PARAMETERS
from batchframe.client import Provider, Unavailable
from batchframe.core.batches import BatchError, BatchSeen, BatchStatus, CreateRefused, Usage
from batchframe.core.dialects import Dialect
from batchframe.core.spec import Account
from batchframe.emulator import Fault, JumpClock, LocalServer
from batchframe.errors import (
    AccountMismatchError,
    ApiKeyError,
    AuthenticationError,
    ParameterError,
    ProviderError,
)

ENDPOINT = "/v1/chat/completions"


def lines(n):
    requests = (
        {
            "custom_id": f"row-{i}",
            "method": "POST",
            "url": ENDPOINT,
            "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"p{i}"}]},
        }
        for i in range(n)
    )
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


# The local server, where things go wrong by script


@pytest.fixture
def clock():
    return JumpClock()


@pytest.fixture
def server(clock):
    with LocalServer(clock=clock, stage_seconds=10) as server:
        yield server


@pytest.fixture
def provider(server):
    # With the SDK's own retries on: the provider must switch them off.
    return Provider(server.client(max_retries=2))


def upload(provider, data=None, name="rows.jsonl"):
    data = lines(2) if data is None else data
    return provider.upload(io.BytesIO(data), name, len(data))


def create(provider, file_id, **metadata):
    return provider.create(file_id, endpoint=ENDPOINT, window="24h", metadata=metadata)


def test_a_file_becomes_a_batch_and_its_answers(server, provider, clock):
    file_id = upload(provider)
    batch = create(provider, file_id, token="t", shard="0")
    assert batch.input_file_id == file_id
    assert batch.status is BatchStatus.VALIDATING
    assert batch.metadata == {"token": "t", "shard": "0"}
    assert batch.created_at == int(clock.now())
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    clock.advance(10)
    assert provider.retrieve(batch.batch_id).status is BatchStatus.IN_PROGRESS
    clock.advance(60)
    done = provider.retrieve(batch.batch_id)
    assert done.status is BatchStatus.COMPLETED
    assert done.n_done == 2
    assert done.errors == ()
    bill = server.billed()
    assert (done.usage.input_tokens, done.usage.output_tokens) == (
        bill.input_tokens,
        bill.output_tokens,
    )
    target = io.BytesIO()
    digest = provider.download(done.output_file_id, target)
    assert digest == sha256(target.getvalue()).hexdigest()
    answers = [json.loads(line) for line in target.getvalue().splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == ["row-0", "row-1"]
    assert server.calls()["batches.create"] == 1


def test_what_is_uploaded_is_what_is_kept(provider):
    data = lines(3)
    target = io.BytesIO()
    provider.download(upload(provider, data), target)
    assert target.getvalue() == data


def test_a_batch_that_failed_says_why(provider, clock):
    bad = lines(1) + lines(1)
    batch = create(provider, upload(provider, bad))
    clock.advance(20)
    failed = provider.retrieve(batch.batch_id)
    assert failed.status is BatchStatus.FAILED
    (error,) = failed.errors
    assert (error.code, error.line, error.param) == ("duplicate_custom_id", 2, "custom_id")
    assert "row-0" in error.message


@pytest.mark.parametrize(
    "kind",
    ["reply-lost-after", "reset-before", "lands-late:200"]
    + [f"error-after:{status}" for status in (408, 409, 429, 500, 502, 503, 504)]
    + [f"error-before:{status}" for status in (408, 409, 429, 500, 502, 503, 504)],
)
def test_a_create_without_a_clear_answer_is_unknown_and_sent_once(server, provider, kind):
    file_id = upload(provider)
    server.inject(Fault("batches.create", kind))
    assert isinstance(create(provider, file_id), Unavailable)
    assert server.calls()["batches.create"] == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_create_that_was_clearly_refused_made_no_batch(server, provider, status):
    file_id = upload(provider)
    server.inject(Fault("batches.create", f"error-before:{status}"))
    refusal = create(provider, file_id)
    assert refusal == CreateRefused(code=f"http_{status}", message=refusal.message)
    assert "The server had an error (scripted)." in refusal.message
    assert server.calls()["batches.create"] == 1


def test_a_file_that_is_not_visible_yet_is_a_refusal_that_says_so(server, provider):
    file_id = upload(provider)
    server.inject(Fault("batches.create", "not-visible"))
    refusal = create(provider, file_id)
    assert isinstance(refusal, CreateRefused)
    assert "Cannot find file" in refusal.message
    assert isinstance(create(provider, file_id), BatchSeen)


UNAVAILABLE = ["reset-before", "reply-lost-after", *(f"error-before:{n}" for n in (429, 500, 503))]


@pytest.mark.parametrize("kind", UNAVAILABLE)
@pytest.mark.parametrize(
    "operation",
    [
        "files.create",
        "files.retrieve",
        "files.content",
        "files.delete",
        "batches.list",
        "batches.retrieve",
        "batches.cancel",
    ],
)
def test_every_other_call_is_made_once_and_may_be_made_again(server, provider, operation, kind):
    file_id = upload(provider)
    batch = create(provider, file_id)
    calls = {
        "files.create": lambda: upload(provider),
        "files.retrieve": lambda: provider.download(file_id, io.BytesIO()),
        "files.content": lambda: provider.download(file_id, io.BytesIO()),
        "files.delete": lambda: provider.delete_file(file_id),
        "batches.list": lambda: provider.find(file_id=file_id, token="t", since=0),
        "batches.retrieve": lambda: provider.retrieve(batch.batch_id),
        "batches.cancel": lambda: provider.cancel(batch.batch_id),
    }
    before = server.calls().get(operation, 0)
    server.inject(Fault(operation, kind))
    with pytest.raises(Unavailable):
        calls[operation]()
    assert server.calls()[operation] == before + 1
    calls[operation]()


@pytest.mark.parametrize(
    ("kind", "seconds"), [("error-before:429:17", 17.0), ("error-before:503:0.5", 0.5)]
)
def test_what_the_service_asks_to_wait_is_handed_on(server, provider, kind, seconds):
    server.inject(Fault("batches.list", kind))
    with pytest.raises(Unavailable) as caught:
        provider.find(file_id="file-1", token="t", since=0)
    assert caught.value.retry_after == seconds


def test_without_a_wish_of_the_service_there_is_none(server, provider):
    server.inject(Fault("batches.list", "error-before:429"))
    with pytest.raises(Unavailable) as caught:
        provider.find(file_id="file-1", token="t", since=0)
    assert caught.value.retry_after is None


@pytest.mark.parametrize("kind", ["truncate:100", "truncate-silent:100"])
def test_a_download_that_was_cut_is_taken_up_where_it_was(server, provider, kind):
    file_id = upload(provider)
    whole = io.BytesIO()
    digest = provider.download(file_id, whole)
    server.inject(Fault("files.content", kind))
    taken_up = io.BytesIO()
    assert provider.download(file_id, taken_up) == digest
    assert taken_up.getvalue() == whole.getvalue()


@pytest.mark.parametrize("kind", ["truncate-silent:0", "error-before:500"])
def test_a_download_that_brings_nothing_is_not_a_download(server, provider, kind):
    file_id = upload(provider)
    server.inject(Fault("files.content", kind, times=2))
    with pytest.raises(Unavailable):
        provider.download(file_id, io.BytesIO())


def test_empty_file_ids_are_no_files(server, provider, clock):
    batch = create(provider, upload(provider))
    clock.advance(100)
    server.inject(Fault("batches.retrieve", "empty-file-ids"))
    seen = provider.retrieve(batch.batch_id)
    assert seen.output_file_id.startswith("file-")
    assert seen.error_file_id is None


def test_counts_that_are_null_are_none_done(server, provider, clock):
    batch = create(provider, upload(provider))
    clock.advance(100)
    server.inject(Fault("batches.retrieve", "null-counts"))
    assert provider.retrieve(batch.batch_id).n_done == 0


@pytest.mark.parametrize("word", ["pondering", "in-progress", "unknown", "COMPLETE", "none"])
def test_a_status_that_nobody_knows_is_still_running(server, provider, word):
    batch = create(provider, upload(provider))
    server.inject(Fault("batches.retrieve", f"unknown-status:{word}"))
    seen = provider.retrieve(batch.batch_id)
    assert seen.status is BatchStatus.UNKNOWN
    assert not seen.status.is_final


@pytest.mark.parametrize("word", [*BatchStatus, "COMPLETED", "canceled", "Failed"])
def test_the_statuses_of_the_service_are_read_whatever_their_spelling(server, provider, word):
    batch = create(provider, upload(provider))
    server.inject(Fault("batches.retrieve", f"unknown-status:{word}"))
    expected = {"COMPLETED": "completed", "canceled": "cancelled", "Failed": "failed"}
    assert provider.retrieve(batch.batch_id).status == expected.get(word, word)


# Finding a batch again


def test_a_batch_whose_reply_was_lost_is_found_by_its_file(server, provider, clock):
    since = clock.now()
    others = [create(provider, upload(provider)) for _ in range(3)]
    file_id = upload(provider)
    server.inject(Fault("batches.create", "reply-lost-after"))
    assert isinstance(create(provider, file_id, token="t"), Unavailable)
    (found,) = provider.find(file_id=file_id, token="", since=since)
    assert found.input_file_id == file_id
    assert found.batch_id not in {other.batch_id for other in others}
    assert server.calls()["batches.create"] == 4


def test_a_batch_is_found_by_its_token_where_the_file_is_not_named(provider, clock):
    batch = create(provider, upload(provider), token="t")
    create(provider, upload(provider), token="other")
    (found,) = provider.find(file_id="file-other", token="t", since=clock.now())
    assert found.batch_id == batch.batch_id


def test_several_batches_of_one_file_come_the_oldest_first(provider, clock):
    file_id = upload(provider)
    made = []
    for _ in range(3):
        made.append(create(provider, file_id).batch_id)
        clock.advance(5)
    found = provider.find(file_id=file_id, token="t", since=clock.now())
    assert [batch.batch_id for batch in found] == made


def test_a_batch_that_is_nowhere_is_not_found(provider, clock):
    create(provider, upload(provider))
    assert provider.find(file_id="file-x", token="t", since=clock.now()) == []


def test_a_batch_on_a_later_page_is_found(server, provider, clock):
    since = clock.now()
    file_id, other = upload(provider), upload(provider)
    batch = create(provider, file_id)
    for _ in range(205):
        create(provider, other)
    (found,) = provider.find(file_id=file_id, token="t", since=since)
    assert found.batch_id == batch.batch_id
    assert server.calls()["batches.list"] == 3


def test_the_listing_ends_where_batches_are_older_than_the_intent(server, provider, clock):
    other = upload(provider)
    for _ in range(101):
        create(provider, other)
    clock.advance(901)
    batch = create(provider, upload(provider), token="t")
    (found,) = provider.find(file_id="file-x", token="t", since=clock.now())
    assert found.batch_id == batch.batch_id
    assert server.calls()["batches.list"] == 1


# Cancelling and deleting


def test_a_batch_is_cancelled(provider, clock):
    batch = create(provider, upload(provider))
    provider.cancel(batch.batch_id)
    assert provider.retrieve(batch.batch_id).status is BatchStatus.CANCELLING
    clock.advance(100)
    assert provider.retrieve(batch.batch_id).status is BatchStatus.CANCELLED


def test_to_cancel_a_batch_that_ended_by_itself_is_fine(provider, clock):
    batch = create(provider, upload(provider))
    clock.advance(100)
    provider.cancel(batch.batch_id)
    assert provider.retrieve(batch.batch_id).status is BatchStatus.COMPLETED


def test_a_file_is_deleted_and_to_delete_it_again_is_fine(server, provider):
    file_id = upload(provider)
    provider.delete_file(file_id)
    provider.delete_file(file_id)
    assert server.calls()["files.delete"] == 2
    with pytest.raises(AccountMismatchError):
        provider.download(file_id, io.BytesIO())


# What another account's key sees


def test_a_known_batch_that_is_not_found_is_a_matter_of_the_key(provider):
    with pytest.raises(AccountMismatchError) as caught:
        provider.retrieve("batch_of_another_project")
    assert "The batch batch_of_another_project was made by this checkpoint" in str(caught.value)
    assert "Nothing is sent again." in str(caught.value)


@pytest.mark.parametrize("name", ["", "batch", "file-1/../../x", "batch_1?x", "batch_ä", "b-1"])
def test_an_id_that_would_change_the_address_is_never_sent(server, provider, name):
    for call in (
        provider.retrieve,
        provider.cancel,
        provider.delete_file,
        lambda name: provider.download(name, io.BytesIO()),
    ):
        with pytest.raises(ProviderError) as caught:
            call(name)
        assert str(caught.value) == f"{name!r} is no id of a batch or file; nothing was asked."
    assert server.calls() == {}


# Raw answers, which no good server gives


class RawServer:
    """Answers with the scripted replies, the last again and again, and notes what was asked."""

    def __init__(self):
        self.replies = []
        self.asked = []
        self.credentials = []
        self.encodings = []
        self.headers = {}
        outer = self

        #: Bytes that a file's reply promises and does not send.
        self.unsent = 0

        class Handler(BaseHTTPRequestHandler):
            def reply(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked.append(f"{self.command} {self.path}")
                outer.credentials.append(self.headers["authorization"] or self.headers["api-key"])
                outer.encodings.append(self.headers["accept-encoding"])
                replies = outer.replies
                status, kind, body = replies.pop(0) if len(replies) > 1 else replies[0]
                self.send_response(status)
                for name, value in {"content-type": kind, **outer.headers}.items():
                    self.send_header(name, value)
                unsent = outer.unsent if self.path.endswith("/content") else 0
                self.send_header("content-length", str(len(body) + unsent))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = reply  # noqa: N815 - the library's names

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self):
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answers(self, *bodies, status=200, kind="application/json"):
        self.replies = [
            (status, kind, body if isinstance(body, bytes) else json.dumps(body).encode())
            for body in bodies
        ]

    def refuses(self, status, **error):
        self.answers({"error": error}, status=status)


@pytest.fixture
def raw():
    server = RawServer()
    yield server
    server.close()


@pytest.fixture
def raw_provider(raw):
    with openai.OpenAI(base_url=raw.url, api_key="sk-secret-1234") as client:
        yield Provider(client)


#: All that a batch must have to be one.
BATCH = {"id": "batch_1", "object": "batch", "status": "in_progress"}
SEEN = BatchSeen(
    batch_id="batch_1", input_file_id="", status=BatchStatus.IN_PROGRESS, created_at=0.0
)
PAGE = b"<html><body>Log in to the hotel's network</body></html>"

CALLS = {
    "upload": upload,
    "retrieve": lambda provider: provider.retrieve("batch_1"),
    "find": lambda provider: provider.find(file_id="file-1", token="t", since=0),
    "download": lambda provider: provider.download("file-1", io.BytesIO()),
    "delete": lambda provider: provider.delete_file("file-1"),
    "cancel": lambda provider: provider.cancel("batch_1"),
}


def test_a_file_is_asked_for_as_it_is(raw, raw_provider):
    raw.answers({"bytes": 5}, b"a row")
    target = io.BytesIO()

    raw_provider.download("file-1", target)

    # Of compressed bytes a broken download could not be taken up where it was.
    assert (target.getvalue(), raw.encodings[-1]) == (b"a row", "identity")


def test_a_file_that_a_proxy_compresses_badly_is_asked_for_again_later(raw, raw_provider):
    raw.headers = {"content-encoding": "gzip"}
    raw.answers(gzip.compress(b'{"bytes": 5}'), b"a row")

    with pytest.raises(Unavailable, match="DecodingError"):
        raw_provider.download("file-1", io.BytesIO())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (PAGE, "text/html"),
        (PAGE, "application/json"),
        (b"", "application/json"),
        (b"", "text/plain"),
        (b"null", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b"17", "application/json"),
        (b'{"id": ', "application/json"),
    ],
    ids=str,
)
def test_an_answer_that_is_none_is_asked_for_again_later(raw, raw_provider, call, body, kind):
    raw.answers(body, kind=kind)
    with pytest.raises(Unavailable):
        CALLS[call](raw_provider)
    assert len(raw.asked) == 1


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (PAGE, "text/html"),
        (PAGE, "application/json"),
        (b"", "application/json"),
        (b"null", "application/json"),
        (b"{}", "application/json"),
        (b'{"id": null}', "application/json"),
        (b'{"id": "batch_1/cancel"}', "application/json"),
        (b'{"id": ', "application/json"),
    ],
    ids=str,
)
def test_a_create_whose_answer_is_none_is_unknown_and_sent_once(raw, raw_provider, body, kind):
    raw.answers(body, kind=kind)
    assert isinstance(create(raw_provider, "file-1"), Unavailable)
    assert raw.asked == ["POST /v1/batches"]


@pytest.mark.parametrize("status", [400, 403, 404, 413])
def test_a_proxys_page_is_no_refusal_of_the_service(raw, raw_provider, status):
    raw.answers(PAGE, status=status, kind="text/html")
    assert isinstance(create(raw_provider, "file-1"), Unavailable)
    assert raw.asked == ["POST /v1/batches"]


def test_a_refused_create_does_not_repeat_the_key(raw, raw_provider):
    raw.refuses(401, code="invalid_api_key", message="Incorrect API key: sk-secret-1234.")
    refusal = create(raw_provider, "file-1")
    assert refusal.code == "invalid_api_key"
    assert "Incorrect API key" in refusal.message
    assert "secret" not in refusal.message


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_an_error_that_does_not_show_it(raw, raw_provider, call, status):
    raw.refuses(status, code="invalid_api_key", message="Incorrect API key: sk-secret-1234.")
    with pytest.raises(AuthenticationError) as caught:
        CALLS[call](raw_provider)
    assert f"HTTP {status}, invalid_api_key, " in str(caught.value)
    assert "it resumes" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    # Nor does what a notebook or a log prints of it.
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert len(raw.asked) == 1


@pytest.mark.parametrize("call", CALLS)
def test_an_account_without_money_is_not_a_busy_service(raw, raw_provider, call):
    raw.refuses(429, code="insufficient_quota", message="You exceeded your current quota.")
    with pytest.raises(ProviderError, match="Add credit to the account"):
        CALLS[call](raw_provider)
    assert len(raw.asked) == 1


@pytest.mark.parametrize("call", ["upload", "find", "retrieve", "download", "cancel"])
def test_a_bad_request_stays_bad(raw, raw_provider, call):
    raw.refuses(400, code="invalid_value", message="Invalid value.")
    with pytest.raises(ProviderError, match=r"HTTP 400, invalid_value, .*Invalid value"):
        CALLS[call](raw_provider)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("retrieve", AccountMismatchError),
        ("download", AccountMismatchError),
        ("upload", ProviderError),
        ("find", ProviderError),
        ("cancel", ProviderError),
    ],
)
def test_only_what_we_know_can_be_missing(raw, raw_provider, call, error):
    raw.refuses(404, message="Not found")
    with pytest.raises(error) as caught:
        CALLS[call](raw_provider)
    assert type(caught.value) is error


@pytest.mark.parametrize("wish", ["Wed, 21 Oct 2026 07:28:00 GMT", "soon", "", "nan", "inf", "-5"])
def test_a_wish_in_other_words_than_seconds_is_none(raw, raw_provider, wish):
    raw.answers({"error": {}}, status=503)
    raw.headers["retry-after"] = wish
    with pytest.raises(Unavailable) as caught:
        raw_provider.retrieve("batch_1")
    assert caught.value.retry_after is None


def test_nobody_there_is_unavailable_and_a_create_unknown(raw, raw_provider):
    raw.close()
    raw.close = lambda: None
    for call in CALLS.values():
        with pytest.raises(Unavailable):
            call(raw_provider)
    assert isinstance(create(raw_provider, "file-1"), Unavailable)


# Batches as other services write them


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        (dict.fromkeys(("errors", "request_counts", "metadata", "usage", "created_at")), {}),
        ({"errors": {}}, {}),
        ({"errors": {"data": None}}, {}),
        ({"errors": []}, {}),
        ({"errors": "none"}, {}),
        ({"errors": {"data": ["bad", None]}}, {"errors": (BatchError(code="", message="bad"),)}),
        (
            {"errors": {"data": [{"code": "c", "message": "m", "line": 3, "param": "p"}]}},
            {"errors": (BatchError(code="c", message="m", line=3, param="p"),)},
        ),
        (
            {"errors": {"data": [{"code": None, "line": "3", "param": 4}]}},
            {"errors": (BatchError(code="", message=""),)},
        ),
        (
            {"request_counts": {"total": 9, "completed": 3, "failed": 2}},
            {"n_done": 5, "n_answered": 3},
        ),
        ({"request_counts": {"completed": None}}, {}),
        ({"request_counts": []}, {}),
        ({"request_counts": [1]}, {}),
        ({"metadata": {"token": "t"}}, {"metadata": {"token": "t"}}),
        ({"metadata": {"shard": 3}}, {"metadata": {"shard": "3"}}),
        ({"metadata": []}, {}),
        ({"metadata": "x"}, {}),
        ({"created_at": 1700000000}, {"created_at": 1700000000}),
        ({"created_at": 1700000000.5}, {"created_at": 1700000000.5}),
        ({"created_at": "yesterday"}, {}),
        ({"input_file_id": "file-7"}, {"input_file_id": "file-7"}),
        ({"output_file_id": "", "error_file_id": ""}, {}),
        ({"output_file_id": "file-8"}, {"output_file_id": "file-8"}),
        ({"usage": {}}, {"usage": Usage(**dict.fromkeys(Usage.__struct_fields__, 0))}),
        (
            {
                "usage": {
                    "input_tokens": 5,
                    "input_tokens_details": {"cached_tokens": 2},
                    "output_tokens": 7,
                    "output_tokens_details": {"reasoning_tokens": 3},
                    "total_tokens": 12,
                }
            },
            {"usage": Usage(input_tokens=5, cached_tokens=2, output_tokens=7, reasoning_tokens=3)},
        ),
        (
            {"usage": {"input_tokens": 5, "input_tokens_details": 2}},
            {"usage": Usage(input_tokens=5, cached_tokens=0, output_tokens=0, reasoning_tokens=0)},
        ),
        ({"something": {"new": [1]}}, {}),
    ],
    ids=str,
)
def test_a_batch_is_read_whatever_of_it_is_missing_or_odd(raw, raw_provider, fields, expected):
    raw.answers(BATCH | fields)
    wanted = {name: getattr(SEEN, name) for name in BatchSeen.__struct_fields__} | expected
    assert raw_provider.retrieve("batch_1") == BatchSeen(**wanted)
    raw.asked.clear()
    assert create(raw_provider, "file-1") == BatchSeen(**wanted)
    assert raw.asked == ["POST /v1/batches"]


def a_page(*batches, has_more=False, **fields):
    return {"object": "list", "data": list(batches), "has_more": has_more, **fields}


def a_batch(number, **fields):
    return BATCH | {"id": f"batch_{number}", "created_at": 5000 - number, **fields}


def find(provider):
    found = provider.find(file_id="file-1", token="t", since=5000.0)
    return [batch.batch_id for batch in found]


def test_pages_are_read_until_there_are_no_more(raw, raw_provider):
    raw.answers(
        a_page(a_batch(1), a_batch(2), has_more=True),
        a_page(a_batch(3, input_file_id="file-1"), has_more=True),
        a_page(),
    )
    assert find(raw_provider) == ["batch_3"]
    assert [asked.partition("?")[2] for asked in raw.asked] == [
        "limit=100",
        "after=batch_2&limit=100",
        "after=batch_3&limit=100",
    ]


def test_a_page_that_does_not_say_whether_there_are_more_is_not_the_last(raw, raw_provider):
    raw.answers(
        a_page(a_batch(1), has_more=None), a_page(a_batch(2, metadata={"token": "t"})), a_page()
    )
    assert find(raw_provider) == ["batch_2"]


def test_a_service_that_has_one_page_only_gives_it_again_and_is_done(raw, raw_provider):
    raw.answers(a_page(a_batch(1, input_file_id="file-1"), a_batch(2), has_more=None))
    assert find(raw_provider) == ["batch_1"]
    assert len(raw.asked) == 2


def test_a_listing_that_promises_more_and_repeats_itself_is_no_complete_one(raw, raw_provider):
    raw.answers(a_page(a_batch(1), a_batch(2), has_more=True))
    with pytest.raises(Unavailable, match="repeats itself"):
        find(raw_provider)
    assert len(raw.asked) == 2


@pytest.mark.parametrize("created_at", [None, "yesterday", 0])
def test_a_batch_without_a_date_does_not_end_the_listing(raw, raw_provider, created_at):
    raw.answers(
        a_page(a_batch(1, created_at=created_at), has_more=True),
        a_page(a_batch(2, input_file_id="file-1")),
    )
    assert find(raw_provider) == ["batch_2"]


ODD_BATCHES = [
    {"object": "batch"},
    BATCH | {"id": None},
    BATCH | {"id": 7},
    BATCH | {"id": "prod/eu#1", "input_file_id": "file-1", "metadata": {"token": "t"}},
    {},
    None,
    "batch_9",
]


@pytest.mark.parametrize("odd", ODD_BATCHES, ids=str)
def test_somebody_elses_batch_with_an_odd_id_does_not_hide_ours(raw, raw_provider, odd):
    raw.answers(
        a_page(odd, a_batch(1), odd, has_more=True), a_page(odd, a_batch(2, input_file_id="file-1"))
    )
    assert find(raw_provider) == ["batch_2"]
    assert [asked.partition("?")[2] for asked in raw.asked] == [
        "limit=100",
        "after=batch_1&limit=100",
    ]


@pytest.mark.parametrize("has_more", [True, None])
def test_a_page_of_odd_ids_only_is_not_the_end_of_the_listing(raw, raw_provider, has_more):
    raw.answers(a_page(*ODD_BATCHES, has_more=has_more), a_page(a_batch(1, input_file_id="file-1")))
    with pytest.raises(Unavailable, match="no usable id, and there are more"):
        find(raw_provider)


def test_a_last_page_of_odd_ids_only_is_the_end_of_the_listing(raw, raw_provider):
    raw.answers(
        a_page(a_batch(1, input_file_id="file-1"), has_more=True),
        a_page(*ODD_BATCHES, has_more=False),
    )
    assert find(raw_provider) == ["batch_1"]


@pytest.mark.parametrize(
    "ours",
    [{"input_file_id": "file-1"}, {"input_file_id": None, "metadata": {"token": "t"}}],
    ids=["by its file", "by its token"],
)
@pytest.mark.parametrize("name", ["prod/eu#1", "job.7", 7])
def test_our_batch_with_an_odd_id_is_not_taken_for_none(raw, raw_provider, name, ours):
    raw.answers(a_page(a_batch(1), BATCH | {"id": name, **ours}, has_more=False))
    with pytest.raises(ProviderError, match=r"Nothing is sent again.*bf\.Dialect"):
        find(raw_provider)


def old(number, seconds_ago):
    """A batch from before the intent, which is of second 5000."""
    return a_batch(number, created_at=5000 - seconds_ago)


@pytest.mark.parametrize(
    "first_page",
    [
        [old(1, 3000), old(2, 2000)],
        [old(1, 3000), old(2, 3000), old(3, 10)],
        [old(1, 2000), old(2, 3000), old(3, 2500)],
        [old(1, 10), old(2, 3000), old(3, 10)],
        # Nobody can tell the order of these.
        [old(1, 3000)],
        [old(1, 3000), old(2, 3000)],
    ],
    ids=["oldest first", "oldest first, ours next", "unsorted", "first alike", "one", "alike"],
)
def test_a_listing_that_is_not_newest_first_is_read_to_its_end(raw, raw_provider, first_page):
    raw.answers(
        a_page(*first_page, has_more=True),
        a_page(a_batch(7, created_at=5001, input_file_id="file-1"), has_more=False),
    )
    assert find(raw_provider) == ["batch_7"]
    assert len(raw.asked) == 2


@pytest.mark.parametrize(("seconds_ago", "n_pages"), [(901, 1), (900, 2), (899, 2)])
def test_a_newest_first_listing_ends_a_clocks_error_before_the_intent(
    raw, raw_provider, seconds_ago, n_pages
):
    raw.answers(
        a_page(a_batch(1, input_file_id="file-1"), old(2, seconds_ago), has_more=True),
        a_page(old(3, 5000), has_more=False),
    )
    assert find(raw_provider) == ["batch_1"]
    assert len(raw.asked) == n_pages


@pytest.mark.parametrize("data", [None, "x", {}])
def test_a_page_without_a_list_is_no_complete_listing(raw, raw_provider, data):
    raw.answers({"object": "list", "data": data, "has_more": False})
    with pytest.raises(Unavailable):
        find(raw_provider)


# Files as other services write them


@pytest.mark.parametrize(("size", "fits"), [(None, True), (3, True), (2, False), (4, False)])
def test_an_upload_must_have_arrived_whole(raw, raw_provider, size, fits):
    raw.answers({"id": "file-1", "object": "file", "bytes": size})
    if fits:
        assert raw_provider.upload(io.BytesIO(b"{}\n"), "x.jsonl", 3) == "file-1"
        assert raw.asked == ["POST /v1/files"]
    else:
        with pytest.raises(Unavailable, match=f"{size} of 3 bytes arrived"):
            raw_provider.upload(io.BytesIO(b"{}\n"), "x.jsonl", 3)
        assert raw.asked == ["POST /v1/files", "DELETE /v1/files/file-1"]


@pytest.mark.parametrize("size", ["3", "three", [], {}, 3.5], ids=str)
def test_an_upload_whose_size_is_not_ours_in_whatever_words_is_none(raw, raw_provider, size):
    raw.answers({"id": "file-1", "object": "file", "bytes": size})
    with pytest.raises(Unavailable, match="of 3 bytes arrived"):
        raw_provider.upload(io.BytesIO(b"{}\n"), "x.jsonl", 3)


@pytest.mark.parametrize("status", [400, 403, 404, 405, 429, 500])
def test_an_upload_that_cannot_be_deleted_may_still_be_made_again(raw, raw_provider, status):
    raw.replies = [
        (200, "application/json", b'{"id": "file-1", "bytes": 2}'),
        (status, "application/json", b'{"error": {"message": "no"}}'),
    ]
    with pytest.raises(Unavailable, match="2 of 3 bytes arrived"):
        raw_provider.upload(io.BytesIO(b"{}\n"), "x.jsonl", 3)
    assert raw.asked == ["POST /v1/files", "DELETE /v1/files/file-1"]


@pytest.mark.parametrize("name", [None, "", 7, "../x"])
def test_an_upload_without_a_usable_id_is_none(raw, raw_provider, name):
    raw.answers({"id": name, "object": "file"})
    with pytest.raises(Unavailable, match="no usable id"):
        upload(raw_provider)


@pytest.mark.parametrize(("size", "fits"), [(None, True), (3, True), (2, False), (4, False)])
def test_a_download_must_be_as_long_as_its_file(raw, raw_provider, size, fits):
    raw.answers({"id": "file-1", "object": "file", "bytes": size}, b"{}\n")
    target = io.BytesIO()
    if fits:
        assert raw_provider.download("file-1", target) == sha256(b"{}\n").hexdigest()
        assert target.getvalue() == b"{}\n"
    else:
        with pytest.raises(Unavailable, match=f"3 of {size} bytes came"):
            raw_provider.download("file-1", target)


def test_a_download_that_breaks_off_at_its_very_end_is_whole(raw, raw_provider):
    raw.answers({"id": "file-1", "object": "file", "bytes": 3}, b"{}\n")
    raw.unsent = 5
    target = io.BytesIO()
    assert raw_provider.download("file-1", target) == sha256(b"{}\n").hexdigest()
    assert raw.asked == ["GET /v1/files/file-1", "GET /v1/files/file-1/content"]


# The client that is taken, or made


def test_the_account_is_that_of_the_client():
    with openai.OpenAI(api_key="sk-x", organization="org", project="proj") as client:
        assert Provider(client).account == Account(
            base_url="https://api.openai.com/v1/", organization="org", project="proj"
        )


def test_the_users_client_keeps_its_own_retries(server):
    client = server.client(max_retries=5)
    Provider(client)
    assert client.max_retries == 5


def test_without_a_client_one_is_made_from_the_environment(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    provider = Provider()
    assert provider.account == Account(base_url="https://api.openai.com/v1/")
    provider._client.close()


def test_an_empty_key_is_no_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "")
    with pytest.raises(ApiKeyError, match="blank, or holds white space"):
        Provider()


def test_without_a_key_the_message_says_how_to_set_one(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ApiKeyError, match="Set the environment variable OPENAI_API_KEY"):
        Provider()


@pytest.mark.parametrize("key", [" ", "\n", "sk-secret\n", " sk-secret", "sk secret"])
def test_a_broken_key_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ApiKeyError, match="blank, or holds white space") as caught:
        Provider()
    assert "secret" not in str(caught.value)
    with openai.OpenAI(api_key=key) as client, pytest.raises(ApiKeyError) as caught:
        Provider(client)
    assert "secret" not in str(caught.value)


def test_a_client_whose_key_comes_from_a_function_is_taken_and_asks_it_each_time(raw):
    keys = iter(["sk-first", "sk-second"])
    raw.answers(BATCH)
    with openai.OpenAI(base_url=raw.url, api_key=lambda: next(keys)) as client:
        provider = Provider(client)
        assert raw.asked == []
        for _ in range(2):
            assert provider.retrieve("batch_1") == SEEN
    assert raw.credentials == ["Bearer sk-first", "Bearer sk-second"]


@pytest.mark.parametrize(
    ("credentials", "sent"),
    [
        ({"azure_ad_token": "a-token"}, "Bearer a-token"),
        ({"azure_ad_token_provider": lambda: "a-fresh-token"}, "Bearer a-fresh-token"),
        ({"api_key": "a-key"}, "a-key"),
    ],
    ids=["token", "function", "key"],
)
def test_a_client_of_azure_is_taken_with_its_own_credentials(raw, monkeypatch, credentials, sent):
    for name in ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    raw.answers(BATCH)
    azure = openai.AzureOpenAI(base_url=raw.url, api_version="2024-10-21", **credentials)
    with azure as client:
        provider = Provider(client)
        assert provider.retrieve("batch_1") == SEEN
        assert provider.account.base_url == f"{raw.url}/"
    assert raw.asked == ["GET /v1/batches/batch_1?api-version=2024-10-21"]
    assert raw.credentials == [sent]


@pytest.mark.parametrize("key", [" ", "secret\n"])
def test_a_broken_key_of_azure_is_refused_as_well(key):
    azure = openai.AzureOpenAI(base_url="https://x.example/", api_version="1", api_key=key)
    with azure as client, pytest.raises(ApiKeyError, match="blank, or holds white space"):
        Provider(client)


def test_the_account_of_azure_is_the_resource_whatever_deployment_a_client_names():
    accounts = set()
    for deployment in (None, "gpt-4o", "my-other.one"):
        azure = openai.AzureOpenAI(
            azure_endpoint="https://contoso.openai.azure.com",
            azure_deployment=deployment,
            api_version="2025-04-01-preview",
            api_key="k",
        )
        with azure as client:
            accounts.add(Provider(client).account.base_url)
    assert accounts == {"https://contoso.openai.azure.com/openai/"}


# Other services


def spoken(raw, dialect):
    with openai.OpenAI(base_url=raw.url, api_key="sk-secret-1234") as client:
        yield Provider(client, dialect)


@pytest.fixture
def linking(raw):
    """A service whose batches name their results by addresses."""
    yield from spoken(raw, "siliconflow")


def test_an_address_of_results_is_no_id_and_stays_out_of_what_is_kept(raw, linking):
    link = f"{raw.url}/results?signature=s"
    raw.answers({**BATCH, "output_file_id": link, "error_file_id": "file-e"})
    seen = linking.retrieve("batch_1")
    assert (seen.output_file_id, seen.error_file_id) == ("file-output-of-batch_1", "file-e")


def test_an_address_of_results_stays_out_of_what_is_kept_whoever_it_is_taken_for(raw, raw_provider):
    raw.answers({**BATCH, "output_file_id": "https://elsewhere.example/results?signature=s"})
    seen = raw_provider.retrieve("batch_1")
    assert seen.output_file_id == "file-output-of-batch_1"
    before = list(raw.asked)
    with pytest.raises(ProviderError, match="dialect='siliconflow'"):
        raw_provider.download(seen.output_file_id, io.BytesIO())
    assert raw.asked == before


def test_results_at_an_address_are_asked_for_without_the_key(raw, linking):
    link = f"{raw.url}/results?signature=s"
    raw.answers({**BATCH, "output_file_id": link}, b'{"custom_id":"a"}\n')
    target = io.BytesIO()
    linking.download("file-output-of-batch_1", target)
    assert target.getvalue() == b'{"custom_id":"a"}\n'
    assert raw.asked == ["GET /v1/batches/batch_1", "GET /v1/results?signature=s"]
    assert raw.credentials == ["Bearer sk-secret-1234", None]


@pytest.mark.parametrize(
    "link",
    [
        "http://example.com/results",
        "file:///etc/passwd",
        "ftp://127.0.0.1/results",
        "https://[bad/results",
        "https://example.com/\0",
        "results",
        "",
        None,
        7,
    ],
)
def test_an_address_that_could_be_read_on_the_way_is_not_asked(raw, linking, link):
    raw.answers({**BATCH, "output_file_id": link})
    with pytest.raises(Unavailable, match="no address of its results"):
        linking.download("file-output-of-batch_1", io.BytesIO())
    assert raw.asked == ["GET /v1/batches/batch_1"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "localhost.",
        "a.localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "[::]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "10.0.0.1",
        "169.254.169.254",
        "metadata",
        "metadata.google.internal",
        "printer.local",
    ],
)
def test_a_service_elsewhere_cannot_have_our_own_network_asked(host):
    asked = []

    def reroute(request):
        asked.append(request.url.host)
        return httpx2.Response(200, json={**BATCH, "output_file_id": f"https://{host}/secrets"})

    http = httpx2.Client(transport=httpx2.MockTransport(reroute))
    address = "https://api.siliconflow.cn/v1"
    with openai.OpenAI(base_url=address, api_key="k", http_client=http) as client:
        provider = Provider(client)
        with pytest.raises(Unavailable, match="an address of our own network"):
            provider.download("file-output-of-batch_1", io.BytesIO())
    assert asked == ["api.siliconflow.cn"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, AccountMismatchError),
        (410, AccountMismatchError),
        (302, Unavailable),
        (503, Unavailable),
    ],
)
def test_an_address_that_gives_no_results_is_asked_again_unless_they_are_gone(status, error):
    def answer(request):
        if request.url.path == "/results":
            return httpx2.Response(status, headers={"location": "https://elsewhere.example/"})
        return httpx2.Response(200, json={**BATCH, "output_file_id": "https://x.example/results"})

    http = httpx2.Client(transport=httpx2.MockTransport(answer), follow_redirects=True)
    address = "https://api.siliconflow.cn/v1"
    with (
        openai.OpenAI(base_url=address, api_key="k", http_client=http) as client,
        pytest.raises(error),
    ):
        Provider(client).download("file-output-of-batch_1", io.BytesIO())


def test_results_at_an_address_are_not_deleted_as_they_have_no_id(raw, linking):
    linking.delete_file("file-output-of-batch_1")
    assert raw.asked == []


def test_elsewhere_such_an_id_is_one_like_all_others(raw, raw_provider):
    raw.answers({"id": "file-output-of-batch_1", "deleted": True})
    raw_provider.delete_file("file-output-of-batch_1")
    assert raw.asked == ["DELETE /v1/files/file-output-of-batch_1"]


def test_an_upload_is_read_where_it_is_in_an_envelope(raw, raw_provider):
    raw.answers({"code": 20000, "status": True, "data": {"id": "file-1", "bytes": len(lines(2))}})
    assert upload(raw_provider) == "file-1"


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([{"code": "c", "message": "m", "line": 4}], BatchError(code="c", message="m", line=4)),
        (["in a text"], BatchError(code="", message="in a text")),
    ],
)
def test_reasons_are_read_without_their_envelope(raw, raw_provider, errors, expected):
    raw.answers({**BATCH, "status": "failed", "errors": errors})
    assert raw_provider.retrieve("batch_1").errors == (expected,)


@pytest.mark.parametrize("word", ["completed", "FAILED", "Canceled", "expired"])
def test_to_cancel_what_has_ended_is_no_error_though_the_service_says_so(word):
    def answer(request):
        if request.url.path.endswith("/cancel"):
            return httpx2.Response(400, json={"error": {"message": "it has ended"}})
        return httpx2.Response(200, json={**BATCH, "status": word})

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with openai.OpenAI(base_url="https://x.example", api_key="k", http_client=http) as client:
        Provider(client).cancel("batch_1")


@pytest.mark.parametrize("word", ["in_progress", "validating", "pondering"])
def test_to_be_refused_to_cancel_what_runs_is_an_error(word):
    def answer(request):
        if request.url.path.endswith("/cancel"):
            return httpx2.Response(400, json={"error": {"message": "not now"}})
        return httpx2.Response(200, json={**BATCH, "status": word})

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with (
        openai.OpenAI(base_url="https://x.example", api_key="k", http_client=http) as client,
        pytest.raises(ProviderError, match="not now"),
    ):
        Provider(client).cancel("batch_1")


def test_metadata_is_left_out_where_it_is_not_taken():
    sent = []

    def answer(request):
        sent.append(json.loads(request.content))
        return httpx2.Response(201, json=BATCH)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    for takes in (True, False):
        dialect = Dialect(name="house", takes_metadata=takes)
        with openai.OpenAI(base_url="https://x.example", api_key="k", http_client=http) as client:
            assert create(Provider(client, dialect), "file-1", token="t").batch_id == "batch_1"
        http = httpx2.Client(transport=httpx2.MockTransport(answer))
    assert [body.get("metadata") for body in sent] == [{"token": "t"}, None]
    assert "metadata" not in sent[1]


@pytest.mark.parametrize(
    "address",
    [
        "https://api.openai.com/v1/",
        "https://proxy.example:8443/openai/",
        "http://127.0.0.1:8000/v1/",
        "http://127.9.9.9/v1/",
        "http://localhost:8000/v1/",
        "http://[::1]:8000/v1/",
    ],
)
def test_addresses_that_keep_the_key_private_are_taken(address):
    with openai.OpenAI(api_key="sk-x", base_url=address) as client:
        assert Provider(client).account.base_url == address


@pytest.mark.parametrize(
    "address",
    [
        "http://api.openai.com/v1/",
        "http://192.168.0.7/v1/",
        "http://localhost.example/v1/",
        "http://127.0.0.1.example/v1/",
        "http://127.0.0.1@example.com/v1/",
        "ftp://127.0.0.1/v1/",
    ],
)
def test_addresses_that_would_show_the_key_are_refused(address):
    with (
        openai.OpenAI(api_key="sk-x", base_url=address) as client,
        pytest.raises(ParameterError, match="is not https"),
    ):
        Provider(client)


def test_the_parameters_of_a_chat_completion_are_known():
    chat, responses = PARAMETERS["/v1/chat/completions"], PARAMETERS["/v1/responses"]
    assert {"messages", "model", "temperature", "seed", "response_format"} <= chat
    assert {"input", "model", "temperature", "max_output_tokens", "reasoning"} <= responses
    assert "checkpiont" not in chat | responses
