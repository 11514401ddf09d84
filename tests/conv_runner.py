"""Calls the registered CPU algorithms directly through the ops, whatever `auto` would choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from cases import EXPANSIONS, ConvCase
from tolerances import conv_tolerance
from torch import Tensor

from fastconv import _C, reference
from fastconv.testing import assert_conv_close

ALGORITHMS: tuple[str, ...] = tuple(_C.cpu_algorithms())


def native_problem(case: ConvCase) -> _C.ConvProblem:
    stride, padding, dilation, groups = case.params
    return _C.ConvProblem(
        list(case.input_size), list(case.weight_size), stride, padding, dilation, groups
    )


def native_dtype(dtype: torch.dtype) -> _C.DType:
    return getattr(_C.DType, str(dtype).removeprefix("torch."))


def refusal(algo: str, case: ConvCase, direction: str, dtype: torch.dtype) -> str:
    """Why the algorithm cannot run the case; empty when it can."""
    return _C.cpu_applicable(
        algo, native_problem(case), native_dtype(dtype), getattr(_C.Direction, direction)
    )


def run_conv(
    algo: str,
    case: ConvCase,
    direction: str,
    operands: tuple[Tensor, Tensor],
    bias: Tensor | None = None,
    channels_last: bool = False,
    ops: Any = torch.ops.fastconv,
) -> Tensor:
    """Operands are (x, w) for fprop, (dy, w) for dgrad, (dy, x) for wgrad; `ops` holds the ops."""
    a, b = operands
    if direction == "fprop":
        return ops.conv_fprop(a, b, bias, *case.params, algo)
    if direction == "dgrad":
        return ops.conv_dgrad(a, b, list(case.input_size), *case.params, channels_last, algo)
    return ops.conv_wgrad(a, b, list(case.weight_size), *case.params, channels_last, algo)


@contextmanager
def one_thread() -> Iterator[None]:
    """For the reference's many tiny products, which cost more to share out than to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def reference_conv(
    case: ConvCase,
    direction: str,
    operands: tuple[Tensor, Tensor],
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(expected, sum of the terms' magnitudes), both float64."""
    a, b = operands
    if direction == "fprop":
        return tuple(
            reference.conv_fprop(a, b, bias, *case.params, magnitude=m) for m in (False, True)
        )
    if direction == "dgrad":
        return tuple(
            reference.conv_dgrad(a, b, case.input_size, *case.params, magnitude=m)
            for m in (False, True)
        )
    return tuple(
        reference.conv_wgrad(a, b, case.weight_size, *case.params, magnitude=m)
        for m in (False, True)
    )


def operand_sizes(case: ConvCase, direction: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return {
        "fprop": (case.input_size, case.weight_size),
        "dgrad": (case.output_size, case.weight_size),
        "wgrad": (case.output_size, case.input_size),
    }[direction]


@cache
def random_operands(
    case: ConvCase, direction: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Normal values in `dtype`; the third is a bias, for fprop. Shared: do not write to them."""
    generator = torch.Generator().manual_seed(hash_of(case.id + direction))
    a, b = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        for size in operand_sizes(case, direction)
    )
    bias = torch.randn(case.weight_size[0], generator=generator, dtype=torch.float64).to(dtype)
    return a, b, bias if direction == "fprop" else None


@cache
def integer_operands(case: ConvCase, direction: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `random_operands`, with integers in [-2, 2], int64."""
    generator = torch.Generator().manual_seed(hash_of(case.id + direction))
    a, b = (
        torch.randint(-2, 3, size, generator=generator) for size in operand_sizes(case, direction)
    )
    bias = torch.randint(-2, 3, case.weight_size[:1], generator=generator)
    return a, b, bias if direction == "fprop" else None


@cache
def integer_reference(case: ConvCase, direction: str) -> Tensor:
    a, b, bias = integer_operands(case, direction)
    return reference_conv(case, direction, (a, b), bias)[0]


# Which expansion, and of which operand.
EXPANDED = (
    *((name, which) for name in EXPANSIONS for which in ("left", "right")),
    ("expand_all", "both"),
)


@cache
def expanded_problem(
    case: ConvCase, direction: str, name: str, which: str
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """(float32 operands of small integers, expected, magnitude)."""
    a, b, _ = integer_operands(case, direction)
    expand = EXPANSIONS[name]
    a = a.float() if which == "right" else expand(a.float())
    b = b.float() if which == "left" else expand(b.float())
    return (a, b), *reference_conv(case, direction, (a, b))


def hash_of(text: str) -> int:
    """The same in every process, unlike hash()."""
    value = 0
    for char in text:
        value = (value * 131 + ord(char)) % 2**31
    return value


@cache
def random_reference(case: ConvCase, direction: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    a, b, bias = random_operands(case, direction, dtype)
    return reference_conv(case, direction, (a, b), bias)


def assert_close(
    result: Tensor,
    expected: Tensor,
    magnitude: Tensor,
    algo: str,
    case: ConvCase,
    direction: str,
    note: str = "",
) -> None:
    """`result` within the algorithm's tolerance of the reference; names the worst element."""
    bound = conv_tolerance(
        algo, direction, result.dtype, expected, magnitude, case.gemm_k(direction)
    )
    assert_conv_close(
        result, expected, bound, f"{algo} {direction} {case.id} {result.dtype} {note}"
    )


def assert_dense_as(result: Tensor, channels_last: bool, note: str = "") -> None:
    """Dense, in the memory format asked for."""
    if result.dim() == 3 or not channels_last:
        assert result.is_contiguous(), f"{note}: strides {result.stride()}"
    else:
        format_ = torch.channels_last if result.dim() == 4 else torch.channels_last_3d
        assert result.is_contiguous(memory_format=format_), f"{note}: strides {result.stride()}"
