"""Ollama's requests as they come, and the chat completions and embeddings that they ask for."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.contracts import JsonObject
from common.errors import BadRequest, CallerError, ModelNotFound
from gateway.dialects import names, ollama
from gateway.dialects.ollama import Idle, known_name
from gateway.dialects.openai import ChatRequest
from tests.providers.stages import backend
from workers.providers.base import Call
from workers.providers.ollama import to_wire

KNOWN = frozenset({"m", "tagged:latest", "org/m:8b"})
PNG = b64encode(b"\x89PNG\r\n\x1a\n").decode()
PICTURES = {
    "png": PNG,
    "jpeg": b64encode(b"\xff\xd8\xff\xe0").decode(),
    "gif": b64encode(b"GIF89a").decode(),
    "webp": b64encode(b"RIFF\0\0\0\0WEBP").decode(),
}
SCHEMA: JsonObject = {"type": "object"}
USER: JsonObject = {"role": "user", "content": "hello"}


def chat(**more: Any) -> ChatRequest:
    found = ollama.parse_chat(orjson.dumps({"model": "m", "messages": [USER], **more}), KNOWN)
    assert isinstance(found, ChatRequest)
    return found


def generate(**more: Any) -> ChatRequest:
    found = ollama.parse_generate(orjson.dumps({"model": "m", "prompt": "hello", **more}), KNOWN)
    assert isinstance(found, ChatRequest)
    return found


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [("m", "m"), ("m:latest", "m"), ("tagged", "tagged:latest"), ("tagged:latest", "tagged:latest"), ("org/m:8b",) * 2],
)
def test_a_tag_that_says_latest_may_come_or_not(asked: str, found: str) -> None:
    assert known_name(asked, KNOWN) == found


@pytest.mark.parametrize("asked", ["", "x", "m:8b", "org/m", "latest", ":latest"])
def test_other_names_are_not_found(asked: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        known_name(asked, KNOWN)
    assert caught.value.failure.message == f"model '{asked}' not found"


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_chat_streams_unless_it_says_otherwise() -> None:
    assert [chat().stream, chat(stream=None).stream, chat(stream=True).stream] == [True] * 3
    assert not chat(stream=False).stream
    assert generate().stream and not generate(stream=False).stream


def test_options_become_the_fields_of_a_chat_completion() -> None:
    options = {
        **{"temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 7, "stop": ["a"]},
        **{"repeat_penalty": 1.1, "repeat_last_n": 64, "num_predict": 12, "num_ctx": 4096, "num_gpu": 1},
    }
    body = chat(options=options, keep_alive="5m").body
    assert body == {
        **{"model": "m", "messages": [USER], "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 7},
        **{"stop": ["a"], "repeat_penalty": 1.1, "repeat_last_n": 64, "max_tokens": 12},
    }


@pytest.mark.parametrize(
    "more", [{"format": "xml"}, {"options": {"temperature": "hot"}}, {"options": {"num_predict": 2**40}}]
)
def test_a_request_that_only_loads_a_model_is_checked_too(more: JsonObject) -> None:
    for parse in (ollama.parse_chat, ollama.parse_generate):
        with pytest.raises(BadRequest):
            parse(orjson.dumps({"model": "m", **more}), KNOWN)


@pytest.mark.parametrize(("limit", "expected"), [(-2, None), (-1, None), (0, None), (1, 1), (None, None)])
def test_no_limit_is_a_number_below_one(limit: int | None, expected: int | None) -> None:
    request = chat(options={"num_predict": limit})
    assert request.body.get("max_tokens") == request.answer_limit == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"format": "json"}, {"response_format": {"type": "json_object"}}),
        ({"format": ""}, {}),
        (
            {"format": {"type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "format", "schema": {"type": "object"}},
                }
            },
        ),
        ({"think": True}, {"think": True}),
        ({"think": False}, {"think": False}),
        ({"think": "high"}, {"reasoning_effort": "high"}),
        ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"logprobs": False, "top_logprobs": 3}, {}),
    ],
)
def test_each_wish_is_said_in_openais_words(given: JsonObject, expected: JsonObject) -> None:
    for request in (chat(**given), generate(**given)):
        assert {name: value for name, value in request.body.items() if name not in ("model", "messages")} == expected


def test_agents_bring_more_tools_and_stops_than_openais_api_takes() -> None:
    stops = [f"s{number}" for number in range(64)]
    tools = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(1_024)]
    found = chat(messages=[USER], tools=tools, options={"stop": stops}).body
    assert (len(found["tools"]), found["stop"]) == (1_024, stops)


def test_a_prompt_is_one_message_after_the_systems() -> None:
    assert generate(system="s").body["messages"] == [{"role": "system", "content": "s"}, USER]
    assert generate(system="", template="", suffix="", raw=False, context=[]).body["messages"] == [USER]


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_become_parts_that_name_their_kind(kind: str) -> None:
    url = f"data:image/{kind};base64,{PICTURES[kind]}"
    parts = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": url}}]
    assert chat(messages=[{**USER, "images": [PICTURES[kind]]}]).body["messages"][0]["content"] == parts
    assert generate(images=[PICTURES[kind]]).body["messages"][0]["content"] == parts
    assert generate(prompt="", images=[PICTURES[kind]]).body["messages"][0]["content"] == parts[1:]


def test_tools_calls_and_results_find_each_other() -> None:
    def called(name: str, **more: Any) -> JsonObject:
        return {"function": {"name": name, "arguments": {"api_key": name}}, **more}

    history = [
        USER,
        {"role": "assistant", "thinking": "Hm.", "tool_calls": [called("f"), called("g"), called("f", id="own")]},
        {"role": "tool", "tool_call_id": "own", "tool_name": "f", "content": "3"},
        {"role": "tool", "tool_name": "g", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "tool_name": "unknown", "content": "4"},
    ]
    said = chat(messages=history, tools=[{"type": "function", "function": {"name": "f"}}]).body["messages"]
    assert said[1]["content"] is None and said[1]["reasoning_content"] == "Hm."
    assert [call["id"] for call in said[1]["tool_calls"]] == ["call_1", "call_2", "own"]
    assert orjson.loads(said[1]["tool_calls"][0]["function"]["arguments"]) == {"api_key": "f"}
    assert [message["tool_call_id"] for message in said[2:]] == ["own", "call_2", "call_1", "call_3"]
    assert [message.get("name") for message in said[2:]] == ["f", "g", None, "unknown"]


TURNS = st.tuples(st.booleans(), st.sampled_from(["f", "g", "h", None]), st.booleans())


@given(st.lists(TURNS, max_size=12))
def test_a_result_goes_to_the_call_it_names_or_to_the_first_open_one_of_its_tool(
    drawn: list[tuple[bool, str | None, bool]],
) -> None:
    # A call's own id is nobody else's; a result may name the call just before it.
    turns = [
        (is_call, tool or ("f" if is_call else None), f"own_{place if is_call else place - 1}" if own else None)
        for place, (is_call, tool, own) in enumerate(drawn)
    ]
    history: list[JsonObject] = [USER]
    for is_call, tool, own in turns:
        call: JsonObject = {"function": {"name": tool}, "id": own}
        history.append(
            {"role": "assistant", "tool_calls": [call]}
            if is_call
            else {"role": "tool", "tool_name": tool, "tool_call_id": own, "content": "x"}
        )
    open_: dict[str, str] = {}
    for (is_call, tool, own), said in zip(turns, chat(messages=history).body["messages"][1:], strict=True):
        if is_call:
            made = said["tool_calls"][0]["id"]
            assert made == own or (own is None and made not in open_)
            open_[made] = tool or ""
        else:
            fits = [one for one, by in open_.items() if tool in (None, by)]
            assert said["tool_call_id"] == (own or (fits[0] if fits else said["tool_call_id"]))
            assert own or fits or said["tool_call_id"] not in open_
            open_.pop(said["tool_call_id"], None)


def test_an_id_that_is_made_is_nobody_elses() -> None:
    calls = [{"function": {"name": "f"}, "id": "call_1"}, {"function": {"name": "f"}}]
    [said] = chat(messages=[{"role": "assistant", "tool_calls": calls}]).body["messages"]
    assert [call["id"] for call in said["tool_calls"]] == ["call_1", "call_2"]


def test_a_sound_is_no_picture_though_its_file_begins_as_some_do() -> None:
    sound = b64encode(b"RIFF\0\0\0\0WAVE").decode()
    with pytest.raises(BadRequest, match=r"images\[0\]: must be a PNG"):
        chat(messages=[{**USER, "images": [sound]}])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"messages": [{"role": "developer", "content": "a"}]}, "messages[0].role: must be"),
        ({"messages": [{"content": "a"}]}, "messages[0].role: this field is required"),
        ({"messages": [{**USER, "images": ["data:image/png;base64," + PNG]}]}, "messages[0].images[0]: must be base64"),
        ({"messages": [{**USER, "images": [PNG[:4] + "!" + PNG[4:]]}]}, "messages[0].images[0]: must be base64"),
        ({"messages": [{**USER, "images": [b64encode(b"%PDF-1").decode()]}]}, "messages[0].images[0]: must be a PNG"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [USER] * 10_001}, "messages: at most 10000"),
        ({"options": {"stop": ["a"] * 65}}, "options.stop: at most 64"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}] * 1_025}, "tools: at most 1024"),
        ({"options": {"top_p": 2}}, "options.top_p: must be at most 1"),
        ({"options": {"num_predict": 1.5}}, "options.num_predict"),
        ({"options": []}, "options"),
        ({"format": {"description": "a" * 20_000}}, "format: at most"),
        ({"think": 3}, "think"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{"type": "function"}]}, "tools[0].function: this field is required"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type: must be 'function'"),
        ({"api_key": "k"}, "api_key: this field is not allowed"),
    ],
)
def test_what_is_wrong_is_named_as_ollama_names_it(body: JsonObject, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**body)
    assert caught.value.failure.message.startswith(words)


@pytest.mark.parametrize("name", ["template", "raw", "suffix", "context", "width"])
def test_what_a_chat_has_nothing_for_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        generate(**{name: [1] if name == "context" else 1 if name == "width" else True if name == "raw" else "x"})
    assert caught.value.failure.param == name


@pytest.mark.parametrize(("keep_alive", "unload"), [(None, False), ("5m", False), (-1, False), (0, True), ("0", True)])
def test_a_request_without_words_asks_for_nothing(keep_alive: Any, unload: bool) -> None:
    for parse in (ollama.parse_chat, ollama.parse_generate, ollama.parse_embed, ollama.parse_embeddings):
        asked = orjson.dumps({"model": "m:latest", "keep_alive": keep_alive})
        assert parse(asked, KNOWN) == Idle("m:latest", unload)
        with pytest.raises(ModelNotFound):
            parse(b'{"model":"x"}', KNOWN)


def test_texts_to_embed_are_cut_unless_the_request_says_no() -> None:
    for truncate, expected in ((None, True), (True, True), (False, False)):
        body = {"model": "m", "input": ["a", "b"], "dimensions": 4, "truncate": truncate}
        found = ollama.parse_embed(orjson.dumps(body), KNOWN)
        assert not isinstance(found, Idle)
        assert found.body == {"model": "m", "input": ["a", "b"], "dimensions": 4, "truncate": expected}
    old = ollama.parse_embeddings(b'{"model":"m","prompt":"a"}', KNOWN)
    assert not isinstance(old, Idle) and old.body["input"] == "a" and old.dialect == names.OLLAMA_EMBEDDINGS


JSONS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "m", "user", PNG]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "images",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "type",
                    "tool_name",
                    "stop",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from(["messages", "prompt", "tools", "options", "format", "images", "input", "think", "system"])


@given(st.dictionaries(FIELDS, JSONS, max_size=5))
def test_whatever_comes_is_taken_or_refused_as_the_callers_fault(body: JsonObject) -> None:
    for parse in (ollama.parse_chat, ollama.parse_generate, ollama.parse_embed, ollama.parse_embeddings):
        try:
            assert parse(orjson.dumps({"model": "m", **body}), KNOWN) is not None
        except CallerError as error:
            assert error.failure.message


TEXTS = st.text(min_size=1, max_size=20)
CALLED = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries(
            {"name": st.just("f"), "arguments": st.dictionaries(st.text(max_size=5), TEXTS)}
        )
    }
)
SAID = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": TEXTS}),
    st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS, "images": st.just([PNG])}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS, "tool_calls": st.lists(CALLED, min_size=1)}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": TEXTS, "tool_name": st.just("f")}),
)


@settings(max_examples=50)
@given(st.lists(SAID, min_size=1, max_size=6))
def test_a_conversation_reaches_an_ollama_behind_us_as_it_came(history: list[JsonObject]) -> None:
    where = backend("ollama", "http://127.0.0.1:1")
    call = Call(where, "/v1/chat/completions", "m", chat(messages=history).body, stream=True, timeout_s=1)
    assert to_wire(call)["messages"] == history
