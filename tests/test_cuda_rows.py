"""What no sweep sees of the kernels over windows of staged rows: every arrangement of a tile's
units and every way in which rows come, blocks with several tiles, what is not finite next to a
window, the limits that `applicable` names, offsets beyond 2^31, and what the model chooses."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import integer_operands, reference_conv
from emulated import Instance, emulation, instances, native_problem, planned_launches, run_instance
from test_conv_nonfinite import assert_same_nonfinite, padding_multiplied
from test_cuda_im2col import check_integers

ROWS = tuple(i for i in instances() if i.algorithm == "rows")
BF16 = tuple(i for i in ROWS if i.dtype == torch.bfloat16)
TF32 = tuple(i for i in ROWS if i.products == "tf32")
ONE_EACH = (BF16[1], *TF32)  # of either size of elements
by_instance = pytest.mark.parametrize("instance", ROWS, ids=str)


def pixels(instance: Instance) -> int:
    return int(re.search(r"_(\d+)x64$", instance.name)[1])


def test_instances() -> None:
    kinds = {(i.dtype, i.products) for i in ROWS}
    assert kinds == {
        (torch.bfloat16, "ieee"),
        (torch.float16, "ieee"),
        (torch.float32, "tf32"),
        (torch.float32, "tf32x3"),
    }
    assert all((i.direction, i.layout) == ("fprop", "NHWC") and i.takes_stats for i in ROWS)


def plan(instance: Instance, case: ConvCase, sm_count: int = 132, aligned: int = 16) -> dict:
    module = emulation()
    device = module.Device(90, sm_count)
    return module.rows_plan(instance.name, native_problem(case), device, aligned)


@pytest.mark.parametrize("instance", (*BF16, *TF32), ids=str)
def test_arrangements(instance: Instance) -> None:
    """Planes of just one tile, as high and as wide as its units can lie; and of a pixel more along
    each axis, all tiles by one block."""
    units = pixels(instance) // 8
    logs = range(units.bit_length())
    for log in logs if instance is BF16[1] else (0, 2, logs[-1]):
        h, w = units >> log, 8 << log
        case = conv_case(f"{h}x{w}", (2, 3, 2 * h + 1, 2 * w + 1), (8, 3, 3, 3), 2)
        assert plan(instance, case, sm_count=1)["tile"] == (h, w)
        check_integers(instance, case, sm_count=1)
        more = conv_case(f"{h + 1}x{w + 1}", (1, 3, h + 1, w + 1), (8, 3, 2, 3), 1, (1, 1))
        check_integers(instance, more, seed=2, sm_count=1)


# Elements to a row of x, which a base aligned to 16 bytes makes: 16-bit by 16 bytes, 4 bytes and
# elements. With a padding that is odd windows begin one early; with an odd stride and odd channels
# every second one is odd.
ROW_STARTS = [
    conv_case(f"W={w} C={c} s={stride} p={pad}", (2, c, 5, w), (8, c, 2, 3), (1, stride), (0, pad))
    for w, c in ((24, 3), (22, 3), (21, 3), (16, 1), (18, 1), (19, 1), (12, 2), (11, 4), (13, 2))
    for stride, pad in ((2, 1), (1, 1), (1, 2), (3, 0))
]


def test_ways_in_which_rows_come() -> None:
    """The list has all of them: 16 bytes, 4 bytes or elements at once; windows that begin early;
    a second copy of the rows, shifted."""
    ways = {
        (found["copy"], found["lead"], found["shifted"])
        for case in ROW_STARTS
        for aligned in (2, 16)
        for found in (plan(BF16[1], case, aligned=aligned),)
    }
    assert ways == {(c, lead, s) for c in (0, 1, 2) for lead in (0, 1) for s in (0, 1)} - {
        (2, 1, 0),
        (2, 1, 1),
    }
    assert {plan(TF32[0], case)["copy"] for case in ROW_STARTS} == {0, 1}


@pytest.mark.parametrize("instance", ONE_EACH, ids=str)
@pytest.mark.parametrize("placement", ["start", "offset"])
def test_where_rows_begin(instance: Instance, placement: str) -> None:
    turn = 0 if placement == "start" else 1
    for number, case in enumerate(ROW_STARTS):
        if placement == "start" or number % 3 == turn:
            check_integers(instance, case, seed=1 + number % 3, placement=placement)


@by_instance
def test_parts_of_the_filters(instance: Instance) -> None:
    """Three parts of them, with two filters in the last one, whatever the device."""
    case = conv_case("parts", (1, 3, 13, 17), (130, 3, 3, 5), (2, 1), (1, 2))
    for sm_count in (1, 132):
        statistics: dict[str, int] = {}
        check_integers(instance, case, sm_count=sm_count, statistics=statistics)
        assert statistics["blocks"] % 3 == 0


def test_blocks_share_tiles_evenly() -> None:
    """No block has two tiles more than another, and an SM's blocks fit into it."""
    for instance in ROWS:
        case = conv_case("many", (32, 3, 224, 224), (64, 3, 7, 7), 2, 3)
        (planned,) = planned_launches(instance, case)
        tiles = -(-32 * 112 * 112 // pixels(instance))
        rounds = -(-tiles // planned.blocks)
        assert planned.blocks == -(-tiles // rounds)
        together = -(-planned.blocks // 132)
        assert together >= 2 and together * (planned.dynamic_bytes + 1024) <= 228 * 1024


@pytest.mark.parametrize("instance", ONE_EACH, ids=str)
def test_nonfinite_numbers_stay_in_their_windows(instance: Instance) -> None:
    """A few of x: what lies behind a window, and is staged with it, is another pixel's. Then of
    w, where the zeros of the padding may be multiplied."""
    for case in (
        conv_case("stem", (2, 3, 9, 24), (5, 3, 3, 7), 2, 3),
        conv_case("early", (1, 3, 6, 16), (4, 3, 3, 3), 2, 1),
        conv_case("shifted", (1, 3, 5, 19), (4, 3, 2, 3)),
        conv_case("one channel", (1, 1, 4, 16), (3, 1, 3, 5)),
    ):
        for which in (0, 1):
            operands = [t.to(instance.dtype) for t in integer_operands(case, "fprop")[:2]]
            flat = operands[which].view(-1)
            generator = torch.Generator().manual_seed(7)
            chosen = torch.randperm(flat.numel(), generator=generator)[: max(3, flat.numel() // 50)]
            flat[chosen] = torch.tensor([torch.inf, -torch.inf, torch.nan]).to(flat.dtype)[
                torch.arange(len(chosen)) % 3
            ]
            wide = [t.float() for t in operands]
            expected, _ = reference_conv(case, "fprop", tuple(wide))
            allowed = padding_multiplied(case, "fprop", wide) if which else None
            arguments = (instance.algorithm, instance.name, case, "fprop", tuple(operands))
            y = run_instance(*arguments, seed=1 + which)
            assert expected.isfinite().any() and not expected.isfinite().all()
            assert_same_nonfinite(y, expected, allowed)


def test_filters_that_are_no_multiple_of_eight() -> None:
    """Which are stored one by one."""
    for k in (1, 7, 33, 63):
        case = conv_case(f"K={k}", (1, 3, 6, 9), (k, 3, 3, 3), 1, 1)
        for instance in ONE_EACH:
            check_integers(instance, case, seed=k % 3 + 1)


REFUSED = (
    (conv_case("", (1, 5, 4, 4), (8, 5, 3, 3)), "C=5, it is for at most 4 channels"),
    (conv_case("", (1, 4, 4, 4), (8, 2, 3, 3), groups=2), "groups=2, it is for one group"),
    (conv_case("", (1, 3, 9, 9), (8, 3, 3, 3), dilation=2), "dilation 2 along W"),
    (
        conv_case("", (1, 3, 1 << 28, 1), (8, 3, 1, 1)),
        "an extent is 268435456, the kernel's limit is 268435455",
    ),
    (
        conv_case("", (1, 4, 90, 90), (8, 4, 41, 41)),
        r"its rows and weights take \d+ bytes of shared memory, there are 166912",
    ),
    (
        conv_case("", (1 << 16, 1, 1 << 12, 1 << 12), (8, 1, 1, 1)),
        r"\d{10,} tiles, the kernel's limit is 1073741823",
    ),
)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[1][:24])
def test_limits(row: tuple[ConvCase, str]) -> None:
    case, reason = row
    for instance in ROWS:
        assert re.match(reason, instance.refusal(case)), instance.refusal(case)


def test_filters_up_to_11x11_fit() -> None:
    """In 16 bits with any stride up to 4; in fp32, of twice the bytes, up to 9 x 9."""
    for instance in ROWS:
        side = 9 if instance.dtype == torch.float32 else 11
        for stride in (1, 2, 3, 4):
            case = conv_case("", (1, 3, 224, 224), (64, 3, side, side), stride, 2)
            assert not instance.refusal(case), (instance.refusal(case), stride)


@pytest.mark.parametrize("instance", BF16, ids=str)
def test_offsets_beyond_2_to_31(instance: Instance) -> None:
    """The last pixel of 2.5e9 elements of x and 6.7e9 of y, of which no others have memory."""
    case = conv_case("huge", (200, 3, 2048, 2048), (8, 3, 3, 3), padding=1)
    pixel_count = 200 * 2048 * 2048
    x = torch.tensor([0, 2, 0], dtype=torch.bfloat16)
    w = torch.zeros(8, 3, 3, 3, dtype=torch.bfloat16)  # K, R, S, C
    w[5, 1, 1, 1] = 3
    module = emulation()

    def raw(t: torch.Tensor) -> np.ndarray:
        return t.flatten().view(torch.uint8).numpy()

    (last,), _, _ = module.run_conv(
        instance.algorithm,
        instance.name,
        native_problem(case),
        (pixel_count * 6, [(pixel_count * 6 - 6, raw(x))]),
        raw(w),
        None,
        module.Device(90, pixel_count // pixels(instance)),  # a block to a tile
        [(pixel_count * 16 - 16, 16)],
        seed=1,
        block_limit=2,
    )
    assert torch.from_numpy(last).view(torch.bfloat16).tolist() == [0, 0, 0, 0, 0, 6, 0, 0]


def test_repeatable() -> None:
    case = conv_case("repeat", (2, 3, 19, 31), (24, 3, 5, 5), 2, 2)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(case.input_size, generator=generator)
    w = torch.randn(case.weight_size, generator=generator)
    for instance in ROWS:
        operands = (x.to(instance.dtype), w.to(instance.dtype))
        args = (instance.algorithm, instance.name, case, "fprop", operands)
        first = run_instance(*args, seed=1, sm_count=1)
        assert torch.equal(first, run_instance(*args, seed=2, sm_count=7))


# C, H and W, K, side, stride, padding of the first layers of ResNet, VGG, AlexNet, GoogLeNet v3 and
# MobileNet.
STEMS = (
    *((3, 224, 64, 7, 2, 3), (3, 224, 64, 3, 1, 1), (3, 224, 64, 11, 4, 2)),
    *((3, 299, 32, 3, 2, 0), (3, 224, 32, 3, 2, 1)),
)


@pytest.mark.parametrize("layer", STEMS, ids=str)
@pytest.mark.parametrize("images", [8, 32])
def test_the_model_chooses_it_for_first_layers(layer: tuple[int, ...], images: int) -> None:
    """In 16 bits, and in TF32 where it fits; three products are worth it for large filters."""
    c, size, k, side, stride, padding = layer
    case = conv_case("stem", (images, c, size, size), (k, c, side, side), stride, padding)
    for dtype, products in ((torch.bfloat16, ("ieee",)), (torch.float32, ("tf32x3", "tf32"))):
        able = [
            i
            for i in instances()
            if (i.direction, i.dtype, i.layout) == ("fprop", dtype, "NHWC")
            and i.products in ("ieee", *products)
            and not i.refusal(case)
        ]
        if side < 11 or dtype == torch.bfloat16:
            best = min(able, key=lambda i: i.cost(case))
            assert best.algorithm == "rows", f"{best} for {dtype}"
