"""Fuses the chains of a model's own forwards: convert(model, fuse=True).

A module whose forward calls a convolution takes a class below its own, whose forward is the
traced one with a single call per chain. The convolution, the normalisation and the activation stay
the children that they were, so parameters, state_dict, train() and eval() are untouched. What was
traced is traced again when the module's children or attributes have changed since.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastconv import fuse_graph, fuse_inception, fuse_joint
from fastconv.fuse_graph import ORIGINAL
from fastconv.nn.conv import ConvNd
from fastconv.nn.fused import ConvBNReLUNd, has_hooks

_PLAN = "_fastconv_fused_plan"
_Report = tuple[list[tuple[str, str]], list[tuple[str, str]]]


@dataclass
class _Plan:
    """Forwards for evaluation and training, and what they were traced from."""

    forwards: tuple[Callable[..., Any], Callable[..., Any]]
    entered: tuple[str, ...]  # modules whose children the forwards call themselves
    chains: list[str]
    left: list[tuple[str, str]]
    # An inception module: its parts are fused by themselves too, for when it cannot run as one.
    whole: bool = False
    # Modules with a forward of their own were entered: all of them must be in one mode.
    deep: bool = False
    # The module and what was entered, with their children; None in a fresh copy.
    watched: list[tuple[nn.Module, tuple[int, ...]]] | None = None

    def watch(self, module: nn.Module) -> _Plan:
        watched = (module, *map(module.get_submodule, self.entered))
        self.watched = [(m, tuple(map(id, m._modules.values()))) for m in watched]
        return self

    def holds(self) -> bool:
        """Whether the children are still those, and no module that was entered has hooks."""
        if self.watched is None:
            return False
        for i, (module, children) in enumerate(self.watched):
            if tuple(map(id, module._modules.values())) != children or (i and has_hooks(module)):
                return False
        return True

    def convolutions(self) -> list[str]:
        names = []
        for chain in self.chains:
            _, colon, several = chain.partition(": ")
            names += several.split(", ") if colon else [chain.split(" + ")[0]]
        return names

    def __deepcopy__(self, memo: dict) -> _Plan:
        return _Plan(self.forwards, self.entered, self.chains, self.left, self.whole, self.deep)

    def __reduce__(self):
        return _no_plan, ()  # functions cannot be pickled; it is traced anew


def _no_plan() -> None:
    return None


def _traced(module: nn.Module, original: type) -> _Plan:
    """Raises what keeps the forward from being traced."""
    cls, mode = type(module), module.training
    object.__setattr__(module, "__class__", original)
    forwards, entered, chains, left = [], [], [], []
    try:
        branches = _concatenates(module)
        found = fuse_inception.recognised(module) if branches else None
        if found is not None:
            forward = fuse_inception.forward_of(found, original.forward)
            return _Plan((forward, forward), found.entered, [str(found)], [], True).watch(module)
        deep = branches and _joins(module)
        for training in (False, True):
            # Only the module's own flag, which its forward may ask, unless others are entered too.
            vars(module)["training"] = training
            with _all_in_mode(module, training) if deep else nullcontext():
                graph, sequentials = fuse_graph.trace(module, deep)
            joined = fuse_joint.rewrite(module, graph) if deep else []
            chains += [chain for chain in joined if chain not in chains]
            fused, alone = fuse_graph.rewrite(module, graph)
            forwards.append(fuse_graph.compiled(module, graph))
            entered += sequentials
            # What only one of the modes runs is listed too.
            chains += [chain for chain in fused if chain not in chains]
            left += [name for name in alone if name not in left]
    finally:
        vars(module)["training"] = mode
        object.__setattr__(module, "__class__", cls)
    both = (forwards[0], forwards[1])
    names = tuple(dict.fromkeys(entered))
    return _Plan(both, names, chains, left, deep=deep).watch(module)


def _concatenates(module: nn.Module) -> bool:
    """Whether this module itself puts branches together."""
    return fuse_joint.ends_in_concatenation(fuse_graph.trace(module)[0])


def _joins(module: nn.Module) -> bool:
    """Whether convolutions on one input can be joined in this module."""
    try:
        return bool(fuse_joint.rewrite(module, fuse_graph.trace(module, deep=True)[0]))
    except Exception:  # a forward may raise anything under a tracer
        return False


@contextmanager
def _all_in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in modes:
            vars(m)["training"] = training
        yield
    finally:
        for m, mode in modes:
            vars(m)["training"] = mode


def _forward(self, *args, **kwargs):
    plan = vars(self).get(_PLAN)
    if plan is None or not plan.holds():
        if torch.compiler.is_compiling():  # no place to trace; the compiler fuses on its own
            return original_container(self).forward(self, *args, **kwargs)
        plan = _renewed(self, plan)
    if plan.deep and any(m.training != self.training for m, _ in plan.watched):
        return original_container(self).forward(self, *args, **kwargs)
    forward = plan.forwards[self.training]
    return forward(self, *args, **kwargs)


def _renewed(self, plan: _Plan | None) -> _Plan:
    if plan is not None and plan.watched is None:  # a copy is the same in kind
        return plan.watch(self)
    original = original_container(self)
    try:
        plan = _traced(self, original)
    except Exception:  # it can no longer be traced, for whatever reason: as it was before
        plan = _Plan((original.forward, original.forward), (), [], []).watch(self)
    vars(self)[_PLAN] = plan
    return plan


def _setattr(self, name, value):
    super(fused_class(original_container(self)), self).__setattr__(name, value)
    if name != "training":
        vars(self).pop(_PLAN, None)


_classes: dict[type, type] = {}


def fused_class(original: type) -> type:
    """The class below `original` whose forward is the fused one."""
    found = _classes.get(original)
    if found is None:
        body = {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "__reduce_ex__": _reduce,
            "__setattr__": _setattr,
            "forward": _forward,
            ORIGINAL: original,
        }
        found = _classes[original] = type(original)(original.__name__, (original,), body)
    return found


def original_container(module: nn.Module) -> type:
    return getattr(type(module), ORIGINAL)


def is_fused(module: nn.Module) -> bool:
    return ORIGINAL in type(module).__dict__


def _new(original: type) -> nn.Module:
    cls = fused_class(original)
    return cls.__new__(cls)


def _reduce(self, protocol: int):
    # By the original's name: nothing leads to a class made here.
    original = original_container(self)
    reduced = super(fused_class(original), self).__reduce_ex__(max(protocol, 2))
    if reduced[0] is not copyreg.__newobj__ or reduced[1] != (type(self),):
        return reduced  # the original's own __reduce__
    return (_new, (original,), *reduced[2:])


def _obstacle(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted"
    if "forward" in vars(module):
        return "its forward was replaced on this module"
    if is_fused(module):
        return "already fused"
    return None


def _own_convolutions(module: nn.Module) -> bool:
    """Whether this may be the module whose forward calls a convolution."""
    inside = type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Sequential
    if inside or isinstance(module, (ConvNd, ConvBNReLUNd)):
        return False
    if type(module).forward is nn.Module.forward:  # no forward at all
        return False
    return any(isinstance(m, ConvNd) for m in module.modules())


def fuse(model: nn.Module) -> _Report:
    """Fuses every chain of `model`, in place; its convolutions are fastconv's already.

    Returns ([(module, chain)], [(convolution, why it stays alone)]).
    """
    fused: list[tuple[str, str]] = []
    reasons: dict[str, str] = {}
    done: set[str] = set()
    entered: set[str] = set()
    for fqn, module in list(model.named_modules()):
        if fqn in entered or not _own_convolutions(module):
            continue
        prefix = f"{fqn}." if fqn else ""
        reason = _obstacle(module)
        if reason is None:
            try:
                plan = _traced(module, type(module))
                reasons.update((prefix + name, why) for name, why in plan.left)
                if not plan.whole:
                    entered.update(prefix + name for name in plan.entered)
                if plan.chains:
                    object.__setattr__(module, "__class__", fused_class(type(module)))
                    vars(module)[_PLAN] = plan
                    fused += [(fqn, chain) for chain in plan.chains]
                    done.update(prefix + name for name in plan.convolutions())
            except Exception as error:  # a forward may raise anything under a tracer, a class too
                text = (str(error).strip() or type(error).__name__).splitlines()[0]
                reason = f"the forward that calls it cannot be traced: {text}"
        if reason is not None:
            for name, child in module.named_children():
                if isinstance(child, ConvNd):
                    reasons.setdefault(prefix + name, reason)
    left = []
    for fqn, module in model.named_modules():
        if isinstance(module, ConvNd) and fqn not in done:
            left.append((fqn, reasons.get(fqn, "no traced forward calls it")))
    return fused, left


def unfuse(model: nn.Module) -> list[tuple[str, str]]:
    """Gives every fused module of `model` its own forward back; [(module, class)]."""
    undone = []
    for fqn, module in model.named_modules():
        if is_fused(module):
            original = original_container(module)
            vars(module).pop(_PLAN, None)
            object.__setattr__(module, "__class__", original)
            undone.append((fqn, original.__name__))
    return undone
