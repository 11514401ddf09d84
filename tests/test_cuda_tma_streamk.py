"""What no sweep sees of the kernels by TMA and wgmma whose clusters share tiles: every way in which
stretches of gemm_k meet tiles, shares that are not equal, statistics and bits of shared tiles, and
what they ask of memory."""

from __future__ import annotations

import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import reference_conv
from emulated import Instance, emulation, instances, native_problem, run_instance
from fused_reference import check_statistics
from test_cuda_im2col import check_integers
from test_cuda_tma import REFUSED, SHAPES

STREAMK = tuple(i for i in instances() if i.name.endswith("_streamk"))
BF16 = tuple(i for i in STREAMK if i.dtype == torch.bfloat16)
FPROP = BF16[0]
# Two blocks of 128x256: sums as float, and eight flags of 8 bytes each.
CLUSTER = 2 * (4 * 128 * 256 + 64)


def row_of_tiles(tiles: int, k_tiles: int, direction: str = "fprop") -> ConvCase:
    """As many tiles of 256 pixels by 256 channels, the last of 40 pixels; a tap to a tile of
    gemm_k, since there are fewer than 64 channels."""
    pixels = (tiles - 1) * 256 + 40
    inputs = pixels + k_tiles - 1 if direction == "fprop" else pixels
    padding = (0, 0) if direction == "fprop" else (0, k_tiles - 1)
    return conv_case(
        f"{tiles} tiles of {k_tiles}", (1, 8, 1, inputs), (8, 8, 1, k_tiles), padding=padding
    )


# (tiles, k_tiles, SMs, clusters of the launch, whether tiles are shared), and whose sums an owner
# adds: that is what the name says.
WAYS = {
    "whole rounds": (2, 3, 4, 2, False),
    "one cluster": (2, 3, 1, 1, False),
    "two to each tile": (2, 4, 8, 4, True),
    # 2 k_tiles each: the second ends one tile and begins the next one.
    "a stretch over a border": (2, 3, 7, 3, True),
    "five to one tile": (1, 7, 11, 5, True),
    "more room than k_tiles": (1, 3, 132, 3, True),
    "unequal shares": (2, 5, 6, 3, True),
    # One whole round; three tiles to share, nine k_tiles by two.
    "behind a whole round": (5, 3, 4, 2, True),
}


def stretches(tiles: int, k_tiles: int, clusters: int) -> list[range]:
    """What each cluster does of the shared tiles' k_tiles."""
    rounds, rest = divmod(tiles, clusters)
    total = (rest + (clusters if rounds else 0)) * k_tiles
    shares = [total // clusters + (c < total % clusters) for c in range(clusters)]
    return [range(sum(shares[:c]), sum(shares[: c + 1])) for c in range(clusters)]


def test_ways_are_what_they_are_called() -> None:
    def owners(way: str) -> list[list[int]]:
        """The clusters that have a part of each shared tile."""
        tiles, k_tiles, _, clusters, shared = WAYS[way]
        assert shared
        cuts = stretches(tiles, k_tiles, clusters)
        return [
            [c for c, cut in enumerate(cuts) if any(k in cut for k in range(t, t + k_tiles))]
            for t in range(0, cuts[-1].stop, k_tiles)
        ]

    assert owners("two to each tile") == [[0, 1], [2, 3]]
    assert owners("a stretch over a border") == [[0, 1], [1, 2]]
    assert owners("five to one tile") == [[0, 1, 2, 3, 4]]
    assert owners("unequal shares") == [[0, 1], [1, 2]]
    assert {len(cut) for cut in stretches(2, 5, 3)} == {3, 4}
    assert owners("behind a whole round") == [[0], [0, 1], [1]]


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_sharing(way: str) -> None:
    tiles, k_tiles, sms, clusters, shared = WAYS[way]
    for turn, instance in enumerate(BF16):
        case = row_of_tiles(tiles, k_tiles, instance.direction)
        statistics: dict[str, int] = {}
        seed = len(way) + turn
        check_integers(instance, case, seed, sm_count=sms, statistics=statistics)
        assert statistics["blocks"] == 2 * clusters and statistics["launches"] == 1
        assert statistics["workspace"] == (CLUSTER * clusters if shared else 0)


@pytest.mark.parametrize("seed", range(4))
def test_any_room_and_order(seed: int) -> None:
    """However many clusters run at a time, and whichever goes first: five, all but one wait."""
    check_integers(FPROP, row_of_tiles(3, 2), seed, sm_count=10)


@pytest.mark.parametrize("instance", BF16, ids=str)
def test_shapes(instance: Instance) -> None:
    """Two columns of tiles, tails, several chunks to a tap, a volume."""
    wide = conv_case("wide", (1, 264, 2, 9), (264, 264, 1, 1))
    for number, case in enumerate((SHAPES[0], SHAPES[-2], wide)):
        check_integers(instance, case, number, sm_count=6)


def test_same_bits_in_any_order() -> None:
    case = row_of_tiles(1, 3)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(case.input_size, generator=generator).bfloat16()
    w = torch.randn(case.weight_size, generator=generator).bfloat16()
    args = (FPROP.algorithm, FPROP.name, case, "fprop", (x, w))
    first, *others = (run_instance(*args, seed=seed, sm_count=6) for seed in (1, 2))
    assert all(torch.equal(first, other) for other in others)
    expected, _ = reference_conv(case, "fprop", (x, w), None)
    torch.testing.assert_close(first.double(), expected, atol=0.02, rtol=0.01)


def test_statistics_of_shared_tiles() -> None:
    """Whoever ends a tile leaves its moments, behind sums and flags in the workspace."""
    case = row_of_tiles(2, 4)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(case.input_size, generator=generator).bfloat16()
    w = torch.randn(case.weight_size, generator=generator).bfloat16()
    args = (FPROP.algorithm, FPROP.name, case, "fprop", (x, w))
    moments: list[torch.Tensor] = []
    y = run_instance(*args, seed=2, sm_count=6, moments=moments)
    assert torch.equal(y, run_instance(*args, seed=1, sm_count=6))
    check_statistics(y, (moments[0], moments[1]), str(FPROP))


def test_limits_and_fallback() -> None:
    aligned = conv_case("aligned", (2, 16, 6, 8), (24, 16, 3, 3), padding=1)
    for instance in STREAMK:
        for case, reason, direction in REFUSED:
            if direction in ("", instance.direction, "16-bit"):
                assert reason in instance.refusal(case)
        with pytest.raises(RuntimeError, match="no kernel image is available"):
            check_integers(instance, aligned, capability=80)
    for instance in BF16:
        check_integers(instance, aligned, placement="offset")
    long = conv_case("", (1, 1 << 26, 1, 1), (8, 1 << 26, 1, 1))
    assert "gemm_k is 1048576 tiles, the kernel's limit is 1048575" in FPROP.refusal(long)


def test_workspace_is_bounded() -> None:
    """By the clusters that a device holds, whatever the problem; none where rounds are whole."""
    module = emulation()
    whole = conv_case("", (1, 64, 256, 66), (256, 64, 1, 1))
    ragged = conv_case("", (64, 512, 14, 14), (512, 512, 3, 3), padding=1)
    for sms in (132, 114, 78):
        device = module.Device(90, sms)
        for instance in STREAMK:
            needed = instance.native.workspace(native_problem(ragged), device)
            assert needed == CLUSTER * (sms // 2)
    assert FPROP.workspace(whole) == 0
