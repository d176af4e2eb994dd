"""The tables of dialects × kinds of upstreams, which `python -m tests.providers.dialect_table` prints.

README.md has the first: what each dialect can't have of each kind. The providers' README has the second: all of it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tests.providers import faces_embeddings
from tests.providers.crossing import (
    DROPPED,
    FAILURES,
    LEFT_OUT,
    NO_WORD,
    PARTS,
    REFUSED,
    WHOLE_ONLY,
    Upstreams,
    answered,
    asked,
    failed,
)
from tests.providers.faces import FACES, FEATURES
from tests.providers.faces_embeddings import EMBEDDING_FACES, embedding_cell
from tests.support.upstream import Reply, Upstream
from workers.providers.registry import KINDS
from workers.providers.transport import new_client

ASKED: Final = "asked"
ANSWERED: Final = "answered"
FAILED: Final = "failed"
EMBEDDED: Final = "embedded"
_CELLS: Final = {ASKED: FEATURES, ANSWERED: tuple(PARTS), FAILED: FAILURES}


@dataclass(frozen=True)
class Cell:
    """What one dialect and one kind make of one thing."""

    group: str
    what: str
    face: str
    kind: str
    text: str


async def cells() -> list[Cell]:
    """Every cell there is."""
    found: list[Cell] = []
    async with Upstreams.running() as upstreams:
        for group, names in _CELLS.items():
            for what in names:
                for face in FACES:
                    for kind in KINDS:
                        if group == ASKED:
                            text = await asked(face, kind, what)
                        else:
                            text = await (answered if group == ANSWERED else failed)(upstreams, face, kind, what)
                        found.append(Cell(group, what, face.name, kind, text))
    return found + await _embedded()


async def _embedded() -> list[Cell]:
    async with Upstream(lambda _: Reply()).running() as upstream, new_client() as client:
        return [
            Cell(EMBEDDED, what, face.name, kind, await embedding_cell(face, kind, what, client, upstream))
            for what in faces_embeddings.FEATURES
            for face in EMBEDDING_FACES
            for kind in KINDS
        ]


Found = list[Cell]


def _row(found: Found, group: str, what: str, face: str) -> tuple[str, ...]:
    by_kind = {c.kind: c.text for c in found if (c.group, c.what, c.face) == (group, what, face)}
    return tuple(by_kind[kind] for kind in KINDS)


def _alike(rows: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    """The rows, those of which the same is true as one."""
    by_texts: dict[tuple[str, ...], list[str]] = {}
    for name, texts in rows:
        by_texts.setdefault(texts, []).append(name)
    return ((names, texts) for texts, names in by_texts.items())


# --- the short one ---------------------------------------------------------------------------------------------------


def short_table(found: Found) -> str:
    """For each dialect what it has no word for, and for each kind what of the rest can't be had."""
    lines = [f"| dialect | has no word for | {' | '.join(KINDS)} |", f"| --- | --- |{' --- |' * len(KINDS)}"]
    chats = [(face.name, _chat_row(found, face.name)) for face in FACES]
    vectors = [(face.name, _summary(found, EMBEDDED, faces_embeddings.FEATURES, face.name)) for face in EMBEDDING_FACES]
    lines += [f"| {', '.join(names)} | {' | '.join(texts)} |" for names, texts in _alike(chats)]
    lines += [f"| {', '.join(names)}: embeddings | {' | '.join(texts)} |" for names, texts in _alike(vectors)]
    return "\n".join(lines)


def _chat_row(found: Found, face: str) -> tuple[str, ...]:
    lacking, *rest = _summary(found, ASKED, FEATURES, face)
    silent = [part for part in PARTS if {LEFT_OUT, WHOLE_ONLY} & set(_row(found, ANSWERED, part, face))]
    told = [*([lacking] if lacking != NO_WORD else []), *(f"{part} ({_how(found, part, face)})" for part in silent)]
    return ", ".join(told) or NO_WORD, *rest


def _how(found: Found, part: str, face: str) -> str:
    return next(text for text in _row(found, ANSWERED, part, face) if text in (LEFT_OUT, WHOLE_ONLY))


def _summary(found: Found, group: str, features: Iterable[str], face: str) -> tuple[str, ...]:
    rows = {feature: _row(found, group, feature, face) for feature in features}
    # What every kind refuses is refused by the dialect.
    lacking = [feature for feature, texts in rows.items() if set(texts) <= {NO_WORD, REFUSED}]
    kinds = [
        {feature: rows[feature][place] for feature in rows if feature not in lacking} for place in range(len(KINDS))
    ]
    return ", ".join(lacking) or NO_WORD, *map(_served, kinds)


def _served(by_feature: dict[str, str]) -> str:
    """What a kind makes of what a dialect has words for."""
    if by_feature and set(by_feature.values()) == {REFUSED}:
        return "none"
    refused = [feature for feature, text in by_feature.items() if text == REFUSED]
    dropped = [feature for feature, text in by_feature.items() if text == DROPPED]
    told = [f"not {', '.join(refused)}"] if refused else []
    told += [f"heeds no {', '.join(dropped)}"] if dropped else []
    return "; ".join(told) or "all"


# --- the long one ----------------------------------------------------------------------------------------------------


def long_table(found: Found) -> str:
    """Everything; dialects of which the same is true stand in one row, and those that have no word for it in none."""
    lines = [f"| | dialects | {' | '.join(KINDS)} |", f"| --- | --- |{' --- |' * len(KINDS)}"]
    for group, names in {**_CELLS, EMBEDDED: faces_embeddings.FEATURES}.items():
        faces = [face.name for face in (EMBEDDING_FACES if group == EMBEDDED else FACES)]
        for what in names:
            for some, texts in _alike((face, _row(found, group, what, face)) for face in faces):
                if set(texts) != {NO_WORD}:
                    shown = "all" if some == faces else ", ".join(some)
                    lines.append(f"| {group}: {what} | {shown} | {' | '.join(texts)} |")
    return "\n".join(lines)


def notes() -> str:
    """Why a dialect has no word for a thing."""
    return "\n".join(f"- {face.name}: {face.why}." for face in FACES if face.why)


if __name__ == "__main__":
    everything = asyncio.run(cells())
    sys.stdout.write(f"{short_table(everything)}\n\n{long_table(everything)}\n\n{notes()}\n")
