"""dgrad of strided problems, as `direct` and `im2col` do it: inputs are split into classes by their
coordinate modulo the stride; each class sees its own taps, some see none.
"""

import time

import pytest
import torch
from integer_conv import aten_backward, integers

import fastconv

C = fastconv._C
ops = torch.ops.fastconv
by_algo = pytest.mark.parametrize("algo", ["direct", "im2col"])


@by_algo
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize(
    ("stride", "filter_size", "dilation"),
    [
        (3, 1, 1),  # two of three classes per axis see no tap
        (2, 3, 1),
        (2, 3, 2),  # stride and dilation share a factor: one class takes every tap
        (4, 3, 6),
        (6, 3, 4),  # the taps of three classes repeat after stride / gcd
        (3, 5, 2),
        (5, 2, 1),  # more classes than are planned at once
        (20, 3, 1),  # stride beyond the input
    ],
)
def test_every_class(isa, algo, stride, filter_size, dilation, channels_last, groups):
    x = integers(2, 5, 17, 13)
    w = integers(10, 5 // groups, filter_size, filter_size, seed=1)
    padding = [1, 2] if filter_size > 1 else [0, 0]
    args = ([stride] * 2, padding, [dilation] * 2)
    y = torch.nn.functional.conv2d(x, w, None, *args, groups)
    dy = integers(*y.shape, seed=2)
    want, _ = aten_backward(dy, x, w, *args, groups)
    got = ops.conv_dgrad(dy, w, list(x.shape), *args, groups, channels_last, algo)
    assert torch.equal(got.double(), want)


@by_algo
def test_inputs_in_nobodys_reach(isa, algo, poisoned_empty):
    """They get zeros, not what the memory held."""
    w = torch.ones(1, 1, 1)
    dx = ops.conv_dgrad(torch.ones(1, 1, 8), w, [1, 1, 64], [8], [0], [1], 1, False, algo)
    assert torch.equal(dx, (torch.arange(64) % 8 == 0).float().view(1, 1, 64))


@by_algo
def test_a_large_stride_is_planned_quickly(algo):
    """Work and planning follow the taps, not the square of the stride."""
    n = 20_001
    problem = C.ConvProblem([1, 1, n, n], [1, 1, 2, 2], [n - 2] * 2, [0, 0], [1, 1], 1)
    start = time.perf_counter()
    for direction in (C.Direction.fprop, C.Direction.dgrad, C.Direction.wgrad):
        C.cpu_cost(algo, problem, C.DType.float32, direction, 2)
        C.cpu_workspace(algo, problem, C.DType.float32, direction, 2)
    assert time.perf_counter() - start < 1  # microseconds; minutes when every residue is visited
