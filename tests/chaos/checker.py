"""Whether a history could have happened: lines in, sentences about what is wrong out. Pure; linear in the lines.

`record.py` writes the lines. What nobody saw the end of (`unknown`) may have happened or not, and is never left out:
every job that the store holds must have ended once, whoever asked for it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from common.contracts import Position
from deploy.local.sse import Event
from tests.chaos.record import Line
from tests.support.history import DONE, ENDED, Journal, count_problems

LATE_END: Final = frozenset({"cancelled", "expired", "failed"})
# What callers are told where it differs from the store's word.
PUBLIC: Final = {"deadline_exceeded": "timeout"}


@dataclass(slots=True)
class Kept:
    """A job as the store had it after its end: its record, and its stream's entries as (id, kind, what)."""

    state: str = ""
    attempt: int = 0
    deadline_ms: int = 0
    finished_ms: int = 0
    entries: list[tuple[str, str, Any]] = field(default_factory=list[tuple[str, str, Any]])

    @property
    def ends(self) -> list[tuple[str, str]]:
        """The (status, failure's code) of each outcome in the stream."""
        return [(what[0], what[1]) for _, kind, what in self.entries if kind == "o"]


@dataclass(slots=True)
class Asked:
    """What a caller wanted of a job."""

    kind: str = ""
    tokens: int | None = None
    restart: bool = True
    hurried: bool = False


@dataclass(slots=True)
class History:
    """The lines, sorted by what they are about."""

    asked: dict[str, Asked] = field(default_factory=dict[str, Asked])
    kept: dict[str, Kept] = field(default_factory=dict[str, Kept])
    reads: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    told: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    seen: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    overs: dict[str, list[Line]] = field(default_factory=lambda: defaultdict(list))
    cancelled: set[str] = field(default_factory=set[str])
    keys: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    odd: list[str] = field(default_factory=list[str])
    stats: dict[str, int] | None = None
    dispatches: list[Line] = field(default_factory=list[Line])
    ledger: dict[str, str | None] = field(default_factory=dict[str, str | None])

    @classmethod
    def of(cls, lines: Iterable[Line]) -> History:
        """The history in these lines."""
        history, ops = cls(), dict[int, Line]()
        for line in lines:
            history._sort(line, ops)
        return history

    def _sort(self, line: Line, ops: dict[int, Line]) -> None:
        match line["act"]:
            case "invoke":
                ops[line["op"]] = line
            case "accepted":
                self._accept(line["job"], ops[line["op"]])
            case "read":
                self.reads[line["job"]].append(line)
            case "told":
                self.told[line["job"]].append(line)
            case "cancel_taken":
                self.cancelled.add(line["job"])
            case "odd":
                self.odd.append(line["text"])
            case _:
                self._sort_store(line)

    def _sort_store(self, line: Line) -> None:
        match line["act"]:
            case "over":
                self.overs[line["job"]].append(line)
            case "state":
                self.seen[line["job"]].append(line["state"])
            case "kept":
                entries = [(entry[0], entry[1], entry[2]) for entry in line["entries"]]
                numbers = (line["attempt"], line["deadline_ms"], line["finished_ms"])
                self.kept[line["job"]] = Kept(line["state"], *numbers, entries)
            case "stats":
                self.stats = line["stats"]
            case "ledger":
                self.ledger.update(line["jobs"])
            case "dispatched":
                self.dispatches.append(line)
            case _:
                return

    def _accept(self, job: str, asked: Line) -> None:
        self.asked[job] = Asked(asked["kind"], asked.get("tokens"), asked.get("restart", True), "deadline_ms" in asked)
        if asked.get("key"):
            self.keys[asked["key"]].add(job)


def problems(history: History) -> list[str]:
    """Everything that is wrong with it."""
    found = list(history.odd)
    for job in sorted(history.asked.keys() | history.kept.keys() | history.ledger.keys()):
        found += _job_problems(history, job)
    found += [f"key {key}: made {len(jobs)} jobs" for key, jobs in history.keys.items() if len(jobs) > 1]
    found += _dispatch_problems(history)
    return found + (count_problems(history.stats) if history.stats is not None else [])


def calm_problems(history: History) -> list[str]:
    """What is wrong with a history in which nothing was killed, frozen or cancelled: all went well at once."""
    return problems(history) + [
        f"{job}: {kept.state} at attempt {kept.attempt}, and nothing had happened to it"
        for job, kept in history.kept.items()
        if (kept.state, kept.attempt) != ("succeeded", 1)
    ]


# --- one job ----------------------------------------------------------------------------------------------------------


def _job_problems(history: History, job: str) -> Iterator[str]:
    kept = history.kept.get(job)
    asked = history.asked.get(job)
    if job in history.ledger and history.ledger[job] not in ({kept.state} if kept else LATE_END):
        yield f"{job}: the ledger says {history.ledger[job]}, the store {kept and kept.state}"
    if kept is None:
        # A job that only the ledger had says so, where its deadline passed before the store was back; or its caller
        # cancelled it before that.
        ends = {line["end"] for line in history.told[job]}
        late = ends == {"redis_lost"} and asked is not None and asked.hurried
        cancelled = ends == {"cancelled"} and history.ledger.get(job) == "cancelled"
        if asked is not None and not late and not cancelled:
            yield f"{job}: was accepted and is lost"
        return
    yield from _end_problems(history, job, kept)
    if asked is not None:
        yield from _allowed_problems(history, job, kept, asked)
    yield from _entry_problems(job, kept, None if asked is None else asked.tokens)
    yield from _fenced_problems(job, kept, history.overs[job])
    yield from _deadline_problems(job, kept)
    yield from _reader_problems(job, history.reads[job], asked)


def _end_problems(history: History, job: str, kept: Kept) -> Iterator[str]:
    """One end: the record's, the stream's, and the one that everybody saw."""
    if kept.state not in ENDED:
        yield f"{job}: still {kept.state}"
        return
    kinds = [kind for _, kind, _ in kept.entries]
    if kinds.count("o") != 1 or kinds[-1] != "o":
        yield f"{job}: {kept.state}, and its stream of {len(kinds)} entries has {kinds.count('o')} ends"
        return
    status, code = kept.ends[0]
    if status != kept.state:
        yield f"{job}: its record says {kept.state}, its stream {status}"
    for state in history.seen[job]:
        if state != kept.state:
            yield f"{job}: was seen to have {state}, and has {kept.state} now"
    for line in [*history.told[job], *history.reads[job]]:
        end = DONE if status == "succeeded" else PUBLIC.get(code, code)
        if line["end"] not in (None, end):
            yield f"{job}: ended with {end}, and a reader was told {line['end']}"


def _allowed_problems(history: History, job: str, kept: Kept, asked: Asked) -> Iterator[str]:
    if not kept.ends:
        return
    status, code = kept.ends[0]
    allowed = {"", "attempts_exhausted"}
    if job in history.cancelled:
        allowed = {"cancelled", "attempts_exhausted"}
    if asked.hurried:
        allowed.add("deadline_exceeded")
    if not asked.restart:
        allowed.add("upstream_interrupted")
    if (code or "") not in allowed:
        yield f"{job} ({asked.kind}): ended as {status} with {code!r}"


def _entry_problems(job: str, kept: Kept, tokens: int | None) -> Iterator[str]:
    """The stream itself: attempts one after the other, each from its first event on without a gap, text in order."""
    at, word = Position(0, 0), 0
    for raw, kind, what in kept.entries:
        position = Position.parse(raw)
        count = what[0] if kind == "c" else 1
        if position <= at:
            yield f"{job}: {raw} ({kind}) stands after {at}"
        elif kind == "s":
            word = 0
        elif position.seq - count != (at.seq if position.fence == at.fence else 0):
            yield f"{job}: {raw} ({kind}, {count} events) follows {at}"
        for text in what[1] if kind == "c" else ():
            if text != str(word):
                yield f"{job}: {raw} says {text!r} where {word} was due"
            word = int(text) + 1 if text.isdigit() else word + 1
        at = position
    if kept.state == "succeeded" and tokens is not None and word != tokens:
        yield f"{job}: succeeded with {word} of {tokens} tokens"


def _fenced_problems(job: str, kept: Kept, overs: Sequence[Line]) -> Iterator[str]:
    """Nothing of an attempt once it was seen to be over, but the end of a job that only waited."""
    last = {line["fence"]: Position.parse(line["last"]) for line in reversed(overs)}
    for raw, kind, what in kept.entries:
        position = Position.parse(raw)
        if position <= last.get(position.fence, position) or kind == "s":
            continue
        if kind == "c" or what[0] not in LATE_END:
            yield f"{job}: {raw} ({kind}) was written by an attempt that was over at {last[position.fence]}"


def _deadline_problems(job: str, kept: Kept) -> Iterator[str]:
    for raw, kind, _ in kept.entries:
        if kind == "s" and Position.parse(raw).fence >= kept.deadline_ms:
            yield f"{job}: was claimed at {raw}, past its deadline of {kept.deadline_ms}"


def _dispatch_problems(history: History) -> Iterator[str]:
    for line in history.dispatches:
        kept = history.kept.get(line["job"])
        if kept is not None and line["ms"] > kept.deadline_ms:
            yield f"{line['job']}: was sent to its backend {line['ms'] - kept.deadline_ms} ms past its deadline"


# --- readers ----------------------------------------------------------------------------------------------------------


def _reader_problems(job: str, reads: Sequence[Line], asked: Asked | None) -> Iterator[str]:
    whole: list[list[list[str]]] = []
    for line in reads:
        journal = replayed(job, line["events"], asked.tokens if asked else None)
        yield from journal.problems
        if journal.resets and asked is not None and not asked.restart:
            yield f"{job}: began anew though it was to be broken off"
        if line["end"] is not None:
            whole.append(_comparable(line["events"]))
    for other in whole[1:]:
        if other != whole[0]:
            yield f"{job}: two readers were given different streams"


def _comparable(events: Sequence[Sequence[str]]) -> list[list[str]]:
    """The events as every reader must get them. Which of two empty attempts a reset names is of no account."""
    return [["", *event[1:]] if event[1] == "reset" else list(event) for event in events if event[0]]


def told_events(journal: Journal) -> list[list[str]]:
    """What a reader was given, as (id, name, what it said): a token's text, the end, or an error's code."""
    return [[event.id, event.name, _said(event)] for event in journal.events]


def _said(event: Event) -> str:
    if event.data == DONE:
        return DONE
    body: Any = json.loads(event.data)
    if "error" in body:
        return f"!{body['error']['code']}"
    return "".join(choice["delta"].get("content") or "" for choice in body["choices"])


def replayed(job: str, events: Iterable[Sequence[str]], tokens: int | None) -> Journal:
    """A reader's journal made again of what it was given."""
    journal = Journal(tokens=tokens, job_id=job)
    for position, name, said in events:
        journal.take(Event(_data(said), position, name))
    return journal


def _data(said: str) -> str:
    if said == DONE:
        return DONE
    if said.startswith("!"):
        return json.dumps({"error": {"code": said[1:]}}, separators=(",", ":"))
    return json.dumps({"choices": [{"delta": {"content": said}}]})


# --- recovery ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long a job whose worker was struck waited for its next attempt or its end; `plain`: the store was there."""

    job: str
    wait_ms: int
    plain: bool


def recoveries(lines: Sequence[Line], lease_s: float) -> list[Recovery]:
    """The waits of all jobs that a killed or frozen worker held."""
    kept = History.of(lines).kept
    store = [line["ms"] for line in lines if line["act"] == "fault" and "store" in line["kind"]]
    found: list[Recovery] = []
    for line in lines:
        if line["act"] != "fault":
            continue
        for job, fence in line["held"]:
            if job in kept and (after_ms := _went_on_ms(kept[job], fence)) is not None:
                near = (line["ms"] - 2_000 * lease_s, after_ms)
                plain = not any(near[0] <= at_ms <= near[1] for at_ms in store)
                found.append(Recovery(job, max(0, after_ms - line["ms"]), plain))
    return found


def _went_on_ms(kept: Kept, fence: int) -> int | None:
    """When the next attempt began, or else the job ended."""
    later = [Position.parse(raw).fence for raw, kind, _ in kept.entries if kind == "s"]
    return min((other for other in later if other > fence), default=kept.finished_ms or None)
