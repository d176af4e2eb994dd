"""What each kind of upstream takes: the names in its documentation, and the order of turns that it insists on.

A request with another name would be refused by the strict ones, or not heeded by the others.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

from common.contracts import JsonObject

# --- OpenAI's chat completions (its OpenAPI document 2.3) ------------------------------------------------------------

_OPENAI: Final = frozenset(
    {
        *("audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_tokens"),
        *("max_completion_tokens", "messages", "metadata", "modalities", "model", "moderation", "n", "stop", "store"),
        *("parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key", "prompt_cache_options"),
        *("prompt_cache_retention", "reasoning_effort", "response_format", "safety_identifier", "seed", "stream"),
        *("service_tier", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user"),
        *("verbosity", "web_search_options"),
    }
)
_OPENAI_MESSAGE: Final = {
    "assistant": {"role", "content", "name", "tool_calls", "function_call", "refusal", "audio"},
    "tool": {"role", "content", "tool_call_id", "name"},
}
_MORE: Final = {"think", "thinking", "top_k", "min_p"}  # self-hosted servers pass over what they do not know


def _openai(wire: JsonObject) -> None:
    _only(wire, _OPENAI)
    open_calls: set[str] = set()
    for message in wire["messages"]:
        _only(message, _OPENAI_MESSAGE.get(message["role"], {"role", "content", "name"}))
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls, "the results come right after their calls"
        for call in message.get("tool_calls") or ():
            _only(call, {"id", "type", "function"})
            open_calls.add(call["id"])
    for tool in wire.get("tools", ()):
        _only(tool, {"type", "function"})
        _only(tool["function"], {"name", "description", "parameters", "strict"})


def _open(wire: JsonObject) -> None:
    _openai({name: value for name, value in wire.items() if name not in _MORE})


# --- Ollama's chat ---------------------------------------------------------------------------------------------------


_LOGPROBS: Final = ("logprobs", "top_logprobs")


def _ollama(wire: JsonObject) -> None:
    known = {"model", "messages", "stream", "options", "format", "think", "tools", "keep_alive", "truncate", "shift"}
    _only(wire, {*known, *_LOGPROBS})
    samplers = {"temperature", "top_p", "top_k", "min_p", "seed", "num_predict", "stop", "num_ctx"}
    _only(wire["options"], samplers)
    for message in wire["messages"]:
        _only(message, {"role", "content", "images", "thinking", "tool_calls", "tool_name"})
        assert isinstance(message["content"], str)
        assert all(not image.startswith("data:") for image in message.get("images", ()))
        assert all(type(call["function"]["arguments"]) is dict for call in message.get("tool_calls", ()))
        assert message["role"] != "tool" or message["tool_name"]


# --- Anthropic's messages --------------------------------------------------------------------------------------------

_BLOCKS: Final = {
    "text": {"type", "text", "cache_control"},
    "image": {"type", "source", "cache_control"},
    "document": {"type", "source", "title", "cache_control"},
    "tool_use": {"type", "id", "name", "input", "cache_control"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
    "thinking": {"type", "thinking", "signature"},
}


def _anthropic(wire: JsonObject) -> None:
    known = {"model", "messages", "max_tokens", "system", "stream", "temperature", "top_p", "top_k", "tools"}
    _only(wire, known | {"tool_choice", "stop_sequences", "metadata", "thinking", "output_config", "cache_control"})
    assert wire["max_tokens"] >= 1
    assert not {"temperature", "top_p"} <= wire.keys()
    roles = [message["role"] for message in wire["messages"]]
    assert roles[0] == "user" and all(one != other for one, other in pairwise(roles))
    for message in wire["messages"]:
        for block in message["content"]:
            _only(block, _BLOCKS[block["type"]])
            assert block["type"] != "text" or block["text"].strip()
    for tool in wire.get("tools", ()):
        _only(tool, {"name", "description", "input_schema", "strict", "input_examples", "cache_control"})
    if wire.get("tool_choice", {}).get("type") in ("any", "tool"):
        assert "thinking" not in wire


# --- Gemini's contents -----------------------------------------------------------------------------------------------


def _gemini(wire: JsonObject) -> None:
    _only(wire, {"contents", "systemInstruction", "generationConfig", "safetySettings", "tools", "toolConfig"})
    known = {"temperature", "topP", "topK", "seed", "candidateCount", "maxOutputTokens", "stopSequences"}
    more = {"responseMimeType", "responseJsonSchema", "thinkingConfig", "presencePenalty", "frequencyPenalty"}
    _only(wire.get("generationConfig", {}), known | more)
    for content in wire["contents"]:
        assert content["role"] in ("user", "model") and content["parts"]
        for part in content["parts"]:
            _only(part, {"text", "inlineData", "fileData", "functionCall", "functionResponse", "thoughtSignature"})
            assert type(part.get("functionCall", {}).get("args", {})) is dict
            assert type(part.get("functionResponse", {}).get("response", {})) is dict
    for tool in wire.get("tools", ()):
        for declared in tool["functionDeclarations"]:
            _only(declared, {"name", "description", "parametersJsonSchema"})


# --- Cohere's chat ---------------------------------------------------------------------------------------------------


def _cohere(wire: JsonObject) -> None:
    known = {"model", "messages", "stream", "tools", "tool_choice", "strict_tools", "response_format", "thinking"}
    more = {"max_tokens", "stop_sequences", "temperature", "seed", "frequency_penalty", "presence_penalty", "k", "p"}
    _only(wire, known | more | {"safety_mode", "citation_options", "documents"})
    assert wire.get("tool_choice", "NONE") in ("NONE", "REQUIRED")
    for message in wire["messages"]:
        _only(message, {"role", "content", "tool_calls", "tool_call_id", "tool_plan"})
    for tool in wire.get("tools", ()):
        _only(tool["function"], {"name", "description", "parameters"})


_TAKES: Final[dict[str, Callable[[JsonObject], None]]] = {
    "openai": _openai,
    "vllm": _open,
    "llamacpp": _open,
    "ollama": _ollama,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "cohere": _cohere,
}


def check_taken(kind: str, wire: JsonObject) -> None:
    """Raises AssertionError where an upstream of this kind would not take this request for a chat."""
    _TAKES[kind](wire)


def _only(found: Any, known: set[str] | frozenset[str]) -> None:
    assert found.keys() <= known, f"it does not know {sorted(found.keys() - known)}"
