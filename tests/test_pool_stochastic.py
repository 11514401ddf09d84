"""Stochastic pooling: what is drawn, how often, from which generator, and its average."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pool_check import DTYPES, LAYOUTS, RANKS, SHAPES, as_integers, errors_alike, gradient, laid_out
from torch import Tensor

import fastconv
from fastconv.ops import pool_sampling

# Upper 0.1% points of the chi-square distribution, by degrees of freedom.
CHI_SQUARE = {6: 22.46, 15: 37.70}
INF, NAN = float("inf"), float("nan")


def functions(rank: int) -> Callable[..., Any]:
    return getattr(fastconv, f"stochastic_pool{rank}d")


def drawn(x: Tensor, *args: Any, seed: int = 7, **options: Any) -> tuple[Tensor, Tensor]:
    """(y, indices) under a generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "return_indices": True, **options}
    return functions(x.dim() - 2)(x, *args, **options)


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return ((counts - expected).square() / expected).sum().item()


def test_frequencies_are_the_shares() -> None:
    """24,000 draws of one window in one call; then of many calls, which differ in the seed."""
    window = torch.tensor([0.5, 2.0, -3.0, 1.0, 0.25, 4.0, 0.0, 1.25, 3.0])
    shares = window.clamp(min=0) / window.clamp(min=0).sum()
    some = shares > 0
    many = window.reshape(1, 1, 3, 3).expand(4, 6000, 3, 3)
    counts = torch.bincount(drawn(many, 3)[1].flatten(), minlength=9)
    assert counts.sum() == 24000 and not counts[~some].any()
    assert chi_square(counts[some], 24000 * shares[some]) < CHI_SQUARE[6]
    torch.manual_seed(3)
    few = window.reshape(1, 1, 3, 3).expand(1, 50, 3, 3)
    calls = [fastconv.stochastic_pool2d(few, 3, return_indices=True)[1] for _ in range(400)]
    counts = torch.bincount(torch.cat(calls).flatten(), minlength=9)
    assert chi_square(counts[some], 20000 * shares[some]) < CHI_SQUARE[6]
    # The statistic sees a share that is off by a tenth of itself.
    wrong = shares.clone()
    wrong[5], wrong[1] = 1.1 * shares[5], shares[1] - 0.1 * shares[5]
    counts = torch.multinomial(wrong, 24000, replacement=True).bincount(minlength=9)
    assert chi_square(counts[some], 24000 * shares[some]) > CHI_SQUARE[6]


@pytest.mark.parametrize("step", ["row", "column", "channel", "batch", "call"])
def test_neighbouring_draws_are_independent(step: str) -> None:
    """Pairs of draws that are one step apart fill the table of 4 x 4 taps evenly."""
    x = torch.ones(8, 8, 40, 40)
    a = b = drawn(x, 2)[1]
    y = torch.arange(20).repeat_interleave(20).reshape(20, 20) * 2
    origin = y * 40 + torch.arange(20) * 2
    taps = {0: 0, 1: 1, 40: 2, 41: 3}

    def tap(index: Tensor) -> Tensor:
        offset = index - origin
        return (offset >= 40).long() * 2 + offset % 40

    assert set((a - origin).unique().tolist()) == set(taps)
    a = b = tap(a)
    if step == "call":
        b = tap(drawn(x, 2, seed=8)[1])
    else:
        axis = {"batch": 0, "channel": 1, "row": 2, "column": 3}[step]
        n = a.shape[axis]
        a, b = a.narrow(axis, 0, n - 1), b.narrow(axis, 1, n - 1)
    counts = torch.bincount((4 * a + b).flatten(), minlength=16)
    total = counts.sum().item()
    assert total >= 20000
    assert chi_square(counts, torch.full((16,), total / 16)) < CHI_SQUARE[15]


def test_philox_is_the_published_one() -> None:
    """The known answer of Random123 for key 0, counter 0."""
    zero = torch.zeros(1, dtype=torch.int64)
    words = [w.item() for w in pool_sampling.philox(zero, zero)]
    assert words == [0x6627E8D5, 0xE169C58D]


def special(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Windows of all sorts: signed, all nonpositive, with NaN and infinities."""
    x = torch.randn(shape)
    x[torch.rand_like(x) < 0.4] = -1.0
    for value, share in ((0.0, 0.1), (-0.0, 0.1), (INF, 0.02), (-INF, 0.05), (NAN, 0.01)):
        x[torch.rand_like(x) < share] = value
    x[..., :4] = -x[..., :4].abs()
    return x.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_kernel_and_composition_draw_the_same(
    rank: int, channels_last: bool, dtype: torch.dtype, isa: str
) -> None:
    x = special(SHAPES[rank], dtype)
    for args in ((2,), (3, 2, 1), (3, 1, 0, True), (2, 3, 1, True), (5, 4, 2)):
        y, index = drawn(x, *args, algo="aten")
        z, places = drawn(laid_out(x, channels_last), *args, algo="direct")
        assert torch.equal(places, index), args
        assert torch.equal(as_integers(z), as_integers(y)), args
        assert z.stride() == laid_out(y, channels_last).stride(), args
        taken = x.flatten(2).gather(2, index.flatten(2)).reshape(y.shape)
        assert torch.equal(as_integers(y), as_integers(taken)), args


def test_threads_change_no_draw(set_threads: Callable[[int], None]) -> None:
    x = torch.randn(3, 40, 33, 35)
    for laid in (x, laid_out(x, True)):
        results = []
        for threads in (1, 2, 5):
            set_threads(threads)
            results.append(drawn(laid, 3, 2, 1)[1])
        assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("algo", ["direct", "aten"])
def test_windows_without_a_choice(algo: str) -> None:
    def one(values: list[float], **options: Any) -> tuple[float, int]:
        y, index = drawn(torch.tensor([[values]]), len(values), algo=algo, **options)
        return y.item(), index.item()

    for seed in range(20):
        assert one([-1.0, -2.0, 0.0], seed=seed) == (-1.0, 0)
        assert one([-INF, -INF], seed=seed) == (-INF, 0)
        assert one([1.0, INF, 5.0, INF], seed=seed) == (INF, 1)
        assert one([0.0, -1.0, 1e-30], seed=seed)[1] == 2
        y, index = one([NAN, INF, NAN, 1.0], seed=seed)
        assert math.isnan(y) and index == 2
        # The first window of a padded row starts in the padding, which is never taken.
        y, index = drawn(-torch.ones(1, 1, 6), 3, 3, 1, seed=seed, algo=algo)
        assert index.flatten().tolist() == [0, 2]


def test_the_gradient_goes_to_what_was_drawn() -> None:
    x = torch.randn(2, 3, 9, 8)
    large = torch.randn(1, 2, 40, 40, dtype=torch.float64)  # 400 taps: more than a byte tells apart
    for t, size in ((x.double(), 3), (x.half(), 3), (laid_out(x, True), 3), (large, 20)):

        def pool(t: Tensor, size: int = size) -> Tensor:
            return fastconv.stochastic_pool2d(t, size, 2, 1, generator=_seeded(7))

        y, index = drawn(t, size, 2, 1)
        dy = torch.randint(-4, 5, y.shape).to(t.dtype)
        want = torch.zeros_like(t).flatten(2).scatter_add(2, index.flatten(2), dy.flatten(2))
        assert torch.equal(gradient(pool, t, dy), want.reshape(t.shape))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_which_generator_is_used() -> None:
    x = torch.rand(2, 8, 12, 12)

    def call(**options: Any) -> Tensor:
        return fastconv.stochastic_pool2d(x, 3, 2, **options)

    torch.manual_seed(5)
    first, second = call(), call()
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(call(), first) and torch.equal(call(), second)
    before = torch.get_rng_state()
    explicit = call(generator=_seeded(5))
    assert torch.equal(explicit, call(generator=_seeded(5)))
    assert not torch.equal(explicit, call(generator=_seeded(6)))
    call(training=False)
    fastconv.explain("stochastic_pool2d", x, 3)
    assert torch.equal(torch.get_rng_state(), before)
    call()
    assert not torch.equal(torch.get_rng_state(), before)
    generator = _seeded(5)
    assert not torch.equal(call(generator=generator), call(generator=generator))
    with pytest.raises(TypeError):
        call(generator=5)


def average(x: Tensor, kernel: int, stride: int, padding: int, ceil: bool = False) -> Tensor:
    """The definition of evaluation, of PyTorch's average pooling in float64."""
    weight = x.double().clamp(min=0)
    pools = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
    pool, options = pools[x.dim() - 3], {"ceil_mode": ceil}
    sums = pool(weight, kernel, stride, padding, **options)
    squares = pool(weight.square(), kernel, stride, padding, **options)
    return torch.where(sums > 0, squares / sums, 0.0)


@pytest.mark.parametrize("algo", ["direct", "aten"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_evaluation_is_the_average(
    rank: int, channels_last: bool, dtype: torch.dtype, algo: str
) -> None:
    x = laid_out(torch.randn(SHAPES[rank]).to(dtype), channels_last)
    eps = torch.finfo(dtype).eps
    near = {"rtol": eps if dtype.itemsize == 2 else 16 * eps, "atol": 0}
    for args in ((2, 2, 0), (3, 2, 1), (3, 1, 1, True), (2, 3, 1, True)):
        y = functions(rank)(x, *args, training=False, algo=algo)
        assert y.dtype == dtype and y.stride() == laid_out(y.contiguous(), channels_last).stride()
        torch.testing.assert_close(y.double(), average(x, *args), **near)


def test_evaluation_is_what_training_yields_on_average() -> None:
    x = torch.rand(1, 1, 6, 6).expand(1, 20000, 6, 6)
    y = drawn(x, 3)[0]
    mean, deviation = y.mean(1), y.std(1) / 20000**0.5
    expected = fastconv.stochastic_pool2d(x[:, :1], 3, training=False)[:, 0]
    assert ((mean - expected).abs() < 4 * deviation).all()


@pytest.mark.parametrize("algo", ["direct", "aten"])
def test_16_bit_sums_do_not_overflow(algo: str) -> None:
    x = torch.full((1, 1, 8, 8), 300.0, dtype=torch.float16)
    for laid in (x, laid_out(x.expand(1, 9, 8, 8), True)):
        y = fastconv.stochastic_pool2d(laid, 4, training=False, algo=algo)
        assert (y == 300).all()
        dx = gradient(
            lambda t: fastconv.stochastic_pool2d(t, 4, training=False, algo=algo),
            laid,
            torch.ones_like(y),
        )
        assert (dx == 1 / 16).all()
    x = torch.full((1, 1, 32, 32), 300.0, dtype=torch.float16)  # the sum alone is above 65504
    counts = torch.zeros(1024)
    for seed in range(30):
        y, index = drawn(x, 32, seed=seed, algo=algo)
        assert y.item() == 300
        counts[index] += 1
    assert counts.max() < 4
    assert fastconv.l2_pool2d(x, 8, algo=algo).eq(2400).all()


def test_vmap_follows_its_randomness() -> None:
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64).expand(4, 2, 3, 6, 6)

    def pool(t: Tensor) -> Tensor:
        return fastconv.stochastic_pool2d(t, 3)

    for f in (pool, lambda t: fastconv.stochastic_pool2d(t, 3, algo="aten")):
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(f)(x)
        torch.manual_seed(1)
        same = torch.vmap(f, randomness="same")(x)
        torch.manual_seed(1)
        assert all(torch.equal(entry, f(x[0])) for entry in same[:1])
        assert all(torch.equal(entry, same[0]) for entry in same)
        different = torch.vmap(f, randomness="different")(x)
        assert any(not torch.equal(entry, different[0]) for entry in different)
    moved = torch.vmap(pool, in_dims=2, randomness="different")(
        x[0][..., None, :].expand(2, 3, 6, 4, 6).movedim(3, 2)
    )
    assert moved.shape == (4, 2, 3, 2, 2)
    evaluated = torch.vmap(lambda t: fastconv.stochastic_pool2d(t, 3, training=False))(x)
    torch.testing.assert_close(evaluated[0], fastconv.stochastic_pool2d(x[0], 3, training=False))
    # Per-sample gradients: each goes to its own draw.
    dx = torch.vmap(torch.func.grad(lambda t: pool(t).sum()), randomness="different")(x)
    assert dx.sum().item() == 4 * 2 * 3 * 4 and ((dx == 0) | (dx == 1)).all()


def test_forward_mode_takes_the_tangent_of_what_was_drawn() -> None:
    x, t = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6)
    index = drawn(x, 3, 2, 1)[1]
    y, y_t = torch.func.jvp(
        lambda v: fastconv.stochastic_pool2d(v, 3, 2, 1, generator=_seeded(7)), (x,), (t,)
    )
    for tensor, source in ((y, x), (y_t, t)):
        taken = source.flatten(2).gather(2, index.flatten(2)).reshape(y.shape)
        assert torch.equal(tensor, taken)


@pytest.mark.parametrize("training", [True, False])
def test_compiled_without_breaks(training: bool) -> None:
    torch._dynamo.reset()
    x = torch.rand(2, 3, 8, 9, requires_grad=True)

    def pool(t: Tensor) -> Tensor:
        return fastconv.stochastic_pool2d(t, 3, 2, training=training)

    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    results = []
    for f in (pool, compiled):
        torch.manual_seed(4)
        y = f(x)
        results.append((y, torch.autograd.grad(y.square().sum(), x)[0]))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    if training:
        assert not torch.equal(compiled(x), compiled(x))


def test_arguments_and_errors() -> None:
    x = torch.rand(2, 4, 8, 8)
    for args in ((3, None, 2), (0,), (3, (1, 0)), (9,), ((2, 2, 2),), ("a",)):
        errors_alike(
            lambda a=args: F.max_pool2d(x, *a), lambda a=args: fastconv.stochastic_pool2d(x, *a)
        )
    for bad in (x[0, 0], x[None], x[:, :0]):
        errors_alike(
            lambda t=bad: F.max_pool2d(t, 2), lambda t=bad: fastconv.stochastic_pool2d(t, 2)
        )
    with pytest.raises(NotImplementedError, match=r"stochastic_pool2d.*int32"):
        fastconv.stochastic_pool2d(x.int(), 2)
    with pytest.raises(ValueError, match="evaluation"):
        fastconv.stochastic_pool2d(x, 2, training=False, return_indices=True)
    assert fastconv.stochastic_pool2d(x[:0], 2).shape == (0, 4, 4, 4)
    assert torch.equal(drawn(x, 2)[0][0], drawn(x[:1], 2)[0][0])  # an output's draw is its own
    for rank in RANKS:
        t = torch.rand(SHAPES[rank])
        assert torch.equal(
            functions(rank)(t[0], 3, 2, generator=_seeded(1)),
            functions(rank)(t[:1], 3, 2, generator=_seeded(1))[0],
        )
    base = torch.rand(3, 8, 20, 22)[:, ::2, 1::2, ::3]
    assert torch.equal(drawn(base, 3)[1], drawn(base.contiguous(), 3)[1])


def test_autocast_leaves_the_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in DTYPES:
            x = torch.rand(1, 2, 6, 6).to(dtype)
            for algo in ("direct", "aten"):
                for training in (True, False):
                    y = fastconv.stochastic_pool2d(x, 2, training=training, algo=algo)
                    assert y.dtype == dtype
                assert fastconv.l2_pool2d(x, 2, algo=algo).dtype == dtype
