"""Blocks of thinking on their whole way: out of Anthropic's answers to its clients, and back as they were."""

from __future__ import annotations

import sys
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.contracts import Chunk, Job, JsonObject, Outcome, Position, State, Usage
from common.thoughts import thoughts_of
from gateway.dialects.anthropic import MessageShape, message
from gateway.dialects.anthropic_request import parse_message
from tests.providers.fields import wire_of
from tests.providers.interleaved import HIDDEN, MORE, SEALED, SECOND, THOUGHT, WORDS, joined, upstream_events, use
from workers.answer import Answer
from workers.inference import encode_event
from workers.providers import anthropic

PLACE = Position(1, 1)


# --- the way out ------------------------------------------------------------------------------------------------------


def chunks(blocks: list[JsonObject], *, streamed: bool) -> list[Chunk]:
    if not streamed:
        return [anthropic.from_body({"content": blocks, "stop_reason": "end_turn"})]
    progress = anthropic.Progress()
    return [chunk for event in upstream_events(blocks) if (chunk := progress.next(event)) is not None]


def job(thinking: str | None) -> Job:
    asked = {} if thinking is None else {"thinking": thinking}
    body: JsonObject = {"model": "m", "messages": []}
    return Job("job_default_" + "0" * 32, "default", "t", "/v1/chat/completions", "m", body, asked=asked)


def result(answered: list[Chunk]) -> JsonObject:
    answer = Answer(7)
    for chunk in answered:
        answer.add(chunk)
    return orjson.loads(orjson.dumps(answer.result()))


def whole(answered: list[Chunk], thinking: str | None = "summarized") -> list[JsonObject]:
    return orjson.loads(message(job(thinking), 5, orjson.dumps(result(answered))))["content"]


def streamed(events: list[bytes], thinking: str | None = "summarized") -> list[JsonObject]:
    """The blocks that a client puts together out of the stream."""
    shape = MessageShape(job(thinking))
    raw = b"".join([shape.events(PLACE, [event]) for event in events])
    raw += shape.end(PLACE, Outcome(State.SUCCEEDED, "stop", Usage(7, 3)), resumed=False)
    return joined(raw)


def replayed(answered: list[Chunk]) -> list[bytes]:
    """The stored answer as a stream's events."""
    said = result(answered)["choices"][0]["message"]
    deltas: list[JsonObject] = [said, {}]
    return [orjson.dumps({"choices": [{"index": 0, "delta": one, "finish_reason": None}]}) for one in deltas]


def ways_out(blocks: list[JsonObject], thinking: str | None = "summarized") -> list[list[JsonObject]]:
    """These blocks as clients get them, on every way from an Anthropic server to them."""
    found: list[list[JsonObject]] = []
    for is_streamed in (True, False):
        answered = chunks(blocks, streamed=is_streamed)
        found += [whole(answered, thinking), streamed([encode_event(chunk) for chunk in answered], thinking)]
        found.append(streamed(replayed(answered), thinking))
    return found


# --- the way back -----------------------------------------------------------------------------------------------------


def wire(blocks: list[JsonObject], kind: str = "anthropic") -> JsonObject:
    """What a server of this kind gets of a conversation in which these blocks were said."""
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "1"}
        for block in blocks
        if block["type"] == "tool_use"
    ]
    turns: list[JsonObject] = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": results or "on"},
    ]
    asked = {"model": "m", "max_tokens": 9_000, "messages": turns, "thinking": {"type": "adaptive"}}
    return wire_of(kind, parse_message(orjson.dumps(asked)).body)


def merged(blocks: list[JsonObject]) -> list[JsonObject]:
    """Neighbouring texts made one."""
    found: list[JsonObject] = []
    for block in blocks:
        if found and block["type"] == found[-1]["type"] == "text":
            found[-1] = {"type": "text", "text": found[-1]["text"] + block["text"]}
        else:
            found.append(block)
    return found


# --- both -------------------------------------------------------------------------------------------------------------

INTERLEAVED: list[list[JsonObject]] = [
    [THOUGHT, WORDS],
    [THOUGHT, use(0)],
    [THOUGHT, SECOND, WORDS, use(0)],
    [SEALED, WORDS],
    [SEALED, THOUGHT, SEALED, use(0), use(1)],
    [WORDS, THOUGHT, use(0)],
    [THOUGHT, WORDS, use(0), SECOND, MORE, SEALED, use(1), HIDDEN, use(2)],
    [HIDDEN, use(0), HIDDEN, WORDS],
]


@pytest.mark.parametrize("blocks", INTERLEAVED)
def test_an_anthropic_client_gets_the_blocks_of_an_anthropic_server_as_they_were_said(blocks: list[JsonObject]) -> None:
    assert ways_out(blocks) == [blocks] * 6


@pytest.mark.parametrize("blocks", INTERLEAVED)
def test_what_a_client_sends_back_reaches_an_anthropic_server_unchanged(blocks: list[JsonObject]) -> None:
    asked = wire(blocks)
    assert asked["messages"][1]["content"] == blocks
    assert asked["thinking"] == {"type": "adaptive"}


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
nonblank = text.map(lambda words: f"a{words}")
thinking = st.builds(lambda words, proof: {**THOUGHT, "thinking": words, "signature": proof}, text, nonblank)
sealed = st.builds(lambda data: {**SEALED, "data": data}, nonblank)
said = st.builds(lambda words: {"type": "text", "text": words}, nonblank)
segments = st.lists(
    st.tuples(st.lists(thinking | sealed, min_size=1, max_size=3), st.lists(said, max_size=2), st.integers(0, 2)),
    min_size=1,
    max_size=4,
)


@given(segments, st.booleans())
def test_whatever_was_thought_wherever_goes_out_and_comes_back_as_it_was(
    turns: list[tuple[list[JsonObject], list[JsonObject], int]], thinks_first: bool
) -> None:
    blocks: list[JsonObject] = []
    called = 0
    for number, (thoughts, texts, calls) in enumerate(turns):
        blocks += [*(thoughts if number or thinks_first else ()), *texts, *map(use, range(called, called + calls))]
        called += calls
    assume(any(block["type"] in ("text", "tool_use") for block in blocks))
    assert ways_out(blocks) == [merged(blocks)] * 6
    assert wire(blocks)["messages"][1]["content"] == blocks
    assert wire(merged(blocks))["messages"][1]["content"] == merged(blocks)


MARK: JsonObject = {"cache_control": {"type": "ephemeral"}}
parts = st.lists(st.tuples(st.text("ab \n", max_size=4), st.booleans()), max_size=5)


def spoken(given: list[tuple[str, bool]], places: list[int]) -> list[JsonObject]:
    """The turn's blocks, put together character by character: a text ends where its part does, or a thought stands."""
    ends = [0, *places, 1_000]
    characters = [(number, at, one) for number, (words, _) in enumerate(given) for at, one in enumerate(words)]
    blocks: list[JsonObject] = []
    here = 0
    for number, end in enumerate(ends[1:]):
        stretch, here = characters[here : max(end, here)], max(end, here)
        for part, (words, marked) in enumerate(given):
            held = [(at, one) for owner, at, one in stretch if owner == part]
            said = "".join(one for _, one in held)
            if said.strip():
                is_end = held[-1][0] == len(words) - 1
                blocks.append({"type": "text", "text": said, **(MARK if marked and is_end else {})})
        if number < len(places):
            blocks.append({"type": "redacted_thinking", "data": f"x{number}"})
    return blocks


@given(parts, st.lists(st.integers(0, 22), min_size=1, max_size=5))
def test_parts_of_text_are_cut_where_thoughts_stand_and_keep_their_marks(
    given_parts: list[tuple[str, bool]], places: list[int]
) -> None:
    content = [{"type": "text", "text": words, **(MARK if marked else {})} for words, marked in given_parts]
    entries = [
        {"type": "redacted_thinking", "data": f"x{number}", "after": [place, 0]} for number, place in enumerate(places)
    ]
    said = {"role": "assistant", "content": content, "reasoning_blocks": entries}
    asked = wire_of("anthropic", {"messages": [{"role": "user", "content": "go"}, said]})
    assert asked["messages"][1]["content"] == spoken(given_parts, places)


def steps(blocks: list[JsonObject]) -> int:
    """The calls of functions, ours and Python's, that it takes to send these blocks back to an Anthropic server."""
    body = parse_message(
        orjson.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "assistant", "content": blocks}]})
    ).body
    made = 0

    def count(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal made
        made += event.endswith("call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        wire_of("anthropic", body)
    finally:
        sys.setprofile(before)
    return made


def test_twice_as_many_thoughts_among_twice_as_many_texts_are_twice_the_work() -> None:
    few, many = (steps([THOUGHT, WORDS] * times) for times in (200, 400))
    assert few > 200
    assert many < 2.5 * few


@pytest.mark.parametrize("kind", ["openai", "vllm", "llamacpp", "ollama", "gemini", "cohere"])
@pytest.mark.parametrize("blocks", INTERLEAVED)
def test_no_other_server_gets_blocks_or_signatures(kind: str, blocks: list[JsonObject]) -> None:
    sent = orjson.dumps(wire(blocks, kind)["contents" if kind == "gemini" else "messages"]).decode()
    assert not [word for word in ("reasoning_blocks", "signature", "redacted", '"x1"', '"s1"', '"s2"') if word in sent]


def test_a_self_hosted_server_gets_the_thoughts_before_calls_as_one_text_and_no_others() -> None:
    called = wire([THOUGHT, WORDS, SECOND, use(0)], "vllm")["messages"][1]
    assert (called["reasoning_content"], called["content"]) == ("hmoh 東", WORDS["text"])
    assert wire([THOUGHT, SEALED, WORDS], "vllm")["messages"][1] == {"role": "assistant", "content": WORDS["text"]}


def test_a_client_that_said_nothing_of_thinking_gets_what_it_must_send_back_and_no_thoughts() -> None:
    told = [{**THOUGHT, "thinking": ""}, WORDS, SEALED, use(0)]
    assert ways_out([THOUGHT, WORDS, SEALED, use(0)], None) == [told] * 6
    assert ways_out([THOUGHT, WORDS, SEALED, use(0)], "omitted") == [told] * 6
    assert ways_out([{**THOUGHT, "signature": ""}, WORDS], None) == [[WORDS]] * 6
    assert ways_out([THOUGHT, SEALED, WORDS, SECOND, MORE], "disabled") == [merged([WORDS, MORE])] * 6


def test_an_answers_text_and_its_calls_stay_what_they_are_to_openais_clients() -> None:
    said = result(chunks([THOUGHT, WORDS, SECOND, MORE, use(0)], streamed=True))["choices"][0]["message"]
    assert (said["content"], said["reasoning_content"]) == (WORDS["text"] + MORE["text"], "hmoh 東")
    assert (said["reasoning_signature"], len(said["reasoning_blocks"]), len(said["tool_calls"])) == ("", 2, 1)


def test_a_chat_that_keeps_an_answers_message_has_its_blocks_go_back() -> None:
    blocks = [THOUGHT, WORDS, SECOND, MORE, SEALED, use(0)]
    said = result(chunks(blocks, streamed=False))["choices"][0]["message"]
    answered = {"role": "tool", "tool_call_id": "t0", "content": "1"}
    turns = [{"role": "user", "content": "go"}, said, answered]
    assert wire_of("anthropic", {"messages": turns})["messages"][1]["content"] == blocks


@pytest.mark.parametrize(
    "entries",
    [5, ["a"], [{"type": "odd"}], [{"type": "thinking", "characters": -1, "signature": 5, "after": "x"}], [{}], None],
)
def test_blocks_that_are_none_are_left_out(entries: Any) -> None:
    said = {"role": "assistant", "content": "a", "reasoning_content": "hm", "reasoning_blocks": entries}
    wire = wire_of("anthropic", {"messages": [{"role": "user", "content": "go"}, said]})
    assert wire["messages"][1]["content"] == [{"type": "text", "text": "a"}]


def test_thoughts_whose_text_was_changed_lose_their_signatures() -> None:
    entries = [{"type": "thinking", "characters": 5, "signature": "s"}, SEALED]
    found = thoughts_of({"reasoning_content": "hm", "reasoning_blocks": entries})
    assert [(thought.text, thought.proof) for thought in found] == [("", "x1"), ("hm", "")]
