"""What the cost model of the kernels by TMA and wgmma promises of its own choices for a device with
132 SMs: bytes from L2 and how full the rounds are. The figures are those that the costs are made
of; speed is not measured on a GPU."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cases import ConvCase, conv_case
from emulated import Instance, emulation, instances, native_problem
from test_cuda_costs import BATCH, VGG, layer

SMS = 132
# (count, C, extent, K, kernel, stride) of ResNet-50 behind its stem.
RESNET_50 = (
    *((1, 64, 56, 64, 1, 1), (3, 64, 56, 64, 3, 1), (4, 64, 56, 256, 1, 1), (2, 256, 56, 64, 1, 1)),
    *((1, 256, 56, 128, 1, 1), (1, 128, 56, 128, 3, 2), (4, 128, 28, 512, 1, 1)),
    *((1, 256, 56, 512, 1, 2), (3, 512, 28, 128, 1, 1), (3, 128, 28, 128, 3, 1)),
    *((1, 512, 28, 256, 1, 1), (1, 256, 28, 256, 3, 2), (6, 256, 14, 1024, 1, 1)),
    *((1, 512, 28, 1024, 1, 2), (5, 1024, 14, 256, 1, 1), (5, 256, 14, 256, 3, 1)),
    *((1, 1024, 14, 512, 1, 1), (1, 512, 14, 512, 3, 2), (3, 512, 7, 2048, 1, 1)),
    *((1, 1024, 14, 2048, 1, 2), (2, 2048, 7, 512, 1, 1), (2, 512, 7, 512, 3, 1)),
)
LAYERS = [(count, layer(c, s, k, r, stride)) for count, c, s, k, r, stride in RESNET_50]
DENSE = [
    case
    for case in [*(case for _, case in LAYERS), *VGG]
    if case.weight_size[2] == 3 and min(case.weight_size[:2]) >= 256
]


@cache
def able(direction: str) -> tuple[Instance, ...]:
    return tuple(
        i
        for i in instances()
        if (i.dtype, i.direction, i.layout) == (torch.bfloat16, direction, "NHWC")
    )


def choice(case: ConvCase, direction: str) -> Instance:
    return min((i for i in able(direction) if not i.refusal(case)), key=lambda i: i.cost(case))


def figures(instance: Instance, case: ConvCase, sms: int = SMS) -> dict[str, float]:
    module = emulation()
    return module.tma_figures(instance.name, native_problem(case), module.Device(90, sms))


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_bytes_from_l2_on_dense_layers(direction: str) -> None:
    """3x3, C and K of 256 and more: two blocks share what they read, 256 x 256 to a cluster. The
    sums that clusters leave for each other, where they share tiles, come on top
    (test_shared_tiles_by_hand)."""
    cases = [case for case in DENSE if direction == "fprop" or case.stride == (1, 1)]
    assert len(cases) >= 6
    for case in cases:
        found = choice(case, direction)
        assert found.algorithm == "tma", f"{case.id} {found}"
        per_flop = figures(found, case)["l2_bytes_per_flop"]
        assert per_flop <= 0.008, f"{case.id} {found}: {per_flop}"


# Layers whose rounds are less than 0.85 full, and how full. None of them is multiplied for more
# than 16 us, so that less than one way of sums through L2 could be saved.
RAGGED = {
    "128x56x56>128 3x3/2 g1": 98 / 132,
    "512x28x28>128 1x1/1 g1": 98 / 132,
    "128x28x28>128 3x3/1 g1": 98 / 132,
    "256x28x28>256 3x3/2 g1": 100 / 132,
    "1024x14x14>256 1x1/1 g1": 98 / 132,
    "256x14x14>256 3x3/1 g1": 100 / 132,
    "1024x14x14>512 1x1/1 g1": 100 / 132,
    "512x14x14>512 3x3/2 g1": 112 / 132,
    "512x7x7>2048 1x1/1 g1": 104 / 132,
    "1024x14x14>2048 1x1/2 g1": 112 / 132,
    "2048x7x7>512 1x1/1 g1": 112 / 132,
    "512x7x7>512 3x3/1 g1": 112 / 132,
}


def test_waves_of_resnet_50_and_vgg_16() -> None:
    """How full the rounds are, 32 images. Of those that are less than 0.85 full, all could be
    filled; but the least that a shared tile costs, sums of 128 x 128 written and read once and a
    flag, is more than what is lost."""
    assert BATCH == 32
    streamk = next(i for i in able("fprop") if i.name.endswith("_streamk"))
    # Of a tile twice as large, where no more than two clusters share one; and 1 us for the flag.
    large = figures(streamk, next(c for c in VGG if c.id.startswith("256x28x28")))["hand_over_s"]
    least = 1e-6 + (large - 1e-6) / 2
    assert 4e-6 < least < 4.2e-6
    ragged = {}
    for network in (LAYERS, [(1, case) for case in VGG]):
        busy = total = 0.0
        for count, case in network:
            found = choice(case, "fprop")
            if found.algorithm != "tma":  # kernels for narrow layers
                assert min(case.weight_size[:2]) <= 128, f"{case.id} {found}"
                continue
            one = figures(found, case)
            efficiency = one["wave_efficiency"]
            total += count * one["multiply_s"]
            busy += count * one["multiply_s"] * efficiency
            if efficiency < 0.85:
                ragged[case.id] = pytest.approx(efficiency)
                assert one["multiply_s"] * (1 - efficiency) < least, f"{case.id} {found} {one}"
                assert streamk.cost(case) > found.cost(case)
        assert busy / total >= 0.85, busy / total
    assert ragged == RAGGED


def test_shared_tiles_by_hand() -> None:
    """512 x 14 x 14 > 512, 3x3: 6272 pixels are 25 tiles of 256, by two columns, of 72 k_tiles. For
    66 clusters, 3600 / 66 = 54.5 of them to each, and three clusters to some of the tiles."""
    case = next(case for case in VGG if case.id.startswith("512x14x14"))
    found = choice(case, "fprop")
    assert found.name == "fprop_bf16_nhwc_wgmma_128x256x64_pair_m_streamk"
    f = figures(found, case)
    assert f["wave_efficiency"] == pytest.approx(50 * 2 * 72 / (55 * 132))
    sums = 132 * 128 * 256 * 4
    assert found.workspace(case) == sums + 132 * 8 * 8
    operands = 50 * 72 * 2 * 128 * (128 + 256 / 2)
    assert f["l2_bytes"] == operands + 2 * sums
    assert 2 * sums / operands < 1 / 6
    assert f["l2_bytes_per_flop"] == pytest.approx(2 / 256)
    # Every SM writes one tile and reads two, at 5.5 TB/s together.
    assert f["hand_over_s"] == pytest.approx(1e-6 + 3 * sums / 5.5e12)
    # Twice the images: 98 tiles, of which one round would be whole; shared with it, 106.9 k_tiles
    # each, and two clusters to a tile at most.
    twice = conv_case("", (64, 512, 14, 14), case.weight_size, padding=1)
    f = figures(choice(twice, "fprop"), twice)
    assert choice(twice, "fprop").name == found.name
    assert f["wave_efficiency"] == pytest.approx(98 * 72 / (107 * 66))
    assert f["hand_over_s"] == pytest.approx(1e-6 + 2 * sums / 5.5e12)


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_tiles_are_shared_only_where_it_pays(direction: str) -> None:
    """Never where the rounds of the same tiles are whole, or nearly."""
    by_name = {i.name.split("_", 1)[1]: i for i in able(direction)}
    plain = by_name["bf16_nhwc_wgmma_128x256x64_pair_m"]
    streamk = by_name[plain.name.split("_", 1)[1] + "_streamk"]
    for case in [case for _, case in LAYERS] + VGG:
        if streamk.refusal(case):
            continue
        if figures(plain, case)["wave_efficiency"] > 0.9:
            assert choice(case, direction) != streamk, case.id
    even = conv_case("even", (1, 64, 256, 66), (256, 64, 1, 1))
    if direction == "fprop":
        assert streamk.workspace(even) == 0 and streamk.cost(even) == plain.cost(even)


def test_figures_by_hand() -> None:
    """256 x 14 x 14 > 256, 3x3: 6272 pixels, 36 tiles of gemm_k."""
    case = next(case for case in DENSE if case.input_size[1:3] == (256, 14))
    by_name = {i.name: i for i in able("fprop")}
    for tile, per_flop, rounds, efficiency in (
        ("128x128x64", 2 / 128, 1, 98 / 132),
        ("256x128x64", 1 / 128 + 1 / 256, 1, 50 / 132),
        # 66 pairs and 32 clusters of four have room: within each eighth of the SMs four of them.
        ("128x128x64_pair_n", 1 / 128 + 1 / 256, 1, 98 / 132),
        ("128x256x64_pair_m", 2 / 256, 1, 50 / 132),
        ("256x128x64_pair_n_split2", 2 / 256, 1, 100 / 132),
        # 16 clusters of eight: two rounds of nine tiles of gemm_k.
        ("256x128x64_pair_n_split4", 2 / 256, 2, 100 / 132),
    ):
        f = figures(by_name["fprop_bf16_nhwc_wgmma_" + tile], case)
        assert f["l2_bytes_per_flop"] == pytest.approx(per_flop), tile
        assert f["rounds"] == rounds, tile
        assert f["wave_efficiency"] == pytest.approx(efficiency), tile


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_pairs_of_blocks_in_tf32(direction: str) -> None:
    """Elements of four bytes, at half of the rate: L2 bounds a block alone, two that share less;
    of three products, the narrow tiles whose weights are as many bytes as their pixels."""
    by_name = {i.name: i for i in instances() if i.direction == direction}
    prefix = direction + "_{}_nhwc_wgmma_{}"
    assert BATCH == 32
    dense, narrow = VGG[4], layer(128, 28, 128, 3)
    for products, case, alone, pair, per_flop, gain in (
        ("tf32", dense, "256x128x32", "128x256x32_pair_m", (3 / 128, 2 / 128), 0.7),
        ("tf32", dense, "128x128x32", "128x128x32_pair_n", (4 / 128, 3 / 128), 0.8),
        ("tf32x3", narrow, "128x64x32", "128x64x32_pair_m", (8 / 128, 6 / 128), 0.8),
    ):
        one, two = (by_name[prefix.format(products, tile)] for tile in (alone, pair))
        found = tuple(figures(i, case)["l2_bytes_per_flop"] for i in (one, two))
        assert found == pytest.approx(per_flop), (one, two)
        assert two.cost(case) <= gain * one.cost(case), (one, two)


def test_more_clusters_than_the_device_has_room_for() -> None:
    """A device of few SMs, too, gets at least one."""
    case = LAYERS[0][1]
    for instance in able("fprop"):
        if instance.algorithm == "tma" and not instance.refusal(case):
            rounds = [figures(instance, case, sms)["rounds"] for sms in (1, 8, 66, 132)]
            assert rounds == sorted(rounds, reverse=True) and rounds[-1] >= 1
    with pytest.raises(ValueError, match="no such"):
        figures(Instance("tma", "no such", "fprop", torch.bfloat16, "NHWC", "ieee", None), case)
