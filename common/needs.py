"""Pure: what a chat request needs of a model, and whether a model can serve it, as far as its row says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from common.catalogue import Capability, Model
from common.contracts import JsonObject
from common.lengths import surely_too_long

Needs = dict[Capability, str]
"""What a request needs, each with the field that asks for it."""

_PARTS: Final[dict[str, Capability]] = {
    "image_url": "vision",
    "video_url": "video",
    "input_audio": "audio",
    "audio_url": "audio",
    "file": "files",
}
_SCHEMAS: Final = ("guided_json", "structured_outputs", "json_schema")


def needs_of(body: JsonObject) -> Needs:
    """What a chat request that was checked needs beside text, with the first field that asks for each."""
    needs: Needs = {}
    for capability, field in _found(body):
        needs.setdefault(capability, field)
    return needs


def _found(body: JsonObject) -> Iterator[tuple[Capability, str]]:
    for name in ("tools", "functions"):
        if body.get(name):
            yield "tools", name
    form: JsonObject = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        yield "json_schema", "response_format"
    for name in _SCHEMAS:
        if body.get(name):
            yield "json_schema", name
    if body.get("reasoning_effort") not in (None, "none"):
        yield "reasoning", "reasoning_effort"
    if body.get("audio") or "audio" in (body.get("modalities") or ()):
        yield "audio", "modalities"
    yield from _media(body.get("messages") or [])


def _media(messages: list[JsonObject]) -> Iterator[tuple[Capability, str]]:
    for index, message in enumerate(messages):
        content: Any = message.get("content")
        if not isinstance(content, list):
            continue
        for number, part in enumerate(cast(list[JsonObject], content)):
            if (capability := _PARTS.get(part["type"])) is not None:
                yield capability, f"messages[{index}].content[{number}].{part['type']}"


def limit_of(body: JsonObject) -> tuple[str, int | None]:
    """The field that limits the answer's tokens, and the limit; None where there is none."""
    for name in ("max_completion_tokens", "max_tokens"):
        if body.get(name):
            return name, body[name]
    return "max_tokens", None


def lacks(model: Model, needs: Needs) -> list[Capability]:
    """What of this a model is known not to have."""
    if model.capabilities is None:
        return []
    return [capability for capability in needs if capability not in model.capabilities]


def answers_shorter(model: Model, limit: int | None) -> bool:
    """Whether the model is known not to answer with as many tokens as are asked for."""
    return model.max_tokens is not None and limit is not None and limit > model.max_tokens


def serves(model: Model, body: JsonObject, prompt_tokens: int) -> bool:
    """Whether this model may serve a chat request that was checked. What nobody said of it is not asked.

    `prompt_tokens` is an estimate: what may still fit is left to the upstream, which counts.
    """
    limit = limit_of(body)[1]
    if answers_shorter(model, limit) or surely_too_long(model.longest_context, prompt_tokens, limit):
        return False
    return model.capabilities is None or not lacks(model, needs_of(body))
