"""The first step of a batch: looks through its whole input, and has it begin or fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import orjson

from common.ledger.batches import FAILED, IN_PROGRESS, VALIDATING
from gateway.batches.desk import Desk, Held
from gateway.batches.lines import Fault, InputCheck, LineTooLong, RawLine
from gateway.batches.reading import LineReader

MOST_AT_ONCE: Final = 256
MOST_BYTES: Final = 1024 * 1024
# A line is a request's body and some words around it.
AROUND_BYTES: Final = 4096


async def validate(desk: Desk, held: Held) -> None:
    """The batch is in progress, or has failed; or it was cancelled meanwhile. Safe to repeat from the beginning."""
    check = InputCheck(held.batch.endpoint)
    most_bytes = desk.most_line_bytes + AROUND_BYTES
    reader = LineReader(desk.files, held.batch.input_file_id, most_bytes=most_bytes)
    try:
        while not check.full and (lines := await reader.next(MOST_AT_ONCE, MOST_BYTES)):
            # Beside the event loop: parsing is all that this does, and others want to be served.
            await asyncio.to_thread(_add, check, lines)
            await held.renew()
            if held.batch.status != VALIDATING:
                return
    except LineTooLong as error:
        check.too_long(error.number, most_bytes)
    finally:
        await reader.close()
    await _judge(desk, held, check)


def _add(check: InputCheck, lines: Sequence[RawLine]) -> None:
    for line in lines:
        if not check.full:
            check.add(line)


async def _judge(desk: Desk, held: Held, check: InputCheck) -> None:
    faults, now_ms = check.end(), await desk.queue.now_ms()
    if faults:
        values = {"status": FAILED, "ended_ms": now_ms, "errors": errors_of(faults)}
    else:
        values = {"status": IN_PROGRESS, "in_progress_ms": now_ms, "total": check.total, "model": check.model}
    await held.write(values, unless_cancelled=True)


def errors_of(faults: Sequence[Fault]) -> bytes:
    """A batch's `errors` as JSON."""
    return orjson.dumps({"object": "list", "data": [asdict(fault) for fault in faults]})
