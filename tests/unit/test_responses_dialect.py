"""Responses as pure functions: requests in, items and messages, and streams of any shape by OpenAI's own schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from dataclasses import replace
from itertools import product
from typing import Any, Final

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from common.contracts import Chunk, Failure, Job, JsonObject, Outcome, Position, State, Usage
from common.errors import BadRequest
from common.queue import Record
from gateway.dialects.responses_input import (
    job_id_of,
    read_response_request,
    response_id,
    response_request,
    told,
)
from gateway.dialects.responses_listed import listed
from gateway.dialects.responses_output import conversation, named_items, recorded_response, whole_response
from gateway.dialects.responses_schema import MAX_ITEMS
from gateway.dialects.responses_stream import ResponseShape
from gateway.dialects.responses_turns import Known, turns_of
from gateway.dialects.surfaces import SURFACES
from gateway.relay import stored_frames
from tests.support.published import published
from tests.support.say import Frame, frames
from workers.answer import Answer

DIGITS: Final = "0123456789abcdef" * 2
JOB_ID: Final = f"job_default_{DIGITS}"
EVENTS: Final[TypeAdapter[Any]] = TypeAdapter(ResponseStreamEvent)
OUTCOME: Final = Outcome(State.SUCCEEDED, "stop", Usage(3, 4), timings_ms={"total": 2_500})


RESPONSE, EVENT, ITEMS = (published(name) for name in ("Response", "ResponseStreamEvent", "ResponseItemList"))


def bare(response: JsonObject) -> JsonObject:
    """A response without what the published schema knows only to be there or not, and other clients want to be null."""
    return {name: value for name, value in response.items() if value is not None or name not in ("user", "usage")}


def input_items(job: Job) -> list[JsonObject]:
    """The items that a response was made from, as its list shows them."""
    return [one.made() for one in listed(job)]


def asked(**fields: Any) -> Any:
    """The chat request that a request for a response becomes."""
    return response_request(read_response_request(orjson.dumps({"model": "m", "input": "hi", **fields})))


def a_job(**fields: Any) -> Job:
    """The job of a request for a response."""
    metadata = fields.get("metadata") or {}
    request = asked(**fields)
    return Job(
        id=JOB_ID,
        pool="default",
        tenant="t",
        endpoint=request.endpoint,
        model="m",
        body=request.body,
        metadata=metadata,
        dialect=request.dialect,
        asked=request.asked,
    )


# --- ids --------------------------------------------------------------------------------------------------------------


def test_an_id_leads_back_to_its_job() -> None:
    assert response_id(JOB_ID) == f"resp_default_{DIGITS}"
    assert job_id_of(response_id(JOB_ID)) == JOB_ID
    for text in ("", "resp_", JOB_ID, f"resp_{DIGITS}", f"resp_A_{DIGITS}", response_id(JOB_ID) + "0", "resp_a_b"):
        assert job_id_of(text) is None


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_request_becomes_a_chat_request() -> None:
    request = asked(
        instructions="Be short.",
        max_output_tokens=50,
        temperature=0.5,
        top_logprobs=3,
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}],
        tool_choice={"type": "function", "name": "f"},
        text={"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        reasoning={"effort": "high"},
        metadata={"a": "b"},
        store=False,
        stream=True,
        top_k=7,
    )
    assert request.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}],
        "max_completion_tokens": 50,
        "temperature": 0.5,
        "top_logprobs": 3,
        "logprobs": True,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
        },
        "reasoning_effort": "high",
        "top_k": 7,
    }
    assert request.stream and request.dialect == "responses" and request.asked["store"] is False


CALL: Final = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
TOOL_CALL: Final = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"role": "user", "content": "a"}], [{"role": "user", "content": "a"}]),
        (
            [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "a"}]}],
            [{"role": "developer", "content": "a"}],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "a"},
                        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
                        {"type": "input_file", "filename": "x.pdf", "file_data": "data:application/pdf;base64,AA"},
                    ],
                }
            ],
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                        {"type": "file", "file": {"filename": "x.pdf", "file_data": "data:application/pdf;base64,AA"}},
                    ],
                }
            ],
        ),
        (
            [
                {"role": "user", "content": "a"},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
                },
                CALL,
                {**CALL, "call_id": "c2"},
                {"type": "function_call_output", "call_id": "c1", "output": "x"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "y"}]},
            ],
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b", "tool_calls": [TOOL_CALL, {**TOOL_CALL, "id": "c2"}]},
                {"role": "tool", "tool_call_id": "c1", "content": "x"},
                {"role": "tool", "tool_call_id": "c2", "content": "y"},
            ],
        ),
        (
            [CALL, {"role": "assistant", "content": "b"}],
            [{"role": "assistant", "content": "b", "tool_calls": [TOOL_CALL]}],
        ),
    ],
    ids=["short", "parts", "media", "a turn", "call first"],
)
def test_items_become_messages_and_items_again(items: list[JsonObject], messages: list[JsonObject]) -> None:
    assert turns_of(items).messages == messages
    job = replace(a_job(instructions="Not among them."), body={"messages": [{}, *messages]})
    shown = input_items(job)
    assert len({item["id"] for item in shown}) == len(shown)
    listed = {"object": "list", "data": shown, "first_id": "", "last_id": "", "has_more": False}
    ITEMS.validate(listed)
    again = [{name: value for name, value in item.items() if name not in ("id", "status")} for item in shown]
    assert turns_of(again).messages == messages or items[0] is CALL


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x.test/a"}]}]},
            "input[0].content[0].file_url",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
            "input[0].content[0].file_id",
        ),
        *(
            ({"input": [{"role": "user", "content": [{**part, "file_id": "f"}]}]}, "input[0].content[0].file_id")
            for part in (
                {"type": "input_file", "file_data": "data:text/plain;base64,eA=="},
                {"type": "input_image", "image_url": "https://x.test/a.png"},
            )
        ),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"form": {}}}, "text.form"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"background": True, "store": False}, "background"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"include": ["everything"]}, "include[0]"),
        ({"previous_response_id": 3}, "previous_response_id"),
    ],
)
def test_a_fault_is_named_where_it_stands(fields: JsonObject, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**fields)
    assert caught.value.failure.param == param
    assert param in caught.value.failure.message


def test_as_many_items_as_the_description_allows_are_taken() -> None:
    assert len(asked(input=[{"role": "user", "content": "x"}] * MAX_ITEMS).body["messages"]) == MAX_ITEMS


def test_a_schema_that_is_too_large_is_named_where_it_stands() -> None:
    deep: JsonObject = {"type": "object", "description": "x" * 20_000}
    for fields, param in (
        ({"tools": [{"type": "function", "name": "f", "parameters": deep}]}, "tools[0].parameters"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": deep}}}, "text.format.schema"),
    ):
        with pytest.raises(BadRequest) as caught:
            asked(**fields)
        assert caught.value.failure.param == param


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({"top_logprobs": 0}, {}),
        ({"top_logprobs": 0, "include": ["message.output_text.logprobs"]}, {"logprobs": True, "top_logprobs": 0}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    ],
)
def test_log_probabilities_are_asked_for_where_the_caller_wants_any(fields: JsonObject, body: JsonObject) -> None:
    found = asked(**fields).body
    assert {name: found[name] for name in ("logprobs", "top_logprobs") if name in found} == body


def test_an_answer_that_said_nothing_may_stand_in_a_conversation() -> None:
    nothing = {"type": "message", "role": "assistant", "content": []}
    messages = asked(input=[{"role": "user", "content": "a"}, nothing, {"role": "user", "content": "b"}]).body[
        "messages"
    ]
    assert [one["content"] for one in messages] == ["a", "", "b"]


OUTPUT: Final = {"type": "function_call_output", "call_id": "c1", "output": "x"}


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([OUTPUT], "No tool call found for function call output with call_id c1."),
        ([OUTPUT, CALL], "No tool call found for function call output with call_id c1."),
        ([CALL, OUTPUT, {**OUTPUT, "call_id": "c2"}], "No tool call found for function call output with call_id c2."),
        ([{"role": "user", "content": "a"}, CALL], "No tool output found for function call c1."),
        ([CALL, {**CALL, "call_id": "c2"}, OUTPUT], "No tool output found for function call c2."),
    ],
)
def test_calls_and_outputs_that_are_not_each_others_are_refused(items: list[JsonObject], text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(input=items)
    assert (caught.value.failure.message, caught.value.failure.param) == (text, "input")
    asked(input=[CALL, {"role": "user", "content": "wait"}, OUTPUT])


@pytest.mark.parametrize(
    ("param", "place"),
    [
        ("messages[0].x", "input"),
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("tools[0].function.parameters", "tools[0].parameters"),
        ("temperature", "temperature"),
        ("logit_bias", None),
        ("messages_of_theirs", None),
        (None, None),
    ],
)
def test_a_servers_complaint_is_told_of_the_callers_own_field(param: str | None, place: str | None) -> None:
    given = Failure("upstream_refused", f"Bad {param}.", param=param)
    found = told(given)
    assert (found.param, found.code) == (place, given.code)
    assert found.message == f"Bad {place or param}."
    status, body, _ = SURFACES["responses"].refused(given)
    assert (status, orjson.loads(body)["error"]["param"]) == (400, place)


FULL: Final[JsonObject] = {
    "instructions": "x",
    "input": [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "data:,"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "y"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "user", "content": [{"type": "input_file", "file_data": "data:,"}]},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
    "reasoning": {"effort": "low", "summary": "auto"},
    "top_logprobs": 2,
    "temperature": 1,
    "metadata": {"a": "b"},
    "include": ["message.output_text.logprobs"],
    "service_tier": "auto",
    "stream_options": {"include_obfuscation": True},
}
STRANGE: Final[list[Any]] = [None, True, 0, -1, 1.5, "", "x", [], [None], {}, {"type": None}, [{"type": "text"}], [[]]]


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of every value in a document."""
    steps = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path, *(place for step, inner in steps for place in places(inner, (*path, step)))]


def replaced(path: tuple[Any, ...], value: Any) -> JsonObject:
    """The full request with this value at a path."""
    fields = orjson.loads(orjson.dumps(FULL))
    here = fields
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    return fields


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FULL)
def test_with_any_value_anywhere_it_is_served_as_published_or_refused_by_name(name: str) -> None:
    for path, value in product([path for path in places(FULL)[1:] if path[0] == name], STRANGE):
        try:
            job = a_job(**replaced(path, value))
        except BadRequest as error:
            assert error.failure.param is not None, (path, value)
            continue
        record = Record(job, State.RUNNING, 1, 1, 0, 5_000, 9_000, None, None, None, None, None)
        RESPONSE.validate(bare(orjson.loads(recorded_response(record))))
        ITEMS.validate({"object": "list", "data": input_items(job), "first_id": "", "last_id": "", "has_more": False})


def test_a_conversation_goes_on_after_calls_refusals_and_nothing() -> None:
    def said(message: JsonObject) -> JsonObject:
        result = orjson.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        return conversation(a_job(instructions="x"), result).messages[-1]

    assert conversation(a_job(instructions="x"), b'{"choices":[{"message":{"content":"yes"}}]}').messages == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ]
    assert said({"content": None, "refusal": "no"}) == {"role": "assistant", "content": "", "refusal": "no"}
    nameless = {"id": "", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    (call,) = said({"content": None, "tool_calls": [nameless]})["tool_calls"]
    whole = orjson.dumps({"choices": [{"index": 0, "message": {"content": None, "tool_calls": [nameless]}}]})
    assert orjson.loads(whole_response(a_job(), 1, whole))["output"][0]["call_id"] == call["id"]


def spoke(job: Job, *deltas: JsonObject) -> bytes:
    """The stored result of a stream."""
    answer = Answer()
    for delta in deltas:
        answer.add(Chunk([{"index": 0, "delta": delta, "finish_reason": None}]))
    return orjson.dumps(answer.result())


def gone_on(job: Job, result: bytes, digit: str, *items: JsonObject, **more: Any) -> Job:
    """A job that goes on from another one."""
    body = read_response_request(orjson.dumps({"model": "m", "input": [*items], **more}))
    request = response_request(body, conversation(job, result))
    return replace(job, id=f"job_default_{digit * 32}", body=request.body, asked=request.asked)


def test_an_item_has_the_same_id_in_every_turn_and_its_own_words() -> None:
    first = a_job(instructions="x", input=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    calls = [a_call(0, "{}", "f"), {"content": "yes"}, a_call(1, "{}", "g")]
    result = spoke(first, {"reasoning_content": "t"}, {"content": "well"}, *calls)
    outputs = [{"type": "function_call_output", "call_id": f"call_{n}", "output": "o", "id": "mine"} for n in (0, 1)]
    second = gone_on(first, result, "a", *outputs, instructions="y")
    again = spoke(second, {"content": "done"})
    third = gone_on(second, again, "b", {"role": "user", "content": "c", "id": f"msg_{DIGITS}_in0"})
    theirs = input_items(first) + orjson.loads(whole_response(first, 1, result))["output"][1:]
    ours = [item for item in input_items(second) if "a" * 32 in item["id"]]
    assert [item["id"] for item in ours] == [f"fco_{'a' * 32}_in0", f"fco_{'a' * 32}_in1"]
    assert [item["type"] for item in theirs] == ["message"] * 3 + ["function_call", "message", "function_call"]
    assert input_items(second) == [*theirs, *ours]
    last = orjson.loads(whole_response(second, 1, again))["output"]
    own = input_items(third)[-1]
    assert own["id"] == f"msg_{'b' * 32}_in0"
    assert input_items(third) == [*theirs, *ours, *last, own]
    ITEMS.validate({"object": "list", "data": input_items(third), "first_id": "", "last_id": "", "has_more": False})


def test_items_that_are_named_keep_their_ids_and_are_what_going_on_would_send() -> None:
    first = a_job(input="a")
    result = spoke(first, {"reasoning_content": "t"}, {"content": "A"}, {"reasoning_content": "t"}, {"content": "B"})
    record = Record(first, State.SUCCEEDED, 1, 1, 0, 5_000, 9_000, None, None, OUTCOME, result, None)
    output: list[JsonObject] = orjson.loads(whole_response(first, 1, result))["output"]
    items = named_items(record, [item["id"] for item in [*input_items(first), *output]])
    assert [*items.values()] == [*input_items(first), *output]
    assert all(isinstance(item, Known) and item["id"] == item_id for item_id, item in items.items())
    own = {"role": "user", "content": "b"}
    request = response_request({"model": "m", "input": [*items.values(), own]})
    named = replace(first, id=f"job_default_{'a' * 32}", body=request.body, asked=request.asked)
    assert [item["id"] for item in input_items(named)] == [
        *(item_id for item_id in items if not item_id.startswith("rs_")),
        f"msg_{'a' * 32}_in0",
    ]
    assert request.body["messages"] == gone_on(first, result, "a", own).body["messages"]
    assert request.body["messages"][1] == {"role": "assistant", "content": "AB"}


def test_texts_apart_and_empty_ones_are_listed_as_what_they_were() -> None:
    thought: JsonObject = {"reasoning_content": "t"}
    first = a_job(input=[{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, CALL, OUTPUT])
    result = spoke(first, {"content": "one"}, thought, {"content": "东"}, thought, {"content": "three"})
    second = gone_on(first, result, "a", {"role": "user", "content": "b"})
    said = [item for item in orjson.loads(whole_response(first, 1, result))["output"] if item["type"] == "message"]
    listed = input_items(second)
    assert listed == [*input_items(first), *said, listed[-1]] and len(said) == 3
    assert [item["type"] for item in listed[:3]] == ["message", "function_call", "function_call_output"]
    assert listed[-1]["id"] == f"msg_{'a' * 32}_in0"
    assert second.body["messages"][-2] == {"role": "assistant", "content": "one东three"}
    named = turns_of([Known(said[0]), {"role": "user", "content": "c"}, {"role": "assistant", "content": ""}, CALL])
    assert [one.place for one in named.origins] == [said[0]["id"].rpartition("_")[2], "", ""]


def test_nothing_comes_between_calls_and_their_outputs() -> None:
    refused = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    turns = turns_of([{"role": "user", "content": "a"}, refused, CALL, {"role": "assistant", "content": "b"}, OUTPUT])
    assert turns.messages[1:] == [
        {"role": "assistant", "content": "", "refusal": "no"},
        {"role": "assistant", "content": "b", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    ]
    job = replace(a_job(), body={"messages": turns.messages}, asked=turns.asked())
    assert input_items(job)[1]["content"] == refused["content"]
    assert [item["id"][-3:] for item in input_items(job)] == ["in0", "in1", "in2", "in3", "in4"]


def test_jobs_of_before_items_had_origins_number_them_all() -> None:
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    shown = input_items(replace(a_job(), body={"messages": messages}, asked={}))
    assert [item["id"] for item in shown] == [f"msg_{DIGITS}_in{number}" for number in range(3)]


# --- streams of any shape ---------------------------------------------------------------------------------------------

TEXTS: Final = st.sampled_from(["a", " b", "é", "汉字", '"', "\n", "\u2028", ""])
LOGPROBS: Final = st.sampled_from([None, {"content": [{"token": "a", "logprob": -0.5, "bytes": None}]}])


def a_call(index: int, text: str, name: str) -> JsonObject:
    """A piece of a tool call."""
    return {
        "tool_calls": [{"index": index, "id": name and f"call_{index}", "function": {"name": name, "arguments": text}}]
    }


NOTE: Final[JsonObject] = {
    "type": "url_citation",
    "url_citation": {"start_index": 1, "end_index": 4, "url": "https://a.test/", "title": "A"},
}
NOTED: Final = {"type": "url_citation", "start_index": 1, "end_index": 4, "url": "https://a.test/", "title": "A"}
DELTAS: Final = st.one_of(
    TEXTS.map(lambda text: {"role": "assistant", "content": text}),
    TEXTS.map(lambda text: {"content": text}),
    TEXTS.map(lambda text: {"reasoning_content": text}),
    TEXTS.map(lambda text: {"refusal": text}),
    st.builds(a_call, st.integers(0, 2), TEXTS, st.sampled_from(["f", ""])),
    st.builds(
        lambda text, call: {"content": text, "reasoning_content": "hm", **call}, TEXTS, st.just(a_call(1, "", "g"))
    ),
    st.integers(0, 2).map(lambda count: {"annotations": [NOTE] * count}),
    st.just({}),
)
CHOICES: Final = st.builds(
    lambda delta, logprobs: {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}, DELTAS, LOGPROBS
)
REASONS: Final = st.sampled_from(["stop", "length", "tool_calls", "content_filter", None])


def streamed(
    job: Job, choices: list[JsonObject], reason: str | None, end: Any, *, anew: int, after: int
) -> list[Frame]:
    """The frames of one reader; the answer begins anew after so many choices (none where it is beyond them)."""
    shape = ResponseShape(job, 1_700_000_000, after=after)
    raw = shape.opening()
    for number, choice in enumerate(choices):
        if number == anew:
            raw += shape.anew(Position(2, 0))
        raw += shape.keep_alive() + shape.events(Position(1, number + 1), [orjson.dumps({"choices": [choice]})])
    last = {"index": 0, "delta": {}, "finish_reason": reason}
    raw += shape.events(Position(1, len(choices) + 1), [orjson.dumps({"choices": [last]})])
    place = Position(1, len(choices) + 2)
    raw += shape.end(place, end, resumed=False) if isinstance(end, Outcome) else shape.failed(place, end)
    return frames(raw)


ENDS: Final = st.sampled_from(
    [OUTCOME, Failure("cancelled", "x"), Failure("upstream_error", "x"), Failure("upstream_refused", "x")]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CHOICES, max_size=12), REASONS, ENDS, st.integers(0, 16), st.booleans())
def test_a_stream_of_any_shape_is_numbered_whole_and_as_published(
    choices: list[JsonObject], reason: str | None, end: Any, anew: int, background: bool
) -> None:
    job = a_job(background=background)
    found = streamed(job, choices, reason, end, anew=anew, after=-1)
    documents = [frame.json for frame in found]
    assert [one["sequence_number"] for one in documents] == list(range(len(found)))
    for frame, document in zip(found, documents, strict=True):
        assert frame.name == document["type"]
        EVENTS.validate_json(frame.data, strict=True)
        EVENT.validate({**document, "response": bare(document["response"])} if "response" in document else document)
    _check_items(documents)
    for after in (0, len(found) // 2, len(found) - 1, len(found)):
        assert streamed(job, choices, reason, end, anew=anew, after=after) == found[after + 1 :]


def _check_items(documents: list[JsonObject]) -> None:
    """Every delta is in the text that its part or call ends with, and every item that counts in the final response."""
    deltas: dict[Any, str] = {}
    for one in documents:
        key = (one.get("output_index"), one.get("content_index"))
        if one["type"].endswith(".delta"):
            deltas[key] = deltas.get(key, "") + one["delta"]
        elif one["type"].endswith((".text.done", "_text.done", "refusal.done", "arguments.done")):
            done = one.get("text", one.get("refusal", one.get("arguments")))
            assert done == deltas.get(key, "")
    ended: dict[int, JsonObject] = {}
    for one in documents:
        if one["type"] == "response.output_item.done":
            ended[one["output_index"]] = one["item"]
        elif one["type"] == "response.output_text.annotation.added" and one["output_index"] in ended:  # a late one
            ended[one["output_index"]]["content"][one["content_index"]]["annotations"].append(one["annotation"])
    done_items = [*ended.values()]
    ids = [item["id"] for item in done_items]
    begun = [one for one in documents if one["type"] == "response.output_item.added"]
    assert [one["output_index"] for one in begun] == list(range(len(begun)))
    added = [one["item"]["id"] for one in begun]
    assert sorted(added) == sorted(ids)
    output = documents[-1]["response"]["output"]
    assert len({item["id"] for item in output}) == len(output)
    assert all(item in done_items for item in output)
    assert all(item["status"] != "in_progress" for item in done_items)
    assert [item["id"] for item in output] == added[len(added) - len(output) :]


THOUGHT: Final[JsonObject] = {"index": 0, "delta": {"reasoning_content": "hm"}}
WORD: Final[JsonObject] = {"index": 0, "delta": {"content": "a"}}


@pytest.mark.parametrize(
    ("reason", "end", "statuses"),
    [
        ("stop", OUTCOME, ["completed", "completed"]),
        ("length", OUTCOME, ["completed", "incomplete"]),
        ("content_filter", OUTCOME, ["completed", "incomplete"]),
        ("stop", Failure("upstream_error", "x"), ["completed", "incomplete"]),
    ],
)
def test_only_what_the_answer_broke_off_in_is_incomplete(
    reason: str, end: Outcome | Failure, statuses: list[str]
) -> None:
    found = streamed(a_job(), [THOUGHT, WORD], reason, end, anew=9, after=-1)
    assert [item["status"] for item in found[-1].json["response"]["output"]] == statuses


def test_an_answer_begun_anew_is_new_items_and_they_alone_are_the_answer() -> None:
    found = streamed(a_job(), [WORD, THOUGHT, WORD, WORD], "stop", OUTCOME, anew=1, after=-1)
    done = [one.json["item"] for one in found if one.name == "response.output_item.done"]
    assert [item["status"] for item in done] == ["incomplete", "completed", "completed"]
    assert found[-1].json["response"]["output"] == done[1:]


@settings(max_examples=150, deadline=None)
@given(st.lists(CHOICES, max_size=12), REASONS, st.integers(0, 16))
def test_the_stored_answer_has_the_streams_items(choices: list[JsonObject], reason: str | None, anew: int) -> None:
    answer = Answer()
    counting = choices[anew:] if anew < len(choices) else choices
    for choice in [*counting, {"index": 0, "delta": {}, "finish_reason": reason}]:
        answer.add(Chunk([choice]))
    answer.add(Chunk([], OUTCOME.usage))
    result = orjson.dumps(answer.result())
    final = streamed(a_job(), choices, reason, OUTCOME, anew=anew, after=-1)[-1].json["response"]
    whole = orjson.loads(whole_response(a_job(), 1_700_000_000, result, OUTCOME))
    assert whole == final
    assert whole["completed_at"] == 1_700_000_002
    RESPONSE.validate(whole | {"user": "u"})
    shape = ResponseShape(a_job(), 1_700_000_000)
    (told,) = asyncio.run(_all(stored_frames(shape, 1, OUTCOME, result)))
    assert frames(told)[-1].json["response"] == whole


async def _all(pieces: AsyncIterable[bytes]) -> list[bytes]:
    return [piece async for piece in pieces]


def test_the_places_of_calls_texts_and_thoughts_among_each_other_are_kept() -> None:
    deltas = [{"reasoning_content": "t"}, {"content": "a"}, a_call(1, "{}", "g"), {"content": "b"}, a_call(0, "", "f")]
    answer = Answer()
    for delta in deltas:
        answer.add(Chunk([{"index": 0, "delta": delta, "finish_reason": None}]))
    output = orjson.loads(whole_response(a_job(), 1, orjson.dumps(answer.result())))["output"]
    assert [item["id"].split("_")[0] + item["id"][-2:] for item in output] == ["rs_0", "msg_1", "fc_2", "msg_3", "fc_4"]
    assert [item["content"][0]["text"] for item in output if "content" in item] == ["t", "a", "b"]
    assert [item["name"] for item in output if "name" in item] == ["g", "f"]


@pytest.mark.parametrize(
    "deltas",
    [
        [{"content": "see"}, {"annotations": [NOTE]}],
        [{"annotations": [NOTE]}, {"content": "see"}],
        [{"content": "see", "annotations": [NOTE]}],
        [{"content": "see"}, {"annotations": [NOTE]}, {"content": " more"}],
        [{"content": "see"}, {"refusal": "no"}, {"annotations": [NOTE]}],
        [{"reasoning_content": "t"}, {"content": "see"}, a_call(0, "{}", "f"), {"annotations": [NOTE]}],
        [{"annotations": [NOTE]}],
    ],
    ids=["after", "before", "with", "between", "late", "after a call", "alone"],
)
def test_notes_belong_to_the_text_and_are_told_when_they_come(deltas: list[JsonObject]) -> None:
    choices: list[JsonObject] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    found = streamed(a_job(), choices, "stop", OUTCOME, anew=99, after=-1)
    (told,) = [one.json for one in found if one.name == "response.output_text.annotation.added"]
    assert (told["annotation"], told["annotation_index"]) == (NOTED, 0)
    output = found[-1].json["response"]["output"]
    assert output[told["output_index"]]["id"] == told["item_id"]
    assert output[told["output_index"]]["content"][told["content_index"]]["annotations"] == [NOTED]
    RESPONSE.validate(found[-1].json["response"] | {"user": "u"})


def test_a_note_of_no_page_is_left_out() -> None:
    notes: list[Any] = [3, {"type": "file"}, {"url_citation": {"url": 3}}, {"url_citation": {"url": "x", "title": 3}}]
    choice = {"index": 0, "message": {"content": "a", "annotations": notes}, "finish_reason": "stop"}
    (item,) = orjson.loads(whole_response(a_job(), 1, orjson.dumps({"choices": [choice]})))["output"]
    bare = {"type": "url_citation", "url": "x", "start_index": 0, "end_index": 0, "title": ""}
    assert item["content"][0]["annotations"] == [bare]


# --- as it stands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "failure", "status"),
    [
        (State.DELAYED, None, "queued"),
        (State.QUEUED, None, "queued"),
        (State.RUNNING, None, "in_progress"),
        (State.SUCCEEDED, None, "completed"),
        (State.FAILED, Failure("upstream_error", "x"), "failed"),
        (State.EXPIRED, Failure("deadline_exceeded", "x"), "failed"),
        (State.CANCELLED, Failure("cancelled", "x"), "cancelled"),
    ],
)
def test_each_state_has_its_status(state: State, failure: Failure | None, status: str) -> None:
    outcome = Outcome(state, "stop", Usage(1, 1), failure) if state.ended else None
    result = b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":null}]}' if state.ended else None
    record = Record(a_job(), state, 1, 1, 0, 5_000, 9_000, None, None, outcome, result, None)
    raw = recorded_response(record)
    found = orjson.loads(raw)
    assert (found["status"], found["created_at"]) == (status, 5)
    assert (found["error"] is not None) == (status == "failed")
    Response.model_validate_json(raw, strict=True)
    RESPONSE.validate(bare(found))


def test_a_readers_own_failure_takes_no_number() -> None:
    shape = ResponseShape(a_job(), 1)
    told = frames(shape.opening())
    (error,) = frames(shape.failed(None, Failure("slow_reader", "Too slow.")))
    assert (error.name, error.json["type"], error.json["code"]) == ("error", "error", "slow_reader")
    assert error.json["sequence_number"] == told[-1].json["sequence_number"]
    EVENT.validate(error.json)
