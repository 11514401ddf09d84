"""Finds convolution -> batch normalisation -> activation, with an addition, in a traced forward;
the normalisation may be missing.

A forward is traced (torch.fx) with its children as leaves, but for plain Sequentials, which are
entered; each chain becomes one call of `run_layers`, at the place of its last operand. The children
themselves stay as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastconv.activations import Activation, of_module
from fastconv.nn.conv import ConvNd
from fastconv.nn.fused import has_hooks, run_activated, run_chain

# On the class of a fused module: the class it was made from.
ORIGINAL = "_fastconv_fused_from"
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
_ADDS = (operator.add, operator.iadd, torch.add)


def run_layers(
    conv: nn.Module,
    norm: nn.Module | None,
    last: nn.Module | None,
    input: Tensor,
    activation: str,
    slope: float,
    residual: Tensor | None,
    residual_after: bool,
) -> Tensor:
    """One chain. last: the activation's own layer, where it has one. Hooks that came since, and an
    addend that turns out to be a number, make the layers run one by one."""
    foreign = residual is not None and not isinstance(residual, Tensor)
    if foreign or any(m is not None and has_hooks(m) for m in (conv, norm, last)):
        z = conv(input) if norm is None else norm(conv(input))
        act = Activation(activation, slope) if last is None else last
        if residual is None:
            return act(z)
        return act(z) + residual if residual_after else act(z + residual)
    if norm is None:
        return run_activated(conv, input, activation, slope, residual, residual_after)
    return run_chain(conv, norm, input, activation, slope, residual, residual_after)


@dataclass
class Chain:
    """The nodes of one chain, in order, and what they amount to."""

    conv: fx.Node
    norm: fx.Node | None = None
    add: fx.Node | None = None
    act: fx.Node | None = None
    activation: Activation = field(default_factory=lambda: Activation("none"))
    residual_after: bool = False

    @property
    def nodes(self) -> list[fx.Node]:
        tail = [self.act, self.add] if self.residual_after else [self.add, self.act]
        return [self.conv, *(n for n in (self.norm, *tail) if n is not None)]

    def drop_addition(self) -> None:
        if not self.residual_after:
            self.act, self.activation = None, Activation("none")
        self.add, self.residual_after = None, False

    def __str__(self) -> str:
        return " + ".join(_label(n) for n in self.nodes)


def _label(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else str(node.name).rstrip("_0123456789")


class _Tracer(fx.Tracer):
    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.deep = deep
        self.entered: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = type(m).__module__.startswith(("torch.", "fastconv."))
        entered = type(m) is nn.Sequential or (self.deep and not inside)
        if not entered or has_hooks(m) or "forward" in vars(m):
            return True
        self.entered.append(module_qualified_name)
        return False

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # Of a module that is fused already: what it was made from.
        original = getattr(type(m), ORIGINAL, None)
        if original is not None:
            forward = partial(original.forward, m)
        return super().call_module(m, forward, args, kwargs)


def trace(root: nn.Module, deep: bool = False) -> tuple[fx.Graph, list[str]]:
    """root's forward as a graph, and the names of the modules in it that were entered.

    deep: enters every module but PyTorch's and fastconv's layers, not Sequentials alone.

    Raises whatever keeps it from being one.
    """

    class Frozen(type(root)):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            raise RuntimeError(f"its forward sets the attribute {name!r}")

    cls = type(root)
    object.__setattr__(root, "__class__", Frozen)
    try:
        tracer = _Tracer(deep)
        return tracer.trace(root), tracer.entered
    finally:
        object.__setattr__(root, "__class__", cls)


def layer_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _plain_call(node: fx.Node, first: fx.Node) -> bool:
    return len(node.args) == 1 and node.args[0] is first and not node.kwargs


def activation_of(root: nn.Module, node: fx.Node, first: fx.Node) -> Activation | None:
    """The activation that this node is, of `first` alone."""
    if node.args[:1] != (first,):
        return None
    module = layer_of(root, node)
    if module is not None:
        found = of_module(module) if _plain_call(node, first) else None
        return None if found is None or found.name == "none" else found
    kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    rest = node.args[1:]
    if node.op == "call_method":
        plain = node.target in ("relu", "relu_") and not rest and not kwargs
        return Activation("relu") if plain else None
    if node.op != "call_function":
        return None
    if node.target is F.leaky_relu:
        slope = rest[0] if rest else kwargs.pop("negative_slope", 0.01)
        plain = len(rest) <= 2 and not kwargs and isinstance(slope, (int, float))
        return Activation("leaky_relu", float(slope)) if plain else None
    name = (
        "relu" if node.target in _RELUS else {F.relu6: "relu6", F.silu: "silu"}.get(node.target)  # type: ignore[call-overload]
    )
    if name is None or kwargs or len(rest) > 1:
        return None
    return Activation(name)


def _addend_of(node: fx.Node, first: fx.Node) -> fx.Node | None:
    """What this node adds to `first`, if that is all it does."""
    added = (node.op == "call_function" and node.target in _ADDS) or (
        node.op == "call_method" and node.target in ("add", "add_")
    )
    if not added or len(node.args) != 2 or node.kwargs:
        return None
    a, b = node.args
    other = b if a is first else a
    in_place = node.target in (operator.iadd, "add_")
    if other is first or not isinstance(other, fx.Node) or (in_place and a is not first):
        return None
    return other


def chain_at(root: nn.Module, conv: fx.Node) -> Chain | str:
    """The chain that starts with this convolution, or why there is none."""
    layer = layer_of(root, conv)
    assert isinstance(layer, ConvNd)
    if len(conv.args) != 1 or conv.kwargs:
        return "it is not called with one argument"
    last = _only_user(conv)
    if last is None:
        return "its result has a second consumer" if conv.users else "its result is not used"
    if has_hooks(layer):
        return f"{conv.target!r} has hooks"
    batch_norm = layer_of(root, last)
    if type(batch_norm) is _NORMS[len(layer.kernel_size)]:
        if not _plain_call(last, conv):
            return f"{last.target!r} is not called with the convolution's result alone"
        if has_hooks(batch_norm):
            return f"{last.target!r} has hooks"
        chain = Chain(conv, last)
    elif isinstance(batch_norm, nn.modules.batchnorm._BatchNorm):
        return f"{last.target!r} is a {type(batch_norm).__name__}"
    else:
        chain, last = Chain(conv), conv
    while True:
        after = _only_user(last)
        if after is None or after.op == "output":
            break
        activation = activation_of(root, after, last) if chain.act is None else None
        if activation is not None:
            module = layer_of(root, after)
            if module is not None and has_hooks(module):
                break
            chain.act, chain.activation = after, activation
        elif chain.add is None and _addend_of(after, last) is not None:
            chain.add = after
            chain.residual_after = chain.act is not None
        else:
            break
        last = after
        if chain.add is not None and (chain.act is not None or chain.residual_after):
            break
    why = "nothing normalises, activates or adds to its result"
    if chain.add is not None:
        _drop_unsafe_addition(chain)
        why = "its input is read between it and the addition"
    return chain if len(chain.nodes) > 1 else why


def _drop_unsafe_addition(chain: Chain) -> None:
    """With an addition the convolution moves down to it: nothing on the way may see its input."""
    source = chain.conv.args[0]
    node = chain.conv.next
    while node is not chain.add:
        if source in node.all_input_nodes and node not in chain.nodes:
            chain.drop_addition()
            return
        node = node.next


def rewrite(root: nn.Module, graph: fx.Graph) -> tuple[list[str], list[tuple[str, str]]]:
    """Puts one call in place of each chain. Returns (chains, [(convolution, reason)])."""
    found: list[Chain] = []
    left: list[tuple[str, str]] = []
    taken: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op != "call_module" or not isinstance(layer_of(root, node), ConvNd):
            continue
        chain = chain_at(root, node)
        if isinstance(chain, str):
            left.append((str(node.target), chain))
            continue
        if chain.add in taken:  # conv + conv: the first has the addition
            chain.drop_addition()
            if len(chain.nodes) == 1:
                left.append((str(node.target), "what adds to it is fused with another one"))
                continue
        found.append(chain)
        taken.update(chain.nodes)
    for chain in found:
        _replace(root, graph, chain)
    return [str(chain) for chain in found], left


def _replace(root: nn.Module, graph: fx.Graph, chain: Chain) -> None:
    last, residual = chain.nodes[-1], None
    if chain.add is not None:  # as it is now: an earlier chain may have ended in it
        before = chain.act if chain.residual_after else chain.norm or chain.conv
        residual = next(n for n in chain.add.args if n is not before)
    with graph.inserting_before(chain.add or chain.nodes[1]):
        layers: list[Any] = [
            graph.get_attr(str(n.target)) if n is not None and n.op == "call_module" else None
            for n in (chain.conv, chain.norm, chain.act)
        ]
        call = graph.call_function(
            run_layers,
            (
                *layers,
                chain.conv.args[0],
                chain.activation.name,
                chain.activation.slope,
                residual,
                chain.residual_after,
            ),
        )
    last.replace_all_uses_with(call)
    for node in reversed(chain.nodes):
        graph.erase_node(node)


def compiled(root: nn.Module, graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a forward function that takes root as its `self`."""
    graph.lint()
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(compile(code.src, f"<fused {type(root).__name__}>", "exec"), space)
    return space["forward"]
