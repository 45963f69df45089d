"""Rows without an answer: taken as they are, or an error, after or before all of them are sent."""

import asyncio
import collections
import threading

import numpy as np
import polars as pl
import pytest
from pydantic import BaseModel

import batchframe as bf
from batchframe.clock import SystemClock
from batchframe.emulator import JumpClock, LocalServer

#: One batch after the other, a row each.
ONE_BY_ONE = bf.Limits(max_requests=1, max_live_batches=1)


class Picky:
    """Says the prompt again; refuses those with "bad", and is busy `n_busy` times with "busy"."""

    def __init__(self, n_busy=0):
        self.n_busy = n_busy
        self.is_mended = False
        self.asked = collections.Counter()
        self._lock = threading.Lock()

    def __call__(self, body):
        text = body["messages"][-1]["content"]
        with self._lock:
            self.asked[text] += 1
        if "bad" in text and not self.is_mended:
            return 400, {"error": {"message": "No such words.", "code": "bad_words"}}
        if "busy" in text and self.asked[text] <= self.n_busy:
            return 503, {"error": {"message": "Later.", "code": "server_error"}}
        return text


@pytest.fixture
def picky():
    return Picky()


@pytest.fixture
def served(picky):
    with LocalServer(picky, stage_seconds=0) as server:
        yield server


@pytest.fixture
def ask(complete, served):
    """`complete` of prompts with the ids "r0", "r1", ... on the picky server."""

    def call(prompts, /, **keywords):
        ids = [f"r{row}" for row in range(len(prompts))]
        frame = pl.DataFrame({"id": ids, "prompt": prompts})
        return complete(frame, client=served.client(), **keywords)

    return call


def refusal(error, call, *args, **keywords):
    with pytest.raises(bf.BatchframeError) as caught:
        call(*args, **keywords)
    assert type(caught.value) is error
    return str(caught.value)


# --- on_error -------------------------------------------------------------------------------------


def test_rows_without_an_answer_are_an_error_once_all_others_are_kept(
    frames, complete, served, picky
):
    prompts = ["a", "bad 1", None, "b", "bad 3"]
    frame = frames.make({"id": [10, 11, 12, 13, 14], "prompt": prompts})
    client = served.client()

    message = refusal(bf.UnansweredError, complete, frame, client=client, on_error="raise")
    assert message == (
        "2 of 5 rows have no answer (2 failed): row 1, id 11 (failed: bad_words: No such words.); "
        "row 4, id 14 (failed: bad_words: No such words.). All that was answered is in the "
        "checkpoint, and is not paid again: the same call with on_error='null' gives the frame, "
        "and sends nothing. Mend the cause and run it with retry_failed=True to send these rows "
        "again."
    )
    assert picky.asked == {"a": 1, "bad 1": 1, "b": 1, "bad 3": 1}

    out = complete(frame, client=client, on_error="null")
    assert frames.values(out, "completion") == ["a", None, None, "b", None]
    assert picky.asked.total() == 4

    picky.is_mended = True
    out = complete(frame, client=client, on_error="raise", retry_failed=True)
    assert frames.values(out, "completion") == ["a", "bad 1", None, "b", "bad 3"]
    assert picky.asked == {"a": 1, "bad 1": 2, "b": 1, "bad 3": 2}


def test_rows_without_a_prompt_and_cut_answers_are_no_error(complete, calls):
    out = complete(
        pl.DataFrame({"id": [1, 2], "prompt": ["one two three", None]}),
        max_completion_tokens=2,
        on_error="raise",
        max_error_ratio=0,
    )
    assert out["completion_status"].to_list() == ["truncated", "skipped"]
    nothing = pl.DataFrame({"id": [1], "prompt": pl.Series([None], dtype=pl.String)})
    assert len(complete(nothing, on_error="raise", max_error_ratio=0)) == 1


def test_the_message_names_five_rows_and_says_what_would_be_sent_again(complete):
    model = Picky(n_busy=9)
    prompts = ["a", *(f"bad {n}" for n in range(6)), "busy"]
    frame = pl.DataFrame({"prompt": prompts})
    with LocalServer(model, stage_seconds=0) as server:
        keywords = {"id_col": None, "client": server.client(), "max_retries": 0}
        message = refusal(bf.UnansweredError, complete, frame, on_error="raise", **keywords)
        assert message.startswith("7 of 8 rows have no answer (7 failed): row 1 (failed: bad_words")
        assert message.count("row ") == 6  # five of them, and the one that is sent again
        assert "; and more. All that was answered" in message
        assert "sends nothing but the 1 row that another try may help. Mend" in message
        before = model.asked.copy()
        complete(frame, **keywords)
        assert model.asked - before == {"busy": 1}


def test_answers_that_do_not_fit_are_no_answers(ask, picky):
    class Word(BaseModel):
        word: str

    prompts = ['{"word": "a"}', '{"word": 1}']
    message = refusal(bf.UnansweredError, ask, prompts, response_format=Word, on_error="raise")
    assert message.startswith("1 of 2 rows has no answer (1 invalid): row 1, id 'r1' (invalid: ")
    assert "invalid: invalid" not in message
    # To send them again would change nothing: their answers are there.
    assert message.endswith("on_error='null' gives the frame, and sends nothing.")
    ask(prompts, response_format=Word, retry_failed=True)
    assert picky.asked.total() == 2


def test_a_run_raises_at_its_result_and_gives_what_there_is(served, checkpoint):
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["a", "bad"]})
    keywords = {
        "model": "gpt-4o-mini",
        "client": served.client(),
        "checkpoint": checkpoint,
        "poll_interval": 0.01,
        "progress": False,
        "on_error": "raise",
    }
    run = bf.submit(frame, "prompt", "id", **keywords).wait()
    assert refusal(bf.UnansweredError, run.result).startswith(
        "1 of 2 rows has no answer (1 failed)"
    )
    assert run.partial()["completion_status"].to_list() == ["ok", "failed"]

    with pytest.raises(bf.UnansweredError):
        asyncio.run(bf.acomplete(frame, "prompt", "id", **keywords))
    assert served.calls()["batches.create"] == 1


def test_a_file_is_written_only_where_all_rows_are_answered(
    served, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("batchframe.frames.sources._WINDOW_ROWS", 3)
    frame = pl.DataFrame({"id": range(10), "prompt": ["a"] * 7 + ["bad"] + ["a"] * 2})
    frame.write_parquet(tmp_path / "in.parquet")
    target = tmp_path / "out.parquet"
    keywords = {"model": "gpt-4o-mini", "client": served.client(), "checkpoint": checkpoint}
    keywords |= {"progress": False, "on_error": "raise"}

    for call in (
        lambda: bf.complete_parquet(tmp_path / "in.parquet", target, "prompt", "id", **keywords),
        lambda: frame.lazy().openai_batch.complete("prompt", "id", **keywords),
        lambda: frame.lazy().openai_batch.sink_parquet(target, "prompt", "id", **keywords),
    ):
        message = refusal(bf.UnansweredError, call)
        assert message.startswith("1 of 10 rows has no answer (1 failed): row 7, id 7 (failed: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "in.parquet"]
    assert served.billed().requests == 9

    bf.complete_parquet(
        tmp_path / "in.parquet", target, "prompt", "id", **keywords | {"on_error": "null"}
    )
    assert (
        pl.read_parquet(target)["completion_status"].to_list()
        == frame["prompt"].replace_strict({"a": "ok", "bad": "failed"}).to_list()
    )
    assert served.billed().requests == 9


@pytest.mark.parametrize("verb", ["embed", "moderate"])
def test_vectors_and_verdicts_have_it_too(verb, checkpoint):
    def refuse(body):
        if body["input"] == "bad":
            return 400, {"error": {"message": "No.", "code": "bad_words"}}
        return {}

    frame = pl.DataFrame({"id": [1, 2], "text": ["bad", "bad"]})
    with LocalServer(refuse, stage_seconds=0) as server, pytest.raises(bf.UnansweredError):
        getattr(frame.openai_batch, verb)(
            "text",
            "id",
            model="text-embedding-3-small" if verb == "embed" else "omni-moderation-latest",
            client=server.client(),
            checkpoint=checkpoint,
            progress=False,
            on_error="raise",
        )


# --- max_error_ratio ------------------------------------------------------------------------------


def test_a_run_that_cannot_keep_the_ratio_sends_no_more(ask, served, picky, checkpoint):
    # The first row proves that the call is one that the service takes.
    prompts = ["a", "bad 1", "bad 2", "bad 3", *"bcdefg"]
    keywords = {"limits": ONE_BY_ONE, "max_error_ratio": 0.2}

    message = refusal(bf.ErrorRatioExceededError, ask, prompts, **keywords)
    # Two of ten may fail; the third is too many.
    assert message == (
        "max_error_ratio=0.2 is exceeded: 3 of the 4 rows that ended have no answer, 3 of them for "
        "'bad_words'. 6 rows were not sent, and cost nothing. What was answered is in the "
        "checkpoint, and is not paid again. Mend the cause and run the same call again with "
        "retry_failed=True; or raise max_error_ratio."
    )
    assert served.calls()["batches.create"] == 4

    # The same call knows it from the beginning, and so does who opens it.
    assert refusal(bf.ErrorRatioExceededError, ask, prompts, **keywords) == message
    run = bf.open_run(checkpoint, client=served.client(), progress=False, limits=ONE_BY_ONE)
    assert refusal(bf.ErrorRatioExceededError, run.wait) == message
    assert served.calls()["batches.create"] == 4

    picky.is_mended = True
    out = ask(prompts, **keywords, retry_failed=True)
    assert out["completion"].to_list() == prompts
    assert picky.asked == {prompt: 1 + ("bad" in prompt) for prompt in prompts}


def test_with_a_higher_ratio_the_rest_is_sent(ask, served, checkpoint):
    prompts = ["a", "bad 1", "bad 2", "bad 3", *"bcdefg"]
    refusal(bf.ErrorRatioExceededError, ask, prompts, limits=ONE_BY_ONE, max_error_ratio=0.2)

    run = bf.open_run(
        checkpoint,
        client=served.client(),
        progress=False,
        limits=ONE_BY_ONE,
        max_error_ratio=np.float64(0.3),
    )
    assert len(run.result()) == 10
    out = ask(prompts, max_error_ratio=np.float64(0.3))
    assert out["completion_status"].to_list().count("ok") == 7
    assert served.calls()["batches.create"] == 10


@pytest.mark.parametrize(("n_bad", "is_error"), [(29, False), (30, True)])
def test_in_the_end_it_is_exact(ask, served, n_bad, is_error):
    # All in one batch, so that nothing is left to be held back. As floats 0.29 * 100 < 29.
    prompts = ["bad"] * n_bad + ["good"] * (100 - n_bad) + [None] * 50
    call = {"max_error_ratio": 0.29}
    if is_error:
        message = refusal(bf.ErrorRatioExceededError, ask, prompts, **call)
        assert message.startswith(
            "max_error_ratio=0.29 is exceeded: 30 of 150 rows have no answer (30 failed): "
            "row 0, id 'r0' (failed: bad_words: No such words.); "
        )
        assert "the same call with a higher max_error_ratio gives the frame" in message
        call = {"max_error_ratio": 0.3}
    out = ask(prompts, **call)
    assert out["completion_status"].to_list().count("failed") == n_bad
    assert served.billed().requests == 100 - n_bad


def test_a_part_of_many_rows_speaks_for_the_rest(ask, served):
    # One of five is bad. 300 of 3,000 may be: certain after three batches of 500 and more, but so
    # it looks as soon as 1,000 have ended.
    prompts = [f"{'bad' if row % 5 == 0 else 'good'} {row}" for row in range(3_000)]
    limits = bf.Limits(max_requests=500, max_live_batches=1)

    message = refusal(bf.ErrorRatioExceededError, ask, prompts, limits=limits, max_error_ratio=0.1)
    assert "200 of the 1,000 rows that ended have no answer" in message
    assert "2,000 rows were not sent" in message
    assert served.calls()["batches.create"] == 2


def test_rows_that_are_tried_again_have_not_ended(complete):
    frame = pl.DataFrame({"id": range(4), "prompt": ["a", "busy 1", "busy 2", "b"]})
    keywords = {"limits": ONE_BY_ONE, "max_error_ratio": 0.25}
    model = Picky(n_busy=2)
    with LocalServer(model, stage_seconds=0) as server:
        out = complete(frame, client=server.client(), max_retries=2, **keywords)
    assert out["completion"].to_list() == ["a", "busy 1", "busy 2", "b"]


def test_rows_whose_tries_are_used_up_have(complete, checkpoint):
    frame = pl.DataFrame({"id": range(4), "prompt": ["a", "busy 1", "busy 2", "b"]})
    keywords = {"limits": ONE_BY_ONE, "max_error_ratio": 0.25, "max_retries": 0}
    model = Picky(n_busy=1)
    with LocalServer(model, stage_seconds=0) as server:
        keywords["client"] = server.client()
        message = refusal(bf.ErrorRatioExceededError, complete, frame, **keywords)
        assert "2 of the 3 rows that ended have no answer" in message
        assert "1 row was not sent" in message
        # A later call tries them again, so that they have not ended for it.
        out = complete(frame, **keywords)
    assert out["completion"].to_list() == ["a", "busy 1", "busy 2", "b"]
    assert model.asked == {"a": 1, "busy 1": 2, "busy 2": 2, "b": 1}


def test_a_request_that_answers_many_rows_counts_as_many(ask, served):
    # Two requests, and four of ten rows.
    prompts = ["a", "bad", "bad", "bad", "bad", *"bcdef"]
    message = refusal(
        bf.ErrorRatioExceededError,
        ask,
        prompts,
        limits=ONE_BY_ONE,
        dedupe=True,
        max_error_ratio=0.3,
    )
    assert "4 of the 5 rows that ended have no answer" in message
    assert served.calls()["batches.create"] == 2


def test_what_is_live_goes_on_and_the_next_call_collects_it(complete, picky, checkpoint):
    created = []

    def seconds(batch_id):
        if batch_id not in created:
            created.append(batch_id)
        return 600 if created.index(batch_id) == 1 else 0

    prompts = ["a", "b", "bad 1", "bad 2", "bad 3", *"cdefg"]
    frame = pl.DataFrame({"id": range(10), "prompt": prompts})
    limits = bf.Limits(max_requests=1, max_live_batches=2)
    clock = JumpClock(SystemClock().now())
    with LocalServer(picky, clock=clock, stage_seconds=seconds) as server:
        keywords = {"client": server.client(), "limits": limits}
        with pytest.raises(bf.ErrorRatioExceededError) as caught:
            complete(frame, max_error_ratio=0.2, **keywords)
        (note,) = caught.value.__notes__
        assert note.startswith("1 batch goes on at the provider, which keeps the results until ")
        assert "3 of the 4 rows that ended" in str(caught.value)
        assert "5 rows were not sent" in str(caught.value)

        # The same call again says the same, once it has collected that: it is paid for.
        clock.advance(3_600)
        with pytest.raises(bf.ErrorRatioExceededError, match="3 of the 5 rows that ended"):
            complete(frame, max_error_ratio=0.2, **keywords)
        assert len(bf.results(checkpoint)) == server.calls()["batches.create"] == 5

        out = complete(frame, max_error_ratio=0.3, **keywords)
        assert server.calls()["batches.create"] == 10
    assert out["completion"].to_list() == [None if "bad" in text else text for text in prompts]
    assert picky.asked == dict.fromkeys(prompts, 1)


def test_failures_that_are_being_tried_again_have_not_ended(complete, picky, checkpoint):
    created = []

    def seconds(batch_id):
        if batch_id not in created:
            created.append(batch_id)
        return 600 if created.index(batch_id) == 1 else 0

    prompts = ["a", "bad 1", "bad 2", "b", "c"]
    frame = pl.DataFrame({"id": range(5), "prompt": prompts})
    clock = JumpClock(SystemClock().now())
    with LocalServer(picky, clock=clock, stage_seconds=seconds) as server:
        keywords = {"client": server.client(), "checkpoint": checkpoint, "progress": False}
        complete(frame.head(3), **keywords)
        picky.is_mended = True
        mini = {"model": "gpt-4o-mini", "retry_failed": True}
        bf.submit(frame.head(4), "prompt", "id", **mini, **keywords).detach()
        assert server.calls()["batches.create"] == 2

        # Two of five failed, and are live again: not too many before that has ended.
        clock.advance(3_600)
        out = complete(frame, max_error_ratio=0.3, **keywords)
    assert out["completion"].to_list() == prompts
    assert picky.asked.total() == 7


def test_files_hold_it_too(served, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("batchframe.frames.sources._WINDOW_ROWS", 4)
    prompts = ["a", "bad 1", "bad 2", "bad 3", *"bcdefg"]
    frame = pl.DataFrame({"id": range(10), "prompt": prompts})
    frame.write_parquet(tmp_path / "in.parquet")
    message = refusal(
        bf.ErrorRatioExceededError,
        bf.complete_parquet,
        tmp_path / "in.parquet",
        tmp_path / "out.parquet",
        "prompt",
        "id",
        model="gpt-4o-mini",
        client=served.client(),
        checkpoint=checkpoint,
        limits=ONE_BY_ONE,
        poll_interval=0.01,
        progress=False,
        max_error_ratio=0.2,
    )
    assert "3 of the 4 rows that ended have no answer" in message
    assert served.calls()["batches.create"] == 4
    assert not (tmp_path / "out.parquet").exists()


def test_all_windows_are_written_down_before_a_run_is_stopped(
    served, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("batchframe.frames.sources._WINDOW_ROWS", 4)
    prompts = ["a", "bad 1", "bad 2", "bad 3", *"bcdefg"]
    frame = pl.DataFrame({"id": range(10), "prompt": prompts})
    frame.head(4).write_parquet(tmp_path / "first.parquet")
    frame.write_parquet(tmp_path / "in.parquet")
    keywords = {"client": served.client(), "poll_interval": 0.01, "progress": False}
    call = {"model": "gpt-4o-mini", "checkpoint": checkpoint, **keywords}
    out = tmp_path / "out.parquet"
    bf.complete_parquet(tmp_path / "first.parquet", out, "prompt", "id", **call)

    # That is known from the beginning, and the other six rows are in two windows.
    message = refusal(
        bf.ErrorRatioExceededError,
        bf.complete_parquet,
        tmp_path / "in.parquet",
        out,
        "prompt",
        "id",
        max_error_ratio=0.2,
        **call,
    )
    assert "3 of the 4 rows that ended have no answer" in message
    assert "6 rows were not sent" in message
    run = bf.open_run(checkpoint, max_error_ratio=1, **keywords)
    assert len(run.result()) == 10
