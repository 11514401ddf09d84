"""Checks for code that uses or adds kernels: gradients by finite differences, and closeness with
the worst element named.

    report = gradcheck(fastconv.nn.Conv2d(3, 8, 3), torch.randn(2, 3, 9, 9))
    print(report)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GradcheckReport", "TensorGradcheck", "assert_conv_close", "gradcheck"]


@dataclass(frozen=True)
class TensorGradcheck:
    """What was found for one tensor. `worst_index` is where the error is largest in proportion to
    its tolerance, with the two derivatives there."""

    name: str
    kind: str  # "input" or "parameter"
    shape: tuple[int, ...]
    checked: int  # elements compared
    failed: int  # elements outside tolerance
    max_abs_error: float
    max_rel_error: float
    worst_index: tuple[int, ...]
    worst_analytic: float
    worst_numeric: float
    worst_ratio: float  # error / tolerance at worst_index

    @property
    def passed(self) -> bool:
        return self.failed == 0

    def __str__(self) -> str:
        verdict = "ok" if self.passed else f"FAILED ({self.failed} of {self.checked})"
        return (
            f"{self.kind} {self.name} {list(self.shape)}: {verdict}, max abs error"
            f" {self.max_abs_error:.3g}, max rel error {self.max_rel_error:.3g}, worst at"
            f" {list(self.worst_index)}: analytic {self.worst_analytic:.10g},"
            f" numeric {self.worst_numeric:.10g}"
        )


@dataclass(frozen=True)
class GradcheckReport:
    """One entry per tensor, inputs first. True in a condition when every element passed."""

    tensors: tuple[TensorGradcheck, ...]
    eps: float
    atol: float
    rtol: float

    @property
    def passed(self) -> bool:
        return all(t.passed for t in self.tensors)

    @property
    def worst(self) -> TensorGradcheck:
        return max(self.tensors, key=lambda t: t.worst_ratio)

    def __bool__(self) -> bool:
        return self.passed

    def __getitem__(self, name: str) -> TensorGradcheck:
        for entry in self.tensors:
            if entry.name == name:
                return entry
        raise KeyError(f"{name!r}; checked: {[t.name for t in self.tensors]}")

    def __str__(self) -> str:
        head = "passed" if self.passed else "FAILED"
        head = f"gradcheck {head} (eps={self.eps:g}, atol={self.atol:g}, rtol={self.rtol:g})"
        return "\n  ".join([head, *map(str, self.tensors)])


def gradcheck(
    module_or_fn: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-4,
    max_elements: int | None = None,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> GradcheckReport:
    """Compares analytic gradients with central finite differences, in float64.

    The outputs are projected on one random direction v, and every element e of every tensor is
    compared: d<v, f>/de by autograd against <v, f(e + eps) - f(e - eps)> / (2 eps). An element
    passes when ``abs(analytic - numeric) <= atol + rtol * abs(numeric)``; a NaN never passes.

    Args:
        module_or_fn: a module, or any callable of the inputs. Its output is a floating-point
            tensor or a nest of tuples, lists and dicts that contains some.
        inputs: the arguments; every floating-point tensor among them is checked, others are
            passed on as they are.
        eps: half the distance of the two evaluations. Smaller rounds more, larger bends more.
        max_elements: check at most so many elements of a tensor, drawn by `seed`; None checks all,
            at two evaluations each.
        seed: of v, of the drawn elements, and set before each evaluation, so that dropout repeats.
        raise_on_failure: raise instead of returning a failed report.

    A module's parameters that require grad are checked too, tied ones once. The module runs on
    float64 copies of its parameters and buffers, each evaluation on fresh buffers: its own
    parameters, dtype, gradients, running statistics and training mode are not touched. So are the
    inputs: dense strides (channels_last) are kept in the copies, expanded and sliced tensors
    become dense. The default dtype is float64 while it runs, and the random state is put back.

    Returns:
        A `GradcheckReport`: per tensor the largest errors and the worst element.

    Raises:
        AssertionError: an element failed and `raise_on_failure` is set; the text is the report.
        ValueError: no floating-point tensor to check, or no floating-point output.
    """
    arguments = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    arguments = [_leaf(a) if _is_real_floating(a) else a for a in arguments]
    checked = {
        str(i): ("input", a) for i, a in enumerate(arguments) if _is_real_floating(a)
    }  # name -> (kind, leaf)
    parameters, buffers = _module_copies(module_or_fn)
    checked |= {n: ("parameter", p) for n, p in parameters.items() if p.requires_grad}
    if not checked:
        raise ValueError("gradcheck: no floating-point input or parameter to check")

    def evaluate() -> list[Tensor]:
        torch.manual_seed(seed)
        if isinstance(module_or_fn, nn.Module):
            state = {**parameters, **{n: b.clone() for n, b in buffers.items()}}
            out = torch.func.functional_call(module_or_fn, state, tuple(arguments))
        else:
            out = module_or_fn(*arguments)
        tensors = [t for t in _leaves(out) if _is_real_floating(t)]
        if not tensors:
            raise ValueError("gradcheck: the output has no floating-point tensor")
        return tensors

    entries = []
    with _double_precision(), torch.enable_grad():
        outputs = evaluate()
        generator = torch.Generator().manual_seed(seed)
        directions = [
            torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device)
            for t in outputs
        ]
        leaves = [leaf for _, leaf in checked.values()]
        analytic = _gradients(outputs, directions, leaves)
        for (name, (kind, leaf)), gradient in zip(checked.items(), analytic, strict=True):
            chosen = torch.arange(leaf.numel())
            if max_elements is not None and leaf.numel() > max_elements:
                chosen = torch.randperm(leaf.numel(), generator=generator)[:max_elements]
            numeric = [
                _central_difference(evaluate, directions, leaf, _index(i, leaf.shape), eps)
                for i in chosen.tolist()
            ]
            entries.append(_compare(name, kind, leaf, gradient, chosen, numeric, atol, rtol))
    report = GradcheckReport(tuple(entries), eps, atol, rtol)
    if raise_on_failure and not report.passed:
        raise AssertionError(str(report))
    return report


def assert_conv_close(
    result: Tensor, expected: Tensor, tolerance: Tensor | float, note: str = ""
) -> None:
    """Asserts ``abs(result - expected) <= tolerance`` elementwise; a NaN must be met by a NaN and
    an infinity by the same infinity.

    Args:
        result: of any floating dtype and strides.
        expected: the reference, float64, of the same shape.
        tolerance: absolute; a number or a tensor that broadcasts to the shape.
        note: what was computed, for the message.

    Raises:
        AssertionError: with the number of bad elements and the worst one's index and values.
    """
    if result.shape != expected.shape:
        raise AssertionError(f"{note}: shape {list(result.shape)}, expected {list(expected.shape)}")
    if result.numel() == 0:
        return
    value = result.detach().to(torch.float64)
    error = (value - expected).abs()
    same = (value == expected) | (value.isnan() & expected.isnan())
    bad = ~(same | (error <= tolerance))
    if not bad.any():
        return
    ratio = torch.where(same, 0.0, torch.where(error.isnan(), torch.inf, error / tolerance))
    worst = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
    raise AssertionError(
        f"{note}: {int(bad.sum())} of {bad.numel()} elements are off; worst at {list(worst)}: got"
        f" {value[worst].item():.9g}, expected {expected[worst].item():.9g},"
        f" error {error[worst].item():.3g} = {ratio[worst].item():.3g} x tolerance"
    )


def _is_real_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _leaf(t: Tensor) -> Tensor:
    return t.detach().to(torch.float64, copy=True).requires_grad_()


def _module_copies(module: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Float64 copies by name: parameters (leaves, frozen ones stay frozen) and buffers."""
    if not isinstance(module, nn.Module):
        return {}, {}
    parameters = {
        name: _leaf(p).requires_grad_(p.requires_grad)
        for name, p in module.named_parameters()
        if p.is_floating_point()
    }
    buffers = {
        name: b.detach().to(torch.float64 if b.is_floating_point() else b.dtype, copy=True)
        for name, b in module.named_buffers()
    }
    return parameters, buffers


@contextmanager
def _double_precision() -> Iterator[None]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_default_dtype(default)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _gradients(
    outputs: list[Tensor], directions: list[Tensor], leaves: list[Tensor]
) -> list[Tensor]:
    pairs = [(t, v.to(t.dtype)) for t, v in zip(outputs, directions, strict=True)]
    pairs = [(t, v) for t, v in pairs if t.requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in leaves]
    tensors, vectors = zip(*pairs, strict=True)
    found = torch.autograd.grad(tensors, leaves, vectors, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def _index(flat: int, shape: torch.Size) -> tuple[int, ...]:
    index = []
    for extent in reversed(shape):
        flat, i = divmod(flat, extent)
        index.append(i)
    return tuple(reversed(index))


def _central_difference(
    evaluate: Callable[[], list[Tensor]],
    directions: list[Tensor],
    leaf: Tensor,
    index: tuple[int, ...],
    eps: float,
) -> float:
    center = leaf[index].item()

    def at(value: float) -> list[Tensor]:
        with torch.no_grad():
            leaf[index] = value
        return [t.detach() for t in evaluate()]

    try:
        above, below = at(center + eps), at(center - eps)
    finally:
        with torch.no_grad():
            leaf[index] = center
    # The difference first: the projection of each alone may be large and round away what differs.
    step = (center + eps) - (center - eps)
    total = sum(
        ((a - b).double() * v).sum().item()
        for a, b, v in zip(above, below, directions, strict=True)
    )
    return total / step


def _compare(
    name: str,
    kind: str,
    leaf: Tensor,
    gradient: Tensor,
    chosen: Tensor,
    numeric_values: list[float],
    atol: float,
    rtol: float,
) -> TensorGradcheck:
    analytic = gradient.detach().double().cpu().reshape(-1)[chosen]
    numeric = torch.tensor(numeric_values, dtype=torch.float64)
    shape = tuple(leaf.shape)
    if not numeric.numel():
        return TensorGradcheck(name, kind, shape, 0, 0, 0.0, 0.0, (), math.nan, math.nan, 0.0)
    error = (analytic - numeric).abs().nan_to_num(nan=math.inf)
    ratio = (error / (atol + rtol * numeric.abs())).nan_to_num(nan=math.inf)
    scale = torch.maximum(analytic.abs(), numeric.abs())
    relative = torch.where(error == 0, 0.0, error / scale)
    worst = int(ratio.argmax())
    return TensorGradcheck(
        name=name,
        kind=kind,
        shape=shape,
        checked=len(chosen),
        failed=int((ratio > 1).sum()),
        max_abs_error=float(error.max()),
        max_rel_error=float(relative.nan_to_num(nan=math.inf).max()),
        worst_index=_index(int(chosen[worst]), leaf.shape),
        worst_analytic=float(analytic[worst]),
        worst_numeric=float(numeric[worst]),
        worst_ratio=float(ratio[worst]),
    )
