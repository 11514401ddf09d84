"""Lets CPU tensors pass for tensors of a GPU whose kernels are emulated, so that the package's way
of a call on CUDA (choice, trust, precision, autograd) runs where there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from emulator.build_ops import build_ops

from fastconv import (
    gpu,
    select,
    select_cuda,
    select_triton,
    selftest,
    selftest_fused,
    selftest_inception,
    selftest_pool,
    trust,
)
from fastconv.ops import conv_run, fused_run, norm_run, pool_kernels

# Where the fused ops are held, by name.
FUSED = {
    fused_run: {
        "_conv_epilogue": "conv_epilogue_fprop",
        "_conv_epilogue_packed": "conv_epilogue_fprop.packed",
        "_conv_epilogue_into": "conv_epilogue_into",
        "_conv_epilogue_into_packed": "conv_epilogue_into.packed",
        "_conv_stats": "conv_stats_fprop",
        "_inception": "inception_fprop",
    },
}
H200 = gpu.Gpu("Pretend H200", 90, 132, 13000)


def take_down(patch: pytest.MonkeyPatch, names: Collection[str]) -> None:
    """Makes these instances of the self-test fault, and with them all that follows on the device:
    what a process sees whose CUDA context is gone."""
    launch, pool_launch, ones = selftest.launch, selftest_pool.launch, torch.ones
    lost = False

    def check() -> None:
        if lost:
            raise RuntimeError(
                "CUDA error: an illegal memory access was encountered\nSee the docs."
            )

    def faulty(launch):
        def run(instance, *args):
            nonlocal lost
            lost = lost or instance.name in names
            check()
            return launch(instance, *args)

        return run

    def other(*args, **kwargs):
        check()
        return ones(*args, **kwargs)

    patch.setattr(selftest, "launch", faulty(launch))
    patch.setattr(selftest_pool, "launch", faulty(pool_launch))
    patch.setattr(torch, "ones", other)


@contextmanager
def pretend_gpu(
    monkeypatch: pytest.MonkeyPatch | None = None, device: gpu.Gpu = H200
) -> Iterator[None]:
    """CPU tensors are on "cuda:0", a device of this description with plenty of memory.

    A test that patches more gives its own `monkeypatch`: two would undo each other's changes in the
    wrong order.
    """
    torch.ops.load_library(str(build_ops()))
    ops = torch.ops.fastconv_emulated
    with nullcontext(monkeypatch) if monkeypatch else pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "device_key", lambda d: "cuda:0" if d.type == "cpu" else str(d))
        patch.setattr(gpu, "describe", lambda key: device)
        patch.setattr(gpu, "refusal", lambda key: gpu.uncovered(device))
        patch.setattr(trust, "capturing", lambda: False)
        patch.setattr(select_triton, "machine_refusal", lambda *_: "Triton is not emulated")
        patch.setattr(select_cuda, "free_bytes", lambda key: 1 << 37)
        autotune = sys.modules["fastconv.autotune"]  # the package's attribute is the class
        patch.setattr(autotune, "_device_seconds", autotune._host_seconds)
        patch.setattr(conv_run, "_fprop", ops.conv_fprop.default)
        patch.setattr(conv_run, "_fprop_packed", ops.conv_fprop.packed)
        patch.setattr(conv_run, "_dgrad", ops.conv_dgrad.default)
        patch.setattr(conv_run, "_dgrad_packed", ops.conv_dgrad.packed)
        patch.setattr(conv_run, "_wgrad", ops.conv_wgrad.default)
        patch.setattr(conv_run, "_wgrad_packed", ops.conv_wgrad.packed)
        for module, names in FUSED.items():
            for name, op in names.items():
                base, _, overload = op.partition(".")
                patch.setattr(module, name, getattr(getattr(ops, base), overload or "default"))
        for bare in (pool_kernels.DIRECT, norm_run.NATIVE):
            for name in bare:
                patch.setitem(bare, name, getattr(ops, name).default._op)
        patch.setattr(selftest, "OPS", ops)
        patch.setattr(selftest_pool, "OPS", ops)
        patch.setattr(selftest_fused, "OPS", ops)
        patch.setattr(selftest_inception, "OPS", ops)
        patch.setattr(selftest, "torch_device", lambda key: torch.device("cpu"))
        select.forget()
        trust.reload()
        try:
            yield
        finally:
            select.forget()
    trust.reload()
    select.forget()
