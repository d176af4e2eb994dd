"""A refused field has the name that it has in the request as it came."""

from __future__ import annotations

from typing import Any

import pytest

from common.catalogue import Model
from common.errors import BadRequest
from gateway.dialects import naming, surfaces
from gateway.dialects.naming import named
from gateway.fitting import unfit

IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
MODEL = Model.model_validate(
    {"targets": [{"backend": "b", "model": "m", "context_tokens": 100}], "capabilities": [], "max_tokens": 50}
)


def _refused(dialect: str, words: int = 1, **body: Any) -> BadRequest:
    error = unfit("m", MODEL, {"messages": [{"role": "user", "content": [IMAGE]}], **body}, words)
    assert error is not None
    return named(error, dialect)


@pytest.mark.parametrize(
    ("dialect", "body", "param"),
    [
        ("", {}, "messages[0].content[0].image_url"),
        ("anthropic", {}, "messages"),
        ("ollama-chat", {}, "messages"),
        ("ollama-generate", {}, "prompt"),
        ("", {"response_format": {"type": "json_schema"}}, "response_format"),
        ("anthropic", {"response_format": {"type": "json_schema"}}, "output_config.format"),
        ("ollama-chat", {"response_format": {"type": "json_schema"}}, "format"),
        ("anthropic", {"reasoning_effort": "low"}, "thinking"),
        ("ollama-chat", {"reasoning_effort": "low"}, "think"),
        ("anthropic", {"tools": [{}]}, "tools"),
        ("anthropic", {"max_completion_tokens": 60}, "max_tokens"),
        ("ollama-chat", {"max_tokens": 60}, "options.num_predict"),
        ("completions", {"max_tokens": 60}, "max_tokens"),
    ],
)
def test_a_field_is_named_as_the_caller_wrote_it(dialect: str, body: dict[str, Any], param: str) -> None:
    error = _refused(dialect, **body)
    assert error.failure.param == param
    assert param in error.failure.message


def test_a_prompt_that_is_too_long_is_called_a_prompt() -> None:
    error = _refused("completions", words=50_000)
    assert (error.failure.param, error.failure.code) == ("prompt", "context_length_exceeded")
    assert "messages" not in error.failure.message


def test_every_name_is_of_a_dialect_that_exists() -> None:
    assert set(naming._NAMES) <= set(surfaces.SURFACES)  # pyright: ignore[reportPrivateUsage]
