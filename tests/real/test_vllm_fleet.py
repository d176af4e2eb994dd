"""A whole fleet in front of the real vLLM: what its clients see, its turns and its cache, its death and its return.

The tests stand in the order in which they run: the last ones kill it, and have it come back as another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import numpy
import openai
import orjson
import pytest

from tests.real.engine import MODEL, MOST_AT_ONCE, Vllm
from tests.real.test_vllm_provider import LONG, SAYS_BAB, SCHEMA, TOOL
from tests.real.tiny import CONTEXT_TOKENS
from tests.support.fleet import KEY, OTHER_KEY, Fleet, until
from tests.support.say import CHAT, chat, frames, submit, text_of, when

pytestmark = pytest.mark.timeout(600)

CONFIG: Final = """
backends:
  - {name: gpu, kind: vllm, base_url: "${HEADRACE_TEST_ENGINE}", concurrency: 8,
     options: {priority: true, cache_salt: true}}
models:
  tiny: {targets: [{backend: gpu, model: "${HEADRACE_TEST_MODEL}"}]}
  elsewhere: {targets: [{backend: gpu, model: not-there}]}
"""
GRACE_S: Final = 1.0

Note = Callable[[str, object], None]


@pytest.fixture(scope="module")
def fleet(engine: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A gateway, a worker and a scheduler in front of the engine."""
    one = Fleet(
        tmp_path_factory.mktemp("fleet"),
        config=CONFIG,
        lease_s=5,
        disconnect_grace_s=GRACE_S,
        worker_concurrency=8,
        probe_interval_s=1,
        breaker_failures=3,
        breaker_cooloff_s=2,
        max_attempts=2,
        test_engine=engine.url,
        test_model=MODEL,
    )
    try:
        yield one.start()
    finally:
        one.stop()


@pytest.fixture
def client(fleet: Fleet) -> Iterator[httpx.Client]:
    with fleet.client(timeout_s=120) as one:
        yield one


@pytest.fixture
def other(fleet: Fleet) -> Iterator[httpx.Client]:
    """Another tenant."""
    with fleet.client(key=OTHER_KEY, timeout_s=120) as one:
        yield one


@pytest.fixture
def sdk(fleet: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=fleet.url() + "/v1", max_retries=0, timeout=120) as one:
        yield one


def _ask(client: httpx.Client, words: str = "Hi", **more: Any) -> Any:
    answer = client.post(CHAT, json={**chat("tiny", words=words), **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- answers ----------------------------------------------------------------------------------------------------------


def test_openais_client_gets_an_answer_whole_and_in_a_stream_with_its_usage(sdk: openai.OpenAI) -> None:
    given: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, **SAYS_BAB}
    whole = sdk.chat.completions.create(**given)
    pieces = list(sdk.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    said = "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)
    assert whole.choices[0].message.content == said == " bab" * 6
    assert whole.usage and pieces[-1].usage
    assert whole.usage.completion_tokens == pieces[-1].usage.completion_tokens == 6
    assert whole.choices[0].finish_reason == "length"


def test_openais_client_reads_its_log_probabilities_choices_and_fingerprint(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        n=2,
        max_tokens=3,
        logprobs=True,
        top_logprobs=2,
        extra_body={"ignore_eos": True},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs and [len(token.top_logprobs) for token in choice.logprobs.content or ()] == [2] * 3
    assert (answer.system_fingerprint or "").startswith("vllm-")


def test_openais_client_gathers_a_streamed_call_of_a_tool(sdk: openai.OpenAI) -> None:
    tool: Any = TOOL
    with sdk.chat.completions.stream(
        model="tiny",
        messages=[{"role": "user", "content": "Hi"}],
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "f"}},
        max_tokens=400,
    ) as stream:
        made = stream.get_final_completion().choices[0].message.tool_calls
    assert made and made[0].function.name == "f"
    assert orjson.loads(made[0].function.arguments)["a"] in ("x", "y")


def test_a_schema_binds_what_another_dialects_client_is_told(client: httpx.Client) -> None:
    body = {
        **{"model": "tiny", "input": "Hi", "max_output_tokens": 60},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
    }
    answer = client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert orjson.loads(answer.json()["output"][0]["content"][0]["text"])["a"] in ("x", "y")


def test_anthropics_clients_are_told_which_stop_sequence_was_met(client: httpx.Client) -> None:
    body = {**chat("tiny", words="Hi"), "max_tokens": 100, "stop_sequences": ["a", "e", "i", "o"]}

    def met() -> Any:
        answer = client.post("/v1/messages", json=body)
        assert answer.status_code == 200, answer.text
        # Among other nonsense these weights may say their own end before any vowel.
        return answer.json() if answer.json()["stop_reason"] != "end_turn" else None

    answer = until(met)
    assert answer["stop_reason"] == "stop_sequence" and answer["stop_sequence"] in body["stop_sequences"]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_that_is_too_long_is_told_in_openais_words(client: httpx.Client, stream: bool) -> None:
    answer = client.post(CHAT, json=chat("tiny", words="x" * (CONTEXT_TOKENS + 1), stream=stream))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")


def test_a_model_that_nobody_has_and_one_that_the_engine_has_not_are_told_apart(client: httpx.Client) -> None:
    unknown = client.post(CHAT, json=chat("nobodys", words="Hi"))
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    elsewhere = client.post(CHAT, json=chat("elsewhere", words="Hi"))
    assert elsewhere.json()["error"]["code"] == "upstream_refused"


# --- its cache, its turns, its gauges ---------------------------------------------------------------------------------


def test_a_tenant_shares_cached_prefixes_with_itself_and_with_no_other(
    client: httpx.Client, other: httpx.Client, engine: Vllm, record_property: Note
) -> None:
    words = "herons " * 300  # several blocks of the cache

    def hits(who: httpx.Client) -> tuple[int, int]:
        before = engine.gauge("prefix_cache_hits_total")
        usage = _ask(who, words, max_tokens=2, **SAYS_BAB)["usage"]
        told = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return engine.gauge("prefix_cache_hits_total") - before, told

    first, foreign, own = hits(client), hits(other), hits(client)
    record_property("prefix_cache_hits: first, other tenant, same tenant", f"{first[0]}, {foreign[0]}, {own[0]}")
    assert first == foreign == (0, 0)
    assert own[0] == own[1] > 1000


def test_its_load_is_shown_among_the_workers(client: httpx.Client, engine: Vllm) -> None:
    jobs = [submit(client, {**chat("tiny", words="Hi"), **LONG}) for _ in range(5)]
    until(lambda: _backend(client)["load"] == 5, 30, "the load was not seen")
    assert engine.gauge("num_requests_running") == MOST_AT_ONCE
    for job in jobs:
        client.post(f"/v1/jobs/{job}/cancel")
    until(lambda: _backend(client)["load"] == 0, 30, "it still counts what was cancelled")


def _backend(client: httpx.Client) -> Any:
    return client.get("/workers").json()[0]["backends"][0]


def test_what_is_urgent_has_its_turn_in_the_engine_before_what_came_earlier(client: httpx.Client, engine: Vllm) -> None:
    busy = [submit(client, {**chat("tiny", words="Hi"), **LONG}, priority="interactive") for _ in range(MOST_AT_ONCE)]
    until(lambda: engine.gauge("num_requests_running") == MOST_AT_ONCE, 30)
    short = {**chat("tiny", words="Hi"), "max_tokens": 60, **SAYS_BAB}
    later = [submit(client, short, priority="batch") for _ in range(3)]
    until(lambda: engine.gauge("num_requests_waiting") == 3, 30, "the batch does not wait in the engine")
    urgent = submit(client, short, priority="interactive")
    until(lambda: engine.gauge("num_requests_waiting") == 4, 30, "the urgent one does not wait in the engine")
    client.post(f"/v1/jobs/{busy[0]}/cancel")
    ended = {job: when(client, job, limit_s=120)["finished_at"] for job in [urgent, *later]}
    client.post(f"/v1/jobs/{busy[1]}/cancel")
    assert min(ended, key=lambda job: ended[job]) == urgent


# --- hanging up, dying, coming back -----------------------------------------------------------------------------------


def test_who_hangs_up_has_the_engine_stop(client: httpx.Client, engine: Vllm, record_property: Note) -> None:
    with client.stream("POST", CHAT, json={**chat("tiny", words="Hi", stream=True), **LONG}) as answer:
        next(answer.iter_raw())
        until(lambda: engine.gauge("num_requests_running") == 1, 30)
    left_s = time.monotonic()
    until(lambda: engine.gauge("num_requests_running") == 0, GRACE_S + 2, "it still generates")
    took_s = time.monotonic() - left_s
    assert when(client, answer.headers["x-headrace-job-id"])["status"] == "cancelled"
    record_property(f"seconds until it runs nothing, {GRACE_S:g} of them grace", f"{took_s:.2f}")


def test_a_cancelled_job_has_the_engine_stop(client: httpx.Client, engine: Vllm, record_property: Note) -> None:
    job = submit(client, {**chat("tiny", words="Hi"), **LONG})
    until(lambda: engine.gauge("num_requests_running") == 1, 30)
    left_s = time.monotonic()
    client.post(f"/v1/jobs/{job}/cancel")
    until(lambda: engine.gauge("num_requests_running") == 0, 2, "it still generates")
    took_s = time.monotonic() - left_s
    assert when(client, job)["status"] == "cancelled"
    record_property("seconds until it runs nothing", f"{took_s:.2f}")


def test_its_death_in_mid_stream_is_told_and_opens_the_breaker(
    client: httpx.Client, fleet: Fleet, engine: Vllm, record_property: Note
) -> None:
    raw, killed_s = b"", 0.0
    with client.stream("POST", CHAT, json={**chat("tiny", words="Hi", stream=True), **LONG}) as answer:
        for piece in answer.iter_raw():
            raw += piece
            if engine.runs and len(frames(raw)) > 20:
                killed_s = time.monotonic()
                engine.kill()
    record_property("seconds until it was told", f"{time.monotonic() - killed_s:.2f}")
    *said, last = [frame for frame in frames(raw) if frame.data != "[DONE]"]
    assert last.json["error"]["code"] == "upstream_interrupted"
    assert set(text_of(said).split()) == {"bab"}
    refused = [client.post(CHAT, json=chat("tiny", words="Hi")) for _ in range(2)]
    assert {answer.status_code for answer in refused} <= {502, 503, 504}
    until(lambda: _backend(client)["breaker"] == "open", 15, "the breaker did not open")
    until(lambda: _backend(client)["healthy"] is False, 15, "the prober did not see it")


def test_it_comes_back_as_another_and_the_next_ask_for_embeddings_is_answered(
    client: httpx.Client, sdk: openai.OpenAI, engine: Vllm, record_property: Note
) -> None:
    record_property("seconds to start", f"{engine.start(embeds=True):.0f}")
    until(lambda: _backend(client)["healthy"] is True, 15, "the prober did not see it")
    texts = ["a heron", "two herons stand in the water"]
    numbers = sdk.embeddings.create(model="tiny", input=texts, encoding_format="float")
    packed = sdk.embeddings.create(model="tiny", input=texts)
    assert [row.index for row in numbers.data] == [0, 1]
    assert numbers.usage.prompt_tokens == packed.usage.prompt_tokens > 10
    for one, two in zip(numbers.data, packed.data, strict=True):
        assert len(one.embedding) == 128 and numpy.allclose(one.embedding, two.embedding, atol=1e-5)
    assert not numpy.allclose(numbers.data[0].embedding, numbers.data[1].embedding)
    until(lambda: _backend(client)["breaker"] == "closed", 15, "the breaker did not close")
