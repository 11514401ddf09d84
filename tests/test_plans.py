"""What a call's plans are kept in."""

from __future__ import annotations

from fastconv import select
from fastconv.plans import Plans


def test_starts_afresh_when_full():
    plans = Plans(limit=3)
    for key in range(3):
        plans.remember(key, str(key))
    assert plans == {0: "0", 1: "1", 2: "2"}
    plans.remember(3, "3")
    assert plans == {3: "3"}


def test_forgotten_with_decisions():
    plans = select.forget_with(Plans())
    plans.remember("key", "plan")
    select.forget()
    assert not plans
