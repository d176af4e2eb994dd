"""Short scenes, each with one trouble in it, after which a sound fleet has nothing to be blamed for.

They are made so that a fault planted in the code cannot hide: each fault has a scene that shows it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx

from common import keys
from tests.chaos.checker import History, calm_problems, problems, told_events
from tests.chaos.record import Recorder
from tests.chaos.witness import Witness, ends_in
from tests.support.fleet import OTHER_KEY, Fleet
from tests.support.history import DONE, Journal
from tests.support.reader import PAUSE_S, Caller, numbered, until
from tests.support.redis_server import EVERY_WRITE_KEPT
from tests.support.stage import POOL, Stage

END_LIMIT_S: Final = 15.0
LEDGER_LIMIT_S: Final = 12.0
LEASE_S: Final = 1
PACE: Final = {"token_ms": 15}


class Scene:
    """A small fleet, its callers, and what they saw."""

    def __init__(self, place: Path, tree: Path, **sizes: int) -> None:
        numbers = {"gateways": 2, "workers": 2, "schedulers": 1, **sizes}
        self.stage = Stage(
            Fleet(
                place,
                gateways=numbers.pop("gateways"),
                workers=numbers.pop("workers"),
                schedulers=numbers.pop("schedulers"),
                valkey=EVERY_WRITE_KEPT,
                tree=tree,
                lease_s=LEASE_S,
                disconnect_grace_s=10,
                drain_s=10,
                worker_concurrency=numbers.get("worker_concurrency", 64),
            )
        )
        self.recorder = Recorder(place / "history.jsonl")
        self.witness = Witness(self.stage.redis, self.recorder, POOL)
        self.callers = [self.stage.caller(number) for number in range(2)]
        self._errands: list[asyncio.Task[None]] = []
        self.journals: list[Journal] = []

    async def play(self, act: Callable[[Scene], Awaitable[None]]) -> History:
        """What was seen while `act` did its harm."""
        try:
            await asyncio.to_thread(self.stage.fleet.start)
            watch = asyncio.create_task(self.witness.run())
            await act(self)
            await self._end()
            # First the ledger: what a gateway died over between the two, the scheduler submits only later.
            await self._read_ledger()
            self.witness.stop()
            await watch
            await asyncio.to_thread(self.witness.keep_all)
        finally:
            for caller in self.callers:
                await caller.http.aclose()
            await asyncio.to_thread(self.stage.fleet.stop)
            self.recorder.close()
        return History.of(self.recorder.lines)

    async def _read_ledger(self) -> None:
        """Takes note of how each journaled job ended, once the ledger has all ends."""
        file = self.stage.fleet.directory / "ledger.db"
        if not file.exists():
            return
        with suppress(TimeoutError):  # then the checker says which
            await until(lambda: None not in ends_in(file).values(), "the ledger is behind", LEDGER_LIMIT_S)
        self.recorder.note("ledger", jobs=ends_in(file))

    async def _end(self) -> None:
        """Waits for the callers; who waits in vain has seen no end, and the store tells the rest."""
        if self._errands:
            _, stuck = await asyncio.wait(self._errands, timeout=END_LIMIT_S)
            for task in stuck:
                task.cancel()
            for result in await asyncio.gather(*self._errands, return_exceptions=True):
                if isinstance(result, Exception):
                    self.recorder.note("odd", text=f"a caller failed: {result!r}")

    async def at_rest(self) -> None:
        """Returns once every errand begun so far is done. Raises TimeoutError after a limit."""
        async with asyncio.timeout(END_LIMIT_S * 3):
            await asyncio.gather(*self._errands, return_exceptions=True)

    def begin(self, errand: Awaitable[None]) -> None:
        """Has an errand done beside everything else."""
        self._errands.append(asyncio.ensure_future(errand))

    # --- errands ------------------------------------------------------------------------------------------------------

    async def stream(self, tokens: int, *, gateway: int = 0, restart: bool = True, **words: Any) -> None:
        """Streams an answer to its end, and reads it once more at the other gateway."""
        journal = Journal(tokens=tokens)
        self.journals.append(journal)
        op = self.recorder.invoke("stream", tokens=tokens, restart=restart)
        caller, policy = self.callers[gateway], "restart" if restart else "fail"
        reading = asyncio.create_task(caller.chat(numbered(tokens, **(PACE | words)), journal, on_interrupt=policy))
        try:
            await self._until_named(reading, journal)
            self.recorder.note("accepted", op=op, job=journal.job_id)
            await reading
        finally:
            reading.cancel()
            if journal.job_id:
                self._note_read(journal)
        await self.read_again(journal.job_id, 1 - gateway)

    @staticmethod
    async def _until_named(reading: asyncio.Task[None], journal: Journal) -> None:
        while not journal.job_id:
            if reading.done():
                await reading
            await asyncio.wait([reading], timeout=PAUSE_S)

    async def cut_stream(self, tokens: int, every: int, **words: Any) -> None:
        """Reads an answer over many connections, so many events from each, in turn at both gateways."""
        job = await self.submit(tokens, **words)
        journal = Journal(tokens=tokens, job_id=job)
        turn = 0
        try:
            while journal.end is None:
                turn += 1
                aim = len(journal.events) + every
                caller = self.callers[turn % 2]
                async with caller.following(journal, caller.next_url()) as pieces:
                    await caller.read(pieces, journal, until=lambda aim=aim: len(journal.events) >= aim)
                assert turn < 20 * tokens, "it goes round and round"
        finally:
            self._note_read(journal)
        await self.read_again(job, 0)

    async def read_again(self, job: str, gateway: int) -> None:
        """Reads a job's whole stream."""
        journal = Journal(job_id=job)
        try:
            await self.callers[gateway].follow(journal)
        finally:
            self._note_read(journal)

    def _note_read(self, journal: Journal) -> None:
        self.recorder.note("read", job=journal.job_id, end=journal.end, events=told_events(journal), connections=0)

    async def submit(self, tokens: int, *, kind: str = "poll", **words: Any) -> str:
        """The id of a job in the background."""
        options = {name: words.pop(name) for name in ("deadline_ms", "delay_ms") if name in words}
        body = numbered(tokens, **(PACE | words))
        while True:
            op = self.recorder.invoke(kind, tokens=tokens, **options)
            try:
                job = await self.callers[0].submit(body, **options)
            except httpx.TransportError:
                self.recorder.note("unknown", op=op)
                await asyncio.sleep(PAUSE_S)
                continue
            self.recorder.note("accepted", op=op, job=job)
            return job

    async def poll(self, tokens: int, **words: Any) -> None:
        """A job in the background, polled to its end."""
        await self.poll_job(await self.submit(tokens, **words))

    async def poll_job(self, job: str) -> None:
        """Polls a job to its end."""
        record = await self.callers[1].ended(job, 60)
        code = (record["error"] or {}).get("code")
        self.recorder.note("told", job=job, end=DONE if record["status"] == "succeeded" else code)

    async def running(self, *jobs: str) -> None:
        """Returns once all of these run."""
        await until(lambda: all(self.stage.field(job, "state") == "running" for job in jobs), "they did not begin")

    def written(self, job: str) -> int:
        """How many events the job's stream holds."""
        return sum(body.count("\n") + 1 for _, kind, body in self.stage.entries(job) if kind == "c")

    async def flowing(self, streams: int) -> None:
        """Returns once so many streams have some tokens."""
        await until(lambda: sum(journal.seen >= 3 for journal in self.journals) >= streams, "no tokens came")


# --- the scenes -------------------------------------------------------------------------------------------------------


async def quiet(scene: Scene) -> None:
    """Nothing happens, for longer than a lease; some readers come and go."""
    for number in range(6):
        scene.begin(scene.stream(10 + 4 * number, gateway=number % 2))
        scene.begin(scene.poll(3 + number))
    scene.begin(scene.stream(60, token_ms=60))
    for number in range(3):
        scene.begin(scene.cut_stream(40 + number, 5 + number, token_ms=10))
    for number in range(3):
        scene.begin(scene.poll(4, delay_ms=300 + 100 * number))


async def zombie(scene: Scene) -> None:
    """The only worker sleeps past its lease, its jobs are taken from it, and it wakes up."""
    for _ in range(4):
        scene.begin(scene.stream(60, token_ms=30))
    late = [await scene.submit(1, first_token_ms=1_200) for _ in range(4)]
    due_s = time.monotonic() + 1.5
    for job in late:
        scene.begin(scene.poll_job(job))
    await scene.flowing(4)
    await scene.running(*late)
    owned = [journal.job_id for journal in scene.journals] + late
    scene.stage.fleet.freeze("worker-0")
    await until(
        lambda: all(scene.stage.field(job, "state") == "queued" for job in owned), "its jobs were not taken from it"
    )
    await asyncio.to_thread(scene.witness.look)
    # When it wakes, these are about to end.
    await asyncio.sleep(max(0.0, due_s - time.monotonic()))
    scene.stage.fleet.thaw("worker-0")


async def killed(scene: Scene) -> None:
    """A worker is killed again and again while much begins and ends."""
    stage = scene.stage

    async def load(number: int) -> None:
        for turn in range(6):
            if (number + turn) % 2:
                await scene.stream(8 + turn, gateway=number % 2, restart=number % 3 > 0)
            else:
                await scene.poll(5 + number % 4, token_ms=20)

    for number in range(10):
        scene.begin(load(number))
    for number in range(4):
        scene.begin(scene.stream(80, gateway=number % 2, token_ms=40))
    await scene.flowing(4)
    for _ in range(3):
        await asyncio.sleep(0.5)
        await asyncio.to_thread(stage.fleet.kill, "worker-0")
        await asyncio.to_thread(stage.fleet.start_again, "worker-0")


async def cancelled(scene: Scene) -> None:
    """Jobs are cancelled while they run and while they wait."""
    jobs = [await scene.submit(2_000, kind="cancel", token_ms=20) for _ in range(4)]
    jobs += [await scene.submit(2_000, kind="cancel", delay_ms=60_000)]
    await scene.running(*jobs[:4])
    for job in jobs:
        await scene.callers[0].http.post(f"{scene.callers[0].next_url()}/v1/jobs/{job}/cancel")
        scene.recorder.note("cancel_taken", job=job)
        scene.begin(scene.poll_job(job))


async def late(scene: Scene) -> None:
    """Jobs wait for the one slot until their deadlines have passed; nobody else would end them meanwhile."""
    await asyncio.to_thread(scene.stage.fleet.terminate, "scheduler-0")
    first = await scene.submit(1, first_token_ms=1_000)
    await scene.running(first)
    scene.begin(scene.poll_job(first))
    for number in range(4):
        scene.begin(scene.poll_job(await scene.submit(2, kind="hurry", deadline_ms=300 + 100 * number)))
    await until(lambda: scene.stage.field(first, "state") == "succeeded", "the first did not end")
    after = await scene.submit(1)
    await until(lambda: scene.stage.field(after, "state") == "succeeded", "the next one did not end")
    await asyncio.to_thread(scene.stage.fleet.start_again, "scheduler-0")


async def gap(scene: Scene) -> None:
    """A gateway is held up, and what was sent to it meanwhile is lost."""
    for _ in range(4):
        scene.begin(scene.stream(80, token_ms=20))
    await scene.flowing(4)
    redis = scene.stage.redis
    scene.stage.fleet.freeze("gateway-0")
    last = {journal.job_id: journal.seen for journal in scene.journals}
    await until(lambda: all(scene.written(job) > seen + 10 for job, seen in last.items()), "the streams stand still")
    inboxes: list[bytes] = redis.command("KEYS", keys.inbox(POOL, "*"))
    redis.commands([("XTRIM", name, "MAXLEN", 0) for name in inboxes])
    scene.stage.fleet.thaw("gateway-0")


async def rolled(scene: Scene) -> None:
    """Gateways, workers and scheduler are restarted one after the other, as a deployment does it."""
    over = asyncio.Event()

    async def load(number: int) -> None:
        while not over.is_set():
            with suppress(httpx.TransportError):
                await scene.stream(10 + number, gateway=number % 2, token_ms=30)

    for number in range(6):
        scene.begin(load(number))
    for name in scene.stage.fleet.members:
        assert await asyncio.to_thread(scene.stage.fleet.terminate, name) == 0, f"{name} did not drain"
        await asyncio.to_thread(scene.stage.fleet.start_again, name)
    over.set()


async def keyed(scene: Scene) -> None:
    """Two tenants use the same key, each several times at both gateways: one job each."""
    urls = [caller.next_url() for caller in scene.callers]
    first, other = scene.callers[0], Caller(urls, key=OTHER_KEY)
    try:
        for tenant, caller in (("first", first), ("other", other)):
            for turn in range(6):
                await _submit_keyed(scene, caller, tenant, urls[turn % 2])
            for turn in range(4):
                await _chat_keyed(scene, caller, tenant, urls[turn % 2])
    finally:
        await other.http.aclose()


async def _submit_keyed(scene: Scene, caller: Caller, tenant: str, url: str) -> None:
    job = {"endpoint": "/v1/chat/completions", "body": numbered(3, **PACE)}
    op = scene.recorder.invoke("poll", tokens=3, key=f"{tenant}: one")
    answer = await caller.http.post(url + "/v1/jobs", json=job, headers={"idempotency-key": "one"})
    if answer.is_error:
        scene.recorder.note("odd", text=f"{tenant}'s key was refused: {answer.status_code} {answer.text[:200]}")
        return
    name = str(answer.json()["id"])
    scene.recorder.note("accepted", op=op, job=name)
    own = await caller.http.get(f"{url}/v1/jobs/{name}")
    if own.is_error:
        scene.recorder.note("odd", text=f"{tenant} was given a job that is not its own: {own.status_code}")


async def _chat_keyed(scene: Scene, caller: Caller, tenant: str, url: str) -> None:
    op = scene.recorder.invoke("whole", tokens=3, key=f"{tenant}: two")
    headers = {"idempotency-key": "two"}
    answer = await caller.http.post(url + "/v1/chat/completions", json=numbered(3, **PACE), headers=headers)
    if answer.is_error:
        scene.recorder.note("odd", text=f"{tenant}'s key was refused: {answer.status_code} {answer.text[:200]}")
        return
    scene.recorder.note("accepted", op=op, job=answer.headers["x-headrace-job-id"])


# A scene's number of processes, and whether every job must succeed at once.
CALM: Final = frozenset({"quiet", "gap", "rolled", "keyed"})
SIZES: Final[dict[str, dict[str, int]]] = {
    "zombie": {"workers": 1},
    "late": {"workers": 1, "worker_concurrency": 1},
    "cancelled": {"workers": 1},
    "keyed": {"workers": 1},
    "gap": {"workers": 1},
}
SCENES: Final = {act.__name__: act for act in (quiet, zombie, killed, cancelled, late, gap, rolled, keyed)}


async def seen_in(name: str, place: Path, tree: Path) -> list[str]:
    """What is wrong with a scene played by a fleet from this tree."""
    history = await Scene(place, tree, **SIZES.get(name, {})).play(SCENES[name])
    return calm_problems(history) if name in CALM else problems(history)
