"""instructor: answers as objects, by tools or JSON, from OpenAI's surface and Anthropic's."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.journeys.clients.apart.asking import LYON, SAYS_LYON, Place, script
from tests.support.say import messages

anthropic: Any = pytest.importorskip("anthropic")
instructor: Any = pytest.importorskip("instructor")
gave_up: Any = pytest.importorskip("instructor.core").InstructorRetryException
openai: Any = pytest.importorskip("openai")

pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("ignore::DeprecationWarning:instructor")]
BY_CALL = script(tool_calls=[{"name": "Place", "arguments": LYON.model_dump()}])
BY_OPENAI = {"TOOLS": BY_CALL, "JSON": SAYS_LYON, "JSON_SCHEMA": SAYS_LYON, "RESPONSES_TOOLS": BY_CALL}
BY_ANTHROPIC = {"ANTHROPIC_TOOLS": BY_CALL, "ANTHROPIC_JSON": SAYS_LYON}
EVERY = [*(("openai", mode) for mode in BY_OPENAI), *(("anthropic", mode) for mode in BY_ANTHROPIC)]


def asker(surface: str, mode: str, at: SimpleNamespace, *, key: str = "") -> Any:
    """instructor around a client whose address is ours."""
    given = {"api_key": key or at.key, "max_retries": 0, "timeout": 20}
    chosen = instructor.Mode[mode]
    if surface == "anthropic":
        return instructor.from_anthropic(anthropic.Anthropic(base_url=at.root, **given), mode=chosen)
    return instructor.from_openai(openai.OpenAI(base_url=at.v1, **given), mode=chosen)


def words(surface: str, text: str, model: str = "echo", **more: Any) -> dict[str, Any]:
    """A request."""
    limit = {"max_tokens": 500} if surface == "anthropic" else {}
    return {"model": model, "messages": messages(text), "max_retries": 0, **limit, **more}


@pytest.mark.parametrize(("surface", "mode"), EVERY)
def test_an_answer_is_the_object_that_was_asked_for(surface: str, mode: str, at: SimpleNamespace) -> None:
    text = {**BY_OPENAI, **BY_ANTHROPIC}[mode]
    place = asker(surface, mode, at).chat.completions.create(**words(surface, text), response_model=Place)
    assert place.model_dump() == LYON.model_dump()  # its class is instructor's own, made of ours


@pytest.mark.parametrize(
    ("surface", "mode"), [("openai", "TOOLS"), ("openai", "JSON"), ("anthropic", "ANTHROPIC_TOOLS")]
)
def test_it_grows_as_the_stream_comes(surface: str, mode: str, at: SimpleNamespace) -> None:
    text = {**BY_OPENAI, **BY_ANTHROPIC}[mode]
    grown = list(asker(surface, mode, at).create_partial(**words(surface, text), response_model=Place))
    assert len(grown) > 1 or mode == "JSON"  # a token of its text is a word, and there is one
    assert Place.model_validate(grown[-1].model_dump()) == LYON


def test_several_objects_come_one_after_the_other(at: SimpleNamespace) -> None:
    oslo = Place(city="Oslo", people=709_037)
    called = script(
        tool_calls=[{"name": "IterablePlace", "arguments": {"tasks": [one.model_dump() for one in (LYON, oslo)]}}]
    )
    found = asker("openai", "TOOLS", at).create_iterable(**words("openai", called), response_model=Place)
    assert list(found) == [LYON, oslo]


def test_tools_that_may_be_called_beside_each_other(at: SimpleNamespace) -> None:
    oslo = Place(city="Oslo", people=709_037)
    called = script(tool_calls=[{"name": "Place", "arguments": one.model_dump()} for one in (LYON, oslo)])
    ask = asker("openai", "PARALLEL_TOOLS", at)
    assert list(ask.chat.completions.create(**words("openai", called), response_model=Iterable[Place])) == [LYON, oslo]


async def test_the_asynchronous_clients_work_too(at: SimpleNamespace) -> None:
    given = {"api_key": at.key, "max_retries": 0, "timeout": 20}
    async with (
        openai.AsyncOpenAI(base_url=at.v1, **given) as one,
        anthropic.AsyncAnthropic(base_url=at.root, **given) as other,
    ):
        for surface, ask in (("openai", instructor.from_openai(one)), ("anthropic", instructor.from_anthropic(other))):
            place = await ask.chat.completions.create(**words(surface, BY_CALL), response_model=Place)
            assert place.model_dump() == LYON.model_dump()


def test_an_answer_that_does_not_fit_is_asked_for_again_and_then_given_up(at: SimpleNamespace) -> None:
    wrong = script(tool_calls=[{"name": "Place", "arguments": {"city": "Lyon"}}])
    for surface, mode in (("openai", "TOOLS"), ("anthropic", "ANTHROPIC_TOOLS")):
        asked = {**words(surface, wrong), "max_retries": 1}
        with pytest.raises(gave_up) as caught:
            asker(surface, mode, at).chat.completions.create(**asked, response_model=Place)
        assert caught.value.n_attempts == 2


@pytest.mark.parametrize(("surface", "mode"), [("openai", "TOOLS"), ("anthropic", "ANTHROPIC_TOOLS")])
def test_refusals_are_raised_with_the_clients_own_exception_below(surface: str, mode: str, at: SimpleNamespace) -> None:
    sdk = anthropic if surface == "anthropic" else openai
    for model, key, below in (("nobody", "", sdk.NotFoundError), ("echo", "wrong", sdk.AuthenticationError)):
        with pytest.raises((gave_up, below)) as caught:
            asker(surface, mode, at, key=key).chat.completions.create(
                **words(surface, BY_CALL, model), response_model=Place
            )
        failed = getattr(caught.value, "failed_attempts", None) or ()
        told = [caught.value, caught.value.__cause__, *(one.exception for one in failed)]
        assert any(isinstance(one, below) for one in told)
