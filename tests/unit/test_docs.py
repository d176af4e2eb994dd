"""The API's description tells the truth of requests: what its schemas allow is taken, and what they forbid refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator

from common.errors import CallerError, ModelNotFound
from gateway.dialects import ollama
from gateway.dialects.anthropic_request import parse_count, parse_message
from gateway.dialects.completions import parse_completions
from gateway.dialects.embeddings import parse_embeddings
from gateway.dialects.native import parse_job_submission, parse_prompt
from gateway.dialects.openai import parse_chat
from gateway.dialects.responses_input import read_response_request, response_request
from gateway.docs import anthropic, jobs, openai
from gateway.docs import ollama as ollama_rows
from gateway.docs.document import request_schemas
from gateway.docs.rules import RULES
from gateway.docs.words import Route

MODELS: Final = {"a-model"}
SCHEMAS: Final = request_schemas(["a-model"])

Parse = Callable[[bytes], Any]
PARSERS: Final[dict[str, Parse]] = {
    "ChatBody": parse_chat,
    "CompletionsBody": parse_completions,
    "EmbeddingsBody": parse_embeddings,
    "ResponsesBody": lambda raw: response_request(read_response_request(raw)),
    "MessagesBody": parse_message,
    "CountTokensBody": parse_count,
    "OllamaChatBody": lambda raw: ollama.parse_chat(raw, MODELS),
    "OllamaGenerateBody": lambda raw: ollama.parse_generate(raw, MODELS),
    "OllamaEmbedBody": lambda raw: ollama.parse_embed(raw, MODELS),
    "OllamaEmbeddingsBody": lambda raw: ollama.parse_embeddings(raw, MODELS),
    "OllamaShowBody": lambda raw: ollama.shown_model(raw, MODELS),
    "JobBody": parse_job_submission,
    "PromptBody": lambda raw: parse_prompt(raw, default_model="a-model"),
}
VALIDATORS: Final = {
    name: Draft202012Validator({"components": {"schemas": SCHEMAS}, "$ref": f"#/components/schemas/{name}"})
    for name in PARSERS
}
ROUTES: Final = [
    *(openai.CHAT, openai.COMPLETIONS, openai.EMBEDDINGS, openai.CREATE_RESPONSE, openai.INPUT_TOKENS),
    *(anthropic.MESSAGES, anthropic.COUNT_TOKENS, jobs.PROMPT, jobs.SUBMIT_JOB),
    *(ollama_rows.OLLAMA_CHAT, ollama_rows.OLLAMA_GENERATE, ollama_rows.OLLAMA_EMBED),
    *(ollama_rows.OLLAMA_EMBEDDINGS, ollama_rows.OLLAMA_SHOW),
]


def examples(route: Route) -> Iterator[tuple[str, dict[str, Any]]]:
    """The examples of a route's requests, each with its schema's name."""
    content = route["openapi_extra"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        yield content["schema"]["$ref"].rpartition("/")[2], example["value"]


EXAMPLES: Final = [found for route in ROUTES for found in examples(route)]


def allowed(name: str, body: Any) -> bool:
    """Whether the description allows it."""
    return VALIDATORS[name].is_valid(body)


def taken(name: str, body: Any) -> bool:
    """Whether the parser takes it. Anything but a caller's error is a bug."""
    try:
        PARSERS[name](orjson.dumps(body))
    except ModelNotFound:
        return True  # which names there are is no matter of a request's form
    except CallerError:
        return False
    return True


# --- what else requests look like: parts, items and blocks of every kind, and fields that go together -----------------

_CALL: Final = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_PNG: Final = "iVBORw0KGgoAAAANSUhEUg=="
_PICTURE: Final = {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}
_CHAT: Final[dict[str, Any]] = {"model": "a-model", "messages": [{"role": "user", "content": "hi"}]}
_SOURCE: Final = {"type": "base64", "media_type": "image/png", "data": _PNG}
_BLOCKS: Final = [
    {"type": "text", "text": "a"},
    {"type": "image", "source": _SOURCE},
    {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}},
    {"type": "document", "source": {"type": "text", "data": "a"}},
    {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}]}},
    {"type": "document", "source": {"type": "content", "content": [{"type": "image", "source": _SOURCE}]}},
]
_MESSAGES: Final[dict[str, Any]] = {"model": "a-model", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
_USES: Final = [{"type": "thinking", "thinking": "a"}, {"type": "tool_use", "id": "c", "name": "f", "input": {}}]
_RESULTS: Final = [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "a"}]}]
_ITEMS: Final = [
    {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
    {"role": "user", "content": [{"type": "input_image", "image_url": f"data:image/png;base64,{_PNG}"}]},
    {"role": "user", "content": [{"type": "input_file", "file_data": "a"}, {"type": "input_audio", "input_audio": {}}]},
    {"type": "reasoning", "summary": []},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "a"},
]
_NAMED: Final = {"type": "json_schema", "name": "s", "schema": {"type": "object"}}
CORPUS: Final[list[tuple[str, dict[str, Any]]]] = [
    *EXAMPLES,
    ("ChatBody", {**_CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, _PICTURE]}]}),
    ("ChatBody", {**_CHAT, "messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}),
    ("ChatBody", {**_CHAT, "messages": [{"role": "assistant", "tool_calls": [_CALL]}]}),
    ("ChatBody", {**_CHAT, "messages": [{"role": "tool", "tool_call_id": "c", "content": "a"}]}),
    ("ChatBody", {**_CHAT, "tools": [_TOOL], "tool_choice": "required"}),
    ("ChatBody", {**_CHAT, "logprobs": True, "top_logprobs": 2, "stop": ["a"], "logit_bias": {"1": 1}}),
    ("ChatBody", {**_CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}}),
    ("CompletionsBody", {"model": "a-model", "prompt": ["a", "b"], "n": 2, "best_of": 2, "logprobs": 1}),
    ("CompletionsBody", {"model": "a-model", "prompt": "a", "echo": True, "stream": True, "stream_options": {}}),
    ("EmbeddingsBody", {"model": "a-model", "input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 8}),
    ("ResponsesBody", {"model": "a-model", "input": _ITEMS, "store": True, "background": True}),
    ("ResponsesBody", {"model": "a-model", "input": "a", "text": {"format": _NAMED}, "metadata": {"a": "b"}}),
    (
        "ResponsesBody",
        {
            "model": "a-model",
            "input": "a",
            "tools": [{"type": "function", "name": "f"}],
            "tool_choice": {"type": "function", "name": "f"},
        },
    ),
    ("MessagesBody", {**_MESSAGES, "messages": [{"role": "user", "content": _BLOCKS}]}),
    (
        "MessagesBody",
        {**_MESSAGES, "messages": [{"role": "assistant", "content": _USES}, {"role": "user", "content": _RESULTS}]},
    ),
    (
        "MessagesBody",
        {
            **_MESSAGES,
            "system": [{"type": "text", "text": "a"}],
            "tools": [{"name": "f", "input_schema": {}}],
            "tool_choice": {"type": "any"},
            "thinking": {"type": "enabled", "budget_tokens": 1_024},
        },
    ),
    ("OllamaChatBody", {"model": "a-model", "messages": [{"role": "user", "content": "a", "images": [_PNG]}]}),
    ("OllamaChatBody", {"model": "a-model", "messages": [], "format": "json", "options": {"temperature": 1}}),
    ("OllamaGenerateBody", {"model": "a-model", "options": {"num_predict": -1, "stop": "a"}, "raw": False}),
    ("OllamaShowBody", {"name": "a-model"}),
    ("JobBody", {"endpoint": "/v1/chat/completions", "body": _CHAT, "delay_ms": 5, "on_interrupt": "restart"}),
    ("PromptBody", {"prompt": "a", "system": "b", "stream": True, "max_tokens": 5, "temperature": 0.5}),
]


def test_every_rule_belongs_to_a_schema_that_there_is() -> None:
    assert RULES.keys() <= SCHEMAS.keys()


@pytest.mark.parametrize(("name", "body"), CORPUS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_sound_is_so_by_its_schema_and_is_taken(name: str, body: dict[str, Any]) -> None:
    VALIDATORS[name].validate(body)
    assert taken(name, copy.deepcopy(body))


# --- and when they are changed ----------------------------------------------------------------------------------------

SCALARS: Final = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.0,
    2.5,
    9,
    2**40,
    "",
    "a",
    "b" * 70,
    "auto",
    "user",
    "assistant",
    "json",
]
VALUES: Final = st.sampled_from(
    [*SCALARS, [], ["a"], [""], [1], [None], {}, {"type": "text"}, {"type": "function"}, {"a": None}, [[]], [{}]]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a body."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    for step, one in inner:
        yield (*path, step)
        yield from places(one, (*path, step))


def vocabulary() -> dict[str, list[Any]]:
    """By a field's name, what stands in such fields anywhere."""
    found: dict[str, list[Any]] = {}
    for _, body in CORPUS:
        for path in places(body):
            if isinstance(path[-1], str):
                value = at(body, path)
                found.setdefault(path[-1], [None]).append(value)
    return found


def at(body: Any, path: tuple[Any, ...]) -> Any:
    """What stands there."""
    for step in path:
        body = body[step]
    return body


VOCABULARY: Final = vocabulary()
Act = Literal["take out", "put another's", "put anything"]
ACTS: Final[tuple[Act, ...]] = ("take out", "put another's", "put another's", "put anything")


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A sound body in which one or two values are taken out, or put in for others."""
    name, sound = draw(st.sampled_from(CORPUS))
    body = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 2))):
        inside, act = [*places(body)], draw(st.sampled_from(ACTS))
        if act == "take out":
            if inside:
                path = draw(st.sampled_from(inside))
                del at(body, path[:-1])[path[-1]]
            continue
        path = draw(st.sampled_from([*inside, *((field,) for field in SCHEMAS[name]["properties"])]))
        others = st.sampled_from(VOCABULARY.get(path[-1], SCALARS))
        at(body, path[:-1])[path[-1]] = copy.deepcopy(draw(others if act == "put another's" else VALUES))
    return name, body


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a list, if it is one."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]


def says_something(messages: Any) -> bool:
    """Whether something is left of a conversation in Anthropic's words, and of each of its turns."""
    turns = [objects(one.get("content")) for one in objects(messages)]
    empty = any(turn and all(part.get("text") == "" for part in turn) for turn in turns)
    return not empty and any(one.get("role") in ("user", "system") for one in objects(messages))


def calls_apart(items: list[dict[str, Any]]) -> bool:
    """Whether a call's output has no call before it, or a call no output; or something is only named."""
    made: set[Any] = set()
    for one in items:
        call_id = str(one.get("call_id"))
        if one.get("type") == "function_call":
            made.add(call_id)
        elif one.get("type") == "function_call_output" and call_id not in made:
            return True
    outputs = {str(one.get("call_id")) for one in items if one.get("type") == "function_call_output"}
    return bool(made - outputs) or any(one.get("type") is None and "id" in one for one in items)


def sayable(name: str, body: dict[str, Any]) -> bool:
    """Whether JSON Schema can decide it at all: not that one field is another's value, or that something is left."""
    choice = body.get("tool_choice")
    if name == "CompletionsBody":
        return body.get("best_of") in (None, body.get("n") or 1)
    if name == "JobBody":
        return not (body.get("delay_ms") and body.get("deadline_ms"))
    if name == "ResponsesBody" and (items := objects(body.get("input"))):
        return any(one.get("type") != "reasoning" for one in items) and not calls_apart(items)
    if name in ("MessagesBody", "CountTokensBody") and not says_something(body.get("messages")):
        return False
    return not (isinstance(choice, dict) and choice.get("type") == "tool")  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.lengthy
@pytest.mark.timeout(60)
@settings(max_examples=2_000, derandomize=True, database=None, deadline=None)
@given(changed())
def test_whatever_the_description_allows_is_taken_and_nothing_else(made: tuple[str, dict[str, Any]]) -> None:
    name, body = made
    assume(sayable(name, body))
    assert taken(name, copy.deepcopy(body)) == allowed(name, body)
