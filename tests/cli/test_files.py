"""`complete` and `estimate` on files: what was in the source stands in the target as it was."""

import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.conftest import PATIENCE

ASKED = ["--prompt-col", "prompt", "--id-col", "id", "--model", "gpt-4o-mini", "--checkpoint", "ck"]
NEW = (
    "completion,completion_status,completion_error,completion_input_tokens,"
    "completion_cached_tokens,completion_output_tokens,completion_reasoning_tokens,"
    "completion_cost_usd"
)


def test_a_csv_of_ten_thousand_rows_goes_through_a_pipe_and_comes_out_as_it_was(
    terminal, server, tmp_path
):
    # Quotes where none are needed, line ends and separators in fields, ids with zeros.
    rows = [
        f'{row:05d},"Row {row}, ""said""\r\nand\u2028more",007,"as it was", 1.50 \r\n'
        for row in range(10_000)
    ]
    source = "\ufeffid,prompt,code,quoted,number\r\n" + "".join(rows)
    (tmp_path / "in.csv").write_bytes(source.encode())
    command = " ".join(terminal.command)

    ended = subprocess.run(  # noqa: S602 - the shell is part of what is tested
        f"cat in.csv | {command} complete - - --from csv --to csv {' '.join(ASKED)} | cat",
        shell=True,
        cwd=tmp_path,
        env=terminal.environment,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )

    records = [
        record.removesuffix("\r\n") + f',"echo: Row {row}, ""said""\r\nand\u2028more",ok,,'
        for row, record in enumerate(rows)
    ]
    written = ended.stdout.decode()
    assert written.startswith(f"\ufeffid,prompt,code,quoted,number,{NEW}\r\n")
    # What follows are tokens and cost.
    tail = r"\d+,0,\d+,0,[\d.e-]+\r\n"
    rest = written.partition("\r\n")[2]
    parts = re.split(f"(?<=,ok,,){tail}", rest)
    assert parts == [*records, ""]
    assert ended.stderr.startswith(b"batchframe: 10,000 rows: 10,000 ok; $")
    assert sorted(server.executions().values()) == [1] * 10_000


def test_jsonl_keeps_its_objects_and_gets_new_fields(terminal, server, tmp_path):
    lines = [
        b'{"id": 1, "prompt": "a", "x": 1.0, "deep": {"k": [1, "2"]}}\n',
        b'{"prompt":"b","id":2,"big":123456789012345678901234567890,"x":"1"}\r\n',
        b"\n",
        '{"id": 3, "u": "\u2028"}'.encode(),
    ]
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))

    ended = terminal.run("complete", "in.jsonl", "out.jsonl", *ASKED)

    assert (ended.returncode, ended.stdout) == (0, b"")
    assert ended.stderr == (
        b"batchframe: 3 rows: 2 ok, 1 skipped; $0.0000030. Written to out.jsonl.\n"
    )
    first, second, third = (tmp_path / "out.jsonl").read_bytes().split(b"\n")
    assert first.startswith(lines[0].rstrip(b"}\n") + b'}, "completion":"echo: a",')
    assert second.startswith(lines[1].rstrip(b"}\r\n") + b', "completion":"echo: b",')
    assert second.endswith(b"}\r")
    assert third.startswith(lines[3].rstrip(b"}") + b', "completion":null,')
    assert json.loads(second)["big"] == 123456789012345678901234567890
    assert json.loads(first)["completion_cost_usd"] == pytest.approx(8 * 0.075e-6 + 3 * 0.3e-6)
    assert json.loads(third)["completion_status"] == "skipped"


@pytest.mark.parametrize("options", [[], ["--dedupe"], ["--max-cost", "1"]])
def test_parquet_keeps_its_schema_and_metadata(options, terminal, server, tmp_path):
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.int16()),
            "prompt": pa.array(["a", "b"]).dictionary_encode(),
            "when": pa.array([1, 2], pa.timestamp("ns", "UTC")),
        }
    ).replace_schema_metadata({"who": "we"})
    pq.write_table(table, tmp_path / "in.parquet")
    limit = ["--param", "max_completion_tokens=9"]

    ended = terminal.run("complete", "in.parquet", "out.parquet", *ASKED, *limit, *options)

    assert (ended.returncode, ended.stdout) == (0, b"")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.select(table.column_names).equals(table, check_metadata=True)
    assert out["completion"].to_pylist() == ["echo: a", "echo: b"]
    assert list(server.executions().values()) == [1, 1]


def test_one_format_becomes_another(terminal, tmp_path):
    (tmp_path / "in.csv").write_text("id,prompt,empty\n007,a,\n008,,x\n")
    assert terminal.run("complete", "in.csv", "out.jsonl", *ASKED).returncode == 0
    assert terminal.run("complete", "in.csv", "out.parquet", *ASKED).returncode == 0
    more = [*ASKED, "--output", "more"]
    assert terminal.run("complete", "out.jsonl", "more.csv", *more).returncode == 0
    assert terminal.run("complete", "out.parquet", "more.jsonl", *more).returncode == 0

    as_jsonl = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    rows = [(row["id"], row["prompt"], row["empty"], row["completion"]) for row in as_jsonl]
    assert rows == [("007", "a", "", "echo: a"), ("008", "", "x", None)]
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["007", "008"]
    csv = (tmp_path / "more.csv").read_bytes().split(b"\r\n")
    assert csv[1].startswith(b'007,a,"",echo: a,ok,,8,0,3,0,1.5e-06,echo: a,ok,,8,0,3,0,1.5e-06')
    assert csv[2] == b'008,"",x,,skipped,,,,,,0.0,,skipped,,,,,,0.0'
    again = [json.loads(line) for line in (tmp_path / "more.jsonl").read_bytes().splitlines()]
    assert [row["more"] for row in again] == ["echo: a", None]


def test_structured_answers_are_json_in_csv(terminal, tmp_path):
    (tmp_path / "in.csv").write_text("id,prompt\n1,red\n")
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))

    ended = terminal.run(
        "complete", "in.csv", "out.csv", *ASKED, "--response-format", "schema.json"
    )

    assert ended.returncode == 0
    row = (tmp_path / "out.csv").read_text().splitlines()[1]
    assert row.startswith('1,red,"{""name"":""echo: red""}","{""name"": ""echo: red""}",ok,')


CSV = b"id,prompt\n1,a\n"


@pytest.mark.parametrize(
    ("source", "data", "target", "more", "said"),
    [
        (
            "in.csv",
            b"id,id,prompt\n1,2,a\n",
            "out.csv",
            [],
            "more than one column of the name 'id'",
        ),
        ("in.csv", b"id,prompt\n1,a\n2\n", "out.csv", [], "Line 3 of in.csv has 1 fields"),
        ("in.csv", b'id,prompt\n1,"a\n', "out.csv", [], "begins in line 2"),
        ("in.csv", b"id,prompt\n1,\xff\n", "out.csv", [], "line 2 holds the byte 0xff"),
        ("in.csv", b"", "out.csv", [], "in.csv is empty"),
        ("in.csv", b"id,prompt,completion\n1,a,b\n", "out.csv", [], "column 'completion' already"),
        ("in.csv", b"id,prompt\n1,a\n1,b\n", "out.csv", [], "duplicate"),
        ("in.csv", CSV, "in.csv", [], "in.csv is the file that is read"),
        ("in.csv", CSV, "nowhere/out.csv", [], "There is no directory nowhere"),
        ("in.csv", CSV, ".", ["--to", "csv"], "no file that could be replaced"),
        ("in.csv", CSV, "out", [], "Say it by --to"),
        ("in.csv", CSV, "out.csv", ["--param", "temprature=0"], "Did you mean 'temperature'"),
        ("in.csv", CSV, "out.csv", ["--prompt-col", "promt"], "Did you mean 'prompt'"),
        ("in.csv", CSV, "out.csv", ["--response-format", "in.csv"], "in.csv is not JSON"),
        (
            "in.csv",
            CSV,
            "out.csv",
            ["--response-format", "none.json"],
            "none.json cannot be read: No such file or directory. Nothing was sent.",
        ),
        ("in.jsonl", b'{"id": 1, "prompt": "a"}\n{\n', "out.csv", [], "Line 2 of in.jsonl is not"),
        ("in.jsonl", b"[1]\n", "out.csv", [], "Line 1 of in.jsonl is a list"),
        (
            "in.jsonl",
            b'{"id": 1, "prompt": "a"}\n{"id": 2, "completion_status": 1}\n',
            "out.jsonl",
            [],
            "column 'completion_status' already",
        ),
        (
            "in.jsonl",
            b'{"id": 1, "prompt": "a"}\n{"id": "2", "prompt": "b"}\n',
            "out.jsonl",
            [],
            "The values of 'id' in in.jsonl do not make one column",
        ),
        ("in.parquet", b"no parquet", "out.jsonl", [], "cannot be read as parquet"),
        ("missing.csv", None, "out.csv", [], "missing.csv cannot be read: No such file"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_sent(
    source, data, target, more, said, invoke, server, tmp_path
):
    if data is not None:
        (tmp_path / source).write_bytes(data)

    ended = invoke("complete", source, target, *ASKED, *more)

    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("batchframe: ")
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr
    assert "files.create" not in server.calls()
    assert data is None or (tmp_path / source).read_bytes() == data


@pytest.mark.parametrize(
    "more",
    [
        ["--param", "temperature"],
        ["--param", "checkpoint=ck"],
        ["--price", "gpt-4o-mini=1"],
        ["--extra-body", "[40]"],
        ["--from", "xlsx"],
        ["--no-such-option"],
    ],
)
def test_a_line_that_is_none_has_exit_code_2(more, invoke, tmp_path):
    (tmp_path / "in.csv").write_bytes(CSV)

    ended = invoke("complete", "in.csv", "out.csv", *ASKED, *more)

    assert (ended.exit_code, ended.stdout) == (2, "")


def test_rows_and_json_do_not_share_stdout(invoke, tmp_path):
    (tmp_path / "in.csv").write_bytes(CSV)

    ended = invoke("complete", "in.csv", "-", "--to", "csv", "--json", *ASKED)

    assert (ended.exit_code, ended.stdout) == (2, "")


def test_parameters_are_json_or_text(terminal, tmp_path):
    (tmp_path / "in.csv").write_bytes(CSV)
    params = ["temperature=0.5", "stop=END", 'metadata={"a": "b"}', "logprobs=true"]
    options = [part for param in params for part in ("--param", param)]

    options += ["--extra-body", '{"top_k": 40}']

    assert terminal.run("complete", "in.csv", "out.csv", *ASKED, *options).returncode == 0

    sent = json.loads((tmp_path / "ck" / "spec.json").read_bytes())["params"]
    named = {"temperature": 0.5, "stop": "END", "metadata": {"a": "b"}, "logprobs": True}
    assert sent == named | {"top_k": 40}


def test_an_estimate_needs_no_key_and_sends_nothing(terminal, server, tmp_path):
    (tmp_path / "in.csv").write_bytes(CSV)
    del terminal.environment["OPENAI_API_KEY"]
    limit = ["--param", "max_completion_tokens=10"]

    shown = terminal.run("estimate", "in.csv", *ASKED, *limit)
    as_json = terminal.run("estimate", "in.csv", *ASKED, *limit, "--json")

    assert (shown.returncode, shown.stderr) == (0, b"")
    assert shown.stdout.startswith(b"Estimate for gpt-4o-mini\nrows ")
    told = json.loads(as_json.stdout)
    assert (told["n_rows"], told["n_requests"], told["output_tokens"]["high"]) == (1, 1, 10)
    assert server.calls() == {}


def test_an_unknown_price_is_said_in_a_line_and_can_be_given(terminal, tmp_path):
    (tmp_path / "in.csv").write_bytes(CSV)
    terminal.command.remove("-W")
    terminal.command.remove("error")
    asked = ["--prompt-col", "prompt", "--model", "mine", "--checkpoint", "ck"]

    unknown = terminal.run("complete", "in.csv", "out.csv", *asked)
    known = terminal.run("complete", "in.csv", "out.csv", *asked, "--price", "mine=1,2", "--json")

    assert unknown.returncode == 0
    first, second = unknown.stderr.decode().splitlines()
    assert first.startswith("batchframe: No price is known for mine: their cost is null")
    assert second == "batchframe: 1 row: 1 ok; an unknown cost. Written to out.csv."
    assert json.loads(known.stdout)["cost_usd"] == pytest.approx(8 * 1e-6 + 3 * 2e-6)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (
            ["complete", "~no-such-user/in.csv", "out.csv", *ASKED],
            1,
            "~no-such-user/in.csv names no known home",
        ),
        (
            ["complete", "in.csv", "~no-such-user/out.csv", *ASKED],
            1,
            "~no-such-user/out.csv names no known",
        ),
        (["purge", "~no-such-user/ck"], 1, "~no-such-user/ck names no known home directory"),
        (["doctor", "~no-such-user"], 1, "~no-such-user names no known home directory"),
        (["complete", "in.csv", "out.csv", *ASKED, "--price", "=1,2"], 2, "'=1,2' is not of the"),
        (
            ["complete", "in.csv", "out.csv", *ASKED, "--batch-size", "0"],
            1,
            "batchframe: --batch-size 0 must be from 1 upwards.",
        ),
        (
            ["complete", "in.csv", "out.csv", *ASKED, "--price", "x=1,-1"],
            1,
            "Rates(output=-1.0) must be dollars",
        ),
        (
            ["complete", "in.csv", "out.csv", *ASKED, "--prompt-col", "promt"],
            1,
            "There is no column 'promt' for --prompt-col. Did you mean 'prompt'?",
        ),
        (
            ["complete", "in.csv", "out.csv", "--model", "gpt-4o-mini"],
            1,
            "Exactly one of --prompt-col and --template says what to ask",
        ),
        (
            ["complete", "in.csv", "out.csv", *ASKED, "--max-cost", "0.1"],
            1,
            (
                "Set --param max_completion_tokens=..., from 1 upwards (of responses: --param "
                "max_output_tokens=...; of completions: --param max_tokens=...)."
            ),
        ),
    ],
)
def test_a_line_that_makes_no_sense_is_told_in_its_own_words(invoke, tmp_path, line, code, words):
    (tmp_path / "in.csv").write_text("id,prompt\n1,a\n")
    done = invoke(*line)
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr


def test_ways_out_are_told_in_options(terminal, tmp_path):
    (tmp_path / "in.csv").write_text("id,prompt\n1,a\n2,b\n")
    bounded = ["--param", "max_completion_tokens=1000", "--max-cost", "0.0001"]
    dear = terminal.run("complete", "in.csv", "out.csv", *ASKED, *bounded)
    other = ["--model", "their-model", "--checkpoint", "other"]
    terminal.command = [sys.executable, "-m", "batchframe"]  # warnings are words for people
    unknown = terminal.run("complete", "in.csv", "out.csv", *ASKED, *other)

    assert (dear.returncode, unknown.returncode) == (1, 0), unknown.stderr
    assert b"raise --max-cost" in dear.stderr
    assert b"smaller batches, --batch-size, or a lower limit" in dear.stderr
    assert b"per million tokens: --price their-model=IN,OUT." in unknown.stderr


def test_an_estimate_names_options(invoke, tmp_path):
    (tmp_path / "in.csv").write_text("id,prompt\n1,a\n2,a\n")
    shown = invoke("estimate", "in.csv", *ASKED, "--model", "their-model").stdout
    assert "no limit is set: --param max_completion_tokens=... sets one" in shown
    assert "no price is known: --price gives one" in shown
    assert "--dedupe would leave them out" in shown


def test_without_a_key_the_ways_out_are_those_of_a_shell(terminal, tmp_path):
    (tmp_path / "in.csv").write_text("id,prompt\n1,a\n")
    del terminal.environment["OPENAI_API_KEY"]
    done = terminal.run("complete", "in.csv", "out.csv", *ASKED)
    assert done.stderr == (
        b"batchframe: There is no API key; nothing was sent. Set the environment variable "
        b"OPENAI_API_KEY. To try without a key: `batchframe demo`, or `batchframe serve`.\n"
    )


def test_a_service_that_takes_no_such_call_is_left_by_an_option(terminal, tmp_path):
    (tmp_path / "in.csv").write_text("id,prompt\n1,a\n")
    line = ["complete", "in.csv", "out.csv", *ASKED, "--dialect", "groq"]
    done = terminal.run(*line, "--endpoint", "/v1/responses")
    assert b"pass --dialect generic" in done.stderr
