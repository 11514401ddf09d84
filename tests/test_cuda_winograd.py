"""What no sweep over the shared problem list sees of the CUDA Winograd kernels, run by emulation:
every remainder of a tile and of a block, padding that crops gradients, work cut into pieces by the
limit of the workspace, sums that are the same bits every time, error constants, refusals, costs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import assert_close, random_operands, random_reference, reference_conv
from emulated import Instance, emulation, instances, run_instance
from huge_tensors import Huge, run_huge
from torch import Tensor
from winograd_tolerance import ERROR_CONSTANT

from fastconv.tolerances import TF32_ERROR_CONSTANT, TF32_ROUNDOFF, UNIT_ROUNDOFF

ALL = tuple(i for i in instances() if i.algorithm.startswith("winograd"))
TILES = {"winograd_f2x2_3x3": 2, "winograd_f4x4_3x3": 4}
by_instance = pytest.mark.parametrize("instance", ALL, ids=str)


def of(
    dtype: torch.dtype, name: str = "", direction: str = "", tf32: bool = False
) -> tuple[Instance, ...]:
    found = tuple(
        i
        for i in ALL
        if i.dtype == dtype and f"_{name}" in i.name and direction in i.direction and i.tf32 == tf32
    )
    assert found
    return found


# One kernel of each direction, layout and mechanism; 16-bit storage differs in loads and stores,
# TF32 in the products.
FP32 = of(torch.float32)
TF32 = of(torch.float32, tf32=True)


def case_3x3(
    batch: int,
    channels: int,
    size: tuple[int, int],
    filters: int,
    padding: int | tuple[int, int] = 1,
    groups: int = 1,
) -> ConvCase:
    name = f"{batch}x{channels}x{size[0]}x{size[1]}_{filters}_p{padding}_g{groups}"
    weight = (filters, channels // groups, 3, 3)
    return conv_case(name, (batch, channels, *size), weight, padding=padding, groups=groups)


def run(instance: Instance, case: ConvCase, operands: tuple, bias: Tensor | None, **how) -> Tensor:
    reason = instance.refusal(case)
    assert not reason, f"{instance} refuses {case.id}: {reason}"
    where = (instance.algorithm, instance.name, case, instance.direction)
    return run_instance(*where, operands, bias, **how)


def check(instance: Instance, case: ConvCase, **how) -> Tensor:
    a, b, bias = random_operands(case, instance.direction, instance.dtype)
    result = run(instance, case, (a, b), bias, **how)
    expected, magnitude = random_reference(case, instance.direction, instance.dtype)
    algo, note = instance.arithmetic, str(instance)
    assert_close(result, expected, magnitude, algo, case, instance.direction, note)
    return result


# --- tiles and blocks ----------------------------------------------------------------------------


@pytest.mark.parametrize("instance", FP32, ids=str)
def test_every_remainder_of_the_tile(instance: Instance) -> None:
    """Output extents of 1 to two tiles + 1; dgrad's padding is 2 - padding, cropped below zero."""
    tile = TILES[instance.algorithm]
    for padding in (1, 5) if "nonfused" in instance.name else (0, 1, 2, 3, 5):
        for out in range(max(1, 2 * padding - 1), 2 * tile + 2):
            size = out + 2 - 2 * padding
            check(instance, case_3x3(1, 3, (size, size + 2), 2, padding), seed=out)


BLOCKS = (
    # Channels around the 8 of a step, filters around the 32 of a block, and the other way round.
    *(case_3x3(1, c, (4, 5), k) for c, k in ((7, 31), (8, 32), (9, 33), (17, 64), (40, 65))),
    # Tiles around the 32 of a block and the 8 of a step of wgrad: 31, 32, 33, and images between.
    *(case_3x3(1, 3, (4, 4 * tiles), 3) for tiles in (7, 8, 9)),
    case_3x3(31, 4, (4, 4), 5),
    case_3x3(11, 4, (3, 9), 5),
    case_3x3(33, 4, (2, 2), 5, 2),
    # Groups, with blocks that end within one.
    case_3x3(2, 16, (6, 7), 24, groups=2),
    case_3x3(1, 27, (5, 5), 105, (2, 0), groups=3),
)


@pytest.mark.parametrize("case", BLOCKS, ids=lambda c: c.id)
def test_block_remainders(case: ConvCase) -> None:
    for seed, instance in enumerate(FP32):
        check(instance, case, seed=seed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_block_remainders_of_16_bits(dtype: torch.dtype) -> None:
    for seed, instance in enumerate(of(dtype)):
        check(instance, BLOCKS[2 + seed % 3], seed=seed)
        check(instance, BLOCKS[-1], seed=seed)


def test_block_remainders_of_tf32() -> None:
    for seed, instance in enumerate(TF32):
        check(instance, BLOCKS[2 + seed % 3], seed=seed)
        check(instance, BLOCKS[-1], seed=seed)


def test_tf32_is_for_those_who_allow_it() -> None:
    """Every mechanism, direction and layout in both precisions, told apart by the flag."""
    assert {i.name.replace("_tf32", "_fma") for i in TF32} == {i.name for i in FP32}
    assert not any(i.tf32 for i in ALL if i.dtype != torch.float32)


@pytest.mark.parametrize("placement", ["offset", "end_aligned"])
@pytest.mark.parametrize("instance", of(torch.float32, "nchw") + of(torch.float16, "nchw"), ids=str)
def test_whole_rows_and_single_pixels(instance: Instance, placement: str) -> None:
    """Rows of full tiles go out in one store if they are aligned, which the base decides."""
    check(instance, case_3x3(1, 8, (8, 8), 9), placement=placement)


@pytest.mark.parametrize("instance", of(torch.float32, "nhwc_fused") + of(torch.float16), ids=str)
def test_many_groups_of_one_channel(instance: Instance) -> None:
    case = case_3x3(1, 9, (5, 6), 18, groups=9)
    if "nonfused" in instance.name:
        wanted = "non-fused Winograd needs at least 8 channels and filters per group, got 1 and 2"
        assert instance.refusal(case) == wanted
    else:
        check(instance, case)


# --- the limit of the workspace ------------------------------------------------------------------


@contextmanager
def workspace_limit(limit: int) -> Iterator[None]:
    symbol = "_ZN8fastconv4cuda8winograd15workspace_limitE"
    variable = ctypes.c_int64.in_dll(ctypes.CDLL(emulation().__file__), symbol)
    before = variable.value
    variable.value = limit
    try:
        yield
    finally:
        variable.value = before


def many_tiles(instance: Instance) -> ConvCase:
    """288 tiles: more than the smallest chunk, 256, and no multiple of it."""
    extent = 12 * TILES[instance.algorithm] - 1
    return case_3x3(2, 8, (extent, extent), 9)


def test_pieces_are_the_same_bits() -> None:
    """fprop and dgrad in pieces compute every output as in one go, and use less scratch."""
    # Four slabs of filters (of channels in dgrad); slabs of two groups.
    slabs = case_3x3(1, 101, (4, 5), 100), case_3x3(1, 70, (4, 5), 66, groups=2)
    for instance in (*FP32, *of(torch.bfloat16, "nchw")):
        if instance.direction == "wgrad":
            continue
        for case in (many_tiles(instance),) if "nonfused" in instance.name else slabs:
            whole, pieces = {}, {}
            expected = check(instance, case, statistics=whole)
            with workspace_limit(200_000):
                result = check(instance, case, statistics=pieces)
            assert torch.equal(result, expected), str(instance)
            assert pieces["workspace"] < whole["workspace"], str(instance)
            assert pieces["launches"] > whole["launches"], str(instance)


def test_wgrad_in_pieces() -> None:
    """Fewer partial sums (fused), or running sums over chunks of tiles (non-fused)."""
    for instance in (*of(torch.float32, direction="wgrad"), *of(torch.float16, "nhwc", "wgrad")):
        whole, pieces = {}, {}
        check(instance, many_tiles(instance), statistics=whole)
        with workspace_limit(20_000):
            check(instance, many_tiles(instance), statistics=pieces)
        assert pieces["workspace"] < whole["workspace"], str(instance)
        if "nonfused" in instance.name:
            assert pieces["launches"] > whole["launches"], str(instance)


@by_instance
def test_workspace_is_bounded(instance: Instance) -> None:
    for channels, size, batch in ((64, 224, 64), (256, 56, 256), (512, 28, 256), (512, 7, 1024)):
        case = case_3x3(batch, channels, (size, size), channels)
        assert 0 < instance.workspace(case) <= 257 << 20, case.id
    # What cannot be cut: transformed filters of one block of filters, or of all.
    wide = case_3x3(1, 8192, (7, 7), 8192)
    points = (TILES[instance.algorithm] + 2) ** 2
    assert instance.workspace(wide) <= (512 << 20) + 4 * points * 8192 * 8192


# --- determinism ---------------------------------------------------------------------------------


@pytest.mark.parametrize("instance", FP32 + TF32 + of(torch.bfloat16), ids=str)
def test_same_bits_every_time(instance: Instance) -> None:
    """Whatever the order of threads and blocks, and on every GPU."""
    case = case_3x3(3, 9, (19, 17), 34)
    a, b, bias = random_operands(case, instance.direction, instance.dtype)
    first = run(instance, case, (a, b), bias, seed=1)
    for how in ({"seed": 2, "workers": 1}, {"seed": 5, "sm_count": 7, "capability": 80}):
        assert torch.equal(run(instance, case, (a, b), bias, **how), first), how


@pytest.mark.parametrize("instance", of(torch.float32, "", "wgrad"), ids=str)
def test_wgrad_splits_the_tiles(instance: Instance) -> None:
    """Enough tiles for several partial sums, in an amount that no split divides."""
    counted: dict[str, int] = {}
    check(instance, case_3x3(2, 5, (53, 91), 6), statistics=counted)
    assert counted["launches"] == (4 if "nonfused" in instance.name else 2)
    assert counted["workspace"] > 2 * 4 * 9 * 5 * 6


# --- errors --------------------------------------------------------------------------------------

ACCURACY = (
    case_3x3(1, 1, (3, 3), 1, 0),
    case_3x3(2, 1, (24, 24), 2),
    case_3x3(1, 96, (7, 7), 16),
    case_3x3(1, 16, (14, 14), 16),
)


def error_ratio(instance: Instance, case: ConvCase) -> float:
    """The largest error before the result is rounded, in units of roundoff of the operands of the
    products and of the largest sum of magnitudes."""
    a, b, _ = random_operands(case, instance.direction, instance.dtype)
    # No bias: its term is exact and would only enlarge the magnitude.
    expected, magnitude = reference_conv(case, instance.direction, (a, b))
    error = (run(instance, case, (a, b), None).double() - expected).abs()
    if not instance.arithmetic.endswith("_tf32"):
        return float(error.max() / magnitude.max()) / UNIT_ROUNDOFF[torch.float32]
    stored = UNIT_ROUNDOFF[instance.dtype] * expected.abs()
    return float((error - stored).max() / magnitude.max()) / TF32_ROUNDOFF


@pytest.mark.parametrize("instance", [i for i in ALL if i.layout == "NHWC"], ids=str)
def test_error_constants(instance: Instance) -> None:
    """The documented constants hold with room, and say something."""
    tf32 = instance.arithmetic.endswith("_tf32")
    constant = (TF32_ERROR_CONSTANT if tf32 else ERROR_CONSTANT)[instance.algorithm]
    ratios = [error_ratio(instance, case) for case in ACCURACY]
    assert max(ratios) <= constant * 0.75, ratios
    # bf16 operands are exact in TF32 before the transforms, and round the result coarsely.
    assert max(ratios) >= constant / 24, ratios


# --- applicability and cost ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (conv_case("1d", (1, 4, 9), (4, 4, 3)), "Winograd needs rank 2, got rank 1"),
        (
            conv_case("stride", (1, 4, 9, 9), (4, 4, 3, 3), stride=(2, 1)),
            "Winograd needs stride 1, got 2x1",
        ),
        (
            conv_case("dilation", (1, 4, 9, 9), (4, 4, 3, 3), dilation=(1, 2)),
            "Winograd needs dilation 1, got 1x2",
        ),
        (
            conv_case("filter", (1, 4, 9, 9), (4, 4, 3, 5)),
            "Winograd needs a 3x3 filter, got 3x5",
        ),
        (
            conv_case("row", (1, 64, 3, 2**21), (4, 64, 3, 3)),
            "Winograd needs rows of at most 2^26 elements over all channels, got 134217728",
        ),
        (
            conv_case("tiles", (2**32, 1, 4, 4), (1, 1, 3, 3), padding=1),
            "Winograd needs fewer than 2^31 - 64 tiles, got",
        ),
    ],
    ids=lambda v: v.id if isinstance(v, ConvCase) else "",
)
def test_refusals_name_the_value(case: ConvCase, reason: str) -> None:
    for instance in ALL:
        assert instance.refusal(case).startswith(reason)


@pytest.mark.parametrize(
    ("case", "got"),
    [
        (conv_case("channels", (1, 2**23, 4, 4), (8, 2**23, 3, 3)), "8388608, 8 and 67108864"),
        (conv_case("filters", (1, 8, 4, 4), (2**23, 8, 3, 3)), "8, 8388608 and 67108864"),
        (conv_case("weights", (1, 2**16, 4, 4), (2**15, 2**16, 3, 3)), "65536, 32768 and 21474836"),
    ],
    ids=lambda v: v.id if isinstance(v, ConvCase) else "",
)
def test_refusals_of_matrices_name_the_value(case: ConvCase, got: str) -> None:
    """A matrix's elements are numbered in 32 bits; the fused kernels have no matrices."""
    for instance in ALL:
        reason = instance.refusal(case)
        if "nonfused" not in instance.name:
            assert not reason
        else:
            assert reason.startswith("non-fused Winograd needs at most 2^22 channels and filters")
            assert f"got {got}" in reason


@by_instance
def test_takes_tensors_beyond_32_bits(instance: Instance) -> None:
    case = case_3x3(4096, 256, (64, 64), 256)
    assert not instance.refusal(case)
    assert 0 < instance.workspace(case) <= 257 << 20
    assert 0 < instance.cost(case) < 60


# --- tensors beyond 2^31 elements ----------------------------------------------------------------

# One image of 2.15e9 elements of x; the last block of tiles has the corner.
SIDE, LAST = 5800, 5799
HUGE = case_3x3(1, 64, (SIDE, SIDE), 2)


HUGE_FUSED = tuple(i for i in of(torch.bfloat16) if "nonfused" not in i.name)


def directed(direction: str) -> pytest.MarkDecorator:
    chosen = [i for i in HUGE_FUSED if i.direction == direction]
    assert len(chosen) == 4
    return pytest.mark.parametrize("instance", chosen, ids=str)


@directed("fprop")
def test_huge_input(instance: Instance) -> None:
    """y[.., p, q] takes x[p + r - 1, q + s - 1]."""
    x = Huge(HUGE.input_size, {(0, 63, LAST, LAST): 3, (0, 1, LAST - 1, LAST): 4})
    w = Huge(
        HUGE.weight_size,
        {(1, 63, 1, 1): 5, (1, 63, 2, 1): 7, (1, 1, 1, 2): 2, (0, 1, 0, 1): 1},
    )
    below = LAST - 1
    places = [(0, 1, LAST, LAST), (0, 1, below, LAST), (0, 1, below, below), (0, 0, LAST, LAST)]
    found = run_huge(instance, HUGE, (x, w), places, block_limit=16)
    assert found == pytest.approx([15, 21, 8, 4], abs=0.25)


@directed("dgrad")
def test_huge_result_of_dgrad(instance: Instance) -> None:
    """dx[.., h, w] takes dy[h - r + 1, w - s + 1]; the last block has channels 32 to 63."""
    dy = Huge(HUGE.output_size, {(0, 1, LAST, LAST): 3})
    w = Huge(HUGE.weight_size, {(1, 63, 1, 1): 5, (1, 62, 0, 1): 7})
    places = [(0, 63, LAST, LAST), (0, 62, LAST - 1, LAST), (0, 63, LAST - 1, LAST)]
    found = run_huge(instance, HUGE, (dy, w), places, block_limit=16)
    assert found == pytest.approx([15, 21, 0], abs=0.25)


def test_costs_order_the_mechanisms() -> None:
    """Fused for few channels, where V and M would only pass through memory; F(4x4) before F(2x2)
    for large images; more work costs more."""
    costs = {(i.algorithm, i.name): i.cost for i in ALL}
    for dtype, kind in (("f32", "fma"), ("f32", "tf32"), ("bf16", "tf32")):
        for direction in ("fprop", "dgrad", "wgrad"):
            for layout in ("nchw", "nhwc"):
                stem = f"{direction}_{dtype}_{layout}"
                f4, f2 = (costs[f"winograd_f{t}x{t}_3x3", f"{stem}_fused_{kind}"] for t in (4, 2))
                apart = costs["winograd_f4x4_3x3", f"{stem}_nonfused_{kind}"]
                narrow = case_3x3(32, 16, (112, 112), 16)
                wide = case_3x3(32, 256, (56, 56), 256)
                assert f4(narrow) < apart(narrow)
                assert f4(wide) < f2(wide)
                assert f4(narrow) < f4(wide) and apart(narrow) < apart(wide)
