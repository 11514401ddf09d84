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


# C, H and W, K of the narrow 3x3 layers of ResNet-50, VGG-16 and GoogLeNet.
NARROW = (
    *((64, 56, 64), (64, 224, 64), (64, 112, 128), (128, 112, 128)),
    *((128, 28, 128), (64, 56, 192), (96, 28, 128), (128, 56, 256)),
)


@pytest.mark.parametrize("layer", NARROW, ids=str)
def test_bytes_from_l2(layer: tuple[int, int, int]) -> None:
    """At most 0.004 per operation of what a tile reads. A block's weights come on top, once: with
    32 images at most as much again."""
    c, size, k = layer
    case = conv_case("narrow", (32, c, size, size), (k, c, 3, 3), padding=1)
    able = [i for i in ROWS3 if i.direction == "fprop" and not i.refusal(case)]
    assert able
    for instance in able:
        found = plan(instance, case)
        assert 0.001 < found["pixel_bytes"] / found["flops"] <= 0.004
        blocks = found["blocks"] * found["parts"]
        assert found["weight_bytes"] == blocks * found["w_bytes"]
        assert blocks <= 132 and found["weight_bytes"] / found["flops"] <= 0.004
        # A multiply-add that the convolution asks for is done, and not many others.
        macs = torch.Size(case.output_size).numel() * c * 9
        assert 0.3 < 2 * macs / found["flops"] <= 1
