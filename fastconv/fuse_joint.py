"""Joins 1x1 convolutions that share their input, in modules that end in a concatenation.

Such modules (the inceptions after GoogLeNet) are traced through to their layers. In evaluation the
joined convolutions run as one, with normalisation and activation in it; each branch goes on with
its channels of the result. While training they run one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fastconv import fuse_graph
from fastconv.activations import Activation
from fastconv.derived import Derived
from fastconv.fused import conv_epilogue_auto, folded_layers
from fastconv.nn.conv import Conv2d
from fastconv.nn.fused import has_hooks, run_chain

_LEAST_BRANCHES = 3


def _cat(*tensors: Tensor) -> tuple[Tensor, ...]:
    half = len(tensors) // 2
    return torch.cat(tensors[:half]), torch.cat(tensors[half:])


_joined = Derived(_cat)


def run_joint(x: Tensor, activation: str, slope: float, *layers: nn.Module) -> Any:
    """act(norm(conv(x))) of each (conv, norm), which alternate in `layers`."""
    pairs = list(zip(layers[::2], layers[1::2], strict=True))
    act = Activation(activation, slope)
    if any(map(has_hooks, layers)):
        return tuple(act(norm(conv(x))) for conv, norm in pairs)
    folds = [folded_layers(conv, norm, x) for conv, norm in pairs]
    y = None
    if None not in folds:
        weights, biases = zip(*folds, strict=True)
        y = conv_epilogue_auto(x, *_joined(*weights, *biases), act, layers[0].algo)
    if y is None:
        return tuple(run_chain(conv, norm, x, activation, slope) for conv, norm in pairs)
    return y.split([t.shape[0] for t in weights], 1)


def ends_in_concatenation(graph: fx.Graph) -> bool:
    joined = next(reversed(graph.nodes)).args[0]
    return (
        isinstance(joined, fx.Node)
        and joined.target is torch.cat
        and isinstance(joined.args[0], (list, tuple))
        and len(joined.args[0]) >= _LEAST_BRANCHES
    )


def rewrite(root: nn.Module, graph: fx.Graph) -> list[str]:
    """Puts one call in place of each group of such convolutions; returns what was joined."""
    groups: dict[tuple[fx.Node, Activation], list[fuse_graph.Chain]] = {}
    for node in graph.nodes:
        layer = fuse_graph.layer_of(root, node)
        if type(layer) is not Conv2d or not _pointwise(layer):
            continue
        chain = fuse_graph.chain_at(root, node)
        if isinstance(chain, str) or chain.add is not None:
            continue
        groups.setdefault((node.args[0], chain.activation), []).append(chain)
    joined = []
    for (source, act), chains in groups.items():
        if len(chains) < 2:
            continue
        with graph.inserting_after(source):
            call = graph.call_function(run_joint, (source, act.name, act.slope))
        layers = []
        with graph.inserting_before(call):
            for chain in chains:
                layers += [graph.get_attr(str(n.target)) for n in (chain.conv, chain.norm)]
        call.args = (*call.args, *layers)
        after = call
        for i, chain in enumerate(chains):
            with graph.inserting_after(after):
                after = graph.call_method("__getitem__", (call, i))
            chain.nodes[-1].replace_all_uses_with(after)
            for node in reversed(chain.nodes):
                graph.erase_node(node)
        joined.append("joined: " + ", ".join(str(chain.conv.target) for chain in chains))
    return joined


def _pointwise(layer: Conv2d) -> bool:
    plain = layer.stride == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), "valid")
    return layer.kernel_size == (1, 1) and plain and layer.padding_mode == "zeros"
