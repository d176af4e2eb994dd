"""Calls of tools as every dialect reads them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from common.contracts import Job, JsonObject, Position
from gateway.dialects.arguments import arguments_of, call_of
from gateway.dialects.responses_output import conversation
from gateway.dialects.surfaces import SURFACES

CUSTOM: JsonObject = {"id": "call_1", "type": "custom", "custom": {"name": "c", "input": "SELECT 1"}}
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"function": {"name": "f", "arguments": "{}"}}, ("f", "{}")),
        ({"function": {"arguments": None}}, ("", "")),
        (CUSTOM, ("c", "SELECT 1")),
        ({"index": 0, "custom": {"input": "x"}}, ("", "x")),
        ({"id": "a"}, ("", "")),
    ],
)
def test_a_calls_name_and_text_are_found_whatever_its_type(call: JsonObject, said: tuple[str, str]) -> None:
    assert call_of(call) == said


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('{"a": 1}', b'{"a": 1}'),
        ('{"a": 12345678901234567890123}', b'{"a": 12345678901234567890123}'),
        ('{\n  "a": 1.50,\r\n\t"b": "\\n"\r}\n', b'{   "a": 1.50,  \t"b": "\\n" } '),
        ('{"a": 1, "b', b'{"a":1}'),
        ('{"a": "be', b'{"a":"be"}'),
        *((text, b"{}") for text in ("", "x", "[1]", "null", '"a', "[1")),
    ],
)
def test_arguments_are_an_object_of_what_can_be_read(text: str, read: bytes) -> None:
    assert orjson.dumps(arguments_of(text)) == read


def job(dialect: str) -> Job:
    body: Any = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    return Job("job_p_" + "0" * 32, "p", "t", "/v1/chat/completions", "m", body, dialect=dialect)


@pytest.mark.parametrize("dialect", sorted(name for name in SURFACES if "embed" not in name))
def test_a_custom_tool_that_was_called_unasked_breaks_no_answer(dialect: str) -> None:
    surface, given = SURFACES[dialect], job(dialect)
    message = {"role": "assistant", "content": None, "tool_calls": [CUSTOM]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    result = orjson.dumps({"choices": [choice], "usage": USAGE})
    assert orjson.loads(surface.whole(given, 1, result))
    delta = {"tool_calls": [{"index": 0, **CUSTOM}]}
    event = orjson.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls"}]})
    told = surface.shape(given, 1).events(Position(1, 1), [event])
    # Both have nothing but texts.
    assert dialect in ("completions", "ollama-generate") or b"call_1" in told


def test_a_response_goes_on_from_one_that_called_a_custom_tool_unasked() -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": [CUSTOM]}}
    said = conversation(job("responses"), orjson.dumps({"choices": [choice], "usage": USAGE})).messages[-1]
    function = {"name": "c", "arguments": "SELECT 1"}
    assert said["tool_calls"] == [{"id": "call_1", "type": "function", "function": function}]
