"""Anthropic's own Python client against a fleet, unchanged: what it gets, what it raises, what it puts together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.journeys.conftest import SilentModel
from tests.support.fleet import KEY, Fleet

anthropic: Any = pytest.importorskip("anthropic")

pytestmark = pytest.mark.timeout(60)

TOOL: dict[str, Any] = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
HARD = 'quotes " back\\slash\ttab\r\nnew line \u2028 \u2029 \x85 é 汉字 👩‍👩‍👧'


def asked(words: str | None = None, *, model: str = "echo", **script: Any) -> dict[str, Any]:
    text = words if words is not None else "echo: " + orjson.dumps(script).decode()
    return {"model": model, "max_tokens": 1_000, "messages": [{"role": "user", "content": text}]}


@pytest.fixture
def claude(fleet: Fleet) -> Iterator[Any]:
    """The client, given nothing but the base URL and the key."""
    with anthropic.Anthropic(api_key=KEY, base_url=fleet.url(), max_retries=0, timeout=20) as one:
        yield one


def test_a_message_is_created(claude: Any) -> None:
    message = claude.messages.create(**asked("one two three"), system="Be brief.", stop_sequences=["END"])
    type(message).model_validate(message.model_dump(), strict=False)
    (block,) = message.content
    assert (block.type, block.text) == ("text", "one two three")
    assert (message.stop_reason, message.role, message.model) == ("end_turn", "assistant", "echo")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (5, 3)
    assert message._request_id.startswith("req_")


def test_text_of_every_kind_comes_back_as_it_was(claude: Any) -> None:
    assert claude.messages.create(**asked(HARD)).content[0].text == HARD
    with claude.messages.stream(**asked(HARD)) as stream:
        assert "".join(stream.text_stream) == HARD


def test_a_stream_is_put_together_to_the_message_that_would_have_come_whole(claude: Any) -> None:
    script = asked(text="so it is", reasoning="let me see") | {"thinking": {"type": "adaptive"}}
    whole = claude.messages.create(**script)
    with claude.messages.stream(**script) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert {"message_start", "thinking", "text", "content_block_stop", "message_delta", "message_stop"} <= kinds
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content]
    assert (final.stop_reason, final.usage.model_dump()) == (whole.stop_reason, whole.usage.model_dump())


def test_raw_events_are_of_the_types_that_the_client_knows(claude: Any) -> None:
    with claude.messages.create(**asked("one two"), stream=True) as stream:
        events = list(stream)
    assert events[0].type == "message_start" and events[-1].type == "message_stop"
    for event in events:
        type(event).model_validate(event.model_dump())


def test_tools_are_called_and_their_results_sent_back(claude: Any) -> None:
    calls = [{"name": "get_weather", "arguments": {"city": city}} for city in ("Saint-Étienne", "東京")]
    script = asked(tool_calls=calls)
    message = claude.messages.create(**script, tools=[TOOL], tool_choice={"type": "auto"})
    assert message.stop_reason == "tool_use"
    assert [block.input for block in message.content] == [call["arguments"] for call in calls]
    with claude.messages.stream(**script, tools=[TOOL]) as stream:
        final = stream.get_final_message()
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in message.content]
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "sunny"} for block in message.content]
    history = [
        *script["messages"],
        message.to_param(),
        {"role": "user", "content": [*results, {"type": "text", "text": "so?"}]},
    ]
    answer = claude.messages.create(model="echo", max_tokens=50, tools=[TOOL], messages=history)
    assert answer.content[0].text == "so?"


def test_the_clients_own_tool_loop_runs_to_its_end(claude: Any) -> None:
    asked_for: list[str] = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather.

        Args:
            city: Where.
        """
        asked_for.append(city)
        return "sunny"

    script = asked(tool_calls=[{"name": "get_weather", "arguments": {"city": "Oslo"}}], then="it is sunny")
    messages = list(claude.beta.messages.tool_runner(**script, tools=[get_weather]))
    assert [message.stop_reason for message in messages] == ["tool_use", "end_turn"]
    assert messages[-1].content[0].text == "it is sunny"
    assert asked_for == ["Oslo"]


@pytest.mark.parametrize(
    ("kwargs", "raised", "kind"),
    [
        (asked("x", model="nobody"), "NotFoundError", "not_found_error"),
        ({**asked("x"), "max_tokens": 0}, "BadRequestError", "invalid_request_error"),
        (asked(text="a", error="context_length_exceeded"), "BadRequestError", "invalid_request_error"),
    ],
)
def test_refusals_are_the_clients_own_exceptions(claude: Any, kwargs: dict[str, Any], raised: str, kind: str) -> None:
    with pytest.raises(getattr(anthropic, raised)) as caught:
        claude.messages.create(**kwargs)
    assert caught.value.body["error"]["type"] == kind
    assert caught.value.request_id == caught.value.body["request_id"]
    with pytest.raises(getattr(anthropic, raised)), claude.messages.stream(**kwargs) as stream:
        stream.get_final_message()


def test_a_wrong_key_is_an_authentication_error(fleet: Fleet) -> None:
    with anthropic.Anthropic(api_key="wrong", base_url=fleet.url(), max_retries=0) as nobody:
        with pytest.raises(anthropic.AuthenticationError):
            nobody.messages.create(**asked("x"))
        with pytest.raises(anthropic.AuthenticationError):
            nobody.models.list()


def test_a_token_serves_as_well_as_a_key(fleet: Fleet) -> None:
    with anthropic.Anthropic(auth_token=KEY, base_url=fleet.url(), max_retries=0) as one:
        assert one.messages.create(**asked("hello")).content[0].text == "hello"


def test_a_stream_that_breaks_off_raises_and_keeps_what_came(claude: Any) -> None:
    said = ""
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        claude.messages.stream(
            **asked(text="one two three", fail_at=2, token_ms=100, error="upstream_error")
        ) as stream,
    ):
        for piece in stream.text_stream:
            said += piece
    assert said == "one two"
    assert caught.value.body["error"]["type"] == "api_error"


def test_a_stream_may_be_left(claude: Any, remote: SilentModel) -> None:
    with claude.messages.stream(**asked("x", model="remote")) as stream:
        assert next(iter(stream.text_stream)) == "a"


def test_tokens_are_counted_before_they_are_sent(claude: Any) -> None:
    prompt = asked("word " * 100)
    del prompt["max_tokens"]
    assert 90 <= claude.messages.count_tokens(**prompt, tools=[TOOL]).input_tokens <= 300


def test_models_are_listed_page_by_page(claude: Any) -> None:
    names = [model.id for model in claude.models.list(limit=2)]
    assert len(names) == len(set(names)) > 2
    model = claude.models.retrieve("echo")
    assert (model.id, model.display_name, model.type) == ("echo", "echo", "model")
    with pytest.raises(anthropic.NotFoundError):
        claude.models.retrieve("nobody")


def test_an_answer_by_a_schema_is_parsed(claude: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    config = {"format": {"type": "json_schema", "schema": schema}}
    message = claude.messages.create(**asked(text='{"n": 3}'), output_config=config)
    assert orjson.loads(message.content[0].text) == {"n": 3}


async def test_the_asynchronous_client_works_too(fleet: Fleet) -> None:
    async with anthropic.AsyncAnthropic(api_key=KEY, base_url=fleet.url(), max_retries=0) as one:
        async with one.messages.stream(**asked("one two")) as stream:
            pieces = [piece async for piece in stream.text_stream]
            final = await stream.get_final_message()
    assert "".join(pieces) == final.content[0].text == "one two"
