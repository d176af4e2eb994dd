"""Anthropic's request for a message: what the chat completion of it holds, and what is refused and how."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.contracts import Failure, JsonObject
from common.errors import BadRequest
from gateway.dialects.anthropic_request import parse_count, parse_message
from gateway.dialects.openai import parse_chat
from gateway.errors import anthropic_error

HELLO: JsonObject = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
TOOL: JsonObject = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {"url": {}}}}
PIXEL: JsonObject = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
PIXEL_PART: JsonObject = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


def body(**more: Any) -> JsonObject:
    return parse_message(orjson.dumps({**HELLO, **more})).body


def said(*messages: tuple[str, Any]) -> list[JsonObject]:
    """The completion's messages for these (role, content)."""
    return body(messages=[{"role": role, "content": content} for role, content in messages])["messages"]


def refused(**more: Any) -> Failure:
    with pytest.raises(BadRequest) as caught:
        parse_message(orjson.dumps({**HELLO, **more}))
    return caught.value.failure


def text(words: str, **more: Any) -> JsonObject:
    return {"type": "text", "text": words, **more}


def result(**more: Any) -> JsonObject:
    return {"type": "tool_result", "tool_use_id": "t1", **more}


def holding(content: Any) -> JsonObject:
    """A document made of other blocks."""
    return {"type": "document", "source": {"type": "content", "content": content}}


def use(number: int = 1, **given: Any) -> JsonObject:
    return {"type": "tool_use", "id": f"t{number}", "name": "f", "input": given}


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_plain_request_is_the_completion_of_the_same_words() -> None:
    request = parse_message(orjson.dumps(HELLO))
    assert request.body == HELLO
    assert (request.model, request.stream, request.answer_limit) == ("m", False, 100)
    assert (request.dialect, request.asked) == ("anthropic", {})


def test_options_have_their_names_in_the_completion() -> None:
    found = body(
        stream=True,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop_sequences=["END"],
        metadata={"user_id": "u-1"},
        system="Be brief.",
    )
    assert found == {
        **{"model": "m", "max_tokens": 100, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "stop": ["END"]},
        "user": "u-1",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
    }


def test_what_only_its_own_service_could_do_with_is_dropped_and_the_rest_passed_on() -> None:
    thrift = {"service_tier": "auto", "inference_geo": None, "speed": "fast"}
    found = body(**thrift, container=None, mcp_servers=[], context_management={}, min_p=0.1)
    assert found == {**HELLO, "min_p": 0.1}


def test_marks_for_a_cache_stay_where_they_stood() -> None:
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    document = {"type": "document", "source": {"type": "text", "data": "words"}}
    found = body(
        **mark,
        system=[text("a", **mark)],
        messages=[
            {"role": "user", "content": [text("b", **mark), {**PIXEL, **mark}, {**document, **mark}]},
            {"role": "assistant", "content": [{**use(), **mark}]},
            {"role": "user", "content": [result(content="2", **mark)]},
        ],
        tools=[{**TOOL, **mark}],
    )
    assert found["cache_control"] == mark["cache_control"]
    system, user, called, answer = found["messages"]
    assert system["content"] == [text("a", **mark)]
    assert user["content"] == [text("b", **mark), {**PIXEL_PART, **mark}, text("words", **mark)]
    assert called["tool_calls"][0]["cache_control"] == mark["cache_control"]
    assert answer == {"role": "tool", "tool_call_id": "t1", "content": "2", **mark}
    assert found["tools"][0]["cache_control"] == mark["cache_control"]


def test_a_mark_has_a_type_and_nothing_that_nobody_knows() -> None:
    system = [text("a", cache_control={"type": "ephemeral", "ttl": None, "scope": {"x": 1}})]
    assert body(system=system)["messages"][0]["content"] == [text("a", cache_control={"type": "ephemeral"})]
    assert body(system=[text("a", cache_control=None)])["messages"][0]["content"] == "a"
    assert refused(system=[text("a", cache_control="ephemeral")]).param == "system[0].cache_control"


def test_what_the_answer_depends_on_goes_with_the_job() -> None:
    def asked(**more: Any) -> JsonObject:
        return parse_message(orjson.dumps({**HELLO, **more})).asked

    assert asked(stop_sequences=["a", "b"]) == {"stop_sequences": ["a", "b"]}
    assert asked(output_config={"effort": "high"}) == asked() == {}
    assert asked(thinking={"type": "disabled", "display": "summarized"}) == {"thinking": "disabled"}
    assert asked(thinking={"type": "adaptive", "display": "omitted"}) == {"thinking": "omitted"}
    assert asked(thinking={"type": "enabled", "budget_tokens": 2048}) == {"thinking": "summarized"}


@pytest.mark.parametrize(
    ("more", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8000}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 32000}}, "high"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "high"}}, "high"),
        ({"output_config": {"effort": "max"}}, "xhigh"),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "disabled"}}, None),
    ],
)
def test_thinking_asked_for_is_an_effort(more: JsonObject, effort: str | None) -> None:
    found = body(**more)
    assert found.get("reasoning_effort") == effort
    assert found.get("thinking") == more.get("thinking")
    # In its own words for who knows them; a budget's is ours.
    assert found.get("output_config") == more.get("output_config")


def test_a_schema_for_the_answer_is_a_response_format() -> None:
    schema = {"type": "object", "properties": {"headers": {"type": "string"}}}
    found = body(output_config={"format": {"type": "json_schema", "schema": schema}})
    named = {"name": "answer", "strict": True, "schema": schema}
    assert found["response_format"] == {"type": "json_schema", "json_schema": named}


def test_a_betas_word_for_the_answers_schema_counts_where_the_other_is_absent() -> None:
    schema = {"type": "object", "properties": {"headers": {"type": "string"}}}
    beta = {"type": "json_schema", "schema": schema}
    for config in ({}, {"output_config": {"effort": "low"}}):
        found = body(output_format=beta, **config)
        assert found["response_format"]["json_schema"]["schema"] == schema
        assert "output_format" not in found
    both = body(output_format=beta, output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}})
    assert both["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "response_format" not in body(output_format=None)


def test_a_search_result_says_where_and_what_was_found() -> None:
    result = {"type": "search_result", "source": "https://a.test/b", "title": "B", "content": [text("in"), text("out")]}
    told = [text("B (https://a.test/b)"), text("in"), text("out")]
    assert said(("user", [result, text("and?")])) == [{"role": "user", "content": [*told, text("and?")]}]
    marked = {**result, "citations": {"enabled": True}, "cache_control": {"type": "ephemeral"}}
    (message,) = said(("user", [marked]))
    assert message["content"] == [*told[:-1], text("out", cache_control={"type": "ephemeral"})]
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    answer = {"type": "tool_result", "tool_use_id": "a", "content": [result]}
    assert said(("assistant", [call]), ("user", [answer]))[1] == {"role": "tool", "tool_call_id": "a", "content": told}


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "search_result", "source": "s", "title": "t"}, "messages[0].content[0].content"),
        ({"type": "search_result", "source": "s", "title": "t", "content": []}, "messages[0].content[0].content"),
        ({"type": "search_result", "title": "t", "content": [text("a")]}, "messages[0].content[0].source"),
        (
            {"type": "search_result", "source": {"type": "url"}, "title": "t", "content": [text("a")]},
            "messages[0].content[0].source",
        ),
        ({"type": "image", "source": "https://a.test/b.png"}, "messages[0].content[0].source"),
        ({"type": "document", "source": "x"}, "messages[0].content[0].source"),
    ],
)
def test_a_source_of_another_kind_of_block_is_refused(block: Any, param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        said(("user", [block]))
    assert refused.value.failure.param == param


# --- messages ---------------------------------------------------------------------------------------------------------


def test_blocks_are_parts_and_one_text_alone_is_a_text() -> None:
    assert said(("user", [text("a")])) == [{"role": "user", "content": "a"}]
    assert said(("user", [text("a"), text(""), text("b")])) == [{"role": "user", "content": [text("a"), text("b")]}]
    two = [text("a"), text("b")]
    assert body(system=two)["messages"][0] == {"role": "system", "content": two}
    assert body(system=[])["messages"] == HELLO["messages"]


def test_pictures_go_on_as_they_are_given() -> None:
    far = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    (message,) = said(("user", [text("what?"), PIXEL, far]))
    address = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert message["content"] == [text("what?"), PIXEL_PART, address]


def test_documents_are_files_or_texts() -> None:
    pdf = {"type": "document", "title": "t.pdf", "source": {**PIXEL["source"], "media_type": "application/pdf"}}
    plain = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}
    nested = {"type": "document", "source": {"type": "content", "content": [text("in"), PIXEL]}}
    (message,) = said(("user", [pdf, plain, nested]))
    file = {"filename": "t.pdf", "file_data": "data:application/pdf;base64,aGk="}
    assert message["content"] == [{"type": "file", "file": file}, text("words"), text("in"), PIXEL_PART]


def test_what_a_document_is_called_and_said_to_be_goes_before_it() -> None:
    told = {"type": "document", "title": "T", "context": "From 1999.", "citations": {"enabled": True}}
    mark = {"cache_control": {"type": "ephemeral"}}
    plain = {**told, **mark, "source": {"type": "text", "media_type": "text/plain", "data": "words"}}
    pdf = {**told, "source": {**PIXEL["source"], "media_type": "application/pdf"}}
    nested = {**told, "source": {"type": "content", "content": [text("in"), text("out")]}}
    ahead = [text("T"), text("From 1999.")]
    file = {"type": "file", "file": {"filename": "T", "file_data": "data:application/pdf;base64,aGk="}}
    for document, parts in (
        (plain, [*ahead, text("words", **mark)]),
        (pdf, [text("From 1999."), file]),
        (nested, [*ahead, text("in"), text("out")]),
        ({**plain, "title": None, "context": ""}, [text("words", **mark)]),
    ):
        assert said(("user", [document])) == [{"role": "user", "content": parts}]
    (_, answer) = said(("assistant", [use()]), ("user", [result(content=[nested])]))
    assert answer["content"] == [*ahead, text("in"), text("out")]


def test_an_assistants_turn_that_says_nothing_is_left_out() -> None:
    for nothing in ("", [], [text("")]):
        assert said(("user", "a"), ("assistant", nothing)) == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("content", ["", [], [text("")]])
def test_what_is_there_and_empty_is_called_empty(content: Any) -> None:
    failure = refused(messages=[{"role": "user", "content": "a"}, {"role": "user", "content": content}])
    assert failure.message == "messages[1].content: must not be empty."


def test_a_conversation_with_tools_keeps_its_order() -> None:
    found = said(
        ("user", "weather?"),
        ("assistant", [text("Let me see."), use(1, city="東京"), use(2)]),
        (
            "user",
            [result(content="sunny"), {**result(content=[text("a"), text("b")]), "tool_use_id": "t2"}, text("so?")],
        ),
        ("assistant", [text("Sunny.")]),
        ("system", "Be brief."),
        ("user", "thanks"),
    )
    arguments = [call["function"]["arguments"] for call in found[1]["tool_calls"]]
    assert [orjson.loads(one) for one in arguments] == [{"city": "東京"}, {}]
    assert [call["id"] for call in found[1]["tool_calls"]] == ["t1", "t2"]
    assert found[1]["content"] == "Let me see."
    assert found[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "t2", "content": [text("a"), text("b")]},
        {"role": "user", "content": "so?"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "thanks"},
    ]


def test_a_long_conversation_of_an_agent_gets_through_whose_turns_have_several_calls() -> None:
    turn = [("assistant", [use(number) for number in range(4)]), ("user", [result(content="r") for _ in range(4)])]
    assert len(said(("user", "go"), *(1_000 * turn))) == 1 + 1_000 * 5


def test_a_tools_result_may_be_empty_and_its_pictures_follow_it() -> None:
    found = said(("user", "x"), ("assistant", [use()]), ("user", [result(is_error=False)]))
    assert found[2:] == [{"role": "tool", "tool_call_id": "t1", "content": ""}]
    found = said(
        ("user", "x"), ("assistant", [use()]), ("user", [result(content=[text("seen"), PIXEL]), text("well?")])
    )
    assert found[2:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "seen"},
        {"role": "user", "content": [PIXEL_PART, text("well?")]},
    ]


def test_a_tools_error_stays_one() -> None:
    found = said(("user", "x"), ("assistant", [use()]), ("user", [result(content="no", is_error=True)]))
    assert found[2:] == [{"role": "tool", "tool_call_id": "t1", "content": "no", "is_error": True}]


def test_a_signature_of_thoughts_that_were_not_told_goes_back_too() -> None:
    silent = {"type": "thinking", "thinking": "", "signature": "s"}
    (called, _) = said(("assistant", [silent, use()]), ("user", "x"))
    assert (called["reasoning_content"], called["reasoning_signature"]) == ("", "s")
    (called, _) = said(("assistant", [{**silent, "signature": ""}, use()]), ("user", "x"))
    assert "reasoning_content" not in called


def test_thoughts_go_back_with_the_calls_they_led_to_and_elsewhere_to_who_signed_them_alone() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    gone = {"type": "redacted_thinking", "data": "x"}
    called, plain, *rest = said(
        ("assistant", [thought, use()]), ("assistant", [thought, gone, text("a")]), ("assistant", [gone]), ("user", "x")
    )
    assert (called["reasoning_content"], called["reasoning_signature"]) == ("hm", "s")
    assert plain == {"role": "assistant", "content": "a", "reasoning_blocks": [thought, gone]}
    assert rest == [{"role": "user", "content": "x"}]
    unsigned = {"type": "thinking", "thinking": "hm"}
    (two, plain, _) = said(
        ("assistant", [unsigned, unsigned, use()]), ("assistant", [unsigned, text("a")]), ("user", "x")
    )
    assert two["reasoning_content"] == "hmhm" and not {"reasoning_signature", "reasoning_blocks"} & two.keys()
    assert plain == {"role": "assistant", "content": "a"}


def test_of_several_thoughts_each_keeps_its_signature_and_its_place() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    later = {"type": "thinking", "thinking": "oh!", "signature": "t"}
    (called, _) = said(("assistant", [thought, text("ab"), use(1), later, use(2)]), ("user", "x"))
    assert (called["reasoning_content"], called["content"]) == ("hmoh!", "ab")
    assert called["reasoning_blocks"] == [
        {"type": "thinking", "characters": 2, "signature": "s"},
        {"type": "thinking", "characters": 3, "signature": "t", "after": [2, 1]},
    ]


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e15, 1e15) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(words, min_size=1, max_size=4), words, st.dictionaries(words, values, max_size=4))
def test_text_and_input_of_tools_arrive_as_they_were(texts: list[str], system: str, given_input: JsonObject) -> None:
    blocks = [text(one) for one in texts]
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": given_input}
    history = [{"role": "user", "content": blocks}, {"role": "assistant", "content": [*blocks, call]}]
    answered = {"role": "user", "content": [result(content=system)]}
    found = body(system=system, messages=[*history, answered])["messages"]
    content = texts[0] if len(texts) == 1 else blocks
    assert found[0] == {"role": "system", "content": system}
    assert found[1]["content"] == found[2]["content"] == content
    assert orjson.loads(found[2]["tool_calls"][0]["function"]["arguments"]) == given_input
    assert found[3]["content"] == system


# --- tools ------------------------------------------------------------------------------------------------------------


def test_agents_bring_more_tools_and_stops_than_openais_api_takes() -> None:
    tools, stops = [{**TOOL, "name": f"f{number}"} for number in range(1_024)], [f"s{number}" for number in range(64)]
    found = body(tools=tools, stop_sequences=stops)
    assert (len(found["tools"]), found["stop"]) == (1_024, stops)
    assert refused(stop_sequences=[*stops, "s"]).message == "stop_sequences: at most 64 entries."
    assert refused(tools=[*tools, TOOL]).message == "tools: at most 1024 entries, 1025 were given."
    for more, param in (({"stop": stops[:5]}, "stop"), ({"tools": found["tools"][:129]}, "tools")):
        with pytest.raises(BadRequest) as caught:
            parse_chat(orjson.dumps({**HELLO, **more}))
        assert caught.value.failure.param == param


def test_tools_are_functions() -> None:
    found = body(tools=[{**TOOL, "type": "custom", "strict": True, "defer_loading": False}])
    function = {"name": "f", "description": "d", "parameters": TOOL["input_schema"], "strict": True}
    assert found["tools"] == [{"type": "function", "function": function}]


def test_examples_of_what_a_tool_may_be_given_go_along() -> None:
    examples = [{"url": "https://a.test", "headers": {"x": "y"}}, {}]
    (tool,) = body(tools=[{**TOOL, "input_examples": examples}])["tools"]
    assert tool["function"]["input_examples"] == examples
    assert refused(tools=[{**TOOL, "input_examples": ["x"]}]).param == "tools[0].input_examples[0]"


@pytest.mark.parametrize(
    ("choice", "completion"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "f"}, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"tool_choice": "auto", "parallel_tool_calls": False}),
    ],
)
def test_how_tools_may_be_used_is_said_in_the_completions_words(choice: JsonObject, completion: JsonObject) -> None:
    found = body(tools=[TOOL], tool_choice=choice)
    assert {name: found[name] for name in found if name in ("tool_choice", "parallel_tool_calls")} == completion


# --- what is refused --------------------------------------------------------------------------------------------------


def user(*blocks: Any) -> JsonObject:
    return {"messages": [{"role": "user", "content": [*blocks]}]}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences"),
        ({"tools": [TOOL] * 1_025}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        (user(), "messages[0].content"),
        (user(text("")), "messages[0].content"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "image"}), "messages[0].content[0].source"),
        (user({"type": "web_search_tool_result"}), "messages[0].content[0].type"),
        (user({"type": "tool_use", "id": "a", "name": "f", "input": {}}), "messages[0].content[0].type"),
        (
            user({"type": "image", "source": {"type": "url", "url": [None]}}),
            "messages[0].content[0].source.url",
        ),
        (
            user(holding([{"type": "image", "source": {"type": "url", "url": [None]}}])),
            "messages[0].content[0].source.content[0].source.url",
        ),
        *((user(holding(content)), "messages[0].content[0].source.content") for content in (5, [], "", None)),
        (
            user({"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/x"}}),
            "messages[0].content[0].source.url",
        ),
        (user({"type": "image", "source": {"type": "file", "file_id": "f"}}), "messages[0].content[0].source.type"),
        (
            user({"type": "image", "source": {"type": "base64", "data": "x"}}),
            "messages[0].content[0].source.media_type",
        ),
        (
            user({"type": "document", "source": {"type": "url", "url": "https://x/y"}}),
            "messages[0].content[0].source.type",
        ),
        (
            user(
                {
                    "type": "document",
                    "source": {
                        "type": "content",
                        "content": [{"type": "image", "source": {"type": "url", "url": "file:///etc"}}],
                    },
                }
            ),
            "messages[0].content[0].source.content[0].source.url",
        ),
        (user({"type": "tool_result", "content": "x"}), "messages[0].content[0].tool_use_id"),
        (user(result(tool_use_id="")), "messages[0].content[0].tool_use_id"),
        (user(result(content=[{"type": "image"}])), "messages[0].content[0].content[0].source"),
        ({"messages": [{"role": "assistant", "content": [PIXEL]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f"}]}]},
            "messages[0].content[0].input",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{**TOOL, "input_schema": {"description": "x" * 20_000}}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"container": "c1"}, "container"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"base_url": "https://elsewhere"}, "base_url"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"description": "x" * 20_000}}}},
            "output_config.format.schema",
        ),
    ],
)
def test_a_fault_is_named_as_it_stands_in_the_request(more: JsonObject, param: str) -> None:
    failure = refused(**more)
    assert failure.param == param
    assert failure.message.startswith(f"{param}: ")


def test_a_conversation_that_the_server_should_keep_is_refused_so_that_clients_send_it_whole() -> None:
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        failure = refused(thread=thread)
        assert (failure.param, failure.code) == ("thread", "thread_unsupported_request")
        error = orjson.loads(anthropic_error(failure)[1])["error"]
        assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


def test_a_limit_on_tokens_is_required_for_a_message_but_not_for_a_count() -> None:
    without = orjson.dumps({name: value for name, value in HELLO.items() if name != "max_tokens"})
    with pytest.raises(BadRequest, match="max_tokens: this field is required"):
        parse_message(without)
    assert parse_count(without).prompt_tokens > 0


def test_input_of_a_tool_may_bear_names_that_a_request_may_not() -> None:
    (message, _) = said(("assistant", [use(headers={"authorization": "x"}, base_url="y")]), ("user", "go on"))
    assert orjson.loads(message["tool_calls"][0]["function"]["arguments"])["base_url"] == "y"


def test_a_count_grows_with_system_tools_and_pictures() -> None:
    def count(**more: Any) -> int:
        return parse_count(orjson.dumps({"model": "m", "messages": HELLO["messages"], **more})).prompt_tokens

    plain = count()
    assert count(system="word " * 100) >= plain + 100
    assert count(tools=[TOOL]) > plain
    assert count(**user(text("hello"), PIXEL)) > plain + 100
