"""What the routes of Anthropic's API say of themselves."""

from __future__ import annotations

from typing import Final

from gateway.docs.words import (
    ANTHROPIC_ERROR,
    ANTHROPIC_LIMIT_HEADERS,
    KEY,
    OPTIONS,
    WORK,
    answer,
    body,
    completed,
    ref,
    refusals,
    route,
)

_PIECES: Final = "The message; with `stream`, its named events."
_HI: Final = [{"role": "user", "content": "Why is the sky blue?"}]
MESSAGES: Final = route(
    "Anthropic",
    "Create a message",
    {
        200: completed("AnthropicAnswer", _PIECES, limits=ANTHROPIC_LIMIT_HEADERS),
        **refusals(ANTHROPIC_ERROR, *WORK, 529),
    },
    requestBody=body(
        "MessagesBody",
        plain={"model": "a-model", "max_tokens": 256, "messages": _HI},
        streamed={"model": "a-model", "max_tokens": 256, "messages": _HI, "stream": True},
    ),
    parameters=OPTIONS,
    operationId="createMessage",
    security=KEY,
)
COUNT_TOKENS: Final = route(
    "Anthropic",
    "Estimate the tokens of a prompt",
    {
        200: answer("About how many there are, by the gateway's own count: no model is asked.", ref("TokenCount")),
        **refusals(ANTHROPIC_ERROR, 400, 401, 404, 413),
    },
    requestBody=body("CountTokensBody", plain={"model": "a-model", "messages": _HI}),
    operationId="countMessageTokens",
    security=KEY,
)
