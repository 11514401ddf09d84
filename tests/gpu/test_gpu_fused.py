"""The fused ops on the device: every instance of fprop with an epilogue, and the passes of batch
normalisation with activation."""

from __future__ import annotations

import pytest
import torch
from conv_runner import assert_close, hash_of, random_operands, random_reference
from gpu_runner import (
    DEVICE,
    ON_CPU_KERNELS,
    Instance,
    applicable_cases,
    device_ops,
    instances,
    laid_out,
    marks,
    on_device,
)
from torch import Tensor
from torch.nn import functional

from fastconv import selftest_fused

pytestmark = marks()
INSTANCES = tuple(i for i in instances() if i.direction == "fprop")
RESIDUALS = ("", "before", "after")
# In the order of csrc/common/epilogue.h; leaky ReLU with this slope.
SLOPE = 0.25
ACTIVATIONS = (
    lambda t: t,
    functional.relu,
    lambda t: functional.leaky_relu(t, SLOPE),
    functional.relu6,
    functional.silu,
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def random(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def test_there_are_instances() -> None:
    assert INSTANCES


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_epilogue(instance: Instance) -> None:
    """Each activation with a residual, into its own result and into a slice of a larger tensor."""
    if ON_CPU_KERNELS and instance.dtype.itemsize == 2:
        # A slice with a residual takes a second pass there; the device has no such exception.
        pytest.skip("rehearsal: the CPU rounds a slice twice in 16 bits")
    cases = applicable_cases(instance)
    cases = [c for c in cases if c.input_size[0] > 1 and c.weight_size[0] > 2] or cases
    cases.sort(key=lambda c: hash_of(c.id + instance.name))
    for number, act in enumerate(ACTIVATIONS):
        case = cases[number % min(len(cases), 2)]
        where = RESIDUALS[(number + hash_of(instance.name)) % 3]
        x, w, bias = random_operands(case, "fprop", instance.dtype)
        sums, magnitude = random_reference(case, "fprop", instance.dtype)
        r = random(case.output_size, instance.dtype, 1) if where else None
        before = sums + r.double() if where == "before" else sums
        expected = act(before) + (r.double() if where == "after" else 0)
        if r is not None:
            magnitude = magnitude + r.double().abs()
            r = on_device(r, instance)
        args = (on_device(x, instance), on_device(w, instance), on_device(bias, instance), r)
        rest = (*case.params, number, SLOPE, where == "after", instance.algo)
        y = device_ops().conv_epilogue_fprop(*args, *rest)
        note = f"{instance} activation {number} residual {where}"
        # No activation is steeper than 1.1.
        judged = (1.1 * magnitude, instance.tolerance, case, "fprop", note)
        assert_close(y.cpu(), expected, *judged)
        channels = case.weight_size[0]
        for first, more in ((8, 16), (1, 2)):
            size = (case.output_size[0], channels + more, *case.output_size[2:])
            whole = on_device(torch.full(size, 7.0, dtype=instance.dtype), instance)
            device_ops().conv_epilogue_into(*args, whole[:, first : first + channels], *rest)
            assert_close(whole[:, first : first + channels].cpu(), expected, *judged)
            rest_of_it = (whole[:, :first], whole[:, first + channels :])
            assert all((t == 7).all() for t in rest_of_it), f"{note}: wrote beside its slice"


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_statistics_along_with_the_convolution(instance: Instance) -> None:
    """By the instance itself or by a pass behind it: of the very y that it stored without them."""
    cases = [c for c in applicable_cases(instance) if c.input_size[0] > 1] or applicable_cases(
        instance
    )
    for case in sorted(cases, key=lambda c: hash_of(c.id + instance.name))[:2]:
        x, w, bias = random_operands(case, "fprop", instance.dtype)
        args = (on_device(x, instance), on_device(w, instance), on_device(bias, instance))
        rest = (*case.params, instance.algo)
        stats = device_ops().conv_stats_fprop(*args, *rest)
        y = device_ops().conv_fprop(*args, *rest)
        parts = tuple(t.cpu() for t in (y, *stats))
        assert selftest_fused.statistics_fit(*parts), f"{instance} {case.id}"
        again = device_ops().conv_stats_fprop(*args, *rest)
        assert all(map(torch.equal, again, stats)), "other bits the second time"


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 32, 14, 14), (3, 37, 7, 7), (2, 5, 150, 160)], ids=str)
def test_batch_norm(size: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
    """Forward and backward of the passes, as autograd through PyTorch's in float64."""
    ops = device_ops()
    y, residual, dz = (
        laid_out(random(size, dtype, seed).to(DEVICE), "NHWC" if channels_last else "NCHW")
        for seed in (1, 2, 3)
    )
    statistic = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (random((size[1],), statistic, seed).to(DEVICE) for seed in (4, 5))
    leaves = [t.double().cpu().requires_grad_() for t in (y, weight, bias, residual)]
    normalised = functional.batch_norm(leaves[0], None, None, leaves[1], leaves[2], True)
    z64 = functional.silu(normalised + leaves[3])
    wanted = torch.autograd.grad(z64, leaves, dz.double().cpu())
    count = y.numel() // size[1]
    mean, m2 = ops.norm_act_stats(y)
    rstd = (m2 / count + 1e-5).rsqrt()
    how, after = (y, mean, rstd, weight, bias, residual), (4, 0.0, False)
    z = ops.norm_act_fprop(*how, *after)
    sum_g, sum_gy = ops.norm_act_sums(dz, *how, *after)
    dy, dresidual = ops.norm_act_dgrad(dz, *how, sum_g, sum_gy, float(count), *after, True)
    found = {"z": z, "dy": dy, "dweight": sum_gy * rstd, "dbias": sum_g, "dresidual": dresidual}
    for (name, got), want in zip(found.items(), (z64, *wanted), strict=True):
        error = (got.double().cpu() - want).abs().max() / want.abs().max()
        assert error < TOLERANCE[dtype], f"{name}: relative error {error:.2g}"
    again = (*ops.norm_act_stats(y), *ops.norm_act_sums(dz, *how, *after))
    assert all(map(torch.equal, again, (mean, m2, sum_g, sum_gy))), "other bits the second time"


def test_statistics_far_from_zero() -> None:
    """Mean 1e4 and deviation 1 in fp32."""
    y = (random((16, 8, 33, 35), torch.float64, 1) + 1e4).float()
    mean, m2 = device_ops().norm_act_stats(y.to(DEVICE))
    exact = y.double().transpose(0, 1).flatten(1)
    assert (mean.double().cpu() - exact.mean(1)).abs().max() < 2e-3
    variance = m2.double().cpu() / exact.shape[1]
    assert (variance / exact.var(1, correction=0) - 1).abs().max() < 1e-3
