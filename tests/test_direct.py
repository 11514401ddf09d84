"""What is special to the direct algorithm: its three kernels and where they meet, weights read in
place, chunked sums of wgrad, bounded memory. The sweep over problems is in test_conv_cpu.py.
"""

import pytest
import torch
from integer_conv import aten_backward, integers

import fastconv

C = fastconv._C
ops = torch.ops.fastconv
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("filters", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33])
def test_every_number_of_filters(isa, filters, dtype, memory_format):
    """Vectors run along rows for few filters and along filters for many; the border between the
    two depends on the vector, the row and the layout. Both sides of it, for all directions."""
    for width in (3, 8, 21):
        x = integers(2, 3, 5, width, dtype=dtype).contiguous(memory_format=memory_format)
        w = integers(filters, 3, 3, 3, seed=1, dtype=dtype).contiguous(memory_format=memory_format)
        args = ([1, 1], [1, 1], [1, 1])
        y = ops.conv_fprop(x, w, None, *args, 1, "direct")
        want = torch.nn.functional.conv2d(x.double(), w.double(), None, 1, 1)
        assert torch.equal(y.double(), want)
        dy = integers(*y.shape, seed=2, dtype=dtype).contiguous(memory_format=memory_format)
        channels_last = memory_format == torch.channels_last
        dx = ops.conv_dgrad(dy, w, list(x.shape), *args, 1, channels_last, "direct")
        dw = ops.conv_wgrad(dy, x, list(w.shape), *args, 1, channels_last, "direct")
        for got, expected in zip((dx, dw), aten_backward(dy, x, w, *args), strict=True):
            assert torch.equal(got.double(), expected.to(dtype).double())


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("channels", [1, 4, 7, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_channels(isa, channels, multiplier, memory_format):
    """One filter per channel is read in place where it is stored as the kernel wants it."""
    x = integers(2, channels, 9, 11).contiguous(memory_format=memory_format)
    filters = channels * multiplier
    stored = integers(3, 3, filters, seed=1).permute(2, 0, 1).unsqueeze(1)
    for w in (stored, stored.contiguous(), stored.repeat_interleave(2, 0)[::2]):
        for stride in (1, 2):
            args = ([stride, 1], [1, 1], [1, 1])
            y = ops.conv_fprop(x, w, None, *args, channels, "direct")
            want = torch.nn.functional.conv2d(x, w, None, *args, channels)
            assert torch.equal(y, want)
            dy = integers(*y.shape, seed=2).contiguous(memory_format=memory_format)
            dx = ops.conv_dgrad(dy, w, list(x.shape), *args, channels, False, "direct")
            dw = ops.conv_wgrad(dy, x, list(w.shape), *args, channels, False, "direct")
            for got, expected in zip(
                (dx, dw), aten_backward(dy, x, w, *args, channels), strict=True
            ):
                assert torch.equal(got.double(), expected)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("x_size", "w_size", "groups"),
    [((3, 6, 40, 41), (9, 6, 3, 3), 1), ((5, 24, 30, 30), (24, 1, 3, 3), 24)],
)
def test_wgrad_chunks(isa, x_size, w_size, groups, memory_format):
    """Few weights, many pixels: the sum is taken in chunks and still exact on integers."""
    grad = (C.DType.float32, C.Direction.wgrad, 1)
    whole, small = (
        C.ConvProblem(list(size), list(w_size), [1, 1], [1, 1], [1, 1], groups)
        for size in (x_size, (1, *x_size[1:2], 3, 3))
    )
    # Room for partial sums shows that this problem is indeed split.
    weights = torch.Size(w_size).numel() * 4
    assert C.cpu_workspace("direct", whole, *grad) - C.cpu_workspace("direct", small, *grad) >= (
        2 * weights
    )
    x = integers(*x_size).contiguous(memory_format=memory_format)
    w = integers(*w_size)
    dy = integers(x_size[0], w_size[0], *x_size[2:], seed=3).contiguous(memory_format=memory_format)
    args = ([1, 1], [1, 1], [1, 1])
    _, want = aten_backward(dy, x, w, *args, groups)
    got = ops.conv_wgrad(dy, x, list(w_size), *args, groups, False, "direct")
    assert torch.equal(got.double(), want)


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize(
    ("x", "w", "stride"),
    [
        ((8, 64, 224, 224), (64, 64, 3, 3), 1),
        ((64, 512, 14, 14), (512, 512, 3, 3), 1),
        ((8, 3, 224, 224), (64, 3, 7, 7), 2),
        ((1, 512, 100000), (512, 1, 3), 1),
        ((32, 96, 112, 112), (96, 1, 3, 3), 2),
    ],
)
def test_workspace_is_bounded(isa, x, w, stride, direction):
    """Weights once, partial sums of at most 16 MiB, and a tile per thread: whatever the batch."""
    rank = len(x) - 2
    groups = x[1] // w[1]
    problem = C.ConvProblem(list(x), list(w), [stride] * rank, [1] * rank, [1] * rank, groups)
    weights = torch.Size(w).numel() * 4
    if w[0] // groups == 1 or w[1] == 1 or x[1] == 3:
        weights *= 16  # a panel is as wide as two vectors, however few filters it holds
    for threads in (1, 2, 16):
        got = C.cpu_workspace(
            "direct", problem, C.DType.float32, getattr(C.Direction, direction), threads
        )
        assert got <= 2 * weights + threads * 2**20 + 17 * 2**20
