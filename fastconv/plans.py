"""Decisions remembered by everything that they rest on, within a limit."""

from __future__ import annotations

from typing import Any

CALLS = 4096  # ways of calling a function, over all shapes
MODULE = 64  # of calling one module

# What making a key raises of arguments that cannot have a plan: no tensors at all; a list, which
# has no hash; sparse or nested tensors, without strides; sizes that are not numbers yet. The long
# way answers each of them, or raises PyTorch's error.
NO_KEY = (TypeError, AttributeError, RuntimeError, NotImplementedError)


class Plans(dict[Any, Any]):
    """A dictionary that starts afresh when it is full: who varies shapes without end pays for it
    with a decision now and then, not with memory. Lookups are a dictionary's own."""

    __slots__ = ("limit",)

    def __init__(self, limit: int = CALLS) -> None:
        super().__init__()
        self.limit = limit

    def remember(self, key: Any, plan: Any) -> None:
        """key: something with a hash."""
        if len(self) >= self.limit:
            self.clear()
        self[key] = plan
