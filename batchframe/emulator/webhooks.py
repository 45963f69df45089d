"""The end of a batch becomes a signed call to an address: the webhooks of the service.

The archive records a `Delivery` with the end of each batch, so that none is lost by a kill. A
thread makes the calls, in the form of Standard Webhooks (https://www.standardwebhooks.com), until
one is answered with 2xx or 72 hours have passed. What arrived but was not recorded as such arrives
again, under the same id.
"""

import base64
import binascii
import hmac
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

import httpx2
import msgspec

from .archive import Archive
from .faults import Script
from .records import Delivery

__all__ = ["Courier", "Webhook", "sign"]

#: Seconds after the end of the batch from which on it is not tried again (OpenAI webhooks guide,
#: 2026-08: 72 h).
_GIVEN_UP_SECONDS = 259_200

#: Seconds to the second attempt, doubled from one to the next, up to the longest. The service says
#: only that it waits exponentially.
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 5, 21_600

#: Seconds that a receiver has for its answer.
_TIMEOUT_SECONDS = 5.0

#: Seconds of real time after which the thread looks again whether the clock made a call due.
_TICK_SECONDS = 0.02

#: Seconds of real time until a disk that was full, or failed, is tried again.
_DISK_SECONDS = 1.0

_LOGGER = logging.getLogger("batchframe.emulator")


class Webhook:
    """Where the ends of batches are told, and what signs it. The secret is kept in memory only."""

    def __init__(self, url: str, secret: str | None = None) -> None:
        """Take the address and its secret; None makes one.

        Raises ValueError where the address is none of http or https, or the secret cannot be read.
        """
        if not url.startswith(("http://", "https://")) or not _is_address(url):
            raise ValueError(f"the address of a webhook must be of http or https, not {url!r}")
        self.url = url
        #: What the receiver checks signatures with: `whsec_` and base64.
        self.secret = secret or f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"
        self.key = _key(self.secret)


class Courier:
    """The thread that makes the calls. It lets time act on batches, as a client's looks do."""

    def __init__(
        self, webhook: Webhook, archive: Archive, settle: Callable[[], float], script: Script
    ) -> None:
        self._webhook = webhook
        self._archive = archive
        self._changed = archive.changed
        self._settle = settle
        self._script = script
        self._closing = False
        # Plain http needs no certificates, and to read all that a system trusts takes long.
        verify = webhook.url.startswith("https://")
        self._client = httpx2.Client(trust_env=False, verify=verify, timeout=_TIMEOUT_SECONDS)
        self._thread = threading.Thread(target=self._run, name="emulator-webhooks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the call that is under way. Not to be called with the archive's lock."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._closing:
            try:
                self._work()
            except Exception:  # a full disk, or what a caller's function of the pace raised
                _LOGGER.exception("The webhooks cannot go on; trying again")
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, _DISK_SECONDS)

    def _work(self) -> None:
        while (found := self._next()) is not None:
            delivery, now = found
            arrived = self._call(delivery, now)
            if arrived and self._script.take("webhooks"):
                self._call(delivery, now)  # as after a kill before it took note
            with self._changed:
                self._archive.save(_after(delivery, now, arrived=arrived))

    def _next(self) -> tuple[Delivery, float] | None:
        """The first call that is due, and the time; None when the thread is to end."""
        with self._changed:
            while not self._closing:
                now = self._settle()
                waiting = [d for d in self._archive.deliveries.values() if d.next_at is not None]
                due = min(waiting, key=lambda d: d.next_at or 0.0, default=None)
                if due is not None and (due.next_at or 0.0) <= now:
                    return due, now
                is_idle = due is None and not self._archive.live_batches()
                self._changed.wait(None if is_idle else _TICK_SECONDS)
        return None

    def _call(self, delivery: Delivery, now: float) -> bool:
        """Whether the receiver took it. A redirect is not followed, and is a failure."""
        body = msgspec.json.encode(delivery.as_json())
        headers = {
            "content-type": "application/json",
            "user-agent": "batchframe-emulator",
            **sign(self._webhook.key, delivery.id, int(now), body),
        }
        try:
            # What it has to say is not read: it may have no end.
            with self._client.stream(
                "POST", self._webhook.url, content=body, headers=headers
            ) as reply:
                return reply.is_success
        except httpx2.HTTPError:
            return False


def sign(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a call, with the signature of its id, its time and its body."""
    signed = b".".join([webhook_id.encode(), str(timestamp).encode(), body])
    signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def _after(delivery: Delivery, now: float, *, arrived: bool) -> Delivery:
    """The delivery after one more attempt at the time `now`."""
    wait = min(_FIRST_WAIT_SECONDS << min(delivery.attempts, 20), _LONGEST_WAIT_SECONDS)
    next_at = now + wait
    is_over = arrived or next_at > delivery.created_at + _GIVEN_UP_SECONDS
    return replace(delivery, attempts=delivery.attempts + 1, next_at=None if is_over else next_at)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # a port or an IPv6 address that is none
        return False


def _key(secret: str) -> bytes:
    # As the SDK reads it: base64 after `whsec_`, any other text as it is.
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ValueError("a webhook secret that begins with whsec_ must go on in base64") from None
