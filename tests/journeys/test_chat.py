"""OpenAI's own Python client against a fleet, unchanged: what it gets, what it raises, what it shows."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from common.tokens.counting import count_tokens
from tests.journeys.conftest import MOST_WAITING, STATUS_WAIT_S
from tests.support.fleet import KEY, Fleet
from tests.support.say import CHAT, chat, frames, messages, record, submit, when

pytestmark = pytest.mark.timeout(60)

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
HARD = 'quotes " back\\slash\ttab\r\nnew line \u2028 \u2029 \x85 é 汉字 👩‍👩‍👧 data: [DONE]'


# --- whole answers ----------------------------------------------------------------------------------------------------


def test_an_answer_is_a_whole_chat_completion(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="echo", messages=messages("one two three"))
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "one two three")
    assert choice.finish_reason == "stop"
    assert choice.message.refusal is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)
    assert (answer.object, answer.model) == ("chat.completion", "echo")
    assert answer.id.startswith("chatcmpl-")
    assert answer._request_id is not None and answer._request_id.startswith("req_")


def test_text_of_every_kind_comes_back_as_it_was(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model="echo", messages=messages(HARD))
    assert whole.choices[0].message.content == HARD
    with sdk.chat.completions.create(model="echo", messages=messages(HARD), stream=True) as stream:
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == HARD


def test_the_raw_answer_names_its_job_and_its_durability(sdk: openai.OpenAI, client: httpx.Client) -> None:
    raw = sdk.chat.completions.with_raw_response.create(model="echo", messages=messages("hello"))
    job_id = raw.headers["x-headrace-job-id"]
    assert raw.headers["x-headrace-durability"] == "redis"
    assert raw.parse().choices[0].message.content == "hello"
    found = record(client, job_id)
    assert found["status"] == "succeeded"
    assert found["result"] == orjson.loads(raw.content)


def test_several_choices_come_whole_and_streamed(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="echo", messages=messages("a b"), n=3)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(i, "a b") for i in range(3)]
    said = {0: "", 1: "", 2: ""}
    ends: list[int] = []
    with sdk.chat.completions.create(model="echo", messages=messages("a b"), n=3, stream=True) as stream:
        for choice in (choice for chunk in stream for choice in chunk.choices):
            said[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert said == {0: "a b", 1: "a b", 2: "a b"}
    assert sorted(ends) == [0, 1, 2]


def test_log_probabilities_come_with_their_alternatives(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="echo", messages=messages("a b"), logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None and told.content is not None
    assert [entry.token for entry in told.content] == ["a", " b"]
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in told.content)


def test_a_stop_at_the_token_limit_says_so(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="echo", messages=messages(numbered=True), max_completion_tokens=4)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (" 0 1 2 3", "length")


# --- tools and formats ------------------------------------------------------------------------------------------------


def test_a_forced_tool_is_called(sdk: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = sdk.chat.completions.create(
        model="echo", messages=messages("weather?"), tools=[WEATHER], tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_weather"
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None


def test_the_sdk_puts_streamed_tool_calls_together(sdk: openai.OpenAI) -> None:
    calls = [
        {"name": "get_weather", "arguments": {"city": "Saint-Étienne"}},
        {"name": "get_weather", "arguments": {"city": "東京"}},
    ]
    tools: Any = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
    with sdk.chat.completions.stream(model="echo", messages=messages(tool_calls=calls), tools=tools) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"chunk", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    found = [orjson.loads(call.function.arguments) for call in message.tool_calls or []]
    assert found == [call["arguments"] for call in calls]


def test_a_tools_result_can_be_sent_back(sdk: openai.OpenAI) -> None:
    call: Any = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    history: Any = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "user", "content": [{"type": "text", "text": "it is "}, {"type": "text", "text": "sunny"}]},
    ]
    answer = sdk.chat.completions.create(model="echo", messages=history, tools=[WEATHER])
    assert answer.choices[0].message.content == "it is sunny"


class Place(BaseModel):
    """What a structured answer is to be."""

    city: str
    people: int


def test_a_structured_answer_is_parsed_by_the_sdk(sdk: openai.OpenAI) -> None:
    given = messages(text='{"city": "Lyon", "people": 522250}')
    parsed = sdk.chat.completions.parse(model="echo", messages=given, response_format=Place)
    assert parsed.choices[0].message.parsed == Place(city="Lyon", people=522250)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_tells_usage_last_when_it_is_asked_to(sdk: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    given = messages("one two three")
    with sdk.chat.completions.create(model="echo", messages=given, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 6
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"


@pytest.mark.parametrize("stream", [False, True])
def test_where_the_upstream_tells_no_usage_tokens_are_counted_and_marked_as_estimated(
    client: httpx.Client, stream: bool
) -> None:
    body = chat(text="antidisestablishmentarianism", usage=False, stream=stream)
    answer = client.post(CHAT, json=body)
    assert answer.content
    usage = record(client, answer.headers["x-headrace-job-id"])["usage"]
    # Six tokens by the vocabulary; by the length it would be seven.
    assert (usage["completion_tokens"], usage["estimated"]) == (6, True)
    assert usage["prompt_tokens"] == 4 + count_tokens([body["messages"][0]["content"]])


def test_a_stream_tells_no_usage_unasked(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(model="echo", messages=messages("one"), stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_tokens_come_as_they_are_made(sdk: openai.OpenAI) -> None:
    given = messages(numbered=True, tokens=2, token_ms=60_000)
    with sdk.chat.completions.create(model="echo", messages=given, stream=True) as stream:
        assert next(iter(stream)).choices[0].delta.content == " 0"


async def test_the_async_client_streams_many_at_once(fleet: Fleet) -> None:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=fleet.url(1) + "/v1", max_retries=0, timeout=20) as one:
        streams = [
            await one.chat.completions.create(
                model="echo", messages=messages(text=f"w{number} x y", token_ms=5), stream=True
            )
            for number in range(12)
        ]
        said = [
            "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) for stream in reversed(streams)
        ]
    assert said == [f"w{number} x y" for number in reversed(range(12))]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 2, "logprobs": True, "top_logprobs": 1},
        {"tools": [WEATHER], "tool_choice": "required"},
        {"max_tokens": 1, "stop": ["x"], "seed": 7, "temperature": 0.1, "user": "u", "top_p": 0.5},
    ],
    ids=["plain", "choices", "tools", "limits"],
)
def test_answers_have_exactly_openais_shapes(client: httpx.Client, more: dict[str, Any]) -> None:
    whole = client.post(CHAT, json={**chat(words="one two"), **more})
    answer = ChatCompletion.model_validate_json(whole.content, strict=True)
    assert whole.json() == answer.model_dump(mode="json", exclude_unset=True)
    required = {name for name, row in ChatCompletion.model_fields.items() if row.is_required()}
    assert required <= whole.json().keys()
    streamed = client.post(
        CHAT, json={**chat(words="one two", stream=True), **more, "stream_options": {"include_usage": True}}
    )
    *events, done = frames(streamed.content)
    assert done.data == "[DONE]"
    for event in events:
        chunk = ChatCompletionChunk.model_validate_json(event.data, strict=True)
        assert "usage" in event.json and "finish_reason" in (event.json["choices"] or [{"finish_reason": None}])[0]
        assert chunk.object == "chat.completion.chunk"


def test_models_are_listed_and_found_by_names_with_slashes(sdk: openai.OpenAI) -> None:
    assert {"echo", "org/echo:8b", "capped"} <= {model.id for model in sdk.models.list()}
    assert sdk.models.retrieve("org/echo:8b").object == "model"
    assert sdk.chat.completions.create(model="org/echo:8b", messages=messages("hi")).model == "org/echo:8b"


def test_a_reasoning_models_thoughts_come_beside_its_text(sdk: openai.OpenAI) -> None:
    given = messages(reasoning="let me think", text="four")
    message = sdk.chat.completions.create(model="echo", messages=given).choices[0].message
    assert (message.content, (message.model_extra or {})["reasoning_content"]) == ("four", "let me think")


# --- errors -----------------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[type[openai.APIStatusError], int, str | None, dict[str, Any]]] = [
    (openai.NotFoundError, 404, "model_not_found", {"model": "gpt-17"}),
    (openai.BadRequestError, 400, None, {"temperature": 5}),
    (openai.BadRequestError, 400, "unknown_parameter", {"extra_body": {"api_base": "http://127.0.0.1:9"}}),
    (openai.BadRequestError, 400, "upstream_refused", {"messages": messages(error="upstream_refused")}),
    (openai.BadRequestError, 400, "context_length_exceeded", {"messages": messages(error="context_length_exceeded")}),
    (openai.AuthenticationError, 401, "invalid_api_key", {"extra_headers": {"authorization": "Bearer hr-wrong-key"}}),
    (openai.BadRequestError, 400, None, {"extra_headers": {"x-headrace-priority": "urgent"}}),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("error", "status", "code", "more"), REFUSALS)
def test_a_refusal_is_the_sdks_own_exception(
    sdk: openai.OpenAI, error: type[openai.APIStatusError], status: int, code: str | None, more: Any, *, stream: bool
) -> None:
    given: dict[str, Any] = {"model": "echo", "messages": messages("hi"), "stream": stream, **more}
    with pytest.raises(error) as caught:
        sdk.chat.completions.create(**given)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id is not None and caught.value.request_id.startswith("req_")


def test_a_broken_upstream_is_a_server_error_after_its_attempts(sdk: openai.OpenAI, client: httpx.Client) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        sdk.chat.completions.create(model="echo", messages=messages(error="upstream_unreachable"))
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_unreachable")
    found = record(client, caught.value.response.headers["x-headrace-job-id"])
    assert (found["status"], found["attempt"]) == ("failed", 3)


def test_refused_credentials_are_not_tried_again(sdk: openai.OpenAI, client: httpx.Client) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        sdk.chat.completions.create(model="echo", messages=messages(error="upstream_credentials"))
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_credentials")
    found = record(client, caught.value.response.headers["x-headrace-job-id"])
    assert (found["status"], found["attempt"]) == ("failed", 1)


def test_an_answer_that_breaks_off_is_an_error_in_the_stream_and_never_a_short_answer(sdk: openai.OpenAI) -> None:
    given = messages(numbered=True, tokens=9, token_ms=20, fail_at=4)
    said = ""
    with (
        pytest.raises(openai.APIError) as caught,
        sdk.chat.completions.create(model="echo", messages=given, stream=True) as stream,
    ):
        for chunk in stream:
            said += chunk.choices[0].delta.content or ""
    assert said == " 0 1 2 3"
    assert caught.value.code == "upstream_interrupted"


def test_a_full_queue_is_a_rate_limit_error_that_says_when_to_come_back(
    sdk: openai.OpenAI, client: httpx.Client
) -> None:
    waiting = [submit(client, chat("crowded", words="wait"), priority="interactive") for _ in range(MOST_WAITING)]
    try:
        with pytest.raises(openai.RateLimitError) as caught:
            sdk.chat.completions.create(model="crowded", messages=messages("hi"))
    finally:
        for job_id in waiting:
            client.post(f"/v1/jobs/{job_id}/cancel")
    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.response.headers["x-should-retry"] == "true"


def test_an_sdk_that_retries_gets_its_answer_from_a_queue_that_was_full(fleet: Fleet, client: httpx.Client) -> None:
    one = submit(client, chat("narrow", numbered=True, tokens=1, hang_at=0))
    when(client, one, "running")
    waiting = [submit(client, chat("narrow", words="x"), priority="interactive") for _ in range(MOST_WAITING)]
    assert client.post(CHAT, json=chat("narrow", words="x")).status_code == 429
    for job_id in waiting:
        client.post(f"/v1/jobs/{job_id}/cancel")
    client.post(f"/v1/jobs/{one}/cancel")
    with openai.OpenAI(api_key=KEY, base_url=fleet.url() + "/v1", max_retries=2, timeout=20) as retrying:
        answer = retrying.chat.completions.create(model="narrow", messages=messages("hello"))
    assert answer.choices[0].message.content == "hello"


def test_a_timeout_of_the_caller_is_the_sdks_timeout_and_cancels_the_job(
    fleet: Fleet, sdk: openai.OpenAI, client: httpx.Client
) -> None:
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=1.5).chat.completions.create(
            model="echo", messages=messages(text="x", first_token_ms=60_000)
        )
    newest = client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]["id"]
    assert when(client, newest)["status"] == "cancelled"


def test_later_than_the_status_wait_a_failure_comes_in_the_stream(sdk: openai.OpenAI) -> None:
    given = messages(text="x", first_token_ms=(STATUS_WAIT_S + 0.4) * 1000, error="upstream_refused", fail_at=0)
    with sdk.chat.completions.create(model="echo", messages=given, stream=True) as stream:
        assert stream.response.status_code == 200
        with pytest.raises(openai.APIError) as caught:
            next(iter(stream))
    assert caught.value.code == "upstream_refused"
