"""Each cost is written as tokens x dollars per million tokens, so that it can be checked by hand.

The rates are those of https://developers.openai.com/api/docs/pricing on 2026-10-14, batch column.
"""

from datetime import UTC, datetime
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchframe.core.prices import PRICE_SOURCE, cost_usd, standard_usd, unpriced_models
from batchframe.core.rates import Rates
from batchframe.core.results import RESULT_SCHEMA
from batchframe.core.usage import prompt_and_completion_usd, used

AT = datetime(2026, 11, 1, tzinfo=UTC)
MTOK = 1e6


def a_table(*rows):
    return pa.Table.from_pylist(
        [{"row_key": bytes(16), "status": "ok", **row} for row in rows], RESULT_SCHEMA
    )


def usage(n_input=None, n_output=None, *, cached=None, written=None, model=None, **row):
    return {
        "input_tokens": n_input,
        "output_tokens": n_output,
        "cached_tokens": cached,
        "cache_write_tokens": written,
        "model": model,
        **row,
    }


def costs(*rows, model="gpt-4o-mini", at=AT):
    result = cost_usd(a_table(*rows), model=model, at=at)
    assert result.type == pa.float64()
    return result.to_pylist()


def cost(n_input=None, n_output=None, *, at=AT, **row):
    (only,) = costs(usage(n_input, n_output, **row), at=at)
    return only


def close(tokens_times_rates):
    return pytest.approx(tokens_times_rates / MTOK, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # 1000 input tokens of which 400 are cached, and 100 output tokens.
        ("gpt-4o-mini", 600 * 0.075 + 400 * 0.075 + 100 * 0.30),
        ("gpt-4o", 600 * 1.25 + 400 * 1.25 + 100 * 5),
        ("gpt-5", 600 * 0.625 + 400 * 0.0625 + 100 * 5),
        ("gpt-5.4", 600 * 1.25 + 400 * 0.13 + 100 * 7.5),
        # No batch rate for cached input is published: it costs what other input costs.
        ("gpt-4.1", 1000 * 1.0 + 100 * 4),
        ("o4-mini", 1000 * 0.55 + 100 * 2.2),
        ("o3", 1000 * 1.0 + 100 * 4),
        # The batch column lists the standard rates.
        ("gpt-3.5-turbo-1106", 1000 * 1.0 + 100 * 2),
        # No batch rate is published at all: half of the standard 75 and 150.
        ("gpt-4.5-preview", 1000 * 37.5 + 100 * 75),
    ],
)
def test_a_batch_is_charged_at_batch_rates(model, expected):
    assert cost(1000, 100, cached=400, model=model) == close(expected)


def test_embeddings_cost_half_and_have_no_output():
    rates = {"3-small": 0.02, "3-large": 0.13, "ada-002": 0.10}
    for name, standard in rates.items():
        assert cost(5000, model=f"text-embedding-{name}") == close(5000 * standard / 2)


def test_above_272000_input_tokens_the_whole_request_is_dearer():
    assert cost(272_000, 1000, model="gpt-5.4") == close(272_000 * 1.25 + 1000 * 7.5)
    assert cost(272_001, 1000, model="gpt-5.4") == close(272_001 * 2.5 + 1000 * 11.25)
    assert cost(300_000, 0, cached=200_000, model="gpt-5.4") == close(
        100_000 * 2.5 + 200_000 * 0.25
    )


def test_the_long_prompt_rate_is_chosen_per_row_not_on_sums():
    rows = [usage(200_000, 0, model="gpt-5.4")] * 2 + [usage(300_000, 0, model="gpt-5.4")]
    assert costs(*rows) == [
        close(200_000 * 1.25),
        close(200_000 * 1.25),
        close(300_000 * 2.5),
    ]


def test_long_prompts_of_models_without_such_a_rate_are_not_dearer():
    rows = [usage(300_000, 0, model="gpt-4.1"), usage(300_000, 0, model="gpt-5.4")]
    assert costs(*rows) == [close(300_000 * 1.0), close(300_000 * 2.5)]


def test_tokens_written_to_the_cache_have_their_own_rate():
    # 1000 input tokens of which 300 are read from the cache and 600 written to it.
    assert cost(1000, 10, cached=300, written=600, model="gpt-6-sol") == close(
        100 * 1 + 300 * 0.1 + 600 * 1.25 + 10 * 5
    )
    # A model that charges nothing for writing counts them as input.
    assert cost(1000, 0, written=600, model="gpt-4o-mini") == close(1000 * 0.075)


def test_dated_and_fine_tuned_names_have_their_models_price():
    assert cost(1000, 100, model="gpt-4o-mini-2024-07-18") == close(1000 * 0.075 + 100 * 0.3)
    assert cost(1000, 100, model="ft:gpt-4o-mini-2024-07-18:org::id") == close(
        1000 * 0.15 + 100 * 0.6
    )


@pytest.mark.parametrize(
    "name",
    [
        "my-own-model",
        "",
        "ft:unknown:org::id",
        "ft:gpt-4o-2024-08-06:org::id",  # no batch rate published, and known not to be half
        "whisper-1",  # billed by the second
    ],
)
def test_an_unknown_price_gives_null_and_never_zero(name):
    assert cost(1000, 100, model=name) is None
    assert cost(0, 0, model=name) is None
    assert unpriced_models(a_table(usage(1, 1, model=name)), "gpt-4o") == [name]


def test_the_model_that_answered_counts_else_the_requested_one():
    row = {"n_input": 1000, "n_output": 0}
    assert costs(usage(**row), usage(**row, model="gpt-4o"), model="gpt-4o-mini") == [
        close(1000 * 0.075),
        close(1000 * 1.25),
    ]


@pytest.mark.parametrize(
    ("model", "day", "expected"),
    [
        # The same standard rate as on the day from which the batch rate is published, 2026-10-14.
        ("gpt-4o-mini", datetime(2026, 1, 1, tzinfo=UTC), 1000 * 0.075),
        ("gpt-4o-mini", datetime(2026, 10, 14, tzinfo=UTC), 1000 * 0.075),
        ("gpt-3.5-turbo-1106", datetime(2025, 1, 1, tzinfo=UTC), 1000 * 1.0),
        # o3 cost 10 until 2025-06-10 and 2 since.
        ("o3", datetime(2025, 6, 9, tzinfo=UTC), 1000 * 10 / 2),
        ("o3", datetime(2025, 6, 10, tzinfo=UTC), 1000 * 2 / 2),
        # gpt-5.6-luna cost 1 until 2026-07-30 and 0.2 since.
        ("gpt-5.6-luna", datetime(2026, 7, 29, tzinfo=UTC), 1000 * 1.0 / 2),
        ("gpt-5.6-luna", datetime(2026, 7, 30, tzinfo=UTC), 1000 * 0.2 / 2),
    ],
)
def test_batches_from_before_the_published_rates_cost_half_as_well(model, day, expected):
    assert cost(1000, 0, model=model, at=day) == close(expected)


def test_half_of_a_price_with_steps_has_the_same_steps():
    before = datetime(2026, 7, 29, tzinfo=UTC)
    assert cost(272_001, 10, model="gpt-5.6-luna", at=before) == close(272_001 * 2 / 2 + 10 * 9 / 2)
    # Writing to the cache cost 1.25 times the input.
    assert cost(100, 0, written=100, model="gpt-5.6-luna", at=before) == close(100 * 1.25 / 2)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"status": "expired", "error_code": "batch_expired"}, 0.0),
        ({"status": "cancelled", "error_code": "batch_cancelled"}, 0.0),
        ({"status": "failed", "error_code": "http_500"}, 0.0),
        ({"status": "failed", "error_code": None}, 0.0),
        ({"status": "failed", "error_code": "http_500", "model": "my-own-model"}, 0.0),
        ({"status": "failed", "error_code": "unreadable_line"}, None),
        ({"status": "failed", "error_code": "empty_content"}, None),
        ({"status": "missing", "error_code": "missing"}, None),
        ({"status": "ok"}, None),
        ({"status": "truncated"}, None),
    ],
)
def test_without_usage_only_what_surely_did_not_run_costs_nothing(row, expected):
    assert costs(row) == [expected]


def test_a_failed_row_with_usage_is_charged():
    assert cost(1000, 100, status="failed", error_code="empty_content") == close(
        1000 * 0.075 + 100 * 0.3
    )
    assert cost(1000, 0, status="expired") == close(1000 * 0.075)


def test_half_a_usage_is_an_unknown_cost():
    assert cost(1000, None) is None
    assert cost(None, 100) is None


def test_moderation_is_free():
    assert cost(model="omni-moderation-latest") == 0.0
    assert unpriced_models(a_table(usage(1, model="omni-moderation-latest")), "x") == []


def test_more_cached_than_input_tokens_never_make_a_negative_cost():
    assert cost(10, 0, cached=1000, model="gpt-5") == close(1000 * 0.0625)
    assert cost(2**63 - 1, 2**63 - 1, cached=2**63 - 1) > 0


def test_unpriced_models_are_named_once_and_only_if_they_answered():
    table = a_table(
        usage(1, 1, model="b"),
        usage(1, 1, model="a"),
        usage(1, None, model="b"),
        usage(1, 1, model="gpt-4o"),
        usage(model="never-answered", status="failed"),
        usage(1, 1),
    )
    assert unpriced_models(table, "requested") == ["a", "b", "requested"]
    assert unpriced_models(table.slice(0, 0), "requested") == []


def test_an_empty_table_has_no_costs():
    assert costs() == []


def test_the_source_of_the_prices_says_its_version():
    assert f"genai-prices {version('genai-prices')}" == PRICE_SOURCE


TOKENS = st.none() | st.integers(0, 400_000)
ROWS = st.lists(
    st.builds(
        usage,
        TOKENS,
        TOKENS,
        cached=TOKENS,
        written=TOKENS,
        model=st.sampled_from([None, "gpt-4o", "gpt-5.4", "gpt-6-sol", "my-own-model"]),
        status=st.sampled_from(["ok", "failed", "missing"]),
    ),
    max_size=20,
)


@given(ROWS)
def test_the_cost_of_a_row_does_not_depend_on_the_other_rows(rows):
    together = costs(*rows)
    assert together == [only for row in rows for only in costs(row)]
    table = pa.concat_tables([a_table(row) for row in rows] or [a_table()])
    assert cost_usd(table, model="gpt-4o-mini", at=AT).to_pylist() == together


@given(st.integers(0, 400_000), st.integers(0, 400_000), st.floats(0, 1))
def test_the_cost_is_what_genai_prices_says_where_it_knows_the_batch_rate(n_input, n_output, share):
    from genai_prices import Usage, calc_price

    cached = int(n_input * share)
    for model in ("gpt-4o-mini", "gpt-5", "gpt-5.4", "gpt-6-sol"):
        theirs = calc_price(
            Usage(input_tokens=n_input, cache_read_tokens=cached, output_tokens=n_output),
            model,
            provider_id="openai",
            genai_request_timestamp=AT,
            price_context={"processing": "batch"},
        )
        ours = cost(n_input, n_output, cached=cached, model=model)
        assert ours == pytest.approx(float(theirs.total_price), rel=1e-12)


def test_a_cost_is_split_into_that_of_the_prompt_and_that_of_the_completion():
    table = a_table(
        # Input 600 at 0.625, cached 400 at 0.0625; output 100 at 5.
        usage(1000, 100, cached=400, model="gpt-5"),
        # Free: it did not run.
        {"status": "expired"},
        usage(10, 10, model="house-model"),
    )
    prompt, completion = prompt_and_completion_usd(table, model="gpt-5", at=AT)
    assert prompt.to_pylist() == [close(600 * 0.625 + 400 * 0.0625), 0.0, None]
    assert completion.to_pylist() == [close(100 * 5), 0.0, None]


# Lists of other services


def listed(price_list, model, n_input, n_output, at=AT):
    table = a_table(usage(n_input, n_output))
    (only,) = cost_usd(table, model=model, at=at, price_list=price_list).to_pylist()
    return only


def test_each_service_has_its_own_prices_and_no_others():
    # 1000 tokens in and 100 out: OpenAI, and Groq by the batch column of its own list (2026-10-14).
    assert listed("openai", "gpt-4o-mini", 1000, 100) == close(1000 * 0.075 + 100 * 0.30)
    assert listed("groq", "openai/gpt-oss-20b", 1000, 100) == close(1000 * 0.0375 + 100 * 0.15)
    assert listed("groq", "gpt-4o-mini", 1000, 100) is None
    assert listed("openai", "openai/gpt-oss-20b", 1000, 100) is None
    assert listed(None, "gpt-4o-mini", 1000, 100) is None


def test_half_the_standard_price_is_the_promise_of_openai_alone():
    assert listed("openai", "text-embedding-3-small", 1000, 0) == close(1000 * 0.01)
    # Groq has a standard price for it, and none for batches.
    assert standard_usd(
        a_table(usage(1000, 100)), model="llama-3.1-8b-instant", at=AT, price_list="groq"
    ).to_pylist() == [close(1000 * 0.05 + 100 * 0.08)]
    assert listed("groq", "llama-3.1-8b-instant", 1000, 100) is None


def test_what_surely_did_not_run_costs_nothing_whoever_the_service_is():
    table = a_table({"status": "expired", "error_code": "batch_expired"})
    assert cost_usd(table, model="m", at=AT, price_list=None).to_pylist() == [0.0]


def test_ones_own_prices_hold_where_a_service_has_none():
    table = a_table(usage(1000, 100))
    own = {"m": Rates(input=1, output=2)}
    assert cost_usd(table, model="m", at=AT, prices=own, price_list=None).to_pylist() == [
        close(1000 * 1 + 100 * 2)
    ]
    assert unpriced_models(table, "m", own, None) == []
    assert unpriced_models(table, "gpt-4o-mini", None, None) == ["gpt-4o-mini"]


def test_of_a_cost_that_is_unknown_the_parts_are_not_known_better():
    table = a_table(usage(1000, 100, model="gpt-4o-mini"))  # its cost is null: of another service
    parts = used(table, model="gpt-4o-mini", at=AT, prices=None)
    total = parts.filter(pc.equal(parts["category"], "total")).to_pylist()[0]
    assert parts["cost_usd"].drop_null().unique().to_pylist() in ([], [0.0])
    assert (total["cost_usd"], total["standard_usd"], total["tokens"]) == (None, None, 1100)
