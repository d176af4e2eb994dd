"""Tokens where no upstream counted them: a vocabulary's count beside the event loop, and a guess from the length."""

from common.tokens.counting import TokenCounter
from common.tokens.texts import (
    MEDIA_TOKENS,
    MESSAGE_TOKENS,
    definitions_of,
    likely_tokens,
    size_bytes,
    texts_of_message,
    texts_of_prompt,
)

__all__ = [
    "MEDIA_TOKENS",
    "MESSAGE_TOKENS",
    "TokenCounter",
    "definitions_of",
    "likely_tokens",
    "size_bytes",
    "texts_of_message",
    "texts_of_prompt",
]
