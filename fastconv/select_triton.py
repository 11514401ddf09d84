"""The Triton part of the registry of convolutions: configurations as candidates.

Candidates are named "<algorithm>/<configuration>"; naming an algorithm alone takes the one of
lowest estimated cost that applies. They are for CUDA devices. On the CPU they run where a process
has Triton's interpreter, and only when they are named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fastconv import _triton, cost_triton, gpu
from fastconv._triton import conv, depthwise
from fastconv.problem import ConvSpec

if TYPE_CHECKING:
    from fastconv.select import Candidate

IMPLICIT_GEMM, DEPTHWISE = "triton_implicit_gemm", "triton_depthwise"
ALGORITHMS = (IMPLICIT_GEMM, DEPTHWISE)
CONFIGS: dict[str, dict[str, Any]] = {
    IMPLICIT_GEMM: cost_triton.IMPLICIT_GEMM,
    DEPTHWISE: cost_triton.DEPTHWISE,
}
NAMES: tuple[str, ...] = tuple(f"{a}/{name}" for a, known in CONFIGS.items() for name in known)
PREFIX = "triton_"
# What the interpreter stands for.
_INTERPRETED = gpu.Gpu("Triton's interpreter", 90, 132, 0)


def is_ours(name: str) -> bool:
    """Whether a name, of whatever form, is an algorithm or a configuration of these."""
    return name.startswith(PREFIX)


def pools_of(algo: str) -> str:
    """The pooling algorithm that goes with a convolution's: Triton's, or auto."""
    return "triton" if is_ours(algo) else "auto"


def config_of(name: str) -> Any:
    """The configuration behind "<algorithm>/<configuration>"."""
    algorithm, _, config = name.partition("/")
    return CONFIGS[algorithm][config]


def machine_refusal(device: str, dtype: torch.dtype) -> str | None:
    """Why no Triton kernel runs on the device in this dtype; None if they do."""
    return _triton.applicable(torch.device(device), dtype)


def _described(spec: ConvSpec) -> gpu.Gpu:
    return gpu.describe(spec.device) if gpu.is_cuda(spec.device) else _INTERPRETED


def config_refusal(algorithm: str, config: Any, spec: ConvSpec, capability: int = 90) -> str | None:
    """Why the kernels do not take this problem with this configuration; None if they do."""
    if spec.dtype not in conv.DTYPES:
        dtype = str(spec.dtype).removeprefix("torch.")
        return f"the Triton convolutions sum in float32 and have no {dtype}"
    if algorithm == DEPTHWISE:
        return depthwise.refusal(
            spec.input_size, spec.weight_size, spec.groups, spec.channels_last, config
        )
    products = precision_of(spec, None)
    reason = cost_triton.resources_refusal(config, spec.dtype, capability, products)
    if reason is not None:
        return reason
    return conv.refusal(
        spec.direction, spec.input_size, spec.weight_size, spec.stride, spec.padding,
        spec.dilation, spec.groups, spec.dtype, config,
    )  # fmt: skip


def precision_of(spec: ConvSpec, precision: str | None) -> str:
    """How float32 products are rounded: as the request says, else as PyTorch's switch."""
    if spec.dtype != torch.float32:
        return "ieee"
    return precision or spec.products


def at_precision(spec: ConvSpec, name: str, precision: str | None) -> str:
    """The name under which the kernels are launched: with what is not IEEE."""
    rounds = precision_of(spec, precision)
    return name if rounds == "ieee" or name.startswith(DEPTHWISE) else f"{name}+{rounds}"


def _cost(algorithm: str, config: Any, spec: ConvSpec, device: gpu.Gpu) -> float:
    capability, sm_count = device.capability, device.sm_count
    if algorithm == DEPTHWISE:
        return cost_triton.depthwise_seconds(spec, config, capability, sm_count)
    precision = precision_of(spec, None)
    return cost_triton.implicit_gemm_seconds(spec, config, precision, capability, sm_count)


def candidates(spec: ConvSpec, every: bool = False, statistics: bool = False) -> list[Candidate]:
    """The configurations that apply; of an algorithm that has none, one entry with the reason.

    every: also those that are not considered on this architecture, as where one is named.
    statistics: of y's channels are wanted, too.
    """
    from fastconv import trust
    from fastconv.select import Candidate

    def refused(name: str, reason: str) -> Candidate:
        return Candidate(name, "triton", reason, float("inf"), 0)

    reason = machine_refusal(spec.device, spec.dtype)
    if reason is None:
        try:
            _ = spec.native
        except ValueError as error:
            reason = str(error)
    if reason is not None:
        return [refused(name, reason) for name in (NAMES if every else ALGORITHMS)]
    if spec.empty:
        return [Candidate(name, "triton", None, 0.0, 0) for name in ALGORITHMS]
    device = _described(spec)
    considered = cost_triton.names_for(device.capability)
    entries: list[Candidate] = []
    for algorithm, configs in CONFIGS.items():
        own: list[Candidate] = []
        for name, config in configs.items():
            if not every and algorithm == IMPLICIT_GEMM and name not in considered:
                continue
            full = f"{algorithm}/{name}"
            reason = config_refusal(algorithm, config, spec, device.capability)
            if reason is None and gpu.is_cuda(spec.device):
                error = trust.error_of(spec.device, trust_name(full, spec))
                reason = f"failed its check on this device: {error}" if error else None
            if reason is not None:
                own.append(refused(full, reason))
                continue
            cost = _cost(algorithm, config, spec, device)
            scratch = cost_triton.workspace(spec, config)
            if statistics:
                scratch += cost_triton.moments_bytes(spec, config)
            own.append(Candidate(full, "triton", None, cost, scratch))
        applicable = [c for c in own if c.reason is None]
        if applicable or every:
            entries += own if every else applicable
        else:
            entries.append(refused(algorithm, str(own[0].reason)))
    return entries


def estimates(spec: ConvSpec, device: gpu.Gpu) -> dict[str, float]:
    """Estimated seconds on such a device of every configuration that takes the problem, also of
    those that are not considered there; whether Triton is at hand is not asked."""
    return {
        f"{algorithm}/{name}": _cost(algorithm, config, spec, device)
        for algorithm, configs in CONFIGS.items()
        for name, config in configs.items()
        if config_refusal(algorithm, config, spec, device.capability) is None
    }


def trust_name(name: str, spec: ConvSpec) -> str:
    """What a check of this configuration holds for: its kernel is compiled anew for each."""
    dtype = str(spec.dtype).removeprefix("torch.")
    layout = "nhwc" if spec.channels_last and spec.rank > 1 else "nchw"
    rounds = precision_of(spec, None)
    tail = f" {rounds}" if rounds != "ieee" else ""
    return f"{name} {spec.direction} {dtype} {layout}{tail}"
