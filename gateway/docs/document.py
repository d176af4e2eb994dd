"""The OpenAPI document: what the routes say of themselves, with the bodies that our own parsers check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastapi import FastAPI
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema

from common.contracts import JsonObject
from gateway.dialects import ollama
from gateway.dialects.anthropic_schema import COUNT_TOKENS_BODY, MESSAGES_BODY
from gateway.dialects.batches import BATCH_BODY
from gateway.dialects.bounded import MAX_NUMBER, is_object
from gateway.dialects.chat_schema import CHAT_BODY
from gateway.dialects.completions import COMPLETIONS_BODY, FIELDS_OF_CHATS
from gateway.dialects.embeddings import EMBEDDINGS_BODY
from gateway.dialects.native import JOB_BODY, PROMPT_BODY
from gateway.dialects.responses_schema import FOREIGN_FIELDS, ITEMS, REFERENCE, RESPONSES_BODY, TOOL
from gateway.docs.rules import RULES
from gateway.docs.shapes import HEADERS, SHAPES
from gateway.docs.words import REFS, ref

_BODIES: Final[dict[str, TypeAdapter[Any]]] = {
    "BatchBody": BATCH_BODY,
    "ChatBody": CHAT_BODY,
    "CompletionsBody": COMPLETIONS_BODY,
    "CountTokensBody": COUNT_TOKENS_BODY,
    "EmbeddingsBody": EMBEDDINGS_BODY,
    "JobBody": JOB_BODY,
    "MessagesBody": MESSAGES_BODY,
    "OllamaChatBody": ollama.CHAT_BODY,
    "OllamaEmbedBody": ollama.EMBED_BODY,
    "OllamaEmbeddingsBody": ollama.EMBEDDINGS_BODY,
    "OllamaGenerateBody": ollama.GENERATE_BODY,
    "OllamaShowBody": ollama.SHOW_BODY,
    "PromptBody": PROMPT_BODY,
    "ResponsesBody": RESPONSES_BODY,
    # The parts of a request for a response are checked one by one.
    "FunctionTool": TOOL,
    "CallItem": ITEMS["function_call"],
    "CallOutputItem": ITEMS["function_call_output"],
    "MessageItem": ITEMS["message"],
    "ReasoningItem": ITEMS["reasoning"],
    "ReferenceItem": ITEMS[REFERENCE],
}
_ANY_VALUE: Final = "AnyValue"
MOST_NAMES: Final = 20
# Numbers that would be changed in silence are refused wherever they stand.
_BEYOND: Final[dict[str, tuple[JsonObject, JsonObject]]] = {
    "integer": ({"minimum": -(2**63)}, {"maximum": 2**64 - 1}),
    "number": ({"exclusiveMinimum": -MAX_NUMBER}, {"exclusiveMaximum": MAX_NUMBER}),
}
# Whose further fields are a chat completion's, and checked as such; but for these.
_REST_IS_CHATS: Final = {"CompletionsBody": FIELDS_OF_CHATS, "ResponsesBody": FOREIGN_FIELDS}


def describe(app: FastAPI, models: Sequence[str] = ()) -> JsonObject:
    """The OpenAPI document: FastAPI's, with the bodies that our own parsers check, and examples with these models."""
    document: JsonObject = app.openapi()
    document["info"] |= _INFO
    components: JsonObject = document.setdefault("components", {})
    schemas: JsonObject = components.setdefault("schemas", {})
    _without_fastapis_own(document, schemas)
    schemas.update(request_schemas(models))
    schemas.update(SHAPES)
    components["headers"] = HEADERS
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    for operation in _operations(document):
        _put_names(operation, models)
    return document


_INFO: Final = {
    "description": (
        "Whole numbers may be written with a fraction of zero. A body holds at most 50,000 values, 64 levels deep, no "
        "name twice in one object, and no name that chooses a destination or a credential."
    ),
}


def _operations(document: JsonObject) -> Iterator[JsonObject]:
    for methods in document["paths"].values():
        yield from methods.values()


def _without_fastapis_own(document: JsonObject, schemas: JsonObject) -> None:
    """Takes out what FastAPI adds by itself.

    That is the 422 of routes with a parameter (ours answer such faults as 400), and parameters that the route
    describes too.
    """
    for operation in _operations(document):
        if "HTTPValidationError" in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
        if "parameters" in operation:
            named = {(one["in"], one["name"]): one for one in operation["parameters"]}
            operation["parameters"] = list(named.values())
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _put_names(operation: JsonObject, models: Sequence[str]) -> None:
    """Has the examples ask for a model that there is."""
    if not models:
        return
    for content in operation.get("requestBody", {}).get("content", {}).values():
        examples: JsonObject = content.get("examples", {})
        content["examples"] = {title: {"value": _asking(one["value"], models[0])} for title, one in examples.items()}


def _asking(body: JsonObject, model: str) -> JsonObject:
    return {name: _asking(value, model) if name == "body" else value for name, value in body.items()} | (
        {"model": model} if "model" in body else {}
    )


# --- requests ---------------------------------------------------------------------------------------------------------


class _Untitled(GenerateJsonSchema):
    """Schemas without titles, which only repeat the names of fields."""

    def field_title_should_be_set(self, schema: CoreSchema) -> bool:  # type: ignore[override]
        return False


def request_schemas(models: Sequence[str] = ()) -> JsonObject:
    """What requests may hold, by name: what their parsers check, and the rules beside it."""
    found: JsonObject = {_ANY_VALUE: _any_value()}
    for name, adapter in _BODIES.items():
        schema = adapter.json_schema(ref_template=REFS, schema_generator=_Untitled)
        found.update(schema.pop("$defs", {}))
        found[name] = schema
    for name, schema in found.items():
        schema.pop("title", None)
        if name != _ANY_VALUE:
            _bound(schema)
        if name in _BODIES and models and "model" in schema["properties"]:
            schema["properties"]["model"]["examples"] = list(models[:MOST_NAMES])
    for name, foreign in _REST_IS_CHATS.items():
        rest = {field: one for field, one in found["ChatBody"]["properties"].items() if field not in foreign}
        found[name]["properties"] = {**rest, **found[name]["properties"]}
    return {name: {**schema, "allOf": [RULES[name]]} if name in RULES else schema for name, schema in found.items()}


def _bound(schema: JsonObject) -> None:
    """Has what may be anything be a value that can be read without a loss."""
    if schema.get("type") == "object" and schema.get("additionalProperties", True) is True:
        schema["additionalProperties"] = ref(_ANY_VALUE)
    if schema.get("type") in _BEYOND and not {"enum", "const"} & schema.keys():
        low, high = _BEYOND[schema["type"]]
        if "minimum" not in schema:
            schema |= low
        if "maximum" not in schema:
            schema |= high
    if schema.get("items") == {}:
        schema["items"] = ref(_ANY_VALUE)
    fields: JsonObject = schema.get("properties", {})
    fields.update({name: ref(_ANY_VALUE) for name, inner in fields.items() if not inner})
    for inner in (*fields.values(), *schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties")):
        if is_object(inner):
            _bound(inner)


def _any_value() -> JsonObject:
    """Any JSON, but for numbers that would be changed in silence."""
    low, high = _BEYOND["number"]
    number = {"type": "number", **low, **high}
    here = ref(_ANY_VALUE)
    return {
        "anyOf": [
            {"type": ["null", "boolean", "string"]},
            number,
            {"type": "array", "items": here},
            {"type": "object", "additionalProperties": here},
        ]
    }
