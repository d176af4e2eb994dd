"""OpenAI's Agents SDK, which speaks responses: runs, streams, tools, structured answers, conversations kept for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import openai
import orjson
import pytest
from pydantic import BaseModel

from tests.support.fleet import KEY, Fleet

agents: Any = pytest.importorskip("agents")

pytestmark = pytest.mark.timeout(60)


class Place(BaseModel):
    """What a structured answer is to be."""

    city: str
    people: int


def script(**words: Any) -> str:
    """Input that has the echo model answer by a script."""
    return "echo: " + orjson.dumps(words).decode()


@asynccontextmanager
async def an_agent(fleet: Fleet, **more: Any) -> AsyncGenerator[Any]:
    """An agent whose model is ours."""
    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI(api_key=KEY, base_url=fleet.url() + "/v1", max_retries=0, timeout=20) as client:
        model = agents.OpenAIResponsesModel(model="echo", openai_client=client)
        yield agents.Agent(name="One", instructions="Be short.", model=model, **more)


async def test_a_run_ends_with_the_answer(fleet: Fleet) -> None:
    async with an_agent(fleet) as agent:
        result = await agents.Runner.run(agent, "one two three")
    assert result.final_output == "one two three"
    assert result.raw_responses[0].usage.total_tokens == 8  # with the two words of the instructions


async def test_a_streamed_run_tells_each_token(fleet: Fleet) -> None:
    async with an_agent(fleet) as agent:
        result = agents.Runner.run_streamed(agent, script(reasoning="hm", text="one two three"))
        said = [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]
    assert said == ["one", " two", " three"]
    assert result.final_output == "one two three"


async def test_a_tool_is_run_with_the_arguments_that_the_model_gave(fleet: Fleet) -> None:
    asked: list[str] = []

    def weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return f"sunny in {city}"

    tool = agents.function_tool(weather)
    call = script(tool_calls=[{"name": "weather", "arguments": {"city": "Saint-Étienne"}}])
    async with an_agent(fleet, tools=[tool], tool_use_behavior="stop_on_first_tool") as agent:
        result = await agents.Runner.run(agent, call)
    assert asked == ["Saint-Étienne"]
    assert result.final_output == "sunny in Saint-Étienne"


async def test_a_structured_answer_is_parsed(fleet: Fleet) -> None:
    async with an_agent(fleet, output_type=Place) as agent:
        result = await agents.Runner.run(agent, script(text='{"city": "Lyon", "people": 522250}'))
    assert result.final_output == Place(city="Lyon", people=522250)


async def test_a_run_goes_on_from_the_last_response_or_from_all_its_items(fleet: Fleet) -> None:
    async with an_agent(fleet) as agent:
        first = await agents.Runner.run(agent, "one")
        kept = await agents.Runner.run(agent, "two", previous_response_id=first.last_response_id)
        sent: Any = [*first.to_input_list(), {"role": "user", "content": "two"}]
        whole = await agents.Runner.run(agent, sent)
    # The words of the instructions, the first question, its answer and the second question.
    assert [one.raw_responses[0].usage.input_tokens for one in (kept, whole)] == [5, 5]
