"""What no sweep sees of the kernels by TMA and wgmma: tiles that one block does in turn, rings
that go round, bands of tiles, tails of every extent, pixels of several images in one copy, corners
and strides that differ by axis, bases that TMA does not take, and the limits that `applicable`
names."""

from __future__ import annotations

import re

import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import reference_conv
from emulated import Instance, instances, run_instance
from huge_tensor import check_last_pixel
from test_cuda_im2col import check_integers

# Those of one gather in steps of the map; the others have files of their own.
TMA = tuple(
    i
    for i in instances()
    if i.algorithm == "tma"
    and i.direction != "wgrad"
    and "_strided_" not in i.name
    and not i.name.endswith("_streamk")
)
FPROP = tuple(i for i in TMA if i.direction == "fprop")
DGRAD = tuple(i for i in TMA if i.direction == "dgrad")
BF16 = tuple(i for i in TMA if i.dtype == torch.bfloat16)
by_instance = pytest.mark.parametrize("instance", TMA, ids=str)


def tile(instance: Instance) -> tuple[int, int, int]:
    """Extents of what a cluster does together, and its blocks."""
    m, n, pair, split = re.search(
        r"_(\d+)x(\d+)x\d+(?:_pair_([mn]))?(?:_split(\d))?$", instance.name
    ).groups()
    blocks = (2 if pair else 1) * int(split or 1)
    return int(m) * (1 + (pair == "m")), int(n) * (1 + (pair == "n")), blocks


def is_too_short(instance: Instance, case: ConvCase) -> bool:
    """Whether gemm_k has fewer tiles than the instance has slices."""
    return "it cuts it in" in instance.refusal(case)


# Odd images, so that tiles start and end within rows and images.
SHAPES = (
    # 286 pixels of two images, a tail of gemm_n, two chunks of channels to a tap, one 8 wide.
    conv_case("two_chunks", (2, 72, 13, 11), (72, 72, 3, 3), padding=1),
    conv_case("row_filter", (1, 64, 7, 17), (64, 64, 1, 5), padding=(0, 2)),
    conv_case("column_filter", (3, 8, 9, 5), (40, 8, 5, 1), padding=(1, 0)),
    conv_case("dilated", (1, 16, 15, 14), (24, 16, 3, 2), 1, (3, 1), (3, 2)),
    conv_case("wider_padding_than_filter", (2, 8, 4, 5), (16, 8, 2, 3), padding=(3, 4)),
    conv_case("one_pixel_images", (200, 24, 1, 1), (136, 24, 1, 1)),
    conv_case("volume", (2, 8, 3, 4, 5), (16, 8, 2, 3, 1), 1, (1, 1, 0), (1, 1, 1)),
    conv_case("sequence", (2, 16, 37), (24, 16, 4), padding=3, dilation=2),
)
STRIDED = (
    conv_case("strides_differ", (2, 16, 11, 12), (24, 16, 3, 2), (1, 2), (1, 0)),
    conv_case("stride_2", (3, 64, 13, 9), (40, 64, 3, 3), 2, 1),
    conv_case("stride_beyond_filter", (2, 8, 17, 30), (8, 8, 1, 2), (5, 8), (0, 3)),
    conv_case("strided_volume", (1, 8, 5, 6, 7), (8, 8, 3, 2, 3), (2, 1, 3), (1, 0, 2), (1, 2, 1)),
    # K that is no multiple of 8: scalar stores.
    conv_case("odd_filters", (1, 8, 9, 10), (77, 8, 3, 3), padding=1),
)


# Clusters are the same code in all types, but for three products' main loop.
SHAPED = [i for i in TMA if i in BF16 or i.products == "tf32x3" or tile(i)[2] == 1]


@pytest.mark.parametrize("instance", SHAPED, ids=str)
def test_shapes(instance: Instance) -> None:
    """Few blocks, so that one does several tiles and its ring goes round."""
    cases = SHAPES + (STRIDED if instance.direction == "fprop" else ())
    turn = TMA.index(instance)
    for number, case in enumerate(c for c in cases if not is_too_short(instance, c)):
        check_integers(instance, case, (number + turn) % 3 + 1, sm_count=1 + (number + turn) % 3)


@pytest.mark.parametrize("instance", BF16, ids=str)
def test_bands_of_tiles(instance: Instance) -> None:
    """More columns of tiles than a band has, and a last one that is narrower: every tile once."""
    m, n, blocks = tile(instance)
    columns = 9 if blocks < 4 else 4  # a band has 8 blocks, 4 pairs
    channels = columns * n + 8
    size = (channels, 8) if instance.direction == "fprop" else (8, channels)
    taps = blocks // 2 or 1
    case = conv_case("bands", (1, size[1], 1, m + taps), (*size, 1, taps))
    for sm_count in (3, 132):
        statistics: dict[str, int] = {}
        check_integers(instance, case, sm_count=sm_count, statistics=statistics)
        clusters = min(max(1, sm_count // blocks), 2 * (columns + 1))
        assert statistics["launches"] == 1 and statistics["blocks"] == clusters * blocks


def test_bases_aligned_to_the_element_only() -> None:
    """TMA takes multiples of 16 bytes; others go to im2col's kernels."""
    case = conv_case("aligned", (2, 16, 6, 8), (24, 16, 3, 3), padding=1)
    for instance in (i for i in TMA if i.dtype != torch.float16):
        check_integers(instance, case, placement="offset")


def test_other_capabilities_are_refused() -> None:
    """Its code is for 9.0 alone: on others nothing is launched."""
    case = conv_case("two_by_two", (1, 8, 3, 3), (8, 8, 2, 2))
    for instance in TMA:
        with pytest.raises(RuntimeError, match="no kernel image is available"):
            check_integers(instance, case, capability=80)


REFUSED = (
    (conv_case("", (1, 12, 4, 4), (8, 12, 1, 1)), "C=12 is not a multiple of 8", "16-bit"),
    (conv_case("", (1, 6, 4, 4), (8, 6, 1, 1)), "C=6 is not a multiple of 4", "float32"),
    (conv_case("", (1, 8, 4, 4), (12, 8, 1, 1)), "K=12 is not a multiple of 8", "16-bit dgrad"),
    (conv_case("", (1, 8, 4, 4), (6, 8, 1, 1)), "K=6 is not a multiple of 4", "float32 dgrad"),
    (conv_case("", (1, 16, 4, 4), (8, 8, 1, 1), groups=2), "groups=2", ""),
    (conv_case("", (1, 8, 20, 20), (8, 8, 1, 1), 9), "a stride is 9, TMA takes 1 to 8", "fprop"),
    (conv_case("", (1, 8, 4, 4), (8, 8, 1, 1), 2), "stride 2, its dgrad is for stride 1", "dgrad"),
    (
        conv_case("", (1, 8, 4, 4), (8, 8, 3, 3), 1, 129, 1),
        "a corner of the pixels' box is -129, TMA takes -128 to 127",
        "fprop",
    ),
    (
        conv_case("", (1, 8, 300, 4), (8, 8, 3, 1), 1, 0, 128),
        "a tap's offset is 256, TMA takes 0 to 255",
        "",
    ),
    (
        conv_case("", (1, 8, 4, 4, 40), (8, 8, 1, 1, 3), 1, (0, 0, 1), (1, 1, 16)),
        "a tap's offset is 32, TMA takes 0 to 31",
        "",
    ),
    (
        conv_case("", (1, 8, 4, 4, 4), (8, 8, 1, 1, 1), 1, (0, 17, 0)),
        "a corner of the pixels' box is -17, TMA takes -16 to 15",
        "fprop",
    ),
    (conv_case("", (1 << 18, 8, 64, 64), (8, 8, 1, 1)), "an extent is 1073741824", ""),
)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[1][:24])
def test_limits(row: tuple[ConvCase, str, str]) -> None:
    case, reason, those = row  # of a direction, a kind of dtypes, or both
    for instance in TMA:
        kind = "float32" if instance.dtype == torch.float32 else "16-bit"
        if {instance.direction, kind}.issuperset(those.split()):
            assert reason in instance.refusal(case), instance.refusal(case)


def test_the_widest_that_it_takes() -> None:
    """Just within the limits of the test above."""
    cases = (
        conv_case("padding_127", (1, 8, 2, 1), (8, 8, 1, 1), 1, (127, 0), 1),
        conv_case("offset_255", (1, 8, 257, 1), (8, 8, 2, 1), 1, (127, 0), (255, 1)),
        conv_case("stride_8", (1, 8, 20, 20), (8, 8, 1, 1), 8),
    )
    for instance in FPROP[:1]:
        for case in cases:
            check_integers(instance, case)


def test_offsets_beyond_2_to_31() -> None:
    instance = next(i for i in FPROP if i.name == "fprop_bf16_nhwc_wgmma_128x128x64")
    check_last_pixel(instance, 1, 128)


@pytest.mark.parametrize("instance", [i for i in TMA if i.products == "tf32"], ids=lambda i: i.name)
def test_float32_is_rounded_to_tf32(instance: Instance) -> None:
    """Operands of one sign: if their low bits were cut off, every sum would be too small."""
    case = conv_case("rounded", (1, 64, 8, 16), (64, 64, 1, 1))  # dy is like x
    generator = torch.Generator().manual_seed(4)
    a = torch.rand(case.input_size, generator=generator) + 1
    w = torch.rand(case.weight_size, generator=generator) + 1
    result = run_instance(instance.algorithm, instance.name, case, instance.direction, (a, w))
    expected, _ = reference_conv(case, instance.direction, (a, w), None)
    relative = (result.double() - expected) / expected
    assert relative.abs().max() > 2**-16  # TF32, and nothing better
    assert relative.mean().abs() < 2**-13  # cut off: -2^-10.5 on average


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_filter_in_the_workspace(direction: str) -> None:
    """Split, turned, or both, in more tiles than the few blocks of a device with one SM."""
    case = conv_case("filters", (1, 100, 3, 4), (132, 100, 3, 2), padding=1)
    elements = 132 * 100 * 6
    for instance in (i for i in TMA if i.direction == direction and i.dtype == torch.float32):
        parts = {"tf32": 1 if direction == "dgrad" else 0, "tf32x3": 2}[instance.products]
        assert instance.workspace(case) == 4 * parts * elements
        if parts and tile(instance) == (128, 64, 1):
            statistics: dict[str, int] = {}
            check_integers(instance, case, sm_count=1, statistics=statistics)
            assert statistics["launches"] == 2 and statistics["blocks"] == 8 + 1


def test_repeatable() -> None:
    case = conv_case("repeat", (2, 40, 9, 8), (24, 40, 3, 3), padding=1)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(case.input_size, generator=generator).bfloat16()
    w = torch.randn(case.weight_size, generator=generator).bfloat16()
    for instance in FPROP:
        if instance.dtype != torch.bfloat16:
            continue
        args = (instance.algorithm, instance.name, case, "fprop", (x, w))
        first = run_instance(*args, seed=1, sm_count=1)
        assert torch.equal(first, run_instance(*args, seed=2, sm_count=7))
