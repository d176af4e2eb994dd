"""Pure: the field of a chat request that is at fault, by the name that it has in the request as it came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from common.errors import BadRequest
from gateway.dialects.names import ANTHROPIC, COMPLETIONS, OLLAMA_CHAT, OLLAMA_GENERATE, PROMPT

_PROMPT: Final = {"messages": "prompt", "max_completion_tokens": "max_tokens"}
_OLLAMA: Final = {
    "max_completion_tokens": "options.num_predict",
    "max_tokens": "options.num_predict",
    "response_format": "format",
    "reasoning_effort": "think",
}
# By the dialect's name and the chat request's field. Responses have their own: what they name is deeper.
_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    ANTHROPIC: {
        "max_completion_tokens": "max_tokens",
        "response_format": "output_config.format",
        "reasoning_effort": "thinking",
        "stop": "stop_sequences",
    },
    COMPLETIONS: _PROMPT,
    PROMPT: _PROMPT,
    OLLAMA_CHAT: _OLLAMA,
    OLLAMA_GENERATE: {**_OLLAMA, "messages": "prompt"},
}
# Where one message of the caller's may be several here, a place in them says nothing.
_WHOLE: Final = frozenset({"messages"})


def named(error: BadRequest, dialect: str) -> BadRequest:
    """The refusal with its field named as this dialect's callers know it."""
    param = error.failure.param
    names = _NAMES.get(dialect)
    if not param or names is None:
        return error
    first, dot, rest = param.partition("[" if "[" in param.split(".", 1)[0] else ".")
    own = names.get(first, first)
    place = own if own != first or first in _WHOLE else f"{first}{dot}{rest}"
    return BadRequest(error.failure.message.replace(param, place), param=place, code=error.failure.code)
