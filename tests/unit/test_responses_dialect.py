"""Responses as pure functions: requests in, items and messages, and streams of any shape by OpenAI's own schema."""

from __future__ import annotations

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
    conversation,
    input_items,
    job_id_of,
    messages_of,
    read_response_request,
    response_id,
    response_request,
)
from gateway.dialects.responses_output import recorded_response, whole_response
from gateway.dialects.responses_schema import MAX_ITEMS
from gateway.dialects.responses_stream import ResponseShape
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
    assert messages_of(items) == messages
    shown = input_items(a_job(input=items, instructions="Not among them."))
    assert len({item["id"] for item in shown}) == len(shown)
    listed = {"object": "list", "data": shown, "first_id": "", "last_id": "", "has_more": False}
    ITEMS.validate(listed)
    again = [{name: value for name, value in item.items() if name not in ("id", "status")} for item in shown]
    assert messages_of(again) == messages or items[0] is CALL


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
            "input[0].content[0].file_data",
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
        return conversation(a_job(instructions="x"), result)[-1]

    assert conversation(a_job(instructions="x"), b'{"choices":[{"message":{"content":"yes"}}]}') == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ]
    assert said({"content": None, "refusal": "no"}) == {"role": "assistant", "content": "", "refusal": "no"}
    nameless = {"id": "", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    (call,) = said({"content": None, "tool_calls": [nameless]})["tool_calls"]
    whole = orjson.dumps({"choices": [{"index": 0, "message": {"content": None, "tool_calls": [nameless]}}]})
    assert orjson.loads(whole_response(a_job(), 1, whole))["output"][0]["call_id"] == call["id"]


# --- streams of any shape ---------------------------------------------------------------------------------------------

TEXTS: Final = st.sampled_from(["a", " b", "é", "汉字", '"', "\n", "\u2028", ""])
LOGPROBS: Final = st.sampled_from([None, {"content": [{"token": "a", "logprob": -0.5, "bytes": None}]}])


def a_call(index: int, text: str, name: str) -> JsonObject:
    """A piece of a tool call."""
    return {
        "tool_calls": [{"index": index, "id": name and f"call_{index}", "function": {"name": name, "arguments": text}}]
    }


DELTAS: Final = st.one_of(
    TEXTS.map(lambda text: {"role": "assistant", "content": text}),
    TEXTS.map(lambda text: {"content": text}),
    TEXTS.map(lambda text: {"reasoning_content": text}),
    TEXTS.map(lambda text: {"refusal": text}),
    st.builds(a_call, st.integers(0, 2), TEXTS, st.sampled_from(["f", ""])),
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


@settings(max_examples=150, deadline=None)
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
        key = (one.get("item_id"), one.get("content_index"))
        if one["type"].endswith(".delta"):
            deltas[key] = deltas.get(key, "") + one["delta"]
        elif one["type"].endswith((".text.done", "_text.done", "refusal.done", "arguments.done")):
            done = one.get("text", one.get("refusal", one.get("arguments")))
            assert done == deltas.get(key, "")
    done_items = [one["item"] for one in documents if one["type"] == "response.output_item.done"]
    ids = [item["id"] for item in done_items]
    assert len(set(ids)) == len(ids)
    added = [one["item"]["id"] for one in documents if one["type"] == "response.output_item.added"]
    assert sorted(added) == sorted(ids)
    output = documents[-1]["response"]["output"]
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


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, max_size=3), st.lists(TEXTS, max_size=4), st.lists(TEXTS, max_size=4), REASONS)
def test_the_stored_answer_has_the_streams_items(
    thoughts: list[str], texts: list[str], arguments: list[str], reason: str | None
) -> None:
    deltas: list[JsonObject] = [{"reasoning_content": text} for text in thoughts] + [
        {"content": text} for text in texts
    ]
    deltas += [a_call(0, text, "f" if number == 0 else "") for number, text in enumerate(arguments)]
    choices: list[JsonObject] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    answer = Answer()
    for choice in [*choices, {"index": 0, "delta": {}, "finish_reason": reason}]:
        answer.add(Chunk([choice]))
    answer.add(Chunk([], OUTCOME.usage))
    result = orjson.dumps(answer.result())
    final = streamed(a_job(), choices, reason, OUTCOME, anew=99, after=-1)[-1].json["response"]
    whole = orjson.loads(whole_response(a_job(), 1_700_000_000, result, OUTCOME))
    assert whole == final
    assert whole["completed_at"] == 1_700_000_002
    RESPONSE.validate(whole | {"user": "u"})


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
