"""The pooling kernels of the CPU: drawing to the bit, expectation, unpooling, adaptive axes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv  # noqa: F401  (registers the ops)

ops = torch.ops.fastconv
LAYOUTS = [(1, False), (2, False), (2, True), (3, False), (3, True)]
SHAPES = {1: (2, 3, 19), 2: (2, 19, 7, 13), 3: (1, 5, 5, 6, 7)}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
NOTHING, BYTE, LONG = 0, 1, 2
MASK = (1 << 32) - 1


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    if not channels_last:
        return x.contiguous()
    return x.contiguous(
        memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    )


def bits(x: Tensor) -> Tensor:
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(sizes[x.dtype.itemsize])


# --- Drawing ------------------------------------------------------------------------------------


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32-10, word by word."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def test_philox_model_gives_the_published_words() -> None:
    answers = {  # Random123's known-answer vectors
        ((0, 0, 0, 0), (0, 0)): "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ((MASK,) * 4, (MASK,) * 2): "408f276d 41c83b0e a20bc7c6 6d5451fd",
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
        ): "d16cfe09 94fdcceb 5001e420 24126ea1",
    }
    for (counter, key), words in answers.items():
        assert " ".join(f"{word:08x}" for word in philox(counter, key)) == words


def drawn(seed: int, output: int, double: bool) -> np.floating:
    words = philox((output & MASK, output >> 32, 0, 0), (seed & MASK, (seed >> 32) & MASK))
    if double:
        return np.float64(((words[1] << 32 | words[0]) >> 11) * 2.0**-53)
    return np.float32((words[0] >> 8) * 2.0**-24)


def window(n: int, k: int, s: int, p: int, i: int) -> range:
    if s == 0:  # adaptive, of k outputs
        return range(i * n // k, -(-((i + 1) * n) // k))
    return range(max(0, i * s - p), min(n, i * s - p + k))


def tap(n: int, k: int, s: int, p: int, i: int, place: int) -> int:
    return place - (i * n // k if s == 0 else i * s - p)


def taps_of(n: int, k: int, s: int) -> int:
    if s != 0:
        return k
    return n // k if n % k == 0 else min(n, -(-n // k) + 1)


def model(
    x: Tensor, seed: int, kernel: list[int], stride: list[int], padding: list[int], out: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, byte index, int64 index) of one draw per window, element by element."""
    double = x.dtype == torch.float64
    acc = np.float64 if double else np.float32
    rank, extents = len(kernel), list(x.shape[2:])
    flat = x.contiguous().to(torch.float64 if double else torch.float32).reshape(-1, *extents)
    values = flat.numpy()
    planes = values.shape[0]
    chosen = torch.empty(planes, *out, dtype=torch.int64)
    byte = torch.empty(planes, *out, dtype=torch.uint8)
    longest = [taps_of(extents[a], kernel[a], stride[a]) for a in range(rank)]
    size = int(np.prod(out))
    for plane in range(planes):
        for number, at in enumerate(itertools.product(*map(range, out))):
            axes = [
                window(extents[a], kernel[a], stride[a], padding[a], at[a]) for a in range(rank)
            ]
            elements = list(itertools.product(*axes))
            total = acc(0)
            for e in elements:
                v = acc(values[(plane, *e)])
                total = total + (acc(0) if v < 0 else v)
            threshold = drawn(seed, plane * size + number, double) * total
            best, running, taken = elements[0], acc(0), False
            for e in elements:
                v = acc(values[(plane, *e)])
                if np.isnan(total):
                    best = e if np.isnan(v) else best
                    continue
                weight = acc(0) if v < 0 else v
                running = running + weight
                if taken or not weight > 0:
                    continue
                best = e
                taken = bool(running > threshold) or bool(np.isinf(running))
            chosen[(plane, *at)] = int(np.ravel_multi_index(best, extents))
            place = 0
            for a in range(rank):
                t = tap(extents[a], kernel[a], stride[a], padding[a], at[a], best[a])
                place = place * longest[a] + t
            byte[(plane, *at)] = place
    shape = (*x.shape[:2], *out)
    chosen, byte = chosen.reshape(shape), byte.reshape(shape)
    y = x.contiguous().flatten(2).gather(2, chosen.flatten(2)).reshape(shape)
    return y, byte, chosen


def draw_cases(rank: int) -> Iterator[tuple[list[int], list[int], list[int], bool]]:
    for k, s, p, ceil in ((3, 2, 1, False), (2, 2, 0, True), (3, 1, 1, False), (4, 3, 2, True)):
        yield [k] * rank, [s] * rank, [p] * rank, ceil
    yield [2] * rank, [0] * rank, [0] * rank, False  # adaptive
    yield [3] * rank, [2] * (rank - 1) + [0], [1] * (rank - 1) + [0], False


def special(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    x = torch.randn(shape)
    x[torch.rand(shape) < 0.5] = -0.0
    x[torch.rand(shape) < 0.3] = 0.0
    x[:, :1] = -x[:, :1].abs()  # windows without a weight
    rare = torch.rand(shape)
    x[rare < 0.01] = float("inf")
    x[(rare > 0.01) & (rare < 0.02)] = float("nan")
    x[(rare > 0.02) & (rare < 0.05)] = -float("inf")
    x = x.to(dtype)
    x[(rare > 0.05) & (rare < 0.08)] = torch.finfo(dtype).max  # sums overflow
    return x


@functools.cache
def modelled(rank: int, dtype: torch.dtype) -> tuple[Tensor, list[tuple]]:
    """x, and of every case the arguments of the op and what the model draws."""
    torch.manual_seed(rank)
    x = special({1: (2, 9, 13), 2: (1, 9, 7, 8), 3: (1, 3, 5, 4, 5)}[rank], dtype)
    cases = []
    for number, lists in enumerate(draw_cases(rank)):
        seed = torch.tensor([7 + (number << 40) * 12345])
        shape = ops.max_pool_fprop(x, *lists[:3], [1] * rank, lists[3], NOTHING)[0].shape
        with np.errstate(all="ignore"):
            want = model(x, seed.item(), *lists[:3], list(shape[2:]))
        cases.append(((seed, *lists), want))
    return x, cases


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_drawing_follows_the_model_to_the_bit(
    rank: int, channels_last: bool, dtype: torch.dtype, isa: str
) -> None:
    x, cases = modelled(rank, dtype)
    laid = laid_out(x, channels_last)
    for args, (want, want_byte, want_place) in cases:
        y, byte = ops.sample_pool_fprop(laid, *args, BYTE)
        assert torch.equal(bits(y), bits(want)), args
        assert torch.equal(byte, want_byte), args
        z, place = ops.sample_pool_fprop(laid, *args, LONG)
        assert torch.equal(bits(z), bits(y)) and torch.equal(place, want_place), args
        z, _ = ops.sample_pool_fprop(laid, *args, NOTHING)
        assert torch.equal(bits(z), bits(y)), args
        dy = torch.randn(y.shape).to(dtype)
        sent = ops.max_pool_dgrad(dy, byte, x.shape, *args[1:4], [1] * rank, channels_last)
        sums = torch.zeros(*x.shape[:2], x[0, 0].numel(), dtype=torch.float64)
        sums.scatter_add_(2, place.flatten(2), dy.double().flatten(2))
        near = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(sent.double().flatten(2), sums, **near)


def test_drawing_is_the_same_in_both_layouts_and_with_any_threads(
    isa: str, set_threads: Callable[[int], None]
) -> None:
    x = torch.randn(3, 37, 33, 35)
    for dtype in DTYPES:
        seen = []
        for channels_last, threads in itertools.product((False, True), (1, 2, 5)):
            set_threads(threads)
            laid = laid_out(x.to(dtype), channels_last)
            args = (torch.tensor([99]), [3, 3], [2, 2], [1, 1], False, BYTE)
            y, byte = ops.sample_pool_fprop(laid, *args)
            mean = ops.expectation_pool_fprop(laid, [3, 3], [2, 2], [1, 1], False)
            assert y.stride() == byte.stride() == mean.stride()
            assert y.is_contiguous() != channels_last
            seen.append((bits(y), bits(byte), bits(mean)))
        for other in seen[1:]:
            assert all(map(torch.equal, seen[0], other))


@pytest.mark.parametrize("channels_last", [False, True])
def test_drawing_follows_the_weights(channels_last: bool) -> None:
    weights = torch.tensor([1.0, 5.0, -3.0, 2.0, 0.0, 0.5, 4.0, 1.5, 6.0])
    x = laid_out(weights.reshape(1, 1, 3, 3).expand(100, 200, 3, 3), channels_last)
    _, byte = ops.sample_pool_fprop(x, torch.tensor([5]), [3, 3], [1, 1], [0, 0], False, BYTE)
    counts = torch.bincount(byte.flatten().long(), minlength=9).double()
    expected = weights.clamp(min=0).double() / weights.clamp(min=0).sum() * byte.numel()
    assert counts[expected == 0].sum() == 0
    some = expected > 0
    # 6 degrees of freedom: 1e-4 of fair draws lie above 27.9.
    assert ((counts - expected).square()[some] / expected[some]).sum() < 27.9
    other = ops.sample_pool_fprop(x, torch.tensor([6]), [3, 3], [1, 1], [0, 0], False, BYTE)[1]
    assert not torch.equal(byte, other)


# --- Expectation --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_expectation_is_its_composition(
    rank: int, channels_last: bool, dtype: torch.dtype, isa: str
) -> None:
    x = torch.randn(SHAPES[rank]).to(dtype)
    x[:, :1] = -x[:, :1].abs()
    weight = x.double().clamp(min=0)
    for kernel, stride, padding, ceil in draw_cases(rank):
        y = ops.expectation_pool_fprop(laid_out(x, channels_last), kernel, stride, padding, ceil)
        lists = (kernel, stride, padding, ceil, True, 1)
        square, total = (ops.sum_pool_fprop(w, *lists) for w in (weight * weight, weight))
        want = torch.where(total > 0, square / total, 0)
        near = {"rtol": 1e-2, "atol": 1e-2} if dtype.itemsize == 2 else {"rtol": 1e-5, "atol": 1e-6}
        assert y.dtype == dtype and (y[:, 0] == 0).all()
        torch.testing.assert_close(y.double(), want, **near)


def test_expectation_passes_nan_on() -> None:
    x = torch.ones(1, 1, 2, 4)
    x[0, 0, 0, 1] = float("nan")
    y = ops.expectation_pool_fprop(x, [2, 2], [2, 2], [0, 0], False)
    assert y[0, 0, 0, 0].isnan() and y[0, 0, 0, 1] == 1


# --- Unpooling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_unpooling_is_pytorchs(rank: int, channels_last: bool, dtype: torch.dtype) -> None:
    x = torch.randn(SHAPES[rank]).to(dtype)
    pool = getattr(F, f"max_pool{rank}d")
    for k, s in ((2, 2), (3, 2), (2, 1)):  # overlapping windows send the same element twice
        y, index = pool(x.float(), k, s, return_indices=True)
        y = y.to(dtype)
        got = ops.max_unpool_fprop(laid_out(y, channels_last), index, list(x.shape))
        want = getattr(F, f"max_unpool{rank}d")(y, index, k, s, output_size=x.shape)
        assert torch.equal(got, want)
        assert got.is_contiguous() != channels_last


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_last_element_sent_to_a_place_stays(
    channels_last: bool, set_threads: Callable[[int], None]
) -> None:
    x = torch.randn(3, 21, 20, 20)
    index = torch.randint(0, 50, x.shape)
    want = torch.zeros(3, 21, 50)
    for i in range(400):
        want.scatter_(2, index.flatten(2)[..., i : i + 1], x.flatten(2)[..., i : i + 1])
    for threads in (1, 2):
        set_threads(threads)
        got = ops.max_unpool_fprop(laid_out(x, channels_last), index, [3, 21, 10, 5])
        assert torch.equal(got.flatten(2), want)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bad", [99, -1])
def test_unpooling_refuses_places_outside(rank: int, bad: int) -> None:
    x = torch.randn(2, 3, *[2] * rank)
    index = torch.zeros(x.shape, dtype=torch.int64)
    index.view(-1)[5] = bad
    with pytest.raises(RuntimeError) as theirs:
        getattr(F, f"max_unpool{rank}d")(x, index, 2)
    text = str(theirs.value).splitlines()[0]
    assert "Found an invalid max index" in text
    with pytest.raises(RuntimeError) as ours:
        ops.max_unpool_fprop(x, index, [2, 3, *[4] * rank])
    assert text in str(ours.value)


# --- Adaptive axes ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_adaptive_maxima_are_pytorchs(
    rank: int, channels_last: bool, dtype: torch.dtype, isa: str
) -> None:
    pool = getattr(F, f"adaptive_max_pool{rank}d")
    x = torch.randn(SHAPES[rank]).to(dtype)
    x[torch.rand(x.shape) < 0.02] = float("nan")
    x[torch.rand(x.shape) < 0.3] = 1.0  # ties
    exact = x.double().requires_grad_()
    zeros, ones = [0] * rank, [1] * rank
    for sizes in itertools.islice(itertools.product((1, 2, 4, 5, 9), repeat=rank), 40):
        y, index = pool(exact, sizes, return_indices=True)
        laid = laid_out(x, channels_last)
        for kind in (BYTE, LONG):
            lists = (list(sizes), zeros, zeros, ones)
            if kind == BYTE and x[0, 0].numel() > 255:
                continue
            z, kept = ops.max_pool_fprop(laid, *lists, False, kind)
            assert torch.equal(z.isnan(), y.isnan()), sizes
            assert torch.equal(z.double().nan_to_num(), y.detach().nan_to_num()), sizes
            dy = torch.randn(y.shape).to(dtype)
            (want,) = torch.autograd.grad(y, exact, dy.double(), retain_graph=True)
            dx = ops.max_pool_dgrad(
                laid_out(dy, channels_last), kept, x.shape, *lists, channels_last
            )
            near = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {}
            torch.testing.assert_close(dx, want.to(dtype), msg=f"{sizes} {kind}", **near)
            taken = ops.max_pool_at(laid, kept, *lists)
            assert torch.equal(bits(taken), bits(z)), sizes
        assert torch.equal(kept, index), sizes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_adaptive_averages_are_pytorchs(
    rank: int, channels_last: bool, dtype: torch.dtype, isa: str
) -> None:
    pool = getattr(F, f"adaptive_avg_pool{rank}d")
    x = torch.randn(SHAPES[rank]).to(dtype)
    exact = x.double().requires_grad_()
    zeros = [0] * rank
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {}
    for sizes in itertools.islice(itertools.product((1, 2, 4, 5, 9), repeat=rank), 40):
        y = pool(exact, sizes)
        lists = (list(sizes), zeros, zeros)
        z = ops.sum_pool_fprop(laid_out(x, channels_last), *lists, False, False, 0)
        torch.testing.assert_close(z, y.to(dtype), msg=str(sizes), **near)
        dy = torch.randn(y.shape).to(dtype)
        (want,) = torch.autograd.grad(y, exact, dy.double())
        dx = ops.sum_pool_dgrad(
            laid_out(dy, channels_last), x.shape, *lists, False, 0, channels_last
        )
        torch.testing.assert_close(dx, want.to(dtype), msg=str(sizes), **near)


@pytest.mark.parametrize("channels_last", [False, True])
def test_one_axis_adaptive_beside_an_ordinary_one(channels_last: bool, isa: str) -> None:
    x = torch.randn(2, 19, 9, 14)
    laid = laid_out(x, channels_last)
    # H by windows of 3, 2 apart and padded by 1; W in 4 parts.
    lists = ([3, 4], [2, 0], [1, 0])
    rows = F.max_pool2d(x, (3, 1), (2, 1), (1, 0))
    y, index = ops.max_pool_fprop(laid, *lists, [1, 1], False, LONG)
    assert torch.equal(y, F.adaptive_max_pool2d(rows, (5, 4)))
    assert torch.equal(x.flatten(2).gather(2, index.flatten(2)), y.flatten(2))
    averages = ops.sum_pool_fprop(laid, *lists, False, True, 0)
    want = F.adaptive_avg_pool2d(F.avg_pool2d(x, (3, 1), (2, 1), (1, 0)), (5, 4))
    torch.testing.assert_close(averages, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_as_wide_as_a_row(dtype: torch.dtype, isa: str) -> None:
    x = torch.randn(3, 45, 9, 21).to(dtype)
    exact = x.double().requires_grad_()
    near = {"rtol": 2e-2, "atol": 2e-2} if dtype.itemsize == 2 else {}
    for kernel, stride in (((9, 21), (9, 21)), ((3, 12), (2, 9)), ((1, 21), (1, 1))):
        lists = (list(kernel), list(stride), [0, 0])
        y, index = F.max_pool2d(exact, kernel, stride, return_indices=True)
        z, places = ops.max_pool_fprop(x, *lists, [1, 1], False, LONG)
        assert torch.equal(z.double(), y) and torch.equal(places, index)
        for power in (1.0, 2.0, 3.0):
            y = F.lp_pool2d(exact.abs() + 1, power, kernel, stride)
            z = ops.lp_pool_fprop((x.abs() + 1), *lists, False, power, True)
            torch.testing.assert_close(z, y.to(dtype), **near)
        y = F.avg_pool2d(exact, kernel, stride)
        z = ops.sum_pool_fprop(x, *lists, False, True, 0)
        torch.testing.assert_close(z, y.to(dtype), **near)
        dy = torch.randn(y.shape).to(dtype)
        (want,) = torch.autograd.grad(y, exact, dy.double())
        dx = ops.sum_pool_dgrad(dy, x.shape, *lists, True, 0, False)
        torch.testing.assert_close(dx, want.to(dtype), **near)
