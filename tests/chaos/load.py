"""The callers of a chaos run: they stream and resume, watch, poll, wait for the whole, cancel; all is noted."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx

from tests.chaos.checker import told_events
from tests.chaos.record import Recorder
from tests.support.history import DONE, Journal
from tests.support.reader import FOR_LATER, PAUSE_S, Caller, Refused, numbered

END_LIMIT_S: Final = 90.0
Act = Callable[["Errand"], Awaitable[None]]


@dataclass(slots=True)
class Errand:
    """One job asked for: what the caller wants, and the number of the try under way."""

    body: dict[str, Any]
    wants: dict[str, Any]
    op: int = 0
    job: str = ""


class Load:
    """So many callers, each with one job at a time, until `enough` says that it is.

    `pace_s` is the time between the beginnings of two jobs; 0: each begins as soon as its caller is free.
    """

    def __init__(
        self, caller: Caller, recorder: Recorder, seed: int, enough: Callable[[], bool], *, pace_s: float = 0
    ) -> None:
        self.begun = 0
        self.refused = 0
        self._caller = caller
        self._recorder = recorder
        self._dice = random.Random(seed)
        self._enough = enough
        self._pace_s = pace_s
        self._due_s = time.monotonic()

    async def run(self, callers: int) -> None:
        """Returns when all of them have seen the ends of their last jobs."""
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self._one())

    async def _one(self) -> None:
        acts: dict[Act, int] = {
            self._stream: 40,
            self._watch: 10,
            self._poll: 30,
            self._whole: 8,
            self._cancel: 4,
            self._hurry: 4,
            self._delay: 4,
        }
        while not self._enough():
            if self._pace_s:
                self._due_s = max(self._due_s, time.monotonic() - self._pace_s) + self._pace_s
                await asyncio.sleep(self._due_s - time.monotonic())
            await self._until_taken(self._dice.choices(list(acts), list(acts.values()))[0])

    async def _until_taken(self, act: Act) -> None:
        """Asks again until a gateway takes it: a refusal is no acceptance, a lost connection may be one."""
        tokens = self._dice.randrange(1, 40)
        pace = {"token_ms": self._dice.randrange(5, 50), "first_token_ms": self._dice.randrange(0, 400)}
        errand = Errand(numbered(tokens, **pace), {"tokens": tokens})
        self.begun += 1
        while True:
            try:
                return await act(errand)
            except httpx.TransportError as error:
                self._recorder.note("unknown", op=errand.op, why=type(error).__name__)
            except Refused as refused:
                self._recorder.note("refused", op=errand.op, status=refused.status)
                if refused.status not in FOR_LATER or errand.job:
                    self._recorder.note("odd", text=f"an odd refusal of {errand.job or 'a request'}: {refused}")
                    return
            self.refused += 1
            await asyncio.sleep(PAUSE_S)

    def _begin(self, errand: Errand, kind: str, **wants: Any) -> None:
        errand.op = self._recorder.invoke(kind, **errand.wants, **wants)

    def _accepted(self, errand: Errand, job: str) -> None:
        errand.job = job
        self._recorder.note("accepted", op=errand.op, job=job)

    # --- streams ------------------------------------------------------------------------------------------------------

    async def _stream(self, errand: Errand) -> None:
        await self._follow(errand, watchers=0)

    async def _watch(self, errand: Errand) -> None:
        """A stream with a second reader beside it and a third after its end."""
        await self._follow(errand, watchers=2)

    async def _follow(self, errand: Errand, watchers: int) -> None:
        restart = self._dice.random() < 0.5
        self._begin(errand, "stream", restart=restart)
        journal = Journal(tokens=errand.wants["tokens"])
        reading = asyncio.create_task(
            self._caller.chat(errand.body, journal, on_interrupt="restart" if restart else "fail")
        )
        while not reading.done() and not journal.job_id:
            await asyncio.wait([reading], timeout=PAUSE_S)
        if not journal.job_id:
            await reading
        self._accepted(errand, journal.job_id)
        if watchers:
            await asyncio.gather(reading, self._read_again(journal.job_id))
        await reading
        self._note_read(journal)
        if watchers:
            await self._read_again(journal.job_id)

    async def _read_again(self, job: str) -> None:
        journal = Journal(job_id=job)
        async with asyncio.timeout(END_LIMIT_S):
            await self._caller.follow(journal)
        self._note_read(journal)

    def _note_read(self, journal: Journal) -> None:
        self._recorder.note(
            "read",
            job=journal.job_id,
            end=journal.end,
            connections=journal.connections,
            events=told_events(journal),
        )

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def _poll(self, errand: Errand) -> None:
        await self._submit(errand, "poll")
        await self._note_end(errand)

    async def _delay(self, errand: Errand) -> None:
        await self._submit(errand, "delay", delay_ms=self._dice.randrange(50, 1_500))
        await self._note_end(errand)

    async def _hurry(self, errand: Errand) -> None:
        """A job whose deadline may well pass before it is claimed, or in the middle of its answer."""
        await self._submit(errand, "hurry", deadline_ms=self._dice.randrange(100, 2_000))
        await self._note_end(errand)

    async def _cancel(self, errand: Errand) -> None:
        errand.wants["tokens"] = None
        errand.body = numbered(10_000, token_ms=50)
        await self._submit(errand, "cancel")
        await asyncio.sleep(self._dice.uniform(0, 1))
        url = f"/v1/jobs/{errand.job}/cancel"
        while True:
            try:
                answer = await self._caller.http.post(self._caller.next_url() + url)
            except httpx.TransportError:
                await asyncio.sleep(PAUSE_S)
                continue
            if answer.is_success:
                break
            await asyncio.sleep(PAUSE_S)
        self._recorder.note("cancel_taken", job=errand.job)
        await self._note_end(errand)

    async def _submit(self, errand: Errand, kind: str, **options: Any) -> None:
        self._begin(errand, kind, **options)
        self._accepted(errand, await self._caller.submit(errand.body, **options))

    async def _note_end(self, errand: Errand) -> None:
        try:
            record = await self._caller.ended(errand.job, END_LIMIT_S)
        except TimeoutError:
            self._recorder.note("odd", text=f"{errand.job}: had not ended {END_LIMIT_S:.0f} s after it was accepted")
            return
        if record["status"] == "succeeded":
            text = record["result"]["choices"][0]["message"]["content"]
            self._check_text(errand, text)
        code = (record["error"] or {}).get("code")
        self._recorder.note("told", job=errand.job, end=DONE if record["status"] == "succeeded" else code)

    async def _whole(self, errand: Errand) -> None:
        self._begin(errand, "whole")
        answer = await self._caller.http.post(self._caller.next_url() + "/v1/chat/completions", json=errand.body)
        if answer.is_error:
            raise Refused(answer.status_code, answer.content)
        self._accepted(errand, answer.headers["x-headrace-job-id"])
        self._check_text(errand, answer.json()["choices"][0]["message"]["content"])
        self._recorder.note("told", job=errand.job, end=DONE)

    def _check_text(self, errand: Errand, text: str) -> None:
        if text != "".join(f" {number}" for number in range(errand.wants["tokens"] or 0)):
            self._recorder.note("odd", text=f"{errand.job}: a wrong text: {text[:200]!r}")
