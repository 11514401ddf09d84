"""Tensors worked out from others and kept until one of these changes.

A change shows in a tensor's version, which every operation in place advances, in its memory, and in
its identity. What is written through `.data` does not show; `forget` is for that.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastconv.plans import MODULE, Plans


class Entry:
    """What is remembered of some sources: `value`, and what its users plan with it."""

    __slots__ = ("number", "plans", "sources", "value")

    def __init__(
        self, sources: tuple[tuple[Any, int, int] | None, ...], number: float,
        value: tuple[Tensor, ...],
    ) -> None:  # fmt: skip
        self.sources = sources  # weak reference, version, memory of each
        self.number, self.value = number, value
        self.plans = Plans(MODULE)


class Derived:
    """`make(*sources)`, remembered with the first source for as long as that lives."""

    def __init__(self, make: Callable[..., tuple[Tensor, ...]]) -> None:
        self._make = make
        self._entries: dict[int, Entry] = {}  # by the first source's id, while that lives

    def entry(self, *sources: Tensor | None, number: float = 0.0) -> Entry | None:
        """What is remembered for these very tensors as they are now."""
        found = self._entries.get(id(sources[0]))
        if found is None or found.number != number:
            return None
        for t, state in zip(sources, found.sources, strict=True):
            if t is None:
                if state is not None:
                    return None
            elif (
                state is None
                or state[0]() is not t
                or t._version != state[1]
                or t.data_ptr() != state[2]
            ):
                return None
        return found

    def kept(self, *sources: Tensor | None, number: float = 0.0) -> tuple[Tensor, ...] | None:
        """The value of `entry`."""
        found = self.entry(*sources, number=number)
        return None if found is None else found.value

    def __call__(self, *sources: Tensor | None, number: float = 0.0) -> tuple[Tensor, ...]:
        """number: one more argument of `make`, if it is not 0, that the value rests on."""
        extra = (number,) if number else ()
        if any(t is not None and t.is_inference() for t in sources):  # these have no versions
            with torch.no_grad():
                return self._make(*sources, *extra)
        value = self.kept(*sources, number=number)
        if value is None and sources[0].is_cuda and torch.cuda.is_current_stream_capturing():
            # What a graph records has no value before the graph runs.
            with torch.no_grad():
                return self._make(*sources, *extra)
        if value is None:
            with torch.inference_mode(False), torch.no_grad():
                value = self._make(*sources, *extra)
            self._keep(sources, number, value)
        return value

    def _keep(
        self, sources: tuple[Tensor | None, ...], number: float, value: tuple[Tensor, ...]
    ) -> None:
        entries, key = self._entries, id(sources[0])

        def drop(reference: Any) -> None:
            found = entries.get(key)
            if found is not None and found.sources[0][0] is reference:
                del entries[key]

        def state(t: Tensor | None, *callback: Callable) -> tuple[Any, int, int] | None:
            return None if t is None else (weakref.ref(t, *callback), t._version, t.data_ptr())

        states = (state(sources[0], drop), *(state(t) for t in sources[1:]))
        entries[key] = Entry(states, number, value)

    def forget(self) -> None:
        self._entries.clear()
