"""What no sweep sees of the CUDA im2col kernels: bases that are aligned to the element only, tails
of every tile, the parity classes of strided dgrad, the split of wgrad, offsets beyond 2^31, and the
limits that `applicable` names."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import (
    assert_close,
    integer_operands,
    integer_reference,
    random_operands,
    random_reference,
)
from emulated import Instance, emulation, instances, native_problem, run_instance

from fastconv import reference

IM2COL = tuple(i for i in instances() if i.algorithm == "im2col")
VECTORS = tuple(i for i in IM2COL if re.search(r"_vec\d|_nchw_.*128x", i.name))
WGRAD = tuple(i for i in IM2COL if i.direction == "wgrad")
DGRAD = tuple(i for i in IM2COL if i.direction == "dgrad")


def check_integers(instance: Instance, case: ConvCase, seed: int = 1, **options: object) -> None:
    """Small integers must come out exactly."""
    assert not instance.refusal(case), instance.refusal(case)
    a, b, bias = integer_operands(case, instance.direction)
    a, b = a.to(instance.dtype), b.to(instance.dtype)
    bias = None if bias is None else bias.to(instance.dtype)
    arguments = (instance.algorithm, instance.name, case, instance.direction, (a, b), bias, seed)
    result = run_instance(*arguments, **options)  # type: ignore[arg-type]
    expected = integer_reference(case, instance.direction).to(instance.dtype)
    wrong = (result != expected).sum().item()
    assert torch.equal(result, expected), f"{instance} {case.id}: {wrong} of {expected.numel()}"


def test_every_direction_dtype_and_layout_has_a_kernel_for_everything() -> None:
    """One instance of each takes any channel count, filter, stride, dilation and groups."""
    odd = conv_case("odd", (2, 6, 29, 27), (9, 2, 11, 7), (3, 2), (4, 1), (1, 2), groups=3)
    found = {(i.direction, i.dtype, i.layout, i.products) for i in IM2COL if not i.refusal(odd)}
    kinds = [(torch.float32, products) for products in ("ieee", "tf32x3", "tf32")]
    kinds += [(torch.bfloat16, "ieee"), (torch.float16, "ieee")]
    for direction in ("fprop", "dgrad", "wgrad"):
        for dtype, products in kinds:
            for layout in ("NCHW", "NHWC"):
                assert (direction, dtype, layout, products) in found


ALIGNED = conv_case("aligned", (2, 16, 6, 8), (24, 16, 3, 3), padding=1)


@pytest.mark.parametrize("instance", VECTORS, ids=str)
def test_bases_aligned_to_the_element_only(instance: Instance) -> None:
    """All of x, w, dy and the result one element behind a 4096-byte boundary."""
    check_integers(instance, ALIGNED, placement="offset")


# gemm_m, gemm_n and gemm_k on and off 64 and 128, 16 and 32; more than one image to a tile.
TAILS = (
    conv_case("tail_pixels", (3, 8, 5, 9), (16, 8, 1, 1)),  # 135 pixels
    conv_case("tail_channels", (1, 136, 2, 4), (72, 136, 1, 1)),
    conv_case("tail_both", (1, 40, 17, 8), (136, 40, 3, 1), padding=(1, 0)),
    conv_case("tail_exact", (1, 64, 8, 16), (128, 64, 1, 1)),
    conv_case("tail_short_k", (2, 8, 8, 8), (8, 8, 1, 1)),
    conv_case("tail_groups", (2, 48, 4, 6), (144, 16, 3, 3), padding=1, groups=3),
)


@pytest.mark.parametrize("instance", IM2COL, ids=str)
def test_tile_tails(instance: Instance) -> None:
    for seed, case in enumerate(TAILS):
        if case.id == "tail_pixels" and "the output image's size" in instance.refusal(case):
            continue
        check_integers(instance, case, seed % 3 + 1)


def test_most_taps_of_the_mask() -> None:
    """63 taps are the most that the masks and tables hold; 64 go to the analytic iterators."""
    most = conv_case("taps63", (1, 8, 10, 24), (8, 8, 3, 21), padding=(1, 10))
    more = conv_case("taps64", (1, 8, 10, 24), (8, 8, 4, 16), padding=(1, 10))
    masked = [i for i in IM2COL if "128x" in i.name and i.direction != "wgrad"]
    assert masked
    for instance in masked:
        check_integers(instance, most)
        assert instance.refusal(more) == "the kernel's size is 64, the kernel's limit is 63"


CLASSES = (
    conv_case("classes_2x3", (2, 8, 9, 10), (8, 8, 3, 4), (2, 3), (1, 2)),
    # gcd(stride, dilation) = 2: half of the rows meet no tap at all and are zero.
    conv_case("classes_gcd2", (1, 8, 13, 12), (16, 8, 3, 3), 4, 3, 2),
    conv_case("classes_beyond_filter", (1, 8, 11, 12), (8, 8, 2, 1), (5, 3), 1),
    conv_case("classes_3d", (1, 8, 5, 4, 6), (8, 8, 3, 2, 3), (2, 1, 3), (1, 0, 2), (1, 2, 1)),
    # Fewer rows than the stride: classes without a pixel.
    conv_case("classes_empty", (1, 8, 3, 2), (8, 8, 3, 3), 7, 3),
)


@pytest.mark.parametrize("instance", DGRAD, ids=str)
def test_parity_classes(instance: Instance) -> None:
    """All classes in one launch, and only as many tiles as the classes' own pixels need."""
    for case in CLASSES:
        statistics: dict[str, int] = {}
        check_integers(instance, case, statistics=statistics)
        assert statistics["launches"] == 1
        extents = zip(case.stride, case.input_size[2:], strict=True)
        classes = torch.Size(min(step, extent) for step, extent in extents).numel()
        assert statistics["blocks"] == classes, "each class fits one tile here"


def wgrad_splits(instance: Instance, case: ConvCase) -> int:
    partial = 4 * torch.Size(case.weight_size).numel()
    assert instance.workspace(case) % partial == 0
    return instance.workspace(case) // partial


MANY_PIXELS = conv_case("many_pixels", (3, 8, 24, 22), (16, 8, 3, 3), padding=1)


@pytest.mark.parametrize("instance", WGRAD, ids=str)
def test_wgrad_splits_are_exact_and_repeatable(instance: Instance) -> None:
    """The workspace is one partial dw in fp32 per split; their number depends on the problem and
    the SM count only, and so do the bits."""
    splits = wgrad_splits(instance, MANY_PIXELS)
    assert splits >= 4
    statistics: dict[str, int] = {}
    check_integers(instance, MANY_PIXELS, statistics=statistics)
    assert statistics["launches"] == 2
    assert statistics["workspace"] == splits * 4 * 16 * 8 * 9

    a, b, _ = random_operands(MANY_PIXELS, "wgrad", instance.dtype)
    expected, magnitude = random_reference(MANY_PIXELS, "wgrad", instance.dtype)
    results = []
    for seed in (1, 2, 3):
        arguments = (instance.algorithm, instance.name, MANY_PIXELS, "wgrad", (a, b), None, seed)
        results.append(run_instance(*arguments, placement="start", capability=80 + 5 * (seed % 3)))
        assert torch.equal(results[0], results[-1])
    assert_close(
        results[0], expected, magnitude, instance.arithmetic, MANY_PIXELS, "wgrad", str(instance)
    )


@pytest.mark.parametrize("instance", WGRAD, ids=str)
def test_wgrad_without_a_split_writes_dw_itself(instance: Instance) -> None:
    few = conv_case("few_pixels", (1, 8, 4, 4), (16, 8, 3, 3), padding=1)
    assert instance.workspace(few) == 0
    statistics: dict[str, int] = {}
    check_integers(instance, few, statistics=statistics)
    assert statistics["launches"] == 1


def test_only_wgrad_needs_a_workspace() -> None:
    for instance in IM2COL:
        if instance.direction != "wgrad" and not instance.refusal(MANY_PIXELS):
            assert instance.workspace(MANY_PIXELS) == 0


def refusals(case: ConvCase, layout: str = "NHWC") -> set[str]:
    return {i.refusal(case) for i in IM2COL if i.layout == layout}


def test_refusals_name_the_values() -> None:
    odd = conv_case("odd_c", (1, 12, 4, 4), (8, 12, 3, 3))
    assert "C/groups=12 is not a multiple of 8" in refusals(odd)
    odd = conv_case("odd_k", (1, 8, 4, 4), (12, 8, 3, 3))
    assert "K/groups=12 is not a multiple of 8" in refusals(odd)
    odd = conv_case("odd_taps", (1, 3, 4, 4), (12, 3, 3, 3))
    assert "C/groups * kernel size=27 is not a multiple of 8" in refusals(odd, "NCHW")
    assert "the output image's size=9 is not a multiple of 8" in refusals(
        conv_case("odd_out", (1, 8, 5, 5), (8, 8, 3, 3)), "NCHW"
    )
    image = conv_case("image", (1, 8, 30000, 30000), (8, 8, 3, 3))
    assert all("the elements of one image is" in why for why in refusals(image))
    extent = conv_case("extent", (1, 1, 1 << 29), (1, 1, 3))
    assert all("an extent is 536870912" in why for why in refusals(extent) if "C/groups" not in why)
    # Each image alone would do, but a tile covers pixels of four.
    span = conv_case("span", (4, 8, 11000, 11000), (8, 8, 1, 1), stride=8000)
    assert any("the images that one tile reads" in why for why in refusals(span))


LARGE = tuple(i for i in IM2COL if i.dtype == torch.bfloat16 and i.direction != "dgrad")


@pytest.mark.parametrize("instance", LARGE, ids=str)
def test_offsets_beyond_32_bits(instance: Instance) -> None:
    """x has 2.9e9 elements, of which every 950th row and column is read. (dgrad would have to write
    all of them.)"""
    size, stride = 11000, 950
    n, c, k = 3, 8, 8
    case = conv_case("large", (n, c, size, size), (k, c, 1, 1), stride=stride)
    out = case.output_size[2]
    generator = torch.Generator().manual_seed(1)
    seen = torch.randint(-2, 3, (n, c, out, out), generator=generator).bfloat16()
    w = torch.randint(-2, 3, (k, c, 1, 1), generator=generator).bfloat16()
    dy = torch.randint(-1, 2, (n, k, out, out), generator=generator).bfloat16()
    nhwc = instance.layout == "NHWC"

    def stored(t: torch.Tensor) -> np.ndarray:
        t = t.movedim(1, -1) if nhwc else t
        return t.contiguous().flatten().view(torch.uint8).numpy()

    # Offsets of the elements that are read, in the order in which `stored` has them.
    axes = [torch.arange(extent) for extent in (n, c, out, out)]
    i, j, row, column = torch.meshgrid(*axes, indexing="ij")
    row, column = row * stride, column * stride
    if nhwc:
        offsets = (((i * size + row) * size + column) * c + j).movedim(1, -1)
    else:
        offsets = ((i * c + j) * size + row) * size + column
    values = stored(seen).reshape(-1, 2)
    pokes = [(2 * at, value) for at, value in zip(offsets.flatten().tolist(), values, strict=True)]
    elements = n * c * size * size
    assert 2**31 < max(offsets.flatten().tolist()) < elements
    x = (2 * elements, pokes)

    if instance.direction == "fprop":
        operands, expected = (x, stored(w)), reference.conv_fprop(seen, w)
    else:
        operands, expected = (stored(dy), x), reference.conv_wgrad(dy, seen, w.shape)
    module = emulation()
    result, _, _ = module.run_conv(
        "im2col", instance.name, native_problem(case), *operands, None, module.Device(90, 132)
    )
    assert (result == stored(expected.bfloat16())).all()
