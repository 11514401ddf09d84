"""The problem of one convolution: what every choice of algorithm depends on.

`ConvSpec` is the concrete form (plain integers, hashable); `conv_output_size` and
`strides_channels_last` are also used on symbolic sizes while a graph is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch

from fastconv import _C

DIRECTIONS = ("fprop", "dgrad", "wgrad")

NATIVE_DTYPES = {
    torch.float32: _C.DType.float32,
    torch.float64: _C.DType.float64,
    torch.bfloat16: _C.DType.bfloat16,
    torch.float16: _C.DType.float16,
}

NATIVE_DIRECTIONS = {name: getattr(_C.Direction, name) for name in DIRECTIONS}


def conv_output_size(
    input_size: Sequence[Any],
    weight_size: Sequence[Any],
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
) -> list[Any]:
    """Shape of y: (N, K, *out). Sizes may be SymInts.

    Shapes: input_size (N, C, *in), weight_size (K, C/groups, *kernel), the lists one entry per
    spatial axis. Nothing is checked. PyTorch's rule, rounded down:
    out = (in + 2 padding - dilation (kernel - 1) - 1) / stride + 1; the C++ twin is
    `conv_out_extent`.
    """
    return [
        input_size[0],
        weight_size[0],
        *(
            (i + 2 * p - d * (k - 1) - 1) // s + 1
            for i, k, s, p, d in zip(
                input_size[2:], weight_size[2:], stride, padding, dilation, strict=True
            )
        ),
    ]


def strides_channels_last(size: Sequence[Any], stride: Sequence[Any]) -> bool:
    """Whether PyTorch would call a tensor of this shape and these strides channels_last.

    The rule of `suggest_memory_format`: channel innermost, then width to depth, then batch; extents
    of 1 count with their strides, ties go to the contiguous format. Never for fewer than 4
    dimensions. Sizes may be SymInts (the comparisons then become guards).
    """
    dim = len(size)
    if dim not in (4, 5) or stride[1] == 0:
        return False
    floor = 0
    for axis in (1, *range(dim - 1, 1, -1), 0):
        if size[axis] == 0 or stride[axis] < floor:
            return False
        if axis == 0 and floor == stride[1]:
            return False  # only N and C exceed 1: contiguous as well
        floor = stride[axis]
        if size[axis] > 1:
            floor = floor * size[axis]
    return True


def dense_strides(size: Sequence[Any], channels_last: bool) -> list[Any]:
    """Strides of a dense tensor of this shape, SymInts or not; the twin of the C++ op's rule."""
    dim = len(size)
    inner = list(range(dim - 1, 1, -1))
    order = [1, *inner, 0] if channels_last and dim > 3 else [*inner, 1, 0]
    strides: list[Any] = [0] * dim
    step: Any = 1
    for axis in order:
        strides[axis] = step
        step = step * (1 if isinstance(size[axis], int) and size[axis] < 1 else size[axis])
    return strides


def packed_moves(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> int | None:
    """The three lists as the one integer that the `.packed` ops take; None where a value needs
    more than 7 bits (csrc/common/packed_geometry.h)."""
    packed = shift = 0
    for axis in zip(stride, padding, dilation, strict=True):
        for value in axis:
            if not 0 <= value < 128:
                return None
            packed |= value << shift
            shift += 7
    return packed


def unpacked_moves(packed: int, rank: int) -> tuple[list[int], list[int], list[int]]:
    """stride, padding and dilation behind `packed_moves`."""
    values = [packed >> 7 * i & 127 for i in range(3 * rank)]
    return values[0::3], values[1::3], values[2::3]


def packed_sizes(sizes: Sequence[int]) -> int | None:
    """Spatial extents as one integer, 21 bits each; None where one needs more."""
    if max(sizes) >= 1 << 21:
        return None
    return sum(size << 21 * axis for axis, size in enumerate(sizes))


def unpacked_sizes(packed: int, rank: int) -> list[int]:
    """The extents behind `packed_sizes`."""
    return [packed >> 21 * axis & 0x1FFFFF for axis in range(rank)]


def suggests_channels_last(x: torch.Tensor) -> bool:
    """Whether x is channels_last rather than contiguous, as PyTorch judges."""
    return strides_channels_last(x.shape, x.stride())


def is_channels_last(x: torch.Tensor, w: torch.Tensor) -> bool:
    """The memory format that a convolution of x with w returns.

    channels_last if either suggests it: PyTorch's rule for its vectorised CPU paths and for cuDNN.
    (Its loops for 5-D float64 and 16-bit tensors return the contiguous format in any case.)
    """
    return strides_channels_last(x.shape, x.stride()) or strides_channels_last(w.shape, w.stride())


@dataclass(frozen=True)
class ConvSpec:
    """One direction of one convolution, without its data.

    Shapes are those of the forward problem in every direction: input_size (N, C, *in), weight_size
    (K, C/groups, *kernel), one entry per spatial axis in stride, padding and dilation.
    `device` is "cpu" or "cuda:<index>". `channels_last` is the memory format of the activations.
    `products`: how float32 operands may be multiplied on CUDA, "ieee", "tf32x3" or "tf32": the
    least accurate that will do.
    """

    direction: str
    device: str
    dtype: torch.dtype
    input_size: tuple[int, ...]
    weight_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    channels_last: bool = False
    products: str = "ieee"

    @property
    def tf32(self) -> bool:
        """Whether operands may be rounded to TensorFloat-32."""
        return self.products == "tf32"

    @property
    def rank(self) -> int:
        """Number of spatial axes: 1, 2 or 3."""
        return len(self.stride)

    @cached_property
    def output_size(self) -> tuple[int, ...]:
        """(N, K, *out)."""
        return tuple(
            conv_output_size(
                self.input_size, self.weight_size, self.stride, self.padding, self.dilation
            )
        )

    @property
    def macs(self) -> int:
        """Multiply-adds, counting those that fall on padding."""
        return prod(self.output_size) * prod(self.weight_size[1:])

    @property
    def empty(self) -> bool:
        """Whether an operand or the result has no elements; no algorithm runs then."""
        return 0 in self.input_size or 0 in self.weight_size or 0 in self.output_size

    @cached_property
    def native(self) -> _C.ConvProblem:
        """The geometry as the kernels see it. Raises ValueError where it does not fit together."""
        return _C.ConvProblem(
            self.input_size,
            self.weight_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def toward(self, direction: str) -> ConvSpec:
        """The same convolution in another direction."""
        return ConvSpec(
            direction,
            self.device,
            self.dtype,
            self.input_size,
            self.weight_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.channels_last,
            self.products,
        )

    def __str__(self) -> str:
        def joined(values: Sequence[int]) -> str:
            return "x".join(map(str, values))

        dtype = str(self.dtype).removeprefix("torch.")
        text = (
            f"conv{self.rank}d {self.direction} {dtype} {self.device}"
            f" x {joined(self.input_size)} w {joined(self.weight_size)}"
            f" stride {joined(self.stride)} padding {joined(self.padding)}"
            f" dilation {joined(self.dilation)} groups {self.groups}"
        )
        text += " channels_last" if self.channels_last else ""
        return text if self.products == "ieee" else f"{text} {self.products}"
