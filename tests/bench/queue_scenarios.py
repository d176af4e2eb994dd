"""What the queue itself can do: no-op jobs a second, and the time from enqueue to start, beside arq as it comes."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.constants import default_queue_name

from common import keys
from common.contracts import Job, new_job_id
from common.queue import Queue, Submitted
from common.store import Store
from tests.bench.cpu import Meter, on
from tests.bench.load import LoadFailed, percentile
from tests.bench.noop_worker import CONCURRENCY, MODEL, POOL, SENT, Starts
from tests.bench.options import Options
from tests.bench.processes import ROOT, python, tethered
from tests.bench.report import Table, Value
from tests.bench.stack import Setup, valkey

_ARRIVALS_PER_S: Final = 60
_ENQUEUERS: Final = 32
_LIMIT_S: Final = 120


# --- the two ways in --------------------------------------------------------------------------------------------------


class Producer(Protocol):
    """The enqueuing side of one engine."""

    async def enqueue(self) -> None:
        """Puts one job in, stamped with this moment."""
        ...

    async def left(self) -> int:
        """How many jobs have not ended yet."""
        ...


class HeadraceProducer:
    """Jobs through `common.queue`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue = Queue(store, most_in_lane=1_000_000)

    async def enqueue(self) -> None:
        """Puts one job in, stamped with this moment."""
        stamp = {SENT: time.monotonic_ns()}
        body = {"messages": [{"role": "user", "content": "nothing"}]}
        job = Job(new_job_id(POOL), POOL, "bench", "chat", MODEL, body, metadata=stamp)
        admitted = await self._queue.submit(job)
        if admitted.code is not Submitted.ACCEPTED:
            raise LoadFailed(f"a job was not accepted: {admitted.code.name}")

    async def left(self) -> int:
        """How many jobs have not ended yet: each has its deadline until it has ended."""
        return int(await self._store.command("ZCARD", keys.deadlines(POOL)))


class ArqProducer:
    """Jobs through arq's own client."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis

    async def enqueue(self) -> None:
        """Puts one job in, stamped with this moment."""
        if await self._redis.enqueue_job(MODEL, time.monotonic_ns()) is None:
            raise LoadFailed("a job was not accepted")

    async def left(self) -> int:
        """How many jobs have not ended yet: they stay in the set until then."""
        return int(await self._redis.zcard(default_queue_name))


@asynccontextmanager
async def _producer(engine: str, url: str) -> AsyncGenerator[Producer]:
    if engine == "arq":
        redis = await create_pool(RedisSettings.from_dsn(url))
        yield ArqProducer(redis)
        await redis.aclose()
    else:
        store = Store.from_url(url)
        yield HeadraceProducer(store)
        await store.close()


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fleet:
    """Worker processes at the gate, and what they note."""

    processes: list[subprocess.Popen[bytes]]
    starts: list[Starts]

    def cores(self) -> set[int]:
        """The cores that the workers may use."""
        return set[int]().union(*(os.sched_getaffinity(process.pid) for process in self.processes))

    def go(self) -> None:
        """Opens the gate."""
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.write(b"go\n")
                process.stdin.flush()

    def started(self) -> list[tuple[int, int]]:
        """(sent, started) of every job so far, by start."""
        return sorted((pair for starts in self.starts for pair in starts), key=lambda pair: pair[1])

    def fail_if_ended(self) -> None:
        """Raises LoadFailed where a worker has ended."""
        codes = [process.returncode for process in self.processes if process.poll() is not None]
        if codes:
            raise LoadFailed(f"a worker ended in the middle: {codes}")


@contextmanager
def _fleet(engine: str, size: int, url: str, setup: Setup) -> Generator[Fleet]:
    directory = setup.directory
    files = [directory / f"starts-{number}" for number in range(size)]
    fleet = Fleet([], [Starts.create(file) for file in files])
    with (directory / f"noop-{engine}.log").open("ab") as log:
        try:
            with on(setup.cores.system):
                for file in files:
                    fleet.processes.append(_worker(engine, url, file, log.fileno()))
            for process in fleet.processes:
                if process.stdout is None or process.stdout.readline() != b"ready\n":
                    raise LoadFailed(f"a {engine} worker did not come up; see {log.name}")
            yield fleet
        finally:
            for process in fleet.processes:
                process.terminate()
            for process in fleet.processes:
                _reap(process)


def _worker(engine: str, url: str, starts: Path, log: int) -> subprocess.Popen[bytes]:
    words = python("tests.bench.noop_worker", "--engine", engine, "--redis", url, "--starts", str(starts))
    return subprocess.Popen(
        tethered(words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


# --- the two measurements ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drained:
    """One backlog, worked off."""

    jobs_per_s: float
    enqueued_per_s: float
    cpu_us_a_job: float
    valkey_us_a_job: float
    cores: int


async def _drain(engine: str, workers: int, jobs: int, options: Options) -> Drained:
    setup = options.setup.with_system_everywhere(CONCURRENCY)
    with valkey(setup) as server:
        async with _producer(engine, server.url) as producer:
            began_s = time.monotonic()
            await _enqueue_all(producer, jobs)
            enqueued_per_s = jobs / (time.monotonic() - began_s)
            with _fleet(engine, workers, server.url, setup) as fleet:
                cores = len(fleet.cores())
                meter = Meter({"valkey": server.pid, **{str(process.pid): process.pid for process in fleet.processes}})
                with options.watched({"worker": fleet.processes[0].pid}):
                    fleet.go()
                    ended_ns = await _wait_for_end(producer, fleet)
                    spent_s = meter.spent_s()
                started = fleet.started()
    if len(started) != jobs:
        raise LoadFailed(f"{jobs} jobs went in, {len(started)} were started")
    wall_s = (ended_ns - started[0][1]) / 1e9
    cpu_us = 1e6 * (sum(spent_s.values()) - spent_s["client"]) / jobs
    return Drained(jobs / wall_s, enqueued_per_s, cpu_us, 1e6 * spent_s["valkey"] / jobs, cores)


async def _enqueue_all(producer: Producer, jobs: int) -> None:
    async def some(count: int) -> None:
        for _ in range(count):
            await producer.enqueue()

    shares = [jobs // _ENQUEUERS + (number < jobs % _ENQUEUERS) for number in range(_ENQUEUERS)]
    await asyncio.gather(*(some(share) for share in shares))


async def _wait_for_end(producer: Producer, fleet: Fleet) -> int:
    async with asyncio.timeout(_LIMIT_S):
        while await producer.left() > 0:
            fleet.fail_if_ended()
            await asyncio.sleep(0.005)
    return time.monotonic_ns()


async def _delays_ms(engine: str, workers: int, samples: int, options: Options) -> list[float]:
    setup = options.setup.with_system_everywhere(CONCURRENCY)
    gaps = random.Random(11)
    with valkey(setup) as server, _fleet(engine, workers, server.url, setup) as fleet:
        async with _producer(engine, server.url) as producer:
            fleet.go()
            await _enqueue_all(producer, 2 * _ENQUEUERS)  # connections and caches are filled before anything counts
            await _wait_for_end(producer, fleet)
            warm = len(fleet.started())
            due_s = time.monotonic()
            for _ in range(samples):
                due_s += gaps.expovariate(_ARRIVALS_PER_S)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                await producer.enqueue()
            await _wait_for_end(producer, fleet)
            started = fleet.started()[warm:]
    if len(started) != samples:
        raise LoadFailed(f"{samples} jobs went in, {len(started)} were started")
    return [(began_ns - sent_ns) / 1e6 for sent_ns, began_ns in started]


# --- the scenario -----------------------------------------------------------------------------------------------------


async def queue(options: Options) -> Table:
    """No-op jobs a second with one and with four worker processes, and enqueue to start."""
    rounds = 1 if options.short else 3
    table = Table(
        "queue",
        "no-op jobs through the queue",
        f"a backlog is enqueued ({_ENQUEUERS} at once), then worker processes of {CONCURRENCY} slots each start on it "
        "at one moment: jobs/s from the first start until the last has ended in Redis; delay: Poisson arrivals, "
        f"{_ARRIVALS_PER_S}/s, to idle workers, call of enqueue to start of the job's function; Valkey with AOF, all "
        f"on the machine's cores; arq with its defaults but as many slots; median of {rounds} interleaved rounds",
        reach="headrace ≥ 5,000/s, more with four, not less; ≤ 1.5 ms p50",
    )
    cells = [(engine, workers) for workers in (1, 4) for engine in ("headrace", "arq") if engine in options.systems]
    drained: dict[tuple[str, int], list[Drained]] = {cell: [] for cell in cells}
    delays: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for _ in range(rounds):
        for cell in cells:
            engine, workers = cell
            drained[cell].append(await _drain(engine, workers, _jobs(engine, options), options))
            samples = 60 if options.short else 200
            delays[cell] += await _delays_ms(engine, workers, samples, options)
    for cell in cells:
        table.add(_row(cell, drained[cell], delays[cell], _jobs(cell[0], options)))
    if len({one.cores for some in drained.values() for one in some}) > 1:
        table.failures.append("the engines had different numbers of cores: their figures are not to be compared")
    return table


def _jobs(engine: str, options: Options) -> int:
    most = 20_000 if engine == "headrace" else 3_000
    return most // 4 if options.short else most


def _row(cell: tuple[str, int], drained: list[Drained], delays: list[float], jobs: int) -> dict[str, Value]:
    return {
        "engine": cell[0],
        "workers": cell[1],
        "cores": drained[0].cores,
        "jobs": jobs,
        "jobs/s": statistics.median(one.jobs_per_s for one in drained),
        "enqueued/s": statistics.median(one.enqueued_per_s for one in drained),
        "CPU µs a job": statistics.median(one.cpu_us_a_job for one in drained),
        "of it Valkey": statistics.median(one.valkey_us_a_job for one in drained),
        "delay p50 ms": percentile(delays, 0.5),
        "delay p99 ms": percentile(delays, 0.99),
        "samples": len(delays),
    }
