"""OpenAI's chat requests and requests for embeddings as its servers take them: strict ones, and those of one's own."""

from __future__ import annotations

from typing import Any, Final

from common.contracts import JsonObject
from workers.providers.base import Call
from workers.providers.marks import cleaned, known_only, unmarked
from workers.providers.shapes import adapted
from workers.providers.wire import is_list, is_object

# What OpenAI's schema names for a chat completion; a strict server answers 400 to anything else.
KNOWN_FIELDS: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "stop", "seed", "temperature", "top_p"),
        *("max_tokens", "max_completion_tokens", "frequency_penalty", "presence_penalty", "logit_bias"),
        *("logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls"),
        *("functions", "function_call", "reasoning_effort", "verbosity", "service_tier", "store", "metadata"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "user"),
        *("modalities", "audio", "prediction", "web_search_options", "moderation"),
    }
)
# Never passed on, not even where unknown fields are: they would choose a destination or a credential somewhere.
_FORBIDDEN: Final = frozenset(
    {
        *("api_base", "api_key", "api_keys", "api_version", "base_url", "custom_llm_provider", "extra_body"),
        *("extra_headers", "extra_query", "fallbacks", "headers", "kv_transfer_params", "model_list", "url"),
    }
)
_ANTHROPICS: Final = frozenset({"cache_control", "output_config"})
_OURS: Final = ("headrace", "x-headrace", "x_headrace")


def to_wire(call: Call) -> JsonObject:
    """The body for a strict server: known fields only, and those that the backend's `options.pass` names."""
    known = KNOWN_FIELDS.union(call.backend.options.get("pass") or ()) - _FORBIDDEN
    kept = {key: value for key, value in call.body.items() if key in known}
    return _asking(cleaned(kept, known_only(call.backend.options)), call)


def to_open_wire(call: Call) -> JsonObject:
    """The body for a self-hosted server: unknown fields pass, but for ours and for those that choose a destination."""
    dropped = _FORBIDDEN | _ANTHROPICS
    kept = cleaned({k: v for k, v in call.body.items() if k not in dropped and not k.startswith(_OURS)}, unmarked)
    if is_list(messages := kept.get("messages")):
        kept["messages"] = [_without_developer(message) for message in messages]
    return _asking(kept, call)


# How numbers are written is between us and the server, whatever the caller wants to get.
_EMBEDDING_FIELDS: Final = frozenset({"input", "dimensions", "user"})
# What `options.set` may say of embeddings. A server of both may be set to think less, which it would refuse with these.
_OF_VECTORS: Final = frozenset(
    {
        *("user", "dimensions", "input_type", "output_dimension", "output_dtype", "task", "prompt_name"),
        *("truncate", "truncate_prompt_tokens", "truncation", "late_chunking", "priority"),
    }
)
_LAYOUT: Final = frozenset({"encoding_format", "embed_dtype", "endianness"})


def to_embedding_wire(call: Call) -> JsonObject:
    """The body of a request for embeddings, for a strict server: known fields, and those that `options.pass` names."""
    known = _EMBEDDING_FIELDS.union(call.backend.options.get("pass") or ()) - _FORBIDDEN - _LAYOUT
    return _asking_vectors({key: value for key, value in call.body.items() if key in known}, call)


def to_open_embedding_wire(call: Call) -> JsonObject:
    """The same for a self-hosted server: unknown fields pass, but for ours and for those that choose a destination."""
    dropped = _FORBIDDEN | _LAYOUT
    kept = {k: v for k, v in call.body.items() if k not in dropped and not k.startswith(_OURS)}
    return _asking_vectors(kept, call)


def _asking_vectors(body: JsonObject, call: Call) -> JsonObject:
    kept = {key: value for key, value in body.items() if value is not None}
    # A quarter of the bytes of written numbers, and no parsing of them; who knows only numbers sends those.
    wire = {**kept, "model": call.model, "encoding_format": "base64"}
    if not (options := call.backend.options):
        return wire
    preset: JsonObject = options.get("set") or {}
    return adapted(wire, {**options, "set": {key: value for key, value in preset.items() if key in _OF_VECTORS}})


def _asking(body: JsonObject, call: Call) -> JsonObject:
    options = body.pop("stream_options", None)
    body["model"] = call.model
    body["stream"] = call.stream
    if call.stream:
        # Usage is always asked for, since billing needs it; who did not ask for it is not shown it.
        body["stream_options"] = {**(options if is_object(options) else {}), "include_usage": True}
    return adapted(body, call.backend.options) if call.backend.options else body


def _without_developer(message: Any) -> Any:
    # Chat templates know `system`; most fail on, or silently drop, OpenAI's newer name for it.
    if is_object(message) and message.get("role") == "developer":
        return {**message, "role": "system"}
    return message
