"""The GPUs that CUDA kernels run on: what each one is, and whether this build covers it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from fastconv import _C


@dataclass(frozen=True)
class Gpu:
    """One device. capability: 10 major + minor, e.g. 90; driver: CUDA's number for its version."""

    name: str
    capability: int
    sm_count: int
    driver: int

    @property
    def identity(self) -> str:
        """What a measurement or a check on this device holds for."""
        return f"{self.name}, sm_{self.capability}, {self.sm_count} SMs, driver {self.driver}"


def device_key(device: torch.device) -> str:
    """The device as problems name it: "cpu", "cuda:0"; other types as they are."""
    kind = device.type
    return f"cuda:{device.index or 0}" if kind == "cuda" else kind


def is_cuda(key: str) -> bool:
    """Whether a key of `device_key` names a CUDA device."""
    return key.startswith("cuda")


def tf32_allowed() -> bool:
    """PyTorch's switch for float32 convolutions."""
    cudnn = torch.backends.cudnn
    try:
        return cudnn.allow_tf32
    except RuntimeError:  # the newer switch was used, which forbids reading the older one
        return cudnn.conv.fp32_precision == "tf32"


@dataclass(frozen=True)
class Rates:
    """What the cost models take a device to do, all of it per second; csrc/cuda/device_rates.h has
    the figures and where they are from."""

    bytes_per_s: float  # DRAM
    l2_bytes_per_s: float
    fma_flops: float
    fp64_flops: float
    tensor_16_flops: float  # through mma.sync
    tensor_tf32_flops: float
    warpgroup_16_flops: float  # through wgmma, TF32 at half the rate; 0 where there is none
    launch_s: float

    @property
    def best_16_flops(self) -> float:
        return max(self.tensor_16_flops, self.warpgroup_16_flops)

    @property
    def best_tf32_flops(self) -> float:
        return max(self.tensor_tf32_flops, self.warpgroup_16_flops / 2)


@cache
def rates(capability: int, sm_count: int) -> Rates:
    """Those of such a device."""
    return Rates(**_C.cuda_rates(capability, sm_count))


@cache
def describe(key: str) -> Gpu:
    """The device behind a key of `device_key`."""
    properties = torch.cuda.get_device_properties(torch.device(key))
    return Gpu(
        properties.name,
        10 * properties.major + properties.minor,
        properties.multi_processor_count,
        torch._C._cuda_getDriverVersion(),
    )


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device had no memory left. Through the stable ABI that loses its type."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def loss(device: torch.device) -> str:
    """Why nothing runs on the device any more; empty while it works.

    After an illegal access or a failed launch every later call of the process fails, whoever makes
    it. An operation that has nothing to do with our kernels tells that from an error of one kernel.
    """
    why = ""
    for _ in range(2):  # an error that passes is told once, to whoever asks next
        try:
            torch.ones(2, device=device).sum().item()
        except RuntimeError as error:
            if out_of_memory(error):
                return ""
            why = str(error).partition("\n")[0]
        else:
            return ""
    return why


def covers(archs: list[str], major: int, minor: int) -> bool:
    """Whether cubins (``sm_80``) or PTX (``compute_80``) run on compute capability major.minor."""

    def runs(arch: str) -> bool:
        kind, _, number = arch.partition("_")
        digits = number.rstrip("af")
        built = (int(digits[:-1]), int(digits[-1]))
        if number.endswith("a"):  # architecture-specific code runs on that chip alone
            return built == (major, minor)
        if kind == "sm":
            return built[0] == major and built[1] <= minor
        return built <= (major, minor)

    return any(runs(arch) for arch in archs)


def built_architectures() -> list[str]:
    """E.g. ["sm_80", "sm_90a", "compute_90a"]; empty without CUDA kernels."""
    return [arch for arch in _C.build_archs.split(",") if arch]


@cache
def refusal(key: str) -> str | None:
    """Why none of our kernels runs on the device; None if they do."""
    if not is_cuda(key):
        return f"runs on the CPU and on CUDA devices, a tensor is on {key}"
    if not _C.build_cuda:
        return "fastconv was built without CUDA kernels (FASTCONV_CUDA=0, or auto found no nvcc)"
    return uncovered(describe(key))


def uncovered(device: Gpu) -> str | None:
    """Why no kernel of this build runs on such a device; None if one does."""
    capability, archs = device.capability, built_architectures()
    if not covers(archs, capability // 10, capability % 10):
        return (
            f"no built architecture ({', '.join(archs)}) covers the device"
            f" (sm_{capability}); rebuild with"
            f" TORCH_CUDA_ARCH_LIST={capability // 10}.{capability % 10}"
        )
    return None
