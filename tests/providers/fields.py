"""What each provider does with each field of a chat request: found out by asking its `to_wire`, not by reading it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from common.contracts import JsonObject
from common.errors import UpstreamRefused
from tests.providers.stages import backend
from workers.providers import anthropic, cohere, gemini_request, llamacpp, ollama, openai, vllm
from workers.providers.base import Call

TO_WIRE: Final[dict[str, Callable[[Call], JsonObject]]] = {
    "openai": openai.OpenAIProvider.to_wire,
    "vllm": vllm.VllmProvider.to_wire,
    "llamacpp": llamacpp.LlamaCppProvider.to_wire,
    "ollama": ollama.to_wire,
    "anthropic": anthropic.to_wire,
    "gemini": gemini_request.to_wire,
    "cohere": cohere.to_wire,
}

TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_PNG: Final = "data:image/png;base64,QUJD"
_PDF: Final = "data:application/pdf;base64,QUJD"

# A value of each that means something; a part of a message stands for itself.
FIELDS: Final[dict[str, Any]] = {
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 4,
    "stop": ["x"],
    "seed": 1,
    "n": 2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 1},
    "logprobs": True,
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
    "reasoning_effort": "low",
    "verbosity": "low",
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "web_search_options": {},
    "functions": [TOOL["function"]],
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "prompt_cache_key": "k",
    "min_p": 0.1,
    "priority": 1,
}
PARTS: Final[dict[str, JsonObject]] = {
    "image_url, data": {"type": "image_url", "image_url": {"url": _PNG}},
    "image_url, https": {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
    "input_audio": {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
    "file": {"type": "file", "file": {"file_data": _PDF, "filename": "a.pdf"}},
}
# Fields that mean something only beside others.
_BESIDE: Final[dict[str, JsonObject]] = {
    "tool_choice": {"tools": [TOOL]},
    "parallel_tool_calls": {"tools": [TOOL]},
}


def treatment(kind: str, field: str) -> str:
    """`passed` as it is, `converted`, `dropped` or `refused`."""
    base: JsonObject = {"messages": [{"role": "user", "content": "Hi"}], **_BESIDE.get(field, {})}
    if field in PARTS:
        value: Any = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, PARTS[field]]}]
        field = "messages"
    else:
        value = FIELDS[field]
    try:
        wire = wire_of(kind, {**base, field: value})
    except UpstreamRefused:
        return "refused"
    if wire == wire_of(kind, base):
        return "dropped"
    return "passed" if wire.get(field) == value else "converted"


def wire_of(kind: str, body: JsonObject, **settings: Any) -> JsonObject:
    """The body that a backend of this kind and settings is sent. Raises UpstreamRefused."""
    where = backend(kind, "http://127.0.0.1:1", **settings)
    return TO_WIRE[kind](Call(where, "/v1/chat/completions", "m", body, stream=True, timeout_s=1))


def table() -> str:
    """The README's table."""
    head = f"| field | {' | '.join(TO_WIRE)} |\n| --- |{' --- |' * len(TO_WIRE)}\n"
    rows = (f"| `{name}` | {' | '.join(treatment(kind, name) for kind in TO_WIRE)} |" for name in [*FIELDS, *PARTS])
    return head + "\n".join(rows)
