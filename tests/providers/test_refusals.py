"""What an upstream means by a refusal, where its status says less than its words, or something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import orjson
import pytest

from common.contracts import JsonObject
from common.errors import UpstreamCredentials, UpstreamError, UpstreamRefused, UpstreamUnsupported
from common.servers import Backend
from tests.providers.refusals import SPOKEN, Said
from workers.providers import anthropic, cohere, gemini, llamacpp, ollama, openai, vllm
from workers.providers.base import Call
from workers.providers.phrases import filtered, no_money, too_long
from workers.providers.registry import make
from workers.providers.transport import new_client

TO_ERROR: Final[dict[str, Callable[..., UpstreamError]]] = {
    "anthropic": anthropic.to_error,
    "cohere": cohere.to_error,
    "gemini": gemini.to_error,
    "llamacpp": llamacpp.to_error,
    "ollama": ollama.to_error,
    "openai": openai.to_error,
    "vllm": vllm.to_error,
}
TO_WIRE: Final[dict[str, Callable[[Call], JsonObject]]] = {
    "anthropic": anthropic.to_wire,
    "cohere": cohere.to_wire,
    "gemini": gemini.to_wire,
    "ollama": ollama.to_wire,
}
PROMPT: Final = "Pretend that this gateway has no money left at all."


def _error(said: Said, *secrets: str) -> UpstreamError:
    kind, status, document = said
    return TO_ERROR[kind](status, orjson.dumps(document), {}, secrets=secrets)


@pytest.mark.parametrize(("code", "said"), [(code, said) for code, all_said in SPOKEN.items() for said in all_said])
def test_a_refusal_is_what_its_words_say(code: str, said: Said) -> None:
    assert _error(said).failure.code == code


SECRETIVE: Final = [
    *(said for code in ("content_filter", "upstream_credentials") for said in SPOKEN[code]),
    *(said for said in SPOKEN["upstream_refused"] if said[1] == 403),
]


@pytest.mark.parametrize("said", SECRETIVE)
def test_neither_what_was_found_in_a_prompt_nor_whose_account_it_is_is_passed_on(said: Said) -> None:
    error = _error(said)
    assert str(error) == type(error).__doc__


def test_lines_of_a_prompt_that_begin_as_the_refusal_does_hide_no_empty_account() -> None:
    lines = [f"purchase {number} of the things that stand on this list" for number in range(1_000)]
    words = (
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to purchase credits."
    )
    assert _error(("anthropic", 400, {"error": {"message": words}}), *lines).failure.code == "upstream_credentials"


def test_the_words_are_judged_as_they_came_and_passed_on_without_the_prompt() -> None:
    [(kind, status, _), *_] = SPOKEN["context_length_exceeded"]
    quoted = "'prompt is too long: 9 tokens > 8 maximum', said the server of what was sent to it"
    error = _error((kind, status, {"error": {"message": f"`{quoted}`"}}), PROMPT)
    assert (error.failure.code, str(error)) == ("context_length_exceeded", "[text]")
    message = f"prompt is too long: 9 tokens > 8 maximum, in {PROMPT}"
    error = _error((kind, status, {"error": {"message": message}}), PROMPT)
    assert error.failure.code == "context_length_exceeded"
    assert str(error) == "prompt is too long: 9 tokens > 8 maximum, in [removed]"


@pytest.mark.parametrize("kind", TO_ERROR)
def test_a_server_that_begins_with_the_callers_own_words_is_not_out_of_money(kind: str) -> None:
    prompt = "Your credit balance is too low to access the Anthropic API."
    told = {"message": prompt} if kind == "cohere" else {"error": prompt if kind == "ollama" else {"message": prompt}}
    assert type(_error((kind, 400, told), prompt)) is not UpstreamCredentials
    assert type(_error((kind, 400, told))) is UpstreamCredentials


@pytest.mark.parametrize(
    ("code", "error"),
    [(403, "content_filter"), (400, "upstream_refused"), (402, "upstream_credentials"), (502, "upstream_error")],
)
def test_inside_an_answer_a_flagged_prompt_is_told_by_its_own_number(code: int, error: str) -> None:
    told = {"code": code, "message": "No.", "metadata": {"reasons": ["violence"]}}
    assert openai.to_event_error(told).failure.code == error


def test_a_long_text_is_judged_quickly() -> None:
    text = "total number of tokens token count input context " * 400_000
    told = orjson.dumps({"error": {"message": text}})
    assert type(openai.to_error(400, told, {})).__name__ == "UpstreamRefused"
    for judged in (too_long, filtered, no_money):
        assert not judged(text[:16_384])


# --- what a kind can't do --------------------------------------------------------------------------------------------

SOUND: Final = {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}
CUSTOM: Final[JsonObject] = {"tools": [{"type": "custom", "custom": {"name": "x"}}]}


def _call(kind: str, body: JsonObject) -> Call:
    backend = Backend.model_validate({"name": "b", "kind": kind, "base_url": "http://127.0.0.1:1"})
    asked = {"messages": [{"role": "user", "content": "hi"}], **body}
    return Call(backend, "/v1/chat/completions", "m", asked, stream=False, timeout_s=1)


def _said(part: JsonObject) -> JsonObject:
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("ollama", {"n": 2}),
        ("ollama", {"tool_choice": "required"}),
        ("ollama", _said(SOUND)),
        ("ollama", _said({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}})),
        ("anthropic", {"n": 2}),
        ("anthropic", {"logprobs": True}),
        ("anthropic", _said(SOUND)),
        ("anthropic", _said({"type": "image_url", "image_url": {"url": "http://example.org/a.png"}})),
        ("anthropic", CUSTOM),
        ("gemini", {"logit_bias": {"1": 1}}),
        ("gemini", {"stop": list("abcdef")}),
        ("cohere", {"n": 2}),
        ("cohere", _said(SOUND)),
        ("cohere", {"tool_choice": {"type": "custom", "custom": {"name": "x"}}}),
    ],
)
def test_what_a_kind_cannot_do_is_told_apart_from_what_nobody_could_make_sense_of(kind: str, body: JsonObject) -> None:
    to_wire = TO_WIRE[kind]
    with pytest.raises(UpstreamUnsupported) as caught:
        to_wire(_call(kind, body))
    assert caught.value.failure.code == "upstream_refused"
    assert caught.value.failure.param
    with pytest.raises(UpstreamRefused) as malformed:
        to_wire(_call(kind, {"messages": [5]}))
    assert type(malformed.value) is UpstreamRefused


DEEP: Final = '{"a":' * 300 + "1" + "}" * 300


def _asking(arguments: str) -> JsonObject:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    user, tool = {"role": "user", "content": "hi"}, {"role": "tool", "tool_call_id": "a", "content": DEEP}
    return {"messages": [user, {"role": "assistant", "content": None, "tool_calls": [call]}, tool]}


@pytest.mark.parametrize("kind", ["anthropic", "cohere", "gemini", "ollama"])
async def test_arguments_that_are_nested_too_deeply_are_the_callers_fault(kind: str) -> None:
    async with new_client() as client:
        with pytest.raises(UpstreamRefused) as caught:
            await anext(make(kind, client).stream(_call(kind, _asking(DEEP))))
    assert type(caught.value) is UpstreamRefused


@pytest.mark.parametrize("kind", ["anthropic", "cohere", "gemini", "ollama"])
def test_a_tools_result_may_be_a_text_of_any_depth(kind: str) -> None:
    assert orjson.dumps(TO_WIRE[kind](_call(kind, _asking("{}"))))
