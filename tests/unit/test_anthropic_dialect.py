"""Anthropic's answers: whole messages, streams put together again, errors, and lists of models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from common.contracts import Failure, Job, JsonObject, Outcome, Position, State, Usage
from common.errors import BadRequest, ContextTooLong
from common.queue import Place
from gateway.dialects.anthropic import MessageShape, message, model_info, model_page, models_object, usage_object
from gateway.errors import TABLE, answer, anthropic_error

JOB_ID = "job_default_" + "0123456789abcdef" * 2
MESSAGE_ID = "msg_" + "0123456789abcdef" * 2
PLACE = Position(1, 1)
STOPS: JsonObject = {"stop_sequences": ["END"]}


def job(**asked: Any) -> Job:
    """A job of someone who wants to see thoughts, unless `asked` says otherwise."""
    body: JsonObject = {"model": "m", "messages": []}
    told = {"thinking": "summarized", **asked}
    return Job(
        JOB_ID, "default", "t", "/v1/chat/completions", "m", body, prompt_tokens=7, dialect="anthropic", asked=told
    )


def called(index: int, arguments: str | None = None, name: str | None = None, **more: Any) -> JsonObject:
    """A streamed delta with a piece of a call."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{"index": index, **more, "function": function}]}


def encoded(deltas: Iterable[JsonObject], finish_reason: str | None, **more: Any) -> list[bytes]:
    choices: list[JsonObject] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish_reason, **more})
    return [orjson.dumps({"choices": [choice]}) for choice in choices]


def read(raw: bytes) -> list[JsonObject]:
    """The events in a stream's bytes; each has its type as its name."""
    found: list[JsonObject] = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        name, data = [line for line in block.split("\n") if not line.startswith(":")]
        document = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {document['type']}"
        found.append(document)
    return found


def streamed(
    deltas: Iterable[JsonObject], finish_reason: str | None = "stop", usage: Usage | None = None, **more: Any
) -> list[JsonObject]:
    shape = MessageShape(job(**more.pop("asked", {})))
    raw = shape.opening() + b"".join([shape.events(PLACE, [one]) for one in encoded(deltas, finish_reason, **more)])
    outcome = Outcome(State.SUCCEEDED, finish_reason, usage or Usage(7, 3))
    return read(raw + shape.end(PLACE, outcome, resumed=False))


def joined(events: list[JsonObject]) -> list[JsonObject]:
    """The blocks that a client puts together. Raises AssertionError where they overlap or are out of order."""
    blocks: list[JsonObject] = []
    is_open = False
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert not is_open and event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
                is_open = True
            case "content_block_delta":
                add(blocks[event["index"]], event["delta"])
                assert event["delta"]["type"] == "signature_delta" or (is_open and event["index"] == len(blocks) - 1)
            case "content_block_stop":
                assert is_open and event["index"] == len(blocks) - 1
                is_open = False
            case _:
                assert not is_open
    return [finished(block) for block in blocks]


def add(block: JsonObject, delta: JsonObject) -> None:
    if delta["type"] == "input_json_delta":
        assert block["type"] == "tool_use"
        block["json"] += delta["partial_json"]
        return
    (name,) = delta.keys() - {"type"}
    block[name] += delta[name]


def finished(block: JsonObject) -> JsonObject:
    raw = block.pop("json")
    return {**block, "input": orjson.loads(raw or "{}")} if block["type"] == "tool_use" else block


def whole(said: JsonObject, finish_reason: str = "stop", asked: JsonObject | None = None, **choice: Any) -> JsonObject:
    one = {"index": 0, "message": said, "finish_reason": finish_reason, **choice}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return orjson.loads(message(job(**asked or {}), 5, orjson.dumps({"choices": [one], "usage": usage})))


# --- whole ------------------------------------------------------------------------------------------------------------


def test_an_answer_is_a_whole_message() -> None:
    assert whole({"role": "assistant", "content": "hi", "refusal": None}) == {
        "id": MESSAGE_ID,
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "hi"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 3,
        },
    }


def test_thoughts_come_first_then_words_then_calls() -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"n": 12345678901234567890123}'}},
        {"id": "", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    said = {"content": "hi", "reasoning_content": "hm", "reasoning_signature": "s", "tool_calls": calls}
    found = whole(said, "tool_calls")
    assert found["stop_reason"] == "tool_use"
    assert found["content"][:2] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "hi"},
    ]
    assert [block["id"] for block in found["content"][2:]] == ["c1", f"toolu_{JOB_ID[-32:]}_1"]
    assert [block["name"] for block in found["content"][2:]] == ["f", "g"]
    assert found["content"][3]["input"] == {}
    raw = orjson.dumps(
        {"choices": [{"index": 0, "message": said}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    )
    assert b'{"n": 12345678901234567890123}' in message(job(), 5, raw)


def test_of_a_call_that_broke_off_there_is_what_can_be_read() -> None:
    def read_of(arguments: str) -> Any:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return whole({"content": None, "tool_calls": [call]}, "length")["content"][0]["input"]

    assert read_of('{"city": "Par') == {"city": "Par"}
    assert read_of('{"a": 1, "b') == {"a": 1}
    assert read_of("[1]") == read_of("nonsense") == read_of('{"a": NaN}') == {}


@pytest.mark.parametrize("signature", [{}, {"reasoning_signature": "s"}])
@pytest.mark.parametrize("display", ["summarized", "omitted", "disabled", None])
def test_thoughts_are_shown_as_far_as_they_were_asked_for(display: str | None, signature: JsonObject) -> None:
    found = whole({"content": "hi", "reasoning_content": "hm", **signature}, asked={"thinking": display})["content"]
    streams = streamed([{"reasoning_content": "hm"}, signature, {"content": "hi"}], asked={"thinking": display})
    assert found == joined(streams)
    thought = {"type": "thinking", "thinking": "hm" if display == "summarized" else ""}
    # Who said nothing of thoughts gets none but what an always thinking model wants back.
    shown = display == "summarized" or (display != "disabled" and signature)
    assert found[:-1] == ([{**thought, "signature": "s" if signature else ""}] if shown else [])
    assert found[-1] == {"type": "text", "text": "hi"}


def test_thoughts_after_a_signature_are_a_block_of_their_own_that_it_does_not_sign() -> None:
    deltas = [{"reasoning_content": "h"}, {"reasoning_signature": "s"}, {"reasoning_content": "m"}, {"content": "a"}]
    assert [(b["thinking"], b["signature"]) for b in joined(streamed(deltas))[:2]] == [("h", "s"), ("m", "")]


CALLED: JsonObject = {"content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("said", "choice", "reason", "sequence"),
    [
        ({"content": "a"}, {"finish_reason": "stop"}, "end_turn", None),
        ({"content": "a"}, {"finish_reason": "length"}, "max_tokens", None),
        ({"content": "a"}, {"finish_reason": "content_filter"}, "refusal", None),
        ({"content": "a"}, {"finish_reason": None}, "end_turn", None),
        ({"content": "a"}, {"finish_reason": "stop", "stop_reason": "END"}, "stop_sequence", "END"),
        ({"content": "a"}, {"finish_reason": "stop", "stop_reason": "other"}, "end_turn", None),
        ({"content": "a"}, {"finish_reason": "stop", "stop_reason": 2}, "end_turn", None),
        ({"content": None, "refusal": "no"}, {"finish_reason": "stop"}, "refusal", None),
        (CALLED, {"finish_reason": "tool_calls"}, "tool_use", None),
        (CALLED, {"finish_reason": "stop"}, "tool_use", None),
        (CALLED, {"finish_reason": "length"}, "max_tokens", None),
    ],
)
def test_the_reason_for_the_end_is_the_same_whole_and_streamed(
    said: JsonObject, choice: JsonObject, reason: str, sequence: str | None
) -> None:
    found = whole(said, asked=STOPS, **choice)
    assert (found["stop_reason"], found["stop_sequence"]) == (reason, sequence)
    delta = {name: value for name, value in said.items() if value}
    delta |= {"tool_calls": [{"index": 0, **call} for call in delta.pop("tool_calls", [])]}
    events = streamed([delta], asked=STOPS, **choice)
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
    assert joined(events) == found["content"]


def test_what_a_cache_gave_or_took_is_counted_apart() -> None:
    details = {"cached_tokens": 60, "cache_write_tokens": 30, "audio_tokens": None}
    told = Usage(
        100, 20, {"prompt_tokens_details": details, "completion_tokens_details": {"reasoning_tokens": 5}}
    ).to_openai()
    assert usage_object(told) == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 60,
        "output_tokens": 20,
        "output_tokens_details": {"thinking_tokens": 5},
    }
    odd = {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}}
    assert usage_object(odd)["input_tokens"] == 0
    assert usage_object({**odd, "prompt_tokens_details": {"cached_tokens": "9"}})["input_tokens"] == 5


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_has_its_events_in_order() -> None:
    events = streamed([{"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}], usage=Usage(8, 2))
    assert [event["type"] for event in events] == [
        *("message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    begun = events[0]["message"]
    assert (begun["id"], begun["model"], begun["content"], begun["stop_reason"]) == (MESSAGE_ID, "m", [], None)
    assert (begun["usage"]["input_tokens"], begun["usage"]["output_tokens"]) == (7, 1)
    assert (events[-2]["usage"]["input_tokens"], events[-2]["usage"]["output_tokens"]) == (8, 2)
    assert joined(events) == [{"type": "text", "text": "ab"}]


def test_an_empty_answer_has_no_blocks() -> None:
    assert [event["type"] for event in streamed([{"role": "assistant", "content": ""}])] == [
        *("message_start", "message_delta", "message_stop")
    ]


def test_each_kind_of_piece_has_blocks_of_its_own() -> None:
    deltas = [
        {"role": "assistant", "reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "a"},
        called(0, "", "f", id="c1", type="function"),
        called(0, '{"x":'),
        called(0, "1}"),
        called(1, "{}", "g"),
        {"content": "z"},
        {"reasoning_signature": "s"},
    ]
    assert joined(streamed(deltas, "tool_calls")) == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "a"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": f"toolu_{JOB_ID[-32:]}_1", "name": "g", "input": {}},
        {"type": "text", "text": "z"},
    ]


def test_what_waits_for_a_call_goes_out_as_soon_as_that_is_whole() -> None:
    shape = MessageShape(job())

    def kinds(*deltas: JsonObject) -> list[str]:
        return [event["type"] for event in read(shape.events(PLACE, encoded(deltas, None)[:-1])) if event]

    assert kinds(called(0, '{"a":', "f", id="c0")) == ["content_block_start", "content_block_delta"]
    assert shape.events(PLACE, encoded([called(1, '{"b":', "g", id="c1"), {"content": "z"}], None)) == b""
    assert kinds(called(0, "1}")) == [
        *("content_block_delta", "content_block_stop", "content_block_start", "content_block_delta")
    ]
    assert kinds(called(1, "2}"))[:2] == ["content_block_delta", "content_block_stop"]


def test_calls_without_arguments_and_those_that_broke_off_hold_nothing_back_for_good() -> None:
    bare = [called(0, "", "f", id="c0"), called(1, "", "g", id="c1"), {"content": "z"}]
    found = joined(streamed(bare, "tool_calls"))
    assert [block.get("name", block.get("text")) for block in found] == ["f", "g", "z"]
    torn = streamed([called(0, '{"a', "f", id="c0"), {"content": "z"}], "length")
    starts = [event["content_block"]["type"] for event in torn if event["type"] == "content_block_start"]
    assert starts == ["tool_use", "text"]
    nameless = streamed([called(0, "{}"), called(0, "", "f", id="late")], "tool_calls")
    assert [(block["name"], block["id"]) for block in joined(nameless)] == [("f", "late")]


def test_a_signature_known_in_time_is_told_inside_its_block() -> None:
    events = streamed([{"reasoning_content": "h"}, {"reasoning_signature": "s"}, {"content": "a"}])
    kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta", "signature_delta", "text_delta"]
    assert joined(events)[0]["signature"] == "s"


def test_a_call_of_a_stored_answer_needs_no_index() -> None:
    calls = [{"id": f"c{number}", "function": {"name": "f", "arguments": '{"a":1}'}} for number in range(2)]
    found = joined(streamed([{"role": "assistant", "content": None, "tool_calls": calls}]))
    assert [(block["id"], block["input"]) for block in found] == [("c0", {"a": 1}), ("c1", {"a": 1})]


@pytest.mark.parametrize(
    "junk", [{"reasoning_blocks": 5}, {"reasoning_blocks": [5, {"type": "x"}]}, {"reasoning_signature": {"a": 1}}]
)
def test_blocks_and_signatures_that_are_none_are_left_out(junk: JsonObject) -> None:
    thought, said = {"reasoning_content": "hm"}, {"content": "yes"}
    assert joined(streamed([thought, junk, said, {**said, **junk}])) == joined(streamed([thought, said, said]))
    message = {**thought, **said, **junk}
    assert whole(message)["content"] == whole({**thought, **said})["content"]


def test_other_choices_than_the_first_are_left_out() -> None:
    shape = MessageShape(job())
    other = orjson.dumps({"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]})
    assert shape.events(PLACE, [other]) == b""


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
inputs = st.dictionaries(text, st.integers(-(2**53), 2**53) | text | st.lists(text, max_size=2), max_size=3)


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[list[JsonObject], list[tuple[str, Any]]]:
    """Deltas of several calls whose pieces come in any order, each call's in its own; and what they say."""
    calls = draw(st.lists(inputs, min_size=1, max_size=4))
    pieces: list[list[JsonObject]] = []
    for index, one in enumerate(calls):
        raw = orjson.dumps(one).decode()
        cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=3)))
        parts = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        pieces.append([called(index, "", f"f{index}", id=f"c{index}"), *[called(index, part) for part in parts]])
    order = draw(st.permutations([index for index, own in enumerate(pieces) for _ in own]))
    sources = [iter(own) for own in pieces]
    return [next(sources[index]) for index in order], [(f"f{index}", one) for index, one in enumerate(calls)]


@given(interleaved(), st.lists(text, max_size=3))
def test_calls_come_out_exactly_however_their_pieces_were_mixed(
    mixed: tuple[list[JsonObject], list[tuple[str, Any]]], words: list[str]
) -> None:
    deltas, expected = mixed
    said = [{"content": one} for one in words]
    found = joined(streamed([*said[:1], *deltas, *said[1:]], "tool_calls"))
    tools = [(block["name"], block["input"]) for block in found if block["type"] == "tool_use"]
    assert sorted(tools, key=lambda tool: tool[0]) == expected
    assert "".join(block["text"] for block in found if block["type"] == "text") == "".join(words)


@given(st.lists(st.tuples(st.sampled_from(["content", "reasoning_content"]), text), max_size=12))
def test_words_and_thoughts_come_out_exactly(said: list[tuple[str, str]]) -> None:
    found = joined(streamed([{name: piece} for name, piece in said]))
    for name, kind, key in (("content", "text", "text"), ("reasoning_content", "thinking", "thinking")):
        wanted = "".join(piece for one, piece in said if one == name)
        assert "".join(block[key] for block in found if block["type"] == kind) == wanted


def test_a_silence_is_a_ping_and_a_place_in_the_queue_a_comment() -> None:
    shape = MessageShape(job())
    assert read(shape.keep_alive()) == [{"type": "ping"}]
    assert shape.waiting(Place(State.QUEUED, 3, 1500)) == b": queue position=3 estimated_wait_ms=1500\n"


def test_a_failure_in_the_middle_is_one_event() -> None:
    shape = MessageShape(job())
    with bound_contextvars(request_id="req_1"):
        (told,) = read(shape.failed(None, Failure("upstream_interrupted", "It broke off.")))
    assert told == {"type": "error", "error": {"type": "api_error", "message": "It broke off."}, "request_id": "req_1"}


def test_after_an_answer_that_begins_anew_nothing_is_said_any_more() -> None:
    shape = MessageShape(job())
    shape.events(PLACE, encoded([{"content": "a"}], None))
    (told,) = read(shape.anew(Position(2, 0)))
    assert told["type"] == "error"
    later = Position(2, 1)
    assert shape.events(later, encoded([{"content": "b"}], "stop")) == b""
    assert shape.end(later, Outcome(State.SUCCEEDED, "stop", Usage(1, 1)), resumed=False) == b""
    assert shape.failed(later, Failure("internal_error", "x")) == shape.keep_alive() == b""


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("invalid_request", 400, "invalid_request_error"),
        ("invalid_api_key", 401, "authentication_error"),
        ("permission_denied", 403, "permission_error"),
        ("model_not_found", 404, "not_found_error"),
        ("request_too_large", 413, "request_too_large"),
        ("idempotency_key_reused", 422, "invalid_request_error"),
        ("queue_full", 429, "rate_limit_error"),
        ("internal_error", 500, "api_error"),
        ("upstream_error", 502, "api_error"),
        ("store_unavailable", 503, "api_error"),
        ("deadline_exceeded", 504, "timeout_error"),
        ("server_overloaded", 529, "overloaded_error"),
        ("wait_exceeds_deadline", 529, "overloaded_error"),
        ("store_full", 529, "overloaded_error"),
        ("upstream_busy", 529, "overloaded_error"),
    ],
)
def test_an_error_has_anthropics_status_and_type(code: str, status: int, kind: str) -> None:
    found, body, headers = anthropic_error(Failure(code, "why", retry_after_s=2))
    assert (found, orjson.loads(body)["error"]) == (status, {"type": kind, "message": "why"})
    assert headers["retry-after"] == "2"


LONG = "context_length_exceeded"
MAXIMUM = "This model's maximum context length is 8 tokens."


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Failure(LONG, MAXIMUM, "messages"), f"prompt is too long: {MAXIMUM}"),
        (Failure(LONG, MAXIMUM, "max_tokens"), MAXIMUM),
        (Failure(LONG, "prompt is too long: 9 tokens > 8 maximum"), "prompt is too long: 9 tokens > 8 maximum"),
        (ContextTooLong().failure, str(ContextTooLong())),
        (Failure("upstream_refused", MAXIMUM), MAXIMUM),
    ],
)
def test_a_conversation_that_has_to_be_shortened_is_called_so_as_anthropic_does(failure: Failure, message: str) -> None:
    assert orjson.loads(anthropic_error(failure)[1])["error"]["message"] == message
    (event,) = read(MessageShape(job()).failed(None, failure))
    assert event["error"]["message"] == message


def test_every_code_has_a_type_that_anthropics_clients_know() -> None:
    for code in TABLE:
        status, body, _ = anthropic_error(Failure(code, "why"))
        assert 400 <= status < 600 and orjson.loads(body)["error"]["type"].endswith(("_error", "request_too_large"))


@pytest.mark.parametrize(
    ("path", "ours"), [("/v1/messages", True), ("/v1/messages/count_tokens", True), ("/v1/messagesque", False)]
)
def test_only_its_own_paths_answer_in_its_form(path: str, ours: bool) -> None:
    body = orjson.loads(bytes(answer(Failure("not_found", "why"), path).body))
    assert ("request_id" in body) == ours


# --- models -----------------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("asked", "page", "more"),
    [
        ({}, NAMES, False),
        ({"limit": "2"}, ["a", "b"], True),
        ({"limit": "2", "after_id": "b"}, ["c", "d"], False),
        ({"after_id": "d"}, [], False),
        ({"limit": "2", "before_id": "d"}, ["b", "c"], True),
        ({"limit": "3", "before_id": "d"}, ["a", "b", "c"], False),
        ({"before_id": "a"}, [], False),
    ],
)
def test_models_come_in_pages(asked: dict[str, str], page: list[str], more: bool) -> None:
    assert model_page(NAMES, asked) == (page, more)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": "0000000199999"}, "limit"),
        ({"after_id": "z"}, "after_id"),
        ({"before_id": "z"}, "before_id"),
        ({"after_id": "a", "before_id": "b"}, "after_id"),
    ],
)
def test_a_page_that_there_is_not_is_refused(asked: dict[str, str], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        model_page(NAMES, asked)
    assert caught.value.failure.param == param


def test_a_page_of_models_names_its_first_and_last() -> None:
    page = orjson.loads(models_object([model_info("a", 5, 90), model_info("b")], has_more=True))
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("a", "b", True)
    assert [(one["id"], one["type"], one["display_name"]) for one in page["data"]] == [
        ("a", "model", "a"),
        ("b", "model", "b"),
    ]
    assert [(one["max_tokens"], one["max_input_tokens"]) for one in page["data"]] == [(5, 90), (None, None)]
    empty = orjson.loads(models_object([], has_more=False))
    assert empty == {"data": [], "has_more": False, "first_id": None, "last_id": None}
