"""An uploaded form read as a stream: the file's bytes go into the store as they come, its fields are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from common.errors import BadRequest, HeadraceError, TooLarge
from common.ledger.files import File, FilesLedger
from gateway.dialects.files import check_fields, life_s, shown_name
from gateway.files import FileWriter, Now
from gateway.http import RequestTimeout, UnsupportedMediaType

MOST_FILE_BYTES: Final = 200 * 1024 * 1024
# What a form may have around its file: boundaries, heads of its parts, the other fields.
AROUND_BYTES: Final = 64 * 1024
MOST_FIELDS: Final = 8
MOST_FIELD_BYTES: Final = 512


@dataclass(slots=True)
class _Part:
    """One part of the form, so far."""

    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


class Form:
    """A form's bytes in, its file's bytes out; the other fields, which are short, are kept."""

    def __init__(self, boundary: bytes) -> None:
        names = (
            "part_begin",
            "part_data",
            "part_end",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
        )
        callbacks: Any = {f"on_{name}": getattr(self, f"_{name}") for name in (*names, "end")}
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError:
            raise _unreadable() from None
        self._part = _Part()
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._out: list[bytes] = []
        self._parts = 0
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The bytes of the file that are in this piece of the form. Raises BadRequest."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise _unreadable() from None
        found = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return found

    def _part_begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > MOST_FIELDS:
            raise BadRequest(f"The form has too many fields: at most {MOST_FIELDS}.")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        name, value = bytes(self._header[0]).lower(), bytes(self._header[1])
        self._header = (bytearray(), bytearray())
        if name == b"content-disposition":
            _, options = parse_options_header(value)
            self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
            filename = options.get(b"filename")
            self._part.filename = None if filename is None else filename.decode("utf-8", "replace")

    def _headers_finished(self) -> None:
        part = self._part
        if not part.name or part.name in self.fields or (part.name == "file" and self.filename is not None):
            shown = part.name[:64]
            raise BadRequest(f"{shown}: given more than once." if shown else "A part of the form has no name.")
        if part.name == "file":
            if part.filename is None:
                raise BadRequest("file: must be sent as a file, with a name.", param="file")
            self.filename = part.filename

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file":
            self._out.append(data[start:end])
            return
        self._part.value.extend(data[start:end])
        if len(self._part.value) > MOST_FIELD_BYTES:
            shown = self._part.name[:64]
            raise BadRequest(f"{shown}: at most {MOST_FIELD_BYTES} bytes.", param=shown)

    def _part_end(self) -> None:
        if self._part.name != "file":
            self.fields[self._part.name] = self._part.value.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


async def receive_file(request: Request, files: FilesLedger, tenant: str, now: Now, *, timeout_s: float) -> File:
    """The uploaded file, once all of it is stored and it is there for its tenant. `timeout_s`: for each next piece.

    Raises TooLarge, RequestTimeout, UnsupportedMediaType, BadRequest, LedgerUnavailable, StoreUnavailable.
    """
    form = Form(_boundary(request))
    writer = FileWriter(files, tenant, now)
    await writer.begin()
    finished = False
    try:
        async for piece in _pieces(request, timeout_s):
            await writer.write(form.feed(piece))
            if writer.size_bytes > MOST_FILE_BYTES:
                raise _too_large()
        _check(form)
        await writer.end()
        file = _file(form, writer, tenant)
        await files.finish(file)
        finished = True
    finally:
        if not finished:
            with suppress(HeadraceError):
                await files.give_up(writer.id)
    return file


def _file(form: Form, writer: FileWriter, tenant: str) -> File:
    kept_s = life_s(form.fields)
    return File(
        writer.id,
        tenant,
        shown_name(form.filename or ""),
        form.fields["purpose"],
        writer.size_bytes,
        writer.created_ms,
        None if kept_s is None else writer.created_ms + 1000 * kept_s,
    )


def _boundary(request: Request) -> bytes:
    headers = request.headers
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("Compressed bodies are not accepted: send it without Content-Encoding.")
    if "origin" in headers and not ("authorization" in headers or "x-api-key" in headers):
        # A page of another site can send a form without being asked, but no header of its own.
        raise UnsupportedMediaType("A form from a web page must come with an Authorization header.")
    kind, options = parse_options_header(headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UnsupportedMediaType("The body must be a form: send it as 'Content-Type: multipart/form-data'.")
    if int(headers.get("content-length") or 0) > MOST_FILE_BYTES + AROUND_BYTES:
        raise _too_large()
    return options[b"boundary"]


async def _pieces(request: Request, timeout_s: float) -> AsyncGenerator[bytes]:
    """The body's pieces as they come."""
    more, size_bytes = True, 0
    while more:
        try:
            async with asyncio.timeout(timeout_s):
                message = await request.receive()
        except TimeoutError:
            raise RequestTimeout() from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        piece: bytes = message.get("body", b"")
        size_bytes += len(piece)
        if size_bytes > MOST_FILE_BYTES + AROUND_BYTES:
            raise _too_large()
        more = message.get("more_body", False)
        yield piece


def _check(form: Form) -> None:
    if not form.ended:
        raise _unreadable()
    if form.filename is None:
        raise BadRequest("file: this field is required.", param="file")
    check_fields(form.fields)


def _too_large() -> TooLarge:
    return TooLarge(f"The file is too large: at most {MOST_FILE_BYTES} bytes.")


def _unreadable() -> BadRequest:
    return BadRequest("The body is not a valid form (multipart/form-data).")
