"""Fitting: what a request needs, what it is refused for before it is queued, and that what may fit never is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.catalogue import Model, Target
from common.needs import needs_of
from gateway.fitting import fits, unfit


def model(*contexts: int | None, **more: Any) -> Model:
    return Model(
        targets=tuple(Target(backend="b", model="x", context_tokens=one) for one in contexts or (None,)), **more
    )


def request(content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def part(kind: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": "see"}, {"type": kind, kind: {}}]


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        (request(), {}),
        (request(tools=[{}]), {"tools": "tools"}),
        (request(functions=[{}]), {"tools": "functions"}),
        (request(tools=[], functions=None), {}),
        (request(response_format={"type": "json_schema"}), {"json_schema": "response_format"}),
        (request(response_format={"type": "json_object"}), {}),
        (request(guided_json={"a": 1}), {"json_schema": "guided_json"}),
        (request(reasoning_effort="low"), {"reasoning": "reasoning_effort"}),
        (request(reasoning_effort="none"), {}),
        (request(reasoning_effort=None), {}),
        (request(modalities=["text", "audio"]), {"audio": "modalities"}),
        (request(modalities=["text"]), {}),
        (request(part("image_url")), {"vision": "messages[0].content[1].image_url"}),
        (request(part("video_url")), {"video": "messages[0].content[1].video_url"}),
        (request(part("input_audio")), {"audio": "messages[0].content[1].input_audio"}),
        (request(part("file")), {"files": "messages[0].content[1].file"}),
    ],
)
def test_a_request_needs_what_its_fields_say(body: dict[str, Any], needs: dict[str, str]) -> None:
    assert needs_of(body) == needs


def refused(row: Model, body: dict[str, Any], prompt_tokens: int = 10) -> tuple[str, str | None] | None:
    error = unfit("m", row, body, prompt_tokens)
    return None if error is None else (error.failure.code, error.failure.param)


LONG = "context_length_exceeded"


@pytest.mark.parametrize(
    ("row", "body", "prompt_tokens", "fault"),
    [
        (model(), request(), 10**9, None),
        (model(context_tokens=100), request(), 100, None),
        (model(context_tokens=100), request(), 199, None),
        (model(context_tokens=100), request(), 200, (LONG, "messages")),
        (model(context_tokens=100), request(max_tokens=95), 10, None),
        (model(context_tokens=100), request(max_tokens=96), 10, (LONG, "messages")),
        (model(context_tokens=100), request(max_tokens=100), 10, (LONG, "max_tokens")),
        (model(context_tokens=100), request(max_completion_tokens=500), 10, (LONG, "max_completion_tokens")),
        (model(context_tokens=100), request(max_tokens=100), 199, (LONG, "max_tokens")),
        (model(context_tokens=100), request(max_tokens=100), 200, (LONG, "messages")),
        (model(10, 100, context_tokens=50), request(), 150, None),
        (model(10, None), request(), 10**9, None),
        (model(max_tokens=5), request(max_tokens=6), 1, ("invalid_request", "max_tokens")),
        (model(max_tokens=5), request(max_tokens=5), 1, None),
        (model(max_tokens=5), request(), 1, None),
        (model(capabilities=["tools"]), request(tools=[{}]), 1, None),
        (model(capabilities=[]), request(tools=[{}]), 1, ("unsupported_parameter", "tools")),
        (model(), request(tools=[{}], reasoning_effort="high"), 1, None),
    ],
)
def test_only_what_can_not_be_served_is_refused(
    row: Model, body: dict[str, Any], prompt_tokens: int, fault: tuple[str, str] | None
) -> None:
    assert refused(row, body, prompt_tokens) == fault


def test_the_refusal_says_the_limit_and_what_was_asked_in_anthropics_and_openais_words() -> None:
    error = unfit("m", model(context_tokens=8192), request(max_tokens=8000), 1000)
    assert error is not None
    assert error.failure.message == (
        "prompt is too long: about 1000 tokens + 8000 max_tokens > 8192 maximum. "
        "This model's maximum context length is 8192 tokens. However, you requested about 9000 tokens (about 1000 in "
        "the messages, 8000 in the completion). Please reduce the length of the messages or completion."
    )


def test_a_prompt_that_is_too_long_by_itself_is_counted_by_itself() -> None:
    error = unfit("m", model(context_tokens=100), request(max_tokens=50), 500)
    assert error is not None
    assert error.failure.message.startswith("prompt is too long: about 500 tokens > 100 maximum. This model's")


def test_where_the_answer_alone_is_too_long_nobody_is_told_that_the_prompt_is() -> None:
    error = unfit("m", model(context_tokens=100), request(max_tokens=100), 10)
    assert error is not None and error.failure.message.startswith("This model's maximum context length is 100 tokens.")


@given(st.integers(1, 10**6), st.integers(0, 10**7), st.none() | st.integers(1, 10**6))
def test_what_is_likely_to_fit_is_never_refused(context: int, prompt_tokens: int, limit: int | None) -> None:
    row = model(context_tokens=context)
    if fits(row, prompt_tokens, limit or 1):
        assert unfit("m", row, request(max_tokens=limit), prompt_tokens) is None
