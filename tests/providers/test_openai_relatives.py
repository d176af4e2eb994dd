"""Services and servers that speak OpenAI's dialect, each with an accent: their bytes in, OpenAI's own dialect out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from common.contracts import Chunk, JsonObject, Usage
from common.errors import ContextTooLong, HeadraceError, UpstreamError, UpstreamProtocolError
from tests.providers.stages import DONE, Played, replying, sse
from tests.support.upstream import HANG, Reply
from workers.answer import Answer
from workers.providers import openai


async def _chunks(body: bytes, *, stream: bool = True, kind: str = "openai") -> list[Chunk]:
    reply = Reply([body], content_type="text/event-stream" if stream else "application/json")
    async with replying(kind, lambda _: reply) as played:
        return await _all(played, stream=stream)


async def _all(played: Played, *, stream: bool) -> list[Chunk]:
    return [chunk async for chunk in played.provider.stream(played.call(stream=stream))]


def _event(delta: JsonObject, reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return sse({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more})


def _streamed(*deltas: JsonObject, reason: str = "stop") -> bytes:
    return b"".join([*map(_event, deltas), _event({}, reason), DONE])


def _whole(message: JsonObject, reason: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
    return orjson.dumps({"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


def _calling(*pieces: JsonObject) -> JsonObject:
    return {"tool_calls": list(pieces)}


def _function(**fields: Any) -> JsonObject:
    return {"function": fields}


def _answered(chunks: list[Chunk]) -> JsonObject:
    answer = Answer()
    for chunk in chunks:
        answer.add(chunk)
    return answer.result()["choices"][0]


@dataclass
class Heard:
    """What a client makes of one choice, as OpenAI's own do: every text is added to what came before it."""

    texts: dict[str, str] = field(default_factory=dict[str, str])
    calls: dict[int, dict[str, str]] = field(default_factory=dict[int, dict[str, str]])

    def take(self, delta: JsonObject) -> None:
        """Adds a delta."""
        for piece in delta.get("tool_calls", ()):
            call = self.calls.setdefault(piece["index"], {})
            _add(call, {key: piece[key] for key in ("id", "type") if key in piece})
            _add(call, piece.get("function", {}))
        _add(self.texts, {key: value for key, value in delta.items() if isinstance(value, str)})


def _add(to: dict[str, str], texts: JsonObject) -> None:
    for key, text in texts.items():
        to[key] = to.get(key, "") + text


def _heard(chunks: list[Chunk]) -> Heard:
    heard = Heard()
    for chunk in chunks:
        for choice in chunk.choices:
            heard.take(choice["delta"])
    return heard


# --- why it ended ----------------------------------------------------------------------------------------------------

TOO_LONG = "This model's maximum context length is 5 tokens. However, you requested 9 tokens."
CALL: JsonObject = {"index": 0, "id": "a", "type": "function", **_function(name="f", arguments="{}")}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("delta", [{"content": "Hel"}, _calling(CALL)])
@pytest.mark.parametrize("reason", ["insufficient_system_resource", "abort", "error"])
async def test_an_answer_that_the_server_cut_is_an_error_that_another_server_may_mend(
    reason: str, delta: JsonObject, stream: bool
) -> None:
    with pytest.raises(UpstreamError) as caught:
        await _chunks(_streamed(delta, reason=reason) if stream else _whole(delta, reason), stream=stream)
    assert type(caught.value) is UpstreamError and caught.value.retryable


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("told", "delta", "reason"),
    [
        ("model_length", {"content": "Hel"}, "length"),
        ("max_tokens", {"content": "Hel"}, "length"),
        ("eos", {"content": "Hello"}, "stop"),
        ("stop", _calling(CALL), "tool_calls"),
        ("tool_use", _calling(CALL), "tool_calls"),
        ("length", _calling(CALL), "length"),
        ("content_filter", _calling(CALL), "content_filter"),
        ("stop", {"function_call": {"name": "f", "arguments": "{}"}}, "stop"),
    ],
)
async def test_a_finish_reason_is_one_of_openais(told: str, delta: JsonObject, reason: str, stream: bool) -> None:
    chunks = await _chunks(_streamed(delta, reason=told) if stream else _whole(delta, told), stream=stream)
    assert [c["finish_reason"] for chunk in chunks for c in chunk.choices if c["finish_reason"]] == [reason]


async def test_calls_of_one_choice_do_not_end_another() -> None:
    events = [sse({"choices": [{"index": 1, "delta": _calling(CALL)}]}), _event({"content": "a"}, "stop")]
    end = sse({"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]})
    chunks = await _chunks(b"".join([*events, end, DONE]))
    ends = {c["index"]: c["finish_reason"] for chunk in chunks for c in chunk.choices if c["finish_reason"]}
    assert ends == {0: "stop", 1: "tool_calls"}


# --- Mistral's content in parts --------------------------------------------------------------------------------------


def _thinking(*texts: str) -> JsonObject:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text} for text in texts]}


@pytest.mark.parametrize(
    ("parts", "content", "thoughts"),
    [
        ([_thinking("Let me", " see."), {"type": "text", "text": "Hello"}], "Hello", "Let me see."),
        ([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], "Hello", None),
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hello"}], "Hello", "Hm."),
        ([{"type": "text", "text": "a"}, {"type": "reference", "reference_ids": [1]}, {"type": 5}], "a", None),
        ([{"type": "text", "text": None}], "", None),
        ([], "", None),
    ],
)
async def test_content_in_parts_is_told_as_text_and_thoughts(
    parts: list[Any], content: str, thoughts: str | None
) -> None:
    one_by_one = await _chunks(
        _streamed({"role": "assistant", "content": ""}, *({"content": [part]} for part in parts))
    )
    streamed = await _chunks(_streamed({"content": parts}))
    whole = await _chunks(_whole({"content": parts}), stream=False)
    for chunks in (one_by_one, streamed, whole):
        message = _answered(chunks)["message"]
        assert (message["content"], message.get("reasoning_content")) == (content, thoughts)


# --- tool calls ------------------------------------------------------------------------------------------------------

TWO = [("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')]


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param(
            [
                _calling({"id": "a", **_function(name="f", arguments='{"x":1}')}),
                _calling({"id": "b", **_function(name="g", arguments='{"y":2}')}),
            ],
            id="no index, two events",
        ),
        pytest.param(
            [
                _calling(
                    {"id": "a", **_function(name="f", arguments='{"x":1}')},
                    {"id": "b", **_function(name="g", arguments='{"y":2}')},
                )
            ],
            id="no index, one event",
        ),
        pytest.param(
            [
                _calling({"index": 0, "id": "a", **_function(name="f", arguments='{"x":1}')}),
                _calling({"index": 0, "id": "b", **_function(name="g", arguments='{"y":2}')}),
            ],
            id="all with index 0",
        ),
        pytest.param(
            [
                _calling({"index": 0, "id": "a", **_function(name="f", arguments="")}),
                _calling({"index": 0, **_function(arguments='{"x":1}')}),
                _calling({"index": 0, "id": "b", **_function(name="g", arguments='{"y"')}),
                _calling({"index": 0, "id": "", **_function(name="", arguments=":2}")}),
            ],
            id="all with index 0, in pieces",
        ),
        pytest.param(
            [
                _calling({"id": "a", **_function(name="f")}),
                _calling(_function(arguments='{"x":1}')),
                _calling({"id": "b", **_function(name="g")}),
                _calling({"id": None, **_function(name=None, arguments='{"y"')}),
                _calling({"id": "b", **_function(arguments=":2}")}),
            ],
            id="no index, in pieces",
        ),
        pytest.param(
            [
                _calling({"id": "a", **_function(name="f")}, {"id": "b", **_function(name="g")}),
                _calling({"id": "a", **_function(arguments='{"x":1}')}, {"id": "b", **_function(arguments='{"y":2}')}),
            ],
            id="no index, in turns, known by their ids",
        ),
        pytest.param(
            [
                _calling({"index": 1, "id": "a", "type": "function", **_function(name="f", arguments="")}),
                _calling({"index": 2, "id": "b", "type": "function", **_function(name="g", arguments="")}),
                _calling(
                    {"index": 1, **_function(arguments='{"x":1}')}, {"index": 2, **_function(arguments='{"y":2}')}
                ),
            ],
            id="numbered from 1",
        ),
        pytest.param(
            [
                _calling({"index": 0, "id": "a", "type": "function", **_function(name="f", arguments='{"x"')}),
                _calling({"index": 0, "id": "a", "type": "function", **_function(name="f", arguments=":1}")}),
                _calling({"index": 1, "id": "b", "type": "function", **_function(name="g", arguments='{"y"')}),
                _calling({"index": 1, "id": "b", "type": "function", **_function(name="g", arguments=":2}")}),
            ],
            id="id and name in every piece",
        ),
        pytest.param(
            [
                _calling({"index": 0, "id": "a", **_function(name="f", arguments='{"x"')}),
                _calling({"index": 0, "id": "r7", **_function(arguments=":1}")}),
                _calling({"index": 1, "id": "b", **_function(arguments='{"y"')}),
                _calling({"index": 1, "id": "r8", **_function(arguments=":2}")}),
                _calling({"index": 1, **_function(name="g")}),
            ],
            id="a new id for each piece, a name that comes late",
        ),
        pytest.param(
            [
                _calling({"index": 0, "id": "a", **_function(name="f", arguments={"x": 1})}),
                _calling({"index": [1], "id": "b", **_function(name="g", arguments={"y": 2})}),
            ],
            id="arguments that are objects",
        ),
    ],
)
async def test_two_calls_are_two_however_they_are_numbered(deltas: list[JsonObject]) -> None:
    chunks = await _chunks(_streamed({"role": "assistant", "content": None}, *deltas))
    heard, called = _heard(chunks), _answered(chunks)["message"]["tool_calls"]
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in called] == TWO
    assert list(heard.calls) == [0, 1]
    assert [(call["id"], call["name"], call["arguments"]) for call in heard.calls.values()] == TWO
    assert {call["type"] for call in heard.calls.values()} == {"function"}


@pytest.mark.parametrize("index", [{}, {"index": 0}])
@pytest.mark.parametrize("stream", [True, False])
async def test_calls_without_ids_get_one_each(index: JsonObject, stream: bool) -> None:
    calls = [{**index, **_function(name=name, arguments="{}")} for name in ("f", "g")]
    body = _streamed(*map(_calling, calls)) if stream else _whole({"content": None, **_calling(*calls)})
    called = _answered(await _chunks(body, stream=stream))["message"]["tool_calls"]
    assert [call["function"] for call in called] == [{"name": name, "arguments": "{}"} for name in ("f", "g")]
    assert all(call["id"].startswith("call_") for call in called) and called[0]["id"] != called[1]["id"]


async def test_what_a_server_that_gives_ids_sends_without_one_goes_to_its_last_call() -> None:
    pieces = [{"id": "a", **_function(name="f", arguments='{"x"')}, _function(name="f", arguments=":1}")]
    called = _answered(await _chunks(_streamed(*map(_calling, pieces))))["message"]["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in called] == [("a", '{"x":1}')]


async def test_each_whole_call_of_a_whole_answer_is_one() -> None:
    calls = [{"index": 0, "id": "f", **_function(name="f", arguments={"x": number})} for number in (1, 2)]
    called = _answered(await _chunks(_whole(_calling(*calls)), stream=False))["message"]["tool_calls"]
    assert [call["function"]["arguments"] for call in called] == ['{"x":1}', '{"x":2}']


async def test_what_a_server_wants_back_with_a_call_is_kept() -> None:
    wanted = {"google": {"thought_signature": "sig"}}
    piece = {"id": "a", "extra_content": wanted, **_function(name="f", arguments="{}")}
    assert _answered(await _chunks(_streamed(_calling(piece))))["message"]["tool_calls"][0]["extra_content"] == wanted


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "call",
    [
        {"index": 0, "id": "a", **_function(name="f", arguments=[1])},
        {"index": 0, "id": "a", **_function(name="f", arguments=7)},
        {"index": 0, "id": "a", **_function(name={"f": 1}, arguments="{}")},
        {"index": 0, "id": 7, **_function(name="f", arguments="{}")},
        {"index": 0, "id": "a", "function": "f"},
    ],
)
async def test_a_call_of_something_else_than_texts_breaks_the_protocol(call: JsonObject, stream: bool) -> None:
    with pytest.raises(HeadraceError) as caught:
        await _chunks(_streamed(_calling(call)) if stream else _whole(_calling(call)), stream=stream)
    assert type(caught.value) is UpstreamProtocolError


@pytest.mark.parametrize("stream", [True, False])
async def test_a_function_called_in_the_older_way_has_texts_too(stream: bool) -> None:
    call: JsonObject = {"function_call": {"name": "f", "arguments": {"x": 1}}}
    chunks = await _chunks(_streamed(call) if stream else _whole(call), stream=stream)
    assert _answered(chunks)["message"]["function_call"] == {"name": "f", "arguments": '{"x":1}'}


# --- what is said again ----------------------------------------------------------------------------------------------


async def test_the_role_is_told_once_to_each_choice() -> None:
    """DeepSeek and others say it with every token, and clients add texts up."""
    deltas = [{"role": "assistant", "content": text} for text in ("a", "b", "c")]
    choices = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas for index in (0, 1)]
    ends = [{"index": index, "delta": {"role": "assistant"}, "finish_reason": "stop"} for index in (0, 1)]
    chunks = await _chunks(b"".join([*(sse({"choices": [one]}) for one in [*choices, *ends]), DONE]))
    for index in (0, 1):
        own = [Chunk([c for c in chunk.choices if c["index"] == index]) for chunk in chunks]
        assert _heard(own).texts == {"role": "assistant", "content": "abc"}


async def test_a_function_called_in_the_older_way_is_named_once() -> None:
    pieces = [{"function_call": {"name": "f", "arguments": text}} for text in ('{"x"', ":1}")]
    chunks = await _chunks(_streamed(*pieces, reason="function_call"))
    told = [c["delta"]["function_call"] for chunk in chunks for c in chunk.choices if "function_call" in c["delta"]]
    assert told == [{"name": "f", "arguments": '{"x"'}, {"arguments": ":1}"}]


# --- usage -----------------------------------------------------------------------------------------------------------


def _counted(prompt: int, made: int, total: int, thought: int) -> JsonObject:
    details = {"reasoning_tokens": thought}
    counts = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": total}
    return {**counts, "completion_tokens_details": details}


@pytest.mark.parametrize(
    ("told", "made"),
    [
        (_counted(10, 5, 215, 200), 205),  # xAI's: what was thought is beside what was said
        (_counted(10, 205, 215, 200), 205),  # OpenAI's: it is part of it
        (_counted(10, 5, 15, 0), 5),
        ({**_counted(10, 5, 215, 200), "total_tokens": None}, 5),
        ({**_counted(10, 5, 215, 200), "completion_tokens_details": {"reasoning_tokens": "200"}}, 5),
    ],
)
def test_what_was_thought_counts_once(told: JsonObject, made: int) -> None:
    assert openai.to_counts(told).usage == Usage(
        10, made, {"completion_tokens_details": told["completion_tokens_details"]}
    )


@pytest.mark.parametrize(
    "last",
    [
        _event({}, "stop", x_groq={"id": "r", "usage": {"prompt_tokens": 10, "completion_tokens": 5}}),
        _event({}, "stop") + sse({"choices": None, "usage": {"prompt_tokens": 10, "completion_tokens": 5}}),
        _event({}, "stop") + sse({"usage": {"prompt_tokens": 10, "completion_tokens": 5}}),
    ],
)
async def test_usage_is_found_where_a_service_puts_it(last: bytes) -> None:
    chunks = await _chunks(_event({"role": "assistant", "content": "a"}) + last + DONE)
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(10, 5)]


COUNTED: bytes = sse({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


@pytest.mark.lengthy
async def test_an_answer_that_misses_only_its_last_word_is_whole_though_its_body_stays_open() -> None:
    said = _event({"role": "assistant", "content": "a"}) + _event({}, "stop") + COUNTED
    async with replying("openai", lambda _: Reply([said, HANG], content_type="text/event-stream")) as played:
        chunks = await _all(played, stream=True)
    assert _answered(chunks)["message"]["content"] == "a"
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(3, 2)]


@pytest.mark.parametrize(
    "between", [b"data:\n\n", b"data: \n\n", sse({"choices": None, "usage": None}), sse({"choices": []})]
)
async def test_events_that_say_nothing_cost_no_answer(between: bytes) -> None:
    body = between + _event({"role": "assistant", "content": "a"}) + between + _event({}, "stop") + b"data: [DONE] \n\n"
    assert _answered(await _chunks(body))["message"]["content"] == "a"


async def test_a_character_that_a_server_cut_in_two_costs_no_answer() -> None:
    halves = _event({"role": "assistant", "content": "ab"}).replace(b"ab", rb"\ud83d")
    halves += _event({"content": "ab"}).replace(b"ab", rb"\ude00")
    assert _answered(await _chunks(halves + _event({}, "stop") + DONE))["message"]["content"] == "\ufffd\ufffd"


@pytest.mark.parametrize(
    "event",
    [
        {"object": "error", "message": TOO_LONG, "type": "BadRequestError", "param": None, "code": 400},
        {"message": TOO_LONG, "code": 400},
        {"error": {"message": TOO_LONG, "code": 400}},
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_inside_an_answer_is_read_as_one_beside_a_status(event: JsonObject, stream: bool) -> None:
    with pytest.raises(ContextTooLong, match="context length is 5 tokens"):
        await _chunks(sse(event) if stream else orjson.dumps(event), stream=stream)


ZEROS: JsonObject = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
NO_ANSWER: JsonObject = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}


@pytest.mark.parametrize("counts", [ZEROS, NO_ANSWER])
@pytest.mark.parametrize("where", ["whole", "beside the last choice", "alone"])
async def test_nobody_counts_an_answer_that_said_something_as_nothing(where: str, counts: JsonObject) -> None:
    if where == "whole":
        body = orjson.dumps({**orjson.loads(_whole({"content": "four or five"})), "usage": counts})
    elif where == "alone":
        body = _event({"content": "four or five"}, "stop") + sse({"choices": [], "usage": counts}) + DONE
    else:
        body = _event({"content": "four or five"}) + _event({}, "stop", usage=counts) + DONE
    answer = Answer(prompt_tokens=11)
    for chunk in await _chunks(body, stream=where != "whole"):
        answer.add(chunk)
    assert answer.usage == Usage(counts["prompt_tokens"] or 11, 3, {"estimated": True})
    assert answer.untold == {"completion_tokens"} | (set() if counts["prompt_tokens"] else {"prompt_tokens"})


async def test_an_answer_of_nothing_may_have_been_counted_so() -> None:
    answer = Answer(prompt_tokens=11)
    for chunk in await _chunks(_event({"content": ""}) + _event({}, "stop", usage=NO_ANSWER) + DONE):
        answer.add(chunk)
    assert (answer.usage, answer.untold) == (Usage(7, 0), frozenset())


# --- ends that are told again ----------------------------------------------------------------------------------------

USED: JsonObject = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


@pytest.mark.parametrize("kind", ["openai", "vllm", "llamacpp"])
@pytest.mark.parametrize(
    "events",
    [
        pytest.param([({"content": "a"}, "stop", {}), ({"content": "b"}, "stop", {})], id="in each event"),
        pytest.param(
            [
                ({"content": "a"}, None, {}),
                ({"content": "b"}, "stop", {}),
                ({"role": "assistant", "content": ""}, None, {"usage": USED}),
            ],
            id="usage with a choice after it",
        ),
        pytest.param(
            [({"content": "a"}, "stop", {}), ({"content": "b"}, None, {}), ({}, "stop", {"usage": USED})],
            id="more text after it",
        ),
    ],
)
async def test_an_answer_ends_once_and_after_its_last_text(kind: str, events: list[Any]) -> None:
    body = b"".join([*(_event(delta, reason, **more) for delta, reason, more in events), DONE])
    chunks = await _chunks(body, kind=kind)
    told = [(c["delta"], c["finish_reason"]) for chunk in chunks for c in chunk.choices]
    assert told == [({"role": "assistant", "content": "a"}, None), ({"content": "b"}, None), ({}, "stop")]
    used = any("usage" in more for *_, more in events)
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(5, 4)] * used


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [("length", "stop", "length"), ("stop", "length", "length"), ("content_filter", "stop", "content_filter")],
)
async def test_a_stop_beside_another_end_says_nothing(first: str, then: str, reason: str) -> None:
    chunks = await _chunks(_event({"content": "a"}, first) + _event({}, then) + DONE)
    assert [c["finish_reason"] for chunk in chunks for c in chunk.choices] == [None, reason]


async def test_what_stands_beside_an_end_is_told_with_it() -> None:
    ended = {"index": 0, "delta": {"content": "b"}, "finish_reason": "stop", "stop_reason": "END", "matched_stop": 2}
    logprobs = {"content": [{"token": "b", "logprob": -0.5, "bytes": None, "top_logprobs": []}], "refusal": None}
    events = [_event({"content": "a"}), sse({"choices": [{**ended, "logprobs": logprobs}]})]
    *_, text, end = [c for chunk in await _chunks(b"".join([*events, DONE])) for c in chunk.choices]
    assert text == {"index": 0, "delta": {"content": "b"}, "finish_reason": None, "logprobs": logprobs}
    assert end == {**ended, "delta": {}}


async def test_what_a_server_tells_of_itself_at_the_end_is_kept() -> None:
    chunks = await _chunks(_event({"content": "a"}) + _event({}, "stop", service_tier="default") + DONE)
    assert chunks[-1].extra == {"service_tier": "default"}


# --- where it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["openai", "vllm", "llamacpp"])
@pytest.mark.parametrize(
    ("base", "options", "path"),
    [
        ("", {}, "/v1/chat/completions"),
        ("/v1/", {}, "/v1/chat/completions"),
        ("/v1beta/openai/", {"path": ""}, "/v1beta/openai/chat/completions"),
        ("/v1", {"path": ""}, "/v1/chat/completions"),
        ("/api", {"path": "/v3/"}, "/api/v3/chat/completions"),
        ("", {"path": ""}, "/chat/completions"),
    ],
)
async def test_a_service_is_called_under_its_own_path(kind: str, base: str, options: JsonObject, path: str) -> None:
    reply = Reply([_streamed({"content": "a"})])
    async with replying(kind, lambda _: reply, options=options) as played:
        backend = played.backend.model_copy(update={"base_url": played.backend.base_url + base})
        await _all(Played(played.provider, backend, played.upstream), stream=True)
        assert played.upstream is not None
        assert played.upstream.requests[0].path == path
        assert "path" not in played.upstream.requests[0].json()
