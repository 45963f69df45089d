"""The questions that our code answers by an assumption, and how to ask the service.

A question says what is assumed and where that matters; `ask` gives what the service said, and
whether the assumption holds. README.md has the same table, with the answers so far.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import openai

from tests.live.survey import Survey

__all__ = ["QUESTIONS", "Answer", "Question", "asked"]

#: 30 days, in seconds.
_KEPT = 30 * 86_400
#: So many tokens no model answers with: the request is refused by itself.
_TOO_MANY = 1_000_000_000


class Answer(NamedTuple):
    """What the service said."""

    holds: bool
    text: str


class Question(NamedTuple):
    """One of them."""

    name: str
    text: str
    assumed: str
    matters: str
    ask: Callable[[Survey], Answer]


def _upload(survey: Survey) -> Answer:
    made = survey.file("answers", _mixed_outcomes(survey))
    kept = (made.get("expires_at") or 0) - made["created_at"]
    holds = made["bytes"] == made["sent"] and kept == _KEPT
    return Answer(
        holds, f"bytes={made['bytes']} of {made['sent']} sent, kept for {kept / 86_400:g} days"
    )


def _mixed_outcomes(survey: Survey) -> list[dict[str, Any]]:
    refused = survey.line("refused", max_completion_tokens=_TOO_MANY)
    return [survey.line("a"), survey.line("b"), refused]


def _begin_answers(survey: Survey) -> dict[str, Any]:
    """Create the batch of three, and look at the list right behind it."""
    file_id = survey.file("answers", _mixed_outcomes(survey))["id"]

    def create() -> dict[str, Any]:
        made = survey.create("answers", file_id)
        # The others' batches are none of our business beyond this.
        listed = [[batch["id"] == made["id"], batch["created_at"]] for batch in survey.listing()]
        return {"id": made["id"], "listed": listed, "has_more": _has_more(survey)}

    return survey.once("first listing", create)


def _has_more(survey: Survey) -> Any:
    return survey.client.batches.list(limit=1).has_more


def _listed(survey: Survey) -> Answer:
    first = _begin_answers(survey)
    seen = any(is_ours for is_ours, _ in first["listed"])
    return Answer(seen, "yes" if seen else "not in the listing right behind the create")


def _newest_first(survey: Survey) -> Answer:
    first = _begin_answers(survey)
    dates = [created_at for _, created_at in first["listed"]]
    in_order = dates == sorted(dates, reverse=True)
    has_more = first["has_more"]
    return Answer(
        in_order and isinstance(has_more, bool),
        f"{'newest first' if in_order else 'in another order'}, has_more={has_more}",
    )


def _metadata(survey: Survey) -> Answer:
    first = _begin_answers(survey)
    wanted = {"batchframe_live": survey.token, "name": "answers"}
    created = survey.create("answers", "")["metadata"] == wanted
    # From the list now, which may have lagged then.
    shown = survey.once(
        "metadata in the listing",
        lambda: [batch["metadata"] for batch in survey.listing() if batch["id"] == first["id"]],
    )
    return Answer(
        created and shown == [wanted],
        f"{'kept' if created else 'not kept'} by the create, {shown or 'nothing'} in the listing",
    )


def _usage(survey: Survey) -> Answer:
    _begin_answers(survey)
    batch = survey.ended("answers")
    lines = survey.lines_of(batch["output_file_id"])
    bodies = [line["response"]["body"] for line in lines]
    sums = [sum(body["usage"][name] for body in bodies) for name in _SUMS]
    usage = batch.get("usage") or {}
    told = [usage.get("input_tokens"), usage.get("output_tokens")]
    return Answer(
        told == sums and bool(batch.get("model")),
        f"usage {told} where the rows add up to {sums}, model={batch.get('model')!r}, "
        f"request_counts={batch.get('request_counts')}",
    )


_SUMS = ("prompt_tokens", "completion_tokens")


def _row_refused(survey: Survey) -> Answer:
    _begin_answers(survey)
    lines = survey.lines_of(survey.ended("answers")["error_file_id"])
    if [line["custom_id"] for line in lines] != ["refused"]:
        return Answer(False, f"{len(lines)} lines in the error file, {lines!r:.200}")
    (line,) = lines
    response = line["response"] or {}
    error = (response.get("body") or {}).get("error") or {}
    return Answer(
        response.get("status_code") == 400 and line.get("error") is None and "message" in error,
        f"status_code={response.get('status_code')}, error={line.get('error')}, "
        f"code={error.get('code')!r}, type={error.get('type')!r}",
    )


def _content(survey: Survey) -> dict[str, Any]:
    _begin_answers(survey)
    file_id = survey.ended("answers")["output_file_id"]

    def fetch() -> dict[str, Any]:
        whole = survey.client.files.with_raw_response.content(file_id)
        part = survey.client.files.with_raw_response.content(
            file_id, extra_headers={"Range": "bytes=10-"}
        )
        return {
            "bytes": survey.client.files.retrieve(file_id).bytes,
            "came": len(whole.content),
            "length": whole.headers.get("content-length"),
            "encoding": whole.headers.get("content-encoding"),
            "newline": whole.content.endswith(b"\n"),
            "status": part.status_code,
            "range": part.headers.get("content-range"),
            "same": part.content == whole.content[10:],
        }

    return survey.once("content of the output file", fetch)


def _range(survey: Survey) -> Answer:
    seen = _content(survey)
    return Answer(
        seen["status"] == 206 and seen["same"],
        f"status {seen['status']}, Content-Range={seen['range']!r}, "
        f"{'the rest' if seen['same'] else 'other bytes'}",
    )


def _length(survey: Survey) -> Answer:
    seen = _content(survey)
    return Answer(
        seen["bytes"] == seen["came"] and seen["newline"],
        f"bytes={seen['bytes']}, {seen['came']} came, Content-Length={seen['length']}, "
        f"Content-Encoding={seen['encoding']}, "
        f"{'a newline' if seen['newline'] else 'no newline'} at the end",
    )


def _begin_clean(survey: Survey) -> str:
    file_id: str = survey.file("clean", [survey.line("a")])["id"]
    survey.create("clean", file_id)
    return file_id


def _clean(survey: Survey) -> Answer:
    _begin_clean(survey)
    batch = survey.ended("clean")
    return Answer(
        batch["status"] == "completed" and not batch["error_file_id"],
        f"{batch['status']}, error_file_id={batch['error_file_id']!r}",
    )


def _second(survey: Survey) -> Answer:
    file_id = _begin_clean(survey)
    first = survey.create("clean", file_id)
    second = survey.create("second", file_id, may_be_refused=True)
    holds = "id" in second and second["id"] != first["id"]
    if holds:
        survey.once("cancel of second", lambda: _cancelled(survey, second["id"]))
    return Answer(
        holds, "a second batch, which was cancelled at once" if holds else f"no: {second!r:.200}"
    )


def _cancelled(survey: Survey, batch_id: str) -> str:
    try:
        return survey.client.batches.cancel(batch_id).status
    except openai.ConflictError as error:
        return f"409: {error.message}"


def _partial(survey: Survey) -> Answer:
    if not _second(survey).holds:
        return Answer(False, "no second batch that could be cancelled")
    batch = survey.ended("second")
    found = {
        name: [
            (line.get("error") or {}).get("code") or "answered"
            for line in survey.lines_of(batch[f"{name}_file_id"])
        ]
        for name in ("output", "error")
    }
    n_lines = sum(map(len, found.values()))
    return Answer(
        batch["status"] in {"cancelled", "completed"} and n_lines <= 1,
        f"{batch['status']}, output_file_id={batch['output_file_id']!r}, "
        f"error_file_id={batch['error_file_id']!r}, lines {found}",
    )


def _cancel_ended(survey: Survey) -> Answer:
    _begin_clean(survey)
    batch = survey.ended("clean")
    said = survey.once("cancel of clean", lambda: _cancelled(survey, batch["id"]))
    return Answer(said.startswith("409"), said)


def _all_refused(survey: Survey) -> Answer:
    lines = [survey.line("refused", max_completion_tokens=_TOO_MANY)]
    survey.create("all refused", survey.file("all refused", lines)["id"])
    batch = survey.ended("all refused")
    return Answer(
        batch["status"] == "completed"
        and not batch["output_file_id"]
        and bool(batch["error_file_id"]),
        f"{batch['status']}, output_file_id={batch['output_file_id']!r}, "
        f"error_file_id={'an id' if batch['error_file_id'] else batch['error_file_id']!r}",
    )


def _fails_with(name: str, code: str) -> Callable[[Survey], Answer]:
    """A question of a batch that is to fail with a code."""

    def ask(survey: Survey) -> Answer:
        lines = {
            "duplicate": lambda: [survey.line("a"), survey.line("a")],
            "mixed": lambda: [survey.line("a"), survey.line("b", model=_other_model(survey))],
            "no such model": lambda: [survey.line("a", model="batchframe-no-such-model")],
        }[name]()
        made = survey.create(name, survey.file(name, lines)["id"], may_be_refused=True)
        if "id" not in made:
            return Answer(False, f"refused at the create: {made!r:.200}")
        batch = survey.ended(name)
        errors = ((batch.get("errors") or {}).get("data")) or []
        said = [
            f"{e['code']} (line {e['line']}, param {e['param']}): {e['message']}" for e in errors
        ]
        codes = [error["code"] for error in errors]
        return Answer(
            batch["status"] == "failed" and codes[:1] == [code],
            f"{batch['status']}: {'; '.join(said) or 'no errors'}",
        )

    return ask


def _other_model(survey: Survey) -> str:
    return "gpt-4o-mini" if survey.model != "gpt-4o-mini" else "gpt-4.1-nano"


def _never_runs(name: str, file_of: Callable[[Survey], str]) -> Callable[[Survey], Answer]:
    """A question of a create whose file is not there."""

    def ask(survey: Survey) -> Answer:
        made = survey.create(name, file_of(survey), may_be_refused=True)
        if "id" not in made:
            return Answer(True, f"{made['status_code']} at the create: {made['error']}")
        batch = survey.ended(name)
        errors = ((batch.get("errors") or {}).get("data")) or []
        said = "; ".join(f"{error['code']}: {error['message']}" for error in errors)
        return Answer(batch["status"] == "failed", f"a batch that is {batch['status']}: {said}")

    return ask


def _no_file(_survey: Survey) -> str:
    return "file-batchframeNoSuchFile00"


def _deleted(survey: Survey) -> dict[str, Any]:
    """Upload a file, delete it, and delete it again."""
    file_id = survey.file("deleted", [survey.line("a")])["id"]

    def delete() -> dict[str, Any]:
        said = survey.client.files.with_raw_response.delete(file_id)
        try:
            survey.client.files.delete(file_id)
            again = 200
        except openai.APIStatusError as error:
            again = error.status_code
        return {"status": said.status_code, "deleted": said.parse().deleted, "again": again}

    return {"id": file_id, **survey.once("deletion", delete)}


def _deletes(survey: Survey) -> Answer:
    seen = _deleted(survey)
    return Answer(
        seen["status"] == 200 and seen["deleted"] is True and seen["again"] == 404,
        f"{seen['status']}, deleted={seen['deleted']}; a second time {seen['again']}",
    )


def _headers(survey: Survey) -> Answer:
    def look() -> dict[str, str]:
        headers = survey.client.batches.with_raw_response.list(limit=1).headers
        return {
            name.lower(): value
            for name, value in headers.items()
            if name.lower() in {"date", "retry-after"} or "ratelimit" in name.lower()
        }

    seen = survey.once("headers of a listing", look)
    limits = {name: value for name, value in seen.items() if name != "date"}
    return Answer(
        "date" in seen and not limits,
        f"{'a' if 'date' in seen else 'no'} Date; of rates {limits or 'nothing'}",
    )


def _unknown(survey: Survey) -> Answer:
    def look() -> int:
        try:
            survey.client.batches.retrieve("batch_batchframeNoSuchBatch00")
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    status = survey.once("status of an unknown batch", look)
    return Answer(status == 404, str(status))


def _pipeline(survey: Survey) -> Answer:
    seen = survey.pipeline()
    answered = set(seen["statuses"]) <= {"ok", "truncated"}
    return Answer(
        answered and None not in seen["costs"] and not seen["differences"],
        f"{seen['statuses']}, ${sum(cost or 0 for cost in seen['costs']):.7f}, "
        f"differences: {seen['differences'] or 'none'}",
    )


#: In the order in which they are asked: what takes longest is begun first.
QUESTIONS = (
    Question(
        "upload",
        "Does an upload say how many bytes arrived, and for how long it is kept?",
        "all bytes; 30 days",
        "`Provider.upload`; `KEPT_DAYS`",
        _upload,
    ),
    Question(
        "listed",
        "Does the listing show a batch at once after its create?",
        "yes; if not, within `reconcile_seconds`",
        "the search after a create without an answer",
        _listed,
    ),
    Question(
        "newest_first",
        "Are listings newest first, with has_more?",
        "yes",
        "`Provider.find`, `Provider.glance`",
        _newest_first,
    ),
    Question(
        "metadata",
        "Is metadata kept, and shown in listings?",
        "yes",
        "`Provider.find` by our token",
        _metadata,
    ),
    Question(
        "second",
        "Does a second create with the same file make a second batch?",
        "yes, and it is paid for",
        "no file is ever created twice",
        _second,
    ),
    Question(
        "no_file",
        "What does a create say of a file that is not there, or not yet?",
        "400, or a batch that fails; never one that runs",
        "`CreateRefused`, `FileLost`",
        _never_runs("no file", _no_file),
    ),
    Question(
        "fence",
        "Does a create with a deleted file ever run?",
        "no",
        "the file is deleted as a fence before its rows are sent anew",
        _never_runs("fence", lambda survey: _deleted(survey)["id"]),
    ),
    Question(
        "deletes",
        "What do deletes of files answer?",
        "200 and deleted=true; then 404",
        "`Provider.delete_file`",
        _deletes,
    ),
    Question(
        "headers",
        "Do listings carry a date, and rate limits?",
        "a date; no limits",
        "`Provider.probe`; the pace of polling",
        _headers,
    ),
    Question(
        "unknown",
        "What is said of a batch that there is not?",
        "404",
        "`AccountMismatchError`",
        _unknown,
    ),
    Question(
        "duplicate",
        "How does a batch with the same custom_id twice fail?",
        "`duplicate_custom_id`",
        "the emulator's validation",
        _fails_with("duplicate", "duplicate_custom_id"),
    ),
    Question(
        "mixed",
        "How does a batch with two models fail?",
        "`mismatched_model`",
        "a shard holds rows of one model; the emulator's validation",
        _fails_with("mixed", "mismatched_model"),
    ),
    Question(
        "no_model",
        "How does a batch for a model that there is not fail?",
        "`model_not_found`",
        "rows of a failed batch are `failed` for good, and the run stops",
        _fails_with("no such model", "model_not_found"),
    ),
    Question(
        "all_refused",
        "What does a batch look like of which every row was refused?",
        "completed, without an output file",
        "both files are read, whatever the counts say",
        _all_refused,
    ),
    Question(
        "clean",
        "What is error_file_id where no row failed?",
        'null or ""',
        '`""` is none',
        _clean,
    ),
    Question(
        "row_refused",
        "What does the line of a refused row look like?",
        "status_code 400, error null, the error in the body",
        "`collect_results`",
        _row_refused,
    ),
    Question(
        "usage",
        "Are usage and model of a batch filled, and do its rows add up to it?",
        "yes",
        "`bf.usage(...).differences`",
        _usage,
    ),
    Question(
        "range",
        "Does the content of a file honour Range?",
        "206 and the rest; if not, it is downloaded anew",
        "`Provider.download`",
        _range,
    ),
    Question(
        "length",
        "Does a file say its size as it is downloaded?",
        "yes, and it ends in a newline",
        "`Provider.download`; a cut is seen",
        _length,
    ),
    Question(
        "cancel_ended",
        "What does the cancel of an ended batch say?",
        "409",
        "`Provider.cancel`",
        _cancel_ended,
    ),
    Question(
        "partial",
        "Does a cancelled batch keep its files, and what do they say?",
        "yes: answered rows, and `batch_cancelled`; none of a batch that had not begun",
        "rows of a cancelled batch: paid, or `cancelled`",
        _partial,
    ),
    Question(
        "pipeline",
        "Does a run of ours come to its end?",
        "each row answered, with a cost",
        "everything",
        _pipeline,
    ),
)


def asked(survey: Survey, question: Question) -> tuple[Answer, str]:
    """The answer, and its line. Raises Pending where it is not there yet."""

    def ask() -> list[Any]:
        holds, text = question.ask(survey)
        seen = f"seen {datetime.now(UTC):%Y-%m-%d}, openai {openai.__version__}"
        return [holds, text, seen]

    holds, text, seen = survey.once(f"answer {question.name}", ask)
    mark = "" if holds else " - NOT AS ASSUMED"
    return Answer(holds, text), f"{question.text} {text} ({seen}){mark}"
