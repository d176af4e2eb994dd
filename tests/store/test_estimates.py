"""What a job is expected to take: learnt from answers of its like, followed by gateways, true of the wait."""

from __future__ import annotations

import math
from typing import Any

import pytest

from common import keys
from common.backlog import Backlog
from common.catalogue import Model, Target
from common.config import Settings
from common.contracts import Job, Outcome, Priority, State, Usage
from common.errors import StoreUnavailable
from common.health import HealthStore
from common.metrics import SchedulerMetrics
from common.queue import Claim, Settlement
from common.servers import Backend
from gateway.admission import STREAMED, Admission
from gateway.auth import Principal
from gateway.dialects.native import JobOptions
from gateway.dialects.openai import DEFAULT_ANSWER_TOKENS, chat_request
from gateway.estimates import PERIOD_S, Estimates
from gateway.models import Models
from gateway.pressure import Pressure
from gateway.prices import Prices
from gateway.withdrawal import Withdrawals
from scheduler.gauges import Gauges, Sources
from tests.store.sharing import fill, spent
from tests.support.clock import ManualClock
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import POOL, Rig, a_job, rig
from workers.inference import told_length

PROMPT_TOKENS = 5
SETTINGS = Settings(
    backends=(Backend(name="b", kind="echo", pool=(POOL,)),),
    models={name: Model(targets=(Target(backend="b", model="x"),)) for name in ("m", "other")},
)


class Front:
    """A gateway's estimates and the jobs that it makes by them."""

    def __init__(self, r: Rig) -> None:
        self.clock = ManualClock()
        self.estimates = Estimates(r.queue, self.clock, pool_by_model=SETTINGS.pool_by_model)
        pressure = Pressure(r.store, self.clock, most_share=0.9)
        models, withdrawals = Models(SETTINGS, Prices(SETTINGS)), Withdrawals(r.queue, self.clock)
        self._admission = Admission(SETTINGS, models, r.queue, pressure, withdrawals, self.estimates)

    def job(self, *, priority: Priority | None = None, model: str = "m", **more: Any) -> Job:
        """The job of a small chat request with these further fields."""
        asked = chat_request({"model": model, "messages": [{"role": "user", "content": "x"}], **more})
        return self._admission.job(Principal("t"), asked, JobOptions(priority=priority), STREAMED)

    async def waits(self) -> bool:
        """Whether its estimates have looked, and wait to look again."""
        return self.clock.sleeping == 1

    def answer_tokens(self, **more: Any) -> int:
        """The tokens of the answer that such a job is expected to have."""
        return self.job(**more).cost_tokens - PROMPT_TOKENS


async def answered(r: Rig, claim: Claim, tokens: int) -> None:
    """Ends a claimed job as a worker does, with an answer of so many tokens."""
    outcome = Outcome(State.SUCCEEDED, "stop", Usage(PROMPT_TOKENS, tokens))
    end = Settlement(outcome, answer_tokens=told_length(claim.job, outcome))
    assert (await r.settle(claim, end=end)).done


async def work_off(r: Rig, count: int, tokens: int) -> None:
    """Claims so many jobs and ends each with an answer of so many tokens."""
    for claim in await r.claim(count):
        await answered(r, claim, tokens)


async def noted(r: Rig, lane: str = "0:m") -> list[float]:
    """The means of a lane: ms, cost and, once known, tokens of an answer."""
    raw: bytes = await r.store.command("HGET", keys.fair(POOL), f"m:{lane}")
    return [float(word) for word in raw.split()]


# --- what ends teach --------------------------------------------------------------------------------------------------


async def test_how_long_answers_are_is_learnt_lane_by_lane(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, 0, 2, answers=1)
        await fill(r, 2, 1, answers=1, priority=Priority.BATCH)
        for tokens in (20, 36, 500):
            await work_off(r, 1, tokens)
        known = await r.queue.usual_answers(POOL, ("m", "other"))
        assert known == {(Priority.INTERACTIVE, "m"): 21, (Priority.BATCH, "m"): 500}


async def test_an_end_that_tells_nothing_leaves_what_is_known(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        await fill(r, 0, 3, answers=1)
        await work_off(r, 1, 20)
        for claim in await r.claim(2):
            await spent(r, claim, 1_000)
        assert (await noted(r))[2] == 20


async def test_means_of_an_older_version_are_read_and_completed(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.worker()
        redis_server.command("HSET", keys.fair(POOL), "m:0:m", "1600.000 32.000")
        assert await r.queue.usual_answers(POOL, ("m",)) == {}
        await fill(r, 0, 2, answers=1, cost_tokens=32)
        [silent, telling] = await r.claim(2)
        await spent(r, silent, 32)
        assert await noted(r) == [pytest.approx(1_500, abs=20), 32]
        await answered(r, telling, 8)
        assert await noted(r) == [pytest.approx(1_406, abs=40), 32, 8]


@pytest.mark.parametrize("means", ["5000 10", "5000.000 10.000 7.000"])
async def test_a_claim_reads_the_same_of_two_means_and_of_three(redis_server: RedisServer, means: str) -> None:
    async with rig(redis_server) as r:
        redis_server.command("HSET", keys.fair(POOL), "m:0:m", means)
        await r.worker(lease_s=10_000)
        await fill(r, 1, 1, priority=Priority.BATCH)
        r.later(60_000)
        await fill(r, 2, 1, cost_tokens=3)
        assert await r.numbers() == [2]
        assert r.job(2)["credit"].split()[0] == b"1500.000"


@pytest.mark.parametrize(
    ("answers", "status", "tokens", "told"),
    [
        (1, State.SUCCEEDED, 40, 40),
        (4, State.SUCCEEDED, 41, 11),
        (0, State.SUCCEEDED, 40, 0),
        (1, State.CANCELLED, 40, 0),
        (1, State.FAILED, 40, 0),
        (1, State.SUCCEEDED, None, 0),
    ],
)
def test_only_a_whole_answer_without_a_binding_limit_tells_its_length(
    answers: int, status: State, tokens: int | None, told: int
) -> None:
    usage = None if tokens is None else Usage(7, tokens)
    assert told_length(a_job(1, answers=answers), Outcome(status, usage=usage)) == told


# --- what gateways expect ---------------------------------------------------------------------------------------------


async def test_a_gateway_expects_what_is_usual_within_the_limit(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        front = Front(r)
        await front.estimates.look()
        assert front.answer_tokens() == DEFAULT_ANSWER_TOKENS
        await r.worker()
        await r.submit(front.job())
        await work_off(r, 1, 20)
        await front.estimates.look()
        assert front.answer_tokens() == 20
        assert (front.answer_tokens(max_tokens=12), front.answer_tokens(max_tokens=4_000)) == (12, 20)
        assert (front.job(max_tokens=12).answers, front.job(n=2).answers) == (0, 2)
        assert front.answer_tokens(model="other") == DEFAULT_ANSWER_TOKENS


async def test_a_class_without_answers_is_expected_to_be_as_the_others_are(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        front = Front(r)
        await r.worker()
        await r.submit(front.job(priority=Priority.STANDARD), front.job(priority=Priority.BATCH))
        await work_off(r, 1, 30)
        await work_off(r, 1, 900)
        await front.estimates.look()
        assert [front.answer_tokens(priority=priority) for priority in Priority] == [30, 30, 900]


async def test_answers_that_a_limit_cuts_do_not_make_others_look_short(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        front = Front(r)
        await r.worker()
        await r.submit(front.job())
        await work_off(r, 1, 400)
        await front.estimates.look()
        await r.submit(*(front.job(max_tokens=5) for _ in range(20)))
        await work_off(r, 20, 5)
        await front.estimates.look()
        assert front.answer_tokens() == 400


async def test_a_gateway_follows_and_keeps_what_it_knew_when_the_store_forgets(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        front = Front(r)
        front.estimates.start()
        for means, expected in (("9 9 70", 70), ("9 9 80", 80), (None, 80), ("9 9 90", 90)):
            await until(front.waits)
            redis_server.command("DEL", keys.fair(POOL))
            if means:
                redis_server.command("HSET", keys.fair(POOL), "m:0:m", means)
            front.clock.advance(PERIOD_S)
            await until(front.waits)
            assert front.answer_tokens() == expected
        await front.estimates.close()


async def test_a_store_that_cannot_be_asked_leaves_what_is_known(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        front = Front(r)
        redis_server.command("HSET", keys.fair(POOL), "m:0:m", "9 9 70")
        await front.estimates.look()
        await r.store.close()
        with pytest.raises(StoreUnavailable):
            await front.estimates.look()
        assert front.answer_tokens() == 70


# --- and what becomes of the wait -------------------------------------------------------------------------------------


async def test_the_wait_is_true_where_jobs_without_a_limit_come_to_jobs_with_one(redis_server: RedisServer) -> None:
    """The pace is measured on jobs whose limit is as long as their answers; then those without a limit queue up."""
    async with rig(redis_server) as r:
        front, clock = Front(r), ManualClock()
        sources = Sources(r.queue, HealthStore(r.store), Backlog(r.store))
        gauges = Gauges(sources, clock, SchedulerMetrics(), models={POOL: ("m",)})
        await r.worker()
        await r.submit(*(front.job(max_tokens=20) for _ in range(40)))
        await gauges.round()
        await work_off(r, 20, 20)
        clock.advance(4)
        await gauges.round()
        await work_off(r, 20, 20)
        await front.estimates.look()
        admitted = await r.submit(*(front.job() for _ in range(60)))
        jobs_per_s = 20 / 4
        told_s = [math.ceil(one.wait_ms or 0) / 1000 for one in admitted]
        assert told_s[10::10] == [pytest.approx(ahead / jobs_per_s, rel=0.1) for ahead in range(10, 60, 10)]
