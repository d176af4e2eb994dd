"""What requests must fulfil beyond what their parsers' types say, as JSON Schema, by the schema that it belongs to.

Not all can be said so: that a choice names one of the tools, that `best_of` is `n`, that something is left of a
conversation and of each turn of it, that ids are known, how long schemas are.
"""

from __future__ import annotations

from typing import Final

from common.contracts import JsonObject
from gateway.dialects.anthropic_request import NOT_OURS
from gateway.dialects.completions import FIELDS_OF_CHATS
from gateway.dialects.native import MAX_BATCH_KEY_CHARACTERS, MAX_DEADLINE_MS
from gateway.dialects.ollama import REFUSED_FIELDS
from gateway.dialects.openai import MAX_ADDRESS_CHARACTERS, MAX_FIELDS
from gateway.dialects.responses_schema import ABSENT_FIELDS, FOREIGN_FIELDS

_NULL: Final[JsonObject] = {"type": "null"}
_SAID: Final[JsonObject] = {"type": "string", "minLength": 1}
_SOME: Final[JsonObject] = {"type": "array", "minItems": 1}
_FALSY: Final[JsonObject] = {"enum": [None, "", False, 0, [], {}]}


def _ref(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}


def _has(**fields: JsonObject) -> JsonObject:
    """An object that has these fields, each as it is said."""
    return {"required": list(fields), "properties": fields}


def _may(**fields: JsonObject) -> JsonObject:
    """An object whose fields are as it is said, where it has them."""
    return {"properties": fields}


def _if(condition: JsonObject, then: JsonObject) -> JsonObject:
    return {"if": condition, "then": then}


def _kinds(**kinds: JsonObject) -> JsonObject:
    """An object that is as its `type` says."""
    return {"anyOf": [{"allOf": [_has(type={"const": kind}), one]} for kind, one in kinds.items()]}


def _or_null(schema: JsonObject) -> JsonObject:
    return {"anyOf": [schema, _NULL]}


def _not_null(name: str) -> JsonObject:
    return _has(**{name: {"not": _NULL}})


_STREAM_OPTIONS: Final = _if(_not_null("stream_options"), _has(stream={"const": True}))
_CHOICE_OF_TOOLS: Final = _if(
    _has(tool_choice={"not": {"enum": [None, "none", "auto"]}}),
    _has(tools=_SOME),
)
_ADDRESS: Final[JsonObject] = {
    "anyOf": [{"pattern": "^data:"}, {"pattern": "^https://", "maxLength": MAX_ADDRESS_CHARACTERS}]
}
_HTTPS: Final[JsonObject] = {"type": "string", "pattern": "^https://", "maxLength": MAX_ADDRESS_CHARACTERS}
_ADDRESSED: Final = _has(url=_ADDRESS)
# The beginnings of PNG, GIF, WebP and JPEG files in base64.
_PICTURE: Final[JsonObject] = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": (
        "^((iVBOR[w-z0-9+/]|R0lGO[A-P]|UklGR[g-v])[A-Za-z0-9+/]{2}|/9j/)"
        "([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    ),
}
_PICTURES: Final = _or_null({"type": "array", "items": _PICTURE})


# --- OpenAI's ---------------------------------------------------------------------------------------------------------

_CHAT: Final = {
    "maxProperties": MAX_FIELDS,
    "allOf": [
        _STREAM_OPTIONS,
        _CHOICE_OF_TOOLS,
        _if(_has(top_logprobs={"not": {"enum": [None, 0]}}), _has(logprobs={"const": True})),
    ],
}
_SPEAKER: Final[JsonObject] = {
    "anyOf": [
        _has(content={"type": ["string", "array"]}, role={"enum": ["developer", "system", "user", "function"]}),
        _has(content={"type": ["string", "array"]}, role={"const": "tool"}, tool_call_id=_SAID),
        {
            **_has(role={"const": "assistant"}),
            "anyOf": [
                _has(content={"type": ["string", "array"]}),
                _has(tool_calls=_SOME),
                _has(function_call={"type": "object"}),
                _has(refusal=_SAID),
                _has(reasoning_content=_SAID),
                _has(audio={"type": "object", "minProperties": 1}),
            ],
        },
    ]
}
_PART: Final = _kinds(
    text=_has(text={}),
    refusal=_has(refusal={}),
    thinking=_has(thinking={}),
    image_url=_has(image_url=_ADDRESSED),
    audio_url=_has(audio_url=_ADDRESSED),
    video_url=_has(video_url=_ADDRESSED),
    input_audio=_has(input_audio={}),
    file=_has(file=_may(file_id=_NULL)),
)
_COMPLETIONS: Final = {
    "allOf": [
        _may(suffix=_FALSY, **dict.fromkeys(FIELDS_OF_CHATS, _NULL)),
        _STREAM_OPTIONS,
        _if(_has(echo={"const": True}), _may(logprobs=_NULL)),
    ],
}
_ITEMS: Final = ("MessageItem", "CallItem", "CallOutputItem", "ReasoningItem", "ReferenceItem")
_RESPONSE_PART: Final = {
    **_may(file_url=_FALSY, file_id=_FALSY),
    **_kinds(
        input_text=_has(text={}),
        output_text=_has(text={}),
        refusal=_has(refusal={}),
        input_image=_has(image_url={"type": "string", **_ADDRESS}),
        input_file=_has(file_data={"type": "string"}),
        input_audio=_has(input_audio={}),
    ),
}
_RESPONSE: Final = {
    "propertyNames": {"not": {"enum": [*FOREIGN_FIELDS]}},
    "allOf": [
        _may(**dict.fromkeys(ABSENT_FIELDS, _NULL)),
        _if(_has(background={"const": True}), _may(store={"not": {"const": False}})),
        _if(_has(tool_choice={"not": {"enum": [None, "none", "auto"]}}), _has(tools=_SOME)),
        _may(
            tools=_or_null({"type": "array", "items": _ref("FunctionTool")}),
            input={
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "items": {"anyOf": [*map(_ref, _ITEMS)]},
                    },
                ]
            },
        ),
    ],
}

# --- Anthropic's ------------------------------------------------------------------------------------------------------

_SOURCE_OF_IMAGE: Final = {
    "type": "object",
    "anyOf": [_has(type={"const": "base64"}, media_type=_SAID, data=_SAID), _has(type={"const": "url"}, url=_HTTPS)],
}
_INNER_OF_DOCUMENT: Final = {"type": "object", **_kinds(text=_has(text=_SAID), image=_has(source=_SOURCE_OF_IMAGE))}
_CONTENT_OF_DOCUMENT: Final = {"anyOf": [_SAID, {**_SOME, "items": _INNER_OF_DOCUMENT}]}
_FOUND: Final = _has(source={"type": "string"}, title={"type": "string"}, content=_CONTENT_OF_DOCUMENT)
_SOURCE_OF_DOCUMENT: Final = {
    "type": "object",
    "anyOf": [
        _has(type={"const": "base64"}, media_type=_SAID, data=_SAID),
        _has(type={"const": "text"}, data=_SAID),
        _has(type={"const": "content"}, content=_CONTENT_OF_DOCUMENT),
    ],
}
_BLOCK_OF_USER: Final = _kinds(
    text=_has(text={}),
    image=_has(source=_SOURCE_OF_IMAGE),
    document=_has(source=_SOURCE_OF_DOCUMENT),
    search_result=_FOUND,
    tool_result=_has(tool_use_id=_SAID),
)
_BLOCK_OF_ASSISTANT: Final = _kinds(
    text=_has(text={}),
    thinking=_has(thinking={}),
    redacted_thinking={},
    tool_use=_has(id={}, name={}, input={}),
)
_ANTHROPIC_MESSAGE: Final[JsonObject] = {
    "anyOf": [
        _has(content=_SAID),
        _has(
            role={"enum": ["user", "system"]},
            content={**_SOME, "items": _BLOCK_OF_USER},
        ),
        _has(role={"const": "assistant"}, content={"type": "array", "items": _BLOCK_OF_ASSISTANT}),
    ]
}
_ANTHROPIC: Final = {
    "propertyNames": {"not": {"enum": [*NOT_OURS]}},
    "allOf": [
        _if(_has(tool_choice={"type": "object", **_has(type={"enum": ["any", "tool"]})}), _has(tools=_SOME)),
    ],
}

# --- Ollama's ---------------------------------------------------------------------------------------------------------

_FORMAT: Final[JsonObject] = {"anyOf": [{"enum": [None, "", "json"]}, {"type": "object"}]}
_OLLAMA_GENERATE: Final = _may(format=_FORMAT, images=_PICTURES, **dict.fromkeys(REFUSED_FIELDS, _FALSY))

# --- our own ----------------------------------------------------------------------------------------------------------

_JOB: Final[JsonObject] = {
    "allOf": [
        _may(
            priority=_or_null({"enum": ["interactive", "standard", "batch"]}),
            deadline_ms=_or_null({"minimum": 1, "maximum": MAX_DEADLINE_MS}),
            delay_ms=_or_null({"minimum": 0, "maximum": MAX_DEADLINE_MS}),
            batch_key=_or_null({"pattern": rf"^[ -~]{{1,{MAX_BATCH_KEY_CHARACTERS}}}$"}),
            on_disconnect=_or_null({"enum": ["cancel", "continue"]}),
            on_interrupt=_or_null({"enum": ["fail", "restart"]}),
            quality=_or_null({"enum": ["low", "standard", "high"]}),
        )
    ],
    "anyOf": [
        _has(endpoint={"const": "/v1/chat/completions"}, body=_ref("ChatBody")),
        _has(endpoint={"const": "/v1/embeddings"}, body=_ref("EmbeddingsBody")),
    ],
}

RULES: Final[JsonObject] = {
    "ChatBody": _CHAT,
    "Message": _SPEAKER,
    "Part": _PART,
    "Tool": _kinds(function=_has(function={}), custom=_has(custom={})),
    "ResponseFormat": _if(_has(type={"const": "json_schema"}), _has(json_schema={})),
    "CompletionsBody": _COMPLETIONS,
    "EmbeddingsBody": {"maxProperties": MAX_FIELDS},
    "ResponsesBody": _RESPONSE,
    "ResponsePart": _RESPONSE_PART,
    "MessageItem": {"anyOf": [_has(role={"const": "assistant"}), _may(content={"minItems": 1})]},
    "ReferenceItem": {"anyOf": [_has(type={"const": "item_reference"}), {"not": {"required": ["role"]}}]},
    "TextFormat": _if(_has(type={"const": "json_schema"}), _has(name={}, schema={})),
    "ToolChoice": _kinds(function=_has(name={}), allowed_tools=_has(mode={}, tools={})),
    "MessagesBody": _ANTHROPIC,
    "CountTokensBody": _ANTHROPIC,
    "AnthropicMessage": _ANTHROPIC_MESSAGE,
    "AnthropicInnerBlock": _kinds(
        text=_has(text={}),
        image=_has(source=_SOURCE_OF_IMAGE),
        document=_has(source=_SOURCE_OF_DOCUMENT),
        search_result=_FOUND,
    ),
    "AnthropicToolChoice": _if(_has(type={"const": "tool"}), _has(name={})),
    "OllamaChatBody": _may(format=_FORMAT),
    "OllamaMessage": _may(images=_PICTURES),
    "OllamaGenerateBody": _OLLAMA_GENERATE,
    "OllamaShowBody": {"anyOf": [_has(model={}), _has(name={})]},
    "JobBody": _JOB,
}
"""By schema: what is to hold beside what the parser's type says."""
