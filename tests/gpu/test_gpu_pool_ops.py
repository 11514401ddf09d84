"""The public pooling functions on the device: gradients against PyTorch, captured training steps,
layers; and the Triton kernels, which have to give the bits of the CUDA ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gpu_runner import (
    DEVICE,
    ON_CPU_KERNELS,
    REHEARSAL,
    device_ops,
    laid_out,
    losses_of_training,
    marks,
)
from pool_cases import POOL_CASES
from stream_checks import warm_up
from torch import Tensor, nn

import fastconv
from fastconv import pool_reference
from fastconv.pool_checks import (
    KEEP_BYTE,
    KEEP_NOTHING,
    KEEP_PLACE,
    SEED,
    PoolCase,
    placed,
    values_of,
)

pytestmark = marks()
LAYOUTS = ("NCHW", "NHWC")
DTYPES = (torch.float32, torch.bfloat16)
# One rounding of the result in 16 bits, sums of some dozen terms, and a root's slope.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
ALGOS = ("auto",) if ON_CPU_KERNELS else ("auto", "direct")

# (rank, ours, PyTorch's): (x) -> y
FUNCTIONS: dict[str, tuple[int, Callable[..., Tensor], Callable[..., Tensor]]] = {
    "max_pool1d": (1, lambda x, a: fastconv.max_pool1d(x, 3, 2, 1, algo=a),
                   lambda x: F.max_pool1d(x, 3, 2, 1)),
    "max_pool2d": (2, lambda x, a: fastconv.max_pool2d(x, 3, 2, 1, ceil_mode=True, algo=a),
                   lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max_pool3d": (3, lambda x, a: fastconv.max_pool3d(x, 2, algo=a), lambda x: F.max_pool3d(x, 2)),
    "avg_pool2d": (2, lambda x, a: fastconv.avg_pool2d(x, 3, 2, 1, False, False, algo=a),
                   lambda x: F.avg_pool2d(x, 3, 2, 1, False, False)),
    "sum_pool2d": (2, lambda x, a: fastconv.sum_pool2d(x, 3, 1, 1, algo=a),
                   lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=1)),
    "lp_pool2d": (2, lambda x, a: fastconv.lp_pool2d(x, 2, 3, 2, algo=a),
                  lambda x: F.lp_pool2d(x, 2, 3, 2)),
    "adaptive_max_pool2d": (2, lambda x, a: fastconv.adaptive_max_pool2d(x, (4, 5), algo=a),
                            lambda x: F.adaptive_max_pool2d(x, (4, 5))),
    "adaptive_avg_pool2d": (2, lambda x, a: fastconv.adaptive_avg_pool2d(x, 1, algo=a),
                            lambda x: F.adaptive_avg_pool2d(x, 1)),
    "l2_pool_features": (2, lambda x, a: fastconv.l2_pool_features(x, 4, 2, algo=a),
                         lambda x: x.unfold(1, 4, 2).square().sum(-1).sqrt()),
    "maxout": (2, lambda x, a: fastconv.maxout(x, 4, algo=a),
               lambda x: x.unflatten(1, (4, 4)).amax(2)),
}  # fmt: skip
SIZES = {1: (3, 16, 67), 2: (3, 16, 23, 18), 3: (2, 16, 7, 9, 11)}


def distinct(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Positive numbers, exact in 16 bits, no two of which are equal within a window or a group of
    channels: the gradient of equal maxima may go to either."""
    count = torch.Size(size).numel()
    return ((torch.arange(count) * 37 % 251 + 2).view(size) / 128).to(dtype)


def on_device(t: Tensor, layout: str) -> Tensor:
    return (laid_out(t, layout) if t.dim() > 3 else t).to(DEVICE, copy=True)


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype, note: str) -> None:
    assert got.dtype == dtype and got.device.type == DEVICE.type
    error = (got.detach().double().cpu() - want.detach()).abs().max() / want.detach().abs().max()
    assert error < TOLERANCE[dtype], f"{note}: relative error {error:.2g}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_trains_like_torch(name: str, algo: str, dtype: torch.dtype, layout: str) -> None:
    """Forward and backward, against PyTorch in float64 on the CPU."""
    rank, ours, theirs = FUNCTIONS[name]
    x = distinct(SIZES[rank], dtype)
    mine = on_device(x, layout).requires_grad_()
    yours = x.double().requires_grad_()
    y, y64 = ours(mine, algo), theirs(yours)
    assert y.shape == y64.shape
    dy = torch.randn(y.shape).to(dtype)
    y.backward(dy.to(DEVICE))
    y64.backward(dy.double())
    assert_close(y, y64, dtype, f"{name} y")
    assert_close(mine.grad, yours.grad, dtype, f"{name} dx")


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unpools(dtype: torch.dtype, algo: str) -> None:
    """PyTorch's own has no deterministic form, which poisoning asks for: against the definition."""
    x = distinct(SIZES[2], dtype)
    y, index = F.max_pool2d(x, 2, return_indices=True)
    mine = y.to(DEVICE, copy=True).requires_grad_()
    back = fastconv.max_unpool2d(mine, index.to(DEVICE), 2, output_size=x.shape[2:], algo=algo)
    dy = torch.randn(x.shape).to(dtype)
    back.backward(dy.to(DEVICE))
    assert torch.equal(back.detach().cpu(), pool_reference.unpool(y, index, x.shape[2:]))
    assert torch.equal(mine.grad.cpu(), pool_reference.take(dy, index))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("algo", ALGOS)
def test_draws_as_on_the_cpu(algo: str, layout: str) -> None:
    """A seed from a generator of the CPU draws the same elements on any device; dy goes to them."""
    x = torch.rand(SIZES[2])

    def step(t: Tensor, algo: str) -> tuple[Tensor, ...]:
        t = t.requires_grad_()
        generator = torch.Generator().manual_seed(7)
        window = {"generator": generator, "return_indices": True, "algo": algo}
        y, index = fastconv.stochastic_pool2d(t, 3, 2, 1, **window)
        y.sum().backward()
        return y.detach().cpu(), index.cpu(), t.grad.cpu()

    mine, theirs = step(on_device(x, layout), algo), step(x.clone(), "direct")
    for found, wanted in zip(mine, theirs, strict=True):
        assert torch.equal(found, wanted)
    average = fastconv.stochastic_pool2d(on_device(x, layout), 3, 2, 1, training=False, algo=algo)
    wanted = fastconv.stochastic_pool2d(x.double(), 3, 2, 1, training=False)
    assert_close(average, wanted, torch.float32, "evaluation")


def test_layers_learn() -> None:
    """A few steps on one batch, in mixed precision: the loss goes down."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        fastconv.nn.MaxPool2d(2),
        fastconv.nn.StochasticPool2d(3, stride=2),
        fastconv.nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 4, 4),
    ).to(DEVICE)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = losses_of_training(model, optimiser)
    assert losses[-1] < 0.8 * losses[0], losses


# --- captured training steps ----------------------------------------------------------------------

CAPTURED: dict[str, Callable[..., Tensor]] = {
    "max": lambda x, algo, _: fastconv.max_pool2d(x, 3, 2, 1, algo=algo),
    "avg": lambda x, algo, _: fastconv.avg_pool2d(x, 3, 2, 1, algo=algo),
    "lp": lambda x, algo, _: fastconv.lp_pool2d(x, 2, 3, 2, algo=algo),
    "stochastic": lambda x, algo, g: fastconv.stochastic_pool2d(x, 3, 2, 1, generator=g, algo=algo),
}


def training_step(
    name: str, algo: str, x: Tensor, generator: torch.Generator | None
) -> Callable[[], tuple[Tensor, Tensor]]:
    leaf = x.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        y = CAPTURED[name](leaf, algo, generator)
        (dx,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        return y.detach(), dx

    return step


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("algo", ["auto", "direct", "triton"])
@pytest.mark.parametrize("name", [name for name in CAPTURED if name != "stochastic"])
def test_captured_step(name: str, algo: str, layout: str) -> None:
    """Forward and backward of a public function in one graph, replayed on other values."""
    x = on_device(torch.rand(4, 16, 33, 34), layout)
    step = training_step(name, algo, x, None)
    warm_up(step, ())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(x.flip(0) + 1)
    graph.replay()
    assert all(map(torch.equal, captured, step()))


@pytest.mark.gpu
@pytest.mark.parametrize("own", [False, True], ids=["default generator", "registered generator"])
@pytest.mark.parametrize("algo", ["auto", "direct", "triton"])
def test_captured_draws(algo: str, own: bool) -> None:
    """Every replay draws anew, and as a call would under the generator's state; the gradient goes
    where that draw went."""
    x = torch.rand(4, 16, 33, 34, device=DEVICE) + 0.5
    generator = torch.Generator(DEVICE).manual_seed(3) if own else None
    seed = generator.manual_seed if own else torch.cuda.manual_seed
    step = training_step("stochastic", algo, x, generator)
    warm_up(step, ())
    graph = torch.cuda.CUDAGraph()
    if own:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        y, dx = step()
    found = []
    for _ in range(2):
        graph.replay()
        found.append(y.clone())
        assert float((dx * x).sum()) == pytest.approx(float(y.sum()), rel=1e-4)
    assert not torch.equal(*found)
    seed(11)
    graph.replay()
    replayed = y.clone(), dx.clone()
    seed(11)
    assert all(map(torch.equal, replayed, step()))


# --- Triton ---------------------------------------------------------------------------------------

IN_TRITON = (
    "2s2", "2s2_special", "3s2", "3s2_special", "3s2_vector", "3s1_special", "adaptive_wider",
    "global_ties", "asymmetric", "1d", "3d_channels",
)  # fmt: skip
TRITON_CASES = [case for case in POOL_CASES if case.id in IN_TRITON]
if REHEARSAL:  # the interpreter is slow
    TRITON_CASES = TRITON_CASES[::6]
TRITON_IDS = [case.id for case in TRITON_CASES]
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def triton_pool() -> Any:
    """The launchers; rehearsed, with kernels that Triton's interpreter runs."""
    pytest.importorskip("triton")
    if REHEARSAL:
        import interpreted_triton

        return interpreted_triton.load()
    from fastconv._triton import pool

    return pool


def equal_bits(found: Tensor, wanted: Tensor) -> bool:
    """NaN where the other has one, else to the bit; in one memory format."""
    if found.shape != wanted.shape or found.stride() != wanted.stride():
        return False
    if not found.is_floating_point():
        return torch.equal(found, wanted)
    lost = found.isnan() & wanted.isnan()
    return bool((lost | ((found == wanted) & (found.signbit() == wanted.signbit()))).all())


def triton_case(number: int, case: PoolCase) -> tuple[Tensor, int]:
    """(x on the device, what index to keep): dtypes, layouts and indices in turn."""
    dtype = TRITON_DTYPES[number % len(TRITON_DTYPES)]
    last = number % 3 > 0 and case.rank > 1
    x = placed(values_of(case, case.input_size, "x", dtype), last, DEVICE)
    bytes_will_do = case.taps <= 255
    return x, KEEP_BYTE if bytes_will_do and number % 2 else KEEP_PLACE


@pytest.mark.parametrize("number, case", list(enumerate(TRITON_CASES)), ids=TRITON_IDS)
def test_triton_gives_the_same_bits(number: int, case: PoolCase) -> None:
    """Maxima, draws, and what is gathered at either's index."""
    pool, ops = triton_pool(), device_ops()
    for turn in range(1 if REHEARSAL else 2):
        x, index = triton_case(number + 2 * turn, case)
        kernel, stride, padding, dilation = case.lists
        args = (x, kernel, stride, padding, dilation, case.ceil_mode)
        found, wanted = pool.max_pool_fprop(*args, index), ops.max_pool_fprop(*args, index)
        assert all(map(equal_bits, found, wanted)), f"max of {case.id} {x.dtype}"
        plain = pool.max_pool_fprop(*args, KEEP_NOTHING)[0]
        assert equal_bits(plain, wanted[0]), f"max of {case.id} {x.dtype} without an index"
        taken = (x, wanted[1], kernel, stride, padding, dilation)
        assert equal_bits(pool.max_pool_at(*taken), ops.max_pool_at(*taken))
        if set(dilation) != {1}:
            continue
        seed = torch.tensor(SEED, device=DEVICE)
        args = (x, seed, kernel, stride, padding, case.ceil_mode, index)
        found, wanted = pool.sample_pool_fprop(*args), ops.sample_pool_fprop(*args)
        assert all(map(equal_bits, found, wanted)), f"draws of {case.id} {x.dtype}"


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.endswith(("1d", "3d"))])
def test_triton_trains_like_torch(name: str, dtype: torch.dtype, layout: str) -> None:
    test_trains_like_torch(name, "triton", dtype, layout)
