"""What no sweep sees of the dgrad of strides above 1 by TMA and wgmma: classes of different sizes,
without taps and without pixels, tails of every extent, and the limits that `applicable` names."""

from __future__ import annotations

import pytest
import torch
from cases import ConvCase, conv_case
from emulated import Instance, instances
from test_cuda_im2col import CLASSES, check_integers
from test_cuda_tma import STRIDED as FPROP_STRIDED

STRIDED = tuple(
    i
    for i in instances()
    if i.algorithm == "tma" and i.direction == "dgrad" and "_strided_" in i.name
)
by_instance = pytest.mark.parametrize("instance", STRIDED, ids=str)

SHAPES = (
    # 143 pixels of the largest class, of three images and two tiles; two chunks of filters to a
    # tap, one 8 wide.
    conv_case("two_chunks", (3, 72, 13, 11), (72, 72, 3, 3), 2, 1),
    conv_case("even", (2, 136, 12, 14), (64, 136, 3, 3), 2, 1),
    # Three of four classes meet no tap.
    conv_case("pointwise", (2, 64, 9, 8), (24, 64, 1, 1), 2),
    # One axis has a stride, the other none.
    conv_case("one_axis", (2, 16, 11, 12), (24, 16, 3, 2), (1, 2), (1, 0)),
    conv_case("dilated", (1, 8, 17, 16), (16, 8, 3, 3), (2, 3), (3, 2), (3, 2)),
    conv_case("wider_padding_than_filter", (2, 8, 6, 5), (16, 8, 2, 3), 2, (3, 4)),
    # 260, 256, 130 and 128 pixels: the smaller classes have fewer tiles.
    conv_case("fewer_tiles", (2, 8, 3, 129), (8, 8, 3, 3), 2, 1),
    conv_case("sequence", (2, 16, 37), (24, 16, 4), 4, 3),
    conv_case("stride_8", (1, 8, 20, 19), (8, 8, 3, 9), 8, (1, 4)),
)


@by_instance
def test_shapes(instance: Instance) -> None:
    """Few blocks, so that one does several tiles and classes, and its ring goes round."""
    strided = [case for case in FPROP_STRIDED if case.id not in ("odd_filters", "one_axis")]
    turn = STRIDED.index(instance)
    for number, case in enumerate((*SHAPES, *strided, *CLASSES)):
        if number % 2 and instance.dtype == torch.float16:
            continue  # another type, the same addresses
        if number % 2 != turn % 2 and instance.dtype == torch.float32:
            continue  # of two tiles, each half
        statistics: dict[str, int] = {}
        check_integers(
            instance,
            case,
            (number + turn) % 3 + 1,
            sm_count=1 + (number + turn) % 3,
            statistics=statistics,
        )
        turned = instance.dtype == torch.float32
        assert statistics["launches"] == 1 + turned, "all classes in one"


def test_bases_aligned_to_the_element_only() -> None:
    """TMA takes multiples of 16 bytes; others go to im2col's kernels."""
    case = conv_case("aligned", (2, 16, 6, 8), (24, 16, 3, 3), 2, 1)
    for instance in (STRIDED[0], STRIDED[-1]):
        check_integers(instance, case, placement="offset")


def test_other_capabilities_are_refused() -> None:
    case = conv_case("pointwise", (1, 8, 2, 2), (8, 8, 1, 1), 2)
    with pytest.raises(RuntimeError, match="no kernel image is available"):
        check_integers(STRIDED[0], case, capability=80)


REFUSED = (
    (conv_case("", (1, 12, 4, 4), (8, 12, 1, 1), 2), "C=12 is not a multiple of 8"),
    (conv_case("", (1, 8, 4, 4), (12, 8, 1, 1), 2), "K=12 is not a multiple of 8"),
    (conv_case("", (1, 16, 4, 4), (8, 8, 1, 1), 2, groups=2), "groups=2"),
    (conv_case("", (1, 8, 4, 4), (8, 8, 3, 3)), "stride 1, it is for strides above 1"),
    # Of the reasons against stride 1, the last one given.
    (
        conv_case("", (1, 8, 300, 4), (8, 8, 3, 1), 1, 0, 128),
        "a tap's offset is 256, TMA takes 0 to 255",
    ),
    (conv_case("", (1, 8, 20, 20), (8, 8, 1, 1), 9), "a stride is 9, the kernel's limit is 8"),
    (
        conv_case("", (1, 8, 4, 4), (8, 8, 1, 1), 2, 260),
        "a corner of the pixels' box is 130, TMA takes -128 to 127",
    ),
    (
        conv_case("", (1, 8, 530, 4), (8, 8, 3, 1), (2, 1), 0, (256, 1)),
        "a tap's offset is 256, TMA takes 0 to 255",
    ),
    (
        conv_case("", (1, 8, 4, 4, 80), (8, 8, 1, 1, 3), (1, 1, 2), (0, 0, 1), (1, 1, 32)),
        "a tap's offset is 32, TMA takes 0 to 31",
    ),
    (conv_case("", (1 << 18, 8, 64, 64), (8, 8, 1, 1), 2), "an extent is 1073741824"),
)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[1][:24])
def test_limits(row: tuple[ConvCase, str]) -> None:
    case, reason = row
    for instance in STRIDED:
        assert reason in instance.refusal(case), instance.refusal(case)


def test_every_dtype_has_one() -> None:
    assert {i.dtype for i in STRIDED} == {torch.bfloat16, torch.float16, torch.float32}
    assert {i.products for i in STRIDED} == {"ieee", "tf32x3", "tf32"}
