"""What the routes of Ollama's API say of themselves."""

from __future__ import annotations

from typing import Final

from common.contracts import JsonObject
from gateway.docs.words import (
    JSON_LINES,
    KEY,
    MADE_HEADERS,
    OLLAMA_ERROR,
    OPTIONS,
    WORK,
    Route,
    answer,
    body,
    completed,
    ref,
    refusals,
    route,
    told,
)

_PIECES: Final = "The answer's pieces, a line of JSON each; with `stream` false, the answer."


def _work(name: str, summary: str, given: JsonObject, asked: JsonObject) -> Route:
    return route(
        "Ollama",
        summary,
        {200: given, **refusals(OLLAMA_ERROR, *WORK)},
        requestBody=asked,
        parameters=OPTIONS,
        operationId=name,
        security=KEY,
    )


def _list(name: str, summary: str, given: JsonObject) -> Route:
    return route("Ollama", summary, {200: given, **refusals(OLLAMA_ERROR, 401)}, operationId=name, security=KEY)


OLLAMA_CHAT: Final = _work(
    "ollamaChat",
    "The next message of a chat",
    completed("OllamaChat", _PIECES, stream=JSON_LINES),
    body(
        "OllamaChatBody",
        plain={"model": "a-model", "messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": False},
    ),
)
OLLAMA_GENERATE: Final = _work(
    "ollamaGenerate",
    "What comes after a prompt",
    completed("OllamaGenerate", _PIECES, stream=JSON_LINES),
    body("OllamaGenerateBody", plain={"model": "a-model", "prompt": "Why is the sky blue?", "stream": False}),
)
OLLAMA_EMBED: Final = _work(
    "ollamaEmbed",
    "Embed texts",
    told(answer("One embedding for each text.", ref("OllamaEmbed")), *MADE_HEADERS),
    body("OllamaEmbedBody", two={"model": "a-model", "input": ["one text", "and another"]}),
)
OLLAMA_EMBEDDINGS: Final = _work(
    "ollamaEmbeddings",
    "Embed a text, the older way",
    told(answer("An embedding.", ref("OllamaEmbeddings")), *MADE_HEADERS),
    body("OllamaEmbeddingsBody", one={"model": "a-model", "prompt": "a text"}),
)
OLLAMA_SHOW: Final = route(
    "Ollama",
    "What is known of a model",
    {
        200: answer("Its context and abilities.", ref("OllamaModel")),
        **refusals(OLLAMA_ERROR, 400, 401, 404, 413),
    },
    requestBody=body("OllamaShowBody", one={"model": "a-model"}),
    operationId="ollamaShow",
    security=KEY,
)
OLLAMA_TAGS: Final = _list("ollamaTags", "List the models", answer("The models.", ref("OllamaModels")))
OLLAMA_PS: Final = _list("ollamaPs", "List the models that are ready", answer("The models.", ref("OllamaModels")))
OLLAMA_VERSION: Final = _list(
    "ollamaVersion", "The release of Ollama whose API this is", answer("The version.", ref("OllamaVersion"))
)
