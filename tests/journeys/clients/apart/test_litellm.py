"""LiteLLM as a client: its OpenAI, Anthropic and Ollama routes, given our address and a key."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.journeys.clients.apart.asking import CALLS, CITIES, LYON, PICTURE, SAYS_LYON, Place, script
from tests.support.say import messages

litellm: Any = pytest.importorskip("litellm")

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),  # it mixes its types with OpenAI's
    pytest.mark.filterwarnings("ignore:Items? '.*' on TypedDict class:UserWarning"),  # its types, read by pydantic
    pytest.mark.filterwarnings("ignore:Accessing the 'model_computed_fields':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields':DeprecationWarning"),
]
SURFACES = ("openai", "anthropic", "ollama_chat")
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def to(surface: str, at: SimpleNamespace, model: str = "echo", *, key: str = "", **more: Any) -> dict[str, Any]:
    """What a call of this route is given."""
    base = at.v1 if surface in ("openai", "text-completion-openai") else at.root
    given = {"api_base": base, "api_key": key or at.key, "max_retries": 0, "timeout": 20}
    return {"model": f"{surface}/{model}", **given, **more}


def said(chunk: Any) -> str:
    """The text of a streamed piece."""
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


@pytest.mark.parametrize("surface", SURFACES)
async def test_an_answer_is_the_same_whole_streamed_and_awaited(surface: str, at: SimpleNamespace) -> None:
    asked = to(surface, at, messages=messages("one two three"))
    whole = litellm.completion(**asked)
    pieces = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    awaited = [said(piece) async for piece in await litellm.acompletion(**asked, stream=True)]
    assert whole.choices[0].message.content == "".join(map(said, pieces)) == "".join(awaited) == "one two three"
    assert whole.choices[0].finish_reason == "stop"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 3)
    built = litellm.stream_chunk_builder(pieces, messages=asked["messages"])
    assert built.choices[0].finish_reason == "stop"
    assert built.usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("surface", SURFACES)
def test_tools_are_called_and_take_their_results_back(surface: str, stream: bool, at: SimpleNamespace) -> None:
    asked = messages(CALLS)
    answer = litellm.completion(**to(surface, at, messages=asked, tools=[TOOL], stream=stream))
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=asked)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [litellm.json.loads(call.function.arguments) for call in message.tool_calls] == [
        {"city": city} for city in CITIES
    ]
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    history = [*asked, message.model_dump(exclude_none=True), *results, *messages("so?")]
    after = litellm.completion(**to(surface, at, messages=history, tools=[TOOL]))
    assert after.choices[0].message.content == "so?"


@pytest.mark.parametrize("surface", SURFACES)
def test_an_answer_by_a_schema_comes(surface: str, at: SimpleNamespace) -> None:
    model = "obedient" if surface == "anthropic" else "echo"  # there it asks by a tool of its own
    answer = litellm.completion(**to(surface, at, model, messages=messages(SAYS_LYON), response_format=Place))
    place = Place.model_validate_json(answer.choices[0].message.content)
    assert place == LYON or model == "obedient"


@pytest.mark.parametrize("surface", SURFACES)
def test_thoughts_are_told_apart(surface: str, at: SimpleNamespace) -> None:
    thinking: dict[str, Any] = {
        "thinking": {"type": "enabled", "budget_tokens": 1_024},
        "allowed_openai_params": ["thinking"],
    }
    asked: dict[str, Any] = thinking if surface == "anthropic" else {}
    answer = litellm.completion(**to(surface, at, messages=messages(text="yes", reasoning="Hm."), **asked))
    assert answer.choices[0].message.content == "yes"
    assert answer.choices[0].message.reasoning_content == "Hm."


@pytest.mark.parametrize("surface", SURFACES)
def test_a_picture_is_taken(surface: str, at: SimpleNamespace) -> None:
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    answer = litellm.completion(**to(surface, at, messages=[{"role": "user", "content": parts}]))
    assert answer.choices[0].message.content.strip() == "what is it?"


def test_the_older_completions_work(at: SimpleNamespace) -> None:
    asked = to("text-completion-openai", at, prompt="one two", max_tokens=5)
    assert litellm.text_completion(**asked).choices[0].text == "one two"
    assert "".join(piece.choices[0].text or "" for piece in litellm.text_completion(**asked, stream=True)) == "one two"


def test_ollamas_generate_is_answered(at: SimpleNamespace) -> None:
    answer = litellm.completion(**to("ollama", at, messages=messages("one two")))
    assert "one two" in answer.choices[0].message.content  # around it stands a template of its own


def test_embeddings_are_lists_of_numbers(at: SimpleNamespace) -> None:
    answer = litellm.embedding(**to("openai", at, input=["a", "b"]))
    assert [len(one["embedding"]) for one in answer.data] == [16, 16]
    assert answer.data[0]["embedding"] != answer.data[1]["embedding"]


def test_responses_come_whole_and_streamed_and_go_on(at: SimpleNamespace) -> None:
    first = litellm.responses(**to("openai", at, input="one two"))
    assert first.output[0].content[0].text == "one two"
    second = litellm.responses(**to("openai", at, input="three", previous_response_id=first.id))
    assert second.usage.input_tokens == 5  # both questions and the answer between them
    events = list(litellm.responses(**to("openai", at, input="one two", stream=True)))
    assert events[-1].response.output[0].content[0].text == "one two"


def test_a_response_in_the_background_is_fetched_cancelled_and_deleted(at: SimpleNamespace) -> None:
    place = {"custom_llm_provider": "openai", "api_base": at.v1, "api_key": at.key}
    begun = litellm.responses(**to("openai", at, input=script(tokens=400, token_ms=50), background=True, store=True))
    assert begun.status in ("queued", "in_progress")
    assert litellm.get_responses(begun.id, **place).id
    assert litellm.cancel_responses(begun.id, **place).status == "cancelled"
    assert litellm.delete_responses(begun.id, **place).deleted is True
    with pytest.raises((litellm.NotFoundError, litellm.BadRequestError)):  # it reads the words, not the status
        litellm.get_responses(begun.id, **place)


@pytest.mark.parametrize("surface", SURFACES)
def test_refusals_are_the_clients_own_exceptions(surface: str, at: SimpleNamespace) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**to(surface, at, "nobody", messages=messages("x")))
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**to(surface, at, messages=messages("x"), key="wrong"))


@pytest.mark.parametrize("surface", SURFACES)
def test_a_stream_that_breaks_off_raises_after_what_came(surface: str, at: SimpleNamespace) -> None:
    broken = script(text="one two three", fail_at=2, token_ms=100, error="upstream_error")
    heard = ""
    with pytest.raises((litellm.exceptions.MidStreamFallbackError, litellm.APIError, litellm.BadRequestError)):
        for piece in litellm.completion(**to(surface, at, messages=messages(broken), stream=True)):
            heard += said(piece)
    assert heard == "one two"
