"""pydantic-ai: agents on its models for chat completions, responses and Anthropic, given our address and a key."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.journeys.clients.apart.asking import LYON, PICTURE, SAYS_LYON, Place, script

ai: Any = pytest.importorskip("pydantic_ai")
anthropic_model: Any = pytest.importorskip("pydantic_ai.models.anthropic")
anthropic_provider: Any = pytest.importorskip("pydantic_ai.providers.anthropic")
openai_model: Any = pytest.importorskip("pydantic_ai.models.openai")
openai_provider: Any = pytest.importorskip("pydantic_ai.providers.openai")
anthropic: Any = pytest.importorskip("anthropic")
openai: Any = pytest.importorskip("openai")

pytestmark = pytest.mark.timeout(60)
SURFACES = ("chat", "responses", "anthropic")


@asynccontextmanager
async def an_agent(
    surface: str, at: SimpleNamespace, model: str = "echo", *, key: str = "", **more: Any
) -> AsyncGenerator[Any]:
    """An agent whose model is ours, by one of our surfaces."""
    given = {"api_key": key or at.key, "max_retries": 0, "timeout": 20}
    if surface == "anthropic":
        async with anthropic.AsyncAnthropic(base_url=at.root, **given) as client:
            provider = anthropic_provider.AnthropicProvider(anthropic_client=client)
            yield ai.Agent(anthropic_model.AnthropicModel(model, provider=provider), **more)
        return
    kind = openai_model.OpenAIChatModel if surface == "chat" else openai_model.OpenAIResponsesModel
    async with openai.AsyncOpenAI(base_url=at.v1, **given) as client:
        yield ai.Agent(kind(model, provider=openai_provider.OpenAIProvider(openai_client=client)), **more)


@pytest.mark.parametrize("surface", SURFACES)
async def test_a_run_says_the_same_whole_and_streamed(surface: str, at: SimpleNamespace) -> None:
    async with an_agent(surface, at, instructions="Be short.") as agent:
        whole = await agent.run("one two three")
        async with agent.run_stream("one two three") as streamed:
            pieces = [piece async for piece in streamed.stream_text(delta=True, debounce_by=None)]
    assert whole.output == "".join(pieces) == "one two three"
    assert pieces == ["one", " two", " three"]
    usage = whole.usage
    assert (usage.input_tokens, usage.output_tokens) == (5, 3)
    assert streamed.usage.output_tokens == 3
    assert whole.response.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("surface", SURFACES)
async def test_the_agents_own_tool_loop_runs_to_its_end(surface: str, stream: bool, at: SimpleNamespace) -> None:
    asked: list[str] = []

    def weather(city: str) -> str:
        """Tells the weather in a city."""
        asked.append(city)
        return f"sunny in {city}"

    async with an_agent(surface, at, "obedient", tools=[weather]) as agent:
        if stream:
            async with agent.run_stream("How is it in 'Saint-Étienne'?") as streamed:
                said = await streamed.get_output()
        else:
            said = (await agent.run("How is it in 'Saint-Étienne'?")).output
    assert asked == ["Saint-Étienne"]
    assert said == "Here is what you asked for."


@pytest.mark.parametrize("surface", SURFACES)
async def test_an_answer_is_parsed_by_a_schema_or_from_a_forced_call(surface: str, at: SimpleNamespace) -> None:
    called = script(tool_calls=[{"name": "final_result", "arguments": LYON.model_dump()}])
    async with an_agent(surface, at, output_type=ai.ToolOutput(Place)) as agent:
        assert (await agent.run(called)).output == LYON
        async with agent.run_stream(called) as streamed:
            assert await streamed.get_output() == LYON
    async with an_agent(surface, at, output_type=ai.PromptedOutput(Place)) as agent:
        assert (await agent.run(SAYS_LYON)).output == LYON
    if surface != "anthropic":  # it holds that only certain names of models can
        async with an_agent(surface, at, output_type=ai.NativeOutput(Place)) as agent:
            assert (await agent.run(SAYS_LYON)).output == LYON


@pytest.mark.parametrize("surface", SURFACES)
async def test_thoughts_are_told_apart_and_go_back(surface: str, at: SimpleNamespace) -> None:
    asked = {"anthropic_thinking": {"type": "enabled", "budget_tokens": 1_024}} if surface == "anthropic" else {}
    async with an_agent(surface, at, model_settings=asked) as agent:
        first = await agent.run(script(text="yes", reasoning="Let me see."))
        second = await agent.run("so?", message_history=first.all_messages())
    kinds = [part.part_kind for part in first.response.parts]
    assert kinds == ["thinking", "text"]
    assert first.output == "yes"
    assert second.output == "so?"


@pytest.mark.parametrize("surface", SURFACES)
async def test_a_picture_is_taken(surface: str, at: SimpleNamespace) -> None:
    picture = ai.BinaryContent(b64decode(PICTURE.partition(",")[2]), media_type="image/png")
    async with an_agent(surface, at) as agent:
        assert (await agent.run(["what is it?", picture])).output == "what is it?"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_in_the_background_is_followed_to_its_end(stream: bool, at: SimpleNamespace) -> None:
    settings = openai_model.OpenAIResponsesModelSettings(openai_background=True)
    async with an_agent("responses", at, model_settings=settings) as agent:
        if stream:
            async with agent.run_stream(script(text="one two three", token_ms=50)) as streamed:
                said = await streamed.get_output()
        else:
            said = (await agent.run(script(text="one two three", token_ms=50))).output
    assert said == "one two three"


async def test_a_conversation_goes_on_from_the_response_before(at: SimpleNamespace) -> None:
    settings = openai_model.OpenAIResponsesModelSettings(openai_previous_response_id="auto")
    async with an_agent("responses", at, model_settings=settings) as agent:
        first = await agent.run("one two")
        second = await agent.run("three", message_history=first.all_messages())
    assert second.output == "three"
    assert second.usage.input_tokens == 5  # both questions and the answer between them


@pytest.mark.parametrize("surface", SURFACES)
async def test_refusals_are_raised_with_their_status(surface: str, at: SimpleNamespace) -> None:
    async with an_agent(surface, at, "nobody") as agent:
        with pytest.raises(ai.ModelHTTPError) as unknown:
            await agent.run("x")
    async with an_agent(surface, at, key="wrong") as agent:
        with pytest.raises(ai.ModelHTTPError) as stranger:
            await agent.run("x")
    assert (unknown.value.status_code, stranger.value.status_code) == (404, 401)
    assert "nobody" in str(unknown.value.body)


@pytest.mark.parametrize("surface", SURFACES)
async def test_a_stream_that_breaks_off_raises_after_what_came(surface: str, at: SimpleNamespace) -> None:
    said = ""
    broken = script(text="one two three", fail_at=2, token_ms=100, error="upstream_error")
    async with an_agent(surface, at) as agent:
        with pytest.raises((ai.UnexpectedModelBehavior, ai.exceptions.ModelAPIError, openai.APIError)):
            async with agent.run_stream(broken) as streamed:
                async for piece in streamed.stream_text(delta=True, debounce_by=None):
                    said += piece
    assert said == "one two"
