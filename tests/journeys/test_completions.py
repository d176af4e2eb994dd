"""OpenAI's older completions: prompts as chats of one message, through OpenAI's own client and to the byte."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import orjson
import pytest
from openai.types import Completion

from tests.journeys.conftest import MOST_WAITING
from tests.support.fleet import until
from tests.support.say import frames, record, when

pytestmark = pytest.mark.timeout(60)

PATH = "/v1/completions"


def script(**words: Any) -> str:
    """A prompt that tells the echo model what to say."""
    return "echo: " + orjson.dumps(words).decode()


def test_a_prompt_is_completed(sdk: openai.OpenAI) -> None:
    for prompt in ("one two three", ["one two three"]):
        answer = sdk.completions.create(model="echo", prompt=prompt)
        (choice,) = answer.choices
        assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "one two three", "stop", None)
        assert answer.object == "text_completion" and answer.model == "echo" and answer.id.startswith("cmpl-")
        assert answer.usage is not None and answer.usage.total_tokens == 6


def test_answers_and_chunks_have_the_keys_that_clients_look_at(client: httpx.Client) -> None:
    whole = client.post(PATH, json={"model": "echo", "prompt": "a b", "logprobs": 2, "n": 2})
    Completion.model_validate_json(whole.content, strict=True)
    streamed = client.post(PATH, json={"model": "echo", "prompt": "a b", "stream": True})
    found = [frame.data for frame in frames(streamed.content)]
    assert found.pop() == "[DONE]"
    chunks = [orjson.loads(data) for data in found]
    assert {tuple(chunk) for chunk in chunks} == {("id", "object", "created", "model", "choices")}
    assert {(chunk["object"], chunk["id"]) for chunk in chunks} == {("text_completion", chunks[0]["id"])}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert {tuple(choice) for choice in choices} == {("index", "text", "logprobs", "finish_reason")}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


def test_sixteen_tokens_are_the_limit_where_the_request_names_none(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="echo", prompt=script(numbered=True, tokens=40))
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    more = sdk.completions.create(model="echo", prompt=script(numbered=True, tokens=40), max_tokens=30)
    assert more.usage is not None and more.usage.completion_tokens == 30


def test_a_stream_says_each_choice_and_its_end_once(sdk: openai.OpenAI) -> None:
    said, ends = {0: "", 1: ""}, []
    with sdk.completions.create(model="echo", prompt="a b c", n=2, stream=True) as stream:
        for choice in (choice for chunk in stream for choice in chunk.choices):
            said[choice.index] += choice.text
            ends += [(choice.index, choice.finish_reason)] if choice.finish_reason else []
    assert said == {0: "a b c", 1: "a b c"}
    assert sorted(ends) == [(0, "stop"), (1, "stop")]


def test_usage_comes_last_where_it_is_asked_for(sdk: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    with sdk.completions.create(model="echo", prompt="a b", stream=True, stream_options=options) as stream:
        chunks = list(stream)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 4


@pytest.mark.parametrize("stream", [True, False])
def test_echo_puts_the_prompt_before_each_answer(client: httpx.Client, stream: bool) -> None:
    body = {"model": "echo", "prompt": "a b", "echo": True, "n": 2, "stream": stream}
    answer = client.post(PATH, json=body)
    said = {0: "", 1: ""}
    found = [frame.data for frame in frames(answer.content)][:-1] if stream else [answer.content]
    for choice in (choice for one in found for choice in orjson.loads(one)["choices"]):
        said[choice["index"]] += choice["text"]
    assert said == {0: "a ba b", 1: "a ba b"}


@pytest.mark.parametrize("stream", [True, False])
def test_log_probabilities_are_lists_side_by_side(client: httpx.Client, stream: bool) -> None:
    answer = client.post(PATH, json={"model": "echo", "prompt": "a bc d", "logprobs": 2, "stream": stream})
    found = [frame.data for frame in frames(answer.content)][:-1] if stream else [answer.content]
    told = [choice["logprobs"] for one in found for choice in orjson.loads(one)["choices"] if choice["logprobs"]]
    joined = {name: [entry for one in told for entry in one[name]] for name in told[0]}
    assert joined["tokens"] == ["a", " bc", " d"]
    assert joined["text_offset"] == [0, 1, 4]
    assert all(value <= 0 for value in joined["token_logprobs"])
    assert len(joined["top_logprobs"]) == 3


# --- several prompts --------------------------------------------------------------------------------------------------

REFUSED = script(error="upstream_refused")


def jobs_of(answer: httpx.Response) -> list[str]:
    """The jobs that an answer was made of."""
    return answer.headers["x-headrace-job-id"].split(", ")


def together(client: httpx.Client, *prompts: str, key: str = "", **more: Any) -> httpx.Response:
    headers = {"idempotency-key": key} if key else {}
    return client.post(PATH, json={"model": "echo", "prompt": prompts, **more}, headers=headers)


def test_several_prompts_are_answered_as_one_with_their_choices_in_order(sdk: openai.OpenAI) -> None:
    found = sdk.completions.with_raw_response.create(model="echo", prompt=["a", "b c", "d"], n=2, echo=True)
    answer = found.parse()
    assert [(choice.index, choice.text) for choice in answer.choices] == list(
        enumerate(["aa", "aa", "b cb c", "b cb c", "dd", "dd"])
    )
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 8)
    ids = found.headers["x-headrace-job-id"].split(", ")
    assert len(set(ids)) == 3 and answer.id.removeprefix("cmpl-") == ids[0][-32:]


def test_several_prompts_are_streamed_in_turns_as_one(sdk: openai.OpenAI) -> None:
    slow = script(numbered=True, tokens=6, token_ms=30)
    said, ends, order = dict.fromkeys(range(3), ""), list[tuple[int, Any]](), list[int]()
    options: Any = {"include_usage": True}
    with sdk.completions.create(model="echo", prompt=[slow, slow, "x"], stream=True, stream_options=options) as stream:
        *chunks, last = stream
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        said[choice.index] += choice.text
        order.append(choice.index)
        ends += [(choice.index, choice.finish_reason)] if choice.finish_reason else []
    assert said == {0: " 0 1 2 3 4 5", 1: " 0 1 2 3 4 5", 2: "x"}
    assert sorted(ends) == [(0, "stop"), (1, "stop"), (2, "stop")]
    assert order.index(1) < len(order) - 1 - order[::-1].index(0), "one after the other, not in turns"
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in (*chunks, last)}) == 1
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 13


@pytest.mark.parametrize("stream", [True, False])
def test_where_one_of_several_fails_all_fail_and_the_others_are_cancelled(client: httpx.Client, stream: bool) -> None:
    slow = script(tokens=500, token_ms=50)
    later = script(numbered=True, tokens=9, token_ms=10, fail_at=3)
    fails, code, status = (later, "upstream_interrupted", 200) if stream else (REFUSED, "upstream_refused", 400)
    headers = {"x-headrace-on-disconnect": "continue"}
    body = {"model": "echo", "prompt": [slow, fails, slow], "max_tokens": 500, "stream": stream}
    answer = client.post(PATH, json=body, headers=headers)
    error = frames(answer.content)[-1].json["error"] if stream else answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert [when(client, job_id)["status"] for job_id in jobs_of(answer)] == ["cancelled", "failed", "cancelled"]


def test_whoever_hangs_up_on_several_leaves_none_of_them_running(client: httpx.Client) -> None:
    slow = script(tokens=500, token_ms=50)
    body = {"model": "echo", "prompt": [slow, slow], "max_tokens": 500, "stream": True}
    with client.stream("POST", PATH, json=body) as answer:
        next(answer.iter_raw())
    assert [when(client, job_id)["status"] for job_id in jobs_of(answer)] == ["cancelled", "cancelled"]
    with pytest.raises(httpx.ReadTimeout):
        client.post(PATH, json={**body, "stream": False, "user": "left"}, timeout=0.6)
    newest = client.get("/v1/jobs", params={"limit": 2}).json()["data"]
    assert [when(client, job["id"])["status"] for job in newest] == ["cancelled", "cancelled"]
    until(lambda: client.get("/health").json()["streams"] == 0, what="readers are left")


@pytest.mark.parametrize("stream", [True, False])
def test_a_key_that_comes_again_gets_the_same_answers_and_another_prompt_is_refused(
    client: httpx.Client, stream: bool
) -> None:
    key = f"several-{stream}"
    first, again = (together(client, "a", "b", key=key, stream=stream) for _ in range(2))
    assert jobs_of(again) == jobs_of(first) and again.content == first.content
    assert (first.headers.get("x-headrace-replayed"), again.headers["x-headrace-replayed"]) == (None, "true")
    for prompts in (("a",), ("a", "c"), ("a", "b", "c")):
        other = together(client, *prompts, key=key, stream=stream)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused"), prompts
    assert jobs_of(together(client, "a", "b", key=key, stream=stream)) == jobs_of(first)


def test_where_there_is_no_room_for_all_none_of_them_waits(client: httpx.Client) -> None:
    refused = together(client, *["x"] * (MOST_WAITING + 1), model="crowded")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after-ms"]) >= int(refused.headers["retry-after"]) * 1_000 - 999 >= 1
    assert refused.headers["x-should-retry"] == "true"
    assert not [name for name in refused.headers if "ratelimit" in name], "the lane is full, and no tenant's limit met"
    newest = client.get("/v1/jobs", params={"limit": MOST_WAITING}).json()["data"]
    assert {(job["model"], job["status"]) for job in newest} == {("crowded", "cancelled")}


def test_what_can_not_begin_is_a_status_for_several_too(client: httpx.Client) -> None:
    for stream in (True, False):
        answer = together(client, script(error="upstream_credentials"), "b", stream=stream)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_credentials")


# --- jobs and refusals ------------------------------------------------------------------------------------------------


def test_a_completion_is_a_job_that_tells_where_it_came_in(client: httpx.Client) -> None:
    for stream in (True, False):
        answer = client.post(PATH, json={"model": "echo", "prompt": "a", "stream": stream})
        assert record(client, answer.headers["x-headrace-job-id"])["endpoint"] == PATH


def test_a_failure_after_the_first_token_is_raised_by_the_client(sdk: openai.OpenAI) -> None:
    prompt = script(numbered=True, tokens=5, token_ms=20, fail_at=2)
    said = ""
    with sdk.completions.create(model="echo", prompt=prompt, stream=True) as stream, pytest.raises(openai.APIError):
        for chunk in stream:
            said += chunk.choices[0].text
    assert said == " 0 1"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"logprobs": 6}, "logprobs"),
        ({"n": 99}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_a_chat_can_not_give_is_refused_by_its_name(sdk: openai.OpenAI, more: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.completions.create(model="echo", prompt="a", extra_body=more)
    assert caught.value.param == param


def test_an_unknown_model_is_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.completions.create(model="none", prompt="a")
    assert caught.value.code == "model_not_found"
