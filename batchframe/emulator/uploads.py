"""Parts that arrive one by one become a file: the state of the Uploads API.

An upload takes parts for an hour. Its completion puts those it names together, in their order, and
the file that comes of it is checked like any other. The service has no call that reads an upload,
so it is shown only in the replies of what changes it. The texts of the refusals were not seen on
the service; what is refused is in the OpenAI API spec, 2026-08.
"""

import hashlib
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from batchframe.clock import Clock

from .archive import Archive, new_file_id
from .records import File, Part, Refusal, Upload
from .requests import (
    MAX_PART_BYTES,
    MAX_UPLOAD_BYTES,
    Completion,
    UploadOrder,
    check_upload,
)

__all__ = ["Uploads"]

#: Seconds that an upload takes parts (OpenAI API spec, 2026-08: 1 h).
_LASTS_SECONDS = 3_600

_CHUNK_BYTES = 1 << 20


class Uploads:
    """The uploads of an archive. Thread-safe."""

    def __init__(self, archive: Archive, clock: Clock, max_batch_bytes: int) -> None:
        self._archive = archive
        self._changed = archive.changed
        self._clock = clock
        self._max_batch_bytes = max_batch_bytes
        #: Uploads that are being put together, which takes a while for the large ones.
        self._completing: set[str] = set()

    def create(self, order: UploadOrder) -> Upload:
        """Begin an upload."""
        with self._changed:
            now = self._settle()
            upload = Upload(
                id=f"upload_{secrets.token_hex(12)}",
                filename=order.filename,
                purpose=order.purpose,
                mime_type=order.mime_type,
                n_bytes=order.n_bytes,
                created_at=now,
                expires_at=now + _LASTS_SECONDS,
                file_expires_after=order.expires_after,
            )
            self._archive.save(upload)
            return upload

    def add_part(self, upload_id: str, content: BinaryIO) -> Part:
        """Keep a part of a pending upload."""
        with self._changed:
            self._pending(upload_id)
        part_id = f"part_{secrets.token_hex(12)}"
        arriving = self._archive.parts_folder / f"{part_id}.part"
        try:
            with arriving.open("wb") as kept:
                shutil.copyfileobj(content, kept, _CHUNK_BYTES)
            n_bytes = arriving.stat().st_size
            if n_bytes > MAX_PART_BYTES:
                raise _refusal(f"The part is larger than {MAX_PART_BYTES} bytes.", "data")
            with self._changed:
                upload = self._pending(upload_id)
                held = sum(p.n_bytes for p in self._parts(upload))
                if held + n_bytes > MAX_UPLOAD_BYTES:
                    message = f"The parts are together larger than {MAX_UPLOAD_BYTES} bytes."
                    raise _refusal(message, "data")
                arriving.rename(self._archive.parts_folder / part_id)
                part = Part(
                    id=part_id,
                    upload_id=upload_id,
                    n_bytes=n_bytes,
                    created_at=self._clock.now(),
                )
                self._archive.save(part)
                return part
        finally:
            arriving.unlink(missing_ok=True)

    def complete(self, upload_id: str, completion: Completion) -> tuple[Upload, File]:
        """Make the file of the parts, in their order. An upload that is refused stays pending."""
        with self._changed:
            upload = self._pending(upload_id)
            parts = self._named(upload, completion.part_ids)
            self._completing.add(upload_id)
        whole = self._archive.parts_folder / f"{upload_id}.part"
        try:
            md5 = self._join(parts, whole)
            if completion.md5 is not None and completion.md5.lower() != md5:
                message = f"The md5 of the parts is {md5}, not {completion.md5}."
                raise _refusal(message, "md5")
            check_upload(whole, upload.filename, upload.purpose, self._max_batch_bytes)
            with self._changed:
                with self._archive.transaction():
                    file = self._archive.keep_file(
                        whole,
                        new_file_id(),
                        upload.filename,
                        upload.purpose,
                        upload.file_expires_after,
                        self._clock.now(),
                    )
                    upload = replace(upload, status="completed")
                    self._archive.save(upload)
                self._remove_parts(upload)
            return upload, file
        finally:
            whole.unlink(missing_ok=True)
            with self._changed:
                self._completing.discard(upload_id)

    def cancel(self, upload_id: str) -> Upload:
        """End an upload without a file. To cancel again changes nothing."""
        with self._changed:
            self._settle()
            upload = self._archive.uploads.get(upload_id)
            if upload is not None and upload.status == "cancelled":
                return upload
            return self._end(replace(self._pending(upload_id), status="cancelled"))

    def _settle(self) -> float:
        """End what has expired, and return the time that it is."""
        now = self._clock.now()
        for upload in list(self._archive.uploads.values()):
            is_due = upload.status == "pending" and upload.expires_at <= now
            if is_due and upload.id not in self._completing:
                self._end(replace(upload, status="expired"))
        return now

    def _pending(self, upload_id: str) -> Upload:
        self._settle()
        upload = self._archive.uploads.get(upload_id)
        if upload is None:
            raise Refusal(404, f"No upload found with id '{upload_id}'.", param="upload_id")
        if upload.status != "pending":
            message = f"The upload '{upload_id}' is {upload.status}: it cannot be changed any more."
            raise _refusal(message, "upload_id")
        if upload_id in self._completing:
            message = f"The upload '{upload_id}' is being completed."
            raise Refusal(409, message, param="upload_id")
        return upload

    def _named(self, upload: Upload, part_ids: Sequence[str]) -> list[Part]:
        """The parts in the order of their ids, which must be what the upload was to be."""
        known = {part.id: part for part in self._parts(upload)}
        for part_id in part_ids:
            if part_id not in known:
                message = f"The upload '{upload.id}' has no part '{part_id}'."
                raise _refusal(message, "part_ids")
        if len(set(part_ids)) < len(part_ids):
            raise _refusal("A part is named twice.", "part_ids")
        parts = [known[part_id] for part_id in part_ids]
        n_bytes = sum(part.n_bytes for part in parts)
        if n_bytes != upload.n_bytes:
            message = f"The parts have {n_bytes} bytes, but the upload is to have {upload.n_bytes}."
            raise _refusal(message, "part_ids")
        return parts

    def _parts(self, upload: Upload) -> list[Part]:
        return [part for part in self._archive.parts.values() if part.upload_id == upload.id]

    def _join(self, parts: Sequence[Part], whole: Path) -> str:
        """Put the parts together, and return the md5 of the whole in hex."""
        md5 = hashlib.md5(usedforsecurity=False)
        with whole.open("wb") as joined:
            for part in parts:
                with (self._archive.parts_folder / part.id).open("rb") as content:
                    while chunk := content.read(_CHUNK_BYTES):
                        md5.update(chunk)
                        joined.write(chunk)
        return md5.hexdigest()

    def _end(self, upload: Upload) -> Upload:
        self._archive.save(upload)
        self._remove_parts(upload)
        return upload

    def _remove_parts(self, upload: Upload) -> None:
        # After the end is on disk: what a kill leaves here is removed at the next start.
        for part in self._parts(upload):
            self._archive.remove_part(part)


def _refusal(message: str, param: str) -> Refusal:
    return Refusal(400, message, param=param)
