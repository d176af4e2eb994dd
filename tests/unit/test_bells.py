"""Which bells a worker waits on, whom a ring is for, and how many slots are kept."""

from __future__ import annotations

import pytest

from common.queue import NUDGE
from workers.bells import Bell, Ring, bells, ring_of
from workers.lanes import kept_slots


def test_a_worker_hears_urgent_work_first_then_its_own_bell_then_all_else() -> None:
    assert list(bells(["a", "b"], "w", ())) == [
        "hr:{a}:urgent",
        "hr:{b}:urgent",
        "hr:{a}:bell:w",
        "hr:{b}:bell:w",
        "hr:{a}:bell",
        "hr:{b}:bell",
    ]


def test_where_slots_are_kept_only_other_works_bell_is_left_out() -> None:
    assert list(bells(["a", "b"], "w", {"a"})) == [
        "hr:{a}:urgent",
        "hr:{b}:urgent",
        "hr:{a}:bell:w",
        "hr:{b}:bell:w",
        "hr:{b}:bell",
    ]


@pytest.mark.parametrize(
    ("urgent", "element", "ring"),
    [
        (True, b"1", Ring("p", urgent=True)),
        (False, b"1", Ring("p", urgent=False)),
        (None, b"0", Ring("p", urgent=True)),
        (None, b"1", Ring("p", urgent=False)),
        (None, b"2", Ring("p", urgent=False)),
        (None, NUDGE, Ring("p", urgent=False, nudged=True)),
    ],
)
def test_a_ring_is_for_its_bells_work_and_on_a_workers_own_bell_for_the_class_it_tells(
    urgent: bool | None, element: bytes, ring: Ring
) -> None:
    assert ring_of(Bell("p", urgent), element) == ring


@pytest.mark.parametrize(
    ("concurrency", "share", "kept"),
    [(1, 0.05, 0), (7, 0.5, 0), (8, 0.05, 1), (20, 0.05, 1), (21, 0.05, 2), (64, 0.05, 4), (140, 0.05, 7), (64, 0, 0)],
)
def test_of_eight_slots_and_more_a_share_is_kept_rounded_up(concurrency: int, share: float, kept: int) -> None:
    assert kept_slots(concurrency, share) == kept
