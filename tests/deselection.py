"""Tests that cannot run here are deselected: a skip would count as a test that nobody ran."""

from __future__ import annotations

from collections.abc import Collection

import pytest


def deselect(config: pytest.Config, items: list[pytest.Item], marks: Collection[str]) -> None:
    """Takes the items that have one of these marks out of the run."""
    deselected = {i for i in items if any(i.get_closest_marker(mark) for mark in marks)}
    if deselected:
        config.hook.pytest_deselected(items=[i for i in items if i in deselected])
        items[:] = [i for i in items if i not in deselected]
