"""Refused keys, filtered prompts and what a kind can't do, over a real store: whose matter each is, and its costs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from common.breaker import BreakerStore, BreakerView, Phase, Verdict
from common.errors import (
    ContentFiltered,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamUnreachable,
    UpstreamUnsupported,
)
from common.store import Store
from tests.store.test_attempts import Answering, Rig, failing, rigs
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from workers.providers.base import Call

pytestmark = pytest.mark.either_server


def at(*backends: str, **fallback: str) -> dict[str, Any]:
    return {"targets": [{"backend": name, "model": "m"} for name in backends], "fallback": fallback}


MODELS = {
    "only": at("a"),
    "pair": at("a", "b"),
    "turned": at("b", "a"),
    "spared": at("a", unavailable="other", rate_limit="slow"),
    "other": at("c"),
    "slow": at("b"),
}
SETUP: dict[str, Any] = {
    "backends": [
        {"name": "a", "kind": "echo", "api_keys": ["k1", "k2"]},
        {"name": "b", "kind": "echo"},
        {"name": "c", "kind": "echo"},
    ],
    "models": MODELS,
    "breaker_failures": 1,
    "retry_budget": 0,
}
PAID: dict[str, Any] = {**SETUP, "retry_budget": 1}
STURDY: dict[str, Any] = {**SETUP, "breaker_failures": 9}
NO_MONEY, BUSY, FLAGGED = UpstreamCredentials(), UpstreamBusy(), ContentFiltered()


def told(**by_key: tuple[int, UpstreamError]) -> Answering:
    """Answers each key with a status and an error, and those that are not named with an answer."""

    def answer(call: Call) -> str:
        assert call.on_answer is not None
        assert call.api_key is not None
        status, error = by_key.get(call.api_key, (200, None))
        call.on_answer(status, {})
        if error is not None:
            raise error
        return f"with {call.api_key}"

    return answer


# --- no key is left ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 402, 429])
async def test_while_all_keys_are_refused_the_fallback_answers_every_ask_at_once(
    status: int, redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w", **PAID) as (rig,):
        rig.provider.does["a"] = told(k1=(status, NO_MONEY), k2=(status, NO_MONEY))
        for _ in range(3):
            assert await rig.answer("spared") == "from c"
        assert rig.provider.called == ["a", "a", "c", "c", "c"]


async def test_why_keys_rest_is_known_to_every_worker(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "one", "two", **PAID) as (one, two):
        one.provider.does["a"] = told(k1=(401, NO_MONEY), k2=(401, NO_MONEY))
        await one.misses("only")

        async def knows() -> bool:
            return two.fleet.keys["a"].all_refused

        await until(knows)
        assert await two.answer("spared") == "from c"
        assert two.provider.called == ["c"]


async def test_while_all_keys_are_refused_an_ask_without_a_fallback_ends_without_a_call(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = told(k1=(403, NO_MONEY), k2=(401, NO_MONEY))
        for _ in range(3):
            missed = await rig.misses("only")
            assert (missed.failure.code, missed.missed.may_recur) == ("upstream_credentials", False)
        # The last key is kept where it is only forbidden something.
        assert rig.provider.called == ["a"] * 4
        rig.provider.does["a"] = told(k1=(401, NO_MONEY), k2=(401, NO_MONEY))
        await rig.misses("only")
        rig.provider.calls.clear()
        missed = await rig.misses("only")
        assert (missed.failure.code, missed.missed.may_recur) == ("upstream_credentials", False)
        assert rig.provider.called == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("refused", ["k1", "k2"])
async def test_where_one_key_only_met_a_limit_the_ask_waits_for_that_one(
    refused: str, status: int, redis_server: RedisServer
) -> None:
    limited = {"k1": "k2", "k2": "k1"}[refused]
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = told(**{refused: (status, NO_MONEY), limited: (429, BUSY)})
        for _ in range(2):
            missed = await rig.misses("only")
            assert (missed.failure.code, missed.missed.may_recur) == ("upstream_busy", True)
            assert 0 <= (missed.missed.retry_after_s or 0) <= 2


@pytest.mark.parametrize("model", ["pair", "turned"])
async def test_a_refused_key_does_not_end_what_another_server_may_answer_later(
    model: str, redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w", **PAID) as (rig,):
        rig.provider.does["a"] = told(k1=(401, NO_MONEY), k2=(401, NO_MONEY))
        rig.provider.does["b"] = failing(UpstreamUnreachable())
        missed = await rig.misses(model)
        assert (missed.failure.code, missed.missed.may_recur) == ("upstream_unreachable", True)
        await rig.told()
        missed = await rig.misses(model)
        assert (missed.failure.code, missed.missed.called) == ("upstream_unavailable", False)
        assert missed.missed.may_recur
        assert sorted(rig.provider.called) == ["a", "a", "b"]


# --- whose matter a refusal is ----------------------------------------------------------------------------------------


async def test_a_prompt_that_was_filtered_with_403_costs_no_key_and_goes_nowhere_else(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = told(k1=(403, FLAGGED), k2=(403, FLAGGED))
        missed = await rig.misses("spared")
        assert (missed.failure.code, missed.missed.may_recur) == ("content_filter", False)
        assert (rig.provider.called, rig.fleet.keys["a"].usable) == (["a"], 2)


@pytest.mark.parametrize(("status", "usable"), [(429, 1), (401, 2), (403, 2)])
async def test_a_refusal_that_broke_off_is_the_keys_only_where_its_status_is_certain(
    status: int, usable: int, redis_server: RedisServer
) -> None:
    broken = UpstreamUnreachable()
    async with rigs(redis_server, "w", **STURDY) as (rig,):
        rig.provider.does["a"] = told(k1=(status, broken), k2=(status, broken))
        await rig.misses("only")
        assert (rig.provider.called, rig.fleet.keys["a"].usable) == (["a"], usable)


async def test_a_key_is_not_judged_by_what_another_one_was_told(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **STURDY) as (rig,):
        first: list[str | None] = []

        def answer(call: Call) -> str:
            if not first:
                first.append(call.api_key)
                return told(k1=(429, BUSY), k2=(429, BUSY))(call)
            raise UpstreamUnreachable

        rig.provider.does["a"] = answer
        await rig.misses("only")
        assert (rig.provider.called, rig.fleet.keys["a"].usable) == (["a", "a"], 1)


async def test_a_limit_that_is_used_up_rests_its_key_while_the_answer_still_comes(redis_server: RedisServer) -> None:
    spent = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9s"}
    async with rigs(redis_server, "w", **SETUP) as (rig,):

        def answer(call: Call) -> str:
            assert call.on_answer is not None
            call.on_answer(200, spent)
            return str(rig.fleet.keys["a"].usable)

        rig.provider.does["a"] = answer
        assert [await rig.answer("only") for _ in range(2)] == ["1", "0"]


# --- what a kind can't do ---------------------------------------------------------------------------------------------

UNABLE = UpstreamUnsupported("Ollama does not support this value of 'n'.", param="n")
MIXED: dict[str, Any] = {
    "backends": [
        {"name": "a", "kind": "ollama", "base_url": "http://127.0.0.1:1"},
        {"name": "b", "kind": "ollama", "base_url": "http://127.0.0.1:1"},
        {"name": "c", "kind": "openai"},
    ],
    "models": {"mixed": at("a", "b", "c"), "same": at("a", "b", unavailable="mixed"), "last": at("c", "a")},
    "breaker_failures": 3,
    "retry_budget": 0,
}


async def test_what_a_kind_cannot_do_is_asked_of_the_next_kind_at_no_cost_and_no_blame(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "w", **MIXED) as (rig,):
        rig.provider.does["a"] = failing(UpstreamUnreachable())
        await rig.misses("same")
        await rig.told()
        rig.provider.calls.clear()
        rig.provider.does["a"] = failing(UNABLE)
        for _ in range(30):
            assert await rig.answer("mixed") == "from c"
        assert rig.provider.called == ["a", "c"] * 30
        assert rig.value("retries_total", result="next") == 0
        await rig.told()
        assert rig.fleet.breakers.view("a").failures == 1  # neither blamed nor praised: it was not called


@pytest.mark.parametrize(("model", "asked"), [("same", ["a"]), ("last", ["c", "a"])])
async def test_where_no_other_kind_is_left_that_is_the_answer(
    model: str, asked: list[str], redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w", **MIXED) as (rig,):
        rig.provider.does = dict.fromkeys("abc", failing(UNABLE))
        missed = await rig.misses(model)
        assert (missed.failure.code, missed.failure.param) == ("upstream_refused", "n")
        assert (missed.missed.may_recur, rig.provider.called) == (False, asked)


class Other:
    """The breakers as another worker of the fleet has them."""

    def __init__(self, server: RedisServer) -> None:
        self._store = Store.from_url(server.url)
        self.breakers = BreakerStore(self._store, failures=1, cooloff_s=0.2)

    async def aclose(self) -> None:
        await self._store.close()


async def _due(rig: Rig, backend: str) -> None:
    """Opens the backend's breaker, and returns when its cool-off is over."""
    rig.fleet.breakers.failed(backend, probe=False)
    await rig.told()
    assert rig.fleet.breakers.view(backend).phase is Phase.OPEN

    async def due() -> bool:
        return rig.fleet.wait_ms(backend) == 0

    await until(due)


PROBED: dict[str, Any] = {**MIXED, "breaker_failures": 1, "breaker_cooloff_s": 0.2}


async def test_an_ask_that_its_kind_cannot_do_gives_the_probe_back_for_the_next_one(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **PROBED) as (rig,):
        await _due(rig, "a")
        rig.provider.does["a"] = failing(UNABLE)
        assert await rig.answer("mixed") == "from c"
        await rig.told()
        assert rig.fleet.breakers.view("a") == BreakerView(Phase.HALF_OPEN, 1, 0)
        rig.provider.does.clear()
        assert await rig.answer("mixed") == "from a"
        await rig.told()
        assert rig.fleet.breakers.view("a").phase is Phase.CLOSED


NARROW: dict[str, Any] = {
    "backends": [{"name": "a", "kind": "echo", "concurrency": 1}],
    "models": {"only": at("a")},
    "breaker_failures": 1,
    "breaker_cooloff_s": 0.2,
}


async def test_a_probe_that_leaves_the_line_before_its_call_goes_back(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **NARROW) as (rig,), aclosing(Other(redis_server)) as other:
        line = rig.fleet.slots.lines["a"]
        await line.take()
        await _due(rig, "a")
        assert await other.breakers.ask("a", "other") is Verdict.PROBE
        await rig.fleet.breakers.refresh()
        await other.breakers.released("a", "other")
        asked = asyncio.create_task(rig.answer("only"))

        async def waits() -> bool:
            return line.waiting == 1

        await until(waits)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await rig.told()
        assert await other.breakers.ask("a", "other") is Verdict.PROBE
        assert rig.provider.called == []
        line.give()


async def test_what_was_not_called_is_not_timed_as_a_call(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **MIXED) as (rig,):
        rig.provider.does["a"] = failing(UNABLE)
        assert await rig.answer("mixed") == "from c"
        timed = [rig.value("upstream_seconds_count", backend=name) for name in "ac"]
        assert timed == [0, 1]
        assert rig.value("upstream_errors_total", backend="a", code="upstream_refused") == 0


async def test_what_a_kind_cannot_do_hides_no_failure_that_may_pass(redis_server: RedisServer) -> None:
    paid: dict[str, Any] = {**MIXED, "retry_budget": 1}
    async with rigs(redis_server, "w", **paid) as (rig,):
        rig.provider.does["a"] = failing(UNABLE)
        rig.provider.does["c"] = failing(UpstreamUnreachable())
        for model, asked in (("mixed", ["a", "c"]), ("last", ["c", "a"])):
            rig.provider.calls.clear()
            missed = await rig.misses(model)
            assert (missed.failure.code, missed.missed.may_recur) == ("upstream_unreachable", True)
            assert rig.provider.called == asked
