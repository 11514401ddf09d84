"""The self-test's part for the inception module's kernels; `fastconv.trust` uses it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastconv import _C
from fastconv.problem import NATIVE_DTYPES, dense_strides
from fastconv.select_inception import InceptionFamily, families, layout_of
from fastconv.tolerances import conv_tolerance

OPS: Any = torch.ops.fastconv
_SEED = 22
# As csrc/common/inception_call.h has them. Tiles that hold both of the joined targets, tails of
# slices and of vectors, images smaller than a tile; the last ones take no vectors.
SIZES = (
    (2, 136, 14, 13, 72, 48, 104, 16, 40, 36, 3, 5),
    (5, 72, 7, 7, 40, 24, 33, 8, 9, 68, 3, 5),
    (2, 37, 9, 10, 13, 19, 41, 7, 21, 5, 3, 3),
    (1, 13, 21, 6, 70, 5, 3, 3, 6, 67, 7, 1),
)


def instances() -> tuple[InceptionFamily, ...]:
    return families()


def _operands(sizes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """x, joined, its bias, w3, b3, w5, b5, wp, bp."""
    n, c, h, w, one, red3, three, red5, five, projection, extent3, extent5 = sizes
    joined = one + red3 + red5
    shapes = (
        (n, c, h, w), (joined, c, 1, 1), (joined,), (three, red3, extent3, extent3), (three,),
        (five, red5, extent5, extent5), (five,), (projection, c, 1, 1), (projection,),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(_SEED)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def _placed(t: Tensor, channels_last: bool, device: torch.device) -> Tensor:
    if t.dim() != 4:
        return t.to(device)
    strides = dense_strides(t.shape, channels_last)
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=device).copy_(t)


def _error(
    family: InceptionFamily, sizes: tuple[int, ...], operands: list[Tensor], y: Tensor, r: Tensor
) -> float:
    """The largest error in units of the bound; the windows' from the reductions as stored."""
    x, joined, joined_bias, w3, b3, w5, b5, wp, bp = (t.double() for t in operands)
    _, _, _, _, one, red3, three, red5, five, projection, *_ = sizes
    arithmetic, worst = "im2col" if family.products == "ieee" else family.products, 0.0

    def check(got: Tensor, source: Tensor, w: Tensor, b: Tensor) -> None:
        nonlocal worst
        args = {"padding": w.shape[2] // 2}
        expected = functional.conv2d(source, w, b, **args).relu()
        magnitude = functional.conv2d(source.abs(), w.abs(), b.abs(), **args)
        bound = conv_tolerance(arithmetic, "fprop", family.dtype, expected, magnitude, w[0].numel())
        ratio = (got.double() - expected).abs() / bound
        worst = max(worst, float(ratio.nan_to_num(nan=float("inf")).max()))

    places = [0]
    for filters in (one, three, five, projection):
        places.append(places[-1] + filters)
    branches = [y[:, a:b] for a, b in pairwise(places)]
    r3, r5 = r.double().split([red3, red5], 1)
    check(branches[0], x, joined[:one], joined_bias[:one])
    check(r, x, joined[one:], joined_bias[one:])
    check(branches[1], r3, w3, b3)
    check(branches[2], r5, w5, b5)
    check(branches[3], functional.max_pool2d(x, 3, 1, 1), wp, bp)
    return worst


def check(
    family: InceptionFamily, device: torch.device, limit: int
) -> tuple[int, str, float, bool]:
    """(problems, error, worst, inconclusive) as `fastconv.selftest` reports them. Every instance
    runs on up to `limit` of the sizes that it takes."""
    from fastconv import gpu

    count, worst = 0, 0.0
    for name in family.instances():
        able = [sizes for sizes in SIZES if not _refused(family, name, sizes)]
        if not able:
            return count, f"no problem of the self-test fits {name}", worst, False
        for sizes in able[: max(limit, 1)]:
            operands = _operands(sizes, family.dtype)
            placed = [_placed(t, family.channels_last, device) for t in operands]
            try:
                y, r = (t.cpu() for t in OPS.inception_fprop(*placed, 1, 0.0, name))
                again = OPS.inception_fprop(*placed, 1, 0.0, name)
            except RuntimeError as error:
                return count, f"{name} {sizes}: {error}", float("inf"), gpu.out_of_memory(error)
            ratio = _error(family, sizes, operands, y, r)
            worst = max(worst, ratio)
            if not ratio <= 1:
                return count, f"{name} {sizes}: off by {ratio:.3g} times the bound", worst, False
            if not all(torch.equal(a, b.cpu()) for a, b in zip((y, r), again, strict=True)):
                return count, f"{name} {sizes}: two runs differ in their bits", worst, False
            count += 1
    return count, "", worst, False


def _refused(family: InceptionFamily, name: str, sizes: tuple[int, ...]) -> str:
    rows = _C.cuda_inception_candidates(
        sizes, NATIVE_DTYPES[family.dtype], layout_of(family.channels_last),
        getattr(_C.Products, family.products), 90, 132,
    )  # fmt: skip
    return next(reason for row, _, reason, _ in rows if row == name)
