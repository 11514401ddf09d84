"""Regression targets for pytest-benchmark: call overhead, and the algorithms on a few layers.

Not collected by the tests; `make benchmarks` runs this file and compares with the last run.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import fastconv.functional
from bench.conv_problem import PARTS, make_tensors, problems_of
from bench.demo_layers import contenders
from bench.fused_problem import DIRECTIONS, fused
from bench.fused_problem import problems_of as fused_problems_of
from bench.inception_problem import InceptionLayer, modules
from bench.inception_problem import problems_of as inception_problems_of
from bench.pool_problem import problems_of as pool_problems_of
from bench.pool_problems import FAMILY, PoolLayer, pool_layers
from bench.problems import ConvLayer, conv_layers
from bench.providers import provider

# Few enough multiply-adds that what is measured is the way to the kernel.
OVERHEAD = ConvLayer("overhead", 1, (3, 3), 1, (3, 3), (1, 1), (1, 1), (1, 1))


def _resnet50(label: str) -> ConvLayer:
    return next(layer for layer in conv_layers("resnet50") if layer.label == label)


LAYERS = tuple(
    _resnet50(label)
    for label in ("3x224x224>64 7x7 /2", "64x56x56>64 3x3", "256x14x14>256 3x3", "256x56x56>64 1x1")
)


@pytest.mark.parametrize("needs_grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("algo", ["pytorch", "direct", "auto"])
def test_overhead(benchmark: Callable, algo: str, needs_grad: bool) -> None:
    x, w, *_ = make_tensors(OVERHEAD, 1, torch.float32)
    w.requires_grad_(needs_grad)
    benchmark.group = f"overhead, {'with' if needs_grad else 'without'} grad"
    if algo == "pytorch":
        benchmark(F.conv2d, x, w, None, 1, 1)
    else:
        benchmark(fastconv.functional.conv2d, x, w, None, 1, 1, algo=algo)


@pytest.mark.parametrize("direction", PARTS)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.label)
@pytest.mark.parametrize("algo", ["pytorch", *contenders()])
def test_layer(benchmark: Callable, algo: str, layer: ConvLayer, direction: str) -> None:
    (problem,) = problems_of(layer, 1, [direction], ["nchw"], torch.float32)
    runner = provider(algo)
    try:
        runner.ran(problem)
    except RuntimeError as reason:  # the algorithm does not apply to this layer
        pytest.skip(str(reason))
    benchmark.group = f"{layer.label} {direction}"
    with torch.inference_mode():
        benchmark(runner.prepare(problem))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("layer", pool_layers(FAMILY)[:4], ids=lambda layer: layer.label)
@pytest.mark.parametrize("algo", ["pytorch", "auto"])
def test_pool(
    benchmark: Callable, algo: str, layer: PoolLayer, direction: str, layout: str
) -> None:
    (problem,) = pool_problems_of(layer, 1, [direction], [layout], torch.float32)
    benchmark.group = f"{layer.label} {direction} {layout}"
    with torch.no_grad():
        benchmark(provider(algo).prepare(problem))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layer", LAYERS[1:], ids=lambda layer: layer.label)
@pytest.mark.parametrize("algo", ["pytorch", "auto"])
def test_conv_bn_relu(benchmark: Callable, algo: str, layer: ConvLayer, direction: str) -> None:
    (problem,) = fused_problems_of(fused(layer), 1, [direction], ["nchw"], torch.float32)
    benchmark.group = f"{layer.label} {direction}"
    with torch.no_grad():
        benchmark(provider(algo).prepare(problem))


@pytest.mark.parametrize("layer", modules()[::4], ids=lambda layer: layer.label)
@pytest.mark.parametrize("algo", ["pytorch", "auto"])
def test_inception(benchmark: Callable, algo: str, layer: InceptionLayer) -> None:
    (problem,) = inception_problems_of(layer, 1, ["forward"], ["nchw"], torch.float32)
    benchmark.group = f"inception {layer.label}"
    with torch.no_grad():
        benchmark(provider(algo).prepare(problem))
