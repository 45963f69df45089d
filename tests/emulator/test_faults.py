import json

import httpx2
import openai
import pytest

from batchframe.emulator import Fault
from batchframe.emulator.faults import KINDS, MISHAPS

HOUR = 3600
ENDPOINT = "/v1/chat/completions"


def _ids(bench):
    return [batch.id for batch in bench.client.batches.list()]


def test_a_lost_reply_leaves_the_batch_there(serve):
    bench = serve(faults=[Fault("batches.create", "reply-lost-after")])
    file = bench.upload(bench.lines(1))
    with pytest.raises(openai.APIConnectionError):
        bench.create(file.id)
    (found,) = bench.client.batches.list().data
    assert found.input_file_id == file.id

    second = bench.create(file.id)
    assert _ids(bench) == [second.id, found.id]


def test_a_reset_before_leaves_nothing(serve):
    bench = serve(faults=[Fault("batches.create", "reset-before")])
    file = bench.upload(bench.lines(1))
    with pytest.raises(openai.APIConnectionError):
        bench.create(file.id)

    assert _ids(bench) == []
    assert bench.server.calls()["batches.create"] == 1


def test_a_lost_upload_leaves_the_file_there(serve):
    bench = serve(faults=[Fault("files.create", "reply-lost-after")])
    with pytest.raises(openai.APIConnectionError):
        bench.upload(bench.lines(2))

    assert [file.bytes for file in bench.client.files.list()] == [len(bench.lines(2))]


@pytest.mark.parametrize(("kind", "batches"), [("error-before", 0), ("error-after", 1)])
def test_an_error_comes_before_or_after_the_change(serve, kind, batches):
    bench = serve(faults=[Fault("batches.create", f"{kind}:503:120")])
    file = bench.upload(bench.lines(1))
    with pytest.raises(openai.InternalServerError) as caught:
        bench.create(file.id)

    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"] == "120"
    assert len(_ids(bench)) == batches


def test_a_fault_meets_the_calls_that_it_names(serve):
    bench = serve(faults=[Fault("files.list", "error-before:500", times=2, first=2)])
    statuses = [bench.raw("GET", "/files").status_code for _ in range(4)]

    assert statuses == [200, 500, 500, 200]


def test_a_fault_can_last_for_ever_and_be_added_later(bench):
    assert bench.raw("GET", "/files").status_code == 200
    bench.server.inject(Fault("files.list", "error-before:429", times=None))

    assert [bench.raw("GET", "/files").status_code for _ in range(5)] == [429] * 5


def test_a_file_can_be_invisible_to_the_first_creates(serve, refused):
    bench = serve(faults=[Fault("batches.create", "not-visible:2")])
    file = bench.upload(bench.lines(1))
    for _ in range(2):
        assert refused(bench.create, file.id) == (400, None, "input_file_id")

    assert bench.create(file.id).status == "validating"


def test_a_create_can_land_late(serve):
    bench = serve(faults=[Fault("batches.create", "lands-late:60")])
    file = bench.upload(bench.lines(1))
    with pytest.raises(openai.APIConnectionError):
        bench.create(file.id)
    bench.clock.advance(59)
    assert _ids(bench) == []
    bench.clock.advance(1)

    (batch_id,) = _ids(bench)
    bench.clock.advance(30)
    assert bench.client.batches.retrieve(batch_id).status == "completed"


def test_a_create_that_lands_after_its_file_was_deleted_executes_nothing(serve):
    bench = serve(faults=[Fault("batches.create", "lands-late:60")])
    file = bench.upload(bench.lines(1))
    with pytest.raises(openai.APIConnectionError):
        bench.create(file.id)
    bench.client.files.delete(file.id)
    bench.clock.advance(HOUR)

    assert [batch.status for batch in bench.client.batches.list()] == ["failed"]
    assert bench.server.executions() == {}


def test_a_list_can_lag_behind(serve):
    bench = serve(faults=[Fault("batches.create", "list-lag:60")])
    batch = bench.submit(bench.lines(1))
    assert _ids(bench) == []
    assert bench.batch(batch).status == "validating"
    bench.clock.advance(60)

    assert _ids(bench) == [batch.id]


def test_a_file_visible_late_fails_a_batch_made_before(serve):
    bench = serve(faults=[Fault("files.create", "visible-late:15")])
    batch = bench.submit(bench.lines(1))
    failed = bench.after(batch, 10)
    assert failed.errors.data[0].param == "file_id"
    bench.clock.advance(5)

    assert bench.after(bench.create(batch.input_file_id), 10).status == "in_progress"


def test_a_download_can_be_cut(serve):
    bench = serve(faults=[Fault("files.content", "truncate:100")])
    file = bench.upload(bench.lines(5))
    with pytest.raises(openai.APIConnectionError):
        bench.content(file.id)

    assert bench.content(file.id) == bench.lines(5)


def test_a_download_can_be_cut_without_a_sign(serve):
    bench = serve(faults=[Fault("files.content", "truncate-silent:100")])
    file = bench.upload(bench.lines(5))
    reply = bench.raw("GET", f"/files/{file.id}/content")

    assert reply.content == bench.lines(5)[:100]
    assert "content-length" not in reply.headers


def _received(bench, file, **headers):
    """What arrives of a download, also if it is cut: the reply, its bytes, and whether it ended."""
    url = f"{bench.server.base_url}/files/{file.id}/content"
    content, ended = b"", True
    with httpx2.stream("GET", url, headers={"authorization": "Bearer x", **headers}) as reply:
        try:
            for chunk in reply.iter_raw():
                content += chunk
        except httpx2.RemoteProtocolError:
            ended = False
    return reply, content, ended


@pytest.mark.parametrize(("kind", "ends"), [("truncate", False), ("truncate-silent", True)])
def test_the_rest_of_a_cut_download_can_be_asked_for(serve, kind, ends):
    cuts = [Fault("files.content", f"{kind}:100"), Fault("files.content", f"{kind}:50", first=2)]
    bench = serve(faults=cuts)
    whole = bench.lines(5)
    file, size = bench.upload(whole), len(whole)

    first, start, first_ended = _received(bench, file)
    second, middle, second_ended = _received(bench, file, range="bytes=100-")
    third, rest, third_ended = _received(bench, file, range="bytes=150-")

    assert [reply.status_code for reply in (first, second, third)] == [200, 206, 206]
    assert (first_ended, second_ended, third_ended) == (ends, ends, True)
    assert (start, middle, rest) == (whole[:100], whole[100:150], whole[150:])
    assert second.headers["content-range"] == f"bytes 100-{size - 1}/{size}"
    assert third.headers["content-range"] == f"bytes 150-{size - 1}/{size}"
    assert second.headers.get("content-length") == (None if ends else str(size - 100))
    assert third.headers["content-length"] == str(size - 150)
    assert all("x-request-id" in reply.headers for reply in (first, second, third))


@pytest.mark.parametrize("kind", ["truncate", "truncate-silent"])
def test_a_cut_behind_the_end_of_a_download_cuts_nothing(serve, kind):
    bench = serve(faults=[Fault("files.content", f"{kind}:100000", times=None)])
    file = bench.upload(bench.lines(5))

    assert _received(bench, file)[1:] == (bench.lines(5), True)
    assert _received(bench, file, range="bytes=7-")[1:] == (bench.lines(5)[7:], True)


def test_a_long_download_can_be_cut(serve):
    bench = serve(faults=[Fault("files.content", "truncate:300000")])
    content = bench.line("a", "x" * 1_000_000)

    reply, start, ended = _received(bench, bench.upload(content))
    assert (start, ended) == (content[:300_000], False)
    assert reply.headers["content-length"] == str(len(content))


def test_a_range_is_given_of_the_file_that_it_was_asked_of(bench):
    file = bench.upload(bench.lines(5))
    etag = bench.raw("GET", f"/files/{file.id}/content").headers["etag"]

    same, rest, _ = _received(bench, file, **{"range": "bytes=9-", "if-range": etag})
    other, whole, _ = _received(bench, file, **{"range": "bytes=9-", "if-range": '"other"'})
    beyond, _, _ = _received(bench, file, range=f"bytes={file.bytes}-")

    assert (same.status_code, rest) == (206, bench.lines(5)[9:])
    assert (other.status_code, whole) == (200, bench.lines(5))
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{file.bytes}"


def test_a_range_can_be_ignored(serve):
    bench = serve(faults=[Fault("files.content", "ignore-range")])
    file = bench.upload(bench.lines(5))

    ignored, whole, _ = _received(bench, file, range="bytes=9-")
    heeded, rest, _ = _received(bench, file, range="bytes=9-")

    assert (ignored.status_code, whole) == (200, bench.lines(5))
    assert "content-range" not in ignored.headers
    assert (heeded.status_code, rest) == (206, bench.lines(5)[9:])


def test_a_call_can_be_sent_elsewhere_before_it_has_done_anything(serve):
    elsewhere = "https://example.com:8443/v1/batches?a=b"
    bench = serve(faults=[Fault("batches.create", f"redirect:{elsewhere}")])
    file = bench.upload(bench.lines(1))
    order = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}

    reply = bench.raw("POST", "/batches", json=order)

    assert (reply.status_code, reply.headers["location"]) == (307, elsewhere)
    assert _ids(bench) == []


def test_a_client_that_follows_arrives_where_it_is_sent(serve):
    there = serve()
    bench = serve(faults=[Fault("files.list", f"redirect:{there.server.base_url}/files")])
    file = there.upload(there.lines(1))

    reply = bench.raw("GET", "/files", follow_redirects=True)

    # httpx2 keeps the key to itself at another port.
    assert (reply.status_code, str(reply.url)) == (401, f"{there.server.base_url}/files")
    assert bench.client.files.list().data == []
    assert [kept.id for kept in there.client.files.list()] == [file.id]


def _broken(body):
    return 500, {"error": {"message": "no"}}


def test_empty_file_ids_are_empty_words(serve):
    fault = Fault("batches.retrieve", "empty-file-ids")
    bench = serve(faults=[fault])
    done = bench.after(bench.submit(bench.lines(1)), HOUR)

    assert done.error_file_id == ""
    assert done.output_file_id.startswith("file-")
    assert bench.batch(done).error_file_id is None


def test_counts_can_be_null_in_lists_too(serve):
    bench = serve(
        faults=[Fault("batches.list", "null-counts"), Fault("batches.retrieve", "null-counts")]
    )
    batch = bench.submit(bench.lines(1))

    assert bench.raw("GET", "/batches").json()["data"][0]["request_counts"] is None
    assert bench.batch(batch).request_counts is None


def test_a_status_can_be_an_unknown_word_for_some_polls(serve):
    bench = serve(faults=[Fault("batches.retrieve", "unknown-status:queued", times=2)])
    batch = bench.submit(bench.lines(1))

    assert [bench.batch(batch).status for _ in range(3)] == ["queued", "queued", "validating"]


def test_a_batch_can_look_stuck_and_its_files_can_be_named_late(serve):
    late = [Fault("batches.retrieve", "stuck"), Fault("batches.retrieve", "files-late", first=2)]
    bench = serve(faults=late)
    batch = bench.submit(bench.lines(1))
    bench.clock.advance(HOUR)

    stuck, nameless, done = (bench.batch(batch) for _ in range(3))

    assert (stuck.status, stuck.completed_at, stuck.output_file_id) == ("finalizing", None, None)
    assert (nameless.status, nameless.output_file_id) == ("completed", None)
    assert (done.status, done.output_file_id is None) == ("completed", False)


def _output_with(serve, kind):
    bench = serve(faults=[Fault("output", kind)])
    done = bench.after(bench.submit(bench.lines(5)), HOUR)
    content = bench.content(done.output_file_id)
    assert bench.client.files.retrieve(done.output_file_id).bytes == len(content)
    return content


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        ("drop-line", "four of the five"),
        ("duplicate-line", "one twice"),
        ("foreign-line", "one foreign"),
    ],
    ids=["drop", "duplicate", "foreign"],
)
def test_an_output_file_can_have_the_wrong_lines(serve, kind, ids):
    rows = [json.loads(line)["custom_id"] for line in _output_with(serve, kind).splitlines()]
    ours = {f"row-{i}" for i in range(5)}

    match kind:
        case "drop-line":
            assert len(rows) == 4
            assert set(rows) < ours
        case "duplicate-line":
            assert len(rows) == 6
            assert set(rows) == ours
        case _:
            assert len(rows) == 6
            assert set(rows) == ours | {"of-another-batch"}


def test_an_output_file_can_end_in_the_middle_of_a_line(serve):
    content = _output_with(serve, "torn-line")

    with pytest.raises(json.JSONDecodeError):
        json.loads(content.splitlines()[-1])
    assert len([json.loads(line) for line in content.splitlines()[:-1]]) == 4


def test_an_output_file_can_lack_its_last_newline(serve):
    content = _output_with(serve, "no-final-newline")

    assert not content.endswith(b"\n")
    assert len([json.loads(line) for line in content.splitlines()]) == 5


def test_an_output_file_can_have_the_newlines_of_windows(serve):
    assert _output_with(serve, "crlf").count(b"\r\n") == 5


def test_an_output_file_can_have_a_row_of_status_zero(serve):
    rows = [json.loads(line) for line in _output_with(serve, "status-zero").splitlines()]

    assert sorted(row["response"]["status_code"] for row in rows) == [0, 200, 200, 200, 200]


def test_an_output_file_can_have_an_error_in_an_answer_of_200(serve):
    rows = [json.loads(line) for line in _output_with(serve, "error-in-200").splitlines()]

    assert [row["response"]["status_code"] for row in rows] == [200] * 5
    assert sorted("error" in row["response"]["body"] for row in rows) == [False] * 4 + [True]


def test_an_error_file_can_have_an_error_in_an_answer_of_200_where_no_row_was_answered(serve):
    bench = serve(faults=["expired", Fault("error", "error-in-200", times=None)])
    done = bench.after(bench.submit(bench.lines(3)), HOUR)

    rows = bench.rows(done.error_file_id)
    assert [row["response"] and row["response"]["status_code"] for row in rows] == [200, None]
    assert [row["error"] and row["error"]["code"] for row in rows] == [None, "batch_expired"]


def test_an_error_file_takes_shapes_too(serve):
    bench = serve(_broken, faults=[Fault("error", "drop-line")])
    done = bench.after(bench.submit(bench.lines(5)), HOUR)

    assert len(bench.rows(done.error_file_id)) == 4


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("output=crlf", Fault("output", "crlf")),
        (
            "files.list=redirect:http://127.0.0.1:9/v1/files?a=b",
            Fault("files.list", "redirect:http://127.0.0.1:9/v1/files?a=b"),
        ),
        ("files.list=error-before:503:9", Fault("files.list", "error-before:503:9")),
        ("files.list=reset-before@3*2", Fault("files.list", "reset-before", times=2, first=3)),
        ("files.list=reset-before*all", Fault("files.list", "reset-before", times=None)),
        ("queue-full", Fault("batches.create", "queue-full")),
        ("queue-full:3", Fault("batches.create", "queue-full", times=3)),
        ("line-torn:all", Fault("output", "torn-line", times=None)),
    ],
    ids=["plain", "address", "argument", "counts", "all", "named", "named 3", "named all"],
)
def test_a_fault_can_be_written_as_text(text, fault):
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "crlf",
        "queue-full:many",
        "output=reset-before",
        "files.list=truncate:3",
        "files.steal=reset-before",
        "a=b*c",
        "files.content=truncate:few",
        "files.list=error-before",
        "batches.create=list-lag",
    ],
)
def test_a_fault_that_does_not_exist_is_refused(text):
    match = r"no fault|no operation|is not NAME|cannot do with ('few'|no argument)"
    with pytest.raises(ValueError, match=match):
        Fault.parse(text)


def test_a_name_that_is_nearly_right_is_told():
    with pytest.raises(
        ValueError, match=r"no fault 'reply-lost-after-crate'. Did you mean 'reply-"
    ):
        Fault.parse("reply-lost-after-crate:2")


@pytest.mark.parametrize("name", MISHAPS)
def test_a_named_fault_does_what_it_says(serve, name):
    bench = serve(faults=[Fault.parse(name)])

    def look(function, *args, **kwargs):
        """What a call comes to: its value, or the status of the error, or a lost connection."""
        try:
            return function(*args, **kwargs)
        except openai.APIStatusError as error:
            return error.status_code
        except (openai.APIConnectionError, httpx2.TransportError):
            return "lost"

    uploaded = look(bench.upload, bench.lines(4))
    file_id = next(iter(bench.client.files.list()), None)
    created = look(bench.create, file_id.id) if file_id else None
    listed = list(bench.client.batches.list())
    bench.clock.advance(HOUR)
    batches = list(bench.client.batches.list())
    seen = look(bench.batch, batches[0]) if batches else None
    batch = bench.batch(batches[0]) if batches else None
    first = look(bench.content, batch.output_file_id) if batch else None
    lines = bench.content(batch.output_file_id).splitlines() if batch else []
    kept = {
        "uploaded": uploaded if isinstance(uploaded, str | int) else "file",
        "created": created if isinstance(created, str | int) else created and "batch",
        "listed": len(listed),
        "seen": seen if isinstance(seen, int) else seen and seen.status,
        "first": first if isinstance(first, str | int) else first is not None and "content",
        "lines": len(lines),
    }
    usual = {"uploaded": "file", "created": "batch", "listed": 1, "seen": "completed"}
    usual |= {"first": "content", "lines": 4}
    none = {"listed": 0, "seen": None, "first": False, "lines": 0}
    expected = {
        "reply-lost-after-upload": {"uploaded": "lost"},
        "error-on-upload": {"uploaded": 500, "created": None, **none},
        "reply-lost-after-create": {"created": "lost"},
        "error-after-create": {"created": 500},
        "error-on-create": {"created": 500, **none},
        "rate-limited": {"created": 429, **none},
        "queue-full": {"created": 400, **none},
        "no-money": {"created": 429, **none},
        "file-not-found": {"created": 400, **none},
        "list-lag": {"listed": 0},
        "expired": {"seen": "expired", "lines": 1},
        "error-on-retrieve": {"seen": 500},
        "unknown-status": {"seen": "pondering"},
        "download-cut": {"first": "lost"},
        "error-on-download": {"first": 502},
        "line-missing": {"lines": 3},
        "line-twice": {"lines": 5},
        "line-torn": {"lines": 4},
    }
    assert kept == usual | expected[name]


@pytest.mark.parametrize(("kind", "n_done"), [("expire", 0), ("expire:2", 2), ("expire:9", 4)])
def test_a_batch_can_expire_with_a_part_of_its_rows_executed(serve, kind, n_done):
    bench = serve(faults=[Fault("batches.create", kind)])
    batch = bench.after(bench.submit(bench.lines(5)), 30)

    assert batch.status == "expired"
    assert batch.expires_at == batch.finalizing_at < batch.created_at + HOUR
    assert (batch.request_counts.completed, batch.request_counts.failed) == (n_done, 0)
    assert len(bench.server.executions()) == n_done
    left = [row["error"]["code"] for row in bench.rows(batch.error_file_id)]
    assert left == ["batch_expired"] * (5 - n_done)


def test_each_operation_that_is_counted_can_meet_faults(bench):
    done = bench.after(bench.submit(bench.lines(1)), HOUR)
    bench.content(done.output_file_id)
    bench.client.files.retrieve(done.input_file_id)
    bench.client.files.list()
    bench.client.batches.list()
    bench.client.files.delete(done.input_file_id)
    bench.raw("POST", f"/batches/{done.id}/cancel")
    bench.client.uploads.upload_file_chunked(
        file=b"text", filename="a.txt", bytes=4, mime_type="text/plain", purpose="user_data"
    )
    bench.raw("POST", "/uploads/upload_none/cancel")

    assert bench.server.calls().keys() == KINDS.keys() - {"output", "error", "webhooks"}


def test_a_fault_of_a_creation_is_there_before_anybody_looks(serve):
    # The thread of the webhooks looks all the time, and no stage lasts.
    faults = [Fault("batches.create", "expire:1", times=None)]
    bench = serve(stage_seconds=0, webhook_url="http://127.0.0.1:9/", faults=faults)
    file = bench.upload(bench.lines(3))
    batches = [bench.create(file.id) for _ in range(40)]

    assert {bench.batch(batch).status for batch in batches} == {"expired"}
    assert bench.server.billed().requests == 40
