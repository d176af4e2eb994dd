"""Jobs led through random lives on a real server, beside a small model that says what must have become of them.

Between steps the server may be killed and started again. The seed is printed; HEADRACE_TEST_SEED repeats a run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from common.contracts import Failure, OnInterrupt, Outcome, Priority, State
from common.errors import StoreUnavailable
from common.queue import Cancelling, Claim, Released, Settled, Settlement, Submitted
from common.store import Store
from common.stream import Refusal
from tests.support.redis_server import EVERY_WRITE_KEPT, RedisServer, binaries
from tests.support.runner import drawn_seed, runner
from tests.support.seeds import POOL, Rig, View, a_job, job_id, number_of, success

EXPIRED: Final = Settlement(Outcome(State.EXPIRED))
BROKEN: Final = Settlement(Outcome(State.FAILED, failure=Failure("broken", "x")), dead=True)
CANCELLED: Final = Settlement(Outcome(State.CANCELLED))

# Far enough apart that the real seconds of a run decide nothing.
STEP_MS: Final = 30_000
LEASE_MS: Final = 50_000
DELAY_MS: Final = 40_000
DEADLINE_MS: Final = 195_000
MOST_FAILURES: Final = 3
LIVES: Final = int(os.environ.get("HEADRACE_TEST_LIVES") or 25)

ENDINGS: Final = {
    Released.INTERRUPTED: BROKEN,
    Released.ATTEMPTS_USED_UP: BROKEN,
    Released.CANCELLED: CANCELLED,
    Released.EXPIRED: EXPIRED,
}


@dataclass
class Expected:
    """What the model knows of one job. `seen` counts the tokens of this attempt that a reader may have."""

    number: int
    restart: bool
    deadline_ms: int
    due_ms: int
    state: str = "queued"
    claim: Claim | None = None
    worker: str = ""
    failures: int = 0
    seen: int = 0
    cancel: bool = False
    last_fence: int = 0


def tenant_of(number: int) -> str:
    """Whose job this is."""
    return "ab"[number % 2]


def cost_of(number: int) -> int:
    """Its estimated tokens."""
    return number * 7 % 17 + 1


class Life(RuleBasedStateMachine):
    """Every step is taken on the server and on the model; then the two are compared."""

    server: RedisServer

    @initialize()
    def begin(self) -> None:
        self.server.empty()
        self.loop = runner()
        self.r = self.loop.run(self.connect())
        self.jobs: dict[int, Expected] = {}
        self.leases: dict[str, int] = {}
        self.reaped: set[str] = set()
        self.old: list[tuple[str, Claim]] = []
        self.now_ms = 0
        self.ended: dict[int, dict[str, bytes]] = {}
        self.restarts = 0
        for worker in "xy":  # the third comes when it comes
            self.beat(worker)

    async def connect(self) -> Rig:
        return Rig(self.server, Store.from_url(self.server.url))

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.run(self.r.store.close())
            self.loop.close()

    def run(self, coroutine: Any) -> Any:
        return self.loop.run(coroutine)

    # --- steps --------------------------------------------------------------------------------------------------------

    @rule(
        priority=st.sampled_from(Priority), delayed=st.booleans(), restart=st.booleans(), key=st.sampled_from(["", "k"])
    )
    def submit(self, priority: Priority, delayed: bool, restart: bool, key: str) -> None:
        number = len(self.jobs) + 1
        job = a_job(
            number,
            priority=priority,
            batch_key=key,
            delay_ms=DELAY_MS if delayed else 0,
            deadline_in_ms=DEADLINE_MS,
            max_attempts=MOST_FAILURES,
            tenant=tenant_of(number),
            cost_tokens=cost_of(number),
            on_interrupt=OnInterrupt.RESTART if restart else OnInterrupt.FAIL,
        )
        assert self.run(self.r.queue.submit(job)).code is Submitted.ACCEPTED
        assert self.run(self.r.queue.submit(job)).code is Submitted.DUPLICATE
        expected = Expected(number, restart, self.now_ms + DEADLINE_MS, self.now_ms + DELAY_MS)
        expected.state = "delayed" if delayed else "queued"
        self.jobs[number] = expected

    @rule(worker=st.sampled_from("xyz"))
    def beat(self, worker: str) -> None:
        registered = worker in self.leases and worker not in self.reaped
        beat = self.r.queue.beat(POOL, worker, lease_s=LEASE_MS / 1000, info={})
        assert self.run(beat) is registered
        if not registered and worker not in self.reaped:
            self.run(self.r.worker(worker, lease_s=LEASE_MS / 1000))
        if worker not in self.reaped:
            self.leases[worker] = self.now_ms + LEASE_MS

    @rule(worker=st.sampled_from("xyz"), most=st.integers(1, 4))
    def claim(self, worker: str, most: int) -> None:
        claims = self.run(self.r.queue.claim(POOL, worker, most=most, lanes=("0:m", "1:m", "2:m")))
        if worker not in self.leases or worker in self.reaped:
            assert claims is None
            return
        live = {n for n, job in self.jobs.items() if job.state == "queued" and job.deadline_ms > self.now_ms}
        taken = {number_of(claim.job.id) for claim in claims}
        assert taken <= live
        assert len(taken) == len(claims) == min(most, len(live))
        for claim in claims:
            job = self.jobs[number_of(claim.job.id)]
            assert claim.fence > job.last_fence
            assert claim.failures == job.failures
            job.state, job.worker, job.claim, job.last_fence, job.seen = "running", worker, claim, claim.fence, 0

    def running(self) -> list[Expected]:
        return [job for job in self.jobs.values() if job.state == "running"]

    def pick(self, data: st.DataObject) -> Expected:
        """A running job, made here where there is none: Hypothesis leaves out most kinds of steps in any one life."""
        if not self.running():
            self.beat("x")
            self.submit(Priority.INTERACTIVE, delayed=False, restart=data.draw(st.booleans()), key="")
            self.claim("x", 4)
        return data.draw(st.sampled_from(self.running()))

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        job = self.pick(data)
        assert job.claim is not None
        job.seen += 1
        assert self.run(self.r.append(job.claim, job.seen, b"%d" % job.seen, job.worker)) is None

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        job = self.pick(data)
        assert job.claim is not None
        end = success(events=b"last", events_seq=job.seen + 1, outcome_seq=job.seen + 2)
        assert self.run(self.r.settle(job.claim, job.worker, end)) is Settled.ENDED
        assert self.run(self.r.settle(job.claim, job.worker, end)) is Settled.ALREADY
        self.end(job, "succeeded")

    @rule(data=st.data(), failed=st.booleans(), delayed=st.booleans())
    def release(self, data: st.DataObject, failed: bool, delayed: bool) -> None:
        self.let_go(self.pick(data), failed=failed, delay_ms=DELAY_MS if delayed else 0)

    def let_go(self, job: Expected, *, failed: bool, delay_ms: int = 0) -> None:
        assert job.claim is not None
        fence = job.claim.fence
        code = self.run(
            self.r.queue.release(POOL, job_id(job.number), job.worker, fence, failed=failed, delay_ms=delay_ms)
        )
        assert code is self.expected_release(job, failed=failed, delay_ms=delay_ms)
        if code is not Released.PUT_BACK:
            assert self.run(self.r.settle(job.claim, job.worker, ENDINGS[code])) is Settled.ENDED
            self.end(job, ENDINGS[code].outcome.status.value)
            return
        job.failures += failed
        job.state, job.due_ms = ("delayed", self.now_ms + delay_ms) if delay_ms else ("queued", 0)
        self.old.append((job.worker, job.claim))

    def expected_release(self, job: Expected, *, failed: bool, delay_ms: int) -> Released:
        if job.cancel:
            return Released.CANCELLED
        if job.deadline_ms <= self.now_ms + delay_ms:
            return Released.EXPIRED
        if job.seen and not job.restart:
            return Released.INTERRUPTED
        if failed and job.failures + 1 >= MOST_FAILURES:
            return Released.ATTEMPTS_USED_UP
        return Released.PUT_BACK

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, len(self.jobs) + 1))
        job = self.jobs.get(number)
        answer = self.run(self.r.queue.cancel(job_id(number)))
        if job is None:
            assert answer is Cancelling.UNKNOWN
        elif job.state == "running":
            assert answer is Cancelling.TOLD
            job.cancel = True
        else:
            assert answer is Cancelling.ENDED
            if job.state in ("queued", "delayed"):
                self.end(job, "cancelled")

    @rule(steps=st.integers(1, 2))
    def time_passes(self, steps: int) -> None:
        self.now_ms += steps * STEP_MS
        self.r.later(steps * STEP_MS)

    @rule()
    def promote(self) -> None:
        due = [job for job in self.jobs.values() if job.state == "delayed" and job.due_ms <= self.now_ms]
        assert self.run(self.r.queue.promote(POOL)) == len(due)
        for job in due:
            job.state = "queued"

    @rule()
    def expire(self) -> None:
        listed = {number_of(job): (fence, worker) for job, fence, worker in self.run(self.r.queue.overdue(POOL))}
        late = {
            number
            for number, job in self.jobs.items()
            if job.state in ("queued", "delayed") and job.deadline_ms <= self.now_ms
        }
        # A running one is its worker's to end for some seconds, and then it is ended over its head.
        hung = {
            number for number, job in self.jobs.items() if job.state == "running" and job.deadline_ms <= self.now_ms
        }
        assert late <= set(listed) <= late | hung
        for number, (fence, worker) in listed.items():
            assert bool(worker) == (number in hung)
            assert self.run(self.r.queue.settle(POOL, job_id(number), worker, fence, EXPIRED)) is Settled.ENDED
            self.end(self.jobs[number], "expired")

    @rule()
    def reap(self) -> None:
        listed = self.run(self.r.queue.reap(POOL))
        lapsed = {worker for worker, ends_ms in self.leases.items() if ends_ms <= self.now_ms}
        lost = {n: job for n, job in self.jobs.items() if job.state == "running" and job.worker in lapsed}
        assert {(worker, number_of(job), fence) for worker, job, fence in listed} == {
            (job.worker, number, job.last_fence) for number, job in lost.items()
        }
        self.reaped |= {job.worker for job in lost.values()}
        for job in lost.values():
            self.let_go(job, failed=True)
        assert self.run(self.r.queue.reap(POOL)) == []
        # Nothing of theirs is left, so they are forgotten and may register again.
        for worker in lapsed:
            del self.leases[worker]
        self.reaped.clear()

    @precondition(lambda self: self.old)
    @rule(data=st.data())
    def a_zombie_wakes(self, data: st.DataObject) -> None:
        worker, claim = data.draw(st.sampled_from(self.old))
        assert self.run(self.r.append(claim, 99, b"zombie", worker)) is Refusal.FENCED
        assert self.run(self.r.settle(claim, worker)) is Settled.REFUSED
        release = self.r.queue.release(POOL, claim.job.id, worker, claim.fence, failed=True)
        assert self.run(release) is Released.REFUSED

    @precondition(lambda self: self.restarts < 2)
    @rule(forget=st.booleans())
    def the_server_is_killed_and_started(self, forget: bool) -> None:
        self.restarts += 1
        self.server.kill()
        self.server.start()
        if forget:
            self.loop.run(self.r.store.close())
            offset_ms = self.r.store.clock_offset_ms
            self.r = self.loop.run(self.connect())
            self.r.later(offset_ms)
        else:
            # The connection that it had is gone, which it can only find out by trying.
            self.loop.run(self.settle_down())

    async def settle_down(self) -> None:
        with suppress(StoreUnavailable):
            await self.r.store.command("PING")

    def end(self, job: Expected, state: str) -> None:
        job.state = state
        self.ended[job.number] = self.r.job(job.number)

    # --- what must hold after every step ------------------------------------------------------------------------------

    @invariant()
    def server_and_model_agree(self) -> None:
        if not hasattr(self, "r"):
            return
        seen = self.r.view()
        assert seen.states == {number: job.state for number, job in self.jobs.items()}
        waiting = {n for n, job in self.jobs.items() if job.state == "queued"}
        listed = [number for lane in seen.lanes.values() for number in lane]
        late = {n for n in waiting if self.jobs[n].deadline_ms <= self.now_ms}
        assert len(listed) == len(set(listed))
        # A late one may have been dropped from its lane by a claim already.
        assert waiting - late <= set(listed) <= waiting
        assert seen.named == set(seen.lanes)
        assert set(seen.delayed) == {n for n, job in self.jobs.items() if job.state == "delayed"}
        assert seen.deadlines == {n for n, job in self.jobs.items() if not State(job.state).ended}
        self.check_owners(seen)
        self.check_counters(seen)
        self.check_waiting(seen, {n for n in waiting if n in listed})

    def check_waiting(self, seen: View, listed: set[int]) -> None:
        tokens = Counter[str]()
        for name, numbers in seen.lanes.items():
            tokens[f"t:{name}"] = sum(cost_of(number) for number in numbers)
        assert {name: count for name, count in seen.waiting.items() if name.startswith("t:")} == tokens
        counted = {name[2:]: count for name, count in seen.waiting.items() if name.startswith("j:")}
        assert all(count > 0 for count in counted.values())
        delayed = [n for n, job in self.jobs.items() if job.state == "delayed"]
        queued = [n for n, job in self.jobs.items() if job.state == "queued"]
        for tenant in "ab":
            least = sum(tenant_of(number) == tenant for number in [*listed, *delayed])
            # A late job that a claim dropped is counted until the scheduler ends it, or until nothing waits.
            most = sum(tenant_of(number) == tenant for number in [*queued, *delayed])
            assert least <= counted.get(tenant, 0) <= most

    def check_owners(self, seen: View) -> None:
        running = {n for n, job in self.jobs.items() if job.state == "running"}
        held = [number for numbers in seen.held.values() for number in numbers]
        assert sorted(held) == sorted(running)
        assert all(number in seen.held[self.jobs[number].worker] for number in running)

    def check_counters(self, seen: View) -> None:
        for state in State:
            if state.ended:
                assert seen.stats.get(state.value, 0) == sum(job.state == state for job in self.jobs.values())
        assert seen.stats.get("submitted", 0) == len(self.jobs)
        for number, record in self.ended.items():
            assert self.r.job(number) == record
            kinds = [kind for kind, _ in seen.streams[number]]
            assert kinds.count("o") == 1 and kinds[-1] == "o"


@pytest.fixture(scope="module")
def life_server(server_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    directory: Path = tmp_path_factory.mktemp(f"life-{server_kind}")
    server = RedisServer(binaries()[server_kind], directory, options=EVERY_WRITE_KEPT)
    server.start()
    yield server
    server.stop()


@pytest.mark.either_server
@pytest.mark.timeout(60)
@pytest.mark.parametrize("lives", [4, pytest.param(LIVES, marks=pytest.mark.lengthy)])
def test_jobs_live_as_the_model_says(life_server: RedisServer, lives: int) -> None:

    @seed(drawn_seed())
    class LifeHere(Life):
        server = life_server

    chosen = settings(
        max_examples=lives,
        stateful_step_count=35,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(LifeHere, settings=chosen)
