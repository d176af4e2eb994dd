"""Pure: which member of a virtual model takes a request, and why: its score, then the cheapest that may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from common.catalogue import MAX_SCORE, Price
from common.contracts import JsonObject
from common.needs import Needs

Quality = Literal["low", "standard", "high"]
QUALITIES: Final[tuple[Quality, ...]] = ("low", "standard", "high")

# The table that README.md shows: points for prompts of at least so many tokens, and for what else is asked.
LENGTHS: Final = ((32_000, 40), (8_000, 30), (2_000, 20), (500, 10))
EFFORTS: Final = {"medium": 15, "high": 30, "xhigh": 30, "max": 30}
MANY_TOOLS: Final = 5
LOOKED_AT_CHARACTERS: Final = 64 * 1024
LEAST_CODE_LINES: Final = 3
_BEGINNINGS: Final = (
    *("def ", "async def ", "class ", "import ", "#include", "function ", "const ", "var ", "public ", "private "),
    *("func ", "fn ", "SELECT ", "INSERT ", "CREATE ", "Traceback (", "if (", "for (", "while ("),
)
_ENDINGS: Final = (";", "{", "}", "):", "=>")


@dataclass(frozen=True, slots=True)
class Member:
    """A model that may be chosen. `able`: it can do what is asked and has room for it."""

    name: str
    able: bool = True
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that was chosen, and why, in a line of ASCII."""

    model: str
    reason: str


def score(body: JsonObject, prompt_tokens: int, needs: Needs) -> dict[str, int]:
    """What a request's points are for; their sum, at most 100, says how strong a model it wants."""
    tools = len(body.get("tools") or ()) + len(body.get("functions") or ())
    form: JsonObject = body.get("response_format") or {}
    points = {
        "length": next((points for least, points in LENGTHS if prompt_tokens >= least), 0),
        "tools": 0 if tools == 0 else 20 if tools <= MANY_TOOLS else 30,
        "schema": 15 if "json_schema" in needs else 5 if form.get("type") == "json_object" else 0,
        "code": 15 if has_code(body["messages"]) else 0,
        "media": 10 if needs.keys() & {"vision", "audio", "video", "files"} else 0,
        "reasoning": EFFORTS.get(str(body.get("reasoning_effort")), 0),
    }
    return {name: worth for name, worth in points.items() if worth}


def total(points: Mapping[str, int]) -> int:
    """The score: from 0 to 100."""
    return min(sum(points.values()), MAX_SCORE)


def wanted(points: Mapping[str, int], quality: Quality) -> int:
    """The score that counts: the caller's word goes before what the request looks like."""
    return {"low": 0, "standard": total(points), "high": MAX_SCORE}[quality]


def choose(members: Sequence[Member], floor: int, prompt_tokens: int, answer_tokens: int) -> Choice | None:
    """The cheapest able member from `floor` on, members standing from the weakest to the strongest.

    Where none from there on is able, the strongest of those below; None where none is able at all. Of equal costs the
    weaker goes first; those whose price nobody knows come after those whose price is known.
    """
    able = [(place, member) for place, member in enumerate(members) if member.able]
    if not able:
        return None
    enough = [(place, member) for place, member in able if place >= floor]
    if not enough:
        return Choice(able[-1][1].name, f"nothing from {members[floor].name} on can serve it")
    costs = {place: expected_usd(member.price, prompt_tokens, answer_tokens) for place, member in enough}
    place, member = min(enough, key=lambda one: _order(costs[one[0]], one[0]))
    return Choice(member.name, _why([other.name for _, other in enough], costs[place]))


def expected_usd(price: Price | None, prompt_tokens: int, answer_tokens: int) -> float | None:
    """What so many tokens cost; None where nobody knows."""
    if price is None:
        return None
    return (prompt_tokens * price.input + answer_tokens * price.output) / 1_000_000


def _order(cost_usd: float | None, place: int) -> tuple[bool, float, int]:
    return cost_usd is None, cost_usd or 0.0, place


def _why(names: Sequence[str], cost_usd: float | None) -> str:
    if len(names) == 1:
        among = "the only one strong and able enough"
    else:
        among = f"the {'weakest' if cost_usd is None else 'cheapest'} of {', '.join(names)}"
    return f"{among}, at no known price" if cost_usd is None else f"{among}, about ${cost_usd:.6f}"


def told(points: Mapping[str, int], quality: Quality) -> str:
    """The score in words: `score 35 (length 20, code 15)`."""
    parts = ", ".join(f"{name} {worth}" for name, worth in points.items())
    text = f"score {total(points)}" + (f" ({parts})" if parts else "")
    return text if quality == "standard" else f"quality {quality}, {text}"


# --- code -------------------------------------------------------------------------------------------------------------


def has_code(messages: Sequence[JsonObject]) -> bool:
    """Whether the prompt holds code: a fence, or three lines that look like it, in its last 64 Ki characters."""
    left = LOOKED_AT_CHARACTERS
    for text in _texts(messages):
        piece = text[-left:]
        if "```" in piece or _code_lines(piece):
            return True
        left -= len(piece)
        if left <= 0:
            return False
    return False


def _code_lines(text: str) -> bool:
    found = 0
    for line in text.splitlines():
        bare = line.strip()
        found += bare.startswith(_BEGINNINGS) or bare.endswith(_ENDINGS)
        if found >= LEAST_CODE_LINES:
            return True
    return False


def _texts(messages: Sequence[JsonObject]) -> Iterator[str]:
    """The texts of the messages, the last one first."""
    for message in reversed(messages):
        content: Any = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list):
            for part in cast(list[JsonObject], content):
                if part["type"] == "text":
                    yield part["text"]
