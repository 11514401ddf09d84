"""How many bytes an inception module moves, in PyTorch's separate kernels and in our two grids: a
count from the sizes of GoogLeNet's nine modules, each tensor once per kernel that has it."""

from __future__ import annotations

from math import prod

import pytest
import torch
from emulated_inception import InceptionSize

from bench.inception_problem import InceptionLayer, modules

INDEX = 8  # bytes that PyTorch's pool keeps per value, whatever is asked for
GOAL = 0.2


def size_of(layer: InceptionLayer, batch: int) -> InceptionSize:
    return InceptionSize(batch, layer.C, layer.extent, layer.extent, *layer.K)


def eager(layer: InceptionLayer, batch: int, item: int) -> tuple[int, int]:
    """(bytes, kernels): convolutions, their biases, their ReLUs, the pool, the concatenation."""
    pixels = batch * layer.extent**2
    outputs = prod(layer.output_size(batch))
    kernels = []
    for c, k, r in layer.filters:
        kernels.append(item * (pixels * c + k * c * r * r + pixels * k))
        kernels.append(item * (2 * pixels * k + k))
        kernels.append(item * 2 * pixels * k)
    kernels.append((2 * item + INDEX) * pixels * layer.C)
    kernels.append(item * 2 * outputs)
    return sum(kernels), len(kernels)


def least(layer: InceptionLayer, batch: int, item: int) -> int:
    """Input, weights, result: what any way moves."""
    size = size_of(layer, batch)
    return item * (sum(map(prod, size.shapes.values())) + prod(layer.output_size(batch)))


def ours(layer: InceptionLayer, batch: int, item: int) -> int:
    """All that the two launches are given: operands and result once, the reductions written by one
    and read by the other. There is no workspace."""
    size = size_of(layer, batch)
    reductions = batch * (size.R3 + size.R5) * layer.extent**2
    return least(layer, batch, item) + 2 * item * reductions


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_batch_moves_a_fifth_of_eagers_bytes(dtype: torch.dtype) -> None:
    """At N=32; 5b in float32, where weights are half of what must move, is a hair above."""
    above = {}
    for layer in modules():
        theirs, kernels = eager(layer, 32, dtype.itemsize)
        assert kernels == 20
        ratio = ours(layer, 32, dtype.itemsize) / theirs
        if ratio > GOAL:
            above[layer.name] = ratio
    if dtype == torch.bfloat16:
        assert not above
    else:
        assert set(above) == {"5b"} and above["5b"] < 0.202


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_one_image_moves_little_more_than_it_must(dtype: torch.dtype) -> None:
    """At N=1 the weights, which eager reads once as well, outweigh the rest: input, weights and
    result alone are above a fifth of eager's bytes in all modules but 3a and 3b. What we add to
    them, the reductions, is an eighth of that, and less where weights are many."""
    within = set()
    for layer in modules():
        theirs, _ = eager(layer, 1, dtype.itemsize)
        must, moved = (f(layer, 1, dtype.itemsize) for f in (least, ours))
        if must <= GOAL * theirs:
            within.add(layer.name)
        assert moved <= {28: 1.35, 14: 1.09, 7: 1.02}[layer.extent] * must, layer.name
    assert within == {"3a", "3b"}
