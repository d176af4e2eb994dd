"""What stands beside OpenAI's fields of messages and tools, at the servers that know it and at those that don't."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from common.contracts import JsonObject
from tests.providers.fields import wire_of

MARK: JsonObject = {"cache_control": {"type": "ephemeral"}}
USER: JsonObject = {"role": "user", "content": "Hi"}
CALL: JsonObject = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED: JsonObject = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: JsonObject = {"role": "tool", "tool_call_id": "c1", "content": "no such file"}
FAILED: JsonObject = {**RESULT, "is_error": True}
THOUGHTS: JsonObject = {"reasoning_content": "hm", "reasoning_signature": "s"}
TOOL: JsonObject = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OPENAIS = ("openai", "vllm", "llamacpp")


def _messages(kind: str, *messages: JsonObject, **options: Any) -> list[JsonObject]:
    return wire_of(kind, {"messages": list(messages)}, **options)["messages"]


@pytest.mark.parametrize("kind", [*OPENAIS, "ollama", "gemini", "cohere"])
def test_marks_for_a_cache_are_told_to_nobody_but_anthropic(kind: str) -> None:
    marked = {"role": "user", "content": [{"type": "text", "text": "a", **MARK}, {"type": "text", "text": "b"}]}
    call = {**CALLED, "tool_calls": [{**CALL, **MARK}]}
    tool = {**TOOL, "function": {**TOOL["function"], **MARK}, **MARK}
    body = {**MARK, "messages": [marked, call, {**RESULT, **MARK}], "tools": [tool]}
    assert "cache_control" not in orjson.dumps(wire_of(kind, body)).decode()
    assert orjson.dumps(wire_of("anthropic", body)).count(b"cache_control") == 5


@pytest.mark.parametrize("kind", [*OPENAIS, "ollama", "gemini", "cohere"])
def test_examples_for_a_tool_are_told_to_nobody_but_anthropic(kind: str) -> None:
    tool = {**TOOL, "function": {**TOOL["function"], "input_examples": [{"a": 1}]}}
    body: JsonObject = {"messages": [USER], "tools": [tool]}
    assert b"input_examples" not in orjson.dumps(wire_of(kind, body))
    assert wire_of("anthropic", body)["tools"][0]["input_examples"] == [{"a": 1}]


@pytest.mark.parametrize("kind", OPENAIS)
def test_one_text_without_its_mark_is_a_plain_text(kind: str) -> None:
    assert _messages(kind, {"role": "user", "content": [{"type": "text", "text": "a", **MARK}]}) == [
        {"role": "user", "content": "a"}
    ]
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    assert _messages(kind, parts) == [parts]


@pytest.mark.parametrize("kind", OPENAIS)
def test_what_bears_no_mark_stays_as_it_is(kind: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, picture]}, CALLED, RESULT]
    assert _messages(kind, *messages) == messages


@pytest.mark.parametrize("content", ["no such file", [{"type": "text", "text": "no such file"}]])
@pytest.mark.parametrize("kind", [*OPENAIS, "ollama", "cohere"])
def test_a_tools_error_is_said_in_words_where_there_is_no_other_way(kind: str, content: Any) -> None:
    said = orjson.dumps(_messages(kind, USER, CALLED, {**FAILED, "content": content})[-1]).decode()
    assert '"Error: no such file"' in said and "is_error" not in said
    fine = orjson.dumps(_messages(kind, USER, CALLED, {**RESULT, "content": content})[-1]).decode()
    assert '"no such file"' in fine


@pytest.mark.parametrize(("text", "said"), [("", "Error"), ("error 5", "error 5"), ("ERROR", "ERROR")])
def test_an_error_that_says_so_itself_is_not_said_to_be_one_twice(text: str, said: str) -> None:
    assert _messages("openai", USER, CALLED, {**FAILED, "content": text})[-1]["content"] == said


def test_gemini_has_a_word_of_its_own_for_a_tools_error() -> None:
    part = wire_of("gemini", {"messages": [USER, CALLED, FAILED]})["contents"][-1]["parts"][0]
    assert part["functionResponse"]["response"] == {"error": "no such file"}


def test_a_strict_server_gets_no_thoughts_unless_its_options_say_so() -> None:
    call = {**CALL, "index": 0, "extra_content": {"google": {"thought_signature": "g"}}}
    said = {"role": "assistant", "content": "a", **THOUGHTS}
    assert _messages("openai", {**said, "tool_calls": [call]}) == [{**CALLED, "content": "a"}]
    passed = _messages("openai", said, options={"pass": ["reasoning_content", "top_k"]})
    assert passed == [{"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    kept = _messages("openai", {**CALLED, "tool_calls": [call]}, options={"pass": ["extra_content"]})
    assert kept[0]["tool_calls"] == [{**CALL, "extra_content": call["extra_content"]}]


def test_a_message_of_thoughts_alone_is_an_empty_one_to_a_strict_server() -> None:
    assert _messages("openai", USER, {"role": "assistant", **THOUGHTS})[1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_self_hosted_servers_get_thoughts_without_their_signature(kind: str) -> None:
    assert _messages(kind, {"role": "assistant", "content": "a", **THOUGHTS, "odd": 1}) == [
        {"role": "assistant", "content": "a", "reasoning_content": "hm", "odd": 1}
    ]


@pytest.mark.parametrize("kind", [*OPENAIS, "ollama", "gemini", "cohere"])
def test_an_effort_in_anthropics_words_is_told_to_nobody_else(kind: str) -> None:
    asked = {"messages": [USER], "output_config": {"effort": "max"}}
    assert "output_config" not in wire_of(kind, asked)
    assert wire_of("anthropic", asked)["output_config"] == {"effort": "max"}


def test_ollama_gets_thoughts_by_its_own_name() -> None:
    said = _messages("ollama", USER, {"role": "assistant", "content": "a", **THOUGHTS})[1]
    assert said == {"role": "assistant", "content": "a", "thinking": "hm"}


def test_where_marks_pass_they_pass_everywhere() -> None:
    options = {"pass": ["cache_control"]}
    text = {"role": "user", "content": [{"type": "text", "text": "a", **MARK}]}
    wire = wire_of("openai", {"messages": [text], "tools": [{**TOOL, **MARK}]}, options=options)
    assert (wire["messages"], wire["tools"]) == ([text], [{**TOOL, **MARK}])


@pytest.mark.parametrize("kind", [*OPENAIS, "ollama", "anthropic", "gemini", "cohere"])
def test_the_public_request_stays_as_it_was(kind: str) -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", **MARK}]}, CALLED, FAILED]}
    before = orjson.dumps(body)
    wire_of(kind, body)
    assert orjson.dumps(body) == before
