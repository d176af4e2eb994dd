"""What every client must find with every model, the scripted one and a real one behind llama.cpp.

Each client is reduced to one question: whole, and as a stream, both at temperature 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import pytest

from tests.support.say import messages

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:Item '.*' on TypedDict class:UserWarning"),  # LiteLLM's types, read by pydantic
    pytest.mark.filterwarnings("ignore:Items '.*' on TypedDict class:UserWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),  # it puts its own into OpenAI's
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]
QUESTION: Final = "What is the capital of France?"
LIMIT: Final = 12


@dataclass(frozen=True)
class Said:
    """What a client was told: `reason` in its own words; `used` are the tokens of the prompt and the answer."""

    text: str
    pieces: int = 1
    reason: str | None = None
    used: tuple[int, int] | None = None


Ask = Callable[[SimpleNamespace, str], tuple[Said, Said]]


def openai_chat(at: SimpleNamespace, model: str) -> tuple[Said, Said]:
    """OpenAI's own client: chat completions."""
    sdk = pytest.importorskip("openai")
    with sdk.OpenAI(api_key=at.key, base_url=at.v1, max_retries=0) as one:
        asked = {"model": model, "messages": messages(QUESTION), "temperature": 0, "seed": 1, "max_tokens": LIMIT}
        whole = one.chat.completions.create(**asked)
        pieces = list(one.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    told = [choice for piece in pieces for choice in piece.choices]
    words = [choice.delta.content for choice in told if choice.delta.content]
    assert whole.model == model and {(piece.id, piece.model) for piece in pieces} == {(pieces[0].id, model)}
    assert pieces[0].id != whole.id
    return (
        _completion_said(whole, 1),
        Said("".join(words), len(words), told[-1].finish_reason, _openai_used(pieces[-1])),
    )


def _completion_said(answer: Any, pieces: int) -> Said:
    choice = answer.choices[0]
    return Said(choice.message.content, pieces, choice.finish_reason, _openai_used(answer))


def _openai_used(answer: Any) -> tuple[int, int]:
    return answer.usage.prompt_tokens, answer.usage.completion_tokens


def openai_responses(at: SimpleNamespace, model: str) -> tuple[Said, Said]:
    """OpenAI's own client: responses."""
    sdk = pytest.importorskip("openai")
    with sdk.OpenAI(api_key=at.key, base_url=at.v1, max_retries=0) as one:
        asked = {"model": model, "input": QUESTION, "temperature": 0, "max_output_tokens": LIMIT}
        whole = one.responses.create(**asked)
        events = list(one.responses.create(**asked, stream=True))
        pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
        last = events[-1].response
        again = one.responses.retrieve(last.id)
    assert again.output_text == last.output_text
    return _response_said(whole, 1), _response_said(last, len(pieces))


def _response_said(answer: Any, pieces: int) -> Said:
    return Said(answer.output_text, pieces, answer.status, _used(answer.usage))


def _used(usage: Any) -> tuple[int, int]:
    return usage.input_tokens, usage.output_tokens


def anthropic_messages(at: SimpleNamespace, model: str) -> tuple[Said, Said]:
    """Anthropic's own client."""
    sdk = pytest.importorskip("anthropic")
    with sdk.Anthropic(api_key=at.key, base_url=at.root, max_retries=0) as one:
        asked: dict[str, Any] = {"model": model, "messages": messages(QUESTION), "max_tokens": LIMIT}
        asked["extra_body"] = {"temperature": 0}  # which the newest has no word for
        whole = one.messages.create(**asked)
        with one.messages.stream(**asked) as stream:
            pieces = list(stream.text_stream)
            last = stream.get_final_message()
    return _message_said(whole, 1), _message_said(last, len(pieces))


def _message_said(answer: Any, pieces: int) -> Said:
    asked, made = _used(answer.usage)
    cached = answer.usage.cache_read_input_tokens or 0  # which that API counts beside the others
    return Said(answer.content[0].text, pieces, answer.stop_reason, (asked + cached, made))


def ollama_chat(at: SimpleNamespace, model: str) -> tuple[Said, Said]:
    """Ollama's own client."""
    sdk = pytest.importorskip("ollama")
    options = {"temperature": 0, "seed": 1, "num_predict": LIMIT}
    asked = {"model": model, "messages": messages(QUESTION), "options": options}
    with sdk.Client(host=at.root, headers={"authorization": f"Bearer {at.key}"}) as one:
        whole = one.chat(**asked)
        *pieces, last = list(one.chat(**asked, stream=True))
    text = "".join(piece.message.content for piece in (*pieces, last))
    counts = [(answer.prompt_eval_count, answer.eval_count) for answer in (whole, last)]
    return (
        Said(whole.message.content, 1, whole.done_reason, counts[0]),
        Said(text, len(pieces), last.done_reason, counts[1]),
    )


def langchain(surface: str) -> Ask:
    """LangChain's model for a surface."""

    def ask(at: SimpleNamespace, model: str) -> tuple[Said, Said]:
        one = _langchain(surface, at, model)
        pieces: list[Any] = list(one.stream(QUESTION))
        last: Any = sum(pieces[1:], pieces[0])
        words = [piece.text for piece in pieces if piece.text]
        return _langchain_said(one.invoke(QUESTION), 1), _langchain_said(last, len(words))

    return ask


def _langchain(surface: str, at: SimpleNamespace, model: str) -> Any:
    common = {"model": model, "base_url": at.root if surface in ("anthropic", "ollama") else at.v1, "temperature": 0}
    if surface == "ollama":
        headers = {"authorization": f"Bearer {at.key}"}
        package: Any = pytest.importorskip("langchain_ollama")
        return package.ChatOllama(client_kwargs={"headers": headers}, num_predict=LIMIT, **common)
    given = {"api_key": at.key, "max_retries": 0, "max_tokens": LIMIT, **common}
    if surface == "anthropic":
        package = pytest.importorskip("langchain_anthropic")
        return package.ChatAnthropic(**given)
    package = pytest.importorskip("langchain_openai")
    return package.ChatOpenAI(use_responses_api=surface == "responses", stream_usage=True, **given)


def _langchain_said(message: Any, pieces: int) -> Said:
    told = message.usage_metadata
    return Said(message.text, pieces, used=(told["input_tokens"], told["output_tokens"]))


def litellm(route: str) -> Ask:
    """LiteLLM's completion by a route."""

    def ask(at: SimpleNamespace, model: str) -> tuple[Said, Said]:
        package: Any = pytest.importorskip("litellm")
        place = {"api_base": at.v1 if route == "openai" else at.root, "api_key": at.key, "max_retries": 0}
        asked = {"model": f"{route}/{model}", "messages": messages(QUESTION), "temperature": 0, "max_tokens": LIMIT}
        whole = package.completion(**asked, **place)
        pieces = list(package.completion(**asked, **place, stream=True, stream_options={"include_usage": True}))
        last = package.stream_chunk_builder(pieces, messages=asked["messages"])
        return _completion_said(whole, 1), _completion_said(last, len(pieces) - 2)

    return ask


def llama_index(at: SimpleNamespace, model: str) -> tuple[Said, Said]:
    """LlamaIndex's model for OpenAI-compatible servers."""
    like: Any = pytest.importorskip("llama_index.llms.openai_like")
    place = {"api_base": at.v1, "api_key": at.key, "max_retries": 0, "is_chat_model": True, "context_window": 2_000}
    one = like.OpenAILike(model=model, temperature=0, max_tokens=LIMIT, **place)
    whole = one.complete(QUESTION)
    pieces = list(one.stream_complete(QUESTION))
    used = (whole.additional_kwargs["prompt_tokens"], whole.additional_kwargs["completion_tokens"])
    return Said(whole.text, used=used), Said(pieces[-1].text, len([piece for piece in pieces if piece.delta]))


def pydantic_ai(surface: str) -> Ask:
    """pydantic-ai's agent on its model for a surface."""

    def ask(at: SimpleNamespace, model: str) -> tuple[Said, Said]:
        package: Any = pytest.importorskip("pydantic_ai")
        settings = {"temperature": 0, "max_tokens": LIMIT}
        one = package.Agent(_pydantic_ai(surface, at, model), model_settings=settings)
        whole = one.run_sync(QUESTION)
        streamed = one.run_stream_sync(QUESTION)
        pieces = list(streamed.stream_text(delta=True, debounce_by=None))
        return (
            Said(whole.output, 1, whole.response.finish_reason, _used(whole.usage)),
            Said("".join(pieces), len(pieces), used=_used(streamed.usage)),
        )

    return ask


def _pydantic_ai(surface: str, at: SimpleNamespace, model: str) -> Any:
    if surface == "anthropic":
        models: Any = pytest.importorskip("pydantic_ai.models.anthropic")
        providers: Any = pytest.importorskip("pydantic_ai.providers.anthropic")
        provider = providers.AnthropicProvider(base_url=at.root, api_key=at.key)
        return models.AnthropicModel(model, provider=provider)
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    kind = models.OpenAIChatModel if surface == "chat" else models.OpenAIResponsesModel
    return kind(model, provider=providers.OpenAIProvider(base_url=at.v1, api_key=at.key))


CLIENTS: Final[dict[str, Ask]] = {
    "openai-chat": openai_chat,
    "openai-responses": openai_responses,
    "anthropic": anthropic_messages,
    "ollama": ollama_chat,
    **{f"langchain-{surface}": langchain(surface) for surface in ("chat", "responses", "anthropic", "ollama")},
    **{f"litellm-{route}": litellm(route) for route in ("openai", "anthropic", "ollama_chat")},
    "llama-index": llama_index,
    **{f"pydantic-ai-{surface}": pydantic_ai(surface) for surface in ("chat", "responses", "anthropic")},
}
ENDS: Final = {"stop", "length", "end_turn", "max_tokens", "completed", "incomplete", None}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_hears_the_same_whole_and_streamed(client: str, any_model: str, at: SimpleNamespace) -> None:
    whole, streamed = CLIENTS[client](at, any_model)
    assert whole.text and whole.text == streamed.text
    assert streamed.pieces > 1
    assert whole.used is not None and min(whole.used) > 0
    assert streamed.used in (None, whole.used)
    assert whole.used[1] <= LIMIT
    assert {whole.reason, streamed.reason} <= ENDS
    assert streamed.reason in (None, whole.reason)
