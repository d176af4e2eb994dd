"""OpenAI's older completions: a prompt to a chat of one message, and its answer to a text."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.contracts import Failure, Job, JsonObject, Outcome, Position, State, Usage
from common.errors import BadRequest, CallerError
from common.queue import Place
from gateway.dialects.completions import parse_completions
from gateway.dialects.surfaces import surface_of
from tests.support.published import published
from tests.support.say import frames

COMPLETION = published("CreateCompletionResponse")

JOB_ID = "job_p_" + "0123456789abcdef" * 2
HEAD = {"id": "cmpl-" + "0123456789abcdef" * 2, "object": "text_completion", "created": 5, "model": "m"}
LAST = Position(1, 9)
OUTCOME = Outcome(State.SUCCEEDED, "stop", Usage(3, 5))


def parsed(**more: Any) -> Any:
    return parse_completions(orjson.dumps({"model": "m", "prompt": "a b", **more}))


def job(*, include_usage: bool = False, **asked: Any) -> Job:
    body = {"messages": [{"role": "user", "content": "a b"}]}
    return Job(
        JOB_ID,
        "p",
        "t",
        "/v1/chat/completions",
        "m",
        body,
        dialect="completions",
        asked=asked,
        include_usage=include_usage,
    )


def event(*choices: tuple[int, JsonObject, str | None], **more: Any) -> bytes:
    return orjson.dumps(
        {"choices": [{"index": i, "delta": delta, "finish_reason": end, **more} for i, delta, end in choices]}
    )


def streamed(given: Job, *events: bytes) -> list[JsonObject]:
    """What a stream's events hold; checked to end with the last word."""
    shape = surface_of(given).shape(given, 5)
    raw = shape.opening() + shape.events(LAST, events) + shape.end(LAST, OUTCOME, resumed=False)
    *found, last = frames(raw)
    assert last.data == "[DONE]" and not any(frame.id for frame in found)
    return [frame.json for frame in found]


# --- in ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["a b", ["a b"], ""])
def test_a_prompt_is_one_users_message(prompt: Any) -> None:
    request = parsed(prompt=prompt, echo=False, suffix="", best_of=1, logprobs=None)
    text = "" if prompt == "" else "a b"
    assert request.body == {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 16}
    assert (request.dialect, request.asked, request.stream) == ("completions", {}, False)


def test_the_other_fields_are_the_chats_own() -> None:
    given = {"temperature": 0, "stop": ["x"], "n": 2, "seed": 1, "user": "u", "top_k": 5, "max_tokens": 9}
    request = parsed(**given, best_of=2, stream=True, stream_options={"include_usage": True})
    assert {name: request.body[name] for name in given} == given
    assert request.body.keys() == {"model", "messages", *given}
    assert (request.stream, request.include_usage, request.answers, request.answer_limit) == (True, True, 2, 9)


@pytest.mark.parametrize(("limit", "expected"), [(None, 16), (1, 1)])
def test_sixteen_tokens_are_the_limit_where_none_is_named(limit: int | None, expected: int) -> None:
    assert parsed(max_tokens=limit).body["max_tokens"] == expected
    assert "max_tokens" not in parsed(max_completion_tokens=50).body


@pytest.mark.parametrize("number", [0, 3])
def test_log_probabilities_are_asked_for_in_the_chats_words(number: int) -> None:
    body = parsed(logprobs=number).body
    assert (body["logprobs"], body["top_logprobs"]) == (True, number)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prompt": ["a", "b"]}, "prompt: one text"),
        ({"prompt": [5, 6]}, "prompt: one text"),
        ({"prompt": [5]}, "prompt: one text"),
        ({"prompt": [[5, 6]]}, "prompt: one text"),
        ({"prompt": ["a"] * 3_000}, "prompt: one text"),
        ({"prompt": []}, "prompt: at least 1"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"suffix": "x"}, "suffix: not supported"),
        ({"best_of": 2}, "best_of: not supported"),
        ({"n": 2, "best_of": 1}, "best_of: not supported"),
        ({"echo": True, "logprobs": 0}, "logprobs: not available with echo"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 6}, "logprobs: must be at most 5"),
        ({"tools": []}, "tools: belongs to"),
        ({"temperature": 3}, "temperature: must be at most 2"),
        ({"stream_options": {}}, "stream_options: allowed only"),
    ],
)
def test_what_a_chat_can_not_give_is_refused_by_its_name(more: JsonObject, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parsed(**more)
    assert caught.value.failure.message.startswith(words)
    assert caught.value.failure.param == words.split(":", maxsplit=1)[0]


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["prompt", "n", "best_of", "logprobs", "echo", "suffix", "stop", "max_tokens", "stream", "tools"]
)


@given(st.dictionaries(FIELDS, JSONS, max_size=5))
def test_whatever_comes_is_taken_or_refused_as_the_callers_fault(body: JsonObject) -> None:
    try:
        assert parsed(**body).body["messages"]
    except CallerError as error:
        assert error.failure.message


# --- out --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=5)), max_size=9), st.booleans())
def test_a_stream_and_a_whole_answer_say_the_same(pieces: list[tuple[int, str]], echo: bool) -> None:
    given = job(**({"echo": True} if echo else {}))
    texts = {i: "".join(text for at, text in pieces if at == i) for i in range(3)}
    events = [event((at, {"content": text}, None)) for at, text in pieces]
    ends = [event((i, {}, "length")) for i in range(3)]
    said, reasons = dict.fromkeys(range(3), ""), dict[int, str]()
    for choice in (choice for chunk in streamed(given, *events, *ends) for choice in chunk["choices"]):
        said[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            assert choice["index"] not in reasons
            reasons[choice["index"]] = choice["finish_reason"]
    choices = [{"index": i, "message": {"content": texts[i]}, "finish_reason": "length"} for i in range(3)]
    result = {"choices": choices, "usage": Usage(3, 5).to_openai(), "system_fingerprint": "fp"}
    whole = orjson.loads(surface_of(given).whole(given, 5, orjson.dumps(result)))
    COMPLETION.validate(whole)
    assert said == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert said == {i: ("a b" if echo else "") + text for i, text in texts.items()}
    assert reasons == dict.fromkeys(range(3), "length")
    assert whole["usage"] == result["usage"] and whole["system_fingerprint"] == "fp"
    assert {name: whole[name] for name in HEAD} == HEAD


@pytest.mark.parametrize(
    ("reason", "shown"),
    [("stop",) * 2, ("length",) * 2, ("content_filter",) * 2, ("tool_calls", "stop"), ("function_call", "stop")],
)
def test_each_end_has_a_reason_of_this_endpoint(reason: str, shown: str) -> None:
    ((choice,),) = [chunk["choices"] for chunk in streamed(job(), event((0, {}, reason)))]
    assert choice == {"index": 0, "text": "", "logprobs": None, "finish_reason": shown}


def test_what_says_nothing_is_no_chunk_and_thinking_is_left_out() -> None:
    nothing = (event((0, {"role": "assistant", "content": ""}, None)), event((0, {"reasoning_content": "Hm."}, None)))
    assert streamed(job(), *nothing) == []
    refusal = event((0, {"refusal": "No."}, None))
    assert [chunk["choices"][0]["text"] for chunk in streamed(job(), refusal)] == ["No."]


def test_log_probabilities_are_lists_with_offsets_that_go_on() -> None:
    def entry(token: str, *others: str) -> JsonObject:
        return {"token": token, "logprob": -1.0, "top_logprobs": [{"token": one, "logprob": -2.0} for one in others]}

    first = event((0, {"content": "ab"}, None), logprobs={"content": [entry("a", "x"), entry("b", "y")]})
    second = event((0, {"content": "é"}, None), logprobs={"content": [entry("é")]})
    one, two = (chunk["choices"][0]["logprobs"] for chunk in streamed(job(), first, second))
    assert one == {
        "tokens": ["a", "b"],
        "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{"x": -2.0}, {"y": -2.0}],
        "text_offset": [0, 1],
    }
    assert (two["text_offset"], two["top_logprobs"]) == ([2], None)


def test_usage_is_null_until_it_comes_in_a_chunk_of_its_own() -> None:
    said, usage = streamed(job(include_usage=True), event((0, {"content": "a"}, None)))
    assert said["usage"] is None and said["choices"]
    assert usage["choices"] == [] and usage["usage"] == Usage(3, 5).to_openai()
    assert "usage" not in streamed(job(), event((0, {"content": "a"}, None)))[0]


def test_what_is_no_chunk_is_a_comment_or_an_error() -> None:
    shape = surface_of(job()).shape(job(), 5)
    for comment in (shape.keep_alive(), shape.waiting(Place(State.QUEUED, 3, 500))):
        assert comment.startswith(b": ") and comment.endswith(b"\n")
    (error,) = frames(shape.failed(None, Failure("upstream_error", "It failed.")))
    assert error.json["error"]["code"] == "upstream_error"


def test_an_answer_that_begins_anew_says_so_and_echoes_again() -> None:
    given = job(echo=True)
    shape = surface_of(given).shape(given, 5)
    first = shape.events(LAST, [event((0, {"content": "x"}, None))])
    (word,) = frames(shape.anew(Position(2, 0)))
    assert word.json["headrace"] == {"event": "reset"} and word.json["choices"][0]["text"] == ""
    assert shape.events(LAST, [event((0, {"content": "x"}, None))]) == first
