"""The checker passes every history that could have happened and finds each kind of corruption put into one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.checker import History, calm_problems, problems, recoveries
from tests.chaos.leaks import slope_part, steady_slope_part
from tests.chaos.record import Line, Recorder, read

DEADLINE_MS = 10_000
Draw = st.DataObject


def _attempt(fence: int, sizes: list[int], *, whole: bool) -> tuple[list[Any], list[list[str]]]:
    """An attempt's stream entries, and what a reader is given of them."""
    entries: list[Any] = [[f"{fence}-0", "s", "1"]]
    events: list[list[str]] = []
    seq = 0
    for size in sizes:
        words = [str(number) for number in range(seq, seq + size)]
        events += [[f"{fence}-{seq + at + 1}", "message", f" {word}"] for at, word in enumerate(words)]
        seq += size
        entries.append([f"{fence}-{seq}", "c", [size, words]])
    if whole:
        entries.append([f"{fence}-{seq + 1}", "o", ["succeeded", None]])
        events.append([f"{fence}-{seq + 1}", "message", "[DONE]"])
    return entries, events


def _job(draw: Callable[[Any], Any], number: int) -> list[Line]:
    """What is written of one job that succeeded at its last attempt, with one reader or two."""
    job = f"job_default_{number:032x}"
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    lost = draw(st.lists(st.integers(1, len(sizes)), max_size=2))
    entries: list[Any] = []
    events: list[list[str]] = []
    lines: list[Line] = [
        {"act": "invoke", "op": number, "kind": "stream", "tokens": sum(sizes), "restart": True},
        {"act": "accepted", "op": number, "job": job},
    ]
    for turn, count in enumerate([*lost, len(sizes)]):
        fence = 1_000 + 100 * turn
        some, told = _attempt(fence, sizes[:count], whole=turn == len(lost))
        entries += some
        events += [[f"{fence}-0", "reset", ""]] * bool(turn) + told
        lines.append({"act": "over", "job": job, "fence": fence, "last": some[-1][0]})
    lines.append({"act": "state", "job": job, "state": "succeeded"})
    reader = {"act": "read", "job": job, "end": "[DONE]", "connections": 1}
    lines += [{**reader, "events": copy.deepcopy(events)} for _ in range(draw(st.integers(1, 2)))]
    kept = {"state": "succeeded", "attempt": len(lost) + 1, "deadline_ms": DEADLINE_MS, "finished_ms": 2_000}
    return [*lines, {"act": "kept", "job": job, **kept, "entries": entries}]


@st.composite
def histories(draw: Callable[[Any], Any]) -> list[Line]:
    """The lines of some jobs, those of each in their order and all of them mixed."""
    jobs = [_job(draw, number) for number in range(1, draw(st.integers(1, 4)) + 1)]
    mixed = draw(st.permutations([at for at, lines in enumerate(jobs) for _ in lines]))
    lines = [jobs[at].pop(0) for at in mixed]
    ended = sum(line["act"] == "kept" for line in lines)
    return [*lines, {"act": "stats", "stats": {"submitted": ended, "succeeded": ended}}]


@given(histories())
@settings(max_examples=150, deadline=None)
def test_a_history_that_could_have_happened_passes(lines: list[Line]) -> None:
    assert problems(History.of(lines)) == []


# --- what must be found -----------------------------------------------------------------------------------------------


def _only(lines: list[Line], act: str) -> Line:
    return next(line for line in lines if line["act"] == act)


def _lose_record(lines: list[Line]) -> None:
    lines.remove(_only(lines, "kept"))


def _never_end(lines: list[Line]) -> None:
    _only(lines, "kept")["state"] = "running"


def _end_twice(lines: list[Line]) -> None:
    entries = _only(lines, "kept")["entries"]
    fence, _, seq = entries[-1][0].partition("-")
    entries.append([f"{fence}-{int(seq) + 1}", "o", ["failed", "internal_error"]])


def _go_on_after_end(lines: list[Line]) -> None:
    entries = _only(lines, "kept")["entries"]
    fence, _, seq = entries[-1][0].partition("-")
    entries.append([f"{fence}-{int(seq) + 1}", "c", [1, ["99"]]])


def _end_otherwise(lines: list[Line]) -> None:
    _only(lines, "state")["state"] = "failed"


def _tell_otherwise(lines: list[Line]) -> None:
    kept = _only(lines, "kept")
    lines.append({"act": "told", "job": kept["job"], "end": "internal_error"})


def _lose_entry(lines: list[Line]) -> None:
    entries = _only(lines, "kept")["entries"]
    del entries[max(at for at, entry in enumerate(entries) if entry[1] == "c")]


def _swap_words(lines: list[Line]) -> None:
    entries = _only(lines, "kept")["entries"]
    next(entry for entry in entries if entry[1] == "c")[2][1][0] = "7777"


def _write_when_fenced(lines: list[Line]) -> None:
    """The first attempt was over before its last entry of tokens came."""
    kept = _only(lines, "kept")
    first = next(entry for entry in kept["entries"] if entry[1] == "c")
    fence = int(first[0].partition("-")[0])
    lines.insert(0, {"act": "over", "job": kept["job"], "fence": fence, "last": f"{fence}-0"})


def _claim_late(lines: list[Line]) -> None:
    _only(lines, "kept")["deadline_ms"] = 1_000


def _send_late(lines: list[Line]) -> None:
    lines.append({"act": "dispatched", "job": _only(lines, "kept")["job"], "ms": DEADLINE_MS + 1})


def _skip_event(lines: list[Line]) -> None:
    del _only(lines, "read")["events"][-2]


def _repeat_event(lines: list[Line]) -> None:
    events = _only(lines, "read")["events"]
    events.insert(0, events[0])


def _read_differently(lines: list[Line]) -> None:
    reader = copy.deepcopy(_only(lines, "read"))
    reader["events"][-1][0] += "1"
    lines.append(reader)


def _count_twice(lines: list[Line]) -> None:
    lines[-1]["stats"]["succeeded"] += 1


def _make_two_of_one_key(lines: list[Line]) -> None:
    kept = copy.deepcopy(_only(lines, "kept"))
    for number in (901, 902):
        job = f"job_default_{number:032x}"
        lines += [
            {"act": "invoke", "op": number, "kind": "poll", "tokens": None, "key": "one"},
            {"act": "accepted", "op": number, "job": job},
            {**kept, "job": job},
        ]


def _ledger_otherwise(lines: list[Line]) -> None:
    lines.append({"act": "ledger", "jobs": {_only(lines, "kept")["job"]: "failed"}})


def _only_in_ledger(lines: list[Line]) -> None:
    lines.append({"act": "ledger", "jobs": {"job_default_" + "e" * 32: "succeeded"}})


CORRUPTIONS = {
    "lost": _lose_record,
    "still running": _never_end,
    "has 2 ends": _end_twice,
    "has 1 ends": _go_on_after_end,
    "was seen to have failed": _end_otherwise,
    "a reader was told": _tell_otherwise,
    " follows ": _lose_entry,
    "was due": _swap_words,
    "by an attempt that was over": _write_when_fenced,
    "was claimed at": _claim_late,
    "was sent to its backend": _send_late,
    " came after ": _skip_event,
    "-1 came after": _repeat_event,
    "two readers": _read_differently,
    "ends were counted": _count_twice,
    "made 2 jobs": _make_two_of_one_key,
    "the ledger says failed": _ledger_otherwise,
    "the ledger says succeeded": _only_in_ledger,
}


@pytest.mark.parametrize("says", CORRUPTIONS)
@given(lines=histories())
@settings(max_examples=25, deadline=None)
def test_a_corrupted_history_is_found_out(says: str, lines: list[Line]) -> None:
    CORRUPTIONS[says](lines)
    assert any(says in problem for problem in problems(History.of(lines)))


def test_in_a_calm_history_a_second_attempt_is_wrong() -> None:
    kept = {"state": "succeeded", "attempt": 2, "deadline_ms": DEADLINE_MS, "finished_ms": 1}
    lines: list[Line] = [{"act": "kept", "job": "a job", **kept, "entries": _attempt(5, [1], whole=True)[0]}]
    assert problems(History.of(lines)) == []
    assert calm_problems(History.of(lines)) != []


def test_recovery_counts_from_the_fault_to_the_next_attempt_or_the_end() -> None:
    entries = [*_attempt(5_000, [1], whole=False)[0], *_attempt(7_500, [1], whole=True)[0]]
    kept = {"state": "succeeded", "attempt": 2, "deadline_ms": 99_999, "finished_ms": 8_000, "entries": entries}
    fault = {"act": "fault", "kind": "kill", "victim": "worker-0", "ms": 6_000, "held": [["a job", 5_000]]}
    lines: list[Line] = [{"act": "kept", "job": "a job", **kept}, fault]
    assert [(one.wait_ms, one.plain) for one in recoveries(lines, 2)] == [(1_500, True)]
    lines.append({"act": "fault", "kind": "kill the store", "victim": "valkey", "ms": 7_000, "held": []})
    assert [(one.wait_ms, one.plain) for one in recoveries(lines, 2)] == [(1_500, False)]
    lines[1]["held"] = [["a job", 7_500]]
    assert recoveries(lines, 2)[0].wait_ms == 2_000


def test_what_is_recorded_is_what_is_read(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "history.jsonl")
    recorder.note("accepted", op=recorder.invoke("poll", tokens=3), job="a job")
    recorder.close()
    assert read(recorder.path) == recorder.lines


def test_what_grows_steadily_is_a_leak_and_a_single_step_is_none() -> None:
    leak = [(5.0 * look, 80_000 + 15 * look) for look in range(160)]
    step = [(5.0 * look, 80_000 + (1_100 if look > 100 else 0)) for look in range(160)]
    assert steady_slope_part(leak, 600) == pytest.approx(1_800 / 81_000, rel=0.1)
    assert steady_slope_part(step, 600) < 0.001
    assert slope_part(step, 600) > 0.01
