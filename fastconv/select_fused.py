"""Who runs the passes of normalisation and epilogue where a tensor is: our C++, or Triton.

Where a Triton algorithm is named, Triton does; else C++, and Triton where C++ has no kernel for the
device or one of them failed there.
"""

from __future__ import annotations

from torch import Tensor

from fastconv import gpu, select, select_triton, trust
from fastconv.ops.conv_call import Call
from fastconv.ops.norm_run import DIRECT, TRITON
from fastconv.selftest_fused import NormInstance


def refusal(passes: str, x: Tensor, channels_last: bool, named: bool) -> str | None:
    """Why these passes do not run in x's dtype and on its device; None if they do.

    On a GPU the passes are checked before they are first used, unless an algorithm was named; what
    failed there does not run.
    """
    device = gpu.device_key(x.device)
    on_gpu = gpu.is_cuda(device)
    if passes == TRITON:
        reason = select_triton.machine_refusal(device, x.dtype)
    else:
        reason = gpu.refusal(device) if on_gpu else None
    if reason is not None or not on_gpu:
        return reason
    name = NormInstance(x.dtype, channels_last, passes).name
    if named or trust.admit(device, name):
        error = trust.error_of(device, name)
        return f"{name} failed its check on this device: {error}" if error else None
    return trust.error_of(device, name) or f"{name} could not be checked now"


def passes_for(x: Tensor, channels_last: bool, request: str) -> str | None:
    """DIRECT or TRITON; None where neither may run. request: the convolution's algorithm."""
    algo = select.split_precision(request)[0]
    ours = select_triton.is_ours(algo)
    if not ours and not gpu.is_cuda(gpu.device_key(x.device)):
        return DIRECT
    for passes in (TRITON, DIRECT) if ours else (DIRECT, TRITON):
        if refusal(passes, x, channels_last, algo != select.AUTO) is None:
            return passes
    return None


def admitted(call: Call, x: Tensor) -> bool:
    """Whether the passes that a fused operation needs besides its convolution of x may run; the
    call then says whose."""
    if call.passes is None:
        call.passes = passes_for(x, call.channels_last, call.algo)
    return call.passes is not None
