"""Log probabilities off the wire: whether they are what OpenAI calls so. Pure."""

from __future__ import annotations

from typing import Any, TypeGuard

from common.contracts import JsonObject
from workers.providers.wire import is_list, is_object


def are_logprobs(told: Any) -> bool:
    """Whether these are a choice's: of each field's tokens, where it has any."""
    return is_object(told) and _are_entries(told.get("content")) and _are_entries(told.get("refusal"))


def is_logprob(told: Any) -> bool:
    """Whether it is one token's, with those of the others that it was chosen among, if they are told."""
    if not _is_token(told):
        return False
    others = told.get("top_logprobs")
    return others is None or (is_list(others) and all(map(_is_token, others)))


def _are_entries(told: Any) -> bool:
    return told is None or (is_list(told) and all(map(is_logprob, told)))


def _is_token(told: Any) -> TypeGuard[JsonObject]:
    return is_object(told) and type(told.get("token")) is str and type(told.get("logprob")) in (int, float)
