"""Texts -> numbers of tokens, by OpenAI's own vocabularies where a library brings them along.

The library is splintr, because its wheels hold the vocabularies; tiktoken would fetch them. Both
count the same (checked on English, Chinese and Russian prose and on JSON, 2026-11).
"""

import functools
import re
from collections.abc import Callable
from typing import Any

__all__ = ["counter", "vocabulary_of"]

# Beginnings of model names -> vocabulary (tiktoken's own table, tiktoken/model.py, 2026-11). The
# first that fits counts.
_VOCABULARIES = (
    (r"(gpt-4o|gpt-4\.1|gpt-4\.5|gpt-5|chatgpt-4o|o1|o3|o4)(-|\.|$)", "o200k_base"),
    (r"(gpt-4|gpt-3\.5|gpt-35|davinci-002|babbage-002|text-embedding)(-|$)", "cl100k_base"),
)


def vocabulary_of(model: str) -> str | None:
    """The name of a model's vocabulary, or None where it is not known; fine-tuned ones too."""
    base = model.removeprefix("ft:").partition(":")[0]
    return next((name for words, name in _VOCABULARIES if re.match(words, base)), None)


def counter(vocabulary: str) -> Callable[[str], int] | None:
    """What counts the tokens of a text, or None where the extra `tokens` is not installed."""
    try:
        tokenizer = _tokenizer(vocabulary)
    except ModuleNotFoundError:
        return None
    return lambda text: len(tokenizer.encode(text))


@functools.cache  # loading takes a tenth of a second
def _tokenizer(vocabulary: str) -> Any:
    import splintr

    return splintr.Tokenizer.from_pretrained(vocabulary)
