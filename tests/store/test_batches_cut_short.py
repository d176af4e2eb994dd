"""Batches whose owner dies or store forgets, that are cancelled or out of time: no line is lost, none told twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from common.contracts import Job
from common.errors import Fenced
from common.ledger.journal import JournalLedger
from gateway.batches.desk import Held
from gateway.batches.records import line_job_id
from gateway.batches.steps import Steps
from tests.support.batch_desk import Death, Fate, Mortal, Open, Works, ids, line, lines, named
from tests.support.seeds import POOL

pytestmark = pytest.mark.timeout(60)

# --- deaths -----------------------------------------------------------------------------------------------------------


async def die_and_go_on(w: Works, dies_at: int) -> bool:
    """Whether the first owner died; then another went on, and every line was run once and told once."""
    w.done.clear()
    batch = await w.create(lines(range(5)) + line(9, body={"model": "none", "messages": []}))
    fate = Fate(dies_at)
    desk = w.mortal(fate)
    held = await w.take()
    held = Held(desk, held.batch)
    with suppress(Death):
        await w.work_on(held, desk)
    w.later(10_001)
    w.clock.advance(60)
    batch = await w.batch(batch)
    if batch.ended_ms is None:
        batch = await w.to_the_end(batch)
    assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 6, 5, 1)
    assert ids(await w.file(batch, "output")) == named(range(5)) and ids(await w.file(batch, "error")) == ["c9"]
    assert (batch.input_tokens, batch.output_tokens) == (15, 20)
    assert Counter(w.done.values()) == {1: 5}
    return fate.died


async def test_an_owner_may_die_at_some_points_and_no_line_is_lost_or_repeated(either: Open) -> None:
    async with either() as w:
        for dies_at in range(3, 60, 16):
            assert await die_and_go_on(w, dies_at)


@pytest.mark.lengthy
async def test_an_owner_may_die_at_any_point_and_no_line_is_lost_or_repeated(either: Open) -> None:
    async with either() as w:
        dies_at = 1
        while await die_and_go_on(w, dies_at):
            dies_at += 2
        assert dies_at > 60


class HeldUp(Mortal):
    """What it stands for, but for calls of `accept`, which wait until they are let go."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner, Fate())
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()

    async def accept(self, job: Job) -> Any:
        """As ever, once it is let go."""
        self.reached.set()
        await self.let_go.wait()
        return await self._inner.accept(job)


async def test_an_owner_that_slept_past_its_lease_makes_no_second_job_of_a_line(either: Open) -> None:
    async with either() as w:
        batch = await w.create(lines(range(4)))
        journal = HeldUp(w.desk.journal)
        desk = replace(w.desk, journal=journal)
        sleeper = asyncio.create_task(w.work_on(await w.take(desk), desk))
        await journal.reached.wait()
        w.later(10_001)
        batch = await w.to_the_end(batch)
        journal.let_go.set()
        with pytest.raises(Fenced):
            await sleeper
        assert batch.completed == 4 and await w.work() == 0
        assert set(w.done.values()) == {1} and len(w.done) == 4


async def test_a_store_that_lost_everything_is_refilled_and_no_finished_line_is_repeated(desk: Open) -> None:
    async with desk() as w:
        batch = await w.create(lines(range(6)))
        held = await w.take()
        steps = Steps(w.desk, held)
        await steps.step()
        await steps.step()
        assert await w.work(most=2) == 2
        w.server.command("FLUSHALL")
        await w.scheduler.round()
        await w.work_on(held)
        await steps.close()
        batch = await w.batch(batch)
        assert ids(await w.file(batch, "output")) == named(range(6)) and set(w.done.values()) == {1}


async def test_ends_are_kept_for_a_batch_whose_gateways_were_away_for_longer_than_results_are_kept(
    either: Open,
) -> None:
    async with either(result_retention_s=60, idempotency_retention_s=60) as w:
        batch = await w.create(lines(range(4)))
        held = await w.take()
        steps = Steps(w.desk, held)
        await steps.step()
        await steps.step()
        await steps.close()
        assert await w.work() == 4
        w.later(10_000_000)
        w.clock.advance(10_000)
        w.server.command("FLUSHALL")
        await w.scheduler.round()
        batch = await w.to_the_end(batch)
        assert (batch.status, batch.completed) == ("completed", 4) and set(w.done.values()) == {1}
        w.clock.advance(10_000)
        await w.scheduler.round()
        assert await w.parts.journal.record(line_job_id(POOL, batch.id, 1)) is None


async def test_without_a_journal_a_batch_goes_on_by_its_own_rows(desk: Open) -> None:
    async with desk(journal="off") as w:
        assert await die_and_go_on(w, 37)
        assert await JournalLedger(w.parts.database).counts() == {}


# --- the end before its time ------------------------------------------------------------------------------------------


@pytest.mark.lengthy
async def test_a_cancelled_batch_keeps_what_has_ended_and_says_of_the_rest_that_it_was_cancelled(either: Open) -> None:
    async with either() as w:
        batch = await w.create(lines(range(1_005)))
        held = await w.take()
        steps = Steps(w.desk, held)
        await steps.step()
        await steps.step()
        assert await w.work(most=3) == 3
        await w.parts.batches.cancel(batch.id, now_ms=await w.parts.queue.now_ms())
        await held.look()
        assert held.batch.status == "cancelling"
        await w.work_on(held)
        await steps.close()
        batch = await w.batch(batch)
        assert (batch.status, batch.completed, batch.failed, batch.total) == ("cancelled", 3, 0, 1_005)
        assert batch.cancelling_ms is not None and batch.ended_ms is not None
        assert ids(await w.file(batch, "output")) == named(range(3))
        rest = await w.file(batch, "error")
        assert sorted(ids(rest)) == sorted(named(range(3, 1_005)))
        assert {(row["response"], row["error"]["code"]) for row in rest} == {(None, "batch_cancelled")}
        assert len(w.done) == 3 and await w.work() == 0


async def test_lines_of_a_cancelled_batch_do_not_run_when_the_store_that_lost_them_is_refilled(desk: Open) -> None:
    async with desk() as w:
        batch = await w.create(lines(range(3)))
        held = await w.take()
        steps = Steps(w.desk, held)
        await steps.step()
        await steps.step()
        w.server.command("FLUSHALL")
        await w.parts.batches.cancel(batch.id, now_ms=await w.parts.queue.now_ms())
        await held.look()
        await steps.step()
        await w.scheduler.round()
        assert await w.work() == 0
        await w.work_on(held)
        await steps.close()
        batch = await w.batch(batch)
        assert (batch.status, batch.completed) == ("cancelled", 0) and not w.done
        assert {row["error"]["code"] for row in await w.file(batch, "error")} == {"batch_cancelled"}


async def test_a_batch_that_is_cancelled_before_it_was_looked_at_has_no_files(desk: Open) -> None:
    async with desk() as w:
        batch = await w.create(lines(range(3)))
        await w.parts.batches.cancel(batch.id, now_ms=5)
        batch = await w.to_the_end(batch)
        assert (batch.status, batch.total, batch.output_file_id, batch.error_file_id) == ("cancelled", 0, None, None)


@pytest.mark.parametrize("points", [range(2, 40, 18), pytest.param(range(2, 40, 6), marks=pytest.mark.lengthy)])
async def test_a_cancelled_batch_outlives_the_death_of_whoever_ends_it(desk: Open, points: range) -> None:
    async with desk() as w:
        for dies_at in points:
            w.done.clear()
            batch = await w.create(lines(range(4)))
            held = await w.take()
            steps = Steps(w.desk, held)
            await steps.step()
            await steps.step()
            await w.work(most=1)
            await w.parts.batches.cancel(batch.id, now_ms=await w.parts.queue.now_ms())
            mortal = w.mortal(Fate(dies_at))
            with suppress(Death):
                await held.look()
                await w.work_on(Held(mortal, held.batch), mortal)
            w.later(10_001)
            w.clock.advance(60)
            batch = await w.batch(batch)
            if batch.ended_ms is None:
                batch = await w.to_the_end(batch)
            output, error = await w.file(batch, "output"), await w.file(batch, "error")
            assert (batch.status, len(output)) == ("cancelled", batch.completed)
            assert sorted(ids(output) + ids(error)) == named(range(4))
            assert set(w.done.values()) == {1}


async def test_a_batch_whose_time_is_over_keeps_what_has_ended_and_says_of_the_rest_that_it_expired(desk: Open) -> None:
    async with desk(max_lane_depth=4) as w:
        now_ms = await w.parts.queue.now_ms()
        batch = await w.create(lines(range(6)), expires_ms=now_ms + 60_000)
        held = await w.take()
        steps = Steps(w.desk, held)
        await steps.step()
        await steps.step()
        await steps.close()
        assert await w.work(most=1) == 1
        w.later(60_001)
        held = await w.take()
        await w.work_on(held)
        batch = await w.batch(batch)
        assert (batch.status, batch.completed, batch.failed) == ("expired", 1, 0)
        assert ids(await w.file(batch, "output")) == ["c0"]
        rest = await w.file(batch, "error")
        assert sorted(ids(rest)) == named(range(1, 6)) and {row["error"]["code"] for row in rest} == {"batch_expired"}


async def test_the_files_of_a_batch_go_when_it_says(desk: Open) -> None:
    async with desk() as w:
        batch = await w.to_the_end(await w.create(lines([1]), output_life_s=3_600))
        file = await w.parts.files.get(batch.output_file_id or "", "t", now_ms=0)
        assert file is not None and (file.expires_ms or 0) - file.created_ms == 3_600_000
        assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")
