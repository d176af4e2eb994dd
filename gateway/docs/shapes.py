"""The JSON schemas of what routes answer: errors of each kind, and answers with the keys that are always there."""

from __future__ import annotations

from typing import Any, Final

from common.contracts import JsonObject, State

_TEXT: Final[JsonObject] = {"type": "string"}
_COUNT: Final[JsonObject] = {"type": "integer", "minimum": 0}
_FLAG: Final[JsonObject] = {"type": "boolean"}
_TEXTS: Final[JsonObject] = {"type": "array", "items": _TEXT}
_ANY_OBJECT: Final[JsonObject] = {"type": "object"}


def _or_null(kind: str) -> JsonObject:
    return {"type": [kind, "null"]}


def _object(required: JsonObject, **optional: JsonObject) -> JsonObject:
    """An object with these keys always there, and those now and then."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _list_of(item: JsonObject, **more: JsonObject) -> JsonObject:
    """A list, with these keys beside it."""
    return _object({"object": {"const": "list"}, "data": {"type": "array", "items": item}, **more})


def _ref(name: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{name}"}


def _const(value: Any) -> JsonObject:
    return {"const": value}


# --- errors -----------------------------------------------------------------------------------------------------------

_OPENAI_ERROR: Final = _object(
    {"message": _TEXT, "type": _TEXT, "param": _or_null("string"), "code": _or_null("string")}
)
_ERRORS: Final[JsonObject] = {
    "Error": _object({"error": _OPENAI_ERROR}),
    "AnthropicError": _object(
        {"type": _const("error"), "error": _object({"type": _TEXT, "message": _TEXT}), "request_id": _or_null("string")}
    ),
    "OllamaError": _object({"error": _TEXT}),
    "Problem": _object(
        {"type": _TEXT, "title": _TEXT, "status": {"type": "integer"}, "detail": _TEXT},
        instance=_TEXT,
        code=_TEXT,
        param=_TEXT,
    ),
}

# --- OpenAI's answers -------------------------------------------------------------------------------------------------

_USAGE: Final = _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT})
_MESSAGE: Final = _object(
    {"role": _const("assistant"), "content": _or_null("string"), "refusal": _or_null("string")},
    tool_calls={"type": "array", "items": _ANY_OBJECT},
)
_CHOICE: Final = _object(
    {"index": _COUNT, "message": _MESSAGE, "finish_reason": _or_null("string"), "logprobs": _or_null("object")}
)
_TEXT_CHOICE: Final = _object(
    {"index": _COUNT, "text": _TEXT, "finish_reason": _or_null("string"), "logprobs": _or_null("object")}
)
_VECTOR: Final[JsonObject] = {"type": "array", "items": {"type": "number"}}
_MODEL: Final = _object({"id": _TEXT, "object": _const("model"), "created": _COUNT, "owned_by": _TEXT})
_ANTHROPIC_MODEL: Final = _object(
    {
        "id": _TEXT,
        "type": _const("model"),
        "display_name": _TEXT,
        "created_at": _TEXT,
        "max_input_tokens": _or_null("integer"),
        "max_tokens": _or_null("integer"),
    }
)
_OPENAI: Final[JsonObject] = {
    "ChatCompletion": _object(
        {
            "id": _TEXT,
            "object": _const("chat.completion"),
            "created": _COUNT,
            "model": _TEXT,
            "choices": {"type": "array", "items": _CHOICE, "minItems": 1},
            "usage": _USAGE,
        }
    ),
    "TextCompletion": _object(
        {
            "id": _TEXT,
            "object": _const("text_completion"),
            "created": _COUNT,
            "model": _TEXT,
            "choices": {"type": "array", "items": _TEXT_CHOICE, "minItems": 1},
            "usage": _USAGE,
        }
    ),
    "Embeddings": _list_of(
        _object({"object": _const("embedding"), "index": _COUNT, "embedding": {"anyOf": [_VECTOR, _TEXT]}}),
        model=_TEXT,
        usage=_object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
    ),
    "Model": {"anyOf": [_MODEL, _ANTHROPIC_MODEL]},
    "Models": {
        "anyOf": [
            _list_of(_MODEL),
            _object(
                {
                    "data": {"type": "array", "items": _ANTHROPIC_MODEL},
                    "has_more": _FLAG,
                    "first_id": _or_null("string"),
                    "last_id": _or_null("string"),
                }
            ),
        ]
    },
    "Response": _object(
        {
            "id": {"type": "string", "pattern": "^resp_"},
            "object": _const("response"),
            "created_at": _COUNT,
            "status": {"enum": ["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]},
            "model": _TEXT,
            "output": {"type": "array", "items": _object({"type": _TEXT})},
            "error": _or_null("object"),
            "incomplete_details": _or_null("object"),
            "usage": _or_null("object"),
            "previous_response_id": _or_null("string"),
            "instructions": _or_null("string"),
            "tools": {"type": "array", "items": _ANY_OBJECT},
            "parallel_tool_calls": _FLAG,
            "store": _FLAG,
            "background": _FLAG,
            "metadata": _ANY_OBJECT,
        }
    ),
    "DeletedResponse": _object({"id": _TEXT, "object": _const("response"), "deleted": _const(True)}),
    "InputItems": _list_of(_object({"id": _TEXT, "type": _TEXT}), first_id=_TEXT, last_id=_TEXT, has_more=_FLAG),
    "InputTokens": _object({"object": _const("response.input_tokens"), "input_tokens": _COUNT}),
}

# --- Anthropic's and Ollama's -----------------------------------------------------------------------------------------

_OLLAMA_ANSWER: Final[JsonObject] = {"model": _TEXT, "created_at": _TEXT, "done": _FLAG}
_OLLAMA_MODEL: Final = _object(
    {"name": _TEXT, "model": _TEXT, "size": _COUNT, "digest": _TEXT, "details": _ANY_OBJECT},
    modified_at=_TEXT,
    expires_at=_TEXT,
)
_OTHERS: Final[JsonObject] = {
    "AnthropicAnswer": _object(
        {
            "id": {"type": "string", "pattern": "^msg_"},
            "type": _const("message"),
            "role": _const("assistant"),
            "model": _TEXT,
            "content": {
                "type": "array",
                "items": _object({"type": {"enum": ["text", "thinking", "redacted_thinking", "tool_use"]}}),
            },
            "stop_reason": _or_null("string"),
            "stop_sequence": _or_null("string"),
            "usage": _object({"input_tokens": _COUNT, "output_tokens": _COUNT}),
        }
    ),
    "TokenCount": _object({"input_tokens": _COUNT}),
    "OllamaChat": _object({**_OLLAMA_ANSWER, "message": _object({"role": _const("assistant"), "content": _TEXT})}),
    "OllamaGenerate": _object({**_OLLAMA_ANSWER, "response": _TEXT}),
    "OllamaEmbed": _object({"model": _TEXT, "embeddings": {"type": "array", "items": _VECTOR}}),
    "OllamaEmbeddings": _object({"embedding": _VECTOR}),
    "OllamaModel": _object({"details": _ANY_OBJECT, "model_info": _ANY_OBJECT, "capabilities": _TEXTS}),
    "OllamaModels": _object({"models": {"type": "array", "items": _OLLAMA_MODEL}}),
    "OllamaVersion": _object({"version": _TEXT}),
}

# --- our own ----------------------------------------------------------------------------------------------------------

_CLASS: Final[JsonObject] = {"enum": ["interactive", "standard", "batch"]}
_ATTEMPTS: Final[JsonObject] = {
    "type": "array",
    "items": _object({"attempt": _COUNT, "code": _TEXT, "message": _TEXT, "backend": _TEXT, "at_ms": _COUNT}),
}
_DEAD_LETTER: Final[JsonObject] = {
    "id": _TEXT,
    "object": _const("dead_letter"),
    "pool": _TEXT,
    "model": _TEXT,
    "endpoint": _TEXT,
    "priority": _CLASS,
    "reason": _OPENAI_ERROR,
    "created_at": _COUNT,
    "died_at": _COUNT,
    "replayed_as": _or_null("string"),
    "links": _ANY_OBJECT,
}
_JOB: Final[JsonObject] = {
    "id": _TEXT,
    "object": _const("job"),
    "endpoint": _TEXT,
    "status": {"enum": [state.value for state in State]},
    "model": _TEXT,
    "choice": _or_null("object"),
    "backend": _or_null("string"),
    "upstream_model": _or_null("string"),
    "failed_targets": {"type": "array", "items": _object({"backend": _TEXT, "model": _TEXT, "code": _TEXT})},
    "priority": _CLASS,
    "attempt": _COUNT,
    "attempts": _ATTEMPTS,
    "created_at": _COUNT,
    "started_at": _or_null("integer"),
    "finished_at": _or_null("integer"),
    "result": _or_null("object"),
    "partial_result": _or_null("object"),
    "error": {"anyOf": [_OPENAI_ERROR, {"type": "null"}]},
    "usage": _or_null("object"),
    "timings_ms": _or_null("object"),
    "metadata": _ANY_OBJECT,
}
_OUR_OWN: Final[JsonObject] = {
    "AcceptedJob": _object(
        {
            "id": _TEXT,
            "object": _const("job"),
            "status": {"enum": [state.value for state in State]},
            "links": _object({"self": _TEXT, "events": _TEXT, "cancel": _TEXT}),
        }
    ),
    "Job": _object(_JOB, queue=_or_null("object"), cost_usd=_or_null("number"), links=_ANY_OBJECT),
    "Jobs": _list_of(_ref("Job"), has_more=_FLAG),
    "DeadLetter": _object({**_DEAD_LETTER, "request": _ANY_OBJECT, "attempts": _ATTEMPTS}),
    "DeadLetters": _list_of(_object(_DEAD_LETTER), has_more=_FLAG),
    "Workers": {
        "type": "array",
        "items": _object(
            {
                "id": _TEXT,
                "pool": _TEXT,
                "status": {"enum": ["active", "draining"]},
                "version": _or_null("string"),
                "lease_expires_ms": _COUNT,
                "running": _COUNT,
                "concurrency": _COUNT,
                "backends": {"type": "array", "items": _object({"name": _TEXT, "kind": _TEXT, "breaker": _TEXT})},
            },
            jobs=_TEXTS,
        ),
    },
    "Drained": _object({"id": _TEXT, "status": _const("draining")}),
    "Queues": _list_of(
        _object(
            {"pool": _TEXT, "depth": _COUNT, "delayed": _COUNT, "by_class": _ANY_OBJECT, "counts": _ANY_OBJECT},
            lanes={
                "type": "array",
                "items": _object(
                    {"class": _CLASS, "model": _TEXT, "depth": _COUNT, "oldest_age_ms": _or_null("integer")}
                ),
            },
        )
    ),
    "Health": _object(
        {
            "status": {"enum": ["ok", "degraded", "unavailable"]},
            "store": _TEXT,
            "store_memory_share": {"type": "number"},
            "workers": _COUNT,
            "streams": _COUNT,
            "version": _TEXT,
        }
    ),
}

SHAPES: Final[JsonObject] = {**_ERRORS, **_OPENAI, **_OTHERS, **_OUR_OWN}


def _header(text: str, schema: JsonObject, *, always: bool = False) -> JsonObject:
    return {"description": text, "required": always, "schema": schema}


_LIMIT: Final = "How many jobs of yours may wait at a time: no rate in a time."
_REMAINING: Final = "How many more of them might have waited when this one was queued; 0 where it was refused."
_RESET: Final = "Until when this job's turn comes, by the pace measured; nothing where that is unknown."
_DURATION: Final = "^([0-9]+h)?([0-9]+m)?[0-9]+s$|^[0-9]+ms$"
HEADERS: Final[JsonObject] = {
    "X-Request-ID": _header("The request's id, as the logs have it.", {"type": "string"}, always=True),
    "OpenAI-Processing-Ms": _header("How long it took to the answer's head, in ms.", _COUNT),
    "WWW-Authenticate": _header("How to present a key.", _const("Bearer"), always=True),
    "Retry-After": _header("Seconds to wait before another try.", {"type": "integer", "minimum": 1}),
    "Location": _header("Where to ask for what was made.", _TEXT, always=True),
    "X-Headrace-Job-Id": _header("The job behind the answer.", _TEXT),
    "X-Headrace-Durability": _header("Where the job was accepted.", {"enum": ["journal", "redis"]}),
    "X-Headrace-Replayed": _header("An earlier request with this Idempotency-Key began it.", _const("true")),
    "X-Headrace-Model": _header("The model that was chosen, where the caller named none of its own.", _TEXT),
    "X-RateLimit-Limit-Requests": _header(_LIMIT, _COUNT),
    "X-RateLimit-Remaining-Requests": _header(_REMAINING, _COUNT),
    "X-RateLimit-Reset-Requests": _header(_RESET, {"type": "string", "pattern": _DURATION}),
    "Anthropic-RateLimit-Requests-Limit": _header(_LIMIT, _COUNT),
    "Anthropic-RateLimit-Requests-Remaining": _header(_REMAINING, _COUNT),
    "Anthropic-RateLimit-Requests-Reset": _header(_RESET, {"type": "string", "format": "date-time"}),
}
