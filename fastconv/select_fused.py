"""Whether the passes of normalisation and epilogue may run where a tensor is."""

from __future__ import annotations

from torch import Tensor

from fastconv import gpu, select, trust
from fastconv.selftest_fused import NormInstance


def admitted(x: Tensor, channels_last: bool, algo: str) -> bool:
    """True on the CPU. On a GPU the passes are checked before they are first used, unless an
    algorithm was named; what failed there does not run."""
    device = gpu.device_key(x.device)
    if not gpu.is_cuda(device):
        return True
    name = NormInstance(x.dtype, channels_last).name
    if select.split_precision(algo)[0] != select.AUTO:
        return not trust.error_of(device, name)
    return trust.admit(device, name)
