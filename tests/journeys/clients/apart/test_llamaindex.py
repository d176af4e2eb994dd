"""LlamaIndex: its models for OpenAI-compatible servers and for responses, and its embeddings, given our address."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.journeys.clients.apart.asking import CALLS, CITIES, LYON, PICTURE, SAYS_LYON, Place, script

embeddings_like: Any = pytest.importorskip("llama_index.embeddings.openai_like")
llama: Any = pytest.importorskip("llama_index.core.llms")
like: Any = pytest.importorskip("llama_index.llms.openai_like")
llama_openai: Any = pytest.importorskip("llama_index.llms.openai")
openai: Any = pytest.importorskip("openai")
prompts: Any = pytest.importorskip("llama_index.core.prompts")
tools: Any = pytest.importorskip("llama_index.core.tools")

pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"sunny in {city}"


TOOL = tools.FunctionTool.from_defaults(fn=weather)


def model(surface: str, at: SimpleNamespace, name: str = "echo", *, key: str = "", **more: Any) -> Any:
    """LlamaIndex's model by chat completions, the older completions, or responses."""
    given = {"model": name, "api_base": at.v1, "api_key": key or at.key, "max_retries": 0, "timeout": 20.0, **more}
    if surface == "responses":
        return llama_openai.OpenAIResponses(context_window=2_000, **given)
    chat = surface == "chat"
    return like.OpenAILike(is_chat_model=chat, is_function_calling_model=chat, context_window=2_000, **given)


def user(text: str) -> list[Any]:
    """One message."""
    return [llama.ChatMessage(role="user", content=text)]


@pytest.mark.parametrize("surface", ["chat", "completions", "responses"])
async def test_an_answer_is_the_same_whole_streamed_and_awaited(surface: str, at: SimpleNamespace) -> None:
    one = model(surface, at)
    assert one.complete("one two three").text == "one two three"
    pieces = list(one.stream_complete("one two three"))
    assert "".join(piece.delta or "" for piece in pieces) == pieces[-1].text == "one two three"
    assert (await one.acomplete("one two three")).text == "one two three"
    awaited = [piece.delta or "" async for piece in await one.astream_complete("one two three")]
    assert "".join(awaited) == "one two three"


@pytest.mark.parametrize("surface", ["chat", "responses"])
async def test_a_chat_is_answered_whole_and_streamed(surface: str, at: SimpleNamespace) -> None:
    one = model(surface, at)
    asked = [llama.ChatMessage(role="system", content="Be short."), *user("one two three")]
    whole = one.chat(asked)
    assert whole.message.content == "one two three"
    assert "".join(piece.delta or "" for piece in one.stream_chat(asked)) == "one two three"
    assert "".join([piece.delta or "" async for piece in await one.astream_chat(asked)]) == "one two three"
    if surface == "chat":
        assert whole.raw.usage.total_tokens == 8
        assert whole.additional_kwargs["completion_tokens"] == 3


@pytest.mark.parametrize("surface", ["chat", "responses"])
def test_tools_are_called_whole_and_streamed(surface: str, at: SimpleNamespace) -> None:
    one = model(surface, at)
    whole = one.chat_with_tools([TOOL], user_msg=CALLS, allow_parallel_tool_calls=True)
    *_, last = one.stream_chat_with_tools([TOOL], user_msg=CALLS, allow_parallel_tool_calls=True)
    for answer in (whole, last):
        calls = one.get_tool_calls_from_response(answer)
        assert [(call.tool_name, call.tool_kwargs) for call in calls] == [("weather", {"city": c}) for c in CITIES]
    results = [
        llama.ChatMessage(role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id})
        for call in one.get_tool_calls_from_response(whole)
    ]
    assert one.chat([*user(CALLS), whole.message, *results, *user("so?")]).message.content == "so?"


def test_a_function_is_predicted_and_called(at: SimpleNamespace) -> None:
    called = script(tool_calls=[{"name": "weather", "arguments": {"city": "Oslo"}}])
    assert model("chat", at).predict_and_call([TOOL], user_msg=called).response == "sunny in Oslo"


def test_an_answer_is_the_object_that_was_asked_for(at: SimpleNamespace) -> None:
    called = script(tool_calls=[{"name": "Place", "arguments": LYON.model_dump()}])
    template = prompts.PromptTemplate("{asked}")
    one = model("chat", at)
    assert one.structured_predict(Place, template, asked=called) == LYON
    assert one.as_structured_llm(Place).complete(called).raw == LYON
    *_, last = one.stream_structured_predict(Place, template, asked=called)
    assert last == LYON
    assert model("responses", at).structured_predict(Place, template, asked=SAYS_LYON) == LYON


@pytest.mark.parametrize("surface", ["chat", "responses"])
def test_a_picture_is_taken(surface: str, at: SimpleNamespace) -> None:
    blocks = [llama.TextBlock(text="what is it?"), llama.ImageBlock(url=PICTURE)]
    asked = [llama.ChatMessage(role="user", blocks=blocks)]
    assert model(surface, at).chat(asked).message.content == "what is it?"


def test_a_conversation_goes_on_from_the_response_before(at: SimpleNamespace) -> None:
    one = model("responses", at, track_previous_responses=True)
    assert one.complete("one two").text == "one two"
    answer = one.chat(user("three"))
    assert answer.message.content == "three"
    assert answer.additional_kwargs["usage"].input_tokens == 5  # both questions and the answer between them


async def test_embeddings_are_lists_of_numbers(at: SimpleNamespace) -> None:
    one = embeddings_like.OpenAILikeEmbedding(model_name="echo", api_base=at.v1, api_key=at.key, embed_batch_size=2)
    three = one.get_text_embedding_batch(["a", "b", "c"])
    assert [len(vector) for vector in three] == [16] * 3
    assert await one.aget_query_embedding("c") == three[2]


@pytest.mark.parametrize("surface", ["chat", "completions", "responses"])
def test_refusals_are_the_clients_own_exceptions(surface: str, at: SimpleNamespace) -> None:
    with pytest.raises(openai.NotFoundError):
        model(surface, at, "nobody").complete("x")
    with pytest.raises(openai.AuthenticationError):
        model(surface, at, key="wrong").complete("x")


def test_a_stream_that_breaks_off_raises_after_what_came(at: SimpleNamespace) -> None:
    broken, said = script(text="one two three", fail_at=2, token_ms=100, error="upstream_error"), ""
    with pytest.raises(openai.APIError):
        for piece in model("chat", at).stream_complete(broken):
            said += piece.delta or ""
    assert said == "one two"
