"""What each kind of upstream sends instead of an answer to a chat: its refusals; and its embeddings."""

from __future__ import annotations

from typing import Any, Final

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


# --- refusals that tell in words why ---------------------------------------------------------------------------------

Said = tuple[str, int, JsonObject]
"""Who speaks so (the kind of its backends), the status, and the document."""


def _openai(status: int, message: str, **more: Any) -> Said:
    return "openai", status, {"error": {"message": message, "type": "invalid_request_error", "param": None, **more}}


def _anthropic(message: str, status: int = 400) -> Said:
    told = {"type": "invalid_request_error", "message": message}
    return "anthropic", status, {"type": "error", "error": told, "request_id": "req_1"}


def _gemini(message: str, name: str) -> Said:
    return "gemini", 400, {"error": {"code": 400, "message": message, "status": name}}


_MODERATED: Final = (
    'some/model requires moderation on Some Provider. Your input was flagged for "violence". No credits were'
)
_DENIED: Final = "The caller does not have permission to execute the specified operation"
_TOKENS_A_MINUTE: Final = (
    "Request too large for model `m` in organization `org_x` service tier `on_demand` on tokens per minute (TPM): "
    "Limit 6000, Requested 9000, please reduce your message size and try again."
)
_MUST_FIT: Final = (
    "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, "
    "decrease input length or `max_tokens` and try again"
)
SPOKEN: Final[dict[str, list[Said]]] = {
    "upstream_busy": [
        _openai(413, _TOKENS_A_MINUTE, type="tokens", code="rate_limit_exceeded"),  # Groq
        _openai(498, "Flex tier capacity exceeded", code="capacity_exceeded"),  # Groq
    ],
    "context_length_exceeded": [
        _anthropic(_MUST_FIT),
        _anthropic("prompt is too long: 210000 tokens > 200000 maximum"),
        _openai(400, "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 280000."),
        ("openai", 400, {"error": "This model's maximum prompt length is 8 but the request contains 9 tokens."}),  # xAI
        _openai(422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8. Given: 9 and 1"),  # TGI
        _openai(422, "Input validation error: `inputs` must have less than 512 tokens. Given: 600"),
        ("openai", 400, {"object": "error", "message": "Prompt contains 9 tokens, too large for 8 maximum context"}),
        ("cohere", 400, {"message": "total number of tokens (input + output) must be at most 128000"}),
        ("cohere", 400, {"message": "total number of tokens in the prompt cannot exceed 4081 - received 4500."}),
        _gemini("The input token count (9) exceeds the maximum number of tokens allowed (8).", "INVALID_ARGUMENT"),
        (
            "vllm",
            400,
            {"error": {"message": "The prompt (length 9) exceeds the maximum model length of 8.", "code": 400}},
        ),
    ],
    "content_filter": [
        (  # OpenRouter
            "openai",
            403,
            {
                "error": {
                    "code": 403,
                    "message": _MODERATED,
                    "metadata": {"reasons": ["violence"], "flagged_input": "hi"},
                }
            },
        ),
        ("openai", 403, {"error": {"code": 403, "message": "No.", "metadata": {"reasons": ["violence"]}}}),
        ("openai", 403, {"error": {"code": 403, "message": "No.", "metadata": {"flagged_input": ""}}}),
        ("openai", 403, {"error": {"code": 403, "message": _MODERATED}}),
        ("openai", 403, {"code": _DENIED, "error": "Content violates usage guidelines. Team: x, Model: grok"}),  # xAI
        _openai(400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy."),
        _openai(400, "No.", code="invalid_prompt"),
        _openai(400, "Content Exists Risk", code="invalid_request_error"),  # DeepSeek
        _openai(400, "The response was filtered", code="content_filter"),  # Azure
        _anthropic("Output blocked by content filtering policy"),
    ],
    "upstream_credentials": [
        _anthropic("You have reached your specified API usage limits. You will regain access on 2026-12-01."),
        _anthropic("This organization has been disabled."),
        _anthropic("Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."),
        _gemini("User location is not supported for the API use.", "FAILED_PRECONDITION"),
        _openai(400, "Organization has been restricted.", code="organization_restricted"),  # Groq
        _openai(402, "Insufficient Balance", code="invalid_request_error"),  # DeepSeek
        _openai(429, "Your account is not active", code="billing_not_active"),
        _openai(400, "No.", code="invalid_api_key"),
        ("openai", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***"}),
        ("openai", 403, {"code": _DENIED, "error": "Your team doesn't have access to this model."}),
        _openai(403, "No.", code=403, metadata={"provider_name": "some"}),
    ],
    "upstream_refused": [
        _anthropic("max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens for m"),
        _openai(400, "Failed to call a function. Please adjust your prompt.", code="tool_use_failed"),
        _openai(404, "Not here.", code="rate_limit_exceeded"),
        # The key is good, so it goes on with other models.
        _openai(403, "Project `proj_1` does not have access to model `x`", code="model_not_found"),
        # What a server repeats of a prompt costs nobody a key.
        _openai(400, "Invalid value: 'Your credit balance is too low to access the Anthropic API.'"),
        _openai(422, "x is no number: User location is not supported for the API use."),
    ],
}
