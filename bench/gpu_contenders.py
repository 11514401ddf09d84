"""Who runs a problem on the device: PyTorch three ways, and every algorithm of ours.

A name is "<who>@<layout>": eager@nchw, eager@channels_last, compile@channels_last, auto@nchw,
im2col@channels_last (its cheapest instance by the cost model), im2col/<instance>@nchw. Eager
channels_last searches cuDNN's algorithms (`cudnn.benchmark`), eager NCHW takes PyTorch's defaults:
the two ways that users have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from bench import correctness
from bench.conv_problem import ConvProblem
from bench.providers import PROVIDERS, PYTORCH, Fastconv, arranged
from fastconv import _C, gpu, select
from fastconv.problem import NATIVE_DIRECTIONS, NATIVE_DTYPES, ConvSpec

LAYOUTS = ("nchw", "channels_last")
EAGER = ("eager@nchw", "eager@channels_last")
COMPILED = "compile@channels_last"
AUTO = ("auto@nchw", "auto@channels_last")
COMPILE_MODE = "max-autotune-no-cudagraphs"  # the timer captures the graph itself


def is_pytorch(name: str) -> bool:
    return name.startswith(("eager@", "compile@"))


def algorithms(device: str) -> tuple[str, ...]:
    """Ours on this device, by the registry."""
    return tuple(_C.cpu_algorithms() if device == "cpu" else _C.cuda_algorithms())


@cache
def tf32_kernels() -> frozenset[str]:
    """The instances that multiply float32 operands in TF32."""
    return frozenset(f"{row[0]}/{row[1]}" for row in _C.cuda_instances() if row[5])


def instances_of(direction: str, arithmetic: str) -> list[str]:
    """Every instance for this, in both layouts, forced by name. arithmetic: a dtype or 'tf32'."""
    tf32 = arithmetic == "tf32"
    wanted = (direction, "float32" if tf32 else arithmetic, tf32)
    return [
        f"{algorithm}/{name}@{'channels_last' if layout == _C.Layout.NHWC else 'nchw'}"
        for algorithm, name, toward, dtype, layout, is_tf32 in _C.cuda_instances()
        if (toward.name, dtype.name, is_tf32) == wanted
    ]


def spec_of(problem: ConvProblem) -> ConvSpec:
    """As the registry knows it; TF32 as PyTorch's switch stands now."""
    device = gpu.device_key(problem.x.device)
    tf32 = select.allows_tf32(device, problem.x.dtype, "auto")
    return replace(problem.spec(problem.direction), device=device, tf32=tf32)


def cheapest_instance(algorithm: str, spec: ConvSpec) -> str:
    """ "<algorithm>/<instance>", in TF32 if that is allowed. Raises RuntimeError with the reason
    where it does not apply. Whether it is trusted is not asked."""
    device = gpu.describe(spec.device)
    layout = _C.Layout.NHWC if spec.channels_last else _C.Layout.NCHW
    rows = _C.cuda_candidates(
        spec.native,
        NATIVE_DTYPES[spec.dtype],
        NATIVE_DIRECTIONS[spec.direction],
        layout,
        spec.tf32,
        device.capability,
        device.sm_count,
    )
    own = [row for row in rows if row[0] == algorithm]
    if spec.tf32:
        own = [row for row in own if f"{algorithm}/{row[1]}" in tf32_kernels()]
    runs = [row for row in own if not row[2]]
    if not runs:
        reason = own[0][2] if own else "no kernel for this direction, dtype and layout"
        raise RuntimeError(f"{algorithm} does not apply: {reason}")
    return f"{algorithm}/{min(runs, key=lambda row: row[3])[1]}"


def arrange(problem: ConvProblem, layout: str) -> ConvProblem:
    """The same problem with its tensors in a layout."""
    return arranged(problem, layout)


def call(name: str, problem: ConvProblem) -> tuple[Callable[[], Tensor], str]:
    """(the contender's call, what it runs) on `problem`, whose tensors are in its layout."""
    who = name.rpartition("@")[0]
    if who == "compile":
        return _compiled(problem), who
    if who == "eager":
        search = name == EAGER[1]
        plain = PROVIDERS[PYTORCH].conv(problem)

        def eager() -> Tensor:
            torch.backends.cudnn.benchmark = search
            return plain()

        return eager, who
    if who == "auto":
        return Fastconv("auto").conv(problem), select.resolve(spec_of(problem), "auto")
    if problem.x.is_cuda and "/" not in who:
        who = cheapest_instance(who, spec_of(problem))
    return _forced(who, problem), who


def _forced(algo: str, problem: ConvProblem) -> Callable[[], Tensor]:
    """Straight to the op: no choice, no check of trust."""
    p, layer = problem, problem.layer
    last = p.layout == "channels_last" and layer.rank > 1
    geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
    ops = torch.ops.fastconv
    if p.direction == "fprop":
        return lambda: ops.conv_fprop(p.x, p.w, None, *geometry, algo)
    if p.direction == "dgrad":
        return lambda: ops.conv_dgrad(p.dy, p.w, list(p.x.shape), *geometry, last, algo)
    return lambda: ops.conv_wgrad(p.dy, p.x, list(p.w.shape), *geometry, last, algo)


def _compiled(problem: ConvProblem) -> Callable[[], Tensor]:
    """torch.compile of the plain convolution; its search runs at the first call."""
    # One code object serves every problem: after a few of them it would silently stay uncompiled.
    torch._dynamo.reset()
    layer, direction = problem.layer, problem.direction
    compiled = torch.compile(
        lambda x, w, dy: correctness.convolution(layer, direction, x, w, dy), mode=COMPILE_MODE
    )
    return lambda: compiled(problem.x, problem.w, problem.dy)
