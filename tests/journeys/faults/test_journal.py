"""What a 202 promises: the job ends once, visibly, whatever dies on the way and whatever the queue's store forgets."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from common import keys
from common.ledger.database import FILE_NAME
from common.ledger.journal import JournalLedger
from tests.support.clock import stopwatch
from tests.support.fleet import Fleet
from tests.support.history import Journal as Reading
from tests.support.office import JOBS, Office, background, submit
from tests.support.postgres import PostgresServer
from tests.support.reader import Caller, Refused, numbered, until
from tests.support.redis_server import EVERY_WRITE_KEPT
from tests.support.runner import drawn_seed
from tests.support.runner import until as until_answered
from tests.support.stage import HANG_LIMIT_S, POOL, say

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def _office(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    place = tmp_path_factory.mktemp("journal")
    url = f"sqlite+aiosqlite:///{place / FILE_NAME}"
    settings: dict[str, Any] = {}
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        settings["database_url"] = url = server.fresh()
    fleet = Fleet(place, gateways=2, workers=2, schedulers=2, valkey=EVERY_WRITE_KEPT, lease_s=2, **settings)
    try:
        yield Office(fleet.start(), url)
    finally:
        fleet.stop()


@pytest.fixture
def office(_office: Office) -> Iterator[Office]:
    """The fleet with every member at work; afterwards no member may have logged a traceback."""
    _office.mend()
    yield _office
    _office.mend()
    for name, said in _office.fleet.news().items():
        assert "Traceback" not in said, f"{name}:\n{said[-6000:]}"


async def _started(office: Office, *job_ids: str) -> None:
    def running() -> bool:
        return all(office.redis.command("HGET", keys.job(POOL, one), "state") == b"running" for one in job_ids)

    await until(running, "they did not begin")


# --- the store loses everything ---------------------------------------------------------------------------------------


async def test_two_hundred_open_jobs_survive_a_store_that_forgets_everything(office: Office) -> None:
    async with office.caller() as caller:
        ended = [await submit(caller, numbered(3)) for _ in range(5)]
        for job_id in ended:
            await caller.ended(job_id)
        assert await office.ends(ended) == {"succeeded": 5}
        delayed = await submit(caller, numbered(3), delay_ms=3_000)
        ids = await asyncio.gather(*(_taken(caller, numbered(10 + number % 20, token_ms=50)) for number in range(199)))
        await until(lambda: office.redis.command("HLEN", _holder(office)) > 0, "nothing runs")
        office.redis.command("FLUSHALL")
        lost_s = time.monotonic()
        # Visible all the time, the ended ones with their answers.
        records = [await caller.job(job_id) for job_id in (*ids, delayed, *ended)]
        assert {record["status"] for record in records[:199]} <= {"queued", "running", "succeeded"}
        assert [record["result"]["choices"][0]["message"]["content"] for record in records[200:]] == [" 0 1 2"] * 5
        records = await asyncio.gather(*(caller.ended(job_id, 60) for job_id in (*ids, delayed)))
        say("everything lost under 200 open jobs: all of them had ended after", lost_s)
    assert Counter(record["status"] for record in records) == {"succeeded": 200}
    assert await office.ends([*ids, delayed, *ended]) == {"succeeded": 205}


async def _taken(caller: Caller, body: dict[str, Any]) -> str:
    """The id of a job accepted by the ledger, now or, where a crowded machine has it refuse, a little later."""
    while True:
        try:
            return await submit(caller, body)
        except Refused as refused:
            assert refused.code == "ledger_unavailable", refused
            await asyncio.sleep(0.1)


def _holder(office: Office) -> str:
    names: list[bytes] = office.redis.command("ZRANGE", keys.workers(POOL), 0, -1)
    return keys.held(POOL, names[0].decode()) if names else keys.held(POOL, "nobody")


async def test_the_list_shows_the_same_jobs_before_and_after_the_loss(office: Office) -> None:
    async with office.caller() as caller:
        ids = [await submit(caller, numbered(2)) for _ in range(12)]
        for job_id in ids:
            await caller.ended(job_id)
        assert await office.ends(ids) == {"succeeded": 12}
        assert await _pages(caller, 13) == ids[::-1]
        office.redis.command("FLUSHALL")
        assert await _pages(caller, 13) == ids[::-1]
        office.mend()
        newer = await submit(caller, numbered(2))
        await caller.ended(newer)
        assert await _pages(caller, 13) == [newer, *ids[::-1]]


async def _pages(caller: Caller, most: int) -> list[str]:
    """The newest jobs that were made of two tokens, in pages of five, each with its end."""
    seen: list[str] = []
    after = ""
    while len(seen) < most:
        page = (await caller.http.get(f"{caller.next_url()}{JOBS}?limit=5{after}")).json()
        for row in page["data"]:
            if row["result"] is None or row["usage"]["completion_tokens"] != 2:
                return seen
            seen.append(row["id"])
        if not page["has_more"]:
            break
        after = f"&after={page['data'][-1]['id']}"
    return seen


async def test_a_job_cancelled_while_the_store_does_not_know_it_never_comes_back(office: Office) -> None:
    async with office.caller() as caller:
        hanging = await submit(caller, numbered(3, first_token_ms=60_000))
        known = await submit(caller, numbered(3, first_token_ms=60_000))
        await _started(office, hanging, known)
        told = await caller.http.post(f"{caller.next_url()}{JOBS}/{known}/cancel")
        assert told.status_code == 200
        await office.freeze_schedulers()
        office.redis.command("FLUSHALL")
        answer = await caller.http.post(f"{caller.next_url()}{JOBS}/{hanging}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled"), answer.text
        office.thaw_schedulers()
        assert await office.ends([hanging, known]) == {"cancelled": 2}
        later = await submit(caller, numbered(2))
        await caller.ended(later)
        assert (await caller.job(hanging))["status"] == (await caller.job(known))["status"] == "cancelled"


async def test_a_job_whose_time_was_over_when_it_was_found_lost_is_told_so(office: Office) -> None:
    async with office.caller() as caller:
        # First of all, since nobody may find the job late before it is lost.
        await office.freeze_schedulers()
        job_id = await submit(caller, numbered(3, first_token_ms=60_000), deadline_ms=2_000)
        office.redis.command("FLUSHALL")
        lost_s = time.monotonic()
        await until(lambda: time.monotonic() - lost_s > 2.1, "time stands still")
        office.thaw_schedulers()
        record = await caller.ended(job_id)
    assert (record["status"], record["error"]["code"]) == ("failed", "redis_lost")
    assert record["result"] is None and record["finished_at"] is not None


async def test_the_same_key_is_the_same_job_also_after_the_loss(office: Office) -> None:
    async with office.caller() as caller:
        headers = {"idempotency-key": f"key-{time.time_ns()}"}
        body = background(numbered(2))
        first = await caller.http.post(caller.next_url() + JOBS, json=body, headers=headers)
        await caller.ended(first.json()["id"])
        assert await office.ends([first.json()["id"]]) == {"succeeded": 1}
        office.redis.command("FLUSHALL")
        again = await caller.http.post(caller.next_url() + JOBS, json=body, headers=headers)
        other = await caller.http.post(caller.next_url() + JOBS, json=background(numbered(3)), headers=headers)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (202, first.json()["id"], "succeeded")
    assert (other.status_code, other.json()["error"]["param"]) == (422, "Idempotency-Key")


# --- the store goes back in time --------------------------------------------------------------------------------------


async def test_a_store_restored_from_an_older_copy_loses_and_doubles_nothing(office: Office) -> None:
    async with office.caller() as caller:
        early = [await submit(caller, numbered(4, first_token_ms=1_500)) for _ in range(8)]
        await _started(office, *early)
        copy = _copy_of_store(office)
        late = [await submit(caller, numbered(4)) for _ in range(20)]
        for job_id in (*early, *late):
            await caller.ended(job_id)
        assert await office.ends([*early, *late]) == {"succeeded": 28}
        open_ids = [await submit(caller, numbered(4, first_token_ms=4_000)) for _ in range(20)]
        await _started(office, *open_ids)
        _restore(office, copy)
        say_s = time.monotonic()
        records = await asyncio.gather(*(caller.ended(job_id, 60) for job_id in (*early, *late, *open_ids)))
        say("an older copy of the store under 20 open jobs: all of them had ended after", say_s)
        # What the older copy ran again was stopped, and its first end is what callers see.
        assert {record["status"] for record in records} == {"succeeded"}
        assert {record["result"]["choices"][0]["message"]["content"] for record in records} == {" 0 1 2 3"}
    assert await office.ends([*early, *late, *open_ids]) == {"succeeded": 48}


def _copy_of_store(office: Office) -> Path:
    """What the append-only file has now, aside."""
    copy = office.fleet.directory / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    office.redis.freeze()
    shutil.copytree(office.fleet.directory / "appendonlydir", copy)
    office.redis.thaw()
    return copy


def _restore(office: Office, copy: Path) -> None:
    office.redis.kill()
    shutil.rmtree(office.fleet.directory / "appendonlydir")
    shutil.copytree(copy, office.fleet.directory / "appendonlydir")
    office.redis.start()


# --- processes die at each step ---------------------------------------------------------------------------------------


async def test_a_gateway_killed_between_the_ledger_and_the_queue_leaves_a_job_that_runs(office: Office) -> None:
    async with office.caller() as caller:
        seen = await submit(caller, numbered(1))
        await caller.ended(seen)
        assert await office.ends([seen]) == {"succeeded": 1}
        job_id = await _left_by_a_killed_gateway(office, caller)
        record = await caller.ended(job_id)
    assert (record["status"], record["metadata"]) == ("succeeded", {"told": False})
    assert await office.ends([job_id]) == {"succeeded": 1}


async def _left_by_a_killed_gateway(office: Office, caller: Caller) -> str:
    """The id of a job that the ledger has, and the queue has not, and whose caller heard nothing."""
    for _ in range(5):
        before = await _open_ids(office)
        # Reading goes on, so the gateway gets as far as the commit; what writes waits.
        office.redis.command("CLIENT", "PAUSE", 30_000, "WRITE")
        asking = asyncio.create_task(
            caller.http.post(office.fleet.url(0) + JOBS, json=background(numbered(3), metadata={"told": False}))
        )
        (job_id,) = await until_answered(lambda before=before: _newer(office, before))
        office.fleet.kill("gateway-0")
        try:
            await asking
        except httpx.TransportError:
            return job_id
        finally:
            office.redis.command("CLIENT", "UNPAUSE")
        # It had given the store up, and answered, before a crowded machine came to kill it.
        await asyncio.to_thread(office.fleet.start_again, "gateway-0")
        await caller.ended(job_id)
    pytest.fail("each gateway answered before it was killed")


async def _newer(office: Office, before: set[str]) -> set[str]:
    return await _open_ids(office) - before


async def _open_ids(office: Office) -> set[str]:
    async with office.ledger() as ledger:
        return set(await ledger.open_ids(POOL, after="", created_by_ms=2**52, most=1_000))


async def test_a_store_that_freezes_after_the_commit_costs_the_caller_nothing_but_time(office: Office) -> None:
    async with office.caller() as caller:
        office.redis.command("CLIENT", "PAUSE", 30_000, "WRITE")
        began_s = time.monotonic()
        async with stopwatch() as served_s:
            job_id = await submit(caller, numbered(3))
            took_s = served_s()
        say("the store took no writes: a job was accepted by the ledger after", began_s)
        office.redis.command("CLIENT", "UNPAUSE")
        assert (await caller.ended(job_id))["status"] == "succeeded"
    assert took_s < HANG_LIMIT_S
    assert await office.ends([job_id]) == {"succeeded": 1}


async def test_a_refused_job_leaves_no_row_that_would_run_later(office: Office) -> None:
    async with office.caller() as caller, office.ledger() as ledger:
        open_before = (await ledger.counts()).get("open", 0)
        used = int(office.redis.command("INFO", "memory").split(b"used_memory:")[1].split(b"\r")[0])
        office.redis.command("CONFIG", "SET", "maxmemory", used // 2)
        try:
            with pytest.raises(Refused) as refused:
                await submit(caller, numbered(2))
            assert (refused.value.status, refused.value.code) == (503, "store_full")
        finally:
            office.redis.command("CONFIG", "SET", "maxmemory", 0)

        async def as_before() -> bool:
            return (await ledger.counts()).get("open", 0) <= open_before

        await until_answered(as_before)


async def test_every_job_that_was_accepted_while_gateways_and_schedulers_were_killed_ends_once(office: Office) -> None:
    draw = random.Random(drawn_seed())
    accepted: list[str] = []
    unknown = 0
    done = asyncio.Event()

    async def kill() -> None:
        for _ in range(4):
            await asyncio.sleep(0.1)
            for _ in range(draw.randrange(8)):
                await asyncio.sleep(0.05)
            name = draw.choice(["gateway-0", "gateway-1", "scheduler-0", "scheduler-1", "worker-0"])
            await asyncio.to_thread(office.fleet.kill, name)
            await asyncio.to_thread(office.fleet.start_again, name)
        done.set()

    async def ask(caller: Caller) -> None:
        nonlocal unknown
        while not done.is_set():
            try:
                accepted.append(await submit(caller, numbered(3, token_ms=20)))
            except (httpx.TransportError, Refused):
                unknown += 1
                await asyncio.sleep(0.05)

    async with office.caller() as caller:
        killing = asyncio.create_task(kill())
        await asyncio.gather(*(ask(caller) for _ in range(4)))
        await killing
        records = await asyncio.gather(*(caller.ended(job_id, 40) for job_id in accepted))
    assert len(accepted) > 20, f"only {len(accepted)} were accepted, {unknown} refused"
    assert {record["status"] for record in records} == {"succeeded"}
    assert await office.ends(accepted) == {"succeeded": len(accepted)}
    async with office.ledger() as ledger:
        # Those whose callers never heard end as well.
        await _none_open(ledger)


async def _none_open(ledger: JournalLedger) -> None:
    async def none() -> bool:
        return not (await ledger.counts()).get("open", 0)

    await until_answered(none, limit_s=30)


# --- the ledger's database is away ------------------------------------------------------------------------------------


async def test_postgresql_restarted_in_the_middle_costs_refusals_and_nobackground(  # noqa: PLR0915
    office: Office, postgres: PostgresServer
) -> None:
    if office.url.startswith("sqlite"):
        pytest.skip("a file has no server to restart")
    accepted: list[str] = []
    codes: Counter[str] = Counter()
    back = asyncio.Event()

    async def ask(caller: Caller) -> None:
        while not back.is_set() or not accepted:
            try:
                accepted.append(await submit(caller, numbered(3, token_ms=20)))
            except Refused as refused:
                codes[f"{refused.status} {refused.code}"] += 1
                await asyncio.sleep(0.05)

    async with office.caller() as caller:
        asking = [asyncio.create_task(ask(caller)) for _ in range(4)]
        await until(lambda: len(accepted) > 20, "nothing was accepted")
        await asyncio.to_thread(postgres.kill)
        try:
            await until(lambda: codes, "nothing was refused")
            reading = Reading(tokens=5)
            # The way of a chat does not lead through the ledger.
            await caller.chat(numbered(5), reading)
            assert reading.problems == []
        finally:
            await asyncio.to_thread(postgres.start)
        before = len(accepted)
        await until(lambda: len(accepted) > before + 20, "nothing was accepted again")
        back.set()
        await asyncio.gather(*asking)
        records = await asyncio.gather(*(caller.ended(job_id, 40) for job_id in accepted))
    assert set(codes) == {"503 ledger_unavailable"}
    assert {record["status"] for record in records} == {"succeeded"}
    assert await office.ends(accepted) == {"succeeded": len(accepted)}
    async with office.ledger() as ledger:
        # Nobody whose caller was refused runs on for ever.
        await _none_open(ledger)


async def test_a_frozen_postgresql_holds_no_caller_for_more_than_two_seconds(
    office: Office, postgres: PostgresServer
) -> None:
    if office.url.startswith("sqlite"):
        pytest.skip("a file can't be frozen")
    async with office.caller() as caller:
        seen = await submit(caller, numbered(2))
        await caller.ended(seen)
        postgres.freeze()
        try:
            began_s = time.monotonic()
            async with stopwatch() as served_s:
                with pytest.raises(Refused) as refused:
                    await submit(caller, numbered(2))
                took_s = served_s()
            say("PostgreSQL frozen: a job was refused after", began_s)
            # What the store knows needs no ledger.
            assert (await caller.job(seen))["status"] == "succeeded"
        finally:
            postgres.thaw()
        async with asyncio.timeout(20):
            while True:
                try:
                    again = await submit(caller, numbered(2))
                    break
                except Refused:
                    await asyncio.sleep(0.1)
        await caller.ended(again)
    assert (refused.value.status, refused.value.code) == (503, "ledger_unavailable") and took_s < HANG_LIMIT_S
    assert await office.ends([seen, again]) == {"succeeded": 2}
