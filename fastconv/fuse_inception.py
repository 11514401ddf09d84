"""Recognises inception modules by what they compute, whatever their classes and names.

Traced through to its layers, a module qualifies whose result is the concatenation along channels
of four branches on its one input: a 1x1 convolution; a 1x1 and a larger one; the same again; and a
3x3 max pool with a 1x1 convolution. Each convolution has stride 1 and keeps the extents, and is
followed by ReLU, with a batch normalisation between or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastconv import fuse_graph
from fastconv.fused import folded_layers
from fastconv.inception import inception
from fastconv.nn.conv import Conv2d
from fastconv.nn.fused import has_hooks

_Unit = tuple[str, str | None]  # names of a convolution and its normalisation


class Found(NamedTuple):
    """units: in the order of fastconv.inception's weights. entered: modules on the way to them."""

    units: tuple[_Unit, ...]
    entered: tuple[str, ...]

    def __str__(self) -> str:
        return "inception: " + ", ".join(conv for conv, _ in self.units)


def recognised(root: nn.Module) -> Found | None:
    """What an inception module consists of; None where it is not one."""
    try:
        graph, entered = fuse_graph.trace(root, deep=True)
        units = _units(root, graph)
    except Exception:  # a forward may raise anything under a tracer
        return None
    return None if units is None else Found(units, tuple(dict.fromkeys(entered)))


def _units(root: nn.Module, graph: fx.Graph) -> tuple[_Unit, ...] | None:
    nodes = list(graph.nodes)
    inputs = [n for n in nodes if n.op == "placeholder"]
    joined = nodes[-1].args[0]
    if len(inputs) != 1 or not isinstance(joined, fx.Node) or joined.target is not torch.cat:
        return None
    branches, dim = joined.args[0], [*joined.args[1:], *joined.kwargs.values()]
    if dim != [1] or not isinstance(branches, (list, tuple)) or len(branches) != 4:
        return None
    x, first, second, third, last = inputs[0], *branches
    one = _unit(root, first, 1)
    three, five = (_unit(root, branch, 0) for branch in (second, third))
    projection = _unit(root, last, 1)
    if None in (one, three, five, projection):
        return None
    red3, red5 = _unit(root, three[1], 1), _unit(root, five[1], 1)
    if red3 is None or red5 is None or not _is_pool(root, projection[1]):
        return None
    if any(source is not x for source in (one[1], red3[1], red5[1], projection[1].args[0])):
        return None
    # Nothing else happens in there.
    found = [one, red3, three, red5, five, projection]
    used = sum(2 if unit[1] is None else 3 for unit, _ in found)
    if len(nodes) != used + 4:  # input, pool, concatenation, output
        return None
    return tuple(unit for unit, _ in found)


def _unit(root: nn.Module, node: Any, extent: int) -> tuple[_Unit, fx.Node] | None:
    """(names, input) of the convolution, normalisation and ReLU that end in this node.

    extent: of the filter; 0: odd and larger than 1.
    """
    if not isinstance(node, fx.Node) or len(node.users) != 1 or not node.all_input_nodes:
        # The concatenation, or the one convolution behind a reduction.
        return None
    before = node.all_input_nodes[0]
    activation = fuse_graph.activation_of(root, node, before)
    if activation is None or activation.name != "relu" or len(before.users) != 1:
        return None
    layer, norm = fuse_graph.layer_of(root, before), None
    if type(layer) is nn.BatchNorm2d and len(before.args) == 1:
        norm, before = before, before.args[0]
        layer = fuse_graph.layer_of(root, before)
    if type(layer) is not Conv2d or len(before.args) != 1 or len(before.users) != 1:
        return None
    r, s = layer.kernel_size
    pad = tuple((k - 1) // 2 for k in (r, s)) if layer.padding == "same" else layer.padding
    fits = r == s and r % 2 == 1 and (r == extent or (extent == 0 and r > 1))
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    if not (fits and plain and pad == (r // 2, s // 2) and layer.padding_mode == "zeros"):
        return None
    return (str(before.target), None if norm is None else str(norm.target)), before.args[0]


def _is_pool(root: nn.Module, node: fx.Node) -> bool:
    """A 3x3 max pool of stride 1 and padding 1."""

    def both(value: Any, wanted: int) -> bool:
        return value in (wanted, (wanted, wanted), [wanted, wanted])

    layer = fuse_graph.layer_of(root, node)
    if isinstance(layer, nn.MaxPool2d):
        pool = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        plain = not layer.return_indices and len(node.args) == 1 and not has_hooks(layer)
    elif node.op == "call_function" and node.target is F.max_pool2d:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        plain = not given.get("return_indices", False)
        pool = (given["kernel_size"], given.get("stride"), given.get("padding", 0),
                given.get("dilation", 1))  # fmt: skip
    else:
        return False
    return plain and all(map(both, pool, (3, 1, 1, 1))) and len(node.users) == 1


def _at(module: nn.Module, name: str) -> nn.Module:
    for part in name.split("."):
        module = module._modules[part]  # type: ignore[assignment]
    return module


def forward_of(found: Found, original: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that is one inception call where it can be, else the module's own.

    It cannot while a normalisation takes the batch's statistics or a folded weight would need a
    gradient, in a graph, and where a layer has hooks.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or torch.compiler.is_compiling():
            return original(self, *args, **kwargs)
        weights, biases = [], []
        for conv_name, norm_name in found.units:
            conv = _at(self, conv_name)
            norm = None if norm_name is None else _at(self, norm_name)
            watched = has_hooks(conv) or (norm is not None and has_hooks(norm))
            pair = None if watched else folded_layers(conv, norm, args[0])
            if pair is None:
                return original(self, *args)
            weights.append(pair[0])
            biases.append(pair[1])
        return inception(args[0], weights, biases, algo=_at(self, found.units[0][0]).algo)

    return forward
