"""The words for what became of a row."""

from enum import StrEnum

__all__ = ["ANSWERED", "MAYBE_BILLED", "Status"]


class Status(StrEnum):
    """What became of a request. The only place where these words are listed."""

    #: The model answered.
    OK = "ok"
    #: The answer was cut at the token limit; the text so far is kept.
    TRUNCATED = "truncated"
    #: The provider's content filter stopped the answer; the text so far is kept.
    FILTERED = "filtered"
    #: The model declined; its words are the error message.
    REFUSED = "refused"
    #: The answer does not fit the declared schema. Given where answers are validated, not here.
    INVALID = "invalid"
    #: The provider reported an error, or a line without an answer.
    FAILED = "failed"
    #: The completion window ended before the request ran; not billed.
    EXPIRED = "expired"
    #: The batch was cancelled before the request ran; not billed.
    CANCELLED = "cancelled"
    #: The batch ended and no line speaks of the request: nobody knows whether it was billed.
    MISSING = "missing"
    #: The row's prompt was null, so no request was made. Given where rows are planned, not here.
    SKIPPED = "skipped"


#: Rows of these words have what was asked for, or asked for nothing. All others have no answer.
ANSWERED = frozenset({Status.OK, Status.TRUNCATED, Status.SKIPPED})
#: Codes of `failed` rows that the provider may have billed although it told no usage. The last is
#: Azure's own, which charges for prompts that its filter refuses ("you may be charged even if the
#: status code is not successful", Azure, Plan and manage costs, 2026-08).
MAYBE_BILLED = ("unreadable_line", "empty_content", "content_filter")
