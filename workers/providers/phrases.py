"""Pure: what a refusal says in words and codes where its status says less, by the services that were seen to say it."""

from __future__ import annotations

import re
from typing import Final

_TOO_LONG_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_TOO_LONG: Final = re.compile(
    # OpenAI, Mistral, Groq, OpenRouter, vLLM, llama.cpp, Ollama; Anthropic: "… exceed context limit: 1 + 2 > 2"
    r"context[ _](?:length|size|window|limit)|maximum context|exceed\w* (?:the )?(?:available )?context"
    # vLLM; Anthropic, Fireworks; Bedrock; Cohere
    r"|max_model_len|maximum model length|prompt (?:is )?too long|input (?:is )?too long|too many (?:input )?tokens"
    # xAI: "… maximum prompt length is 8 but the request contains 9 tokens"; OpenAI, of embeddings
    r"|maximum (?:prompt|input) length is"
    # Together and other servers that descend from TGI
    r"|`inputs` (?:tokens \+ `max_new_tokens` must be|must have less than)"
    # Cohere: "total number of tokens (input + output) must be at most 8"
    r"|total number of tokens .{0,40}(?:must be at most|cannot exceed)"
    # OpenAI: "Input tokens exceed the configured limit of 8 tokens."; Gemini: "The input token count (9) exceeds …"
    r"|input tokens exceed|token count .{0,40}exceeds the maximum",
    re.IGNORECASE,
)

# OpenAI, and its models that reason; Azure; DashScope
_FILTERED_CODES: Final = frozenset(
    {"content_policy_violation", "invalid_prompt", "content_filter", "data_inspection_failed"}
)
_FILTERED: Final = re.compile(
    # Anthropic; DeepSeek; xAI
    r"blocked by content filtering|^Content Exists Risk|content violates usage guidelines"
    # OpenRouter: "… requires moderation on … Your input was flagged for …"; OpenAI: "… your prompt was flagged as …"
    r"|your (?:input|prompt) was flagged",
    re.IGNORECASE,
)

_NO_MONEY_CODES: Final = frozenset(
    {
        # OpenAI, and those who speak as it does
        *("insufficient_quota", "billing_hard_limit_reached", "insufficient_funds", "billing_not_active"),
        # Groq; DashScope
        *("organization_restricted", "Arrearage"),
    }
)
# From its first word on, for a caller's own words that a server repeats must cost nobody a key.
_NO_MONEY: Final = re.compile(
    # Anthropic
    r"your credit balance is too low|you have reached your specified (?:api|workspace) usage limits"
    r"|this organization has been disabled"
    # Gemini; xAI, where a wrong key is a 400
    r"|user location is not supported|incorrect api key provided",
    re.IGNORECASE,
)


def too_long(text: str, code: str = "") -> bool:
    """Whether prompt and answer are more than the model's context; `text` is the upstream's own, as it came."""
    return code in _TOO_LONG_CODES or _TOO_LONG.search(text) is not None


def filtered(text: str, code: str = "") -> bool:
    """Whether a content filter stopped the prompt; `text` is the upstream's own, as it came."""
    return code in _FILTERED_CODES or _FILTERED.search(text) is not None


def no_money(text: str, code: str = "") -> bool:
    """Whether the account that the key belongs to is refused; `text` has nothing of the prompt in it any more."""
    return code in _NO_MONEY_CODES or _NO_MONEY.match(text) is not None
