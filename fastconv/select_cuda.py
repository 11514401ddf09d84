"""The CUDA part of the registry: kernel instances as candidates, and the choice among those that
are trusted on the device.

Candidates are named "<algorithm>/<instance>". Naming an algorithm alone takes its cheapest
instance that applies and has not failed on this device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fastconv import _C, cost_aten_cuda, gpu, select_triton, trust
from fastconv.problem import NATIVE_DIRECTIONS, NATIVE_DTYPES, ConvSpec

if TYPE_CHECKING:
    from fastconv.select import Candidate

ALGORITHMS: tuple[str, ...] = tuple(_C.cuda_algorithms())
_TAKE_STATISTICS = frozenset(_C.cuda_stats_instances())
# `aten` is kept unless ours is predicted to take less than this fraction of its time: neither cost
# model was measured on a GPU.
MARGIN = 0.5


def _refused_alike(spec: ConvSpec, reason: str) -> list[Candidate]:
    from fastconv.select import Candidate

    return [Candidate(name, "cuda", reason, float("inf"), 0) for name in ALGORITHMS]


def candidates(spec: ConvSpec, statistics: bool = False) -> list[Candidate]:
    """Every instance for the problem's direction, dtype and layout; of an algorithm that has none
    that applies, one entry with the reason; Triton's, and PyTorch's last.

    statistics: of y's channels are wanted, too: with the workspace for them, or the pass over y
    that takes them behind a kernel that does not.
    """
    entries = _candidates(spec, statistics)
    if not statistics or spec.empty:
        return entries
    seconds = cost_aten_cuda.statistics_pass(spec)
    return [c if takes_statistics(c.name) else replace(c, cost=c.cost + seconds) for c in entries]


def _candidates(spec: ConvSpec, statistics: bool) -> list[Candidate]:
    from fastconv.select import ATEN, Candidate

    seconds = cost_aten_cuda.seconds(spec) if not spec.empty else 0.0
    tail = [
        *select_triton.candidates(spec, statistics=statistics),
        Candidate(ATEN, ATEN, None, seconds, None),
    ]
    refused = gpu.refusal(spec.device)
    dtype = NATIVE_DTYPES.get(spec.dtype)
    if refused is None and dtype is None:
        refused = (
            "dtype must be float32, float64, bfloat16 or float16, got"
            f" {str(spec.dtype).removeprefix('torch.')}"
        )
    if refused is not None:
        return [*_refused_alike(spec, refused), *tail]
    try:
        problem = spec.native
    except ValueError as error:
        return [*_refused_alike(spec, str(error)), *tail]
    device = gpu.describe(spec.device)
    layout = _C.Layout.NHWC if spec.channels_last and spec.rank > 1 else _C.Layout.NCHW
    if spec.empty:
        return [*(Candidate(name, "cuda", None, 0.0, 0) for name in ALGORITHMS), *tail]
    rows = _C.cuda_candidates(
        problem,
        dtype,
        NATIVE_DIRECTIONS[spec.direction],
        layout,
        getattr(_C.Products, spec.products),
        device.capability,
        device.sm_count,
        statistics,
    )
    entries: list[Candidate] = []
    for name in ALGORITHMS:
        own = [row for row in rows if row[0] == name]
        applicable = [row for row in own if not row[2]]
        if applicable:
            for _, instance, _, cost, workspace in applicable:
                full = f"{name}/{instance}"
                error = trust.error_of(spec.device, full)
                failed = f"failed its check on this device: {error}" if error else None
                entries.append(Candidate(full, "cuda", failed, cost, workspace))
        else:
            reason = own[0][2] if own else "no kernel for this direction, dtype and layout"
            entries.append(Candidate(name, "cuda", reason, float("inf"), 0))
    return [*entries, *tail]


def takes_statistics(name: str) -> bool:
    """Whether the kernel behind a candidate forms the statistics of y's channels along with y."""
    return name in _TAKE_STATISTICS or select_triton.is_ours(name)


def admitted(spec: ConvSpec, name: str) -> bool:
    """Whether this candidate of ours may run without being named; checks it where nothing is known
    of it."""
    ours = select_triton.is_ours(name)
    return trust.admit(spec.device, select_triton.trust_name(name, spec) if ours else name)


def free_bytes(device: str) -> int:
    """What an allocation on the device could get now, PyTorch's unused cache included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def cheapest(spec: ConvSpec, entries: list[Candidate]) -> str:
    """The cheapest trusted instance where it is clearly below `aten`, else `aten`.

    An instance of which nothing is known is checked here, on the device, before it is taken; one
    whose workspace does not fit into free memory is passed over. Triton's come after those of C++,
    which start without a compiler.
    """
    aten = entries[-1]
    ours = sorted(
        (c for c in entries[:-1] if c.reason is None), key=lambda c: (c.backend == "triton", c.cost)
    )
    for candidate in ours:
        if candidate.cost >= MARGIN * aten.cost:
            continue
        if candidate.workspace and candidate.workspace > free_bytes(spec.device):
            continue
        if admitted(spec, candidate.name):
            return candidate.name
    return aten.name
