"""What all requests of a checkpoint share, as one immutable value with a fingerprint.

keyword arguments -> Spec -> spec.json -> fingerprint. Two calls with equal specs share a
checkpoint; anything that changes a request's meaning or its payer is part of the spec.
"""

import math
import numbers
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from batchframe.errors import ParameterError

__all__ = [
    "CHAT_COMPLETIONS",
    "COMPLETIONS",
    "EMBEDDINGS",
    "MODERATIONS",
    "RESPONSES",
    "SPEC_VERSION",
    "Account",
    "Spec",
    "json_value",
]

#: The endpoint of chat completions, as it stands in each line and in the batch.
CHAT_COMPLETIONS = "/v1/chat/completions"
#: The endpoint of responses, likewise.
RESPONSES = "/v1/responses"
#: The endpoint of the completions of old, likewise.
COMPLETIONS = "/v1/completions"
#: The endpoint of embeddings, likewise.
EMBEDDINGS = "/v1/embeddings"
#: The endpoint of moderations, likewise.
MODERATIONS = "/v1/moderations"
#: Layout of the checkpoint directory. A checkpoint of another version is refused.
SPEC_VERSION = 1


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers and who pays. Compared with a checkpoint's, never read from it."""

    #: Address of the API, ending in a slash.
    base_url: str
    #: The client's organization, or None for the key's default.
    organization: str | None = None
    #: The client's project, or None for the key's default.
    project: str | None = None


class Spec(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What all requests of a checkpoint share.

    Specs are equal when their JSON is, whatever the order of names in it: 0 and 0.0 differ. But the
    order of a schema's properties counts, for models answer in it.
    """

    #: Layout version of the checkpoint.
    version: int = SPEC_VERSION
    #: Path of the API that each request calls: "/v1/chat/completions", "/v1/responses",
    #: "/v1/completions", "/v1/embeddings" or "/v1/moderations".
    endpoint: str = CHAT_COMPLETIONS
    #: The model of every request; None where each row names its own.
    model: str | None
    #: The system message of every request, or None.
    system: str | None = None
    #: Further fields of every body (temperature, seed, ...), JSON values; sorted by name.
    params: dict[str, Any] = {}
    #: Who answers and who pays.
    account: Account

    def __post_init__(self) -> None:
        # Only the names at the top: what is within is sent as it was given.
        msgspec.structs.force_setattr(self, "params", dict(sorted(self.params.items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self._ordered() == other._ordered()

    def __ne__(self, other: object) -> bool:  # a Struct does not make it of __eq__
        return not self == other

    def __hash__(self) -> int:
        return hash(self._ordered())

    def _ordered(self) -> bytes:
        return msgspec.json.encode(_ordered(msgspec.to_builtins(self)))

    def to_json(self) -> bytes:
        """The JSON of the spec, as its requests have it: names within `params` as they came."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> "Spec":
        """Read back what `to_json` wrote; raises msgspec.DecodeError for anything else."""
        try:
            return msgspec.json.decode(data, type=cls)
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError(str(error)) from None

    @property
    def fingerprint(self) -> str:
        """128 bits in hex that name its JSON, and the default directory of a new checkpoint."""
        return blake2b(self.to_json(), digest_size=16).hexdigest()

    def differences(self, other: "Spec") -> list[str]:
        """One "place: theirs there, ours here" for each part in which `other` differs."""
        theirs, ours = _parts(other), _parts(self)
        found = (
            _difference(name, theirs.get(name, _NOT_SET), ours.get(name, _NOT_SET))
            for name in sorted(theirs.keys() | ours.keys())
        )
        return [difference for difference in found if difference]


#: What a part is that is not there; not even JSON.
_NOT_SET = msgspec.UNSET


def _parts(spec: Spec) -> dict[str, Any]:
    """The JSON value of each part, by its name."""
    fields = _ordered(msgspec.to_builtins(spec))
    return {
        **{name: fields[name] for name in ("version", "endpoint", "model", "system")},
        **fields["params"],
        **fields["account"],
    }


def _difference(path: str, theirs: Any, ours: Any) -> str:
    """The first place in which two values differ, and what stands there; "" if there is none."""
    if theirs is not _NOT_SET and ours is not _NOT_SET:
        if msgspec.json.encode(theirs) == msgspec.json.encode(ours):
            return ""
        within: list[tuple[str, Any, Any]] = []
        if isinstance(theirs, dict) and isinstance(ours, dict):
            names = dict.fromkeys([*theirs, *ours])
            within = [
                (f"{path}.{name}", theirs.get(name, _NOT_SET), ours.get(name, _NOT_SET))
                for name in names
            ]
        elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
            within = [
                (f"{path}[{n}]", *pair) for n, pair in enumerate(zip(theirs, ours, strict=True))
            ]
        found = next(filter(None, (_difference(*place) for place in within)), "")
        if found:
            return found
        if within:  # of names all alike
            path, theirs, ours = f"the order of {path}", list(theirs), list(ours)
    return f"{path}: {_shown(theirs)} there, {_shown(ours)} here"


def _ordered(value: Any, *, order_counts: bool = False) -> Any:
    """A JSON value whose names stand in order, but those of a schema's properties."""
    match value:
        case dict():
            names = value if order_counts else sorted(value)
            return {
                name: _ordered(value[name], order_counts=name == "properties") for name in names
            }
        case list():
            return [_ordered(item) for item in value]
        case _:
            return value


def _shown(value: Any) -> str:
    text = "not set" if value is _NOT_SET else msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."


def json_value(value: Any, path: str) -> Any:
    """A body parameter as plain JSON: dict, list, str, int, float, bool or None.

    NumPy numbers become Python's, tuples become lists. `path` names the place in messages.
    Raises ParameterError for anything that JSON cannot hold, NaN and infinity included.
    """
    match value:
        case None | bool():
            return value
        case str():
            return _sendable(value, path)
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            number = float(value)
            if not math.isfinite(number):
                raise ParameterError(f"{path} is {number}, which JSON cannot hold.")
            return number
        case Mapping():
            return {
                _key(key, path): json_value(item, f"{path}.{key}") for key, item in value.items()
            }
        case list() | tuple():
            return [json_value(item, f"{path}[{i}]") for i, item in enumerate(value)]
        case _ if hasattr(value, "item") and getattr(value, "shape", None) == ():
            return json_value(value.item(), path)  # numpy.bool and other zero-dimensional values
        case _:
            raise ParameterError(
                f"{path} is a {type(value).__name__}, which JSON cannot hold. "
                "Pass str, int, float, bool, None, or dicts and lists of them."
            )


def _key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise ParameterError(f"{path} has the key {key!r}: JSON keys are strings.")
    return _sendable(key, f"a key of {path}")


def _sendable(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ParameterError(
            f"{path} holds half a character (a lone surrogate), which cannot be sent."
        ) from None
    return str.__str__(text)  # subclasses, such as numpy.str_ and enumerations, as plain text
