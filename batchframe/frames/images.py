"""Images of a row -> the addresses that a request holds: URLs as they are, files and bytes as data.

Only what begins like an image of a kind that the API takes is sent: a column that holds paths by
mistake must not send other files of this machine.
"""

from base64 import b64encode
from pathlib import Path

from batchframe.errors import RowError

__all__ = ["image_url"]

#: How files of the kinds that the API takes begin (OpenAI, Images and vision guide, 2026-08).
_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_URLS = ("https://", "http://", "data:image/")


def image_url(value: str | bytes, place: str) -> str:
    """The address of one image.

    Args:
        value: A URL, the path of a file, or the bytes of an image: PNG, JPEG, GIF or WebP.
        place: Its row and column, for messages.

    Raises:
        RowError: there is no such file, it cannot be read, or it is no such image.
    """
    if isinstance(value, str):
        if value.lower().startswith(_URLS):
            return value
        try:
            data = Path(value).expanduser().read_bytes()
        except (OSError, RuntimeError, ValueError) as error:
            raise RowError(
                f"{place} is {value!r:.80}, which is neither a URL nor a file that can be read "
                f"({type(error).__name__}). Nothing was sent."
            ) from None
    else:
        data = value
    kind = _kind(data)
    if kind is None:
        raise RowError(
            f"{place} is {value!r:.80}, which is no PNG, JPEG, GIF or WebP image. Nothing was sent."
        )
    return f"data:{kind};base64,{b64encode(data).decode()}"


def _kind(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _BEGINNINGS if data.startswith(start)), None)
