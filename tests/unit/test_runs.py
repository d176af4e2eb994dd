"""The order of what was said: gathered from streams, and told again from the stored message."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from common.contracts import Job, JsonObject
from common.runs import NAMES, RUNS, Runs, in_one, in_order
from common.thoughts import Thought, carried
from gateway.dialects.openai import completion_object
from gateway.rpc.writing import completion_of

JOB = Job(id="job_a_" + "0" * 32, pool="a", tenant="t", endpoint="/v1/chat/completions", model="m", body={})


def gathered(*deltas: JsonObject) -> list[list[Any]] | None:
    runs = Runs()
    for delta in deltas:
        runs.add({"index": 0, "delta": delta})
    return runs.result()


def call(*indexes: int) -> JsonObject:
    return {"tool_calls": [{"index": index, "function": {}} for index in indexes]}


@pytest.mark.parametrize(
    "deltas",
    [
        [],
        [{"role": "assistant", "content": ""}],
        [{"content": "a"}, {"content": "b"}],
        [{"reasoning_content": "a"}, {"content": "b"}, {"annotations": [{}]}, {"refusal": "c"}, call(0), call(1, 0)],
        [{"content": "b", "reasoning_content": "a", **call(1, 2)}],
    ],
)
def test_the_usual_order_is_not_written_down(deltas: list[JsonObject]) -> None:
    assert gathered(*deltas) is None


def test_each_change_is_a_run_and_a_call_stands_where_it_begins() -> None:
    found = gathered({"content": "ab"}, call(5), {"content": "c"}, call(5), {"content": "d"}, call(3, 5))
    assert found == [["content", 2], ["tool_calls", 1], ["content", 2], ["tool_calls", 0]]


def test_log_probabilities_stay_with_the_text_that_they_came_with() -> None:
    runs = Runs()
    for delta, count in (({"content": "a"}, 2), ({"reasoning_content": "t"}, 1), ({"content": "b"}, 3)):
        runs.add({"index": 0, "delta": delta, "logprobs": {"content": [{}] * count}})
    message = {"role": "assistant", "content": "ab", "reasoning_content": "t"}
    choice = {"index": 2, "message": message, "logprobs": {"content": [*range(6)]}, RUNS: runs.result()}
    assert [*in_order(choice)] == [
        {"index": 2, "delta": {"role": "assistant", "content": "a"}, "logprobs": {"content": [0, 1]}},
        {"index": 2, "delta": {"reasoning_content": "t"}},
        {"index": 2, "delta": {}, "logprobs": {"content": [2]}},
        {"index": 2, "delta": {"content": "b"}, "logprobs": {"content": [3, 4, 5]}},
    ]


def test_without_runs_a_choice_is_told_in_one() -> None:
    choice: JsonObject = {"index": 0, "message": dict.fromkeys(NAMES, "x"), "logprobs": None}
    assert [*in_order(choice)] == [*in_one(choice)] == [{"index": 0, "delta": choice["message"]}]


@pytest.mark.parametrize(
    ("runs", "more"),
    [
        ([["content", 1], ["annotations", 1], ["content", 1]], {"annotations": {"0": {}}}),
        ([["content", 1], ["refusal", 1], ["content", 1]], {}),
        ([["content", 1], ["reasoning_content", 1]], {"reasoning_content": "t"}),
        ([["tool_calls", 1], ["content", 2]], {"tool_calls": [{"id": "c"}]}),
        ([["tool_calls", 0], ["content", 2], ["tool_calls", 0]], {"tool_calls": [{"id": "c"}, {"id": "d"}]}),
    ],
)
def test_runs_that_do_not_fit_the_message_are_none(runs: list[list[Any]], more: JsonObject) -> None:
    choice: JsonObject = {"index": 0, "message": {"content": "ab", **more}, RUNS: runs}
    assert [*in_order(choice)] == [*in_one(choice)]


def test_of_an_answer_in_one_piece_thoughts_tell_the_order() -> None:
    def choice(**more: Any) -> JsonObject:
        thoughts = [Thought("hm", "s1"), Thought("oh", "s2", characters=2), Thought("", "s3", characters=2, calls=1)]
        calls = [{"id": f"c{number}"} for number in (0, 1)]
        message = {"content": "abc", "tool_calls": calls, **carried(thoughts, told=True), **more}
        return {"index": 0, "message": message, "logprobs": None}

    deltas = [piece["delta"] for piece in in_order(choice(refusal="no"))]
    assert [next(iter(delta.items())) for delta in deltas[:-1]] == [
        ("reasoning_content", "hm"),
        ("content", "ab"),
        ("reasoning_content", "oh"),
        ("tool_calls", [{"id": "c0", "index": 0}]),
        ("reasoning_content", ""),
        ("content", "c"),
        ("tool_calls", [{"id": "c1", "index": 1}]),
    ]
    assert deltas[-1]["refusal"] == "no"
    untold = choice(reasoning_content=None)
    assert [*in_order(untold)] == [*in_one(untold)]


def test_chat_completions_do_not_show_them() -> None:
    choice = {"index": 0, "message": {"content": "ab"}, "finish_reason": "stop", RUNS: [["content", 2]]}
    assert RUNS not in completion_object("job_a", 1, "m", {"choices": [choice]})["choices"][0]
    assert b"runs" not in completion_of(JOB, 1, orjson.dumps({"choices": [{**choice, RUNS: []}]})).SerializeToString()
