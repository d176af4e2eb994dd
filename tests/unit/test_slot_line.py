"""The line for a backend's slots: who gets one, in which order, and that none is lost or used twice."""

from __future__ import annotations

import asyncio
import random

from common.contracts import Priority
from tests.support.runner import drawn_seed
from workers.slots import SlotLine


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def _line(granted: int) -> SlotLine:
    line = SlotLine()
    line.grant(granted)
    return line


async def test_a_free_slot_is_taken_at_once_and_no_more_than_were_granted() -> None:
    line = _line(2)
    assert [line.take_now() for _ in range(3)] == [True, True, False]
    line.give()
    assert line.take_now()


async def test_those_in_line_go_by_class_and_then_in_the_order_they_came() -> None:
    line, served = _line(1), list[str]()
    line.take_now()

    async def call(name: str, priority: Priority) -> None:
        await line.take(priority)
        served.append(name)
        line.give()

    wanted = [("b1", Priority.BATCH), ("i1", Priority.INTERACTIVE), ("s1", Priority.STANDARD), ("b2", Priority.BATCH)]
    tasks: list[asyncio.Task[None]] = []
    for name, priority in [*wanted, ("i2", Priority.INTERACTIVE)]:
        tasks.append(asyncio.create_task(call(name, priority)))
        await _settled()
    line.give()
    await asyncio.gather(*tasks)
    assert served == ["i1", "i2", "s1", "b1", "b2"]


async def test_nobody_overtakes_those_in_line() -> None:
    line = _line(0)
    waiter = asyncio.create_task(line.take(Priority.BATCH))
    await _settled()
    line.granted = 1  # a slot that nobody has been given yet
    assert not line.take_now()
    line.grant(1)
    await waiter
    assert line.in_use == 1


async def test_a_caller_that_was_cancelled_in_line_gets_no_slot() -> None:
    line = _line(0)
    first, second = (asyncio.create_task(line.take()) for _ in range(2))
    await _settled()
    first.cancel()
    await _settled()
    assert (line.waiting, line.free) == (1, -1)
    line.grant(1)
    await second
    assert (line.in_use, line.waiting) == (1, 0)


async def test_a_slot_that_came_in_the_moment_of_the_cancelling_goes_to_the_next() -> None:
    line = _line(1)
    line.take_now()
    first, second = (asyncio.create_task(line.take()) for _ in range(2))
    await _settled()
    line.give()
    first.cancel()
    await second
    assert (line.in_use, line.waiting) == (1, 0)


async def test_a_grant_that_shrank_is_kept_to_as_calls_end() -> None:
    line = _line(3)
    for _ in range(3):
        line.take_now()
    line.grant(1)
    waiter = asyncio.create_task(line.take())
    await _settled()
    for _ in range(2):
        line.give()
        await _settled()
        assert not waiter.done()
    line.give()
    await waiter
    assert line.in_use == 1


async def test_more_is_asked_for_when_somebody_has_to_wait() -> None:
    asked: list[int] = []
    line = SlotLine(wanted=lambda: asked.append(1))
    line.grant(1)
    await line.take()
    assert asked == []
    waiter = asyncio.create_task(line.take())
    await _settled()
    assert asked == [1]
    waiter.cancel()


async def test_whatever_happens_in_any_order_no_slot_is_lost_or_used_twice() -> None:
    dice = random.Random(drawn_seed())
    line, holding, most_seen = _line(3), 0, 0

    async def call() -> None:
        nonlocal holding, most_seen
        await line.take(dice.randrange(3))
        holding += 1
        most_seen = max(most_seen, holding)
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        finally:
            holding -= 1
            line.give()

    tasks: list[asyncio.Task[None]] = []
    for _ in range(600):
        tasks.append(asyncio.create_task(call()))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        if dice.random() < 0.1:
            line.grant(dice.randrange(5))
        if dice.random() < 0.5:
            await asyncio.sleep(0)
    line.grant(4)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most_seen <= 4
    assert (line.in_use, line.waiting, line.free) == (0, 0, 4)
