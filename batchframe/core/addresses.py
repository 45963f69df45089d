"""Addresses -> whether a key and prompts may be sent there."""

import ipaddress
from urllib.parse import urlsplit

__all__ = ["is_loopback", "is_private", "is_public"]

#: Last labels of names that are no names of the whole net (RFC 6761 and 6762; ICANN, 2024-07-29).
_OWN = frozenset({"localhost", "local", "internal"})


def is_private(address: str) -> bool:
    """Whether nobody can listen on the way: https, or plain http to this machine.

    Nobody can be asked at what is no address.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    if not address.isprintable():
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name alone: `localhost`, 127.0.0.1, ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_public(host: str) -> bool:
    """Whether a host is, by its name alone, one of the whole net: no machine of a network of ours.

    Resolvers take "127.1" and "2130706433" for addresses too, so the last label of a name must be
    one of letters; and a name without a dot is one of the own network.
    """
    name = host.rstrip(".")
    try:
        return ipaddress.ip_address(name).is_global
    except ValueError:
        _, dot, last = name.rpartition(".")
        return bool(dot) and not last[:1].isdigit() and last.lower() not in _OWN
