"""Addresses -> whether a key and prompts may be sent there."""

import ipaddress
from urllib.parse import urlsplit

__all__ = ["is_loopback", "is_private"]


def is_private(address: str) -> bool:
    """Whether nobody can listen on the way: https, or plain http to this machine."""
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name alone: `localhost`, 127.0.0.1, ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
