"""Is everything there that a run needs: the key, the address, the clock, the disk?

    one check after the other --> findings: what was looked at, whether it is well, in words

Nothing is sent but one question for a list of one batch, which costs nothing. The key is never
shown. A check that needs what an earlier one did not find is left out.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from batchframe.accounts import open_client
from batchframe.client import Provider, Unavailable
from batchframe.clock import SystemClock
from batchframe.errors import ApiKeyError, AuthenticationError, ParameterError, ProviderError
from batchframe.storage import Storage

__all__ = ["Finding", "examine"]

#: How far the clock may be off, in seconds: a search for a lost batch goes back by this machine's
#: clock, with 15 minutes to spare.
_CLOCK_SECONDS = 300
#: Room that a run should find on the disk, in bytes: one input file of the largest size, and its
#: results.
_ROOM_BYTES = 500_000_000
#: How long the address may take to answer, in seconds.
_ANSWER_SECONDS = 20.0
_LIMITS_PAGE = "https://platform.openai.com/settings/organization/limits"
_PACKAGES = ("openai-batchframe", "openai", "pyarrow", "pandas", "polars")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    #: What was looked at, in one word.
    check: str
    is_ok: bool
    #: What there is; or what is wrong, and how to mend it.
    message: str


def examine(directory: Path) -> Iterator[Finding]:
    """Look at all of it, with the key and the address of the environment.

    Args:
        directory: Where checkpoints are to be kept.
    """
    yield Finding(check="versions", is_ok=True, message=_versions())
    try:
        client = open_client()
    except ApiKeyError:
        wrong = (
            "OPENAI_API_KEY is blank, or holds white space or characters that no key has"
            if "OPENAI_API_KEY" in os.environ
            else "there is none"
        )
        message = f"{wrong}. Set it: export OPENAI_API_KEY=..."
        yield Finding(check="key", is_ok=False, message=message)
    else:
        with client.with_options(timeout=_ANSWER_SECONDS) as patient:
            yield Finding(check="key", is_ok=True, message="OPENAI_API_KEY is there")
            yield from _service(lambda: Provider(patient))
    yield from _disk(directory)
    limits = f"what your account may have enqueued is told at {_LIMITS_PAGE}"
    yield Finding(check="limits", is_ok=True, message=limits)


def _versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _service(connect: Callable[[], Provider]) -> Iterator[Finding]:
    """The address, whether it takes the key, and its clock."""
    try:
        provider = connect()
    except ParameterError as error:
        yield Finding(check="address", is_ok=False, message=str(error))
        return
    address = provider.account.base_url
    try:
        date = provider.probe()
    except AuthenticationError:
        yield Finding(check="address", is_ok=True, message=f"{address} answers")
        message = (
            f"{address} refuses it. Take a key of a project that may use the Batch API, and look "
            "whether OPENAI_BASE_URL, OPENAI_ORG_ID and OPENAI_PROJECT_ID are those of the key"
        )
        yield Finding(check="access", is_ok=False, message=message)
        return
    except Unavailable as error:
        message = (
            f"{address} does not answer as it should: {error}. Look at OPENAI_BASE_URL, at the "
            "network, and at proxies (HTTPS_PROXY)"
        )
        yield Finding(check="address", is_ok=False, message=message)
        return
    except ProviderError as error:
        message = f"{address}: {error} Look at OPENAI_BASE_URL"
        yield Finding(check="address", is_ok=False, message=message)
        return
    yield Finding(check="address", is_ok=True, message=f"{address} answers")
    yield Finding(check="access", is_ok=True, message="it takes the key for the Batch API")
    yield _clock(date)


def _clock(date: float | None) -> Finding:
    if date is None:
        message = "the address does not say what time it has, so it was not compared"
        return Finding(check="clock", is_ok=True, message=message)
    off = SystemClock().now() - date
    if abs(off) <= _CLOCK_SECONDS:
        message = "this machine's clock and that of the address agree"
        return Finding(check="clock", is_ok=True, message=message)
    way = "ahead of" if off > 0 else "behind"
    message = f"this machine is {abs(off):,.0f} seconds {way} the address. Set its clock by NTP"
    return Finding(check="clock", is_ok=False, message=message)


def _disk(directory: Path) -> Iterator[Finding]:
    """Whether a checkpoint can live there: flushed files, hard links, room."""
    # Where nothing is yet, the first directory above that is there.
    place = directory.expanduser().absolute()
    place = next(path for path in (place, *place.parents) if path.is_dir())
    storage = Storage()
    try:
        with tempfile.TemporaryDirectory(prefix=".batchframe-", dir=place) as folder:
            # What the log of a checkpoint is made of: a flushed file, and a link to it.
            storage.create(Path(folder, "probe"), b"probe")
            with storage.replace(Path(folder, "probe")) as file:
                file.write(b"probe")
    except OSError as error:
        message = (
            f"{place} cannot keep a checkpoint: {error.strerror or error}. Name a directory on a "
            "local disk that you may write to, by --checkpoint, or free space on this one"
        )
        yield Finding(check="disk", is_ok=False, message=message)
        return
    free = shutil.disk_usage(place).free
    if free < _ROOM_BYTES:
        message = (
            f"{place} has {free / 1e6:,.0f} MB free, and a large run needs more: free space, or "
            "name another directory by --checkpoint"
        )
        yield Finding(check="disk", is_ok=False, message=message)
        return
    message = f"{place} takes flushed files and hard links, {free / 1e9:,.1f} GB are free"
    yield Finding(check="disk", is_ok=True, message=message)
