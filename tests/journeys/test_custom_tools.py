"""Custom tools, whose input is any text: by OpenAI's chats, and refused where a dialect has no such thing."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.support.say import submit, when

pytestmark = pytest.mark.timeout(60)

TOOL: dict[str, Any] = {"type": "custom", "custom": {"name": "sql", "format": {"type": "text"}}}
BODY: dict[str, Any] = {
    "model": "echo",
    "messages": [{"role": "user", "content": "SELECT a, b FROM c"}],
    "tools": [TOOL],
    "tool_choice": {"type": "custom", "custom": {"name": "sql"}},
}
CALLED = [{"id": "call_echo_0", "type": "custom", "custom": {"name": "sql", "input": "SELECT a, b FROM c"}}]


def test_a_custom_tool_is_called_with_a_text(sdk: openai.OpenAI, client: httpx.Client) -> None:
    choice = sdk.chat.completions.create(**BODY).choices[0]
    assert choice.message.to_dict()["tool_calls"] == CALLED
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    job_id = submit(client, BODY)
    assert when(client, job_id)["result"]["choices"][0]["message"]["tool_calls"] == CALLED


def test_a_custom_tools_text_is_streamed_in_pieces_and_told_again(sdk: openai.OpenAI) -> None:
    for _ in range(2):  # the second is told of what was stored
        chunks = sdk.chat.completions.create(**BODY, stream=True, extra_headers={"idempotency-key": "custom-tool"})
        calls = [call.to_dict() for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        said: list[Any] = [call["custom"] for call in calls]
        assert [call["id"] for call in calls if "id" in call] == ["call_echo_0"]
        assert said[0]["name"] == "sql"
        assert "".join(one.get("input", "") for one in said) == "SELECT a, b FROM c"


def test_a_conversation_with_a_custom_call_goes_on(sdk: openai.OpenAI) -> None:
    said: list[Any] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": CALLED},
        {"role": "tool", "tool_call_id": "call_echo_0", "content": "1"},
        {"role": "user", "content": "and now?"},
    ]
    answer = sdk.chat.completions.create(model="echo", messages=said, tools=[TOOL])  # pyright: ignore
    assert answer.choices[0].message.content == "and now?"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]}, "tools[0]"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9, "tools": [TOOL]},
            "tools[0]",
        ),
        ("/v1/completions", {"prompt": "x", "tools": [TOOL]}, "tools"),
    ],
)
def test_other_apis_refuse_custom_tools(client: httpx.Client, path: str, body: dict[str, Any], field: str) -> None:
    answer = client.post(path, json={"model": "echo", **body})
    assert answer.status_code == 400, answer.text
    assert field in answer.text
    assert "x-headrace-job-id" not in answer.headers
