"""What is special to the im2col algorithm: split sums of wgrad, bounded memory. The sweep over
problems is in test_conv_cpu.py.
"""

import pytest
import torch
from integer_conv import aten_backward, integers

import fastconv

C = fastconv._C
ops = torch.ops.fastconv


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_results_do_not_depend_on_threads(memory_format, dtype, restore_threads):
    torch.manual_seed(0)
    x = torch.randn(3, 20, 33, 29).to(dtype).to(memory_format=memory_format)
    w = torch.randn(40, 20, 3, 3).to(dtype).to(memory_format=memory_format)
    b = torch.randn(40).to(dtype)
    args = ([1, 2], [1, 1], [1, 1])
    channels_last = memory_format == torch.channels_last

    def run():
        y = ops.conv_fprop(x, w, b, *args, 1, "im2col")
        dy = torch.sin(y.float()).to(dtype).contiguous(memory_format=memory_format)
        dx = ops.conv_dgrad(dy, w, list(x.shape), *args, 1, channels_last, "im2col")
        dw = ops.conv_wgrad(dy, x, list(w.shape), *args, 1, channels_last, "im2col")
        return y, dx, dw

    torch.set_num_threads(1)
    want = run()
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for a, b_ in zip(run(), want, strict=True):
            assert torch.equal(a, b_)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_wgrad_split_sums(isa, memory_format):
    """Few weights, many pixels: the sum is split into slices and still exact on integers."""
    problem = C.ConvProblem([2, 6, 60, 52], [9, 6, 3, 3], [1, 1], [1, 1], [1, 1], 1)
    whole = C.ConvProblem([2, 6, 6, 6], [9, 6, 3, 3], [1, 1], [1, 1], [1, 1], 1)
    grad = (C.DType.float32, C.Direction.wgrad, 1)
    x = integers(2, 6, 60, 52).contiguous(memory_format=memory_format)
    w = integers(9, 6, 3, 3)
    dy = integers(2, 9, 60, 52, seed=3).contiguous(memory_format=memory_format)
    # Room for partial sums shows that this problem is indeed split.
    partial = C.cpu_workspace("im2col", problem, *grad) - C.cpu_workspace("im2col", whole, *grad)
    assert partial >= 2 * w.numel() * 4
    _, want = aten_backward(dy, x, w, [1, 1], [1, 1], [1, 1])
    channels_last = memory_format == torch.channels_last
    got = ops.conv_wgrad(dy, x, list(w.shape), [1, 1], [1, 1], [1, 1], 1, channels_last, "im2col")
    assert torch.equal(got.double(), want)


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize(
    ("x", "w", "stride"),
    [
        ((8, 64, 224, 224), (64, 64, 3, 3), 1),
        ((64, 512, 14, 14), (512, 512, 3, 3), 1),
        ((8, 3, 224, 224), (64, 3, 7, 7), 2),
        ((1, 512, 100000), (512, 1, 3), 1),
    ],
)
def test_workspace_is_bounded(isa, x, w, stride, direction):
    """Weights once and a few megabytes per thread: never the unfolded input."""
    rank = len(x) - 2
    groups = x[1] // w[1]
    problem = C.ConvProblem(list(x), list(w), [stride] * rank, [1] * rank, [1] * rank, groups)
    weights = torch.Size(w).numel() * 4
    if w[0] // groups == 1 or w[1] == 1:
        weights *= 16  # a panel of one filter is as wide as a vector
    for threads in (1, 2, 16):
        got = C.cpu_workspace(
            "im2col", problem, C.DType.float32, getattr(C.Direction, direction), threads
        )
        assert got <= 2 * weights + threads * 3 * 2**20 + 8 * 2**20


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_workspace_holds_for_any_strides(isa, threads, restore_threads):
    """Strides and thread counts take different paths through a workspace that was sized without
    knowing the strides: values stay right and glibc finds its heap intact when it is freed.
    """
    torch.set_num_threads(threads)
    x, w = integers(3, 24, 23, 19), integers(32, 24, 3, 3, seed=1)
    want = torch.nn.functional.conv2d(x.double(), w.double(), None, 1, 1)
    views = [
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        x.repeat_interleave(2, 3)[..., ::2],
    ]
    for view in views:
        for weight in (w, w.contiguous(memory_format=torch.channels_last)):
            got = ops.conv_fprop(view, weight, None, [1, 1], [1, 1], [1, 1], 1, "im2col")
            assert torch.equal(got.double(), want)


@pytest.mark.parametrize("size", [(9, 20, 13, 13), (3, 7, 14, 11), (80, 5, 2, 2), (2, 300, 9, 15)])
def test_pixels_sampled_from_short_rows(isa, size):
    """A 1x1 filter of stride 2 over planes: several panels and depth blocks, a last panel that is
    not full, rows cut by panels, and more rows than are gathered at once."""
    x, w = integers(*size), integers(30, size[1], 1, 1, seed=2)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        a, b = x.to(dtype), w.to(dtype)
        want = torch.nn.functional.conv2d(x.double(), w.double(), stride=2).to(dtype)
        assert torch.equal(ops.conv_fprop(a, b, None, [2, 2], [0, 0], [1, 1], 1, "im2col"), want)
