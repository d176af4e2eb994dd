"""Every dialect in front of every kind of upstream, through real requests and recorded answers; `-s` prints the table.

What comes out wrong fails while the cells are computed: a request that the upstream would not take, an answer that says
something else in the dialect than the upstream said, a cut stream that looks whole.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.providers.dialect_table import ASKED, EMBEDDED, Cell, cells, long_table, notes, short_table
from tests.providers.faces import FACES
from tests.providers.faces_embeddings import EMBEDDING_FACES
from workers.providers.registry import KINDS

ROOT = Path(__file__).parents[2]
HOW = "python -m tests.providers.dialect_table prints it as it is"


@pytest.fixture(scope="module")
def found() -> list[Cell]:
    """Every cell."""
    return asyncio.run(cells())


def test_every_dialect_meets_every_kind_and_no_cell_is_empty(found: list[Cell]) -> None:
    faces = {face.name for face in (*FACES, *EMBEDDING_FACES)}
    assert {(cell.face, cell.kind) for cell in found} == {(face, kind) for face in faces for kind in KINDS}
    assert all(cell.text for cell in found)


def test_where_a_dialect_has_no_word_it_is_said_why(found: list[Cell]) -> None:
    silent = {cell.face for cell in found if cell.group == ASKED and cell.text == "–"}
    assert silent == {face.name for face in FACES if any(f"- {face.name}:" in line for line in notes().splitlines())}


def test_texts_go_through_everywhere_but_embeddings_at_anthropic(found: list[Cell]) -> None:
    texts = [cell for cell in found if cell.group in (ASKED, EMBEDDED) and cell.what == "text"]
    refused = {(cell.group, cell.kind) for cell in texts if cell.text not in ("passed", "converted")}
    assert refused == {(EMBEDDED, "anthropic")}


def test_the_readme_has_the_table_as_it_is(found: list[Cell]) -> None:
    table = short_table(found)
    sys.stdout.write(f"\n{table}\n")
    assert table in (ROOT / "README.md").read_text(encoding="utf-8"), HOW


def test_the_providers_readme_has_all_of_it_as_it_is(found: list[Cell]) -> None:
    readme = (ROOT / "workers" / "providers" / "README.md").read_text(encoding="utf-8")
    for part in (long_table(found), notes()):
        assert part in readme, HOW
