"""Who may come in: the hosts that a request may name, and the key that it must have.

A server that only this machine reaches takes any key, but no foreign Host header: a web page that
resolves its own name to 127.0.0.1 would come with one. A server that others reach needs a token.
"""

import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from .records import Refusal

__all__ = ["Door"]

#: The host of a Host header, with or without a port.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d+)?")

#: The names of this machine.
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})

#: What a key may be made of, as it goes through an HTTP header.
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Door:
    """Who may come in, for a server that listens on one host."""

    #: Hosts that a request may name, as in URLs; None is any.
    hosts: frozenset[str] | None
    #: The only key that is let in; None lets all in.
    token: str | None

    @classmethod
    def of(cls, host: str, token: str | None) -> Self:
        """The door of a server that listens on `host`, an address or `localhost`.

        Raises ValueError where others can reach the server and it has no token, or a bad one.
        """
        if token is not None and not _TOKEN.fullmatch(token):
            raise ValueError("token must be of visible ASCII characters, at least one")
        if host == "localhost":
            return cls(_LOOPBACK, token)
        address = ipaddress.ip_address(host)
        if not address.is_loopback and token is None:
            raise ValueError(
                f"host={host!r} can be reached from other machines: give a token, which is then"
                " the only key that is let in"
            )
        if address.is_unspecified:  # it listens on all addresses, and by names we do not know
            return cls(None, token)
        return cls(_LOOPBACK | {f"[{host}]" if address.version == 6 else host}, token)

    def refusal(self, host: str, authorization: str) -> Refusal | None:
        """Why a request with these headers may not come in, if it may not."""
        named = _HOST.fullmatch(host)
        if self.hosts is not None and (named is None or named[1].lower() not in self.hosts):
            return Refusal(421, f"This server answers only to {' and '.join(sorted(self.hosts))}.")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "You didn't provide an API key: send it as 'Authorization: Bearer YOUR_KEY'."
            return Refusal(401, message, code="invalid_api_key")
        if self.token is not None and not hmac.compare_digest(key.encode(), self.token.encode()):
            return Refusal(401, "Incorrect API key provided.", code="invalid_api_key")
        return None
