"""Streams cut again and again at random bytes on their way: each reader gets every event once and in order."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from contextlib import AsyncExitStack
from itertools import cycle

import httpx
import pytest

from tests.chaos.checker import told_events
from tests.support.history import DONE, Journal
from tests.support.proxy import CutAtByte, Ending, Proxy
from tests.support.reader import Caller, Pieces, script
from tests.support.runner import drawn_seed
from tests.support.stage import Stage

ALL = bool(os.environ.get("HEADRACE_TEST_ALL"))
STREAMS = 200 if ALL else 60
CUTS = 3
TOKENS = 24
AT_ONCE = 16
# Most bytes are inside of a character, so most cuts are.
TEXT = " ".join(part * 20 for part in ("汉字水渠", "👩‍👩‍👧", "𝄞𝄞", "ёжик", "€uro"))
LATEST_CUT_BYTES = 2_500
WORDS = TEXT.split()


class Cutting:
    """A reader whose first connections each lead over a proxy of their own, which ends them at a byte drawn by lot."""

    def __init__(self, stage: Stage, dice: random.Random, seen: Counter[str]) -> None:
        self._stage = stage
        self._dice = dice
        self._seen = seen
        self._transport = httpx.AsyncHTTPTransport()
        self._caller = Caller([""], transport=self._transport)

    async def read(self, journal: Journal) -> None:
        """Reads a stream to its end over connections that are cut, and then over one that is not."""
        body = script(text=TEXT, tokens=TOKENS, token_ms=self._dice.choice((0, 2, 8)))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._caller)
            for turn in range(CUTS + 1):
                if journal.end is not None:
                    return
                port = self._stage.fleet.members[f"gateway-{self._dice.randrange(2)}"].port
                proxy = await stack.enter_async_context(Proxy(port))
                if turn < CUTS:
                    proxy.fault = CutAtByte(
                        self._dice.randrange(1, LATEST_CUT_BYTES), self._dice.choice(list(Ending)[:2])
                    )
                await self._over(proxy, body, journal, last=turn == CUTS)

    async def _over(self, proxy: Proxy, body: dict[str, object], journal: Journal, *, last: bool) -> None:
        url, pieces = f"http://127.0.0.1:{proxy.port}", None
        while journal.end is None:
            try:
                if journal.job_id:
                    opened = self._caller.following(journal, url)
                else:
                    opened = self._caller.chatting(body, journal, url)
                async with opened as pieces:
                    async for piece in pieces.bytes:
                        for event in pieces.decoder.feed(piece):
                            journal.take(event)
            except httpx.TransportError:
                self._seen[_place(pieces)] += 1
                pieces = None
                await asyncio.sleep(0.05)
            if not last:
                return


def _place(pieces: Pieces | None) -> str:
    """Where a connection was cut, by what its decoder holds of something that never came whole."""
    if pieces is None:
        return "before the stream"
    if pieces.decoder._text.getstate()[0]:
        return "inside a character"
    return "inside a frame" if pieces.decoder._rest or pieces.decoder._data else "between frames"


@pytest.mark.timeout(240)
async def test_streams_cut_at_random_bytes_reach_their_readers_whole_and_alike(stage: Stage) -> None:
    dice, seen = random.Random(drawn_seed()), Counter[str]()
    journals: list[Journal] = []
    turns = iter(range(STREAMS))

    async def readers() -> None:
        for _ in turns:
            journal = Journal(tokens=TOKENS, numbered=False)
            await Cutting(stage, random.Random(dice.random()), seen).read(journal)
            journals.append(journal)

    await asyncio.gather(*(readers() for _ in range(AT_ONCE)))
    whole = [Journal(tokens=TOKENS, numbered=False, job_id=journal.job_id) for journal in journals]
    async with stage.caller() as caller:
        for start in range(0, len(whole), AT_ONCE):
            await asyncio.gather(*(caller.follow(journal) for journal in whole[start : start + AT_ONCE]))
    sys.stdout.write(f"{len(journals)} streams, {sum(one.connections for one in journals)} connections; cut {seen}\n")
    assert [problem for journal in [*journals, *whole] for problem in journal.problems] == []
    assert {journal.end for journal in [*journals, *whole]} == {DONE}
    assert [told_events(journal) for journal in journals] == [told_events(journal) for journal in whole]
    assert [_text(journal) for journal in journals] == [_expected()] * STREAMS
    assert sum(seen.values()) >= STREAMS * CUTS * 9 // 10
    assert seen["inside a character"] >= STREAMS // 10
    stage.sound(*(journal.job_id for journal in journals))


def _text(journal: Journal) -> str:
    return "".join(said for _, _, said in told_events(journal) if said != DONE)


def _expected() -> str:
    """The model's words over and over, each after the blank that was before it."""
    pieces = cycle([WORDS[0], *(f" {word}" for word in WORDS[1:])])
    return "".join(next(pieces) for _ in range(TOKENS))
