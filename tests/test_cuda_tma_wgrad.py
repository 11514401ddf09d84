"""What no sweep sees of the wgrad by TMA and wgmma: items that one block does in turn, stages of
several images and several taps, tails of every extent, pixels cut in one range and in many, bases
that TMA does not take, and the limits that `applicable` names."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import assert_close, random_operands, random_reference
from emulated import Instance, emulation, instances, native_problem, planned_launches, run_instance
from test_cuda_im2col import check_integers
from test_cuda_tma import SHAPES, STRIDED

WGRAD = tuple(i for i in instances() if i.algorithm == "tma" and i.direction == "wgrad")
BF16 = tuple(i for i in WGRAD if i.dtype == torch.bfloat16)


def tile(instance: Instance) -> tuple[int, int]:
    m, n = re.search(r"_(\d+)x(\d+)x64$", instance.name).groups()
    return int(m), int(n)


MORE = (
    # One stage, and a tile of dw that is whole on no side.
    conv_case("one_stage", (1, 24, 4, 4), (40, 24, 1, 1)),
    # Tiles of 64 filters and more, of which the last has 8; units of two taps, of which one is 8
    # channels wide, and behind the last one.
    conv_case("tails", (3, 72, 5, 7), (264, 72, 1, 3), padding=(0, 1)),
    # As many pixels as stages have.
    conv_case("whole_stages", (2, 64, 8, 8), (128, 128 // 2, 1, 2), padding=(0, 1)),
)


@pytest.mark.parametrize("instance", WGRAD, ids=str)
def test_shapes(instance: Instance) -> None:
    """Few blocks, so that one does several items and its ring goes round."""
    turn = WGRAD.index(instance)
    cases = [case for case in SHAPES + STRIDED + MORE if case.weight_size[0] % 8 == 0]
    # Each of them by half of the instances, every special one by all.
    for number, case in enumerate(cases):
        if case in MORE or (number + turn) % 2 == 0:
            check_integers(instance, case, (number + turn) % 3 + 1, sm_count=1 + number % 3)


MANY_PIXELS = conv_case("many_pixels", (3, 16, 24, 23), (24, 16, 3, 1), padding=(1, 0))


@pytest.mark.parametrize("instance", BF16, ids=str)
def test_one_range_and_many(instance: Instance) -> None:
    """Of 24 stages of pixels a range has eight or more. One: no workspace, no second launch. The
    bits depend on how many there are, not on the order of threads or blocks."""
    m, n = tile(instance)
    tiles = -(-24 // m) * -(-3 * 64 // n)
    partial = 4 * 24 * 16 * 3
    for sm_count, ranges in ((1, 1), (8 * tiles, 3)):
        planned: dict[str, int] = {}
        check_integers(instance, MANY_PIXELS, 2, sm_count=sm_count, statistics=planned)
        assert planned["launches"] == (1 if ranges == 1 else 2)
        assert planned["workspace"] >= (0 if ranges == 1 else ranges * partial)
        blocks = -(-24 * 16 * 3 // 256) if ranges > 1 else 0  # of the second launch
        assert planned["blocks"] == min(sm_count, tiles * ranges) + blocks

    a, b, _ = random_operands(MANY_PIXELS, "wgrad", instance.dtype)
    expected, magnitude = random_reference(MANY_PIXELS, "wgrad", instance.dtype)
    args = (instance.algorithm, instance.name, MANY_PIXELS, "wgrad", (a, b))
    first = run_instance(*args, seed=1)
    assert torch.equal(first, run_instance(*args, seed=3))
    assert_close(first, expected, magnitude, instance.arithmetic, MANY_PIXELS, "wgrad")


def test_ranges_fill_the_device() -> None:
    """dw alone is few tiles (five of 128 columns for 64 filters): no wave is mostly empty, and the
    partial sums stay small."""
    for c, size in ((64, 56), (128, 28), (256, 14)):
        case = conv_case(f"{c}", (32, c, size, size), (c, c, 3, 3), padding=1)
        best = min(BF16, key=lambda i, case=case: i.cost(case))
        m, n = tile(best)
        tiles = -(-c // m) * -(-9 * c // n)
        launches = planned_launches(best, case)
        assert len(launches) == 2 and launches[0].blocks >= 0.75 * 132 > tiles, f"{best} {case.id}"
        assert best.workspace(case) <= 128 << 20


@pytest.mark.parametrize("instance", BF16, ids=str)
def test_bases_aligned_to_the_element_only(instance: Instance) -> None:
    """TMA takes multiples of 16 bytes; others go to im2col's kernels, in the same workspace."""
    case = conv_case("aligned", (2, 16, 16, 17), (24, 16, 3, 3), padding=1)
    check_integers(instance, case, placement="offset")


def test_other_capabilities_are_refused() -> None:
    with pytest.raises(RuntimeError, match="no kernel image is available"):
        check_integers(BF16[0], MORE[0], capability=80)


REFUSED = (
    (conv_case("", (1, 12, 4, 4), (8, 12, 1, 1)), "C=12 is not a multiple of 8"),
    (conv_case("", (1, 8, 4, 4), (12, 8, 1, 1)), "K=12 is not a multiple of 8"),
    (conv_case("", (1, 16, 4, 4), (8, 8, 1, 1), groups=2), "groups=2"),
    (conv_case("", (1, 8, 20, 20), (8, 8, 1, 1), 9), "a stride is 9, TMA takes 1 to 8"),
    (
        conv_case("", (1, 8, 4, 4), (8, 8, 3, 3), 1, 129, 1),
        "a corner of the pixels' box is -129, TMA takes -128 to 127",
    ),
    (
        conv_case("", (1, 8, 300, 4), (8, 8, 3, 1), 1, 0, 128),
        "a tap's offset is 256, TMA takes 0 to 255",
    ),
    (conv_case("", (1 << 18, 8, 64, 64), (8, 8, 1, 1)), "an extent is 1073741824"),
)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row[1][:24])
def test_limits(row: tuple[ConvCase, str]) -> None:
    case, reason = row
    for instance in WGRAD:
        assert reason in instance.refusal(case), instance.refusal(case)


def test_the_widest_that_it_takes() -> None:
    """Just within the limits of the test above: offsets beyond what a signed byte holds."""
    for case in (
        conv_case("offset_255", (1, 8, 257, 1), (8, 8, 2, 1), 1, (127, 0), (255, 1)),
        conv_case("offset_w", (1, 8, 1, 257), (8, 8, 1, 2), 1, (0, 127), (1, 255)),
        conv_case("offset_31", (1, 8, 32, 2, 33), (8, 8, 2, 1, 2), 1, (15, 0, 15), (31, 1, 31)),
    ):
        check_integers(BF16[0], case)


def test_offsets_beyond_2_to_31() -> None:
    """The last weights of more than 2^31 bytes, of which only touched pages are there."""
    case = conv_case("huge", (1, 65528, 1, 1), (32760, 65528, 1, 1))
    module = emulation()
    instance = next(i for i in BF16 if i.name.endswith("128x128x64"))
    weights = 32760 * 65528

    def raw(length: int, at: int, value: float) -> np.ndarray:
        t = torch.zeros(length, dtype=torch.bfloat16)
        t[at] = value
        return t.view(torch.uint8).numpy()

    (last,), _, _ = module.run_conv(
        instance.algorithm,
        instance.name,
        native_problem(case),
        raw(32760, 32759, 2),
        raw(65528, 65525, 3),
        None,
        module.Device(90, 256 * 512),  # a block to a tile, so that few blocks are enough
        [(weights * 2 - 16, 16)],
        seed=1,
        block_limit=2,
    )
    assert torch.from_numpy(last).view(torch.bfloat16).tolist() == [0, 0, 0, 0, 0, 6, 0, 0]
