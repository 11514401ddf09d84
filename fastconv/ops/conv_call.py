"""What one direction of a convolution does, worked out once for every kind of call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv import gpu, select
from fastconv.problem import ConvSpec, packed_moves, packed_sizes

_NO_FALLBACK = (select.AUTO, select.ATEN)
_calls: dict[Any, Call] = select.forget_with({})
_threads = torch.get_num_threads


class Geometry(NamedTuple):
    """How the filter moves; one entry per spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def inherited(algo: str) -> str:
    """The algorithm for the gradients of a call with `algo`: it where it applies, else auto."""
    if algo.endswith(select.OR_AUTO) or select.split_precision(algo)[0] in _NO_FALLBACK:
        return algo
    return algo + select.OR_AUTO


class Call:
    """One direction of one problem: `name` runs, the gradients choose their own from `algo`.

    aten: whether it is PyTorch's. passes: who runs the passes that a fused operation needs besides
    (`norm_run`), once `select_fused` has said so. channels_last: the memory format of the result.
    packed: what the
    `.packed` overload of the direction's op takes for the geometry and, in the gradients, the
    result's size; None where a number is too large for it.
    """

    __slots__ = (
        "_gradients",
        "algo",
        "aten",
        "channels_last",
        "geometry",
        "input_size",
        "name",
        "packed",
        "passes",
        "weight_size",
    )

    def __init__(
        self,
        direction: str,
        name: str,
        algo: str,
        geometry: Geometry,
        channels_last: bool,
        input_size: Sequence[int],
        weight_size: Sequence[int],
    ) -> None:
        self.name, self.algo = name, algo
        self.aten = select.split_precision(name)[0] == select.ATEN
        self.geometry, self.channels_last = geometry, channels_last
        self.input_size, self.weight_size = tuple(input_size), tuple(weight_size)
        self.passes: str | None = None
        self._gradients: dict[str, tuple[Any, Call]] = {}
        packed: tuple[int | None, ...] = (packed_moves(*geometry[:3]),)
        if direction != "fprop":
            size = self.input_size if direction == "dgrad" else self.weight_size
            packed = (*packed, packed_sizes(size[2:]))
        self.packed = None if None in packed else packed

    def gradient(self, direction: str, dy: Tensor, other: Tensor) -> Call:
        """The call of dgrad or wgrad that belongs to this fprop; `other` is w or x."""
        # All that a choice rests on besides the problem.
        state = (select.generation, gpu.tf32_allowed() if dy.is_cuda else _threads())
        found = self._gradients.get(direction)
        if found is None or found[0] != state:
            call = call_for(
                direction,
                dy,
                self.input_size,
                self.weight_size,
                *self.geometry,
                self.channels_last,
                inherited(self.algo),
                (dy, other),
            )
            found = self._gradients[direction] = (state, call)
        return found[1]


def call_for(
    direction: str,
    like: Tensor,
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    algo: str,
    tensors: tuple[Any, ...] | None,
    followed: str = "",
) -> Call:
    """The call for a direction of this problem on `like`'s device and in its dtype, remembered.

    tensors: the direction's operands, for autotuning. followed: by nothing, an "epilogue",
    or "statistics" of the result. Raises as `select.resolve`.
    """
    input_size, weight_size = tuple(input_size), tuple(weight_size)
    geometry = (tuple(stride), tuple(padding), tuple(dilation), groups)
    key = (
        direction,
        like.dtype,
        like.device,
        input_size,
        weight_size,
        geometry,
        channels_last,
        algo,
        followed,
        gpu.tf32_allowed() if like.is_cuda else _threads(),
    )
    call = _calls.get(key)
    if call is None:
        device = gpu.device_key(like.device)
        spec = ConvSpec(
            direction,
            device,
            like.dtype,
            input_size,
            weight_size,
            *geometry,
            channels_last,
            select.products_for(device, like.dtype, algo),
        )
        resolve = {
            "": select.resolve,
            "epilogue": select.choose_with_epilogue,
            "statistics": select.choose_with_statistics,
        }[followed]
        name = resolve(spec, algo, tensors)
        call = Call(
            direction, name, algo, Geometry(*geometry), channels_last, input_size, weight_size
        )
        _calls[key] = call
    return call
