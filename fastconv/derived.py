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
    sources: tuple[Any, ...]  # weak references
    state: tuple[Any, ...]
    value: tuple[Tensor, ...]


class Derived:
    """`make(*sources)`, remembered with the first source for as long as that lives."""

    def __init__(self, make: Callable[..., tuple[Tensor, ...]]) -> None:
        self._make = make
        self._kept: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __call__(self, *sources: Tensor | None, number: float = 0.0) -> tuple[Tensor, ...]:
        """number: one more argument of `make`, if it is not 0, that the value rests on."""
        extra = (number,) if number else ()
        try:
            state = (number, *((t._version, t.data_ptr()) for t in sources if t is not None))
        except RuntimeError:  # inference tensors have no versions
            with torch.no_grad():
                return self._make(*sources, *extra)
        found = self._kept.get(sources[0])
        if (
            found is not None
            and found.state == state
            and all(
                (r if r is None else r()) is t for r, t in zip(found.sources, sources, strict=True)
            )
        ):
            return found.value
        with torch.inference_mode(False), torch.no_grad():
            value = self._make(*sources, *extra)
        references = tuple(None if t is None else weakref.ref(t) for t in sources)
        self._kept[sources[0]] = _Kept(references, state, value)
        return value

    def forget(self) -> None:
        self._kept.clear()
