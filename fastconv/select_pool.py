"""The registry of pooling algorithms and the choice among them.

`direct`: our C++ kernels, on the CPU and on CUDA devices. `triton`: ours in Triton. `aten`:
PyTorch's own function or, where it has none, a composition of its operators (never counted as
ours). `auto` takes `direct` wherever it applies, else `aten`; the others run when they are named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv import gpu, select_pool_cuda
from fastconv.arguments import constant_in_graphs, foreign_dispatch
from fastconv.ops.conv import transforming
from fastconv.problem import NATIVE_DTYPES

AUTO, DIRECT, TRITON, ATEN = "auto", "direct", "triton", "aten"

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_is_compiling = torch.compiler.is_compiling
_jit_tracing = torch._C._get_tracing_state


@dataclass(frozen=True)
class Kind:
    """What a family of public functions asks of the kernels.

    ops: the bare ops of its forward and backward pass. integers: whether 8 to 64-bit integers are
    taken (on the CPU). triton: whether there are Triton kernels.
    """

    name: str
    ops: tuple[str, ...]
    integers: bool = False
    triton: bool = True


KINDS = {
    kind.name: kind
    for kind in (
        Kind("max_pool", ("max_pool_fprop", "max_pool_dgrad"), integers=True),
        Kind("avg_pool", ("sum_pool_fprop", "sum_pool_dgrad")),
        Kind("lp_pool", ("lp_pool_fprop", "lp_pool_dgrad")),
        Kind("l2_pool", ("lp_pool_fprop", "lp_pool_dgrad")),
        Kind("stochastic_pool", ("sample_pool_fprop", "max_pool_dgrad")),
        Kind("expectation_pool", ("expectation_pool_fprop", "sum_pool_dgrad")),
        Kind("adaptive_max_pool", ("max_pool_fprop", "max_pool_dgrad")),
        Kind("adaptive_avg_pool", ("sum_pool_fprop", "sum_pool_dgrad")),
        Kind("max_unpool", ("max_unpool_fprop", "max_pool_at"), triton=False),
    )
}


def _functions() -> dict[str, str]:
    families = {
        "max_pool": ("max_pool", (1, 2, 3)),
        "avg_pool": ("avg_pool", (1, 2, 3)),
        "sum_pool": ("avg_pool", (2,)),
        "lp_pool": ("lp_pool", (1, 2, 3)),
        "l2_pool": ("l2_pool", (2,)),
        "stochastic_pool": ("stochastic_pool", (1, 2, 3)),
        "adaptive_max_pool": ("adaptive_max_pool", (1, 2, 3)),
        "adaptive_avg_pool": ("adaptive_avg_pool", (1, 2, 3)),
        "max_unpool": ("max_unpool", (1, 2, 3)),
    }
    ranked = {f"{f}{rank}d": kind for f, (kind, ranks) in families.items() for rank in ranks}
    return {**ranked, "maxout": "max_pool", "l2_pool_features": "l2_pool"}


# Every public pooling and its kind.
FUNCTIONS: dict[str, str] = _functions()


def has_triton_kernels(layer: str) -> bool:
    """Whether the layers of this name, e.g. "MaxPool2d", have Triton kernels."""
    return not layer.startswith("MaxUnpool")


class PoolCall(NamedTuple):
    """One call of a public function, as far as the choice depends on it.

    function: its name, for messages. integers: whether PyTorch's function takes them.
    """

    kind: Kind
    function: str
    rank: int
    input: Any
    integers: bool = False


# torch.compile takes the answer as it stands: it cannot look into the search for a package.
@constant_in_graphs
def _triton_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    from fastconv import _triton

    return _triton.applicable(device, dtype)


def _dtype_refusal(call: PoolCall, integers: bool) -> str | None:
    dtype = call.input.dtype
    if dtype in NATIVE_DTYPES or (integers and dtype in INTEGERS):
        return None
    return (
        "dtype must be float32, float64, bfloat16 or float16, got"
        f" {str(dtype).removeprefix('torch.')}"
    )


def _direct_refusal(call: PoolCall, forced: bool) -> str | None:
    key = gpu.device_key(call.input.device)
    if key == "cpu":
        return _dtype_refusal(call, call.integers and call.kind.integers)
    reason = _dtype_refusal(call, False)
    return reason or select_pool_cuda.refusal(key, call.kind.ops, call.input.dtype, forced)


def _triton_refusal(call: PoolCall, forced: bool) -> str | None:
    if not call.kind.triton:
        return f"there is no Triton kernel for {call.kind.name}"
    return _triton_reason(call.input.device, call.input.dtype)


def _aten_refusal(call: PoolCall, forced: bool) -> str | None:
    return None


@dataclass(frozen=True)
class Entry:
    """One algorithm. applicable: None if it takes a call (its windows aside), else why not; with
    whether it was named."""

    name: str
    backends: tuple[str, ...]
    applicable: Callable[[PoolCall, bool], str | None]

    def backend_on(self, device: torch.device) -> str:
        """The backend that it uses for tensors of this device."""
        return device.type if device.type in self.backends else self.backends[0]


ENTRIES = (
    Entry(DIRECT, ("cpu", "cuda"), _direct_refusal),
    Entry(TRITON, ("triton",), _triton_refusal),
    Entry(ATEN, (ATEN,), _aten_refusal),
)
_BY_NAME = {entry.name: entry for entry in ENTRIES}


def names() -> tuple[str, ...]:
    """Every name that `algo=` of a pooling takes, besides "auto"."""
    return tuple(_BY_NAME)


def check_name(algo: Any) -> None:
    """Raises ValueError, listing the known names, unless `algo` is one of them."""
    if not isinstance(algo, str):
        raise ValueError(f"algo must be a string, got {algo!r}")
    if algo != AUTO and algo not in _BY_NAME:
        known = ", ".join((AUTO, *names()))
        raise ValueError(f"unknown pooling algorithm {algo!r}; expected one of: {known}")


def _tensor_refusal(call: PoolCall) -> str | None:
    """What none of our kernels takes, whatever the device."""
    x = call.input
    if not isinstance(x, Tensor):
        return f"expected a tensor, got {type(x).__name__}"
    if x.dim() not in (call.rank + 1, call.rank + 2):
        return f"expected {call.rank + 1} or {call.rank + 2} dimensions, got {x.dim()}"
    if x.layout != torch.strided or x.is_nested:
        return f"the tensor has layout {x.layout}; only dense strided tensors are supported"
    if _is_compiling():  # a recorded op has one backward and no forward-mode rule
        if transforming():
            return "functorch transforms inside a compiled function are computed by PyTorch"
        return None
    if _jit_tracing() is not None:
        return "torch.jit.trace records PyTorch's function"
    return foreign_dispatch(x)


def refusal(call: PoolCall, name: str, forced: bool = True) -> str | None:
    """Why the algorithm does not take the call; None if it does."""
    if name == ATEN:
        return None
    return _tensor_refusal(call) or _BY_NAME[name].applicable(call, forced)


def choose(call: PoolCall, algo: str) -> str:
    """The algorithm to run: `aten` also where the named one does not apply, so that PyTorch's own
    errors come first (`insist` then raises).

    Raises ValueError on an unknown name.
    """
    if algo == AUTO:
        return ATEN if refusal(call, DIRECT, False) is not None else DIRECT
    check_name(algo)
    return ATEN if refusal(call, algo) is not None else algo


def insist(call: PoolCall, algo: str) -> None:
    """Raises RuntimeError with the reason where a named algorithm was passed over."""
    if algo not in (AUTO, ATEN):
        reason = refusal(call, algo) or "the arguments are not ones that our kernels take"
        raise RuntimeError(f"{call.function}: algorithm {algo!r} does not apply: {reason}")
