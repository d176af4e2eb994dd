"""The callers of a chaos run: they stream and resume, submit and poll, or wait for the whole; all of it noted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.support.history import DONE, Journal
from tests.support.reader import FOR_LATER, PAUSE_S, Caller, Refused, numbered

# How an accepted job may end when processes die under it. Anything else is a fault of ours.
BROKEN_OFF: Final = frozenset({"upstream_interrupted", "attempts_exhausted"})


@dataclass(slots=True)
class Polled:
    """A job in the background: how many tokens it should have, and its record at the end."""

    job_id: str
    tokens: int
    record: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(slots=True)
class History:
    """What the callers saw."""

    streams: list[Journal] = field(default_factory=list[Journal])
    may_restart: dict[str, bool] = field(default_factory=dict[str, bool])
    polled: list[Polled] = field(default_factory=list[Polled])
    wholes: int = 0
    refused: int = 0
    odd: list[str] = field(default_factory=list[str])

    @property
    def jobs(self) -> int:
        """How many were begun."""
        return len(self.streams) + len(self.polled) + self.wholes

    def problems(self) -> list[str]:
        """What is wrong with it, by itself."""
        found = [*self.odd, *(problem for journal in self.streams for problem in journal.problems)]
        for journal in self.streams:
            found += self._end_problems(journal)
        for job in self.polled:
            found += _record_problems(job)
        return found

    def _end_problems(self, journal: Journal) -> list[str]:
        allowed = {DONE, *BROKEN_OFF}
        found = [] if journal.end in allowed else [f"{journal.job_id}: ended with {journal.end!r}"]
        if journal.end == "upstream_interrupted" and self.may_restart[journal.job_id]:
            found.append(f"{journal.job_id}: was broken off though it might have begun anew")
        if journal.resets and not self.may_restart[journal.job_id]:
            found.append(f"{journal.job_id}: began anew though it was to be broken off")
        return found


def _record_problems(job: Polled) -> list[str]:
    record = job.record
    if record["status"] == "succeeded":
        text = record["result"]["choices"][0]["message"]["content"]
        return [] if text == "".join(f" {n}" for n in range(job.tokens)) else [f"{job.job_id}: a wrong text: {text!r}"]
    code = (record["error"] or {}).get("code")
    return [] if code == "attempts_exhausted" else [f"{job.job_id}: {record['status']} with {code!r}"]


class Load:
    """So many callers, each with one job at a time, until `enough` says that it is."""

    def __init__(self, caller: Caller, seed: int, enough: Callable[[], bool]) -> None:
        self.history = History()
        self._caller = caller
        self._dice = random.Random(seed)
        self._enough = enough

    async def run(self, callers: int) -> None:
        """Returns when all of them have seen the ends of their last jobs."""
        await asyncio.gather(*(self._one() for _ in range(callers)))

    async def _one(self) -> None:
        while not self._enough():
            act = self._dice.choices((self._stream, self._poll, self._whole), (5, 4, 1))[0]
            tokens = self._dice.randrange(1, 40)
            words = {"token_ms": self._dice.randrange(5, 50), "first_token_ms": self._dice.randrange(0, 400)}
            await self._taken(act, tokens, numbered(tokens, **words))

    async def _taken(self, act: Callable[[int, dict[str, Any]], Awaitable[None]], tokens: int, body: Any) -> None:
        """Does it again until a gateway takes it: a refusal or a lost connection is no acceptance."""
        while True:
            try:
                return await act(tokens, body)
            except httpx.TransportError:
                self.history.refused += 1
            except Refused as refused:
                self.history.refused += 1
                if refused.status not in FOR_LATER:
                    self.history.odd.append(f"an odd refusal: {refused}")
                    return
            await asyncio.sleep(PAUSE_S)

    async def _stream(self, tokens: int, body: dict[str, Any]) -> None:
        restart = self._dice.random() < 0.5
        journal = Journal(tokens=tokens)
        policy = "restart" if restart else "fail"
        await self._caller.chat(body, journal, on_interrupt=policy)
        self.history.may_restart[journal.job_id] = restart
        self.history.streams.append(journal)

    async def _poll(self, tokens: int, body: dict[str, Any]) -> None:
        job = Polled(await self._caller.submit(body), tokens)
        self.history.polled.append(job)
        job.record = await self._caller.ended(job.job_id, 60)

    async def _whole(self, tokens: int, body: dict[str, Any]) -> None:
        answer = await self._caller.http.post(self._caller.next_url() + "/v1/chat/completions", json=body)
        if answer.is_error:
            raise Refused(answer.status_code, answer.content)
        self.history.wholes += 1
        text = answer.json()["choices"][0]["message"]["content"]
        if text != "".join(f" {number}" for number in range(tokens)):
            self.history.odd.append(f"a wrong whole answer: {text!r}")
