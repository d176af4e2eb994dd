"""What the routes of OpenAI's API say of themselves."""

from __future__ import annotations

from typing import Final

from gateway.docs.words import (
    KEY,
    MADE_HEADERS,
    OPENAI_ERROR,
    OPTIONS,
    PAGE,
    WORK,
    answer,
    body,
    completed,
    header,
    linked,
    path,
    query,
    ref,
    refusals,
    route,
    told,
)

_HI: Final = [{"role": "user", "content": "Why is the sky blue?"}]
_WEATHER: Final = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CHAT: Final = route(
    "OpenAI",
    "Create a chat completion",
    {200: completed("ChatCompletion"), **refusals(OPENAI_ERROR, *WORK)},
    requestBody=body(
        "ChatBody",
        plain={"model": "a-model", "messages": _HI},
        streamed={"model": "a-model", "messages": _HI, "stream": True, "stream_options": {"include_usage": True}},
        tools={"model": "a-model", "messages": _HI, "tools": [{"type": "function", "function": _WEATHER}]},
    ),
    operationId="createChatCompletion",
    parameters=OPTIONS,
    security=KEY,
)
COMPLETIONS: Final = route(
    "OpenAI",
    "Complete a prompt: a chat of one message, answered as text",
    {200: completed("TextCompletion"), **refusals(OPENAI_ERROR, *WORK)},
    requestBody=body("CompletionsBody", plain={"model": "a-model", "prompt": "Once upon a time", "max_tokens": 16}),
    operationId="createCompletion",
    parameters=OPTIONS,
    security=KEY,
)
EMBEDDINGS: Final = route(
    "OpenAI",
    "Create embeddings",
    {
        200: told(answer("One embedding for each input.", ref("Embeddings")), *MADE_HEADERS),
        **refusals(OPENAI_ERROR, *WORK),
    },
    requestBody=body("EmbeddingsBody", two={"model": "a-model", "input": ["one text", "and another"]}),
    operationId="createEmbedding",
    parameters=OPTIONS,
    security=KEY,
)
_OF_A_RESPONSE: Final = "The response; with `stream`, its typed events, numbered from 0."
_OF_RESPONSE: Final = path("response_id", "A response's id.", "resp_default_00000000000000000000000000000000")
CREATE_RESPONSE: Final = route(
    "OpenAI",
    "Create a response",
    {
        200: linked(
            completed("Response", _OF_A_RESPONSE),
            "response_id",
            "/id",
            "getResponse",
            "cancelResponse",
            "listInputItems",
        ),
        **refusals(OPENAI_ERROR, *WORK),
    },
    requestBody=body(
        "ResponsesBody",
        plain={"model": "a-model", "input": "Why is the sky blue?"},
        background={"model": "a-model", "input": "Why is the sky blue?", "background": True},
    ),
    operationId="createResponse",
    parameters=OPTIONS,
    security=KEY,
)
RESPONSE: Final = route(
    "OpenAI",
    "A response; with `stream`, its events after any of them, live where it still runs",
    {
        200: completed("Response", _OF_A_RESPONSE, limits=()),
        **refusals(OPENAI_ERROR, 400, 401, 404, 410),
    },
    parameters=[
        _OF_RESPONSE,
        query("stream", "Its events, not itself.", {"type": "boolean", "default": False}),
        query(
            "starting_after",
            "The `sequence_number` of the last event that was seen; only with `stream`.",
            {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        ),
    ],
    operationId="getResponse",
    security=KEY,
)
DELETE_RESPONSE: Final = route(
    "OpenAI",
    "Delete a response; one that runs is cancelled first",
    {200: answer("Deleted.", ref("DeletedResponse")), **refusals(OPENAI_ERROR, 401, 404, 503)},
    parameters=[_OF_RESPONSE],
    operationId="deleteResponse",
    security=KEY,
)
CANCEL_RESPONSE: Final = route(
    "OpenAI",
    "Cancel a response",
    {200: answer("The response as it ended.", ref("Response")), **refusals(OPENAI_ERROR, 401, 404)},
    parameters=[_OF_RESPONSE],
    operationId="cancelResponse",
    security=KEY,
)
INPUT_ITEMS: Final = route(
    "OpenAI",
    "The items that a response was made from",
    {200: answer("Items.", ref("InputItems")), **refusals(OPENAI_ERROR, 400, 401, 404)},
    parameters=[
        _OF_RESPONSE,
        *PAGE,
        query("order", "Which end first.", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}),
    ],
    operationId="listInputItems",
    security=KEY,
)
INPUT_TOKENS: Final = route(
    "OpenAI",
    "Estimate the tokens of a response's input",
    {
        200: answer("About how many there are, by the gateway's own count: no model is asked.", ref("InputTokens")),
        **refusals(OPENAI_ERROR, 400, 401, 404, 413),
    },
    requestBody=body("ResponsesBody", plain={"model": "a-model", "input": "Why is the sky blue?"}),
    operationId="countInputTokens",
    security=KEY,
)
_EITHER_ERROR: Final = answer("What is wrong, in the caller's form.", {"anyOf": [ref("Error"), ref("AnthropicError")]})
_VERSION: Final = header("anthropic-version", "With it, models are told of in Anthropic's words.", {"type": "string"})
MODELS: Final = route(
    "OpenAI",
    "List the models; in pages, for clients of Anthropic's",
    {
        200: linked(answer("The models.", ref("Models")), "model", "/data/0/id", "getModel"),
        **refusals(_EITHER_ERROR, 400, 401),
    },
    parameters=[
        _VERSION,
        query("limit", "With it: how many at most.", {"type": "string"}),
        query("after_id", "With it: the page before's last one.", {"type": "string"}),
        query("before_id", "With it: the page after's first one.", {"type": "string"}),
    ],
    operationId="listModels",
    security=KEY,
)
MODEL: Final = route(
    "OpenAI",
    "One model",
    {200: answer("The model.", ref("Model")), **refusals(_EITHER_ERROR, 401, 404)},
    parameters=[path("model", "A model's name.", "a-model"), _VERSION],
    operationId="getModel",
    security=KEY,
)
