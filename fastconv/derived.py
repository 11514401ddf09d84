"""Tensors worked out from others and kept until one of these changes.

A change shows in a tensor's version, which every operation in place advances, in its memory, and in
its identity. What is written through `.data` does not show; `forget` is for that.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class _Kept(NamedTuple):
    sources: tuple[tuple[Any, int, int], ...]  # weak reference, version, memory of each
    number: float
    value: tuple[Tensor, ...]


class Derived:
    """`make(*sources)`, remembered with the first source for as long as that lives."""

    def __init__(self, make: Callable[..., tuple[Tensor, ...]]) -> None:
        self._make = make
        self._kept: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def kept(self, *sources: Tensor | None, number: float = 0.0) -> tuple[Tensor, ...] | None:
        """What is remembered for these very tensors as they are now."""
        found = self._kept.get(sources[0])
        if found is None or found.number != number:
            return None
        for t, (reference, version, place) in zip(sources, found.sources, strict=True):
            if t is None:
                if reference is not None:
                    return None
            elif (
                reference is None
                or reference() is not t
                or t._version != version
                or t.data_ptr() != place
            ):
                return None
        return found.value

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
            states = tuple(
                (None, 0, 0) if t is None else (weakref.ref(t), t._version, t.data_ptr())
                for t in sources
            )
            self._kept[sources[0]] = _Kept(states, number, value)
        return value

    def forget(self) -> None:
        self._kept.clear()
