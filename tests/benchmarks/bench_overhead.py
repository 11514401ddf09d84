"""Cost of one call on tensors so small that nothing else counts, against torch.nn.functional.

    python -m pytest tests/benchmarks/bench_overhead.py

Fails where a call costs more over F.conv2d in the same run than the limits below. The limits are
for a machine on which F.conv2d takes 2 µs; they grow in proportion on a slower one.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
import torch.nn.functional as F

import fastconv
from fastconv import select

REFERENCE = 2e-6  # F.conv2d on the machine that the limits are stated for


def operands(grad=False):
    return (
        torch.randn(1, 1, 1, 1, requires_grad=grad),
        torch.randn(1, 1, 1, 1, requires_grad=grad),
    )


def seconds(*functions, rounds=15, calls=400):
    """Median seconds per call of each function, interleaved."""
    samples = [[] for _ in functions]
    for _ in range(rounds):
        for f, times in zip(functions, samples, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                f()
            times.append((time.perf_counter() - start) / calls)
    return [statistics.median(times) for times in samples]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def auto_is(monkeypatch):
    """Makes `auto` decide for one algorithm."""

    def decide(name):
        monkeypatch.setattr(select, "recorded", lambda spec, threads, isa: name)
        select.forget()

    yield decide
    monkeypatch.undo()
    select.forget()


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", ["aten", "direct"])
def test_call(benchmark, auto_is, name, grad):
    auto_is(name)
    x, w = operands(grad)
    benchmark(lambda: fastconv.conv2d(x, w))


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_torch(benchmark, grad):
    x, w = operands(grad)
    benchmark(lambda: F.conv2d(x, w))


def test_fused_limit(auto_is):
    """In inference conv_bn_relu costs a few checks of its parameters more than conv2d."""
    auto_is("direct")
    x, w = operands()
    one, zero = torch.ones(1), torch.zeros(1)
    with torch.no_grad():
        theirs, plain, ours = seconds(
            lambda: F.conv2d(x, w),
            lambda: fastconv.conv2d(x, w),
            lambda: fastconv.conv_bn_relu(x, w, None, one, zero, zero, one),
        )
    print(f"direct: {ours * 1e6:.2f} µs, fastconv.conv2d {plain * 1e6:.2f} µs")
    assert ours - plain <= 7e-6 * max(1.0, theirs / REFERENCE)


@pytest.mark.parametrize(
    "name,grad,limit",
    [
        ("aten", False, 5e-6),
        ("aten", True, 5e-6),
        ("direct", False, 10e-6),
        ("direct", True, 20e-6),
    ],
)
def test_limit(auto_is, name, grad, limit):
    auto_is(name)
    x, w = operands(grad)
    theirs, ours = seconds(lambda: F.conv2d(x, w), lambda: fastconv.conv2d(x, w))
    print(f"{name} grad={grad}: {ours * 1e6:.2f} µs, F.conv2d {theirs * 1e6:.2f} µs")
    assert ours <= limit * max(1.0, theirs / REFERENCE)
