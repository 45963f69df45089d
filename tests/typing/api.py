"""What type checkers see of the public API; read by test_api.py, never run."""

from typing import Any, assert_type

import openai
import pandas as pd
import polars as pl

import batchframe as bf


def pandas_in_pandas_out(df: pd.DataFrame) -> None:
    assert_type(bf.complete(df, "prompt", "id", model="m"), pd.DataFrame)
    assert_type(df.pipe(bf.complete, "prompt", "id", model="m"), pd.DataFrame)
    assert_type(bf.complete(df, 0, ("text", "en"), model="m"), pd.DataFrame)


def polars_in_polars_out(df: pl.DataFrame) -> None:
    assert_type(bf.complete(df, "prompt", "id", model="m"), pl.DataFrame)
    assert_type(df.pipe(bf.complete, "prompt", "id", model="m"), pl.DataFrame)


def the_sisters_keep_the_type_too(df: pd.DataFrame, other: pl.DataFrame) -> None:
    assert_type(bf.embed(df, "text", "id", model="m", dimensions=4), pd.DataFrame)
    assert_type(bf.moderate(df, "text"), pd.DataFrame)
    assert_type(bf.embed(other, "text", model="m"), pl.DataFrame)
    assert_type(other.pipe(bf.moderate, "text", "id"), pl.DataFrame)
    assert_type(bf.complete(other, template="Say {text}", model="m", nulls="raise"), pl.DataFrame)
    assert_type(
        bf.complete(df, "text", model="m", response_format={"type": "json_object"}), pd.DataFrame
    )


def each_row_may_have_its_own(df: pl.DataFrame) -> None:
    assert_type(bf.complete(df, "text", model=bf.col("m"), max_tokens=bf.col("n")), pl.DataFrame)
    assert_type(bf.attach(df, "runs/a", "text", model=bf.col("m")), pl.DataFrame)


def a_subclass_stays() -> None:
    class Survey(pd.DataFrame):
        pass

    assert_type(bf.complete(Survey(), "prompt", "id", model="m"), Survey)


def every_keyword_has_its_type(df: pl.DataFrame, client: openai.OpenAI) -> None:
    out = bf.complete(
        df,
        prompt_col="prompt",
        id_col="id",
        model="m",
        system="Be brief.",
        output="answer",
        checkpoint="runs/a",
        max_retries=1,
        retry_failed=True,
        limits=bf.Limits(max_requests=10),
        completion_window="24h",
        poll_interval=1.5,
        timeout=60,
        progress=False,
        details=True,
        client=client,
        on_error="raise",
        max_error_ratio=0.1,
        extra_body={"top_k": 40},
        temperature=0,
        seed=42,
    )
    assert_type(out, pl.DataFrame)


def azure_is_a_client_as_well(df: pl.DataFrame, client: openai.AzureOpenAI) -> None:
    assert_type(bf.complete(df, "prompt", "id", model="m", client=client), pl.DataFrame)


def a_dialect_is_a_name_or_a_record(df: pl.DataFrame) -> None:
    house = bf.Dialect(name="house", max_requests=1_000)
    for dialect in ("azure", house, None):
        assert_type(bf.complete(df, "prompt", "id", model="m", dialect=dialect), pl.DataFrame)


def errors_are_one_tree(error: bf.RowError, late: bf.RunTimeoutError) -> None:
    raised: tuple[bf.InputError, bf.BatchframeError, ValueError, TimeoutError]
    raised = (error, error, error, late)
    del raised


def servers_are_typed() -> None:
    with bf.emulator.LocalServer() as server:
        assert_type(server, bf.emulator.LocalServer)
        assert_type(server.client(), openai.OpenAI)
        assert_type(server.calls(), dict[str, int])


def mistakes_are_seen(df: pl.DataFrame, lazy: pl.LazyFrame, client: openai.AsyncOpenAI) -> None:
    # Each line would be reported as an ignore without need if it were no mistake.
    bf.complete(df, "prompt", "id")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bf.complete(lazy, "prompt", "id", model="m")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    bf.complete(df, "prompt", "id", model="m", client=client)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bf.complete(df, "prompt", "id", model="m", details="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def further_parameters_are_free(df: pl.DataFrame, params: dict[str, Any]) -> None:
    assert_type(bf.complete(df, "prompt", "id", model="m", **params), pl.DataFrame)
