"""The contract's messages: nothing is lost on the way in or out, and typed fields and JSON pieces make one whole."""

from __future__ import annotations

from typing import Any

import grpc
import orjson
import pytest
from google.rpc.status_pb2 import Status

from common.contracts import FailedTarget, Failure, Job, Outcome, Position, State, Usage
from common.errors import BadRequest
from common.queue import Record
from gateway.errors import TABLE
from gateway.rpc.codes import DETAILS, MOST_MESSAGE_CHARACTERS, message_of, status_of, trailers_of
from gateway.rpc.headrace.v1 import inference_pb2 as pb
from gateway.rpc.reading import chat_of, options_of, prompt_of, submission_of
from gateway.rpc.shape import EventShape
from gateway.rpc.writing import chunk_of, completion_of, job_of, text_of, usage_of, words_of

BIG = 2**53 + 1


def user(text: str = "hi", **more: Any) -> pb.ChatMessage:
    return pb.ChatMessage(role="user", content=text, **more)


# --- in ---------------------------------------------------------------------------------------------------------------


def test_typed_fields_and_the_json_piece_make_one_request() -> None:
    extra = {"logit_bias": {"5": 1}, "top_k": BIG, "metadata": {"id": BIG}}
    given = pb.ChatRequest(
        model="m",
        messages=[user(), pb.ChatMessage(role="assistant", content="yes", name="a")],
        max_completion_tokens=7,
        temperature=0.0,
        top_p=0.25,
        seed=-(2**63),
        stop=["a", "b"],
        n=2,
        extra_json=orjson.dumps(extra),
    )
    asked = chat_of(given)
    assert asked.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "name": "a"}],
        "max_completion_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.25,
        "seed": -(2**63),
        "stop": ["a", "b"],
        "n": 2,
        **extra,
    }
    assert (asked.answers, asked.answer_limit) == (2, 7)


def test_what_was_not_set_is_not_sent() -> None:
    assert set(chat_of(pb.ChatRequest(model="m", messages=[user()])).body) == {"model", "messages"}


def test_the_whole_request_may_come_as_json() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}
    assert chat_of(pb.ChatRequest(extra_json=orjson.dumps(body))).body == body


def test_a_conversation_with_tools_and_pictures_is_openais() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    call = pb.ToolCall(index=3, id="c", name="look", arguments="{}", extra_json=b'{"extra_content":{"seen":1}}')
    given = pb.ChatRequest(
        model="m",
        messages=[
            pb.ChatMessage(role="user", extra_json=orjson.dumps({"content": parts})),
            pb.ChatMessage(role="assistant", tool_calls=[call]),
            pb.ChatMessage(role="tool", tool_call_id="c", content="a cat"),
        ],
    )
    assert chat_of(given).body["messages"] == [
        {"role": "user", "content": parts},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "look", "arguments": "{}"},
                    "extra_content": {"seen": 1},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c", "content": "a cat"},
    ]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (pb.ChatRequest(model="m", messages=[user()], extra_json=b'{"messages":[]}'), "messages"),
        (pb.ChatRequest(model="m", messages=[user(extra_json=b'{"content":"x"}')]), "messages[0].content"),
        (pb.ChatRequest(model="m", messages=[user()], extra_json=b'{"stream_options":null}'), "stream_options"),
        (pb.ChatRequest(model="m", messages=[user()], top_p=float("inf")), "top_p"),
        (pb.ChatRequest(model="m", messages=[pb.ChatMessage(role="user")]), "messages[0].content"),
        (pb.ChatRequest(model="m", messages=[user(extra_json=b'{"base_url":"x"}')]), "base_url"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused_by_the_fields_name(given: pb.ChatRequest, param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        chat_of(given)
    assert refused.value.failure.param == param


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (pb.SubmitJobRequest(chat=pb.ChatRequest(model="m", messages=[user()], extra_json=b"[")), "extra_json"),
        (
            pb.SubmitJobRequest(chat=pb.ChatRequest(model="m", messages=[user(), user(extra_json=b"[1")])),
            "messages[1].extra_json",
        ),
        (
            pb.SubmitJobRequest(
                chat=pb.ChatRequest(
                    model="m", messages=[pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(extra_json=b"{")])]
                )
            ),
            "messages[0].tool_calls[0].extra_json",
        ),
        (pb.SubmitJobRequest(embeddings_json=b"{"), "embeddings_json"),
        (pb.SubmitJobRequest(prompt=pb.Prompt(text="x"), metadata_json=b"\xff"), "metadata_json"),
    ],
)
def test_a_json_piece_that_is_none_is_refused_by_its_place(given: pb.SubmitJobRequest, place: str) -> None:
    with pytest.raises(BadRequest) as refused:
        submission_of(given, [], default_model="first")
    failure = refused.value.failure
    assert (failure.code, failure.param) == ("invalid_json", place)
    assert failure.message.startswith(f"{place}: is not valid JSON: ")


def test_what_a_json_piece_itself_lacks_is_told_by_its_own_name() -> None:
    with pytest.raises(BadRequest) as refused:
        submission_of(pb.SubmitJobRequest(embeddings_json=b'{"model":"m"}'), [], default_model=None)
    assert refused.value.failure.param == "input"


def test_many_json_pieces_hold_no_more_than_one_body_may() -> None:
    piece = orjson.dumps({"x": [0] * 1_000})
    given = pb.ChatRequest(model="m", messages=[user(extra_json=piece) for _ in range(60)])
    with pytest.raises(BadRequest, match="too many values"):
        chat_of(given)


def test_options_stand_in_the_message_or_else_in_metadata() -> None:
    headers = [
        (b"x-headrace-priority", b"batch"),
        (b"x-headrace-deadline-ms", b"5"),
        (b"idempotency-key", b"of the metadata"),
        (b"user-agent", b"grpc"),
    ]
    given = pb.JobOptions(priority=pb.PRIORITY_STANDARD, idempotency_key="of the message", batch_key="b")
    found = options_of(given, headers)
    assert (found.priority, found.deadline_ms, found.idempotency_key) == (1, 5, "of the message")
    assert found.batch_key == "b"
    assert options_of(pb.JobOptions(), headers).idempotency_key == "of the metadata"


def test_a_submission_has_one_kind_of_work() -> None:
    prompt = submission_of(pb.SubmitJobRequest(prompt=pb.Prompt(text="x")), [], default_model="first")
    assert (prompt.asked.model, prompt.asked.body["messages"]) == ("first", [{"role": "user", "content": "x"}])
    with pytest.raises(BadRequest) as refused:
        submission_of(pb.SubmitJobRequest(), [], default_model=None)
    assert refused.value.failure.param == "work"
    late = pb.SubmitJobRequest(prompt=pb.Prompt(text="x"), options=pb.JobOptions(delay_ms=5, deadline_ms=5))
    with pytest.raises(BadRequest, match="delay_ms"):
        submission_of(late, [], default_model="first")


def test_names_in_a_submissions_metadata_are_as_free_as_in_any() -> None:
    def submitted(metadata: bytes) -> Any:
        given = pb.SubmitJobRequest(prompt=pb.Prompt(text="x"), metadata_json=metadata)
        return submission_of(given, [], default_model="first").metadata

    assert submitted(b'{"organization_id":"o","a":{"proxy":1}}') == {"organization_id": "o", "a": {"proxy": 1}}
    for name in ("headers", "api_base"):
        with pytest.raises(BadRequest, match=name):
            submitted(b'{"a":[{"%b":1}]}' % name.encode())


def test_a_prompt_without_words_is_refused() -> None:
    with pytest.raises(BadRequest) as refused:
        prompt_of(pb.Prompt(model="m"), default_model=None)
    assert refused.value.failure.param == "prompt"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            pb.ChatRequest(model="m", messages=[user(extra_json=b"{")] * 10_001),
            "messages: at most 10000 entries, 10001",
        ),
        (
            pb.ChatRequest(
                model="m", messages=[pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(extra_json=b"{")] * 129)]
            ),
            "messages[0].tool_calls: at most 128 entries, 129",
        ),
        (pb.ChatRequest(model="m", messages=[user()], stop=["a"] * 9), "stop: at most 4 entries, 9"),
    ],
)
def test_what_is_too_many_is_refused_before_it_is_read(given: pb.ChatRequest, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat_of(given)
    assert caught.value.failure.message.startswith(words)


def test_commas_and_brackets_in_a_text_are_no_values() -> None:
    table = "1,2,[3],{4}\n" * 20_000
    content = [{"type": "text", "text": table}]
    given = pb.ChatRequest(
        model="m", messages=[pb.ChatMessage(role="user", extra_json=orjson.dumps({"content": content}))]
    )
    assert chat_of(given).body["messages"][0]["content"] == content


# --- out --------------------------------------------------------------------------------------------------------------


def rebuilt(message: Any) -> dict[str, Any]:
    """The fields that stand in the JSON piece."""
    return orjson.loads(message.extra_json) if message.extra_json else {}


def test_what_has_no_field_of_its_own_comes_as_json() -> None:
    event = {
        "choices": [
            {
                "index": 1,
                "delta": {"role": "assistant", "content": "a", "audio": {"id": "x"}, "refusal": None},
                "finish_reason": None,
                "logprobs": {"content": [{"logprob": -0.1, "bytes": [BIG]}]},
            }
        ],
        "system_fingerprint": "fp",
    }
    chunk = chunk_of(orjson.dumps(event))
    [choice] = chunk.choices
    assert (choice.index, choice.delta.role, choice.delta.content, choice.finish_reason) == (1, "assistant", "a", "")
    assert not choice.delta.HasField("refusal")
    assert rebuilt(choice.delta) == {"audio": {"id": "x"}}
    assert rebuilt(choice) == {"logprobs": {"content": [{"logprob": -0.1, "bytes": [BIG]}]}}
    assert rebuilt(chunk) == {"system_fingerprint": "fp"}


@pytest.mark.parametrize(
    ("delta", "left"),
    [
        ({"content": [{"type": "text"}]}, {"content": [{"type": "text"}]}),
        ({"content": ""}, {}),
        ({"tool_calls": ["odd"]}, {"tool_calls": ["odd"]}),
        ({"role": 5}, {"role": 5}),
    ],
)
def test_a_value_of_another_kind_than_its_field_is_left_as_it_came(delta: Any, left: Any) -> None:
    [choice] = chunk_of(orjson.dumps({"choices": [{"index": 0, "delta": delta}]})).choices
    assert rebuilt(choice.delta) == left


def test_null_is_no_value_that_travels_as_json() -> None:
    raw = b'{"choices":[{"index":0,"delta":{"x":null},"logprobs":null,"seen":[null]}],"usage":null}'
    chunk = chunk_of(raw)
    [choice] = chunk.choices
    assert (chunk.extra_json, choice.delta.extra_json, choice.extra_json) == (b"", b"", b'{"seen":[null]}')


def test_an_empty_word_is_not_no_word() -> None:
    [choice] = chunk_of(b'{"choices":[{"index":0,"delta":{"content":""}}]}').choices
    assert choice.delta.HasField("content")


@pytest.mark.parametrize("index", [-1, 2**32, 2**70, True, 1.5])
def test_a_number_that_its_field_cannot_hold_is_left_as_it_came(index: Any) -> None:
    raw = b'{"choices":[{"index":%s,"delta":{}}]}' % str(index).lower().encode()
    [choice] = chunk_of(raw).choices
    assert (choice.index, rebuilt(choice)["index"]) == (0, orjson.loads(str(index).lower()))


def test_tool_calls_keep_what_providers_add() -> None:
    call = {"index": 2, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{", "x": 1}, "y": 2}
    [choice] = chunk_of(orjson.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})).choices
    [found] = choice.delta.tool_calls
    assert (found.index, found.id, found.type, found.name, found.arguments) == (2, "c", "function", "f", "{")
    assert rebuilt(found) == {"function": {"x": 1}, "y": 2}


def test_a_stored_result_is_a_completion() -> None:
    job = Job("job_default_" + "a" * 32, "default", "t", "/v1/chat/completions", "public", {})
    details = {"prompt_tokens_details": {"cached_tokens": 1}}
    result = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}],
        "usage": Usage(3, 4, details).to_openai(),
        "service_tier": "default",
        "model": "the upstream's own",
    }
    found = completion_of(job, 1_500, orjson.dumps(result))
    assert (found.id, found.model, found.created.ToMilliseconds()) == ("chatcmpl-" + "a" * 32, "public", 1_500)
    assert (found.choices[0].finish_reason, found.usage.total_tokens) == ("length", 7)
    assert (rebuilt(found.usage), rebuilt(found)) == (details, {"service_tier": "default"})


def test_usage_that_was_not_told_is_not_there() -> None:
    assert usage_of({}).total_tokens == 0
    shape = EventShape(include_usage=False)
    shape.end(Position(1, 3), Outcome(State.SUCCEEDED, "stop"), resumed=False)
    [event] = shape.taken()
    assert (event.position, event.end.HasField("usage")) == ("1-3", False)


def test_events_of_one_entry_have_their_own_positions() -> None:
    shape = EventShape(include_usage=True)
    shape.events(Position(4, 9), [b'{"choices":[]}'] * 3)
    shape.end(Position(4, 10), Outcome(State.SUCCEEDED, "stop", Usage(1, 2)), resumed=False)
    assert [event.position for event in shape.taken()] == ["4-7", "4-8", "4-9", "4-11"]
    assert shape.taken() == []


def test_a_plain_prompts_reader_gets_words_resets_and_the_end() -> None:
    word = pb.JobEvent(position="1-1", chunk=chunk_of(b'{"choices":[{"index":0,"delta":{"content":"a"}}]}'))
    other = pb.JobEvent(position="1-2", chunk=chunk_of(b'{"choices":[{"index":1,"delta":{"content":"b"}}]}'))
    reset = pb.JobEvent(position="2-0", reset=pb.Reset())
    end = pb.JobEvent(position="2-9", end=pb.End(finish_reason="stop"))
    place = pb.JobEvent(queue=pb.QueuePlace(position=1))
    more = pb.JobEvent(position="1-3", chunk=word.chunk)
    found = words_of([place, word, other, more, reset, end])
    assert [(one.position, one.text, one.reset, one.end.finish_reason) for one in found] == [
        ("1-3", "aa", False, ""),
        ("2-0", "", True, ""),
        ("2-9", "", False, "stop"),
    ]


def test_a_plain_prompts_reader_gets_the_words_of_a_model_that_declines() -> None:
    job = Job("job_default_" + "a" * 32, "default", "t", "/v1/chat/completions", "m", {})
    said = b'{"choices":[{"index":0,"message":{"content":null,"refusal":"I will not."},"finish_reason":"stop"}]}'
    assert text_of(completion_of(job, 0, said)).text == "I will not."
    pieces = [
        pb.JobEvent(position="1-1", chunk=chunk_of(b'{"choices":[{"index":0,"delta":{"%b":"no"}}]}' % name))
        for name in (b"content", b"refusal")
    ]
    assert [one.text for one in words_of(pieces)] == ["nono"]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(TABLE))
def test_every_code_has_a_status_that_says_who_must_act(code: str) -> None:
    status, http = status_of(Failure(code, "x")), TABLE[code].status
    again = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED}
    assert status not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    if TABLE[code].retry:
        assert status in again
    if TABLE[code].retry is False:
        assert status not in again
    if http < 500:
        assert status is not grpc.StatusCode.INTERNAL


def test_a_code_that_nobody_knows_is_our_own_mistake() -> None:
    assert status_of(Failure("never heard of", "x")) is grpc.StatusCode.INTERNAL


def test_a_refusal_carries_its_status_once_more_with_details() -> None:
    failure = Failure("queue_full", "é" * 5_000, None, 1.2345)
    trailers = dict(trailers_of(failure))
    status = Status.FromString(trailers[DETAILS])  # pyright: ignore[reportArgumentType]
    assert (status.code, len(status.message)) == (8, MOST_MESSAGE_CHARACTERS) == (8, len(message_of(failure)))
    assert trailers["grpc-retry-pushback-ms"] == "1235"
    assert dict(trailers_of(Failure("timeout", "x")))["grpc-retry-pushback-ms"] == "-1"


# --- jobs -------------------------------------------------------------------------------------------------------------


def a_record(outcome: Outcome | None) -> Record:
    job = Job("job-0", "default", "t", "/v1/chat/completions", "m", {})
    return Record(
        job=job,
        state=State.RUNNING if outcome is None else outcome.status,
        fence=1,
        attempt=1,
        failures=0,
        created_ms=1_000,
        deadline_ms=9_000,
        started_ms=None,
        finished_ms=None,
        outcome=outcome,
        result=None,
        position=None,
    )


def test_a_job_names_who_answered_and_whose_failure_came_before() -> None:
    failed = [FailedTarget("a", "one", "upstream_unreachable")]
    outcome = Outcome(State.SUCCEEDED, "stop", backend="b", upstream_model="two", failed_targets=failed)
    shown = job_of(a_record(outcome), queue=None, cost_usd=None)
    assert (shown.backend, shown.upstream_model) == ("b", "two")
    [one] = shown.failed_targets
    assert (one.backend, one.model, one.code) == ("a", "one", "upstream_unreachable")


def test_a_job_that_has_not_ended_names_nobody() -> None:
    shown = job_of(a_record(None), queue=None, cost_usd=None)
    assert (shown.backend, shown.upstream_model, list(shown.failed_targets)) == ("", "", [])
