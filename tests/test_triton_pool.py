"""Pooling in Triton, run by Triton's interpreter: against the CPU kernels, PyTorch, and a model of
the sampling; tests/test_triton_compiled.py looks at what the compiler makes of the same kernels."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

import interpreted_triton
import sample_model

from fastconv import _triton
from fastconv._triton.pool_geometry import make_geometry

OPS = torch.ops.fastconv
NONE, BYTE, PLACE = 0, 1, 2
DTYPES = _triton.DTYPES
# Of a rounding; Triton's interpreter cuts bfloat16 off (what is compiled rounds to nearest, which
# tests/test_triton_compiled.py sees).
_UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-7,
    torch.float16: 2.0**-11,
}


class Case(NamedTuple):
    """Lists of one op call; a stride of 0 marks an adaptive axis, whose kernel counts outputs."""

    size: tuple[int, ...]
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ceil_mode: bool

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def lists(self) -> tuple[list[int], list[int], list[int]]:
        return self.kernel, self.stride, self.padding

    def __str__(self) -> str:
        text = "x".join(map(str, self.size)) + f"_k{self.kernel}s{self.stride}p{self.padding}"
        text += f"d{self.dilation}" + ("_ceil" if self.ceil_mode else "")
        return text.replace(" ", "").replace("[", "").replace("]", "").replace(",", ".")


def case(
    size: tuple[int, ...],
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any = 1,
    ceil: bool = False,
) -> Case:
    rank = len(size) - 2
    lists = [[v] * rank if isinstance(v, int) else list(v) for v in (kernel, stride, padding)]
    return Case(size, *lists, [dilation] * rank if isinstance(dilation, int) else dilation, ceil)


# Undilated, so that every op takes them.
PLAIN = [
    case((2, 3, 11), 3, 2, 1),
    case((2, 3, 9), 2, 2, 0, ceil=True),
    case((2, 5, 7, 6), 3, 2, 1, ceil=True),
    case((1, 16, 6, 5), 2, 2, 0),  # whole vectors of channels
    case((2, 3, 5, 6), (3, 2), (1, 3), (1, 0)),
    case((1, 2, 3, 2), 1, 2, 0),
    case((1, 3, 4, 5, 4), (2, 2, 1), 2, (1, 0, 0), ceil=True),
]
DILATED = [
    case((2, 3, 9), 3, 1, 2, dilation=2),
    case((1, 3, 7, 8), (2, 3), (2, 1), 1, dilation=[3, 2]),
    case((1, 2, 1), 2, 1, 2, dilation=3),  # a window wholly in the padding
]
LONG = case((1, 2, 45), 40, 3, 0)  # a loop at run time walks its taps
ADAPTIVE = [case((1, 3, 5, 7), (3, 2), 0, 0), case((2, 2, 6), 3, 0, 0), case((2, 2, 2), 3, 0, 0)]


@pytest.fixture(scope="module")
def pool() -> Any:
    module = interpreted_triton.load()
    quiet = {
        name: lambda *args, f=f: interpreted_triton.quietly(f, *args)
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and "pool" in name
    }
    return type("Quiet", (), {name: staticmethod(f) for name, f in quiet.items()})


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    if not channels_last or x.dim() == 3:
        return x.contiguous()
    return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def layouts(rank: int) -> tuple[bool, ...]:
    return (False, True) if rank > 1 else (False,)


def rotated(cases: list[Case]) -> list[Any]:
    """(case, layout, dtype): each case in each layout, the dtypes in turn."""
    pairs = [(c, last) for c in cases for last in layouts(c.rank)]
    return [
        pytest.param(c, last, DTYPES[i % 4], id=f"{c}-{'nhwc' if last else 'nchw'}-{DTYPES[i % 4]}")
        for i, (c, last) in enumerate(pairs)
    ]


def tied(size: tuple[int, ...], dtype: torch.dtype, hostile: bool = True) -> Tensor:
    """Small integers with many ties and, if hostile, infinities and NaNs."""
    x = torch.randint(-2, 3, size).to(dtype)
    if hostile:
        kind = torch.randint(0, 12, size)
        for number, value in enumerate((float("nan"), float("-inf"), float("-inf"), float("inf"))):
            x[kind == number] = value
    return x


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, memory format and all; NaNs are alike."""
    if a.dtype != b.dtype or a.shape != b.shape or a.stride() != b.stride():
        return False
    lost = a.isnan() & b.isnan() if a.is_floating_point() else torch.zeros_like(a, dtype=torch.bool)
    return bool(((a == b) | lost).all()) and (
        not a.is_floating_point() or torch.equal(a.signbit() | lost, b.signbit() | lost)
    )


def same_format(t: Tensor, channels_last: bool) -> bool:
    return t.stride() == laid_out(torch.empty(t.shape, device="meta"), channels_last).stride()


def close(a: Tensor, exact: Tensor, scale: Tensor, roundings: int = 8) -> bool:
    """Within `roundings` of the accumulator, of what is added up, and one of the result."""
    unit = _UNIT[a.dtype]
    inner = _UNIT[torch.float64 if a.dtype == torch.float64 else torch.float32]
    bound = unit * exact.abs() + roundings * inner * scale + torch.finfo(a.dtype).tiny * unit
    return bool(((a.double() - exact).abs() <= bound).all())


# Maxima.


@pytest.mark.parametrize(("c", "last", "dtype"), rotated([*PLAIN, *DILATED, LONG]))
def test_max_is_the_cpu_kernels_bit_for_bit(pool, c: Case, last: bool, dtype: torch.dtype) -> None:
    x = laid_out(tied(c.size, dtype), last)
    for index in (BYTE, PLACE) if c is not LONG else (NONE,):
        args = (x, *c.lists, c.dilation, c.ceil_mode, index)
        y, kept = pool.max_pool_fprop(*args)
        expected, places = OPS.max_pool_fprop(*args)
        assert same(y, expected) and same(kept, places)


def test_max_without_an_index(pool) -> None:
    x = tied((1, 2, 6, 5), torch.float32)
    y, kept = pool.max_pool_fprop(x, [2, 2], [2, 1], [0, 1], [1, 1], False, NONE)
    expected, _ = OPS.max_pool_fprop(x, [2, 2], [2, 1], [0, 1], [1, 1], False, NONE)
    assert same(y, expected) and kept.numel() == 0 and kept.dtype == torch.uint8


@pytest.mark.parametrize("c", ADAPTIVE, ids=str)
def test_adaptive_max_is_pytorchs(pool, c: Case) -> None:
    x = tied(c.size, torch.float32)
    functions: tuple[Callable[..., Any], ...] = (F.adaptive_max_pool1d, F.adaptive_max_pool2d)
    expected, places = functions[c.rank - 1](x, c.kernel, return_indices=True)
    y, index = pool.max_pool_fprop(x, *c.lists, c.dilation, False, PLACE)
    # Of several NaNs PyTorch keeps the last as well.
    assert same(y, expected) and same(index, places)
    # Ties: the place is where the byte says it is.
    _, taps = pool.max_pool_fprop(x, *c.lists, c.dilation, False, BYTE)
    assert same(pool.max_pool_at(x, taps, *c.lists, c.dilation), expected)
    dy = torch.randint(-4, 5, y.shape).float()
    dx = torch.zeros_like(x).flatten(2).scatter_add_(2, places.flatten(2), dy.flatten(2))
    for kept in (index, taps):
        got = pool.max_pool_dgrad(dy, kept, x.shape, *c.lists, c.dilation, False)
        assert torch.equal(got, dx.view_as(x))


@pytest.mark.parametrize(("c", "last", "dtype"), rotated([*PLAIN, *DILATED[:2]]))
def test_max_backward_and_gather(pool, c: Case, last: bool, dtype: torch.dtype) -> None:
    """Whole numbers, so that sums are exact in any order."""
    x = laid_out(tied(c.size, dtype, hostile=False), last)
    index = BYTE if last or c.rank == 1 else PLACE
    lists = (*c.lists, c.dilation)
    y, kept = OPS.max_pool_fprop(x, *lists, c.ceil_mode, index)
    dy = laid_out(torch.randint(-4, 5, y.shape).to(dtype), last)
    dx = pool.max_pool_dgrad(dy, kept, x.shape, *lists, last)
    assert same(dx, OPS.max_pool_dgrad(dy, kept, x.shape, *lists, last))
    assert same(pool.max_pool_at(x, kept, *lists), y)


def test_max_backward_of_other_values(pool) -> None:
    """An infinite dy reaches its own place only; places outside of the plane send nothing."""
    index = torch.tensor([[[1, 3, 99]]])
    dy = torch.tensor([[[float("inf"), float("nan"), 1.0]]])
    dx = pool.max_pool_dgrad(dy, index, [1, 1, 6], [2], [2], [0], [1], False)
    assert same(dx, torch.tensor([[[0, float("inf"), 0, float("nan"), 0, 0]]]))
    x = torch.arange(1.0, 7.0).view(1, 1, 6)
    assert pool.max_pool_at(x, index - 1, [2], [2], [0], [1]).tolist() == [[[1, 3, 0]]]


def test_long_windows_backward(pool) -> None:
    c = LONG
    x = tied(c.size, torch.float32, hostile=False)
    y, kept = OPS.max_pool_fprop(x, *c.lists, c.dilation, False, PLACE)
    dy = torch.randint(-4, 5, y.shape).float()
    stride1 = (c.kernel, [1], c.padding, c.dilation)  # 40 outputs reach an input
    y1, kept1 = OPS.max_pool_fprop(torch.cat([x, x], 2), *stride1, False, PLACE)
    dy1 = torch.randint(-4, 5, y1.shape).float()
    size1 = [1, 2, 90]
    for d, k, size, lists in (
        (dy, kept, c.size, (*c.lists, c.dilation)),
        (dy1, kept1, size1, stride1),
    ):
        expected = OPS.max_pool_dgrad(d, k, size, *lists, False)
        assert same(pool.max_pool_dgrad(d, k, size, *lists, False), expected)


# Sums and powers.


def windows_of(x: Tensor, c: Case) -> tuple[Tensor, Tensor]:
    """Every window of x and which of its elements are real: (N, C, *outs, taps), differentiable."""
    g = make_geometry("test", x.shape, *c.lists, c.dilation, False, ceil_mode=c.ceil_mode)
    ins, outs = x.shape[2:], g.size(g.outs)[2:]
    kernel = g.kernel[3 - c.rank :]
    places, real = [], []
    for a in range(c.rank):
        o, tap = torch.arange(outs[a])[:, None], torch.arange(kernel[a])
        if c.stride[a] == 0:
            start, end = o * ins[a] // outs[a], -(-(o + 1) * ins[a] // outs[a])
        else:
            start, end = o * c.stride[a] - c.padding[a], torch.tensor(ins[a])
        place = start + tap
        real.append((place >= 0) & (place < end))
        places.append(place.clamp(0, ins[a] - 1))
    flat, inside = places[0], real[0]
    for a in range(1, c.rank):  # [outs..., taps] of the axes so far, joined with the next
        flat = flat[..., None, :, None] * ins[a] + places[a][:, None, :]
        inside = inside[..., None, :, None] & real[a][:, None, :]
        flat, inside = flat.flatten(-2), inside.flatten(-2)
    taken = x.flatten(2)[:, :, flat.flatten()].view(*x.shape[:2], *flat.shape)
    return taken, inside.expand(taken.shape)


@pytest.mark.parametrize(("c", "last", "dtype"), rotated([*PLAIN, ADAPTIVE[0], LONG]))
def test_sums_and_averages(pool, c: Case, last: bool, dtype: torch.dtype) -> None:
    x = laid_out(torch.randn(c.size).to(dtype), last)
    wide = x.double().contiguous().requires_grad_()
    taken, real = windows_of(wide, c)
    added = torch.where(real, taken, 0)
    for include_pad, divisor in ((True, 0), (False, 0), (True, -3)):
        y = pool.sum_pool_fprop(x, *c.lists, c.ceil_mode, include_pad, divisor)
        if 0 in c.stride:
            expected = F.adaptive_avg_pool2d(wide, c.kernel) if divisor == 0 else added.sum(-1) / -3
        elif divisor:
            expected = added.sum(-1) / divisor
        else:
            function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[c.rank - 1]
            expected = function(wide, *c.lists, c.ceil_mode, include_pad)
        assert same_format(y, last) and close(y, expected, added.abs().sum(-1))
        dy = laid_out(torch.randn(y.shape).to(dtype), last)
        (dx,) = torch.autograd.grad(expected, wide, dy.double(), retain_graph=True)
        got = pool.sum_pool_dgrad(dy, x.shape, *c.lists, include_pad, divisor, last)
        (scale,) = torch.autograd.grad(expected, wide, dy.double().abs(), retain_graph=True)
        assert same_format(got, last) and close(got, dx, scale.abs())


@pytest.mark.parametrize(
    ("power", "c", "last", "dtype"),
    [
        (power, PLAIN[number], last, dtype)
        for power, number, last, dtype in (
            (1, 1, False, torch.float32),
            (2, 2, True, torch.float32),
            (2, 3, True, torch.bfloat16),
            (2, 4, False, torch.float64),
            (2, 6, True, torch.float16),
            (3, 2, False, torch.float16),
            (2.5, 2, True, torch.float32),
            (2.5, 0, False, torch.float64),
            (4, 1, False, torch.bfloat16),
            (0.5, 4, True, torch.float32),
        )
    ],
    ids=str,
)
def test_lp(pool, power: float, c: Case, last: bool, dtype: torch.dtype) -> None:
    x = torch.randn(c.size).to(dtype)
    x = laid_out(x if power % 2 == 0 else x.abs() + 0.01, last)
    wide = x.double().contiguous().requires_grad_()
    taken, real = windows_of(wide, c)
    for rescale in (False, True):
        total = torch.where(real, taken.pow(power), 0).sum(-1)
        if rescale:
            function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[c.rank - 1]
            total = function(wide.pow(power), *c.lists, c.ceil_mode) * taken.shape[-1]
        expected = total.pow(1 / power)
        y = pool.lp_pool_fprop(x, *c.lists, c.ceil_mode, power, rescale)
        assert same_format(y, last) and close(y, expected, expected.detach(), roundings=16)
        dy = laid_out(torch.randn(y.shape).to(dtype), last)
        # From the rounded y, as the kernel has it.
        sent = dy.double() * y.double().pow(1 - power)
        (spread,) = torch.autograd.grad(total, wide, sent, retain_graph=True)
        (scale,) = torch.autograd.grad(total, wide, sent.abs(), retain_graph=True)
        got = pool.lp_pool_dgrad(dy, x, y, *c.lists, power, rescale)
        assert same_format(got, last)
        assert close(got, spread / power, scale.abs() / power, roundings=16)


def test_powers_of_signed_and_zero_values(pool) -> None:
    """Every element is a window of its own, so y is (x^p)^(1/p)."""
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([[[-8.0, -1, -0.0, 0, 1, 4, inf, -inf, nan]]])
    for power in (1, 2, 3, 4, 5, 0.5, 1.5, 2.5):
        y = pool.lp_pool_fprop(x, [1], [1], [0], False, power, False)
        expected = x.double().pow(power).pow(1 / power)
        assert torch.allclose(y.double(), expected, rtol=4e-7, atol=0, equal_nan=True), power
    dx = pool.lp_pool_dgrad(torch.ones(1, 1, 3), x[..., 2:5], x[..., 2:5], [1], [1], [0], 2, True)
    assert dx.tolist() == [[[0, 0, 1]]]


@pytest.mark.parametrize("rescale", [False, True])
def test_power_1_sends_nothing_back_to_a_sum_of_nan(pool, rescale: bool) -> None:
    """For power 1 alone, and else NaN; as the CPU kernels, which are compared with PyTorch."""
    c = PLAIN[2]
    x = tied(c.size, torch.float32)
    for power in (1, 2, 3):
        y = OPS.lp_pool_fprop(x, *c.lists, c.ceil_mode, power, rescale)
        args = (torch.randint(1, 5, y.shape).float(), x, y, *c.lists, power, rescale)
        found, wanted = pool.lp_pool_dgrad(*args), OPS.lp_pool_dgrad(*args)
        assert y.isnan().any() and bool(wanted.isnan().any()) == (power != 1)
        assert torch.equal(found.isnan(), wanted.isnan())
        torch.testing.assert_close(found, wanted, equal_nan=True)


# Stochastic pooling.

SAMPLED = [*PLAIN, LONG, *ADAPTIVE[:2]]


@pytest.mark.parametrize(("c", "last", "dtype"), rotated(SAMPLED))
def test_sampling_is_the_models_bit_for_bit(pool, c: Case, last: bool, dtype: torch.dtype) -> None:
    x = torch.randn(c.size).to(dtype)
    x[..., -1] = tied(x.shape[:-1], dtype)
    x = laid_out(x, last)
    g = make_geometry("test", c.size, *c.lists, c.dilation, False, ceil_mode=c.ceil_mode)
    kernel, outs = g.kernel[3 - c.rank :], g.size(g.outs)[2:]
    seed = int(torch.randint(-(2**63), 2**63 - 1, (1,)))
    taps, places = sample_model.sample(x, seed, kernel, g.stride[3 - c.rank :], c.padding, outs)
    index = BYTE if last else PLACE
    y, kept = pool.sample_pool_fprop(x, torch.tensor([seed]), *c.lists, c.ceil_mode, index)
    assert same_format(y, last) and same_format(kept, last)
    assert torch.equal(kept.long().contiguous(), (taps if index == BYTE else places).contiguous())
    at_index = x.contiguous().flatten(2).gather(2, places.flatten(2)).view(y.shape)
    assert same(y.contiguous(), at_index)


def test_model_of_the_generator() -> None:
    """The first known answer that the generator's authors publish; the CPU kernels' numbers."""
    assert sample_model.philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize(("c", "last", "dtype"), rotated([PLAIN[4], PLAIN[6]]))
def test_sampling_is_the_cpu_kernels(pool, c: Case, last: bool, dtype: torch.dtype) -> None:
    x = torch.randn(c.size).to(dtype)
    x[..., -1] = tied(x.shape[:-1], dtype)
    args = (laid_out(x, last), torch.tensor([-5]), *c.lists, c.ceil_mode, PLACE)
    got, expected = pool.sample_pool_fprop(*args), OPS.sample_pool_fprop(*args)
    assert same(got[0], expected[0]) and same(got[1], expected[1])


def test_sampling_of_extreme_windows(pool) -> None:
    """Windows of three: NaN, infinity, overflow, nothing positive, zeros of both signs."""
    nan, inf = float("nan"), float("inf")
    rows = [
        [nan, 1, 2], [1, nan, nan], [nan, inf, 1], [1, inf, inf], [3e38, 3e38, 3e38],
        [-1, -2, -inf], [0, -0.0, 0], [-1, 0, 5], [1e-45, 0, 0], [5, 0, 0],
    ]  # fmt: skip
    x = torch.tensor(rows).view(1, 1, -1)
    for seed in (1, 2, 3):
        y, kept = pool.sample_pool_fprop(x, torch.tensor([seed]), [3], [3], [0], False, BYTE)
        taps, _ = sample_model.sample(x, seed, [3], [3], [0], [len(rows)])
        assert torch.equal(kept.long(), taps)
        assert kept[0, 0, :4].tolist() == [0, 2, 0, 1] and kept[0, 0, 5:].tolist() == [
            0,
            0,
            2,
            0,
            0,
        ]
        assert same(y[0, 0], torch.tensor([r[t] for r, t in zip(rows, taps[0, 0], strict=True)]))


@pytest.mark.parametrize(("c", "last", "dtype"), rotated([PLAIN[0], PLAIN[2], PLAIN[6], LONG]))
def test_expectation(pool, c: Case, last: bool, dtype: torch.dtype) -> None:
    x = laid_out(torch.randn(c.size).to(dtype), last)
    x[:, :, :3] = -1  # some windows have no positive element
    taken, real = windows_of(x.double().contiguous(), c)
    weight = torch.where(real, taken.clamp(min=0), 0)
    total = weight.sum(-1)
    expected = torch.where(total > 0, weight.square().sum(-1) / total, 0)
    y = pool.expectation_pool_fprop(x, *c.lists, c.ceil_mode)
    assert same_format(y, last) and close(y, expected, expected, roundings=100)
    assert c is LONG or bool((expected == 0).any())


# Launchers.


def test_strided_and_empty_inputs(pool) -> None:
    whole = torch.randn(3, 4, 6, 10)
    x = whole[1:, ::2, :, ::3]
    args = ([2, 2], [2, 2], [0, 0])
    assert same(pool.sum_pool_fprop(x, *args, False, True, 0), F.avg_pool2d(x, 2))
    dy = torch.ones(1).expand(2, 2, 3, 2)
    expected = OPS.sum_pool_dgrad(dy, x.shape, *args, True, 0, True)
    assert same(pool.sum_pool_dgrad(dy, x.shape, *args, True, 0, True), expected)
    empty = pool.max_pool_fprop(x[:0], *args, [1, 1], False, PLACE)
    assert [t.shape for t in empty] == [(0, 2, 3, 2)] * 2


def test_64_bit_offsets(pool, monkeypatch) -> None:
    """The kernels for more than 2^31 elements, on a small problem; what needs them is decided by
    the sizes alone."""
    package = sys.modules[f"{interpreted_triton.NAME}.pool_geometry"]
    monkeypatch.setattr(package.PoolGeometry, "wide", property(lambda self: True))
    c = PLAIN[2]
    x = laid_out(tied(c.size, torch.float32), True)
    for index in (BYTE, PLACE):
        args = (x, *c.lists, c.dilation, True, index)
        (y, kept), (y2, kept2) = pool.max_pool_fprop(*args), OPS.max_pool_fprop(*args)
        assert same(y, y2) and same(kept, kept2)
        dx = pool.max_pool_dgrad(y, kept, x.shape, *c.lists, c.dilation, True)
        assert same(dx, OPS.max_pool_dgrad(y, kept, x.shape, *c.lists, c.dilation, True))
        assert same(pool.max_pool_at(x, kept, *c.lists, c.dilation), y)
    y, kept = pool.sample_pool_fprop(x, torch.tensor([7]), *c.lists, True, BYTE)
    taps, _ = sample_model.sample(x, 7, *c.lists, y.shape[2:])
    assert torch.equal(kept.long(), taps)


@pytest.mark.parametrize("c", [*PLAIN, *DILATED, *ADAPTIVE, LONG], ids=str)
def test_reach_and_border_are_exact(c: Case) -> None:
    """Against counting: the most outputs that hold an input, and whether a window leaves it."""
    g = make_geometry("test", c.size, *c.lists, c.dilation, False, ceil_mode=c.ceil_mode)
    leaves = False
    for a in range(3):
        held: dict[int, set[int]] = {}
        for o in range(g.outs[a]):
            if g.stride[a] == 0:
                places = range(o * g.ins[a] // g.outs[a], -(-(o + 1) * g.ins[a] // g.outs[a]))
                assert len(places) <= g.kernel[a]
                leaves = True
            else:
                start = o * g.stride[a] - g.padding[a]
                places = range(start, start + g.dilation[a] * g.kernel[a], g.dilation[a])
                leaves = leaves or places[0] < 0 or places[-1] >= g.ins[a]
            for place in places:
                held.setdefault(place, set()).add(o)
        most = max((len(v) for at, v in held.items() if 0 <= at < g.ins[a]), default=0)
        # With a dilation the outputs in between count as well.
        assert g.reach[a] >= most and (g.dilation[a] > 1 or g.reach[a] <= most + 1)
    assert g.border == leaves


def test_launchers_refuse_what_does_not_fit(pool) -> None:
    x, one = torch.zeros(1, 1, 4, 4), ([1, 1], [1, 1], [0, 0])
    for name, args, text in (
        ("max_pool_fprop", (x, [2], [1], [0], [1], False, 0), "one entry per spatial axis"),
        ("max_pool_fprop", (x, [9, 9], [1, 1], [0, 0], [1, 1], False, 0), "input extent 4"),
        ("max_pool_fprop", (x, [2, 2], [1, 1], [2, 0], [1, 1], False, 0), "do not fit together"),
        ("max_pool_fprop", (torch.zeros(1, 1, 300), [256], [1], [0], [1], False, 1), "a byte"),
        ("max_pool_dgrad", (x, x.byte(), [1, 1, 9, 4], *one, [1, 1], False), "gives"),
        ("max_pool_dgrad", (x, x.int(), x.shape, *one, [1, 1], False), "uint8 or int64"),
        ("max_pool_at", (x, x.byte()[:, :, :2], *one, [1, 1]), "gives"),
        ("sample_pool_fprop", (x, x, *one, False, 0), "one int64"),
        ("lp_pool_fprop", (x, *one, False, -1.0, False), "must be positive"),
        ("lp_pool_dgrad", (x, x, x.double(), *one, 2.0, False), "differ"),
        ("sum_pool_dgrad", (x, [1, 2, 4, 4], *one, True, 0, False), "output"),
    ):
        with pytest.raises(ValueError, match=text):
            getattr(pool, name)(*args)
