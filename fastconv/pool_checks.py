"""Pooling problems with what every kernel has to make of them, from the float64 reference: what the
self-test on a device and the tests measure against.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastconv import pool_reference as reference
from fastconv.pool_reference import Windows
from fastconv.tolerances import lp_pool_tolerance, pool_tolerance

Ints = tuple[int, ...]
KEEP_NOTHING, KEEP_BYTE, KEEP_PLACE = 0, 1, 2
MAX_BYTE_TAPS = 255
INDEX_DTYPES = {KEEP_BYTE: torch.uint8, KEEP_PLACE: torch.int64}
SEED = 0x1234_5678_9ABC_DEF0
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PoolCase:
    """One problem: input_size (N, C, spatial); the lists have one entry per spatial axis. Of an
    adaptive one `kernel` is the output's extents, as the ops take it."""

    id: str
    input_size: Ints
    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    ceil_mode: bool
    adaptive: bool = False
    values: str = "normal"  # a key of VALUES

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def extents(self) -> Ints:
        return self.input_size[2:]

    @property
    def windows(self) -> Windows:
        return _windows(self)

    @property
    def output_size(self) -> Ints:
        return (*self.input_size[:2], *self.windows.out)

    @property
    def lists(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """(kernel, stride, padding, dilation), as the ops take them."""
        return list(self.kernel), list(self.stride), list(self.padding), list(self.dilation)

    @property
    def longest(self) -> Ints:
        """Taps per axis: of an adaptive one, what its longest window may have."""
        if not self.adaptive:
            return self.kernel
        return tuple(
            n // o if n % o == 0 else min(-(-n // o) + 1, n)
            for n, o in zip(self.extents, self.kernel, strict=True)
        )

    @property
    def taps(self) -> int:
        return prod(self.longest)


@cache
def _windows(case: PoolCase) -> Windows:
    if case.adaptive:
        return Windows.adaptive(case.extents, case.kernel)
    lists = (case.kernel, case.stride, case.padding, case.dilation)
    return Windows(case.extents, *lists, case.ceil_mode)


def pool_case(
    name: str,
    input_size: Ints,
    kernel: int | Ints,
    stride: int | Ints | None = None,
    padding: int | Ints = 0,
    dilation: int | Ints = 1,
    ceil: bool = False,
    values: str = "normal",
) -> PoolCase:
    rank = len(input_size) - 2

    def per_axis(value: int | Ints) -> Ints:
        return (value,) * rank if isinstance(value, int) else value

    lists = (kernel, kernel if stride is None else stride, padding, dilation)
    return PoolCase(name, input_size, *map(per_axis, lists), ceil, values=values)


def adaptive_case(name: str, input_size: Ints, out: Ints, values: str = "normal") -> PoolCase:
    zeros, ones = (0,) * len(out), (1,) * len(out)
    return PoolCase(name, input_size, out, zeros, zeros, ones, False, True, values)


# --- values: (size, generator) -> float64 -------------------------------------------------------


def _normal(size: Ints, generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


def _ties(size: Ints, generator: torch.Generator) -> Tensor:
    """Small integers, 0 and -0 among them, and windows of nothing but zeros."""
    x = torch.randint(-2, 3, size, generator=generator).double()
    x[x == -1] = -0.0
    x[:, ::3] = 0.0
    return x


def _special(size: Ints, generator: torch.Generator) -> Tensor:
    """NaN and infinities among ordinary values; the last plane is -inf, the first one negative."""
    x = _normal(size, generator)
    which = torch.rand(size, generator=generator)
    x[which < 0.08] = torch.inf
    x[which < 0.05] = torch.nan
    x[which > 0.9] = -torch.inf
    x[:, -1] = -torch.inf
    x[0, 0] = -x[0, 0].abs()
    return x


VALUES = {"normal": _normal, "ties": _ties, "special": _special}


def values_of(case: PoolCase, size: Ints, what: str, dtype: torch.dtype) -> Tensor:
    """A tensor of the case's kind of values, the same in every process."""
    seed = sum((i + 1) * ord(char) for i, char in enumerate(case.id + what))
    generator = torch.Generator().manual_seed(seed)
    return VALUES[case.values](size, generator).to(dtype)


@dataclass(frozen=True)
class PoolOptions:
    """What a call says beside geometry and operands."""

    index: int = KEEP_NOTHING
    include_pad: bool = True
    divisor: int = 0
    power: float = 1.0
    rescale: bool = False


_INDICES = tuple(PoolOptions(index=kind) for kind in (KEEP_BYTE, KEEP_PLACE, KEEP_NOTHING))
_SUMS = (
    PoolOptions(),
    PoolOptions(include_pad=False),
    PoolOptions(divisor=-3),
    PoolOptions(divisor=1),
)
_POWERS = (
    PoolOptions(power=2.0),
    PoolOptions(power=2.0, rescale=True),
    PoolOptions(power=3.0, rescale=True),
    PoolOptions(power=2.5),
    PoolOptions(power=1.0, rescale=True),
)
# (pass, kind) -> the ways to call it.
OPTIONS: dict[tuple[str, str], tuple[PoolOptions, ...]] = {
    ("forward", "max"): _INDICES,
    ("forward", "sample"): _INDICES,
    ("forward", "sum"): _SUMS,
    ("forward", "lp"): _POWERS,
    ("forward", "expectation"): (PoolOptions(),),
    ("backward", "max"): _INDICES[:2],
    ("backward", "sum"): _SUMS,
    ("backward", "lp"): _POWERS,
    ("gather", "max"): _INDICES[:2],
    ("unpool", "max"): _INDICES[1:2],
}


def ways_of(pass_: str, kind: str, case: PoolCase) -> list[PoolOptions]:
    """The ways to call that the case allows."""
    found = []
    for options in OPTIONS[pass_, kind]:
        if options.index == KEEP_BYTE and case.taps > MAX_BYTE_TAPS:
            continue
        if options.rescale and case.adaptive:  # windows of different lengths have no whole
            continue
        found.append(options)
    return found


@dataclass(frozen=True)
class PoolCheck:
    """One thing to run: the pass and kind of an instance, on a case."""

    pass_: str
    kind: str
    dtype: torch.dtype
    case: PoolCase
    options: PoolOptions

    def __str__(self) -> str:
        return f"{self.pass_} {self.kind} {self.dtype} {self.case.id} {self.options}"


@dataclass(frozen=True)
class Expected:
    """operands: x, y, dy, index, seed, whichever the pass reads. bound: None where every bit
    counts. index: that the forward pass writes, if any."""

    operands: dict[str, Tensor]
    result: Tensor
    bound: Tensor | None = None
    index: Tensor | None = None


@cache
def _kept(case: PoolCase, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(index of the maxima, their places)."""
    x = values_of(case, case.input_size, "x", dtype)
    _, place, tap = reference.max_pool(x, case.windows)
    return (tap.to(torch.uint8) if index == KEEP_BYTE else place), place


@cache
def expected(call: PoolCheck) -> Expected:
    """Shared: do not write to it."""
    return {
        "forward": _forward,
        "backward": _backward,
        "gather": _gather,
        "unpool": _unpool,
    }[call.pass_](call)


def _forward(call: PoolCheck) -> Expected:
    case, options, w = call.case, call.options, call.case.windows
    x = _bases(call) if call.kind == "lp" else values_of(case, case.input_size, "x", call.dtype)
    if call.kind in ("max", "sample"):
        operands: dict[str, Tensor] = {"x": x}
        if call.kind == "sample":
            operands["seed"] = torch.tensor(SEED)
            y, place, tap = reference.sample_pool(x, w, SEED)
        else:
            y, place, tap = reference.max_pool(x, w)
        index = {KEEP_NOTHING: None, KEEP_BYTE: tap.to(torch.uint8), KEEP_PLACE: place}
        return Expected(operands, y, None, index[options.index])
    if call.kind == "sum":
        args = (x, w, options.include_pad, options.divisor)
        y = reference.sum_pool(*args)
        bound = pool_tolerance("sum", x.dtype, y, reference.sum_pool(*args, magnitude=True))
    elif call.kind == "lp":
        sums, magnitude = (
            reference.lp_sum(x, w, options.power, options.rescale, magnitude=m)
            for m in (False, True)
        )
        y = reference.lp_root(sums, options.power)
        bound = lp_pool_tolerance(x.dtype, sums, magnitude, options.power)
    else:
        y = reference.expectation_pool(x, w)
        bound = pool_tolerance("expectation", x.dtype, y, y.abs())
    return Expected({"x": x}, y, bound)


def _bases(call: PoolCheck) -> Tensor:
    """For Lp: what has a power. Of an odd one, planes are positive or negative as a whole, so that
    no sum is close to 0, where it would turn into NaN."""
    case, power = call.case, call.options.power
    x = values_of(case, case.input_size, "x", torch.float64)
    if call.pass_ == "backward" and case.values == "special":
        x = values_of(case, case.input_size, "finite", torch.float64)
        # For power 1 sums of NaN stay in: they send 0 back.
        x = x.nan_to_num(torch.nan if power == 1 else 1, 2, -2)
    if power not in (1, 2):
        x = x.abs() + 0.1
        if power == 3 and call.pass_ == "forward":
            x[:, -1] *= -1
    return x.to(call.dtype)


def _backward(call: PoolCheck) -> Expected:
    case, options, w = call.case, call.options, call.case.windows
    dy = values_of(case, case.output_size, "dy", call.dtype)
    operands = {"dy": dy}
    if call.kind == "max":
        index, place = _kept(case, options.index, call.dtype)
        operands["index"] = index
        dx, magnitude = (
            reference.send_back(dy, place, case.extents, magnitude=m) for m in (False, True)
        )
    elif call.kind == "sum":
        args = (dy, w, options.include_pad, options.divisor)
        dx, magnitude = (reference.sum_pool_dgrad(*args, magnitude=m) for m in (False, True))
    else:
        dy = operands["dy"] = dy.nan_to_num(1, 2, -2)
        x = _bases(call)
        sums = reference.lp_sum(x, w, options.power, options.rescale)
        y = reference.lp_root(sums, options.power).to(call.dtype)
        operands |= {"x": x, "y": y}
        args = (dy, x, y, w, options.power, options.rescale)
        dx, magnitude = (reference.lp_pool_dgrad(*args, magnitude=m) for m in (False, True))
    return Expected(operands, dx, pool_tolerance(call.kind, call.dtype, dx, magnitude))


def _gather(call: PoolCheck) -> Expected:
    case = call.case
    x = values_of(case, case.input_size, "taken from", call.dtype)
    index, place = _kept(case, call.options.index, call.dtype)
    return Expected({"x": x, "index": index}, reference.take(x, place))


def _unpool(call: PoolCheck) -> Expected:
    """Overlapping windows send several elements to one place."""
    case = call.case
    x = values_of(case, case.output_size, "sent", call.dtype)
    _, place = _kept(case, KEEP_PLACE, call.dtype)
    return Expected({"x": x, "index": place}, reference.unpool(x, place, case.extents))


def difference(result: Tensor, index: Tensor | None, wanted: Expected) -> tuple[str, float]:
    """(what is wrong, empty when nothing is; the largest error in units of the bound). Values are
    within the bound, or right to the bit where there is none; NaN and infinities where they belong.
    """
    if result.shape != wanted.result.shape:
        return f"its shape is {tuple(result.shape)}, not {tuple(wanted.result.shape)}", torch.inf
    if wanted.index is not None and (index is None or index.dtype != wanted.index.dtype):
        return f"it wrote no index of {wanted.index.dtype}", torch.inf
    want, ratio = wanted.result, 0.0
    odd = ~want.isfinite()
    if wanted.bound is None:
        same = result.view(BITS[result.dtype.itemsize]) == want.view(BITS[want.dtype.itemsize])
        right = torch.where(want.isnan(), result.isnan(), same)
    else:
        result = result.double()
        as_odd = torch.where(want.isnan(), result.isnan(), result == want)
        off = (result - want).abs()
        ratios = torch.where(odd | (off == 0), 0.0, (off / wanted.bound).nan_to_num(torch.inf))
        ratio = float(ratios.max())
        right = torch.where(odd, as_odd, ratios <= 1)
    if not right.all():
        first = tuple((~right).nonzero()[0].tolist())
        bound = "" if wanted.bound is None else f", {ratio:.3g} times the bound at worst"
        return (
            f"{int((~right).sum())} of {right.numel()} values are wrong{bound}, first at"
            f" {list(first)}: {result[first].item()}, not {want[first].item()}",
            torch.inf if wanted.bound is None else ratio,
        )
    if wanted.index is not None:
        wrong = (index != wanted.index).nonzero()
        if len(wrong):
            first = tuple(wrong[0].tolist())
            return (
                f"{len(wrong)} of {index.numel()} indices are wrong, first at {list(first)}:"
                f" {index[first].item()}, not {wanted.index[first].item()}",
                torch.inf,
            )
    return "", ratio


def run_op(
    ops: Any, check: PoolCheck, operands: dict[str, Tensor], channels_last: bool
) -> tuple[Tensor, Tensor | None]:
    """(result, index that was written or None) of the bare op on these operands; of passes whose
    operands do not tell, `channels_last` is the result's format."""
    case, options = check.case, check.options
    kernel, stride, padding, dilation = case.lists
    windows = (kernel, stride, padding)
    size = list(case.input_size)
    o = operands
    if check.pass_ == "gather":
        return ops.max_pool_at(o["x"], o["index"], *windows, dilation), None
    if check.pass_ == "unpool":
        return ops.max_unpool_fprop(o["x"], o["index"], size), None
    sums = (options.include_pad, options.divisor)
    powers = (options.power, options.rescale)
    if check.pass_ == "backward":
        if check.kind == "max":
            args = (o["dy"], o["index"], size, *windows, dilation, channels_last)
            return ops.max_pool_dgrad(*args), None
        if check.kind == "sum":
            return ops.sum_pool_dgrad(o["dy"], size, *windows, *sums, channels_last), None
        return ops.lp_pool_dgrad(o["dy"], o["x"], o["y"], *windows, *powers), None
    windows = (*windows, case.ceil_mode)
    if check.kind == "sum":
        return ops.sum_pool_fprop(o["x"], *windows, *sums), None
    if check.kind == "lp":
        return ops.lp_pool_fprop(o["x"], *windows, *powers), None
    if check.kind == "expectation":
        return ops.expectation_pool_fprop(o["x"], *windows), None
    if check.kind == "sample":
        y, index = ops.sample_pool_fprop(o["x"], o["seed"], *windows, options.index)
    else:
        y, index = ops.max_pool_fprop(o["x"], *windows[:3], dilation, case.ceil_mode, options.index)
    return y, None if options.index == KEEP_NOTHING else index


def placed(
    t: Tensor, channels_last: bool, device: torch.device | str = "cpu", offset: int = 0
) -> Tensor:
    """A copy on the device, dense in the memory format, `offset` elements into its storage."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if channels_last and t.dim() in formats:
        t = t.contiguous(memory_format=formats[t.dim()])
    store = torch.empty(t.numel() + offset, dtype=t.dtype, device=device)
    return store.as_strided(t.shape, t.stride(), offset).copy_(t)
