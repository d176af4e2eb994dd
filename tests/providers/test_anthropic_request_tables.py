"""Our request in Anthropic's shapes, as a pure function."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest

from common.contracts import JsonObject
from common.errors import UpstreamRefused, UpstreamUnsupported
from gateway.dialects.anthropic_request import parse_message
from tests.providers.stages import backend
from workers.providers import anthropic_request
from workers.providers.base import Call

USER: JsonObject = {"role": "user", "content": "Hi"}
SAID: JsonObject = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
FUNCTION: JsonObject = {"name": "f", "description": "d", "parameters": {"type": "object", "required": ["a"]}}
TOOLS: list[JsonObject] = [{"type": "function", "function": FUNCTION}]
THEIR_TOOL: JsonObject = {"name": "f", "description": "d", "input_schema": FUNCTION["parameters"]}


def _wire(body: JsonObject, *, stream: bool = True, **options: Any) -> JsonObject:
    where = backend("anthropic", "http://127.0.0.1:1", options=options)
    return anthropic_request.to_wire(Call(where, "/v1/chat/completions", "claude", body, stream=stream, timeout_s=1))


def _turns(*messages: JsonObject) -> list[JsonObject]:
    return _wire({"messages": list(messages)})["messages"]


# --- to_wire ---------------------------------------------------------------------------------------------------------


def test_a_bare_request_gets_the_limit_that_the_api_insists_on() -> None:
    bare = {"model": "claude", "messages": [SAID], "stream": False, "max_tokens": 4_096}
    assert _wire({"messages": [USER]}, stream=False) == bare
    assert _wire({"messages": [USER]}, max_tokens=9)["max_tokens"] == 9


@pytest.mark.parametrize(
    ("body", "wire"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"stop": ["x", "\n", ""]}, {"stop_sequences": ["x"]}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"temperature": 1.7}, {"temperature": 1}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 3}, {"temperature": 0, "top_k": 3}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
        ({"n": 1, "seed": 3, "store": True, "service_tier": "flex", "stop": None, "api_base": "http://x"}, {}),
        ({"tools": TOOLS}, {"tools": [THEIR_TOOL]}),
        ({"tools": TOOLS, "tool_choice": "auto"}, {"tools": [THEIR_TOOL], "tool_choice": {"type": "auto"}}),
        ({"tools": TOOLS, "tool_choice": "none"}, {"tools": [THEIR_TOOL], "tool_choice": {"type": "none"}}),
        ({"tools": TOOLS, "tool_choice": "required"}, {"tools": [THEIR_TOOL], "tool_choice": {"type": "any"}}),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tools": [THEIR_TOOL], "tool_choice": {"type": "tool", "name": "f"}},
        ),
        (
            {"tools": TOOLS, "parallel_tool_calls": False},
            {"tools": [THEIR_TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "g", "strict": True}}]},
            {"tools": [{"name": "g", "input_schema": {"type": "object", "properties": {}}, "strict": True}]},
        ),
        (
            {"tools": [{"type": "function", "function": {**FUNCTION, "input_examples": [{"a": 1}]}}]},
            {"tools": [{**THEIR_TOOL, "input_examples": [{"a": 1}]}]},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
        (
            {"response_format": {"type": "json_object"}},
            {"system": [{"type": "text", "text": "Answer with one JSON object and nothing else."}]},
        ),
        (
            {"reasoning_effort": "minimal", "temperature": 0.2},
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "low"}},
        ),
        ({"reasoning_effort": "none"}, {}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2_000}, "max_tokens": 3_000, "reasoning_effort": "low"},
            {"thinking": {"type": "enabled", "budget_tokens": 2_000}, "max_tokens": 3_000},
        ),
        (  # on top of a limit that is ours
            {"thinking": {"type": "enabled", "budget_tokens": 2_000}},
            {"thinking": {"type": "enabled", "budget_tokens": 2_000}, "max_tokens": 6_096},
        ),
        (
            {"thinking": {"type": "adaptive"}, "reasoning_effort": "high"},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        ),
        (
            {"thinking": {"type": "disabled"}, "temperature": 0.2},
            {"thinking": {"type": "disabled"}, "temperature": 0.2},
        ),
        # An effort in Anthropic's own words turns no thinking on, and goes on as it is, beside a budget too.
        (
            {"output_config": {"effort": "max"}, "reasoning_effort": "xhigh", "temperature": 0.2},
            {"output_config": {"effort": "max"}, "temperature": 0.2},
        ),
        (
            {"output_config": {"effort": "low"}, "reasoning_effort": "low", "thinking": {"type": "adaptive"}},
            {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}},
        ),
        (
            {
                "output_config": {"effort": "low"},
                "thinking": {"type": "enabled", "budget_tokens": 2_000},
                "max_tokens": 9,
            },
            {
                "output_config": {"effort": "low"},
                "thinking": {"type": "enabled", "budget_tokens": 2_000},
                "max_tokens": 9,
            },
        ),
        ({"output_config": "high"}, {}),
        ({"cache_control": {"type": "ephemeral"}}, {"cache_control": {"type": "ephemeral"}}),
    ],
)
def test_each_field_has_its_own_place(body: JsonObject, wire: JsonObject) -> None:
    bare = {"model": "claude", "messages": [SAID], "stream": True, "max_tokens": 4_096}
    assert _wire({"messages": [USER], **body}) == {**bare, **wire}


def test_allowed_tools_are_the_only_ones_sent() -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[0]]}}
    other = {"type": "function", "function": {"name": "other"}}
    wire = _wire({"messages": [USER], "tools": [*TOOLS, other], "tool_choice": choice})
    assert (wire["tools"], wire["tool_choice"]) == ([THEIR_TOOL], {"type": "any"})


@pytest.mark.parametrize(
    ("body", "thinking", "max_tokens"),
    [
        ({"reasoning_effort": "low"}, {"type": "enabled", "budget_tokens": 2_048}, 4_096 + 2_048),
        ({"reasoning_effort": "high", "max_tokens": 3_000}, {"type": "enabled", "budget_tokens": 2_999}, 3_000),
        ({"reasoning_effort": "high", "max_tokens": 500}, None, 500),
        ({"reasoning_effort": "none"}, None, 4_096),
    ],
)
def test_older_models_get_a_budget_inside_the_callers_limit(
    body: JsonObject, thinking: JsonObject | None, max_tokens: int
) -> None:
    wire = _wire({"messages": [USER], **body}, thinking="budget")
    assert (wire.get("thinking"), wire["max_tokens"]) == (thinking, max_tokens)


@pytest.mark.parametrize("mode", ["budget", "off"])
def test_models_that_know_no_effort_get_none(mode: str) -> None:
    asked = {"messages": [USER], "output_config": {"effort": "high"}, "reasoning_effort": "high"}
    assert not {"thinking", "output_config"} & _wire(asked, thinking=mode).keys()


def test_an_anthropic_clients_thinking_goes_on_but_for_a_budget_that_would_be_refused() -> None:
    budget: JsonObject = {"type": "enabled", "budget_tokens": 2_000}
    for more in ({"tools": TOOLS, "tool_choice": "required"}, {"messages": [USER, *_called({}), RESULT]}):
        asked: JsonObject = {"messages": [USER], **more}
        assert "thinking" not in _wire({**asked, "thinking": budget})
        assert _wire({**asked, "thinking": {"type": "adaptive"}})["thinking"] == {"type": "adaptive"}


def test_no_thinking_where_the_api_would_refuse_it() -> None:
    forced = {"messages": [USER], "tools": TOOLS, "tool_choice": "required", "reasoning_effort": "high"}
    assert "thinking" not in _wire(forced)
    assert "thinking" not in _wire({"messages": [USER], "reasoning_effort": "high"}, thinking="off")
    unsigned = {"messages": [USER, *_called({}), RESULT], "reasoning_effort": "high"}
    assert "thinking" not in _wire(unsigned)
    signed = {"messages": [USER, *_called({"reasoning_content": "hm", "reasoning_signature": "s"}), RESULT]}
    wire = _wire({**signed, "reasoning_effort": "high"})
    assert wire["thinking"]["type"] == "adaptive"
    assert wire["messages"][1]["content"][0] == {"type": "thinking", "thinking": "hm", "signature": "s"}


def _called(more: JsonObject) -> list[JsonObject]:
    call = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    return [{"role": "assistant", "content": None, "tool_calls": [call], **more}]


RESULT: JsonObject = {"role": "tool", "tool_call_id": "toolu_1", "content": "2"}


def test_the_system_text_is_at_the_top_wherever_it_stood() -> None:
    marked = {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}
    wire = _wire({"messages": [{"role": "system", "content": "a"}, USER, {"role": "developer", "content": [marked]}]})
    assert wire["system"] == [{"type": "text", "text": "a"}, marked]
    assert wire["messages"] == [SAID]


def test_tool_results_are_the_users_and_neighbours_of_one_role_are_one_turn() -> None:
    turns = _turns(
        USER, *_called({}), RESULT, {**RESULT, "tool_call_id": "toolu_2"}, {"role": "user", "content": "so?"}
    )
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "2"}]}
    assert turns == [
        SAID,
        {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [result, {**result, "tool_use_id": "toolu_2"}, {"type": "text", "text": "so?"}]},
    ]


def test_a_tools_error_and_marks_for_a_cache_are_told_where_they_stood() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    called = _called({})
    called[0]["tool_calls"][0] |= mark
    turns = _turns(USER, *called, {**RESULT, "is_error": True, **mark})
    assert turns[1]["content"] == [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}, **mark}]
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "2"}]}
    assert turns[2]["content"] == [{**result, "is_error": True, **mark}]
    assert _wire({"messages": [USER], "tools": [{**TOOLS[0], **mark}]})["tools"] == [{**THEIR_TOOL, **mark}]


def test_thoughts_that_were_not_told_go_back_by_their_signature() -> None:
    turns = _turns(USER, *_called({"reasoning_content": "", "reasoning_signature": "s"}), RESULT)
    assert turns[1]["content"][0] == {"type": "thinking", "thinking": "", "signature": "s"}


@pytest.mark.parametrize("nothing", ["", " \n"])
def test_messages_that_say_nothing_are_left_out(nothing: str) -> None:
    assert _turns(USER, {"role": "assistant", "content": nothing}, USER) == [
        {"role": "user", "content": SAID["content"] * 2}
    ]


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
        ),
        (
            {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
            {"type": "image", "source": {"type": "url", "url": "https://x.example/a.png"}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD", "filename": "a.pdf"}},
            {
                **{"type": "document", "title": "a.pdf"},
                "source": {"type": "base64", "media_type": "application/pdf", "data": "QUJD"},
            },
        ),
        ({"type": "refusal", "refusal": "no"}, {"type": "text", "text": "no"}),
    ],
)
def test_parts_become_blocks(part: JsonObject, block: JsonObject) -> None:
    assert _turns({"role": "user", "content": [part]}) == [{"role": "user", "content": [block]}]


def test_a_document_without_a_title_gets_none() -> None:
    document: JsonObject = {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "QUJD"},
    }
    for titled in ({"title": "T"}, {}):
        asked = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [{**document, **titled}]}]}
        wire = _wire(parse_message(orjson.dumps(asked)).body)
        assert wire["messages"] == [{"role": "user", "content": [{**document, **titled}]}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}]},
            "messages[0].content.image_url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QQ=="}}]}]},
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(body: JsonObject, param: str) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        _wire({"messages": [USER], **body})
    assert caught.value.failure.param == param


def test_the_public_request_stays_as_it_was() -> None:
    body = {"messages": [USER, *_called({}), RESULT, USER], "tools": TOOLS, "reasoning_effort": "low"}
    before = orjson.dumps(body)
    _wire(body)
    assert orjson.dumps(body) == before


def test_a_backend_can_drop_fields_that_its_models_do_not_take() -> None:
    assert "temperature" not in _wire({"messages": [USER], "temperature": 0.5}, drop=["temperature"])


@pytest.mark.parametrize("given", ["functions.get:0", "", "call é", "a" * 9])
def test_ids_of_calls_are_ones_that_it_takes_and_match_their_results(given: str) -> None:
    call = {"id": given, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = _turns({"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": given, "content": "2"})
    called, result = (turn["content"][0] for turn in turns)
    assert re.fullmatch(r"[a-zA-Z0-9_-]+", called["id"]) and result["tool_use_id"] == called["id"]
    assert (called["id"] == given) == (given == "a" * 9)


def test_a_conversation_that_only_the_system_spoke_in_is_the_users() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Who are you?"}]
    wire = _wire({"messages": messages, "response_format": {"type": "json_object"}})
    texts = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Who are you?"}]
    assert wire["messages"] == [{"role": "user", "content": texts}]
    assert wire["system"] == [{"type": "text", "text": "Answer with one JSON object and nothing else."}]


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_conversation_that_says_nothing_is_refused_before_a_call(role: str) -> None:
    with pytest.raises(UpstreamUnsupported, match="say something") as caught:
        _turns({"role": role, "content": " "})
    assert caught.value.failure.param == "messages"
