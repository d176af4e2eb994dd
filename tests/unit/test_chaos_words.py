"""The chaos run's command line: what it is refused for before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import main


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_folder_that_holds_something_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_folder: bool
) -> None:
    (tmp_path / "history.jsonl").touch()
    place = tmp_path if is_folder else tmp_path / "history.jsonl"
    with pytest.raises(SystemExit) as ended:
        main(["--soak", "--out", str(place)])
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    last = told.err.rstrip().splitlines()[-1]
    assert f"{place} is there and is no empty folder" in last
