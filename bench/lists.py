"""Lists of layers by name: networks, DeepBench, the pools' family, inception, stress shapes; a
single convolution from the command line; the layers of any model."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from bench import (
    conv_problem,
    fused_problem,
    gpu_layers,
    inception_problem,
    network_problem,
    pool_problem,
    pool_problems,
    problems,
)
from bench.fused_problem import FusedLayer, fused
from bench.inception_problem import InceptionLayer
from bench.network_problem import NetworkLayer
from bench.pool_problems import FAMILY, PoolLayer
from bench.problem import Problem
from bench.problems import ConvLayer

Layer = ConvLayer | FusedLayer | PoolLayer | InceptionLayer | NetworkLayer
FAMILIES = ("conv", "fused", "pool", "inception", "network")
INCEPTION, STRESS, NETWORKS = "inception", "stress", "networks"


def family_of(layer: Layer) -> str:
    kinds = {
        ConvLayer: "conv",
        FusedLayer: "fused",
        PoolLayer: "pool",
        InceptionLayer: "inception",
        NetworkLayer: "network",
    }
    return kinds[type(layer)]


def names() -> tuple[str, ...]:
    """Every list that `layers` knows."""
    return (*problems.net_names(), FAMILY, INCEPTION, NETWORKS, STRESS, *gpu_layers.names())


@cache
def _stress() -> dict:
    return json.loads((problems.FOLDER / "stress.json").read_text())


def layers(name: str, families: Sequence[str] = FAMILIES) -> list[Layer]:
    """The distinct layers of a list, in its order.

    Raises: ValueError on an unknown name, with the known ones.
    """
    if name not in names():
        raise ValueError(f"unknown list of layers {name!r}; known: {', '.join(names())}")
    if name == FAMILY:
        found: list[Layer] = [*pool_problems.pool_layers(name)]
    elif name == INCEPTION:
        found = [*inception_problem.modules()]
    elif name == NETWORKS:
        found = [*network_problem.networks()]
    elif name in gpu_layers.names():
        return [each for each in gpu_layers.layers(name) if family_of(each) in families]
    elif name == STRESS:
        found = [problems.layer_of(STRESS, row) for row in _stress()["layers"]]
    elif name.startswith(problems.DEEPBENCH):
        found = [*problems.conv_layers(name)]
    else:
        found = [*problems.conv_layers(name), *pool_problems.pool_layers(name)]
    if "fused" in families:
        found += [fused(layer) for layer in found if isinstance(layer, ConvLayer)]
    return [layer for layer in found if family_of(layer) in families]


def source(name: str) -> str:
    """Where a list comes from."""
    if name in gpu_layers.names():
        return gpu_layers.SOURCE
    if name == FAMILY:
        return pool_problems.FAMILY_SOURCE
    if name == INCEPTION:
        return inception_problem.SOURCE
    if name == NETWORKS:
        return network_problem.SOURCE
    return _stress()["source"] if name == STRESS else problems.source(name)


_DIRECTIONS = {
    "conv": conv_problem.DIRECTIONS,
    "fused": fused_problem.DIRECTIONS,
    "pool": pool_problem.DIRECTIONS,
    "inception": inception_problem.DIRECTIONS,
    "network": network_problem.DIRECTIONS,
}
_USUAL = {**_DIRECTIONS, "conv": ("fprop",), "fused": ("inference",)}


def directions_of(layer: Layer, wanted: Sequence[str] | None) -> list[str]:
    """Those of `wanted` that the layer's family has; None: the family's usual ones."""
    family = family_of(layer)
    return [d for d in wanted or _USUAL[family] if d in _DIRECTIONS[family]]


def problems_of(
    layer: Layer,
    batch: int,
    directions: Sequence[str] | None,
    layouts: Sequence[str],
    dtype: torch.dtype,
    device: str = "cpu",
    epilogue: str = "none",
    precision: str = "ieee",
    reference: str | None = None,
) -> Iterator[Problem]:
    """One problem per direction and layout. directions: None for the family's usual ones; what a
    family does not have is passed over. epilogue, precision, reference: of convolutions."""
    toward = directions_of(layer, directions)
    if isinstance(layer, FusedLayer):
        yield from fused_problem.problems_of(layer, batch, toward, layouts, dtype, device)
    elif isinstance(layer, ConvLayer):
        more = (dtype, device, epilogue, precision, reference)
        yield from conv_problem.problems_of(layer, batch, toward, layouts, *more)
    elif isinstance(layer, PoolLayer):
        yield from pool_problem.problems_of(layer, batch, toward, layouts, dtype, device)
    elif isinstance(layer, NetworkLayer):
        yield from network_problem.problems_of(layer, batch, toward, layouts, dtype, device)
    else:
        yield from inception_problem.problems_of(layer, batch, toward, layouts, dtype, device)


def add_single_convolution(parser: argparse.ArgumentParser) -> None:
    """The options of one convolution, named as MIOpenDriver names them."""
    add = parser.add_argument
    add("-n", type=int, default=1, metavar="N", help="batch")
    add("-c", type=int, default=3, metavar="C", help="input channels")
    add("-H", type=int, default=32, help="input height")
    add("-W", type=int, default=32, help="input width")
    add("-k", type=int, default=32, metavar="K", help="output channels")
    add("-y", type=int, default=3, metavar="R", help="filter height")
    add("-x", type=int, default=3, metavar="S", help="filter width")
    add("-p", type=int, default=0, metavar="PAD", help="padding of the height")
    add("-q", type=int, default=0, metavar="PAD", help="padding of the width")
    add("-u", type=int, default=1, metavar="STRIDE", help="stride of the height")
    add("-v", type=int, default=1, metavar="STRIDE", help="stride of the width")
    add("-l", type=int, default=1, metavar="DILATION", help="dilation of the height")
    add("-j", type=int, default=1, metavar="DILATION", help="dilation of the width")
    add("-g", type=int, default=1, metavar="GROUPS", help="groups")
    add("-F", type=int, default=0, help="sum of 1 fprop, 2 dgrad, 4 wgrad; 0: all three")


def single_convolution(args: argparse.Namespace) -> tuple[ConvLayer, list[str]]:
    """(layer, directions) of `add_single_convolution`'s options.

    Raises: ValueError where no such convolution exists.
    """
    if args.c % args.g or args.k % args.g:
        raise ValueError(f"-g {args.g} must divide -c {args.c} and -k {args.k}")
    if not 0 <= args.F <= 7:
        raise ValueError(f"-F {args.F} must be a sum of 1, 2 and 4")
    layer = ConvLayer(
        "command line",
        args.c,
        (args.H, args.W),
        args.k,
        (args.y, args.x),
        (args.u, args.v),
        (args.p, args.q),
        (args.l, args.j),
        args.g,
        batch=args.n,
    )
    least = min(args.n, args.c, args.k, args.y, args.x, args.u, args.v, args.l, args.j)
    if least < 1 or min(args.p, args.q) < 0 or min(layer.output_size(args.n)) < 1:
        raise ValueError(f"there is no such convolution: {layer.label} N={args.n}")
    bits = {"fprop": 1, "dgrad": 2, "wgrad": 4}
    return layer, [name for name, bit in bits.items() if args.F == 0 or args.F & bit]


def model_layers(path: str, input_size: Sequence[int]) -> list[Layer]:
    """The distinct convolutions and 2-D pools that a model runs on an input of this size, with
    their counts. path: "module:callable" that makes the model; nothing is computed.

    Raises: ValueError where the path names nothing or the model does not take the input.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    module, _, attribute = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"cannot load {path!r} as module:callable: {error}") from error
    seen: dict[Layer, int] = {}
    net = attribute

    def record(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        found = _layer_of(net, layer, tuple(inputs[0].shape))
        if found is not None:
            seen[found] = seen.get(found, 0) + 1

    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            model = make().eval()
            for part in model.modules():
                part.register_forward_pre_hook(record)
            with torch.no_grad():
                model(torch.empty(tuple(input_size)))
        except Exception as error:
            raise ValueError(f"{path} does not run on an input of {input_size}: {error}") from error
    return [replace(layer, count=count) for layer, count in seen.items()]


def _layer_of(net: str, module: nn.Module, size: tuple[int, ...]) -> Layer | None:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kernel = tuple(module.kernel_size)
        padding = module.padding
        if padding == "valid":
            padding = (0,) * len(kernel)
        elif padding == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, kernel, strict=True))
        return ConvLayer(
            net,
            module.in_channels,
            size[2:],
            module.out_channels,
            kernel,
            tuple(module.stride),
            tuple(padding),
            tuple(module.dilation),
            module.groups,
        )
    if isinstance(module, nn.AdaptiveAvgPool2d):
        out = (
            module.output_size
            if isinstance(module.output_size, tuple)
            else (module.output_size,) * 2
        )
        out = tuple(n if o is None else o for o, n in zip(out, size[2:], strict=True))
        return PoolLayer(net, "adaptive_avg", size[1], size[2:], out)
    kinds = {nn.MaxPool2d: "max", nn.AvgPool2d: "avg"}
    kind = next((kind for cls, kind in kinds.items() if isinstance(module, cls)), None)
    if kind is None:
        return None

    def pair(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, tuple | list) else (value,) * 2

    return PoolLayer(
        net,
        kind,
        size[1],
        size[2:],
        pair(module.kernel_size),
        pair(module.stride),
        pair(module.padding),
        module.ceil_mode,
    )
