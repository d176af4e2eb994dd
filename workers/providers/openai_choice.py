"""A choice of a streamed answer in OpenAI's dialect, given what the dialect promises and servers leave out. Pure."""

from __future__ import annotations

from typing import Any, Final

from common.contracts import JsonObject
from common.errors import UpstreamError, UpstreamProtocolError
from common.thoughts import BLOCKS, PROOF
from workers.providers.logprobs import are_logprobs
from workers.providers.openai_calls import mended, mended_function
from workers.providers.wire import is_list, is_object

FINISH_REASONS: Final = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
# Others' words for the same (Mistral's, some proxies'), and for an answer that the server cut: its own failure
# (OpenRouter, vLLM), engines stopped or put to sleep (vLLM, SGLang), no room left (DeepSeek).
_SAME: Final = {"model_length": "length", "max_tokens": "length"}
_BROKEN: Final = frozenset({"error", "abort", "insufficient_system_resource"})
_TEXTS: Final = ("content", "reasoning_content", "refusal")
# What an answer is no worse without: dropped where it is not of its type.
_EXTRAS: Final = (("annotations", list), (BLOCKS, list), (PROOF, str))


def mend(choice: Any) -> None:
    """Gives a streamed choice what OpenAI's shape promises and some servers leave out."""
    if not is_object(choice):
        raise UpstreamProtocolError("The model's server sent a choice that is not an object.")
    delta: Any = choice.get("delta")
    if not is_object(delta):
        delta = choice["delta"] = {}
    if len(delta) != 1 or type(delta.get("content")) is not str:  # nearly every token is just that
        _mend_delta(delta)
    if type(choice.setdefault("index", 0)) is not int:
        choice["index"] = 0
    if choice.get("logprobs") is not None and not are_logprobs(choice["logprobs"]):
        choice["logprobs"] = None
    reason = choice.setdefault("finish_reason", None)
    if reason is not None:
        choice["finish_reason"] = _nearest(reason)


def _mend_delta(delta: JsonObject) -> None:
    if "tool_calls" in delta:
        _mend_calls(delta)
        if len(delta) == 1:
            return
    if "function_call" in delta and delta["function_call"] is not None:
        mended_function(delta["function_call"])
    _mend_texts(delta)
    for name, kind in _EXTRAS:
        if delta.get(name) is not None and type(delta[name]) is not kind:
            del delta[name]


def _mend_texts(delta: JsonObject) -> None:
    if "reasoning" in delta:  # the older and the newer name of one thing; ours is the one most clients read
        text = delta.pop("reasoning")
        if isinstance(text, str) and not delta.get("reasoning_content"):
            delta["reasoning_content"] = text
    if type(delta.get("content")) is list:
        _split_content(delta)
    for name in _TEXTS:
        text = delta.get(name)
        if text is not None and not isinstance(text, str):
            raise UpstreamProtocolError("The model's server sent a text that is not a string.")


def _mend_calls(delta: JsonObject) -> None:
    calls = delta["tool_calls"]
    if is_list(calls) and calls:
        delta["tool_calls"] = [mended(call) for call in calls]
    else:
        del delta["tool_calls"]


def _split_content(delta: JsonObject) -> None:
    """Mistral's content in parts: texts are content, thoughts reasoning; there is no place for others."""
    said = [_part(part) for part in delta.pop("content")]
    for name in ("content", "reasoning_content"):
        if texts := [text for kind, text in said if kind == name]:
            delta[name] = (delta.get(name) or "") + "".join(texts)


def _part(part: Any) -> tuple[str, str]:
    """A part's field in a delta, none where it has no place there, and its text."""
    if not is_object(part):
        raise UpstreamProtocolError("The model's server sent a part that is not an object.")
    if (kind := part.get("type")) not in ("text", "thinking"):
        return "", ""
    text = part.get(kind) or ""
    if kind == "thinking" and is_list(text):
        text = "".join(inner for _, inner in map(_part, text))
    if not isinstance(text, str):
        raise UpstreamProtocolError("The model's server sent a text that is not a string.")
    return "content" if kind == "text" else "reasoning_content", text


def _nearest(reason: Any) -> str | None:
    """A finish reason of OpenAI's for what was told. New ones appear, so an unknown one is never an error."""
    if not isinstance(reason, str):
        return "stop" if reason else None
    if reason in FINISH_REASONS:
        return reason
    if reason in _BROKEN:
        raise UpstreamError(f"The model's server broke its answer off ({reason}).")
    return _SAME.get(reason, "stop") if reason else None
