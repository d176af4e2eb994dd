"""A race of calls: the first whose answer begins wins, the others are stopped, and errors are told properly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from workers.hedge import Overtaken, Race


class Runner:
    """A call that begins, ends and fails when the test says so."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.may_begin = asyncio.Event()
        self.may_end = asyncio.Event()
        self.error: Exception | None = None
        self.gone = asyncio.Event()

    @property
    def stopped(self) -> bool:
        return self.gone.is_set()

    async def run(self, begin: Callable[[], None]) -> str:
        try:
            await self.may_begin.wait()
            if self.error is not None:
                raise self.error
            begin()
            await self.may_end.wait()
        except (asyncio.CancelledError, Overtaken):
            self.gone.set()
            raise
        return self.name


async def test_the_first_to_begin_wins_and_the_other_is_stopped_at_once() -> None:
    race, one, two = Race[str](), Runner("one"), Runner("two")
    race.enter(one.run)
    race.enter(two.run)
    two.may_begin.set()
    result = asyncio.create_task(race.result())
    await one.gone.wait()
    assert not result.done()
    two.may_end.set()
    assert await result == "two"
    assert race.winner == 1
    await race.stop()


async def test_two_that_begin_in_one_moment_have_one_winner() -> None:
    race, one, two = Race[str](), Runner("one"), Runner("two")
    race.enter(one.run)
    race.enter(two.run)
    await asyncio.sleep(0)
    for runner in (one, two):
        runner.may_begin.set()
        runner.may_end.set()
    assert await race.result() == "one"
    await race.stop()
    assert two.stopped


async def test_one_that_fails_leaves_the_answer_to_the_other() -> None:
    race, one, two = Race[str](), Runner("one"), Runner("two")
    race.enter(one.run)
    race.enter(two.run)
    one.error = ValueError("one")
    one.may_begin.set()
    two.may_begin.set()
    two.may_end.set()
    assert await race.result() == "two"
    await race.stop()


async def test_where_all_fail_the_first_ones_error_is_told() -> None:
    race, one, two = Race[str](), Runner("one"), Runner("two")
    race.enter(one.run)
    race.enter(two.run)
    for runner in (two, one):
        runner.error = ValueError(runner.name)
        runner.may_begin.set()
    with pytest.raises(ValueError, match="one"):
        await race.result()
    await race.stop()


async def test_a_winner_that_breaks_off_is_not_followed_by_another() -> None:
    race = Race[str]()

    async def broken(begin: Callable[[], None]) -> str:
        begin()
        raise ValueError("broke off")

    one = Runner("one")
    race.enter(one.run)
    race.enter(broken)
    with pytest.raises(ValueError, match="broke off"):
        await race.result()
    await race.stop()
    assert one.stopped


async def test_a_race_is_undecided_until_one_begins_or_ends() -> None:
    race, one = Race[str](), Runner("one")
    race.enter(one.run)
    assert await race.undecided(0.001)
    one.may_begin.set()
    assert not await race.undecided(5)
    one.may_end.set()
    assert await race.result() == "one"
    assert not await race.undecided(5)
    await race.stop()


async def test_stopping_a_race_stops_all_who_run() -> None:
    race, one, two = Race[str](), Runner("one"), Runner("two")
    race.enter(one.run)
    race.enter(two.run)
    await asyncio.sleep(0)
    await race.stop()
    assert one.stopped and two.stopped
