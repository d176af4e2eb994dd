"""Embedding jobs gathered into calls: who goes with whom, who gets what, and what each failure does to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from common.contracts import Job, Priority, Usage
from common.errors import ContextTooLong, UpstreamError, UpstreamRefused, UpstreamUnreachable
from common.queue import Claim
from common.servers import Backend
from tests.support.embedder import vector_of
from workers.attempts import Unserved
from workers.caller import Ask, Result, Work
from workers.engine import GiveBack
from workers.gathering import MOST_INPUTS, Gatherer, Member, Missing, Part, key_of, shares, split_usage
from workers.providers.base import Call, Embedded
from workers.providers.vectors import pack, unpack
from workers.routing import Missed

BACKEND = Backend(name="gpu", kind="echo")


class Server:
    """A model's server and the way to it, in one: what the test sets decides each call."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.retries = 0
        self.error_for: Callable[[list[Any]], UpstreamError | None] = lambda _: None
        self.slot = asyncio.Semaphore(64)
        self.answering = asyncio.Event()
        self.answering.set()
        self.under_way = 0
        self.asked = asyncio.Event()
        self.called = asyncio.Event()

    async def answer(self, ask: Ask, work: Work[Result], *, may_move_on: Callable[[], bool]) -> Result:
        self.asked.set()
        async with self.slot:
            try:
                return await work(self, Call(BACKEND, ask.endpoint, "m", ask.body, False, 1), lambda: None)  # pyright: ignore[reportArgumentType]
            except UpstreamError as error:
                raise Unserved(error, Missed(called=True, may_recur=error.retryable), "gpu") from None

    def again(self, claim: Claim, unserved: Unserved, *, left_s: float) -> GiveBack | None:
        if not unserved.missed.may_recur:
            return None
        self.retries += 1
        return GiveBack(unserved.failure, 1_000)

    async def embed(self, call: Call) -> Embedded:
        inputs = call.body["input"]
        self.calls.append(inputs)
        self.called.set()
        self.under_way += 1
        try:
            await self.answering.wait()
        finally:
            self.under_way -= 1
        if (error := self.error_for(inputs)) is not None:
            raise error
        return Embedded([pack(vector_of(one)) for one in inputs], Usage(10 * len(inputs)))


def job_of(*inputs: Any, tokens: int = 1, **fields: Any) -> Job:
    body = {"model": "m", "input": list(inputs), **fields.pop("body", {})}
    return Job("job-0", "default", "t", "/v1/embeddings", "m", body, prompt_tokens=tokens, **fields)


def member(*inputs: Any, failures: int = 0, tokens: int = 1) -> Member:
    return Member(Claim(job_of(*inputs, tokens=tokens), 1, 1, failures, 0, 60_000, 0), list(inputs), ends_s=1e9)


def together(gatherer: Gatherer, *members: Member) -> list[asyncio.Task[Part | Missing]]:
    return [asyncio.create_task(gatherer.embed(one)) for one in members]


def has_its_own(got: Part | Missing, *inputs: Any) -> bool:
    return isinstance(got, Part) and [list(unpack(one)) for one in got.vectors] == [vector_of(one) for one in inputs]


# --- who goes with whom -----------------------------------------------------------------------------------------------


async def test_those_of_one_turn_are_one_call_and_each_gets_its_own() -> None:
    server = Server()
    got = await asyncio.gather(*together(Gatherer(server), member("a"), member("b", "c"), member("d")))
    assert server.calls == [["a", "b", "c", "d"]]
    assert has_its_own(got[0], "a") and has_its_own(got[1], "b", "c") and has_its_own(got[2], "d")


async def test_a_job_alone_waits_for_no_company() -> None:
    server = Server()
    (task,) = together(Gatherer(server), member("a"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert task.done()


async def test_while_a_call_waits_for_a_slot_more_may_join() -> None:
    server = Server()
    gatherer = Gatherer(server)
    server.slot = asyncio.Semaphore(1)
    await server.slot.acquire()
    tasks = together(gatherer, member("a"))
    await server.asked.wait()
    tasks += together(gatherer, member("b"))
    await asyncio.sleep(0)
    server.slot.release()
    await asyncio.gather(*tasks)
    assert server.calls == [["a", "b"]]


async def test_a_call_under_way_takes_nobody_in() -> None:
    server = Server()
    server.answering.clear()
    gatherer = Gatherer(server)
    tasks = together(gatherer, member("a"))
    await server.called.wait()
    tasks += together(gatherer, member("b"), member("c"))
    server.answering.set()
    await asyncio.gather(*tasks)
    assert server.calls == [["a"], ["b", "c"]]


async def test_a_call_has_a_most_of_inputs_and_a_larger_job_goes_alone() -> None:
    server = Server()
    half = [f"x{n}" for n in range(MOST_INPUTS // 2 + 1)]
    whole = [f"y{n}" for n in range(MOST_INPUTS * 2)]
    await asyncio.gather(*together(Gatherer(server), member(*half), member(*half), member(*whole), member("z")))
    assert [len(call) for call in server.calls] == [len(half), len(half), len(whole), 1]


async def test_a_call_has_a_most_of_tokens() -> None:
    server = Server()
    await asyncio.gather(*together(Gatherer(server), *[member("a", tokens=6_000) for _ in range(5)]))
    assert [len(call) for call in server.calls] == [2, 2, 1]


@pytest.mark.parametrize(
    "other",
    [
        {"body": {"dimensions": 4}},
        {"body": {"user": "u"}},
        {"batch_key": "mine"},
        {"priority": Priority.BATCH},
    ],
)
def test_jobs_that_differ_do_not_go_together(other: dict[str, Any]) -> None:
    assert key_of(job_of("a")) != key_of(job_of("a", **other))


def test_tokens_and_texts_do_not_go_together() -> None:
    assert key_of(job_of("a")) != key_of(job_of([1]))


@pytest.mark.parametrize("own", [{"encoding_format": "float"}, {"metadata": {"x": 1}}, {"dimensions": None}])
def test_what_is_no_part_of_the_call_keeps_nobody_apart(own: dict[str, Any]) -> None:
    assert key_of(job_of("a")) == key_of(job_of("b", body=own))


# --- when something is wrong ------------------------------------------------------------------------------------------


async def test_a_refused_call_is_made_again_for_each_by_itself() -> None:
    server = Server()
    server.error_for = lambda inputs: ContextTooLong(param="input") if "bad" in inputs else None
    got = await asyncio.gather(*together(Gatherer(server), member("a"), member("bad"), member("c", "d")))
    assert server.calls == [["a", "bad", "c", "d"], ["a"], ["bad"], ["c", "d"]]
    assert has_its_own(got[0], "a") and has_its_own(got[2], "c", "d")
    assert isinstance(got[1], Missing)
    assert (got[1].failure.code, got[1].back(member("bad").claim, 60)) == ("context_length_exceeded", None)


async def test_where_each_alone_is_taken_fewer_go_together_from_then_on() -> None:
    server = Server()
    server.error_for = lambda inputs: UpstreamRefused() if len(inputs) > 4 else None
    gatherer = Gatherer(server)
    for _ in range(2):
        await asyncio.gather(*together(gatherer, *[member(f"{n}") for n in range(6)]))
    assert [len(call) for call in server.calls] == [6, 1, 1, 1, 1, 1, 1, 3, 3]


async def test_one_bad_job_makes_no_later_call_smaller() -> None:
    server = Server()
    server.error_for = lambda inputs: UpstreamRefused() if "bad" in inputs else None
    gatherer = Gatherer(server)
    await asyncio.gather(*together(gatherer, member("a"), member("bad"), member("c")))
    server.calls.clear()
    await asyncio.gather(*together(gatherer, member("a"), member("b"), member("c")))
    assert server.calls == [["a", "b", "c"]]


async def test_a_failed_server_fails_all_and_they_come_back_together_for_one_retry() -> None:
    server = Server()
    server.error_for = lambda _: UpstreamUnreachable()
    members = [member("a"), member("b"), member("c", failures=2)]
    got = await asyncio.gather(*together(Gatherer(server), *members))
    assert server.calls == [["a", "b", "c"]]
    backs = [one.back(job.claim, 60) for one, job in zip(got, members, strict=True) if isinstance(one, Missing)]
    assert len(backs) == 3
    assert backs[0] is backs[1] is not None
    assert server.retries == 2  # the third is at its last attempt, which is asked about by itself
    assert isinstance(got[0], Missing)
    assert got[0].back(members[0].claim, 0.5) is None  # its time is over before it could come back


async def test_who_leaves_before_the_call_is_no_part_of_it() -> None:
    server = Server()
    first, gone, last = together(Gatherer(server), member("a"), member("b"), member("c"))
    await asyncio.sleep(0)
    gone.cancel()
    assert has_its_own(await first, "a") and has_its_own(await last, "c")
    assert server.calls == [["a", "c"]]


async def test_who_leaves_during_the_call_harms_no_other() -> None:
    server = Server()
    server.answering.clear()
    first, gone, last = together(Gatherer(server), member("a"), member("b"), member("c"))
    await server.called.wait()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    server.answering.set()
    assert has_its_own(await first, "a") and has_its_own(await last, "c")


async def test_the_call_ends_when_the_last_has_left() -> None:
    server = Server()
    server.answering.clear()
    tasks = together(Gatherer(server), member("a"), member("b"))
    await server.called.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _ in range(5):
        await asyncio.sleep(0)
    assert server.under_way == 0


async def test_who_comes_as_the_last_one_leaves_is_served() -> None:
    server = Server()
    gatherer = Gatherer(server)
    (gone,) = together(gatherer, member("a"))
    await asyncio.sleep(0)
    gone.cancel()
    (late,) = together(gatherer, member("b"))
    assert has_its_own(await late, "b")
    assert server.calls == [["b"]]


async def test_a_fault_of_ours_is_told_to_each_and_nobody_waits_for_ever() -> None:
    server = Server()

    def broken(_: list[Any]) -> UpstreamError | None:
        raise RuntimeError("a fault of ours")

    server.error_for = broken
    got = await asyncio.gather(*together(Gatherer(server), member("a"), member("b")), return_exceptions=True)
    assert [type(one) for one in got] == [RuntimeError, RuntimeError]


# --- usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "weights", "wanted"),
    [
        (10, [1, 1], [5, 5]),
        (10, [1, 1, 1], [4, 3, 3]),
        (7, [100, 1], [7, 0]),
        (100, [3, 2, 5], [30, 20, 50]),
        (0, [1, 2], [0, 0]),
        (5, [0, 0], [3, 2]),
        (2, [1, 1, 1, 1], [1, 1, 0, 0]),
    ],
)
def test_shares_come_to_the_whole(total: int, weights: list[int], wanted: list[int]) -> None:
    assert shares(total, weights) == wanted
    assert sum(wanted) == total


def test_usage_says_how_it_was_found() -> None:
    assert split_usage(Usage(9), [4]) == [Usage(9)]
    assert [one.details for one in split_usage(Usage(9), [4, 5])] == [{"apportioned": True}] * 2
    assert split_usage(None, [4, 5]) == [Usage(4, 0, {"estimated": True}), Usage(5, 0, {"estimated": True})]
