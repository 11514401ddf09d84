"""convert() makes a model's convolutions and poolings fastconv's, in place; revert() takes that
back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.conv import _ConvNd as TorchConvNd
from torch.nn.modules.conv import _ConvTransposeNd as TorchConvTransposeNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from fastconv import select, select_pool
from fastconv._layer_classes import (
    OURS,
    POOLING_OF,
    converted_class,
    original_class,
    torch_layer_of,
)
from fastconv.nn.conv import ConvNd, check_algo
from fastconv.nn.pool import PoolNd
from fastconv.problem import NATIVE_DTYPES, ConvSpec

# In a converted layer's __dict__: tells it from one built as fastconv.nn's, which revert leaves.
MARK = "_fastconv_converted"
OUR_ATTRIBUTES = ("algo", "precision")


@dataclass(repr=False)
class ConversionReport:
    """What convert() or revert() did.

    Attributes:
        model: the model that was passed in; it was changed in place.
        converted: (fqn, class name) of each layer changed, in the order of named_modules().
        skipped: (fqn, reason) of each convolution or pooling left as it was.
        action: "convert" or "revert".
        fused: (fqn, chain) of each chain that became one call, with the module whose forward it
            stands in; of revert, the modules that have their own forward again.
        unfused: (fqn, reason) of each convolution that stays outside of a chain; only with fuse.

    str() and repr() give a table. The root's name is "" here and "(root)" in the table.
    """

    model: nn.Module
    converted: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    action: str = "convert"
    fused: list[tuple[str, str]] = field(default_factory=list)
    unfused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        done = "converted" if self.action == "convert" else "reverted"
        head = f"fastconv.{self.action}: {len(self.converted)} {done}, {len(self.skipped)} skipped"
        rows = [(name or "(root)", f"{done}: {cls}") for name, cls in self.converted]
        rows += [(name or "(root)", f"skipped: {reason}") for name, reason in self.skipped]
        if self.fused or self.unfused:
            verb = "fused" if self.action == "convert" else "unfused"
            head += f", {len(self.fused)} {verb}"
            rows += [(name or "(root)", f"{verb}: {chain}") for name, chain in self.fused]
            rows += [(name or "(root)", f"not fused: {reason}") for name, reason in self.unfused]
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join([head, *(f"  {name:<{width}}  {result}" for name, result in rows)])

    __repr__ = __str__


def convert(
    model: nn.Module,
    *,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    algo: str = "auto",
    fuse: bool = False,
) -> ConversionReport:
    """Makes the convolutions and poolings in `model` (itself included) fastconv's, in place.

    That is torch.nn's Conv, MaxPool, AvgPool, LPPool, AdaptiveMaxPool, AdaptiveAvgPool and
    MaxUnpool, 1d to 3d.

    A layer stays the same object and takes the class of fastconv.nn's layer. Its parameters (the
    same objects, so optimizers keep working), buffers, hooks, parametrizations, pruning masks,
    training mode and state_dict are untouched. Subclasses that do not define a forward keep
    their methods. A layer reachable under several names is judged and converted under the first.

    Skipped, with the reason in the report: layers that filter_fn refuses, scripted ones, those with
    a forward (or _conv_forward) of their own, those already converted, and of the convolutions the
    transposed, quantised and uninitialised lazy ones.

    Args:
        model: any torch.nn.Module that is not scripted.
        filter_fn: called as filter_fn(module, fqn) on each layer that could be converted, with its
            name in model.named_modules(); a false result leaves the layer as it is.
        algo: "auto", or the one algorithm every converted layer is to use; layers that it can
            never compute are skipped with its reason ("direct" and "aten" are of both kinds).
        fuse: also make one call (fastconv.conv_bn_relu) of every convolution whose result goes into
            a batch normalisation alone, with the activation and the addition behind it; without a
            normalisation (fastconv.conv_act) of it and these, where no gradient is wanted. For that
            the module that calls them gets a traced forward (torch.fx, its children as leaves),
            which takes the decisions of its Python code once for training and once for evaluation;
            children, state_dict, hooks and train() stay as they are. Not fused, with the reason in
            the report: an intermediate with a second consumer or a hook, and what cannot be traced.

    Dtypes, layouts and determinism: those of fastconv.conv2d and fastconv.max_pool2d.

    Raises:
        TypeError: model is not a Module or is scripted; filter_fn is not callable.
        ValueError: unknown algo.
        In each case, and when filter_fn raises, nothing has been changed.
    """
    _require_module(model, "convert")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(
            f"convert: filter_fn must be callable as filter_fn(module, fqn), got {_kind(filter_fn)}"
        )
    if algo not in select_pool.names():
        check_algo(algo)

    # Every decision comes before the first change: an exception must leave the model whole.
    plan: list[tuple[str, nn.Module, type | str]] = []
    first_names: dict[int, str] = {}
    for fqn, module in _all_names(model):
        if not (_is_convolution(module) or _is_pooling(module)):
            continue
        if id(module) in first_names:
            plan.append((fqn, module, f"the same layer as {first_names[id(module)]!r}"))
            continue
        first_names[id(module)] = fqn
        plan.append((fqn, module, _decide(module, fqn, filter_fn, algo)))

    report = ConversionReport(model)
    for fqn, module, decision in plan:
        if isinstance(decision, str):
            report.skipped.append((fqn, decision))
            continue
        name = type(module).__name__
        try:
            object.__setattr__(module, "__class__", decision)
        except TypeError as error:  # e.g. a subclass with __slots__
            report.skipped.append((fqn, f"its class cannot be replaced: {error}"))
            continue
        vars(module)[MARK] = True
        if algo != "auto":
            vars(module)["algo"] = algo
        report.converted.append((fqn, name))
    if fuse:
        from fastconv.fuse import fuse as fuse_chains  # torch.fx only where it is asked for

        report.fused, report.unfused = fuse_chains(model)
    return report


def revert(model: nn.Module) -> ConversionReport:
    """Gives each layer of `model` that convert() changed the class it had, in place, and its own
    forward to each module that was given a fused one.

    Layers built as fastconv.nn's stay as they are. Parametrizations added or removed since the
    conversion are kept as they now are.

    Returns:
        A report whose `converted` lists the layers that were given back.

    Raises:
        TypeError: model is not a Module or is scripted.
    """
    _require_module(model, "revert")
    report = ConversionReport(model, action="revert")
    if any(hasattr(type(module), "_fastconv_fused_from") for module in model.modules()):
        from fastconv.fuse import unfuse

        report.fused = unfuse(model)
    for fqn, module in model.named_modules():
        if not isinstance(module, OURS):
            continue
        name = type(module).__name__
        if MARK not in vars(module):
            report.skipped.append((fqn, f"built as fastconv.nn.{name}, not converted"))
            continue
        cls = original_class(module)
        if cls is None:
            report.skipped.append((fqn, f"its class {name} was made from fastconv's since"))
            continue
        object.__setattr__(module, "__class__", cls)
        for attribute in (MARK, *OUR_ATTRIBUTES):
            vars(module).pop(attribute, None)
        report.converted.append((fqn, name))
    return report


def _decide(module, fqn, filter_fn, algo) -> type | str:
    """The class `module` is to take, or the reason why it is to stay."""
    reason = _obstacle(module, algo)
    if reason is not None:
        return reason
    if filter_fn is not None and not filter_fn(module, fqn):
        return "filter_fn returned false"
    try:
        return converted_class(module)
    except Exception as error:  # a metaclass or __init_subclass__ may refuse in any way
        return f"no class can be made from {_class_path(type(module))}: {error}"


def _obstacle(module: nn.Module, algo: str) -> str | None:
    """Why this layer cannot be converted; None if it can."""
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted; convert before torch.jit.script or torch.jit.trace"
    if isinstance(module, OURS):
        return _already_ours(module, algo)
    if _is_pooling(module):
        reason = _changed(module, ("forward",), ("algo",))
        return reason or _pool_algo_obstacle(torch_layer_of(cls), algo)
    if isinstance(module, TorchConvTransposeNd):
        return "transposed convolution"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "lazy and not initialised yet; run one forward pass first"
    if _is_quantised(cls):
        return "quantised"
    if torch_layer_of(cls) is None:
        return f"{_class_path(cls)} is not a torch.nn.Conv1d, Conv2d or Conv3d"
    reason = _changed(module, ("forward", "_conv_forward"), OUR_ATTRIBUTES)
    return reason or _weight_obstacle(module) or _algo_obstacle(module, algo)


def _changed(
    module: nn.Module, methods: tuple[str, ...], attributes: tuple[str, ...]
) -> str | None:
    """What this layer computes or holds in another way than torch.nn's; None if nothing."""
    cls = type(module)
    torchs = torch_layer_of(cls)
    for method in methods:
        if method in vars(module):
            return f"{method} was replaced on this layer"
        if getattr(cls, method) is not getattr(torchs, method):
            return f"{_class_path(cls)} has its own {method}"
    for name in attributes:
        if hasattr(module, name):
            return f"it has an attribute {name!r} of its own, which fastconv uses"
    return None


def _already_ours(module: ConvNd | PoolNd, algo: str) -> str:
    if MARK not in vars(module):
        return f"already a fastconv.nn.{type(module).__name__}"
    if module.algo != algo:
        return f"already converted, with algo={module.algo!r}; revert first to change it"
    return "already converted"


def _stored_weight(module: nn.Module) -> Tensor | None:
    """The weight, or a parametrized weight's first original: the attribute would compute it."""
    for place in (module._parameters, module._buffers, vars(module)):
        if isinstance(place.get("weight"), Tensor):
            return place["weight"]
    parametrization = module.parametrizations.weight if is_parametrized(module, "weight") else None
    return None if parametrization is None else next(parametrization.parameters(), None)


def _weight_obstacle(module: nn.Module) -> str | None:
    weight = _stored_weight(module)
    if weight is None:
        return None
    if type(weight) not in (Tensor, nn.Parameter, FakeTensor):
        return f"its weight is a {_class_path(type(weight))}, not a plain tensor"
    if weight.dtype not in NATIVE_DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in NATIVE_DTYPES)
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}; fastconv has {known}"
    return None


def _algo_obstacle(module: nn.Module, algo: str) -> str | None:
    """Why a forced algorithm cannot compute this layer whatever its input; None if it can."""
    if algo == select.AUTO:
        return None
    weight = _stored_weight(module)
    extents = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    padding = (0,) * len(extents)
    if module.padding_mode == "zeros" and module.padding != "valid":
        same = tuple((extent - 1) // 2 for extent in extents)
        padding = same if module.padding == "same" else module.padding
    spec = ConvSpec(
        direction="fprop",
        device="cpu",
        dtype=torch.float32 if weight is None else weight.dtype,
        # Any input large enough to be usual: what applies does not hang on a few pixels.
        input_size=(1, module.in_channels, *(extent + 30 for extent in extents)),
        weight_size=(module.out_channels, module.in_channels // module.groups, *module.kernel_size),
        stride=module.stride,
        padding=padding,
        dilation=module.dilation,
        groups=module.groups,
        channels_last=False,
    )
    reasons = [
        candidate.reason
        for candidate in select.candidates(spec)
        if candidate.name == algo or (algo == select.WINOGRAD and candidate.name.startswith(algo))
    ]
    if None in reasons:
        return None
    return f"algorithm {algo!r} does not apply: {(*reasons, 'it is not for convolutions')[0]}"


def _pool_algo_obstacle(torchs: type, algo: str) -> str | None:
    """Why a forced algorithm cannot compute such poolings; None if it can."""
    if algo == select_pool.AUTO:
        return None
    reason = None
    if algo not in select_pool.names():
        reason = "it is not for poolings"
    elif algo == select_pool.TRITON and not select_pool.has_triton_kernels(torchs.__name__):
        reason = "there is no Triton kernel for it"
    return None if reason is None else f"algorithm {algo!r} does not apply: {reason}"


def _is_convolution(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        # A scripted layer keeps only the name of its class.
        return getattr(module, "original_name", "") in _TORCH_NAMES
    return isinstance(module, TorchConvNd) or _is_quantised(type(module))


_TORCH_NAMES = {f"{kind}{rank}d" for kind in ("Conv", "ConvTranspose") for rank in (1, 2, 3)}
_POOL_NAMES = {torchs.__name__ for torchs in POOLING_OF}


def _is_pooling(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(module, "original_name", "") in _POOL_NAMES
    return isinstance(module, (*POOLING_OF, PoolNd))


def _is_quantised(cls: type) -> bool:
    # By name: importing torch.ao to ask isinstance costs time, and it is to leave PyTorch.
    return any(
        "quantized" in c.__module__.split(".") and c.__name__.startswith("Conv")
        for c in cls.__mro__
    )


def _all_names(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """named_modules() in its order, but with every name of a shared module; cycles end."""
    path: set[int] = set()

    def walk(prefix, module):
        if id(module) in path:
            return
        yield prefix, module
        path.add(id(module))
        for name, child in module._modules.items():
            if child is not None:
                yield from walk(f"{prefix}.{name}" if prefix else name, child)
        path.discard(id(module))

    return walk("", model)


def _require_module(model: object, caller: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model must be a torch.nn.Module, got {_kind(model)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{caller}: model is a scripted or traced {type(model).__name__}, whose layers are"
            f" compiled already; {caller} the model before torch.jit.script or torch.jit.trace"
        )


def _kind(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{value!r} ({type(value).__name__})" if value is None else type(value).__name__


def _class_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
