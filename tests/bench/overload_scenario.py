"""What is left of the service at five times what it can carry: goodput, refusals, deadlines, and who still gets in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from common.contracts import Priority
from tests.bench.arrivals import Asks, Callers, Seen, callers, fail_on_wrong, first_ms, p50_p99, paired
from tests.bench.fairness_scenario import WORKERS, Bed, mean_s, started
from tests.bench.load import percentile
from tests.bench.options import Options
from tests.bench.report import Table, Value
from tests.bench.stack import API_KEY
from tests.bench.upstream import SCRIPTS
from tests.bench.visits import Visit

MODEL: Final = "bench-overload"
TOKENS: Final = (8, 24)
SLOTS_EACH: Final = 20
TIMES: Final = 5
DEADLINE_S: Final = 8.0
INTERACTIVE_SHARE: Final = 0.25
_DISPATCH_MARGIN_S: Final = 0.05
_SKIPPED_S: Final = 8.0


def _asks(priority: Priority, deadline_s: float | None, seed: int) -> Asks:
    headers = {"x-headrace-priority": priority.label}
    if deadline_s is not None:
        headers["x-headrace-deadline-ms"] = str(int(deadline_s * 1000))
    return Asks(MODEL, TOKENS, [API_KEY], seed, headers=headers, kind=priority.label)


def capacity_per_s() -> float:
    """What the slots can carry."""
    return WORKERS * SLOTS_EACH / mean_s(MODEL, TOKENS)


async def overload(options: Options) -> Table:
    """Five times the capacity, open loop, with deadlines."""
    table = Table(
        "overload",
        f"{TIMES} × what the slots can carry",
        f"{WORKERS * SLOTS_EACH} slots ({WORKERS} workers), an answer {mean_s(MODEL, TOKENS):.1f} s at the mean (1.2 "
        f"to 2.8 s), its first token after {SCRIPTS[MODEL].ttft_ms / 1000:.1f} s: {capacity_per_s():.0f}/s at most; "
        f"streamed calls at Poisson times, a deadline of {DEADLINE_S:.0f} s in each; good = the whole right answer "
        "within its deadline, by the second in which it ended; peak = half as many callers again as slots, closed "
        f"loop; the first {_SKIPPED_S:.0f} s not counted; late = came to the upstream more than "
        f"{1000 * _DISPATCH_MARGIN_S:.0f} ms past its deadline; all cores shared",
        reach="goodput ≥ 90 % of peak; refusals p99 ≤ 50 ms; none late; mixed: interactive p99 TTFT ≤ 1.5 × unloaded",
    )
    setup = options.setup.with_system_everywhere(SLOTS_EACH)
    with started(setup, MODEL, SLOTS_EACH, {"HEADRACE_JOURNAL": "off"}) as (system, upstream):
        async with callers(system.target.port) as made:
            await _Bench(table, Bed(system, upstream, made), made, 12.0 if options.short else 40.0).all()
    return table


@dataclass(slots=True)
class _Bench:
    table: Table
    bed: Bed
    callers: Callers
    seconds: float
    peak_per_s: float = 0.0
    unloaded_ms: float = 0.0

    async def all(self) -> None:
        """Every row."""
        await self._unloaded()
        await self._peak()
        rate_per_s = TIMES * capacity_per_s()
        await self._flood(f"{TIMES} ×, all interactive", {Priority.INTERACTIVE: rate_per_s})
        some_per_s = INTERACTIVE_SHARE * capacity_per_s()
        mixed = {Priority.INTERACTIVE: some_per_s, Priority.BATCH: rate_per_s - some_per_s}
        await self._flood(f"{TIMES} ×, {INTERACTIVE_SHARE:.0%} of the capacity interactive, the rest batch", mixed)

    async def _unloaded(self) -> None:
        # As many as will come in the mix, so that both p99 are over equally many calls.
        rate_per_s = INTERACTIVE_SHARE * capacity_per_s()
        asks = _asks(Priority.INTERACTIVE, None, 11)
        seen = await self.callers.open_loop(asks, rate_per_s=rate_per_s, seconds=self.seconds, seed=1)
        fail_on_wrong(seen)
        first50, self.unloaded_ms = p50_p99(first_ms(seen))
        row: dict[str, Value] = {"load": "unloaded", "class": "interactive", "offered/s": rate_per_s, "n": len(seen)}
        self.table.add({**row, "TTFT p50 ms": first50, "TTFT p99 ms": self.unloaded_ms})

    async def _peak(self) -> None:
        asks, count = _asks(Priority.INTERACTIVE, None, 12), WORKERS * SLOTS_EACH * 3 // 2
        began_s = time.monotonic()
        seconds = _SKIPPED_S + self.seconds
        seen = await self.callers.closed_loop(asks, callers=count, seconds=seconds)
        fail_on_wrong(seen)
        self.peak_per_s = _good(seen, began_s + _SKIPPED_S, began_s + seconds) / self.seconds
        row: dict[str, Value] = {"load": f"peak, {count} callers", "class": "interactive", "n": len(seen)}
        self.table.add({**row, "good/s": self.peak_per_s, "% of peak": 100.0})

    async def _flood(self, name: str, rates_per_s: dict[Priority, float]) -> None:
        began_s, meter = time.monotonic(), self.bed.meter()
        seconds = _SKIPPED_S + self.seconds
        found = await asyncio.gather(
            *(
                self.callers.open_loop(_asks(one, DEADLINE_S, 13 + one), rate_per_s=rate, seconds=seconds, seed=2 + one)
                for one, rate in rates_per_s.items()
            )
        )
        others = 100 * meter.others_share()
        since_s, until_s = began_s + _SKIPPED_S, began_s + seconds
        seen = [one for some in found for one in some]
        good_per_s = _good(seen, since_s, until_s) / self.seconds
        visits = self.bed.visits()
        for one, some in zip(rates_per_s, found, strict=True):
            row: dict[str, Value] = {"load": name, "class": one.label, "offered/s": rates_per_s[one], "n": len(some)}
            counted = [call for call in some if since_s <= call.sent_s]
            figures = _figures(counted, visits)
            self.table.add({**row, "good/s": _good(some, since_s, until_s) / self.seconds, **figures})
        total: dict[str, Value] = {"load": name, "class": "all", "n": len(seen), "good/s": good_per_s}
        self.table.add(
            {**total, "% of peak": 100 * good_per_s / self.peak_per_s, **_figures(seen, visits), "others %": others}
        )
        self._judge(name, seen, visits, good_per_s)
        if len(rates_per_s) > 1:
            self._judge_first_tokens([one for one in found[0] if since_s <= one.sent_s])

    def _judge(self, name: str, seen: Sequence[Seen], visits: Sequence[Visit], good_per_s: float) -> None:
        missed = self.table.failures
        if good_per_s < 0.9 * self.peak_per_s:
            missed.append(f"{name}: {good_per_s:.1f} good answers a second of {self.peak_per_s:.1f} at the peak")
        if (slow := percentile(_refusals_ms(seen), 0.99)) > 50:
            missed.append(f"{name}: refusals take {slow:.0f} ms at p99")
        if late := _late(seen, visits):
            missed.append(f"{name}: {late} came to the upstream after their deadline")

    def _judge_first_tokens(self, interactive: Sequence[Seen]) -> None:
        first99 = percentile(first_ms(interactive), 0.99)
        if first99 > 1.5 * self.unloaded_ms:
            self.table.failures.append(
                f"interactive p99 TTFT in the mix is {first99:.0f} ms, {1.5 * self.unloaded_ms:.0f} are allowed"
            )


def _good(seen: Sequence[Seen], since_s: float, until_s: float) -> int:
    """How many whole answers ended within their deadline, between two moments."""
    return sum(
        one.whole and since_s <= (one.ended_s or 0) < until_s and (one.ended_s or 0) - one.sent_s <= DEADLINE_S
        for one in seen
    )


def _refusals_ms(seen: Sequence[Seen]) -> list[float]:
    return [1000 * (one.answered_s - one.sent_s) for one in seen if one.refused and one.answered_s is not None]


def _late(seen: Sequence[Seen], visits: Sequence[Visit]) -> int:
    limit_s = DEADLINE_S + _DISPATCH_MARGIN_S
    return sum(visit.came_s - one.sent_s > limit_s for one, visit in paired(seen, visits))


def _figures(seen: Sequence[Seen], visits: Sequence[Visit]) -> dict[str, Value]:
    refusals_ms = _refusals_ms(seen)
    told_s = [one.retry_after_s for one in seen if one.refused and one.retry_after_s is not None]
    first50, first99 = p50_p99(first_ms(seen))
    return {
        "refused": len(refusals_ms),
        "refusal p50 ms": percentile(refusals_ms, 0.5) if refusals_ms else None,
        "refusal p99 ms": percentile(refusals_ms, 0.99) if refusals_ms else None,
        "Retry-After p50 s": percentile(told_s, 0.5) if told_s else None,
        "failed later": sum(one.wrong is not None and not one.refused for one in seen),
        "late": _late(seen, visits),
        "TTFT p50 ms": first50,
        "TTFT p99 ms": first99,
    }
