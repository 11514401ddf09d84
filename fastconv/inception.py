"""The inception module as one operation: four branches on one input, side by side in the output.

On a GPU the whole is two grids (kernels/cuda/inception_fprop.cuh) where `select_inception` takes
them. Else the 1x1 convolutions that reduce the input for the 3x3 and the 5x5 branch are one
convolution, and each branch writes into its channels of the result: nothing is concatenated.
Where a Triton algorithm is named, convolutions and pool are Triton's.
Backward, the gradients of all 1x1 convolutions on the input are one convolution again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import has_torch_function

from fastconv import functional, gpu, pooling, select, select_inception, select_triton
from fastconv.activations import Activation, named
from fastconv.arguments import check_options, foreign_dispatch, refusal
from fastconv.derived import Derived
from fastconv.ops import conv, fused_run, pool
from fastconv.ops.composed_gradients import composed_gradients
from fastconv.ops.conv_autograd import sum_to_bias
from fastconv.ops.conv_call import Call, call_for
from fastconv.ops.conv_run import dgrad_by, wgrad_by
from fastconv.ops.fused_run import conv_epilogue, conv_epilogue_into, ending
from fastconv.ops.pool_kernels import BARE
from fastconv.plans import NO_KEY
from fastconv.problem import dense_strides, is_channels_last
from fastconv.select_fused import passes_for

BRANCHES = ("1x1", "3x3 reduction", "3x3", "5x5 reduction", "5x5", "pool projection")
ONE, RED3, THREE, RED5, FIVE, PROJECTION = range(6)
_WINDOW = pool.Windows((3, 3), (1, 1), (1, 1), (1, 1), False)  # the pool's


class _Step(NamedTuple):
    activation: Activation
    request: str  # the algorithm with its precision
    passes: str  # who runs the pool, and an epilogue that is a pass (ops/norm_run.py)


class _Plan(NamedTuple):
    """A forward pass that has been through every check: the joined reductions' call, and those of
    the convolutions that write into the result."""

    reduction: Call
    branches: tuple[Call, ...]
    passes: str


def _join(*parameters: Tensor) -> tuple[Tensor, ...]:
    """(weight, bias) of the two reductions as one convolution. parameters: all weights, biases."""
    w, b = parameters[:6], parameters[6:]
    return torch.cat([w[RED3], w[RED5]]), torch.cat([b[RED3], b[RED5]])


def _join_pointwise(*tensors: Tensor) -> tuple[Tensor, ...]:
    """(weight, bias) of all 1x1 convolutions of the input as one, from those of each."""
    return torch.cat(tensors[::2]), torch.cat(tensors[1::2])


_joined = Derived(_join)
_joined_pointwise = Derived(_join_pointwise)


def inception(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    activation: str | None = "relu",
    negative_slope: float = 0.01,
    algo: str = "auto",
    precision: str | None = None,
) -> Tensor:
    """GoogLeNet's module: 1x1; 1x1 and 3x3; 1x1 and 5x5; 3x3 max pool and 1x1; each with bias and
    activation; concatenated.

    Args:
        input: (N, C, H, W).
        weights: of the 1x1, the 3x3's reduction, the 3x3, the 5x5's reduction, the 5x5 and the
            pool's projection: (K, C', R, R) with odd R (the reductions and the 1x1: R = 1), input's
            dtype. Every convolution keeps the extents.
        biases: (K,) each.
        activation, negative_slope: as in fastconv.conv_bn_relu.
        algo, precision: of the convolutions, as in fastconv.conv2d.

    Returns:
        (N, K1 + K3 + K5 + Kp, H, W), channels_last if input or a weight is.

    float32, float64, bfloat16, float16. Differentiable in everything: once in joined convolutions,
    further derivatives composed of separate operations. Deterministic. Without gradients the joined
    weights of the reductions are kept as fastconv.conv_bn_relu keeps its folded ones.

    Raises:
        RuntimeError, TypeError: as torch.nn.functional.conv2d, in its words.
        ValueError: not six weights and biases, or extents that are even or differ from these.

    Source: Szegedy et al., "Going Deeper with Convolutions", 2015, figure 2(b) and table 1.
    """
    end = named(activation, negative_slope)
    known = _recalled(input, weights, biases, end, algo, precision)
    if known is not None:
        return _forward(input, weights, biases, _Step(end, algo, known.passes), plan=known)[0]
    check_options(algo, precision)
    _check(weights, biases)
    parameters = (*weights, *biases)
    plain = not (
        torch.compiler.is_compiling()
        or conv.transforming()
        or conv.tracing()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled(input.device.type)
    )
    if (
        plain
        and input.dim() == 4
        and input.numel()
        and not any(refusal(input, w, b) for w, b in zip(weights, biases, strict=True))
        and not foreign_dispatch(input, *parameters)
        and _fits(input, weights)
    ):
        request = select.with_precision(algo, precision)
        x = _in_one_format(input, weights)
        passes = passes_for(x, is_channels_last(x, x), request)
        if passes is None:
            return composed(x, weights, biases, end, algo, precision)
        step = _Step(end, request, passes)
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))):
            y, *_, plan = _forward(x, weights, biases, step)
            if x is input and plan is not None:
                _remember(x, parameters, end, algo, precision, plan)
            return y
        if _known_by_value(end):
            return _Inception.apply(x, *parameters, step)
    return composed(input, weights, biases, end, algo, precision)


def _key(x: Tensor, end: Activation, algo: str, precision: str | None) -> Any:
    return (
        x.__class__, x.shape, x.stride(), x.dtype, x.device, end, algo, precision,
        gpu.tf32_allowed() if x.is_cuda else torch.get_num_threads(), select.generation,
    )  # fmt: skip


def _recalled(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    end: Activation,
    algo: str,
    precision: str | None,
) -> _Plan | None:
    """The plan of these very parameters, where nothing records or transforms the call."""
    parameters = (*weights, *biases)
    if (
        len(parameters) != 2 * len(BRANCHES)
        or conv.tracing()
        or conv.transforming()
        or torch._C._is_any_autocast_enabled()
        or torch._C._get_tracing_state() is not None
        or has_torch_function((x, *parameters))
    ):
        return None
    entry = _joined.entry(*parameters)
    if entry is None:
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters)):
        return None
    try:
        return entry.plans.get(_key(x, end, algo, precision))
    except NO_KEY:
        return None


def _remember(
    x: Tensor,
    parameters: tuple[Tensor, ...],
    end: Activation,
    algo: str,
    precision: str | None,
    plan: _Plan,
) -> None:
    entry = _joined.entry(*parameters)
    if entry is not None:
        entry.plans.remember(_key(x, end, algo, precision), plan)


def _check(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    for name, given in (("weights", weights), ("biases", biases)):
        if len(given) != len(BRANCHES):
            known = ", ".join(BRANCHES)
            raise ValueError(f"inception: expected 6 {name} ({known}), got {len(given)}")
    for index, w in enumerate(weights):
        extents = tuple(w.shape[2:])
        small = index in (THREE, FIVE)
        if w.dim() == 4 and not (
            extents[0] == extents[1] and extents[0] % 2 == 1 and (small or extents[0] == 1)
        ):
            expected = "odd and square" if small else "1x1"
            raise ValueError(
                f"inception: the filter of the {BRANCHES[index]} must be {expected}, got"
                f" {extents[0]}x{extents[1]}"
            )


def _fits(x: Tensor, weights: Sequence[Tensor]) -> bool:
    inputs = [x.shape[1]] * 6
    inputs[THREE], inputs[FIVE] = weights[RED3].shape[0], weights[RED5].shape[0]
    return all(
        w.dim() == 4 and w.shape[1] == c and w.shape[0] > 0
        for w, c in zip(weights, inputs, strict=True)
    )


def _in_one_format(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """x in channels_last if a weight is: each convolution's result would be."""
    if is_channels_last(x, x) or not any(is_channels_last(w, w) for w in weights):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _outputs(weights: Sequence[Tensor]) -> list[int]:
    """Where each branch's channels begin in the result, and their number."""
    places = [0]
    for index in (ONE, THREE, FIVE, PROJECTION):
        places.append(places[-1] + weights[index].shape[0])
    return places


def _call(x: Tensor, w: Tensor, last: bool, step: _Step) -> Call:
    pad = (w.shape[2] // 2,) * 2
    operands = (x, w, None)
    call = call_for(
        "fprop", x, x.shape, w.shape, (1, 1), pad, (1, 1), 1, last, step.request, operands,
        "epilogue",
    )  # fmt: skip
    call.passes = step.passes
    return call


def _forward(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    step: _Step,
    keep: int = pool.KEEP_NOTHING,
    plan: _Plan | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, _Plan | None]:
    """(result, reduced, pooled, index, plan): reduced holds both reductions after their activation.
    plan: what an earlier call with these parameters returned. pooled, index and plan are None where
    the two grids ran, which have no use for them."""
    last = is_channels_last(x, x)
    end, request = ending(step.activation, False), step.request
    if plan is None:
        choice = select_inception.choose(x, weights, last, request)
        if choice.name is not None:
            pointwise = [t for i in (ONE, RED3, RED5) for t in (weights[i], biases[i])]
            joined = (_join_pointwise if keep else _joined_pointwise)(*pointwise)
            y, reduced = fused_run.inception(x, joined, weights, biases, end, choice.name)
            return y, reduced, None, None, None
    places = _outputs(weights)
    size = (x.shape[0], places[-1], *x.shape[2:])
    y = x.new_empty_strided(size, dense_strides(size, last))

    calls: list[Call] = []

    def write(index: int, source: Tensor) -> None:
        w, number = weights[index], len(calls)
        call = _call(source, w, last, step) if plan is None else plan.branches[number]
        calls.append(call)
        out = y.narrow(1, places[number], w.shape[0])
        conv_epilogue_into(source, w, biases[index], None, out, call, end)

    w, b = (_join if keep else _joined)(*weights, *biases)
    reduction = _call(x, w, last, step) if plan is None else plan.reduction
    reduced = conv_epilogue(x, w, b, None, reduction, end)
    k3, k5 = weights[RED3].shape[0], weights[RED5].shape[0]
    write(ONE, x)
    write(THREE, reduced.narrow(1, 0, k3))
    write(FIVE, reduced.narrow(1, k3, k5))
    pooled, index = BARE["max_pool"](x, *_WINDOW, keep, step.passes)
    write(PROJECTION, pooled)
    return y, reduced, pooled, index, _Plan(reduction, tuple(calls), step.passes)


def _slope(g: Tensor, y: Tensor, act: Activation) -> Tensor:
    """g * act'(.), by the activation's value y."""
    aten = torch.ops.aten
    if act.name == "relu":
        return aten.threshold_backward(g, y, 0)
    if act.name == "relu6":
        return aten.hardtanh_backward(g, y, 0, 6)
    return aten.leaky_relu_backward(g, y, act.slope, True) if act.name == "leaky_relu" else g


def _known_by_value(act: Activation) -> bool:
    """Whether the activation's slope follows from its value."""
    return act.name in ("none", "relu", "relu6") or (act.name == "leaky_relu" and act.slope > 0)


class _Inception(Function):
    """inception(x, *weights, *biases)."""

    @staticmethod
    def forward(ctx, x, *rest):
        *parameters, step = rest
        weights, biases = parameters[:6], parameters[6:]
        y, reduced, pooled, index, _ = _forward(x, weights, biases, step, pool.KEEP_BYTE)
        ctx.save_for_backward(x, y, reduced, pooled, index, *parameters)
        ctx.step = step
        return y

    @staticmethod
    def backward(ctx, dz):
        x, y, reduced, pooled, index, *parameters = ctx.saved_tensors
        step, needs = ctx.step, ctx.needs_input_grad[:-1]
        if torch.is_grad_enabled() or conv.transforming() or conv.tracing():

            def function(x, *parameters):
                algo, by = select.split_precision(step.request)
                return composed(x, parameters[:6], parameters[6:], step.activation, algo, by)

            return (*composed_gradients(function, (x, *parameters), needs, dz), None)
        return (*_backward(dz, x, y, reduced, pooled, index, parameters[:6], step, needs), None)


def _backward(dz, x, y, reduced, pooled, index, weights, step, needs) -> list[Tensor | None]:
    if pooled is None and (needs[0] or needs[1 + PROJECTION]):
        pooled, index = BARE["max_pool"](x, *_WINDOW, pool.KEEP_BYTE, step.passes)
    need_w, need_b = needs[1:7], needs[7:]
    last, places = is_channels_last(x, x), _outputs(weights)
    k3, act = weights[RED3].shape[0], step.activation
    g = _slope(dz, y, act)
    by_branch = [g[:, a:b] for a, b in pairwise(places)]
    grads: list[Tensor | None] = [None] * 13

    def through(index: int, dy: Tensor, source: Tensor, wants_source: bool) -> Tensor | None:
        """The gradients of one convolution; that of its input is returned."""
        w = weights[index]
        call = _call(source, w, last, step)
        if need_w[index]:
            grads[1 + index] = wgrad_by(call.gradient("wgrad", dy, source), dy, source)
        if need_b[index]:
            grads[7 + index] = sum_to_bias(dy)
        return dgrad_by(call.gradient("dgrad", dy, w), dy, w) if wants_source else None

    of_reductions = [needs[0] or need_w[i] or need_b[i] for i in (RED3, RED5)]
    d3 = through(THREE, by_branch[1], reduced[:, :k3], of_reductions[0])
    d5 = through(FIVE, by_branch[2], reduced[:, k3:], of_reductions[1])
    if d3 is None and d5 is None:
        joint, names = by_branch[0], (ONE,)
    else:
        d3 = torch.zeros_like(reduced[:, :k3]) if d3 is None else d3
        d5 = torch.zeros_like(reduced[:, k3:]) if d5 is None else d5
        reductions = _slope(torch.cat([d3, d5], 1), reduced, act)
        joint, names = torch.cat([by_branch[0], reductions], 1), (ONE, RED3, RED5)
    w = torch.cat([weights[i] for i in names])
    call = _call(x, w, last, step)
    counts = [weights[i].shape[0] for i in names]
    if any(need_w[i] for i in names):
        dw = wgrad_by(call.gradient("wgrad", joint, x), joint, x).split(counts)
        for i, part in zip(names, dw, strict=True):
            grads[1 + i] = part if need_w[i] else None
    if any(need_b[i] for i in names):
        for i, part in zip(names, sum_to_bias(joint).split(counts), strict=True):
            grads[7 + i] = part if need_b[i] else None
    # Without the pooled tensor it is x's shape alone that the call rests on.
    dpool = through(PROJECTION, by_branch[3], x if pooled is None else pooled, needs[0])
    if needs[0]:
        dx = dgrad_by(call.gradient("dgrad", joint, w), joint, w)
        from_pool = BARE["max_pool_dx"](dpool, index, x.shape, *_WINDOW[:4], last, step.passes)
        grads[0] = dx + from_pool
    return grads


def composed(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    act: Activation,
    algo: str = "auto",
    precision: str | None = None,
) -> Tensor:
    """The same out of separate operations."""

    def run(index: int, source: Tensor) -> Tensor:
        w = weights[index]
        pad = w.shape[2] // 2
        y = functional.conv2d(source, w, biases[index], padding=pad, algo=algo, precision=precision)
        return act(y)

    branches = (
        run(ONE, x),
        run(THREE, run(RED3, x)),
        run(FIVE, run(RED5, x)),
        run(PROJECTION, pooling.max_pool2d(x, 3, 1, 1, algo=select_triton.pools_of(algo))),
    )
    return torch.cat(branches, 1)
