"""A conversation in turns is the same however it comes: sent, named by its items' ids, or gone on from."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, Final

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.contracts import Chunk, Job, JsonObject
from common.errors import BadRequest
from gateway.dialects.responses_input import response_request
from gateway.dialects.responses_listed import items_page, listed
from gateway.dialects.responses_output import conversation, whole_response
from gateway.dialects.responses_schema import check_response
from gateway.dialects.responses_turns import Known, Turns, check_calls, gone_on, turns_of
from workers.answer import Answer

USER: Final[JsonObject] = {"role": "user", "content": "hi"}


def said(*content: JsonObject | str) -> JsonObject:
    """An assistant's message as a caller sends it: a text, or parts."""
    return {"type": "message", "role": "assistant", "content": content[0] if type(content[0]) is str else [*content]}


def text(words: str) -> JsonObject:
    return {"type": "output_text", "text": words}


def refused(words: str) -> JsonObject:
    return {"type": "refusal", "refusal": words}


def call(number: int) -> JsonObject:
    return {"type": "function_call", "call_id": f"c{number}", "name": "f", "arguments": "{}"}


def output(number: int) -> JsonObject:
    return {"type": "function_call_output", "call_id": f"c{number}", "output": "o"}


def job_of(turns: Turns, digit: str) -> Job:
    """A job whose conversation this is."""
    job_id = f"job_default_{digit * 32}"
    return Job(
        job_id, "default", "t", "chat", "m", {"messages": turns.messages}, dialect="responses", asked=turns.asked()
    )


def input_items(job: Job) -> list[JsonObject]:
    """The items that a response was made from, as its list shows them."""
    return [one.made() for one in listed(job)]


def named(job: Job) -> list[JsonObject]:
    """What a request that names all of its input items is made of."""
    return [*map(Known, input_items(job))]


def result_of(*deltas: JsonObject) -> bytes:
    """The stored result of a stream."""
    answer = Answer()
    for delta in deltas:
        answer.add(Chunk([{"index": 0, "delta": delta, "finish_reason": None}]))
    return orjson.dumps(answer.result())


@pytest.mark.parametrize(
    "items",
    [
        [said("A"), said(refused("B")), USER],
        [said("A"), said(text("B"), text("C")), USER],
        [said("A"), said("B"), USER],
        [said(refused("A")), said("B"), USER],
        [said("A"), said(refused("B"), refused("C")), USER],
    ],
    ids=["a refusal", "parts", "texts", "a refusal first", "refusals"],
)
def test_messages_named_one_by_one_are_those_that_were_sent(items: list[JsonObject]) -> None:
    first = turns_of(items)
    assert len(first.messages) == 3
    again = turns_of(named(job_of(first, "a")))
    assert again.messages == first.messages
    assert input_items(job_of(again, "b")) == input_items(job_of(first, "a"))


def test_a_callers_texts_around_a_call_are_one_message_and_apart_where_a_refusal_follows() -> None:
    around = [USER, said("A"), call(1), said("B")]
    sent = turns_of([*around, output(1)])
    tool_calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert sent.messages[1:2] == [{"role": "assistant", "content": "AB", "tool_calls": tool_calls}]
    assert turns_of(named(job_of(sent, "a"))).messages == sent.messages
    parted = turns_of([*around, said(refused("C")), output(1)])
    assert parted.messages[1:4] == [
        {"role": "assistant", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "assistant", "content": "", "refusal": "C", "tool_calls": tool_calls},
    ]
    assert turns_of(named(job_of(parted, "a"))).messages == parted.messages


def test_an_answer_of_text_thought_and_refusal_may_be_gone_on_from() -> None:
    job = job_of(turns_of("hi"), "a")
    result = result_of({"content": "A"}, {"reasoning_content": "t"}, {"refusal": "B"})
    assert conversation(job, result).messages[1:] == [
        {"role": "assistant", "content": "A"},
        {"role": "assistant", "content": "", "refusal": "B"},
    ]
    thought_only = conversation(job, result_of({"reasoning_content": "t"}))
    assert thought_only.messages == job.body["messages"]
    with pytest.raises(BadRequest, match="holds no message"):
        turns_of([{"type": "reasoning", "summary": []}], thought_only)


def test_a_call_and_its_output_are_not_parted_where_a_request_begins_with_a_text() -> None:
    before = gone_on(turns_of("hi"), [call(1)])
    went = [message["role"] for message in turns_of([said("A"), output(1)], before).messages]
    assert went == ["user", "assistant", "tool"]
    assert [message["role"] for message in before.messages] == ["user", "assistant"]
    assert before.messages[1]["content"] is None


def test_what_a_response_said_twice_named_is_said_twice() -> None:
    job = job_of(turns_of("hi"), "a")
    before = conversation(job, result_of({"content": "A"}))
    again = Known({"id": f"msg_{'a' * 32}_0", **said("A")})
    assert [message["content"] for message in turns_of([again], before).messages] == ["hi", "A", "A"]


def test_items_named_in_another_order_than_they_were_said_stay_in_that_one() -> None:
    said_of_a = [Known({**call(n), "id": f"fc_{'a' * 32}_{n}"}) for n in (0, 2)]
    texts = [Known({**said(words), "id": f"msg_{'a' * 32}_{n}"}) for n, words in ((1, "A"), (3, "B"))]
    for items, order in (
        ([texts[0], *reversed(said_of_a)], ["A", "c2", "c0"]),
        ([texts[1], texts[0], *said_of_a], ["B", "A", "c0", "c2"]),
        ([said_of_a[0], texts[0], said_of_a[1], texts[1]], ["AB", "c0", "c2"]),
    ):
        turns = turns_of([USER, *items])
        calls = [one["id"] for message in turns.messages for one in message.get("tool_calls", ())]
        assert [message["content"] for message in turns.messages[1:]] + calls == order
        assert turns_of(named(job_of(turns, "b"))).messages == turns.messages


def test_the_usual_detail_of_an_image_is_listed_and_not_passed_on() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA"}
    first = turns_of([{"role": "user", "content": [image, {**image, "detail": "low"}]}])
    assert first.messages[0]["content"][0] == {"type": "image_url", "image_url": {"url": image["image_url"]}}
    assert turns_of(named(job_of(first, "a"))).messages == first.messages


def roles(turns: Turns) -> list[str]:
    """Each message's role; of outputs the call's id, of calls theirs."""
    found: list[str] = []
    for message in turns.messages:
        calls = [one["id"] for one in message.get("tool_calls", ())]
        found.append(message.get("tool_call_id") or "+".join(calls) or message["role"])
    return found


@pytest.mark.parametrize(
    ("items", "order"),
    [
        ([call(1), USER, output(1)], "c1 c1 user"),
        ([call(1), call(2), output(2), USER, said("A"), output(1), said("B")], "c1+c2 c2 c1 user assistant assistant"),
        ([call(1), output(1), call(1), USER, output(1)], "c1 c1 c1 c1 user"),
        ([call(1), USER, call(1), output(1), output(1)], "c1 c1 user c1 c1"),
        ([call(1), said("A"), said(refused("B")), USER, output(1)], "assistant c1 c1 user"),
        ([output(1), call(1), USER], "c1 c1 user"),
    ],
    ids=["a question", "of several", "an id again", "two of one id", "calls that moved", "no call before"],
)
def test_outputs_come_right_after_their_calls_wherever_they_stood(items: list[JsonObject], order: str) -> None:
    turns = turns_of(items)
    assert roles(turns) == order.split()
    assert turns_of(named(job_of(turns, "a"))).messages == turns.messages
    before = gone_on(Turns(), items[:1])
    assert turns_of(items[1:], before).messages == turns.messages
    assert before.messages == gone_on(Turns(), items[:1]).messages


def test_a_conversation_kept_in_another_order_is_gone_on_from_in_this_one() -> None:
    kept = [message for items in ([call(1)], [USER], [output(1)]) for message in gone_on(Turns(), items).messages]
    old = Job("job_default_" + "a" * 32, "default", "t", "chat", "m", {"messages": kept}, dialect="responses")
    assert roles(conversation(old, result_of({"content": "A"}))) == ["c1", "c1", "user", "assistant"]


@pytest.mark.parametrize(
    ("items", "fault"),
    [
        ([call(1), output(1), call(1)], "No tool output found for function call c1."),
        ([call(1), output(1), call(1), USER, said("A")], "No tool output found for function call c1."),
        ([call(1), call(1), output(1)], "No tool output found for function call c1."),
        ([call(1), output(1), output(1)], "No tool call found for function call output with call_id c1."),
    ],
)
def test_each_call_of_an_id_that_comes_again_needs_its_own_output(items: list[JsonObject], fault: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_calls(turns_of(items).messages)
    assert caught.value.failure.message == fault
    check_calls(turns_of([call(1), output(1), call(1), output(1), call(2), call(2), output(2), output(2)]).messages)


def test_a_page_of_items_makes_only_those_that_it_shows() -> None:
    unshowable: JsonObject = {"role": "user", "content": [{"type": "image_url"}]}
    messages = [unshowable, *({"role": "user", "content": f"n{number}"} for number in range(4))]
    job = replace(job_of(turns_of("hi"), "a"), body={"messages": messages})

    def page(most: int, after: int | None = None, *, descending: bool = True) -> tuple[list[str], bool]:
        start = None if after is None else f"msg_{'a' * 32}_in{after}"
        found = orjson.loads(items_page(job, most, descending=descending, after=start))
        ids = [item["id"] for item in found["data"]]
        assert [found["first_id"], found["last_id"]] == ([ids[0], ids[-1]] if ids else ["", ""])
        return [item["content"][0]["text"] for item in found["data"]], found["has_more"]

    assert page(2) == (["n3", "n2"], True)
    assert page(2, after=3) == (["n1", "n0"], True)
    assert page(9, after=0, descending=False) == (["n0", "n1", "n2", "n3"], False)
    assert page(3, after=0) == ([], False)
    with pytest.raises(KeyError):
        page(5)
    with pytest.raises(BadRequest, match="no such item"):
        page(1, after=9)


# --- any list of items ------------------------------------------------------------------------------------------------

WORDS: Final = st.sampled_from(["", "a", "b", "汉字"])
PARTS: Final = st.lists(st.one_of(WORDS.map(text), WORDS.map(refused)), max_size=3)
ANY_ITEM: Final = st.one_of(
    WORDS.map(said),
    WORDS.map(said),
    WORDS.map(refused).map(said),
    PARTS.map(lambda parts: {**said(""), "content": parts}),
    WORDS.map(lambda words: {"role": "user", "content": words}),
    WORDS.map(lambda words: {"role": "user", "content": [{"type": "input_text", "text": words}] * 2}),
    st.integers(0, 2).map(call),
    st.integers(0, 2).map(call),
    st.integers(0, 2).map(output),
    st.just({"type": "reasoning", "summary": []}),
)
SOME_ITEMS: Final = st.lists(ANY_ITEM, min_size=1, max_size=7)
DELTAS: Final = st.lists(
    st.one_of(
        WORDS.map(lambda words: {"content": words}),
        WORDS.map(lambda words: {"content": words}),
        st.just({"reasoning_content": "t"}),
        WORDS.map(lambda words: {"refusal": words}),
        st.integers(0, 2).map(
            lambda index: {"tool_calls": [{"index": index, "id": f"c{index}", "function": {"name": "f"}}]}
        ),
    ),
    max_size=7,
)


def tried(items: list[JsonObject], before: Turns) -> Turns:
    """The turns after those before; these alone where the items hold none."""
    with contextlib.suppress(BadRequest):
        return turns_of(items, before)
    return before


@settings(max_examples=60, deadline=None)
@given(items=SOME_ITEMS, deltas=DELTAS, more=SOME_ITEMS, data=st.data())
def test_any_conversation_is_the_same_sent_named_and_gone_on_from(
    items: list[JsonObject], deltas: list[JsonObject], more: list[JsonObject], data: Any
) -> None:
    check_response({"model": "m", "input": [*items, *more]})
    first = job_of(tried(items, Turns()), "a")
    result = result_of({"role": "assistant"}, *deltas)
    before = conversation(first, result)
    answer: list[JsonObject] = orjson.loads(whole_response(first, 1, result))["output"]
    known = [*named(first), *map(Known, answer)]
    second = tried(more, before)
    if before.messages and second.messages:
        assert tried([*known, *more], Turns()).messages == second.messages
    # In any order, some left out, between items of the caller's own.
    mixed = tried(data.draw(st.permutations([*known, *more])), Turns())
    some = tried(data.draw(st.lists(st.sampled_from([*known, *more]), unique_by=id)), Turns())
    for turns in (tried(items, Turns()), second, mixed, some):
        job = job_of(turns, "b")
        listed = input_items(job)
        again = gone_on(Turns(), named(job))
        assert again.messages == turns.messages
        assert input_items(job_of(again, "c")) == listed
        with contextlib.suppress(BadRequest):
            response_request({"model": "m", "input": named(job)})
