"""What each row may have of its own: body fields, the model; and endpoints that take text alone."""

import asyncio
import json

import pandas as pd
import polars as pl
import pytest

import batchframe as bf
from batchframe.emulator import LocalServer


@pytest.fixture
def refused(complete, calls):
    """Make a call that is refused with nothing sent; gives the message."""

    def call(error, frame, /, *args, **kwargs):
        before = calls()
        with pytest.raises(error) as caught:
            complete(frame, *args, **kwargs)
        assert calls() == before
        return str(caught.value)

    return call


def sent(client, n_batches=1):
    """The bodies of the newest batches, by their texts."""
    found = {}
    for batch in client.batches.list(limit=n_batches).data[:n_batches]:
        for line in client.files.content(batch.input_file_id).text.split("\n")[:-1]:
            body = json.loads(line)["body"]
            found[body.get("prompt") or body["messages"][-1]["content"]] = body
    return found


# --- Fields of other providers --------------------------------------------------------------------

EMBEDS = "text-embedding-3-small"
EXTRA = {"top_k": 40, "chat_template_kwargs": {"b": [1, {"a": None}], "a": 0.5}}


def test_fields_of_other_providers_are_sent_as_they_are(frames, complete, client):
    complete(frames.make({"id": [1], "prompt": ["a b c"]}), seed=7, extra_body=EXTRA)

    (body,) = sent(client).values()
    assert body == {
        "model": "gpt-4o-mini",
        "seed": 7,
        **EXTRA,
        "messages": [{"role": "user", "content": "a b c"}],
    }
    assert list(body["chat_template_kwargs"]) == ["b", "a"]


def test_other_fields_are_another_spec_and_the_same_ones_send_nothing(
    frames, complete, paid, checkpoint
):
    frame = frames.make({"id": [1], "prompt": ["x"]})
    complete(frame, extra_body=EXTRA)
    complete(frame, extra_body=dict(reversed(EXTRA.items())))
    assert paid() == 1

    with pytest.raises(bf.CheckpointMismatchError, match="top_k: 40 there, 41 here"):
        complete(frame, extra_body={**EXTRA, "top_k": 41})
    assert paid() == 1
    # Without the rows' own columns the checkpoint knows them.
    assert frames.values(bf.attach(frame, checkpoint, "prompt", "id"), "completion") == ["echo: x"]


SWAPPED = {"chat_template_kwargs": {"a": 0.5, "b": [1, {"a": None}]}, "top_k": 40}


@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
def test_equal_fields_in_another_order_are_the_same_spec(
    complete, client, paid, checkpoint, tmp_path, monkeypatch, named
):
    monkeypatch.chdir(tmp_path)
    same = {"checkpoint": checkpoint if named else None, "max_completion_tokens": 9}
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["x", "y"]})
    first = complete(frame, **same, extra_body=EXTRA)
    assert EXTRA == SWAPPED

    assert complete(frame, **same, extra_body=SWAPPED).equals(first)
    # Rows are named before a checkpoint is opened where there is a limit.
    assert complete(frame, **same, extra_body=SWAPPED, max_cost_usd=1).equals(first)
    asked = bf.estimate(
        frame, "prompt", "id", model="gpt-4o-mini", client=client, extra_body=SWAPPED, **same
    )
    assert (asked.n_paid, asked.n_requests) == (2, 0)
    assert paid() == 2


def test_all_that_sends_takes_them(client, tmp_path):
    frame = pl.DataFrame({"id": [1], "text": ["x"]})
    frame.write_parquet(tmp_path / "in.parquet")
    keywords = {"client": client, "progress": False, "extra_body": {"top_k": 40}}
    mini = {"model": "gpt-4o-mini"} | keywords

    bf.embed(frame, "text", "id", model=EMBEDS, checkpoint=tmp_path / "1", **keywords)
    bf.moderate(frame, "text", "id", checkpoint=tmp_path / "2", **keywords)
    bf.submit(frame, "text", "id", checkpoint=tmp_path / "3", **mini).result()
    bf.complete_parquet(
        tmp_path / "in.parquet",
        tmp_path / "out.parquet",
        "text",
        "id",
        checkpoint=tmp_path / "4",
        **mini,
    )
    frame.lazy().openai_batch.complete("text", "id", checkpoint=tmp_path / "5", **mini)
    asyncio.run(bf.acomplete(frame, "text", "id", checkpoint=tmp_path / "6", **mini))

    specs = [json.loads((tmp_path / str(n) / "spec.json").read_bytes()) for n in range(1, 7)]
    assert [spec["params"]["top_k"] for spec in specs] == [40] * 6
    # An estimate knows that it is paid.
    found = bf.estimate(frame, "text", "id", checkpoint=tmp_path / "3", **mini)
    assert (found.n_requests, found.n_paid) == (0, 1)


# --- Parameters -----------------------------------------------------------------------------------


def test_a_parameter_in_a_column_is_each_rows_own(frames, complete, client):
    frame = frames.make(
        {
            "id": [1, 2, 3],
            "prompt": ["a b c", "d e f", "g h i"],
            "n": [3, None, 4],
            "t": [0.5, 1, 0],
        }
    )
    out = complete(frame, max_completion_tokens=bf.col("n"), temperature=bf.col("t"), seed=7)

    assert sent(client) == {
        prompt: {
            "model": "gpt-4o-mini",
            "seed": 7,
            "messages": [{"role": "user", "content": prompt}],
            **own,
        }
        for prompt, own in {
            "a b c": {"max_completion_tokens": 3, "temperature": 0.5},
            "d e f": {"temperature": 1},
            "g h i": {"max_completion_tokens": 4, "temperature": 0},
        }.items()
    }
    # "echo", ":", "a", "b", "c": three tokens of five, all five, four of five.
    assert frames.values(out, "completion_status") == ["truncated", "ok", "truncated"]
    assert frames.values(out, "completion_output_tokens") == [3, 5, 4]


def test_a_changed_parameter_is_a_new_row_and_the_others_are_not_paid_again(complete, paid):
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["one", "two"], "n": [50, 60]})
    complete(frame, max_completion_tokens=bf.col("n"))
    assert paid() == 2
    complete(frame.with_columns(n=pl.Series([50, 61])), max_completion_tokens=bf.col("n"))
    assert paid() == 3


def test_text_and_lists_may_stand_in_columns(frames, complete, client):
    frame = frames.make({"id": [1, 2], "prompt": ["x", "y"], "stop": [["\n", "END"], None]})
    complete(frame, stop=bf.col("stop"), user=bf.col("prompt"))
    bodies = sent(client)
    assert bodies["x"]["stop"] == ["\n", "END"]
    assert "stop" not in bodies["y"]
    assert bodies["y"]["user"] == "y"


def test_what_json_cannot_hold_is_refused_with_its_row(refused):
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["x", "y"], "t": [0.5, float("nan")]})
    message = refused(bf.RowError, frame, temperature=bf.col("t"))
    assert "Row 1 of column 't' is nan" in message
    assert "Null leaves the field out" in message


def test_rows_that_are_not_sent_need_no_parameter(complete):
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["x", None], "t": [0.5, float("nan")]})
    out = complete(frame, temperature=bf.col("t"))
    assert out["completion_status"].to_list() == ["ok", "skipped"]


def test_a_column_that_is_not_there_is_refused(refused):
    frame = pd.DataFrame({"id": [1], "prompt": ["x"], "n_max": [3]})
    message = refused(bf.ColumnError, frame, max_completion_tokens=bf.col("nmax"))
    assert "no column 'nmax' for max_completion_tokens. Did you mean 'n_max'?" in message


def test_names_are_checked_as_those_of_other_parameters(refused):
    frame = pd.DataFrame({"id": [1], "prompt": ["x"], "n": [3]})
    message = refused(bf.ParameterError, frame, max_completion_token=bf.col("n"))
    assert "Did you mean 'max_completion_tokens'?" in message
    assert "one completion" in refused(bf.ParameterError, frame, n=bf.col("n"))
    assert "cannot stream" in refused(bf.ParameterError, frame, stream=bf.col("n"))


@pytest.mark.parametrize("keyword", ["system", "response_format", "endpoint", "output", "timeout"])
def test_what_all_rows_share_stands_in_no_column(refused, keyword):
    frame = pd.DataFrame({"id": [1], "prompt": ["x"]})
    assert keyword in refused(bf.ParameterError, frame, **{keyword: bf.col("prompt")})


def test_attach_finds_rows_by_their_parameters(complete, checkpoint):
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["one", "two"], "n": [50, None]})
    out = complete(frame, max_completion_tokens=bf.col("n"))
    again = bf.attach(frame, checkpoint, "prompt", "id", max_completion_tokens=bf.col("n"))
    pl.testing.assert_frame_equal(again, out)

    with pytest.raises(bf.ParameterError, match="temperature=; it takes parameters that stand in"):
        bf.attach(frame, checkpoint, "prompt", "id", temperature=0)
    with pytest.raises(bf.ParameterError, match=r"was given response_format=; it takes parameters"):
        bf.attach(frame, checkpoint, "prompt", "id", response_format=int)
    with pytest.raises(bf.ParameterError, match=r"was given model=, seed=; it takes parameters"):
        bf.attach(frame, checkpoint, "prompt", "id", model="gpt-4o-mini", seed=7)
    with pytest.raises(bf.ParameterError, match="no keyword 'sead'"):
        bf.attach(frame, checkpoint, "prompt", "id", sead=7)


# --- Models ---------------------------------------------------------------------------------------

MODELS = {
    "id": [1, 2, 3, 4, 5],
    "prompt": ["a", "b", "c", None, "e"],
    "m": ["gpt-4o", "gpt-4o-mini", "gpt-4o", None, "gpt-4o-mini"],
}


def test_each_row_goes_to_its_own_model_and_each_file_to_one(frames, complete, client, calls):
    out = complete(frames.make(MODELS), model=bf.col("m"), details=True)

    expected = ["echo: a", "echo: b", "echo: c", None, "echo: e"]
    assert frames.values(out, "completion") == expected
    assert frames.values(out, "completion_model") == MODELS["m"]
    assert calls()["batches.create"] == 2
    models = [
        {
            json.loads(line)["body"]["model"]
            for line in client.files.content(batch.input_file_id).text.splitlines()
        }
        for batch in client.batches.list(limit=2).data[:2]
    ]
    assert sorted(map(sorted, models)) == [["gpt-4o"], ["gpt-4o-mini"]]
    # Prompts of a word: 3 for the chat, 4 for the message, 1 for the word; "echo", ":", the word.
    # Batch rates: gpt-4o 1.25 and 5.00, gpt-4o-mini 0.075 and 0.30 dollars for a million.
    large, small = (8 * 1.25 + 3 * 5) / 1e6, (8 * 0.075 + 3 * 0.3) / 1e6
    costs = frames.values(out, "completion_cost_usd")
    assert costs == pytest.approx([large, small, large, 0.0, small])


def test_rows_of_several_models_resume_and_are_attached(complete, checkpoint, paid):
    frame = pl.DataFrame(MODELS)
    out = complete(frame, model=bf.col("m"))
    assert paid() == 4
    pl.testing.assert_frame_equal(complete(frame, model=bf.col("m")), out)
    changed = frame.with_columns(m=pl.Series(["gpt-4o-mini", *MODELS["m"][1:]]))
    complete(changed, model=bf.col("m"))
    assert paid() == 5

    again = bf.attach(frame, checkpoint, "prompt", "id", model=bf.col("m"))
    pl.testing.assert_frame_equal(again, out)
    with pytest.raises(bf.ParameterError, match=r"model=bf.col\('model'\)"):
        bf.attach(frame, checkpoint, "prompt", "id")


def test_models_of_categories_are_their_text(complete):
    frame = pd.DataFrame(MODELS).astype({"m": "category"})
    assert complete(frame, model=bf.col("m"))["completion_status"].tolist()[0] == "ok"


def test_a_row_without_a_model_is_refused(frames, refused):
    frame = frames.make({"id": [1, 2], "prompt": ["a", "b"], "m": ["gpt-4o", None]})
    message = refused(bf.RowError, frame, model=bf.col("m"))
    assert "1 row has no model: column 'm' is null or blank in row 1" in message


def test_models_that_are_no_text_are_refused(refused):
    frame = pl.DataFrame({"id": [1, 2], "prompt": ["a", "b"], "m": [1, 2]})
    assert "models are named by text: 1 in row 0" in refused(
        bf.ColumnError, frame, model=bf.col("m")
    )


def test_texts_are_embedded_by_their_own_models(client, checkpoint):
    frame = pl.DataFrame(
        {"text": ["a", "b"], "m": ["text-embedding-3-small", "text-embedding-3-large"]}
    )
    out = frame.openai_batch.embed(
        "text",
        model=bf.col("m"),
        dimensions=4,
        client=client,
        checkpoint=checkpoint,
        poll_interval=0.01,
        progress=False,
        details=True,
    )
    assert out["embedding_model"].to_list() == frame["m"].to_list()
    assert out["embedding"].null_count() == 0


# --- /v1/completions ------------------------------------------------------------------------------


def test_the_completions_of_old_take_text_alone(frames, complete, client):
    frame = frames.make({"id": [1, 2, 3], "prompt": ["Once", None, "Twice"]})
    out = complete(
        frame, model="gpt-3.5-turbo-instruct", endpoint="/v1/completions", max_tokens=100
    )

    assert frames.values(out, "completion") == ["echo: Once", None, "echo: Twice"]
    assert frames.values(out, "completion_status") == ["ok", "skipped", "ok"]
    assert sent(client) == {
        prompt: {"model": "gpt-3.5-turbo-instruct", "max_tokens": 100, "prompt": prompt}
        for prompt in ("Once", "Twice")
    }


def test_they_are_cut_where_the_tokens_end(complete):
    frame = pl.DataFrame({"id": [1], "prompt": ["one two three"]})
    out = complete(frame, model="gpt-3.5-turbo-instruct", endpoint="/v1/completions", max_tokens=3)
    assert out.select("completion", "completion_status").row(0) == ("echo: one ", "truncated")


def test_what_needs_messages_is_refused_for_them(refused):
    frame = pl.DataFrame({"id": [1], "prompt": ["x"], "chat": [[{"role": "user", "content": "x"}]]})
    legacy = {"endpoint": "/v1/completions"}
    assert "no messages" in refused(bf.ParameterError, frame, system="Be brief.", **legacy)
    assert "text alone" in refused(bf.ParameterError, frame, "chat", **legacy)
    assert "text alone" in refused(bf.ParameterError, frame, images="prompt", **legacy)
    json_object = {"type": "json_object"}
    assert "no place" in refused(bf.ParameterError, frame, response_format=json_object, **legacy)


# --- Ids that change their type -------------------------------------------------------------------


def test_ids_that_change_their_type_are_refused(
    frames, complete, client, checkpoint, paid, refused
):
    complete(frames.make({"id": [7, 8, 9], "prompt": ["a", "b", "c"]}))
    message = refused(
        bf.RowError, frames.make({"id": ["7", "8", "9", "x"], "prompt": ["a", "b", "new", "new"]})
    )
    assert (
        "2 rows were sent before with ids that were integers; now the ids are text: '7', '8'"
        in message
    )
    assert "Cast the ids back" in message

    # Nor does anything say that the same call would do.
    keywords = {"model": "gpt-4o-mini", "client": client, "checkpoint": checkpoint}
    for call in (bf.complete, bf.submit):
        with pytest.raises(bf.RowError) as caught:
            call(frames.make({"id": ["7"], "prompt": ["a"]}), "prompt", "id", **keywords)
        (note,) = caught.value.__notes__
        assert note == (
            "No batch goes on at the provider. Nothing else is sent. "
            f"The checkpoint is {checkpoint.resolve()}"
        )

    complete(frames.make({"id": ["7", "0x"], "prompt": ["other", "a"]}))
    message = refused(bf.RowError, frames.make({"id": [7], "prompt": ["other"]}))
    assert "ids that were text; now the ids are integers: 7." in message
    assert paid() == 5


# --- What only the service can tell ---------------------------------------------------------------


def test_a_prompt_over_the_context_window_fails_alone(frames, complete):
    def answer(body):
        text = body["messages"][-1]["content"]
        if len(text) > 100:
            message = "This model's maximum context length is 100 tokens."
            return 400, {"error": {"message": message, "code": "context_length_exceeded"}}
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    frame = frames.make({"id": [1, 2, 3], "prompt": ["a", "x" * 101, "c"]})
    with LocalServer(answer, stage_seconds=0) as server:
        out = complete(frame, client=server.client())
        again = complete(frame, client=server.client())
        assert server.calls()["batches.create"] == 1

    assert frames.values(out, "completion_status") == ["ok", "failed", "ok"]
    assert frames.values(out, "completion_error")[1] == (
        "context_length_exceeded: This model's maximum context length is 100 tokens."
    )
    frames.assert_frame_equal(again, out)


# --- What one row asks does not depend on the others ----------------------------------------------


def test_rows_without_ids_are_told_apart_by_all_that_they_ask(frames, complete, paid):
    data = {"prompt": ["x", "x", "x"], "n": [50, 60, 70], "m": ["gpt-4o", "gpt-4o-mini", "gpt-4o"]}
    frame = frames.make(data)
    keywords = {"model": bf.col("m"), "max_completion_tokens": bf.col("n")}
    complete(frame, "prompt", None, **keywords)
    assert paid() == 3
    complete(frames.rows(frame, [2, 0, 1]), "prompt", None, **keywords)
    complete(frames.rows(frame, [1]), "prompt", None, **keywords)
    assert paid() == 3


def test_dicts_of_other_shapes_in_other_rows_change_nothing(complete, paid, client):
    bias = [{"50": 1}, {"60": 2.5, "50": 2}, None]
    frame = pd.DataFrame({"id": [1, 2, 3], "prompt": ["a", "b", "c"], "bias": bias})
    complete(frame.iloc[:1], logit_bias=bf.col("bias"))
    complete(frame, logit_bias=bf.col("bias"))
    assert paid() == 3
    assert sent(client)["b"]["logit_bias"] == {"60": 2.5, "50": 2}
    complete(frame.iloc[::-1], logit_bias=bf.col("bias"))
    assert paid() == 3
