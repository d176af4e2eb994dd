"""Batches over a real store and ledger: every line ends once, whatever dies, is full, is lost, or is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from common import keys
from common.contracts import Failure, Outcome, State
from common.errors import Fenced
from common.ledger.batches import Batch
from common.queue import Settlement
from gateway.batches.desk import Held
from gateway.batches.progress import AT_ONCE
from gateway.batches.runner import LONGEST_REST_S, MOST_AT_ONCE, Runner
from gateway.batches.steps import Steps
from tests.support.batch_desk import MODEL, WON, Open, ids, line, lines, named
from tests.support.runner import until
from tests.support.seeds import POOL

pytestmark = pytest.mark.timeout(60)

FAILED = Settlement(Outcome(State.FAILED, failure=Failure("upstream_error", "It broke.")))


def errors_of(batch: Batch) -> list[tuple[str, int | None]]:
    """(code, line) of each of a batch's errors."""
    return [(one["code"], one["line"]) for one in orjson.loads(batch.errors or b"{}")["data"]]


# --- from beginning to end --------------------------------------------------------------------------------------------


async def test_every_line_is_answered_once_and_the_counts_say_so(either: Open) -> None:
    async with either() as w:
        batch = await w.to_the_end(await w.create(b"\xef\xbb\xbf" + lines(range(150))))
        assert (batch.status, batch.total, batch.completed, batch.failed) == ("completed", 150, 150, 0)
        assert (batch.input_tokens, batch.output_tokens, batch.model) == (450, 600, MODEL)
        assert ids(await w.file(batch, "output")) == named(range(150))
        assert batch.error_file_id is None and set(w.done.values()) == {1}


async def test_a_line_that_fails_goes_into_the_error_file_and_the_others_go_on(desk: Open) -> None:
    async with desk() as w:
        bad = [line(1, body={"model": MODEL, "messages": []}), line(2, body={"model": "none", "messages": []})]
        made = await w.create(b"\n".join([line(0), *bad, line(3)]))
        held = await w.take()
        await Steps(w.desk, held).step()
        await Steps(w.desk, held).step()
        assert await w.work(FAILED, most=1) == 1
        await w.work_on(held)
        batch = await w.batch(made)
        assert (batch.status, batch.completed, batch.failed) == ("completed", 1, 3)
        assert ids(await w.file(batch, "output")) == ["c3"]
        told = {row["custom_id"]: row["response"] for row in await w.file(batch, "error")}
        assert [told[f"c{number}"]["status_code"] for number in range(3)] == [502, 400, 400]
        assert told["c1"]["body"]["error"]["param"] == "messages"
        assert told["c0"]["body"]["error"]["code"] == "upstream_error"


async def test_an_answer_that_cannot_be_told_fails_its_line_alone(desk: Open) -> None:
    async with desk() as w:
        made = await w.create(lines(range(3)))
        held = await w.take()
        await Steps(w.desk, held).step()
        await Steps(w.desk, held).step()
        assert await w.work(replace(WON, result=b'{"choices":[{"index":0}]}'), most=1) == 1
        await w.work_on(held)
        batch = await w.batch(made)
        assert (batch.status, batch.completed, batch.failed) == ("completed", 2, 1)
        assert ids(await w.file(batch, "output")) == ["c1", "c2"]
        (row,) = await w.file(batch, "error")
        assert (row["custom_id"], row["response"]["status_code"]) == ("c0", 500)
        assert row["response"]["body"]["error"]["code"] == "internal_error"


async def test_a_batch_of_failures_alone_is_completed_without_an_output_file(desk: Open) -> None:
    async with desk() as w:
        body = {"model": "unknown", "messages": [{"role": "user", "content": "x"}]}
        batch = await w.to_the_end(await w.create(line(0, body=body)))
        assert (batch.status, batch.completed, batch.failed, batch.output_file_id) == ("completed", 0, 1, None)
        (row,) = await w.file(batch, "error")
        assert (row["response"]["status_code"], row["response"]["body"]["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("data", "errors"),
    [
        (b"", [("empty_file", None)]),
        (lines([1, 1, 2]) + b"no", [("duplicate_custom_id", 2), ("invalid_json_line", 4)]),
        (line(0) + b"\n" + line(1, custom_id="x" * 9_000), [("line_too_long", 2)]),
    ],
)
async def test_an_input_that_is_not_valid_fails_with_its_lines_and_runs_nothing(
    desk: Open, data: bytes, errors: list[tuple[str, int | None]]
) -> None:
    async with desk(max_body_bytes=4_096) as w:
        batch = await w.to_the_end(await w.create(data))
        assert (batch.status, batch.total, errors_of(batch)) == ("failed", 0, errors)
        assert batch.output_file_id is None and not w.done


@pytest.mark.lengthy
async def test_only_so_many_lines_are_open_at_once(desk: Open) -> None:
    async with desk(max_lane_depth=2_000) as w:
        await w.create(lines(range(1_100)))
        held = await w.take()
        steps = Steps(w.desk, held)
        await steps.step()
        await steps.step()
        assert w.server.command("ZCARD", keys.lane(POOL, f"2:{MODEL}")) == 1_000
        await steps.close()


async def test_a_full_queue_only_takes_longer(desk: Open) -> None:
    async with desk(max_lane_depth=7, max_waiting_jobs=5) as w:
        batch = await w.create(lines(range(35)))
        held = await w.take()
        steps = Steps(w.desk, held)
        await steps.step()
        await steps.step()
        # Of what was refused no more is asked for at once: the first group is all that was begun.
        assert held.batch.next_line == AT_ONCE + 1
        for _ in range(400):
            if held.batch.ended_ms is not None:
                break
            if not await steps.step():
                await w.work()
                w.clock.advance(31)
                await held.look()
        await steps.close()
        batch = await w.batch(batch)
        assert (batch.status, batch.completed, batch.failed) == ("completed", 35, 0)
        assert set(w.done.values()) == {1} and len(w.done) == 35


async def test_lines_are_left_out_of_the_list_of_jobs_and_are_found_under_their_ids(desk: Open) -> None:
    async with desk() as w:
        batch = await w.to_the_end(await w.create(lines([7])))
        assert await w.parts.listing.page("t", most=10, after=None) == []
        (row,) = await w.file(batch, "output")
        job_id = row["response"]["request_id"]
        record = await w.parts.queue.get(job_id)
        assert record is not None and record.job.metadata == {"batch_id": batch.id, "custom_id": "c7"}
        assert await w.parts.journal.record(job_id) is not None


# --- whose it is ------------------------------------------------------------------------------------------------------


async def test_a_batch_has_one_owner_at_a_time_and_a_late_one_writes_nothing(either: Open) -> None:
    async with either() as w:
        made = await w.create(lines(range(3)))
        stalled = await w.take()
        assert await w.desk.batches.take("other", now_ms=await w.parts.queue.now_ms(), lease_ms=10_000) is None
        w.later(10_001)
        other = await w.take()
        assert other.batch.fence == stalled.batch.fence + 1
        writes: list[Callable[[], Any]] = [
            lambda: stalled.write({"status": "failed"}),
            lambda: stalled.begin([], {"next_line": 9}),
            lambda: stalled.end([], {"failed": 9}),
            lambda: w.desk.batches.renew(stalled.batch, now_ms=0, lease_ms=1),
            lambda: w.desk.lines.ask_cancel(stalled.batch),
            lambda: w.desk.lines.rename(stalled.batch, 1, "x"),
            stalled.look,
        ]
        before = await w.batch(made)
        for write in writes:
            with pytest.raises(Fenced):
                await write()
        await stalled.release()
        assert await w.batch(made) == before
        await w.work_on(other)
        assert (await w.batch(made)).completed == 3


async def test_a_batch_that_was_released_or_renewed_is_taken_when_its_lease_says_so(desk: Open) -> None:
    async with desk() as w:
        await w.create(lines([1]))
        held = await w.take()
        w.later(9_000)
        w.clock.advance(9)
        await held.renew()
        w.later(9_000)
        assert await w.desk.batches.take("x", now_ms=await w.parts.queue.now_ms(), lease_ms=1) is None
        await held.release()
        assert (await w.take()).batch.id == held.batch.id


async def test_the_batch_that_was_left_alone_longest_is_taken_first(either: Open) -> None:
    async with either() as w:
        first, second = await w.create(lines([1])), await w.create(lines([2]))
        one = await w.take()
        w.later(100)
        await one.release()
        assert {one.batch.id, (await w.take()).batch.id} == {first.id, second.id}


async def test_a_tenant_with_many_batches_keeps_no_other_tenants_from_being_taken(either: Open) -> None:
    async with either() as w:
        for tenant in ("a", "a", "a", "b", "b", "c"):
            await w.create(lines([1]), tenant=tenant)
            w.later(1)
        held = [await w.take() for _ in range(6)]
        assert [one.batch.tenant for one in held] == ["a", "b", "c", "a", "b", "a"]
        # Of one tenant's the one that was left alone longest, as before.
        w.later(1)
        await held[3].release()
        w.later(1)
        await held[0].release()
        assert [(await w.take()).batch.id for _ in range(2)] == [held[3].batch.id, held[0].batch.id]


async def test_an_ended_batch_is_nobodys(desk: Open) -> None:
    async with desk() as w:
        batch = await w.to_the_end(await w.create(lines([1])))
        w.later(100_000)
        assert await w.desk.batches.take("x", now_ms=await w.parts.queue.now_ms(), lease_ms=1) is None
        with pytest.raises(Fenced):
            await Held(w.desk, batch).write({"completed": 9})


# --- the process that does it -----------------------------------------------------------------------------------------


async def test_a_runner_takes_batches_ends_them_and_sweeps_what_they_left(either: Open) -> None:
    async with either() as w:
        runner = Runner(replace(w.desk, clock=w.parts.clock))
        made = [await w.create(lines(range(number))) for number in (1, 2, 3)]
        runner.wake()

        async def ended() -> bool:
            await w.work()
            return all([(await w.batch(batch)).status == "completed" for batch in made])

        await until(ended)
        await runner.close()
        assert sum(w.done.values()) == 6
        w.later(120_000)
        assert await runner.sweep() > 0
        assert await w.desk.lines.records(made[0].id, ("good",), after=0, most=9, most_bytes=9) == []
        assert await w.file(await w.batch(made[0]), "output") != []
        assert await runner.sweep() == 0


async def test_batches_that_only_wait_give_their_places_to_others_and_else_keep_them(either: Open) -> None:
    async with either() as w:
        runner = Runner(w.desk)
        waiting = [await w.create(lines([1]), tenant="a") for _ in range(MOST_AT_ONCE)]
        runner.wake()
        try:
            for _ in range(5):
                await w.clock.until_sleeping(MOST_AT_ONCE)
                w.clock.advance(LONGEST_REST_S)
            assert {(await w.batch(batch)).fence for batch in waiting} == {1}
            other = await w.create(lines([1]), tenant="b")
            # In far less than a slice.
            for _ in range(2):
                await w.clock.until_sleeping(MOST_AT_ONCE)
                w.clock.advance(LONGEST_REST_S)

            async def begun() -> bool:
                return (await w.batch(other)).next_line == 2

            await until(begun)
        finally:
            await runner.close()


async def test_batches_that_all_only_wait_change_places_seldom(desk: Open) -> None:
    async with desk() as w:
        runner = Runner(w.desk)
        waiting = [await w.create(lines([1])) for _ in range(MOST_AT_ONCE + 1)]
        runner.wake()
        try:
            for _ in range(8):
                await w.clock.until_sleeping(MOST_AT_ONCE)
                w.clock.advance(LONGEST_REST_S)
        finally:
            await runner.close()
        # The new one had its turn, and one gave way to it, which has its own only after a while.
        assert [(await w.batch(batch)).fence for batch in waiting] == [1] * len(waiting)


async def test_a_runner_that_stops_leaves_its_batches_to_others_at_once(desk: Open) -> None:
    async with desk() as w:
        batch = await w.create(lines([1]))
        runner = Runner(replace(w.desk, clock=w.parts.clock))
        runner.wake()

        async def begun() -> bool:
            return (await w.batch(batch)).next_line == 2

        await until(begun)
        await runner.close()
        assert (await w.take()).batch.id == batch.id
