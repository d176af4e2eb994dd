"""The last step of a batch: its ended lines become the output file and the error file, and the batch has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import orjson

from common.contracts import Failure
from common.ledger.batch_lines import BAD, GOOD, UNDONE
from common.ledger.files import File
from gateway.batches.desk import Desk, Held
from gateway.batches.lines import RawLine
from gateway.batches.reading import LineReader
from gateway.batches.records import Stub, line_digest, undone_line
from gateway.files import FileWriter

OUTPUT_PURPOSE: Final = "batch_output"
MOST_AT_ONCE: Final = 512
MOST_BYTES: Final = 4 * 1024 * 1024


class Assembly:
    """Makes both files anew each time: what an owner left that died over them is nobody's, and is swept."""

    def __init__(self, desk: Desk, held: Held) -> None:
        self._desk = desk
        self._held = held

    async def end(self, status: str, why: Failure | None) -> None:
        """The batch has ended so, with its files. `why`: what is said of the lines that were never begun."""
        output, errors = self._writer(), self._writer()
        await self._copy(output, (GOOD,))
        await self._copy(errors, (BAD, UNDONE))
        if why is not None and self._held.batch.total:
            await self._add_unbegun(errors, why)
        await self._write(status, output, errors)

    def _writer(self) -> FileWriter:
        return FileWriter(self._desk.files, self._held.batch.tenant, self._desk.queue.now_ms)

    async def _copy(self, file: FileWriter, states: Sequence[str]) -> None:
        after = 0
        while rows := await self._desk.lines.records(
            self._held.batch.id, states, after=after, most=MOST_AT_ONCE, most_bytes=MOST_BYTES
        ):
            after = rows[-1][0]
            await self._add(file, b"".join([record for _, record in rows]))

    async def _add(self, file: FileWriter, data: bytes) -> None:
        if not file.created_ms:
            await file.begin()
        await file.write(data)
        await self._held.renew()

    async def _add_unbegun(self, file: FileWriter, why: Failure) -> None:
        batch = self._held.batch
        reader = LineReader(
            self._desk.files, batch.input_file_id, first_byte=batch.next_byte, first_line=batch.next_line
        )
        try:
            while lines := await reader.next(MOST_AT_ONCE, MOST_BYTES):
                await self._add(file, await asyncio.to_thread(_unbegun, batch.id, lines, why))
        finally:
            await reader.close()

    async def _write(self, status: str, output: FileWriter, errors: FileWriter) -> None:
        now_ms = await self._desk.queue.now_ms()
        values: dict[str, object] = {"status": status, "ended_ms": now_ms}
        files: list[File] = []
        for kind, file in (("output", output), ("error", errors)):
            if file.created_ms:
                await file.end()
                files.append(self._file(file, kind, now_ms))
                values[f"{kind}_file_id"] = file.id
        await self._held.write(values, files=files)

    def _file(self, file: FileWriter, kind: str, now_ms: int) -> File:
        batch = self._held.batch
        expires_ms = now_ms + 1000 * batch.output_life_s if batch.output_life_s else None
        name = f"{batch.id}_{kind}.jsonl"
        return File(file.id, batch.tenant, name, OUTPUT_PURPOSE, file.size_bytes, now_ms, expires_ms)


def _unbegun(batch_id: str, lines: Sequence[RawLine], why: Failure) -> bytes:
    stubs = [
        Stub(line.number, line_digest(batch_id, line.number), orjson.dumps(orjson.loads(line.data)["custom_id"]))
        for line in lines
    ]
    return b"".join([undone_line(stub, why).record for stub in stubs])
