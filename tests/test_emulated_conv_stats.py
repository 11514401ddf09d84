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


def depthwise(name: str, size: tuple[int, ...], taps: int, stride: int, times: int = 1) -> ConvCase:
    filters = (size[1] * times, 1, *[taps] * (len(size) - 2))
    return conv_case(name, size, filters, stride, taps // 2, 1, size[1])


WINDOWS = [(taps, stride) for taps in (3, 5, 7) for stride in (1, 2)]
DEPTHWISE = (
    # 16 channels more than a block has; a pixel to each, and so many planes in a block that a
    # channel comes twice; rows so long that a block has a part of them.
    *(depthwise(f"depthwise {r} {s}", (2, 144, 3, 5), r, s) for r, s in WINDOWS),
    *(depthwise(f"depthwise small {r} {s}", (3, 8, 2, 2), r, s) for r, s in WINDOWS),
    depthwise("depthwise rows", (1, 8, 9, 900), 3, 1),
    depthwise("multiplier", (2, 5, 11, 31), 3, 1, 2),
    depthwise("line", (2, 8, 21), 3, 1),
)
CASES = (
    # Three tiles of 128 pixels and five of 64, the last begun; two tiles of 128 channels.
    conv_case("tiles", (3, 16, 9, 11), (136, 16, 1, 1)),
    conv_case("groups", (2, 16, 7, 5), (24, 8, 3, 3), 1, 1, 1, 2),
    conv_case("odd", (2, 3, 10, 7), (13, 3, 3, 2), (2, 1), (1, 0)),
    conv_case("one pixel", (1, 8, 3, 3), (11, 8, 3, 3)),
    conv_case("3d", (2, 8, 3, 5, 4), (10, 8, 2, 3, 1), 1, (1, 0, 0)),
    # Tiles of Winograd's and of direct that the image cuts, in several blocks; 5 of 32 filters.
    conv_case("cut", (3, 3, 9, 18), (37, 3, 3, 3), 1, 1),
    conv_case("one pixel each", (3, 8, 3, 3), (8, 8, 3, 3)),
    # Tiles with a halo, cut by the image on both sides; two and three parts of the filters.
    conv_case("rows3", (3, 16, 9, 10), (136, 16, 3, 3), 1, 1),
    conv_case("rows5", (3, 16, 9, 10), (72, 16, 5, 3), 1, (2, 1)),
    conv_case("rows5 odd", (2, 8, 6, 9), (11, 8, 5, 3)),
    # Of rows: tiles that the image cuts, two parts of the filters, by vectors.
    conv_case("few channels", (2, 3, 19, 35), (72, 3, 5, 5), 2, 2),
    *DEPTHWISE,
)


def test_who_takes_statistics_along() -> None:
    """Every instance of fprop of these; not the plain twin's, whose blocks have parts of all
    channels, nor those whose tiles two blocks store."""
    assert all(i.direction == "fprop" for i in INSTANCES)
    winograd = ("winograd_f2x2_3x3", "winograd_f4x4_3x3")
    taking = ("im2col", "direct", "depthwise", *winograd, "tma", "halo", "rows")
    assert set(taking) <= {i.algorithm for i in INSTANCES}
    for i in instances():
        if i.direction == "fprop" and i.algorithm in (*taking, "direct_plain"):
            whole = i.algorithm in taking and "_split" not in i.name
            assert i.takes_stats == whole, i


def run(instance: Instance, case: ConvCase, x: Tensor, w: Tensor, bias: Tensor | None, **options):
    """(y, mean, m2) and what was launched."""
    moments: list[Tensor] = []
    counted: dict[str, int] = {}
    y = run_instance(
        instance.algorithm, instance.name, case, "fprop", (x, w), bias, statistics=counted,
        moments=moments, **options,
    )  # fmt: skip
    return (y, *moments), counted


def cases_of(instance: Instance) -> list[ConvCase]:
    """Those with what is special to its kernel; the first runs in every order."""
    names = {
        "rows": ("few channels", "cut", "odd"),
        "direct": ("groups", "cut", "3d", "one pixel each"),
        "depthwise": [case.id for case in DEPTHWISE],
        "winograd_f2x2_3x3": ("cut", "groups", "one pixel each"),
        "winograd_f4x4_3x3": ("cut", "groups", "one pixel each"),
        "halo": ("rows3", "rows5", "one pixel", "rows5 odd"),
    }.get(instance.algorithm, ("tiles", "groups", "odd", "one pixel", "3d"))
    if instance.name.endswith("_any"):
        names = ("multiplier", "depthwise 5 2", "line", "depthwise small 3 1")
    elif "nonfused" in instance.name:
        names = ("cut", "groups")
    cases = [c for n in names for c in CASES if c.id == n and not instance.refusal(c)]
    assert len(cases) >= 2, f"{instance} applies to {[c.id for c in cases]} only"
    return cases


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_instance(instance: Instance) -> None:
    for number, case in enumerate(cases_of(instance)):
        x, w, bias = random_operands(case, "fprop", instance.dtype)
        for seed in SEEDS if number == 0 else (SEEDS[number % 3],):
            note = f"{instance} {case.id} {seed=}"
            (y, *moments), counted = run(instance, case, x, w, bias, seed=seed)
            check_statistics(y, tuple(moments), note)
            if seed == SEEDS[0]:
                first = (y, *moments)
                alone: dict[str, int] = {}
                args = (instance.algorithm, instance.name, case, "fprop", (x, w), bias)
                without = run_instance(*args, seed=seed, statistics=alone)
                assert torch.equal(y, without), f"{note}: another y"
                assert counted["launches"] == alone["launches"] + 1, note
            elif number == 0:
                assert all(map(torch.equal, first, (y, *moments))), f"{note}: other bits"


@pytest.mark.parametrize(
    "instance", [i for i in INSTANCES if "winograd" not in i.algorithm], ids=str
)
def test_operands_off_their_alignment(instance: Instance) -> None:
    """Where another tile does the work, and no bias is there."""
    case = cases_of(instance)[0]
    x, w, _ = random_operands(case, "fprop", instance.dtype)
    results, _ = run(instance, case, x, w, None, placement="offset")
    check_statistics(results[0], results[1:], f"{instance}")


@pytest.mark.parametrize("instance", [i for i in INSTANCES if i.dtype == torch.float32], ids=str)
def test_far_from_zero(instance: Instance) -> None:
    """Mean 1e4 and deviation 1: a sum of squares less the square of a sum would leave nothing. One
    channel is constant."""
    case = cases_of(instance)[0]
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
