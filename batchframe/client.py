"""The provider: eight calls, and what it means when one fails.

Each call is made once. The openai SDK would repeat a create after a 500, a lost reply or a 429,
and each repetition can be a second batch that is paid for (seen with openai 3.54: three accepted
batches for one call), so its retries are off everywhere and the engine decides.

A call ends in one of three ways: its value; `Unavailable`, when the same call may be made again
later; or a ProviderError, when that would not help. `create` has a fourth: None, outcome unknown.
"""

import math
import re
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import httpx2
import msgspec
import openai

from batchframe.accounts import account_of, open_client, secured
from batchframe.core.addresses import is_loopback, is_private, is_public
from batchframe.core.batches import BatchSeen, CreateRefused
from batchframe.core.dialects import Dialect
from batchframe.core.replies import batch_seen, is_ours, linked, mapping, passes
from batchframe.errors import (
    AccountMismatchError,
    AuthenticationError,
    ProviderError,
)

if TYPE_CHECKING:
    from openai._legacy_response import LegacyAPIResponse

__all__ = ["Provider", "Unavailable", "delete_quietly"]

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


#: What a stream that breaks raises, past the SDK (openai 3.54): the transport's own errors.
_BROKEN_STREAMS = (httpx2.TransportError, httpx2.StreamError, httpx2.DecodingError)


class Unavailable(Exception):  # noqa: N818 - not an error of the caller's: the engine waits
    """The service did not answer, or asked to wait: the same call may be made again later."""

    def __init__(self, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        #: Seconds that the service asks to wait, or None.
        self.retry_after = retry_after


class Provider:
    """One account at one address, through the user's own openai client."""

    def __init__(
        self, client: openai.OpenAI | None = None, dialect: str | Dialect | None = None
    ) -> None:
        """Take the user's client, or make one from the environment.

        Args:
            client: The user's.
            dialect: How the service speaks; None: as its address says.

        Raises:
            ApiKeyError: there is no key, or it is blank or broken.
            ParameterError: the address is neither https nor on this machine, or that of a service
                with another protocol; or there is no such dialect.
        """
        if client is None:
            client = open_client()
            weakref.finalize(self, client.close)  # the user's own is the user's to close
        self._client = secured(client)
        self._is_local = is_loopback(urlsplit(str(self._client.base_url)).hostname or "")
        #: Who answers and who pays, and how the service speaks.
        self.account, self.dialect = account_of(self._client, dialect)
        #: Something answered, whatever it said: the address is not simply wrong.
        self.reached = False

    def upload(self, file: BinaryIO, name: str, n_bytes: int) -> str:
        """Send an input file under a name that ends in .jsonl. Returns its id."""
        with self._calls("The upload of an input file"):
            seen: Mapping[str, Any] = _fields(
                self._client.files.with_raw_response.create(
                    file=(name, file, "application/jsonl"), purpose="batch"
                )
            )
            if (
                "id" not in seen
            ):  # SiliconFlow: {"code": 20000, "data": {"id": ...}} (docs, 2026-11)
                seen = mapping(seen.get("data"))
            file_id = self._checked_id(seen.get("id"))
        if seen.get("bytes") is not None and seen["bytes"] != n_bytes:
            with suppress(Unavailable, ProviderError):  # a file too many is no reason to stop
                self.delete_file(file_id)
            raise Unavailable(f"{seen['bytes']} of {n_bytes} bytes arrived")
        return file_id

    def create(
        self, file_id: str, *, endpoint: str, window: str, metadata: Mapping[str, str]
    ) -> BatchSeen | CreateRefused | Unavailable:
        """Create a batch, once. Unavailable: nobody knows whether the provider made it.

        `endpoint` is what the lines of the file call it.
        """
        try:
            return self._batch_seen(
                _fields(
                    self._client.batches.with_raw_response.create(
                        input_file_id=file_id,
                        endpoint=endpoint,  # type: ignore[arg-type]
                        completion_window=window,  # type: ignore[arg-type]
                        metadata=dict(metadata) if self.dialect.takes_metadata else openai.omit,
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
            return Unavailable(f"HTTP {error.status_code}", retry_after=_retry_after(error))
        except openai.OpenAIError as error:
            return Unavailable(type(error).__name__)
        except Unavailable as reason:
            return reason

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
            seen = self._batch_seen(_fields(calls.retrieve(self._own_id(batch_id))))
        if seen.batch_id != batch_id:
            raise Unavailable(f"asked for {batch_id}, the answer is about {seen.batch_id}")
        return seen

    def find(self, *, file_id: str, token: str, since: float) -> list[BatchSeen]:
        """The batches that read this file or carry this token, the oldest first.

        Lists the account's batches back past `since` (seconds since the epoch), however many pages
        that takes; returning means that the listing was complete. Raises ProviderError where the
        only one has an id that cannot go into an address.
        """
        listed: dict[str, BatchSeen] = {}
        found: list[BatchSeen] = []
        nameless: list[BatchSeen] = []
        for batches, others in self._listing():
            listed.update((batch.batch_id, batch) for batch in batches)
            nameless += (batch for batch in others if is_ours(batch, file_id, token))
            found = [batch for batch in listed.values() if is_ours(batch, file_id, token)]
            # Our clock may be wrong: that there is none is said at the end of the list only.
            if found and passes(batches, since - _CLOCK_SKEW):
                break
        if nameless and not found:  # to take it for none would pay for its rows again
            raise ProviderError(
                f"The batch {nameless[0].batch_id!r:.80} reads our file, and {self.dialect} has no "
                "such ids, so it cannot be asked for. Nothing is sent again. Say how ids look, "
                "dialect=bf.Dialect(name=..., ids=...), and run the same call again: it resumes."
            )
        return sorted(found, key=lambda seen: (seen.created_at, seen.batch_id))

    def glance(self, batch_ids: Collection[str]) -> dict[str, BatchSeen]:
        """What the account's newest batches say of themselves, where they are among these.

        Reads no more pages than it would take calls to ask for a tenth of the batches, one by one:
        an older batch is not in the answer, and neither is one that lists do not show yet.
        """
        found: dict[str, BatchSeen] = {}
        for page, (batches, _) in enumerate(self._listing(), start=1):
            found.update((seen.batch_id, seen) for seen in batches if seen.batch_id in batch_ids)
            if len(found) == len(batch_ids) or page * _GLANCE >= len(batch_ids):
                break
        return found

    def _listing(self) -> Iterator[tuple[list[BatchSeen], list[BatchSeen]]]:
        """The account's batches, the newest first, page by page, to the end of the list.

        With those of each page whose ids are none of the service's.
        """
        known: set[str] = set()
        after: str | openai.Omit = openai.omit
        while True:
            with self._calls("Listing batches"):
                calls = self._client.batches.with_raw_response
                page = _fields(calls.list(limit=_PAGE, after=after))
            data, has_more = page.get("data"), page.get("has_more")
            if not isinstance(data, list):
                raise Unavailable("the answer holds no list of batches")
            records = list(map(mapping, data))
            batches = [
                self._batch_seen(one) for one in records if self.dialect.is_id(one.get("id"))
            ]
            others = [
                batch_seen(str(one["id"]), one)
                for one in records
                if one.get("id") and not self.dialect.is_id(one["id"])
            ]
            is_new = any(batch.batch_id not in known for batch in batches)
            if batches and not is_new and has_more:
                raise Unavailable("the listing of batches repeats itself")
            if data and not batches and has_more is not False:
                raise Unavailable("a page of batches names no usable id, and there are more")
            yield batches, others
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
            link = self._link(file_id)
            expected = None
            if link is None:
                calls = self._client.files.with_raw_response
                expected = _fields(calls.retrieve(self._own_id(file_id))).get("bytes")
            n_bytes, digest = 0, sha256()
            while True:
                before, broken = n_bytes, None
                try:
                    for piece in self._content(file_id, link, start=n_bytes):
                        target.write(piece)
                        digest.update(piece)
                        n_bytes += len(piece)
                except _BROKEN_STREAMS as error:
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

    def _content(self, file_id: str, link: str | None, *, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start` on, in pieces."""
        # As it is: of compressed bytes none could be told where to go on from.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        streams = self._client.files.with_streaming_response
        with (
            streams.content(file_id, extra_headers=headers)
            if link is None
            else self._linked(link, headers)
        ) as response:
            # A service that does not know ranges sends all of it again.
            skip = 0 if response.status_code == _PARTIAL else start
            for piece in response.iter_bytes():
                yield piece[skip:]
                skip = max(0, skip - len(piece))

    def _link(self, file_id: str) -> str | None:
        """The address of a result file, where it has no id; asked for anew, as it may not last."""
        found = linked(file_id)
        if found is None:
            return None
        kind, batch_id = found
        if not self.dialect.links_results:
            raise ProviderError(
                f"The results of the batch {batch_id} are at an address, and {self.dialect} is not "
                "known to have them there, so it was not asked. Nothing is lost, and nothing is "
                "sent again. If you trust the service with that, run the same call again with "
                "dialect='siliconflow', or a bf.Dialect(name=..., links_results=True)."
            )
        calls = self._client.batches.with_raw_response
        link = _fields(calls.retrieve(self._own_id(batch_id))).get(f"{kind}_file_id")
        if not isinstance(link, str) or not is_private(link):
            raise Unavailable("the batch names no address of its results that could be used")
        if not self._is_local and not is_public(urlsplit(link).hostname or ""):
            raise Unavailable("the batch names an address of our own network for its results")
        return link

    @contextmanager
    def _linked(self, link: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """What is at an address, asked for without the key, which is none of its business."""
        http = self._client._client  # noqa: SLF001 - the user's, with proxies and certificates
        request = httpx2.Request("GET", link, headers=dict(headers))
        response = http.send(request, stream=True, auth=None, follow_redirects=False)
        try:
            if response.status_code in {404, 410}:
                raise AccountMismatchError(
                    "The address of a result file holds nothing any more: the 30 days for which "
                    "results are kept have probably passed. Nothing is sent again."
                )
            if not response.is_success:
                raise Unavailable(f"the address of a result file says HTTP {response.status_code}")
            yield response
        finally:
            response.close()

    def delete_file(self, file_id: str) -> None:
        """Delete a file of ours; fine if it is gone, or has no id."""
        if self.dialect.links_results and linked(file_id):
            return
        with self._calls("Deleting a file"), suppress(openai.NotFoundError):
            # Read, because a proxy's page deletes nothing.
            _fields(self._client.files.with_raw_response.delete(self._own_id(file_id)))

    def cancel(self, batch_id: str) -> None:
        """Ask for a batch of ours to be cancelled; what it did so far stays paid."""
        # A conflict says that it ended by itself.
        with self._calls("Cancelling a batch"), suppress(openai.ConflictError):
            try:
                _fields(self._client.batches.with_raw_response.cancel(self._own_id(batch_id)))
            except openai.BadRequestError:
                # So does this at Moonshot (docs, 2026-11), if it is true.
                if not self.retrieve(batch_id).status.is_final:
                    raise

    def _batch_seen(self, fields: Mapping[str, Any]) -> BatchSeen:
        return batch_seen(self._checked_id(fields.get("id")), fields)

    def _checked_id(self, value: object) -> str:
        """An id out of an answer."""
        if not self.dialect.is_id(value):
            raise Unavailable("the answer names no usable id")
        return str(value)

    def _own_id(self, value: str) -> str:
        """An id out of the checkpoint, before it becomes part of an address."""
        if not self.dialect.is_id(value):
            raise ProviderError(f"{value[:40]!r} is no id of a batch or file; nothing was asked.")
        return value

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
            *_BROKEN_STREAMS,
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
    if status == 413 or "too large" in error.message:
        return ProviderError(
            f"{said}. Run the same call again with a smaller Limits(max_requests=...): what was "
            "not sent yet is cut anew. What was collected so far is kept."
        )
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


def _without_key(message: str) -> str:
    # The service's own 401 text repeats part of the key.
    return re.sub(r"\b(?:sk|key)-[^\s,'\"]+", "***", message)
