"""What every call promises: same rows, same order, same index, nothing changed, nothing twice."""

import itertools
import string
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import parametric

import batchframe as bf
from batchframe.emulator import LocalServer

DATA = {
    "id": ["c", "a", "b"],
    "prompt": ["third", "first", None],
    "number": [3, 1, 2],
    "flag": [True, False, True],
    "price": [0.5, 1.5, 2.5],
}
ANSWERS = ["echo: third", "echo: first", None]


def test_rows_order_and_existing_columns_come_back_as_they_were(frames, complete):
    frame = frames.make(DATA)

    out = complete(frame)

    assert frames.values(out, "completion") == ANSWERS
    assert frames.values(out, "completion_status") == ["ok", "ok", "skipped"]
    frames.assert_frame_equal(frames.select(out, DATA), frame)


def test_the_frame_that_was_passed_is_not_changed(frames, complete):
    frame = frames.make(DATA)
    before = frames.copy(frame)

    complete(frame)

    frames.assert_frame_equal(frame, before)


def test_a_pandas_frame_that_changes_meanwhile_is_answered_as_it_was(complete):
    ids = np.array([1, 2])
    frame = pd.DataFrame({"id": pd.Series(ids, copy=False), "prompt": ["one", "two"]}, copy=False)
    asked = []

    def answer(body):
        text = body["messages"][-1]["content"]
        asked.append(text)
        if len(asked) == 1:
            ids[:] = [7, 8]
            frame.loc[:, "prompt"] = "changed"
            return 500, {"error": {"message": "again", "code": "server_error"}}
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}

    with LocalServer(answer, stage_seconds=0) as server:
        out = complete(frame, client=server.client())

    assert out["completion"].tolist() == ["one", "two"]
    assert sorted(asked) == sorted(["one", "two", asked[0]])


def test_the_result_shares_no_writable_memory_with_the_frame_that_was_passed(complete):
    frame = pd.DataFrame(DATA)
    before = frame.copy(deep=True)

    out = complete(frame)
    out.loc[:, "number"] = 99
    out.iloc[0, out.columns.get_loc("prompt")] = "changed"

    pd.testing.assert_frame_equal(frame, before)


def test_a_view_of_a_frame_is_taken_as_it_is(complete):
    whole = pd.DataFrame(DATA)
    before = whole.copy(deep=True)

    out = complete(whole[whole["number"] > 1])

    assert out["completion"].tolist()[0] == "echo: third"
    assert out.index.tolist() == [0, 2]
    pd.testing.assert_frame_equal(whole, before)


def test_new_columns_stand_behind_the_others_in_order(frames, complete):
    out = complete(frames.make(DATA), output="answer")

    assert list(out.columns) == [
        *DATA,
        "answer",
        "answer_status",
        "answer_error",
        "answer_input_tokens",
        "answer_cached_tokens",
        "answer_output_tokens",
        "answer_reasoning_tokens",
        "answer_cost_usd",
    ]


def test_every_row_says_its_tokens_and_what_they_cost(frames, complete):
    out = complete(frames.make({"id": [1, 2, 3], "prompt": ["a", "a b", None]}))

    # The prompt's words, 4 for the message, 3 for the prompt; "echo", ":" and the words again.
    assert frames.values(out, "completion_input_tokens") == [1 + 7, 2 + 7, None]
    assert frames.values(out, "completion_output_tokens") == [2 + 1, 2 + 2, None]
    assert frames.values(out, "completion_cached_tokens") == [0, 0, None]
    assert frames.values(out, "completion_reasoning_tokens") == [0, 0, None]
    # gpt-4o-mini in a batch: $0.075 and $0.30 for a million tokens. What is not sent is free.
    assert frames.values(out, "completion_cost_usd") == pytest.approx(
        [(8 * 0.075 + 3 * 0.30) / 1e6, (9 * 0.075 + 4 * 0.30) / 1e6, 0]
    )


def test_the_same_call_again_sends_nothing_and_gives_the_same(frames, complete, calls):
    frame = frames.make(DATA)
    first = complete(frame)
    sent = calls()

    again = complete(frame)

    assert (sent["files.create"], sent["batches.create"]) == (1, 1)
    assert calls() == sent
    frames.assert_frame_equal(again, first)


def test_without_a_checkpoint_it_is_found_again_in_the_working_directory(
    frames, complete, calls, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    complete(frames.make(DATA), checkpoint=None)
    sent = calls()

    complete(frames.make(DATA), checkpoint=None)
    assert calls() == sent
    complete(frames.make(DATA), checkpoint=None, temperature=0)
    assert calls()["batches.create"] == 2
    assert len(list((tmp_path / ".batchframe").iterdir())) == 2


def test_a_grown_reordered_frame_sends_its_new_rows_only(frames, complete, paid):
    old = frames.make({"id": [1, 2, 3], "prompt": ["one", "two", "three"]})
    complete(old)
    assert paid() == 3

    new = frames.make({"id": [9], "prompt": ["nine"]})
    out = complete(frames.rows(frames.concat(old, new), [3, 1, 0, 2]))

    assert frames.values(out, "completion") == [
        "echo: nine",
        "echo: two",
        "echo: one",
        "echo: three",
    ]
    assert paid() == 4


def test_an_edited_prompt_is_sent_alone(frames, complete, paid):
    complete(frames.make({"id": [1, 2, 3], "prompt": ["one", "two", "three"]}))
    assert paid() == 3

    out = complete(frames.make({"id": [1, 2, 3], "prompt": ["one", "TWO", "three"]}))

    assert frames.values(out, "completion") == ["echo: one", "echo: TWO", "echo: three"]
    assert paid() == 4


def test_calls_with_different_outputs_live_side_by_side(frames, complete, tmp_path):
    frame = frames.make(DATA)

    terse = complete(frame, output="terse", system="Be brief.", checkpoint=tmp_path / "terse")
    both = complete(terse, output="cold", temperature=0, checkpoint=tmp_path / "cold")

    frames.assert_frame_equal(frames.select(both, terse.columns), terse)
    assert frames.values(both, "terse") == frames.values(both, "cold") == ANSWERS
    assert [c for c in both.columns if c.startswith("cold")] == [
        column.replace("terse", "cold") for column in both.columns if column.startswith("terse")
    ]


def test_calls_with_different_outputs_and_nothing_else_share_what_was_paid(frames, complete, calls):
    once = complete(frames.make(DATA), output="first")
    sent = calls()

    both = complete(once, output="second")

    assert calls() == sent
    assert frames.values(both, "first") == frames.values(both, "second") == ANSWERS


@pytest.mark.parametrize("kind", [str, Path], ids=["text", "path"])
def test_a_tilde_in_a_checkpoint_is_the_home_directory(
    frames, complete, tmp_path, monkeypatch, kind
):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))

    complete(frames.make(DATA), checkpoint=kind("~/runs"))

    assert (home / "runs" / "spec.json").is_file()
    assert list(here.iterdir()) == []


def test_a_checkpoint_serves_both_libraries(complete, calls):
    pandas_out = complete(pd.DataFrame({"id": [1, 2], "prompt": ["one", "two"]}))
    sent = calls()

    polars_out = complete(pl.DataFrame({"id": [2, 1], "prompt": ["two", "one"]}))

    assert pandas_out["completion"].tolist() == ["echo: one", "echo: two"]
    assert polars_out["completion"].to_list() == ["echo: two", "echo: one"]
    assert calls() == sent


def test_many_shards_come_back_in_the_order_of_the_rows(frames, complete, calls):
    ids = [7, 3, 9, 1, 5, 8, 2]
    frame = frames.make({"id": ids, "prompt": [f"number {i}" for i in ids]})

    out = complete(frame, limits=bf.Limits(max_requests=2))

    assert frames.values(out, "completion") == [f"echo: number {i}" for i in ids]
    assert calls()["batches.create"] == 4


def test_the_sum_of_the_costs_is_the_bill(frames, complete, server):
    before = server.billed()
    ids = range(20)
    out = complete(frames.make({"id": list(ids), "prompt": ["word " * i for i in ids]}))
    bill = server.billed()

    n_input = sum(frames.values(out, "completion_input_tokens")[1:])
    n_output = sum(frames.values(out, "completion_output_tokens")[1:])
    assert frames.values(out, "completion_status") == ["skipped", *["ok"] * 19]
    # Of 1 to 19 words: 190 in all, and 7 and 2 more tokens in each of 19 rows.
    assert (n_input, n_output) == (190 + 7 * 19, 190 + 2 * 19)
    assert bill.input_tokens - before.input_tokens == n_input
    assert bill.output_tokens - before.output_tokens == n_output
    assert sum(frames.values(out, "completion_cost_usd")) == pytest.approx(
        (n_input * 0.075 + n_output * 0.30) / 1e6
    )


# --- pandas: index, subclass, labels --------------------------------------------------------------

INDEXES = {
    "duplicate": pd.Index([1, 1, 1]),
    "shuffled": pd.Index([2, 0, 1]),
    "named": pd.Index(["x", "y", "z"], name="prompt"),
    "floats with nan": pd.Index([0.5, np.nan, np.nan]),
    "MultiIndex": pd.MultiIndex.from_tuples([("a", 1), ("a", 1), ("b", 2)], names=["k", None]),
    "DatetimeIndex": pd.date_range("2026-01-01", periods=3, freq="D", tz="UTC"),
    "CategoricalIndex": pd.CategoricalIndex(["x", "x", "y"]),
    "RangeIndex by two": pd.RangeIndex(10, 16, 2),
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES.keys())
def test_the_index_of_a_pandas_frame_stays(complete, index):
    frame = pd.DataFrame(DATA)
    frame.index = index

    out = complete(frame)

    pd.testing.assert_index_equal(out.index, index, exact=True)
    pd.testing.assert_frame_equal(out[list(DATA)], frame)
    assert out["completion"].tolist()[:2] == ANSWERS[:2]


def test_a_subclass_of_a_pandas_frame_stays(complete):
    class Survey(pd.DataFrame):
        _metadata = ("wave",)

        @property
        def _constructor(self):
            return Survey

    frame = Survey(DATA)
    frame.wave = 7

    out = complete(frame)

    assert type(out) is Survey
    assert out.wave == 7


def test_the_attrs_of_a_pandas_frame_stay_as_they_were(complete):
    frame = pd.DataFrame(DATA)
    frame.attrs["source"] = "survey"

    assert complete(frame).attrs == {"source": "survey"}


LABELS = [0, 7, ("text", "en"), 1.5, "{x} %s", pd.Timestamp("2026-01-01")]


@pytest.mark.parametrize("label", LABELS, ids=repr)
def test_any_label_may_name_the_prompts_and_the_ids(complete, label):
    frame = pd.DataFrame([["one", "i"], ["two", "j"]])
    frame.columns = pd.Index([label, "id"], tupleize_cols=False, dtype=object)
    by_prompt = complete(frame, prompt_col=label, id_col="id", output="by_prompt")
    by_id = complete(frame, prompt_col="id", id_col=label, output="by_id")

    assert by_prompt["by_prompt"].tolist() == ["echo: one", "echo: two"]
    assert by_id["by_id"].tolist() == ["echo: i", "echo: j"]
    assert by_prompt.columns[0] is label or by_prompt.columns[0] == label


def test_other_columns_may_have_any_labels_even_twice(complete):
    frame = pd.DataFrame([["a", "one", 1, 2, 3, 4]])
    frame.columns = pd.Index(["id", "prompt", "x", "x", ("x", 1), 5], tupleize_cols=False)

    out = complete(frame)

    assert list(out.columns)[:6] == list(frame.columns)
    assert out.iloc[0, :7].tolist() == ["a", "one", 1, 2, 3, 4, "echo: one"]


def test_one_column_may_hold_the_prompts_and_the_ids(frames, complete):
    out = complete(frames.make({"word": ["red", "blue"]}), "word", "word")

    assert frames.values(out, "completion") == ["echo: red", "echo: blue"]


def test_exotic_pandas_columns_come_back_identical(complete):
    frame = pd.DataFrame(
        {
            "id": [1, 2],
            "prompt": ["one", "two"],
            "category": pd.Categorical(["x", None], categories=["y", "x"], ordered=True),
            "when": pd.to_datetime(["2026-01-01", None]).tz_localize("Europe/Berlin"),
            "span": pd.to_timedelta([1, 2], unit="s"),
            "period": pd.period_range("2026", periods=2, freq="M"),
            "interval": pd.interval_range(0, 2),
            "sparse": pd.arrays.SparseArray([0, 1]),
            "nullable": pd.array([1, None], dtype="UInt8"),
            "objects": [{"a": 1}, {1, 2}],
            "half": np.array([0.5, np.nan], dtype="float16"),
            "complex": np.array([1j, 2], dtype="complex64"),
        }
    )

    pd.testing.assert_frame_equal(complete(frame)[list(frame.columns)], frame)


def test_exotic_polars_columns_come_back_identical(complete):
    frame = pl.DataFrame(
        {
            "id": [1, 2],
            "prompt": ["one", "two"],
            "category": pl.Series(["x", None], dtype=pl.Categorical),
            "enum": pl.Series(["x", "y"], dtype=pl.Enum(["y", "x"])),
            "list": [[1], None],
            "struct": [{"a": 1}, {"a": None}],
            "decimal": pl.Series(["1.5", "2.5"]).cast(pl.Decimal(10, 2)),
            "wide": pl.Series([2**100, None], dtype=pl.Int128),
            "object": pl.Series([{1}, object()], dtype=pl.Object),
            "null": [None, None],
            "nan": [float("nan"), 1.0],
        }
    )

    out = complete(frame)

    assert out.select(frame.columns).schema == frame.schema
    for name in set(frame.columns) - {"object"}:
        pl.testing.assert_series_equal(out[name], frame[name])
    assert out["object"].to_list() == frame["object"].to_list()


# --- Any frame ------------------------------------------------------------------------------------

texts = st.text(max_size=20)
rows = st.lists(
    st.tuples(st.one_of(texts, st.text(string.digits, max_size=3)), st.none() | texts),
    unique_by=lambda row: row[0],
    max_size=12,
)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=rows, data=st.data())
def test_every_row_of_any_frame_has_the_answer_to_its_own_prompt(
    frames, complete, tmp_path, rows, data
):
    ids, prompts = [id_ for id_, _ in rows], [prompt for _, prompt in rows]
    place = tmp_path / f"checkpoint-{next(_numbers)}"
    frame = frames.make({"id": ids, "prompt": prompts})

    out = complete(frame, checkpoint=place, limits=bf.Limits(max_requests=5))
    order = data.draw(st.permutations(range(len(rows))))
    again = complete(frames.rows(out, order), output="again", checkpoint=place)

    expected = [f"echo: {prompt}" if prompt else None for prompt in prompts]
    assert frames.values(out, "id") == ids
    assert frames.values(out, "completion") == expected
    assert frames.values(again, "again") == [expected[row] for row in order]


_numbers = itertools.count()


# Indexes of pandas: one entry per row, in any order, often the same.
INDEXES = {
    "a range": lambda values: pd.RangeIndex(len(values)),
    "numbers": lambda values: pd.Index(values, dtype="int64"),
    "texts": lambda values: pd.Index([str(value) for value in values], dtype="str"),
    "dates": lambda values: pd.DatetimeIndex([pd.Timestamp(value, unit="D") for value in values]),
    "levels": lambda values: pd.MultiIndex.from_arrays([values, values[::-1]], names=["a", None]),
}
PROMPT_DTYPES = [
    *("str", "object", "string[python]", "string[pyarrow]", "category"),
    pd.ArrowDtype(pa.large_string()),
]
OTHERS = {
    "floats": st.floats(allow_nan=True) | st.none(),
    "flags": st.booleans(),
    "bytes": st.binary(max_size=5),
    "lists": st.lists(st.integers(), max_size=2),
}


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    prompts=st.lists(st.none() | st.text(), min_size=1, max_size=8),
    data=st.data(),
)
def test_any_pandas_frame_keeps_the_promises(complete, server, tmp_path, prompts, data):
    n = len(prompts)
    dtype = data.draw(st.sampled_from(PROMPT_DTYPES))
    ids = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n, unique=True))
    numbers = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    index = INDEXES[data.draw(st.sampled_from(sorted(INDEXES)))](numbers)
    other = data.draw(st.sampled_from(sorted(OTHERS)))
    values = data.draw(st.lists(OTHERS[other], min_size=n, max_size=n))
    frame = pd.DataFrame(
        {
            "other": pd.Series(values, dtype=object if other in {"bytes", "lists"} else None),
            "prompt": pd.Series(prompts, dtype=object).astype(dtype),
            "id": ids,
        }
    ).set_axis(index)
    before = frame.copy(deep=True)
    billed = server.billed()
    place = tmp_path / f"checkpoint-{next(_numbers)}"

    out = complete(frame, checkpoint=place)

    # Same rows, same order, same index; the input frame is not changed.
    pd.testing.assert_frame_equal(frame, before)
    pd.testing.assert_frame_equal(out[frame.columns.tolist()], before)
    answers = [None if pd.isna(value) else value for value in out["completion"]]
    assert answers == [f"echo: {prompt}" if prompt else None for prompt in prompts]
    # The sum of the costs is the bill: gpt-4o-mini at $0.075 and $0.30 a million tokens.
    bill = server.billed()
    cost = (bill.input_tokens - billed.input_tokens) * 0.075e-6 + (
        bill.output_tokens - billed.output_tokens
    ) * 0.30e-6
    assert out["completion_cost_usd"].sum() == pytest.approx(cost)
    # A second identical call sends nothing.
    pd.testing.assert_frame_equal(complete(frame, checkpoint=place), out)
    assert server.billed() == bill


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    prompts=st.lists(st.none() | st.text(), min_size=1, max_size=8),
    data=st.data(),
)
def test_any_polars_frame_keeps_the_promises(complete, server, tmp_path, prompts, data):
    n = len(prompts)
    ids = data.draw(st.lists(st.text(), min_size=n, max_size=n, unique=True))
    of_dtype = data.draw(st.sampled_from([pl.String, pl.Categorical]))
    others = data.draw(parametric.dataframes(min_cols=1, max_cols=4, min_size=n, max_size=n))
    frame = others.with_columns(
        pl.Series("prompt", prompts, dtype=pl.String).cast(of_dtype), pl.Series("id", ids)
    )
    before = frame.clone()
    billed = server.billed()
    place = tmp_path / f"checkpoint-{next(_numbers)}"

    out = complete(frame, checkpoint=place)

    # Same rows, same order; the input frame is not changed.
    pl.testing.assert_frame_equal(frame, before)
    pl.testing.assert_frame_equal(out.select(frame.columns), before)
    assert out["completion"].to_list() == [
        f"echo: {prompt}" if prompt else None for prompt in prompts
    ]
    # The sum of the costs is the bill: gpt-4o-mini at $0.075 and $0.30 a million tokens.
    bill = server.billed()
    cost = (bill.input_tokens - billed.input_tokens) * 0.075e-6 + (
        bill.output_tokens - billed.output_tokens
    ) * 0.30e-6
    assert out["completion_cost_usd"].sum() == pytest.approx(cost)
    # A second identical call sends nothing.
    pl.testing.assert_frame_equal(complete(frame, checkpoint=place), out)
    assert server.billed() == bill


def test_a_text_of_a_megabyte_comes_back(frames, complete):
    text = "\u2028\x00\U0001f600\u05d0" * 100_000
    out = complete(frames.make({"id": [1], "prompt": [text]}))
    assert frames.values(out, "completion") == [f"echo: {text}"]
