"""The provider: eight calls, HTTP words <-> core types.

Each call is made once. The openai SDK would repeat a create after a 500, a lost reply or a 429,
and each repetition can be a second batch that is paid for (seen with openai 3.54: three accepted
batches for one call), so its retries are off everywhere and the engine decides.

A call ends in one of three ways: its value; `Unavailable`, when the same call may be made again
later; or a ProviderError, when that would not help. `create` has a fourth: None, outcome unknown.
"""

import math
import os
import re
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO

import httpx2
import msgspec
import openai
from openai._models import FinalRequestOptions
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.completion_create_params import CompletionCreateParamsBase as LegacyParams
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.moderation_create_params import ModerationCreateParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from batchframe.core.addresses import is_private
from batchframe.core.batches import BatchError, BatchSeen, BatchStatus, CreateRefused, Usage
from batchframe.core.spec import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    EMBEDDINGS,
    MODERATIONS,
    RESPONSES,
    Account,
)
from batchframe.errors import (
    AccountMismatchError,
    ApiKeyError,
    AuthenticationError,
    ParameterError,
    ProviderError,
)

if TYPE_CHECKING:
    from openai._legacy_response import LegacyAPIResponse

__all__ = [
    "PARAMETERS",
    "Provider",
    "Unavailable",
    "account_of",
    "delete_quietly",
    "open_client",
]

#: Body fields of each endpoint that the SDK knows.
PARAMETERS = {
    CHAT_COMPLETIONS: frozenset(CompletionCreateParamsBase.__annotations__),
    RESPONSES: frozenset(ResponseCreateParamsBase.__annotations__),
    EMBEDDINGS: frozenset(EmbeddingCreateParams.__annotations__),
    COMPLETIONS: frozenset(LegacyParams.__annotations__),
    MODERATIONS: frozenset(ModerationCreateParams.__annotations__),
}

#: What an id may look like before it goes into an address.
_ID = re.compile(r"(?:batch|file)[-_][A-Za-z0-9_-]{1,200}")
#: Batches in one page of a listing, the API's own maximum (OpenAI API spec, 2026-08).
_PAGE = 100
#: Batches that a page of a listing must save asking for, one by one.
_GLANCE = 10
#: HTTP statuses of a create that prove that no batch was made.
_REFUSED = frozenset({400, 401, 403, 404, 413, 422})
#: Codes of errors that prove it, whatever the status.
_REFUSED_CODES = frozenset({"insufficient_quota", "token_limit_exceeded"})
#: The HTTP status of an answer that holds the asked range of a file, and no more.
_PARTIAL = 206
#: Longest wait that a service may ask for, in seconds: a day, as its longest limits last.
_LONGEST_WAIT = 86_400.0
#: How far the provider's clock may be behind ours, in seconds.
_CLOCK_SKEW = 900


class Unavailable(Exception):  # noqa: N818 - not an error of the caller's: the engine waits
    """The service did not answer, or asked to wait: the same call may be made again later."""

    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        #: Seconds that the service asks to wait, or None.
        self.retry_after = retry_after


class Provider:
    """One account at one address, through the user's own openai client."""

    def __init__(self, client: openai.OpenAI | None = None) -> None:
        """Take the user's client, or make one from the environment.

        Raises:
            ApiKeyError: there is no key, or it is blank or broken.
            ParameterError: the address is neither https nor on this machine.
        """
        if client is None:
            client = open_client()
            weakref.finalize(self, client.close)  # the user's own is the user's to close
        self._client = client.with_options(max_retries=0)
        # No call follows a redirect: the key and the prompts would go where it leads.
        prepare = self._client._prepare_options  # noqa: SLF001

        def prepare_without_redirects(options: FinalRequestOptions) -> FinalRequestOptions:
            prepared = prepare(options)
            prepared.follow_redirects = False
            return prepared

        self._client._prepare_options = prepare_without_redirects  # type: ignore[method-assign]  # noqa: SLF001
        if not _has_other_credentials(client):
            _check_key(client.api_key)
        address = str(self._client.base_url)
        _check_address(address)
        #: Something answered, whatever it said: the address is not simply wrong.
        self.reached = False
        #: Who answers and who pays.
        self.account = _account(self._client)

    def upload(self, file: BinaryIO, name: str, n_bytes: int) -> str:
        """Send an input file under a name that ends in .jsonl. Returns its id."""
        with self._calls("The upload of an input file"):
            seen = _fields(
                self._client.files.with_raw_response.create(
                    file=(name, file, "application/jsonl"), purpose="batch"
                )
            )
            file_id = _checked_id(seen.get("id"))
        if seen.get("bytes") is not None and seen["bytes"] != n_bytes:
            with suppress(Unavailable, ProviderError):  # a file too many is no reason to stop
                self.delete_file(file_id)
            raise Unavailable(f"{seen['bytes']} of {n_bytes} bytes arrived")
        return file_id

    def create(
        self, file_id: str, *, endpoint: str, window: str, metadata: Mapping[str, str]
    ) -> BatchSeen | CreateRefused | None:
        """Create a batch, once. None: nobody knows whether the provider made it."""
        try:
            return _batch_seen(
                _fields(
                    self._client.batches.with_raw_response.create(
                        input_file_id=file_id,
                        endpoint=endpoint,  # type: ignore[arg-type]
                        completion_window=window,  # type: ignore[arg-type]
                        metadata=dict(metadata),
                    )
                )
            )
        except openai.APIStatusError as error:
            self.reached = True
            # An account without money is refused with the status of a rate limit, which is no
            # proof by itself (OpenAI, error codes guide, 2026-08); a full queue may be, too.
            is_refusal = error.status_code in _REFUSED or error.code in _REFUSED_CODES
            if is_refusal and isinstance(error.body, Mapping):
                return CreateRefused(
                    code=str(error.code or f"http_{error.status_code}"),
                    message=_without_key(error.message),  # it goes into the log
                )
            return None
        except (openai.OpenAIError, Unavailable):
            return None

    def probe(self) -> float | None:
        """Ask for one batch of the account, whichever. Returns what the service's clock says.

        Seconds since the epoch, in whole seconds; None where the answer has no date.
        """
        with self._calls("Listing batches"):
            answer = self._client.batches.with_raw_response.list(limit=1)
            if not isinstance(_fields(answer).get("data"), list):
                raise Unavailable("the answer holds no list of batches")
        try:
            return parsedate_to_datetime(answer.headers["date"]).timestamp()
        except (KeyError, ValueError):
            return None

    def retrieve(self, batch_id: str) -> BatchSeen:
        """What the provider says of a batch now."""
        with self._calls("Asking for a batch", known=f"The batch {batch_id}"):
            calls = self._client.batches.with_raw_response
            seen = _batch_seen(_fields(calls.retrieve(_own_id(batch_id))))
        if seen.batch_id != batch_id:
            raise Unavailable(f"asked for {batch_id}, the answer is about {seen.batch_id}")
        return seen

    def find(self, *, file_id: str, token: str, since: float) -> list[BatchSeen]:
        """The batches that read this file or carry this token, the oldest first.

        Lists the account's batches back past `since` (seconds since the epoch), however many pages
        that takes; returning means that the listing was complete.
        """
        listed: dict[str, BatchSeen] = {}
        found: list[BatchSeen] = []
        for batches in self._listing():
            listed.update((batch.batch_id, batch) for batch in batches)
            # A date that is not given proves nothing, nor does a page that is not newest first; of
            # one whose dates are all the same, nobody knows.
            dates = [batch.created_at for batch in batches]
            newest_first = dates == sorted(dates, reverse=True) and dates[:1] > dates[-1:]
            passed = newest_first and any(0 < date < since - _CLOCK_SKEW for date in dates)
            found = [
                batch
                for batch in listed.values()
                if batch.input_file_id == file_id or batch.metadata.get("token") == token
            ]
            # Our clock may be wrong: that there is none is said at the end of the list only.
            if passed and found:
                break
        return sorted(found, key=lambda seen: (seen.created_at, seen.batch_id))

    def glance(self, batch_ids: Collection[str]) -> dict[str, BatchSeen]:
        """What the account's newest batches say of themselves, where they are among these.

        Reads no more pages than it would take calls to ask for a tenth of the batches, one by one:
        an older batch is not in the answer, and neither is one that lists do not show yet.
        """
        found: dict[str, BatchSeen] = {}
        for page, batches in enumerate(self._listing(), start=1):
            found.update((seen.batch_id, seen) for seen in batches if seen.batch_id in batch_ids)
            if len(found) == len(batch_ids) or page * _GLANCE >= len(batch_ids):
                break
        return found

    def _listing(self) -> Iterator[list[BatchSeen]]:
        """The account's batches, the newest first, page by page, to the end of the list."""
        known: set[str] = set()
        after: str | openai.Omit = openai.omit
        while True:
            with self._calls("Listing batches"):
                calls = self._client.batches.with_raw_response
                page = _fields(calls.list(limit=_PAGE, after=after))
            data, has_more = page.get("data"), page.get("has_more")
            if not isinstance(data, list):
                raise Unavailable("the answer holds no list of batches")
            # Another's batch with an odd id is no batch of ours.
            batches = [
                _batch_seen(batch) for batch in map(_mapping, data) if _is_id(batch.get("id"))
            ]
            is_new = any(batch.batch_id not in known for batch in batches)
            if batches and not is_new and has_more:
                raise Unavailable("the listing of batches repeats itself")
            if data and not batches and has_more is not False:
                raise Unavailable("a page of batches names no usable id, and there are more")
            yield batches
            if not is_new or has_more is False:
                return
            known.update(batch.batch_id for batch in batches)
            after = batches[-1].batch_id

    def download(self, file_id: str, target: BinaryIO) -> str:
        """Write a file's content, whole: its size is checked against the file's own record.

        A stream that breaks off is taken up where it did, as long as each try brings more.
        Returns the hex SHA-256 of what was written.
        """
        with self._calls("Downloading a file", known=f"The file {file_id}"):
            calls = self._client.files.with_raw_response
            expected = _fields(calls.retrieve(_own_id(file_id))).get("bytes")
            n_bytes, digest = 0, sha256()
            while True:
                before, broken = n_bytes, None
                try:
                    for piece in self._content(file_id, start=n_bytes):
                        target.write(piece)
                        digest.update(piece)
                        n_bytes += len(piece)
                except (httpx2.TransportError, httpx2.StreamError) as error:
                    broken = error
                if n_bytes == expected:  # also where the connection broke behind the last byte
                    broken = None
                    break
                is_short = isinstance(expected, int) and n_bytes < expected
                if (broken is None and not is_short) or n_bytes == before:
                    break
            if broken is not None:
                raise broken
        if isinstance(expected, int) and n_bytes != expected:
            raise Unavailable(f"{n_bytes} of {expected} bytes came")
        return digest.hexdigest()

    def _content(self, file_id: str, *, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start` on, in pieces."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        streams = self._client.files.with_streaming_response
        with streams.content(file_id, extra_headers=headers) as response:
            # A service that does not know ranges sends all of it again.
            skip = 0 if response.status_code == _PARTIAL else start
            for piece in response.iter_bytes():
                yield piece[skip:]
                skip = max(0, skip - len(piece))

    def delete_file(self, file_id: str) -> None:
        """Delete a file of ours; fine if it is gone."""
        with self._calls("Deleting a file"), suppress(openai.NotFoundError):
            # Read, because a proxy's page deletes nothing.
            _fields(self._client.files.with_raw_response.delete(_own_id(file_id)))

    def cancel(self, batch_id: str) -> None:
        """Ask for a batch of ours to be cancelled; what it did so far stays paid."""
        # A conflict says that it ended by itself.
        with self._calls("Cancelling a batch"), suppress(openai.ConflictError):
            _fields(self._client.batches.with_raw_response.cancel(_own_id(batch_id)))

    @contextmanager
    def _calls(self, what: str, *, known: str | None = None) -> Iterator[None]:
        """Sort what a call can raise into `Unavailable` and ProviderError."""
        try:
            yield
            self.reached = True
        except openai.APIStatusError as error:
            self.reached = True
            # Without its cause: the service's own text repeats part of a wrong key.
            raise _status_error(error, what, known) from None
        except (
            openai.APIConnectionError,
            openai.APIResponseValidationError,
            # A stream that breaks raises the transport's own errors, past the SDK (openai 3.54).
            httpx2.TransportError,
            httpx2.StreamError,
        ) as error:
            raise Unavailable(f"{what} failed: {type(error).__name__}") from error


def delete_quietly(provider: Provider, file_id: str | None) -> None:
    """Delete a file of ours, where that is only a matter of tidiness."""
    if file_id:
        with suppress(Unavailable, ProviderError):
            provider.delete_file(file_id)


def _status_error(error: openai.APIStatusError, what: str, known: str | None) -> Exception:
    status, code = error.status_code, error.code
    said = (
        f"{what} was refused: HTTP {status}, {code or 'no code'}, {_without_key(error.message)!r}"
    )
    if status in {401, 403}:
        return AuthenticationError(
            f"{said}. Batches that are running go on. Set a key of the same project and run the "
            "same call again: it resumes."
        )
    if status == 404 and known is not None:
        return AccountMismatchError(
            f"{known} was made by this checkpoint, but the service does not know it: the key is "
            "probably of another project, or the 30 days for which results are kept have passed. "
            "Nothing is sent again. Use a key of the project that made it."
        )
    if code == "insufficient_quota":
        return ProviderError(f"{said}. Add credit to the account and run the same call again.")
    if status in {408, 409, 425, 429} or status >= 500:
        return Unavailable(said, retry_after=_retry_after(error))
    return ProviderError(f"{said}. What was collected so far is kept.")


def _retry_after(error: openai.APIStatusError) -> float | None:
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(seconds, _LONGEST_WAIT) if 0 <= seconds < math.inf else None


def _fields(answer: "LegacyAPIResponse[Any]") -> dict[str, Any]:
    """An answer as plain fields, past the SDK's types, which not every service keeps to."""
    try:
        fields = msgspec.json.decode(answer.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unavailable("the answer was not JSON") from None  # a proxy's page, for one
    if not isinstance(fields, dict):
        raise Unavailable("the answer was not an object")
    return fields


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _checked_id(value: object) -> str:
    """An id out of an answer."""
    if not _is_id(value):
        raise Unavailable("the answer names no usable id")
    return str(value)


def _own_id(value: str) -> str:
    """An id out of the checkpoint, before it becomes part of an address."""
    if not _is_id(value):
        raise ProviderError(f"{value[:40]!r} is no id of a batch or file; nothing was asked.")
    return value


def _batch_seen(fields: Mapping[str, Any]) -> BatchSeen:
    counts = _mapping(fields.get("request_counts"))
    errors = _mapping(fields.get("errors")).get("data")
    metadata = _mapping(fields.get("metadata"))
    return BatchSeen(
        batch_id=_checked_id(fields.get("id")),
        input_file_id=str(fields.get("input_file_id") or ""),
        status=_status(fields.get("status")),
        created_at=_date(fields.get("created_at")),
        in_progress_at=_date(fields.get("in_progress_at")),
        output_file_id=_file_id(fields.get("output_file_id")),
        error_file_id=_file_id(fields.get("error_file_id")),
        n_done=int(_number(counts.get("completed")) + _number(counts.get("failed"))),
        usage=_usage(fields.get("usage")),
        errors=tuple(
            BatchError(
                code=str(error.get("code") or ""),
                message=str(error.get("message") or ""),
                line=int(_number(error.get("line"))) or None,
                param=error["param"] if isinstance(error.get("param"), str) else None,
            )
            for error in (errors if isinstance(errors, list) else ())
            if isinstance(error, Mapping)
        ),
        metadata={str(key): str(value) for key, value in metadata.items()},
    )


def _status(word: object) -> BatchStatus:
    text = str(word).lower()
    try:
        return BatchStatus("cancelled" if text == "canceled" else text)
    except ValueError:
        return BatchStatus.UNKNOWN


def _usage(fields: object) -> Usage | None:
    if not isinstance(fields, Mapping):
        return None
    read = _mapping(fields.get("input_tokens_details"))
    written = _mapping(fields.get("output_tokens_details"))
    return Usage(
        input_tokens=int(_number(fields.get("input_tokens"))),
        cached_tokens=int(_number(read.get("cached_tokens"))),
        output_tokens=int(_number(fields.get("output_tokens"))),
        reasoning_tokens=int(_number(written.get("reasoning_tokens"))),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _file_id(value: object) -> str | None:
    return value if isinstance(value, str) and value else None  # "" means none at some services


def _number(value: object) -> float:
    # What does not fit a date or a count says nothing; the log must be able to hold it.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return 0
    return value


def _date(value: object) -> float:
    # Seconds of this age of the world; 0, which says nothing, for milliseconds and the like.
    seconds = _number(value)
    return seconds if 0 < seconds < 1e11 else 0.0


def open_client(api_key: str | None = None, base_url: str | None = None) -> openai.OpenAI:
    """A client with this key at this address; what is None comes from the environment.

    Raises ApiKeyError if there is no key, or it is blank or broken.
    """
    key = os.environ.get("OPENAI_API_KEY") if api_key is None else api_key
    if key is None:
        raise ApiKeyError(
            "There is no API key; nothing was sent. Set the environment variable OPENAI_API_KEY, "
            "or pass client=OpenAI(api_key=...). To try without a key: `batchframe demo`, or "
            "`with bf.emulator.LocalServer() as server:` and client=server.client()."
        )
    _check_key(key)
    return openai.OpenAI(api_key=key, base_url=base_url)


def account_of(client: openai.OpenAI | None) -> Account:
    """Who would answer and pay; no key is needed, and nothing is sent."""
    if client is not None:
        return _account(client)
    with openai.OpenAI(api_key=os.environ.get("OPENAI_API_KEY") or "none") as made:
        return _account(made)


def _account(client: openai.OpenAI) -> Account:
    return Account(
        base_url=str(client.base_url),
        organization=client.organization,
        project=client.project,
    )


def _has_other_credentials(client: openai.OpenAI) -> bool:
    """True where the key is not a fixed text: Azure's tokens, or a function that gives keys."""
    return isinstance(client, openai.AzureOpenAI) or client._api_key_provider is not None  # noqa: SLF001


def _check_key(key: str) -> None:
    is_header = key.isascii() and key.isprintable() and " " not in key
    if not key or not is_header:
        raise ApiKeyError(
            "The API key is blank, or holds white space or other characters that no key has; "
            "nothing was sent, and the key is not shown here. Set OPENAI_API_KEY, or pass "
            "client=OpenAI(api_key=...)."
        )


def _check_address(address: str) -> None:
    if is_private(address):
        return
    raise ParameterError(
        f"The client's base_url {address} is not https: the key and the prompts would travel in "
        "the clear. Nothing was sent. Plain http is taken for this machine only (127.0.0.1)."
    )


def _without_key(message: str) -> str:
    # The service's own 401 text repeats part of the key.
    return re.sub(r"\b(?:sk|key)-[^\s,'\"]+", "***", message)
