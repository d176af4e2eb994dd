"""The bench's comparison: rows meet by what they are called, whatever was measured, and none is dropped in silence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.bench.compare import beside, called, read
from tests.bench.report import Table, Value, write_json


def table(*rows: Mapping[str, Value]) -> Table:
    made = Table("queue", "title", "method")
    for row in rows:
        made.add(row)
    return made


def earlier(path: Path, *rows: Mapping[str, Value], short: bool = False) -> Path:
    write_json(path, [table(*rows)], short=short)
    return path


def test_a_figure_stands_beside_the_earlier_one_with_its_change(tmp_path: Path) -> None:
    before = read(earlier(tmp_path / "f", {"engine": "headrace", "workers": 1, "jobs/s": 10_000.0, "old only": 1}))
    compared = beside(
        table({"engine": "headrace", "workers": 1, "jobs/s": 12_500.0, "new only": 2}), before, short=False
    )
    assert compared is not None
    assert compared.rows == [{"row": "headrace · 1", "jobs/s": "10,000 → 12,500 (+25 %)"}]


def test_rows_meet_by_name_and_not_by_place(tmp_path: Path) -> None:
    before = read(earlier(tmp_path / "f", {"engine": "arq", "jobs/s": 1.0}, {"engine": "headrace", "jobs/s": 2.0}))
    compared = beside(
        table({"engine": "headrace", "jobs/s": 2.0}, {"engine": "arq", "jobs/s": 1.0}), before, short=False
    )
    assert compared is not None
    assert [row["jobs/s"] for row in compared.rows] == ["2.00 → 2.00 (+0 %)", "1.00 → 1.00 (+0 %)"]


def test_a_row_that_only_one_run_has_is_shown_as_new_or_gone(tmp_path: Path) -> None:
    before = read(earlier(tmp_path / "f", {"engine": "arq", "jobs/s": 1.0}))
    compared = beside(table({"engine": "headrace", "jobs/s": 2.0}), before, short=False)
    assert compared is not None
    assert compared.rows == [{"row": "headrace", "": "new"}, {"row": "arq", "": "gone"}]


def test_a_short_run_is_not_set_beside_a_full_one(tmp_path: Path) -> None:
    before = read(earlier(tmp_path / "f", {"engine": "arq", "jobs/s": 1.0}, short=True))
    assert beside(table({"engine": "arq", "jobs/s": 1.0}), before, short=False) is None


def test_of_a_scenario_run_twice_the_later_run_counts(tmp_path: Path) -> None:
    earlier(tmp_path / "f", {"engine": "arq", "jobs/s": 1.0})
    before = read(earlier(tmp_path / "f", {"engine": "arq", "jobs/s": 4.0}))
    assert before == {"queue": [{"engine": "arq", "jobs/s": 4.0}]}


def test_a_version_and_a_measured_rate_are_no_part_of_a_rows_name() -> None:
    assert called({"system": "litellm 1.2.3"}) == called({"system": "litellm 1.3.0"})
    assert called({"load": "80% = 15.6/s", "keys": "distinct"}) == "80% · distinct"


@pytest.mark.parametrize("text", ["{}", "no JSON", "[]", '{"scenario": "queue", "short": false, "row": 1}'])
def test_a_file_of_another_kind_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    path = earlier(tmp_path / "f", {"engine": "arq"})
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read(path)
