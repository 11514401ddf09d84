"""Convolution from the definition, in float64: what every kernel and test is measured against.

    y[n, k, o] = b[k] + sum over c, t of x[n, c, o*stride - padding + t*dilation] * w[k, c, t]

for 1, 2 or 3 spatial axes, where an input position outside the tensor contributes no term (so an
infinite weight over padding gives no NaN). Written as a loop over filter taps with strided views
and one small matrix product per tap; PyTorch's own convolution is not used, so it can serve as a
second, independent reference.

Pass ``magnitude=True`` to sum the absolute values of the same terms, the sum of abs(x)*abs(w)
that error bounds are proportional to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

IntOrSeq = int | Sequence[int]
PaddingArg = int | Sequence[int] | str


@dataclass(frozen=True)
class _Geometry:
    """Sizes and parameters per spatial axis; ``low`` is the padding before the first element."""

    batch: int
    in_channels: int
    out_channels: int
    groups: int
    extent: tuple[int, ...]
    kernel: tuple[int, ...]
    out: tuple[int, ...]
    low: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def output_size(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.out)

    def taps(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
        """(tap index, output slices, matching input slices); taps that only see padding are left
        out."""
        for tap in product(*(range(r) for r in self.kernel)):
            out_slices, in_slices = [], []
            for axis, r in enumerate(tap):
                step = self.stride[axis]
                offset = r * self.dilation[axis] - self.low[axis]  # input index of output 0
                first = max(0, -(offset // step))
                last = min(self.out[axis] - 1, (self.extent[axis] - 1 - offset) // step)
                if first > last:
                    break
                out_slices.append(slice(first, last + 1))
                in_slices.append(slice(first * step + offset, last * step + offset + 1, step))
            else:
                yield tap, tuple(out_slices), tuple(in_slices)


def _per_axis(value: IntOrSeq, rank: int, name: str) -> tuple[int, ...]:
    values = (int(value),) * rank if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != rank:
        raise ValueError(f"{name} needs {rank} values, got {list(values)}")
    return values


def _geometry(
    input_size: Sequence[int],
    weight_size: Sequence[int],
    stride: IntOrSeq,
    padding: PaddingArg,
    dilation: IntOrSeq,
    groups: int,
) -> _Geometry:
    rank = len(input_size) - 2
    if rank not in (1, 2, 3) or len(weight_size) != len(input_size):
        raise ValueError(
            "expected input [N, C, spatial] and weight [K, C/groups, spatial] of 3 to 5 dimensions,"
            f" got {list(input_size)} and {list(weight_size)}"
        )
    n, c, *extent = input_size
    k, c_per_group, *kernel = weight_size
    if groups < 1 or c != c_per_group * groups or k % groups:
        raise ValueError(
            f"input {list(input_size)} and weight {list(weight_size)} do not fit groups={groups}"
        )
    strides = _per_axis(stride, rank, "stride")
    dilations = _per_axis(dilation, rank, "dilation")
    spans = [d * (r - 1) for d, r in zip(dilations, kernel, strict=True)]
    if padding == "same":
        if any(s != 1 for s in strides):
            raise ValueError(f"padding='same' needs stride 1, got {list(strides)}")
        low, total = tuple(s // 2 for s in spans), tuple(spans)
    else:
        low = _per_axis(0 if padding == "valid" else padding, rank, "padding")
        total = tuple(2 * p for p in low)
    if min(*strides, *dilations, *kernel) < 1 or min(low) < 0:
        raise ValueError(
            f"stride {list(strides)}, dilation {list(dilations)} and kernel {kernel} must be"
            f" positive, padding {list(low)} not negative"
        )
    out = []
    for h, p, span, step in zip(extent, total, spans, strides, strict=True):
        if h + p < span + 1:
            raise ValueError(f"dilated kernel of {span + 1} is larger than padded input {h + p}")
        out.append((h + p - span - 1) // step + 1)
    return _Geometry(
        n, c, k, groups, tuple(extent), tuple(kernel), tuple(out), low, strides, dilations
    )


def _operand(t: Tensor, magnitude: bool) -> Tensor:
    # The input is converted tap by tap: it may be a view far larger than memory.
    t = t.detach().to(torch.float64)
    return t.abs() if magnitude else t


def _grouped(t: Tensor, groups: int, axis: int) -> Tensor:
    """[.., groups*c, ..] -> [.., groups, c, ..] at `axis`."""
    return t.unflatten(axis, (groups, t.shape[axis] // groups))


def conv_fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: IntOrSeq = 1,
    padding: PaddingArg = 0,
    dilation: IntOrSeq = 1,
    groups: int = 1,
    *,
    magnitude: bool = False,
) -> Tensor:
    """Forward convolution.

    Args:
        x: input [N, C, spatial], any dtype and strides.
        w: weight [K, C/groups, kernel].
        bias: [K] or None.
        padding: zeros on both sides per axis, or ``"valid"`` or ``"same"`` (PyTorch's rule: an odd
            total puts the extra zero after the last element).
        magnitude: sum absolute values instead, the scale of the rounding error.

    Returns:
        y [N, K, out], float64, contiguous, on x's device.

    Raises:
        ValueError: shapes or parameters that do not fit together, with their values.
    """
    g = _geometry(x.shape, w.shape, stride, padding, dilation, groups)
    xs = _grouped(x, groups, 1)  # [N, G, C/G, in]
    ws = _grouped(_operand(w, magnitude), groups, 0)  # [G, K/G, C/G, kernel]
    y = ws.new_zeros(g.output_size)
    ys = _grouped(y, groups, 1)  # [N, G, K/G, out], a view
    for tap, out, inp in g.taps():
        seen = _operand(xs[(..., *inp)], magnitude)
        ys[(..., *out)] += torch.einsum("ngc...,gkc->ngk...", seen, ws[(..., *tap)])
    if bias is not None:
        y += _operand(bias, magnitude).view(-1, *(1,) * len(g.out))
    return y


def conv_dgrad(
    dy: Tensor,
    w: Tensor,
    input_size: Sequence[int],
    stride: IntOrSeq = 1,
    padding: PaddingArg = 0,
    dilation: IntOrSeq = 1,
    groups: int = 1,
    *,
    magnitude: bool = False,
) -> Tensor:
    """Gradient with respect to the input: every product x*w of the forward pass sends dy*w back.

    Args:
        dy: gradient of the output [N, K, out].
        w: weight [K, C/groups, kernel].
        input_size: (N, C, spatial), which the output size alone does not determine.

    Returns:
        dx [N, C, spatial], float64, contiguous.

    Raises:
        ValueError: shapes or parameters that do not fit together, with their values.
    """
    g = _geometry(input_size, w.shape, stride, padding, dilation, groups)
    _check_dy(dy, g)
    dys = _grouped(_operand(dy, magnitude), groups, 1)  # [N, G, K/G, out]
    ws = _grouped(_operand(w, magnitude), groups, 0)  # [G, K/G, C/G, kernel]
    dx = dys.new_zeros(tuple(input_size))
    dxs = _grouped(dx, groups, 1)
    for tap, out, inp in g.taps():
        dxs[(..., *inp)] += torch.einsum("ngk...,gkc->ngc...", dys[(..., *out)], ws[(..., *tap)])
    return dx


def conv_wgrad(
    dy: Tensor,
    x: Tensor,
    weight_size: Sequence[int],
    stride: IntOrSeq = 1,
    padding: PaddingArg = 0,
    dilation: IntOrSeq = 1,
    groups: int = 1,
    *,
    magnitude: bool = False,
) -> Tensor:
    """Gradient with respect to the weight.

    Args:
        dy: gradient of the output [N, K, out].
        x: input [N, C, spatial].
        weight_size: (K, C/groups, kernel).

    Returns:
        dw [K, C/groups, kernel], float64, contiguous.

    Raises:
        ValueError: shapes or parameters that do not fit together, with their values.
    """
    g = _geometry(x.shape, weight_size, stride, padding, dilation, groups)
    _check_dy(dy, g)
    dys = _grouped(_operand(dy, magnitude), groups, 1)  # [N, G, K/G, out]
    xs = _grouped(x, groups, 1)  # [N, G, C/G, in]
    dw = dys.new_zeros(tuple(weight_size))
    dws = _grouped(dw, groups, 0)
    for tap, out, inp in g.taps():
        seen = _operand(xs[(..., *inp)], magnitude)
        dws[(..., *tap)] = torch.einsum("ngk...,ngc...->gkc", dys[(..., *out)], seen)
    return dw


def conv_bias_grad(dy: Tensor, *, magnitude: bool = False) -> Tensor:
    """Gradient with respect to the bias: dy [N, K, out] summed to [K], float64."""
    return _operand(dy, magnitude).flatten(2).sum((0, 2))


def _check_dy(dy: Tensor, g: _Geometry) -> None:
    if tuple(dy.shape) != g.output_size:
        raise ValueError(f"dy has shape {list(dy.shape)}, the output has {list(g.output_size)}")
