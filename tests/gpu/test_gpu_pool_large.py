"""Poolings of tensors of more than 2^31 elements: offsets that do not fit 32 bits.

As in test_gpu_large.py only the far ends hold anything but zeros, so that the CPU kernels over a
few rows are the whole answer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_runner import DEVICE, REHEARSAL, device_ops, marks
from test_gpu_large import BATCH, CHANNELS, EDGE, SIDE, spread
from torch import Tensor

pytestmark = marks()
DTYPE = torch.float32 if REHEARSAL else torch.bfloat16
LAYOUTS = ("NCHW", "NHWC")
SIZE = (BATCH, CHANNELS, SIDE, SIDE + 2)  # 2 * 64 * 4096 * 4098 = 2^31 + 2^20 elements
# (kernel, stride, padding); the second gives as many outputs as it takes inputs.
WINDOWS = ((2, 2, 0), (3, 1, 1))
HALO = 2  # rows at an end's inner side whose windows reach what the end lacks
CPU_OPS = torch.ops.fastconv
ALGOS = ("direct",) if REHEARSAL else ("direct", "triton")
POWER = 2.0


def kernels_of(algo: str) -> Any:
    if algo == "direct":
        return device_ops()
    pytest.importorskip("triton")
    from fastconv._triton import pool

    return pool


def lists_of(window: tuple[int, int, int]) -> list[list[int]]:
    return [[value, value] for value in window]


def forward(ops: Any, kind: str, x: Tensor, window: tuple[int, int, int]) -> tuple[Tensor, ...]:
    lists = lists_of(window)
    if kind == "max":
        return ops.max_pool_fprop(x, *lists, [1, 1], False, 1)
    if kind == "sum":
        return (ops.sum_pool_fprop(x, *lists, False, True, 1),)
    return (ops.lp_pool_fprop(x, *lists, False, POWER, False),)


def backward(
    ops: Any, kind: str, dy: Tensor, kept: tuple[Tensor, ...], size: tuple[int, ...],
    window: tuple[int, int, int], last: bool,
) -> Tensor:  # fmt: skip
    """kept: the index of a maximum; x and y of Lp."""
    lists = lists_of(window)
    if kind == "max":
        return ops.max_pool_dgrad(dy, *kept, list(size), *lists, [1, 1], last)
    if kind == "sum":
        return ops.sum_pool_dgrad(dy, list(size), *lists, True, 1, last)
    return ops.lp_pool_dgrad(dy, *kept, *lists, POWER, False)


def ends(t: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The first rows of the first image and the last ones of the last, on the CPU."""
    return t[:1, :, :rows].cpu(), t[-1:, :, -rows:].cpu()


def assert_ends(
    result: Tensor, wanted: tuple[Tensor, Tensor], inner: int, exact: bool, note: str
) -> None:
    """The result's ends are those of `wanted` (but for `inner` rows, which have neighbours that an
    end lacks), and what lies well between them is zero."""
    rows = wanted[0].shape[2]
    first, last = ends(result, rows)
    keep = rows - inner
    for found, want in ((first[:, :, :keep], wanted[0][:, :, :keep]),
                        (last[:, :, inner:], wanted[1][:, :, inner:])):  # fmt: skip
        if exact:
            assert torch.equal(found, want), f"{note}: an end differs"
        else:
            torch.testing.assert_close(found, want, rtol=2e-2, atol=1e-4, msg=lambda m: note + m)
    between = result[0, :, rows + inner :], result[-1, :, : -rows - inner]
    assert not any(bool(part.any()) for part in between), f"{note}: not zero between the ends"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("kind", ["max", "sum", "lp"])
def test_both_ends(kind: str, algo: str, window: tuple[int, int, int], layout: str) -> None:
    """Forward reads beyond 2^31 elements, backward (and a window of stride 1) writes there."""
    ops, last = kernels_of(algo), layout == "NHWC"
    note = f"{kind} {window} {layout} {algo}"
    x = spread(SIZE, DTYPE, layout).abs_()
    y, *index = forward(ops, kind, x, window)
    parts = [forward(CPU_OPS, kind, part, window) for part in ends(x, EDGE)]
    rows = EDGE // window[1]
    assert_ends(y, (parts[0][0], parts[1][0]), HALO, kind == "max", f"forward {note}")
    if kind == "max":
        found = ends(index[0], rows)
        assert torch.equal(found[0][:, :, : rows - HALO], parts[0][1][:, :, : rows - HALO]), note
        assert torch.equal(found[1][:, :, HALO:], parts[1][1][:, :, HALO:]), note

    dy = spread(tuple(y.shape), DTYPE, layout)
    kept = {"max": index, "sum": [], "lp": [x, y]}[kind]
    dx = backward(ops, kind, dy, tuple(kept), SIZE, window, last)
    assert dx.numel() > 2**31 or REHEARSAL
    # As many rows of dx as the ends of dy reach, of which each is a problem of its own.
    tall = EDGE * window[1]
    wanted = []
    kept_ends = [ends(t, tall if t is x else EDGE) for t in kept]
    for part, *some in zip(ends(dy, EDGE), *kept_ends, strict=True):
        size = (1, CHANNELS, tall, SIZE[3])
        wanted.append(backward(CPU_OPS, kind, part, tuple(some), size, window, last))
    assert_ends(dx, (wanted[0], wanted[1]), HALO * window[1], False, f"backward {note}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws(layout: str) -> None:
    """At the far end the CUDA kernel draws what the Triton one does, whose arithmetic of offsets
    is its own; rehearsed, against itself in the other layout."""
    x = spread(SIZE, DTYPE, layout).abs_()
    seed = torch.tensor([5], device=DEVICE)
    args = (seed, [2, 2], [2, 2], [0, 0], False, 1)
    y, index = device_ops().sample_pool_fprop(x, *args)
    if REHEARSAL:
        other = torch.contiguous_format if layout == "NHWC" else torch.channels_last
        again, kept = device_ops().sample_pool_fprop(x.contiguous(memory_format=other), *args)
    else:
        again, kept = kernels_of("triton").sample_pool_fprop(x, *args)
    rows = EDGE // 2
    for found, wanted in zip(ends(y, rows), ends(again, rows), strict=True):
        assert torch.equal(found, wanted) and bool(found.any())
    for found, wanted in zip(ends(index, rows), ends(kept, rows), strict=True):
        assert torch.equal(found, wanted) and bool((found != found[0, 0, 0, 0]).any())
    assert not y[0, :, rows:].any() and not y[-1, :, :-rows].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places(layout: str) -> None:
    """Unpooling writes beyond 2^31 elements what the maximum took, and the gather reads it there;
    places are int64."""
    x = spread(SIZE, DTYPE, layout).abs_()
    ops = device_ops()
    y, index = ops.max_pool_fprop(x, *lists_of(WINDOWS[0]), [1, 1], False, 2)
    back = ops.max_unpool_fprop(y, index, list(SIZE))
    for taken, whole in zip(ends(back, EDGE), ends(x, EDGE), strict=True):
        where = taken != 0
        assert torch.equal(taken[where], whole[where])
        assert int(where.sum()) == where.numel() // 4
    assert not back[0, :, EDGE:].any() and not back[-1, :, :-EDGE].any()
    again = ops.max_pool_at(x, index, *lists_of(WINDOWS[0]), [1, 1])
    assert torch.equal(again, y)
