"""The choice that the CUDA cost models make without a search: on layers of ResNet-50, VGG-16 and
MobileNet for a device with 132 SMs, each with the reason why it is the sensible one.

The models order the kernels; nothing here says how long one takes on a GPU (not measured on one).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import ConvCase, conv_case
from emulated import Instance, instances, planned_launches

BATCH, SMS = 32, 132
PRECISIONS = {
    "ieee": (torch.float32, ("ieee",)),
    "tf32x3": (torch.float32, ("ieee", "tf32x3")),
    "tf32": (torch.float32, ("ieee", "tf32x3", "tf32")),
    "bf16": (torch.bfloat16, ("ieee",)),
}


def layer(c: int, size: int, k: int, kernel: int, stride: int = 1, groups: int = 1) -> ConvCase:
    name = f"{c}x{size}x{size}>{k} {kernel}x{kernel}/{stride} g{groups}"
    weight = (k, c // groups, kernel, kernel)
    return conv_case(name, (BATCH, c, size, size), weight, stride, kernel // 2, groups=groups)


STEM = layer(3, 224, 64, 7, 2)
RESNET_3X3 = [layer(c, s, c, 3) for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))]
RESNET_STRIDED = [layer(c, s, c, 3, 2) for c, s in ((128, 56), (256, 28), (512, 14))]
RESNET_1X1 = [
    layer(c, s, k, 1)
    for c, s, k in (
        *((64, 56, 64), (64, 56, 256), (256, 56, 64), (512, 28, 128), (128, 28, 512)),
        *((1024, 14, 256), (256, 14, 1024), (2048, 7, 512), (512, 7, 2048)),
    )
]
VGG_FIRST = layer(3, 224, 64, 3)
VGG = [
    layer(c, s, k, 3)
    for c, s, k in (
        *((64, 224, 64), (64, 112, 128), (128, 112, 128), (128, 56, 256), (256, 56, 256)),
        *((256, 28, 512), (512, 28, 512), (512, 14, 512)),
    )
]
DEPTHWISE = [
    layer(c, s, c, 3, stride, c)
    for c, s, stride in ((32, 112, 1), (64, 112, 2), (128, 56, 1), (256, 28, 2), (512, 14, 1),
                         (1024, 7, 1))
]  # fmt: skip
MOBILENET_1X1 = [
    layer(c, s, k, 1)
    for c, s, k in ((32, 112, 64), (128, 56, 128), (512, 14, 512), (1024, 7, 1024))
]
NETWORKS = [
    *(STEM, *RESNET_3X3, *RESNET_STRIDED, *RESNET_1X1),
    *(VGG_FIRST, *VGG, *DEPTHWISE, *MOBILENET_1X1),
]
DIRECTIONS, LAYOUTS = ("fprop", "dgrad", "wgrad"), ("NCHW", "NHWC")


@cache
def ranking(case: ConvCase, precision: str, direction: str, layout: str) -> tuple[Instance, ...]:
    """Every kernel that may run it, the cheapest first."""
    dtype, products = PRECISIONS[precision]
    able = [
        i
        for i in instances()
        if (i.dtype, i.direction, i.layout) == (dtype, direction, layout)
        and i.products in products
        and not i.refusal(case)
    ]
    return tuple(sorted(able, key=lambda i: i.cost(case)))


def chosen(case: ConvCase, precision: str, direction: str, layout: str) -> Instance:
    return ranking(case, precision, direction, layout)[0]


# (precision, directions, layouts, layers, the choice, why). Fused and non-fused are told apart
# where the model has a margin between them.
PINS = (
    # 3x3 of stride 1 in fp32: F(4x4) does a quarter of the multiplications, and FMA is the bound.
    ("ieee", "fprop dgrad wgrad", "NCHW NHWC", [*RESNET_3X3, *VGG], r"winograd_f4x4",
     "F(4x4) has 4 times fewer multiplications, which bound strict fp32"),
    ("ieee", "fprop dgrad wgrad", "NCHW NHWC", [RESNET_3X3[0], VGG[0]], r"f4x4.*_fused_fma",
     "64 channels: V and M would only pass through memory"),
    ("ieee", "fprop dgrad wgrad", "NCHW NHWC", [RESNET_3X3[3], VGG[7]], r"f4x4.*_nonfused_fma",
     "512 filters: the fused kernel would transform every tile 16 times"),
    ("tf32", "fprop dgrad", "NCHW", [*RESNET_3X3[1:], *VGG[3:]], r"winograd_f4x4.*_tf32",
     "C, K >= 128: F(4x4) in TF32 has 4 times fewer products, each as fast as im2col's"),
    ("tf32", "fprop dgrad", "NCHW", VGG[4:], r"f4x4.*_nonfused_tf32",
     "C, K >= 256: the products outweigh the passes of V and M"),
    ("tf32", "fprop", "NHWC", [*RESNET_3X3[1:], *VGG[1:5], VGG[7]], r"tma.*_tf32_nhwc_wgmma",
     "warpgroup products, fed by TMA, are three times as fast as what F(4x4) gets of mma.sync"),
    ("tf32", "dgrad", "NHWC", [*RESNET_3X3[1:], *VGG[2:]], r"tma.*_tf32_nhwc_wgmma",
     "as above, and the filter is turned in a few microseconds"),
    ("tf32", "fprop dgrad", "NHWC", [VGG[4], *VGG[6:]], r"tma.*_wgmma_128x256x32_pair_m",
     "L2 bounds elements of four bytes: a pair of blocks reads the least, for 256 x 256"),
    ("bf16", "fprop dgrad", "NHWC", [*RESNET_3X3[1:2], *VGG[4:6]],
     r"tma.*wgmma_(256x128|128x256)x64",
     "warpgroup products are three times as fast as mma.sync; the tiles that load least from L2"),
    ("bf16", "fprop dgrad", "NHWC", RESNET_3X3[2:3], r"tma.*wgmma_256x128x64_pair_n_split2",
     "6272 pixels and 256 filters are 25 tiles of 256 x 256, each for two pairs of blocks"),
    ("bf16", "fprop dgrad", "NHWC", RESNET_3X3[3:4], r"tma.*wgmma_256x128x64_pair_n_split4",
     "1568 pixels and 512 filters are 14 tiles of 256 x 256, each for four pairs of blocks"),
    ("bf16", "fprop dgrad", "NHWC", [RESNET_3X3[0], *VGG[:3]], r"halo.*rows3",
     "up to 128 channels: weights and pixels stay in shared memory, else L2 bounds"),
    ("bf16", "fprop", "NHWC", VGG[3:4], r"halo.*rows3_128x64", "the same, in tiles that fit"),
    ("bf16", "dgrad", "NHWC", VGG[3:4], r"tma.*wgmma_(256x128|128x256)x64", "of 256 they do not"),
    ("bf16", "wgrad", "NHWC", [RESNET_3X3[1], RESNET_STRIDED[0]],
     r"(tma.*wgmma|im2col.*mma)_128x128x",
     "128 filters: in tiles of 128 x 128 L2 bounds both, who multiplies makes a hundredth"),
    ("bf16", "wgrad", "NHWC", [RESNET_3X3[2], *VGG[2:6]],
     r"tma.*wgmma_(128x128|256x128|128x256)x64",
     "warpgroup products, both operands as they lie; big tiles for big problems"),
    ("bf16", "wgrad", "NHWC", [RESNET_3X3[0], VGG[0]], r"tma.*wgmma_64x256x64",
     "of 128 filters a block would have, half do not exist; nine taps fill a wide tile"),
    # What Winograd refuses, and what is too shallow for it.
    ("ieee", "fprop wgrad", "NCHW NHWC", RESNET_STRIDED[:2], r"im2col.*_ffma_128x64",
     "stride 2: not for Winograd; enough channels to fill a tile of the implicit GEMM"),
    ("tf32", "fprop", "NHWC", RESNET_STRIDED, r"tma.*_tf32_nhwc_wgmma_(256x128|128x128)x32",
     "stride 2 is a step of TMA's walk"),
    ("tf32x3", "fprop", "NHWC", RESNET_STRIDED, r"tma.*_tf32x3_nhwc_wgmma",
     "three warpgroup products in less than half the time of one by FMA"),
    ("tf32", "wgrad", "NHWC", RESNET_STRIDED[:2], r"im2col.*mma_128x128x16_vec4",
     "stride 2 on tensor cores"),
    ("tf32 tf32x3", "dgrad", "NHWC", RESNET_STRIDED[:2], r"tma.*wgmma_strided_",
     "four classes of pixels, each a gather of stride 1, on warpgroup tensor cores"),
    ("bf16", "fprop", "NHWC", RESNET_STRIDED[:2], r"tma.*wgmma_(256x128|128x128)x64",
     "stride 2 is a step of TMA's walk"),
    ("bf16", "dgrad", "NHWC", RESNET_STRIDED[:2], r"tma.*wgmma_strided_",
     "stride 2 on tensor cores: four classes of pixels, each a gather of stride 1"),
    ("bf16", "wgrad", "NHWC", RESNET_STRIDED[1:2], r"tma.*wgmma_(128x128|256x128|128x256)x64",
     "stride 2 is a step of TMA's walk"),
    ("ieee", "fprop dgrad", "NCHW NHWC", [STEM, VGG_FIRST], r"direct/.*smem",
     "3 channels: halo and filter fit shared memory, where im2col would gather single elements"),
    ("bf16", "fprop", "NHWC", [STEM], r"rows/.*_mma_256x64",
     "tensor cores, rows of x read in place by every tap; the tile that reads least of weights"),
    ("bf16 tf32 tf32x3", "fprop", "NHWC", [STEM, VGG_FIRST], r"rows/.*_mma_",
     "3 channels have no 16-byte vectors, rows of them do"),
    # 1x1: a plain matrix product.
    ("ieee", "fprop dgrad wgrad", "NHWC", [*RESNET_1X1[3:], *MOBILENET_1X1[2:]],
     r"im2col.*_ffma_128x64x16_vec4", "a matrix product, by 16-byte copies"),
    ("tf32", "wgrad", "NHWC", [RESNET_1X1[1], *RESNET_1X1[3:], *MOBILENET_1X1[2:]],
     r"im2col.*mma_128x128x16_vec4", "a matrix product on tensor cores, by 16-byte copies"),
    ("tf32 tf32x3", "fprop dgrad", "NHWC", [*RESNET_1X1[3:], *MOBILENET_1X1[2:]], r"tma.*wgmma",
     "a matrix product on tensor cores, by TMA"),
    ("bf16", "fprop dgrad", "NHWC", RESNET_1X1[:1], r"tma.*wgmma_128x64x64",
     "64 filters fill half of a tile of 128"),
    ("bf16", "wgrad", "NHWC", RESNET_1X1[:1], r"im2col.*mma_64x64x32_vec8",
     "a dw of 64 x 64 fills a quarter of a 128 x 128 tile"),
    ("bf16", "fprop dgrad", "NHWC", [*RESNET_1X1[3:7], *MOBILENET_1X1[2:]],
     r"tma.*wgmma_(256x128|128x256|128x128)x64", "a matrix product on tensor cores, by TMA"),
    # One filter per channel is no matrix product at all.
    ("ieee", "fprop dgrad wgrad", "NCHW NHWC", DEPTHWISE, r"depthwise.*(window|planes)3_s[12]",
     "bound by memory: every pixel read once, taps known when compiled"),
    ("bf16", "fprop dgrad wgrad", "NHWC", DEPTHWISE, r"depthwise.*window3_s[12]",
     "bound by memory: every pixel read once by 16-byte vectors, taps known when compiled"),
)  # fmt: skip


@pytest.mark.parametrize("pin", PINS, ids=lambda p: f"{p[0]}-{p[4]}-{p[3][0].id}")
def test_choice(pin: tuple) -> None:
    precisions, directions, layouts, layers, wanted, why = pin
    wrong = [
        f"{case.id} {precision} {direction} {layout}: {found}"
        for case in layers
        for precision in precisions.split()
        for direction in directions.split()
        for layout in layouts.split()
        if not re.search(wanted, found := str(chosen(case, precision, direction, layout)))
    ]
    assert not wrong, f"wanted {wanted} because {why}, got {wrong}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plain_kernels_are_never_chosen(precision: str) -> None:
    """`direct_plain` is the twin that is right for everything; there is always a better one."""
    for case in NETWORKS:
        for direction in DIRECTIONS:
            for layout in LAYOUTS:
                found = chosen(case, precision, direction, layout)
                assert found.algorithm != "direct_plain", f"{case.id} {found}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tf32_is_chosen_only_where_it_is_allowed_and_is_never_a_loss(precision: str) -> None:
    for case in NETWORKS:
        for direction in DIRECTIONS:
            for layout in LAYOUTS:
                found = chosen(case, precision, direction, layout)
                assert found.products in PRECISIONS[precision][1]
                if precision.startswith("tf32"):
                    strict = chosen(case, "ieee", direction, layout)
                    assert found.cost(case) <= strict.cost(case)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_im2col_wgrad_is_split_until_the_grid_is_full(precision: str, layout: str) -> None:
    """dw alone is few tiles (ResNet's 64x64x1x1 one, of 132 SMs): gemm_k is cut so that the SMs are
    busy, and no wave is mostly empty."""
    for case in [*RESNET_3X3, *RESNET_STRIDED, *RESNET_1X1, *VGG, *MOBILENET_1X1]:
        able = ranking(case, precision, "wgrad", layout)
        best = next(i for i in able if i.algorithm == "im2col")
        blocks = planned_launches(best, case)[0].blocks
        waves = blocks / SMS
        # Where tiles of dw fill the SMs once, a cut may move more partial sums than it saves time.
        uncut = best.workspace(case) == 0 and waves >= 1
        assert uncut or waves / -(-blocks // SMS) >= 0.7, f"{case.id} {best}: {blocks} blocks"
        partial = 4 * torch.Size(case.weight_size).numel()
        assert best.workspace(case) <= 128 << 20 and best.workspace(case) % partial == 0


def test_three_warpgroup_products_take_less_than_half_of_what_fma_takes() -> None:
    """fp32's accuracy where Winograd has nothing to save: strided, and 1x1 beyond few channels."""
    for direction in ("fprop", "dgrad"):
        for case in [*RESNET_STRIDED, *RESNET_1X1[5:]]:
            able = ranking(case, "tf32x3", direction, "NHWC")
            fma = next(i for i in able if (i.algorithm, i.products) == ("im2col", "ieee"))
            assert able[0].products == "tf32x3", case.id
            assert 2 * able[0].cost(case) <= fma.cost(case), case.id


def test_more_images_take_longer() -> None:
    """Twice as many may fit into the same wave of blocks, eight times as many do not."""
    for precision in PRECISIONS:
        for case in NETWORKS:
            more = []
            for times in (1, 2, 8):
                size = (times * BATCH, *case.input_size[1:])
                params = (case.stride, case.padding, case.dilation, case.groups)
                more.append(conv_case(f"x{times}", size, case.weight_size, *params))
            for direction in DIRECTIONS:
                found = chosen(case, precision, direction, "NHWC")
                one, two, eight = (found.cost(c) for c in more)
                assert one <= two and 1.5 * one < eight, f"{case.id} {found}"


def test_the_rates_stand_once() -> None:
    """Of a rate of the machine there is one value: no launcher has one of its own."""
    own = re.compile(r"constexpr double k(L2OverDram|Efficiency|ClusterSync|Latency|Epilogue\w+) =")
    sources = Path(__file__).resolve().parents[1] / "csrc/cuda"
    files = [
        f for stem in ("tma", "halo", "im2col", "rows") for f in sources.glob(f"conv_{stem}*.*")
    ]
    assert len(files) > 8
    assert not [f.name for f in files if own.search(f.read_text())]
