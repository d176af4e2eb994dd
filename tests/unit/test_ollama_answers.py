"""Ollama's answers as they go out: lines, whole answers, vectors, models, errors."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from struct import pack
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.contracts import Failure, Job, JsonObject, Outcome, Position, State, Usage
from common.queue import Place
from gateway.dialects import names, ollama_answers
from gateway.dialects.ollama import known_name
from gateway.dialects.surfaces import shape_of, surface_of
from gateway.errors import answer

KNOWN = frozenset({"m", "tagged:latest", "org/m:8b"})
CREATED_S = 1_795_261_578
CREATED = "2026-11-21T11:46:18.000Z"
LAST = Position(1, 9)


def job(dialect: str = names.OLLAMA_CHAT, *, model: str = "m", **asked: Any) -> Job:
    return Job("job_p_" + "0" * 32, "p", "t", "/v1/chat/completions", model, {}, dialect=dialect, asked=asked)


# --- streams ----------------------------------------------------------------------------------------------------------

OUTCOME = Outcome(
    State.SUCCEEDED,
    "stop",
    Usage(3, 5),
    timings_ms={"queued": 10, "first_token": 30, "total": 100},
)
DURATIONS = {
    "total_duration": 100_000_000,
    "load_duration": 10_000_000,
    "prompt_eval_duration": 20_000_000,
    "eval_duration": 70_000_000,
}
IN_ONE_PIECE = {"total_duration": 100_000_000, "load_duration": 10_000_000, "eval_duration": 90_000_000}


def events(*deltas: JsonObject, reason: str | None = "stop") -> list[bytes]:
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    ends = [{"index": 0, "delta": {}, "finish_reason": reason}] if reason else []
    return [orjson.dumps({"choices": [choice]}) for choice in [*choices, *ends]]


def lines(raw: bytes) -> list[JsonObject]:
    assert not raw or raw.endswith(b"\n")
    return [orjson.loads(line) for line in raw.split(b"\n")[:-1]]


def streamed(given: Job, *said: bytes, outcome: Outcome = OUTCOME) -> list[JsonObject]:
    shape = surface_of(given).shape(given, CREATED_S)
    return lines(shape.opening() + shape.events(LAST, said) + shape.end(LAST, outcome, resumed=False))


def whole_answer(message: JsonObject, *, reason: str = "stop") -> JsonObject:
    choice = {"index": 0, "message": message, "finish_reason": reason}
    result = orjson.dumps({"choices": [choice], "usage": Usage(3, 5).to_openai()})
    return orjson.loads(surface_of(job()).whole(job(), CREATED_S, result))


def test_a_stream_is_a_line_for_each_piece_and_one_for_the_end() -> None:
    given = events({"role": "assistant", "content": "a"}, {"reasoning_content": "t"}, {"content": ""}, {"refusal": "r"})
    head = {"model": "m", "created_at": CREATED}

    def message(**said: Any) -> JsonObject:
        return {**head, "message": {"role": "assistant", "content": "", **said}, "done": False}

    last = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 5, **DURATIONS}
    assert streamed(job(), *given) == [
        message(content="a"),
        message(thinking="t"),
        message(content="r"),
        {**message(), **last},
    ]
    assert streamed(job(dialect=names.OLLAMA_GENERATE), *given) == [
        {**head, "response": "a", "done": False},
        {**head, "response": "", "thinking": "t", "done": False},
        {**head, "response": "r", "done": False},
        {**head, "response": "", **last},
    ]


@pytest.mark.parametrize(
    ("reason", "shown"),
    [("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), (None, "stop"), ("content_filter", "stop")],
)
def test_the_end_says_why(reason: str | None, shown: str) -> None:
    outcome = Outcome(State.SUCCEEDED, reason, None, timings_ms={"queued": 0, "total": 1})
    (last,) = streamed(job(), outcome=outcome)
    assert last["done_reason"] == shown
    assert "eval_count" not in last and "prompt_eval_count" not in last


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        ({"queued": 10, "first_token": 30, "total": 100}, DURATIONS),
        ({"queued": 10, "total": 100}, {**DURATIONS, "prompt_eval_duration": None, "eval_duration": 90_000_000}),
        (
            {"queued": 10, "first_token": 100, "total": 100},
            {**DURATIONS, "prompt_eval_duration": None, "eval_duration": 90_000_000},
        ),
        (
            {"queued": 5, "total": 5},
            {"total_duration": 6_000_000, "load_duration": 5_000_000, "eval_duration": 1_000_000},
        ),
    ],
)
def test_durations_are_nanoseconds_that_can_be_divided_by(timings: dict[str, int], expected: JsonObject) -> None:
    found = ollama_answers.durations(Outcome(State.SUCCEEDED, timings_ms=timings), streamed=True)
    assert found == {name: value for name, value in expected.items() if value is not None}


def test_an_answer_in_one_piece_tells_no_speed_by_when_it_came() -> None:
    late = Outcome(State.SUCCEEDED, timings_ms={"queued": 10, "first_token": 99, "total": 100})
    told = orjson.loads(ollama_answers.timed(b'{"model":"m"}', late, 0))
    assert told["eval_duration"] == 90_000_000 and "prompt_eval_duration" not in told


def test_the_whole_takes_no_less_than_its_parts() -> None:
    told = orjson.loads(ollama_answers.timed(b'{"model":"m"}', Outcome(State.SUCCEEDED), 0))
    assert told["total_duration"] == told["eval_duration"] == 1_000_000


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9)), min_size=1, max_size=3), st.integers(1, 7))
def test_tool_calls_in_pieces_go_out_whole_once(arguments: list[JsonObject], size: int) -> None:
    pieces: list[JsonObject] = []
    for index, one in enumerate(arguments):
        function = {"name": f"f{index}", "arguments": ""}
        pieces.append({"tool_calls": [{"index": index, "id": f"c{index}", "type": "function", "function": function}]})
        text = orjson.dumps(one).decode()
        pieces += [
            {"tool_calls": [{"index": index, "function": {"arguments": text[start : start + size]}}]}
            for start in range(0, len(text), size)
        ]
    expected = [
        {"id": f"c{index}", "function": {"index": index, "name": f"f{index}", "arguments": one}}
        for index, one in enumerate(arguments)
    ]
    for reason in ("tool_calls", None):
        first, last = streamed(job(), *events(*pieces, reason=reason))
        assert first["message"]["tool_calls"] == expected and not first["done"]
        assert "tool_calls" not in last["message"]


@pytest.mark.parametrize(
    ("text", "read"),
    [('{"a": 1, "b', {"a": 1}), ('{"a": "be', {"a": "be"}), ("", {}), *((text, {}) for text in ("[1]", "null", "x"))],
)
def test_of_arguments_that_broke_off_what_can_be_read_goes_out(text: str, read: JsonObject) -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": text}}
    outcome = Outcome(State.SUCCEEDED, "length", Usage(3, 5))
    said, last = streamed(job(), *events({"tool_calls": [call]}, reason="length"), outcome=outcome)
    assert said["message"]["tool_calls"] == [{"id": "c", "function": {"index": 0, "name": "f", "arguments": read}}]
    assert last["done_reason"] == "length"
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    whole = whole_answer(message, reason="length")
    assert whole["message"]["tool_calls"] == said["message"]["tool_calls"]
    assert whole["done_reason"] == "length"


def test_a_line_is_one_however_arguments_and_texts_are_broken_into_lines() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{\n  "a\u2029": 1,\r\n  "b": "x\\ny"\r}\n'}}
    shape = surface_of(job()).shape(job(), CREATED_S)
    raw = shape.events(LAST, events({"content": "a\u2028b\x85c\u2029d\n\x1e\x0b"}, {"tool_calls": [call]}))
    # As Ollama's own client splits a stream.
    said, called = (orjson.loads(line)["message"] for line in raw.decode().splitlines())
    assert said["content"] == "a\u2028b\x85c\u2029d\n\x1e\x0b"
    assert called["tool_calls"][0]["function"]["arguments"] == {"a\u2029": 1, "b": "x\ny"}


def test_numbers_in_arguments_stay_as_long_as_they_are() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": 123456789012345678901234567890}'}}
    shape = surface_of(job()).shape(job(), CREATED_S)
    assert b"123456789012345678901234567890" in shape.events(LAST, events({"tool_calls": [call]}))


@given(st.lists(st.text(max_size=6), max_size=6), st.lists(st.text(max_size=6), max_size=6))
def test_a_stream_and_a_whole_answer_say_the_same(texts: list[str], thoughts: list[str]) -> None:
    deltas: list[JsonObject] = [{"reasoning_content": text} for text in thoughts]
    deltas += [{"content": text} for text in texts]
    message = {"role": "assistant", "content": "".join(texts), "reasoning_content": "".join(thoughts)}
    result = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": Usage(3, 5).to_openai(),
    }
    for asked in (dict[str, Any](), {"think": False}):
        given = replace(job(), asked=asked)
        said = streamed(given, *events(*deltas))
        whole = orjson.loads(surface_of(given).whole(given, CREATED_S, orjson.dumps(result)))
        joined = "".join(line["message"].get("thinking", "") for line in said)
        assert whole["message"].get("thinking", "") == joined == ("" if asked else "".join(thoughts))
        assert whole["message"]["content"] == "".join(line["message"]["content"] for line in said) == "".join(texts)
        ended = "2026-11-21T11:46:18.105Z"
        told = ollama_answers.timed(orjson.dumps(whole), OUTCOME, CREATED_S * 1000 + 5)
        assert orjson.loads(told) == {**whole, "created_at": ended, **IN_ONE_PIECE}


@pytest.mark.parametrize("dialect", [names.OLLAMA_CHAT, names.OLLAMA_GENERATE])
def test_each_line_tells_its_own_time(dialect: str) -> None:
    moments = iter([CREATED_S * 1000 + rest_ms for rest_ms in (7, 70, 1_999)])
    shape = shape_of(job(dialect), 0, lambda: next(moments))
    said = lines(
        shape.events(LAST, events({"content": "a"}, {"content": "b"})) + shape.end(LAST, OUTCOME, resumed=False)
    )
    assert [line["created_at"] for line in said] == [
        *("2026-11-21T11:46:18.007Z", "2026-11-21T11:46:18.070Z", "2026-11-21T11:46:19.999Z"),
    ]


def test_nothing_goes_out_that_clients_would_take_for_a_piece() -> None:
    shape = surface_of(job()).shape(job(), CREATED_S)
    assert shape.opening() + shape.keep_alive() + shape.waiting(Place(State.QUEUED, 3, 500)) == b""
    assert lines(shape.failed(None, Failure("upstream_error", "It failed."))) == [{"error": "It failed."}]


def test_an_answer_that_begins_anew_forgets_half_a_tool_call() -> None:
    shape = surface_of(job()).shape(job(), CREATED_S)
    half = {"index": 0, "id": "old", "function": {"name": "f", "arguments": '{"a'}}
    assert shape.events(LAST, events({"tool_calls": [half]}, reason=None)) == b""
    (word,) = lines(shape.anew(Position(2, 0)))
    assert word["headrace"] == {"event": "reset"} and not word["done"] and not word["message"]["content"]
    whole = {"index": 0, "id": "new", "function": {"name": "g", "arguments": "{}"}}
    (called,) = lines(shape.events(LAST, events({"tool_calls": [whole]})))
    assert [call["id"] for call in called["message"]["tool_calls"]] == ["new"]


# --- names, vectors and refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "answers", "shown"),
    [
        ("m:latest", "m", "m:latest"),
        (None, "m", "m"),
        ("tagged", "tagged:latest", "tagged"),
        ("auto:latest", "small", "small"),
    ],
)
def test_the_model_is_named_as_it_was_unless_another_answers(asked: str | None, answers: str, shown: str) -> None:
    given = replace(job(model=answers), asked={"model": asked} if asked else {})
    assert streamed(given)[0]["model"] == shown


def test_vectors_go_out_as_the_very_numbers() -> None:
    numbers = (0.5, -0.25, 1.5)
    result = orjson.dumps(
        {
            "embeddings": [b64encode(pack("<3f", *numbers)).decode()] * 2,
            "usage": {"prompt_tokens": 4, "total_tokens": 4},
        }
    )
    given = job(names.OLLAMA_EMBED)
    body = ollama_answers.timed_embeddings(surface_of(given).whole(given, CREATED_S, result), OUTCOME, 0)
    assert orjson.loads(body) == {
        **{"model": "m", "embeddings": [list(numbers)] * 2, "prompt_eval_count": 4},
        **{"total_duration": 100_000_000, "load_duration": 10_000_000},
    }
    old = job(names.OLLAMA_EMBEDDINGS)
    assert orjson.loads(surface_of(old).whole(old, CREATED_S, result)) == {"embedding": list(numbers)}


def test_a_model_is_shown_with_what_is_known_of_it() -> None:
    known = orjson.loads(ollama_answers.shown(8192, ["tools", "vision", "reasoning", "audio"]))
    assert known["capabilities"] == ["completion", "tools", "vision", "thinking"]
    assert known["model_info"] == {"general.architecture": "headrace", "headrace.context_length": 8192}
    assert "headrace.context_length" not in orjson.loads(ollama_answers.shown(None, []))["model_info"]


def test_listed_names_have_a_tag_and_find_their_model_again() -> None:
    listed = [one["name"] for one in orjson.loads(ollama_answers.tags(sorted(KNOWN)))["models"]]
    assert listed == ["m:latest", "org/m:8b", "tagged:latest"]
    assert [known_name(name, KNOWN) for name in listed] == sorted(KNOWN)
    (one,) = orjson.loads(ollama_answers.running([("host:80/m", 5)]))["models"]
    assert (one["name"], one["context_length"]) == ("host:80/m:latest", 5)


def test_errors_are_one_text_with_the_tables_status() -> None:
    refused = answer(Failure("queue_full", "Full.", retry_after_s=2), "/api/chat")
    assert (refused.status_code, refused.body) == (429, b'{"error":"Full."}')
    assert refused.headers["retry-after"] == "2"
