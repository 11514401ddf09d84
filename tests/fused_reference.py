"""Composed float64 references of the fused operations' kernels, and how far a kernel may be off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, channels_last, contiguous
from tolerances import UNDERFLOW, UNIT_ROUNDOFF
from torch import Tensor

from fastconv.testing import assert_conv_close

SLOPE = 0.2
# In the order of csrc/common/epilogue.h.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda v: v,
    "relu": F.relu,
    "leaky_relu": lambda v: F.leaky_relu(v, SLOPE),
    "relu6": F.relu6,
    "silu": F.silu,
}
NUMBER = {name: number for number, name in enumerate(ACTIVATIONS)}
# No residual, added before the activation, added after it.
RESIDUALS = ("none", "before", "after")
# Of act' (SiLU's is 1.0998 at 2.4).
STEEPEST = 1.1


def epilogue(pre: Tensor, residual: Tensor | None, activation: str, where: str) -> Tensor:
    act = ACTIVATIONS[activation]
    if residual is None:
        return act(pre)
    return act(pre) + residual if where == "after" else act(pre + residual)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounding(dtype: torch.dtype) -> float:
    """A unit roundoff of the accumulator; two where the reference is as far off itself."""
    return UNIT_ROUNDOFF[accumulator(dtype)] * (2 if dtype == torch.float64 else 1)


def stored(dtype: torch.dtype, expected: Tensor, bound: Tensor) -> Tensor:
    """The bound after rounding to storage."""
    if dtype.itemsize == 2:
        bound = bound + UNIT_ROUNDOFF[dtype] * (expected.abs() + bound)
    return bound + UNDERFLOW[dtype]


def per_channel(v: Tensor, like: Tensor) -> Tensor:
    return v.double().reshape(-1, *[1] * (like.dim() - 2))


@dataclass
class Norm:
    """Operands of the normalisation passes; all but the statistics in one dtype."""

    y: Tensor
    dz: Tensor
    residual: Tensor | None
    mean: Tensor
    rstd: Tensor
    weight: Tensor | None
    bias: Tensor | None
    activation: str
    where: str

    @property
    def act(self) -> tuple[int, float, bool]:
        return NUMBER[self.activation], SLOPE, self.where == "after"

    @property
    def operands(self) -> tuple[Tensor | None, ...]:
        return self.mean, self.rstd, self.weight, self.bias, self.residual

    def scale(self) -> Tensor:
        weight = 1.0 if self.weight is None else self.weight.double()
        return per_channel(self.rstd.double() * weight, self.y)

    def pre(self) -> Tensor:
        d = self.y.double() - per_channel(self.mean, self.y)
        bias = 0.0 if self.bias is None else per_channel(self.bias, self.y)
        return d * self.scale() + bias

    def residual64(self) -> Tensor | None:
        return None if self.residual is None else self.residual.double()

    def magnitude(self) -> Tensor:
        """What roundings of the argument are relative to."""
        d = (self.y.double() - per_channel(self.mean, self.y)).abs()
        bias = 0.0 if self.bias is None else per_channel(self.bias, self.y).abs()
        residual = 0.0 if self.residual is None else self.residual.double().abs()
        return d * self.scale().abs() + bias + residual

    def fprop(self) -> tuple[Tensor, Tensor]:
        z = epilogue(self.pre(), self.residual64(), self.activation, self.where)
        bound = 8 * rounding(self.y.dtype) * (self.magnitude() + z.abs())
        return z, stored(self.y.dtype, z, bound)

    def gradient(self) -> tuple[Tensor, Tensor]:
        """g = dz * act'(argument), and a bound on its error in the accumulator. Corners, where the
        derivative jumps within the argument's own error, are left to the caller's choice of
        values."""
        pre = self.pre()
        if self.residual is not None and self.where == "before":
            pre = pre + self.residual.double()
        pre = pre.requires_grad_()
        with torch.enable_grad():
            g = torch.autograd.grad(ACTIVATIONS[self.activation](pre), pre, self.dz.double())[0]
        return g, 16 * rounding(self.y.dtype) * self.dz.double().abs() * (1 + self.magnitude())

    def sums(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """((sum of g, sum of g * (y - mean)), their bounds)."""
        g, error = self.gradient()
        d = self.y.double() - per_channel(self.mean, self.y)
        axes = [i for i in range(g.dim()) if i != 1]
        # Terms of a block are added up one by one in each lane, at most 512 of them.
        unit = 512 * rounding(self.y.dtype)
        return (
            (g.sum(axes), (g * d).sum(axes)),
            (
                (unit * g.abs() + error).sum(axes),
                (unit * (g * d).abs() + error * d.abs()).sum(axes),
            ),
        )

    def dgrad(
        self, sum_g: Tensor | None, sum_gy: Tensor | None, count: float
    ) -> tuple[Tensor, Tensor]:
        g, error = self.gradient()
        d = self.y.double() - per_channel(self.mean, self.y)
        rstd = per_channel(self.rstd, self.y)
        terms = [self.scale() * g]
        if sum_g is not None and sum_gy is not None:
            terms.append(-self.scale() * per_channel(sum_g, self.y) / count)
            terms.append(-self.scale() * d * rstd**2 * per_channel(sum_gy, self.y) / count)
        stacked = torch.stack(torch.broadcast_tensors(*terms))
        dy, size = stacked.sum(0), stacked.abs().sum(0)
        bound = self.scale().abs() * error + 8 * rounding(self.y.dtype) * size
        return dy, stored(self.y.dtype, dy, bound)


FORMATS = {"contiguous": contiguous, "channels_last": channels_last}


def random(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64)).to(dtype)


def laid_out(t: Tensor, name: str) -> Tensor:
    """In the memory format; tensors without one (fewer than two spatial axes) as they are."""
    return FORMATS[name](t) if t.dim() >= 4 else t.contiguous()


def check(result: Tensor, expected: Tensor, bound: Tensor, note: str) -> None:
    assert result.shape == expected.shape, note
    assert_conv_close(result, expected, bound, note)


def check_statistics(y: Tensor, result: tuple[Tensor, Tensor], note: str) -> None:
    wide = y.double().transpose(0, 1).flatten(1)
    mean = wide.mean(1)
    mean = mean + (wide - mean[:, None]).mean(1)  # float64 is checked, too: no digit to lose
    m2 = (wide - mean[:, None]).square().sum(1)
    got_mean, got_m2 = result
    acc = accumulator(y.dtype)
    assert got_mean.dtype == got_m2.dtype == acc
    unit = rounding(y.dtype)
    # The mean is corrected by what is left of it; what remains is rounding, and the spread.
    spread = (wide - mean[:, None]).abs().mean(1)
    check(got_mean, mean, 2 * unit * mean.abs() + 64 * unit * spread + 1e-300, f"mean {note}")
    # y - centre is rounded where y is far from its mean.
    count = wide.shape[1]
    off = 512 * unit * m2 + count * (4 * unit * mean.abs()) ** 2
    check(got_m2, m2, off + 1e-300, f"m2 {note}")


by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_format = pytest.mark.parametrize("name", FORMATS)
