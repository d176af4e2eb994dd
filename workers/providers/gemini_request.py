"""Our request in Gemini's shapes: contents made of parts, declarations of functions, a configuration. Pure."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any, Final
from urllib.parse import quote

from common.contracts import JsonObject
from workers.providers.base import Call
from workers.providers.shapes import (
    SYSTEM_ROLES,
    CalledTool,
    Message,
    body_of,
    choice_of,
    common_refusals,
    conversation_of,
    few_stops_of,
    limit_of,
    media_of,
    merged,
    refuse,
    schema_of,
    text_of,
    tools_of,
)
from workers.providers.turns import in_call_order
from workers.providers.wire import is_list, is_object, value_in

_RENAMED: Final = {
    **{"temperature": "temperature", "seed": "seed", "top_p": "topP", "top_k": "topK", "n": "candidateCount"},
    **{"presence_penalty": "presencePenalty", "frequency_penalty": "frequencyPenalty"},
}
_BUDGETS: Final = {
    **{"none": 0, "minimal": 512, "low": 1_024, "medium": 8_192},
    **dict.fromkeys(("high", "xhigh", "max"), 24_576),
}
LEAST_PRO_BUDGET: Final = 128
_LEVELS: Final = {"none": "minimal", "minimal": "minimal", "low": "low", "medium": "medium", "high": "high"}
_GENERATION: Final = re.compile(r"gemini-(\d+(?:\.\d+)?)")
THINKING_SINCE: Final = 2.5
# What Google documents for calls whose signature is lost, or that another model made.
_UNSIGNED: Final = "skip_thought_signature_validator"
_MODES: Final = {"auto": "AUTO", "required": "ANY", "none": "NONE"}


def path_of(model: str, method: str) -> str:
    """Where a model's method is; the model's name may name its collection."""
    name = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
    return f"/v1beta/{quote(name, safe='/')}:{method}"


def to_wire(call: Call) -> JsonObject:
    """The body for `generateContent`. Raises UpstreamRefused for what that API can't do."""
    body = body_of(call)
    several = body.get("n", 1)
    asked = {"n": type(several) is not int or several < 1, **common_refusals(body)}
    refuse("Gemini's API", {**asked, "modalities": _modalities(body) is None})
    messages = conversation_of(body)
    newer = _generation(call.model, 0) >= 3
    wire: JsonObject = {"contents": _contents(messages, signed=newer)}
    if system := [part for m in messages if m.role in SYSTEM_ROLES for part in _system(m)]:
        wire["systemInstruction"] = {"parts": system}
    if config := _config(body, call.model):
        wire["generationConfig"] = config
    if safety := call.backend.options.get("safety_settings"):
        wire["safetySettings"] = safety
    return {**wire, **_tools(body)}


def _modalities(body: JsonObject) -> list[str] | None:
    """What the answer may be made of, none where that was not said; None where it is beyond what a chat can hold."""
    wanted: Any = body.get("modalities") or []
    if not is_list(wanted) or not all(one in ("text", "image") for one in wanted):
        return None
    return [one.upper() for one in wanted]


def _generation(model: str, unknown: float) -> float:
    found = _GENERATION.search(model)
    return float(found[1]) if found else unknown


def _config(body: JsonObject, model: str) -> JsonObject:
    told = {theirs: body.get(ours) for ours, theirs in _RENAMED.items()}
    told |= {"maxOutputTokens": limit_of(body), "stopSequences": few_stops_of("Gemini's API", body) or None}
    if "IMAGE" in (modalities := _modalities(body) or ()):
        told["responseModalities"] = modalities
    schema = schema_of(body)
    if schema is not None:
        told |= {"responseMimeType": "application/json", "responseJsonSchema": schema or None}
    told["thinkingConfig"] = _thinking(body.get("reasoning_effort"), model)
    return {key: value for key, value in told.items() if value is not None}


def _thinking(effort: Any, model: str) -> JsonObject | None:
    """How much to think: a level for newer models, which can't be told to think nothing, a budget for older ones.

    Nothing for those that are older still: they refuse to be told.
    """
    generation = _generation(model, THINKING_SINCE)
    if not isinstance(effort, str) or effort not in _BUDGETS or generation < THINKING_SINCE:
        return None
    shown = {"includeThoughts": effort != "none"}
    if generation < 3:
        return {**shown, "thinkingBudget": max(_BUDGETS[effort], LEAST_PRO_BUDGET if "pro" in model else 0)}
    level = _LEVELS.get(effort, "high")
    return {**shown, "thinkingLevel": "low" if level == "minimal" and "pro" in model else level}


def _system(message: Message) -> list[JsonObject]:
    text = text_of(message)
    return [{"text": text}] if text else []


def _contents(messages: list[Message], *, signed: bool) -> list[JsonObject]:
    names: dict[str, str] = {}  # of the tools called so far, by the call's id: results are matched by name
    turns = merged(_turns(in_call_order(messages, attrgetter("whole")), names, signed=signed))
    return [{"role": role, "parts": parts} for role, parts in turns]


def _turns(messages: list[Message], names: dict[str, str], *, signed: bool) -> Iterator[tuple[str, list[JsonObject]]]:
    for message in messages:
        if message.role in SYSTEM_ROLES:
            continue
        if message.role == "tool":
            yield "user", [_result(message, names)]
            continue
        parts = [made for number, part in enumerate(message.parts) for made in _part(part, message.place, number)]
        names |= {call.id: call.name for call in message.calls}
        calls = [_called(call, signed=signed and not number) for number, call in enumerate(message.calls)]
        if message.role == "assistant":
            yield "model", [*parts, *_drawn(message), *calls]
        else:
            yield "user", parts


def _drawn(message: Message) -> Iterator[JsonObject]:
    """The pictures that the model made earlier, where its caller kept them in the answer's own words."""
    images = message.whole.get("images")
    for image in images if is_list(images) else []:
        inner = image.get("image_url") if is_object(image) else None
        if is_object(inner) and str(inner.get("url")).startswith("data:"):
            [part] = _part({"type": "image_url", "image_url": inner}, f"{message.place}.images", 0)
            yield {**part, **_signature(image)}


def _result(message: Message, names: Mapping[str, str]) -> JsonObject:
    text, called = text_of(message), str(message.whole.get("tool_call_id") or "")
    name = message.whole.get("name") or names.get(called) or "unknown"
    response = {"error": text} if message.failed else _response(text)
    known = {"id": called} if called in names else {}
    return {"functionResponse": {"name": name, "response": response, **known}}


def _response(text: str) -> JsonObject:
    response = value_in(text)
    return response if is_object(response) else {"result": text if response is None else response}


def _called(call: CalledTool, *, signed: bool) -> JsonObject:
    """A call made earlier. `signed`: newer models want its signature back, on the first call of a turn."""
    named = {"id": call.id} if call.id else {}
    unsigned = {"thoughtSignature": _UNSIGNED} if signed else {}
    function = {"name": call.name, "args": call.arguments, **named}
    return {"functionCall": function, **(_signature(call.whole) or unsigned)}


def _signature(given: JsonObject) -> JsonObject:
    """The signature that came with what is given back; nothing where it is lost."""
    extra = given.get("extra_content")
    google = extra.get("google") if is_object(extra) else None
    signature = google.get("thought_signature") if is_object(google) else None
    return {"thoughtSignature": signature} if isinstance(signature, str) and signature else {}


def _part(part: JsonObject, place: str, number: int) -> Iterator[JsonObject]:
    if part["type"] == "text":
        if part["text"]:
            yield {"text": part["text"]}
        return
    media = media_of(part, f"{place}.content[{number}]")
    if media.url:
        kind = mimetypes.guess_type(media.url.partition("?")[0])[0] or "image/jpeg"
        yield {"fileData": {"mimeType": kind, "fileUri": media.url}}
    else:
        yield {"inlineData": {"mimeType": media.media_type, "data": media.data}}


def _tools(body: JsonObject) -> JsonObject:
    functions, choice = tools_of(body), choice_of(body)
    if not functions:
        return {}
    wire: JsonObject = {"tools": [{"functionDeclarations": [_declared(function) for function in functions]}]}
    if choice.mode is not None:
        config: JsonObject = {"mode": _MODES[choice.mode]}
        if choice.name:
            config["allowedFunctionNames"] = [choice.name]
        wire["toolConfig"] = {"functionCallingConfig": config}
    return wire


def _declared(function: JsonObject) -> JsonObject:
    declared = {"name": function["name"], "parametersJsonSchema": function["parameters"]}
    return {**declared, "description": function["description"]} if function.get("description") else declared


def to_embedding_wire(call: Call, texts: list[str]) -> JsonObject:
    """The body for `batchEmbedContents`. What the texts are for is the caller's `task_type` or the backend's option."""
    name = path_of(call.model, "").removeprefix("/v1beta/").removesuffix(":")
    told = {
        "taskType": call.body.get("task_type") or call.backend.options.get("task_type"),
        "outputDimensionality": call.body.get("dimensions"),
    }
    more = {key: value for key, value in told.items() if value is not None}
    return {"requests": [{"model": name, "content": {"parts": [{"text": text}]}, **more} for text in texts]}
