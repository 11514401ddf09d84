"""The self-test's part for the passes of normalisation and epilogue; `fastconv.trust` uses it.

All passes of a dtype and layout are one entry: a layer that trains needs each of them. Those of
Triton are entries of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastconv.activations import NAMES, Activation
from fastconv.ops.norm_run import DIRECT, TRITON, norm_pass
from fastconv.problem import NATIVE_DTYPES, dense_strides
from fastconv.tolerances import UNDERFLOW, UNIT_ROUNDOFF

OPS: Any = torch.ops.fastconv
PREFIX = "norm/"
_SEED = 21
# Tails of vectors and of blocks in K and in the pixels, and more images than one.
_SIZES = ((3, 41, 19, 23), (2, 64, 16, 16), (5, 8, 7, 7), (2, 130, 33))
# Units of roundoff of the largest value: sums of up to a few thousand, and one rounding in 16 bits.
_TOLERANCE = 64.0


@dataclass(frozen=True)
class NormInstance:
    """The passes in one dtype and layout; passes: whose, as in ops/norm_run.py."""

    dtype: torch.dtype
    channels_last: bool
    passes: str = DIRECT

    @property
    def name(self) -> str:
        layout = "nhwc" if self.channels_last else "nchw"
        whose = "" if self.passes == DIRECT else f"{self.passes}_"
        return f"{PREFIX}{whose}{str(self.dtype).removeprefix('torch.')}_{layout}"

    @property
    def ops(self) -> Any:
        """The passes by the names of the bare ops."""
        return OPS if self.passes == DIRECT else _Triton()


class _Triton:
    """Triton's launchers, whose compiler's errors, of whatever type, are RuntimeErrors."""

    def __getattr__(self, name: str) -> Any:
        from fastconv.selftest_triton import compiled

        return partial(compiled, norm_pass(name, TRITON))


def instances(passes: str = DIRECT) -> tuple[NormInstance, ...]:
    return tuple(
        NormInstance(dtype, last, passes) for dtype in NATIVE_DTYPES for last in (False, True)
    )


def _along(v: Tensor, y: Tensor) -> Tensor:
    return v.reshape(1, -1, *[1] * (y.dim() - 2))


def _differs(name: str, given: Tensor, exact: Tensor, dtype: torch.dtype) -> tuple[str, float]:
    unit = UNIT_ROUNDOFF[dtype] if given.dtype == dtype else UNIT_ROUNDOFF[given.dtype]
    bound = _TOLERANCE * unit * exact.abs().max().clamp(min=1.0)
    ratio = float(((given.cpu().double() - exact).abs() / bound).nan_to_num(nan=float("inf")).max())
    text = "" if ratio <= 1 else f"{name}: off by {ratio:.3g} times the bound"
    return text, ratio


def _results(
    instance: NormInstance, size: tuple[int, ...], code: int, after: bool, device: torch.device
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, what the device gives, what is exact) of every pass."""
    ops = instance.ops
    generator = torch.Generator().manual_seed(_SEED)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    K = size[1]
    kind = torch.float64 if instance.dtype == torch.float64 else torch.float32
    big = [rand(*size).to(instance.dtype) for _ in range(3)]  # y, residual, dz
    small = [rand(K).to(kind) for _ in range(3)]  # mean, weight, bias
    rstd = (rand(K).abs() + 0.5).to(kind)
    strides = dense_strides(size, instance.channels_last)

    def on_device(t: Tensor) -> Tensor:
        if t.dim() == 1:
            return t.to(device)
        placed = torch.empty_strided(t.shape, strides, dtype=t.dtype, device=device)
        return placed.copy_(t)

    y, residual, dz, mean, weight, bias, scale = (on_device(t) for t in (*big, *small, rstd))
    end = (code, 0.1, after)
    norm = (mean, scale, weight, bias, residual)
    y64, r64, dz64, mean64, w64, b64, rstd64 = (t.double() for t in (*big, *small, rstd))
    act = Activation(NAMES[code], 0.1)
    axes = [0, *range(2, len(size))]

    got_mean, got_m2 = ops.norm_act_stats(y)
    yield "mean", got_mean, y64.mean(axes)
    yield "m2", got_m2, (y64 - _along(y64.mean(axes), y64)).square().sum(axes)

    centred = y64 - _along(mean64, y64)
    normed = centred * _along(rstd64 * w64, y64) + _along(b64, y64)
    pre = (normed if after else normed + r64).requires_grad_()
    with torch.enable_grad():
        value = act(pre)
        (g,) = torch.autograd.grad(value, pre, dz64) if code else (dz64,)
    z64 = value.detach() + (r64 if after else 0)
    yield "forward", ops.norm_act_fprop(y, *norm, *end), z64
    plain = act(y64) + r64 if after else act(y64 + r64)
    out = on_device(torch.zeros(size, dtype=instance.dtype))
    ops.epilogue_into(y, residual, out, *end)
    yield "epilogue", out, plain

    sum_g, sum_gy = ops.norm_act_sums(dz, y, *norm, *end)
    g_sum, gy_sum = g.sum(axes), (g * centred).sum(axes)
    yield "sum", sum_g, g_sum
    yield "sum with y", sum_gy, gy_sum
    count = y64.numel() / K
    sums = [t.to(kind) for t in (g_sum, gy_sum)]
    given = [on_device(t) for t in sums]
    dy, dresidual = ops.norm_act_dgrad(dz, y, *norm, *given, count, *end, not after)
    a, b = (_along(t.double() / count, y64) for t in sums)
    expected = (g - a - centred * _along(rstd64.square(), y64) * b) * _along(rstd64 * w64, y64)
    yield "dy", dy, expected
    if not after:  # there it is dz itself
        yield "dresidual", dresidual, g


def epilogue_fits(z: Tensor, bias: Tensor, residual: Tensor, y: Tensor, bound_of_y: Tensor) -> bool:
    """Whether z is relu(y + bias + residual), but for what y and z may be off by, and roundings."""
    along = bias.double().reshape(1, -1, *[1] * (y.dim() - 2))
    parts = (y.double(), along, residual.double())
    expected = sum(parts).clamp(min=0)
    scale = sum(t.abs() for t in parts)
    bound = 2 * bound_of_y + 4 * UNIT_ROUNDOFF[y.dtype] * scale + UNDERFLOW[y.dtype]
    return bool(((z.double() - expected).abs() <= bound).all())


def statistics_fit(y: Tensor, with_stats: Tensor, mean: Tensor, m2: Tensor) -> bool:
    """Whether a convolution that took statistics along stored y, to the bit, and they are y's."""
    values = y.double().transpose(0, 1).flatten(1)  # [K, count]
    exact = values.mean(1)
    off = values - exact[:, None]
    squares, spread = off.square().sum(1), off.abs().mean(1)
    unit = UNIT_ROUNDOFF[mean.dtype]
    of_mean = 4 * unit * exact.abs()
    mean_off, m2_off = (mean.double() - exact).abs(), (m2.double() - squares).abs()
    fits = (mean_off <= of_mean + _TOLERANCE * unit * spread).all() and (
        m2_off <= 8 * _TOLERANCE * unit * squares + values.shape[1] * of_mean.square()
    ).all()
    return bool(fits) and torch.equal(y, with_stats)


def check(instance: NormInstance, device: torch.device, limit: int) -> tuple[int, str, float, bool]:
    """(problems, error, worst, inconclusive) as `fastconv.selftest` reports them."""
    from fastconv import gpu

    count, worst = 0, 0.0
    for number, size in enumerate(_SIZES[: max(limit, 1)]):
        if instance.channels_last and len(size) < 4:
            continue  # PyTorch has no name for that memory format
        for turn in range(2):
            code, after = (2 * number + turn) % len(NAMES), bool(turn)
            try:
                for name, given, exact in _results(instance, size, code, after, device):
                    text, ratio = _differs(name, given, exact, instance.dtype)
                    worst = max(worst, ratio)
                    if text:
                        return count, f"{size} {NAMES[code]}: {text}", worst, False
            except RuntimeError as error:
                return count, f"{size}: {error}", float("inf"), gpu.out_of_memory(error)
        count += 1
    return count, "", worst, False
