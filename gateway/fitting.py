"""Pure: what a request needs of a model, and the refusal where a model has it not; nothing here is sent anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from common.catalogue import Capability, Model
from common.contracts import JsonObject
from common.errors import BadRequest
from common.lengths import likely_fits, surely_too_long

TOO_LONG: Final = "context_length_exceeded"
UNSUPPORTED: Final = "unsupported_parameter"

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


def unfit(name: str, model: Model, body: JsonObject, prompt_tokens: int) -> BadRequest | None:
    """Why this model can't serve a chat request at all; None where it may. What nobody said of it is not checked.

    `prompt_tokens` is an estimate: what may still fit is left to the upstream, which counts.
    """
    field, limit = limit_of(body)
    if model.max_tokens is not None and limit is not None and limit > model.max_tokens:
        text = f"{field}: at most {model.max_tokens} for this model, {limit} were asked for."
        return BadRequest(text, param=field)
    context = model.longest_context
    if context is not None and surely_too_long(context, prompt_tokens, limit):
        return too_long(context, prompt_tokens, field, limit)
    return _incapable(name, model, body)


def fits(model: Model, prompt_tokens: int, answer_tokens: int) -> bool:
    """Whether prompt and answer are likely to fit, each as it was estimated."""
    return likely_fits(model.longest_context, prompt_tokens, answer_tokens)


def too_long(context: int, prompt_tokens: int, field: str, limit: int | None) -> BadRequest:
    """The refusal of what is longer than a context, in OpenAI's words."""
    # Where the answer alone is too long, the prompt is not what has to change.
    param = "messages" if limit is None or limit < context else field
    asked = f"about {prompt_tokens} in the messages" + (f", {limit} in the completion" if limit else "")
    text = (
        f"This model's maximum context length is {context} tokens. However, you requested about "
        f"{prompt_tokens + (limit or 0)} tokens ({asked}). Please reduce the length of the messages or completion."
    )
    return BadRequest(text, param=param, code=TOO_LONG)


def lacks(model: Model, needs: Needs) -> list[Capability]:
    """What of this a model is known not to have."""
    if model.capabilities is None:
        return []
    return [capability for capability in needs if capability not in model.capabilities]


def _incapable(name: str, model: Model, body: JsonObject) -> BadRequest | None:
    if model.capabilities is None:
        return None
    needs = needs_of(body)
    lacking = lacks(model, needs)
    if not lacking:
        return None
    field = needs[lacking[0]]
    can = ", ".join(model.capabilities) or "text only"
    text = f"Unsupported parameter: {field!r} needs {lacking[0]!r}, which {name!r} does not have (it has: {can})."
    return BadRequest(text, param=field, code=UNSUPPORTED)
