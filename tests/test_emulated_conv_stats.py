"""Every CUDA instance of fprop that forms its channels' statistics along with y, in the emulation:
against float64 of the very y that it stored, which is the one of a launch without them."""

from __future__ import annotations

import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import random_operands
from emulated import Instance, instances, run_instance
from fused_reference import check_statistics
from test_emulated_conv import SEEDS
from torch import Tensor

INSTANCES = tuple(i for i in instances() if i.takes_stats)
CASES = (
    # Three tiles of 128 pixels and five of 64, the last begun; two tiles of 128 channels.
    conv_case("tiles", (3, 16, 9, 11), (136, 16, 1, 1)),
    conv_case("groups", (2, 16, 7, 5), (24, 8, 3, 3), 1, 1, 1, 2),
    conv_case("odd", (2, 3, 10, 7), (13, 3, 3, 2), (2, 1), (1, 0)),
    conv_case("one pixel", (1, 8, 3, 3), (11, 8, 3, 3)),
    conv_case("3d", (2, 8, 3, 5, 4), (10, 8, 2, 3, 1), 1, (1, 0, 0)),
)


def test_who_takes_statistics_along() -> None:
    """Every instance of the implicit GEMM's fprop; none that is no fprop."""
    assert all(i.direction == "fprop" and i.dtype != torch.float64 for i in INSTANCES)
    gemm = [i for i in instances() if i.algorithm == "im2col" and i.direction == "fprop"]
    assert gemm and all(i.takes_stats for i in gemm)


def run(instance: Instance, case: ConvCase, x: Tensor, w: Tensor, bias: Tensor | None, **options):
    """(y, mean, m2) and what was launched."""
    moments: list[Tensor] = []
    counted: dict[str, int] = {}
    y = run_instance(
        instance.algorithm, instance.name, case, "fprop", (x, w), bias, statistics=counted,
        moments=moments, **options,
    )  # fmt: skip
    return (y, *moments), counted


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_instance(instance: Instance) -> None:
    cases = [case for case in CASES if not instance.refusal(case)]
    assert len(cases) >= 2, f"{instance} applies to {[c.id for c in cases]} only"
    for number, case in enumerate(cases):
        x, w, bias = random_operands(case, "fprop", instance.dtype)
        for seed in SEEDS if number == 0 else (SEEDS[number % 3],):
            note = f"{instance} {case.id} {seed=}"
            (y, *moments), counted = run(instance, case, x, w, bias, seed=seed)
            check_statistics(y, tuple(moments), note)
            assert counted["launches"] == 2, note
            if seed == SEEDS[0]:
                first = (y, *moments)
                args = (instance.algorithm, instance.name, case, "fprop", (x, w), bias)
                assert torch.equal(y, run_instance(*args, seed=seed)), f"{note}: another y"
            elif number == 0:
                assert all(map(torch.equal, first, (y, *moments))), f"{note}: other bits"


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_operands_off_their_alignment(instance: Instance) -> None:
    """Where another tile does the work, and no bias is there."""
    case = next(case for case in CASES if not instance.refusal(case))
    x, w, _ = random_operands(case, "fprop", instance.dtype)
    results, _ = run(instance, case, x, w, None, placement="offset")
    check_statistics(results[0], results[1:], f"{instance}")


@pytest.mark.parametrize("instance", [i for i in INSTANCES if i.dtype == torch.float32], ids=str)
def test_far_from_zero(instance: Instance) -> None:
    """Mean 1e4 and deviation 1: a sum of squares less the square of a sum would leave nothing. One
    channel is constant."""
    case = next(case for case in CASES if not instance.refusal(case))
    x, w, _ = random_operands(case, "fprop", torch.float32)
    gain = x.abs().mean() * w.abs().sum(dim=tuple(range(1, w.dim()))).max()
    w = w / gain
    w[0] = 0
    bias = torch.full((case.weight_size[0],), 1e4)
    (y, mean, m2), _ = run(instance, case, x, w, bias)
    check_statistics(y, (mean, m2), f"{instance}")
    assert mean[0] == 1e4 and m2[0] == 0
    exact = y.double().transpose(0, 1).flatten(1).var(1, correction=0) * (y.numel() // y.shape[1])
    assert ((m2[1:] / exact[1:] - 1).abs() < 1e-3).all()


def test_what_is_not_finite_stays_so() -> None:
    """In its channel alone."""
    case = CASES[2]
    instance = next(i for i in INSTANCES if i.dtype == torch.float32 and not i.refusal(case))
    x, w, bias = random_operands(case, "fprop", torch.float32)
    bias = bias.clone()
    bias[5] = float("nan")
    (_, mean, m2), _ = run(instance, case, x, w, bias)
    assert mean.isnan().nonzero().flatten().tolist() == [5]
    assert m2.isnan().nonzero().flatten().tolist() == [5]
