"""Submissions taken back: those that came, those that come late, those that the store was too frozen to speak of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from common import keys
from common.contracts import OnDisconnect, State
from common.errors import StoreUnavailable, StoreUntouched
from common.queue import Cancelling, Submitted
from gateway.withdrawal import Withdrawals
from tests.support.clock import ManualClock
from tests.support.inside import opened
from tests.support.redis_server import RedisServer
from tests.support.runner import until
from tests.support.seeds import POOL, a_job, job_id, rig

# Long enough for any answer, short enough to be waited for.
PATIENCE_S: Final = 0.3


async def test_a_submission_that_comes_after_its_withdrawal_is_not_made(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.queue.withdraw(job_id(1))
        assert [answer.code for answer in await r.submit(a_job(1))] == [Submitted.DUPLICATE]
        seen = r.view()
        assert (seen.lanes, seen.deadlines) == ({}, set())
        assert await r.queue.get(job_id(1)) is None
        assert redis_server.command("PTTL", keys.job(POOL, job_id(1))) > 900_000


async def test_a_job_that_waits_or_runs_is_cancelled_by_its_withdrawal(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.running(a_job(1))
        await r.submit(a_job(2), a_job(3, delay_ms=5_000))
        for number in (1, 2, 3):
            await r.queue.withdraw(job_id(number))
        assert redis_server.command("LLEN", keys.control(POOL, "w")) == 1
        for number in (2, 3):
            record = await r.queue.get(job_id(number))
            assert record is not None and record.state is State.CANCELLED


async def test_a_withdrawal_can_be_sent_again(redis_server: RedisServer) -> None:
    async with rig(redis_server) as r:
        await r.submit(a_job(2))
        for _ in range(2):
            await r.queue.withdraw(job_id(1))
            await r.queue.withdraw(job_id(2))
        assert await r.queue.cancel(job_id(1)) is Cancelling.ENDED
        assert r.view().stats.get("cancelled") == 1


@pytest.mark.either_server
async def test_what_is_owed_is_worked_off_when_the_store_answers_again(own_server: RedisServer) -> None:
    async with rig(own_server, reply_timeout_s=PATIENCE_S) as r:
        clock = ManualClock()
        withdrawals = Withdrawals(r.queue, clock)
        withdrawals.start()
        await r.submit(a_job(1))
        own_server.freeze()
        # These are in the server's ear, and will be carried out.
        late = [asyncio.ensure_future(r.queue.submit(a_job(number))) for number in (2, 3)]
        for answer in await asyncio.gather(*late, return_exceptions=True):
            assert isinstance(answer, StoreUnavailable) and not isinstance(answer, StoreUntouched)
        for number in (1, 2, 3, 4):
            withdrawals.owe(job_id(number))
        await clock.until_sleeping()
        assert withdrawals.owed == 4
        own_server.thaw()
        clock.advance(1.0)
        await until(_nothing_owed(withdrawals))
        await withdrawals.close()
        assert [(await r.submit(a_job(number)))[0].code for number in (1, 2, 3, 4)] == [Submitted.DUPLICATE] * 4
        assert r.view().lanes == {}


def _nothing_owed(withdrawals: Withdrawals) -> Callable[[], Awaitable[bool]]:
    async def probe() -> bool:
        return withdrawals.owed == 0

    return probe


@pytest.mark.either_server
@pytest.mark.parametrize(
    ("more", "owed"),
    [
        ({"on_disconnect": OnDisconnect.CANCEL}, 1),
        ({"on_disconnect": OnDisconnect.CANCEL, "idempotency": "key"}, 0),
        ({"on_disconnect": OnDisconnect.CONTINUE}, 0),
    ],
)
async def test_whoever_leaves_while_its_job_is_submitted_has_it_taken_back_unless_it_goes_on_or_a_key_finds_it(
    own_server: RedisServer, tmp_path: Path, more: dict[str, Any], owed: int
) -> None:
    async with opened(own_server, tmp_path, reply_timeout_s=20) as parts:
        await parts.store.command("PING")
        own_server.freeze()
        leaving = asyncio.ensure_future(parts.admission.admit(a_job(1, **more)))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert parts.withdrawals.owed == owed
        own_server.thaw()


async def test_a_call_that_was_never_sent_says_so(own_server: RedisServer) -> None:
    async with rig(own_server) as r:
        own_server.kill()
        with pytest.raises(StoreUntouched):
            await r.queue.submit(a_job(1))


@pytest.mark.either_server
async def test_what_gathered_behind_a_call_that_hangs_was_never_sent(own_server: RedisServer) -> None:
    async with rig(own_server, reply_timeout_s=PATIENCE_S) as r:
        await r.store.command("PING")
        own_server.freeze()
        sent = r.store.command("INCR", "a")
        for _ in range(50):
            await asyncio.sleep(0)
        gathered = r.store.command("INCR", "b")
        answers = await asyncio.gather(sent, gathered, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable, StoreUntouched]
        own_server.thaw()
        assert await r.store.command("GET", "b") is None
