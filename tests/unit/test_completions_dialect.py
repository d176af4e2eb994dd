"""OpenAI's older completions: a prompt to a chat of one message, and its answer to a text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.contracts import Failure, Job, JsonObject, Outcome, Position, State, Usage
from common.errors import BadRequest, CallerError
from common.queue import Place
from gateway.dialects.completions import TextPart, completions_request, joined, parse_completions
from gateway.dialects.openai import ChatRequest
from gateway.dialects.surfaces import surface_of
from tests.support.published import published
from tests.support.say import frames

COMPLETION = published("CreateCompletionResponse")

JOB_ID = "job_p_" + "0123456789abcdef" * 2
HEAD = {"id": "cmpl-" + "0123456789abcdef" * 2, "object": "text_completion", "created": 5, "model": "m"}
LAST = Position(1, 9)
OUTCOME = Outcome(State.SUCCEEDED, "stop", Usage(3, 5))


def parsed(**more: Any) -> Any:
    [request] = parse_completions(orjson.dumps({"model": "m", "prompt": "a b", **more}))
    return request


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
        ({"prompt": [5, 6]}, "prompt: texts are"),
        ({"prompt": ["a", 5]}, "prompt: texts are"),
        ({"prompt": [[5, 6]]}, "prompt: texts are"),
        ({"prompt": [5] * 3_000}, "prompt: texts are"),
        ({"prompt": ["a"] * 65}, "prompt: at most 64 entries, 65"),
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


def prompts(*texts: str, **more: Any) -> list[ChatRequest]:
    return parse_completions(orjson.dumps({"model": "m", "prompt": texts, **more}))


def test_several_prompts_are_as_many_requests_whose_choices_follow_each_other() -> None:
    found = prompts("a", "b", "c", n=2, stream=True, echo=True)
    assert [one.body["messages"][0]["content"] for one in found] == ["a", "b", "c"]
    assert [one.asked.get("first_index", 0) for one in found] == [0, 2, 4]
    assert all(
        one.body["n"] == 2 and one.stream and one.asked["echo"] and one.dialect == "completions" for one in found
    )


def test_requests_that_differ_in_any_prompt_differ_in_the_first() -> None:
    firsts = [prompts(*texts)[0].asked for texts in (("a",), ("a", "b"), ("a", "c"), ("a", "b", "c"), ("a", "b,c"))]
    assert len({orjson.dumps(asked) for asked in firsts}) == len(firsts)
    assert prompts("a", "b")[0].asked == prompts("a", "b")[0].asked


def test_where_one_prompt_is_all_there_may_be_several_are_refused() -> None:
    assert completions_request({"model": "m", "prompt": ["a"]}).body["messages"][0]["content"] == "a"
    with pytest.raises(BadRequest, match="prompt: one text"):
        completions_request({"model": "m", "prompt": ["a", "b"]})


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
        assert all(one.body["messages"] for one in parse_completions(orjson.dumps({"model": "m", **body})))
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


def test_answers_to_several_prompts_are_one_with_their_choices_in_order_and_their_usage_added_up() -> None:
    def result(text: str, **more: Any) -> bytes:
        choice = {"index": 0, "message": {"content": text}, "finish_reason": "stop"}
        return orjson.dumps({"choices": [{**choice, "index": index} for index in (0, 1)], "usage": more})

    details = {"prompt_tokens_details": {"cached_tokens": 3, "kind": "x"}, "estimated": False}
    first = result("a", prompt_tokens=1, completion_tokens=2, total_tokens=3, **details)
    second = result("b", prompt_tokens=10, completion_tokens=20, total_tokens=30, cost=0.5)
    third = result("c", **{**details, "estimated": True}, prompt_tokens=0, completion_tokens=0, total_tokens=0)
    whole = orjson.loads(
        joined([(job(first_index=2 * at), 5 + at, one) for at, one in enumerate((first, second, third))])
    )
    COMPLETION.validate(whole)
    assert {name: whole[name] for name in HEAD} == HEAD
    assert [(one["index"], one["text"]) for one in whole["choices"]] == list(enumerate("aabbcc"))
    assert whole["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 22,
        "total_tokens": 33,
        "prompt_tokens_details": {"cached_tokens": 6, "kind": "x"},
        "estimated": True,
        "cost": 0.5,
    }


def test_a_part_of_a_stream_counts_its_choices_on_and_leaves_the_end_to_the_whole() -> None:
    part = TextPart(job(first_index=4, echo=True), 5, of=replace(job(), id=JOB_ID[:-1] + "0", model="other"))
    (chunk,) = frames(part.events(LAST, [event((1, {"content": "x"}, None))]))
    assert (chunk.json["choices"][0]["index"], chunk.json["choices"][0]["text"]) == (5, "a bx")
    assert (chunk.json["model"], chunk.json["id"][-1]) == ("other", "0")
    assert frames(part.anew(LAST))[0].json["choices"][0]["index"] == 4
    assert part.end(LAST, OUTCOME, resumed=False) == b"" and part.outcome is OUTCOME
    failure = Failure("upstream_error", "It failed.")
    assert part.failed(LAST, failure) == b"" and part.failure is failure


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
    assert (two["text_offset"], two["top_logprobs"]) == ([2], [{}])


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


@pytest.mark.parametrize(
    ("param", "place"),
    [
        ("messages[0].x", "prompt"),
        ("max_completion_tokens", "max_tokens"),
        ("n", "n"),
        ("tools[0].x", None),
        (None, None),
    ],
)
def test_a_servers_complaint_is_told_of_the_callers_own_field(param: str | None, place: str | None) -> None:
    failure = Failure("upstream_refused", f"Bad {param}.", param=param)
    _, body, _ = surface_of(job()).refused(failure)
    assert orjson.loads(body)["error"]["param"] == place
    assert f'"param":{orjson.dumps(place).decode()}'.encode() in surface_of(job()).shape(job(), 5).failed(None, failure)


def test_no_token_at_all_is_refused_with_the_reason() -> None:
    with pytest.raises(BadRequest, match="asked as a chat") as caught:
        parsed(max_tokens=0, echo=True)
    assert caught.value.failure.param == "max_tokens"
