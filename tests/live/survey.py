"""A survey of the real service: what was made there and what it said, kept in a directory.

    begin (files, batches, their ids) --a later run--> the ends of batches --> answers --> removed

Each fact is asked for once and written down at once, so that the same command again goes on where
the last one stopped. Only what this survey made is ever cancelled or deleted: it knows it by the
ids in its directory, and by a token of its own in the batches' metadata.
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import openai
import pyarrow as pa

import batchframe as bf

__all__ = ["CHAT", "TOKENS", "Pending", "Survey"]

T = TypeVar("T")

CHAT = "/v1/chat/completions"
#: Tokens that an answer may have.
TOKENS = 5
#: Requests that the service may bill if nothing is as we assume: all lines of `questions.py` that
#: are not refused by themselves.
_N_BILLED = 12
_FINAL = {"completed", "failed", "expired", "cancelled"}
_PROMPT = "Say yes."


class Pending(Exception):  # noqa: N818 - no error: the answer comes later
    """The answer is not there yet: a batch has not ended."""


class Survey:
    """What one survey made at the service, and what it learned."""

    def __init__(
        self, client: openai.OpenAI, directory: Path, *, model: str, max_usd: float
    ) -> None:
        """Go on with the survey in a directory, or begin one there.

        Raises RuntimeError where it could cost more than `max_usd`, by our own estimate.
        """
        self.client = client.with_options(max_retries=0)
        self.model = model
        self.directory = directory
        self._max_usd = max_usd
        self._path = directory / "facts.json"
        self._facts: dict[str, Any] = {}
        if self._path.exists():
            self._facts = json.loads(self._path.read_text(encoding="utf-8"))
        self._check_cost()
        self.token = self.once("token", lambda: secrets.token_hex(8))

    def _check_cost(self) -> None:
        table = pa.table({"id": list(range(_N_BILLED)), "prompt": [_PROMPT] * _N_BILLED})
        found = bf.estimate(
            table,
            "prompt",
            "id",
            model=self.model,
            max_completion_tokens=TOKENS,
            client=self.client,
            checkpoint=self.directory / "none",
        )
        if found.cost_usd is None or found.cost_usd.high is None:
            raise RuntimeError(f"The price of {self.model} is not known. Nothing was sent.")
        if found.cost_usd.high > self._max_usd:
            raise RuntimeError(
                f"The survey could cost ${found.cost_usd.high:.6f}, which is more than "
                f"${self._max_usd}. Nothing was sent. Name a cheaper BATCHFRAME_LIVE_MODEL, or "
                "raise BATCHFRAME_LIVE_MAX_USD."
            )

    def once(self, name: str, make: Callable[[], T]) -> T:
        """A fact, which is JSON: the one that is known, or the one that is made now and kept."""
        if name not in self._facts:
            self._facts[name] = make()
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._facts, indent=1), encoding="utf-8")
            temporary.replace(self._path)
        return self._facts[name]

    def line(self, custom_id: str, **body: Any) -> dict[str, Any]:
        """A line of an input file, as one that can be answered unless `body` says otherwise."""
        usual = {
            "model": self.model,
            "messages": [{"role": "user", "content": _PROMPT}],
            "max_completion_tokens": TOKENS,
        }
        return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {**usual, **body}}

    def file(self, name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """An input file, and what the upload said."""
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)

        def upload() -> dict[str, Any]:
            named = (f"batchframe-live-{self.token}-{name}.jsonl", data)
            made = self.client.files.create(file=named, purpose="batch")
            return {**made.model_dump(), "sent": len(data)}

        return self.once(f"file {name}", upload)

    def create(self, name: str, file_id: str, *, may_be_refused: bool = False) -> dict[str, Any]:
        """A batch, and what its create said; of one that was refused, `status_code` and `error`."""

        def make() -> dict[str, Any]:
            metadata = {"batchframe_live": self.token, "name": name}
            # One of a run that died before it had written it down.
            for batch in self.listing():
                if batch.get("metadata") == metadata:
                    return batch
            try:
                made = self.client.batches.create(
                    input_file_id=file_id,
                    endpoint=CHAT,
                    completion_window="24h",
                    metadata=metadata,
                )
            except (openai.BadRequestError, openai.NotFoundError) as error:
                if not may_be_refused:
                    raise
                return {"status_code": error.status_code, "error": error.body}
            return made.model_dump()

        return self.once(f"batch {name}", make)

    def listing(self) -> list[dict[str, Any]]:
        """The newest hundred batches of the account."""
        return [batch.model_dump() for batch in self.client.batches.list(limit=100).data]

    def ended(self, name: str) -> dict[str, Any]:
        """A batch that was created, at its end. Raises Pending before that."""

        def look() -> dict[str, Any]:
            seen = self.client.batches.retrieve(self._facts[f"batch {name}"]["id"]).model_dump()
            if seen["status"] not in _FINAL:
                raise Pending(f"the batch {name} ({seen['id']}) is {seen['status']}")
            return seen

        return self.once(f"end {name}", look)

    def lines_of(self, file_id: str | None) -> list[dict[str, Any]]:
        """The lines of an output or error file."""
        if not file_id:
            return []
        text = self.once(f"content {file_id}", lambda: self.client.files.content(file_id).text)
        return [json.loads(line) for line in text.split("\n") if line]

    def pipeline(self) -> dict[str, Any]:
        """What becomes of a run of our own. Raises Pending before it has ended."""

        def work() -> dict[str, Any]:
            table = pa.table({"id": [1, 2], "prompt": [_PROMPT, _PROMPT]})
            run = bf.submit(
                table,
                "prompt",
                "id",
                model=self.model,
                max_completion_tokens=TOKENS,
                max_cost_usd=self._max_usd,
                client=self.client,
                checkpoint=self._run,
                delete_remote=True,
                progress=False,
            )
            if not run.detach():
                raise Pending("our own run is not done")
            out = run.result()
            return {
                "statuses": out["completion_status"].to_pylist(),
                "costs": out["completion_cost_usd"].to_pylist(),
                "differences": [str(one) for one in run.usage().differences],
            }

        return self.once("pipeline", work)

    @property
    def _run(self) -> Path:
        return self.directory / "run"

    def remove(self) -> list[str]:
        """Cancel and delete all that the survey made, and nothing else. Returns their ids."""
        batches = {
            fact["id"]
            for name, fact in self._facts.items()
            if name.startswith("batch ") and "id" in fact
        }
        for batch in self.listing():
            if (batch.get("metadata") or {}).get("batchframe_live") == self.token:
                batches.add(batch["id"])
        files = {fact["id"] for name, fact in self._facts.items() if name.startswith("file ")}
        if self._run.exists():
            made = bf.open_run(self._run, client=self.client, progress=False).batches()
            batches.update(filter(None, made["batch_id"].to_pylist()))
        for batch_id in batches:
            seen = self.client.batches.retrieve(batch_id)
            if seen.status not in _FINAL:
                with suppress(openai.ConflictError):  # it has ended by itself
                    self.client.batches.cancel(batch_id)
            ids = (seen.input_file_id, seen.output_file_id, seen.error_file_id)
            files |= {file_id for file_id in ids if file_id}
        for file_id in sorted(files):
            with suppress(openai.NotFoundError):  # it is gone
                self.client.files.delete(file_id)
        return sorted({*batches, *files})


def from_environment() -> Survey:
    """The survey that the environment asks for: see README.md."""
    return Survey(
        openai.OpenAI(),
        Path(os.environ.get("BATCHFRAME_LIVE_DIR", ".batchframe/live")),
        model=os.environ.get("BATCHFRAME_LIVE_MODEL", "gpt-4.1-nano"),
        max_usd=float(os.environ.get("BATCHFRAME_LIVE_MAX_USD", "0.01")),
    )


if __name__ == "__main__":
    for name in from_environment().remove():
        print("cancelled or deleted:", name)  # noqa: T201 - a program
