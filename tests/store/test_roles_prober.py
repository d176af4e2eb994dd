"""The prober: real HTTP to stand-in servers, and what stands in the store afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from pydantic import SecretStr

from common import keys
from common.clock import SystemClock
from common.health import Health, HealthStore, Probe
from common.servers import Backend, Kind
from scheduler.prober import MOST_BODY_BYTES, Prober, ProberParams, probe
from tests.support.redis_server import RedisServer, free_port
from tests.support.runner import until
from tests.support.seeds import POOL, Rig, rig
from tests.support.upstream import BREAK, HANG, Drip, Reply, Request, Step, Upstream

pytestmark = pytest.mark.either_server

LIMIT_S = 5.0
METRICS = b'vllm:num_requests_running{engine="0"} 2\nvllm:num_requests_waiting{engine="0"} 1\n'


def _paths(**replies: Reply) -> Callable[[Request], Reply]:
    """Answers by the path's last part; 404 elsewhere."""

    def answer(request: Request) -> Reply:
        return replies.get(request.path.rpartition("/")[2], Reply([b"{}"], status=404, chunked=False))

    return answer


def _ok(*steps: Step) -> Reply:
    return Reply(steps, content_type="application/json", chunked=bool(steps))


def _backend(url: str, kind: Kind = "vllm", name: str = "b", pools: tuple[str, ...] = (POOL,)) -> Backend:
    return Backend(name=name, kind=kind, base_url=url, pool=pools, api_keys=(SecretStr("sk-of-the-backend"),))


def _prober(r: Rig, *backends: Backend, period_s: float = 30) -> Prober:
    return Prober(HealthStore(r.store), SystemClock(), backends, ProberParams(period_s, most_s=LIMIT_S))


def _next_period(server: RedisServer) -> None:
    """Lets every turn lapse."""
    for name in server.command("KEYS", keys.probe(POOL, "*").replace("{", "?").replace("}", "?")):
        server.command("DEL", name)


async def _read(r: Rig, pool: str = POOL) -> dict[str, Health]:
    return await HealthStore(r.store).read(pool)


async def test_a_living_backend_is_noted_with_its_load_in_each_of_its_pools(redis_server: RedisServer) -> None:
    upstream = Upstream(_paths(health=_ok(), metrics=_ok(METRICS)))
    async with rig(redis_server) as r, upstream.running():
        backend = _backend(upstream.url + "/v1/", pools=("one", "two"))
        assert await _prober(r, backend).round() == 1
        for pool in ("one", "two"):
            found = (await _read(r, pool))["b"]
            assert (found.healthy, found.running, found.waiting) == (True, 2, 1)
            assert found.latency_ms > 0
        assert [request.path for request in upstream.requests] == ["/health", "/metrics"]
        assert upstream.requests[0].headers["authorization"] == "Bearer sk-of-the-backend"


async def test_a_dead_backend_turns_unhealthy_with_its_second_failure_and_does_not_hold_up_others(
    redis_server: RedisServer,
) -> None:
    upstream = Upstream(_paths(health=_ok(), metrics=_ok(METRICS)))
    async with rig(redis_server) as r, upstream.running():
        dead, alive = _backend(f"http://127.0.0.1:{free_port()}", name="dead"), _backend(upstream.url, name="alive")
        for healthy in (True, False):
            _next_period(redis_server)
            await _prober(r, dead, alive).round()
            found = await _read(r)
            assert (found["dead"].healthy, found["alive"].healthy) == (healthy, True)
        assert found["dead"].detail == "it cannot be connected to"


async def test_the_fake_and_a_backend_that_must_not_be_asked_are_healthy_without_a_request(
    redis_server: RedisServer,
) -> None:
    upstream = Upstream(_paths())
    async with rig(redis_server) as r, upstream.running():
        silent = _backend(upstream.url, "openai", "silent").model_copy(update={"health_path": ""})
        assert await _prober(r, Backend(name="echo", kind="echo"), silent).round() == 2
        assert {name: row.healthy for name, row in (await _read(r)).items()} == {"echo": True, "silent": True}
        assert upstream.requests == []


async def test_of_several_schedulers_one_probes_each_backend_in_a_period(redis_server: RedisServer) -> None:
    upstream = Upstream(_paths(health=_ok(), metrics=_ok(METRICS)))
    async with rig(redis_server) as r, rig(redis_server) as other, upstream.running():
        backends = [_backend(upstream.url, name=name) for name in ("a", "b")]
        probers = [_prober(one, *backends) for one in (r, other)]
        probed = await asyncio.gather(*(prober.round() for prober in probers for _ in range(3)))
        assert sum(probed) == 2
        assert [request.path for request in upstream.requests].count("/health") == 2


async def test_a_scheduler_alone_probes_in_every_period(redis_server: RedisServer) -> None:
    upstream = Upstream(_paths(health=_ok(), metrics=_ok(METRICS)))
    async with rig(redis_server) as r, upstream.running():
        prober = _prober(r, _backend(upstream.url), period_s=0.1)

        async def probed_again() -> bool:
            return await prober.round() == 1

        for _ in range(3):
            await until(probed_again)


async def test_what_is_known_lives_for_four_periods(redis_server: RedisServer) -> None:
    upstream = Upstream(_paths(health=_ok(), metrics=_ok(METRICS)))
    async with rig(redis_server) as r, upstream.running():
        await _prober(r, _backend(upstream.url), period_s=10).round()
        r.later(39_000)
        assert set(await _read(r)) == {"b"}
        r.later(2_000)
        assert await _read(r) == {}


async def test_a_restart_of_the_backend_is_seen_with_the_next_success(redis_server: RedisServer) -> None:
    loading = Reply([b'{"error":{"code":503,"message":"Loading model"}}'], status=503, chunked=False)
    replies = {"health": loading, "slots": _ok(b'[{"id":0,"is_processing":true}]')}

    def as_it_stands(request: Request) -> Reply:
        return _paths(**replies)(request)

    upstream = Upstream(as_it_stands)
    async with rig(redis_server) as r, upstream.running():
        backend = _backend(upstream.url, "llamacpp")
        seen: list[bool] = []
        for _ in range(3):
            _next_period(redis_server)
            await _prober(r, backend).round()
            seen.append((await _read(r))["b"].healthy)
            if not seen[-1]:
                replies["health"] = _ok(b'{"status":"ok"}')
        assert seen == [True, False, True]
        assert (await _read(r))["b"].running == 1


async def _probe(
    upstream: Upstream, kind: Kind = "vllm", *, limit_s: float = LIMIT_S, path: str | None = None
) -> Probe:
    async with upstream.running():
        backend = _backend(upstream.url, kind).model_copy(update={"health_path": path})
        return await probe(backend, httpx.create_ssl_context(), SystemClock(), limit_s=limit_s)


@pytest.mark.parametrize("steps", [(HANG,), (b"a", HANG), (Drip(b"x", 0.01),)])
async def test_a_server_that_never_finishes_its_answer_fails_the_probe_in_time(steps: tuple[Step, ...]) -> None:
    found = await _probe(Upstream(_paths(health=Reply(steps))), limit_s=0.2)
    assert (found.succeeded, found.detail) == (False, "it did not answer in time")


async def test_a_broken_answer_fails_the_probe_without_its_address() -> None:
    found = await _probe(Upstream(_paths(health=Reply([b"a", BREAK]))))
    assert not found.succeeded
    assert found.detail == "no proper answer (RemoteProtocolError)"


@pytest.mark.parametrize(
    "metrics",
    [
        Reply([b"{}"], status=501, chunked=False),
        Reply([b"a", BREAK]),
        Reply([b"<html>"]),
        Reply([HANG]),
        Reply([METRICS, b"x" * 65_536 * 17]),
    ],
)
async def test_a_load_that_cant_be_had_is_unknown_and_the_backend_healthy_all_the_same(metrics: Reply) -> None:
    assert len(b"x" * 65_536 * 17) > MOST_BODY_BYTES
    found = await _probe(Upstream(_paths(health=_ok(), metrics=metrics)), limit_s=0.9)
    assert found.succeeded
    assert (found.load.running, found.load.waiting) == (None, None)


async def test_a_redirect_is_not_followed_so_that_the_key_does_not_travel() -> None:
    upstream = Upstream(_paths(health=Reply([b""], status=302, headers={"location": "/elsewhere"}, chunked=False)))
    found = await _probe(upstream)
    assert (found.succeeded, found.detail) == (False, "the health check was answered with 302")
    assert [request.path for request in upstream.requests] == ["/health"]


async def test_ollama_tells_its_models_and_no_load() -> None:
    upstream = Upstream(_paths(version=_ok(b'{"version":"0.12.3"}'), ps=_ok(b'{"models":[{"name":"a"},{"name":"b"}]}')))
    found = await _probe(upstream, "ollama")
    assert (found.succeeded, found.detail, found.load.running) == (True, "2 models in memory", None)


@pytest.mark.parametrize(("status", "succeeded"), [(200, True), (404, True), (401, False), (502, False)])
async def test_an_openai_server_is_judged_by_its_list_of_models(status: int, succeeded: bool) -> None:
    upstream = Upstream(_paths(models=Reply([b"{}"], status=status, chunked=False)))
    assert (await _probe(upstream, "openai")).succeeded is succeeded
    assert [request.path for request in upstream.requests] == ["/v1/models"]


async def test_a_backends_own_health_path_is_asked_instead() -> None:
    upstream = Upstream(_paths(alive=_ok()))
    assert (await _probe(upstream, "openai", path="/internal/alive")).succeeded
    assert [request.path for request in upstream.requests] == ["/internal/alive"]


async def test_a_probe_leaves_no_connection_behind() -> None:
    upstream = Upstream(_paths(health=_ok(), metrics=Reply([HANG])))
    async with upstream.running():
        await probe(_backend(upstream.url), httpx.create_ssl_context(), SystemClock(), limit_s=0.2)

        async def none_open() -> bool:
            return upstream.open == 0

        await until(none_open)
