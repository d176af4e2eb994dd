"""LangChain: its models and embeddings for OpenAI, Anthropic and Ollama, given our address and a key."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.journeys.clients.apart.asking import CALLS, CITIES, LYON, PICTURE, SAYS_LYON, Place, script

anthropic: Any = pytest.importorskip("anthropic")
langchain_anthropic: Any = pytest.importorskip("langchain_anthropic")
langchain_ollama: Any = pytest.importorskip("langchain_ollama")
langchain_openai: Any = pytest.importorskip("langchain_openai")
ollama: Any = pytest.importorskip("ollama")
openai: Any = pytest.importorskip("openai")
ContextOverflowError: Any = pytest.importorskip("langchain_core.exceptions").ContextOverflowError

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),  # OpenAI's SDK, on what it parsed
]
SURFACES = ("chat", "responses", "anthropic", "ollama")


def weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"sunny in {city}"


def together(pieces: list[Any]) -> Any:
    """A stream's pieces as one message."""
    return sum(pieces[1:], pieces[0])


def chat_model(surface: str, at: SimpleNamespace, **more: Any) -> Any:
    """LangChain's model for one of our surfaces."""
    given = {"model": "echo", **more}
    key = given.pop("key", at.key)
    if surface == "anthropic":
        return langchain_anthropic.ChatAnthropic(base_url=at.root, api_key=key, max_retries=0, timeout=20, **given)
    if surface == "ollama":
        headers = {"authorization": f"Bearer {key}"}
        return langchain_ollama.ChatOllama(base_url=at.root, client_kwargs={"headers": headers}, **given)
    given["use_responses_api"] = surface == "responses"
    return langchain_openai.ChatOpenAI(
        base_url=at.v1, api_key=key, max_retries=0, timeout=20, stream_usage=True, **given
    )


@pytest.mark.parametrize("surface", SURFACES)
async def test_an_answer_is_the_same_whole_streamed_and_awaited(surface: str, at: SimpleNamespace) -> None:
    model = chat_model(surface, at)
    whole = model.invoke([("system", "Be short."), ("human", "one two three")])
    pieces = list(model.stream([("system", "Be short."), ("human", "one two three")]))
    awaited = [piece.text async for piece in model.astream("one two three")]
    assert whole.text == "".join(piece.text for piece in pieces) == "".join(awaited) == "one two three"
    full = together(pieces)
    assert full.usage_metadata == whole.usage_metadata
    assert (whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]) == (5, 3)
    assert len([piece for piece in pieces if piece.text]) == 3


@pytest.mark.parametrize("surface", SURFACES)
def test_tools_are_called_whole_and_streamed_and_take_their_results_back(surface: str, at: SimpleNamespace) -> None:
    model = chat_model(surface, at).bind_tools([weather])
    whole = model.invoke(CALLS)
    for message in (whole, together(list(model.stream(CALLS)))):
        assert [(call["name"], call["args"]["city"]) for call in message.tool_calls] == [
            ("weather", city) for city in CITIES
        ]
        assert len({call["id"] for call in message.tool_calls}) == 2
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": weather(**call["args"])} for call in whole.tool_calls
    ]
    assert model.invoke([("human", CALLS), whole, *results, ("human", "so?")]).text == "so?"


@pytest.mark.parametrize(
    ("surface", "method"),
    [
        ("chat", "json_schema"),
        ("chat", "json_mode"),
        ("responses", "json_schema"),
        ("anthropic", "json_schema"),
        ("ollama", "json_schema"),
    ],
)
def test_an_answer_is_parsed_by_a_schema(surface: str, method: str, at: SimpleNamespace) -> None:
    assert chat_model(surface, at).with_structured_output(Place, method=method).invoke(SAYS_LYON) == LYON


@pytest.mark.parametrize("surface", ["chat", "responses", "anthropic", "ollama"])
def test_an_answer_is_parsed_from_a_forced_call(surface: str, at: SimpleNamespace) -> None:
    called = script(tool_calls=[{"name": "Place", "arguments": LYON.model_dump()}])
    assert chat_model(surface, at).with_structured_output(Place, method="function_calling").invoke(called) == LYON


@pytest.mark.parametrize("surface", SURFACES)
def test_a_picture_is_taken(surface: str, at: SimpleNamespace) -> None:
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    assert chat_model(surface, at).invoke([("human", parts)]).text.strip() == "what is it?"


def test_a_conversation_goes_on_from_the_response_before(at: SimpleNamespace) -> None:
    model = chat_model("responses", at, use_previous_response_id=True)
    first = model.invoke("one two")
    second = model.invoke([("human", "one two"), first, ("human", "three")])
    assert first.response_metadata["id"].startswith("resp_")
    assert second.text == "three"
    assert second.usage_metadata["input_tokens"] == 5  # both questions and the answer between them


def test_several_are_asked_at_once(at: SimpleNamespace) -> None:
    asked = [f"number {number}" for number in range(20)]
    assert [answer.text for answer in chat_model("chat", at).batch(asked)] == asked


async def test_embeddings_are_the_same_by_either_surface(at: SimpleNamespace) -> None:
    ours = langchain_openai.OpenAIEmbeddings(
        model="echo", base_url=at.v1, api_key=at.key, check_embedding_ctx_length=False, chunk_size=2
    )
    both = ours.embed_documents(["a", "b", "c"])
    assert [len(vector) for vector in both] == [16] * 3
    assert await ours.aembed_query("c") == both[2]
    headers = {"authorization": f"Bearer {at.key}"}
    other = langchain_ollama.OllamaEmbeddings(model="echo", base_url=at.root, client_kwargs={"headers": headers})
    assert other.embed_query("a") == pytest.approx(both[0], abs=1e-6)


UNKNOWN = {
    "chat": openai.NotFoundError,
    "responses": openai.NotFoundError,
    "anthropic": anthropic.NotFoundError,
    "ollama": ollama.ResponseError,
}
STRANGER = {
    "chat": openai.AuthenticationError,
    "responses": openai.AuthenticationError,
    "anthropic": anthropic.AuthenticationError,
    "ollama": ollama.ResponseError,
}


@pytest.mark.parametrize("surface", SURFACES)
def test_refusals_are_the_clients_own_exceptions(surface: str, at: SimpleNamespace) -> None:
    with pytest.raises(UNKNOWN[surface]):
        chat_model(surface, at, model="nobody").invoke("x")
    with pytest.raises(STRANGER[surface]):
        chat_model(surface, at, key="wrong").invoke("x")
    with pytest.raises(STRANGER[surface]):
        list(chat_model(surface, at, key="wrong").stream("x"))


@pytest.mark.parametrize("surface", ["chat", "responses", "anthropic"])
@pytest.mark.parametrize(
    ("model", "words"),
    [("smollm2", "word " * 10_000), ("echo", script(text="a", error="context_length_exceeded"))],
    ids=["by our own count", "by the model's server"],
)
def test_a_prompt_that_is_too_long_is_known_for_it(surface: str, model: str, words: str, at: SimpleNamespace) -> None:
    with pytest.raises(ContextOverflowError):
        chat_model(surface, at, model=model).invoke(words)


BROKEN = {
    "chat": openai.APIError,
    "responses": (openai.APIError, ValueError),
    "anthropic": anthropic.APIStatusError,
    "ollama": ollama.ResponseError,
}


@pytest.mark.parametrize("surface", SURFACES)
def test_a_stream_that_breaks_off_raises_after_what_came(surface: str, at: SimpleNamespace) -> None:
    said = ""
    with pytest.raises(BROKEN[surface]):
        for piece in chat_model(surface, at).stream(
            script(text="one two three", fail_at=2, token_ms=100, error="upstream_error")
        ):
            said += piece.text
    assert said == "one two"
