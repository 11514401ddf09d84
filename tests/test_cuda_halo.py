"""What no sweep sees of the kernels with a resident halo: every arrangement of a tile's units, two
consumers with unequal shares, parts of the channels, tiles beyond the image on each side, bases
that TMA does not take, the limits that `applicable` names, and what the model says of L2."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from cases import ConvCase, conv_case
from emulated import Instance, emulation, instances, native_problem, run_instance
from huge_tensor import check_last_pixel
from test_cuda_im2col import check_integers

HALO = tuple(i for i in instances() if i.algorithm == "halo")
BF16 = tuple(i for i in HALO if i.dtype == torch.bfloat16)
ROWS3 = tuple(i for i in BF16 if "rows3" in i.name)
ROWS5 = tuple(i for i in BF16 if "rows5" in i.name)
by_instance = pytest.mark.parametrize("instance", BF16, ids=str)


def plan(instance: Instance, case: ConvCase, sm_count: int = 132) -> dict[str, Any]:
    module = emulation()
    return module.halo_plan(instance.name, native_problem(case), module.Device(90, sm_count))


def tile(instance: Instance) -> tuple[int, int]:
    pixels, channels = re.search(r"_(\d+)x(\d+)$", instance.name).groups()
    return int(pixels), int(channels)


# (images, rows, columns) of a tile in units.
ARRANGEMENTS = ((1, 1, 4), (1, 2, 2), (1, 4, 1), (2, 1, 2), (2, 2, 1), (4, 1, 1))


@by_instance
@pytest.mark.parametrize("units", ARRANGEMENTS, ids=str)
def test_arrangements(instance: Instance, units: tuple[int, int, int]) -> None:
    """A problem of just one tile, for which the plan takes each of them; and one of a pixel more
    along each axis, done by one block."""
    rows = int(re.search("rows(.)", instance.name)[1])
    extent = tuple(a * b for a, b in zip(units, (1, tile(instance)[0] // 32, 8), strict=True))
    for more, side in ((0, rows), (1, 3)):
        n, h, w = (e + more for e in extent)
        case = conv_case(
            f"{units}+{more}", (n, 16, h, w), (16, 16, rows, side), 1, (rows // 2, side // 2)
        )
        if more == 0:
            assert plan(instance, case, 1)["tile"] == extent
        check_integers(instance, case, seed=1 + more, sm_count=1)


# Channels of src and dst (of dgrad the other way round), filter's columns, padding.
SHAPES = (
    # An odd number of tiles, two chunks each: the second consumer has fewer boxes.
    conv_case("odd_tiles", (5, 72, 17, 17), (16, 72, 3, 3), padding=1),
    conv_case("one_tile_two_chunks", (1, 96, 3, 4), (8, 96, 3, 3), padding=1),
    conv_case("unpadded", (2, 16, 20, 19), (24, 16, 3, 3)),
    conv_case("padded_beyond_filter", (1, 8, 5, 3), (8, 8, 3, 3), padding=(4, 5)),
    conv_case("column", (1, 40, 33, 1), (16, 40, 3, 1), padding=(1, 0)),
    conv_case("seven_columns", (1, 8, 9, 20), (16, 8, 3, 7), padding=(1, 3)),
    conv_case("row5", (3, 16, 18, 11), (16, 16, 5, 4), padding=(2, 0)),
    # Rows of taps that end within a step, and steps that go across taps.
    conv_case("eight", (1, 8, 6, 17), (8, 8, 3, 5), padding=(1, 2)),
    conv_case("across", (1, 56, 6, 17), (16, 56, 3, 3), padding=1),
    conv_case("row5_across", (1, 24, 6, 17), (16, 24, 5, 5), padding=2),
    conv_case("row5_seven_columns", (1, 16, 5, 40), (8, 16, 5, 7), padding=(0, 3)),
)


@by_instance
def test_shapes(instance: Instance) -> None:
    """By one block, which does all tiles, and by three."""
    turn = HALO.index(instance)
    done = 0
    for number, case in enumerate(SHAPES):
        if not instance.refusal(case):
            done += 1
            check_integers(instance, case, (number + turn) % 3 + 1, sm_count=1 + 2 * (turn % 2))
    assert done >= 2


def test_parts_of_the_channels() -> None:
    """Every block has one part of them for its life; there may be more parts than SMs."""
    case = conv_case("parts", (2, 16, 17, 16), (136, 16, 3, 3), padding=1)
    instance = next(i for i in ROWS3 if i.direction == "fprop" and tile(i)[1] == 64)
    for sm_count, blocks in ((2, 3), (7, 6), (132, 12)):
        statistics: dict[str, int] = {}
        found = plan(instance, case, sm_count)
        assert (found["parts"], found["parts"] * found["blocks"]) == (3, blocks)
        check_integers(instance, case, sm_count=sm_count, statistics=statistics)
        assert (statistics["launches"], statistics["blocks"]) == (1, blocks)


@by_instance
def test_four_blocks_share_weights(instance: Instance) -> None:
    """Each brings every fourth copy to all; the last of them has no tile, and still waits."""
    rows = int(re.search("rows(.)", instance.name)[1])
    src, dst = (64, 72) if rows == 3 else (24, 72)
    c, k = (src, dst) if instance.direction == "fprop" else (dst, src)
    height = 3 * tile(instance)[0] // 32 - 1
    case = conv_case("four", (1, c, height, 31), (k, c, rows, 3), padding=(rows // 2, 1))
    found = plan(instance, case)
    parts = 1 if tile(instance)[1] == 128 else 2
    assert (found["cluster"], found["blocks"], found["parts"]) == (4, 4, parts)
    statistics: dict[str, int] = {}
    check_integers(instance, case, statistics=statistics)
    assert (statistics["launches"], statistics["blocks"]) == (1, 4 * parts)


def test_pairs_of_blocks_share_weights() -> None:
    """Of 132 SMs clusters of four would leave four idle."""
    case = conv_case("pairs", (33, 32, 15, 31), (16, 32, 3, 3), padding=1)
    instance = next(i for i in ROWS3 if i.direction == "fprop" and tile(i) == (128, 64))
    found = plan(instance, case)
    assert (found["cluster"], found["blocks"], found["parts"]) == (2, 132, 1)
    check_integers(instance, case)


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("channels", [8, 16, 24, 72])
def test_what_is_not_finite_stays_under_the_filter(channels: int, value: float) -> None:
    """Also where a row of taps is no whole number of steps: no pixel beside a window counts, and
    none beside a pixel's channels."""
    for rows, side in ((3, 3), (5, 5), (5, 1), (3, 7)):
        case = conv_case("", (1, channels, 12, 19), (8, channels, rows, side))
        x = torch.ones(case.input_size, dtype=torch.bfloat16)
        x[0, :, 6, 9] = value
        w = torch.ones(case.weight_size, dtype=torch.bfloat16)
        expected = torch.full(case.output_size, float(channels * rows * side))
        expected[0, :, max(0, 7 - rows) : 7, max(0, 10 - side) : 10] = value
        for instance in BF16:
            if instance.direction == "fprop" and not instance.refusal(case):
                y = run_instance(instance.algorithm, instance.name, case, "fprop", (x, w))
                assert torch.equal(y.float().nan_to_num(-1), expected.nan_to_num(-1)), instance


def test_weights_and_two_boxes_fill_shared_memory() -> None:
    """128 channels on either side."""
    case = conv_case("full", (1, 128, 15, 17), (128, 128, 3, 3), padding=1)
    for instance in ROWS3:
        if tile(instance)[1] == 64:
            statistics: dict[str, int] = {}
            check_integers(instance, case, statistics=statistics)
            assert 230_000 < statistics["shared_bytes"] <= 232_448


def test_odd_filters_are_stored_one_by_one() -> None:
    case = conv_case("odd_filters", (1, 8, 9, 10), (77, 8, 3, 3), padding=1)
    for instance in ROWS3:
        if instance.direction == "fprop":
            check_integers(instance, case)


def test_bases_aligned_to_the_element_only() -> None:
    """TMA takes multiples of 16 bytes; others go to im2col's kernels."""
    for instance in BF16:
        rows = int(re.search("rows(.)", instance.name)[1])
        case = conv_case("aligned", (2, 16, 6, 8), (24, 16, rows, 3), padding=2)
        check_integers(instance, case, placement="offset")


def test_other_capabilities_are_refused() -> None:
    case = conv_case("small", (1, 8, 5, 5), (8, 8, 3, 3))
    for instance in ROWS3:
        with pytest.raises(RuntimeError, match="no kernel image is available"):
            check_integers(instance, case, capability=80)


REFUSED = (
    (conv_case("", (1, 12, 4, 4), (8, 12, 3, 3)), "C=12 is not a multiple of 8", ""),
    (conv_case("", (1, 8, 4, 4), (12, 8, 3, 3)), "K=12 is not a multiple of 8", "dgrad"),
    (conv_case("", (1, 16, 4, 4), (8, 8, 3, 3), groups=2), "groups=2", ""),
    (conv_case("", (1, 8, 9, 9), (8, 8, 3, 3), 2), "stride 2, it is for stride 1", ""),
    (conv_case("", (1, 8, 9, 9), (8, 8, 3, 3), 1, 0, 2), "dilation 2, it is for dilation 1", ""),
    (conv_case("", (1, 8, 9, 9), (8, 8, 1, 3)), "the filter has 1 rows, the kernel is for 3", ""),
    (conv_case("", (1, 8, 9, 9), (8, 8, 3, 8)), "S=8, the kernel's limit is 7", ""),
    (conv_case("", (1, 8, 2, 9, 9), (8, 8, 1, 3, 3)), "D=2, T=1, it is for planes", ""),
    (conv_case("", (1 << 18, 8, 64, 64), (8, 8, 3, 3)), "an extent is 1073741824", ""),
    (
        conv_case("", (1, 256, 9, 9), (256, 256, 3, 3)),
        r"\d+ bytes of weights and twice \d+ of pixels do not fit into the 231360",
        "",
    ),
)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[1][:24])
def test_limits(row: tuple[ConvCase, str, str]) -> None:
    case, reason, direction = row
    for instance in ROWS3:
        if direction in ("", instance.direction):
            assert re.match(reason, instance.refusal(case)), instance.refusal(case)


def test_offsets_beyond_2_to_31() -> None:
    instance = next(i for i in ROWS3 if i.direction == "fprop" and tile(i)[1] == 64)
    check_last_pixel(instance, 3, 256)


def test_repeatable() -> None:
    case = conv_case("repeat", (2, 40, 9, 18), (24, 40, 3, 3), padding=1)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(case.input_size, generator=generator).bfloat16()
    w = torch.randn(case.weight_size, generator=generator).bfloat16()
    for instance in ROWS3:
        if instance.direction != "fprop":
            continue
        args = (instance.algorithm, instance.name, case, "fprop", (x, w))
        first = run_instance(*args, seed=1, sm_count=1)
        assert torch.equal(first, run_instance(*args, seed=2, sm_count=7))


# C, H and W, K, taps of the narrow layers of ResNet-50, VGG-16 and GoogLeNet.
NARROW = (
    *((64, 56, 64, 3), (64, 224, 64, 3), (64, 112, 128, 3), (128, 112, 128, 3)),
    *((128, 28, 128, 3), (64, 56, 192, 3), (96, 28, 128, 3), (128, 28, 192, 3), (128, 56, 256, 3)),
    *((96, 14, 208, 3), (112, 14, 224, 3), (128, 14, 256, 3), (144, 14, 288, 3)),
    *((16, 28, 32, 5), (32, 28, 96, 5), (16, 14, 48, 5), (24, 14, 64, 5), (32, 14, 64, 5)),
    *((32, 14, 128, 5), (32, 7, 128, 5), (48, 7, 128, 5)),
)


# dgrad where dy is narrow, too.
LAYERS = [("fprop", each) for each in NARROW]
LAYERS += [("dgrad", each) for each in NARROW if each[2] <= 128 and each[3] == 3]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_bytes_from_l2(layer: tuple[str, tuple[int, int, int, int]]) -> None:
    """Pixels and weights together: at most 0.004 per operation the convolution asks for, with 32
    images, of the best instance, chosen or not: im2col's copies take 0.0078 at the best."""
    direction, (c, size, k, taps) = layer
    case = conv_case("narrow", (32, c, size, size), (k, c, taps, taps), padding=taps // 2)
    able = [i for i in BF16 if i.direction == direction and not i.refusal(case)]
    best = min(able, key=lambda i: i.cost(case))
    found = plan(best, case)
    operations = 2 * torch.Size(case.output_size).numel() * c * taps**2
    assert (found["pixel_bytes"] + found["weight_bytes"]) / operations <= 0.004
    # Each block has one part of the weights, and the blocks of a cluster read them once.
    blocks = found["blocks"] * found["parts"]
    assert 0 < blocks <= 132 and found["blocks"] % found["cluster"] == 0
    assert found["weight_bytes"] == found["blocks"] // found["cluster"] * 2 * k * c * taps**2
    assert operations <= found["flops"]


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_what_boxes_have_in_common_with_the_image(direction: str) -> None:
    """`pixel_bytes` counts what a box finds in src, row by row and column by column."""
    # The last has tiles whose boxes are beyond the image.
    for h, w, pad, side in ((28, 28, 1, 3), (5, 70, 4, 5), (33, 9, 0, 3), (9, 40, 6, 3)):
        case = conv_case("", (3, 16, h, w), (16, 16, side, side), padding=pad)
        src, dst = case.input_size[2:], case.output_size[2:]
        first = -pad
        if direction == "dgrad":
            src, dst, first = dst, src, pad - side + 1
        for instance in BF16:
            if instance.direction != direction or instance.refusal(case):
                continue
            found = plan(instance, case)
            expected = 3 * 16 * 2 * found["parts"]
            for extent, pixels, tile_extent in zip(src, dst, found["tile"][1:], strict=True):
                boxes = (range(t + first, t + first + tile_extent + side - 1)
                         for t in range(0, pixels, tile_extent))  # fmt: skip
                expected *= sum(0 <= at < extent for box in boxes for at in box)
            assert found["pixel_bytes"] == expected, f"{instance} {case}"
