"""The fused ops of the CUDA key over emulated kernels: the package's own op layer, from tensors of
either format, against fp64."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import conv_case
from conv_runner import reference_conv
from emulated import ACTIVATIONS, Epilogue
from emulator.build_ops import build_ops
from test_emulated_epilogue import RESIDUALS, followed
from torch import Tensor

CASE = conv_case("5x5", (2, 8, 9, 7), (16, 8, 3, 3), 1, 1)
ALGORITHMS = ("im2col", "direct", "winograd_f2x2_3x3", "direct_plain")
MOVES = CASE.params


def ops():
    torch.ops.load_library(str(build_ops()))
    return torch.ops.fastconv_emulated


def made(size: tuple[int, ...], channels_last: bool, seed: int = 1) -> Tensor:
    t = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return t.to(memory_format=torch.channels_last) if channels_last else t


def operands(channels_last: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sizes = (CASE.input_size, CASE.weight_size, CASE.output_size)
    x, w, residual = (made(size, channels_last, i) for i, size in enumerate(sizes))
    return x, w, made((16,), False, 4), residual


@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_with_an_epilogue(channels_last: bool) -> None:
    """Into its own result and into a slice of a larger tensor, whose other channels stay."""
    x, w, bias, residual = operands(channels_last)
    sums, _ = reference_conv(CASE, "fprop", (x, w), bias)
    combinations = itertools.product(ACTIVATIONS, RESIDUALS)
    for (activation, where), algo in zip(combinations, itertools.cycle(ALGORITHMS)):
        epilogue = Epilogue(activation, residual=where)
        r = residual if where else None
        rest = (*MOVES, ACTIVATIONS.index(activation), 0.25, where == "after", algo)
        expected = followed(sums, epilogue, residual)
        y = ops().conv_epilogue_fprop(x, w, bias, r, *rest)
        note = f"{epilogue} {algo}"
        assert (y - expected).abs().max() < 1e-4, note
        for first, more in ((8, 16), (1, 2)):
            whole = made((2, 16 + more, 9, 7), channels_last, 5)
            before = whole.clone()
            ops().conv_epilogue_into(x, w, bias, r, whole[:, first : first + 16], *rest)
            assert torch.equal(whole[:, first : first + 16], y), f"{note} slice {first}"
            assert torch.equal(whole[:, :first], before[:, :first]), note
            assert torch.equal(whole[:, first + 16 :], before[:, first + 16 :]), note


@pytest.mark.parametrize("channels_last", [False, True])
def test_statistics_beside_the_convolution(channels_last: bool) -> None:
    x, w, bias, _ = operands(channels_last)
    for algo in ALGORITHMS:
        y, mean, m2 = ops().conv_stats_fprop(x, w, bias, *MOVES, algo)
        assert torch.equal(y, ops().conv_fprop(x, w, bias, *MOVES, algo)), algo
        exact = y.double().transpose(0, 1).flatten(1)
        assert (mean - exact.mean(1)).abs().max() < 1e-5, algo
        expected = exact.var(1, correction=0) * exact.shape[1]
        assert (m2 / expected - 1).abs().max() < 1e-5, algo


@pytest.mark.parametrize("channels_last", [False, True])
def test_passes_make_batch_norm(channels_last: bool) -> None:
    """Forward and backward, as autograd through torch's own."""
    _, _, _, y = operands(channels_last)
    residual, dz = made(CASE.output_size, channels_last, 6), made(CASE.output_size, False, 7)
    weight, bias = made((16,), False, 8), made((16,), False, 9)
    leaves = [t.double().requires_grad_() for t in (y, weight, bias, residual)]
    z64 = torch.nn.functional.batch_norm(leaves[0], None, None, leaves[1], leaves[2], True)
    z64 = torch.relu(z64 + leaves[3])
    gradients = torch.autograd.grad(z64, leaves, dz.double())
    mean, m2 = ops().norm_act_stats(y)
    rstd = (m2 / 126 + 1e-5).rsqrt()
    how = (y, mean, rstd, weight, bias, residual)
    after = (ACTIVATIONS.index("relu"), 0.0, False)
    z = ops().norm_act_fprop(*how, *after)
    sum_g, sum_gy = ops().norm_act_sums(dz, *how, *after)
    dy, dresidual = ops().norm_act_dgrad(dz, *how, sum_g, sum_gy, 126.0, *after, True)
    found = (z, dy, sum_gy * rstd, sum_g, dresidual)
    for name, got, want in zip(
        ("z", "dy", "dweight", "dbias", "dresidual"), found, (z64, *gradients), strict=True
    ):
        assert (got - want).abs().max() < 1e-4 * want.abs().max(), name


@pytest.mark.parametrize("channels_last", [False, True])
def test_epilogue_on_its_own(channels_last: bool) -> None:
    """Into y itself, and into a slice."""
    _, _, _, y = operands(channels_last)
    residual = made(CASE.output_size, channels_last, 6)
    expected = torch.nn.functional.silu(y.double()) + residual
    whole = torch.zeros(2, 20, 9, 7)
    if channels_last:
        whole = whole.to(memory_format=torch.channels_last)
    after = (ACTIVATIONS.index("silu"), 0.0, True)
    ops().epilogue_into(y, residual, whole[:, 3:19], *after)
    assert (whole[:, 3:19] - expected).abs().max() < 1e-5
    assert not whole[:, :3].any() and not whole[:, 19:].any()
    ops().epilogue_into(y, residual, y, *after)
    assert torch.equal(y, whole[:, 3:19])
