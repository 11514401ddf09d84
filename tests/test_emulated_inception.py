"""The CUDA kernels of the inception module, run on the CPU by emulation, against fp64: every
instance on small modules, in three orders of the threads."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from emulated import ACTIVATIONS, Epilogue
from emulated_inception import (
    InceptionInstance,
    InceptionSize,
    inception_instances,
    run_inception,
)
from test_emulated_epilogue import activated
from torch import Tensor

from fastconv.tolerances import conv_tolerance

INSTANCES = inception_instances()
SLOPE = 0.25
SIZES = {
    # Vectors everywhere; branches that begin inside a tile, gemm_k beside multiples of a slice.
    "aligned": InceptionSize(1, 72, 6, 7, 36, 24, 40, 16, 24, 12),
    "images": InceptionSize(3, 40, 3, 5, 64, 16, 33, 8, 7, 6),
    # No extent is a multiple of anything.
    "odd": InceptionSize(3, 13, 5, 7, 5, 7, 35, 3, 9, 2),
    "pixel": InceptionSize(5, 16, 1, 1, 3, 8, 4, 8, 4, 1),
    "row": InceptionSize(2, 8, 1, 9, 4, 8, 4, 8, 4, 4, 1, 7),
    "column": InceptionSize(1, 24, 20, 1, 8, 16, 12, 8, 4, 68, 3, 3),
}


def of_size(instance: InceptionInstance) -> list[str]:
    return [name for name, size in SIZES.items() if not instance.refusal(size)]


@cache
def operands_of(size: InceptionSize, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sum(size))
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in size.shapes.items()
    }


def assert_right(
    instance: InceptionInstance,
    size: InceptionSize,
    operands: dict[str, Tensor],
    activation: str,
    y: Tensor,
    reductions: Tensor,
) -> None:
    """The branches of the windows from the reductions as they were stored."""
    wide = {name: t.double() for name, t in operands.items()}
    arithmetic = "im2col" if instance.products == "ieee" else instance.products

    def check(name: str, got: Tensor, source: Tensor, w: Tensor, b: Tensor) -> None:
        pad = w.shape[2] // 2
        sums = F.conv2d(source, w, b, padding=pad)
        magnitude = F.conv2d(source.abs(), w.abs(), b.abs(), padding=pad)
        expected = activated(sums, Epilogue(activation, SLOPE))
        # No activation is steeper than 1.1.
        bound = conv_tolerance(
            arithmetic, "fprop", instance.dtype, expected, 1.1 * magnitude, w[0].numel()
        )
        error = (got.double() - expected).abs()
        same = (error <= bound) | (got.double() == expected) | (got.isnan() & expected.isnan())
        assert same.all(), f"{instance} {size} {name}: off by {error.nan_to_num(nan=9e9).max():.3g}"

    places = [0, size.K1, size.K1 + size.K3, size.outputs - size.KP, size.outputs]
    one, three, five, projection = (y[:, a:b] for a, b in pairwise(places))
    w, b = wide["joined"], wide["joined_bias"]
    check("1x1", one, wide["x"], w[: size.K1], b[: size.K1])
    check("reductions", reductions, wide["x"], w[size.K1 :], b[size.K1 :])
    r3, r5 = reductions.double().split([size.R3, size.R5], 1)
    check("3x3", three, r3, wide["w3"], wide["b3"])
    check("5x5", five, r5, wide["w5"], wide["b5"])
    pooled = F.max_pool2d(wide["x"], 3, 1, 1)
    check("projection", projection, pooled, wide["wp"], wide["bp"])


def test_every_dtype_and_layout_takes_every_module() -> None:
    for name, size in SIZES.items():
        takers = {(i.dtype, i.products, i.layout) for i in INSTANCES if not i.refusal(size)}
        assert len(takers) == 10, name
    assert all(of_size(instance) for instance in INSTANCES)


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_forward(instance: InceptionInstance) -> None:
    """In two launches; the same bits in every order."""
    for number, name in enumerate(of_size(instance)):
        size = SIZES[name]
        operands = operands_of(size, instance.dtype)
        activation = ACTIVATIONS[(number + INSTANCES.index(instance)) % len(ACTIVATIONS)]
        results = []
        for seed in (1, 2, 3):
            launches: list = []
            results.append(
                run_inception(instance, size, operands, activation, SLOPE, seed, launches=launches)
            )
            assert len(launches) == 2
        assert_right(instance, size, operands, activation, *results[0])
        assert all(map(torch.equal, results[0], results[1]))
        assert all(map(torch.equal, results[0], results[2]))


@pytest.mark.parametrize("instance", INSTANCES, ids=str)
def test_maximum_of_special_values(instance: InceptionInstance) -> None:
    """NaN wins in the windows that hold it and shows nowhere else; -inf is the least value, also
    where a window has nothing else; +inf is the largest. Operands that are split have no infinity:
    it comes out as NaN."""
    size = InceptionSize(2, 8, 6, 5, 4, 8, 4, 8, 4, 1)
    operands = {
        name: torch.zeros(shape, dtype=instance.dtype) for name, shape in size.shapes.items()
    }
    x = -1 - operands_of(size, instance.dtype)["x"].abs()  # so that padding with 0 would show
    x[0, 0, 0, 0] = float("nan")
    x[0, 0, 5, 4] = float("inf")
    x[1, 0, :3] = float("-inf")
    operands["wp"][0, 0] = 1
    # Only channel 0 is looked at: elsewhere 0 * inf would be NaN in the reference as well.
    y, _ = run_inception(instance, size, {**operands, "x": x}, "none")
    got, expected = y[:, -1].float(), F.max_pool2d(x.float(), 3, 1, 1)[:, 0]
    assert expected[0].isnan().sum() == 4 and (expected[1] == float("-inf")).any()
    if instance.products == "tf32x3":
        expected = expected.where(expected.isfinite(), float("nan"))
    near = torch.isclose(got, expected, rtol=1e-3, equal_nan=True)
    assert near.all(), f"{instance}\n{got}\n{expected}"


def test_refusals_name_what_does_not_fit() -> None:
    by_name = {i.name: i for i in INSTANCES}
    vector, any_ = by_name["bf16_nhwc_mma_64x64x32_vec8"], by_name["bf16_nhwc_mma_64x64x32"]
    assert vector.refusal(SIZES["odd"]) == "C=13 is not a multiple of 8"
    size = SIZES["aligned"]
    assert "channels=20 is not a multiple of 8" in vector.refusal(size._replace(R3=20))
    assert "size is 81" in any_.refusal(size._replace(extent5=9))
    assert "the bytes of the images" in any_.refusal(size._replace(H=30000, W=30000))
    operands = operands_of(size, torch.bfloat16)
    with pytest.raises(ValueError, match="input is not aligned to 16 bytes"):
        run_inception(vector, size, operands, placement="offset")
    y, reductions = run_inception(any_, size, operands, placement="offset")
    assert_right(any_, size, operands, "relu", y, reductions)


def test_few_pixels_take_the_tile_that_is_cut_in_slices() -> None:
    """And many the larger one."""
    last = InceptionSize(1, 832, 7, 7, 384, 192, 384, 48, 128, 128)
    for size, expected in ((last, "slices"), (last._replace(N=256), "64x64")):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            mine = [i for i in INSTANCES if i.dtype == dtype and i.layout == "NHWC"]
            assert all(not i.refusal(size) for i in mine)
            assert expected in min(mine, key=lambda i: i.cost(size)).name


def test_three_products_are_as_accurate_as_fp32() -> None:
    """Each against FMA with the same operands: at most twice its error, in units of the roundoff of
    absolute products; one product of TF32 is far beyond."""
    size = SIZES["images"]._replace(C=136, R3=48)
    operands = operands_of(size, torch.float32)
    wide = {name: t.double() for name, t in operands.items()}

    def worst(instance: InceptionInstance) -> float:
        y, reductions = run_inception(instance, size, operands, "none")
        r3 = reductions.double()[:, : size.R3]
        first = F.conv2d, (wide["x"], wide["joined"][: size.K1], wide["joined_bias"][: size.K1])
        three = partial(F.conv2d, padding=1), (r3, wide["w3"], wide["b3"])
        found = []
        for (function, args), place in ((first, 0), (three, size.K1)):
            expected = function(*args)
            magnitude = function(*(t.abs() for t in args))
            got = y[:, place : place + expected.shape[1]].double()
            found.append(float(((got - expected).abs() / magnitude).max()))
        return max(found)

    errors = {i.name: worst(i) for i in INSTANCES if i.dtype == torch.float32}
    three = [name for name in errors if name.startswith("tf32x3_")]
    assert len(three) == 5
    for name in three:
        fma = errors[name.replace("tf32x3", "f32").replace("mma", "ffma")]
        assert errors[name] <= 2 * fma, (name, errors[name], fma)
        assert errors[name.replace("tf32x3", "tf32")] > 100 * fma
