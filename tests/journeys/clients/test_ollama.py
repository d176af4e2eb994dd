"""Ollama's own Python client, given nothing but our address and a key."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from tests.support.fleet import KEY, Fleet
from tests.support.say import messages

ollama: Any = pytest.importorskip("ollama")

pytestmark = pytest.mark.timeout(60)

HEADERS = {"authorization": f"Bearer {KEY}"}
PIXEL = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


class Place(BaseModel):
    """What an answer is to look like."""

    city: str
    days: int


def get_weather(city: str, days: int = 1) -> str:
    """Tells the weather.

    Args:
      city: The city's name.
      days: How many days.

    Returns:
      str: the weather
    """
    return f"rain in {city} for {days}"


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Any]:
    """The client."""
    with ollama.Client(host=fleet.url(), headers=HEADERS) as one:
        yield one


def test_chats_come_whole_and_streamed(client: Any) -> None:
    whole = client.chat(model="echo", messages=messages("one two three"))
    assert (whole.message.role, whole.message.content) == ("assistant", "one two three")
    assert (whole.done, whole.done_reason, whole.prompt_eval_count, whole.eval_count) == (True, "stop", 3, 3)
    assert whole.total_duration >= whole.load_duration >= 0 and whole.eval_duration > 0
    pieces = list(client.chat(model="echo:latest", messages=messages("one two three"), stream=True))
    assert "".join(piece.message.content for piece in pieces) == "one two three"
    assert [piece.done for piece in pieces][-2:] == [False, True]
    assert pieces[-1].eval_count == 3


def test_prompts_come_whole_and_streamed(client: Any) -> None:
    whole = client.generate(model="echo", prompt="a b", system="Be short.", options={"temperature": 0, "seed": 7})
    assert (whole.response, whole.done_reason) == ("a b", "stop")
    assert "".join(piece.response for piece in client.generate(model="echo", prompt="a b", stream=True)) == "a b"
    cut = client.generate(model="echo", prompt="a b c d", options=ollama.Options(num_predict=2))
    assert (cut.response, cut.done_reason) == ("a b", "length")


def test_a_function_given_as_a_tool_is_called_and_its_result_sent_back(client: Any) -> None:
    asked = messages(tool_calls=[{"name": "get_weather", "arguments": {"city": "Saint-Étienne", "days": 3}}])
    for stream in (False, True):
        answer = client.chat(model="echo", messages=asked, tools=[get_weather], stream=stream)
        said = [piece.message for piece in answer] if stream else [answer.message]
        (call,) = [call for message in said for call in message.tool_calls or ()]
        assert get_weather(**call.function.arguments) == "rain in Saint-Étienne for 3"
        called = next(message for message in said if message.tool_calls)
        result = {"role": "tool", "tool_name": call.function.name, "content": "rain"}
        after = client.chat(model="echo", messages=[*asked, called, result, *messages("so?")])
        assert after.message.content == "so?"


def test_thinking_and_structured_answers_are_what_the_client_expects(client: Any) -> None:
    thought = client.chat(model="echo", messages=messages(text="yes", reasoning="Hm."), think=True)
    assert (thought.message.thinking, thought.message.content) == ("Hm.", "yes")
    asked = messages(text=Place(city="Oslo", days=2).model_dump_json())
    shaped = client.chat(model="echo", messages=asked, format=Place.model_json_schema())
    assert Place.model_validate_json(shaped.message.content) == Place(city="Oslo", days=2)


def test_pictures_are_taken(client: Any) -> None:
    seen = client.chat(model="echo", messages=[{"role": "user", "content": "what is it?", "images": [PIXEL]}])
    assert seen.message.content == "what is it?"
    assert client.generate(model="echo", prompt="and this?", images=[PIXEL]).response == "and this?"


def test_embeddings_are_lists_of_numbers(client: Any) -> None:
    both = client.embed(model="echo", input=["a", "b"])
    assert [len(vector) for vector in both.embeddings] == [16, 16]
    assert client.embed(model="echo", input="b", dimensions=16).embeddings[0] == both.embeddings[1]
    assert client.embeddings(model="echo", prompt="a").embedding == both.embeddings[0]


def test_models_are_listed_shown_and_ready(client: Any) -> None:
    listed = [model.model for model in client.list().models]
    assert "echo:latest" in listed and "org/echo:8b" in listed
    assert "echo:latest" in [model.name for model in client.ps().models]
    assert "completion" in client.show("echo").capabilities


def test_refusals_are_raised_with_their_status_and_words(client: Any, fleet: Fleet) -> None:
    for call in (client.chat, client.generate, client.embed, client.show):
        with pytest.raises(ollama.ResponseError) as caught:
            call(model="none")
        assert (caught.value.status_code, caught.value.error) == (404, "model 'none' not found")
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate(model="echo", prompt="a", suffix="b")
    assert caught.value.status_code == 400 and "suffix" in caught.value.error
    with ollama.Client(host=fleet.url(), headers={"authorization": "Bearer wrong"}) as stranger:
        with pytest.raises(ollama.ResponseError) as caught:
            list(stranger.chat(model="echo", messages=messages("a"), stream=True))
    assert caught.value.status_code == 401


def test_a_failure_in_mid_stream_is_raised_after_what_came(client: Any) -> None:
    said = ""
    with pytest.raises(ollama.ResponseError):
        for piece in client.chat(
            model="echo", messages=messages(numbered=True, tokens=9, token_ms=20, fail_at=4), stream=True
        ):
            said += piece.message.content
    assert said.startswith(" 0 1")


def test_the_async_client_streams_too(fleet: Fleet) -> None:
    async def said() -> str:
        async with ollama.AsyncClient(host=fleet.url(), headers=HEADERS) as one:
            pieces = await one.chat(model="echo", messages=messages("a b c"), stream=True)
            return "".join([piece.message.content async for piece in pieces])

    assert asyncio.run(said()) == "a b c"
