"""Which algorithm a pooling would run, and why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastconv
from fastconv import _C, gpu, select_pool
from fastconv.explain import Choice, Explanation, Row
from fastconv.problem import suggests_channels_last
from fastconv.select_pool import ATEN, AUTO

_DIRECTIONS = ("fprop", "dgrad")


class _Recorder(TorchDispatchMode):
    """Notes the algorithm that the first of our ops is called with."""

    ran: str | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastconv" and self.ran is None:
            self.ran = args[-1]
        return func(*args, **(kwargs or {}))


def _on(place: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """The arguments with `place` applied to their tensors."""
    moved = tuple(place(a) if isinstance(a, Tensor) else a for a in args)
    return moved, {k: place(v) if isinstance(v, Tensor) else v for k, v in options.items()}


def _check_with_torch(function: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Raises PyTorch's error on bad arguments; good ones are not computed."""
    args, options = _on(lambda t: t.detach().to("meta"), args, options)
    getattr(fastconv, function)(*args, **options, algo=ATEN)


def _rehearse(function: str, args: tuple[Any, ...], options: dict[str, Any], algo: str) -> str:
    """The algorithm that the call takes, found on tensors without data; raises as the call does."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, _Recorder() as recorder:
        args, options = _on(fake.from_tensor, args, options)
        with torch.no_grad():
            getattr(fastconv, function)(*args, **options, algo=algo)
    return recorder.ran or ATEN


def _reason(function: str, args: tuple[Any, ...], options: dict[str, Any], algo: str) -> str | None:
    """Why the named algorithm does not take the call; None if it does."""
    try:
        _rehearse(function, args, options, algo)
    except RuntimeError as error:
        return str(error).partition(" does not apply: ")[2] or str(error)
    return None


def explain(
    function: str, input: Tensor, *args: Any, algo: str = AUTO, **options: Any
) -> Explanation:
    """`fastconv.explain` of a pooling; `function` is its name."""
    if function not in select_pool.FUNCTIONS:
        known = ", ".join(select_pool.FUNCTIONS)
        raise ValueError(f"unknown pooling {function!r}; expected one of: {known}")
    select_pool.check_name(algo)
    args = (input, *args)
    _check_with_torch(function, args, options)
    chosen = _rehearse(function, args, options, algo)
    rows = tuple(
        Row(entry.name, backend, reason, None, None, None)
        for entry in select_pool.ENTRIES
        for reason in [_reason(function, args, options, entry.name)]
        for backend in [entry.backend_on(input.device)]
    )
    if algo != AUTO:
        why = f"asked for by algo={algo!r}"
    else:
        why = "none of ours applies" if chosen == ATEN else "ours applies"
    directions = _DIRECTIONS if input.is_floating_point() else _DIRECTIONS[:1]
    # What follows the input is given back as it came, but for further tensors.
    shown = [str(a) for a in args[1:] if not isinstance(a, Tensor)]
    shown += [f"{k}={v}" for k, v in options.items() if not isinstance(v, Tensor)]
    device = gpu.device_key(input.device)
    problem = (
        f"{function} {str(input.dtype).removeprefix('torch.')} {device}"
        f" x {'x'.join(map(str, input.shape))} ({', '.join(shown)})"
    )
    if input.layout == torch.strided and suggests_channels_last(input):
        problem += " channels_last"
    settings = f"instruction set {_C.cpu_isa()}, {torch.get_num_threads()} threads"
    if gpu.is_cuda(device) and gpu.refusal(device) is None:
        settings = gpu.describe(device).identity
    choices = tuple(Choice(direction, chosen, why, rows) for direction in directions)
    return Explanation(problem, settings, choices)
