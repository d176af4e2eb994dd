"""Fallbacks of a worker over a real store: who is asked instead, what that costs the budget, and when nobody is."""

from __future__ import annotations

from typing import Any

import pytest

from common.contracts import Priority
from common.errors import (
    ContentFiltered,
    ContextTooLong,
    UpstreamBusy,
    UpstreamCredentials,
    UpstreamError,
    UpstreamModelMissing,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.store.test_attempts import failing, rigs
from tests.support.redis_server import RedisServer
from workers.attempts import RETRY_RESERVE
from workers.lanes import Lanes

pytestmark = pytest.mark.either_server


def at(*backends: str, **fallback: str) -> dict[str, Any]:
    return {"targets": [{"backend": name, "model": "m"} for name in backends], "fallback": fallback}


BACKENDS = [{"name": name, "kind": "echo"} for name in "abc"] + [{"name": "far", "kind": "echo", "pool": "far"}]
ALL = {"context_length_exceeded": "other", "rate_limit": "other", "unavailable": "other"}
MODELS = {
    "chain": at("a", "b", **ALL),
    "only": at("a"),
    "other": at("c"),
    "steps": at("a", context_length_exceeded="second"),
    "second": at("b", context_length_exceeded="third"),
    "third": at("c", context_length_exceeded="steps"),
    "distant": at("a", context_length_exceeded="far"),
    "far": at("far"),
}
SETUP: dict[str, Any] = {"backends": BACKENDS, "models": MODELS, "breaker_failures": 10_000}


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (ContextTooLong(), ["a", "c"]),
        (UpstreamBusy(), ["a", "b", "c"]),
        (UpstreamTimeout(), ["a", "b", "c"]),
        (UpstreamCredentials(), ["a", "b", "c"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, UpstreamError) else None,
)
async def test_when_the_targets_are_used_up_the_fallback_for_that_kind_answers(
    error: UpstreamError, asked: list[str], redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = rig.provider.does["b"] = failing(error)
        assert await rig.answer() == "from c"
        assert rig.provider.called == asked
        assert [call.public_model for call in rig.provider.calls] == ["chain"] * (len(asked) - 1) + ["other"]


@pytest.mark.parametrize("error", [ContentFiltered(), UpstreamRefused()])
async def test_a_refusal_of_the_request_itself_is_nobody_elses(error: UpstreamError, redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = failing(error)
        missed = await rig.misses()
        assert (missed.failure.code, missed.missed.may_recur) == (error.code, False)
        assert rig.provider.called == ["a"]


async def test_an_answer_that_was_seen_goes_on_nowhere_else(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = failing(ContextTooLong())
        missed = await rig.misses(moves_on=False)
        assert (missed.failure.code, rig.provider.called) == ("context_length_exceeded", ["a"])


async def test_embeddings_of_another_model_are_never_made_instead(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = rig.provider.does["b"] = failing(UpstreamBusy())
        missed = await rig.misses(endpoint="/v1/embeddings")
        assert (missed.failure.code, rig.provider.called) == ("upstream_busy", ["a", "b"])


async def test_fallbacks_follow_one_another_and_go_in_no_circle(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        for name in "ab":
            rig.provider.does[name] = failing(ContextTooLong())
        assert await rig.answer("steps") == "from c"
        rig.provider.does["c"] = failing(ContextTooLong())
        rig.provider.calls.clear()
        missed = await rig.misses("steps")
        assert (missed.failure.code, missed.missed.may_recur) == ("context_length_exceeded", False)
        assert rig.provider.called == ["a", "b", "c"]


async def test_a_fallback_that_no_worker_of_this_pool_reaches_leaves_the_refusal_as_it_is(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = failing(ContextTooLong())
        missed = await rig.misses("distant")
        assert (missed.failure.code, missed.missed.may_recur) == ("context_length_exceeded", False)
        assert rig.provider.called == ["a"]


async def test_where_the_longer_model_is_only_away_the_job_comes_back(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = failing(ContextTooLong())
        rig.provider.does["c"] = failing(UpstreamUnreachable())
        missed = await rig.misses()
        assert (missed.failure.code, missed.missed.may_recur) == ("upstream_unreachable", True)
        assert missed.backend == "c"


async def test_a_length_that_was_refused_costs_no_budget_and_a_failure_does(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", retry_budget=0, **SETUP) as (rig,):
        rig.provider.does["a"] = failing(ContextTooLong())
        for _ in range(30):
            assert await rig.answer() == "from c"
        assert rig.value("retries_total", result="next") == 0
        rig.provider.does["a"] = failing(UpstreamUnreachable())
        rig.provider.calls.clear()
        await rig.misses()
        assert rig.provider.called == ["a"]


USER = {"role": "user", "content": "hi"}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}


@pytest.mark.parametrize(
    ("row", "asked", "tokens"),
    [
        ({"context_tokens": 100}, {}, 1_000),
        ({"context_tokens": 100}, {"max_tokens": 100}, 10),
        ({"max_tokens": 10}, {"max_completion_tokens": 11}, 1),
        ({"capabilities": []}, {"tools": [{}], "tool_choice": "required"}, 1),
        ({"capabilities": ["tools"]}, {"messages": [USER, PICTURE]}, 1),
    ],
)
async def test_a_fallback_that_is_known_not_to_serve_the_request_is_not_asked(
    row: dict[str, Any], asked: dict[str, Any], tokens: int, redis_server: RedisServer
) -> None:
    setup: dict[str, Any] = {**SETUP, "models": {**MODELS, "other": {**at("c"), **row}}}
    body = {"messages": [USER], **asked}
    async with rigs(redis_server, "w", **setup) as (rig,):
        for error, called in ((UpstreamBusy(retry_after_s=7), ["a", "b"]), (ContextTooLong(), ["a"])):
            rig.provider.does["a"] = rig.provider.does["b"] = failing(error)
            rig.provider.calls.clear()
            missed = await rig.misses(body=body, prompt_tokens=tokens)
            assert (missed.failure, missed.missed.may_recur) == (error.failure, error.retryable)
            assert rig.provider.called == called
        assert await rig.answer(body={"messages": [USER]}, prompt_tokens=1) == "from c"


@pytest.mark.parametrize("refusal", [UpstreamRefused(), ContextTooLong(), UpstreamModelMissing()])
async def test_where_the_fallback_only_refuses_the_request_the_job_comes_back_for_what_failed_first(
    refusal: UpstreamError, redis_server: RedisServer
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        busy = UpstreamBusy(retry_after_s=7)
        rig.provider.does["a"] = rig.provider.does["b"] = failing(busy)
        rig.provider.does["c"] = failing(refusal)
        missed = await rig.misses()
        assert rig.provider.called == ["a", "b", "c"]
        assert (missed.failure, missed.backend, missed.missed.retry_after_s) == (busy.failure, "b", 7)
        assert (missed.missed.may_recur, missed.missed.called) == (True, True)


async def test_a_fallback_that_refuses_costs_a_job_that_waits_for_a_breaker_no_failure(
    redis_server: RedisServer,
) -> None:
    setup: dict[str, Any] = {**SETUP, "breaker_failures": 1, "breaker_cooloff_s": 20}
    async with rigs(redis_server, "w", **setup) as (rig,):
        rig.provider.does["a"] = rig.provider.does["b"] = failing(UpstreamUnreachable())
        rig.provider.does["c"] = failing(UpstreamRefused())
        await rig.misses()
        await rig.told()
        missed = await rig.misses()
        assert rig.provider.called == ["a", "b", "c", "c"]
        assert (missed.failure.code, missed.missed.called) == ("upstream_unavailable", False)
        assert missed.missed.soonest_ms > 10_000


async def test_what_the_fallback_would_not_let_through_its_filter_is_not_asked_for_again(
    redis_server: RedisServer,
) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = rig.provider.does["b"] = failing(UpstreamBusy())
        rig.provider.does["c"] = failing(ContentFiltered())
        missed = await rig.misses()
        assert (missed.failure.code, missed.missed.may_recur, missed.backend) == ("content_filter", False, "c")


async def test_lower_classes_go_on_where_a_fallback_takes_calls(redis_server: RedisServer) -> None:
    fragile: dict[str, Any] = {**SETUP, "breaker_failures": 1}
    async with rigs(redis_server, "w", **fragile) as (rig,):
        lanes = Lanes(rig.attempts._settings, "default", rig.fleet)
        assert {f"{Priority.BATCH.value}:{name}" for name in ("chain", "only")} <= set(lanes())
        for name in "ab":
            rig.provider.does[name] = failing(UpstreamUnreachable())
        assert await rig.answer() == "from c"
        await rig.told()
        assert f"{Priority.BATCH.value}:chain" in lanes()
        assert f"{Priority.BATCH.value}:only" not in lanes()
        caps = {name: cap.most for cap in lanes.caps() for name in cap.lanes}
        assert caps[f"{Priority.BATCH.value}:chain"] == caps[f"{Priority.BATCH.value}:other"] > 1


# --- a server without the model ---------------------------------------------------------------------------------------

LACKING = UpstreamModelMissing("The model 'm' does not exist.")


async def test_a_server_without_the_model_is_passed_over_at_no_cost_and_no_blame(redis_server: RedisServer) -> None:
    fragile: dict[str, Any] = {**SETUP, "retry_budget": 0, "breaker_failures": 1}
    async with rigs(redis_server, "w", **fragile) as (rig,):
        rig.provider.does["a"] = failing(LACKING)
        for _ in range(30):
            assert await rig.answer() == "from b"
        assert rig.provider.called == ["a", "b"] * 30
        assert rig.value("retries_total", result="next") == 0
        await rig.told()
        assert rig.fleet.breakers.view("a").failures == 0


async def test_the_retry_that_met_a_server_without_the_model_is_paid_back(redis_server: RedisServer) -> None:
    row: dict[str, Any] = {**SETUP, "retry_budget": 0.0001, "models": {"chain": at("a", "b", "c")}}
    async with rigs(redis_server, "w", **row) as (rig,):
        rig.provider.does["a"] = failing(UpstreamUnreachable())
        rig.provider.does["b"] = failing(LACKING)
        for _ in range(RETRY_RESERVE):
            assert await rig.answer() == "from c"
        rig.provider.calls.clear()
        await rig.misses()
        assert rig.provider.called == ["a"]


async def test_where_all_targets_lack_the_model_that_is_the_answer(redis_server: RedisServer) -> None:
    async with rigs(redis_server, "w", **SETUP) as (rig,):
        rig.provider.does["a"] = rig.provider.does["b"] = failing(LACKING)
        for model, asked in (("chain", ["a", "b"]), ("only", ["a"])):
            rig.provider.calls.clear()
            missed = await rig.misses(model)
            assert (missed.failure.code, missed.failure.message) == ("upstream_refused", LACKING.failure.message)
            assert (missed.missed.may_recur, missed.backend) == (False, asked[-1])
            assert rig.provider.called == asked


@pytest.mark.parametrize("order", ["ab", "ba"])
async def test_what_may_pass_elsewhere_is_not_hidden_by_a_server_without_the_model(
    order: str, redis_server: RedisServer
) -> None:
    lacking, broken = order
    row: dict[str, Any] = {**SETUP, "models": {"chain": at("a", "b")}}
    async with rigs(redis_server, "w", **row) as (rig,):
        rig.provider.does[lacking] = failing(LACKING)
        rig.provider.does[broken] = failing(UpstreamUnreachable())
        missed = await rig.misses()
        assert (missed.failure.code, missed.missed.may_recur) == ("upstream_unreachable", True)
        assert (missed.missed.called, missed.backend, rig.provider.called) == (True, broken, ["a", "b"])


async def test_a_job_waits_for_a_closed_off_server_where_the_other_lacks_the_model(redis_server: RedisServer) -> None:
    row: dict[str, Any] = {**SETUP, "models": {"chain": at("a", "b")}, "breaker_failures": 1}
    async with rigs(redis_server, "w", **row) as (rig,):
        rig.provider.does["a"] = failing(UpstreamUnreachable())
        rig.provider.does["b"] = failing(LACKING)
        await rig.misses()
        await rig.told()
        rig.provider.calls.clear()
        missed = await rig.misses()
        assert (missed.failure.code, missed.missed.called, missed.missed.may_recur) == (
            "upstream_unavailable",
            False,
            True,
        )
        assert rig.provider.called == ["b"]
