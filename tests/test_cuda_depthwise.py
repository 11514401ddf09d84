"""The CUDA depthwise kernels, emulated: what the sweep over the problem list does not see."""

from __future__ import annotations

import pytest
import torch
from cases import DIRECTIONS, ConvCase, conv_case
from conv_runner import (
    assert_close,
    integer_operands,
    random_operands,
    random_reference,
    reference_conv,
)
from emulated import (
    Instance,
    emulation,
    find_instance,
    instances,
    native_problem,
    run_instance,
)
from test_conv_nonfinite import assert_same_nonfinite, spoiled
from torch import Tensor

SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
DTYPES = tuple(SHORT)
DEPTHWISE = tuple(i for i in instances() if i.algorithm == "depthwise")


def check(
    name: str,
    case: ConvCase,
    placement: str = "start",
    *,
    seed: int = 1,
    sm_count: int = 132,
    check_accesses: bool = True,
) -> dict[str, int]:
    """Within tolerance of the reference; returns the launch's statistics."""
    instance = find_instance("depthwise", name)
    assert instance.refusal(case) == ""
    a, b, bias = random_operands(case, instance.direction, instance.dtype)
    expected, magnitude = random_reference(case, instance.direction, instance.dtype)
    counted: dict[str, int] = {}
    result = run_instance(
        "depthwise",
        name,
        case,
        instance.direction,
        (a, b),
        bias,
        seed,
        placement=placement,
        sm_count=sm_count,
        check_accesses=check_accesses,
        statistics=counted,
    )
    note = f"{name} {placement} {seed=}"
    assert_close(result, expected, magnitude, "direct", case, instance.direction, note)
    return counted


def depthwise_case(n: int, c: int, h: int, w: int, r: int, stride: int, pad: int) -> ConvCase:
    name = f"n{n}_c{c}_{h}x{w}_r{r}_s{stride}_p{pad}"
    return conv_case(name, (n, c, h, w), (c, 1, r, r), stride, pad, groups=c)


def spatial_kernel(dtype: torch.dtype, layout: str, direction: str, r: int, stride: int) -> str:
    mechanism = "window" if layout == "nhwc" else "planes"
    return f"{direction}_{SHORT[dtype]}_{layout}_{mechanism}{r}_s{stride}"


# --- alignment and channel tails ------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["start", "end", "offset"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
def test_storage_offset(dtype, layout, direction, stride, placement):
    """Operands aligned to one element only: 16-byte accesses would fault."""
    case = depthwise_case(2, 16, 7, 9, 3, stride, 1)
    check(spatial_kernel(dtype, layout, direction, 3, stride), case, placement)


def test_unaligned_operands_take_the_scalar_path():
    """One channel per thread in place of eight: more threads, fewer outputs each."""
    case = depthwise_case(1, 64, 6, 8, 3, 1, 1)
    name = spatial_kernel(torch.bfloat16, "nhwc", "fprop", 3, 1)
    aligned, offset = (check(name, case, placement) for placement in ("start", "offset"))
    assert offset["threads"] > 2 * aligned["threads"]


@pytest.mark.parametrize("c", [8, 24, 40, 72, 120, 128, 136, 200])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
def test_channel_blocks(dtype, direction, c):
    """Channel counts that fill a block's lanes, and that leave some idle."""
    check(
        spatial_kernel(dtype, "nhwc", direction, 3, 1), depthwise_case(1, c, 3, 5, 3, 1, 1), "end"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_any_takes_vectors_where_it_can(dtype, direction):
    name = f"{direction}_{SHORT[dtype]}_nhwc_any"
    vectors = check(name, depthwise_case(1, 32, 4, 5, 4, 1, 2))
    scalars = check(name, depthwise_case(1, 33, 4, 5, 4, 1, 2))
    assert scalars["blocks"] > vectors["blocks"]


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_every_width_and_padding(layout, direction, stride, r):
    """Tiles of the row that begin, end or lie outside of the image, for every phase of a tile; in
    strided dgrad every parity of padding and extent."""
    name = spatial_kernel(torch.float32, layout, direction, r, stride)
    for w in range(1, 11):
        for pad in (0, 1, r // 2, r - 1, r):
            if w + 2 * pad < r or 4 + 2 * pad < r:
                continue
            case = depthwise_case(1, 4, 4 + w % 2, w, r, stride, pad)
            placement = ("start", "end", "offset")[(w + pad) % 3]
            # Races do not depend on the width; what lies outside faults in any case.
            check(name, case, placement, check_accesses=False)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=SHORT.get)
def test_planes_in_strips(dtype, stride, direction):
    """Planes that shared memory does not hold whole: strips of rows with their halo."""
    case = depthwise_case(1, 2, 131, 97, 5, stride, 2)
    check(spatial_kernel(dtype, "nchw", direction, 5, stride), case, "offset")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_planes_in_column_tiles(stride, direction):
    """Rows so long that a strip is cut along them too."""
    for w in (1500, 3001):
        case = depthwise_case(1, 1, 12, w, 7, stride, 3)
        check(spatial_kernel(torch.float32, "nchw", direction, 7, stride), case, "offset")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_long_walks(direction):
    """On a GPU of few SMs a thread walks along several tiles, and sums are longer."""
    for layout in ("nhwc", "nchw"):
        name = spatial_kernel(torch.float32, layout, direction, 3, 1)
        case = depthwise_case(16, 32, 8, 45, 3, 1, 1)
        few, many = check(name, case, sm_count=1), check(name, case, sm_count=500)
        if direction == "wgrad" or layout == "nhwc":
            assert few["threads"] < many["threads"], name


# --- strided dgrad --------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [(1, 2), (2, 3), (4, 1), (3, 5), (6, 4)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3), (4, 2)])
def test_any_dgrad_visits_the_taps_that_meet(stride, dilation):
    """Stride and dilation with and without a common divisor; taps that meet nothing."""
    case = conv_case(
        f"s{stride}_d{dilation}", (1, 4, 17, 16), (8, 1, 3, 4), stride, (3, 2), dilation, groups=4
    )
    for layout in ("nhwc", "nchw"):
        check(f"dgrad_f32_{layout}_any", case, "end")


# --- multiplier, ranks, large filters -------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [1, 2, 5])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
def test_multiplier(dtype, direction, layout, multiplier):
    case = conv_case(
        f"multiplier{multiplier}", (2, 6, 5, 7), (6 * multiplier, 1, 3, 2), 2, 1, 1, groups=6
    )
    check(f"{direction}_{SHORT[dtype]}_{layout}_any", case, "end")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_filter_too_large_for_shared_memory(direction, layout):
    """Its taps are read from global memory."""
    case = conv_case("1d_13000_taps", (1, 4, 13007), (4, 1, 13000), padding=3, groups=4)
    check(f"{direction}_f32_{layout}_any", case, "end")


# --- infinities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", ["input", "weight"])
@pytest.mark.parametrize("r,pad", [(3, 1), (5, 2), (7, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_padding_multiplies_nothing(layout, direction, stride, r, pad, spoil):
    """An infinite operand meets no zero of the padding: NaN only where the definition has one."""
    case = depthwise_case(1, 8, 6, 9, r, stride, pad)
    operands = [t.float() for t in integer_operands(case, direction)[:2]]
    which = int(spoil == "weight")
    operands[which] = spoiled(operands[which], 3)
    expected, _ = reference_conv(case, direction, tuple(operands))
    for name in (
        spatial_kernel(torch.float32, layout, direction, r, stride),
        f"{direction}_f32_{layout}_any",
    ):
        result = run_instance("depthwise", name, case, direction, tuple(operands), None, 2)
        assert_same_nonfinite(result, expected)


# --- repeatability --------------------------------------------------------------------------------


@pytest.mark.parametrize("instance", DEPTHWISE, ids=str)
def test_same_bits_in_every_order(instance: Instance):
    """Whatever the order of blocks and threads."""
    r = 4 if "any" in instance.name else int(instance.name.split("_")[3][6])
    case = depthwise_case(3, 16, 9, 10, r, 1 + ("_s2" in instance.name), 2)
    a, b, bias = random_operands(case, instance.direction, instance.dtype)
    results: list[Tensor] = [
        run_instance(
            "depthwise", instance.name, case, instance.direction, (a, b), bias, seed, workers=seed
        )
        for seed in (1, 4)  # the same placement
    ]
    assert torch.equal(results[0], results[1])


def test_splits_depend_on_the_problem_and_the_gpu_only():
    """Two sizes of GPU may cut the sums differently; the workspace follows."""
    case = depthwise_case(64, 8, 56, 56, 3, 1, 1)
    for layout in ("nhwc", "nchw"):
        instance = find_instance("depthwise", spatial_kernel(torch.float32, layout, "wgrad", 3, 1))
        problem, gpu = native_problem(case), emulation().Device
        small, large = (instance.native.workspace(problem, gpu(90, sms)) for sms in (16, 132))
        assert 0 < small < large < 64 * 2**20


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "case", "reason"),
    [
        (
            "fprop_f32_nhwc_any",
            conv_case("g2", (1, 8, 5, 5), (8, 4, 3, 3), groups=2),
            "one channel per group, got C=8, groups=2",
        ),
        (
            "fprop_f16_nhwc_window3_s1",
            depthwise_case(1, 12, 5, 5, 3, 1, 1),
            "C divisible by 8, got C=12",
        ),
        (
            "fprop_f32_nhwc_window3_s1",
            depthwise_case(1, 12, 5, 5, 3, 2, 1),
            "stride 1, got [1, 2, 2]",
        ),
        ("wgrad_f32_nchw_planes5_s1", depthwise_case(1, 4, 5, 5, 3, 1, 1), "5x5 taps, got 3x3"),
        (
            "dgrad_f32_nchw_planes3_s1",
            conv_case("m2", (1, 4, 5, 5), (8, 1, 3, 3), groups=4),
            "one filter per channel, got C=4, K=8",
        ),
        (
            "fprop_f32_nchw_planes3_s1",
            conv_case("1d", (1, 4, 9), (4, 1, 3), groups=4),
            "rank 2, got rank 1",
        ),
        (
            "fprop_f32_nchw_planes3_s1",
            conv_case("d2", (1, 4, 9, 9), (4, 1, 3, 3), dilation=2, groups=4),
            "dilation 1, got [1, 2, 2]",
        ),
        (
            "fprop_f32_nchw_planes3_s1",
            conv_case("huge", (2**20, 2**12, 5, 5), (2**12, 1, 3, 3), groups=2**12),
            "fewer than 2^31 planes and rows and 2^36 elements, got N=1048576, C=4096",
        ),
    ],
)
def test_reasons_carry_the_values(name, case, reason):
    assert reason in find_instance("depthwise", name).refusal(case)


def test_names_are_unique():
    names = [instance.name for instance in DEPTHWISE]
    assert len(set(names)) == len(names) == 126
