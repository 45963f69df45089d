"""One shard's life: states, the events that change them, and what the engine does in each.

`advance(state, event)` is the whole machine: one line per transition, anything else is an error.
`next_action(state)` says what to do next. Both are pure; the engine performs the action, records
the event in the log, and only then believes the new state. So the log alone is the truth, and a
process that dies at any point leaves a state from which the next one goes on.

The one rule about money: no file is ever created twice. `CreateStarted` is on disk before the
create is sent; after it, only the batch itself (`BatchSeen`), a definite refusal (`CreateRefused`)
or a long fruitless search (`NotFound`, which gives the file up) lead on.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

__all__ = [
    "KEPT_DAYS",
    "Action",
    "BatchError",
    "BatchSeen",
    "BatchStatus",
    "Collect",
    "Collected",
    "Create",
    "CreateRefused",
    "CreateStarted",
    "Creating",
    "Dropped",
    "Ended",
    "Event",
    "FileLost",
    "FileUploaded",
    "IllegalTransitionError",
    "Live",
    "NotFound",
    "Nothing",
    "Planned",
    "Poll",
    "Reconcile",
    "ResultsCommitted",
    "ResultsLost",
    "Sent",
    "ShardDropped",
    "ShardFrozen",
    "State",
    "TurnedAway",
    "Unsent",
    "Upload",
    "UploadStarted",
    "Uploaded",
    "Uploading",
    "Usage",
    "advance",
    "next_action",
]

#: How long the provider keeps a batch's files, in days (OpenAI, Batch guide, 2026-08).
KEPT_DAYS = 30


class BatchStatus(StrEnum):
    """The provider's words for a batch (OpenAI API spec, 2026-08), and one for all others."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    #: A word that this version does not know: treated as still running.
    UNKNOWN = "unknown"

    @property
    def is_final(self) -> bool:
        """True when the batch will not change any more."""
        return self in _FINAL


_FINAL = frozenset(
    {BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why a batch was refused after it was created."""

    #: The provider's code, such as "token_limit_exceeded"; "" where it gave none.
    code: str
    #: The provider's words.
    message: str
    #: Line of the input file that is meant, counted from 1; None when the whole batch is.
    line: int | None = None
    #: The body field that is meant, such as "body.model", or None.
    param: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a whole batch, as the provider sums them."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


# Events: what happened. They are the payload of the log's commits, tagged by their type.


class ShardFrozen(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The shard's input file is on disk and will not change."""

    #: Requests in the file.
    n_requests: int
    #: Size of the file, in bytes.
    n_bytes: int
    #: Estimated prompt tokens of the file.
    n_tokens: int
    #: Hex SHA-256 of the file.
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    #: How often the shard's rows may have been tried before: 0 in the first round.
    round: int
    #: The model of its requests, where the spec leaves it to the rows; None otherwise.
    model: str | None = None


class UploadStarted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An upload is about to be sent."""


class FileUploaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The provider holds the file, and its size is right."""

    file_id: str


class CreateStarted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A create is about to be sent, once, for the uploaded file."""

    #: Random hex that goes into the batch's metadata.
    token: str
    #: When the intent was recorded, in seconds since the epoch.
    at: float


class CreateRefused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The provider definitely made no batch."""

    code: str
    message: str

    @property
    def is_file_unknown(self) -> bool:
        """True when the provider does not know the input file, not yet or not any more."""
        # Its words; the code says only "invalid_request" (bespokelabs curator issue 116, 2024).
        words = self.message.lower()
        return "cannot find file" in words or (self.code == "http_404" and "file" in words)


class NotFound(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The search for the batch ended without one, and the file is given up."""


class BatchSeen(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the provider last said of the batch."""

    batch_id: str
    #: The file that the batch reads: adoption goes by it.
    input_file_id: str
    status: BatchStatus
    #: Seconds since the epoch, by the provider's clock.
    created_at: float
    #: When its requests began to run, likewise; 0.0 where that is not known.
    in_progress_at: float = 0.0
    output_file_id: str | None = None
    error_file_id: str | None = None
    #: Requests that ended so far, with an answer or an error; a hint, never proof.
    n_done: int = 0
    #: Those of `n_done` that have an answer; likewise.
    n_answered: int = 0
    usage: Usage | None = None
    errors: tuple[BatchError, ...] = ()
    #: The batch's metadata, as far as it survived the way.
    metadata: dict[str, str] = {}


class ResultsCommitted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The shard's results are on disk, one per request."""

    #: Hex SHA-256 of each verbatim download, by its kind ("output", "error").
    downloads: dict[str, str]
    #: Tokens summed over the rows; the batch's own sum stands beside it in the log.
    usage: Usage
    #: Lines that stood twice, were not ours, or could not be read.
    n_duplicate: int
    n_foreign: int
    n_unreadable: int


class ResultsLost(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The results and the downloads on disk are damaged, and must be fetched again."""


class FileLost(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The provider does not know the uploaded file any more, and no create for it is under way."""


class TurnedAway(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The queue was full: no batch was made, or none of it ran; its file is given up."""


class ShardDropped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The shard will never be sent: it is too large for the queue, or nobody wants all of it."""

    #: Some of its rows are not wanted any more; else all of them are to go into smaller shards.
    is_unwanted: bool = False


Event = (
    ShardFrozen
    | UploadStarted
    | FileUploaded
    | CreateStarted
    | CreateRefused
    | NotFound
    | BatchSeen
    | ResultsCommitted
    | ResultsLost
    | FileLost
    | TurnedAway
    | ShardDropped
)


# States: exactly what is known then.


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """The input file is on disk."""


class Uploading(msgspec.Struct, frozen=True, kw_only=True):
    """An upload was sent; its outcome is unknown."""


class Uploaded(msgspec.Struct, frozen=True, kw_only=True):
    """The provider holds the file, and no create for it is under way."""

    file_id: str


class Creating(msgspec.Struct, frozen=True, kw_only=True):
    """A create was sent; its outcome is unknown."""

    file_id: str
    token: str
    since: float


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """The batch exists and runs."""

    batch: BatchSeen


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The batch will not change any more; its results are still with the provider."""

    batch: BatchSeen


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """The results are in the checkpoint."""

    batch: BatchSeen
    results: ResultsCommitted


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """The shard was given up before it was sent; its rows are free for others."""

    #: As `ShardDropped` has it.
    is_unwanted: bool = False


#: Nothing of the shard can have been paid for.
Unsent = Planned | Uploading | Uploaded
#: A create was sent.
Sent = Creating | Live | Ended | Collected
State = Unsent | Sent | Dropped


class IllegalTransitionError(AssertionError):
    """An event that cannot happen in this state: a bug, or a log that was tampered with."""


def advance(  # noqa: C901, PLR0912 - one table, one line each
    state: State | None, event: Event
) -> State:
    """The state after `event`; None is the state before a shard is frozen.

    Raises IllegalTransitionError for every pair that is not a line here.
    """
    match state, event:
        case None, ShardFrozen():
            return Planned()
        case Planned(), UploadStarted():
            return Uploading()
        case Uploading(), FileUploaded(file_id=file_id):
            return Uploaded(file_id=file_id)
        case Uploaded(), FileLost():
            return Planned()
        case Uploaded(file_id=file_id), CreateStarted(token=token, at=at):
            return Creating(file_id=file_id, token=token, since=at)
        case Creating(file_id=file_id), CreateRefused():
            return Uploaded(file_id=file_id)
        case Creating(), NotFound():
            return Planned()
        case Creating(), BatchSeen():
            return _seen(event)
        case Live(batch=batch), BatchSeen(batch_id=batch_id) if batch_id == batch.batch_id:
            return _seen(event)
        case Ended() | Uploaded(), TurnedAway():
            return Planned()
        case Ended(batch=batch), ResultsCommitted():
            return Collected(batch=batch, results=event)
        case Collected(batch=batch), ResultsLost():
            return Ended(batch=batch)
        case Planned() | Uploading() | Uploaded(), ShardDropped(is_unwanted=is_unwanted):
            return Dropped(is_unwanted=is_unwanted)
        case _:
            raise IllegalTransitionError(
                f"{type(event).__name__} cannot happen to a shard that is "
                f"{type(state).__name__ if state is not None else 'not frozen'}"
            )


def _seen(batch: BatchSeen) -> State:
    return Ended(batch=batch) if batch.status.is_final else Live(batch=batch)


# Actions: what the engine does next.


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """Record the intent if it is not recorded, then upload the input file."""

    #: True when an earlier upload was sent and its outcome is unknown.
    again: bool


class Create(msgspec.Struct, frozen=True, kw_only=True):
    """Record the intent, then create the batch, once."""

    file_id: str


class Reconcile(msgspec.Struct, frozen=True, kw_only=True):
    """Look for the batch by its file, then by its metadata."""

    file_id: str
    token: str
    since: float


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """Ask how the batch is doing."""

    batch_id: str


class Collect(msgspec.Struct, frozen=True, kw_only=True):
    """Download both files, verify, parse, commit."""

    batch: BatchSeen


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """Leave the shard: it is done, or was given up."""


Action = Upload | Create | Reconcile | Poll | Collect | Nothing


def next_action(state: State) -> Action:
    """What the engine does with a shard in this state."""
    match state:
        case Planned():
            return Upload(again=False)
        case Uploading():
            return Upload(again=True)
        case Uploaded(file_id=file_id):
            return Create(file_id=file_id)
        case Creating(file_id=file_id, token=token, since=since):
            return Reconcile(file_id=file_id, token=token, since=since)
        case Live(batch=batch):
            return Poll(batch_id=batch.batch_id)
        case Ended(batch=batch):
            return Collect(batch=batch)
        case Collected() | Dropped():
            return Nothing()
