"""What journeys say to a gateway: scripts for the echo model, jobs, streams taken whole or cut, raw exchanges."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx
import orjson

from tests.support.fleet import KEY, until

CHAT: Final = "/v1/chat/completions"
ENDED: Final = frozenset({"succeeded", "failed", "cancelled", "expired"})


def messages(words: str | None = None, **script: Any) -> Any:
    """A user's message: these words, or a script for the echo model."""
    text = words if words is not None else "echo: " + orjson.dumps(script).decode()
    return [{"role": "user", "content": text}]


def chat(model: str = "echo", *, stream: bool = False, words: str | None = None, **script: Any) -> dict[str, Any]:
    """A chat request whose answer is these words, or goes by a script."""
    return {"model": model, "messages": messages(words, **script), **({"stream": True} if stream else {})}


def submit(client: httpx.Client, body: dict[str, Any], **more: Any) -> str:
    """The id of a job just submitted."""
    answer = client.post("/v1/jobs", json={"endpoint": CHAT, "body": body, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def record(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """A job as it stands."""
    answer = client.get(f"/v1/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def when(client: httpx.Client, job_id: str, *states: str, limit_s: float = 15) -> dict[str, Any]:
    """A job once it is in one of these states (without any: once it has ended)."""
    wanted = states or ENDED

    def look() -> dict[str, Any] | None:
        found = record(client, job_id)
        return found if found["status"] in wanted else None

    found = until(look, limit_s, f"job {job_id} never was {' or '.join(sorted(wanted))}")
    assert found is not None
    return found


# --- streams ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One event of a stream as it stood in the bytes."""

    id: str
    data: str
    name: str = ""

    @property
    def json(self) -> Any:
        """Its data as JSON."""
        return orjson.loads(self.data)


def frames(raw: bytes) -> list[Frame]:
    """The whole events in these bytes, in order; comments and `retry:` left out. An event that has no end is none."""
    found: list[Frame] = []
    for block in raw.decode(errors="replace").split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if "data" in fields:
            found.append(Frame(fields.get("id", ""), fields["data"], fields.get("event", "")))
    return found


def text_of(events: list[Frame]) -> str:
    """What the first choice's deltas say together."""
    pieces = [event.json["choices"] for event in events if event.data != "[DONE]" and "choices" in event.json]
    return "".join(choices[0]["delta"].get("content") or "" for choices in pieces if choices)


def follow(
    client: httpx.Client, job_id: str, after: str | None = None, *, most_bytes: int | None = None
) -> tuple[int, bytes]:
    """(status, body) of a job's events after a position; hangs up after so many bytes."""
    headers = {} if after is None else {"last-event-id": after}
    raw = b""
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        for piece in answer.iter_raw():
            raw += piece
            if most_bytes is not None and len(raw) >= most_bytes:
                return answer.status_code, raw[:most_bytes]
    return answer.status_code, raw


# --- bytes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawAnswer:
    """An HTTP answer as its bytes came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    closed: bool

    def header(self, name: str) -> str | None:
        """The one header of this name, or None. Raises ValueError where it came twice."""
        values = [value for other, value in self.headers if other.lower() == name]
        if len(values) > 1:
            raise ValueError(f"{name} came {len(values)} times")
        return values[0] if values else None


def exchange(port: int, request: bytes, *, limit_s: float = 8, until_closed: bool = True) -> RawAnswer:
    """What a gateway answers to these very bytes; `closed`: it ended the connection."""
    raw = b""
    closed = False
    limit = time.monotonic() + limit_s
    with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
        try:
            connection.sendall(request)
        except ConnectionError:
            pass  # it has answered before it had all
        while time.monotonic() < limit and not (raw and not until_closed and _is_whole(raw)):
            try:
                piece = connection.recv(65_536)
            except (TimeoutError, ConnectionResetError):
                break
            if not piece:
                closed = True
                break
            raw += piece
    return _parsed(raw, closed=closed)


def _is_whole(raw: bytes) -> bool:
    head, end, body = raw.partition(b"\r\n\r\n")
    length = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end and length and len(body) >= length[0])


def _parsed(raw: bytes, *, closed: bool) -> RawAnswer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return RawAnswer(int(first.split(" ")[1]) if first else 0, pairs, body, closed)


def post_bytes(body: bytes, *headers: str, path: str = CHAT, key: str = KEY, length: bool = True) -> bytes:
    """A POST as bytes, on a connection that ends with it."""
    lines = [f"POST {path} HTTP/1.1", f"authorization: Bearer {key}", "connection: close", *headers]
    names = {line.partition(":")[0].lower() for line in headers}
    if "host" not in names:
        lines.append("host: gateway.test")
    if "content-type" not in names:
        lines.append("content-type: application/json")
    if length:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def unchunked(body: bytes) -> bytes:
    """The payload of a body in chunks. Raises AssertionError where it does not end as one must."""
    payload = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        count = int(size, 16)
        if count == 0:
            assert rest == b"\r\n", rest
            return payload
        payload += rest[:count]
        assert rest[count : count + 2] == b"\r\n"
        body = rest[count + 2 :]
