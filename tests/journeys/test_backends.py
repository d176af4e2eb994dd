"""Backends that fail, fall silent, refuse keys and are few: what callers and the backends themselves see of it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

import httpx
import pytest

from tests.support.fleet import Fleet, until
from tests.support.upstream import HANG, Reply, Request, Upstream

pytestmark = pytest.mark.timeout(60)

COOLOFF_S: Final = 2.5
CONFIG: Final = """
backends:
  - {name: a, kind: vllm, base_url: "${HEADRACE_TEST_A}", health_path: ""}
  - {name: b, kind: vllm, base_url: "${HEADRACE_TEST_B}", health_path: ""}
  - {name: small, kind: vllm, base_url: "${HEADRACE_TEST_A}", health_path: "", concurrency: 3}
  - {name: limited, kind: openai, base_url: "${HEADRACE_TEST_A}", health_path: "",
     api_keys: [l-1-key, l-2-key, l-3-key]}
  - {name: revoked, kind: openai, base_url: "${HEADRACE_TEST_A}", health_path: "",
     api_keys: [r-1-key, r-2-key, r-3-key]}
  - {name: spent, kind: openai, base_url: "${HEADRACE_TEST_A}", health_path: "",
     api_keys: [s-1-key, s-2-key, s-3-key]}
models:
  only: {targets: [{backend: a, model: m}]}
  chain: {targets: [{backend: a, model: m}, {backend: b, model: m}]}
  shared: {targets: [{backend: a, model: m, weight: 1}, {backend: b, model: m, weight: 1}]}
  hedged: {targets: [{backend: a, model: m}, {backend: b, model: m}], hedge_after_ms: 100}
  patient: {targets: [{backend: a, model: m}, {backend: b, model: m}], hedge_after_ms: 10000}
  small: {targets: [{backend: small, model: m}]}
  limited: {targets: [{backend: limited, model: m}]}
  revoked: {targets: [{backend: revoked, model: m}]}
  spent: {targets: [{backend: spent, model: m}]}
"""

Behaviour = Callable[[Request], Reply]


def answer(request: Request) -> Reply:
    """A short answer, streamed or whole."""
    if not request.json().get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": "well"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return Reply([json.dumps({"choices": [choice], "usage": usage}).encode()], content_type="application/json")
    return Reply([_event("we"), _event("ll", "stop"), b"data: [DONE]\n\n"])


def _event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def failing(status: int, **headers: str) -> Behaviour:
    """Refuses every call with this status."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = b'{"error": {"message": "no", "type": "server_error", "code": null}}'
    return lambda _: Reply([body], status=status, content_type="application/json", headers=named, chunked=False)


def silent(_: Request) -> Reply:
    """Says nothing until the caller has gone."""
    return Reply([HANG])


class Model(Upstream):
    """A model server whose behaviour tests change; it counts its calls and those under way."""

    def __init__(self) -> None:
        super().__init__(self._behave)
        self.behaviour: Behaviour = answer
        self.under_way = 0
        self.most_under_way = 0
        self.held = threading.Event()
        self.held.set()

    def _behave(self, request: Request) -> Reply:
        return self.behaviour(request)

    def reset(self) -> None:
        self.behaviour = answer
        self.requests.clear()
        self.most_under_way = 0
        self.held.set()

    @property
    def calls(self) -> int:
        return len(self.requests)

    async def _send(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.to_thread(self.held.wait, 20)
            return await super()._send(reply, reader, writer)
        finally:
            self.under_way -= 1


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[Model, Model]]:
    """The servers `a` and `b`, in a thread of their own."""
    both = Model(), Model()
    listening, ending = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            for one in both:
                await stack.enter_async_context(one.running())
            listening.set()
            await ending.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert listening.wait(10)
    yield both
    loop.call_soon_threadsafe(ending.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def _shared(models: tuple[Model, Model], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(
        tmp_path_factory.mktemp("backends"),
        workers=2,
        config=CONFIG,
        lease_s=2,
        breaker_cooloff_s=COOLOFF_S,
        test_a=models[0].url,
        test_b=models[1].url,
    )
    try:
        yield fleet.start()
    finally:
        fleet.stop()


@pytest.fixture
def fleet(_shared: Fleet, models: tuple[Model, Model]) -> Iterator[Fleet]:
    """The fleet, with every breaker closed."""
    for model in models:
        model.reset()
    for name in _shared.redis.command("KEYS", "hr:{b:*}:breaker"):
        _shared.redis.command("DEL", name)
    yield _shared
    for name, said in _shared.news().items():
        assert _shared.members[name].runs and "Traceback" not in said, f"{name}:\n{said[-4000:]}"


@pytest.fixture
def client(fleet: Fleet) -> Iterator[httpx.Client]:
    with fleet.client(0) as one:
        until(lambda: _states(one, "a") == {"closed"}, 10, "a worker still takes a breaker for open")
        yield one


def _breakers(client: httpx.Client) -> set[str]:
    return {backend["breaker"] for worker in client.get("/workers").json() for backend in worker["backends"]}


def chat(client: httpx.Client, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    return client.post("/v1/chat/completions", json=body)


async def many(fleet: Fleet, model: str, number: int, **more: Any) -> list[httpx.Response]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    async with _client(fleet) as client:
        return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(number)))


def _client(fleet: Fleet) -> httpx.AsyncClient:
    with fleet.client(0) as one:
        return httpx.AsyncClient(base_url=one.base_url, headers=one.headers, timeout=30, trust_env=False)


# --- failover and breakers -------------------------------------------------------------------------------------------


def test_what_one_backend_fails_at_another_does_and_the_broken_one_is_soon_left_alone(
    client: httpx.Client, models: tuple[Model, Model]
) -> None:
    a, b = models
    a.behaviour = failing(500)
    answers = [chat(client, "chain", stream=stream) for stream in (False, True, False)]
    assert [answer.status_code for answer in answers] == [200] * 3
    until(lambda: "open" in _breakers(client), 5, "the breaker did not open")
    until(lambda: _has_opened(client), 10, "a worker has not heard of it")
    before = a.calls
    assert [chat(client, "chain").status_code for _ in range(9)] == [200] * 9
    # One call may be the probe, where the cool-off was over before the last of these was asked.
    assert a.calls - before <= 1 and b.calls == 3 + 9


def _states(client: httpx.Client, backend: str) -> set[str]:
    """What each worker takes the backend's breaker for."""
    rows = [row for worker in client.get("/workers").json() for row in worker["backends"]]
    return {row["breaker_seen"] for row in rows if row["name"] == backend}


def _has_opened(client: httpx.Client) -> bool:
    """Whether each worker knows that the breaker of `a` opened; the first may see its cool-off end before the last."""
    return set() < _states(client, "a") <= {"open", "half_open"}


def test_a_backend_that_is_well_again_is_found_by_one_probe_of_the_whole_fleet(
    client: httpx.Client, fleet: Fleet, models: tuple[Model, Model]
) -> None:
    a, _ = models
    a.behaviour = failing(500)
    for _ in range(4):
        assert chat(client, "chain").status_code == 200
    until(lambda: _has_opened(client), 10)
    a.requests.clear()
    a.behaviour = answer
    a.held.clear()
    until(lambda: _states(client, "a") == {"half_open"}, 10, "the cool-off did not end")
    with fleet.client(0) as other:
        probe = threading.Thread(target=lambda: chat(other, "only"))
        probe.start()
        until(lambda: a.under_way == 1, 5, "nobody probed")
        # While the probe is under way, everybody else's calls go elsewhere.
        assert [chat(client, "chain").status_code for _ in range(6)] == [200] * 6
        assert a.calls == 1
        a.held.set()
        probe.join(10)
    until(lambda: _breakers(client) == {"closed"}, 5, "the probe's answer closed nothing")
    until(lambda: _states(client, "a") == {"closed"}, 5)
    assert chat(client, "chain").status_code == 200
    assert a.calls == 2


def test_work_waits_for_the_only_backends_return_and_no_failure_is_counted_for_the_wait(
    client: httpx.Client, models: tuple[Model, Model]
) -> None:
    a, _ = models
    _open(client, a)
    a.behaviour = answer
    job = _submit(client, "only", priority="batch")
    chatted = _submit(client, "only", priority="interactive")
    for job_id in (job, chatted):
        found = _ended(client, job_id)
        assert found["status"] == "succeeded"
    assert a.calls == 3 + 2


def _open(client: httpx.Client, model: Model) -> None:
    """Has the breaker of `a` opened by three failed jobs of one attempt each... as far as they count."""
    model.behaviour = failing(500)
    for _ in range(3):
        chat(client, "chain")
    until(lambda: _has_opened(client), 10)


def _submit(client: httpx.Client, model: str, **more: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    made = client.post("/v1/jobs", json={"endpoint": "/v1/chat/completions", "body": body, **more})
    assert made.status_code == 202, made.text
    return made.json()["id"]


def _ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        found = client.get(f"/v1/jobs/{job_id}").json()
        return found if found["finished_at"] else None

    found = until(ended, 20, f"{job_id} did not end")
    assert found is not None
    return found


def test_a_caller_for_whom_nothing_will_come_back_in_time_is_told_so_at_once(
    client: httpx.Client, models: tuple[Model, Model]
) -> None:
    _open(client, models[0])
    refused = client.post(
        "/v1/chat/completions",
        json={"model": "only", "messages": [{"role": "user", "content": "hi"}]},
        headers={"x-headrace-deadline-ms": "800"},
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstream_unavailable")
    assert refused.headers["retry-after"]


# --- slots -----------------------------------------------------------------------------------------------------------


async def test_a_small_backend_never_gets_more_calls_at_once_than_it_takes_from_all_workers_together(
    client: httpx.Client, fleet: Fleet, models: tuple[Model, Model]
) -> None:
    a, _ = models
    a.held.clear()
    calling = asyncio.create_task(many(fleet, "small", 24))
    await asyncio.to_thread(until, lambda: a.under_way >= 3, 10)
    shown = {row["name"]: row for row in client.get("/workers").json()[0]["backends"]}
    assert shown["small"]["concurrency"] == 3
    a.held.set()
    answers = await calling
    assert [one.status_code for one in answers] == [200] * 24
    assert (a.most_under_way, a.calls) == (3, 24)


async def test_neighbours_share_the_load(client: httpx.Client, fleet: Fleet, models: tuple[Model, Model]) -> None:
    answers = await many(fleet, "shared", 40)
    assert [one.status_code for one in answers] == [200] * 40
    assert min(one.calls for one in models) >= 12


# --- hedging ---------------------------------------------------------------------------------------------------------


def test_where_no_token_comes_a_second_backend_is_asked_and_the_first_is_hung_up_on(
    client: httpx.Client, models: tuple[Model, Model]
) -> None:
    a, b = models
    a.behaviour = silent
    answered = chat(client, "hedged", stream=True)
    assert answered.status_code == 200 and "[DONE]" in answered.text
    assert (a.calls, b.calls) == (1, 1)
    until(lambda: a.under_way == 0, 5, "the silent call is still open")


def test_a_backend_that_answers_in_time_is_not_hedged(client: httpx.Client, models: tuple[Model, Model]) -> None:
    a, b = models
    assert all(chat(client, "patient", stream=True).status_code == 200 for _ in range(5))
    assert (a.calls, b.calls) == (5, 0)


# --- keys ------------------------------------------------------------------------------------------------------------


def _used(model: Model) -> Counter[str]:
    return Counter(request.headers["authorization"].removeprefix("Bearer ") for request in model.requests)


def _limited(bad: str, status: int, **headers: str) -> Behaviour:
    def behave(request: Request) -> Reply:
        return (failing(status, **headers) if request.headers["authorization"].endswith(bad) else answer)(request)

    return behave


@pytest.mark.parametrize(("model", "status"), [("limited", 429), ("revoked", 401)])
def test_a_refused_key_is_left_alone_by_the_whole_fleet_and_callers_see_nothing_of_it(
    model: str, status: int, client: httpx.Client, fleet: Fleet, models: tuple[Model, Model]
) -> None:
    a, _ = models
    bad = f"{model[0]}-1-key"
    a.behaviour = _limited(bad, status, retry_after="30")
    until(lambda: chat(client, model).status_code == 200 and _used(a)[bad] > 0, 10, "the key was not used")
    until(lambda: _usable_keys(client, model) == {2}, 5, "a worker has not heard of it")
    assert [chat(client, model).status_code for _ in range(12)] == [200] * 12
    used = _used(a)
    assert used[bad] == 1
    assert used[f"{model[0]}-2-key"] > 0 and used[f"{model[0]}-3-key"] > 0
    assert bad not in fleet.logs()


def _usable_keys(client: httpx.Client, backend: str) -> set[int]:
    rows = [row for worker in client.get("/workers").json() for row in worker["backends"]]
    return {row["keys"]["usable"] for row in rows if row["name"] == backend}


def test_a_key_whose_limit_is_used_up_rests_until_its_reset_and_is_used_again(
    client: httpx.Client, models: tuple[Model, Model]
) -> None:
    a, _ = models

    def spent(request: Request) -> Reply:
        reply = answer(request)
        if request.headers["authorization"].endswith("s-2-key"):
            reply.headers |= {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "3s0ms"}
        return reply

    a.behaviour = spent
    until(lambda: chat(client, "spent").status_code == 200 and _used(a)["s-2-key"] == 1, 10)
    until(lambda: _usable_keys(client, "spent") == {2}, 5, "a worker has not heard of it")
    until(lambda: chat(client, "spent").status_code == 200 and _used(a)["s-2-key"] == 2, 10, "it was not used again")
    assert _used(a)["s-1-key"] > 1
