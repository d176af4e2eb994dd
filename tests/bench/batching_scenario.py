"""What batching keys bring: prefix-cache hits and throughput of engines behind one queue, with keys and without."""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from tests.bench.arrivals import (
    Ask,
    Callers,
    Seen,
    callers,
    fail_on_wrong,
    first_ms,
    p50_p99,
    paired,
    streamed,
    waits_ms,
)
from tests.bench.cpu import Meter
from tests.bench.engine import Constants
from tests.bench.engine_server import MODEL
from tests.bench.options import Options
from tests.bench.processes import Command, Process, free_port, get, python, start, wait_until_ready
from tests.bench.report import Table, Value
from tests.bench.stack import API_KEY, Deployment, Setup, System, configuration, deployed
from tests.bench.visits import Visit, decode

ENGINES: Final = 4
PREFIXES: Final = 28
PREFIX_TOKENS: Final = 2048
OWN_TOKENS: Final = 48
OUTPUT_TOKENS: Final = 24
WAITING_EACH: Final = 2
LOADS: Final = (0.25, 0.5, 0.8, 1.15)
KEYS: Final = ("distinct", "automatic", "caller's")


@dataclass(frozen=True, slots=True)
class Popularity:
    """How often each shared prefix is asked for: in proportion to 1 ÷ rank to the power of `skew`."""

    name: str
    skew: float

    @property
    def weights(self) -> list[float]:
        """A weight for each prefix."""
        return [1 / (rank + 1) ** self.skew for rank in range(PREFIXES)]


EVEN: Final = Popularity("even", 0.0)
SKEWED: Final = Popularity("Zipf 1", 1.0)


class Prompts:
    """Chat requests over the shared prefixes, in an order that depends on nothing but the seed."""

    def __init__(self, popularity: Popularity, batch_keys: str, seed: int) -> None:
        self._dice = random.Random(seed)
        self._popularity = popularity
        self._batch_keys = batch_keys
        self._count = itertools.count()

    def __call__(self) -> Ask:
        """The next one."""
        prefix = self._dice.choices(range(PREFIXES), self._popularity.weights)[0]
        own = _words(f"u{self._dice.randrange(10**9)}", OWN_TOKENS - 1)
        body = streamed(MODEL, own, OUTPUT_TOKENS, system=_SYSTEM_TEXTS[prefix])
        return Ask(body, OUTPUT_TOKENS, API_KEY, self._headers(prefix))

    def _headers(self, prefix: int) -> Mapping[str, str]:
        match self._batch_keys:
            case "distinct":
                return {"x-headrace-batch-key": f"one-{next(self._count)}-{self._dice.random()}"}
            case "caller's":
                return {"x-headrace-batch-key": f"prefix-{prefix}"}
            case _:
                return {}


def _words(seed: str, count: int) -> str:
    # Three letters and a space: the four characters that a token has on average in English.
    dice = random.Random(seed)
    return " ".join("".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=3)) for _ in range(count))


_SYSTEM_TEXTS: Final = [_words(f"prefix {number}", PREFIX_TOKENS) for number in range(PREFIXES)]


# --- what runs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fleet:
    """The gateway and the engines behind it."""

    system: System
    engines: Process
    ports: Sequence[int]

    def meter(self) -> Meter:
        """A meter over the system's parts and the engines."""
        return Meter({**self.system.parts, "engines": self.engines.pid})

    def reset(self) -> None:
        """Every engine as after a restart."""
        for port in self.ports:
            get(port, "/reset")

    def visits(self) -> list[list[Visit]]:
        """What each engine has seen since."""
        return [decode(get(port, "/log")[1]) for port in self.ports]


@contextmanager
def _fleet(setup: Setup) -> Generator[Fleet]:
    ports = [free_port() for _ in range(ENGINES)]
    with ExitStack() as running:
        words = python("tests.bench.engine_server", "--ports", *map(str, ports))
        engines = start(Command("engines", words, setup.cores.every), setup.directory)
        running.callback(engines.end)
        for port in ports:
            wait_until_ready(engines, port, "/health")
        yield Fleet(running.enter_context(deployed(setup, _deployment(ports))), engines, ports)


def _deployment(ports: Sequence[int]) -> Deployment:
    """Each worker beside an engine of its own; the others know all of them."""
    slots = Constants().most_running
    urls = {f"engine-{number}": f"http://127.0.0.1:{port}" for number, port in enumerate(ports, 1)}
    own = [configuration({name: url}, [MODEL], kind="vllm", concurrency=slots) for name, url in urls.items()]
    return Deployment(configuration(urls, [MODEL], kind="vllm", concurrency=slots), own, slots)


# --- the scenario -----------------------------------------------------------------------------------------------------


async def batching(options: Options) -> Table:
    """Hit rate, throughput and waits with and without batching keys."""
    fixed = Constants()
    table = Table(
        "batching",
        "what batching keys bring",
        f"{ENGINES} workers, each beside a stand-in engine of its own (modelled continuous batching and prefix cache: "
        f"tests/bench/README.md; {fixed.most_running} sequences, cache of {fixed.blocks * 16:,} tokens); requests over "
        f"{PREFIXES} system prompts of {PREFIX_TOKENS:,} tokens ({PREFIXES * PREFIX_TOKENS:,} in all), {OWN_TOKENS} "
        f"of their own, {OUTPUT_TOKENS} out; keys: 'distinct' = a batch key of its own for each request (nothing to "
        "gather or to keep warm), 'automatic' = none given, 'caller's' = one for each system prompt; load in % of what "
        "'distinct' came to in the closed loop of the same prompts; wait = sent to come to the engine; engines empty "
        "before each row, its first third not counted; all cores shared",
        reach="keys lift hit rate and throughput; no wait worse",
    )
    with _fleet(options.setup.with_system_everywhere(fixed.most_running)) as fleet:
        async with callers(fleet.system.target.port) as made:
            bench = _Bench(table, fleet, made, 9.0 if options.short else 24.0)
            await bench.all((EVEN,) if options.short else (EVEN, SKEWED), LOADS[2:3] if options.short else LOADS)
    return table


@dataclass(frozen=True, slots=True)
class _Bench:
    table: Table
    fleet: Fleet
    callers: Callers
    seconds: float

    async def all(self, popularities: Sequence[Popularity], loads: Sequence[float]) -> None:
        """Every row: closed loops, then open ones at shares of what the closed one without keys came to."""
        for popularity in popularities:
            capacity_per_s = 0.0
            for batch_keys in KEYS:
                per_s = await self._closed(popularity, batch_keys)
                capacity_per_s = capacity_per_s or per_s
            for load in loads if popularity is EVEN else ():
                for batch_keys in KEYS[:2]:
                    await self._open(popularity, batch_keys, load, capacity_per_s)

    async def _closed(self, popularity: Popularity, batch_keys: str) -> float:
        count = ENGINES * Constants().most_running * (1 + WAITING_EACH)
        prompts = Prompts(popularity, batch_keys, seed=5)
        return await self._measured(
            {"prompts": popularity.name, "load": f"closed {count}", "keys": batch_keys},
            lambda: self.callers.closed_loop(prompts, callers=count, seconds=self.seconds),
        )

    async def _open(self, popularity: Popularity, batch_keys: str, load: float, capacity_per_s: float) -> None:
        prompts = Prompts(popularity, batch_keys, seed=6)
        rate_per_s = load * capacity_per_s
        await self._measured(
            {"prompts": popularity.name, "load": f"{load:.0%} = {rate_per_s:.1f}/s", "keys": batch_keys},
            lambda: self.callers.open_loop(prompts, rate_per_s=rate_per_s, seconds=self.seconds, seed=7),
        )

    async def _measured(self, row: dict[str, Value], load: Callable[[], Awaitable[list[Seen]]]) -> float:
        self.fleet.reset()
        meter = self.fleet.meter()
        seen = await load()
        others = 100 * meter.others_share()
        fail_on_wrong(seen)
        figures = _figures(seen, self.fleet.visits(), self.seconds)
        self.table.add({**row, **figures, "others %": others})
        return float(figures["requests/s"] or 0)


def _figures(seen: Sequence[Seen], visits: Sequence[Sequence[Visit]], seconds: float) -> dict[str, Value]:
    began_s = min(one.sent_s for one in seen)
    since_s, until_s = began_s + seconds / 3, began_s + seconds
    # Each figure over what it is a figure of: answers by when they ended, the others by when they were sent.
    ended = [one for one in seen if one.whole and since_s <= (one.ended_s or 0) < until_s]
    sent = [one for one in seen if since_s <= one.sent_s < until_s]
    pairs = paired(sent, itertools.chain(*visits))
    prompt, cached = (sum(getattr(visit, name) for _, visit in pairs) for name in ("prompt_tokens", "cached_tokens"))
    window_s = until_s - since_s
    (wait50, wait99), (first50, first99) = p50_p99(waits_ms(pairs)), p50_p99(first_ms(sent))
    shares = [len(some) / sum(map(len, visits)) for some in visits]
    return {
        "n": len(sent),
        "hit rate %": 100 * cached / prompt if prompt else None,
        "requests/s": len(ended) / window_s,
        "tokens/s": sum(one.tokens for one in ended) / window_s,
        "wait p50 ms": wait50,
        "wait p99 ms": wait99,
        "TTFT p50 ms": first50,
        "TTFT p99 ms": first99,
        "least / most busy %": f"{100 * min(shares):.0f} / {100 * max(shares):.0f}",
    }
