"""What each kind of upstream sends instead of an answer to a chat: its refusals; and its embeddings."""

from __future__ import annotations

from typing import Final

import orjson

from common.contracts import JsonObject
from tests.providers.recordings import PROMPT_TOKENS
from tests.support.upstream import Reply

# --- embeddings ------------------------------------------------------------------------------------------------------

VECTORS: Final = ([0.5, -0.25], [0.0, 1.0])


def embeddings_reply(kind: str, inputs: int) -> Reply:
    """The reply with so many of the vectors, as numbers."""
    rows = [list(VECTORS[number % 2]) for number in range(inputs)]
    documents: dict[str, JsonObject] = {
        "ollama": {"model": "theirs", "embeddings": rows, "prompt_eval_count": PROMPT_TOKENS},
        "gemini": {"embeddings": [{"values": row} for row in rows]},
        "cohere": {"embeddings": {"float": rows}, "meta": {"billed_units": {"input_tokens": PROMPT_TOKENS}}},
    }
    data = [{"object": "embedding", "index": number, "embedding": row} for number, row in enumerate(rows)]
    usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
    document = documents.get(kind, {"object": "list", "data": data, "model": "theirs", "usage": usage})
    return Reply([orjson.dumps(document)], content_type="application/json")


# --- refusals --------------------------------------------------------------------------------------------------------

_MAXIMUM: Final = "This model's maximum context length is 8 tokens."
TOO_LONG: Final = {
    "openai": (400, {"message": _MAXIMUM, "type": "invalid_request_error", "code": "context_length_exceeded"}),
    "vllm": (400, {"message": _MAXIMUM, "type": "BadRequestError", "param": None, "code": 400}),
    "llamacpp": (400, {"message": "the request exceeds the available context size", "code": 400}),
    "ollama": (400, "the input length exceeds the context length"),
    "anthropic": (400, {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}),
    "gemini": (400, {"code": 400, "message": "The input token count (9) exceeds the maximum number of tokens (8)."}),
    "cohere": (400, "too many tokens: size limit exceeded by 1 tokens."),
}
NO_SUCH: Final = {
    "openai": (400, {"message": "Unknown parameter: 'x'.", "type": "invalid_request_error", "param": "x"}),
    "vllm": (400, {"message": "x is not allowed", "type": "BadRequestError", "param": None, "code": 400}),
    "llamacpp": (400, {"message": "x is not allowed", "type": "invalid_request_error", "code": 400}),
    "ollama": (400, "x is not allowed"),
    "anthropic": (400, {"type": "invalid_request_error", "message": "x: Extra inputs are not permitted"}),
    "gemini": (400, {"code": 400, "message": "Unknown name x", "status": "INVALID_ARGUMENT"}),
    "cohere": (400, "x is not allowed"),
}
TOO_MANY: Final = {
    "openai": (429, {"message": "Rate limit reached.", "type": "requests", "code": "rate_limit_exceeded"}),
    "vllm": (429, {"message": "Too many requests", "type": "TooManyRequests", "code": 429}),
    "llamacpp": (503, {"message": "Loading model", "type": "unavailable_error", "code": 503}),
    "ollama": (503, "server busy, please try again. maximum pending requests exceeded"),
    "anthropic": (529, {"type": "overloaded_error", "message": "Overloaded"}),
    "gemini": (429, {"code": 429, "message": "Resource has been exhausted.", "status": "RESOURCE_EXHAUSTED"}),
    "cohere": (429, "You are past the rate limit."),
}
REFUSALS: Final = {"busy": TOO_MANY, "refused": NO_SUCH, "context too long": TOO_LONG}


def refusal(kind: str, name: str) -> Reply:
    """The reply by which this kind refuses, to be tried again after 7 s."""
    status, told = REFUSALS[name][kind]
    document: JsonObject = {"message": told} if kind == "cohere" else {"error": told}
    if kind == "anthropic":
        document = {"type": "error", **document, "request_id": "req_1"}
    return Reply([orjson.dumps(document)], status, "application/json", {"retry-after": "7"})
