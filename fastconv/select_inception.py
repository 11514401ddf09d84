"""Which kernels run an inception module on a GPU as two grids, if any.

Trust goes by family: all instances of a dtype, layout and precision, so that one check serves
every later shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv import _C, cost_aten_cuda, gpu, select, trust
from fastconv.problem import NATIVE_DTYPES, ConvSpec
from fastconv.select_cuda import MARGIN

PREFIX = "inception/"
# Naming one of these takes the grids too: they are its method.
METHODS = (select.AUTO, "im2col")
# A pass of PyTorch's own over a result, or a pool: a launch, and per byte moved.
_PASS, _PASS_BYTE = 3e-6, 1 / 3e12

_choices: dict[Any, Choice] = select.forget_with({})


class Choice(NamedTuple):
    """name: the instance that runs, or None and the reason."""

    name: str | None
    reason: str


@dataclass(frozen=True)
class InceptionFamily:
    """The instances of one dtype, layout and precision."""

    dtype: torch.dtype
    channels_last: bool
    products: str  # of `ConvSpec.products`

    @property
    def name(self) -> str:
        exact = self.products == "ieee"
        kind = str(self.dtype).removeprefix("torch.") if exact else self.products
        return f"{PREFIX}{kind}_{'nhwc' if self.channels_last else 'nchw'}"

    def instances(self) -> list[str]:
        found = (NATIVE_DTYPES[self.dtype], layout_of(self.channels_last), self.products)
        return [
            name
            for name, dtype, layout, products in _C.cuda_inceptions()
            if (dtype, layout, products.name) == found
        ]


def layout_of(channels_last: bool) -> Any:
    return _C.Layout.NHWC if channels_last else _C.Layout.NCHW


def families() -> tuple[InceptionFamily, ...]:
    """Those of this build."""
    dtypes = {native: dtype for dtype, native in NATIVE_DTYPES.items()}
    found = {
        InceptionFamily(dtypes[dtype], layout == _C.Layout.NHWC, products.name): None
        for _, dtype, layout, products in _C.cuda_inceptions()
    }
    return tuple(found)


def sizes_of(x: Tensor, weights: Sequence[Tensor]) -> tuple[int, ...]:
    """As csrc/common/inception_call.h has them; weights as fastconv.inception's."""
    one, red3, three, red5, five, projection = (w.shape[0] for w in weights)
    extents = (weights[2].shape[2], weights[4].shape[2])
    return (*x.shape, one, red3, three, red5, five, projection, *extents)


def choose(x: Tensor, weights: Sequence[Tensor], channels_last: bool, request: str) -> Choice:
    """What runs the module: an instance of the grids, or its convolutions one by one."""
    sizes = sizes_of(x, weights)
    tf32 = gpu.tf32_allowed() if x.is_cuda else False
    key = (sizes, x.dtype, x.device, channels_last, request, tf32)
    found = _choices.get(key)
    if found is None:
        found = _chosen(sizes, x, channels_last, request)
        # What a graph capture kept from being checked is decided anew outside of it.
        if not (x.is_cuda and trust.capturing()):
            _choices[key] = found
    return found


def _chosen(sizes: tuple[int, ...], x: Tensor, channels_last: bool, request: str) -> Choice:
    device, algo = gpu.device_key(x.device), select.split_precision(request)[0]
    if not gpu.is_cuda(device):
        return Choice(None, f"runs on CUDA, the input is on {device}")
    if algo not in METHODS:
        return Choice(None, f"algorithm {algo!r} was named")
    refused = gpu.refusal(device)
    if refused is not None:
        return Choice(None, refused)
    described, products = gpu.describe(device), select.products_for(device, x.dtype, request)
    rows = _C.cuda_inception_candidates(
        sizes,
        NATIVE_DTYPES[x.dtype],
        layout_of(channels_last),
        getattr(_C.Products, products),
        described.capability,
        described.sm_count,
    )
    able = sorted((cost, name, by.name) for name, by, reason, cost in rows if not reason)
    if not able:
        none = f"no kernel for {str(x.dtype).removeprefix('torch.')}"
        return Choice(None, rows[-1][2] if rows else none)
    cost, name, by = able[0]
    if algo == select.AUTO:
        ours, aten = _apart(sizes, x.dtype, device, channels_last, products)
        if cost >= min(ours, MARGIN * aten):
            text = f"predicted to take {cost:.2g} s, its convolutions one by one"
            return Choice(None, f"{text} {min(ours, aten):.2g} s")
    family = InceptionFamily(x.dtype, channels_last, by).name
    if algo == select.AUTO and not trust.admit(device, family):
        return Choice(None, f"{family} has not passed its check on this device")
    error = trust.error_of(device, family)
    if error:
        return Choice(None, f"{family} failed its check on this device: {error}")
    return Choice(name, "")


def _apart(
    sizes: tuple[int, ...], dtype: torch.dtype, device: str, channels_last: bool, products: str
) -> tuple[float, float]:
    """Estimated seconds of the module's convolutions one by one: by our kernels, by PyTorch's."""
    n, c, h, w, one, red3, three, red5, five, projection, extent3, extent5 = sizes
    ours = aten = _pass_seconds(2 * n * c * h * w, dtype)  # the pool

    def add(filters: int, channels: int, extent: int, own: bool, theirs: bool) -> None:
        nonlocal ours, aten
        spec = ConvSpec(
            "fprop", device, dtype, (n, channels, h, w), (filters, channels, extent, extent),
            (1, 1), (extent // 2,) * 2, (1, 1), 1, channels_last, products,
        )  # fmt: skip
        if own:
            able = (e.cost for e in select.candidates(spec)[:-1] if e.reason is None)
            ours += min(able, default=inf)
        if theirs:
            outputs = prod(spec.output_size)
            aten += cost_aten_cuda.seconds(spec) + _pass_seconds(2 * outputs, dtype)

    add(one, c, 1, True, True)
    add(red3 + red5, c, 1, True, False)
    add(red3, c, 1, False, True)
    add(red5, c, 1, False, True)
    add(three, red3, extent3, True, True)
    add(five, red5, extent5, True, True)
    add(projection, c, 1, True, True)
    return ours, aten


def _pass_seconds(elements: int, dtype: torch.dtype) -> float:
    return _PASS + _PASS_BYTE * elements * dtype.itemsize
