"""Pure: whether a prompt and its answer fit a context, as far as an estimate of their tokens can tell."""

from __future__ import annotations

from typing import Final

# A prompt is estimated at four bytes a token. What is surely too long is so at eight, which no prose reaches.
SURELY: Final = 2


def surely_too_long(context: int | None, prompt_tokens: int, limit: int | None) -> bool:
    """Whether a prompt of about so many tokens can't fit with its answer, however wrong the estimate is.

    A context that nobody knows may hold anything.
    """
    return context is not None and prompt_tokens // SURELY + (limit or 1) > context


def likely_fits(context: int | None, prompt_tokens: int, answer_tokens: int) -> bool:
    """Whether prompt and answer are likely to fit, each as it was estimated."""
    return context is None or prompt_tokens + answer_tokens <= context
