"""The registry of algorithms and the choice among them.

An entry is one of our CPU algorithms (`_C.cpu_algorithms()`), one of our CUDA kernel instances
(`select_cuda`), a configuration of a Triton kernel (`select_triton`), `aten` (PyTorch's own
convolution, never counted as ours), or the alias `winograd` (the cheaper of the Winograd tiles that
apply). `auto` takes the measured winner when autotuning has recorded one, else the lowest estimated
cost.

A request may carry a precision for float32 on CUDA: "<algo>+ieee", "+tf32" or "+tf32x3". The name
that comes out has one for `aten`, which otherwise follows PyTorch's own switch, and for Triton
kernels that are not to compute in IEEE arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch

from fastconv import _C, cost_aten, gpu, select_cuda, select_triton
from fastconv.problem import NATIVE_DIRECTIONS, NATIVE_DTYPES, ConvSpec

ATEN = "aten"
AUTO = "auto"
WINOGRAD = "winograd"
# A suffix for gradients: "<name> where it applies to this direction, else auto".
OR_AUTO = "|auto"

# `aten` is kept unless ours is predicted to be this much faster: the models are off by about that.
MARGIN = 0.93
# The same where our cost models were never measured.
UNMEASURED_MARGIN = 0.5
MEASURED_ISAS = ("avx2", "wide")


@dataclass(frozen=True)
class Candidate:
    """One algorithm against one problem.

    reason: None if it applies, else why not. cost: estimated seconds. workspace: bytes of scratch
    (for `aten` unknown, None).
    """

    name: str
    backend: str
    reason: str | None
    cost: float
    workspace: int | None


_CPU_NAMES: tuple[str, ...] = tuple(_C.cpu_algorithms())
_decisions: dict[Any, str] = {}
_caches: list[dict[Any, Any]] = [_decisions]
D = TypeVar("D", bound=dict[Any, Any])


def _nothing_recorded(spec: ConvSpec, threads: int, isa: str) -> str | None:
    return None


# Set by fastconv.autotune_cache: the recorded winner of a problem, or None.
recorded: Callable[[ConvSpec, int, str], str | None] = _nothing_recorded
# Set while autotuning is on: measures the candidates on real tensors and returns the winner.
measure: Callable[..., str | None] | None = None


# Grows with every `forget`, for what remembers decisions elsewhere.
generation = 0


def forget() -> None:
    """Drops every remembered decision: something that they rest on has changed."""
    global generation
    generation += 1
    for cache in _caches:
        cache.clear()


def forget_with(cache: D) -> D:
    """Registers a dictionary of decisions to be cleared by `forget`; returns it."""
    _caches.append(cache)
    return cache


def _wrap_set_cpu_isa(native: Callable[[str], None]) -> Callable[[str], None]:
    def set_cpu_isa(name: str) -> None:
        native(name)
        forget()

    return set_cpu_isa


# Costs differ between instruction sets, and nothing else would tell the remembered decisions.
_C.set_cpu_isa = _wrap_set_cpu_isa(_C.set_cpu_isa)


def names(device: str = "cpu") -> tuple[str, ...]:
    """Every name that `algo=` takes on this device, besides "auto" and single CUDA instances."""
    ours: tuple[str, ...] = _CPU_NAMES if device == "cpu" else ()
    if gpu.is_cuda(device):
        ours = (*select_cuda.ALGORITHMS, *select_triton.ALGORITHMS)
    alias = (WINOGRAD,) if any(name.startswith(WINOGRAD) for name in ours) else ()
    return (*ours, *alias, ATEN)


_KNOWN = frozenset((AUTO, *names("cpu"), *names("cuda")))
_INSTANCES = frozenset(
    (*(f"{algorithm}/{name}" for algorithm, name, *_ in _C.cuda_instances()), *select_triton.NAMES)
)


def check_name(algo: str, device: str = "cpu") -> None:
    """Raises ValueError, listing the known names, unless `algo` is one of them, of any device."""
    if algo not in _KNOWN and algo not in _INSTANCES:
        known = ", ".join((AUTO, *names(device)))
        raise ValueError(f"unknown algorithm {algo!r}; expected one of: {known}")


def with_precision(algo: str, precision: str | None) -> str:
    """The request for an algorithm at a precision; see the module's notes."""
    return algo if precision is None else f"{algo}+{precision}"


def split_precision(request: str) -> tuple[str, str | None]:
    """(algo, precision) of a request, without `OR_AUTO`."""
    algo, plus, precision = request.removesuffix(OR_AUTO).partition("+")
    return algo, precision if plus else None


def products_for(device: str, dtype: torch.dtype, request: str) -> str:
    """How a problem on this device may be multiplied (`ConvSpec.products`): PyTorch's switch for
    convolutions decides unless the request has a precision of its own."""
    if dtype != torch.float32 or not gpu.is_cuda(device):
        return "ieee"
    precision = split_precision(request)[1]
    if precision is None:
        return "tf32" if gpu.tf32_allowed() else "ieee"
    return precision


def _native_candidate(name: str, spec: ConvSpec, threads: int) -> Candidate:
    def refused(reason: str) -> Candidate:
        return Candidate(name, "cpu", reason, float("inf"), 0)

    if spec.device != "cpu":
        return refused(f"runs on the CPU, the tensors are on {spec.device}")
    dtype = NATIVE_DTYPES.get(spec.dtype)
    if dtype is None:
        return refused(
            "dtype must be float32, float64, bfloat16 or float16, got"
            f" {str(spec.dtype).removeprefix('torch.')}"
        )
    try:
        problem = spec.native
    except ValueError as error:
        return refused(str(error))
    direction = NATIVE_DIRECTIONS[spec.direction]
    if spec.empty:  # nothing runs, but whether the algorithm takes the geometry still counts
        return Candidate(name, "cpu", None, 0.0, 0)
    reason = _C.cpu_applicable(name, problem, dtype, direction)
    if reason:
        return refused(reason)
    return Candidate(
        name,
        "cpu",
        None,
        _C.cpu_cost(name, problem, dtype, direction, threads),
        _C.cpu_workspace(name, problem, dtype, direction, threads),
    )


def candidates(spec: ConvSpec, statistics: bool = False) -> list[Candidate]:
    """Every entry of the registry against the problem, in the registry's order, `aten` last.

    statistics: of y's channels are wanted with it, on a GPU; on the CPU every entry needs the same
    pass for them.
    """
    if gpu.is_cuda(spec.device):
        return select_cuda.candidates(spec, statistics)
    threads = torch.get_num_threads()
    ours = [_native_candidate(name, spec, threads) for name in _CPU_NAMES]
    return [*ours, Candidate(ATEN, ATEN, None, cost_aten.seconds(spec, threads), None)]


def cheapest(entries: list[Candidate], isa: str) -> str:
    """The name of the CPU candidate to run when nothing has been measured."""
    aten = entries[-1]
    ours = min(
        (c for c in entries if c.reason is None and c.name != ATEN),
        key=lambda c: c.cost,
        default=aten,
    )
    margin = MARGIN if isa in MEASURED_ISAS else UNMEASURED_MARGIN
    return ours.name if ours.cost < margin * aten.cost else ATEN


def _estimated(spec: ConvSpec, isa: str) -> str:
    if spec.empty:
        return ATEN
    entries = candidates(spec)
    if gpu.is_cuda(spec.device):
        return select_cuda.cheapest(spec, entries)
    return cheapest(entries, isa)


def choose(spec: ConvSpec, tensors: tuple[Any, ...] | None = None) -> str:
    """The algorithm that `auto` runs.

    While autotuning is on and `tensors` (the direction's operands: x, w, bias for fprop; dy, w for
    dgrad; dy, x for wgrad) are given, a problem without a recorded winner is measured first.
    """
    threads = torch.get_num_threads()
    isa = _C.cpu_isa()
    key = (spec, threads)
    if measure is not None and tensors is not None and recorded(spec, threads, isa) is None:
        winner = measure(spec, tensors)
        if winner is not None:
            return winner
    found = _decisions.get(key)
    if found is None:
        found = recorded(spec, threads, isa)
        if found is None:
            found = _estimated(spec, isa)
        # What a graph capture kept from being checked is decided anew outside of it.
        if not (gpu.is_cuda(spec.device) and select_cuda.trust.capturing()):
            _decisions[key] = found
    return found


def choose_with_statistics(spec: ConvSpec, request: str, tensors: tuple[Any, ...] | None) -> str:
    """`resolve` for a convolution that trains a batch normalisation: ours mostly takes its
    statistics while storing."""
    algo = split_precision(request)[0]
    if not gpu.is_cuda(spec.device) or spec.empty or algo == ATEN or request.endswith(OR_AUTO):
        return choose_with_epilogue(spec, request, tensors)
    if algo != AUTO:
        return _precise(spec, _forced(spec, algo, statistics=True), request)
    if not settled(spec):
        return choose_with_epilogue(spec, request, tensors)
    if recorded(spec, torch.get_num_threads(), _C.cpu_isa()) is not None:
        return resolve(spec, request, tensors)
    name = select_cuda.cheapest(spec, candidates(spec, statistics=True))
    return _precise(spec, name, request)


# A pass over the result on the CPU, which `aten` needs for an epilogue: seconds, and per byte.
_PASS, _PASS_BYTE = 8e-6, 2 / 80e9


def choose_with_epilogue(spec: ConvSpec, request: str, tensors: tuple[Any, ...] | None) -> str:
    """`resolve` for a convolution that an epilogue follows: ours applies it while storing."""
    name = resolve(spec, request, tensors)
    threads, isa = torch.get_num_threads(), _C.cpu_isa()
    if (
        (name, request, spec.device) != (ATEN, AUTO, "cpu")
        or spec.empty
        or measure is not None
        or recorded(spec, threads, isa) is not None
    ):
        return name
    *ours, aten = candidates(spec)
    seconds = aten.cost + _PASS + _PASS_BYTE * prod(spec.output_size) * spec.dtype.itemsize
    return cheapest([*ours, replace(aten, cost=seconds)], isa)


def settled(spec: ConvSpec) -> bool:
    """False while `auto` would first measure this problem."""
    if measure is None:
        return True
    return recorded(spec, torch.get_num_threads(), _C.cpu_isa()) is not None


def resolve(spec: ConvSpec, algo: str, tensors: tuple[Any, ...] | None = None) -> str:
    """The concrete algorithm behind `algo`.

    Raises ValueError on an unknown name, RuntimeError with the reason when the named algorithm
    does not apply to the problem.
    """
    name, precision = split_precision(algo)
    bare = algo
    if precision is not None:
        bare = name + (OR_AUTO if algo.endswith(OR_AUTO) else "")
    return _precise(spec, _resolved(spec, bare, tensors), algo)


def _precise(spec: ConvSpec, found: str, request: str) -> str:
    """The name with the precision that it is to compute in, where it takes one."""
    precision = split_precision(request)[1]
    if select_triton.is_ours(found):
        return select_triton.at_precision(spec, found, precision)
    if precision is None:
        return found
    exact = found == ATEN and gpu.is_cuda(spec.device) and spec.dtype == torch.float32
    return with_precision(found, precision) if exact else found


def _resolved(spec: ConvSpec, algo: str, tensors: tuple[Any, ...] | None) -> str:
    """`resolve` of a request without a precision, to a name without one."""
    if algo == AUTO:
        return choose(spec, tensors)
    if algo == ATEN or spec.empty:  # with nothing to compute, PyTorch's rules for shapes hold
        return ATEN
    key = (spec, torch.get_num_threads(), algo)
    if algo.endswith(OR_AUTO):
        found = _decisions.get(key)
        if found is None:
            try:
                found = _decisions[key] = _resolved(spec, algo.removesuffix(OR_AUTO), None)
            except RuntimeError:
                return choose(spec, tensors)
        return found
    found = _decisions.get(key)
    if found is None:
        found = _decisions[key] = _forced(spec, algo)
    return found


def _forced(spec: ConvSpec, algo: str, statistics: bool = False) -> str:
    check_name(algo, spec.device)

    def meant(name: str) -> bool:
        if algo == WINOGRAD:
            return name.startswith(WINOGRAD)
        return name == algo or name.startswith(f"{algo}/")

    ours = select_triton.is_ours(algo)
    if ours:
        every = select_triton.candidates(spec, "/" in algo, statistics)
    else:
        every = candidates(spec, statistics)
    entries = [c for c in every if meant(c.name)]
    if not entries:
        known = f"it is no algorithm or kernel for {spec.direction} on {spec.device}"
        raise RuntimeError(f"algorithm {algo!r} does not apply to {spec}: {known}")
    best = min(entries, key=lambda c: (c.reason is not None, c.cost))
    if best.reason is not None:
        raise RuntimeError(f"algorithm {algo!r} does not apply to {spec}: {best.reason}")
    return best.name
