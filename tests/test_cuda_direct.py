"""What no sweep over the shared problem list sees of the CUDA direct kernels, run by emulation:
borders of their tiles, residue classes of strided gradients, filters cut into several steps,
infinities beside the padding, sums that are the same bits every time, refusals and costs."""

from __future__ import annotations

import os
import random
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import (
    hash_of,
    integer_operands,
    integer_reference,
    random_operands,
    reference_conv,
)
from emulated import Instance, instances, run_instance
from huge_tensors import Huge, run_huge
from test_conv_nonfinite import PADDED, assert_same_nonfinite, padding_multiplied, spoiled
from torch import Tensor

ALL = tuple(i for i in instances() if i.algorithm in ("direct", "direct_plain"))
TILED = tuple(i for i in ALL if i.algorithm == "direct")


def of(dtype: torch.dtype, *directions: str, among: tuple[Instance, ...] = TILED) -> tuple:
    return tuple(i for i in among if i.dtype == dtype and i.direction in directions)


def by_instance(chosen: tuple[Instance, ...]):
    assert chosen
    return pytest.mark.parametrize("instance", chosen, ids=str)


def assert_exact(instance: Instance, case: ConvCase, seed: int = 1) -> None:
    """Small integers are summed exactly, whatever the order."""
    reason = instance.refusal(case)
    assert not reason, f"{instance} refuses {case.id}: {reason}"
    operands = tuple(t.to(instance.dtype) for t in integer_operands(case, instance.direction)[:2])
    bias = integer_operands(case, instance.direction)[2]
    bias = None if bias is None else bias.to(instance.dtype)
    result = run_instance(
        instance.algorithm, instance.name, case, instance.direction, operands, bias, seed
    )
    exact = integer_reference(case, instance.direction).to(instance.dtype)
    wrong = (result != exact).nonzero()
    assert not len(wrong), f"{case}: {len(wrong)} differ, first at {wrong[0].tolist()}"


# --- tiles -------------------------------------------------------------------------------------

BORDERS = (
    # One less, as many, one more than a tile, on each axis and in channels and filters.
    *(conv_case(f"columns_{q}", (1, 3, 2, q), (2, 3, 1, 3), padding=(0, 1)) for q in (31, 32, 33)),
    *(conv_case(f"columns_{q}", (1, 2, q), (2, 2, 3), padding=1) for q in (127, 128, 129, 257)),
    *(conv_case(f"rows_{p}", (1, 2, p, 9), (3, 2, 3, 3), padding=1) for p in (7, 8, 9, 15, 17)),
    *(conv_case(f"filters_{k}", (1, 2, 5, 5), (k, 2, 3, 3), padding=1) for k in (31, 33, 63, 65)),
    *(conv_case(f"channels_{c}", (1, c, 5, 5), (3, c, 3, 3), padding=1) for c in (31, 33, 65)),
    conv_case("filters_of_groups", (1, 10, 4, 4), (66, 5, 3, 3), padding=1, groups=2),
    conv_case("channels_of_groups", (1, 66, 4, 4), (10, 33, 3, 3), padding=1, groups=2),
    conv_case("aligned_groups", (2, 16, 6, 6), (32, 8, 3, 3), padding=1, groups=2),
    conv_case("tall", (1, 3, 300, 1), (4, 3, 5, 1), padding=(2, 0)),
    conv_case("planes", (2, 3, 5, 3, 4), (5, 3, 3, 1, 2), stride=(2, 1, 1), padding=(1, 0, 0)),
)


@pytest.mark.parametrize("case", BORDERS, ids=lambda c: c.id)
def test_tile_borders(case: ConvCase) -> None:
    for seed, instance in enumerate(of(torch.float32, "fprop", "dgrad", "wgrad")):
        assert_exact(instance, case, seed)


# Filters too large for one step of shared memory, or for the columns of one block of wgrad.
LARGE_FILTERS = (
    conv_case("columns_split", (1, 2, 390), (2, 2, 350), padding=20),
    conv_case("columns_split_stride3", (1, 3, 430), (2, 3, 340), stride=3, padding=7),
    conv_case("columns_split_dilated", (2, 1, 700), (3, 1, 170), dilation=4, padding=2),
    conv_case("rows_split", (1, 3, 20, 19), (2, 3, 19, 17), padding=(3, 5)),
    conv_case("rows_split_stride2", (1, 2, 25, 21), (3, 2, 20, 17), stride=2, padding=4),
    conv_case("taps_81", (1, 5, 12, 11), (4, 5, 9, 9), padding=4),
    conv_case("taps_of_volume", (1, 2, 3, 8, 9), (3, 2, 2, 7, 10), padding=(1, 2, 4)),
)


@pytest.mark.parametrize("case", LARGE_FILTERS, ids=lambda c: c.id)
def test_large_filters(case: ConvCase) -> None:
    for seed, instance in enumerate(of(torch.float32, "fprop", "dgrad", "wgrad")):
        assert_exact(instance, case, seed)
    for seed, instance in enumerate(of(torch.float64, "fprop")):
        assert_exact(instance, case, seed)


# --- residue classes ---------------------------------------------------------------------------


def random_case(seed: int) -> ConvCase:
    """Strides to 8 against dilations to 6: classes with few taps or none, uneven and empty."""
    rng = random.Random(seed)
    rank = rng.choice((1, 2, 2, 2, 3))
    groups = rng.choice((1, 1, 2))
    spatial, kernel, stride, padding, dilation = [], [], [], [], []
    for _ in range(rank):
        r, s, d = rng.randint(1, 5), rng.randint(1, 8), rng.randint(1, 6)
        p = rng.randint(0, 6)
        reach = d * (r - 1) + 1
        spatial.append(max(1, reach - 2 * p) + rng.randint(0, 11))
        kernel.append(r), stride.append(s), padding.append(p), dilation.append(d)
    return conv_case(
        f"random_{seed}",
        (rng.randint(1, 2), groups * rng.randint(1, 4), *spatial),
        (groups * rng.randint(1, 4), 0, *kernel),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        groups,
    )


@cache
def random_cases(count: int) -> tuple[ConvCase, ...]:
    cases = []
    for seed in range(count):
        case = random_case(seed)
        k, _, *kernel = case.weight_size
        weight = (k, case.input_size[1] // case.groups, *kernel)
        params = (case.stride, case.padding, case.dilation, case.groups)
        cases.append(conv_case(case.id, case.input_size, weight, *params))
    return tuple(cases)


@by_instance(of(torch.float32, "fprop", "dgrad", "wgrad"))
def test_strides_against_dilations(instance: Instance) -> None:
    for case in random_cases(30):
        assert_exact(instance, case, hash_of(case.id) % 5)


# --- infinities --------------------------------------------------------------------------------

NONFINITE = (
    conv_case("3x3", (2, 5, 9, 11), (6, 5, 3, 3), padding=1),
    conv_case("wide_pad", (1, 3, 4, 5), (4, 3, 3, 3), padding=4),
    conv_case("stride2", (1, 4, 8, 9), (5, 4, 3, 3), stride=2, padding=1),
    conv_case("dilated_groups", (1, 6, 9, 9), (8, 3, 3, 3), padding=3, dilation=3, groups=2),
    conv_case("depthwise", (1, 5, 7, 40), (5, 1, 5, 5), padding=2, groups=5),
    conv_case("1d", (1, 3, 50), (4, 3, 9), padding=6),
    conv_case("3d", (1, 2, 4, 5, 6), (3, 2, 3, 3, 3), padding=1),
)


@by_instance(of(torch.float32, "fprop", "dgrad", "wgrad", among=ALL))
@pytest.mark.parametrize("spoil", ["padded", "other"])
def test_nonfinite(instance: Instance, spoil: str) -> None:
    """Infinities and NaNs come out where, and only where, the definition puts them. The tiled
    weight gradient may also multiply the zeros of the padding with them."""
    direction = instance.direction
    which = PADDED[direction] if spoil == "padded" else 1 - PADDED[direction]
    for case in NONFINITE:
        operands = [t.float() for t in integer_operands(case, direction)[:2]]
        operands[which] = spoiled(operands[which], 3)
        expected, _ = reference_conv(case, direction, tuple(operands))
        result = run_instance(
            instance.algorithm, instance.name, case, direction, tuple(operands), None
        )
        allowed = None
        if spoil == "other" and direction == "wgrad" and instance.algorithm == "direct":
            allowed = padding_multiplied(case, direction, operands)
        assert_same_nonfinite(result, expected, allowed)


# --- repeatability -----------------------------------------------------------------------------


REPEATED = conv_case("long_sum", (2, 8, 12, 21), (8, 8, 3, 3), padding=1)


def bits(t: Tensor) -> Tensor:
    return t.view({8: torch.int64, 4: torch.int32, 2: torch.int16}[t.element_size()])


@by_instance(ALL)
def test_same_bits(instance: Instance) -> None:
    """Whatever the order of threads, the size of the GPU and the alignment of the operands, which
    lets channels-last kernels load vectors or not."""
    a, b, bias = random_operands(REPEATED, instance.direction, instance.dtype)
    args = (instance.algorithm, instance.name, REPEATED, instance.direction, (a, b), bias)
    first: dict[str, int] = {}
    want = run_instance(*args, 1, workers=1, placement="start", statistics=first)
    if instance.direction == "wgrad":
        assert first["launches"] == 2, "the sum is not split, so that this shows nothing"
    for seed, placement, sms in ((2, "offset", 7), (3, "end", 1000)):
        result = run_instance(*args, seed, placement=placement, sm_count=sms)
        assert torch.equal(bits(result), bits(want)), f"{seed=} {placement=} {sms=}"


# --- tensors beyond 2^31 elements --------------------------------------------------------------

# 3e9 elements of x, in more channels than a pack has, of which the 5 x 5 outputs of the strided
# convolution read a few.
SIZE, STEP = 24600, 6149
HUGE_X = conv_case("x", (1, 5, SIZE, SIZE), (2, 5, 3, 3), stride=STEP, padding=1)
CORNER = 4 * STEP - 1  # what the first tap of the last output reads


@by_instance(of(torch.bfloat16, "fprop", among=ALL))
def test_huge_input(instance: Instance) -> None:
    x = Huge(HUGE_X.input_size, {(0, c, CORNER + c // 2, CORNER + 2): c + 1 for c in (0, 3, 4)})
    w = Huge(
        HUGE_X.weight_size, {(k, c, c // 2, 2): k + c + 1 for k in range(2) for c in (0, 3, 4)}
    )
    places = [(0, 0, 4, 4), (0, 1, 4, 4), (0, 1, 3, 4), (0, 1, 4, 0)]
    assert run_huge(instance, HUGE_X, (x, w), places) == [42, 52, 0, 0]


@by_instance(of(torch.bfloat16, "wgrad", among=ALL))
def test_huge_input_of_wgrad(instance: Instance) -> None:
    x = Huge(HUGE_X.input_size, {(0, c, CORNER + c // 2, CORNER + 2): c + 1 for c in (0, 3, 4)})
    dy = Huge(HUGE_X.output_size, {(0, 0, 4, 4): 5, (0, 1, 4, 4): 7})
    places = [(0, 4, 2, 2), (1, 3, 1, 2), (1, 0, 0, 2), (1, 4, 1, 2)]
    assert run_huge(instance, HUGE_X, (dy, x), places) == [25, 28, 7, 0]


# What is 2^31 and a little: threads of the plain twin's first block come by there.
BEYOND = 2**31 + 5


@by_instance(of(torch.bfloat16, "fprop", among=ALL))
def test_huge_output(instance: Instance) -> None:
    case = conv_case("y", (1, 1, 36000, 36000), (2, 1, 3, 3), padding=1)
    y = Huge(case.output_size)
    plain = instance.algorithm == "direct_plain"
    place = y.at(BEYOND, instance.layout) if plain else (0, 1, 35999, 35999)
    x = Huge(case.input_size, {(0, 0, place[2] - 1, place[3]): 3})
    w = Huge(case.weight_size, {(place[1], 0, 0, 1): 5})
    assert run_huge(instance, case, (x, w), [place], 4) == [15]


@by_instance(of(torch.bfloat16, "dgrad", among=ALL))
def test_huge_input_gradient(instance: Instance) -> None:
    case = conv_case("dx", (1, 2, 36000, 36000), (1, 2, 3, 3), stride=2, padding=1)
    dx = Huge(case.input_size)
    plain = instance.algorithm == "direct_plain"
    place = dx.at(BEYOND, instance.layout) if plain else (0, 1, 35999, 35999)
    _, c, h, v = place
    # The tap that makes the moved coordinate even, or the last where that is odd.
    r, s = ((i + 1) % 2 or 2 for i in (h, v))
    dy = Huge(case.output_size, {(0, 0, (h + 1 - r) // 2, (v + 1 - s) // 2): 3})
    w = Huge(case.weight_size, {(0, c, r, s): 5})
    assert run_huge(instance, case, (dy, w), [place], 4) == [15]


@by_instance(of(torch.bfloat16, "wgrad", among=ALL))
def test_huge_output_gradient(instance: Instance) -> None:
    """The last chunk or slice of the sum alone."""
    case = conv_case("dy", (1, 1, 6144, 6144), (64, 1, 1, 1))
    dy = Huge(case.output_size, {(0, 63, 6143, 6143): 3})
    x = Huge(case.input_size, {(0, 0, 6143, 6143): 5})
    assert run_huge(instance, case, (dy, x), [(63, 0, 0, 0), (62, 0, 0, 0)], 2) == [15, 0]


# --- refusals, workspaces, costs ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "directions", "reason"),
    [
        (conv_case("stride9", (1, 1, 30), (1, 1, 3), stride=9), ("dgrad",), "stride 9 exceeds 8"),
        (
            conv_case("stride", (1, 1, 2**22), (1, 1, 3), stride=2**21),
            ("fprop", "wgrad"),
            "stride 2097152 exceeds 1048576",
        ),
        (
            conv_case("extent", (1, 1, 2**30), (1, 1, 3), stride=2),
            ("fprop", "dgrad", "wgrad"),
            "extent or dilated kernel of 1073741824 exceeds 536870912",
        ),
        (
            conv_case("weight", (1, 2**15, 3, 3), (2**13, 2**15, 3, 3)),
            ("fprop", "dgrad", "wgrad"),
            "8192 filters x 32768 channels x 9 taps in 1 groups exceeds 2^30",
        ),
        (
            conv_case("grid", (2**15, 2**12, 16, 16), (2**12, 1, 1, 1), groups=2**12, stride=8),
            ("dgrad",),
            "thread blocks, a grid has 2147483647",
        ),
    ],
    ids=lambda v: v.id if isinstance(v, ConvCase) else "",
)
def test_refusals_name_the_values(case: ConvCase, directions: tuple[str, ...], reason: str) -> None:
    for instance in of(torch.float32, *directions):
        assert reason in instance.refusal(case), f"{instance}: {instance.refusal(case)!r}"
    for instance in of(torch.float32, *directions, among=ALL):
        if instance.algorithm == "direct_plain":
            assert not instance.refusal(case)


# Of networks in use; none of them is run.
LAYERS = (
    conv_case("3x3_narrow", (32, 64, 56, 56), (64, 64, 3, 3), padding=1),
    conv_case("3x3_deep", (32, 512, 7, 7), (512, 512, 3, 3), padding=1),
    conv_case("stride2", (32, 128, 56, 56), (128, 128, 3, 3), stride=2, padding=1),
    conv_case("stem", (32, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    conv_case("stem_11x11", (32, 3, 224, 224), (64, 3, 11, 11), stride=4, padding=2),
    conv_case("pointwise", (32, 256, 56, 56), (64, 256, 1, 1)),
    conv_case("aspp", (4, 256, 65, 65), (256, 256, 3, 3), padding=18, dilation=18),
    conv_case("depthwise", (32, 192, 56, 56), (192, 1, 3, 3), padding=1, groups=192),
    conv_case("resnext", (32, 128, 56, 56), (128, 4, 3, 3), padding=1, groups=32),
    conv_case("3d", (4, 64, 16, 56, 56), (64, 64, 3, 3, 3), padding=1),
    conv_case("spectrum", (8, 1, 160000), (514, 1, 512), stride=8),
    conv_case("wavenet", (8, 64, 16000), (128, 64, 2), padding=512, dilation=512),
)


@pytest.mark.parametrize("case", LAYERS, ids=lambda c: c.id)
def test_layers_in_use(case: ConvCase) -> None:
    """Tiles take them all, faster than the plain twin is thought to, in bounded workspace."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for direction in ("fprop", "dgrad", "wgrad"):
            tiled = [i for i in of(dtype, direction) if not i.refusal(case)]
            assert {i.layout for i in tiled} == {"NCHW", "NHWC"}, f"{dtype} {direction}"
            plain = [i for i in of(dtype, direction, among=ALL) if i.algorithm == "direct_plain"]
            # Depthwise uses one of the 16 products that a wgrad tile forms.
            if case.groups < case.input_size[1] or direction != "wgrad":
                assert min(i.cost(case) for i in tiled) < min(i.cost(case) for i in plain)
            for i in (*tiled, *plain):
                limit = 64 << 20 if i.direction == "wgrad" else 0
                assert 0 <= i.workspace(case) <= limit, f"{i}: {i.workspace(case)} bytes"


def test_dense_layers_are_left_to_tensor_cores() -> None:
    """A 16-bit layer with many channels costs more here than multiplied by tensor cores."""
    case = LAYERS[1]
    for direction in ("fprop", "dgrad", "wgrad"):
        direct = min(i.cost(case) for i in of(torch.bfloat16, direction))
        others = [
            i
            for i in instances()
            if i.algorithm == "im2col" and i.dtype == torch.bfloat16 and i.direction == direction
        ]
        assert min(i.cost(case) for i in others) < direct


# --- division by launch-time constants ---------------------------------------------------------

DIVISIONS = r"""
#include "detail/fast_divmod.cuh"
#include <cstdio>

int main() {
  const uint64_t top = 0x7fffffff;
  uint64_t state = 1;
  const auto random = [&] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
  };
  const auto check = [](uint64_t d, uint64_t n) {
    uint32_t rest;
    const fastconv::cuda::FastDivmod by(static_cast<uint32_t>(d));
    const uint64_t quotient = by.divmod(static_cast<uint32_t>(n), rest);
    if (quotient == n / d && rest == n % d) return true;
    std::printf("%lu / %lu gave %lu rest %u\n", n, d, quotient, rest);
    return false;
  };
  for (int i = 0; i < 300000; ++i) {
    const uint64_t d = i < 4000 ? i + 1 : (random() >> random() % 31) + 1, n = random();
    if (d > top) continue;
    const uint64_t multiple = n / d * d;
    if (!check(d, n) || !check(d, multiple) || !check(d, top) || !check(d, top / d * d)) return 1;
    if (multiple > 0 && !check(d, multiple - 1)) return 1;
  }
  return !check(top, top) || !check(top, top - 1) || !check(1, 0);
}
"""


def test_fast_divmod(tmp_path: Path) -> None:
    """Every kind of divisor and dividend below 2^31, borders of each quotient among them."""
    root = Path(__file__).parents[1]
    source = tmp_path / "divisions.cpp"
    source.write_text(DIVISIONS)
    folders = [f"-I{root / name}" for name in ("tests/emulator", "csrc", "kernels/cuda")]
    program = tmp_path / "divisions"
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++17", "-O1", "-DFC_EMULATE", *folders, source, "-o", program]
    subprocess.run(command, check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
