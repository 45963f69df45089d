"""Answers of the moderations endpoint -> one verdict each: flagged or not, by category."""

import json
from typing import Any

import pyarrow as pa

from batchframe.core.structure import Structure

__all__ = ["VERDICT"]

#: The categories by the API's names (OpenAI, Moderation guide, 2026-08). Those with "illicit" are
#: null for models that do not know them.
_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
#: The names that columns can have: those of the SDK's attributes.
_COLUMNS = {name: name.replace("/", "_").replace("-", "_") for name in _CATEGORIES}


def _read(text: str) -> dict[str, Any]:
    verdict = json.loads(text)
    categories = verdict.get("categories") if isinstance(verdict, dict) else None
    if not isinstance(categories, dict) or not isinstance(verdict.get("flagged"), bool):
        raise ValueError(f"this is no verdict: {text[:40]!r}")  # noqa: TRY004 - a bad answer
    known = {column: categories.get(name) for name, column in _COLUMNS.items()}
    if not all(value is None or isinstance(value, bool) for value in known.values()):
        raise ValueError(f"a category is neither true nor false: {text[:40]!r}")
    return {"flagged": verdict["flagged"], **known}


#: What an answer becomes.
VERDICT = Structure(
    type=pa.struct([(name, pa.bool_()) for name in ("flagged", *_COLUMNS.values())]), read=_read
)
